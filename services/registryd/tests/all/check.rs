//! What happens to a store that somebody wrote to behind the registry's back.

use std::{
    fs::{self, File, FileTimes, Permissions},
    io::{Read, Seek, SeekFrom, Write},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::PathBuf,
    time::SystemTime,
};

use registryd::{DATABASE, Damage, OpenError, Store};
use tempfile::TempDir;

use crate::{
    common::{
        bytes, create, digest, install, keep, manifest, new_vm, open, registry, temp_dir, unsigned,
    },
    web::{Page, Web},
};

const CONTENT: &[u8] = b"what the plugin's maker signed";

fn blob(dir: &TempDir) -> PathBuf {
    dir.path().join("blobs/sha256").join(digest(CONTENT).hex())
}

/// Changes one byte in place, as `dd conv=notrunc` does; the time of the last write is put back.
fn change(dir: &TempDir) {
    let path = blob(dir);
    let before = fs::metadata(&path).unwrap().modified().unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    let mut file = File::options().write(true).open(&path).unwrap();
    file.seek(SeekFrom::Start(3)).unwrap();
    file.write_all(b"X").unwrap();
    file.set_times(FileTimes::new().set_modified(before))
        .unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o444)).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), before);
}

fn damage(store: &Store) -> Option<Damage> {
    match store.open_vm(&"web".parse().unwrap()) {
        Ok(_) => None,
        Err(OpenError::Artifact { damage, .. }) => Some(damage),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn bytes_that_were_changed_in_place_are_not_handed_out() {
    let dir = temp_dir();
    let store = open(&dir);
    install(&store, "caddy", CONTENT);
    create(&store, "web", "caddy");
    assert_eq!(damage(&store), None);
    change(&dir);
    assert_eq!(damage(&store), Some(Damage::Bytes));
    let error = store
        .open_vm(&"web".parse().unwrap())
        .unwrap_err()
        .to_string();
    for part in [
        "'initramfs'",
        "'caddy@1.0'",
        "its bytes were changed",
        "volar plugins install",
    ] {
        assert!(error.contains(part), "{error}");
    }
    // Again, and after a restart: nothing was learnt by looking.
    assert_eq!(damage(&store), Some(Damage::Bytes));
    drop(store);
    let store = open(&dir);
    assert_eq!(damage(&store), Some(Damage::Bytes));
    assert_eq!(store.reread(&digest(CONTENT)).unwrap(), Some(Damage::Bytes));
    // Another upload mends it.
    assert_eq!(store.there(&digest(CONTENT)).unwrap(), None);
    keep(&store, CONTENT);
    assert_eq!(damage(&store), None);
}

#[test]
fn a_file_that_was_only_touched_is_read_again_once() {
    let dir = temp_dir();
    let store = open(&dir);
    install(&store, "caddy", CONTENT);
    create(&store, "web", "caddy");
    let known = || {
        let db = rusqlite::Connection::open(dir.path().join(DATABASE)).unwrap();
        let stamp: String = db
            .query_row("SELECT stamp FROM blobs", [], |row| row.get(0))
            .unwrap();
        stamp
    };
    let before = known();
    assert_eq!(damage(&store), None);
    assert_eq!(known(), before);
    let file = File::open(blob(&dir)).unwrap();
    file.set_times(FileTimes::new().set_modified(SystemTime::UNIX_EPOCH))
        .unwrap();
    assert_eq!(damage(&store), None);
    assert_ne!(known(), before);
    // A stamp vouches for its file alone.
    change(&dir);
    assert_eq!(damage(&store), Some(Damage::Bytes));
}

#[test]
fn an_artifact_is_handed_out_from_its_first_byte() {
    let dir = temp_dir();
    let store = open(&dir);
    install(&store, "caddy", CONTENT);
    create(&store, "web", "caddy");
    // So that it is read again.
    let db = rusqlite::Connection::open(dir.path().join(DATABASE)).unwrap();
    db.execute("UPDATE blobs SET stamp = NULL", []).unwrap();
    let opened = store.open_vm(&"web".parse().unwrap()).unwrap();
    let mut read = Vec::new();
    let (_, mut file) = opened.artifacts.into_iter().next().unwrap();
    file.read_to_end(&mut read).unwrap();
    assert_eq!(read, CONTENT);
}

#[test]
fn a_plugin_is_not_kept_with_an_artifact_of_another_size() {
    let dir = temp_dir();
    let store = open(&dir);
    keep(&store, CONTENT);
    fs::remove_file(blob(&dir)).unwrap();
    fs::write(blob(&dir), "short").unwrap();
    let put = crate::common::put(&store, &manifest("caddy", "x", CONTENT));
    assert!(put.is_err());
}

#[tokio::test]
async fn verifying_tells_of_each_part_and_changes_nothing() {
    let dir = temp_dir();
    let registry = registry(&dir);
    let content = bytes(&manifest("caddy", "x", CONTENT));
    let mut sink = registry.receive().await.unwrap();
    sink.push(CONTENT).await.unwrap();
    sink.finish(digest(CONTENT)).await.unwrap();
    registry
        .install(unsigned(&manifest("caddy", "x", CONTENT)), |_| {})
        .await
        .unwrap();
    let look = async || {
        let mut found = Vec::new();
        registry
            .verify(None, |one| {
                found.push((one.subject, one.ok, one.detail));
                true
            })
            .await
            .unwrap();
        found
    };
    let found = look().await;
    let oks: Vec<_> = found
        .iter()
        .map(|(what, ok, _)| (what.as_str(), *ok))
        .collect();
    assert_eq!(oks, [("signature", true), ("initramfs", true)]);
    change(&dir);
    let found = look().await;
    assert!(
        !found[1].1 && found[1].2.contains("its bytes were changed"),
        "{found:?}"
    );

    let db = rusqlite::Connection::open(dir.path().join(DATABASE)).unwrap();
    let changed = [&content[..], b" "].concat();
    db.execute("UPDATE plugins SET manifest = ?1", [changed])
        .unwrap();
    let found = look().await;
    assert!(found[0].0 == "manifest" && !found[0].1, "{found:?}");
    let missing = registry
        .verify(Some("nginx".parse().unwrap()), |_| true)
        .await;
    assert!(missing.is_err());
}

#[tokio::test]
async fn bytes_that_rotted_under_their_stamp_are_fetched_again_once_they_were_found() {
    let dir = temp_dir();
    let registry = registry(&dir);
    let web = Web::serve([("/i", Page::Body(CONTENT.to_vec()))]).await;
    let given = unsigned(&manifest("caddy", &web.url("/i"), CONTENT));
    registry.install(given.clone(), |_| {}).await.unwrap();
    registry.create_vm(new_vm("web", "caddy")).await.unwrap();
    change(&dir);
    // As if nobody had written to it.
    let meta = fs::metadata(blob(&dir)).unwrap();
    let stamp = format!(
        "{}.{}:{}:{}.{:09}:{}.{:09}",
        meta.dev(),
        meta.ino(),
        meta.len(),
        meta.mtime(),
        meta.mtime_nsec(),
        meta.ctime(),
        meta.ctime_nsec(),
    );
    let db = rusqlite::Connection::open(dir.path().join(DATABASE)).unwrap();
    db.execute("UPDATE blobs SET stamp = ?1", [stamp]).unwrap();
    let whole = async || {
        let mut whole = None;
        let told = registry.verify(None, |one| {
            if one.subject == "initramfs" {
                whole = Some(one.ok);
            }
            true
        });
        told.await.unwrap();
        whole.unwrap()
    };
    let name = || "web".parse().unwrap();
    registry.open_vm(name()).await.unwrap();
    assert!(!whole().await);
    let error = registry.open_vm(name()).await.unwrap_err();
    let damaged = Damage::Bytes;
    assert!(
        matches!(error, OpenError::Artifact { damage, .. } if damage == damaged),
        "{error}"
    );
    assert!(!whole().await);
    assert_eq!(web.asked().len(), 1);
    registry.install(given, |_| {}).await.unwrap();
    assert_eq!(web.asked().len(), 2);
    assert!(whole().await);
    registry.open_vm(name()).await.unwrap();
}
