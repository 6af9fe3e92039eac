//! The main job, as a stranger would do it: the README's tour on a throw-away host.

#![allow(clippy::print_stdout, reason = "the demo is what it prints")]

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use volant_testhost::{Host, eventually};

use crate::{example, package, prerequisites, say};

/// Boots a host, installs Volant, runs a VM of the Caddy plugin and fetches its page.
///
/// # Errors
/// A step failed; the error has what it printed.
pub fn run() -> Result<()> {
    prerequisites::need_root("the demo")?;
    prerequisites::install()?;
    let packages = package::build()?;
    let example = example::caddy()?;

    say::step("Booting a throw-away systemd host and installing the packages");
    let host = packages.bare_host()?;
    example::copy_to(&example, &host.path().join("root/caddy"))?;

    say::step("The quick start");
    show(&host, "volar setup")?;
    show(&host, "cd /root/caddy && fledge build")?;
    show(&host, "fledge keygen --no-password")?;
    show(&host, "fledge sign /root/caddy/caddy.manifest.json")?;
    show(
        &host,
        "volar plugins trust add /root/.config/volant/signing.pub --name me",
    )?;
    show(
        &host,
        "volar plugins install --manifest /root/caddy/caddy.manifest.json",
    )?;
    show(
        &host,
        "volar vms create web --plugin caddy --cpu 2 --memory 512",
    )?;
    show(&host, "volar vms list")?;
    show(&host, "systemctl status volant-vm@web --no-pager --lines 5")?;

    let address = host.sh("volar vms get web --output json | jq --raw-output .address")?;
    let url = format!("http://{}/", address.trim());
    let page = eventually(&format!("{url} answers"), Duration::from_secs(60), || {
        let output = host.try_sh(&format!(
            "curl --silent --show-error --fail --max-time 5 {url}"
        ))?;
        Ok(output
            .status
            .success()
            .then(|| String::from_utf8_lossy(&output.stdout).into_owned()))
    })
    .with_context(|| {
        host.sh("journalctl --no-pager --lines 50 --unit volant-vm@web")
            .unwrap_or_default()
    })?;
    println!("$ curl {url}\n{}", page.trim_end());
    ensure!(!page.trim().is_empty(), "{url} answered with an empty page");

    show(&host, "volar vms delete web")?;
    say::step(
        "Done: this page came from a microVM that systemd ran. `cargo xtask host` gives you a shell in such a host",
    );
    Ok(())
}

fn show(host: &Host, command: &str) -> Result<()> {
    println!("$ {command}");
    let output = host.sh(&format!("({command}) 2>&1"))?;
    println!("{}", output.trim_end());
    Ok(())
}
