//! Configurations whole, what is refused in them, and how they go over a plugin's.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::Manifest;

fn read(value: Value) -> Result<VmConfig, String> {
    serde_json::from_value(value).map_err(|error| error.to_string())
}

fn full() -> Value {
    json!({
        "cpu_cores": 2, "memory_mb": 512, "vmm": "qemu",
        "limits": {"cpu_quota_percent": 150, "cpu_weight": 50, "io_weight": 10_000},
        "entrypoint": ["/bin/app", "-v"], "env": {"A": "b=c"}, "user": "www-data:0", "workdir": "/srv",
        "stop_signal": "SIGQUIT", "stop_grace_ms": 1000, "restart": "on-failure",
        "health_check": {"type": "tcp", "port": 80},
        "rlimits": {"nofile": {"soft": 10, "hard": 20}, "core": {"soft": 0}},
        "init": "/sbin/init", "root_disk": {"size_mb": 1024},
        "volumes": [
            {"name": "data", "target": "/data", "size_mb": 16},
            {"name": "web", "target": "/srv/web", "host_path": "/srv/web", "read_only": true},
        ],
        "cloud_init": {"user_data": {"content": "#cloud-config"}},
        "secrets": [{"name": "db.pass", "env": "DB_PASS"}, {"name": "key"}],
        "devices": {"pci": ["0000:01:1f.7"], "allowlist": ["10de:*", "8086:15b8"]},
        "network": "vsock",
    })
}

fn plugin(more: Value) -> Manifest {
    let mut manifest = json!({
        "schema_version": "1", "name": "nginx", "version": "1",
        "rootfs": { "url": "n.squashfs", "checksum": "ab".repeat(32), "format": "squashfs" },
        "workload": { "entrypoint": ["nginx"], "env": {"A": "plugin", "P": "plugin"} },
    });
    let (Value::Object(manifest_fields), Value::Object(more)) = (&mut manifest, more) else {
        panic!("no object");
    };
    manifest_fields.extend(more);
    Manifest::parse(&serde_json::to_vec(&manifest).unwrap()).unwrap()
}

#[test]
fn a_full_configuration_survives_being_written_and_read() {
    let config = read(full()).unwrap();
    assert_eq!(VmConfig::parse(&config.to_json()).unwrap(), config);
    let written = serde_json::to_value(&config).unwrap();
    let mut fields: Vec<_> = written.as_object().unwrap().keys().collect();
    let mut known = patch::FIELDS.to_vec();
    fields.sort();
    known.sort_unstable();
    assert_eq!(fields, known);
}

#[test]
fn nothing_at_all_is_a_configuration() {
    for text in ["", "{}"] {
        assert_eq!(
            VmConfig::parse(text.as_bytes()).unwrap(),
            VmConfig::default()
        );
    }
    assert_eq!(VmConfig::default().to_json(), b"{}");
    let huge = vec![b' '; MAX_BYTES + 1];
    assert!(matches!(
        VmConfig::parse(&huge),
        Err(ParseError::TooLarge(_))
    ));
}

#[test]
fn a_mistake_is_named_with_what_may_stand_there() {
    let volume = |more: Value| {
        let mut volume = json!({"name": "data", "target": "/data", "size_mb": 16});
        for (key, value) in more.as_object().unwrap() {
            volume[key] = value.clone();
        }
        json!({"volumes": [volume]})
    };
    let cases = [
        (json!({"colour": "red"}), "unknown field `colour`"),
        (
            json!({"limits": {"cpu": 1}}),
            "limits.cpu|unknown field `cpu`",
        ),
        (json!({"cpu_cores": 0}), "cpu_cores: 0 CPUs|1 to 64"),
        (json!({"cpu_cores": 65}), "cpu_cores: 65|1 to 64"),
        (json!({"memory_mb": 63}), "memory_mb: 63 MiB|64 to 4194304"),
        (json!({"vmm": "xen"}), "unknown variant `xen`"),
        (
            json!({"limits": {"cpu_quota_percent": 0}}),
            "cpu_quota_percent 0|1 to 100000",
        ),
        (
            json!({"limits": {"cpu_weight": 10_001}}),
            "limits.cpu_weight|1 to 10000",
        ),
        (
            json!({"limits": {"io_weight": 0}}),
            "limits.io_weight|1 to 10000",
        ),
        (json!({"entrypoint": []}), "entrypoint names no program"),
        (json!({"entrypoint": [""]}), "entrypoint names no program"),
        (json!({"entrypoint": ["a\0"]}), "entrypoint|NUL"),
        (json!({"entrypoint": vec!["a"; 1025]}), "entrypoint|1024"),
        (json!({"env": {"A=B": "1"}}), "env|'A=B'"),
        (json!({"env": {"": "1"}}), "env|1 to 256"),
        (json!({"env": {"A": "\0"}}), "env|NUL"),
        (json!({"user": "a:b:c"}), "user|USER:GROUP"),
        (json!({"workdir": "srv"}), "workdir 'srv'|absolute"),
        (json!({"workdir": "/a/../b"}), "workdir|'..'"),
        (
            json!({"stop_signal": "SIGSTOP"}),
            "stop_signal 'SIGSTOP'|SIGTERM",
        ),
        (json!({"stop_grace_ms": 300_001}), "stop_grace_ms|300000"),
        (json!({"restart": "often"}), "unknown variant `often`"),
        (json!({"rlimits": {"NOFILE": {}}}), "rlimits|nofile, nproc"),
        (
            json!({"rlimits": {"core": {"soft": 2, "hard": 1}}}),
            "rlimits.core|above the hard",
        ),
        (
            json!({"rlimits": {"core": {"hard": 1}}}),
            "rlimits.core|absent is none",
        ),
        (json!({"init": "sbin/init"}), "init|absolute"),
        (json!({"init": "/"}), "init '/'"),
        (
            json!({"root_disk": {"size_mb": 7}}),
            "root_disk.size_mb 7|16 to 16777216",
        ),
        (
            volume(json!({"size_mb": 16_777_217})),
            "volumes.data.size_mb|16 to 16777216",
        ),
        (volume(json!({"name": "root"})), "volumes.root|taken"),
        (volume(json!({"name": "cidata"})), "volumes.cidata|taken"),
        (volume(json!({"name": "a/b"})), "has '/' in it"),
        (
            volume(json!({"target": "data"})),
            "volumes.data.target|absolute",
        ),
        (
            volume(json!({"target": "/"})),
            "volumes.data.target '/'|nothing can be mounted",
        ),
        (
            volume(json!({"target": "//"})),
            "volumes.data.target|nothing can be mounted",
        ),
        (
            volume(json!({"target": "/proc/x"})),
            "volumes.data.target '/proc/x'",
        ),
        (
            volume(json!({"target": "/sys/"})),
            "volumes.data.target '/sys/'",
        ),
        (volume(json!({"target": "/dev/shm"})), "volumes.data.target"),
        (
            volume(json!({"target": "/run/secrets"})),
            "volumes.data.target",
        ),
        (
            volume(json!({"host_path": "/srv"})),
            "volumes.data needs|one of the two",
        ),
        (
            volume(json!({"size_mb": null})),
            "volumes.data needs|one of the two",
        ),
        (
            volume(json!({"size_mb": null, "host_path": "srv"})),
            "volumes.data.host_path|absolute",
        ),
        (
            json!({"volumes": [{"name": "a", "target": "/a", "size_mb": 16}, {"name": "a", "target": "/b", "size_mb": 16}]}),
            "two volumes have the name 'a'",
        ),
        (
            json!({"volumes": [{"name": "a", "target": "/a", "size_mb": 16}, {"name": "b", "target": "/a/", "size_mb": 16}]}),
            "two volumes have the target '/a/'",
        ),
        (
            json!({"secrets": [{"name": "../x"}]}),
            "secret|'../x'|1 to 64",
        ),
        (json!({"secrets": [{"name": ".x"}]}), "begin with '.'"),
        (
            json!({"secrets": [{"name": "x"}, {"name": "x"}]}),
            "two secrets have the name 'x'",
        ),
        (
            json!({"secrets": [{"name": "x", "env": "1A"}]}),
            "secrets.x.env '1A'",
        ),
        (
            json!({"env": {"A": "1"}, "secrets": [{"name": "x", "env": "A"}]}),
            "variable 'A' is set twice",
        ),
        (
            json!({"devices": {"pci": ["01:00.0"]}}),
            "devices.pci|'01:00.0'|lspci -D",
        ),
        (
            json!({"devices": {"pci": ["0000:01:20.0"]}}),
            "'0000:01:20.0'",
        ),
        (
            json!({"devices": {"pci": ["0000:01:00.8"]}}),
            "'0000:01:00.8'",
        ),
        (
            json!({"devices": {"pci": ["0000:0a:00.0", "0000:0A:00.0"]}}),
            "'0000:0A:00.0' twice",
        ),
        (
            json!({"devices": {"allowlist": ["*:*"]}}),
            "devices.allowlist|'*:*'|10de:*",
        ),
        (json!({"network": "none"}), "unknown variant `none`"),
    ];
    for (value, expected) in cases {
        let error = read(value.clone()).unwrap_err();
        // The parent's name is not in serde's own errors.
        let expected = expected.strip_prefix("limits.cpu|").unwrap_or(expected);
        for part in expected.split('|') {
            assert!(error.contains(part), "{value}: {error}");
        }
    }
    let many: Vec<_> = (0..17)
        .map(|at| json!({"name": format!("v{at}"), "target": format!("/v{at}"), "size_mb": 16}))
        .collect();
    let error = read(json!({ "volumes": many })).unwrap_err();
    assert!(error.contains("volumes has more than 16"), "{error}");
}

#[test]
fn what_a_vm_does_not_say_is_its_plugins_else_the_default() {
    let nothing = VmConfig::default().over(&plugin(json!({}))).unwrap();
    assert_eq!(nothing.entrypoint, ["nginx"]);
    assert_eq!(
        (nothing.workdir.as_str(), nothing.stop_signal.as_str()),
        ("/", "SIGTERM")
    );
    assert_eq!(nothing.resources, crate::Resources::default());
    assert_eq!(
        (nothing.restart, nothing.network),
        (Restart::Never, NetworkMode::Bridged)
    );

    let rich = plugin(json!({
        "resources": {"cpu_cores": 4, "memory_mb": 1024},
        "workload": {
            "entrypoint": ["nginx"], "env": {"A": "plugin", "P": "plugin", "DB_PASS": "no"}, "user": "1",
            "restart": "always", "rlimits": {"nofile": {"soft": 1, "hard": 1}, "nproc": {"soft": 5}},
        },
        "network": {"mode": "vsock"}, "init": "/lib/systemd/systemd", "root_disk": {"size_mb": 64},
        "limits": {"cpu_quota_percent": 10, "io_weight": 5},
        "cloud_init": {"user_data": {"content": "plugin"}, "vendor_data": {"content": "plugin"}},
        "devices": {"pci": ["0000:02:00.0"], "allowlist": ["10de:*"]},
        "disks": [{"name": "models", "url": "m", "checksum": "cd".repeat(32), "readonly": true, "target": "/models"}],
    }));
    let own = read(json!({
        "memory_mb": 2048, "env": {"A": "own"}, "user": "0", "limits": {"io_weight": 7},
        "rlimits": {"nofile": {"soft": 2, "hard": 2}}, "root_disk": {"size_mb": 128},
        "cloud_init": {"user_data": {"content": "own"}}, "devices": {},
        "secrets": [{"name": "db", "env": "DB_PASS"}],
    }))
    .unwrap();
    let vm = own.over(&rich).unwrap();
    assert_eq!((vm.resources.cpu_cores, vm.resources.memory_mb), (4, 2048));
    assert_eq!(vm.env, [("A", "own"), ("P", "plugin")].map(owned).into());
    assert_eq!(vm.user.as_deref(), Some("0"));
    assert_eq!(
        (vm.restart, vm.network),
        (Restart::Always, NetworkMode::Vsock)
    );
    assert_eq!(
        (vm.limits.cpu_quota_percent, vm.limits.io_weight),
        (Some(10), Some(7))
    );
    assert_eq!(vm.rlimits["nofile"].hard, Some(2));
    assert_eq!(vm.rlimits["nproc"].soft, Some(5));
    assert_eq!(vm.init.as_deref(), Some("/lib/systemd/systemd"));
    assert_eq!(vm.root_disk.unwrap().size_mb, 128);
    let documents = vm.cloud_init.unwrap();
    assert_eq!(documents.user_data.unwrap().content, "own");
    assert_eq!(documents.vendor_data.unwrap().content, "plugin");
    // None of the plugin's devices; but still no others than the plugin knows.
    assert_eq!((vm.devices.pci.len(), vm.devices.allowlist.len()), (0, 1));
    assert_eq!(vm.images[0].name.as_str(), "models");
}

fn owned((key, value): (&str, &str)) -> (String, String) {
    (key.to_owned(), value.to_owned())
}

#[test]
fn what_does_not_go_with_the_plugin_is_named() {
    let initramfs = plugin(json!({
        "rootfs": null, "initramfs": {"url": "i", "checksum": "ab".repeat(32)},
    }));
    let disks: Vec<_> = (0..10)
        .map(|at| json!({"name": format!("d{at}"), "url": "m", "checksum": "cd".repeat(32), "readonly": true, "target": format!("/d{at}")}))
        .collect();
    let with_disks = plugin(json!({ "disks": disks }));
    let volumes = |from: u32, to: u32| {
        let volumes: Vec<_> = (from..to)
            .map(|at| json!({"name": format!("v{at}"), "target": format!("/v{at}"), "size_mb": 16}))
            .collect();
        json!({ "volumes": volumes })
    };
    let cases = [
        (
            &initramfs,
            json!({"root_disk": {"size_mb": 16}}),
            "no 'rootfs'",
        ),
        (
            &with_disks,
            json!({"volumes": [{"name": "d1", "target": "/x", "size_mb": 16}]}),
            "volumes.d1: the plugin has a disk",
        ),
        (
            &with_disks,
            json!({"volumes": [{"name": "x", "target": "/d1", "size_mb": 16}]}),
            "volumes.x.target '/d1': the plugin's disk 'd1'",
        ),
        (&with_disks, volumes(0, 7), "17 of them"),
    ];
    for (plugin, config, expected) in cases {
        let error = read(config.clone()).unwrap().over(plugin).unwrap_err();
        assert!(error.to_string().contains(expected), "{config}: {error}");
    }
    read(volumes(0, 6)).unwrap().over(&with_disks).unwrap();
}

#[test]
fn a_patch_is_merged_as_rfc_7396_says() {
    let config = read(json!({
        "cpu_cores": 2, "env": {"A": "1", "B": "2"}, "limits": {"cpu_weight": 5, "io_weight": 6}, "entrypoint": ["a", "b"],
    }))
    .unwrap();
    let patch = json!({
        "cpu_cores": null, "memory_mb": 128, "env": {"A": null, "C": "3"}, "limits": {"cpu_weight": null}, "entrypoint": ["c"],
        "root_disk": {"size_mb": 19},
    });
    let expected = json!({
        "memory_mb": 128, "env": {"B": "2", "C": "3"}, "limits": {"io_weight": 6}, "entrypoint": ["c"], "root_disk": {"size_mb": 19},
    });
    let patched = config.merge_patch(&patch).unwrap();
    assert_eq!(patched, read(expected).unwrap());
    assert_eq!(config.merge_patch(&json!({})).unwrap(), config);
    // Back to the plugin's.
    let cleared = config.merge_patch(&json!({"env": null, "limits": null}));
    assert!(cleared.unwrap().env.is_empty());

    let cases = [
        (json!({"colour": null}), "unknown field 'colour'"),
        (json!({"colour": 1}), "unknown field 'colour'"),
        (json!({"limits": {"cpu": 1}}), "unknown field `cpu`"),
        (json!({"memory_mb": 1}), "memory_mb: 1 MiB"),
        (json!([]), "no JSON object"),
        (json!(null), "no JSON object"),
    ];
    for (patch, expected) in cases {
        let error = config.merge_patch(&patch).unwrap_err();
        let told = match std::error::Error::source(&error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        };
        assert!(told.contains(expected), "{patch}: {told}");
    }
}

/// Some of the fields of [`full`], each as it is or left out.
fn some_of(value: Value) -> impl Strategy<Value = VmConfig> {
    let Value::Object(fields) = value else {
        panic!("no object");
    };
    let fields: Vec<_> = fields.into_iter().collect();
    let count = fields.len();
    prop::sample::subsequence(fields, 0..=count)
        .prop_map(|fields| read(Value::Object(fields.into_iter().collect())).unwrap())
}

fn other() -> Value {
    json!({
        "cpu_cores": 1, "memory_mb": 64, "vmm": "cloud-hypervisor", "limits": {"io_weight": 1},
        "entrypoint": ["/other"], "env": {"B": "c"}, "user": "1", "workdir": "/", "stop_signal": "SIGINT",
        "stop_grace_ms": 0, "restart": "never", "rlimits": {"nproc": {"soft": 1, "hard": 1}}, "init": "/init",
        "root_disk": {"size_mb": 16}, "volumes": [], "cloud_init": {}, "secrets": [], "devices": {}, "network": "bridged",
    })
}

proptest! {
    #[test]
    fn what_is_effective_says_everything(config in prop_oneof![some_of(full()), some_of(other())]) {
        let plugin = plugin(json!({
            "init": "/x", "devices": {"pci": ["0000:02:00.0"], "allowlist": ["1234:*"]},
            "workload": {"entrypoint": ["nginx"], "env": {"DB_PASS": "x", "P": "y"}, "restart": "always"},
        }));
        let effective = config.over(&plugin).unwrap();
        let all = effective.to_config();
        all.check().unwrap();
        prop_assert_eq!(&all.over(&plugin).unwrap(), &effective);
        prop_assert_eq!(VmConfig::parse(&all.to_json()).unwrap(), all);
    }

    #[test]
    fn what_a_vm_says_is_what_it_is(config in prop_oneof![some_of(full()), some_of(other())]) {
        let plugin = plugin(json!({"limits": {"cpu_weight": 3}}));
        let all = serde_json::to_value(config.over(&plugin).unwrap().to_config()).unwrap();
        let own = serde_json::to_value(&config).unwrap();
        for (field, value) in own.as_object().unwrap() {
            match value {
                Value::Object(parts) => for (part, value) in parts {
                    prop_assert_eq!(&all[field][part], value, "{}.{}", field, part);
                },
                value => prop_assert_eq!(&all[field], value, "{}", field),
            }
        }
    }

    #[test]
    fn a_patch_from_one_to_another_makes_the_other(one in some_of(full()), other in some_of(other())) {
        let to = serde_json::to_value(&other).unwrap();
        let from = serde_json::to_value(&one).unwrap();
        let patch = difference(&from, &to);
        prop_assert_eq!(one.merge_patch(&patch).unwrap(), other);
    }
}

/// The merge patch that makes `to` of `from`.
fn difference(from: &Value, to: &Value) -> Value {
    let (Value::Object(from), Value::Object(to)) = (from, to) else {
        return to.clone();
    };
    let gone = from
        .keys()
        .filter(|key| !to.contains_key(*key))
        .map(|key| (key.clone(), Value::Null));
    let there = to.iter().map(|(key, value)| {
        let before = from.get(key).unwrap_or(&Value::Null);
        (key.clone(), difference(before, value))
    });
    Value::Object(gone.chain(there).collect())
}
