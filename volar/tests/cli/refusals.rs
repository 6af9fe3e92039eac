//! What is refused, by volar or by the API, and a Volant that is not there.

use std::{os::unix::net::UnixListener, path::Path};

use predicates::{prelude::PredicateBooleanExt, str::contains};
use serde_json::json;

use crate::{fake::FakeGateway, volar, volar_at};

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
        ("plugins install a --name b", "cannot be used with"),
        ("plugins install ftp://a/b", "is not http://"),
        ("plugins install A", "no plugin can be named so"),
        ("plugins remove a@1 --all", "write 'a' and not 'a@1'"),
        ("plugins enable", "NAME[@VERSION]"),
        ("plugins verify a@", "version ''"),
        (
            "vms create web --plugin a@b@c",
            "version 'b@c' is not 1 to 64",
        ),
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
