//! Errors as callers of gRPC see them: the code that the contract promises, and the whole chain as the message.

use tonic::{Code, Status};

use volant_oci::{RegistryError, Trouble};
use volant_spec::config::ConfigError;

use crate::{
    fetch::FetchError,
    indexes::SearchError,
    install::InstallError,
    store::{BlobError, PluginError, StoreError, VmError},
    verify::VerifyError,
};

pub use volant_service::chain;

/// The status of an error of a call on VMs.
#[must_use]
pub fn of_vm(error: &VmError) -> Status {
    let code = match error {
        VmError::NotFound(_) | VmError::NoPlugin(_) => Code::NotFound,
        VmError::Taken(_) | VmError::TakenByDeleting(_) => Code::AlreadyExists,
        VmError::Resources { .. } => Code::InvalidArgument,
        VmError::NotMarked(_) | VmError::Disabled(_) | VmError::Unsupported { .. } => {
            Code::FailedPrecondition
        }
        VmError::UidsUsedUp => Code::ResourceExhausted,
        VmError::Store(error) => store_code(error),
    };
    Status::new(code, chain(error))
}

/// The status of an error of a call on plugins.
#[must_use]
pub fn of_plugin(error: &PluginError) -> Status {
    Status::new(plugin_code(error), chain(error))
}

/// The status of an error of a call on artifacts.
#[must_use]
pub fn of_blob(error: &BlobError) -> Status {
    Status::new(blob_code(error), chain(error))
}

/// The status of a failed look at the store.
#[must_use]
pub fn of_store(error: &StoreError) -> Status {
    Status::new(store_code(error), chain(error))
}

/// The status of a failed install.
#[must_use]
pub fn of_install(error: &InstallError) -> Status {
    let code = match error {
        InstallError::Url { .. }
        | InstallError::Reference(_)
        | InstallError::Manifest(_)
        | InstallError::Size { .. }
        | InstallError::IndexChecksum { .. }
        | InstallError::IndexName { .. } => Code::InvalidArgument,
        InstallError::ManifestFetch { source, .. }
        | InstallError::SignatureFetch { source, .. }
        | InstallError::Fetch { source, .. } => fetch_code(source),
        InstallError::Trust(_) => Code::PermissionDenied,
        InstallError::Config(error) => config_code(error),
        InstallError::Registries(_) => Code::FailedPrecondition,
        InstallError::Pull(error) => pull_code(error),
        InstallError::PullArtifact { source, .. } => registry_code(source),
        InstallError::NotInIndex { .. } => Code::NotFound,
        InstallError::NotUploaded { .. }
        | InstallError::NotPushed { .. }
        | InstallError::NoIndex(_) => Code::FailedPrecondition,
        InstallError::Keep { source, .. } => blob_code(source),
        InstallError::Plugin(error) => plugin_code(error),
        InstallError::Store(error) => store_code(error),
    };
    Status::new(code, chain(error))
}

/// The status of a failed search.
#[must_use]
pub fn of_search(error: &SearchError) -> Status {
    let code = match error {
        SearchError::Config(error) => config_code(error),
        SearchError::Unreadable(_) => Code::Unavailable,
        SearchError::Plugin(error) => plugin_code(error),
    };
    Status::new(code, chain(error))
}

/// The status of a failed look at what is installed.
#[must_use]
pub fn of_verify(error: &VerifyError) -> Status {
    let code = match error {
        VerifyError::Config(error) => config_code(error),
        VerifyError::Plugin(error) => plugin_code(error),
    };
    Status::new(code, chain(error))
}

/// The status of a configuration that is of no use.
#[must_use]
pub fn of_config(error: &ConfigError) -> Status {
    Status::new(config_code(error), chain(error))
}

fn pull_code(error: &volant_oci::plugin::PluginError) -> Code {
    use volant_oci::plugin::PluginError;
    match error {
        PluginError::Registry(error) => registry_code(error),
        PluginError::Manifest { .. }
        | PluginError::NotAPlugin { .. }
        | PluginError::Broken { .. }
        | PluginError::Config { .. }
        | PluginError::PushToDigest { .. } => Code::InvalidArgument,
    }
}

fn registry_code(error: &RegistryError) -> Code {
    match error.trouble() {
        Trouble::NotFound { .. } => Code::NotFound,
        Trouble::Unauthorized { .. } | Trouble::Credentials(_) | Trouble::Endpoint(_) => {
            Code::FailedPrecondition
        }
        Trouble::Digest { .. } | Trouble::TooLarge { .. } => Code::InvalidArgument,
        _ => Code::Unavailable,
    }
}

fn config_code(error: &ConfigError) -> Code {
    match error {
        ConfigError::Read { .. } | ConfigError::Parse { .. } => Code::FailedPrecondition,
    }
}

fn plugin_code(error: &PluginError) -> Code {
    match error {
        PluginError::NotFound(_) => Code::NotFound,
        PluginError::InUse { .. }
        | PluginError::SeveralVersions { .. }
        | PluginError::NoArtifact { .. } => Code::FailedPrecondition,
        PluginError::Store(error) => store_code(error),
    }
}

fn blob_code(error: &BlobError) -> Code {
    match error {
        BlobError::Mismatch { .. } | BlobError::TooLarge { .. } => Code::InvalidArgument,
        BlobError::Store(error) => store_code(error),
    }
}

fn store_code(error: &StoreError) -> Code {
    match error {
        StoreError::NoSpace(_) => Code::ResourceExhausted,
        StoreError::Damaged { .. } => Code::DataLoss,
        StoreError::File { .. } | StoreError::Database { .. } => Code::Internal,
    }
}

fn fetch_code(error: &FetchError) -> Code {
    match error {
        FetchError::TooLarge { .. } | FetchError::Answer(_) => Code::InvalidArgument,
        FetchError::Request(_)
        | FetchError::Broken { .. }
        | FetchError::Short { .. }
        | FetchError::Silent(_)
        | FetchError::Slow { .. } => Code::Unavailable,
        FetchError::Client(_) => Code::Internal,
    }
}
