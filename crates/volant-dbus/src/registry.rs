//! `com.volantvm.Registry1`: what a VM's supervisor needs of the registry, and plugins as objects for operators.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use zbus::{OwnedFd, OwnedObjectPath, OwnedVariant, zvariant::Type};

/// The well-known name of registryd.
pub const NAME: &str = "com.volantvm.Registry1";
/// The path of its manager. It is an object manager, too: below it is an object for each plugin.
pub const PATH: &str = "/com/volantvm/Registry1";

/// The path of the object of a plugin's version. What is no letter or digit of `NAME@VERSION` is written `_` and two hex
/// digits, as systemd does it.
#[must_use]
pub fn plugin_path(name: &str, version: &str) -> String {
    let mut path = format!("{PATH}/plugin/");
    for (at, byte) in format!("{name}@{version}").bytes().enumerate() {
        let plain = byte.is_ascii_alphabetic() || (at > 0 && byte.is_ascii_digit());
        if plain {
            path.push(char::from(byte));
        } else {
            path.push_str(&format!("_{byte:02x}"));
        }
    }
    path
}

/// A VM's definition, resolved: what its supervisor starts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, Type)]
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
    /// Directories that hold data, absolute.
    pub volumes: Vec<String>,
    /// A signal's name.
    pub stop_signal: String,
    pub stop_grace_ms: u32,
    /// `vmlinux` or `bzimage` of the host, or `own`: the artifact `kernel`.
    pub kernel: String,
    /// What is in the artifact `rootfs`: `raw`, `squashfs`, `erofs` or `ext4`; empty when there is none.
    pub rootfs_format: String,
    /// Of the VM's configuration that the rest follows.
    pub config_version: u64,
    /// `never`, `on-failure` or `always`.
    pub restart: String,
    /// At most one.
    pub health_check: Vec<HealthCheck>,
    /// Name, soft and hard limit.
    pub rlimits: Vec<(String, u64, u64)>,
    /// The program that becomes PID 1 in the guest; empty: the agent stays it.
    pub init: String,
    /// Whether the root's writable layer is a disk that survives: the file `disk.root`, an ext4.
    pub is_persistent: bool,
    pub mounts: Vec<Mount>,
    /// Whether the file `disk.cidata` is a seed for cloud-init.
    pub has_seed: bool,
    /// Credentials of the unit that the workload gets: the name, and the variable that has it, too, or nothing.
    pub secrets: Vec<(String, String)>,
    /// `bridged` or `vsock`.
    pub network_mode: String,
    /// PCI addresses of the host's devices.
    pub pci: Vec<String>,
    /// `VENDOR:DEVICE`; what `pci` may be.
    pub pci_allowlist: Vec<String>,
    /// `CPUQuota=`, in percent of one CPU; 0: none.
    pub cpu_quota_percent: u32,
    /// `CPUWeight=`; 0: systemd's default.
    pub cpu_weight: u32,
    /// `IOWeight=`; 0: systemd's default.
    pub io_weight: u32,
}

/// How to tell whether a workload does its work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct HealthCheck {
    /// `http`, `tcp` or `exec`.
    pub kind: String,
    /// Of `http`.
    pub url: String,
    /// Of `tcp`.
    pub port: u16,
    /// Of `exec`.
    pub command: Vec<String>,
    pub interval_ms: u32,
    pub timeout_ms: u32,
    pub retries: u32,
    pub start_period_ms: u32,
}

/// A file system besides the root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct Mount {
    pub name: String,
    /// `disk`: the file `disk.NAME`, the VM's own ext4; `image`: the artifact `disks.NAME` of the plugin, read-only; `share`: a
    /// directory of the host, read-only.
    pub kind: String,
    /// Of a `share`, absolute.
    pub host_path: String,
    /// Absolute.
    pub target: String,
    pub is_read_only: bool,
}

#[zbus::proxy(
    interface = "com.volantvm.Registry1.Manager",
    default_service = "com.volantvm.Registry1",
    default_path = "/com/volantvm/Registry1"
)]
pub trait Manager {
    /// The definition of the VM whose unit the caller is in, and its files. Open for reading: `initramfs`, `rootfs`, `kernel` and
    /// `disks.NAME`, those that the plugin brings (one of the first two at least), verified again just now. Open for reading
    /// and writing, made when they are missing: `disk.root` and `disk.NAME`, the VM's own; for reading: `disk.cidata`. Fails
    /// with `NoSuchVm`, `BeingDeleted`, `ArtifactMissing`, `ArtifactDamaged` or `NoDisk`.
    fn open_vm(&self) -> zbus::Result<(VmDefinition, HashMap<String, OwnedFd>)>;

    /// The user of a VM's VMM, the PCI addresses of the devices that it is to have, and what they may be (`VENDOR:DEVICE`). For root
    /// alone, who lends them. Fails with `NoSuchVm` or `BeingDeleted`.
    fn vm_devices(&self, name: &str) -> zbus::Result<(u32, Vec<String>, Vec<String>)>;

    /// The names of the installed plugins.
    #[zbus(property(emits_changed_signal = "false"))]
    fn plugins(&self) -> zbus::Result<Vec<String>>;

    /// The names of the defined VMs.
    #[zbus(property(emits_changed_signal = "false"))]
    fn vms(&self) -> zbus::Result<Vec<String>>;

    /// Installs a plugin from an `http(s)://` URL of a manifest, an `oci://` reference, or `NAME[@VERSION]` of an index.
    /// Options: `allow-downgrade` (b), and instead of a source (which is empty then) `manifest` (ay) and `signature` (ay).
    /// It answers when all is downloaded: give the call the time that it needs. Fails with `NotTrusted`, among others.
    fn install_plugin(
        &self,
        source: &str,
        options: HashMap<String, OwnedVariant>,
    ) -> zbus::Result<OwnedObjectPath>;

    /// Removes `NAME@VERSION`, or `NAME` if it has one version. Fails with `NoSuchPlugin`, `SeveralVersions`, or `InUse`,
    /// which names the VMs.
    fn remove_plugin(&self, plugin: &str) -> zbus::Result<()>;

    /// Enables or disables `NAME@VERSION`, or all versions of `NAME`.
    fn set_plugin_enabled(&self, plugin: &str, enabled: bool) -> zbus::Result<()>;

    /// Reads `NAME[@VERSION]`, or with an empty text all plugins, again: name, version, what was looked at (`signature` or the
    /// manifest's field), whether it is well, and details.
    fn verify_plugins(
        &self,
        plugin: &str,
    ) -> zbus::Result<Vec<(String, String, String, bool, String)>>;

    /// Removes artifacts that nothing refers to. Answers how many, and their bytes.
    fn collect_garbage(&self) -> zbus::Result<(u64, u64)>;

    /// Looks into the configured indexes: name, description, versions, the index, and the versions that are installed.
    fn search_plugins(
        &self,
        text: &str,
    ) -> zbus::Result<Vec<(String, String, Vec<String>, String, Vec<String>)>>;

    /// `require`, `warn` or `off`.
    #[zbus(property(emits_changed_signal = "false"))]
    fn signature_policy(&self) -> zbus::Result<String>;

    /// The keys that are trusted: name, id, public key, and the plugins that it may sign.
    #[zbus(property(emits_changed_signal = "false"))]
    fn trusted_keys(&self) -> zbus::Result<Vec<(String, String, String, Vec<String>)>>;
}

#[zbus::proxy(
    interface = "com.volantvm.Registry1.Plugin",
    default_service = "com.volantvm.Registry1"
)]
pub trait Plugin {
    /// Lets new VMs be made of it.
    fn enable(&self) -> zbus::Result<()>;

    /// Lets no new VMs be made of it.
    fn disable(&self) -> zbus::Result<()>;

    /// As the manager's `RemovePlugin`, of this version.
    fn remove(&self) -> zbus::Result<()>;

    /// As the manager's `VerifyPlugins`: what was looked at, whether it is well, and details.
    fn verify(&self) -> zbus::Result<Vec<(String, bool, String)>>;

    #[zbus(property(emits_changed_signal = "const"))]
    fn name(&self) -> zbus::Result<String>;

    #[zbus(property(emits_changed_signal = "const"))]
    fn version(&self) -> zbus::Result<String>;

    #[zbus(property)]
    fn enabled(&self) -> zbus::Result<bool>;

    /// `sha256:` and 64 hex digits.
    #[zbus(property)]
    fn manifest_digest(&self) -> zbus::Result<String>;

    /// Of all its artifacts together.
    #[zbus(property)]
    fn size_bytes(&self) -> zbus::Result<u64>;

    /// RFC 3339.
    #[zbus(property)]
    fn installed_at(&self) -> zbus::Result<String>;

    /// The key whose signature was verified: its name and its id; both empty when there was none.
    #[zbus(property)]
    fn signed_by(&self) -> zbus::Result<(String, String)>;

    /// Where it came from; empty for an upload.
    #[zbus(property)]
    fn source(&self) -> zbus::Result<String>;

    /// The manifest's own text (JSON).
    #[zbus(property(emits_changed_signal = "invalidates"))]
    fn manifest(&self) -> zbus::Result<String>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plugins_path_is_escaped_as_systemd_does_it() {
        let cases = [
            ("caddy", "2.6.2", "caddy_402_2e6_2e2"),
            ("9-lives", "1.0+b_1", "_39_2dlives_401_2e0_2bb_5f1"),
        ];
        for (name, version, expected) in cases {
            assert_eq!(
                plugin_path(name, version),
                format!("{PATH}/plugin/{expected}")
            );
        }
    }
}
