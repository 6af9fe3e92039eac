//! What vmd needs of a virtual machine monitor, whichever it is.
//!
//! A driver turns a [`MachineSpec`] into child processes of vmd and tells how they end. It knows nothing of agents,
//! journals or units. All drivers give the host the same vsock: the guest's call to CID 2, port P, arrives at
//! the Unix socket [`MachineSpec::vsock`]`_P`, on which vmd listens before the launch.

mod adopted;
mod cloud_hypervisor;
pub mod detect;
mod frames;
pub mod kernel_image;
mod process;
mod qemu;
mod qmp;
mod saved;
mod share;
mod spec;

pub use cloud_hypervisor::CloudHypervisor;
pub use qemu::Qemu;
pub use saved::ControlState;
pub use share::real_path;
pub use spec::SpecState;

use std::{
    fmt, fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use async_trait::async_trait;
use tokio::net::UnixStream;
use volant_service::Heirlooms;
use volant_spec::{Name, Resources};

/// How the guest finds the disk that is its root.
pub const ROOTFS_SERIAL: &str = "rootfs";

/// What a VMM is asked to run.
#[derive(Debug)]
pub struct MachineSpec {
    pub name: Name,
    pub uuid: String,
    pub resources: Resources,
    /// Open for reading. A VMM opens it again by `/proc/self/fd/N`, as the store's folder is closed to it.
    pub kernel: OwnedFd,
    /// Absent: the kernel has one in it.
    pub initramfs: Option<OwnedFd>,
    /// A file system that becomes a read-only disk with the serial number [`ROOTFS_SERIAL`]; other machines may have it too.
    pub rootfs: Option<OwnedFd>,
    /// In the order in which the guest has them, after the root.
    pub disks: Vec<DiskSpec>,
    pub shares: Vec<ShareSpec>,
    /// PCI devices of the host, by address (`0000:01:00.0`): bound to `vfio-pci`, and their groups' nodes given to the user that
    /// the VMM runs as.
    pub devices: Vec<String>,
    /// Absent: no network.
    pub nic: Option<Nic>,
    /// The guest's vsock context id.
    pub cid: u32,
    /// A folder of this VM's alone; the driver's sockets go there.
    pub run_dir: PathBuf,
    /// See the module's head.
    pub vsock: PathBuf,
}

/// The longest serial number of a virtio disk, in bytes.
pub const LONGEST_SERIAL: usize = 20;

/// A raw disk besides the root.
#[derive(Debug)]
pub struct DiskSpec {
    /// How the guest finds it: letters, digits and `-`, at most [`LONGEST_SERIAL`]. No other disk of the machine has it.
    pub serial: String,
    /// Open as it is used. A VMM opens it again by `/proc/self/fd/N`.
    pub file: OwnedFd,
    /// If it is not, no other machine has this disk as long as this one runs: the VMM holds a lock, and does not start without.
    pub is_read_only: bool,
}

/// A directory of the host that the guest reads by virtiofs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShareSpec {
    /// How the guest finds it: letters, digits and `-`, at most 36.
    pub tag: String,
    /// Absolute, and readable for the user that the VMM runs as.
    pub path: PathBuf,
}

impl MachineSpec {
    /// The same machine once more, with descriptors of its own.
    ///
    /// # Errors
    /// There are too many descriptors.
    pub fn try_clone(&self) -> io::Result<Self> {
        let clone = |fd: &Option<OwnedFd>| fd.as_ref().map(OwnedFd::try_clone).transpose();
        let nic = match &self.nic {
            Some(nic) => Some(Nic {
                tap: nic.tap.try_clone()?,
                mac: nic.mac.clone(),
            }),
            None => None,
        };
        let disk = |disk: &DiskSpec| {
            Ok(DiskSpec {
                serial: disk.serial.clone(),
                file: disk.file.try_clone()?,
                is_read_only: disk.is_read_only,
            })
        };
        Ok(Self {
            name: self.name.clone(),
            uuid: self.uuid.clone(),
            resources: self.resources,
            kernel: self.kernel.try_clone()?,
            initramfs: clone(&self.initramfs)?,
            rootfs: clone(&self.rootfs)?,
            disks: self.disks.iter().map(disk).collect::<io::Result<_>>()?,
            shares: self.shares.clone(),
            devices: self.devices.clone(),
            nic,
            cid: self.cid,
            run_dir: self.run_dir.clone(),
            vsock: self.vsock.clone(),
        })
    }
}

/// A network card and its tap.
#[derive(Debug)]
pub struct Nic {
    /// Attached to its interface already (`TUNSETIFF`, with `IFF_VNET_HDR`).
    pub tap: OwnedFd,
    pub mac: String,
}

/// A VMM that can be started.
#[async_trait]
pub trait Hypervisor: fmt::Debug + Send + Sync {
    /// The driver's name: `qemu` or `cloud-hypervisor`.
    fn name(&self) -> &'static str;

    /// Starts the VMM with the guest running. Its processes die with the calling thread.
    ///
    /// # Errors
    /// What could not be started and why, with what the VMM printed. No process is left then.
    async fn launch(&self, spec: MachineSpec) -> Result<Machine, LaunchError>;
}

/// A VMM that was started.
#[derive(Debug)]
pub struct Machine {
    /// The VMM's process.
    pub pid: u32,
    /// The guest's serial console, from its first byte.
    pub console: UnixStream,
    pub control: Box<dyn Control>,
}

/// The way to a running VMM.
#[async_trait]
pub trait Control: fmt::Debug + Send {
    /// Presses the guest's power button.
    ///
    /// # Errors
    /// The VMM does not answer, or has no such button.
    async fn press_power_button(&mut self) -> Result<(), ControlError>;

    /// Stops the guest's CPUs, and its clocks with them. Does nothing when they stand still.
    ///
    /// # Errors
    /// The VMM does not answer, or refuses.
    async fn pause(&mut self) -> Result<(), ControlError>;

    /// Lets them go on. Does nothing when they run.
    ///
    /// # Errors
    /// As for [`Control::pause`].
    async fn resume(&mut self) -> Result<(), ControlError>;

    /// Gives the running machine, which has the resources `from`, others.
    ///
    /// # Errors
    /// The VMM cannot do it at all, and nothing was changed; or it did not do it.
    async fn resize(&mut self, from: Resources, to: Resources) -> Result<(), ResizeError>;

    /// Resolves when the VMM has ended, or a process that it cannot do without. May be dropped and called again.
    async fn wait(&mut self) -> VmmExit;

    /// What a supervisor needs that is executed in this process's place; `None` when it cannot be handed over, as it ends, or as the
    /// driver knows nothing of it.
    ///
    /// # Errors
    /// There are too many descriptors.
    fn save(&self, heirlooms: &mut Heirlooms) -> io::Result<Option<ControlState>> {
        let _ = heirlooms;
        Ok(None)
    }

    /// Kills all of the VMM's processes and waits for their end. Does nothing after the end.
    async fn kill(&mut self);
}

/// How a VMM ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VmmExit {
    /// The guest powered off.
    GuestPowerOff,
    /// The guest reset the machine: a reboot, a kernel panic, or a power-off where there is no ACPI.
    GuestReset,
    /// A process ended by itself and not as a guest's end does. `message` is the last that it printed.
    Exited {
        program: &'static str,
        code: i32,
        message: String,
    },
    /// A process was killed by a signal.
    Killed { program: &'static str, signal: i32 },
}

/// Why a VMM did not start.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    #[error("{program} is not installed; {hint}")]
    NotInstalled {
        program: &'static str,
        hint: &'static str,
    },
    #[error("cannot start {program}")]
    Spawn {
        program: &'static str,
        source: io::Error,
    },
    #[error("{program} ended while it started ({status}): {message}")]
    Ended {
        program: &'static str,
        status: String,
        message: String,
    },
    #[error("{program} did not answer within {seconds} s: {message}")]
    Timeout {
        program: &'static str,
        seconds: u64,
        message: String,
    },
    #[error("{program} refused {act}: {message}")]
    Refused {
        program: &'static str,
        act: &'static str,
        message: String,
    },
    #[error("cannot share {}; it must be a directory that the VM's user can read", path.display())]
    Share { path: PathBuf, source: io::Error },
    #[error("{what} is not possible here: {reason}")]
    Unsupported {
        what: &'static str,
        reason: &'static str,
    },
    #[error("cannot prepare {what}")]
    Prepare {
        what: &'static str,
        source: io::Error,
    },
}

/// Why a VMM did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[error("{program} did not {act}: {message}")]
pub struct ControlError {
    pub program: &'static str,
    pub act: &'static str,
    pub message: String,
}

/// Why a machine has the resources that it had.
#[derive(Debug, thiserror::Error)]
pub enum ResizeError {
    /// For good, and why; nothing was changed.
    #[error("{0}")]
    Unsupported(String),
    #[error(transparent)]
    Control(#[from] ControlError),
}

/// Removes a socket that an earlier run left.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
