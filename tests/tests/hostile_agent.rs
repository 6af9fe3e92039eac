//! A guest whose agent means harm (`tests/hostile-agent`), beside a good one: it ends or spoils its own VM, and nothing else.

use std::{fs, thread};

use anyhow::{Context, Result, ensure};
use volant_testhost::HOSTILE_AGENT_VARIABLE;
use volant_tests::{BOOT, Site, eventually};

/// What vmd may have resident at most, in KiB, whatever its guest does.
const MOST_RESIDENT: u64 = 24 * 1024;
/// What all of one guest's attacks may bring into the journal.
const MOST_JOURNAL: usize = 40_000_000;
/// What vmd itself may say there: a burst, and four lines a second.
const MOST_LINES: usize = 600;

/// On the connections for agents.
const CONTROL: &[&str] = &[
    "connections",
    "garbage",
    "drip",
    "strangers",
    "heartbeats",
    "reports",
    "nonsense",
    "hellos",
    "no-such-calls",
    "rapid-reset",
    "streams",
    "commands",
    "continuation",
    "headers",
    "settings",
    "pings",
    "zero-window",
    "windows",
    "wide-window",
    "huge-data",
    "huge-message",
    "lines",
    "long-lines",
    "endless-line",
    "frames-of-nothing",
    "after-end",
];

/// On a session, and whether `volar vms exec` ends as a program does that went well.
const SESSION: &[(&str, bool)] = &[
    ("silent", false),
    ("output-first", false),
    ("end-first", false),
    ("crowded", false),
    ("noise", false),
    ("huge-frame", false),
    ("unknown-frame", false),
    ("opened-twice", false),
    ("open", false),
    ("refused-late", false),
    ("no-end", false),
    ("bad-end", false),
    ("end-twice", true),
    ("lie", false),
    ("tiny", true),
    ("empty", true),
    ("slow", false),
    ("flood", false),
];

/// Archives, and whether they may be unpacked without a complaint.
const ARCHIVES: &[(&str, bool)] = &[
    ("good", true),
    ("parent", false),
    ("absolute", false),
    ("other", false),
    ("through-link", false),
    ("through-top", false),
    ("over-link", true),
    ("link-parent", false),
    ("link-absolute", false),
    ("link-through-link", false),
    ("rights", true),
    ("deep", false),
    ("cut", false),
    ("none", false),
    ("endless", false),
];

/// A host with a good VM.
fn site() -> Result<Site> {
    let site = Site::new()?;
    let agent =
        std::env::var_os(HOSTILE_AGENT_VARIABLE).context("run this by `cargo xtask test`")?;
    fs::copy(agent, site.host.path().join("root/hostile-agent"))?;
    site.create("good-h", "hello")?;
    site.page(&format!("http://{}/", site.address("good-h")?))?;
    Ok(site)
}

/// Installs a plugin with the hostile agent; `greeting` is what it does in the place of a hello.
fn plugin(site: &Site, name: &str, greeting: &str) -> Result<()> {
    let folder = site.host.path().join("root").join(name);
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("attack"), greeting)?;
    let more = "[[file_mappings]]\nsource = \"./attack\"\ndest = \"/attack\"\n";
    site.build_plugin(name, "", more)?;
    site.host.sh(&format!(
        "cd /root/{name} && fledge build --kestrel /root/hostile-agent && fledge sign {name}.manifest.json && \
         volar plugins install --manifest {name}.manifest.json"
    ))?;
    Ok(())
}

/// A VM whose vmd is watched.
struct Watched<'a> {
    site: &'a Site,
    vm: &'a str,
    pid: String,
}

impl<'a> Watched<'a> {
    fn new(site: &'a Site, vm: &'a str) -> Result<Self> {
        let watched = Self {
            site,
            vm,
            pid: property(site, vm, "MainPID")?,
        };
        // Its highest memory until now is that of its start.
        site.host
            .sh(&format!("echo 5 > /proc/{}/clear_refs", watched.pid))?;
        Ok(watched)
    }

    /// It is the same process, and was never larger than it may be.
    fn check(&self, after: &str) -> Result<u64> {
        let (vm, pid) = (self.vm, &self.pid);
        let now = property(self.site, vm, "MainPID")?;
        ensure!(now == *pid, "{after}: vmd ended: {}", self.journal()?);
        let text = self.site.host.sh(&format!(
            "awk '/^VmHWM:/ {{ print $2 }}' /proc/{pid}/status"
        ))?;
        let most: u64 = text.trim().parse().context("no memory")?;
        ensure!(most < MOST_RESIDENT, "{after}: vmd grew to {most} KiB");
        Ok(most)
    }

    /// Its own words, the last of them.
    fn journal(&self) -> Result<String> {
        self.site.host.sh(&format!(
            "journalctl --no-pager --unit volant-vm@{} --output json | \
             jq --raw-output 'select(.VOLANT_STREAM == null) | .MESSAGE' | tail -c 4000",
            self.vm
        ))
    }
}

fn property(site: &Site, vm: &str, name: &str) -> Result<String> {
    let value = site.host.sh(&format!(
        "systemctl show volant-vm@{vm} --property {name} --value"
    ))?;
    Ok(value.trim().to_owned())
}

/// Programs start in the good VM, its page comes, and the host answers, all soon.
fn neighbour(site: &Site, url: &str, during: &str) -> Result<()> {
    site.host
        .sh(&format!(
            "timeout 10 volar vms exec good-h -- true && curl --silent --fail --max-time 10 --output /dev/null {url} && \
             timeout 10 volar vms list > /dev/null"
        ))
        .with_context(|| format!("a neighbour during {during}"))?;
    Ok(())
}

/// What the journal has of a VM: no panic, and not too much.
fn journal_is_sound(site: &Site, vm: &str) -> Result<()> {
    let journal = site.journal(vm)?;
    ensure!(!journal.contains("panicked"), "vmd panicked");
    ensure!(!journal.contains('\x1b'), "the journal has an escape");
    let own = site.host.sh(&format!(
        "journalctl --no-pager --unit volant-vm@{vm} --output json | jq 'select(.VOLANT_STREAM == null) | 1' | wc -l"
    ))?;
    let lines: usize = own.trim().parse()?;
    ensure!(lines < MOST_LINES, "vmd itself said {lines} lines");
    let bytes = journal.len();
    ensure!(
        bytes < MOST_JOURNAL,
        "the journal took {bytes} bytes of one guest"
    );
    eprintln!("the journal of {vm} has {bytes} bytes, {lines} lines of vmd");
    Ok(())
}

/// Deletes a VM; nothing of it is left.
fn delete(site: &Site, vm: &str) -> Result<()> {
    site.host
        .sh(&format!("timeout 100 volar vms delete {vm}"))?;
    eventually("nothing is left", BOOT, || {
        let left = site.host.sh(&format!(
            "ls -d /run/volant/vm/{vm} 2>/dev/null; systemctl list-units --all --plain --no-legend volant-vm@{vm}; \
             find /sys/fs/cgroup -type d -name 'volant-vm@{vm}.service' | head -1"
        ))?;
        Ok(left.trim().is_empty().then_some(()))
    })
}

#[test]
fn whatever_an_agent_does_to_its_connection_is_bounded_and_no_neighbour_feels_it() -> Result<()> {
    let site = site()?;
    let url = format!("http://{}/", site.address("good-h")?);
    plugin(&site, "evil", "")?;
    site.create("evil-h", "evil")?;
    let watched = Watched::new(&site, "evil-h")?;
    for attack in CONTROL {
        let said = thread::scope(|scope| {
            let attacker = scope.spawn(|| {
                site.host
                    .sh(&format!("timeout 40 volar vms exec evil-h -- {attack} 2"))
            });
            let felt = neighbour(&site, &url, attack);
            let said = attacker.join().expect("no panic");
            felt.and(said)
        })
        .with_context(|| format!("{attack}: {}", watched.journal().unwrap_or_default()))?;
        eprintln!("{} KiB after {}", watched.check(attack)?, said.trim());
        ensure!(said.contains(attack), "{attack} was not done: {said}");
    }
    journal_is_sound(&site, "evil-h")?;
    site.host.sh("timeout 60 systemctl stop volant-vm@evil-h")?;
    delete(&site, "evil-h")?;
    neighbour(&site, &url, "the end")
}

#[test]
fn whatever_an_agent_answers_on_sessions_spoils_that_session_alone() -> Result<()> {
    let site = site()?;
    let url = format!("http://{}/", site.address("good-h")?);
    plugin(&site, "evil", "")?;
    site.create("evil-h", "evil")?;
    let watched = Watched::new(&site, "evil-h")?;
    for (attack, well) in SESSION {
        let text = site.host.sh(&format!(
            "timeout 40 volar vms exec evil-h -- {attack} 1 > /dev/null 2> /tmp/words; echo $?; head -c 600 /tmp/words"
        ))?;
        ensure!(!text.contains('\x1b'), "{attack} says {text}");
        let code = text.lines().next().unwrap_or_default();
        ensure!((code == "0") == *well, "{attack} ended so: {text}");
        ensure!(code != "124", "{attack} did not end: {text}");
        eprintln!(
            "{} KiB after {attack}, which ended with {code}",
            watched.check(attack)?
        );
    }
    neighbour(&site, &url, "bad sessions")?;
    // Small pieces that pile up, as their reader is slow, are no reason to break off.
    let piled = site.host.sh(
        "timeout 40 volar vms exec evil-h -- tiny 2 | (sleep 4; wc -c); timeout 40 volar vms exec evil-h -- true",
    )?;
    let piled: u64 = piled.trim().parse().context("no count")?;
    ensure!(piled > 2000, "{piled} bytes came");

    // As many answers as there may be sessions, each as large as can be.
    site.host.sh(
        "for i in $(seq 50); do timeout 8 volar vms cp evil-h:/crowded - > /dev/null 2>&1 & done; wait",
    )?;
    eprintln!(
        "{} KiB after crowded answers",
        watched.check("crowded answers")?
    );
    let stats = site.host.sh("timeout 20 volar vms top evil-h --output json | head -c 100000 || true; timeout 20 volar vms stats --no-stream evil-h")?;
    ensure!(!stats.contains('\x1b'), "{stats}");
    watched.check("statistics")?;

    // Who does not read what is copied to it holds up its own client alone.
    site.host.sh(
        "truncate --size 200M /root/big; for i in 1 2 3 4; do timeout 4 volar vms cp /root/big evil-h:/big & done; wait; true",
    )?;
    watched.check("a copy that nobody reads")?;
    neighbour(&site, &url, "stuck copies")?;
    site.host.sh("timeout 10 volar vms exec evil-h -- true")?;

    site.host
        .sh("echo secret > /root/secret && mkdir /root/t")?;
    for (archive, well) in ARCHIVES {
        let output = site.host.try_sh(&format!(
            "cd /root/t && rm -rf x && timeout 4 volar vms cp evil-h:/{archive} /root/t/x 2>&1"
        ))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success() == *well, "{archive}: {text}");
        ensure!(!text.contains('\x1b'), "{archive}: {text}");
        let out = site.host.sh(
            "find / -xdev -name '*escaped*' -newer /root/secret 2>/dev/null; find /root/secret -links +1; \
             find /root/t -perm /6000; find /root/t -name stolen; find /root/t -type b -o -type c; ls -A /root/t | grep -v '^x$' || true",
        )?;
        ensure!(out.is_empty(), "{archive} got out: {out}");
        eprintln!(
            "{archive}: {}",
            text.trim().lines().last().unwrap_or("well")
        );
    }
    watched.check("archives")?;
    journal_is_sound(&site, "evil-h")?;
    delete(&site, "evil-h")?;
    neighbour(&site, &url, "the end")
}

#[test]
fn an_agent_that_greets_badly_or_lies_ends_its_vm_with_a_clear_result() -> Result<()> {
    let site = site()?;
    let url = format!("http://{}/", site.address("good-h")?);
    site.set("boot_timeout_sec", "20")?;
    let greetings = [
        ("never", "no agent called within 20 s"),
        ("token", "no agent called within 20 s"),
        ("huge", "no agent called within 20 s"),
        ("noise", "no agent called within 20 s"),
        ("protocol", "the agent 4294967295: build the plugin"),
    ];
    for (greeting, expected) in greetings {
        plugin(&site, greeting, greeting)?;
        site.host.sh(&format!(
            "volar vms create {greeting}-h --plugin {greeting} --cpu 1 --memory 128 --no-start && \
             systemctl start --no-block volant-vm@{greeting}-h"
        ))?;
        eventually(expected, BOOT, || {
            Ok(site
                .journal(&format!("{greeting}-h"))?
                .contains(expected)
                .then_some(()))
        })
        .with_context(|| site.journal(&format!("{greeting}-h")).unwrap_or_default())?;
        neighbour(&site, &url, greeting)?;
        journal_is_sound(&site, &format!("{greeting}-h"))?;
        delete(&site, &format!("{greeting}-h"))?;
    }

    plugin(&site, "evil", "")?;
    for attack in ["exits", "restarts", "deaf"] {
        site.host.sh(&format!(
            "volar vms create {attack}-h --plugin evil --cpu 1 --memory 128 --env ATTACK={attack}"
        ))?;
    }
    let watched = Watched::new(&site, "restarts-h")?;
    let ended = |vm: &str, expected: &str| {
        eventually(expected, BOOT, || {
            let journal = site.host.sh(&format!(
                "journalctl --no-pager --unit volant-vm@{vm} --output json | \
                 jq --raw-output 'select(.VOLANT_ENDED) | .VOLANT_ENDED + \" \" + (.VOLANT_RUNG // \"\") + \" \" + .MESSAGE'"
            ))?;
            Ok(journal.contains(expected).then_some(()))
        })
        .with_context(|| site.journal(vm).unwrap_or_default())
    };
    // It does not go down by itself after what it said: it is killed, and the first end is what counts.
    ended(
        "exits-h",
        "workload-exited  the workload was killed by signal 77777",
    )?;
    site.host.sh("timeout 60 systemctl stop volant-vm@deaf-h")?;
    ended("deaf-h", "stopped kill")?;
    watched.check("restarts that jump")?;
    ensure!(site.vm("restarts-h")?["phase"] == "running");
    for vm in ["exits-h", "restarts-h", "deaf-h"] {
        journal_is_sound(&site, vm)?;
        delete(&site, vm)?;
    }
    neighbour(&site, &url, "lies")
}
