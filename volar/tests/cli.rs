//! `volar` from the outside, against a fake of gatewayd.

#![allow(clippy::unwrap_used, reason = "a test may fail loudly")]

mod fake;

use std::{
    fs,
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
};

use assert_cmd::Command;
use fake::FakeGateway;
use predicates::{prelude::PredicateBooleanExt, str::contains};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

fn volar_at(socket: &Path) -> Command {
    let mut command = Command::cargo_bin("volar").unwrap();
    command.env("VOLANT_HOST", format!("unix://{}", socket.display()));
    command
}

fn volar(gateway: &FakeGateway, arguments: &str) -> Command {
    let mut command = volar_at(&gateway.socket());
    command.args(arguments.split_whitespace());
    command
}

fn stdout(command: &mut Command) -> String {
    String::from_utf8(command.assert().success().get_output().stdout.clone()).unwrap()
}

/// A plugin as fledge makes it: a manifest and its artifact beside it.
struct Plugin {
    folder: TempDir,
    digest: String,
}

impl Plugin {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let artifact: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 251) as u8).collect();
        fs::write(folder.path().join("caddy.cpio.gz"), &artifact).unwrap();
        let hex: String = Sha256::digest(&artifact)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let plugin = Self {
            folder,
            digest: format!("sha256:{hex}"),
        };
        plugin.describe("caddy.cpio.gz", &plugin.digest);
        plugin
    }

    fn manifest(&self) -> PathBuf {
        self.folder.path().join("caddy.manifest.json")
    }

    fn describe(&self, url: &str, digest: &str) {
        let text = format!(
            r#"{{ "schema_version": "1",   "name": "caddy", "version": "2.6.2",
            "initramfs": {{"url": "{url}", "checksum": "{digest}", "size": 1000000}},
            "workload": {{"entrypoint": ["/usr/bin/caddy"]}} }}"#
        );
        fs::write(self.manifest(), text).unwrap();
    }

    fn install(&self, gateway: &FakeGateway) -> Command {
        let mut command = volar(gateway, "plugins install --manifest");
        command.arg(self.manifest());
        command
    }
}

#[test]
fn the_quick_start_works_letter_for_letter() {
    let (gateway, plugin) = (FakeGateway::start(), Plugin::new());
    plugin
        .install(&gateway)
        .assert()
        .success()
        .stdout("plugin caddy 2.6.2 is installed\n");
    volar(
        &gateway,
        "vms create web --plugin caddy --cpu 2 --memory 512",
    )
    .assert()
    .success()
    .stdout("VM web is running at 192.168.127.2\n");
    let expected = json!({
        "name": "web", "plugin": "caddy", "cpu_cores": 2, "memory_mb": 512, "start": true, "enable": false
    });
    assert_eq!(gateway.kept().create, expected);
    let table = stdout(&mut volar(&gateway, "vms list"));
    let words: Vec<Vec<&str>> = table
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(
        words[0],
        [
            "NAME", "STATUS", "ADDRESS", "CPU", "MEMORY", "PLUGIN", "VMM"
        ]
    );
    assert_eq!(
        words[1],
        [
            "web",
            "running",
            "192.168.127.2",
            "2",
            "512",
            "MiB",
            "caddy",
            "qemu"
        ]
    );
    volar(&gateway, "vms delete web")
        .assert()
        .success()
        .stdout("VM web is deleted\n");
    assert!(gateway.kept().vms.is_empty());
}

#[test]
fn an_artifact_is_uploaded_once_and_the_manifest_sent_as_written() {
    let (gateway, plugin) = (FakeGateway::start(), Plugin::new());
    plugin.install(&gateway).assert().success();
    plugin.install(&gateway).assert().success();
    let kept = gateway.kept();
    assert_eq!(kept.uploads, 1);
    assert_eq!(
        kept.blobs[&plugin.digest],
        fs::read(plugin.folder.path().join("caddy.cpio.gz")).unwrap()
    );
    let written = fs::read_to_string(plugin.manifest()).unwrap();
    assert_eq!(kept.install, format!(r#"{{"manifest":{written}}}"#));
}

#[test]
fn a_plugin_can_be_named_in_every_way() {
    let (gateway, plugin) = (FakeGateway::start(), Plugin::new());
    let artifact = plugin.folder.path().join("caddy.cpio.gz");
    plugin.describe(&format!("file://{}", artifact.display()), &plugin.digest);
    volar(&gateway, "plugins install")
        .arg(plugin.manifest())
        .assert()
        .success();
    // From its own folder, where the manifest's path has no folder in it.
    plugin.describe("caddy.cpio.gz", &plugin.digest);
    volar(&gateway, "plugins install --manifest caddy.manifest.json")
        .current_dir(plugin.folder.path())
        .assert()
        .success();
    volar(
        &gateway,
        "plugins install --manifest https://example.com/caddy.json",
    )
    .assert()
    .success()
    .stdout("plugin remote 1 is installed\n");
    assert_eq!(
        gateway.kept().install,
        r#"{"manifest_url":"https://example.com/caddy.json"}"#
    );
    assert_eq!(gateway.kept().uploads, 1);
}

#[test]
fn an_artifact_of_the_web_is_left_to_volant() {
    let (gateway, plugin) = (FakeGateway::start(), Plugin::new());
    plugin.describe("https://example.com/caddy.cpio.gz", &plugin.digest);
    plugin.install(&gateway).assert().success();
    assert_eq!(gateway.kept().uploads, 0);
}

#[test]
fn an_install_that_fails_half_way_is_told() {
    let gateway = FakeGateway::start();
    volar(&gateway, "plugins install https://example.com/broken.json")
        .assert()
        .code(2)
        .stdout("")
        .stderr(contains("error: a wrong checksum"));
}

#[test]
fn a_wrong_artifact_is_found_before_anything_is_sent() {
    let (gateway, plugin) = (FakeGateway::start(), Plugin::new());
    let other = format!("sha256:{}", "ab".repeat(32));
    plugin.describe("caddy.cpio.gz", &other);
    plugin.install(&gateway).assert().code(1).stderr(
        contains("initramfs: ")
            .and(contains(&other))
            .and(contains(&plugin.digest)),
    );

    plugin.describe("none.cpio.gz", &plugin.digest);
    plugin
        .install(&gateway)
        .assert()
        .code(1)
        .stderr(contains("none.cpio.gz: No such file"));
    plugin.describe("/dev", &plugin.digest);
    plugin
        .install(&gateway)
        .assert()
        .code(1)
        .stderr(contains("it is no file"));
    plugin.describe("ftp://example.com/x", &plugin.digest);
    plugin
        .install(&gateway)
        .assert()
        .code(1)
        .stderr(contains("'ftp://example.com/x' is not http"));
    fs::write(plugin.folder.path().join("caddy.cpio.gz"), "short").unwrap();
    plugin.describe("caddy.cpio.gz", &plugin.digest);
    plugin
        .install(&gateway)
        .assert()
        .code(1)
        .stderr(contains("has 5 bytes; the manifest says 1000000"));
    assert!(gateway.kept().uploads == 0 && gateway.kept().plugins.is_empty());
}

#[test]
fn a_manifest_that_is_none_is_told_where() {
    let (gateway, folder) = (FakeGateway::start(), tempfile::tempdir().unwrap());
    let path = folder.path().join("m.json");
    let mut install = volar(&gateway, "plugins install --manifest");
    install.arg(&path);
    install
        .assert()
        .code(1)
        .stderr(contains("m.json: No such file").and(contains("hint: ")));
    fs::write(&path, "{\n  \"name\": \"a\",\n  \"colour\": 1\n}").unwrap();
    install
        .assert()
        .code(1)
        .stderr(contains("unknown field `colour`").and(contains("line 3")));
    fs::write(&path, "").unwrap();
    install.assert().code(1).stderr(contains("m.json"));
}

#[test]
fn a_gigabyte_of_json_is_not_read() {
    let (gateway, folder) = (FakeGateway::start(), tempfile::tempdir().unwrap());
    let path = folder.path().join("huge.json");
    fs::File::create(&path).unwrap().set_len(1 << 30).unwrap();
    let mut install = volar(&gateway, "plugins install");
    install
        .arg(&path)
        .timeout(std::time::Duration::from_secs(10));
    install.assert().code(1).stderr(contains(
        "has 1073741824 bytes; a manifest has at most 1048576",
    ));
    // What has no size is read no further than a manifest may go.
    let mut install = volar(&gateway, "plugins install /dev/zero");
    install.timeout(std::time::Duration::from_secs(10));
    install
        .assert()
        .code(1)
        .stderr(contains("a manifest has at most"));
}

#[test]
fn plugins_are_listed_shown_and_removed() {
    let (gateway, plugin) = (FakeGateway::start(), Plugin::new());
    volar(&gateway, "plugins list")
        .assert()
        .success()
        .stdout(contains("no plugins are installed"));
    plugin.install(&gateway).assert().success();
    let table = stdout(&mut volar(&gateway, "plugins ls"));
    assert!(
        table.starts_with("NAME ") && table.contains("15.0 MB"),
        "{table}"
    );
    assert_eq!(
        stdout(&mut volar(&gateway, "plugins list --quiet")),
        "caddy\n"
    );
    let shown: Value =
        serde_json::from_str(&stdout(&mut volar(&gateway, "plugins show caddy"))).unwrap();
    assert_eq!(shown["workload"]["entrypoint"][0], "/usr/bin/caddy");
    let listed: Value =
        serde_json::from_str(&stdout(&mut volar(&gateway, "-o json plugins list"))).unwrap();
    assert_eq!(listed[0]["size_bytes"], 15_000_000);

    gateway
        .kept()
        .vms
        .insert("web".to_owned(), FakeGateway::vm("web", "running"));
    volar(&gateway, "plugins remove caddy")
        .assert()
        .code(4)
        .stderr(contains("1 VM uses it").and(contains("hint:")));
    gateway.kept().vms.clear();
    volar(&gateway, "plugins remove caddy")
        .assert()
        .success()
        .stdout("plugin caddy is removed\n");
    volar(&gateway, "plugins show caddy")
        .assert()
        .code(3)
        .stderr(contains("there is no plugin caddy"));
}

#[test]
fn a_vm_is_shown_for_people_and_for_programs() {
    let gateway = FakeGateway::start();
    gateway
        .kept()
        .vms
        .insert("web".to_owned(), FakeGateway::vm("web", "running"));
    gateway
        .kept()
        .vms
        .insert("db".to_owned(), FakeGateway::vm("db", "stopped"));
    let shown = stdout(&mut volar(&gateway, "vms get web"));
    for expected in [
        "Address:  192.168.127.2",
        "qemu (no KVM)",
        "512 MiB, 97 MiB in use",
        "journalctl -u volant-vm@web\n",
    ] {
        assert!(shown.contains(expected), "{expected}: {shown}");
    }
    assert!(
        !shown.contains('\u{1b}'),
        "the guest's words reach the terminal"
    );
    // One is an object; several are a list.
    let one = stdout(&mut volar(&gateway, "vms get web --output json"));
    let value: Value = serde_json::from_str(&one).unwrap();
    assert_eq!(value, FakeGateway::vm("web", "running"));
    let several: Value =
        serde_json::from_str(&stdout(&mut volar(&gateway, "vms get web db -o json"))).unwrap();
    assert_eq!(several[1]["name"], "db");
    assert_eq!(stdout(&mut volar(&gateway, "vms list -q")), "db\nweb\n");
}

#[test]
fn several_vms_are_changed_at_once_and_each_failure_is_told() {
    let gateway = FakeGateway::start();
    for name in ["a", "b"] {
        gateway
            .kept()
            .vms
            .insert(name.to_owned(), FakeGateway::vm(name, "running"));
    }
    volar(&gateway, "vms stop a none b")
        .assert()
        .code(3)
        .stdout("VM a is stopped\nVM b is stopped\n")
        .stderr("error: there is no VM none\nhint: volar vms list shows all VMs\n");
    volar(&gateway, "vms start a")
        .assert()
        .success()
        .stdout("VM a is running at 192.168.127.2\n");
    volar(&gateway, "vms restart a --quiet")
        .assert()
        .success()
        .stdout("");
    volar(&gateway, "vms enable a")
        .assert()
        .success()
        .stdout("VM a starts when the host boots\n");
    assert_eq!(gateway.kept().vms["a"]["enabled"], true);
    volar(&gateway, "vms disable a").assert().success();
    assert_eq!(gateway.kept().vms["a"]["enabled"], false);
    volar(&gateway, "vms delete a none b")
        .assert()
        .code(3)
        .stdout("VM a is deleted\nVM b is deleted\n");
    volar(&gateway, "vms list")
        .assert()
        .success()
        .stdout(contains("there are no VMs"));
}

#[test]
fn what_the_api_refuses_is_told_with_its_exit_code() {
    let gateway = FakeGateway::start();
    gateway
        .kept()
        .vms
        .insert("web".to_owned(), FakeGateway::vm("web", "running"));
    let cases = [
        (
            "vms create new --plugin unknown",
            3,
            "there is no plugin unknown",
        ),
        (
            "vms create new --plugin broken",
            1,
            "error: no agent called\\u{1b}[2J",
        ),
        (
            "vms create web --plugin caddy",
            4,
            "hint: choose another name",
        ),
        ("vms get none", 3, "there is no VM none"),
    ];
    for (arguments, code, expected) in cases {
        volar(&gateway, arguments)
            .assert()
            .code(code)
            .stdout("")
            .stderr(contains(expected));
    }
    volar(
        &gateway,
        "vms create new --plugin caddy --no-start --enable --vmm qemu",
    )
    .assert()
    .success()
    .stdout("VM new is stopped\n");
    let create = gateway.kept().create.clone();
    assert_eq!(
        (&create["start"], &create["enable"], &create["vmm"]),
        (&json!(false), &json!(true), &json!("qemu"))
    );
    assert!(create.get("cpu_cores").is_none());
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_asked() {
    let too_long = format!("vms create {} --plugin caddy", "a".repeat(64));
    let cases = [
        ("vms create a/b --plugin caddy", "has '/' in it"),
        ("vms create .. --plugin caddy", "has '.' in it"),
        (too_long.as_str(), "has 64 characters"),
        (
            "vms create web --plugin caddy --memory 0",
            "0 is not in 64..",
        ),
        (
            "vms create web --plugin caddy --cpu 0",
            "0 is not in 1..=64",
        ),
        (
            "vms create web --plugin caddy --vmm xen",
            "'xen' is not one of",
        ),
        ("vms create web", "--plugin"),
        ("vms start", "<NAME>"),
        ("plugins install", "FILE|URL"),
        ("plugins install a --manifest b", "cannot be used with"),
        ("--host https://example.com vms list", "Unix socket alone"),
        (
            "setup --dry-run --subnet 10.0.0.1/24",
            "did you mean 10.0.0.0/24?",
        ),
        ("setup --dry-run --bridge a/b", "no name for a network link"),
    ];
    for (arguments, expected) in cases {
        let mut command = volar_at(Path::new("/nonexistent"));
        command
            .args(arguments.split_whitespace())
            .assert()
            .code(2)
            .stderr(contains(expected));
    }
}

#[test]
fn a_volant_that_is_not_there_is_told_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("api.sock");
    let mut list = volar_at(&socket);
    list.args(["vms", "list"]);
    let missing = format!("cannot reach Volant at {}: No such file", socket.display());
    list.assert().code(5).stderr(contains(missing).and(contains(
        "hint: is Volant installed and set up? sudo volar setup",
    )));
    // A socket that nobody listens at any more.
    drop(UnixListener::bind(&socket).unwrap());
    list.assert()
        .code(5)
        .stderr(contains("Connection refused").and(contains("hint: ")));
}

#[test]
fn a_host_is_looked_at_without_being_changed() {
    let output = volar_at(Path::new("/nonexistent"))
        .args([
            "setup",
            "--dry-run",
            "--output",
            "json",
            "--subnet",
            "10.201.0.0/16",
        ])
        .output()
        .unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["dry_run"], true);
    assert_eq!(report["ready"], output.status.success());
    let checks = report["checks"].as_array().unwrap();
    assert!(
        checks
            .iter()
            .any(|check| check["name"] == "platform" && check["level"] == "ok"),
        "{report}"
    );
    let is_missing = checks.iter().any(|check| check["level"] == "missing");
    assert_ne!(is_missing, output.status.success(), "{report}");
}

#[test]
fn the_version_is_told() {
    let version = env!("CARGO_PKG_VERSION");
    for arguments in ["version", "--version"] {
        volar_at(Path::new("/nonexistent"))
            .arg(arguments)
            .assert()
            .success()
            .stdout(format!("volar {version}\n"));
    }
    let help = stdout(volar_at(Path::new("/nonexistent")).arg("--help"));
    assert!(
        help.contains("Exit codes:") && help.contains("VOLANT_HOST"),
        "{help}"
    );
}
