//! Disks that survive, volumes, directories of the host, and cloud-init's seed.

use anyhow::{Result, ensure};
use volant_tests::Site;

/// Runs what it is sent.
const SERVER: &str = r#"
mkdir -p /www/cgi-bin
printf '#!/bin/sh\necho "Content-Type: text/plain"\necho\neval "$(cat)" 2>&1\n' > /www/cgi-bin/sh
chmod +x /www/cgi-bin/sh
echo up > /www/index.html
exec httpd -f -p 80 -h /www
"#;

/// What a shell in the guest prints.
fn inside(site: &Site, vm: &str, script: &str) -> Result<String> {
    let address = site.address(vm)?;
    site.expect_page(&format!("http://{address}/"), "up")?;
    site.host.sh(&format!(
        "curl --silent --fail --max-time 60 --data-binary @- http://{address}/cgi-bin/sh <<'END'\n{script}\nEND"
    ))
}

fn site() -> Result<Site> {
    let site = Site::new()?;
    site.plugin("server", SERVER, "")?;
    Ok(site)
}

#[test]
fn a_volume_survives_grows_and_is_full() -> Result<()> {
    let site = site()?;
    let host = &site.host;
    host.sh("volar vms create one --plugin server --memory 128 --volume data:/srv/data:64M")?;
    inside(&site, "one", "echo kept > /srv/data/file; sync")?;
    host.sh("volar vms restart one")?;
    ensure!(inside(&site, "one", "cat /srv/data/file")? == "kept\n");

    // Full: the workload hears of it, and nothing else does.
    let full = "dd if=/dev/zero of=/srv/data/fill bs=1M; df -k /srv/data; rm /srv/data/fill";
    let text = inside(&site, "one", full)?;
    ensure!(text.contains("No space left on device"), "{text}");
    ensure!(inside(&site, "one", "cat /srv/data/file")? == "kept\n");

    // The VMM dies: the journal is replayed, and nothing is lost that was written out.
    inside(
        &site,
        "one",
        "echo late > /srv/data/late; sync; echo x > /srv/data/lost",
    )?;
    host.sh("systemctl kill --signal=KILL volant-vm@one && systemctl reset-failed volant-vm@one; systemctl restart volant-vm@one")?;
    ensure!(inside(&site, "one", "cat /srv/data/late")? == "late\n");

    host.sh(
        "volar vms config get one > /root/one.json && sed -i 's/\"size_mb\": 64/\"size_mb\": 300/' /root/one.json && \
         volar vms config set one --file /root/one.json && volar vms stop one && volar vms start one",
    )?;
    let size = inside(
        &site,
        "one",
        "df -m /srv/data | tail -1 | awk '{print $2}'; cat /srv/data/file",
    )?;
    let mut lines = size.lines();
    let megabytes: u32 = lines.next().unwrap_or_default().trim().parse()?;
    ensure!(megabytes > 250 && lines.next() == Some("kept"), "{size}");
    let refused = site.refused(
        "sed -i 's/\"size_mb\": 300/\"size_mb\": 100/' /root/one.json && volar vms config set one --file /root/one.json",
    )?;
    ensure!(refused.contains("shrink"), "{refused}");

    host.sh("volar vms delete one")?;
    let left = host.sh("find /var/lib/volant/registry/disks -type f")?;
    ensure!(left.is_empty(), "{left}");
    Ok(())
}

#[test]
fn a_directory_of_the_host_is_read_and_not_written_and_only_where_the_host_allows_it() -> Result<()>
{
    let site = site()?;
    let host = &site.host;
    host.sh("mkdir -p /srv/code && echo shared > /srv/code/file && ln -s /etc /srv/code/link && chmod -R a+rX /srv")?;
    let create = "volar vms create one --plugin server --memory 128 --volume /srv/code:/mnt/code";
    let refused = site.refused(create)?;
    ensure!(refused.contains("share_paths"), "{refused}");

    host.sh("sed -i 's|^\\[vm\\]|[vm]\\nshare_paths = [\"/srv\"]|' /etc/volant/volant.toml")?;
    host.sh(create)?;
    ensure!(inside(&site, "one", "cat /mnt/code/file")? == "shared\n");
    let text = inside(
        &site,
        "one",
        "mount -o remount,rw /mnt/code; touch /mnt/code/new || echo not written",
    )?;
    ensure!(text.contains("not written"), "{text}");
    ensure!(!host.path().join("srv/code/new").exists());
    host.sh("echo changed > /srv/code/file && volar vms restart one")?;
    ensure!(inside(&site, "one", "cat /mnt/code/file")? == "changed\n");
    host.sh("volar vms delete one")?;
    Ok(())
}

#[test]
fn a_seed_is_a_disk_of_its_own() -> Result<()> {
    let site = site()?;
    let host = &site.host;
    host.sh(
        "cat > /root/seed.json <<'END'\n{\"cloud_init\": {\"user_data\": {\"content\": \"#cloud-config\\n{}\\n\"}}}\nEND\n\
         volar vms create one --plugin server --memory 128 --config /root/seed.json",
    )?;
    let text = inside(
        &site,
        "one",
        "cat /sys/block/vda/serial; echo; mkdir -p /seed; mount -t vfat -o ro /dev/vda /seed; cat /seed/meta-data /seed/network-config",
    )?;
    for expected in [
        "cidata",
        "instance-id: ",
        "local-hostname: one",
        "config: disabled",
    ] {
        ensure!(text.contains(expected), "{text}");
    }
    host.sh("volar vms delete one")?;
    Ok(())
}
