//! What the kernel tells of PCI devices, and the few files by which it is told. Nothing here decides.

use std::{
    collections::BTreeMap,
    fmt, fs,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

/// The address of a PCI function: `0000:01:00.0`. One that parses cannot leave the folder that it is looked up in.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Address(String);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{}' is no PCI address such as 0000:01:00.0", .0.escape_debug())]
pub struct AddressError(String);

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let is_hex = |part: &str, digits: usize| {
            part.len() == digits && part.bytes().all(|byte| byte.is_ascii_hexdigit())
        };
        let parts = || {
            let (domain, rest) = text.split_once(':')?;
            let (bus, rest) = rest.split_once(':')?;
            let (device, function) = rest.split_once('.')?;
            let is_function = matches!(function.as_bytes(), [b'0'..=b'7']);
            let is_device = is_hex(device, 2) && device.as_bytes()[0] < b'2';
            (is_hex(domain, 4) && is_hex(bus, 2) && is_device && is_function).then_some(())
        };
        match parts() {
            Some(()) => Ok(Self(text.to_ascii_lowercase())),
            None => Err(AddressError(text.to_owned())),
        }
    }
}

impl TryFrom<String> for Address {
    type Error = AddressError;

    fn try_from(text: String) -> Result<Self, AddressError> {
        text.parse()
    }
}

impl From<Address> for String {
    fn from(address: Address) -> Self {
        address.0
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A device, as the kernel tells of it now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    pub address: Address,
    pub vendor: u16,
    pub device: u16,
    /// Class, subclass and programming interface.
    pub class: u32,
    /// Absent: no driver has it.
    pub driver: Option<String>,
    /// Absent: no IOMMU stands between it and the memory.
    pub group: Option<u32>,
    /// Absent: not told, or the machine has one node.
    pub numa_node: Option<u32>,
}

impl Device {
    /// A bridge carries other devices and is never lent; the kernel keeps it safe by itself.
    #[must_use]
    pub fn is_bridge(&self) -> bool {
        self.class >> 16 == 0x06
    }
}

/// Why something cannot be read or told.
#[derive(Debug, thiserror::Error)]
pub enum SysfsError {
    #[error("there is no PCI device {0}")]
    NoDevice(Address),
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} has '{}', which is no number", path.display(), text.escape_debug())]
    Number { path: PathBuf, text: String },
    #[error("cannot write '{}' to {}", text.escape_debug(), path.display())]
    Write {
        path: PathBuf,
        text: String,
        source: io::Error,
    },
}

/// How files of sysfs are written to.
pub trait Attributes {
    /// Writes `text` to a file that is there, with one call.
    ///
    /// # Errors
    /// What the kernel answers.
    fn write(&self, path: &Path, text: &str) -> io::Result<()>;
}

/// The kernel's own.
#[derive(Clone, Copy, Debug)]
pub struct Kernel;

impl Attributes for Kernel {
    fn write(&self, path: &Path, text: &str) -> io::Result<()> {
        // No file of sysfs is made or cut by who writes to it.
        let mut file = fs::OpenOptions::new()
            .write(true)
            .custom_flags(nix::fcntl::OFlag::O_NOFOLLOW.bits())
            .open(path)?;
        file.write_all(text.as_bytes())
    }
}

/// The tree below a `sysfs`.
#[derive(Clone, Debug)]
pub struct Sysfs<A = Kernel> {
    root: PathBuf,
    attributes: A,
}

impl Sysfs {
    /// The tree at `root`, which is `/sys` but in tests.
    #[must_use]
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self::with(root, Kernel)
    }
}

impl<A: Attributes> Sysfs<A> {
    #[must_use]
    pub fn with(root: impl Into<PathBuf>, attributes: A) -> Self {
        Self {
            root: root.into(),
            attributes,
        }
    }

    /// Whether an IOMMU guards the memory from devices at all.
    #[must_use]
    pub fn has_iommu(&self) -> bool {
        let groups = fs::read_dir(self.root.join("kernel/iommu_groups"));
        groups.is_ok_and(|mut groups| groups.next().is_some())
    }

    /// All devices, by address.
    ///
    /// # Errors
    /// The folder, or a device in it, cannot be read. A machine without PCI has none.
    pub fn devices(&self) -> Result<BTreeMap<Address, Device>, SysfsError> {
        let path = self.root.join("bus/pci/devices");
        let read = |source| SysfsError::Read {
            path: path.clone(),
            source,
        };
        let entries = match fs::read_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
            entries => entries.map_err(read)?,
        };
        let mut devices = BTreeMap::new();
        for entry in entries {
            let name = entry.map_err(read)?.file_name();
            let Some(address) = name.to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            match self.device(&address) {
                Ok(device) => drop(devices.insert(address, device)),
                // It was unplugged while this looked.
                Err(SysfsError::NoDevice(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(devices)
    }

    /// One device.
    ///
    /// # Errors
    /// There is none of that address, or it cannot be read.
    pub fn device(&self, address: &Address) -> Result<Device, SysfsError> {
        let folder = self.folder(address);
        if !folder.exists() {
            return Err(SysfsError::NoDevice(address.clone()));
        }
        let number = |name: &str| number(&folder.join(name));
        Ok(Device {
            address: address.clone(),
            vendor: u16::try_from(number("vendor")?).unwrap_or(u16::MAX),
            device: u16::try_from(number("device")?).unwrap_or(u16::MAX),
            class: number("class")?,
            driver: link_name(&folder.join("driver"))?,
            group: link_name(&folder.join("iommu_group"))?.and_then(|group| group.parse().ok()),
            numa_node: fs::read_to_string(folder.join("numa_node"))
                .ok()
                .and_then(|node| node.trim().parse().ok()),
        })
    }

    /// Says which driver alone may have the device; `None`: whichever fits.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn set_override(&self, address: &Address, driver: Option<&str>) -> Result<(), SysfsError> {
        // A line without a name clears it.
        let text = driver.unwrap_or("\n");
        self.write(self.folder(address).join("driver_override"), text)
    }

    /// Takes the device from the driver that has it. One that no driver has is left alone.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn unbind(&self, address: &Address) -> Result<(), SysfsError> {
        let unbind = self.folder(address).join("driver/unbind");
        if !unbind.exists() {
            return Ok(());
        }
        // Not through the link: `driver` may point elsewhere by the time of the write.
        let unbind = unbind.canonicalize().map_err(|source| SysfsError::Read {
            path: unbind,
            source,
        })?;
        self.write(unbind, &address.0)
    }

    /// Gives the device to that driver.
    ///
    /// # Errors
    /// There is no such driver, or it does not take the device.
    pub fn bind(&self, address: &Address, driver: &str) -> Result<(), SysfsError> {
        let path = self.root.join("bus/pci/drivers").join(driver).join("bind");
        self.write(path, &address.0)
    }

    /// Lets the kernel find a driver for the device.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn probe(&self, address: &Address) -> Result<(), SysfsError> {
        self.write(self.root.join("bus/pci/drivers_probe"), &address.0)
    }

    /// Whether that driver is in this kernel, loaded or built in.
    #[must_use]
    pub fn has_driver(&self, driver: &str) -> bool {
        self.root.join("bus/pci/drivers").join(driver).is_dir()
    }

    fn folder(&self, address: &Address) -> PathBuf {
        self.root.join("bus/pci/devices").join(&address.0)
    }

    fn write(&self, path: PathBuf, text: &str) -> Result<(), SysfsError> {
        let written = self.attributes.write(&path, text);
        written.map_err(|source| SysfsError::Write {
            path,
            text: text.to_owned(),
            source,
        })
    }
}

/// A number as sysfs writes it: `0x10de`.
fn number(path: &Path) -> Result<u32, SysfsError> {
    let text = fs::read_to_string(path).map_err(|source| SysfsError::Read {
        path: path.to_owned(),
        source,
    })?;
    let digits = text.trim().trim_start_matches("0x");
    u32::from_str_radix(digits, 16).map_err(|_| SysfsError::Number {
        path: path.to_owned(),
        text: text.clone(),
    })
}

/// The last part of what a link points to; `None` when there is no link.
fn link_name(path: &Path) -> Result<Option<String>, SysfsError> {
    match fs::read_link(path) {
        Ok(target) => Ok(target
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(SysfsError::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_cannot_leave_its_folder() {
        for text in ["0000:01:00.0", "ffff:ff:1f.7", "000A:0b:00.1"] {
            assert_eq!(
                text.parse::<Address>().unwrap().to_string(),
                text.to_lowercase()
            );
        }
        for text in [
            "",
            "01:00.0",
            "0000:01:00",
            "0000:01:00.8",
            "0000:01:20.0",
            "0000:01:00.0 ",
            "../0000:01:00.0",
            "0000:01:00.0/..",
            "0000:0x:00.0",
            "0000:+1:00.0",
        ] {
            let error = text.parse::<Address>().unwrap_err().to_string();
            assert!(error.contains("is no PCI address"), "{text}: {error}");
        }
    }
}
