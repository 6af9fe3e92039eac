//! The store: what it keeps, what survives a cut, and what it refuses.

use std::{fs, os::unix::fs::PermissionsExt, time::SystemTime};

use registryd::{
    BlobError, Bringer, Collect, DATABASE, Damage, FIRST_UID, MIGRATIONS, OpenError,
    OpenStoreError, PluginError, Store, UNUSED_FOR, VmError,
};

use crate::common::{
    MAX_BLOB, blob_files, chain, create, digest, files, install, keep, manifest, new_vm, open, put,
    receive, temp_dir,
};

const NOW: std::time::Duration = std::time::Duration::ZERO;

/// Collects what nobody wanted for an hour, as if it was `later`.
fn collect(store: &Store, later: std::time::Duration) -> u64 {
    let now = SystemTime::now() + later;
    store.collect(Collect::Stale, now).unwrap().artifacts
}

#[test]
fn the_migrations_are_valid() {
    MIGRATIONS.validate().unwrap();
}

#[test]
fn what_was_answered_is_there_after_a_kill() {
    let (dir, copy) = (temp_dir(), temp_dir());
    let store = open(&dir);
    install(&store, "caddy", b"initramfs");
    let vm = create(&store, "web", "caddy");
    // What is on disk while the store is still open is what a kill leaves.
    copy_all(dir.path(), copy.path());
    let after = Store::open(copy.path(), MAX_BLOB).unwrap();
    assert_eq!(after.vm(&"web".parse().unwrap()).unwrap(), vm);
    assert_eq!(after.plugins(None).unwrap(), store.plugins(None).unwrap());
    let opened = after.open_vm(&"web".parse().unwrap()).unwrap();
    assert_eq!(opened.artifacts.len(), 1);
}

fn copy_all(from: &std::path::Path, to: &std::path::Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            fs::create_dir(&to).unwrap();
            copy_all(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

#[test]
fn an_upload_cut_off_before_its_end_leaves_nothing() {
    let dir = temp_dir();
    let store = open(&dir);
    let cut = receive(&store, b"half of it");
    assert_eq!(files(&dir, "incoming").len(), 1);
    // As a kill would: nobody cleans up.
    std::mem::forget(cut);
    drop(store);
    let store = open(&dir);
    assert_eq!(files(&dir, "incoming"), Vec::<String>::new());
    assert_eq!(store.there(&digest(b"half of it")).unwrap(), None);
}

#[test]
fn a_file_without_a_row_is_an_orphan_and_can_be_uploaded_again() {
    let dir = temp_dir();
    let store = open(&dir);
    let content = b"renamed, and then the power went";
    let path = dir.path().join("blobs/sha256").join(digest(content).hex());
    fs::write(&path, &content[..5]).unwrap();
    assert_eq!(store.there(&digest(content)).unwrap(), None);
    keep(&store, content);
    assert_eq!(fs::read(&path).unwrap(), content);

    fs::write(path.with_file_name("stray"), "x").unwrap();
    assert_eq!(collect(&store, NOW), 1);
    assert_eq!(blob_files(&dir), [digest(content).hex()]);
}

#[test]
fn an_upload_waits_for_its_install_but_not_for_ever() {
    let dir = temp_dir();
    let store = open(&dir);
    let content = b"uploaded, to be installed soon";
    let kept = keep(&store, content);
    drop(store);
    let store = open(&dir);
    assert_eq!(collect(&store, NOW), 0);
    assert_eq!(store.there(&kept).unwrap(), Some(content.len() as u64));
    assert_eq!(collect(&store, UNUSED_FOR / 2), 0);
    assert_eq!(collect(&store, UNUSED_FOR), 1);
    assert_eq!(store.there(&kept).unwrap(), None);
    assert_eq!(blob_files(&dir), Vec::<String>::new());
}

#[test]
fn an_artifact_that_is_asked_for_again_is_young_again() {
    let dir = temp_dir();
    let store = open(&dir);
    let kept = keep(&store, b"old");
    let age = |db: &rusqlite::Connection| db.execute("UPDATE blobs SET wanted_at = 1", []).unwrap();
    let db = rusqlite::Connection::open(dir.path().join(DATABASE)).unwrap();
    age(&db);
    assert!(store.blob(&kept).unwrap().is_some());
    assert_eq!(collect(&store, NOW), 0);
    age(&db);
    assert_eq!(collect(&store, NOW), 1);
}

#[test]
fn a_collection_that_is_asked_for_spares_uploads_and_what_an_install_needs_now() {
    let dir = temp_dir();
    let store = open(&dir);
    keep(&store, b"uploaded");
    for content in [&b"fetched in vain"[..], b"fetched just now"] {
        let kept = digest(content);
        let incoming = receive(&store, content);
        store.keep(incoming, &kept, Bringer::Install).unwrap();
    }
    let pinned = store.pin([digest(b"fetched just now")]);
    let collected = store.collect(Collect::All, SystemTime::now()).unwrap();
    assert_eq!((collected.artifacts, collected.bytes), (1, 15));
    assert_eq!(blob_files(&dir).len(), 2);
    drop(pinned);
    let collected = store.collect(Collect::All, SystemTime::now()).unwrap();
    assert_eq!(collected.artifacts, 1);
    assert_eq!(blob_files(&dir), [digest(b"uploaded").hex()]);
}

#[test]
fn what_is_used_is_never_collected() {
    let dir = temp_dir();
    let store = open(&dir);
    install(&store, "caddy", b"one");
    create(&store, "web", "caddy");
    assert_eq!(collect(&store, 2 * UNUSED_FOR), 0);
    // Replaced: the VM still has what it was created with.
    install(&store, "caddy", b"two");
    assert_eq!(collect(&store, 2 * UNUSED_FOR), 0);
    assert_eq!(blob_files(&dir).len(), 2);
    let opened = store.open_vm(&"web".parse().unwrap()).unwrap();
    assert_eq!(opened.manifest.initramfs.unwrap().checksum, digest(b"one"));
    // And it goes with the VM.
    store.delete_vm(&"web".parse().unwrap()).unwrap();
    store.purge_vm(&"web".parse().unwrap()).unwrap();
    assert_eq!(blob_files(&dir), [digest(b"two").hex()]);
    store
        .remove_plugin(&"caddy".parse().unwrap(), false)
        .unwrap();
    assert_eq!(blob_files(&dir), Vec::<String>::new());
}

#[test]
fn an_artifact_of_two_plugins_goes_with_the_second() {
    let dir = temp_dir();
    let store = open(&dir);
    install(&store, "a", b"shared");
    install(&store, "b", b"shared");
    store.remove_plugin(&"a".parse().unwrap(), false).unwrap();
    assert_eq!(blob_files(&dir).len(), 1);
    store.remove_plugin(&"b".parse().unwrap(), false).unwrap();
    assert_eq!(blob_files(&dir).len(), 0);
}

#[test]
fn bytes_that_do_not_match_are_not_kept() {
    let dir = temp_dir();
    let store = open(&dir);
    let error = store
        .keep(receive(&store, b"this"), &digest(b"that"), Bringer::Upload)
        .unwrap_err();
    let text = error.to_string();
    assert!(text.contains(&digest(b"this").to_string()), "{text}");
    assert!(text.contains(&digest(b"that").to_string()), "{text}");
    assert_eq!(files(&dir, "incoming").len() + blob_files(&dir).len(), 0);
}

#[test]
fn too_many_bytes_are_refused_when_they_come() {
    let dir = temp_dir();
    let store = open(&dir);
    let mut incoming = receive(&store, &vec![0; usize::try_from(MAX_BLOB).unwrap()]);
    let error = incoming.write(b"x").unwrap_err();
    assert!(matches!(error, BlobError::TooLarge { limit: MAX_BLOB }));
    drop(incoming);
    assert_eq!(files(&dir, "incoming").len(), 0);
}

#[test]
fn artifacts_are_for_all_to_read_in_a_folder_that_nobody_enters() {
    let dir = temp_dir();
    let store = open(&dir);
    let kept = keep(&store, b"x");
    let mode = |path: &str| {
        let meta = fs::metadata(dir.path().join(path)).unwrap();
        meta.permissions().mode() & 0o7777
    };
    assert_eq!(mode("blobs"), 0o700);
    assert_eq!(mode("blobs/sha256"), 0o700);
    assert_eq!(mode(&format!("blobs/sha256/{}", kept.hex())), 0o444);
}

#[test]
fn a_plugin_is_not_kept_without_its_artifacts() {
    let dir = temp_dir();
    let store = open(&dir);
    let error = put(&store, &manifest("caddy", "x", b"absent")).unwrap_err();
    assert!(matches!(error, PluginError::NoArtifact { .. }));
    assert!(error.to_string().contains("'initramfs'"), "{error}");
    assert_eq!(store.plugins(None).unwrap(), []);
}

#[test]
fn a_missing_or_short_artifact_is_named_and_another_upload_heals_it() {
    let dir = temp_dir();
    let store = open(&dir);
    install(&store, "caddy", b"initramfs");
    create(&store, "web", "caddy");
    let path = dir
        .path()
        .join("blobs/sha256")
        .join(digest(b"initramfs").hex());
    let web = "web".parse().unwrap();
    let refused = || match store.open_vm(&web).unwrap_err() {
        error @ OpenError::Artifact { .. } => {
            let text = error.to_string();
            for part in [
                "'initramfs'",
                "'caddy@1.0'",
                &digest(b"initramfs").to_string(),
                "volar plugins install",
            ] {
                assert!(text.contains(part), "{text}");
            }
            let OpenError::Artifact { damage, .. } = error else {
                unreachable!()
            };
            damage
        }
        error => panic!("{error}"),
    };
    fs::remove_file(&path).unwrap();
    fs::write(&path, "init").unwrap();
    assert_eq!(
        refused(),
        Damage::Size {
            found: 4,
            expected: 9
        }
    );
    assert_eq!(store.there(&digest(b"initramfs")).unwrap(), None);
    fs::remove_file(&path).unwrap();
    assert_eq!(refused(), Damage::Missing);

    keep(&store, b"initramfs");
    store.open_vm(&web).unwrap();
}

#[test]
fn a_vm_gets_what_it_asks_for_else_the_plugins_else_the_default() {
    let dir = temp_dir();
    let store = open(&dir);
    install(&store, "plain", b"x");
    let mut sized = manifest("sized", "x", b"x");
    sized["resources"] = serde_json::json!({ "cpu_cores": 2, "memory_mb": 512 });
    put(&store, &sized).unwrap();

    let mut asking = new_vm("c", "sized");
    asking.config.memory_mb = Some(1024);
    let now = jiff::Timestamp::now();
    let got: Vec<_> = [new_vm("a", "plain"), new_vm("b", "sized"), asking]
        .iter()
        .map(|new| store.create_vm(new, now).unwrap())
        .map(|vm| (vm.cpu_cores, vm.memory_mb))
        .collect();
    assert_eq!(got, [(1, 256), (2, 512), (2, 1024)]);

    let mut nothing = new_vm("d", "plain");
    nothing.config.memory_mb = Some(0);
    let error = store.create_vm(&nothing, now).unwrap_err();
    assert!(
        chain(&error).contains("memory_mb: 0 MiB"),
        "{}",
        chain(&error)
    );
    assert_eq!(store.vms().unwrap().len(), 3);
}

#[test]
fn a_name_is_free_again_only_when_its_vm_is_gone() {
    let dir = temp_dir();
    let store = open(&dir);
    install(&store, "caddy", b"x");
    let first = create(&store, "web", "caddy");
    let (web, now) = ("web".parse().unwrap(), jiff::Timestamp::now());
    let again = || store.create_vm(&new_vm("web", "caddy"), now);
    assert!(matches!(again().unwrap_err(), VmError::Taken(_)));
    assert!(matches!(
        store.purge_vm(&web).unwrap_err(),
        VmError::NotMarked(_)
    ));
    assert!(store.delete_vm(&web).unwrap().deleting);
    assert!(store.delete_vm(&web).unwrap().deleting);
    assert!(matches!(again().unwrap_err(), VmError::TakenByDeleting(_)));
    assert!(matches!(
        store.open_vm(&web).unwrap_err(),
        OpenError::BeingDeleted(_)
    ));
    store.purge_vm(&web).unwrap();
    store.purge_vm(&web).unwrap();
    assert!(matches!(
        store.delete_vm(&web).unwrap_err(),
        VmError::NotFound(_)
    ));
    let second = again().unwrap();
    assert_ne!(first.uuid, second.uuid);
    assert!(second.seq > first.seq);
    assert_eq!(
        store.open_vm(&web).unwrap().uid,
        FIRST_UID + u32::try_from(second.seq).unwrap()
    );
}

#[test]
fn a_plugin_in_use_is_not_removed() {
    let dir = temp_dir();
    let store = open(&dir);
    install(&store, "caddy", b"x");
    create(&store, "web", "caddy");
    let caddy = "caddy".parse().unwrap();
    let error = store.remove_plugin(&caddy, false).unwrap_err();
    assert!(error.to_string().contains("'web'"), "{error}");
    store.delete_vm(&"web".parse().unwrap()).unwrap();
    store.purge_vm(&"web".parse().unwrap()).unwrap();
    store.remove_plugin(&caddy, false).unwrap();
    assert!(matches!(
        store.remove_plugin(&caddy, false).unwrap_err(),
        PluginError::NotFound(_)
    ));
}

#[test]
fn the_same_manifest_again_changes_nothing() {
    let dir = temp_dir();
    let store = open(&dir);
    let first = install(&store, "caddy", b"x");
    assert_eq!(install(&store, "caddy", b"x"), first);
    assert_ne!(install(&store, "caddy", b"y"), first);
    assert_eq!(store.plugins(None).unwrap().len(), 1);
}

#[test]
fn a_second_process_is_refused() {
    let dir = temp_dir();
    let _store = open(&dir);
    let error = Store::open(dir.path(), MAX_BLOB).unwrap_err();
    assert!(matches!(error, OpenStoreError::InUse(_)), "{error}");
}

#[test]
fn a_damaged_database_is_named_and_left_alone() {
    let dir = temp_dir();
    let path = dir.path().join(DATABASE);
    fs::write(&path, "this was a database".repeat(100)).unwrap();
    let error = Store::open(dir.path(), MAX_BLOB).unwrap_err();
    let text = chain(&error);
    assert!(matches!(error, OpenStoreError::Damaged { .. }), "{text}");
    assert!(text.contains(path.to_str().unwrap()), "{text}");
    assert!(text.contains("restore it"), "{text}");
    assert!(fs::read(&path).unwrap().starts_with(b"this was a database"));
}

#[test]
fn a_database_with_a_torn_page_is_named() {
    let dir = temp_dir();
    let store = open(&dir);
    install(&store, "caddy", &[7; 100]);
    drop(store);
    let path = dir.path().join(DATABASE);
    let mut content = fs::read(&path).unwrap();
    content[4096..8192].fill(0xA5);
    fs::write(&path, content).unwrap();
    let error = Store::open(dir.path(), MAX_BLOB).unwrap_err();
    assert!(
        matches!(error, OpenStoreError::Damaged { .. }),
        "{}",
        chain(&error)
    );
}

#[test]
fn a_database_of_a_newer_version_is_not_touched() {
    let dir = temp_dir();
    drop(open(&dir));
    let db = rusqlite::Connection::open(dir.path().join(DATABASE)).unwrap();
    db.pragma_update(None, "user_version", 99).unwrap();
    drop(db);
    let error = Store::open(dir.path(), MAX_BLOB).unwrap_err();
    assert!(matches!(error, OpenStoreError::Newer(_)), "{error}");
}
