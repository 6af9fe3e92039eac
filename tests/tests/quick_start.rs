//! The quick start of the README, letter for letter, with the Caddy example.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use volant_testhost::EXAMPLE_VARIABLE;
use volant_tests::{Packages, Site, eventually};

#[test]
fn a_stranger_sees_a_page_served_by_a_microvm() -> Result<()> {
    let example = std::env::var_os(EXAMPLE_VARIABLE)
        .map(PathBuf::from)
        .context("run this by `cargo xtask test`")?;
    let site = Site {
        host: Packages::from_env()?.bare_host()?,
    };
    let host = &site.host;
    let target = host.path().join("root/caddy");
    std::fs::create_dir(&target)?;
    for entry in std::fs::read_dir(example)? {
        let path = entry?.path();
        std::fs::copy(
            &path,
            target.join(path.file_name().context("a file has a name")?),
        )?;
    }

    let plan = host.sh("volar setup --dry-run")?;
    ensure!(plan.contains("/etc/volant/volant.toml"), "{plan}");
    host.sh("! test -e /etc/volant/volant.toml")
        .context("a dry run writes nothing")?;
    host.sh("! systemctl is-active volant-gatewayd.socket")
        .context("a dry run starts nothing")?;
    host.sh("volar setup")?;
    host.sh("volar setup").context("setting up again is fine")?;
    host.sh("cd /root/caddy && fledge build")?;
    let unsigned =
        site.refused("volar plugins install --manifest /root/caddy/caddy.manifest.json")?;
    ensure!(
        unsigned.contains("not signed") && unsigned.contains("fledge sign"),
        "{unsigned}"
    );
    host.sh("fledge keygen --no-password")?;
    host.sh("volar plugins trust add /root/.config/volant/signing.pub --name me")?;
    host.sh("cd /root/caddy && fledge sign caddy.manifest.json")?;
    host.sh("volar plugins install --manifest /root/caddy/caddy.manifest.json")?;
    let listed = host.sh("volar plugins list")?;
    ensure!(listed.contains("caddy"), "{listed}");
    host.sh("volar vms create web --plugin caddy --cpu 2 --memory 512")?;

    let vm = site.vm("web")?;
    ensure!(
        vm["phase"] == "running" && vm["address"] == "192.168.127.2",
        "{vm}"
    );
    ensure!(
        vm["cpu_cores"] == 2 && vm["memory_mb"] == 512 && vm["unit"] == "volant-vm@web.service",
        "{vm}"
    );
    let reason = vm["vmm"]["reason"].as_str().unwrap_or_default();
    ensure!(!reason.is_empty(), "volar says why this VMM: {vm}");
    // Ready is what serves: nobody has to try again.
    host.sh("curl --silent --show-error --fail --max-time 10 http://192.168.127.2/")?;
    host.sh(
        "cd /root/caddy && volar vms cp web:/etc/caddy config && cmp config/Caddyfile Caddyfile",
    )?;
    let table = host.sh("volar vms list")?;
    ensure!(
        table.contains("web") && table.contains("running") && table.contains("192.168.127.2"),
        "{table}"
    );

    ensure!(
        site.refused("volar plugins remove caddy")?.contains("web"),
        "a plugin in use is kept, and its VM named"
    );
    host.sh("volar vms stop web")?;
    ensure!(site.vm("web")?["phase"] == "stopped");
    host.sh("volar vms start web")?;
    host.sh("volar vms restart web")?;
    site.page("http://192.168.127.2/")?;
    host.sh("volar vms delete web")?;
    ensure!(site.refused("volar vms get web")?.contains("web"));
    host.sh("volar plugins remove caddy")?;
    eventually(
        "the store is empty",
        std::time::Duration::from_secs(5),
        || {
            Ok(host
                .sh("find /var/lib/volant/registry/blobs -type f")?
                .is_empty()
                .then_some(()))
        },
    )
}

#[test]
fn a_plugin_is_installed_from_a_web_server() -> Result<()> {
    let site = Site::new()?;
    site.build_plugin("remote", "exec sleep 1000000", "")?;
    let host = &site.host;
    host.sh("systemd-run --unit web-server --property WorkingDirectory=/root/remote busybox httpd -f -p 127.0.0.1:8000")?;
    site.page("http://127.0.0.1:8000/remote.manifest.json")?;
    host.sh("volar plugins install --manifest http://127.0.0.1:8000/remote.manifest.json")?;
    site.create("far", "remote")?;
    ensure!(site.vm("far")?["phase"] == "running");
    Ok(())
}
