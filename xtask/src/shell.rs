//! A person's shell in a throw-away host.

use std::process::Stdio;

use anyhow::{Context, Result};

use crate::{example, package, prerequisites, say};

/// Opens a shell; the host is gone when it ends.
///
/// # Errors
/// The host does not come up.
pub fn run() -> Result<()> {
    prerequisites::need_root("a throw-away host")?;
    prerequisites::install()?;
    let packages = package::build()?;
    let example = example::caddy()?;
    say::step("Booting a throw-away systemd host and installing the packages");
    let host = packages.host()?;
    example::copy_to(&example, &host.path().join("root/caddy"))?;
    say::step(
        "This is the host. The Caddy example is in /root/caddy. Leave with Ctrl-D; all of it is gone then",
    );
    host.command("/bin/bash")
        .current_dir("/")
        .env(
            "TERM",
            std::env::var_os("TERM").unwrap_or_else(|| "linux".into()),
        )
        .args(["-c", "cd; exec bash -i"])
        .stdin(Stdio::inherit())
        .status()
        .context("cannot open a shell in the host")?;
    Ok(())
}
