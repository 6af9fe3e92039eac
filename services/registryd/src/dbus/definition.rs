//! A VM as its supervisor is told it.

use std::{collections::HashMap, fs::File, os::fd::OwnedFd, path::Path};

use volant_dbus::registry::{HealthCheck, Mount, VmDefinition};
use volant_spec::{
    Manifest,
    manifest::{self, HostKernel, Kernel, Probe, Restart},
    vm_config::{Effective, Image, Rlimit, Volume},
};

use crate::store::OpenVm;

pub(super) fn resolved(open: OpenVm) -> (VmDefinition, HashMap<String, zbus::OwnedFd>) {
    let OpenVm {
        vm,
        uid,
        manifest,
        effective,
        artifacts,
        disks,
    } = open;
    let mounts = mounts(&effective);
    let definition = VmDefinition {
        uuid: vm.uuid,
        name: vm.name,
        uid,
        plugin: vm.plugin,
        plugin_version: vm.plugin_version,
        cpu_cores: effective.resources.cpu_cores,
        memory_mb: effective.resources.memory_mb,
        vmm: effective.vmm.as_str().to_owned(),
        entrypoint: effective.entrypoint,
        env: effective.env.into_iter().collect(),
        workdir: effective.workdir,
        user: effective.user.unwrap_or_default(),
        volumes: effective.data_dirs,
        stop_signal: effective.stop_signal,
        stop_grace_ms: effective.stop_grace_ms,
        kernel: kernel(&manifest).to_owned(),
        rootfs_format: manifest
            .rootfs
            .map(|rootfs| rootfs.format.as_str().to_owned())
            .unwrap_or_default(),
        config_version: vm.config_version,
        restart: restart(effective.restart).to_owned(),
        health_check: effective.health_check.into_iter().map(check).collect(),
        rlimits: effective.rlimits.into_iter().map(rlimit).collect(),
        init: effective.init.unwrap_or_default(),
        is_persistent: effective.root_disk.is_some(),
        mounts,
        has_seed: effective.cloud_init.is_some(),
        secrets: effective
            .secrets
            .into_iter()
            .map(|secret| (secret.name, secret.env.unwrap_or_default()))
            .collect(),
        network_mode: effective.network.as_str().to_owned(),
        pci: effective.devices.pci,
        pci_allowlist: effective.devices.allowlist,
        cpu_quota_percent: effective.limits.cpu_quota_percent.unwrap_or(0),
        cpu_weight: effective.limits.cpu_weight.unwrap_or(0),
        io_weight: effective.limits.io_weight.unwrap_or(0),
    };
    let descriptor = |(name, file): (String, File)| (name, OwnedFd::from(file).into());
    let files = artifacts.into_iter().chain(disks).map(descriptor);
    (definition, files.collect())
}

fn kernel(manifest: &Manifest) -> &'static str {
    match manifest.kernel {
        None | Some(Kernel::Host(HostKernel::Vmlinux)) => "vmlinux",
        Some(Kernel::Host(HostKernel::Bzimage)) => "bzimage",
        Some(Kernel::Own(_)) => "own",
    }
}

fn restart(restart: Restart) -> &'static str {
    match restart {
        Restart::Never => "never",
        Restart::OnFailure => "on-failure",
        Restart::Always => "always",
    }
}

fn check(check: manifest::HealthCheck) -> HealthCheck {
    let mut told = HealthCheck {
        kind: String::new(),
        url: String::new(),
        port: 0,
        command: Vec::new(),
        interval_ms: check.interval_ms,
        timeout_ms: check.timeout_ms,
        retries: check.retries,
        start_period_ms: check.start_period_ms,
    };
    let kind = match check.probe {
        Probe::Http { url } => {
            told.url = url;
            "http"
        }
        Probe::Tcp { port } => {
            told.port = port;
            "tcp"
        }
        Probe::Exec { command } => {
            told.command = command;
            "exec"
        }
    };
    kind.clone_into(&mut told.kind);
    told
}

/// A limit that is none is the largest number, as it is to the kernel.
fn rlimit((name, limit): (String, Rlimit)) -> (String, u64, u64) {
    let or_none = |limit: Option<u64>| limit.unwrap_or(u64::MAX);
    (name, or_none(limit.soft), or_none(limit.hard))
}

/// What is mounted, each after what it is mounted in.
fn mounts(vm: &Effective) -> Vec<Mount> {
    let volumes = vm.volumes.iter().map(volume);
    let mut mounts: Vec<_> = vm.images.iter().map(image).chain(volumes).collect();
    mounts.sort_by(|one, other| Path::new(&one.target).cmp(Path::new(&other.target)));
    mounts
}

fn image(image: &Image) -> Mount {
    Mount {
        name: image.name.to_string(),
        kind: "image".to_owned(),
        host_path: String::new(),
        target: text(&image.target),
        is_read_only: true,
    }
}

fn volume(volume: &Volume) -> Mount {
    let (kind, host_path, is_read_only) = match &volume.host_path {
        Some(path) => ("share", text(path), true),
        None => ("disk", String::new(), volume.read_only),
    };
    Mount {
        name: volume.name.to_string(),
        kind: kind.to_owned(),
        host_path,
        target: text(&volume.target),
        is_read_only,
    }
}

/// A path of a configuration, which was a text there.
fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
