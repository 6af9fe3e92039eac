//! Another machine's API, through an ssh that is a fake of one.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use assert_cmd::Command;
use predicates::str::contains;
use tempfile::TempDir;

use crate::fake::FakeGateway;

/// A folder with an `ssh` that does what a script says.
fn ssh(script: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ssh");
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

fn volar(ssh: &TempDir, arguments: &[&str]) -> Command {
    let mut command = Command::cargo_bin("volar").unwrap();
    let path = std::env::var("PATH").unwrap();
    command
        .env("PATH", format!("{}:{path}", ssh.path().display()))
        .args(["-H", "ssh://me@there:2222"])
        .args(arguments);
    command
}

/// As ssh: the program of the other side, with its own environment.
fn to_there(socket: &Path, log: &Path) -> String {
    let volar: PathBuf = assert_cmd::cargo::cargo_bin("volar");
    format!(
        "echo \"$@\" >>{}\nexec env VOLANT_HOST=unix://{} {} dial-stdio",
        log.display(),
        socket.display(),
        volar.display()
    )
}

#[test]
fn all_commands_work_through_ssh() {
    let (gateway, folder) = (FakeGateway::with(&["web"]), tempfile::tempdir().unwrap());
    let log = folder.path().join("log");
    let ssh = ssh(&to_there(&gateway.socket(), &log));
    volar(&ssh, &["vms", "list", "-q"])
        .assert()
        .success()
        .stdout("web\n");
    let logged = fs::read_to_string(&log).unwrap();
    assert_eq!(
        logged,
        "-T -o BatchMode=yes -l me -p 2222 -- there volar dial-stdio\n"
    );
    let input = "x".repeat(1_000_000);
    volar(&ssh, &["vms", "exec", "web", "--", "cat"])
        .write_stdin(input.clone())
        .assert()
        .success()
        .stdout(input);
    volar(&ssh, &["vms", "exec", "web", "--", "exit", "9"])
        .write_stdin("")
        .assert()
        .code(9);
}

#[test]
fn an_ssh_that_fails_is_told_in_its_own_words() {
    let refused =
        ssh("echo banner >&2; echo 'me@there: Permission denied (publickey).' >&2; exit 255");
    volar(&refused, &["vms", "list"])
        .assert()
        .code(5)
        .stderr(contains(
            "cannot reach Volant at ssh://me@there:2222: me@there: Permission denied (publickey).",
        ));
    let silent = ssh("exit 3");
    volar(&silent, &["vms", "exec", "web", "--", "true"])
        .write_stdin("")
        .assert()
        .code(125)
        .stderr(contains("ssh ended with exit status: 3"));
    // Volant is not there on the other side.
    let folder = tempfile::tempdir().unwrap();
    let without = ssh(&to_there(
        &folder.path().join("none"),
        &folder.path().join("log"),
    ));
    volar(&without, &["vms", "list"])
        .assert()
        .code(5)
        .stderr(contains("hint:"));
}
