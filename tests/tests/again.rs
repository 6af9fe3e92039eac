//! A VM's whole life over and over: whatever a life left behind would be there as often as there were lives.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use volant_tests::{
    BOOT, Site, eventually,
    figures::{main_pid, rollup},
};

/// After the first, which makes what stays: the bridge, its table, what daemons keep ready.
const LIVES: u32 = 3;
const SESSIONS: u32 = 60;
/// What allocators keep, one time more and one time less, in KiB.
const SLACK: u64 = 768;

/// A session of each kind, a connection through a forward, a look from all sides.
const SESSIONS_OF_A_LIFE: &str = r"
set -e
volar vms exec again -- /bin/busybox true
echo in | volar vms exec -i again -- cat
script -qec 'volar vms exec -it again -- sh -c tty' /dev/null
volar vms exec -d again -- /bin/busybox true
volar vms cp /etc/passwd again:/tmp/passwd
volar vms cp again:/tmp/passwd /root/passwd
cmp /etc/passwd /root/passwd
timeout 2 volar vms logs -f again > /root/logs || test $? = 124
timeout 2 volar vms events again > /root/events || test $? = 124
volar vms stats --no-stream again
# The terminal's end of a console, once it is attached: ctrl-].
rm -f /root/console
(timeout 30 sh -c 'until grep -q Linux /root/console; do sleep 0.1; done'; printf '\035') 2>/dev/null |
    timeout 60 script -qfec 'volar vms console again' /root/console
systemd-run --quiet --unit forward volar vms forward again 18080:80
curl --silent --fail --retry 50 --retry-delay 0 --retry-all-errors --max-time 20 http://127.0.0.1:18080/
systemctl stop forward
";

/// What of the host a VM could leave behind, beside [`Site::traces`]; names that are new each time are cut. Control groups are
/// those of the whole machine, which may have other hosts.
const MORE_TRACES: &str = r"
echo '# units'; systemctl list-units --all --plain --no-legend 'volant*' | awk '{ print $1 }' | sort
echo '# failed'; systemctl list-units --failed --plain --no-legend
echo '# cgroups'; find /sys/fs/cgroup -type d -path '*@again*' | sort
echo '# machines'; machinectl list --no-legend
echo '# files'; find /etc/systemd /run/systemd/system /run/systemd/system.control /run/systemd/transient /run/credentials \
    /tmp /var/tmp /dev/shm 2>/dev/null | grep -v '^/tmp/systemd-private.*/tmp/\|^/var/tmp/systemd-private.*/tmp/' |
    grep -v 'systemd-journal\|systemd-sysctl\|systemd-sysusers\|systemd-tmpfiles' | sed 's/\(systemd-private-.*\)-[^-/]*\(.*\)/\1\2/' | sort -u
echo '# mounts'; awk '{ print $5 }' /proc/self/mountinfo | grep volant | sort
";

/// How many descriptors each of the host's daemons has open: those of Volant, systemd, and the bus.
fn descriptors(site: &Site) -> Result<Vec<(String, u32)>> {
    let text = site.host.sh(
        "volar vms list > /dev/null; echo systemd $(ls /proc/1/fd | wc -l); \
         for unit in volant-gatewayd volant-registryd volant-ipamd dbus; do \
         echo $unit $(ls /proc/$(systemctl show --property MainPID --value $unit)/fd | wc -l); done",
    )?;
    text.lines()
        .map(|line| {
            let (name, count) = line.split_once(' ').context("not NAME COUNT")?;
            Ok((name.to_owned(), count.trim().parse()?))
        })
        .collect()
}

fn traces(site: &Site) -> Result<String> {
    Ok(site.traces()? + &site.host.sh(MORE_TRACES)?)
}

/// From the definition of a VM to its end. The workload makes links to busybox' commands; right after a boot they may not be there.
fn live(site: &Site) -> Result<()> {
    let host = &site.host;
    site.create("again", "hello")?;
    site.expect_page(&format!("http://{}/", site.address("again")?), "again")?;
    host.sh(SESSIONS_OF_A_LIFE)?;
    host.sh("volar vms pause again && volar vms resume again")?;
    host.sh("systemctl reload volant-vm@again && volar vms exec again -- /bin/busybox true")?;
    host.sh("volar vms exec again -- /bin/busybox reboot -f || true")?;
    eventually("the guest is up again", BOOT, || {
        let vm = site.vm("again")?;
        Ok((vm["reboots"] == 1 && vm["phase"] == "running").then_some(()))
    })?;
    host.sh("volar vms exec again -- /bin/busybox true && systemctl restart volant-vm@again && volar vms exec again -- /bin/busybox true")?;
    host.sh("volar vms config set again env.ROUND=next && systemctl stop volant-vm@again && volar vms start again")?;
    host.sh("volar vms delete again")?;
    Ok(())
}

#[test]
fn a_life_leaves_nothing_on_the_host() -> Result<()> {
    let site = Site::new()?;
    live(&site)?;
    let (before, open) = (traces(&site)?, descriptors(&site)?);
    for _ in 0..LIVES {
        live(&site)?;
    }
    // A connection that was closed and a unit that ended are gone a moment later.
    let mut now = String::new();
    eventually("all is as before", Duration::from_secs(30), || {
        now = traces(&site)?;
        Ok((now == before).then_some(()))
    })
    .with_context(|| format!("before:\n{before}\nafter:\n{now}"))?;
    // What the first life left by name would be as before.
    ensure!(!now.contains("again"), "left of the VM:\n{now}");
    let mut now = Vec::new();
    eventually(
        "no daemon has more descriptors open",
        Duration::from_secs(30),
        || {
            now = descriptors(&site)?;
            let is_less = |((_, now), (_, before)): (&(String, u32), &(String, u32))| now <= before;
            Ok(now.iter().zip(&open).all(is_less).then_some(()))
        },
    )
    .with_context(|| format!("before: {open:?}, after: {now:?}"))?;
    let errors = site.host.sh(
        "journalctl --no-pager --quiet --priority err --output short SYSLOG_IDENTIFIER=vmd + \
         SYSLOG_IDENTIFIER=gatewayd + SYSLOG_IDENTIFIER=registryd + SYSLOG_IDENTIFIER=ipamd + SYSLOG_IDENTIFIER=kestrel",
    )?;
    ensure!(errors.is_empty(), "errors in the journal:\n{errors}");
    Ok(())
}

#[test]
fn sessions_without_number_leave_nothing_in_a_supervisor() -> Result<()> {
    let site = Site::new()?;
    site.create("again", "hello")?;
    let pid = main_pid(&site, "again")?;
    let sessions = || {
        site.host.sh(&format!(
            "set -e; for i in $(seq {SESSIONS}); do volar vms exec again -- /bin/busybox true; done; \
             volar vms cp /usr/lib/volant/kernel/vmlinux again:/tmp/large; volar vms cp again:/tmp/large /root/large"
        ))
    };
    let open = || -> Result<u32> {
        let text = site.host.sh(&format!("ls /proc/{pid}/fd | wc -l"))?;
        Ok(text.trim().parse()?)
    };
    sessions()?;
    let (memory, before) = (rollup(&site, pid, "Pss")?, open()?);
    for _ in 0..2 {
        sessions()?;
    }
    eventually(
        "the descriptors of sessions are closed",
        Duration::from_secs(30),
        || Ok((open()? <= before).then_some(())),
    )?;
    let now = rollup(&site, pid, "Pss")?;
    ensure!(
        now <= memory + SLACK,
        "{memory} KiB before {} sessions, {now} KiB after",
        SESSIONS * 2
    );
    Ok(())
}
