//! The bridge: there, ours, up, and with the host's address.

use std::net::{IpAddr, Ipv4Addr};

use futures_util::TryStreamExt;
use ipnet::Ipv4Net;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::{Handle, LinkBridge, LinkUnspec};

use super::{
    NetworkError,
    link::{self, ALIAS, Link},
    sysctl,
};
use crate::pool::Mac;

/// Makes the bridge be as it should, and gives its index. One that somebody else made under that name is used, gets
/// the address, and is left alone otherwise. Bridges of ours by another name (an older configuration) go.
pub(super) async fn ensure(
    handle: &Handle,
    name: &str,
    address: Ipv4Net,
) -> Result<u32, NetworkError> {
    let links = link::all(handle).await?;
    for old in links
        .iter()
        .filter(|link| link.is_our_bridge() && link.name != name)
    {
        remove(handle, old).await?;
    }
    let found = links.into_iter().find(|link| link.name == name);
    let bridge = match found {
        Some(link) if !link.is_bridge() => {
            return Err(NetworkError::NoBridge {
                name: name.to_owned(),
            });
        }
        Some(link) => link,
        None => create(handle, name, address.addr()).await?,
    };
    // A bridge with the very address that we give is ours, even if we were stopped before we marked it.
    let ours = bridge.is_our_bridge() || bridge.mac == Mac::of(address.addr()).octets();
    if ours && bridge.alias.as_deref() != Some(ALIAS) {
        let mark = LinkUnspec::new_with_index(bridge.index)
            .alias(ALIAS)
            .build();
        set(handle, mark, name, "mark").await?;
    }
    if ours {
        sysctl::without_ipv6(name)?;
    }
    readdress(handle, &bridge, address, ours).await?;
    if !bridge.up {
        let up = LinkUnspec::new_with_index(bridge.index).up().build();
        set(handle, up, name, "set up").await?;
    }
    Ok(bridge.index)
}

/// Removes a bridge.
pub(super) async fn remove(handle: &Handle, bridge: &Link) -> Result<(), NetworkError> {
    handle
        .link()
        .del(bridge.index)
        .execute()
        .await
        .map_err(|error| {
            NetworkError::netlink(format!("remove the bridge '{}'", bridge.name), error)
        })?;
    tracing::info!("removed the bridge '{}'", bridge.name);
    Ok(())
}

/// A bridge takes the lowest link-layer address of its ports unless it has one of its own; guests would lose the
/// host whenever another VM comes or goes.
async fn create(handle: &Handle, name: &str, address: Ipv4Addr) -> Result<Link, NetworkError> {
    let message = LinkBridge::new(name)
        .down()
        .address(Mac::of(address).octets().to_vec())
        .build();
    handle
        .link()
        .add(message)
        .execute()
        .await
        .map_err(|error| NetworkError::netlink(format!("create the bridge '{name}'"), error))?;
    tracing::info!("created the bridge '{name}'");
    let links = link::all(handle).await?;
    links
        .into_iter()
        .find(|link| link.name == name && link.is_bridge())
        .ok_or_else(|| NetworkError::Vanished {
            name: name.to_owned(),
        })
}

/// Gives the bridge the address, and takes others away if it is ours (the subnet was changed).
async fn readdress(
    handle: &Handle,
    bridge: &Link,
    address: Ipv4Net,
    ours: bool,
) -> Result<(), NetworkError> {
    let act =
        |verb: &str, address: &str| format!("{verb} {address} on the bridge '{}'", bridge.name);
    let found: Vec<AddressMessage> = handle
        .address()
        .get()
        .set_link_index_filter(bridge.index)
        .execute()
        .try_collect()
        .await
        .map_err(|error| NetworkError::netlink(act("find", "addresses"), error))?;
    let mut there = false;
    for message in found {
        match ipv4_of(&message) {
            Some(found) if found == address => there = true,
            Some(found) if ours => {
                handle
                    .address()
                    .del(message)
                    .execute()
                    .await
                    .map_err(|error| {
                        NetworkError::netlink(act("remove the address", &found.to_string()), error)
                    })?;
                tracing::info!(
                    "removed the address {found} of the bridge '{}'",
                    bridge.name
                );
            }
            _ => {}
        }
    }
    if !there {
        handle
            .address()
            .add(bridge.index, address.addr().into(), address.prefix_len())
            .execute()
            .await
            .map_err(|error| {
                NetworkError::netlink(act("set the address", &address.to_string()), error)
            })?;
        tracing::info!("the bridge '{}' has the address {address} now", bridge.name);
    }
    Ok(())
}

fn ipv4_of(message: &AddressMessage) -> Option<Ipv4Net> {
    let address = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            AddressAttribute::Local(IpAddr::V4(address)) => Some(*address),
            _ => None,
        })?;
    Ipv4Net::new(address, message.header.prefix_len).ok()
}

async fn set(
    handle: &Handle,
    message: netlink_packet_route::link::LinkMessage,
    name: &str,
    verb: &str,
) -> Result<(), NetworkError> {
    handle
        .link()
        .set(message)
        .execute()
        .await
        .map_err(|error| NetworkError::netlink(format!("{verb} the bridge '{name}'"), error))
}
