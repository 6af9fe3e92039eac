//! Why a VM was not answered, changed or opened.

use std::path::PathBuf;

use volant_spec::{
    Digest, Name, PluginRef,
    config::ConfigError,
    vm_config::{
        ConfigConflict, MAX_BYTES, MAX_SECRET_BYTES, MAX_SECRETS_BYTES, SecretName, VmConfigError,
    },
};

use super::super::{Damage, StoreError};
use crate::disks::{DiskError, RemoveError};

/// Why a VM was not answered or changed.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    #[error("no VM '{0}' is defined; `volar vms list` shows those there are")]
    NotFound(Name),
    #[error("the name '{0}' is taken by a VM; choose another, or delete that VM first")]
    Taken(Name),
    #[error("the name '{0}' is taken by a VM that is being deleted; try again when it is gone")]
    TakenByDeleting(Name),
    #[error("the VM '{0}' is being deleted and cannot be changed any more")]
    BeingDeleted(Name),
    #[error("no plugin '{0}' is installed; `volar plugins list` shows those there are")]
    NoPlugin(PluginRef),
    #[error(
        "the plugin '{0}' is disabled and makes no new VMs; enable it first: `volar plugins enable {0}`"
    )]
    Disabled(PluginRef),
    #[error(
        "no VM can be made of the plugin '{plugin}': this version of Volant cannot do what its manifest asks for with {}",
        .fields.join(", ")
    )]
    Unsupported {
        plugin: PluginRef,
        fields: Vec<String>,
    },
    #[error("the VM '{vm}' cannot be configured so")]
    Config { vm: Name, source: VmConfigError },
    #[error("the VM '{vm}' of the plugin '{plugin}' cannot be configured so")]
    Conflict {
        vm: Name,
        /// With its version.
        plugin: String,
        source: ConfigConflict,
    },
    #[error("the configuration of the VM '{vm}' has {size} bytes; at most {MAX_BYTES} are kept")]
    ConfigTooLarge { vm: Name, size: usize },
    #[error(
        "the configuration of the VM '{vm}' was changed by somebody else: its newest version is {newest}, not {expected}; look \
         at it and try again"
    )]
    Changed {
        vm: Name,
        expected: u64,
        newest: u64,
    },
    #[error(
        "the VM '{vm}' has no version {version} of its configuration; it has {oldest} to {newest}"
    )]
    NoVersion {
        vm: Name,
        version: u64,
        oldest: u64,
        newest: u64,
    },
    #[error(
        "{field} {wanted}: the disk of the VM '{vm}' has {has} MiB already and cannot shrink; give {has} or more"
    )]
    Shrinks {
        vm: Name,
        field: String,
        has: u64,
        wanted: u32,
    },
    #[error(
        "the secret '{secret}' of the VM '{vm}' has {size} bytes; at most {MAX_SECRET_BYTES} are possible"
    )]
    SecretTooLarge {
        vm: Name,
        secret: SecretName,
        size: usize,
    },
    #[error(
        "with the secret '{secret}', the VM '{vm}' would have {size} bytes of secrets; at most {MAX_SECRETS_BYTES} are \
         possible"
    )]
    SecretsTooLarge {
        vm: Name,
        secret: SecretName,
        size: u64,
    },
    #[error(
        "the VM '{vm}' cannot have the volume '{volume}': this host does not share {}; an administrator can allow it with \
         vm.share_paths in /etc/volant/volant.toml",
        path.display()
    )]
    NotShared {
        vm: Name,
        volume: Name,
        path: PathBuf,
    },
    #[error("cannot tell which directories this host shares")]
    Host(#[from] ConfigError),
    #[error("the VM '{0}' is not marked as being deleted; delete it instead")]
    NotMarked(Name),
    #[error("all user ids for VMs are used up on this host: no VM can be created any more")]
    UidsUsedUp,
    #[error("cannot remove the disks of the VM '{vm}'")]
    Disks { vm: Name, source: RemoveError },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a VM was not opened for its supervisor.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("no VM '{0}' is defined; `volar vms list` shows those there are")]
    NotFound(Name),
    #[error("the VM '{0}' is being deleted and does not start any more")]
    BeingDeleted(Name),
    #[error(
        "the artifact '{artifact}' ({digest}) of the plugin '{plugin}' {damage}; install the plugin again: \
         `volar plugins install`"
    )]
    Artifact {
        /// With its version.
        plugin: String,
        artifact: String,
        digest: Digest,
        damage: Damage,
    },
    #[error(
        "the manifest that the VM '{vm}' was created with, of the plugin '{plugin}', was changed in the database; delete \
         the VM and create it anew"
    )]
    Manifest {
        vm: Name,
        /// With its version.
        plugin: String,
    },
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(transparent)]
    Store(#[from] StoreError),
}
