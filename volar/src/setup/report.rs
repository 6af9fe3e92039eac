//! What the facts mean for Volant: fine, a pity, or missing; and what to do. Pure.

use serde::Serialize;
use volant_spec::config::{Network, PATH, SignaturePolicy};

use super::facts::{Credentials, Facts, Kvm, Readers};

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
    let mut checks = vec![
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
    ];
    checks.extend(facts.credentials.as_ref().map(credentials));
    checks
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

/// `podman login` as root leaves a file that is root's alone.
fn credentials(Credentials { path, readers }: &Credentials) -> Check {
    let path = path.display();
    let fix = format!("chgrp volant-registry {path} && chmod 640 {path}");
    match readers {
        Readers::Right => ok("credentials", path.to_string()),
        Readers::TooFew => warn(
            "credentials",
            format!("registryd cannot read {path}: no plugin can be installed from a registry"),
            fix,
        ),
        Readers::Everyone => warn("credentials", format!("everyone can read {path}"), fix),
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
mod tests;
