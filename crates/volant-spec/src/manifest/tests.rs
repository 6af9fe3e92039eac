//! Manifests whole, and what is refused in them.

use super::*;

fn manifest() -> serde_json::Value {
    serde_json::json!({
        "schema_version": "1", "name": "caddy", "version": "2.6.2",
        "initramfs": { "url": "caddy.cpio.gz", "checksum": "ab".repeat(32) },
        "workload": { "entrypoint": ["/usr/bin/caddy", "run"] },
    })
}

fn error(value: &serde_json::Value) -> String {
    let error = Manifest::parse(&serde_json::to_vec(value).unwrap()).unwrap_err();
    format!("{error}: {}", std::error::Error::source(&error).unwrap())
}

#[test]
fn a_manifest_survives_being_written_and_read() {
    let manifest = Manifest::parse(&serde_json::to_vec(&manifest()).unwrap()).unwrap();
    assert_eq!(
        manifest,
        Manifest::parse(&serde_json::to_vec(&manifest).unwrap()).unwrap()
    );
}

#[test]
fn a_mistake_is_named() {
    let cases: [(&str, serde_json::Value, &str); 9] = [
        ("/colour", "red".into(), "unknown field `colour`"),
        (
            "/schema_version",
            "7".into(),
            "schema_version '7' is not known",
        ),
        ("/name", "a/b".into(), "has '/' in it"),
        ("/version", "".into(), "version ''"),
        (
            "/workload/entrypoint",
            serde_json::json!([]),
            "names no program",
        ),
        (
            "/workload/env",
            serde_json::json!({"A=B": "1"}),
            "the key 'A=B'",
        ),
        ("/workload/workdir", "tmp".into(), "not an absolute path"),
        ("/workload/stop_signal", "SIGSTOP".into(), "not one of"),
        (
            "/resources",
            serde_json::json!({"cpu_cores": 1, "memory_mb": 0}),
            "0 MiB",
        ),
    ];
    for (at, value, expected) in cases {
        let mut changed = manifest();
        let (parent, key) = at.rsplit_once('/').unwrap();
        changed.pointer_mut(parent).unwrap()[key] = value;
        let error = error(&changed);
        assert!(error.contains(expected), "{at}: {error}");
    }
}

#[test]
fn a_full_manifest_is_read_with_the_fields_of_older_ones() {
    let text = serde_json::json!({
        "schema_version": "v1", "name": "nginx", "version": "1.22.1", "runtime": "nginx",
        "rootfs": { "url": "nginx.squashfs", "checksum": "ab".repeat(32), "size": 7, "format": "squashfs" },
        "initramfs": { "url": "boot.cpio.gz", "checksum": "cd".repeat(32) },
        "kernel": { "url": "vmlinux", "checksum": "ef".repeat(32) },
        "disks": [{ "name": "data", "source": "data.img", "checksum": "12".repeat(32), "readonly": true }],
        "image": "docker.io/library/nginx:alpine", "image_digest": format!("sha256:{}", "ab".repeat(32)),
        "resources": { "cpu_cores": 1, "memory_mb": 128 },
        "workload": {
            "type": "http", "base_url": "http://127.0.0.1:80", "entrypoint": ["nginx"], "user": "101:101",
            "restart": "on-failure", "volumes": ["/data"],
        },
        "health_check": { "endpoint": "/", "timeout_ms": 500 },
        "network": { "mode": "dhcp", "expose": [{ "port": 80, "host_port": 8080 }, { "port": 53, "protocol": "udp" }] },
        "cloud_init": {
            "datasource": "NoCloud", "seed_mode": "vfat", "user_data": { "content": "#cloud-config", "inline": true },
        },
        "devices": { "pci_passthrough": ["0000:01:00.0"], "allowlist": ["10de:*"] },
        "actions": { "reload": { "method": "POST", "path": "/reload", "timeout_ms": 100 } },
        "openapi": "/openapi.json", "enabled": false, "labels": { "a": "b" },
    });
    let manifest = Manifest::parse(&serde_json::to_vec(&text).unwrap()).unwrap();
    let fields: Vec<_> = manifest
        .artifacts()
        .map(|artifact| artifact.field)
        .collect();
    assert_eq!(fields, ["initramfs", "rootfs", "kernel", "disks.data"]);
    assert!(matches!(
        manifest.workload.health_check.as_ref().map(|check| &check.probe),
        Some(Probe::Http { url }) if url == "http://127.0.0.1:80/"
    ));
    assert_eq!(manifest.unsupported(), ["disks.data without 'target'"]);
    assert!(!manifest.enabled);
    let again = Manifest::parse(&serde_json::to_vec(&manifest).unwrap()).unwrap();
    assert_eq!(again, manifest);
}

#[test]
fn an_empty_endpoint_is_no_health_check() {
    let mut value = manifest();
    value["health_check"] = serde_json::json!({ "endpoint": "", "timeout_ms": 0 });
    let read = Manifest::parse(&serde_json::to_vec(&value).unwrap()).unwrap();
    assert_eq!(read.workload.health_check, None);
}

#[test]
fn fields_that_do_not_go_together_are_refused() {
    let sum = "ab".repeat(32);
    let disk = serde_json::json!({"name": "a", "url": "a", "checksum": sum});
    let check = serde_json::json!({"type": "tcp", "port": 1});
    let cases = [
        ("/initramfs", serde_json::Value::Null, "nothing to boot"),
        ("/kernel", "bzimage".into(), "has an initramfs in it"),
        ("/kernel", "own".into(), "kernel is \"vmlinux\""),
        ("/disks", serde_json::json!([disk, disk]), "two disks"),
        (
            "/network",
            serde_json::json!({"mode": "host"}),
            "unknown variant `host`",
        ),
        (
            "/network",
            serde_json::json!({"ports": [{"port": 0}]}),
            "nonzero",
        ),
        (
            "/rootfs",
            serde_json::json!({"url": "a", "checksum": sum, "format": "qcow2"}),
            "unknown variant `qcow2`",
        ),
        (
            "/actions",
            serde_json::json!({"a": {"method": "GET", "path": "x"}}),
            "does not begin with '/'",
        ),
        (
            "/workload",
            serde_json::json!({"entrypoint": ["a"], "user": "a:b:c"}),
            "USER:GROUP",
        ),
        (
            "/workload",
            serde_json::json!({"entrypoint": ["a"], "volumes": ["x"]}),
            "not an absolute path",
        ),
    ];
    for (at, value, expected) in cases {
        let mut changed = manifest();
        changed[&at[1..]] = value;
        let error = error(&changed);
        assert!(error.contains(expected), "{at}: {error}");
    }
    let mut twice = manifest();
    twice["health_check"] = check.clone();
    twice["workload"]["health_check"] = check;
    assert!(error(&twice).contains("there twice"));
}

#[test]
fn a_huge_manifest_is_not_read() {
    assert!(matches!(
        Manifest::parse(&vec![b' '; MAX_BYTES + 1]),
        Err(ManifestError::TooLarge(_))
    ));
}

#[test]
fn a_guest_that_is_all_its_inits_needs_no_program() {
    let mut value = manifest();
    value["init"] = "/sbin/init".into();
    for workload in [
        serde_json::json!({}),
        serde_json::json!({ "entrypoint": [] }),
        serde_json::Value::Null,
    ] {
        value["workload"] = workload.clone();
        if workload.is_null() {
            value.as_object_mut().unwrap().remove("workload");
        }
        let read = Manifest::parse(&serde_json::to_vec(&value).unwrap()).unwrap();
        assert_eq!(read.workload, Workload::none());
        assert_eq!(read.init.as_deref(), Some("/sbin/init"));
        let again = Manifest::parse(&serde_json::to_vec(&read).unwrap()).unwrap();
        assert_eq!(again, read);
    }
    value.as_object_mut().unwrap().remove("init");
    assert!(error(&value).contains("names no program, and there is no 'init'"));
}

#[test]
fn what_a_machine_cannot_be_is_refused() {
    let disk = |name: &str, target: &str| {
        serde_json::json!({
            "name": name, "url": "d", "checksum": "12".repeat(32), "readonly": true, "target": target,
        })
    };
    let many: Vec<_> = (0..17)
        .map(|at| disk(&format!("d{at}"), &format!("/d{at}")))
        .collect();
    let cases = [
        ("init", serde_json::json!("init"), "init 'init'"),
        (
            "root_disk",
            serde_json::json!({ "size_mb": 64 }),
            "for a 'rootfs'",
        ),
        (
            "limits",
            serde_json::json!({ "cpu_weight": 0 }),
            "limits.cpu_weight",
        ),
        (
            "workload",
            serde_json::json!({ "entrypoint": ["a"], "rlimits": { "files": {} } }),
            "workload.rlimits has 'files'",
        ),
        (
            "devices",
            serde_json::json!({ "pci": ["1:2.3"] }),
            "devices.pci",
        ),
        (
            "disks",
            serde_json::json!([disk("a", "/a"), disk("b", "/a")]),
            "the target '/a'",
        ),
        (
            "disks",
            serde_json::json!([disk("a", "/proc")]),
            "disks.a.target",
        ),
        ("disks", serde_json::json!(many), "there are 17 disks"),
    ];
    for (at, value, expected) in cases {
        let mut changed = manifest();
        changed[at] = value;
        let error = error(&changed);
        assert!(error.contains(expected), "{at}: {error}");
    }
    let mut small = manifest();
    small["rootfs"] = serde_json::json!({ "url": "r", "checksum": "12".repeat(32) });
    small["root_disk"] = serde_json::json!({ "size_mb": 7 });
    assert!(error(&small).contains("root_disk.size_mb 7"));
}

#[test]
fn a_disk_that_could_be_written_to_makes_no_vm() {
    let mut value = manifest();
    let disk = |name: &str, more: serde_json::Value| {
        let mut disk = serde_json::json!({ "name": name, "url": "d", "checksum": "12".repeat(32) });
        disk.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        disk
    };
    value["disks"] = serde_json::json!([
        disk("a", serde_json::json!({ "readonly": true, "target": "/a" })),
        disk("b", serde_json::json!({ "target": "/b" })),
        disk("c", serde_json::json!({ "readonly": true })),
    ]);
    value["cloud_init"] = serde_json::json!({ "user_data": { "content": "x" } });
    value["devices"] = serde_json::json!({ "pci": ["0000:01:00.0"] });
    value["network"] = serde_json::json!({ "mode": "vsock" });
    let read = Manifest::parse(&serde_json::to_vec(&value).unwrap()).unwrap();
    assert_eq!(
        read.unsupported(),
        ["disks.b without 'readonly'", "disks.c without 'target'"]
    );
}

#[test]
fn where_an_artifact_is_matters_until_it_is_installed() {
    let mut value = manifest();
    value["initramfs"]["url"] = "app:1.cpio".into();
    let bytes = serde_json::to_vec(&value).unwrap();
    let error = Manifest::parse(&bytes).unwrap_err();
    assert_eq!(error.to_string(), "initramfs.url is not valid");
    Manifest::parse_installed(&bytes).unwrap();
}
