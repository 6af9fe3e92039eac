//! Which address a VM gets. Decides only: no clock, no file, no socket.

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, Ipv4Addr},
    str::FromStr,
};

use ipnet::Ipv4Net;
use volant_spec::{Name, config::Subnet};

/// What a VM has for as long as it is defined: kept across its restarts, until it is released.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    pub vm: Name,
    pub address: IpAddr,
    pub mac: Mac,
    pub cid: Cid,
}

/// A link-layer address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac([u8; 6]);

impl Mac {
    /// The locally administered address that stands for an IPv4 address: unique where that is, and the same after
    /// a release and a new lease, so that no neighbour's cache goes wrong.
    #[must_use]
    pub fn of(address: Ipv4Addr) -> Self {
        let [a, b, c, d] = address.octets();
        Self([0x02, b'v', a, b, c, d])
    }

    #[must_use]
    pub fn octets(self) -> [u8; 6] {
        self.0
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{}' is no link-layer address", text.escape_debug());
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts
                .next()
                .filter(|part| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit()))
                .ok_or_else(wrong)?;
            *octet = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
        }
        match parts.next() {
            None => Ok(Self(octets)),
            Some(_) => Err(wrong()),
        }
    }
}

/// A guest's vsock context id. 0 to 2 mean hypervisor, loopback and host; the last one means any.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cid(u32);

impl Cid {
    const FIRST: u32 = 3;
    const LAST: u32 = u32::MAX - 1;

    #[must_use]
    pub fn get(self) -> u32 {
        self.0
    }
}

impl TryFrom<i64> for Cid {
    type Error = String;

    fn try_from(number: i64) -> Result<Self, String> {
        match u32::try_from(number) {
            Ok(cid @ Self::FIRST..=Self::LAST) => Ok(Self(cid)),
            _ => Err(format!("{number} is no guest's context id")),
        }
    }
}

/// What [`choose`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The VM has this lease already.
    Held(Lease),
    /// The VM may have this one.
    New(Lease),
}

/// Why a VM gets no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChoiceError {
    #[error(
        "cannot give VM '{vm}' an address: all {held} of {subnet} are held by VMs; delete one (`volar vms delete`) or \
         choose a larger network.subnet"
    )]
    Exhausted {
        vm: Name,
        subnet: Ipv4Net,
        held: u64,
    },
    #[error(
        "VM '{vm}' holds the address {address}, which the subnet {subnet} has no place for; put network.subnet back, \
         or delete the VM (`volar vms delete {vm}`) and create it again"
    )]
    OutsideSubnet {
        vm: Name,
        address: IpAddr,
        subnet: Ipv4Net,
    },
    #[error("cannot give VM '{vm}' a vsock context id: all are taken")]
    NoContextId { vm: Name },
}

/// The lease that `vm` holds, or the one it may have: the lowest free address and the lowest free context id.
///
/// # Errors
/// Nothing is free, or what the VM holds is not of this subnet.
pub fn choose(subnet: Subnet, leases: &[Lease], vm: &Name) -> Result<Choice, ChoiceError> {
    if let Some(lease) = leases.iter().find(|lease| lease.vm == *vm) {
        return if is_for_vms(subnet, lease.address) {
            Ok(Choice::Held(lease.clone()))
        } else {
            Err(ChoiceError::OutsideSubnet {
                vm: vm.clone(),
                address: lease.address,
                subnet: subnet.net(),
            })
        };
    }
    let taken: BTreeSet<IpAddr> = leases.iter().map(|lease| lease.address).collect();
    let address = for_vms(subnet)
        .map(Ipv4Addr::from_bits)
        .find(|address| !taken.contains(&IpAddr::V4(*address)))
        .ok_or_else(|| ChoiceError::Exhausted {
            vm: vm.clone(),
            subnet: subnet.net(),
            held: capacity(subnet),
        })?;
    let taken: BTreeSet<Cid> = leases.iter().map(|lease| lease.cid).collect();
    let cid = (Cid::FIRST..=Cid::LAST)
        .map(Cid)
        .find(|cid| !taken.contains(cid))
        .ok_or_else(|| ChoiceError::NoContextId { vm: vm.clone() })?;
    Ok(Choice::New(Lease {
        vm: vm.clone(),
        address: address.into(),
        mac: Mac::of(address),
        cid,
    }))
}

/// How many addresses VMs can have.
#[must_use]
pub fn capacity(subnet: Subnet) -> u64 {
    u64::from(for_vms(subnet).end - for_vms(subnet).start)
}

/// All but the network's own address, the host's (the first) and the broadcast's (the last).
fn for_vms(subnet: Subnet) -> std::ops::Range<u32> {
    subnet.gateway().to_bits() + 1..subnet.net().broadcast().to_bits()
}

fn is_for_vms(subnet: Subnet, address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => for_vms(subnet).contains(&address.to_bits()),
        IpAddr::V6(_) => false,
    }
}

#[cfg(test)]
mod tests;
