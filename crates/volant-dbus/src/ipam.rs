//! `com.volantvm.Ipam1`: addresses and taps.

use serde::{Deserialize, Serialize};
use zbus::{OwnedFd, zvariant::Type};

/// The well-known name of ipamd.
pub const NAME: &str = "com.volantvm.Ipam1";
/// The path of its one object.
pub const PATH: &str = "/com/volantvm/Ipam1";

/// How a VM is attached to the bridge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Type)]
pub struct Attachment {
    /// Addresses with their prefix lengths: `192.168.127.2/24`.
    pub addresses: Vec<String>,
    /// The default routes' gateways.
    pub gateways: Vec<String>,
    /// Name servers for the guest.
    pub dns: Vec<String>,
    pub mac: String,
    /// The guest's vsock context id; 3 or more.
    pub cid: u32,
    /// The tap's name on the host.
    pub tap: String,
}

#[zbus::proxy(
    interface = "com.volantvm.Ipam1.Manager",
    default_service = "com.volantvm.Ipam1",
    default_path = "/com/volantvm/Ipam1"
)]
pub trait Manager {
    /// Leases an address to the VM whose unit the caller is in (idempotent) and opens a tap on the bridge for it. The
    /// tap is gone when the last holder of the descriptor is; an older one of the same VM is waited for. Fails with
    /// `NotAVm`, `NoFreeAddress`, `LeaseOutsideSubnet`, `Network` or `Store` (`com.volantvm.Ipam1.Error.*`).
    fn attach(&self) -> zbus::Result<(Attachment, OwnedFd)>;

    /// Leases: VM, address, MAC, CID; by address.
    fn list_leases(&self) -> zbus::Result<Vec<(String, String, String, u32)>>;

    #[zbus(property)]
    fn bridge(&self) -> zbus::Result<String>;

    #[zbus(property)]
    fn subnet(&self) -> zbus::Result<String>;

    #[zbus(property)]
    fn gateway(&self) -> zbus::Result<String>;

    #[zbus(property(emits_changed_signal = "false"))]
    fn lease_count(&self) -> zbus::Result<u32>;
}
