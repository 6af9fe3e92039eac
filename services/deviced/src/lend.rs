//! Devices bound to `vfio-pci` for a VM, and given back.
//!
//! ```text
//! lend      check ─▶ ledger ─▶ each: override, unbind, probe ─▶ nodes given to the VM's user    a step that fails: all given back
//! give back each: unbind, override cleared, bind to the driver that it had ─▶ nodes taken back ─▶ ledger forgotten
//! ```
//! `driver_override` names one device; `new_id` would take every device of a kind from the host.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::fcntl::{Flock, FlockArg};
use volant_spec::Name;

use crate::{
    check::{Host, Pattern, Problem, check},
    ledger::{Ledger, LedgerError, Lent, Loan},
    sysfs::{Address, Attributes, Sysfs, SysfsError},
};

/// The driver that hands devices to programs.
pub const VFIO: &str = "vfio-pci";
/// A driver may take a device after the write that asked for it: probing can be asynchronous.
const BOUND_WITHIN: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// What a VM asks for.
#[derive(Clone, Debug)]
pub struct Wish {
    pub vm: Name,
    /// The user that its VMM runs as.
    pub uid: u32,
    pub devices: Vec<Address>,
    pub allowlist: Vec<Pattern>,
}

/// Why devices were not lent or not given back.
#[derive(Debug, thiserror::Error)]
pub enum LendError {
    #[error("VM '{vm}' cannot have these devices: {}", texts(problems))]
    Refused { vm: Name, problems: Vec<Problem> },
    #[error(transparent)]
    Sysfs(#[from] SysfsError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error("cannot lock {}", path.display())]
    Lock { path: PathBuf, source: io::Error },
    #[error("{address} did not go to the driver {wanted} within 5 s; it has {found}")]
    NotBound {
        address: Address,
        wanted: String,
        found: String,
    },
    #[error("cannot give {} to user {uid}", path.display())]
    Node {
        path: PathBuf,
        uid: u32,
        source: io::Error,
    },
    #[error("cannot give everything back: {}", .0.join("; "))]
    Left(Vec<String>),
}

fn texts(problems: &[Problem]) -> String {
    let texts: Vec<_> = problems.iter().map(ToString::to_string).collect();
    texts.join("; ")
}

/// The host's devices, where they are lent from.
#[derive(Clone, Debug)]
pub struct Lender<A> {
    pub sysfs: Sysfs<A>,
    pub ledger: Ledger,
    /// `/dev`, but in tests.
    pub dev: PathBuf,
    /// Of the host's configuration.
    pub allowed: Vec<Pattern>,
    /// Held while something is lent or given back.
    pub lock: PathBuf,
}

impl<A: Attributes> Lender<A> {
    /// What is known of the host now.
    ///
    /// # Errors
    /// sysfs or the ledger cannot be read.
    pub fn host(&self) -> Result<Host, LendError> {
        Ok(Host {
            has_iommu: self.sysfs.has_iommu(),
            has_vfio: self.sysfs.has_driver(VFIO),
            devices: self.sysfs.devices()?,
            lent: self.ledger.lent()?,
            allowed: self.allowed.clone(),
        })
    }

    /// Lends a VM all that it asks for, or nothing. What it had before and does not ask for is given back first.
    ///
    /// # Errors
    /// It may not have them, and nothing was touched; or a step failed, and all was given back.
    pub fn lend(&self, wish: &Wish) -> Result<(), LendError> {
        let _lock = self.lock()?;
        self.give_back_locked(&wish.vm)?;
        let host = self.host()?;
        let problems = check(wish.vm.as_str(), &wish.devices, &wish.allowlist, &host);
        if !problems.is_empty() {
            let vm = wish.vm.clone();
            return Err(LendError::Refused { vm, problems });
        }
        if wish.devices.is_empty() {
            return Ok(());
        }
        let devices = wish
            .devices
            .iter()
            .filter_map(|wanted| host.devices.get(wanted));
        let devices = devices.map(|device| Lent {
            address: device.address.clone(),
            // One that has it already was left so by somebody: nobody else's to guess.
            driver: device.driver.clone(),
            group: device.group,
        });
        let loan = Loan {
            devices: devices.collect(),
        };
        self.ledger.write(&wish.vm, &loan)?;
        let bound = self.bind(&loan, wish.uid);
        if bound.is_err()
            && let Err(left) = self.give_back_locked(&wish.vm)
        {
            tracing::error!("{left}");
        }
        bound
    }

    /// Gives all that a VM has back to the drivers that had it. Idempotent; goes on after a failure and tells them all: what is
    /// left stays in the ledger, for another try.
    ///
    /// # Errors
    /// Something could not be given back.
    pub fn give_back(&self, vm: &Name) -> Result<(), LendError> {
        let _lock = self.lock()?;
        self.give_back_locked(vm)
    }

    fn bind(&self, loan: &Loan, uid: u32) -> Result<(), LendError> {
        for device in &loan.devices {
            let address = &device.address;
            self.sysfs.set_override(address, Some(VFIO))?;
            if device.driver.as_deref() != Some(VFIO) {
                self.sysfs.unbind(address)?;
                self.sysfs.probe(address)?;
            }
            self.wait_for(address, Some(VFIO))?;
        }
        for device in &loan.devices {
            if let Some(group) = device.group {
                self.own(&self.node(group), uid)?;
            }
        }
        Ok(())
    }

    fn give_back_locked(&self, vm: &Name) -> Result<(), LendError> {
        let loan = self.ledger.loan(vm)?;
        let mut left = Vec::new();
        for device in &loan.devices {
            if let Err(error) = self.restore(device) {
                left.push(volant_service::chain(&error));
            }
        }
        if !left.is_empty() {
            return Err(LendError::Left(left));
        }
        self.ledger.forget(vm)?;
        Ok(())
    }

    fn restore(&self, device: &Lent) -> Result<(), LendError> {
        let address = &device.address;
        let now = match self.sysfs.device(address) {
            // It was unplugged: there is nothing to give back.
            Err(SysfsError::NoDevice(_)) => return Ok(()),
            now => now?,
        };
        // Nobody's node before the device is somebody else's.
        if let Some(group) = device.group {
            let node = self.node(group);
            if node.exists() {
                self.own(&node, 0)?;
            }
        }
        self.sysfs.set_override(address, None)?;
        if now.driver == device.driver {
            return Ok(());
        }
        self.sysfs.unbind(address)?;
        match &device.driver {
            None => Ok(()),
            Some(driver) => {
                self.sysfs.bind(address, driver)?;
                self.wait_for(address, Some(driver))
            }
        }
    }

    fn wait_for(&self, address: &Address, driver: Option<&str>) -> Result<(), LendError> {
        let deadline = Instant::now() + BOUND_WITHIN;
        loop {
            let found = self.sysfs.device(address)?.driver;
            if found.as_deref() == driver {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(LendError::NotBound {
                    address: address.clone(),
                    wanted: driver.unwrap_or("none").to_owned(),
                    found: found.unwrap_or_else(|| "none".to_owned()),
                });
            }
            #[allow(
                clippy::disallowed_methods,
                reason = "the kernel tells nobody when a driver has taken a device; bounded"
            )]
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// The group's node, which whoever has it may give to its VMM.
    fn node(&self, group: u32) -> PathBuf {
        self.dev.join("vfio").join(group.to_string())
    }

    fn own(&self, node: &Path, uid: u32) -> Result<(), LendError> {
        // devtmpfs makes it when the first device of the group is bound, perhaps a moment later.
        let deadline = Instant::now() + BOUND_WITHIN;
        while !node.exists() && Instant::now() < deadline {
            #[allow(
                clippy::disallowed_methods,
                reason = "as for a driver: nobody tells, and it is bounded"
            )]
            std::thread::sleep(LOOK_AGAIN);
        }
        let failed = |source| LendError::Node {
            path: node.to_owned(),
            uid,
            source,
        };
        fs::set_permissions(node, fs::Permissions::from_mode(0o600)).map_err(failed)?;
        chown(node, Some(uid), None).map_err(failed)
    }

    fn lock(&self) -> Result<Flock<File>, LendError> {
        let failed = |source| LendError::Lock {
            path: self.lock.clone(),
            source,
        };
        if let Some(parent) = self.lock.parent() {
            fs::create_dir_all(parent).map_err(failed)?;
        }
        let file = File::create(&self.lock).map_err(failed)?;
        Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, errno)| failed(io::Error::from(errno)))
    }
}
