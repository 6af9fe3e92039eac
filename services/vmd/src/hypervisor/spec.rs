//! A [`MachineSpec`] for the supervisor that takes over, which launches the same machine when the guest reboots.

use std::{
    io,
    os::fd::{OwnedFd, RawFd},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};
use volant_service::{Heirlooms, inherited};
use volant_spec::{Name, Resources};

use super::{DiskSpec, MachineSpec, Nic, ShareSpec};

/// A spec, written down. Its descriptors are heirlooms.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpecState {
    name: Name,
    uuid: String,
    resources: Resources,
    kernel: RawFd,
    initramfs: Option<RawFd>,
    rootfs: Option<RawFd>,
    disks: Vec<DiskState>,
    shares: Vec<(String, PathBuf)>,
    devices: Vec<String>,
    nic: Option<(RawFd, String)>,
    cid: u32,
    run_dir: PathBuf,
    vsock: PathBuf,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DiskState {
    serial: String,
    file: RawFd,
    is_read_only: bool,
}

impl MachineSpec {
    /// This spec, written down.
    ///
    /// # Errors
    /// There are too many descriptors.
    pub fn save(&self, heirlooms: &mut Heirlooms) -> io::Result<SpecState> {
        let Self {
            name,
            uuid,
            resources,
            kernel,
            initramfs,
            rootfs,
            disks,
            shares,
            devices,
            nic,
            cid,
            run_dir,
            vsock,
        } = self;
        let mut keep = |fd: &OwnedFd| heirlooms.keep(fd);
        Ok(SpecState {
            name: name.clone(),
            uuid: uuid.clone(),
            resources: *resources,
            kernel: keep(kernel)?,
            initramfs: initramfs.as_ref().map(&mut keep).transpose()?,
            rootfs: rootfs.as_ref().map(&mut keep).transpose()?,
            disks: disks
                .iter()
                .map(|disk| {
                    Ok(DiskState {
                        serial: disk.serial.clone(),
                        file: keep(&disk.file)?,
                        is_read_only: disk.is_read_only,
                    })
                })
                .collect::<io::Result<_>>()?,
            shares: shares
                .iter()
                .map(|share| (share.tag.clone(), share.path.clone()))
                .collect(),
            devices: devices.clone(),
            nic: match nic {
                Some(nic) => Some((keep(&nic.tap)?, nic.mac.clone())),
                None => None,
            },
            cid: *cid,
            run_dir: run_dir.clone(),
            vsock: vsock.clone(),
        })
    }
}

impl SpecState {
    /// The spec, with the descriptors that were left. Do so once.
    ///
    /// # Errors
    /// A descriptor is not there.
    pub fn restore(self) -> io::Result<MachineSpec> {
        let disk = |disk: DiskState| {
            Ok(DiskSpec {
                serial: disk.serial,
                file: inherited(disk.file)?,
                is_read_only: disk.is_read_only,
            })
        };
        Ok(MachineSpec {
            name: self.name,
            uuid: self.uuid,
            resources: self.resources,
            kernel: inherited(self.kernel)?,
            initramfs: self.initramfs.map(inherited).transpose()?,
            rootfs: self.rootfs.map(inherited).transpose()?,
            disks: self
                .disks
                .into_iter()
                .map(disk)
                .collect::<io::Result<_>>()?,
            shares: self
                .shares
                .into_iter()
                .map(|(tag, path)| ShareSpec { tag, path })
                .collect(),
            devices: self.devices,
            nic: match self.nic {
                Some((tap, mac)) => Some(Nic {
                    tap: inherited(tap)?,
                    mac,
                }),
                None => None,
            },
            cid: self.cid,
            run_dir: self.run_dir,
            vsock: self.vsock,
        })
    }
}
