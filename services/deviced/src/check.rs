//! Whether a VM may have the devices that it asks for. Pure; every reason is told, not the first alone.

use std::collections::{BTreeMap, BTreeSet};

use crate::sysfs::{Address, Device};

/// What is known of the host.
#[derive(Clone, Debug, Default)]
pub struct Host {
    pub has_iommu: bool,
    /// `vfio-pci` is in the kernel, or a module that can be loaded.
    pub has_vfio: bool,
    pub devices: BTreeMap<Address, Device>,
    /// Which VM has which device.
    pub lent: BTreeMap<Address, String>,
    /// `[devices] pci` of the host's configuration.
    pub allowed: Vec<Pattern>,
}

/// A device that is allowed: an address, or `VENDOR:DEVICE` in hex with `*` for any device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pattern {
    Address(Address),
    Kind { vendor: u16, device: Option<u16> },
}

impl std::str::FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        let hex = |part: &str| {
            let is_hex = part.len() == 4 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
            is_hex.then(|| u16::from_str_radix(part, 16).ok()).flatten()
        };
        let kind = || {
            let (vendor, device) = text.split_once(':')?;
            let device = match device {
                "*" => None,
                device => Some(hex(device)?),
            };
            Some(Self::Kind {
                vendor: hex(vendor)?,
                device,
            })
        };
        kind().ok_or_else(|| {
            format!(
                "'{}' is neither a PCI address (0000:01:00.0) nor VENDOR:DEVICE in hex (10de:2204, 10de:*)",
                text.escape_debug()
            )
        })
    }
}

impl Pattern {
    fn fits(&self, of: &Device) -> bool {
        match self {
            Self::Address(address) => *address == of.address,
            Self::Kind { vendor, device } => {
                *vendor == of.vendor && device.is_none_or(|device| device == of.device)
            }
        }
    }
}

/// Why a VM may not have devices.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    #[error(
        "this host has no IOMMU in use: without one a device reaches all memory; switch on VT-d or AMD-Vi in the firmware, and \
         intel_iommu=on on the kernel's command line"
    )]
    NoIommu,
    #[error("this host's kernel has no driver vfio-pci; load it with: modprobe vfio-pci")]
    NoVfio,
    #[error("there is no PCI device {0}; `volar devices list` shows those there are")]
    NoDevice(Address),
    #[error("{0} is asked for twice")]
    Twice(Address),
    #[error("{0} is a bridge, which carries other devices and is not lent")]
    Bridge(Address),
    #[error("{address} ({kind}) is not in the allowlist of the plugin or VM")]
    NotInAllowlist { address: Address, kind: String },
    #[error(
        "{address} ({kind}) is not for VMs on this host; an administrator allows it with [devices] pci = [\"{address}\"] in \
         volant.toml"
    )]
    NotAllowed { address: Address, kind: String },
    #[error("{0} is in no IOMMU group: it cannot be kept from the host's memory")]
    NoGroup(Address),
    #[error(
        "{address} shares IOMMU group {group} with {}: a VM gets a whole group or nothing of it",
        list(.missing)
    )]
    PartOfGroup {
        address: Address,
        group: u32,
        missing: Vec<Address>,
    },
    #[error("{address} is lent to VM '{vm}'")]
    Lent { address: Address, vm: String },
}

fn list(addresses: &[Address]) -> String {
    let texts: Vec<_> = addresses.iter().map(ToString::to_string).collect();
    texts.join(", ")
}

/// `vvvv:dddd`, as `lspci -n` writes it.
#[must_use]
pub fn kind(device: &Device) -> String {
    format!("{:04x}:{:04x}", device.vendor, device.device)
}

/// All that speaks against lending `wish` to `vm`; nothing: it may have them. An empty `allowlist` allows all that the host
/// allows.
#[must_use]
pub fn check(vm: &str, wish: &[Address], allowlist: &[Pattern], host: &Host) -> Vec<Problem> {
    let mut problems = Vec::new();
    if !wish.is_empty() && !host.has_iommu {
        problems.push(Problem::NoIommu);
    }
    if !wish.is_empty() && !host.has_vfio {
        problems.push(Problem::NoVfio);
    }
    let mut seen = BTreeSet::new();
    for address in wish {
        if !seen.insert(address) {
            problems.push(Problem::Twice(address.clone()));
            continue;
        }
        match host.devices.get(address) {
            None => problems.push(Problem::NoDevice(address.clone())),
            Some(device) => problems.extend(of_device(vm, device, wish, allowlist, host)),
        }
    }
    problems
}

fn of_device(
    vm: &str,
    device: &Device,
    wish: &[Address],
    allowlist: &[Pattern],
    host: &Host,
) -> Vec<Problem> {
    let address = device.address.clone();
    if device.is_bridge() {
        return vec![Problem::Bridge(address)];
    }
    let mut problems = Vec::new();
    let fits = |patterns: &[Pattern]| patterns.iter().any(|pattern| pattern.fits(device));
    if !allowlist.is_empty() && !fits(allowlist) {
        problems.push(Problem::NotInAllowlist {
            address: address.clone(),
            kind: kind(device),
        });
    }
    if !fits(&host.allowed) {
        problems.push(Problem::NotAllowed {
            address: address.clone(),
            kind: kind(device),
        });
    }
    if let Some(holder) = host.lent.get(&address).filter(|holder| *holder != vm) {
        problems.push(Problem::Lent {
            address: address.clone(),
            vm: holder.clone(),
        });
    }
    let Some(group) = device.group else {
        // That there is no IOMMU at all was told already.
        if host.has_iommu {
            problems.push(Problem::NoGroup(address));
        }
        return problems;
    };
    let missing: Vec<_> = host
        .devices
        .values()
        .filter(|other| other.group == Some(group) && !other.is_bridge())
        .map(|other| other.address.clone())
        .filter(|other| !wish.contains(other))
        .collect();
    if !missing.is_empty() {
        problems.push(Problem::PartOfGroup {
            address,
            group,
            missing,
        });
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Address {
        text.parse().unwrap()
    }

    fn device(text: &str, class: u32, group: Option<u32>) -> (Address, Device) {
        let device = Device {
            address: address(text),
            vendor: 0x10de,
            device: 0x2204,
            class,
            driver: None,
            group,
            numa_node: None,
        };
        (address(text), device)
    }

    fn host() -> Host {
        Host {
            has_iommu: true,
            has_vfio: true,
            devices: [
                device("0000:00:01.0", 0x06_0400, Some(1)),
                device("0000:01:00.0", 0x03_0000, Some(1)),
                device("0000:01:00.1", 0x04_0300, Some(1)),
                device("0000:02:00.0", 0x02_0000, Some(2)),
                device("0000:03:00.0", 0x02_0000, None),
            ]
            .into(),
            lent: [(address("0000:02:00.0"), "db".to_owned())].into(),
            allowed: vec!["10de:*".parse().unwrap()],
        }
    }

    fn told(wish: &[&str], allowlist: &[&str], host: &Host) -> Vec<String> {
        let wish: Vec<_> = wish.iter().map(|text| address(text)).collect();
        let allowlist: Vec<_> = allowlist.iter().map(|text| text.parse().unwrap()).collect();
        let problems = check("web", &wish, &allowlist, host);
        problems.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_whole_group_without_its_bridge_may_be_lent() {
        let both = ["0000:01:00.0", "0000:01:00.1"];
        assert_eq!(told(&both, &[], &host()), [""; 0]);
        assert_eq!(told(&both, &["10de:2204"], &host()), [""; 0]);
        assert_eq!(told(&[], &[], &Host::default()), [""; 0]);
    }

    #[test]
    fn what_speaks_against_it_is_told() {
        let cases: [(&[&str], &[&str], &str); 8] = [
            (
                &["0000:01:00.0"],
                &[],
                "shares IOMMU group 1 with 0000:01:00.1",
            ),
            (&["0000:09:00.0"], &[], "no PCI device 0000:09:00.0"),
            (&["0000:00:01.0"], &[], "is a bridge"),
            (&["0000:02:00.0"], &[], "is lent to VM 'db'"),
            (&["0000:03:00.0"], &[], "in no IOMMU group"),
            (&["0000:03:00.0", "0000:03:00.0"], &[], "asked for twice"),
            (&["0000:02:00.0"], &["8086:*"], "not in the allowlist"),
            (
                &["0000:02:00.0"],
                &["10de:9999"],
                "(10de:2204) is not in the allowlist",
            ),
        ];
        for (wish, allowlist, expected) in cases {
            let told = told(wish, allowlist, &host());
            assert!(
                told.iter().any(|one| one.contains(expected)),
                "{expected}: {told:?}"
            );
        }
    }

    #[test]
    fn a_host_that_allows_nothing_or_has_no_iommu_lends_nothing() {
        let both = ["0000:01:00.0", "0000:01:00.1"];
        let closed = Host {
            allowed: vec!["0000:01:00.1".parse().unwrap()],
            ..host()
        };
        let problems = told(&both, &[], &closed);
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(
            problems[0].contains("[devices] pci = [\"0000:01:00.0\"]"),
            "{problems:?}"
        );
        let bare = Host {
            has_iommu: false,
            has_vfio: false,
            ..host()
        };
        let problems = told(&both, &[], &bare);
        assert!(
            problems[0].contains("no IOMMU") && problems[1].contains("modprobe"),
            "{problems:?}"
        );
    }

    #[test]
    fn its_own_devices_are_not_lent_to_another() {
        let mut host = host();
        host.lent = [(address("0000:02:00.0"), "web".to_owned())].into();
        assert_eq!(told(&["0000:02:00.0"], &[], &host), [""; 0]);
    }

    #[test]
    fn what_is_no_pattern_is_told() {
        for text in [
            "",
            "10de",
            "10de:",
            "*:2204",
            "10de:22045",
            "+0de:2204",
            "gpu",
        ] {
            let error = text.parse::<Pattern>().unwrap_err();
            assert!(error.contains("10de:*"), "{text}: {error}");
        }
    }
}
