//! The D-Bus face: `com.volantvm.Devices1`. It looks and checks; it lends nothing.

use volant_dbus::devices::{DeviceInfo, NAME, PATH};
use zbus::{Connection, connection, interface};

use crate::{
    check::{Pattern, check, kind},
    lend::{LendError, Lender},
    sysfs::{Address, Device, Kernel, SysfsError},
};

/// What a call can fail with.
#[derive(Debug, zbus::DBusError)]
#[zbus(prefix = "com.volantvm.Devices1.Error")]
pub enum Error {
    #[zbus(error)]
    ZBus(zbus::Error),
    /// What is asked for is no PCI address, or no pattern.
    InvalidArgument(String),
    /// There is no device of that address.
    NoSuchDevice(String),
    /// The host could not be read.
    Host(String),
}

impl From<LendError> for Error {
    fn from(error: LendError) -> Self {
        let text = volant_service::chain(&error);
        match error {
            LendError::Sysfs(SysfsError::NoDevice(_)) => Self::NoSuchDevice(text),
            _ => Self::Host(text),
        }
    }
}

/// The object at [`PATH`].
#[derive(Debug)]
pub struct Manager {
    pub lender: Lender<Kernel>,
    pub idle: volant_service::Idle,
}

#[interface(name = "com.volantvm.Devices1.Manager")]
impl Manager {
    /// All PCI devices of the host, by address. Changes nothing.
    fn list_devices(&self) -> Result<Vec<DeviceInfo>, Error> {
        let _busy = self.idle.busy();
        let host = self.lender.host()?;
        let infos = host.devices.values().map(|device| {
            let lent = host.lent.get(&device.address).cloned();
            info(device, &peers(device, &host), lent)
        });
        Ok(infos.collect())
    }

    /// One of them. Changes nothing.
    fn get_device(&self, address: &str) -> Result<DeviceInfo, Error> {
        let _busy = self.idle.busy();
        let address: Address = address
            .parse()
            .map_err(|error: crate::sysfs::AddressError| {
                Error::InvalidArgument(error.to_string())
            })?;
        let host = self.lender.host()?;
        let device = host.devices.get(&address).ok_or_else(|| {
            Error::NoSuchDevice(SysfsError::NoDevice(address.clone()).to_string())
        })?;
        let lent = host.lent.get(&address).cloned();
        Ok(info(device, &peers(device, &host), lent))
    }

    /// Why `vm` (or, with an empty name, a VM that is not there yet) could not have those devices; nothing: it could. Changes nothing.
    fn validate(
        &self,
        vm: &str,
        addresses: Vec<&str>,
        allowlist: Vec<&str>,
    ) -> Result<Vec<String>, Error> {
        let _busy = self.idle.busy();
        let mut problems = Vec::new();
        let mut wish = Vec::new();
        for address in addresses {
            match address.parse::<Address>() {
                Ok(address) => wish.push(address),
                Err(error) => problems.push(error.to_string()),
            }
        }
        let patterns: Result<Vec<Pattern>, _> = allowlist.into_iter().map(str::parse).collect();
        let allowlist = patterns.map_err(Error::InvalidArgument)?;
        let host = self.lender.host()?;
        let found = check(vm, &wish, &allowlist, &host);
        problems.extend(found.iter().map(ToString::to_string));
        Ok(problems)
    }
}

fn peers(device: &Device, host: &crate::check::Host) -> Vec<String> {
    let same = |other: &&Device| device.group.is_some() && other.group == device.group;
    let peers = host.devices.values().filter(same);
    peers.map(|other| other.address.to_string()).collect()
}

fn info(device: &Device, group_devices: &[String], lent: Option<String>) -> DeviceInfo {
    DeviceInfo {
        address: device.address.to_string(),
        kind: kind(device),
        class: format!("{:06x}", device.class),
        driver: device.driver.clone().unwrap_or_default(),
        iommu_group: device.group.map_or(-1, i64::from),
        group_devices: group_devices.to_vec(),
        numa_node: device.numa_node.map_or(-1, i64::from),
        vm: lent.unwrap_or_default(),
    }
}

/// Serves on the system bus: the object first, the name last.
///
/// # Errors
/// There is no bus, or it refuses the name.
pub async fn serve(manager: Manager) -> zbus::Result<Connection> {
    connection::Builder::system()
        .serve_at(PATH, manager)
        .name(NAME)
        .build()
        .await
}
