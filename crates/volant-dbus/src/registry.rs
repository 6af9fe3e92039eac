//! `com.volantvm.Registry1`: what a VM's supervisor needs of the registry.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use zbus::{OwnedFd, zvariant::Type};

/// The well-known name of registryd.
pub const NAME: &str = "com.volantvm.Registry1";
/// The path of its one object.
pub const PATH: &str = "/com/volantvm/Registry1";

/// A VM's definition, resolved: what its supervisor starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct VmDefinition {
    pub uuid: String,
    pub name: String,
    /// The user id that this VM alone has.
    pub uid: u32,
    pub plugin: String,
    pub plugin_version: String,
    pub cpu_cores: u32,
    /// In MiB.
    pub memory_mb: u32,
    /// `auto`, `cloud-hypervisor` or `qemu`.
    pub vmm: String,
    pub entrypoint: Vec<String>,
    pub env: HashMap<String, String>,
    /// Absolute.
    pub workdir: String,
    /// `USER` or `USER:GROUP`; empty: root.
    pub user: String,
    /// A signal's name.
    pub stop_signal: String,
    pub stop_grace_ms: u32,
    /// `vmlinux` or `bzimage` of the host, or `own`: the artifact `kernel`.
    pub kernel: String,
    /// What is in the artifact `rootfs`: `raw`, `squashfs`, `erofs` or `ext4`; empty when there is none.
    pub rootfs_format: String,
}

#[zbus::proxy(
    interface = "com.volantvm.Registry1.Manager",
    default_service = "com.volantvm.Registry1",
    default_path = "/com/volantvm/Registry1"
)]
pub trait Manager {
    /// The definition of the VM whose unit the caller is in, and its artifacts, open for reading: `initramfs`, `rootfs` and
    /// `kernel`, those that the plugin brings (one of the first two at least). They were verified again just now. Fails
    /// with `NoSuchVm`, `BeingDeleted`, `ArtifactMissing` or `ArtifactDamaged`.
    fn open_vm(&self) -> zbus::Result<(VmDefinition, HashMap<String, OwnedFd>)>;

    /// The names of the installed plugins.
    #[zbus(property(emits_changed_signal = "false"))]
    fn plugins(&self) -> zbus::Result<Vec<String>>;

    /// The names of the defined VMs.
    #[zbus(property(emits_changed_signal = "false"))]
    fn vms(&self) -> zbus::Result<Vec<String>>;
}
