//! `volar` from the outside, against a fake of gatewayd.

#![allow(clippy::unwrap_used, reason = "a test may fail loudly")]

mod config;
mod copy;
mod devices;
mod exec;
mod fake;
mod forward;
mod host;
mod looking;
mod plugin;
mod plugins;
mod refusals;
mod ssh;
mod terminal;
mod trust;
mod upkeep;
mod vms;

use std::path::Path;

use assert_cmd::Command;
use fake::FakeGateway;

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
