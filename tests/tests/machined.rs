//! A VM is a machine of systemd-machined, as long as its unit is active.

use anyhow::{Result, ensure};
use volant_tests::{BOOT, Site, eventually};

#[test]
fn machinectl_shows_and_stops_a_vm() -> Result<()> {
    let site = Site::new()?;
    let host = &site.host;
    site.create("web", "hello")?;
    let listed = |what: &str, wanted: bool| {
        eventually(what, BOOT, || {
            let machines = host.sh("machinectl list --no-legend --no-pager")?;
            let is_there = machines
                .lines()
                .any(|line| line.split_whitespace().take(3).eq(["web", "vm", "volant"]));
            Ok((is_there == wanted).then_some(()))
        })
    };
    listed("the VM is a machine", true)?;
    let status = host.sh("machinectl status web --no-pager --lines 0")?;
    let uuid = site.vm("web")?["uuid"]
        .as_str()
        .unwrap_or_default()
        .replace('-', "");
    let main = host.sh("systemctl show -P MainPID volant-vm@web")?;
    for part in ["volant-vm@web.service", &uuid, main.trim(), "class vm"] {
        ensure!(status.contains(part), "{part}: {status}");
    }
    // What registered it is gone, and has not failed.
    let unit = host.sh("systemctl show -P Result -P ActiveState volant-machine@web")?;
    ensure!(
        unit.split_whitespace().eq(["success", "inactive"]),
        "{unit}"
    );

    host.sh("machinectl poweroff web")?;
    site.wait_for_unit("volant-vm@web", "inactive")?;
    listed("the machine is gone with the VM", false)?;
    let journal = site.journal("web")?;
    ensure!(
        journal.contains("SIGRTMIN+4: the VM is to stop"),
        "a power-off is graceful: {journal}"
    );
    host.sh("volar vms start web")?;
    listed("the VM is a machine again", true)?;
    host.sh("volar vms restart web")?;
    listed("the restarted VM is a machine", true)?;
    host.sh("machinectl terminate web")?;
    site.wait_for_unit("volant-vm@web", "inactive")?;
    listed("the machine is gone with the VM", false)?;
    let state = host.sh("systemctl show -P Result volant-vm@web")?;
    ensure!(state.split_whitespace().eq(["success"]), "{state}");
    Ok(())
}

#[test]
fn a_host_without_machined_runs_vms_all_the_same() -> Result<()> {
    let site = Site::new()?;
    let host = &site.host;
    // Installed, and refusing: nobody can start it.
    host.sh("systemctl mask --now systemd-machined.service dbus-org.freedesktop.machine1.service")?;
    site.create("web", "hello")?;
    eventually("the registration was tried", BOOT, || {
        // Not by its unit: the journal does not always learn the unit of a process that ends at once.
        let told = host.sh("journalctl --no-pager --output cat --boot")?;
        Ok(told.contains("cannot ask machined").then_some(()))
            .map(|found| found.or(told.contains("machined does not take").then_some(())))
    })?;
    let failed = host.sh("systemctl --failed --no-legend --plain")?;
    ensure!(!failed.contains("volant"), "{failed}");
    // Not installed.
    host.sh("rm /usr/share/dbus-1/system-services/org.freedesktop.machine1.service && volar vms restart web")?;
    ensure!(site.vm("web")?["phase"] == "running");
    Ok(())
}
