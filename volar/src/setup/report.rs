//! What the facts mean for Volant: fine, a pity, or missing; and what to do. Pure.

use serde::Serialize;
use volant_spec::config::{Network, PATH, SignaturePolicy};

use super::facts::{Facts, Kvm};

/// Debian 12's.
const OLDEST_SYSTEMD: u32 = 252;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Ok,
    /// Volant works, but less well.
    Warn,
    /// Volant cannot work.
    Missing,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    pub name: String,
    pub level: Level,
    pub found: String,
    /// How to get it.
    pub fix: Option<String>,
}

/// All checks, in the order in which they matter.
pub fn checks(facts: &Facts, network: &Network) -> Vec<Check> {
    vec![
        platform(facts),
        systemd(facts),
        require(
            "D-Bus",
            facts.bus,
            "the system bus answers at /run/dbus",
            "the system bus",
            "apt install dbus",
        ),
        require(
            "polkit",
            facts.polkit,
            "installed",
            "polkit",
            "apt install polkitd",
        ),
        virtualisation(facts),
        vmm(facts),
        vsock(facts),
        nft(facts),
        require(
            "tun",
            facts.tun,
            "/dev/net/tun",
            "/dev/net/tun",
            "modprobe tun",
        ),
        kernel(facts),
        units(facts),
        require(
            "group volant",
            facts.group,
            "exists",
            "the group",
            "systemd-sysusers, or reinstall the package volant",
        ),
        subnet(facts, network),
        signatures(facts),
    ]
}

fn ok(name: &str, found: impl Into<String>) -> Check {
    Check {
        name: name.to_owned(),
        level: Level::Ok,
        found: found.into(),
        fix: None,
    }
}

fn warn(name: &str, found: impl Into<String>, fix: impl Into<String>) -> Check {
    Check {
        name: name.to_owned(),
        level: Level::Warn,
        found: found.into(),
        fix: Some(fix.into()),
    }
}

fn missing(name: &str, found: impl Into<String>, fix: impl Into<String>) -> Check {
    Check {
        name: name.to_owned(),
        level: Level::Missing,
        found: found.into(),
        fix: Some(fix.into()),
    }
}

fn require(name: &str, there: bool, found: &str, what: &str, fix: &str) -> Check {
    if there {
        ok(name, found)
    } else {
        missing(name, format!("{what} is not there"), fix)
    }
}

fn platform(facts: &Facts) -> Check {
    match facts.platform.as_str() {
        "Linux x86_64" => ok("platform", "Linux x86_64"),
        other => missing("platform", other, "Volant runs on Linux on x86-64"),
    }
}

fn systemd(facts: &Facts) -> Check {
    match facts.systemd {
        None => missing(
            "systemd",
            "not installed",
            "Volant's VMs are units of systemd; use a host that runs it",
        ),
        Some(version) if version < OLDEST_SYSTEMD => missing(
            "systemd",
            format!("version {version}"),
            format!("version {OLDEST_SYSTEMD} or newer is needed, as in Debian 12"),
        ),
        Some(version) if !facts.systemd_runs => missing(
            "systemd",
            format!("version {version}, not running"),
            "boot this host with systemd as its PID 1",
        ),
        Some(version) => ok("systemd", format!("version {version}")),
    }
}

fn virtualisation(facts: &Facts) -> Check {
    let slow = "guests will be emulated: it works, and is slow";
    match (facts.virtualisation, facts.kvm) {
        (true, Kvm::Opens) => ok("KVM", "the processor's virtualisation is usable"),
        (true, Kvm::Absent) => warn(
            "KVM",
            format!("no /dev/kvm; {slow}"),
            "modprobe kvm_intel, or kvm_amd",
        ),
        (true, Kvm::Closed) => warn(
            "KVM",
            format!("/dev/kvm does not open; {slow}"),
            "as root, see: dmesg | grep -i kvm",
        ),
        (false, _) => warn(
            "KVM",
            format!("the processor shows neither vmx nor svm; {slow}"),
            "turn virtualisation on in the firmware, or nested virtualisation where this host is a VM",
        ),
    }
}

fn vmm(facts: &Facts) -> Check {
    let usable = facts.virtualisation && facts.kvm == Kvm::Opens;
    match (&facts.qemu, &facts.cloud_hypervisor) {
        (Some(qemu), Some(other)) => ok("VMM", format!("{}, {}", qemu.display(), other.display())),
        (Some(qemu), None) => ok("VMM", qemu.display().to_string()),
        (None, Some(other)) if usable => ok("VMM", other.display().to_string()),
        (None, Some(_)) => missing(
            "VMM",
            "cloud-hypervisor alone, which does not emulate",
            "apt install qemu-system-x86",
        ),
        (None, None) => missing(
            "VMM",
            "neither QEMU nor Cloud Hypervisor",
            "apt install qemu-system-x86",
        ),
    }
}

fn vsock(facts: &Facts) -> Check {
    match (facts.vhost_device_vsock, &facts.qemu) {
        (true, _) => ok("vsock", "vhost-device-vsock"),
        // Cloud Hypervisor needs no help.
        (false, None) => ok("vsock", "of the VMM"),
        (false, Some(_)) => missing(
            "vsock",
            "vhost-device-vsock is not there",
            "reinstall the package volant",
        ),
    }
}

fn nft(facts: &Facts) -> Check {
    match &facts.nft {
        Some(path) => ok("nftables", path.display().to_string()),
        None => missing("nftables", "nft is not there", "apt install nftables"),
    }
}

fn kernel(facts: &Facts) -> Check {
    let path = facts.kernel.display();
    if facts.kernel_there {
        return ok("guest kernel", path.to_string());
    }
    missing(
        "guest kernel",
        format!("{path} is not there"),
        "install the package volant-kernel",
    )
}

fn units(facts: &Facts) -> Check {
    if facts.missing_units.is_empty() {
        return ok(
            "units",
            if facts.active {
                "enabled and active"
            } else {
                "installed"
            },
        );
    }
    missing(
        "units",
        format!("{} not there", facts.missing_units.join(", ")),
        "reinstall the package volant",
    )
}

/// What a policy lets in, and whose plugins those are.
fn signatures(facts: &Facts) -> Check {
    let keys = match facts.trusted_keys {
        0 => "no key is trusted".to_owned(),
        1 => "1 key is trusted".to_owned(),
        many => format!("{many} keys are trusted"),
    };
    let stricter = format!("signatures = \"require\" in {PATH}, below [plugins]");
    match facts.signatures {
        SignaturePolicy::Off => warn(
            "signatures",
            "OFF: anyone's plugin is installed, and no signature is looked at",
            stricter,
        ),
        SignaturePolicy::Warn => warn(
            "signatures",
            format!("WARN: a plugin that nobody trusted signed is installed; {keys}"),
            stricter,
        ),
        SignaturePolicy::Require if !facts.trust_problems.is_empty() => warn(
            "signatures",
            format!(
                "required; {keys}; not {}",
                facts.trust_problems.join("; not ")
            ),
            "see docs/trust.md: keys belong to root, and nobody else can write to them",
        ),
        SignaturePolicy::Require if facts.trusted_keys == 0 => warn(
            "signatures",
            format!("required, and {keys}: no plugin can be installed yet"),
            "volar plugins trust add KEY|FILE",
        ),
        SignaturePolicy::Require => ok("signatures", format!("required; {keys}")),
    }
}

/// A network that overlaps with the VMs' own takes packets from the one or the other.
fn subnet(facts: &Facts, network: &Network) -> Check {
    let (ours, bridge) = (network.subnet.net(), network.bridge.as_str());
    let overlaps = |theirs: &ipnet::Ipv4Net| {
        theirs.contains(&ours.network()) || ours.contains(&theirs.network())
    };
    let others = facts
        .routes
        .iter()
        .filter(|route| route.link != bridge && overlaps(&route.net));
    // The narrower of two routes wins: one that holds ours loses its part of it, and no more.
    match others.max_by_key(|route| route.net.prefix_len()) {
        None => ok("network", format!("{ours} on {bridge}")),
        Some(route) if route.net.prefix_len() < ours.prefix_len() => warn(
            "network",
            format!(
                "{ours} is a part of {}, which {} leads to",
                route.net, route.link
            ),
            "if hosts in that part matter, choose another: volar setup --subnet CIDR",
        ),
        Some(route) => missing(
            "network",
            format!(
                "{ours} is in conflict with {}, which {} leads to",
                route.net, route.link
            ),
            "choose another: volar setup --subnet CIDR",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::facts::Route, *};

    fn good() -> Facts {
        Facts {
            platform: "Linux x86_64".to_owned(),
            systemd: Some(252),
            systemd_runs: true,
            virtualisation: true,
            kvm: Kvm::Opens,
            qemu: Some("/usr/bin/qemu-system-x86_64".into()),
            cloud_hypervisor: None,
            vhost_device_vsock: true,
            nft: Some("/usr/sbin/nft".into()),
            polkit: true,
            bus: true,
            tun: true,
            kernel: "/usr/lib/volant/kernel/vmlinux".into(),
            kernel_there: true,
            missing_units: Vec::new(),
            group: true,
            outsider: None,
            routes: Vec::new(),
            signatures: SignaturePolicy::Require,
            trust_folder: true,
            trusted_keys: 1,
            trust_problems: Vec::new(),
            active: false,
        }
    }

    /// The one check that is not fine.
    fn complaint(facts: &Facts) -> Check {
        let mut bad: Vec<Check> = checks(facts, &Network::default())
            .into_iter()
            .filter(|check| check.level != Level::Ok)
            .collect();
        assert_eq!(bad.len(), 1, "{bad:?}");
        bad.remove(0)
    }

    #[test]
    fn a_good_host_has_all() {
        assert!(
            checks(&good(), &Network::default())
                .iter()
                .all(|check| check.level == Level::Ok)
        );
    }

    #[test]
    fn what_is_wrong_is_told_with_its_remedy() {
        type Case = (fn(&mut Facts), Level, &'static str, &'static str);
        let cases: [Case; 21] = [
            (
                |f| f.platform = "Linux aarch64".to_owned(),
                Level::Missing,
                "aarch64",
                "x86-64",
            ),
            (
                |f| f.systemd = None,
                Level::Missing,
                "not installed",
                "use a host",
            ),
            (
                |f| f.systemd = Some(247),
                Level::Missing,
                "version 247",
                "252 or newer",
            ),
            (
                |f| f.systemd_runs = false,
                Level::Missing,
                "not running",
                "PID 1",
            ),
            (
                |f| f.bus = false,
                Level::Missing,
                "system bus",
                "apt install dbus",
            ),
            (
                |f| f.polkit = false,
                Level::Missing,
                "polkit",
                "apt install polkitd",
            ),
            (|f| f.kvm = Kvm::Absent, Level::Warn, "slow", "modprobe"),
            (|f| f.kvm = Kvm::Closed, Level::Warn, "slow", "dmesg"),
            (
                |f| f.virtualisation = false,
                Level::Warn,
                "slow",
                "firmware",
            ),
            (
                |f| f.qemu = None,
                Level::Missing,
                "neither",
                "apt install qemu-system-x86",
            ),
            (
                |f| f.vhost_device_vsock = false,
                Level::Missing,
                "vhost-device-vsock",
                "reinstall",
            ),
            (
                |f| f.nft = None,
                Level::Missing,
                "nft",
                "apt install nftables",
            ),
            (
                |f| f.tun = false,
                Level::Missing,
                "/dev/net/tun",
                "modprobe tun",
            ),
            (
                |f| f.kernel_there = false,
                Level::Missing,
                "vmlinux",
                "volant-kernel",
            ),
            (
                |f| f.missing_units = vec!["volant.target"],
                Level::Missing,
                "volant.target",
                "reinstall",
            ),
            (|f| f.group = false, Level::Missing, "group", "sysusers"),
            (
                |f| f.signatures = SignaturePolicy::Off,
                Level::Warn,
                "OFF: anyone",
                "signatures = \"require\"",
            ),
            (
                |f| f.signatures = SignaturePolicy::Warn,
                Level::Warn,
                "WARN: a plugin that nobody trusted signed is installed; 1 key",
                "signatures = \"require\"",
            ),
            (
                |f| f.trusted_keys = 0,
                Level::Warn,
                "no plugin can be installed yet",
                "volar plugins trust add",
            ),
            (
                |f| f.trust_problems = vec!["a.pub: it is no text".to_owned()],
                Level::Warn,
                "not a.pub: it is no text",
                "belong to root",
            ),
            (
                |f| {
                    f.routes = vec![Route {
                        link: "eth0".to_owned(),
                        net: "192.168.127.128/25".parse().unwrap(),
                    }];
                },
                Level::Missing,
                "eth0",
                "--subnet",
            ),
        ];
        for (spoil, level, found, fix) in cases {
            let mut facts = good();
            spoil(&mut facts);
            let check = complaint(&facts);
            assert_eq!(check.level, level, "{check:?}");
            assert!(
                check.found.contains(found) && check.fix.as_ref().unwrap().contains(fix),
                "{check:?}"
            );
        }
    }

    #[test]
    fn cloud_hypervisor_alone_is_enough_only_with_virtualisation() {
        let alone = Facts {
            qemu: None,
            cloud_hypervisor: Some("/usr/bin/c".into()),
            vhost_device_vsock: false,
            ..good()
        };
        assert!(
            checks(&alone, &Network::default())
                .iter()
                .all(|check| check.level == Level::Ok)
        );
        let without = Facts {
            virtualisation: false,
            ..alone
        };
        let levels: Vec<_> = checks(&without, &Network::default())
            .into_iter()
            .filter(|check| check.level != Level::Ok)
            .map(|check| (check.name, check.level))
            .collect();
        assert_eq!(
            levels,
            [
                ("KVM".to_owned(), Level::Warn),
                ("VMM".to_owned(), Level::Missing)
            ]
        );
    }

    #[test]
    fn networks_of_others_are_left_alone() {
        let route = |link: &str, net: &str| Route {
            link: link.to_owned(),
            net: net.parse().unwrap(),
        };
        let cases = [
            (route("vbr0", "192.168.127.0/24"), Level::Ok),
            (route("eth0", "192.168.126.0/24"), Level::Ok),
            (route("eth0", "192.168.127.0/24"), Level::Missing),
            (route("eth0", "192.168.127.9/32"), Level::Missing),
            (route("vpn0", "192.168.0.0/16"), Level::Warn),
        ];
        for (route, expected) in cases {
            let facts = Facts {
                routes: vec![route.clone()],
                ..good()
            };
            assert_eq!(
                subnet(&facts, &Network::default()).level,
                expected,
                "{route:?}"
            );
        }
    }
}
