//! How VMs end, are stopped, paused, restarted: what the workload, the guest and the host say of it.

use std::time::Duration;

use anyhow::{Result, ensure};
use volant_tests::{BOOT, Site, eventually};

/// Creates a plugin of that script and a VM of it, both of that name.
fn run(site: &Site, name: &str, script: &str, more: &str) -> Result<()> {
    site.plugin(name, script, more)?;
    site.host.sh(&format!(
        "mkdir -p /etc/systemd/system/volant-vm@{name}.service.d && \
         printf '[Service]\\nRestart=no\\n' > /etc/systemd/system/volant-vm@{name}.service.d/test.conf && systemctl daemon-reload && \
         volar vms create {name} --plugin {name} --cpu 1 --memory 128"
    ))?;
    Ok(())
}

/// Waits until a VM has ended, and gives systemd's and Volant's word for it.
fn ended(site: &Site, vm: &str) -> Result<String> {
    eventually(&format!("{vm} has ended"), BOOT, || {
        let state = site
            .host
            .sh(&format!("systemctl show -P ActiveState volant-vm@{vm}"))?;
        Ok(matches!(state.trim(), "failed" | "inactive").then_some(()))
    })?;
    site.host.sh(&format!(
        "systemctl show -p Result -p ExecMainStatus -p StatusText volant-vm@{vm}; \
         journalctl --no-pager -u volant-vm@{vm} -o json | grep -o '\"VOLANT_ENDED\":\"[^\"]*\"' | tail -1; \
         systemctl status --no-pager volant-vm@{vm} || true"
    ))
}

fn has(text: &str, parts: &[&str]) -> Result<()> {
    for part in parts {
        ensure!(text.contains(part), "no '{part}' in:\n{text}");
    }
    Ok(())
}

#[test]
fn how_a_vm_ended_is_told_apart() -> Result<()> {
    let site = Site::new()?;
    // The workload's exit code is the unit's.
    run(&site, "seven", "sleep 1; exit 7", "")?;
    has(
        &ended(&site, "seven")?,
        &[
            "Result=exit-code",
            "ExecMainStatus=7",
            "workload-exited",
            "code 7",
        ],
    )?;
    let seven = site.vm("seven")?;
    ensure!(
        seven["exit_code"] == 7 && seven["phase"] == "failed",
        "{seven}"
    );
    run(&site, "well", "sleep 1; exit 0", "")?;
    has(
        &ended(&site, "well")?,
        &["Result=success", "ExecMainStatus=0", "workload-exited"],
    )?;
    // The guest's kernel kills what takes too much.
    run(
        &site,
        "hungry",
        "sleep 1; exec sh -c 'x=xxxxxxxxxxxxxxxx; while :; do x=$x$x; done'",
        "",
    )?;
    has(&ended(&site, "hungry")?, &["ExecMainStatus=137", "memory"])?;
    run(&site, "off", "sleep 1; poweroff -f; sleep 60", "")?;
    has(
        &ended(&site, "off")?,
        &["Result=success", "guest-power-off"],
    )?;
    run(
        &site,
        "panics",
        "sleep 1; echo 2 > /proc/sys/vm/panic_on_oom; exec sh -c 'x=xxxxxxxxxxxxxxxx; while :; do x=$x$x; done'",
        "",
    )?;
    has(
        &ended(&site, "panics")?,
        &["ExecMainStatus=71", "kernel-panic", "Kernel panic"],
    )?;
    // One that hangs is given up once its agent was silent for long.
    run(&site, "hangs", "exec sleep 3600", "")?;
    site.host.sh("kill -STOP $(pgrep -f '[g]uest=hangs,')")?;
    has(
        &ended(&site, "hangs")?,
        &["ExecMainStatus=74", "agent-silent"],
    )?;
    // Each kind has an entry in the journal's catalog.
    let told = site
        .host
        .sh("journalctl --no-pager -x -u volant-vm@seven -o short")?;
    ensure!(
        told.contains("Defined-By: Volant"),
        "no catalog entry is shown: {told}"
    );
    // What the host does to it.
    site.create("killed", "hello")?;
    site.host.sh(
        "printf '[Service]\\nRestart=no\\n' > /run/systemd/no.conf; kill -9 $(volar vms get killed --output json | \
         sed -n 's/.*\"pid\": *\\([0-9]*\\).*/\\1/p' | head -1)",
    )?;
    eventually("it runs again", BOOT, || {
        let journal = site.journal("killed")?;
        Ok(journal.contains("killed by signal 9").then_some(()))
    })?;
    Ok(())
}

#[test]
fn a_guest_that_reboots_goes_on_in_the_same_run_of_its_unit() -> Result<()> {
    let site = Site::new()?;
    site.create("web", "hello")?;
    let started = site
        .host
        .sh("systemctl show -P ExecMainPID volant-vm@web")?;
    site.host.sh("volar vms exec web -- reboot -f || true")?;
    eventually("the guest is up again", BOOT, || {
        let vm = site.vm("web")?;
        Ok((vm["reboots"] == 1 && vm["phase"] == "running").then_some(()))
    })?;
    site.expect_page(&format!("http://{}/", site.address("web")?), "web")?;
    let now = site
        .host
        .sh("systemctl show -P ExecMainPID volant-vm@web")?;
    ensure!(now == started, "the unit was started anew: {started} {now}");
    Ok(())
}

#[test]
fn stopping_goes_down_the_ladder_and_says_which_rung_worked() -> Result<()> {
    let site = Site::new()?;
    run(
        &site,
        "deaf",
        "trap '' TERM INT HUP; (trap '' TERM; sleep 3600) & while :; do sleep 1; done",
        "stop_grace_ms = 1500",
    )?;
    site.host.sh("systemctl stop volant-vm@deaf")?;
    has(
        &ended(&site, "deaf")?,
        &["Result=success", "stopped: ", "agent"],
    )?;
    // Without an agent that hears, the machine's own ways are taken, within the unit's time.
    site.create("hung", "hello")?;
    site.host.sh(
        "mkdir -p /etc/systemd/system/volant-vm@hung.service.d && \
         printf '[Service]\\nTimeoutStopSec=20\\n' > /etc/systemd/system/volant-vm@hung.service.d/t.conf && systemctl daemon-reload && \
         volar vms restart hung && pid=$(pgrep -f '[g]uest=hung,') && kill -STOP $pid && systemctl stop volant-vm@hung",
    )?;
    has(&ended(&site, "hung")?, &["stopped: ", "kill"])?;
    let result = site.host.sh("systemctl show -P Result volant-vm@hung")?;
    ensure!(
        result.trim() == "success",
        "systemd had to kill it: {result}"
    );
    Ok(())
}

#[test]
fn a_workload_is_started_again_and_its_health_decides() -> Result<()> {
    let site = Site::new()?;
    let host = &site.host;
    site.plugin(
        "flaky",
        "n=$(cat /tmp/n 2>/dev/null || echo 0); echo $((n+1)) > /tmp/n; echo \"start $n\"; [ $n -ge 2 ] && exec sleep 3600; exit 3",
        "restart = \"on-failure\"",
    )?;
    host.sh("volar vms create flaky --plugin flaky --memory 128")?;
    eventually("it was started three times", BOOT, || {
        let vm = site.vm("flaky")?;
        Ok((vm["workload_restarts"] == 2 && vm["phase"] == "running").then_some(()))
    })?;
    // READY=1 waits for the first success.
    site.plugin("slow", "sleep 3; touch /tmp/well; exec sleep 3600", "")?;
    host.sh(
        "volar vms create slow --plugin slow --memory 128 --health-cmd 'test -e /tmp/well' --health-interval 500ms --health-retries 2 \
         --health-start-period 30s && volar vms exec slow -- test -e /tmp/well",
    )?;
    ensure!(
        site.vm("slow")?["health"] == "healthy",
        "{}",
        site.vm("slow")?
    );
    // What is not healthy any more, and may not be restarted, fails the unit.
    host.sh("volar vms exec slow -- rm /tmp/well")?;
    eventually("the unit failed for its health", BOOT, || {
        Ok(site
            .journal("slow")?
            .contains("is not healthy")
            .then_some(()))
    })?;
    Ok(())
}

#[test]
fn a_paused_guest_stands_still_and_its_clock_is_set_after() -> Result<()> {
    let site = Site::new()?;
    let host = &site.host;
    site.create("web", "hello")?;
    host.sh("volar vms pause web")?;
    ensure!(site.vm("web")?["paused"] == true, "{}", site.vm("web")?);
    let refused = host.try_sh("timeout 20 volar vms exec web -- true")?;
    ensure!(!refused.status.success(), "a paused guest ran a program");
    // Longer than the agent may be silent.
    host.sh("sleep 35; volar vms resume web")?;
    host.sh("volar vms exec web -- true")?;
    eventually(
        "the guest's clock is the host's",
        Duration::from_secs(20),
        || {
            let both = host.sh("date +%s; volar vms exec web -- date +%s")?;
            let times: Vec<i64> = both
                .lines()
                .filter_map(|line| line.trim().parse().ok())
                .collect();
            Ok((times.len() == 2 && (times[0] - times[1]).abs() <= 2).then_some(()))
        },
    )?;
    ensure!(site.vm("web")?["phase"] == "running", "{}", site.vm("web")?);
    Ok(())
}

#[test]
fn a_flood_of_long_lines_is_cut_and_bounded() -> Result<()> {
    let site = Site::new()?;
    site.plugin(
        "loud",
        "line=$(head -c 1000000 /dev/zero | tr '\\0' x); for i in 1 2 3 4 5; do echo \"$line\"; done; echo after-the-flood; exec sleep 3600",
        "",
    )?;
    site.host
        .sh("volar vms create loud --plugin loud --memory 128")?;
    eventually("the line after the flood is in the journal", BOOT, || {
        Ok(site
            .journal("loud")?
            .contains("after-the-flood")
            .then_some(()))
    })?;
    let longest = site.host.sh(
        "journalctl --no-pager -o cat -u volant-vm@loud | awk '{ if (length > max) max = length } END { print max }'",
    )?;
    let longest: usize = longest.trim().parse()?;
    ensure!(
        longest <= 9000,
        "a line of {longest} bytes reached the journal"
    );
    Ok(())
}
