//! Plugins installed, listed, shown and removed.

use std::fs;

use predicates::{prelude::PredicateBooleanExt, str::contains};
use serde_json::{Value, json};

use crate::{
    fake::FakeGateway,
    plugin::{Plugin, sha256},
    stdout, volar,
};

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
    assert_eq!(kept.install, json!({ "manifest": written }));
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
    .stdout("plugin remote 1 is installed (15.0 MB, signed by acme (E7620F1842B4E81F))\n");
    for (arguments, expected) in [
        (
            "https://example.com/caddy.json",
            json!({"manifest_url": "https://example.com/caddy.json"}),
        ),
        (
            "oci://example.com/caddy:1",
            json!({"oci_reference": "oci://example.com/caddy:1"}),
        ),
        ("caddy@2.0", json!({"name": "caddy@2.0"})),
        (
            "--name caddy --allow-downgrade",
            json!({"name": "caddy", "allow_downgrade": true}),
        ),
    ] {
        volar(&gateway, &format!("plugins install {arguments}"))
            .assert()
            .success();
        assert_eq!(gateway.kept().install, expected);
    }
    assert_eq!(gateway.kept().uploads, 1);
}

#[test]
fn what_could_be_a_file_or_a_name_is_not_guessed() {
    let (gateway, plugin) = (FakeGateway::start(), Plugin::new());
    fs::copy(plugin.manifest(), plugin.folder.path().join("caddy")).unwrap();
    let mut install = volar(&gateway, "plugins install caddy");
    install
        .current_dir(plugin.folder.path())
        .assert()
        .code(2)
        .stderr(contains("write ./caddy for the file, or --name caddy"));
    let mut install = volar(&gateway, "plugins install ./caddy");
    install.current_dir(plugin.folder.path()).assert().success();
    assert!(gateway.kept().install["manifest"].is_string());
}

#[test]
fn the_signature_beside_a_manifest_goes_with_it() {
    let (gateway, plugin) = (FakeGateway::start(), Plugin::new());
    // Unsigned, where the policy lets it in: told loudly, also where a program reads, and without the terminal's codes.
    for arguments in ["", "--quiet", "-o json"] {
        let mut install = plugin.install(&gateway);
        install.args(arguments.split_whitespace());
        let warned = "warning: the manifest is not signed \\u{1b}[2J\n";
        install.assert().success().stderr(warned);
    }
    assert!(gateway.kept().install.get("signature").is_none());
    let signature = plugin.sign();
    plugin
        .install(&gateway)
        .assert()
        .success()
        .stderr("")
        .stdout("plugin caddy 2.6.2 is installed (15.0 MB, signed by acme (E7620F1842B4E81F))\n");
    assert_eq!(gateway.kept().install["signature"], json!(signature));

    let other = plugin.folder.path().join("other");
    fs::write(&other, "another").unwrap();
    let mut install = plugin.install(&gateway);
    install.arg("--signature").arg(&other).assert().success();
    assert_eq!(gateway.kept().install["signature"], json!("another"));
    fs::write(&other, vec![b'a'; 1 << 20]).unwrap();
    let mut install = plugin.install(&gateway);
    install.arg("--signature").arg(&other);
    install.assert().code(1).stderr(contains("at most"));
    let mut install = plugin.install(&gateway);
    install.args(["--signature", "/nowhere.minisig"]);
    install
        .assert()
        .code(1)
        .stderr(contains("cannot read the signature /nowhere.minisig"));
    volar(&gateway, "plugins install caddy --signature a")
        .assert()
        .code(2)
        .stderr(contains("--signature goes with a manifest that is a file"));
}

#[test]
fn root_file_systems_kernels_and_disks_are_uploaded_too_and_each_file_once() {
    let (gateway, plugin) = (FakeGateway::start(), Plugin::new());
    let bytes: Vec<u8> = vec![7; 5000];
    let digest = sha256(&bytes);
    for name in ["root.sqfs", "vmlinux"] {
        fs::write(plugin.folder.path().join(name), &bytes).unwrap();
    }
    let artifact = |url: &str| json!({"url": url, "checksum": digest, "size": 5000});
    let first = json!({"url": "caddy.cpio.gz", "checksum": plugin.digest, "size": 1_000_000});
    let manifest = json!({
        "schema_version": "1", "name": "caddy", "version": "2.6.2",
        "rootfs": artifact("root.sqfs"), "kernel": artifact("vmlinux"),
        "disks": [
            {"name": "a", "url": "caddy.cpio.gz", "checksum": plugin.digest},
            {"name": "b", "url": "caddy.cpio.gz", "checksum": plugin.digest},
        ],
        "initramfs": first, "workload": {"entrypoint": ["/init"]},
    });
    fs::write(plugin.manifest(), manifest.to_string()).unwrap();
    plugin.install(&gateway).assert().success();
    let kept = gateway.kept();
    assert_eq!(kept.blobs[&digest], bytes);
    assert_eq!(kept.blobs.len(), 2);
    drop(kept);
    fs::write(plugin.folder.path().join("vmlinux"), "other").unwrap();
    plugin
        .install(&gateway)
        .assert()
        .code(1)
        .stderr(contains("kernel: ").and(contains("has 5 bytes")));
}

#[test]
fn a_plugin_that_is_not_trusted_is_refused_with_what_to_do() {
    let gateway = FakeGateway::start();
    volar(
        &gateway,
        "plugins install https://example.com/untrusted.json",
    )
    .assert()
    .code(1)
    .stdout("")
    .stderr(
        contains("error: the key 01 is not trusted here\n")
            .and(contains("volar plugins trust add KEY|FILE")),
    );
    volar(&gateway, "plugins install https://example.com/older.json")
        .assert()
        .code(1)
        .stderr(contains("--allow-downgrade").and(contains("trust add").not()));
    volar(&gateway, "plugins install nothing")
        .assert()
        .code(3)
        .stderr(contains("volar plugins search"));
}

#[test]
fn a_plugin_that_is_refused_costs_no_upload() {
    let (gateway, plugin) = (FakeGateway::start(), Plugin::new());
    gateway.kept().trusts_nobody = true;
    let mut install = plugin.install(&gateway);
    install
        .assert()
        .code(1)
        .stdout("")
        .stderr(contains("error: the key 01 is not trusted here\n"));
    assert_eq!(gateway.kept().uploads, 0);
    // What is wrong with a local file is told before anyone is asked.
    gateway.kept().install = Value::Null;
    fs::write(plugin.folder.path().join("caddy.cpio.gz"), "short").unwrap();
    install.assert().code(1).stderr(contains("has 5 bytes"));
    assert_eq!(gateway.kept().install, Value::Null);
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
        .stderr(contains("'ftp://example.com/x' has ':' in it"));
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
    let words: Vec<Vec<&str>> = table
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(
        words[0].join(" "),
        "NAME VERSION ENABLED SIZE SIGNED BY INSTALLED"
    );
    assert_eq!(
        words[1].join(" "),
        "caddy 2.6.2 yes 15.0 MB - 2026-01-02T03:04:05Z"
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
    let exact = stdout(&mut volar(&gateway, "plugins show caddy@2.6.2 --manifest"));
    assert_eq!(exact, fs::read_to_string(plugin.manifest()).unwrap());
    let whole: Value =
        serde_json::from_str(&stdout(&mut volar(&gateway, "plugins show caddy -o json"))).unwrap();
    assert_eq!(whole["manifest_digest"], "sha256:00");

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
