//! A plugin to install.

use std::{fs, path::PathBuf};

use assert_cmd::Command;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use crate::{fake::FakeGateway, volar};

pub fn sha256(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("sha256:{hex}")
}

/// A plugin as fledge makes it: a manifest and its artifact beside it.
pub struct Plugin {
    pub folder: TempDir,
    pub digest: String,
}

impl Plugin {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let artifact: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 251) as u8).collect();
        fs::write(folder.path().join("caddy.cpio.gz"), &artifact).unwrap();
        let digest = sha256(&artifact);
        let plugin = Self { folder, digest };
        plugin.describe("caddy.cpio.gz", &plugin.digest);
        plugin
    }

    pub fn manifest(&self) -> PathBuf {
        self.folder.path().join("caddy.manifest.json")
    }

    pub fn sign(&self) -> String {
        let signature = "untrusted comment: a\nRUQf6LRCGA9i5\ntrusted comment: b\nabcd\n";
        fs::write(
            self.folder.path().join("caddy.manifest.json.minisig"),
            signature,
        )
        .unwrap();
        signature.to_owned()
    }

    pub fn describe(&self, url: &str, digest: &str) {
        let text = format!(
            r#"{{ "schema_version": "1",   "name": "caddy", "version": "2.6.2",
            "initramfs": {{"url": "{url}", "checksum": "{digest}", "size": 1000000}},
            "workload": {{"entrypoint": ["/usr/bin/caddy"]}} }}"#
        );
        fs::write(self.manifest(), text).unwrap();
    }

    pub fn install(&self, gateway: &FakeGateway) -> Command {
        let mut command = volar(gateway, "plugins install --manifest");
        command.arg(self.manifest());
        command
    }
}
