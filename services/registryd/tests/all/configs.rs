//! The versions of a VM's configuration.

use registryd::{ConfigVersion, KEPT_CONFIGS, NewConfig, OpenError, Store, VmError};
use serde_json::{Value, json};
use tempfile::TempDir;
use volant_spec::Name;

use crate::common::{
    chain, config, create, digest, files, install, keep, manifest, new_vm, open, put, temp_dir,
};

/// A store with the VM 'web', of a plugin with a root file system.
fn with_vm(dir: &TempDir) -> Store {
    let store = open(dir);
    keep(&store, b"root");
    let mut nginx = manifest("nginx", "x", b"");
    nginx["rootfs"] = json!({"url": "r", "checksum": digest(b"root"), "format": "squashfs"});
    nginx.as_object_mut().unwrap().remove("initramfs");
    nginx["resources"] = json!({"cpu_cores": 2, "memory_mb": 128});
    put(&store, &nginx).unwrap();
    create(&store, "web", "nginx");
    store
}

fn web() -> Name {
    "web".parse().unwrap()
}

fn set(store: &Store, json: Value, expected: Option<u64>) -> Result<ConfigVersion, VmError> {
    let new = NewConfig {
        config: config(json),
        expected,
        reason: "set".to_owned(),
    };
    let set = store.set_vm_config(&web(), &new, jiff::Timestamp::now());
    set.map(|(version, _)| version)
}

fn versions(store: &Store) -> Vec<u64> {
    let configs = store.vm_configs(&web()).unwrap();
    configs.into_iter().map(|config| config.version).collect()
}

#[test]
fn a_change_is_a_new_version_that_holds_from_the_next_start() {
    let dir = temp_dir();
    let store = with_vm(&dir);
    let before = store.open_vm(&web()).unwrap();
    assert_eq!(before.vm.config_version, 1);
    assert_eq!(before.effective.resources.memory_mb, 128);

    let made = set(
        &store,
        json!({"memory_mb": 512, "env": {"A": "c"}}),
        Some(1),
    )
    .unwrap();
    assert_eq!((made.version, made.reason.as_str()), (2, "set"));
    let after = store.open_vm(&web()).unwrap();
    assert_eq!(after.vm.config_version, 2);
    assert_eq!(after.effective.env["A"], "c");
    let vm = store.vm(&web()).unwrap();
    assert_eq!((vm.cpu_cores, vm.memory_mb), (2, 512));
    assert_eq!(vm.config, made.config);
    assert_eq!(store.vms().unwrap(), [vm]);

    let (first, effective) = store.vm_config(&web(), Some(1)).unwrap();
    assert_eq!(
        (first.config.as_str(), first.reason.as_str()),
        ("{}", "created")
    );
    assert_eq!(effective.resources.memory_mb, 128);
    assert_eq!(store.vm_config(&web(), None).unwrap().0, made);
    let error = store.vm_config(&web(), Some(3)).unwrap_err();
    assert!(error.to_string().contains("1 to 2"), "{error}");
    drop(store);
    assert_eq!(versions(&open(&dir)), [2, 1]);
}

#[test]
fn whoever_saw_an_older_version_changes_nothing() {
    let dir = temp_dir();
    let store = with_vm(&dir);
    set(&store, json!({"memory_mb": 512}), Some(1)).unwrap();
    let error = set(&store, json!({"memory_mb": 64}), Some(1)).unwrap_err();
    assert!(
        matches!(
            error,
            VmError::Changed {
                expected: 1,
                newest: 2,
                ..
            }
        ),
        "{error}"
    );
    // The same request once more is answered as it was.
    let again = set(&store, json!({"memory_mb": 512}), Some(1)).unwrap();
    assert_eq!(again.version, 2);
    assert_eq!(
        set(&store, json!({"memory_mb": 64}), None).unwrap().version,
        3
    );
    assert_eq!(versions(&store), [3, 2, 1]);
}

#[test]
fn the_oldest_versions_go() {
    let dir = temp_dir();
    let store = with_vm(&dir);
    for at in 0..=KEPT_CONFIGS {
        set(&store, json!({"env": {"AT": at.to_string()}}), None).unwrap();
    }
    let newest = KEPT_CONFIGS + 2;
    let kept = versions(&store);
    assert_eq!(kept.len() as u64, KEPT_CONFIGS);
    assert_eq!((kept[0], kept[kept.len() - 1]), (newest, 3));
    let error = store.vm_config(&web(), Some(2)).unwrap_err();
    assert!(error.to_string().contains("3 to 102"), "{error}");
}

#[test]
fn what_cannot_be_is_refused_and_leaves_no_version() {
    let dir = temp_dir();
    let store = with_vm(&dir);
    let mut out_of_range = NewConfig {
        config: config(json!({})),
        expected: None,
        reason: String::new(),
    };
    out_of_range.config.cpu_cores = Some(0);
    let now = jiff::Timestamp::now();
    let error = store.set_vm_config(&web(), &out_of_range, now).unwrap_err();
    assert!(chain(&error).contains("cpu_cores: 0"), "{}", chain(&error));
    assert_eq!(versions(&store), [1]);

    install(&store, "caddy", b"x");
    let mut new = new_vm("db", "caddy");
    new.config = config(json!({"root_disk": {"size_mb": 64}}));
    let error = store.create_vm(&new, now).unwrap_err();
    assert!(matches!(error, VmError::Conflict { .. }), "{error}");
    assert!(chain(&error).contains("no 'rootfs'"), "{}", chain(&error));
    assert_eq!(store.vms().unwrap().len(), 1);

    let none = "none".parse().unwrap();
    assert!(matches!(
        store.set_vm_config(&none, &out_of_range, now),
        Err(VmError::NotFound(_))
    ));
    store.delete_vm(&web()).unwrap();
    assert!(matches!(
        set(&store, json!({}), None),
        Err(VmError::BeingDeleted(_))
    ));
}

#[test]
fn a_disk_grows_and_stays_but_never_shrinks() {
    let dir = temp_dir();
    let store = with_vm(&dir);
    let disks = |root: u32, data: Option<u32>| {
        let volumes: Vec<_> = data
            .map(|size| json!({"name": "data", "target": "/data", "size_mb": size}))
            .into_iter()
            .collect();
        json!({"root_disk": {"size_mb": root}, "volumes": volumes})
    };
    // What no start has made yet can be anything.
    set(&store, disks(64, Some(64)), None).unwrap();
    set(&store, disks(32, Some(32)), None).unwrap();
    let names = |store: &Store| -> Vec<_> {
        let opened = store.open_vm(&web()).unwrap();
        opened.disks.into_iter().map(|(name, _)| name).collect()
    };
    assert_eq!(names(&store), ["disk.root", "disk.data"]);
    for (smaller, field) in [
        (disks(31, Some(32)), "root_disk.size_mb 31"),
        (disks(32, Some(31)), "volumes.data.size_mb 31"),
    ] {
        let error = set(&store, smaller, None).unwrap_err();
        assert!(error.to_string().contains(field), "{error}");
        assert!(error.to_string().contains("has 32 MiB"), "{error}");
    }
    // A volume that is left out keeps its data for the time when it is back.
    set(&store, disks(48, None), None).unwrap();
    assert_eq!(names(&store), ["disk.root"]);
    assert!(set(&store, disks(48, Some(16)), None).is_err());
    set(&store, disks(48, Some(32)), None).unwrap();
    assert_eq!(names(&store), ["disk.root", "disk.data"]);

    let uuid = store.vm(&web()).unwrap().uuid;
    assert_eq!(files(&dir, "disks"), [uuid]);
    store.delete_vm(&web()).unwrap();
    store.purge_vm(&web()).unwrap();
    assert!(files(&dir, "disks").is_empty());
}

#[test]
fn disks_of_vms_that_are_gone_are_removed_at_the_start() {
    let dir = temp_dir();
    let store = with_vm(&dir);
    set(&store, json!({"root_disk": {"size_mb": 16}}), None).unwrap();
    store.open_vm(&web()).unwrap();
    drop(store);
    std::fs::create_dir(dir.path().join("disks/gone")).unwrap();
    let store = open(&dir);
    assert_eq!(files(&dir, "disks"), [store.vm(&web()).unwrap().uuid]);
}

#[test]
fn a_disk_that_cannot_be_had_is_named() {
    let dir = temp_dir();
    let store = with_vm(&dir);
    set(&store, json!({"root_disk": {"size_mb": 16}}), None).unwrap();
    std::fs::write(dir.path().join("disks"), "no folder").unwrap();
    let error = store.open_vm(&web()).unwrap_err();
    assert!(matches!(error, OpenError::Disk(_)), "{error}");
    assert!(
        error.to_string().contains("'root' of the VM 'web'"),
        "{error}"
    );
}
