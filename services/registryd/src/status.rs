//! Errors as callers of gRPC see them: the code that the contract promises, and the whole chain as the message.

use reqwest::StatusCode;
use tonic::{Code, Status, metadata::MetadataValue};

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

/// The metadata that tells a kind which the code does not.
const KIND: &str = "volant-kind";
const MISCONFIGURED: &str = "misconfigured";

/// The status of an error of a call on VMs.
#[must_use]
pub fn of_vm(error: &VmError) -> Status {
    let code = match error {
        VmError::NotFound(_) | VmError::NoPlugin(_) | VmError::NoVersion { .. } => Code::NotFound,
        VmError::Taken(_) | VmError::TakenByDeleting(_) => Code::AlreadyExists,
        VmError::Config { .. }
        | VmError::Conflict { .. }
        | VmError::ConfigTooLarge { .. }
        | VmError::Shrinks { .. }
        | VmError::SecretTooLarge { .. }
        | VmError::SecretsTooLarge { .. } => Code::InvalidArgument,
        VmError::Changed { .. } => Code::Aborted,
        VmError::Host(_) => return misconfigured(error),
        VmError::NotMarked(_)
        | VmError::BeingDeleted(_)
        | VmError::Disabled(_)
        | VmError::NotShared { .. }
        | VmError::Unsupported { .. } => Code::FailedPrecondition,
        VmError::Disks { .. } => Code::Internal,
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
        | InstallError::DeclaredSize { .. } => Code::InvalidArgument,
        // What a server gave is not what was to come.
        InstallError::Size { .. }
        | InstallError::IndexChecksum { .. }
        | InstallError::IndexName { .. } => Code::Aborted,
        InstallError::ManifestFetch { source, .. }
        | InstallError::SignatureFetch { source, .. }
        | InstallError::Fetch { source, .. } => fetch_code(source),
        InstallError::Trust(_) => Code::PermissionDenied,
        InstallError::Config(error) => return of_config(error),
        InstallError::Registries(_) => return misconfigured(error),
        InstallError::Pull(error) => pull_code(error),
        InstallError::PullArtifact { source, .. } => registry_code(source),
        InstallError::NotInIndex { .. } | InstallError::NotThatVersion { .. } => Code::NotFound,
        InstallError::NoReadableIndex(_) | InstallError::IndexUnreadable { .. } => {
            Code::Unavailable
        }
        InstallError::NotUploaded { .. }
        | InstallError::NotPushed { .. }
        | InstallError::NoIndex(_) => Code::FailedPrecondition,
        InstallError::Keep { source, .. } => match &**source {
            BlobError::Mismatch { .. } | BlobError::TooLarge { .. } => Code::Aborted,
            BlobError::Store(error) => store_code(error),
        },
        InstallError::Plugin(error) => plugin_code(error),
        InstallError::Store(error) => store_code(error),
    };
    Status::new(code, chain(error))
}

/// The status of a failed search.
#[must_use]
pub fn of_search(error: &SearchError) -> Status {
    let code = match error {
        SearchError::Config(error) => return of_config(error),
        SearchError::Unreadable(_) => Code::Unavailable,
        SearchError::Plugin(error) => plugin_code(error),
    };
    Status::new(code, chain(error))
}

/// The status of a failed look at what is installed.
#[must_use]
pub fn of_verify(error: &VerifyError) -> Status {
    let code = match error {
        VerifyError::Config(error) => return of_config(error),
        VerifyError::Plugin(error) => plugin_code(error),
    };
    Status::new(code, chain(error))
}

/// The status of a configuration that is of no use.
#[must_use]
pub fn of_config(error: &ConfigError) -> Status {
    match error {
        ConfigError::Read { .. } | ConfigError::Parse { .. } => misconfigured(error),
    }
}

/// The host's administrator has to act, not the caller: told beside the code, which has another meaning for some calls.
fn misconfigured(error: &dyn std::error::Error) -> Status {
    let mut status = Status::new(Code::FailedPrecondition, chain(error));
    let kind = MetadataValue::from_static(MISCONFIGURED);
    status.metadata_mut().insert(KIND, kind);
    status
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
        Trouble::Digest { .. } | Trouble::TooLarge { .. } => Code::Aborted,
        _ => Code::Unavailable,
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
        FetchError::Answer(StatusCode::NOT_FOUND | StatusCode::GONE) => Code::NotFound,
        FetchError::Answer(_) if error.is_passing() => Code::Unavailable,
        FetchError::TooLarge { .. } | FetchError::Answer(_) => Code::Aborted,
        FetchError::Request(_)
        | FetchError::Broken { .. }
        | FetchError::Short { .. }
        | FetchError::Silent(_)
        | FetchError::Slow { .. } => Code::Unavailable,
        FetchError::Client(_) => Code::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fetched(source: FetchError) -> InstallError {
        InstallError::ManifestFetch {
            url: "https://a.example/m.json".to_owned(),
            source,
        }
    }

    #[test]
    fn what_a_server_does_wrong_is_no_invalid_request() {
        let answer = |status| fetched(FetchError::Answer(status));
        let mismatch = BlobError::Mismatch {
            expected: volant_spec::Digest::from_bytes([0; 32]),
            actual: volant_spec::Digest::from_bytes([1; 32]),
        };
        let cases = [
            (answer(StatusCode::NOT_FOUND), Code::NotFound),
            (answer(StatusCode::GONE), Code::NotFound),
            (answer(StatusCode::BAD_GATEWAY), Code::Unavailable),
            (answer(StatusCode::TOO_MANY_REQUESTS), Code::Unavailable),
            (answer(StatusCode::FORBIDDEN), Code::Aborted),
            (fetched(FetchError::TooLarge { limit: 1 }), Code::Aborted),
            (
                InstallError::Size {
                    artifact: "rootfs".to_owned(),
                    found: 1,
                    declared: 2,
                },
                Code::Aborted,
            ),
            (
                InstallError::Keep {
                    artifact: "rootfs".to_owned(),
                    url: "https://a.example/r".to_owned(),
                    source: Box::new(mismatch),
                },
                Code::Aborted,
            ),
            (
                InstallError::NoReadableIndex(vec!["down".to_owned()]),
                Code::Unavailable,
            ),
        ];
        for (error, code) in cases {
            assert_eq!(of_install(&error).code(), code, "{error}");
        }
    }

    #[test]
    fn a_configuration_that_is_not_valid_says_so_beside_its_code() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("volant.toml");
        std::fs::write(&path, "colour = 'red'").unwrap();
        let config = || volant_spec::Config::load(&path).unwrap_err();
        for status in [
            of_install(&InstallError::Config(config())),
            of_search(&SearchError::Config(config())),
            of_verify(&VerifyError::Config(config())),
            of_config(&config()),
        ] {
            assert_eq!(status.code(), Code::FailedPrecondition);
            assert_eq!(status.metadata().get(KIND).unwrap(), MISCONFIGURED);
        }
        let missing = of_install(&InstallError::NotUploaded {
            artifact: "rootfs".to_owned(),
            url: "r".to_owned(),
        });
        assert_eq!(missing.metadata().get(KIND), None);
    }
}
