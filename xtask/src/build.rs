//! Compiling: the host's programs, the guest's agent, and the vsock back-end that QEMU needs.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::{cache, say};

/// The vsock back-end of QEMU guests, from crates.io.
const VHOST_DEVICE_VSOCK: &str = "0.3.0";
/// What serves directories of the host to guests, from crates.io.
const VIRTIOFSD: &str = "1.14.0";
const GUEST_TARGET: &str = "x86_64-unknown-linux-gnu";
/// The crates with the programs of the packages.
const PROGRAMS: &[&str] = &[
    "vmd",
    "ipamd",
    "registryd",
    "gatewayd",
    "deviced",
    "volar",
    "fledge",
];

/// The workspace's folder.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask is a folder of the workspace")
        .to_owned()
}

/// Where cargo puts what it builds.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(
        || workspace().join("target"),
        |folder| workspace().join(folder),
    )
}

/// cargo, in the workspace.
pub fn cargo(subcommand: &str) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace()).arg(subcommand);
    command
}

/// Builds the host's programs; gives the folder that they are in.
///
/// # Errors
/// cargo failed.
pub fn programs() -> Result<PathBuf> {
    say::step("Building the host's programs");
    let mut command = cargo("build");
    command.args(["--release", "--locked"]);
    for program in PROGRAMS {
        command.args(["--package", program]);
    }
    say::run(&mut command)?;
    Ok(target().join("release"))
}

/// Builds the program that starts bare VMMs; gives its path.
///
/// # Errors
/// cargo failed.
pub fn bare_vmm() -> Result<PathBuf> {
    say::step("Building bare-vmm");
    say::run(cargo("build").args(["--release", "--locked", "--package", "bare-vmm"]))?;
    Ok(target().join("release/bare-vmm"))
}

/// Builds a program for the guest, as one static binary; gives its path.
///
/// # Errors
/// cargo failed.
pub fn guest_program(package: &str) -> Result<PathBuf> {
    say::step(format!("Building {package} for the guest"));
    say::run(
        cargo("build")
            .args([
                "--profile",
                "guest",
                "--locked",
                "--package",
                package,
                "--target",
                GUEST_TARGET,
            ])
            .env("RUSTFLAGS", "-C target-feature=+crt-static"),
    )?;
    Ok(target().join(GUEST_TARGET).join("guest").join(package))
}

/// Builds `vhost-device-vsock`, once; gives its path.
///
/// # Errors
/// cargo failed.
pub fn vhost_device_vsock() -> Result<PathBuf> {
    published("vhost-device-vsock", VHOST_DEVICE_VSOCK)
}

/// Builds `virtiofsd`, once; gives its path.
///
/// # Errors
/// cargo failed.
pub fn virtiofsd() -> Result<PathBuf> {
    published("virtiofsd", VIRTIOFSD)
}

/// Builds a program of crates.io, once; gives its path.
fn published(name: &str, version: &str) -> Result<PathBuf> {
    let folder = cache::folder(name)?;
    let _lock = cache::lock(&folder)?;
    let root = folder.join(version);
    let program = root.join("bin").join(name);
    if program.exists() {
        return Ok(program);
    }
    say::step(format!("Building {name} (about a minute, once)"));
    say::run(
        cargo("install")
            .args([name, "--version", version, "--locked", "--root"])
            .arg(&root)
            .env("CARGO_TARGET_DIR", folder.join("target")),
    )?;
    fs::remove_dir_all(folder.join("target"))
        .with_context(|| format!("cannot remove the target folder of {name}"))?;
    Ok(program)
}
