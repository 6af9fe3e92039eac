//! What each fact is told as.

use super::{super::facts::Route, *};

fn login(readers: Readers) -> Option<Credentials> {
    let path = "/etc/volant/auth.json".into();
    Some(Credentials { path, readers })
}

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
        credentials: login(Readers::Right),
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
    let cases: [Case; 23] = [
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
            |f| f.credentials = login(Readers::TooFew),
            Level::Warn,
            "registryd cannot read /etc/volant/auth.json",
            "chgrp volant-registry /etc/volant/auth.json && chmod 640 /etc/volant/auth.json",
        ),
        (
            |f| f.credentials = login(Readers::Everyone),
            Level::Warn,
            "everyone can read",
            "chmod 640",
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
