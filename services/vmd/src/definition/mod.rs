//! A VM's definition and attachment, checked, and what the guest is told of them. Pure.

mod workload;

use std::time::Duration;

use serde::{Deserialize, Serialize};
use volant_dbus::{ipam::Attachment, registry::VmDefinition};
use volant_proto::agent::v1::{NetworkConfig, RootFilesystem, RunConfig, Workload};
use volant_spec::{
    Name, Resources,
    config::Vmm,
    manifest::{Devices, DevicesError},
    resources::ResourcesError,
};

use crate::hypervisor::ROOTFS_SERIAL;

/// How often the agent shows that the guest is alive.
pub const HEARTBEAT: Duration = Duration::from_secs(5);

/// A definition that can be started.
#[derive(Clone, Debug)]
pub struct Definition {
    pub name: Name,
    pub uuid: String,
    pub uid: u32,
    pub plugin: String,
    pub resources: Resources,
    pub vmm: Vmm,
    pub stop_grace: Duration,
    pub kernel: Kernel,
    /// What is in the artifact `rootfs`, where there is one.
    pub rootfs_format: Option<String>,
    /// From the agent's hello to the workload's readiness.
    pub ready_within: Duration,
    /// Of the VM's configuration that this follows.
    pub config_version: u64,
    /// What systemd is to hold the unit to.
    pub share: Share,
    /// The secrets that have a variable, too: name and variable; or none.
    pub secrets: Vec<(String, String)>,
    /// The host's PCI devices that it gets, by address.
    pub devices: Vec<String>,
    init: String,
    workload: Workload,
}

/// What the unit gets of the host, as systemd's properties have it; 0: as the unit says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// `CPUQuota=`, in percent of one CPU.
    pub cpu_quota_percent: u32,
    pub cpu_weight: u32,
    pub io_weight: u32,
}

/// The kernel that a VM boots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// The host's, which takes an initramfs.
    Vmlinux,
    /// The host's, with the boot initramfs in it.
    BzImage,
    /// The plugin's.
    Own,
}

/// The root file systems that the agent mounts; `raw` is any of the others.
const ROOTFS_FORMATS: &[&str] = &["raw", "squashfs", "erofs", "ext4"];

/// Why a definition cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum DefinitionError {
    #[error("the registry answered for VM '{}', not for '{asked}'", .answered.escape_debug())]
    OtherVm { asked: Name, answered: String },
    #[error("the registry's definition of VM '{name}' has wrong resources")]
    Resources { name: Name, source: ResourcesError },
    #[error("the registry's definition of VM '{name}' has a wrong value: {problem}")]
    Value { name: Name, problem: String },
}

impl Definition {
    /// Checks what the registry answered for the VM `name`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(name: &Name, mut wire: VmDefinition) -> Result<Self, DefinitionError> {
        if wire.name != name.as_str() {
            return Err(DefinitionError::OtherVm {
                asked: name.clone(),
                answered: wire.name,
            });
        }
        let value = |problem: String| DefinitionError::Value {
            name: name.clone(),
            problem,
        };
        let resources = Resources::new(wire.cpu_cores, wire.memory_mb).map_err(|source| {
            DefinitionError::Resources {
                name: name.clone(),
                source,
            }
        })?;
        if !is_uuid(&wire.uuid) {
            return Err(value(format!("'{}' is no UUID", wire.uuid.escape_debug())));
        }
        let devices = devices(&wire.pci).map_err(|error| value(error.to_string()))?;
        let workload = workload::workload(&mut wire).map_err(value)?;
        let kernel = match wire.kernel.as_str() {
            "vmlinux" => Kernel::Vmlinux,
            "bzimage" => Kernel::BzImage,
            "own" => Kernel::Own,
            other => {
                let other = other.escape_debug();
                return Err(value(format!(
                    "kernel '{other}' is not one of vmlinux, bzimage, own"
                )));
            }
        };
        let rootfs_format = Some(wire.rootfs_format).filter(|format| !format.is_empty());
        if let Some(format) = &rootfs_format
            && !ROOTFS_FORMATS.contains(&format.as_str())
        {
            return Err(value(format!(
                "rootfs format '{}' is not one of {}",
                format.escape_debug(),
                ROOTFS_FORMATS.join(", ")
            )));
        }
        Ok(Self {
            name: name.clone(),
            uuid: wire.uuid,
            uid: wire.uid,
            plugin: wire.plugin,
            resources,
            vmm: wire.vmm.parse().map_err(value)?,
            stop_grace: Duration::from_millis(wire.stop_grace_ms.into()),
            kernel,
            rootfs_format,
            ready_within: workload::ready_within(workload.health_check.as_ref()),
            config_version: wire.config_version,
            share: Share {
                cpu_quota_percent: wire.cpu_quota_percent,
                cpu_weight: wire.cpu_weight,
                io_weight: wire.io_weight,
            },
            secrets: wire.secrets,
            devices,
            init: wire.init,
            workload,
        })
    }

    /// Whether something tells if the workload does its work.
    #[must_use]
    pub fn has_health_check(&self) -> bool {
        self.workload.health_check.is_some()
    }

    /// The program of the workload, or of the guest's own init, without its folder.
    #[must_use]
    pub fn program(&self) -> &str {
        let program = match self.workload.entrypoint.first() {
            Some(program) if self.init.is_empty() => program,
            _ => self.init.as_str(),
        };
        program.rsplit('/').next().unwrap_or(program)
    }

    /// Everything that the guest is told, but its secrets.
    #[must_use]
    pub fn run_config(&self, attachment: &Attachment) -> RunConfig {
        RunConfig {
            hostname: self.name.to_string(),
            network: Some(NetworkConfig {
                mac: attachment.mac.clone(),
                addresses: attachment.addresses.clone(),
                gateways: attachment.gateways.clone(),
                dns: attachment.dns.clone(),
            }),
            workload: Some(self.workload.clone()),
            heartbeat_interval_ms: u32::try_from(HEARTBEAT.as_millis()).unwrap_or(u32::MAX),
            root: self.rootfs_format.as_ref().map(|format| RootFilesystem {
                serial: ROOTFS_SERIAL.to_owned(),
                format: format.clone(),
                layer_serial: String::new(),
            }),
            init: self.init.clone(),
            ..RunConfig::default()
        }
    }
}

/// As the kernel writes them, which has them in file names.
fn devices(pci: &[String]) -> Result<Vec<String>, DevicesError> {
    let devices = Devices {
        pci: pci
            .iter()
            .map(|address| address.to_ascii_lowercase())
            .collect(),
        allowlist: Vec::new(),
    };
    devices.check()?;
    Ok(devices.pci)
}

/// Whether it is written as VMMs and journal fields have it: `01234567-89ab-cdef-0123-456789abcdef`.
fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.char_indices().all(|(at, c)| match at {
            8 | 13 | 18 | 23 => c == '-',
            _ => c.is_ascii_hexdigit(),
        })
}

/// The first address of an attachment, without its prefix length.
#[must_use]
pub fn address(attachment: &Attachment) -> &str {
    let first = attachment.addresses.first().map_or("", String::as_str);
    first.split('/').next().unwrap_or(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire() -> VmDefinition {
        VmDefinition {
            uuid: "01980000-0000-7000-8000-000000000001".to_owned(),
            name: "web".to_owned(),
            uid: volant_spec::unit::FIRST_UID,
            plugin: "caddy".to_owned(),
            plugin_version: "1".to_owned(),
            cpu_cores: 1,
            memory_mb: 128,
            vmm: "auto".to_owned(),
            entrypoint: vec!["/usr/bin/caddy".to_owned(), "run".to_owned()],
            env: [("A".to_owned(), "b".to_owned())].into(),
            workdir: "/".to_owned(),
            volumes: vec!["/data".to_owned()],
            user: "www-data".to_owned(),
            stop_signal: "SIGTERM".to_owned(),
            stop_grace_ms: 10_000,
            kernel: "vmlinux".to_owned(),
            rootfs_format: "squashfs".to_owned(),
            restart: "never".to_owned(),
            network_mode: "bridged".to_owned(),
            ..VmDefinition::default()
        }
    }

    #[test]
    fn a_wrong_definition_is_told_what_is_wrong() {
        type Spoil = fn(&mut VmDefinition);
        let cases: [(Spoil, &str); 9] = [
            (
                |wire| wire.uuid = "0198,x=y".to_owned(),
                "'0198,x=y' is no UUID",
            ),
            (|wire| wire.name = "db".to_owned(), "for VM 'db'"),
            (
                |wire| wire.pci = vec!["../../x".to_owned()],
                "'../../x', which is no address",
            ),
            (|wire| wire.memory_mb = 0, "0 MiB"),
            (|wire| wire.cpu_cores = 0, "0 CPUs"),
            (|wire| wire.vmm = "xen".to_owned(), "vmm 'xen'"),
            (|wire| wire.entrypoint.clear(), "no program"),
            (|wire| wire.kernel.clear(), "kernel '' is not one of"),
            (
                |wire| wire.rootfs_format = "xfs".to_owned(),
                "rootfs format 'xfs' is not one of raw, squashfs",
            ),
        ];
        let name: Name = "web".parse().unwrap();
        for (spoil, expected) in cases {
            let mut wire = wire();
            spoil(&mut wire);
            let error = anyhow::Error::new(Definition::parse(&name, wire).unwrap_err());
            assert!(format!("{error:#}").contains(expected), "{error:#}");
        }
    }

    #[test]
    fn devices_are_named_as_the_kernel_names_them() {
        let wire = VmDefinition {
            pci: vec!["0000:0A:00.0".to_owned()],
            ..wire()
        };
        let definition = Definition::parse(&"web".parse().unwrap(), wire).unwrap();
        assert_eq!(definition.devices, ["0000:0a:00.0"]);
    }

    #[test]
    fn the_guest_is_told_its_workload_and_its_network() {
        let definition = Definition::parse(&"web".parse().unwrap(), wire()).unwrap();
        assert_eq!(definition.program(), "caddy");
        let attachment = Attachment {
            addresses: vec!["192.168.127.2/24".to_owned()],
            gateways: vec!["192.168.127.1".to_owned()],
            dns: vec!["192.168.127.1".to_owned()],
            mac: "52:54:00:00:00:02".to_owned(),
            cid: 3,
            tap: "vt3".to_owned(),
        };
        let config = definition.run_config(&attachment);
        assert_eq!(config.hostname, "web");
        assert_eq!(config.heartbeat_interval_ms, 5000);
        let workload = config.workload.unwrap();
        assert_eq!(workload.env["A"], "b");
        assert_eq!(workload.user, "www-data");
        assert_eq!(workload.volumes, ["/data"]);
        let root = config.root.unwrap();
        assert_eq!(
            (root.serial.as_str(), root.format.as_str()),
            ("rootfs", "squashfs")
        );
        let network = config.network.unwrap();
        assert_eq!(network.addresses, ["192.168.127.2/24"]);
        assert_eq!(address(&attachment), "192.168.127.2");
    }
}
