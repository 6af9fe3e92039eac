//! A whole Debian as a guest: its own systemd is PID 1, the real cloud-init configures it, and the agent stays.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use volant_tests::{BOOT, Site, debian, eventually};

const USER_DATA: &str = "#cloud-config\nlocale: false\nhostname: named-by-cloud-init\nwrite_files:\n- path: /etc/planted\n  content: from user data\nruncmd:\n- [ sh, -c, 'echo ran > /run/ran' ]\n";

#[test]
fn debian_boots_with_its_own_init_and_cloud_init() -> Result<()> {
    let site = Site::new()?;
    let host = &site.host;
    let copied = Command::new("cp")
        .arg("-a")
        .arg(debian::image()?)
        .arg(host.path().join("root/image"))
        .status()
        .context("cannot copy the image")?;
    ensure!(copied.success(), "cannot copy the image");
    std::fs::write(host.path().join("root/user-data"), USER_DATA)?;
    host.sh(&format!(
        "mkdir -p /root/debian && cd /root/debian && printf '%s\\n' '[plugin]' 'init = \"/sbin/init\"' 'name = \"debian\"' 'version = \"12\"' \
         'strategy = \"oci_rootfs\"' '[oci_source]' 'image = \"oci:/root/image:{tag}\"' > fledge.toml && \
         fledge build && fledge sign debian.manifest.json && volar plugins install --manifest debian.manifest.json",
        tag = debian::TAG
    ))?;
    host.sh(
        "volar vms create deb --plugin debian --memory 512 --disk 1G --cloud-init /root/user-data",
    )?;
    let init = host.sh("volar vms exec deb -- cat /proc/1/comm")?;
    ensure!(init.trim() == "systemd", "{init}");
    // Asking cloud-init itself costs an emulated guest seconds each time.
    eventually("cloud-init is done", BOOT * 4, || {
        let output = host.try_sh("volar vms exec deb -- test -e /run/cloud-init/result.json")?;
        Ok(output.status.success().then_some(()))
    })?;
    let done = host.sh("volar vms exec deb -- cat /run/cloud-init/result.json")?;
    ensure!(
        done.contains("DataSourceNoCloud") && done.contains("\"errors\": []"),
        "{done}"
    );
    let planted = host.sh("volar vms exec deb -- sh -c 'cat /etc/planted /run/ran; hostname; systemctl is-active kestrel'")?;
    for part in ["from user data", "ran", "named-by-cloud-init", "active"] {
        ensure!(planted.contains(part), "no '{part}' in {planted}");
    }
    // The address is the one that Volant gave.
    host.sh(&format!("ping -c 1 -W 5 {}", site.address("deb")?))?;
    // It is stopped by its own init, and its disk is there again.
    host.sh("volar vms exec deb -- sh -c 'echo kept > /root/kept' && volar vms stop deb && volar vms start deb")?;
    let kept = host.sh("volar vms exec deb -- cat /root/kept")?;
    ensure!(kept.trim() == "kept", "{kept}");
    let journal = site.journal("deb")?;
    ensure!(
        journal.contains("stopped: ") && !journal.contains("killed the VMM"),
        "{journal}"
    );
    // A reboot from inside is one.
    host.sh("volar vms exec deb -- systemctl reboot || true")?;
    eventually("it is up again", BOOT * 2, || {
        let vm = site.vm("deb")?;
        Ok((vm["reboots"] == 1 && vm["phase"] == "running").then_some(()))
    })?;
    host.sh("volar vms delete deb")?;
    Ok(())
}
