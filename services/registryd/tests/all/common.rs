//! What the tests share: a registry in a folder of its own, and manifests.

use std::time::Duration;

use registryd::{
    Bringer, Fetcher, Incoming, Limits, NewPlugin, NewVm, Original, Plugin, Registry, Settings,
    Source, Store,
};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use volant_service::Idle;
use volant_spec::{Digest, Manifest, VmConfig};

/// Larger than what is gathered before a write.
pub const MAX_BLOB: u64 = 1024 * 1024;

pub fn temp_dir() -> TempDir {
    tempfile::tempdir().unwrap()
}

pub fn open(dir: &TempDir) -> Store {
    Store::open(dir.path(), MAX_BLOB).unwrap()
}

/// A registry whose administrator does not look at signatures.
pub fn registry(dir: &TempDir) -> Registry {
    configure(dir, "[plugins]\nsignatures = 'off'");
    registry_as_configured(dir)
}

/// Writes the configuration.
pub fn configure(dir: &TempDir, text: &str) {
    std::fs::write(dir.path().join("volant.toml"), text).unwrap();
}

pub fn settings(dir: &TempDir) -> Settings {
    Settings {
        config: dir.path().join("volant.toml"),
        trust_dir: dir.path().join("trust.d"),
        trust_owner: nix::unistd::Uid::effective().as_raw(),
    }
}

pub fn registry_as_configured(dir: &TempDir) -> Registry {
    let limits = Limits {
        connect: Duration::from_secs(5),
        window: Duration::from_millis(300),
        bytes: 1024,
    };
    let fetcher = Fetcher::new(|| reqwest::Client::builder().no_proxy(), limits);
    Registry::new(open(dir), fetcher, settings(dir), Idle::new())
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

/// That manifest, not signed.
pub fn unsigned(manifest: &Value) -> Source {
    Source::Bytes(Original {
        manifest: bytes(manifest),
        signature: None,
    })
}

/// Keeps bytes as an uploaded artifact.
pub fn keep(store: &Store, content: &[u8]) -> Digest {
    let digest = digest(content);
    store
        .keep(receive(store, content), &digest, Bringer::Upload)
        .unwrap();
    digest
}

pub fn receive(store: &Store, content: &[u8]) -> Incoming {
    let mut incoming = store.receive().unwrap();
    incoming.write(content).unwrap();
    incoming
}

/// Installs version 1.0 of a plugin whose initramfs is `initramfs`.
pub fn install(store: &Store, name: &str, initramfs: &[u8]) -> Plugin {
    install_version(store, name, "1.0", initramfs)
}

pub fn install_version(store: &Store, name: &str, version: &str, initramfs: &[u8]) -> Plugin {
    keep(store, initramfs);
    let mut manifest = manifest(name, "x.cpio", initramfs);
    manifest["version"] = version.into();
    put(store, &manifest).unwrap()
}

pub fn put(store: &Store, manifest: &Value) -> Result<Plugin, registryd::PluginError> {
    store.put_plugin(&new_plugin(manifest), jiff::Timestamp::now())
}

pub fn new_plugin(manifest: &Value) -> NewPlugin {
    let bytes = bytes(manifest);
    NewPlugin {
        manifest: Manifest::parse(&bytes).unwrap(),
        original: Original {
            manifest: bytes,
            signature: None,
        },
        signed_by: None,
        accepted: None,
        source: String::new(),
    }
}

pub fn new_vm(name: &str, plugin: &str) -> NewVm {
    NewVm {
        name: name.parse().unwrap(),
        plugin: plugin.parse().unwrap(),
        config: VmConfig::default(),
        secrets: Vec::new(),
    }
}

pub fn create(store: &Store, name: &str, plugin: &str) -> registryd::Vm {
    store
        .create_vm(&new_vm(name, plugin), jiff::Timestamp::now())
        .unwrap()
}

/// A configuration, from its JSON.
pub fn config(json: Value) -> VmConfig {
    serde_json::from_value(json).unwrap()
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
