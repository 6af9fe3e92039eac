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
    if let Some(rootfs) = plan.rootfs {
        // Said to be raw, never guessed: what the image begins with is not ours.
        machine["disks"] = json!([{
            "id": "rootfs",
            "path": format!("/proc/self/fd/{rootfs}"),
            "serial": ROOTFS_SERIAL,
            "readonly": true,
            "image_type": "Raw",
        }]);
    }
    machine
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
        assert!(told.pointer("/disks").is_none());

        plan.rootfs = Some(12);
        plan.initramfs = None;
        let told = machine(&plan);
        for (pointer, expected) in [
            ("/disks/0/path", json!("/proc/self/fd/12")),
            ("/disks/0/serial", json!("rootfs")),
            ("/disks/0/readonly", json!(true)),
            ("/disks/0/image_type", json!("Raw")),
        ] {
            assert_eq!(told.pointer(pointer), Some(&expected), "{pointer}");
        }
        assert!(told.pointer("/payload/initramfs").is_none());
    }
}
