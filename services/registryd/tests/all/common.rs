//! What the tests share: a registry in a folder of its own, and manifests.

use std::time::Duration;

use registryd::{Fetcher, Incoming, Limits, NewVm, Plugin, Registry, Store};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use volant_service::Idle;
use volant_spec::{Digest, Manifest, config::Vmm};

/// Larger than what is gathered before a write.
pub const MAX_BLOB: u64 = 1024 * 1024;

pub fn temp_dir() -> TempDir {
    tempfile::tempdir().unwrap()
}

pub fn open(dir: &TempDir) -> Store {
    Store::open(dir.path(), MAX_BLOB).unwrap()
}

pub fn registry(dir: &TempDir) -> Registry {
    let limits = Limits {
        connect: Duration::from_secs(5),
        window: Duration::from_millis(300),
        bytes: 1024,
    };
    let fetcher = Fetcher::new(|| reqwest::Client::builder().no_proxy(), limits);
    Registry::new(open(dir), fetcher, Idle::new())
}

pub fn digest(bytes: &[u8]) -> Digest {
    Digest::from_bytes(Sha256::digest(bytes).into())
}

/// A manifest whose initramfs is `initramfs`, at `url`.
pub fn manifest(name: &str, url: &str, initramfs: &[u8]) -> Value {
    json!({
        "schema_version": "1", "name": name, "version": "1.0",
        "initramfs": { "url": url, "checksum": digest(initramfs) },
        "workload": { "entrypoint": ["/bin/app", "run"], "env": { "A": "b" } },
    })
}

pub fn bytes(manifest: &Value) -> Vec<u8> {
    serde_json::to_vec(manifest).unwrap()
}

/// Keeps bytes as an artifact.
pub fn keep(store: &Store, content: &[u8]) -> Digest {
    let digest = digest(content);
    store.keep(receive(store, content), &digest).unwrap();
    digest
}

pub fn receive(store: &Store, content: &[u8]) -> Incoming {
    let mut incoming = store.receive().unwrap();
    incoming.write(content).unwrap();
    incoming
}

/// Installs a plugin whose initramfs is `initramfs`.
pub fn install(store: &Store, name: &str, initramfs: &[u8]) -> Plugin {
    keep(store, initramfs);
    let bytes = bytes(&manifest(name, "x.cpio", initramfs));
    let manifest = Manifest::parse(&bytes).unwrap();
    store
        .put_plugin(&manifest, &bytes, jiff::Timestamp::now())
        .unwrap()
}

pub fn new_vm(name: &str, plugin: &str) -> NewVm {
    NewVm {
        name: name.parse().unwrap(),
        plugin: plugin.parse().unwrap(),
        cpu_cores: None,
        memory_mb: None,
        vmm: Vmm::Auto,
    }
}

pub fn create(store: &Store, name: &str, plugin: &str) -> registryd::Vm {
    store
        .create_vm(&new_vm(name, plugin), jiff::Timestamp::now())
        .unwrap()
}

/// The names of the files below a folder of the state.
pub fn files(dir: &TempDir, folder: &str) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(dir.path().join(folder))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// The artifacts' files.
pub fn blob_files(dir: &TempDir) -> Vec<String> {
    files(dir, "blobs/sha256")
}

/// An error and its sources, as one line.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    std::iter::successors(Some(error), |error| error.source())
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}
