//! A microVM is a systemd unit: what `systemctl`, `journalctl` and `busctl` say of it.

use anyhow::{Context, Result, ensure};
use volant_tests::{BOOT, Site, eventually};

#[test]
fn systemctl_starts_stops_and_describes_a_vm() -> Result<()> {
    let site = Site::new()?;
    let host = &site.host;
    host.sh("volar vms create web --plugin hello --cpu 1 --memory 128 --no-start")?;
    ensure!(site.vm("web")?["phase"] == "stopped");

    host.sh("systemctl start volant-vm@web")?;
    let vm = site.vm("web")?;
    ensure!(
        vm["phase"] == "running",
        "start returns when the guest is ready: {vm}"
    );
    let status = host.sh("systemctl status volant-vm@web --no-pager")?;
    ensure!(
        status.contains("Status: \"running") && status.contains("192.168.127.2"),
        "{status}"
    );
    let by_systemctl = host
        .sh("systemctl show volant-vm@web --property User,Slice,FragmentPath,Type,ControlGroup")?;
    host.sh("systemctl restart volant-vm@web && systemctl stop volant-vm@web")?;
    let stopped = site.journal("web")?;
    ensure!(
        host.sh("systemctl show volant-vm@web --property Result")?
            .trim()
            == "Result=success",
        "{stopped}"
    );
    ensure!(
        !host.sh("ip -o link")?.contains("vt"),
        "the tap is gone with the VM"
    );

    host.sh("volar vms start web")?;
    let by_volar = host
        .sh("systemctl show volant-vm@web --property User,Slice,FragmentPath,Type,ControlGroup")?;
    ensure!(by_systemctl == by_volar, "{by_systemctl} is not {by_volar}");
    Ok(())
}

#[test]
fn a_unit_ordered_after_a_vm_waits_until_its_guest_is_ready() -> Result<()> {
    let site = Site::new()?;
    let host = &site.host;
    host.sh("volar vms create db --plugin hello --cpu 1 --memory 128 --no-start")?;
    host.sh("volar vms create app --plugin hello --cpu 1 --memory 128 --no-start")?;
    host.sh("mkdir -p /etc/systemd/system/volant-vm@app.service.d && \
         printf '[Unit]\\nWants=volant-vm@db.service\\nAfter=volant-vm@db.service\\n' \
         > /etc/systemd/system/volant-vm@app.service.d/order.conf && systemctl daemon-reload && \
         systemctl start volant-vm@app")?;
    let stamp = |unit: &str, property: &str| -> Result<u64> {
        let text = host.sh(&format!(
            "systemctl show {unit} --property {property} --value"
        ))?;
        text.trim()
            .parse()
            .with_context(|| format!("{property} of {unit}: {text}"))
    };
    let db_ready = stamp("volant-vm@db", "ActiveEnterTimestampMonotonic")?;
    let app_begun = stamp("volant-vm@app", "ExecMainStartTimestampMonotonic")?;
    ensure!(
        db_ready > 0 && app_begun >= db_ready,
        "app began at {app_begun} µs, db was ready at {db_ready} µs"
    );
    Ok(())
}

#[test]
fn the_journal_has_the_console_and_the_workload_with_the_vms_name() -> Result<()> {
    let site = Site::new()?;
    site.create("web", "hello")?;
    site.page(&format!("http://{}/", site.address("web")?))?;
    let host = &site.host;
    let of_unit = host.sh("journalctl --no-pager --unit volant-vm@web --output cat")?;
    let of_field = host.sh("journalctl --no-pager VOLANT_VM=web --output cat")?;
    for text in [of_unit, of_field] {
        ensure!(
            text.contains("Linux version"),
            "the kernel's first line is there:\n{text}"
        );
        ensure!(
            text.contains("hello from the workload") && text.contains("a word on standard error"),
            "{text}"
        );
    }
    let stderr =
        host.sh("journalctl --no-pager VOLANT_VM=web VOLANT_STREAM=stderr --output cat")?;
    ensure!(stderr.trim() == "a word on standard error", "{stderr}");
    Ok(())
}

#[test]
fn the_bus_shows_what_there_is_and_its_properties_are_live() -> Result<()> {
    let site = Site::new()?;
    site.create("web", "hello")?;
    site.create("9lives", "hello")?;
    let host = &site.host;
    for (name, object, interface) in [
        (
            "com.volantvm.Ipam1",
            "/com/volantvm/Ipam1",
            "com.volantvm.Ipam1.Manager",
        ),
        (
            "com.volantvm.Registry1",
            "/com/volantvm/Registry1",
            "com.volantvm.Registry1.Manager",
        ),
        (
            "com.volantvm.vm.web",
            "/com/volantvm/Vm1",
            "com.volantvm.Vm1",
        ),
        (
            "com.volantvm.vm._9lives",
            "/com/volantvm/Vm1",
            "com.volantvm.Vm1",
        ),
    ] {
        let tree = host.sh(&format!("busctl tree --list {name}"))?;
        ensure!(tree.lines().any(|line| line == object), "{name}: {tree}");
        let shown = host.sh(&format!("busctl introspect {name} {object}"))?;
        ensure!(shown.contains(interface), "{name}: {shown}");
    }
    let property = |name: &str| {
        host.sh(&format!(
            "busctl get-property com.volantvm.vm.web /com/volantvm/Vm1 com.volantvm.Vm1 {name}"
        ))
    };
    ensure!(property("Phase")?.trim() == "s \"running\"");
    ensure!(property("Address")?.contains(&site.address("web")?));
    let count = "busctl get-property com.volantvm.Ipam1 /com/volantvm/Ipam1 com.volantvm.Ipam1.Manager LeaseCount";
    ensure!(host.sh(count)?.trim() == "u 2");
    host.sh("volar vms delete 9lives")?;
    ensure!(host.sh(count)?.trim() == "u 1", "the count follows");
    host.sh(
        "systemd-run --quiet --unit monitor --property StandardOutput=file:/tmp/signals busctl monitor --json=short \
         --match \"type='signal',interface='org.freedesktop.DBus.Properties',path='/com/volantvm/Vm1'\"",
    )?;
    eventually("busctl monitors the bus", BOOT, || {
        let attached = host.try_sh(
            "cat /tmp/signals | grep -q . || journalctl --unit monitor | grep -q Monitoring",
        )?;
        Ok(attached.status.success().then_some(()))
    })?;
    host.sh("systemctl stop volant-vm@web")?;
    eventually("a change of phase is signalled", BOOT, || {
        Ok(host
            .sh("cat /tmp/signals")?
            .contains("stopping")
            .then_some(()))
    })?;
    Ok(())
}

#[test]
fn idle_services_exit_and_come_back_with_the_next_call() -> Result<()> {
    let site = Site::new()?;
    let host = &site.host;
    for service in ["ipamd", "registryd", "gatewayd"] {
        host.sh(&format!(
            "mkdir -p /run/systemd/system/volant-{service}.service.d && \
             printf '[Service]\\nExecStart=\\nExecStart=/usr/lib/volant/{service} --idle-sec 1\\n' \
             > /run/systemd/system/volant-{service}.service.d/idle.conf"
        ))?;
    }
    host.sh("systemctl daemon-reload && systemctl try-restart volant-ipamd volant-registryd volant-gatewayd")?;
    site.create("web", "hello")?;
    for service in ["ipamd", "registryd", "gatewayd"] {
        site.wait_for_unit(&format!("volant-{service}.service"), "inactive")?;
    }
    let running = host.sh("ps -eo args | grep '^/usr/lib/volant' | sort")?;
    ensure!(
        running
            .lines()
            .all(|line| line.contains("/vmd ") || line.contains("vhost-device-vsock")),
        "an idle host runs nothing but its VMs:\n{running}"
    );
    ensure!(
        site.vm("web")?["phase"] == "running",
        "the next call is answered"
    );
    for service in ["ipamd", "registryd", "gatewayd"] {
        site.wait_for_unit(&format!("volant-{service}.service"), "inactive")?;
    }
    host.sh(
        "busctl call com.volantvm.Ipam1 /com/volantvm/Ipam1 com.volantvm.Ipam1.Manager ListLeases",
    )?;
    Ok(())
}
