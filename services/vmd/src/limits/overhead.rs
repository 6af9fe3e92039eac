//! What a VMM needs beside its guest's memory; `docs/limits.md` tells how it was measured. Pure.

use volant_spec::Resources;

use crate::hypervisor::detect::Accel;

/// vmd itself, and what the kernel charges for reading the guest's kernel and initramfs once.
const SUPERVISOR: u32 = 48;
/// QEMU with its devices, vhost-device-vsock with the guest's memory mapped.
const QEMU: u32 = 96;
/// QEMU's translated code (`tb-size`), which an emulated guest fills.
const TRANSLATED_CODE: u32 = 256;
/// An emulated CPU's look-up tables for memory and code.
const EMULATED_CPU: u32 = 32;
/// A CPU of hardware: its state, and a thread.
const CPU: u32 = 2;
const CLOUD_HYPERVISOR: u32 = 48;
/// Of the guest's memory: the page tables of who maps it.
const MAPPED: u32 = 256;

/// In MiB, for a guest with `resources`.
#[must_use]
pub fn overhead_mb(vmm: &str, accel: Accel, resources: Resources) -> u32 {
    let (program, cpu) = match (vmm, accel) {
        ("cloud-hypervisor", _) => (CLOUD_HYPERVISOR, CPU),
        (_, Accel::Kvm) => (QEMU, CPU),
        (_, Accel::Tcg) => (QEMU + TRANSLATED_CODE, EMULATED_CPU),
    };
    SUPERVISOR + program + cpu * resources.cpu_cores + resources.memory_mb / MAPPED
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_overhead_grows_with_the_machine_and_with_emulation() {
        for (vmm, accel, cpus, memory, expected) in [
            ("qemu", Accel::Tcg, 1, 256, 433),
            ("qemu", Accel::Kvm, 1, 256, 147),
            ("cloud-hypervisor", Accel::Kvm, 4, 1024, 108),
        ] {
            let resources = Resources::new(cpus, memory).unwrap();
            assert_eq!(overhead_mb(vmm, accel, resources), expected, "{vmm}");
        }
    }
}
