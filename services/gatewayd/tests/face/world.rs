//! What the stand-ins for registryd and ipamd know, for a test to look at or to change.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
};

use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;
use tonic::Status;
use volant_proto::{ipam::v1 as ipam, registry::v1 as wire};

/// What both services know, and what they were asked. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct World(Arc<Mutex<State>>);

#[derive(Debug, Default)]
pub struct State {
    pub plugins: BTreeMap<String, wire::Plugin>,
    pub vms: BTreeMap<String, wire::Vm>,
    pub leases: BTreeMap<String, ipam::Lease>,
    pub blobs: BTreeMap<String, u64>,
    /// Of each VM, the oldest first.
    pub configs: BTreeMap<String, Vec<wire::VmConfigVersion>>,
    pub secrets: BTreeMap<(String, String), Vec<u8>>,
    pub calls: Vec<String>,
    /// The sizes of the pieces of the last upload.
    pub pieces: Vec<usize>,
    /// Uploads that were not what they said.
    pub mismatches: usize,
    pub full: bool,
    pub fails: bool,
    /// `ListVms` waits for a permit of it.
    pub listing: Option<Arc<Semaphore>>,
    made: u32,
}

impl World {
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    pub fn calls(&self) -> Vec<String> {
        self.lock().calls.clone()
    }
}

impl State {
    /// A plugin of version 1.0, or of the version that the name has behind its `@`.
    pub fn plugin(&mut self, name: &str, manifest: &str) -> wire::Plugin {
        let (name, version) = name.split_once('@').unwrap_or((name, "1.0"));
        let plugin = wire::Plugin {
            name: name.to_owned(),
            version: version.to_owned(),
            manifest: manifest.as_bytes().to_vec(),
            installed_at: "2026-11-20T10:00:00Z".to_owned(),
            size_bytes: 42,
            enabled: true,
            manifest_digest: digest(manifest.as_bytes()),
            signed_by: Some(wire::SignedBy {
                key: "acme".to_owned(),
                key_id: "E7620F1842B4E81F".to_owned(),
                comment: "timestamp:1".to_owned(),
            }),
            description: "serves files".to_owned(),
            ..wire::Plugin::default()
        };
        self.plugins
            .insert(format!("{name}@{version}"), plugin.clone());
        plugin
    }

    /// The versions that a reference is about.
    pub fn meant(&self, reference: &str) -> Result<Vec<String>, Status> {
        let is_meant =
            |key: &&String| *key == reference || key.split('@').next() == Some(reference);
        let meant: Vec<_> = self.plugins.keys().filter(is_meant).cloned().collect();
        if meant.is_empty() {
            return Err(Status::not_found(format!("no plugin {reference}")));
        }
        Ok(meant)
    }

    pub fn vm(&mut self, name: &str, deleting: bool) -> wire::Vm {
        self.made += 1;
        let vm = wire::Vm {
            uuid: format!("uuid-{}", self.made),
            name: name.to_owned(),
            plugin: "caddy".to_owned(),
            plugin_version: "1.0".to_owned(),
            cpu_cores: 1,
            memory_mb: 256,
            vmm: "auto".to_owned(),
            created_at: "2026-11-20T10:00:00Z".to_owned(),
            deleting,
            config: b"{}".to_vec(),
            config_version: 1,
            ..wire::Vm::default()
        };
        self.configs.remove(name);
        self.config(name, b"{}", "created");
        self.vms.insert(name.to_owned(), vm.clone());
        let lease = ipam::Lease {
            vm: name.to_owned(),
            address: format!("192.168.127.{}", self.made + 1),
            mac: format!("52:54:00:00:00:{:02x}", self.made),
            cid: self.made + 2,
        };
        self.leases.insert(name.to_owned(), lease);
        vm
    }

    /// A new version of a VM's configuration.
    pub fn config(&mut self, name: &str, config: &[u8], reason: &str) -> wire::VmConfigVersion {
        let versions = self.configs.entry(name.to_owned()).or_default();
        let version = wire::VmConfigVersion {
            version: versions.len() as u64 + 1,
            config: config.to_vec(),
            created_at: "2026-11-20T10:00:00Z".to_owned(),
            reason: reason.to_owned(),
        };
        versions.push(version.clone());
        if let Some(vm) = self.vms.get_mut(name) {
            (vm.config, vm.config_version) = (config.to_vec(), version.version);
            let json: serde_json::Value = serde_json::from_slice(config).unwrap();
            let number = |field: &str, default| json[field].as_u64().unwrap_or(default) as u32;
            vm.cpu_cores = number("cpu_cores", 1);
            vm.memory_mb = number("memory_mb", 256);
        }
        version
    }

    pub fn asked(&mut self, call: impl Into<String>) -> Result<(), Status> {
        self.calls.push(call.into());
        if self.fails {
            return Err(Status::internal("the database is on fire"));
        }
        Ok(())
    }
}

pub fn digest(bytes: &[u8]) -> String {
    volant_spec::Digest::from_bytes(Sha256::digest(bytes).into()).to_string()
}
