//! `com.volantvm.Devices1`: the host's PCI devices, and whether a VM could have them.

use serde::{Deserialize, Serialize};
use zbus::zvariant::Type;

/// The well-known name of deviced.
pub const NAME: &str = "com.volantvm.Devices1";
pub const PATH: &str = "/com/volantvm/Devices1";

/// A PCI device of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct DeviceInfo {
    /// `0000:01:00.0`
    pub address: String,
    /// `VENDOR:DEVICE` in hex.
    pub kind: String,
    /// Class, subclass and programming interface, six hex digits.
    pub class: String,
    /// Empty when no driver has it.
    pub driver: String,
    /// -1 when it is in none.
    pub iommu_group: i64,
    /// All devices of its group, with itself.
    pub group_devices: Vec<String>,
    /// -1 when it is not told.
    pub numa_node: i64,
    /// The VM that it is lent to; empty when there is none.
    pub vm: String,
}

#[zbus::proxy(
    interface = "com.volantvm.Devices1.Manager",
    default_service = "com.volantvm.Devices1",
    default_path = "/com/volantvm/Devices1"
)]
pub trait Manager {
    /// All PCI devices of the host, by address.
    fn list_devices(&self) -> zbus::Result<Vec<DeviceInfo>>;

    /// One of them. Fails with `InvalidArgument` or `NoSuchDevice`.
    fn get_device(&self, address: &str) -> zbus::Result<DeviceInfo>;

    /// Why `vm` (empty: a VM that is not there yet) could not have those devices; nothing: it could.
    fn validate(
        &self,
        vm: &str,
        addresses: &[String],
        allowlist: &[String],
    ) -> zbus::Result<Vec<String>>;
}
