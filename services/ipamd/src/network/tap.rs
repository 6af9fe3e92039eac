//! Taps: one for each VM that runs, a port of the bridge.

use std::{io, os::fd::OwnedFd, time::Duration};

use netlink_packet_route::link::InfoBridgePort;
use rtnetlink::{Handle, LinkBridgePort, LinkUnspec};

use super::{
    Bridge, NetworkError,
    link::{self, Link, tap_alias},
    sysctl,
};
use crate::pool::{Cid, Lease};

/// How long an older tap may take to go: its VMM was told to end, or is being ended.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// A bridge takes frames for bridges themselves (01:80:c2:00:00:0X) past the firewall, learns from them, and hands them
/// to the host's stack as the tap's. A port that forwards them has them come by the firewall like all others, where our
/// rules drop them. The kernel refuses the bit of pause frames, which it drops itself.
const FORWARDS: u16 = !(1 << 1);

/// The name of the tap of a VM with that context id: no two VMs share one, and the longest has 12 characters.
#[must_use]
pub fn name(cid: Cid) -> String {
    format!("vt{}", cid.get())
}

/// Opens the VM's tap as a port of the bridge.
pub(super) async fn open(
    handle: &Handle,
    bridge: Bridge,
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
    bridge: Bridge,
    leases: &[Lease],
) -> Result<(), NetworkError> {
    let links = link::all(handle).await?;
    for lease in leases {
        let name = name(lease.cid);
        let lost = links.iter().find(|link| {
            link.name == name
                && link.is_tap_of(&lease.vm)
                && (link.controller != Some(bridge.index)
                    || !link.up
                    || link.forwards != forwards(bridge))
        });
        if let Some(link) = lost {
            enslave(handle, bridge, link, lease).await?;
            tracing::info!(
                "the tap '{name}' of VM '{}' is a port of the bridge as it should be, again",
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
    bridge: Bridge,
    tap: &Link,
    lease: &Lease,
) -> Result<(), NetworkError> {
    let failed = |error| {
        let act = format!(
            "make the tap '{}' of VM '{}' a port of the bridge",
            tap.name, lease.vm
        );
        NetworkError::netlink(act, error)
    };
    let join = LinkUnspec::new_with_index(tap.index)
        .alias(tap_alias(&lease.vm))
        .controller(bridge.index)
        .build();
    handle.link().set(join).execute().await.map_err(failed)?;
    let settle = LinkBridgePort::new(tap.index)
        .append_info_data(InfoBridgePort::GroupFwdMask(forwards(bridge)))
        .build();
    handle
        .link()
        .change(settle)
        .execute()
        .await
        .map_err(failed)?;
    let up = LinkUnspec::new_with_index(tap.index).up().build();
    handle.link().set(up).execute().await.map_err(failed)
}

fn forwards(bridge: Bridge) -> u16 {
    if bridge.guarded { FORWARDS } else { 0 }
}
