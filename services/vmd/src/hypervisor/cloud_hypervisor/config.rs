//! What Cloud Hypervisor is told of a machine, in the words of its OpenAPI document. Pure.

use std::{os::fd::RawFd, path::Path};

use serde_json::{Value, json};
use volant_spec::Resources;

use crate::hypervisor::ROOTFS_SERIAL;

/// What `vm.create` tells. Descriptors have the numbers that they have in Cloud Hypervisor.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    pub uuid: &'a str,
    pub resources: Resources,
    /// Up to what it can be resized.
    pub room: Resources,
    pub kernel: RawFd,
    pub initramfs: Option<RawFd>,
    pub rootfs: Option<RawFd>,
    /// Serial number, descriptor, and whether it is read only.
    pub disks: Vec<(&'a str, RawFd, bool)>,
    /// Tag, and the socket of its virtiofsd.
    pub shares: Vec<(&'a str, &'a Path)>,
    /// The host's PCI devices, by address.
    pub devices: &'a [String],
    pub serial: &'a Path,
    pub cid: u32,
    pub vsock: &'a Path,
}

/// Where the kernel shows the host's devices.
const PCI_DEVICES: &str = "/sys/bus/pci/devices";

/// Notices and above go to the console, as with every VMM.
const KERNEL_COMMAND_LINE: &str = "console=ttyS0 loglevel=6 panic=-1 reboot=t";

/// The body of `vm.create`.
pub(super) fn machine(plan: &Plan) -> Value {
    let more = plan.room.memory_mb.saturating_sub(plan.resources.memory_mb);
    let hotplug = (more > 0).then(|| bytes(more));
    let mut machine = json!({
        "cpus": { "boot_vcpus": plan.resources.cpu_cores, "max_vcpus": plan.room.cpu_cores },
        "memory": {
            "size": bytes(plan.resources.memory_mb),
            "shared": true,
            "hotplug_method": "VirtioMem",
            "hotplug_size": hotplug,
        },
        "payload": {
            "kernel": format!("/proc/self/fd/{}", plan.kernel),
            "cmdline": KERNEL_COMMAND_LINE,
        },
        "platform": { "uuid": plan.uuid },
        "serial": { "mode": "Socket", "socket": plan.serial },
        "console": { "mode": "Off" },
        "vsock": { "cid": plan.cid, "socket": plan.vsock },
        "rng": { "src": "/dev/urandom" },
    });
    if let Some(initramfs) = plan.initramfs {
        machine["payload"]["initramfs"] = json!(format!("/proc/self/fd/{initramfs}"));
    }
    let root = plan.rootfs.map(|rootfs| (ROOTFS_SERIAL, rootfs, true));
    let disks: Vec<Value> = root.iter().chain(&plan.disks).map(disk).collect();
    if !disks.is_empty() {
        machine["disks"] = Value::Array(disks);
    }
    if !plan.shares.is_empty() {
        let share = |(tag, socket): &(&str, &Path)| json!({ "id": tag, "tag": tag, "socket": socket, "num_queues": 1, "queue_size": 512 });
        machine["fs"] = plan.shares.iter().map(share).collect();
    }
    if !plan.devices.is_empty() {
        let device = |(number, address): (usize, &String)| json!({ "id": format!("pci-{number}"), "path": format!("{PCI_DEVICES}/{address}") });
        machine["devices"] = plan.devices.iter().enumerate().map(device).collect();
    }
    machine
}

/// How much of what it boots with a machine can grow to.
const GROWTH: u32 = 4;
/// Possible CPUs cost a guest some memory each, though it never gets them.
const MOST_CPUS: u32 = 32;
/// What is plugged and unplugged at once: a block of virtio-mem.
const BLOCK_MB: u32 = 2;
/// The kernel sets up memory that is plugged in sections.
const SECTION_MB: u32 = 128;

/// Up to what a machine that boots with `resources` can be resized: four times as much, as far as a VM may have it.
pub(super) fn room(resources: Resources) -> Resources {
    let cpus = (resources.cpu_cores * GROWTH).min(MOST_CPUS);
    let memory = u64::from(resources.memory_mb) * u64::from(GROWTH);
    let more = memory - u64::from(resources.memory_mb);
    // The room is whole sections beyond what is there at boot.
    let more = more.next_multiple_of(SECTION_MB.into());
    let memory = u32::try_from(u64::from(resources.memory_mb) + more);
    let room = memory
        .ok()
        .map(|memory| Resources::new(cpus.max(resources.cpu_cores), memory));
    room.and_then(Result::ok).unwrap_or(resources)
}

/// The body of `vm.resize`.
///
/// # Errors
/// The machine cannot become so, and why.
pub(super) fn resize(
    boot: Resources,
    from: Resources,
    to: Resources,
    room: Resources,
) -> Result<Value, String> {
    if to.cpu_cores > room.cpu_cores || to.memory_mb > room.memory_mb {
        return Err(format!(
            "this machine was started with room for {} CPUs and {} MiB",
            room.cpu_cores, room.memory_mb
        ));
    }
    if to.memory_mb < boot.memory_mb {
        return Err(format!(
            "this machine was started with {} MiB, and what it was started with cannot be taken from it",
            boot.memory_mb
        ));
    }
    let mut wanted = json!({});
    if to.cpu_cores != from.cpu_cores {
        wanted["desired_vcpus"] = json!(to.cpu_cores);
    }
    if to.memory_mb != from.memory_mb {
        if !to
            .memory_mb
            .abs_diff(from.memory_mb)
            .is_multiple_of(BLOCK_MB)
        {
            return Err(format!(
                "the memory of a running machine changes by multiples of {BLOCK_MB} MiB"
            ));
        }
        wanted["desired_ram"] = json!(bytes(to.memory_mb));
    }
    Ok(wanted)
}

fn bytes(mib: u32) -> u64 {
    u64::from(mib) << 20
}

/// Said to be raw, never guessed: what the image begins with is not ours. It is locked as it is used: alone where it is
/// written, with others where it is read.
fn disk((serial, file, is_read_only): &(&str, RawFd, bool)) -> Value {
    json!({
        "id": serial,
        "path": format!("/proc/self/fd/{file}"),
        "serial": serial,
        "readonly": is_read_only,
        "image_type": "Raw",
    })
}

/// The body of `vm.add-net`, whose tap goes along as a descriptor: one queue in, one out.
pub(super) fn network_card(mac: &str) -> Value {
    json!({ "id": "net", "mac": mac, "num_queues": 2, "queue_size": 256 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_has_room_to_grow_in_whole_sections() {
        let of = |cpus, memory| Resources::new(cpus, memory).unwrap();
        for (boots, expected) in [
            (of(1, 64), of(4, 320)),
            (of(2, 512), of(8, 2048)),
            (of(1, 100), of(4, 484)),
            (of(20, 256), of(32, 1024)),
            (of(64, 256), of(64, 1024)),
            (of(1, 4 << 20), of(1, 4 << 20)),
        ] {
            assert_eq!(room(boots), expected, "{boots:?}");
        }
    }

    #[test]
    fn a_resize_says_what_changes_and_refuses_what_cannot_be() {
        let of = |cpus, memory| Resources::new(cpus, memory).unwrap();
        let (boot, from) = (of(2, 512), of(2, 768));
        let ask = |to| resize(boot, from, to, room(boot));
        assert_eq!(ask(of(4, 768)), Ok(json!({ "desired_vcpus": 4 })));
        assert_eq!(ask(of(2, 512)), Ok(json!({ "desired_ram": 512u64 << 20 })));
        for (to, expected) in [
            (of(9, 768), "room for 8 CPUs and 2048 MiB"),
            (of(2, 2050), "room for 8 CPUs and 2048 MiB"),
            (of(2, 510), "started with 512 MiB"),
            (of(2, 769), "multiples of 2 MiB"),
        ] {
            let refused = ask(to).unwrap_err();
            assert!(refused.contains(expected), "{refused}");
        }
    }

    #[test]
    fn a_machine_is_told_in_the_words_of_the_api() {
        let mut plan = Plan {
            uuid: "0190b6a0-0000-7000-8000-000000000001",
            resources: Resources::new(2, 512).unwrap(),
            room: Resources::new(8, 2048).unwrap(),
            kernel: 10,
            initramfs: Some(11),
            rootfs: None,
            disks: Vec::new(),
            shares: Vec::new(),
            devices: &[],
            serial: Path::new("/run/web/serial.sock"),
            cid: 7,
            vsock: Path::new("/run/web/vsock"),
        };
        let told = machine(&plan);
        for (pointer, expected) in [
            ("/cpus/boot_vcpus", json!(2)),
            ("/cpus/max_vcpus", json!(8)),
            ("/memory/size", json!(536_870_912)),
            ("/memory/hotplug_size", json!(1_610_612_736)),
            ("/payload/kernel", json!("/proc/self/fd/10")),
            ("/payload/initramfs", json!("/proc/self/fd/11")),
            ("/serial/socket", json!("/run/web/serial.sock")),
            ("/vsock/cid", json!(7)),
            ("/vsock/socket", json!("/run/web/vsock")),
            ("/console/mode", json!("Off")),
        ] {
            assert_eq!(told.pointer(pointer), Some(&expected), "{pointer}");
        }
        assert!(
            told.pointer("/net").is_none(),
            "a tap goes by vm.add-net alone"
        );
        assert!(told.pointer("/disks").is_none() && told.pointer("/fs").is_none());
        assert!(told.pointer("/devices").is_none());

        plan.rootfs = Some(12);
        plan.disks = vec![("vol-0", 13, false), ("img-1", 14, true)];
        plan.shares = vec![("share-2", Path::new("/run/web/share-2.sock"))];
        plan.initramfs = None;
        let devices = ["0000:01:00.0".to_owned(), "0000:02:00.0".to_owned()];
        plan.devices = &devices;
        let told = machine(&plan);
        for (pointer, expected) in [
            ("/disks/0/path", json!("/proc/self/fd/12")),
            ("/disks/0/serial", json!("rootfs")),
            ("/disks/0/readonly", json!(true)),
            ("/disks/0/image_type", json!("Raw")),
            ("/disks/1/path", json!("/proc/self/fd/13")),
            ("/disks/1/serial", json!("vol-0")),
            ("/disks/1/readonly", json!(false)),
            ("/disks/2/readonly", json!(true)),
            ("/devices/0/id", json!("pci-0")),
            (
                "/devices/1/path",
                json!("/sys/bus/pci/devices/0000:02:00.0"),
            ),
            ("/fs/0/tag", json!("share-2")),
            ("/fs/0/socket", json!("/run/web/share-2.sock")),
        ] {
            assert_eq!(told.pointer(pointer), Some(&expected), "{pointer}");
        }
        assert!(told.pointer("/payload/initramfs").is_none());
    }
}
