//! Devices of the host listed, shown and asked about.

use predicates::{prelude::PredicateBooleanExt, str::contains};
use serde_json::{Value, json};

use crate::{fake::FakeGateway, stdout, volar};

const GPU: &str = "0000:01:00.0";
const NET: &str = "0000:02:00.0";

fn gateway() -> FakeGateway {
    let gateway = FakeGateway::start();
    let device = |address: &str, class: &str, group: Value, vm: Value| {
        json!({
            "address": address, "kind": "10de:2204", "class": class, "driver": null, "iommu_group": group,
            "group_devices": [address, "0000:01:00.1"], "numa_node": 0, "vm": vm, "later": true,
        })
    };
    gateway.kept().devices = vec![
        device(GPU, "030000", json!(0), json!("db")),
        device(NET, "ff0000", json!(null), json!(null)),
    ];
    gateway
}

#[test]
fn devices_are_listed_for_people_and_for_programs() {
    let gateway = gateway();
    let table = stdout(&mut volar(&gateway, "devices list"));
    let lines: Vec<Vec<_>> = table
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(
        lines,
        [
            ["ADDRESS", "KIND", "CLASS", "DRIVER", "GROUP", "VM"],
            [GPU, "10de:2204", "gpu", "-", "0", "db"],
            [NET, "10de:2204", "ff0000", "-", "-", "-"],
        ]
    );
    assert_eq!(
        stdout(&mut volar(&gateway, "devices ls -q")),
        format!("{GPU}\n{NET}\n")
    );
    let all: Value =
        serde_json::from_str(&stdout(&mut volar(&gateway, "devices list -o json"))).unwrap();
    assert_eq!(all, json!(gateway.kept().devices));
    gateway.kept().devices.clear();
    volar(&gateway, "devices list")
        .assert()
        .success()
        .stdout(contains("no PCI devices"));
}

#[test]
fn one_device_is_shown_with_those_that_go_with_it() {
    let gateway = gateway();
    volar(&gateway, &format!("devices get {GPU} {NET}"))
        .assert()
        .success()
        .stdout(
            contains("0 (with 0000:01:00.1)")
                .and(contains("030000 (gpu)"))
                .and(contains("none: it cannot be kept")),
        );
    volar(&gateway, &format!("devices get 0000:09:00.0 {GPU}"))
        .assert()
        .code(3)
        .stdout(contains(GPU))
        .stderr(contains("no such device").and(contains("hint: volar devices list")));
}

#[test]
fn what_speaks_against_a_wish_is_told_and_is_a_failure() {
    let gateway = gateway();
    volar(
        &gateway,
        &format!("devices validate {GPU} --allow 10de:* --vm web"),
    )
    .assert()
    .success()
    .stdout("a VM can have them\n");
    assert_eq!(
        gateway.kept().wish,
        json!({"pci": [GPU], "allowlist": ["10de:*"], "vm": "web"})
    );
    gateway.kept().problems = vec!["no IOMMU".to_owned(), "not for VMs".to_owned()];
    volar(&gateway, &format!("devices validate {GPU} {NET}"))
        .assert()
        .code(1)
        .stdout("no IOMMU\nnot for VMs\n")
        .stderr(contains("2 things speak against it"));
    let answer = volar(&gateway, &format!("devices validate {GPU} -o json"))
        .assert()
        .code(1);
    let answer: Value = serde_json::from_slice(&answer.get_output().stdout).unwrap();
    assert_eq!(answer["problems"][1], "not for VMs");
}
