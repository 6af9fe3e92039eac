//! Secrets of VMs: kept as files that their owner alone may read, and never told.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf};

use registryd::{CREDENTIALS, SecretValue, Store, VmError};
use tempfile::TempDir;
use volant_spec::{Name, vm_config::SecretName};

use crate::common::{create, files, install, new_vm, open, temp_dir};

fn with_vm(dir: &TempDir) -> Store {
    let store = open(dir);
    install(&store, "caddy", b"x");
    create(&store, "web", "caddy");
    store
}

fn web() -> Name {
    "web".parse().unwrap()
}

fn secret(name: &str) -> SecretName {
    name.parse().unwrap()
}

fn value(bytes: &[u8]) -> SecretValue {
    SecretValue(bytes.to_vec())
}

fn path(dir: &TempDir, vm: &str, name: &str) -> PathBuf {
    dir.path().join(CREDENTIALS).join(vm).join(name)
}

#[test]
fn a_secret_is_a_file_that_its_owner_alone_may_read() {
    let dir = temp_dir();
    let store = with_vm(&dir);
    store
        .put_vm_secret(&web(), &secret("db.pass"), &value(b"one"))
        .unwrap();
    store
        .put_vm_secret(&web(), &secret("key"), &value(b""))
        .unwrap();
    store
        .put_vm_secret(&web(), &secret("db.pass"), &value(b"two"))
        .unwrap();
    let file = path(&dir, "web", "db.pass");
    assert_eq!(fs::read(&file).unwrap(), b"two");
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&file), 0o600);
    assert_eq!(mode(file.parent().unwrap()), 0o700);
    assert_eq!(mode(&dir.path().join(CREDENTIALS)), 0o700);
    assert!(files(&dir, "incoming").is_empty());
    let vm = store.vm(&web()).unwrap();
    assert_eq!(vm.secrets, ["db.pass", "key"]);
    assert_eq!(store.vms().unwrap(), [vm]);

    store.remove_vm_secret(&web(), &secret("key")).unwrap();
    store.remove_vm_secret(&web(), &secret("key")).unwrap();
    drop(store);
    let store = open(&dir);
    assert_eq!(store.vm(&web()).unwrap().secrets, ["db.pass"]);
    store.delete_vm(&web()).unwrap();
    assert!(matches!(
        store.put_vm_secret(&web(), &secret("key"), &value(b"x")),
        Err(VmError::BeingDeleted(_))
    ));
    store.purge_vm(&web()).unwrap();
    assert!(files(&dir, CREDENTIALS).is_empty());
    let gone = store.put_vm_secret(&web(), &secret("key"), &value(b"x"));
    assert!(matches!(gone, Err(VmError::NotFound(_))));
    assert!(files(&dir, CREDENTIALS).is_empty());
}

#[test]
fn a_vm_has_its_first_secrets_before_it_is_and_none_of_another() {
    let dir = temp_dir();
    let store = with_vm(&dir);
    let mut new = new_vm("db", "caddy");
    new.secrets = vec![(secret("a"), value(b"1")), (secret("b"), value(b"2"))];
    let now = jiff::Timestamp::now();
    assert_eq!(store.create_vm(&new, now).unwrap().secrets, ["a", "b"]);
    assert_eq!(fs::read(path(&dir, "db", "b")).unwrap(), b"2");

    // One that is refused leaves none, and takes none away.
    let mut again = new.clone();
    again.secrets = vec![(secret("a"), value(b"other"))];
    assert!(store.create_vm(&again, now).is_err());
    assert_eq!(fs::read(path(&dir, "db", "a")).unwrap(), b"1");

    // What a creation that was cut off left is nobody's.
    fs::create_dir(path(&dir, "late", "")).unwrap();
    fs::write(path(&dir, "late", "a"), "x").unwrap();
    assert!(create(&store, "late", "caddy").secrets.is_empty());
    fs::create_dir(path(&dir, "later", "")).unwrap();
    drop(store);
    open(&dir);
    assert_eq!(files(&dir, CREDENTIALS), ["db"]);
}

#[test]
fn secrets_are_no_larger_than_a_unit_can_have() {
    let dir = temp_dir();
    let store = with_vm(&dir);
    let largest = value(&[7; 128 * 1024]);
    let too_large = value(&[7; 128 * 1024 + 1]);
    let error = store
        .put_vm_secret(&web(), &secret("a"), &too_large)
        .unwrap_err();
    assert!(error.to_string().contains("at most 131072"), "{error}");
    for name in ["a", "b", "c", "d"] {
        store
            .put_vm_secret(&web(), &secret(name), &largest)
            .unwrap();
    }
    let error = store
        .put_vm_secret(&web(), &secret("e"), &value(b"x"))
        .unwrap_err();
    assert!(error.to_string().contains("at most 524288"), "{error}");
    // One that is replaced does not count twice.
    store.put_vm_secret(&web(), &secret("a"), &largest).unwrap();

    let mut new = new_vm("db", "caddy");
    new.secrets = vec![(secret("a"), too_large)];
    let error = store.create_vm(&new, jiff::Timestamp::now()).unwrap_err();
    assert!(matches!(error, VmError::SecretTooLarge { .. }), "{error}");
    assert!(!format!("{new:?}").contains("7, 7"));
    drop(store);
    open(&dir);
    assert_eq!(files(&dir, CREDENTIALS), ["web"]);
}
