//! What a supervisor finds on the bus, as the tests play it.

use std::{collections::HashMap, fs::File, os::fd::OwnedFd};

use volant_dbus::{ipam::Attachment, registry::VmDefinition};
use volant_spec::unit::FIRST_UID;
use zbus::interface;

pub fn file(text: &str) -> OwnedFd {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("artifact");
    std::fs::write(&path, text).unwrap();
    File::open(path).unwrap().into()
}

/// Registries, as a supervisor sees them.
pub struct FakeRegistry {
    pub answer: Result<VmDefinition, zbus::fdo::Error>,
    pub artifacts: Vec<(&'static str, &'static str)>,
}

#[interface(name = "com.volantvm.Registry1.Manager")]
impl FakeRegistry {
    async fn open_vm(&self) -> zbus::fdo::Result<(VmDefinition, HashMap<String, zbus::OwnedFd>)> {
        let definition = match &self.answer {
            Ok(definition) => definition.clone(),
            Err(_) => return Err(zbus::fdo::Error::Failed("the store is broken".to_owned())),
        };
        let open = |(kind, text): &(&str, &str)| ((*kind).to_owned(), file(text).into());
        Ok((definition, self.artifacts.iter().map(open).collect()))
    }
}

pub struct FakeIpam;

#[interface(name = "com.volantvm.Ipam1.Manager")]
impl FakeIpam {
    async fn attach(&self) -> (Attachment, zbus::OwnedFd) {
        (attachment(), file("tap").into())
    }
}

pub fn attachment() -> Attachment {
    Attachment {
        addresses: vec!["192.168.127.2/24".to_owned()],
        gateways: Vec::new(),
        dns: Vec::new(),
        mac: "52:54:00:00:00:02".to_owned(),
        cid: 3,
        tap: "vt3".to_owned(),
    }
}

pub fn definition() -> VmDefinition {
    VmDefinition {
        uuid: "01980000-0000-7000-8000-000000000001".to_owned(),
        name: "web".to_owned(),
        uid: FIRST_UID,
        plugin: "caddy".to_owned(),
        plugin_version: "1".to_owned(),
        cpu_cores: 1,
        memory_mb: 128,
        vmm: "auto".to_owned(),
        entrypoint: vec!["/usr/bin/caddy".to_owned()],
        env: HashMap::new(),
        workdir: "/".to_owned(),
        volumes: Vec::new(),
        user: String::new(),
        stop_signal: "SIGTERM".to_owned(),
        stop_grace_ms: 10_000,
        kernel: "vmlinux".to_owned(),
        rootfs_format: String::new(),
        restart: "never".to_owned(),
        network_mode: "bridged".to_owned(),
        ..VmDefinition::default()
    }
}
