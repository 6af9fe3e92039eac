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
    pub kernel: RawFd,
    pub initramfs: Option<RawFd>,
    pub rootfs: Option<RawFd>,
    /// Serial number, descriptor, and whether it is read only.
    pub disks: Vec<(&'a str, RawFd, bool)>,
    /// Tag, and the socket of its virtiofsd.
    pub shares: Vec<(&'a str, &'a Path)>,
    pub serial: &'a Path,
    pub cid: u32,
    pub vsock: &'a Path,
}

/// Notices and above go to the console, as with every VMM.
const KERNEL_COMMAND_LINE: &str = "console=ttyS0 loglevel=6 panic=-1 reboot=t";

/// The body of `vm.create`.
pub(super) fn machine(plan: &Plan) -> Value {
    let mut machine = json!({
        "cpus": { "boot_vcpus": plan.resources.cpu_cores, "max_vcpus": plan.resources.cpu_cores },
        "memory": { "size": u64::from(plan.resources.memory_mb) << 20, "shared": true },
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
        let share = |(tag, socket): &(&str, &Path)| {
            json!({ "id": tag, "tag": tag, "socket": socket, "num_queues": 1, "queue_size": 512 })
        };
        machine["fs"] = plan.shares.iter().map(share).collect();
    }
    machine
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
    fn a_machine_is_told_in_the_words_of_the_api() {
        let mut plan = Plan {
            uuid: "0190b6a0-0000-7000-8000-000000000001",
            resources: Resources::new(2, 512).unwrap(),
            kernel: 10,
            initramfs: Some(11),
            rootfs: None,
            disks: Vec::new(),
            shares: Vec::new(),
            serial: Path::new("/run/web/serial.sock"),
            cid: 7,
            vsock: Path::new("/run/web/vsock"),
        };
        let told = machine(&plan);
        for (pointer, expected) in [
            ("/cpus/boot_vcpus", json!(2)),
            ("/cpus/max_vcpus", json!(2)),
            ("/memory/size", json!(536_870_912)),
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

        plan.rootfs = Some(12);
        plan.disks = vec![("vol-0", 13, false), ("img-1", 14, true)];
        plan.shares = vec![("share-2", Path::new("/run/web/share-2.sock"))];
        plan.initramfs = None;
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
            ("/fs/0/tag", json!("share-2")),
            ("/fs/0/socket", json!("/run/web/share-2.sock")),
        ] {
            assert_eq!(told.pointer(pointer), Some(&expected), "{pointer}");
        }
        assert!(told.pointer("/payload/initramfs").is_none());
    }
}
