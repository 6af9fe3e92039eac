//! The supervisor is replaced while its guest runs.

use anyhow::{Result, ensure};
use volant_tests::{BOOT, Packages, Site, eventually};

#[test]
fn a_new_supervisor_takes_over_and_the_guest_does_not_notice() -> Result<()> {
    let site = Site::new()?;
    let host = &site.host;
    site.create("web", "hello")?;
    let address = site.address("web")?;
    let facts = || -> Result<String> {
        host.sh(
            "systemctl show -P MainPID volant-vm@web; pgrep -f '[g]uest=web,'; ip -o link show type tun | cut -d: -f1,2; \
             volar vms exec web -- cat /proc/sys/kernel/random/boot_id",
        )
    };
    let before = facts()?;
    // A program that goes on, and pings that none is lost of.
    host.sh(
        "(for i in $(seq 40); do echo $i; sleep 0.25; done | volar vms exec -i web -- cat > /root/through) & echo $! > /root/exec; \
         ping -q -i 0.2 -c 40 $(volar vms get web --output json | sed -n 's/.*\"address\": *\"\\([^\"]*\\)\".*/\\1/p' | head -1) > /root/ping & echo $! > /root/pinging; sleep 1",
    )?;
    for round in 2..=4 {
        host.sh("systemctl reload volant-vm@web")?;
        eventually("the next supervisor serves", BOOT, || {
            Ok((site.vm("web")?["generation"] == round).then_some(()))
        })?;
    }
    ensure!(
        facts()? == before,
        "before:\n{before}\nafter:\n{}",
        facts()?
    );
    host.sh("while kill -0 $(cat /root/exec) 2>/dev/null || kill -0 $(cat /root/pinging) 2>/dev/null; do sleep 0.2; done")?;
    let through = host.sh("tr '\\n' ' ' < /root/through")?;
    let expected: Vec<_> = (1..=40).map(|i: u32| i.to_string()).collect();
    ensure!(
        through.trim() == expected.join(" "),
        "lost or doubled: {through}"
    );
    let ping = host.sh("cat /root/ping")?;
    ensure!(ping.contains(" 0% packet loss"), "{ping}");
    site.expect_page(&format!("http://{address}/"), "web")?;
    // Logs, console and the stop work as before.
    host.sh("volar vms exec web -- sh -c 'echo after the reload > /dev/console'")?;
    eventually("the console is read on", BOOT, || {
        Ok(site
            .journal("web")?
            .contains("after the reload")
            .then_some(()))
    })?;
    host.sh("volar vms stop web")?;
    let result = host.sh("systemctl show -P Result volant-vm@web")?;
    ensure!(result.trim() == "success", "{result}");
    Ok(())
}

#[test]
fn an_upgrade_of_the_package_keeps_every_vm() -> Result<()> {
    let site = Site::new()?;
    let host = &site.host;
    site.create("web", "hello")?;
    site.create("db", "hello")?;
    let facts = "pgrep -f '[g]uest=web,'; pgrep -f '[g]uest=db,'; systemctl show -P MainPID volant-vm@web volant-vm@db";
    let before = host.sh(facts)?;
    Packages::from_env()?.install(host)?;
    ensure!(
        host.sh(facts)? == before,
        "before:\n{before}\nafter:\n{}",
        host.sh(facts)?
    );
    for vm in ["web", "db"] {
        ensure!(site.vm(vm)?["generation"] == 2, "{}", site.vm(vm)?);
        host.sh(&format!("volar vms exec {vm} -- true"))?;
    }
    Ok(())
}
