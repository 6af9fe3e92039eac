//! Keys trusted, and trusted no more: files of this host.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use assert_cmd::Command;
use predicates::{prelude::PredicateBooleanExt, str::contains};
use serde_json::Value;
use tempfile::TempDir;
use volant_trust::Keyring;

use crate::{stdout, volar_at};

const KEY: &str = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3";
const OTHER: &str = "RWR01qbZYlhzRNiKyzUNfobPEyjdm8UbtXQo+5ia7TC8nd95WgmRzNo9";

/// A folder of trusted keys, not there yet.
struct Host(TempDir);

impl Host {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn folder(&self) -> std::path::PathBuf {
        self.0.path().join("etc/trust.d")
    }

    fn trust(&self, arguments: &str) -> Command {
        let mut command = volar_at(Path::new("/run/volant/api.sock"));
        command.args(["plugins", "trust"]);
        command.args(arguments.split_whitespace());
        command.arg("--trust-dir").arg(self.folder());
        command
    }

    /// What the host makes of its keys.
    fn keys(&self) -> Vec<String> {
        let owner = nix::unistd::geteuid().as_raw();
        let loaded = Keyring::load(&self.folder(), owner);
        assert!(loaded.problems.is_empty(), "{:?}", loaded.problems);
        let key = |key: &volant_trust::TrustedKey| {
            let plugins: Vec<_> = key.plugins.iter().map(ToString::to_string).collect();
            format!("{} {}", key.name, plugins.join(","))
        };
        loaded.keyring.keys().map(key).collect()
    }
}

#[test]
fn a_key_is_trusted_as_its_text_and_as_its_file() {
    let host = Host::new();
    let said = "key e7620f1842b4e81f (E7620F1842B4E81F) is trusted for all plugins\n";
    let mut add = host.trust(&format!("add {KEY}"));
    add.assert().success().stdout(said);
    let file = host.0.path().join("volant.pub");
    fs::write(&file, format!("untrusted comment: me\n{KEY}\n")).unwrap();
    let mut add = host.trust("add");
    add.arg(&file);
    add.assert().success().stdout(contains("key volant (E762"));
    let mut add = host.trust("add --name acme --plugins caddy,acme-* --comment builds");
    add.arg(OTHER);
    add.assert()
        .success()
        .stdout(contains("is trusted for caddy, acme-*\n"));
    assert_eq!(
        host.keys(),
        ["acme caddy,acme-*", "e7620f1842b4e81f *", "volant *"]
    );

    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    let written = host.folder().join("acme.toml");
    assert_eq!((mode(&host.folder()), mode(&written)), (0o755, 0o644));
    let text = fs::read_to_string(written).unwrap();
    assert!(text.contains("comment = \"builds\""), "{text}");
    assert_eq!(
        fs::read_dir(host.folder()).unwrap().count(),
        3,
        "nothing is left over"
    );
    let mut add = host.trust(&format!("add {OTHER} --name json -o json"));
    let told: Value = serde_json::from_str(&stdout(&mut add)).unwrap();
    assert_eq!(
        (&told["plugins"][0], &told["public_key"]),
        (&"*".into(), &OTHER.into())
    );
}

#[test]
fn a_name_is_one_keys_alone() {
    let host = Host::new();
    let add = |arguments: &str| host.trust(&format!("add --name acme {arguments}"));
    add(KEY).assert().success();
    add(KEY)
        .assert()
        .success()
        .stdout(contains("is trusted already"));
    add(OTHER)
        .assert()
        .code(4)
        .stderr(contains("another key is called acme here").and(contains("choose another --name")));
    add(&format!("{KEY} --plugins caddy"))
        .assert()
        .code(4)
        .stderr(contains("trusted already, for other plugins").and(contains("trust remove NAME")));
    // A file that is no key is not written over.
    fs::write(host.folder().join("bad.toml"), "nonsense").unwrap();
    let mut taken = host.trust(&format!("add --name bad {KEY}"));
    taken.assert().code(4).stderr(contains("bad.toml"));
    fs::remove_file(host.folder().join("bad.toml")).unwrap();
    assert_eq!(host.keys(), ["acme *"]);
}

#[test]
fn what_is_no_key_is_told() {
    let host = Host::new();
    let file = |name: &str, text: &str| {
        let path = host.0.path().join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let secret = "A".repeat(212);
    let cases = [
        (
            "/nowhere.pub".to_owned(),
            "nor a file that can be read: No such file",
        ),
        (KEY.replace('3', "4"), "'RWQf6LRCGA9i5"),
        (KEY[..50].to_owned(), "no minisign public key"),
        (file("empty.pub", ""), "empty.pub is no public key"),
        (
            file("secret.key", &format!("untrusted comment: a\n{secret}\n")),
            "this is a secret key; keep it to yourself",
        ),
        (file("Upper.pub", KEY), "give it one with --name"),
        ("/dev/zero".to_owned(), "it is no file"),
        (format!("{KEY} --plugins A*"), "'A'"),
        (format!("{KEY} --name a/b"), "has '/' in it"),
    ];
    for (given, expected) in cases {
        let mut add = host.trust(&format!("add {given}"));
        add.timeout(std::time::Duration::from_secs(10));
        add.assert().code(2).stderr(contains(expected));
    }
    let mut add = host.trust(&format!("add {KEY}"));
    add.arg("--comment=two\nlines");
    add.assert().code(2).stderr(contains("one line"));
    assert!(host.keys().is_empty());
}

#[test]
fn a_key_is_trusted_no_more() {
    let host = Host::new();
    for name in ["a", "b"] {
        let mut add = host.trust(&format!("add {KEY} --name {name}"));
        add.assert().success();
    }
    fs::write(host.0.path().join("etc/outside.pub"), KEY).unwrap();
    host.trust("remove a none ../outside")
        .assert()
        .code(3)
        .stdout("key a is trusted no more\n")
        .stderr(contains("no key is called none").and(contains("no key is called ../outside")));
    assert!(host.0.path().join("etc/outside.pub").exists());
    assert_eq!(host.keys(), ["b *"]);
    host.trust("rm b")
        .assert()
        .success()
        .stdout(contains("stay installed"));
    assert!(host.keys().is_empty());
}

#[test]
fn nothing_is_written_to_a_folder_that_others_can_write_to() {
    let host = Host::new();
    fs::create_dir_all(host.folder()).unwrap();
    let may = |mode| fs::set_permissions(host.folder(), fs::Permissions::from_mode(mode)).unwrap();
    may(0o777);
    let mut add = host.trust(&format!("add {KEY} --name acme"));
    for _ in 0..2 {
        add.assert().code(1).stdout("").stderr(
            contains("no key would be trusted in ")
                .and(contains(": others can write to it (mode 0777)"))
                .and(contains(
                    "hint: as root: chown root FOLDER && chmod go-w FOLDER",
                )),
        );
        assert_eq!(fs::read_dir(host.folder()).unwrap().count(), 0);
    }
    may(0o755);
    add.assert().success();
    assert_eq!(host.keys(), ["acme *"]);
}

#[test]
fn a_key_that_is_not_trusted_all_the_same_is_taken_away_again() {
    let host = Host::new();
    fs::create_dir_all(host.folder()).unwrap();
    // As many keys as there may be: the one more is the last by name.
    for n in 0..1024 {
        fs::write(host.folder().join(format!("k{n}.pub")), KEY).unwrap();
    }
    let mut add = host.trust(&format!("add {KEY} --name z"));
    let why =
        "the key z would not be trusted, and is not written: the folder has more than 1024 keys";
    for _ in 0..2 {
        add.assert().code(1).stdout("").stderr(contains(why));
    }
    assert!(!host.folder().join("z.pub").exists());
    fs::remove_file(host.folder().join("k0.pub")).unwrap();
    add.assert().success();
}

#[test]
fn keys_are_changed_on_the_host_itself_and_by_root() {
    let host = Host::new();
    for arguments in [format!("add {KEY}"), "remove a".to_owned()] {
        let mut far = host.trust(&arguments);
        far.args(["-H", "unix:///tmp/other.sock"]);
        far.assert()
            .code(2)
            .stderr(contains("keys are trusted by a host itself"));
    }
    assert!(!host.folder().exists());
    if !nix::unistd::geteuid().is_root() {
        let mut add = volar_at(Path::new("/run/volant/api.sock"));
        add.args(["plugins", "trust", "add", KEY]);
        add.assert().code(1).stderr(contains("only root says"));
    }
}
