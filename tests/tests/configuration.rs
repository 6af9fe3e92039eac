//! A VM's own configuration: its versions, its limits, its secrets, and what an operator says beside them.

use anyhow::{Result, ensure};
use serde_json::Value;
use volant_tests::{BOOT, Site, eventually};

fn json(text: &str) -> Result<Value> {
    Ok(serde_json::from_str(text)?)
}

#[test]
fn configurations_have_versions_that_can_be_set_and_taken_back() -> Result<()> {
    let site = Site::new()?;
    let host = &site.host;
    site.create("web", "hello")?;
    let first = json(&host.sh("volar vms config get web --output json")?)?;
    ensure!(
        first["version"] == 1 && first["effective"]["memory_mb"] == 128,
        "{first}"
    );
    host.sh("volar vms config set web env.GREETING=hi limits.cpu_quota_percent=50")?;
    let vm = site.vm("web")?;
    ensure!(
        vm["config_version"] == 2
            && vm["running_config_version"] == 1
            && vm["restart_required"] == true,
        "{vm}"
    );
    // Somebody else was quicker.
    let refused = site.refused("volar vms config set web --if-version 1 env.GREETING=no")?;
    ensure!(refused.contains('2'), "{refused}");
    let refused = site.refused("volar vms config set web memory_mb=1")?;
    ensure!(refused.contains("memory"), "{refused}");
    let refused = site.refused("volar vms config set web no_such_field=1")?;
    ensure!(refused.contains("no_such_field"), "{refused}");
    host.sh("volar vms restart web")?;
    site.page(&format!("http://{}/", site.address("web")?))?;
    let said = host.sh(
        "volar vms exec web -- sh -c 'tr \"\\0\" \"\\n\" < /proc/$(pidof httpd | sed s/.*\\ //)/environ'",
    )?;
    ensure!(said.contains("GREETING=hi"), "{said}");
    let quota = host.sh("systemctl show -P CPUQuotaPerSecUSec volant-vm@web")?;
    ensure!(quota.trim() == "500ms", "{quota}");
    host.sh("volar vms config rollback web 1")?;
    let history = json(&host.sh("volar vms config history web --output json")?)?;
    let versions: Vec<_> = history
        .as_array()
        .into_iter()
        .flatten()
        .map(|one| one["version"].clone())
        .collect();
    ensure!(versions == [3, 2, 1], "{history}");
    ensure!(history[0]["config"] == history[2]["config"], "{history}");
    Ok(())
}

#[test]
fn scaling_waits_for_a_restart_where_it_cannot_be_done_live() -> Result<()> {
    let site = Site::new()?;
    let host = &site.host;
    site.create("web", "hello")?;
    let said = host.sh("volar vms scale web --memory 192")?;
    ensure!(said.contains("restart"), "{said}");
    let memory = "volar vms exec web -- sed -n 's/MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo";
    let before: u64 = host.sh(memory)?.trim().parse()?;
    ensure!(before < 128 * 1024, "{before} KiB");
    host.sh("volar vms scale web --memory 256 --cpu 2 --restart")?;
    let after: u64 = host.sh(memory)?.trim().parse()?;
    ensure!(after > 200 * 1024 && after < 256 * 1024, "{after} KiB");
    let cpus = host.sh("volar vms exec web -- grep -c ^processor /proc/cpuinfo")?;
    ensure!(cpus.trim() == "2", "{cpus} CPUs");
    ensure!(
        site.vm("web")?["restart_required"] == false,
        "{}",
        site.vm("web")?
    );
    Ok(())
}

#[test]
fn memory_is_limited_and_the_operators_word_is_the_last() -> Result<()> {
    let site = Site::new()?;
    let host = &site.host;
    site.create("web", "hello")?;
    let limit = |vm: &str| -> Result<String> {
        Ok(host
            .sh(&format!("systemctl show -P MemoryMax volant-vm@{vm}"))?
            .trim()
            .to_owned())
    };
    eventually("the limit is set", BOOT, || {
        Ok((limit("web")? != "infinity").then_some(()))
    })?;
    let bytes: u64 = limit("web")?.parse()?;
    ensure!(bytes > 128 << 20 && bytes < 1 << 30, "{bytes}");
    host.sh(
        "mkdir -p /etc/systemd/system/volant-vm@own.service.d && \
         printf '[Service]\\nMemoryMax=900M\\n' > /etc/systemd/system/volant-vm@own.service.d/10-own.conf && systemctl daemon-reload",
    )?;
    site.create("own", "hello")?;
    site.page(&format!("http://{}/", site.address("own")?))?;
    ensure!(
        limit("own")? == (900_u64 << 20).to_string(),
        "{}",
        limit("own")?
    );
    // Deleted, nothing of it stays in the way of another one of that name.
    host.sh("volar vms delete web")?;
    let left = host.sh("ls -d /run/systemd/system.control/volant-vm@web* 2>/dev/null || true")?;
    ensure!(left.is_empty(), "{left}");
    Ok(())
}

#[test]
fn secrets_reach_the_workload_and_nobody_else() -> Result<()> {
    const PLANTED: [&str; 3] = [
        "kept-by-volant-4711",
        "given-by-systemd-4712",
        "put-later-4713",
    ];
    let site = Site::new()?;
    let host = &site.host;
    host.sh(&format!(
        "printf {} > /root/secret && printf {} > /root/operators && mkdir -p /etc/systemd/system/volant-vm@web.service.d && \
         printf '[Service]\\nLoadCredential=operators:/root/operators\\n' > /etc/systemd/system/volant-vm@web.service.d/secret.conf && \
         systemctl daemon-reload && \
         volar vms create web --plugin hello --memory 128 --secret token=/root/secret --secret-env TOKEN=token",
        PLANTED[0], PLANTED[1]
    ))?;
    // The plugin makes its own commands when it starts.
    site.page(&format!("http://{}/", site.address("web")?))?;
    let inside = host.sh("volar vms exec web -- sh -c 'cat /run/secrets/token; echo; cat /run/secrets/operators; echo; grep /run/secrets /proc/mounts'")?;
    ensure!(
        inside.contains(PLANTED[0]) && inside.contains(PLANTED[1]) && inside.contains("tmpfs"),
        "{inside}"
    );
    let env = host.sh("volar vms exec web -- sh -c 'tr \"\\0\" \"\\n\" < /proc/$(pidof httpd | sed s/.*\\ //)/environ; env'")?;
    ensure!(
        env.matches("TOKEN=kept-by-volant-4711").count() == 1,
        "the workload alone has it: {env}"
    );
    let modes = host.sh("volar vms exec web -- stat -c '%a' /run/secrets/token")?;
    ensure!(modes.trim() == "400", "{modes}");
    host.sh(&format!(
        "printf {} | volar vms secret set web later && volar vms restart web",
        PLANTED[2]
    ))?;
    let later = host.sh("volar vms exec web -- cat /run/secrets/later")?;
    ensure!(later.trim() == PLANTED[2], "{later}");
    let listed = host.sh("volar vms secret list web")?;
    ensure!(
        listed.contains("later") && listed.contains("token") && !listed.contains("4711"),
        "{listed}"
    );
    for planted in PLANTED {
        let found = host.sh(&format!(
            "journalctl --no-pager -o export | grep -c {planted} || true; \
             for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline; tr '\\0' ' ' < $p/environ; done 2>/dev/null | grep -v 'sh -c' | grep -c {planted} || true"
        ))?;
        ensure!(
            found.split_whitespace().all(|count| count == "0"),
            "{planted} was found: {found}"
        );
    }
    host.sh("volar vms delete web")?;
    let kept =
        host.sh("grep -rl kept-by-volant /var/lib/volant /run/volant 2>/dev/null || true")?;
    ensure!(kept.is_empty(), "a secret outlived its VM: {kept}");
    Ok(())
}
