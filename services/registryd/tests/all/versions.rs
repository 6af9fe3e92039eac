//! Several versions of a plugin side by side.

use registryd::{PluginError, VmError};

use crate::common::{
    blob_files, create, digest, install_version, keep, manifest, new_vm, open, put, temp_dir,
};

#[test]
fn a_name_means_its_newest_version_that_is_enabled() {
    let dir = temp_dir();
    let store = open(&dir);
    for version in ["1.10", "1.9", "2.0-rc1"] {
        install_version(&store, "caddy", version, version.as_bytes());
    }
    let listed: Vec<_> = store.plugins(None).unwrap();
    let listed: Vec<_> = listed.iter().map(|one| one.version.as_str()).collect();
    assert_eq!(listed, ["2.0-rc1", "1.10", "1.9"]);

    let version_of = |vm: &str, plugin: &str| create(&store, vm, plugin).plugin_version;
    assert_eq!(version_of("a", "caddy"), "2.0-rc1");
    assert_eq!(version_of("b", "caddy@1.9"), "1.9");
    store
        .enable_plugin(&"caddy@2.0-rc1".parse().unwrap(), false)
        .unwrap();
    assert_eq!(version_of("c", "caddy"), "1.10");
    let found = store.plugin(&"caddy".parse().unwrap()).unwrap();
    assert_eq!(found.version.as_str(), "1.10");
    // Those of before go on.
    store.open_vm(&"a".parse().unwrap()).unwrap();
}

#[test]
fn a_disabled_plugin_makes_no_new_vms() {
    let dir = temp_dir();
    let store = open(&dir);
    let caddy = "caddy".parse().unwrap();
    for version in ["1.0", "2.0"] {
        install_version(&store, "caddy", version, b"x");
    }
    assert_eq!(store.enable_plugin(&caddy, false).unwrap().len(), 2);
    for plugin in ["caddy", "caddy@1.0"] {
        let error = store.create_vm(&new_vm("a", plugin), jiff::Timestamp::now());
        let error = error.unwrap_err();
        assert!(matches!(error, VmError::Disabled(_)), "{error}");
        assert!(
            error.to_string().contains(&format!("enable {plugin}")),
            "{error}"
        );
    }
    store
        .enable_plugin(&"caddy@1.0".parse().unwrap(), true)
        .unwrap();
    assert_eq!(create(&store, "a", "caddy").plugin_version, "1.0");
    let unknown = store.enable_plugin(&"nginx".parse().unwrap(), true);
    assert!(matches!(unknown, Err(PluginError::NotFound(_))));
}

#[test]
fn a_manifest_that_says_so_is_installed_disabled_and_stays_as_people_left_it() {
    let dir = temp_dir();
    let store = open(&dir);
    keep(&store, b"x");
    let mut asleep = manifest("caddy", "x", b"x");
    asleep["enabled"] = false.into();
    assert!(!put(&store, &asleep).unwrap().enabled);
    store
        .enable_plugin(&"caddy".parse().unwrap(), true)
        .unwrap();
    asleep["description"] = "replaced".into();
    let replaced = put(&store, &asleep).unwrap();
    assert!(replaced.enabled);
    assert_eq!(replaced.description, "replaced");
}

#[test]
fn what_no_vm_can_be_given_is_named() {
    let dir = temp_dir();
    let store = open(&dir);
    keep(&store, b"x");
    let mut asks = manifest("caddy", "x", b"x");
    asks["network"] = serde_json::json!({"mode": "vsock"});
    asks["disks"] = serde_json::json!([{"name": "d", "url": "d", "checksum": digest(b"x")}]);
    put(&store, &asks).unwrap();
    let error = store.create_vm(&new_vm("a", "caddy"), jiff::Timestamp::now());
    let error = error.unwrap_err();
    assert!(matches!(error, VmError::Unsupported { .. }), "{error}");
    assert!(
        error
            .to_string()
            .contains("with disks.d without 'readonly'"),
        "{error}"
    );
}

#[test]
fn versions_are_removed_one_by_one_or_all_at_once_and_never_while_used() {
    let dir = temp_dir();
    let store = open(&dir);
    for version in ["1.0", "2.0", "3.0"] {
        install_version(&store, "caddy", version, version.as_bytes());
    }
    create(&store, "web", "caddy@2.0");
    let caddy = "caddy".parse().unwrap();
    let error = store.remove_plugin(&caddy, false).unwrap_err();
    assert!(
        matches!(error, PluginError::SeveralVersions { .. }),
        "{error}"
    );
    assert!(error.to_string().contains("'3.0', '2.0', '1.0'"), "{error}");

    store
        .remove_plugin(&"caddy@1.0".parse().unwrap(), false)
        .unwrap();
    assert_eq!(blob_files(&dir).len(), 2);
    for (plugin, all) in [("caddy@2.0", false), ("caddy", true)] {
        let error = store
            .remove_plugin(&plugin.parse().unwrap(), all)
            .unwrap_err();
        assert!(matches!(error, PluginError::InUse { .. }), "{error}");
        assert!(error.to_string().contains("'web'"), "{error}");
    }
    assert_eq!(store.plugins(Some(&caddy)).unwrap().len(), 2);
    store.delete_vm(&"web".parse().unwrap()).unwrap();
    store.purge_vm(&"web".parse().unwrap()).unwrap();
    store.remove_plugin(&caddy, true).unwrap();
    assert_eq!(blob_files(&dir).len(), 0);
}

#[test]
fn another_manifest_of_a_version_leaves_vms_as_they_were() {
    let dir = temp_dir();
    let store = open(&dir);
    install_version(&store, "caddy", "1.0", b"one");
    create(&store, "web", "caddy");
    let replaced = install_version(&store, "caddy", "1.0", b"two");
    assert_eq!(replaced.vms, ["web"]);
    let opened = store.open_vm(&"web".parse().unwrap()).unwrap();
    assert_eq!(opened.manifest.initramfs.unwrap().checksum, digest(b"one"));
}
