//! From the database of the first release to that of this one.

use registryd::{DATABASE, FIRST_UID, NewConfig, OpenError};
use rusqlite::{Connection, params};
use tempfile::TempDir;

use crate::common::{bytes, config, create, digest, manifest, open, temp_dir};

const FIRST: &str = include_str!("../../migrations/0001-initial.sql");
/// What later releases added before VMs had configurations.
const BEFORE_CONFIGS: [&str; 2] = [
    include_str!("../../migrations/0002-versions.sql"),
    include_str!("../../migrations/0003-damaged.sql"),
];

/// A state folder as the first release left it: the plugin 'caddy', replaced since the VM 'old' was created, and a VM that
/// came and went.
fn first_release() -> TempDir {
    let dir = temp_dir();
    let blobs = dir.path().join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let db = Connection::open(dir.path().join(DATABASE)).unwrap();
    db.execute_batch(FIRST).unwrap();
    db.pragma_update(None, "user_version", 1).unwrap();
    for content in [&b"one"[..], b"two", b"uploaded"] {
        let digest = digest(content);
        std::fs::write(blobs.join(digest.hex()), content).unwrap();
        let row = params![digest.hex(), content.len()];
        db.execute("INSERT INTO blobs VALUES (?1, ?2)", row)
            .unwrap();
    }
    let mut newer = manifest("caddy", "x", b"two");
    newer["version"] = "2.0".into();
    let row = params![bytes(&newer), "2026-11-01T00:00:00Z"];
    db.execute("INSERT INTO plugins VALUES ('caddy', '2.0', ?1, ?2)", row)
        .unwrap();
    let row = [digest(b"two").hex()];
    db.execute("INSERT INTO plugin_blobs VALUES ('caddy', ?1)", row)
        .unwrap();
    for (name, version, content) in [
        ("old", "1.0", &b"one"[..]),
        ("new", "2.0", b"two"),
        ("gone", "2.0", b"two"),
    ] {
        let mut manifest = manifest("caddy", "x", content);
        manifest["version"] = version.into();
        db.execute(
            "INSERT INTO vms (uuid, name, plugin, plugin_version, manifest, cpu_cores, memory_mb, vmm, created_at)
             VALUES (?1, ?1, 'caddy', ?2, ?3, 1, 256, 'auto', 'then')",
            params![name, version, bytes(&manifest)],
        )
        .unwrap();
        let row = params![db.last_insert_rowid(), digest(content).hex()];
        db.execute("INSERT INTO vm_blobs VALUES (?1, ?2)", row)
            .unwrap();
    }
    db.execute("DELETE FROM vms WHERE name = 'gone'", [])
        .unwrap();
    dir
}

#[test]
fn all_that_was_there_is_there_after_the_migration() {
    let dir = first_release();
    let store = open(&dir);
    let plugins = store.plugins(None).unwrap();
    assert_eq!(plugins.len(), 1);
    let caddy = &plugins[0];
    assert_eq!(
        (caddy.version.as_str(), caddy.enabled, caddy.size_bytes),
        ("2.0", true, 3)
    );
    assert_eq!(caddy.vms, ["new"]);
    let original = store.original(&caddy.name, &caddy.version).unwrap();
    assert_eq!(caddy.manifest_digest, digest(&original.manifest));

    for (vm, content) in [("old", b"one"), ("new", b"two")] {
        let opened = store.open_vm(&vm.parse().unwrap()).unwrap();
        assert_eq!(opened.manifest.initramfs.unwrap().checksum, digest(content));
    }
    // The upload still waits for its install, and a user id is not given twice.
    assert!(store.there(&digest(b"uploaded")).unwrap().is_some());
    let next = create(&store, "next", "caddy");
    assert_eq!(registryd::uid(next.seq), Some(FIRST_UID + 4));

    // What the first release called in use is in use; a version that was replaced there can be removed here.
    let caddy = "caddy".parse().unwrap();
    assert!(store.remove_plugin(&caddy, false).is_err());
    for vm in ["new", "next"] {
        store.delete_vm(&vm.parse().unwrap()).unwrap();
        store.purge_vm(&vm.parse().unwrap()).unwrap();
    }
    store.remove_plugin(&caddy, false).unwrap();
    store.open_vm(&"old".parse().unwrap()).unwrap();
}

#[test]
fn a_migrated_database_is_checked_like_a_new_one() {
    let dir = first_release();
    drop(open(&dir));
    let db = Connection::open(dir.path().join(DATABASE)).unwrap();
    let keys: bool = db
        .query_row("PRAGMA foreign_keys", [], |row| row.get(0))
        .unwrap();
    assert!(keys);
    let broken: Option<String> = db
        .query_row(
            "SELECT \"table\" FROM pragma_foreign_key_check",
            [],
            |row| row.get(0),
        )
        .ok();
    assert_eq!(broken, None);
    let orphan = "INSERT INTO plugin_blobs VALUES ('none', '1', 'x')";
    assert!(db.execute(orphan, []).is_err());
    db.execute(
        "UPDATE vms SET manifest = '{}' || manifest WHERE name = 'old'",
        [],
    )
    .unwrap_err();
    let forged =
        "UPDATE vms SET manifest = CAST(replace(manifest, '/bin/app', '/bin/bad') AS BLOB)";
    db.execute(forged, []).unwrap();
    drop(db);
    let error = open(&dir).open_vm(&"old".parse().unwrap()).unwrap_err();
    assert!(matches!(error, OpenError::Manifest { .. }), "{error}");
    assert!(error.to_string().contains("'caddy@1.0'"), "{error}");
}

/// A state folder as the release with that schema left it, with a VM that asked for more than its plugin gives.
fn release(schema: usize) -> TempDir {
    let dir = first_release();
    let db = Connection::open(dir.path().join(DATABASE)).unwrap();
    db.pragma_update(None, "foreign_keys", false).unwrap();
    for step in &BEFORE_CONFIGS[..schema - 1] {
        db.execute_batch(step).unwrap();
    }
    db.pragma_update(None, "user_version", u32::try_from(schema).unwrap())
        .unwrap();
    if schema > 1 {
        // As a store fills it when it is opened.
        let mut rows = db.prepare("SELECT seq, manifest FROM vms").unwrap();
        let rows: Vec<(i64, Vec<u8>)> = rows
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
            .unwrap()
            .map(Result::unwrap)
            .collect();
        for (seq, manifest) in rows {
            let row = params![seq, digest(&manifest).to_string()];
            db.execute("UPDATE vms SET manifest_digest = ?2 WHERE seq = ?1", row)
                .unwrap();
        }
    }
    let asked = "UPDATE vms SET cpu_cores = 4, memory_mb = 1024, vmm = 'qemu' WHERE name = 'old'";
    db.execute(asked, []).unwrap();
    dir
}

#[test]
fn a_vm_of_any_release_has_what_it_was_created_with_as_its_first_configuration() {
    for schema in 1..=3 {
        let dir = release(schema);
        let store = open(&dir);
        let (old, now) = ("old".parse().unwrap(), jiff::Timestamp::now());
        let vm = store.vm(&old).unwrap();
        assert_eq!((vm.config_version, vm.memory_mb), (1, 1024));
        let (first, effective) = store.vm_config(&old, None).unwrap();
        assert_eq!(
            (first.reason.as_str(), first.created_at.as_str()),
            ("created", "then")
        );
        let expected =
            config(serde_json::json!({"cpu_cores": 4, "memory_mb": 1024, "vmm": "qemu"}));
        assert_eq!(first.config.as_bytes(), expected.to_json());
        assert_eq!(effective.entrypoint, ["/bin/app", "run"]);
        let opened = store.open_vm(&old).unwrap();
        assert_eq!(opened.effective.resources.cpu_cores, 4);

        // It is changed like any other; the same again is nothing new.
        let same = NewConfig {
            config: expected,
            expected: None,
            reason: "set".to_owned(),
        };
        let (set, _) = store.set_vm_config(&old, &same, now).unwrap();
        assert_eq!(set.version, 1);
        store.delete_vm(&old).unwrap();
        store.purge_vm(&old).unwrap();
        assert_eq!(store.vms().unwrap().len(), 1, "schema {schema}");
    }
}
