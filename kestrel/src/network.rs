//! The guest's links, addresses and routes, by netlink.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use futures_util::TryStreamExt as _;
use netlink_packet_route::link::LinkAttribute;
use nix::errno::Errno;
use rtnetlink::{Error as NetlinkError, Handle, LinkUnspec, RouteMessageBuilder, new_connection};
use tokio::time::{Instant, sleep};

use crate::config::{Mac, NetworkConfig};

/// How long the link may take to appear.
const LINK_WITHIN: Duration = Duration::from_secs(5);
const LINK_PAUSE: Duration = Duration::from_millis(10);
/// The loopback link is the first of every network namespace.
const LOOPBACK: u32 = 1;

/// Why the guest has no network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error("cannot speak netlink")]
    Open(#[source] io::Error),
    #[error("cannot {act}")]
    Request { act: String, source: io::Error },
    #[error("no link has the hardware address {0}")]
    NoLink(Mac),
}

/// What an agent needs of a network.
pub trait Network {
    /// Brings the loopback link up.
    fn loopback(&self) -> impl Future<Output = Result<(), NetworkError>>;

    /// Gives the link its addresses and routes. What is there already stays.
    fn configure(&self, config: &NetworkConfig) -> impl Future<Output = Result<(), NetworkError>>;
}

/// The network of this process's namespace.
#[derive(Clone, Copy, Debug)]
pub struct Netlink;

impl Network for Netlink {
    async fn loopback(&self) -> Result<(), NetworkError> {
        let netlink = open()?;
        let up = LinkUnspec::new_with_index(LOOPBACK).up().build();
        done(
            "bring the loopback link up",
            netlink.link().set(up).execute().await,
        )
    }

    async fn configure(&self, config: &NetworkConfig) -> Result<(), NetworkError> {
        let netlink = open()?;
        let link = wait_for_link(&netlink, config.mac).await?;
        for address in &config.addresses {
            let added = netlink
                .address()
                .add(link, address.ip, address.prefix)
                .execute()
                .await;
            done(&format!("give the link the address {address}"), added)?;
        }
        let up = LinkUnspec::new_with_index(link).up().build();
        done(
            &format!("bring up the link {}", config.mac),
            netlink.link().set(up).execute().await,
        )?;
        for gateway in &config.gateways {
            let route = match gateway {
                IpAddr::V4(gateway) => RouteMessageBuilder::<Ipv4Addr>::new()
                    .gateway(*gateway)
                    .output_interface(link)
                    .build(),
                IpAddr::V6(gateway) => RouteMessageBuilder::<Ipv6Addr>::new()
                    .gateway(*gateway)
                    .output_interface(link)
                    .build(),
            };
            done(
                &format!("route by {gateway}"),
                netlink.route().add(route).execute().await,
            )?;
        }
        Ok(())
    }
}

/// The connection ends with its last handle.
fn open() -> Result<Handle, NetworkError> {
    let (connection, handle, _) = new_connection().map_err(NetworkError::Open)?;
    tokio::spawn(connection);
    Ok(handle)
}

async fn wait_for_link(netlink: &Handle, mac: Mac) -> Result<u32, NetworkError> {
    let deadline = Instant::now() + LINK_WITHIN;
    loop {
        let mut links = netlink.link().get().execute();
        while let Some(link) = links
            .try_next()
            .await
            .map_err(|error| failed("list the links", error))?
        {
            let has_mac = link.attributes.iter().any(
                |attribute| matches!(attribute, LinkAttribute::Address(bytes) if *bytes == mac.0),
            );
            if has_mac {
                return Ok(link.header.index);
            }
        }
        if Instant::now() >= deadline {
            return Err(NetworkError::NoLink(mac));
        }
        sleep(LINK_PAUSE).await;
    }
}

/// "It exists" is what was wanted.
fn done(act: &str, result: Result<(), NetlinkError>) -> Result<(), NetworkError> {
    match result {
        Err(NetlinkError::NetlinkError(message))
            if message.raw_code() == -(Errno::EEXIST as i32) =>
        {
            Ok(())
        }
        Err(error) => Err(failed(act, error)),
        Ok(()) => Ok(()),
    }
}

fn failed(act: &str, error: NetlinkError) -> NetworkError {
    NetworkError::Request {
        act: act.to_owned(),
        source: match error {
            NetlinkError::NetlinkError(message) => message.to_io(),
            error => io::Error::other(error),
        },
    }
}
