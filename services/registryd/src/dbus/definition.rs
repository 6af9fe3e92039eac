//! A VM as its supervisor is told it.

use std::{
    collections::{BTreeMap, HashMap},
    os::fd::OwnedFd,
};

use volant_dbus::registry::VmDefinition;
use volant_spec::manifest::{self, HostKernel, Kernel};

use crate::store::OpenVm;

pub(super) fn resolved(open: OpenVm) -> (VmDefinition, HashMap<String, zbus::OwnedFd>) {
    let OpenVm {
        vm,
        uid,
        manifest,
        artifacts,
    } = open;
    let workload = manifest.workload;
    let definition = VmDefinition {
        uuid: vm.uuid,
        name: vm.name,
        uid,
        plugin: vm.plugin,
        plugin_version: vm.plugin_version,
        cpu_cores: vm.cpu_cores,
        memory_mb: vm.memory_mb,
        vmm: vm.vmm,
        entrypoint: workload.entrypoint,
        env: into_map(workload.env),
        workdir: workload.workdir.unwrap_or_else(|| "/".to_owned()),
        user: workload.user.unwrap_or_default(),
        volumes: workload.volumes,
        stop_signal: workload.stop_signal.unwrap_or_else(|| "SIGTERM".to_owned()),
        stop_grace_ms: workload
            .stop_grace_ms
            .unwrap_or(manifest::DEFAULT_STOP_GRACE_MS),
        kernel: match manifest.kernel {
            None | Some(Kernel::Host(HostKernel::Vmlinux)) => "vmlinux",
            Some(Kernel::Host(HostKernel::Bzimage)) => "bzimage",
            Some(Kernel::Own(_)) => "own",
        }
        .to_owned(),
        rootfs_format: manifest
            .rootfs
            .map(|rootfs| rootfs.format.as_str().to_owned())
            .unwrap_or_default(),
        config_version: 1,
        restart: "never".to_owned(),
        health_check: Vec::new(),
        rlimits: Vec::new(),
        init: String::new(),
        is_persistent: false,
        mounts: Vec::new(),
        has_seed: false,
        secrets: Vec::new(),
        network_mode: "bridged".to_owned(),
        pci: Vec::new(),
        pci_allowlist: Vec::new(),
        cpu_quota_percent: 0,
        cpu_weight: 0,
        io_weight: 0,
    };
    let artifacts = artifacts
        .into_iter()
        .map(|(name, file)| (name, OwnedFd::from(file).into()))
        .collect();
    (definition, artifacts)
}

fn into_map(map: BTreeMap<String, String>) -> HashMap<String, String> {
    map.into_iter().collect()
}
