//! What a person does inside of a running VM: programs, files, logs, the console, connections; and what is left of it.

use std::time::Duration;

use anyhow::{Result, ensure};
use volant_tests::{BOOT, Site, eventually};

/// Runs a command that must succeed, and compares what it prints.
fn prints(site: &Site, script: &str, expected: &str) -> Result<()> {
    let printed = site.host.sh(script)?;
    ensure!(
        printed.trim() == expected,
        "{script}\nprinted: {printed}\nexpected: {expected}"
    );
    Ok(())
}

/// Runs a command and compares its exit code.
fn exits(site: &Site, script: &str, code: i32) -> Result<String> {
    let output = site.host.try_sh(script)?;
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    ensure!(
        output.status.code() == Some(code),
        "{script}\nended with {:?}, not {code}: {text}",
        output.status.code()
    );
    Ok(text)
}

#[test]
fn programs_run_in_a_guest_as_if_they_were_here() -> Result<()> {
    let site = Site::new()?;
    let host = &site.host;
    site.create("web", "hello")?;
    // The plugin makes its own commands when it starts.
    site.page(&format!("http://{}/", site.address("web")?))?;
    prints(&site, "volar vms exec web -- hostname", "web")?;
    prints(
        &site,
        "echo three words here | volar vms exec web -- wc -w",
        "3",
    )?;
    prints(
        &site,
        "volar vms exec web --env GREETING=hi -- sh -c 'echo $GREETING'",
        "hi",
    )?;
    prints(&site, "volar vms exec web --workdir /www -- pwd", "/www")?;
    prints(
        &site,
        "volar vms exec web --user 1000:1000 -- sh -c 'id -u; id -g'",
        "1000\n1000",
    )?;
    prints(
        &site,
        "volar vms exec web -- sh -c 'echo out; echo err >&2' 2>/dev/null",
        "out",
    )?;
    prints(
        &site,
        "volar vms exec web -- sh -c 'echo out; echo err >&2' 2>&1 >/dev/null",
        "err",
    )?;
    exits(&site, "volar vms exec web -- sh -c 'exit 7'", 7)?;
    exits(&site, "volar vms exec web -- sh -c 'kill -9 $$'", 137)?;
    let text = exits(&site, "volar vms exec web -- no-such-program", 127)?;
    ensure!(text.contains("no-such-program"), "{text}");
    exits(&site, "volar vms exec nothing -- true", 125)?;
    // A signal reaches the program, and its answer to it comes back.
    prints(
        &site,
        "timeout --signal=INT 5 volar vms exec web -- sh -c 'trap \"echo caught; exit 0\" INT; while :; do sleep 0.1; done'; true",
        "caught",
    )?;
    // A terminal is one, and as large as the caller's.
    let tty = site.host.sh(
        "script -qec 'stty rows 33 cols 99; volar vms exec -it web -- sh -c \"stty size; test -t 0 && echo is-a-terminal\"' /dev/null",
    )?;
    ensure!(
        tty.contains("33 99") && tty.contains("is-a-terminal"),
        "{tty}"
    );
    // What is detached goes on without its caller.
    site.host
        .sh("volar vms exec -d web -- sh -c 'sleep 1; echo done > /www/detached'")?;
    eventually("the detached program has ended", BOOT, || {
        let output = site
            .host
            .try_sh("volar vms exec web -- cat /www/detached")?;
        Ok((String::from_utf8_lossy(&output.stdout).trim() == "done").then_some(()))
    })?;
    // A terminal that is closed leaves nothing behind.
    let sleepers = || -> Result<bool> {
        let processes = host.sh("volar vms exec web -- ps -o args")?;
        Ok(processes.contains("sleep 4321"))
    };
    host.sh(
        "systemd-run --unit terminal script -qec 'volar vms exec -it web -- sh -c \"sleep 4321 & sleep 4321\"' /dev/null",
    )?;
    eventually("the programs of the terminal run", BOOT, || {
        Ok(sleepers()?.then_some(()))
    })?;
    host.sh("systemctl kill --signal=KILL terminal")?;
    eventually("nothing is left of the closed terminal", BOOT, || {
        Ok((!sleepers()?).then_some(()))
    })
}

#[test]
fn files_go_in_and_out_as_they_are() -> Result<()> {
    let site = Site::new()?;
    site.create("web", "hello")?;
    let host = &site.host;
    host.sh(
        "mkdir -p /root/tree/empty /root/tree/deep/er && cd /root/tree && echo one > one && echo two > 'deep/er/two words' && \
         ln -s ../one deep/link && ln one deep/hard && chmod 750 deep && chmod 604 one && touch -d @1000000000 one && \
         head -c 3000000 /dev/urandom > large",
    )?;
    host.sh("volar vms cp /root/tree web:/www/tree")?;
    host.sh("volar vms cp web:/www/tree /root/back")?;
    host.sh("diff -r /root/tree /root/back && readlink /root/back/deep/link")?;
    prints(
        &site,
        "stat -c '%a %Y' /root/back/one && stat -c %a /root/back/deep",
        "604 1000000000\n750",
    )?;
    prints(&site, "stat -c '%h' /root/back/one", "2")?;
    // As `docker cp` names it.
    host.sh("volar vms cp /root/tree/one web:/www/copied && volar vms cp web:/www/copied /root/")?;
    prints(&site, "cat /root/copied", "one")?;
    host.sh("volar vms cp /root/tree/. web:/www && volar vms exec web -- test -f /www/one")?;
    // As streams.
    prints(
        &site,
        "volar vms cp web:/www/tree - | tar t | sort | head -1",
        "tree/",
    )?;
    host.sh("tar -C /root -c tree/one | volar vms cp - web:/tmp && volar vms exec web -- test -f /tmp/tree/one")?;
    let refused = site.refused("volar vms cp web:/no/such/file /root/")?;
    ensure!(refused.contains("/no/such/file"), "{refused}");
    let refused = site.refused("volar vms cp /root/no-such-file web:/tmp")?;
    ensure!(refused.contains("no-such-file"), "{refused}");
    Ok(())
}

#[test]
fn logs_console_and_connections_are_the_guests() -> Result<()> {
    let site = Site::new()?;
    let host = &site.host;
    site.create("web", "hello")?;
    eventually("the workload's words are in its log", BOOT, || {
        let logs = host.sh("volar vms logs web")?;
        ensure!(
            !logs.contains("Linux version"),
            "the console is not asked for: {logs}"
        );
        let has_both =
            logs.contains("hello from the workload") && logs.contains("a word on standard error");
        Ok(has_both.then_some(()))
    })?;
    let lines = host.sh("volar vms logs web --output json")?;
    for line in lines.lines() {
        let line: serde_json::Value = serde_json::from_str(line)?;
        ensure!(
            line["message"].is_string() && line["time"].is_string(),
            "{line}"
        );
    }
    let follow = host.sh(
        "(sleep 1; volar vms exec web -- sh -c 'echo followed > /proc/1/fd/1; echo to the console > /dev/console') & \
         timeout 8 volar vms logs -f --since 1m --console web; wait; true",
    )?;
    ensure!(follow.contains("to the console"), "{follow}");
    let console = host.sh("volar vms console web --no-follow --scrollback 200000")?;
    ensure!(
        console.contains("to the console"),
        "the console has no scrollback: {console}"
    );

    host.sh("systemd-run --unit forward volar vms forward web 18080:80 127.0.0.1:18081:80")?;
    for port in [18080, 18081] {
        site.expect_page(&format!("http://127.0.0.1:{port}/"), "web")?;
    }
    host.sh("systemctl stop forward")?;

    let stats = host.sh("volar vms stats web --no-stream --output json")?;
    let stats: serde_json::Value = serde_json::from_str(&stats)?;
    let text = stats.to_string();
    for field in ["memory_total_kib", "cpu_ns", "memory_bytes"] {
        ensure!(text.contains(field), "no {field} in {text}");
    }
    host.sh("volar vms wait web --for ready --timeout 10s")?;
    exits(&site, "volar vms wait web --for stopped --timeout 1s", 6)?;
    host.sh(
        "timeout 60 volar vms events web --output json > /root/events & events=$!; sleep 1; volar vms stop web; \
         volar vms wait web --for stopped --timeout 30s; volar vms start web; sleep 1; kill $events; true",
    )?;
    let events = host.sh("cat /root/events")?;
    for event in ["stopping", "stopped", "ready"] {
        ensure!(events.contains(event), "no {event} in {events}");
    }
    Ok(())
}

#[test]
fn fifty_programs_and_a_large_copy_at_once_leave_nothing_behind() -> Result<()> {
    let site = Site::new()?;
    let host = &site.host;
    host.sh("volar vms create web --plugin hello --cpu 1 --memory 512")?;
    let left = || -> Result<(u32, u32, String)> {
        // A first session makes what stays; then nothing may be added.
        host.sh("volar vms exec web -- true")?;
        let own = host.sh("ls /proc/$(systemctl show -P MainPID volant-vm@web)/fd | wc -l")?;
        let agents = host.sh("volar vms exec web -- sh -c 'ls /proc/1/fd | wc -l'")?;
        // The kernel's own threads come and go.
        let processes = host
            .sh("volar vms exec web -- ps -o args | grep -v -e '^\\[' -e '^{' -e 'ps -o' | sort")?;
        Ok((own.trim().parse()?, agents.trim().parse()?, processes))
    };
    let before = left()?;
    for round in 0..2 {
        host.sh(&format!(
            "head -c 100000000 /dev/zero > /root/large; volar vms cp /root/large web:/tmp/ & copy=$!; \
             for i in $(seq 50); do (test $(volar vms exec web -- echo $i) = $i || echo \"$i {round}\" >> /root/wrong) & all=\"$all $!\"; done; \
             wait $all; wait $copy && test ! -e /root/wrong && volar vms exec web -- rm /tmp/large"
        ))?;
    }
    eventually(
        "nothing is left of the sessions",
        Duration::from_secs(30),
        || {
            let now = left()?;
            Ok((now.0 <= before.0 && now.1 <= before.1 && now.2 == before.2).then_some(()))
        },
    )
    .map_err(|error| error.context(format!("before: {before:?}, now: {:?}", left())))
}
