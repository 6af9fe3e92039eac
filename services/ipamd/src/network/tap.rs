//! Taps: one for each VM that runs, a port of the bridge.

use std::{io, os::fd::OwnedFd, time::Duration};

use rtnetlink::{Handle, LinkUnspec};

use super::{
    NetworkError,
    link::{self, Link, tap_alias},
    sysctl,
};
use crate::pool::{Cid, Lease};

/// How long an older tap may take to go: its VMM was told to end, or is being ended.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// The name of the tap of a VM with that context id: no two VMs share one, and the longest has 12 characters.
#[must_use]
pub fn name(cid: Cid) -> String {
    format!("vt{}", cid.get())
}

/// Opens the VM's tap as a port of the bridge.
pub(super) async fn open(
    handle: &Handle,
    bridge: u32,
    lease: &Lease,
) -> Result<OwnedFd, NetworkError> {
    let name = name(lease.cid);
    let tap = create(handle, &name, lease).await?;
    sysctl::without_ipv6(&name)?;
    let links = link::all(handle).await?;
    let link = links
        .iter()
        .find(|link| link.name == name)
        .ok_or_else(|| NetworkError::Vanished { name: name.clone() })?;
    enslave(handle, bridge, link, lease).await?;
    Ok(tap)
}

/// Makes the taps of running VMs ports of the bridge again, should they have lost it.
pub(super) async fn mend(
    handle: &Handle,
    bridge: u32,
    leases: &[Lease],
) -> Result<(), NetworkError> {
    let links = link::all(handle).await?;
    for lease in leases {
        let name = name(lease.cid);
        let lost = links.iter().find(|link| {
            link.name == name
                && link.is_tap_of(&lease.vm)
                && (link.controller != Some(bridge) || !link.up)
        });
        if let Some(link) = lost {
            enslave(handle, bridge, link, lease).await?;
            tracing::info!(
                "the tap '{name}' of VM '{}' is a port of the bridge again",
                lease.vm
            );
        }
    }
    Ok(())
}

/// An error if a tap of the VM is left.
pub(super) async fn gone(handle: &Handle, lease: &Lease) -> Result<(), NetworkError> {
    let (name, vm) = (name(lease.cid), lease.vm.clone());
    let links = link::all(handle).await?;
    if links
        .iter()
        .any(|link| link.name == name && link.is_tap_of(&vm))
    {
        return Err(NetworkError::TapInUse { name, vm });
    }
    Ok(())
}

async fn create(handle: &Handle, name: &str, lease: &Lease) -> Result<OwnedFd, NetworkError> {
    let source = match volant_service::open_tap(name) {
        Ok(tap) => return Ok(tap),
        Err(error) => error,
    };
    let (name, vm) = (name.to_owned(), lease.vm.clone());
    if source.kind() != io::ErrorKind::ResourceBusy {
        return Err(NetworkError::Tap { name, vm, source });
    }
    let links = link::all(handle).await?;
    let ours = links
        .iter()
        .any(|link| link.name == name && link.is_tap_of(&vm));
    Err(if ours {
        NetworkError::TapInUse { name, vm }
    } else {
        NetworkError::NameTaken { name, vm }
    })
}

async fn enslave(
    handle: &Handle,
    bridge: u32,
    tap: &Link,
    lease: &Lease,
) -> Result<(), NetworkError> {
    let message = LinkUnspec::new_with_index(tap.index)
        .alias(tap_alias(&lease.vm))
        .controller(bridge)
        .up()
        .build();
    handle.link().set(message).execute().await.map_err(|error| {
        let act = format!(
            "make the tap '{}' of VM '{}' a port of the bridge",
            tap.name, lease.vm
        );
        NetworkError::netlink(act, error)
    })
}
