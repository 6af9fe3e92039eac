//! What happens when something is killed: nothing is lost, nothing is left.

use anyhow::{Context, Result, ensure};
use volant_tests::{BOOT, Site, eventually};

fn vmm_pid(site: &Site, vm: &str) -> Result<u64> {
    site.vm(vm)?["vmm"]["pid"]
        .as_u64()
        .context("the VM has a VMM")
}

#[test]
fn killed_services_come_back_and_no_vm_notices() -> Result<()> {
    let site = Site::new()?;
    site.create("web", "hello")?;
    let url = format!("http://{}/", site.address("web")?);
    site.page(&url)?;
    let pid = vmm_pid(&site, "web")?;
    for service in ["ipamd", "registryd", "gatewayd"] {
        // All three serve, one is killed, and the next call of each kind works.
        site.host.sh("volar plugins list && volar vms list")?;
        site.host.sh(&format!("pkill -KILL -x {service}"))?;
        site.host.sh("volar vms get web && volar plugins list")?;
        site.host.sh(&format!(
            "volar vms create {service} --plugin hello --memory 128"
        ))?;
        site.host.sh(&format!("volar vms delete {service}"))?;
        ensure!(
            vmm_pid(&site, "web")? == pid,
            "{service} was killed, and the VM is another one"
        );
        site.page(&url)?;
    }
    Ok(())
}

#[test]
fn a_killed_vmd_or_vmm_is_told_apart_and_the_vm_comes_back_with_its_address() -> Result<()> {
    let site = Site::new()?;
    site.create("web", "hello")?;
    let address = site.address("web")?;
    let url = format!("http://{address}/");
    for (victim, expected) in [
        ("vmd", "status=9/KILL"),
        (
            "qemu-system-x86",
            "qemu-system-x86_64 was killed by signal 9",
        ),
    ] {
        site.page(&url)?;
        let (before, invocation) = (vmm_pid(&site, "web")?, invocation(&site)?);
        site.host.sh(&format!(
            "kill -KILL $(cat /sys/fs/cgroup/*/volant.slice/volant-vms.slice/volant-vm@web.service/cgroup.procs \
             /sys/fs/cgroup/volant.slice/volant-vms.slice/volant-vm@web.service/cgroup.procs 2>/dev/null | sort -u | \
             while read pid; do grep -qx '{victim}' /proc/$pid/comm && echo $pid; done)"
        ))?;
        eventually("the VM runs again", BOOT, || {
            let vm = site.vm("web")?;
            let runs = vm["phase"] == "running"
                && vm["vmm"]["pid"].as_u64().is_some_and(|pid| pid != before);
            Ok(runs.then_some(()))
        })?;
        ensure!(site.address("web")? == address);
        let journal = site.host.sh(&format!(
            "journalctl --no-pager --output cat _SYSTEMD_INVOCATION_ID={invocation} + INVOCATION_ID={invocation}"
        ))?;
        ensure!(
            journal.contains(expected),
            "the journal says that {victim} was killed:\n{journal}"
        );
    }
    site.page(&url)?;
    Ok(())
}

fn invocation(site: &Site) -> Result<String> {
    Ok(site
        .host
        .sh("systemctl show volant-vm@web --property InvocationID --value")?
        .trim()
        .to_owned())
}

/// Kills a program that runs, or a service that is made to run before.
fn kill_one(site: &Site, program: &str) -> Result<()> {
    site.host.sh(
        "volar plugins list && \
         busctl call com.volantvm.Ipam1 /com/volantvm/Ipam1 com.volantvm.Ipam1.Manager ListLeases",
    )?;
    site.host.sh(&format!("pkill -KILL '^{program}'"))?;
    Ok(())
}

#[test]
fn however_often_services_are_killed_the_next_call_works() -> Result<()> {
    let site = Site::new()?;
    for service in ["registryd", "ipamd", "gatewayd"] {
        for _ in 0..12 {
            kill_one(&site, service)?;
        }
        site.host.sh("volar vms list")?;
        site.create(service, "hello")?;
    }
    // A configuration that is not valid keeps ipamd from starting; once mended, everything goes on.
    site.host.sh(
        "cp /etc/volant/volant.toml /tmp/good.toml && echo 'colour = 1' >> /etc/volant/volant.toml && \
         systemctl stop volant-ipamd.service",
    )?;
    let refused = site.refused("volar vms create never --plugin hello --memory 128")?;
    ensure!(
        refused.contains("volant.toml"),
        "the mistake is named: {refused}"
    );
    site.host.sh("cp /tmp/good.toml /etc/volant/volant.toml")?;
    site.create("again", "hello")?;
    Ok(())
}

#[test]
fn twenty_rounds_of_create_kill_delete_leave_nothing() -> Result<()> {
    let site = Site::new()?;
    // The bridge, the table and the services' files are there once there was a VM.
    site.create("warm", "hello")?;
    site.host.sh("volar vms delete warm")?;
    let before = site.traces()?;
    let victims = [
        "vmd",
        "qemu-system-x86",
        "vhost-device-v",
        "ipamd",
        "registryd",
        "gatewayd",
    ];
    for round in 0..20 {
        let victim = victims[round % victims.len()];
        site.create("round", "hello")
            .with_context(|| format!("round {round}"))?;
        kill_one(&site, victim)?;
        site.host
            .sh("volar vms delete round")
            .with_context(|| format!("round {round}, {victim} killed"))?;
    }
    let after = site.traces()?;
    ensure!(before == after, "before:\n{before}\nafter:\n{after}");
    Ok(())
}

#[test]
fn a_deletion_that_is_cut_off_is_finished_later() -> Result<()> {
    let site = Site::new()?;
    // A workload that does not stop when it is asked: the deletion takes its grace.
    site.plugin(
        "stubborn",
        "trap '' TERM; echo up; while true; do sleep 1; done",
        "stop_grace_ms = 8000",
    )?;
    site.create("warm", "hello")?;
    site.host.sh("volar vms delete warm")?;
    let before = site.traces()?;
    site.create("slow", "stubborn")?;
    site.host.sh("systemctl enable volant-vm@slow")?;
    site.host
        .sh("systemd-run --quiet --unit deletion volar vms delete slow")?;
    eventually("the deletion is under way", BOOT, || {
        let phase = site
            .host
            .try_sh("volar vms get slow --output json | jq --raw-output .phase")?;
        let phase = String::from_utf8_lossy(&phase.stdout).trim().to_owned();
        ensure!(
            !phase.is_empty(),
            "the deletion ended before it could be cut off"
        );
        Ok((phase == "deleting").then_some(()))
    })?;
    site.host
        .sh("pkill -KILL -x gatewayd && volar vms get slow")?;
    eventually("the VM is gone", BOOT, || {
        let gone = !site
            .host
            .sh("volar vms list --output json")?
            .contains("slow");
        Ok(gone.then_some(()))
    })?;
    let after = site.traces()?;
    ensure!(before == after, "before:\n{before}\nafter:\n{after}");
    Ok(())
}

#[test]
fn after_a_reboot_enabled_vms_run_with_their_addresses() -> Result<()> {
    let mut site = Site::new()?;
    for vm in ["first", "second", "third"] {
        site.create(vm, "hello")?;
    }
    site.host.sh("volar vms delete first && systemctl enable volant-vm@third && volar vms enable second && volar vms disable second && volar vms enable second")?;
    let (second, third) = (site.address("second")?, site.address("third")?);
    site.create("other", "hello")?;
    let other = site.address("other")?;
    ensure!(
        other == "192.168.127.2",
        "the freed address is used again: {other}"
    );
    site.host.reboot()?;
    for (vm, address) in [("second", &second), ("third", &third)] {
        site.wait_for_unit(&format!("volant-vm@{vm}"), "active")?;
        ensure!(site.address(vm)? == *address, "{vm} has another address");
        ensure!(site.page(&format!("http://{address}/"))?.trim() == vm);
    }
    ensure!(
        site.vm("other")?["phase"] == "stopped",
        "a VM that is not enabled stays down"
    );
    site.host.sh("volar vms start other")?;
    ensure!(site.address("other")? == other);
    Ok(())
}
