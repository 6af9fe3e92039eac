//! `fledge keygen`, `sign` and `verify` from the outside, and against the real `minisign`.

#![allow(clippy::unwrap_used, reason = "a test may fail loudly")]

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::Command,
};

use predicates::{prelude::*, str::contains};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

const MANIFEST: &str = "caddy.manifest.json";
const ARTIFACT: &str = "caddy.cpio.gz";

/// A folder with a manifest, its artifact and a home.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        folder.write(ARTIFACT, "an initramfs");
        folder.write(MANIFEST, &manifest("an initramfs", ""));
        folder
    }

    fn with_key() -> Self {
        let folder = Self::new();
        folder
            .fledge(&["keygen", "--no-password"])
            .assert()
            .success();
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    fn fledge(&self, arguments: &[&str]) -> assert_cmd::Command {
        let mut command = assert_cmd::Command::cargo_bin("fledge").unwrap();
        command
            .current_dir(self.0.path())
            .args(arguments)
            .env("HOME", self.0.path())
            .env_remove("XDG_CONFIG_HOME")
            .env_remove("FLEDGE_PASSWORD_FILE")
            .env_remove("SOURCE_DATE_EPOCH");
        command
    }

    fn sign(&self) {
        self.fledge(&["sign", MANIFEST]).assert().success();
    }

    fn refuses_to_verify(&self, expected: &str) {
        self.fledge(&["verify", MANIFEST])
            .assert()
            .code(1)
            .stderr(contains(expected));
    }

    /// What `minisign -Vm` says.
    fn minisign(&self, file: &str) -> String {
        let output = Command::new("minisign")
            .args(["-V", "-p", ".config/volant/signing.pub", "-m", file])
            .current_dir(self.0.path())
            .output()
            .expect("this test needs minisign: apt-get install minisign");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

fn manifest(artifact: &str, more: &str) -> String {
    let digest = hex::encode(Sha256::digest(artifact));
    let size = artifact.len();
    format!(
        r#"{{"schema_version":"1","name":"caddy","version":"2.6.2",
            "initramfs":{{"url":"{ARTIFACT}","checksum":"sha256:{digest}","size":{size}}},
            "workload":{{"entrypoint":["/bin/caddy"]}}{more}}}"#
    )
}

#[test]
fn a_manifest_is_signed_and_both_tools_verify_it() {
    let folder = Folder::new();
    let told = folder
        .fledge(&["keygen", "--no-password"])
        .assert()
        .success()
        .stdout(contains("volar plugins trust add"));
    let told = String::from_utf8(told.get_output().stdout.clone()).unwrap();
    let key = told.lines().next().unwrap();

    folder
        .fledge(&["sign", MANIFEST])
        .env("SOURCE_DATE_EPOCH", "1700000000")
        .assert()
        .success()
        .stdout(contains("caddy 2.6.2: signed with the key"));
    let comment = "timestamp:1700000000\tfile:caddy.manifest.json\tname:caddy\tversion:2.6.2";
    assert!(folder.minisign(MANIFEST).contains(comment));
    folder
        .fledge(&["verify", MANIFEST])
        .assert()
        .success()
        .stdout(contains(comment).and(contains("initramfs caddy.cpio.gz: as signed")));
    folder
        .fledge(&["verify", "-P", key, MANIFEST])
        .assert()
        .success();

    let first = folder.read("caddy.manifest.json.minisig");
    folder
        .fledge(&["sign", MANIFEST])
        .env("SOURCE_DATE_EPOCH", "1700000000")
        .assert()
        .success();
    assert_eq!(folder.read("caddy.manifest.json.minisig"), first);
}

#[test]
fn keys_and_signatures_of_minisign_are_as_good() {
    let folder = Folder::new();
    for arguments in [
        ["-G", "-W", "-p", "their.pub", "-s", "their.key"],
        ["-S", "-s", "their.key", "-m", MANIFEST, "-q"],
    ] {
        let status = Command::new("minisign")
            .args(arguments)
            .current_dir(folder.0.path())
            .output()
            .expect("this test needs minisign: apt-get install minisign")
            .status;
        assert!(status.success());
    }
    let verify = ["verify", "-p", "their.pub", MANIFEST];
    folder.fledge(&verify).assert().success();
    folder
        .fledge(&["sign", "-s", "their.key", "-c", "by fledge", MANIFEST])
        .assert()
        .success();
    folder
        .fledge(&verify)
        .assert()
        .success()
        .stdout(contains("trusted comment: timestamp:").and(contains("\tby fledge\n")));
}

#[test]
fn a_secret_key_is_its_owners_and_is_never_lost() {
    let folder = Folder::with_key();
    let secret = ".config/volant/signing.key";
    let mode = |name: &str| folder.path(name).metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(secret), 0o600);
    assert_eq!(mode(".config/volant"), 0o700);
    let before = folder.read(secret);
    folder
        .fledge(&["keygen", "--no-password"])
        .assert()
        .code(1)
        .stderr(contains("signing.key is there already; --force"));
    // Nor is the public half of another key.
    folder.write("other.pub", "text");
    folder
        .fledge(&[
            "keygen",
            "--no-password",
            "-s",
            "new.key",
            "-p",
            "other.pub",
        ])
        .assert()
        .code(1)
        .stderr(contains("other.pub is there already"));
    assert!(!folder.path("new.key").exists());
    assert_eq!(folder.read(secret), before);
    folder
        .fledge(&["keygen", "--no-password", "--force"])
        .assert()
        .success();
    assert_ne!(folder.read(secret), before);
}

#[test]
fn a_public_file_that_cannot_be_costs_no_secret_key() {
    let folder = Folder::with_key();
    let secret = ".config/volant/signing.key";
    let before = folder.read(secret);
    fs::create_dir(folder.path("folder")).unwrap();
    for (public, expected) in [
        ("folder", "folder is no regular file"),
        (
            "caddy.manifest.json/a.pub",
            "cannot write caddy.manifest.json/a.pub",
        ),
    ] {
        folder
            .fledge(&["keygen", "--no-password", "--force", "-p", public])
            .assert()
            .code(1)
            .stderr(contains(expected));
        assert_eq!(folder.read(secret), before, "{public}");
    }
}

#[test]
fn a_password_comes_from_a_file_where_no_terminal_is() {
    let folder = Folder::new();
    folder
        .fledge(&["keygen"])
        .assert()
        .code(1)
        .stderr(contains("--password-file FILE, or --no-password"));
    folder.write("password", "secret\nnot this\n");
    folder.write("wrong", "not this\n");
    folder.write("empty", "\n");
    folder
        .fledge(&["keygen", "--password-file", "empty"])
        .assert()
        .code(1)
        .stderr(contains("first line is empty"));
    folder
        .fledge(&["keygen"])
        .env("FLEDGE_PASSWORD_FILE", "password")
        .assert()
        .success();
    folder
        .fledge(&["sign", MANIFEST])
        .assert()
        .code(1)
        .stderr(contains("--password-file FILE"));
    folder
        .fledge(&["sign", "--password-file", "wrong", MANIFEST])
        .assert()
        .code(1)
        .stderr(contains("the password is wrong"));
    assert!(!folder.path("caddy.manifest.json.minisig").exists());
    folder
        .fledge(&["sign", "--password-file", "password", MANIFEST])
        .assert()
        .success();
    folder.fledge(&["verify", MANIFEST]).assert().success();
}

#[test]
fn what_does_not_fit_together_is_not_signed() {
    let folder = Folder::with_key();
    let refused = |expected: &str| {
        folder
            .fledge(&["sign", MANIFEST])
            .assert()
            .code(1)
            .stderr(contains(expected));
        assert!(!folder.path("caddy.manifest.json.minisig").exists());
    };
    folder.write(ARTIFACT, "AN initramfs");
    refused("its initramfs is not what it says");
    refused("has the digest sha256:");
    folder.write(ARTIFACT, "an initramfs, longer");
    refused("has 20 bytes, not the 12 of the manifest");
    fs::remove_file(folder.path(ARTIFACT)).unwrap();
    refused("caddy.cpio.gz cannot be read");
    folder.write(ARTIFACT, "an initramfs");
    folder.write(MANIFEST, &manifest("an initramfs", ", \"colour\": 1"));
    refused("unknown field `colour`");
    fs::remove_file(folder.path(MANIFEST)).unwrap();
    refused("cannot read caddy.manifest.json");
}

#[test]
fn one_bad_manifest_leaves_all_unsigned() {
    let folder = Folder::with_key();
    folder.write("bad.json", "{}");
    folder
        .fledge(&["sign", MANIFEST, "bad.json"])
        .assert()
        .code(1);
    assert!(!folder.path("caddy.manifest.json.minisig").exists());
}

#[test]
fn what_is_elsewhere_is_said_to_be_unseen() {
    let folder = Folder::with_key();
    let more = format!(
        r#", "kernel": {{"url": "https://example.com/vmlinux", "checksum": "{}"}}"#,
        "ab".repeat(32)
    );
    folder.write(MANIFEST, &manifest("an initramfs", &more));
    folder
        .fledge(&["sign", MANIFEST])
        .assert()
        .success()
        .stderr(contains("kernel is at https://example.com/vmlinux"));
    folder
        .fledge(&["verify", MANIFEST])
        .assert()
        .success()
        .stdout(contains("vmlinux: not on this machine"));
}

#[test]
fn whatever_was_changed_is_told() {
    let folder = Folder::with_key();
    folder.refuses_to_verify("is not signed: there is no caddy.manifest.json.minisig");
    folder.sign();
    let signature = folder.read("caddy.manifest.json.minisig");

    folder.write(MANIFEST, &manifest("an initramfs", " "));
    folder.refuses_to_verify("they were changed after they were signed");
    folder.write(MANIFEST, &manifest("an initramfs", ""));

    folder.write(
        "caddy.manifest.json.minisig",
        &signature.replace("2.6.2", "2.6.3"),
    );
    folder.refuses_to_verify("trusted comment was changed");
    folder.write("caddy.manifest.json.minisig", "text");
    folder.refuses_to_verify("is no signature of minisign");
    folder.write("caddy.manifest.json.minisig", &signature);

    folder.write(ARTIFACT, "AN initramfs");
    folder.refuses_to_verify("an artifact is not: initramfs:");
    folder.write(ARTIFACT, "an initramfs");

    folder
        .fledge(&[
            "keygen",
            "--no-password",
            "-p",
            "other.pub",
            "-s",
            "other.key",
        ])
        .assert()
        .success();
    folder
        .fledge(&["verify", "-p", "other.pub", MANIFEST])
        .assert()
        .code(1)
        .stderr(contains("was made with the key"));
    folder.fledge(&["verify", MANIFEST]).assert().success();
}

#[test]
fn a_verification_is_json_where_asked() {
    let folder = Folder::with_key();
    folder.sign();
    let json = |code: i32| -> serde_json::Value {
        let run = folder
            .fledge(&["verify", "--output", "json", MANIFEST])
            .assert()
            .code(code);
        serde_json::from_slice(&run.get_output().stdout).unwrap()
    };
    let value = json(0);
    assert_eq!(value["valid"], true);
    assert_eq!(value["name"], "caddy");
    assert_eq!(value["artifacts"][0]["state"], "right");
    assert!(value["timestamp"].is_u64());
    folder.write(ARTIFACT, "AN initramfs");
    let value = json(1);
    assert_eq!(value["valid"], false);
    assert_eq!(value["artifacts"][0]["state"], "wrong");
    folder.write(MANIFEST, &manifest("an initramfs", " "));
    let value = json(1);
    assert_eq!(value["valid"], false);
    assert!(value["error"].as_str().unwrap().contains("were changed"));
}

#[test]
fn a_folder_that_cannot_be_written_to_is_named() {
    let folder = Folder::with_key();
    folder.write("file", "");
    folder
        .fledge(&["keygen", "--no-password", "-s", "file/a.key", "-p", "a.pub"])
        .assert()
        .code(1)
        .stderr(contains("cannot write file/a.key"));
    assert!(!folder.path("a.pub").exists());
    fs::create_dir(folder.path("folder")).unwrap();
    fs::set_permissions(folder.path("folder"), Permissions::from_mode(0o755)).unwrap();
    folder
        .fledge(&["sign", "folder"])
        .assert()
        .code(1)
        .stderr(contains("cannot read folder: it is no regular file"));
}
