//! Format, lints and dependencies.

use std::process::Command;

use anyhow::{Result, bail};

use crate::{
    build::{cargo, workspace},
    say,
};

/// Runs all checks and reports all that is wrong.
///
/// # Errors
/// One of them failed.
pub fn run() -> Result<()> {
    let mut doc = cargo("doc");
    doc.args(["--workspace", "--no-deps", "--locked"])
        .env("RUSTDOCFLAGS", "-D warnings");
    let mut clippy = cargo("clippy");
    clippy.args([
        "--workspace",
        "--all-targets",
        "--locked",
        "--",
        "-D",
        "warnings",
    ]);
    let mut format = cargo("fmt");
    format.args(["--all", "--check"]);
    let mut checks = vec![
        ("format", format),
        ("lints", clippy),
        ("documentation", doc),
    ];
    let has_deny = Command::new("cargo-deny").arg("--version").output().is_ok();
    if has_deny {
        let mut deny = cargo("deny");
        deny.args(["check"]).current_dir(workspace());
        checks.push(("dependencies", deny));
    }
    let mut failed = Vec::new();
    for (name, mut command) in checks {
        say::step(format!("Checking {name}"));
        if let Err(error) = say::run(&mut command) {
            eprintln!("{error:#}");
            failed.push(name);
        }
    }
    if !has_deny {
        eprintln!(
            "NOT CHECKED: dependencies, as cargo-deny is not installed (cargo install cargo-deny)"
        );
    }
    if !failed.is_empty() {
        bail!("not right: {}", failed.join(", "));
    }
    Ok(())
}
