//! QEMU's command line. Pure.

use std::os::fd::RawFd;

use volant_spec::{Name, Resources};

use crate::hypervisor::{ROOTFS_SERIAL, detect::Accel};

/// QEMU's own memory for translated code, in MiB. Its default grows with the host, and a guest can fill it.
const TRANSLATED_CODE: u32 = 256;

/// What the command line tells. Descriptors have the numbers that they have in QEMU.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    pub name: &'a Name,
    pub uuid: &'a str,
    pub resources: Resources,
    pub accel: Accel,
    /// The rate of the host's time stamp counter, which an emulated guest's follows.
    pub tsc_khz: Option<u64>,
    pub kernel: RawFd,
    pub initramfs: Option<RawFd>,
    pub rootfs: Option<RawFd>,
    pub disks: Vec<Disk<'a>>,
    pub shares: Vec<Share<'a>>,
    /// The host's, by address.
    pub devices: &'a [String],
    pub console: RawFd,
    pub monitor: RawFd,
    pub vsock: RawFd,
    pub nic: Option<(RawFd, &'a str)>,
}

/// A disk besides the root.
#[derive(Debug)]
pub(super) struct Disk<'a> {
    pub serial: &'a str,
    pub file: RawFd,
    pub is_read_only: bool,
}

/// A virtiofs, and the connection to its virtiofsd.
#[derive(Debug)]
pub(super) struct Share<'a> {
    pub tag: &'a str,
    pub connection: RawFd,
}

/// The guest kernel's command line.
///
/// `loglevel=6` keeps what a start says down to the notices: all of it costs a twentieth of an emulated start. The
/// machine has ACPI, so that the guest can be powered off and has a power button; but an ACPI machine without legacy
/// hardware has no second way to measure the time stamp counter when the first fails, as it does on a busy host, and
/// its kernel then hangs. `tsc_early_khz` tells it the rate.
///
/// Without devices of the host there is no PCI bus, and looking for one costs time.
fn kernel_command_line(tsc_khz: Option<u64>, has_pci: bool) -> String {
    let tsc = tsc_khz
        .map(|khz| format!(" tsc_early_khz={khz}"))
        .unwrap_or_default();
    let pci = if has_pci { "" } else { " pci=off" };
    format!("console=ttyS0 loglevel=6 panic=-1 reboot=t{pci}{tsc}")
}

/// The arguments that start this machine.
pub(super) fn arguments(plan: &Plan) -> Vec<String> {
    let memory = plan.resources.memory_mb;
    let (accel, cpu) = match plan.accel {
        Accel::Kvm => ("kvm".to_owned(), "host"),
        Accel::Tcg => (
            format!("tcg,thread=multi,tb-size={TRANSLATED_CODE}"),
            // A kernel copies and clears memory byte by byte where the processor says that it is fast at that, as this one
            // does. Emulated, it is eight times slower than by words.
            "max,la57=off,erms=off,fsrm=off",
        ),
    };
    let mut arguments: Vec<String> = Vec::new();
    let mut add = |option: &str, value: String| arguments.extend([option.to_owned(), value]);
    add("-name", format!("guest={},debug-threads=on", plan.name));
    add("-uuid", plan.uuid.to_owned());
    let has_pci = !plan.devices.is_empty();
    let bus = if has_pci { ",pcie=on" } else { "" };
    add(
        "-M",
        format!("microvm,x-option-roms=off,isa-serial=on,rtc=on,memory-backend=mem{bus}"),
    );
    add("-accel", accel);
    add("-cpu", cpu.to_owned());
    add("-smp", plan.resources.cpu_cores.to_string());
    add("-m", format!("{memory}M"));
    // vhost-device-vsock reads and writes the guest's memory.
    add(
        "-object",
        format!("memory-backend-memfd,id=mem,size={memory}M,share=on"),
    );
    add("-display", "none".to_owned());
    add(
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny".to_owned(),
    );
    add("-kernel", format!("/proc/self/fd/{}", plan.kernel));
    if let Some(initramfs) = plan.initramfs {
        add("-initrd", format!("/proc/self/fd/{initramfs}"));
    }
    add("-append", kernel_command_line(plan.tsc_khz, has_pci));
    add("-chardev", format!("socket,id=console,fd={}", plan.console));
    add("-serial", "chardev:console".to_owned());
    add("-chardev", format!("socket,id=monitor,fd={}", plan.monitor));
    add("-mon", "chardev=monitor,mode=control".to_owned());
    add("-chardev", format!("socket,id=vsock,fd={}", plan.vsock));
    add(
        "-device",
        "vhost-user-vsock-device,chardev=vsock".to_owned(),
    );
    add("-device", "virtio-rng-device".to_owned());
    if let Some(rootfs) = plan.rootfs {
        let disk = Disk {
            serial: ROOTFS_SERIAL,
            file: rootfs,
            is_read_only: true,
        };
        add("-blockdev", block_device(&disk));
        add("-device", virtio_disk(&disk));
    }
    for disk in &plan.disks {
        add("-blockdev", block_device(disk));
        add("-device", virtio_disk(disk));
    }
    for (number, share) in plan.shares.iter().enumerate() {
        let connection = share.connection;
        add(
            "-chardev",
            format!("socket,id=share{number},fd={connection}"),
        );
        add(
            "-device",
            format!(
                "vhost-user-fs-device,chardev=share{number},tag={},queue-size=512",
                share.tag
            ),
        );
    }
    if let Some((tap, mac)) = plan.nic {
        add("-netdev", format!("tap,id=net,fd={tap},vhost=off"));
        add(
            "-device",
            format!(
                "virtio-net-device,netdev=net,mac={}",
                mac.replace(',', ",,")
            ),
        );
    }
    for address in plan.devices {
        add("-device", format!("vfio-pci,host={address}"));
    }
    for flag in ["-nodefaults", "-no-user-config", "-no-reboot"] {
        arguments.push(flag.to_owned());
    }
    arguments
}

/// Said to be raw, never guessed: what the disk begins with is not ours. What is only read may be other machines' too, and has
/// no lock; what is written is locked, so that no second machine writes to it. What the guest discards is given back to the
/// host.
fn block_device(disk: &Disk) -> String {
    let (serial, file) = (disk.serial, disk.file);
    let access = if disk.is_read_only {
        "read-only=on,file.locking=off"
    } else {
        "read-only=off,discard=unmap,file.locking=on"
    };
    format!(
        "driver=raw,node-name={serial},{access},file.driver=file,file.filename=/proc/self/fd/{file},file.aio=threads"
    )
}

fn virtio_disk(disk: &Disk) -> String {
    let serial = disk.serial;
    format!("virtio-blk-device,drive={serial},serial={serial}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan<'a>(
        name: &'a Name,
        accel: Accel,
        tsc_khz: Option<u64>,
        nic: Option<(RawFd, &'a str)>,
    ) -> Plan<'a> {
        Plan {
            name,
            uuid: "0190b6a0-0000-7000-8000-000000000001",
            resources: Resources::new(2, 512).unwrap(),
            accel,
            tsc_khz,
            kernel: 10,
            initramfs: Some(11),
            rootfs: None,
            disks: Vec::new(),
            shares: Vec::new(),
            devices: &[],
            console: 12,
            monitor: 13,
            vsock: 14,
            nic,
        }
    }

    fn text(accel: Accel, tsc_khz: Option<u64>, nic: Option<(RawFd, &str)>) -> String {
        arguments(&plan(&"web".parse().unwrap(), accel, tsc_khz, nic)).join(" ")
    }

    #[test]
    fn the_command_line_follows_from_the_machine() {
        let emulated = text(Accel::Tcg, Some(2_445_404), Some((15, "52:54:00:00:00:02")));
        for part in [
            "-name guest=web,",
            "-accel tcg,thread=multi,",
            "-cpu max,la57=off,erms=off,fsrm=off",
            "-smp 2 -m 512M",
            "id=mem,size=512M,share=on",
            "-kernel /proc/self/fd/10 -initrd /proc/self/fd/11",
            "-append console=ttyS0 ",
            " tsc_early_khz=2445404 ",
            "id=console,fd=12",
            "id=monitor,fd=13",
            "id=vsock,fd=14",
            "tap,id=net,fd=15,vhost=off",
            "mac=52:54:00:00:00:02",
        ] {
            assert!(emulated.contains(part), "{part}: {emulated}");
        }
        let virtual_ = text(Accel::Kvm, None, None);
        assert!(virtual_.contains("-accel kvm -cpu host"), "{virtual_}");
        assert!(
            !virtual_.contains("net") && !virtual_.contains("tsc"),
            "{virtual_}"
        );
    }

    #[test]
    fn a_root_is_a_read_only_disk_that_is_found_by_its_serial_number() {
        let name = "web".parse().unwrap();
        let mut plan = plan(&name, Accel::Kvm, None, None);
        assert!(!arguments(&plan).join(" ").contains("blk"));
        plan.rootfs = Some(16);
        plan.initramfs = None;
        let text = arguments(&plan).join(" ");
        for part in [
            "-blockdev driver=raw,node-name=rootfs,read-only=on,file.locking=off,file.driver=file,\
             file.filename=/proc/self/fd/16,file.aio=threads",
            "-device virtio-blk-device,drive=rootfs,serial=rootfs",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("-initrd"), "{text}");
    }

    #[test]
    fn disks_follow_the_root_and_those_that_are_written_are_locked() {
        let name = "web".parse().unwrap();
        let mut plan = plan(&name, Accel::Kvm, None, None);
        plan.rootfs = Some(16);
        plan.disks = vec![
            Disk {
                serial: "vol-0",
                file: 17,
                is_read_only: false,
            },
            Disk {
                serial: "img-1",
                file: 18,
                is_read_only: true,
            },
        ];
        plan.shares = vec![Share {
            tag: "share-2",
            connection: 19,
        }];
        let text = arguments(&plan).join(" ");
        let at = |part: &str| text.find(part).unwrap_or_else(|| panic!("{part}: {text}"));
        let root = at("drive=rootfs,serial=rootfs");
        let first = at("drive=vol-0,serial=vol-0");
        assert!(root < first && first < at("drive=img-1,serial=img-1"));
        at(
            "node-name=vol-0,read-only=off,discard=unmap,file.locking=on,file.driver=file,file.filename=/proc/self/fd/17,",
        );
        at(
            "node-name=img-1,read-only=on,file.locking=off,file.driver=file,file.filename=/proc/self/fd/18,",
        );
        at(
            "-chardev socket,id=share0,fd=19 -device vhost-user-fs-device,chardev=share0,tag=share-2,",
        );
    }

    #[test]
    fn a_machine_has_a_pci_bus_when_it_has_devices_and_only_then() {
        let name = "web".parse().unwrap();
        let mut plan = plan(&name, Accel::Kvm, None, None);
        let without = arguments(&plan).join(" ");
        assert!(without.contains(" pci=off"), "{without}");
        assert!(
            !without.contains("pcie") && !without.contains("vfio"),
            "{without}"
        );
        let devices = ["0000:01:00.0".to_owned(), "0000:01:00.1".to_owned()];
        plan.devices = &devices;
        let text = arguments(&plan).join(" ");
        for part in [
            "memory-backend=mem,pcie=on ",
            "-device vfio-pci,host=0000:01:00.0 -device vfio-pci,host=0000:01:00.1",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("pci=off"), "{text}");
    }

    #[test]
    fn an_address_cannot_become_another_option() {
        let text = text(Accel::Tcg, None, Some((3, "52:54:00:00:00:02,romfile=/x")));
        assert!(text.contains("mac=52:54:00:00:00:02,,romfile=/x"), "{text}");
    }
}
