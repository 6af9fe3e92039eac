//! VMs created, shown, changed and deleted.

use predicates::str::contains;
use serde_json::{Value, json};

use crate::{fake::FakeGateway, plugin::Plugin, stdout, volar};

#[test]
fn the_quick_start_works_letter_for_letter() {
    let (gateway, plugin) = (FakeGateway::start(), Plugin::new());
    plugin
        .install(&gateway)
        .assert()
        .success()
        .stdout("plugin caddy 2.6.2 is installed (15.0 MB, no trusted signature)\n");
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
    volar(&gateway, "vms create old --plugin caddy@2.6.1+b")
        .assert()
        .success();
    assert_eq!(gateway.kept().create["plugin"], "caddy@2.6.1+b");
    volar(&gateway, "vms delete old").assert().success();
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
