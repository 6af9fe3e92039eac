//! PCI devices of the host. The machines that run this have none to lend: what they refuse is tried as it is; what lends and gives
//! back is the real deviced on a tree of files in the place of `/sys` and `/dev`, whose device `vfio-pci` has already, as a file
//! takes no driver from anybody. QEMU is kept from opening the device, which is not there, and has all the rest: a PCI bus.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use volant_tests::{BOOT, Site, eventually};

const GPU: &str = "0000:01:00.0";
const NODE: &str = "/srv/host/dev/vfio/1";
const LEDGER: &str = "/run/volant/devices/gpu.json";

#[test]
fn a_host_without_an_iommu_shows_its_devices_and_lends_none() -> Result<()> {
    let site = Site::new()?;
    let host = &site.host;
    let listed = host.sh("volar devices list")?;
    let there = host.sh("ls /sys/bus/pci/devices 2>/dev/null || true")?;
    for address in there.split_whitespace() {
        ensure!(listed.contains(address), "{address} is not in: {listed}");
        host.sh(&format!("volar devices get {address}"))?;
    }
    ensure!(
        there.is_empty() == listed.contains("no PCI devices"),
        "{listed}"
    );
    let refused = site.refused(&format!("volar devices validate {GPU}"))?;
    ensure!(refused.contains("no IOMMU"), "{refused}");

    let before = site.traces()?;
    let create = format!("volar vms create gpu --plugin hello --memory 128 --device {GPU}");
    let refused = site.refused(&create)?;
    ensure!(
        refused.contains(&format!("VM gpu cannot have the devices {GPU}"))
            && refused.contains("no IOMMU")
            && refused.contains(&format!("no PCI device {GPU}")),
        "{refused}"
    );
    ensure!(
        site.traces()? == before,
        "nothing is left of what was refused"
    );
    host.sh("volar vms create web --plugin hello --memory 128 --no-start")?;
    let set = format!("volar vms config set web 'devices.pci=[\"{GPU}\"]'");
    let refused = site.refused(&set)?;
    ensure!(refused.contains("no IOMMU"), "{refused}");
    ensure!(site.vm("web")?["config_version"] == 1);
    Ok(())
}

#[test]
fn what_a_vm_is_lent_is_given_back_however_it_ends() -> Result<()> {
    let site = Site::new()?;
    let host = &site.host;
    a_host_with_a_device(&site)?;
    let shown = || -> Result<Value> {
        let text = host.sh(&format!("volar devices get {GPU} --output json"))?;
        Ok(serde_json::from_str::<Value>(&text)?[0]["vm"].clone())
    };
    let owner = || host.sh(&format!("stat --format %u:%a {NODE}"));
    ensure!(shown()?.is_null());

    host.sh(&format!(
        "volar vms create gpu --plugin hello --cpu 1 --memory 128 --device {GPU} --no-start"
    ))?;
    for (ends, how) in [
        ("volar vms stop gpu", "a stop"),
        (
            "systemctl kill --signal KILL --kill-whom all volant-vm@gpu",
            "a crash",
        ),
        ("systemctl stop volant-vm-devices@gpu", "its devices' end"),
    ] {
        // Else systemd starts what was killed again, and the devices with it.
        host.sh(
            "mkdir -p /run/systemd/system/volant-vm@gpu.service.d && \
             printf '[Service]\\nRestart=no\\n' > /run/systemd/system/volant-vm@gpu.service.d/once.conf && \
             systemctl daemon-reload && volar vms start gpu",
        )
        .with_context(|| site.journal("gpu").unwrap_or_default())?;
        let uid = host.sh("stat --format %u /proc/$(systemctl show -P MainPID volant-vm@gpu)")?;
        ensure!(
            owner()?.trim() == format!("{}:600", uid.trim()),
            "the VM's user has the node: {}",
            owner()?
        );
        ensure!(shown()? == "gpu", "{how}");
        let refused = site.refused(&format!(
            "volar vms create other --plugin hello --device {GPU}"
        ))?;
        ensure!(refused.contains("is lent to VM 'gpu'"), "{refused}");
        if how == "a stop" {
            let said = host.sh("volar vms exec gpu -- ls /sys/bus/pci/devices")?;
            ensure!(
                said.contains("0000:00:00.0"),
                "the guest has a PCI bus: {said}"
            );
        }
        host.sh(ends)?;
        eventually(
            &format!("the device is given back after {how}"),
            BOOT,
            || {
                let is_forgotten = !host.try_sh(&format!("test -e {LEDGER}"))?.status.success();
                Ok((is_forgotten && owner()?.trim() == "0:600").then_some(()))
            },
        )?;
        ensure!(shown()?.is_null(), "{how}");
        let left = host.sh(&format!(
            "cat /srv/host/sys/bus/pci/devices/{GPU}/driver_override"
        ))?;
        ensure!(!left.starts_with("vfio-pci"), "{how}: {left}");
        host.sh("systemctl stop volant-vm@gpu; systemctl reset-failed volant-vm@gpu || true")?;
    }
    Ok(())
}

#[test]
fn a_start_that_gets_no_device_says_why_and_is_not_tried_again() -> Result<()> {
    let site = Site::new()?;
    let host = &site.host;
    a_host_with_a_device(&site)?;
    host.sh(&format!(
        "volar vms create gpu --plugin hello --memory 128 --device {GPU} --no-start"
    ))?;
    // An administrator thinks better of it.
    host.sh("sed -i '/^pci = /d' /etc/volant/volant.toml; systemctl stop volant-deviced")?;
    let refused = site.refused("volar vms start gpu")?;
    ensure!(
        refused.contains(&format!(
            "does not get them: VM 'gpu' cannot have these devices: {GPU}"
        )) && refused.contains("is not for VMs on this host"),
        "{refused}"
    );
    let state = host.sh("systemctl show -P NRestarts -P ExecMainStatus volant-vm@gpu")?;
    ensure!(state.split_whitespace().eq(["0", "69"]), "{state}");
    ensure!(!host.try_sh(&format!("test -e {LEDGER}"))?.status.success());
    Ok(())
}

#[test]
fn who_is_not_root_lends_nothing_and_is_told_nothing() -> Result<()> {
    let site = Site::new()?;
    let host = &site.host;
    host.sh("useradd --groups volant member && volar vms create web --plugin hello --memory 128 --no-start")?;
    let ask = "busctl call com.volantvm.Registry1 /com/volantvm/Registry1 com.volantvm.Registry1.Manager VmDevices s web";
    let told = host.sh(ask)?;
    ensure!(told.starts_with("uasas "), "{told}");
    for user in ["member", "volant-vm", "volant-gateway"] {
        let refused = site.refused(&format!(
            "setpriv --reuid {user} --regid {user} --init-groups {ask}"
        ))?;
        ensure!(refused.contains("denied"), "{user}: {refused}");
    }
    for (user, unit, may) in [
        ("volant-vm", "volant-vm-devices@web.service", true),
        ("volant-vm", "volant-machine@web.service", false),
        ("volant-vm", "volant-registryd.service", false),
        ("volant-gateway", "volant-vm-devices@web.service", false),
        ("member", "volant-vm-devices@web.service", false),
    ] {
        let call = format!(
            "setpriv --reuid {user} --regid {user} --init-groups busctl call org.freedesktop.systemd1 \
             /org/freedesktop/systemd1 org.freedesktop.systemd1.Manager StopUnit ss {unit} replace 2>&1 || true"
        );
        let said = host.sh(&call)?;
        let is_refused = said.contains("denied") || said.contains("authentication");
        ensure!(is_refused != may, "{user} {unit}: {said}");
    }
    Ok(())
}

/// Has deviced see a host with an IOMMU and one device, and QEMU none.
fn a_host_with_a_device(site: &Site) -> Result<()> {
    let host = &site.host;
    host.sh(&format!(
        "sys=/srv/host/sys; device=$sys/bus/pci/devices/{GPU}; \
         mkdir -p $device $sys/bus/pci/drivers/vfio-pci $sys/kernel/iommu_groups/1 /srv/host/dev/vfio && \
         cd $device && echo 0x10de > vendor && echo 0x2204 > device && echo 0x030000 > class && \
         echo '(null)' > driver_override && echo -1 > numa_node && \
         ln -s $sys/bus/pci/drivers/vfio-pci driver && ln -s $sys/kernel/iommu_groups/1 iommu_group && \
         install -m 600 /dev/null {NODE} && printf '\\n[devices]\\npci = [\"10de:*\"]\\n' >> /etc/volant/volant.toml"
    ))?;
    let deviced = "/usr/lib/volant/deviced --sysfs /srv/host/sys --dev /srv/host/dev";
    for (unit, lines) in [
        (
            "volant-deviced",
            format!("ExecStart=\\nExecStart={deviced} serve"),
        ),
        (
            "volant-vm-devices@",
            format!(
                "ExecStart=\\nExecStart={deviced} lend %%i\\nExecStopPost=\\nExecStopPost={deviced} give-back %%i\\n\
                 ReadWritePaths=/srv/host"
            ),
        ),
    ] {
        host.sh(&format!(
            "mkdir -p /etc/systemd/system/{unit}.service.d && \
             printf '[Service]\\n{lines}\\n' > /etc/systemd/system/{unit}.service.d/fake.conf"
        ))?;
    }
    let qemu = "#!/bin/sh\\n\
        for word; do shift; case $word in vfio-pci,*) set -- \"$@\" virtio-rng-device;; *) set -- \"$@\" \"$word\";; esac; done\\n\
        exec /usr/bin/qemu-real \"$@\"\\n";
    host.sh(&format!(
        "cp /usr/bin/qemu-system-x86_64 /usr/bin/qemu-real && printf '{}' > /root/qemu && chmod 755 /root/qemu && \
         mkdir -p /etc/systemd/system/volant-vm@gpu.service.d && \
         printf '[Service]\\nBindReadOnlyPaths=/root/qemu:/usr/bin/qemu-system-x86_64\\n' \
         > /etc/systemd/system/volant-vm@gpu.service.d/qemu.conf && systemctl daemon-reload && \
         systemctl stop volant-deviced",
        qemu.replace("%", "%%")
    ))?;
    Ok(())
}
