//! The network by real netlink, each test in a network namespace of its own.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot be set up has failed"
)]

use std::net::{IpAddr, Ipv4Addr};

use futures_util::TryStreamExt as _;
use kestrel::{Netlink, Network as _, NetworkConfig};
use netlink_packet_route::{
    address::AddressAttribute,
    link::LinkFlags,
    route::{RouteAddress, RouteAttribute},
};
use nix::sched::{CloneFlags, unshare};
use rtnetlink::{Handle, LinkVeth, RouteMessageBuilder, new_connection};

const MAC: [u8; 6] = [0x52, 0x54, 0, 0, 0, 7];

/// The runtime of a test stays on its thread, and so in the namespace.
fn own_network() -> Handle {
    unshare(CloneFlags::CLONE_NEWNET).expect("root may have a network of its own");
    let (connection, handle, _) = new_connection().unwrap();
    tokio::spawn(connection);
    handle
}

fn config() -> NetworkConfig {
    NetworkConfig {
        mac: "52:54:00:00:00:07".parse().unwrap(),
        addresses: vec!["192.168.127.2/24".parse().unwrap()],
        gateways: vec!["192.168.127.1".parse().unwrap()],
        dns: vec![],
    }
}

#[tokio::test]
async fn netns_loopback_comes_up() {
    let netlink = own_network();
    Netlink.loopback().await.unwrap();
    let link = netlink
        .link()
        .get()
        .match_index(1)
        .execute()
        .try_next()
        .await
        .unwrap()
        .unwrap();
    assert!(link.header.flags.contains(LinkFlags::Up));
}

#[tokio::test]
async fn netns_the_link_with_the_address_is_configured_and_again_changes_nothing() {
    let netlink = own_network();
    let pair = LinkVeth::new("other", "peer").build();
    netlink.link().add(pair).execute().await.unwrap();
    let pair = LinkVeth::new("guest", "host")
        .address(MAC.to_vec())
        .up()
        .build();
    netlink.link().add(pair).execute().await.unwrap();
    Netlink.configure(&config()).await.unwrap();
    Netlink.configure(&config()).await.unwrap();

    let link = netlink
        .link()
        .get()
        .match_name("guest".to_owned())
        .execute()
        .try_next()
        .await
        .unwrap()
        .unwrap();
    assert!(link.header.flags.contains(LinkFlags::Up));
    let addresses: Vec<_> = netlink
        .address()
        .get()
        .execute()
        .try_collect()
        .await
        .unwrap();
    let given: Vec<_> = addresses
        .iter()
        .filter(|address| address.header.index == link.header.index)
        .flat_map(|address| &address.attributes)
        .filter_map(|attribute| match attribute {
            AddressAttribute::Local(IpAddr::V4(ip)) => Some(*ip),
            _ => None,
        })
        .collect();
    assert_eq!(given, [Ipv4Addr::new(192, 168, 127, 2)]);
    let routes = netlink
        .route()
        .get(RouteMessageBuilder::<Ipv4Addr>::new().build())
        .execute();
    let routes: Vec<_> = routes.try_collect().await.unwrap();
    let gateways: Vec<_> = routes
        .iter()
        .filter(|route| route.header.destination_prefix_length == 0)
        .flat_map(|route| &route.attributes)
        .filter(|attribute| matches!(attribute, RouteAttribute::Gateway(_)))
        .collect();
    let gateway = RouteAttribute::Gateway(RouteAddress::Inet(Ipv4Addr::new(192, 168, 127, 1)));
    assert_eq!(gateways, [&gateway]);
}

#[tokio::test(start_paused = true)]
async fn netns_a_link_that_never_comes_is_named() {
    own_network();
    let error = Netlink.configure(&config()).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "no link has the hardware address 52:54:00:00:00:07"
    );
}

#[tokio::test]
async fn netns_a_gateway_that_cannot_be_reached_is_named() {
    let netlink = own_network();
    let pair = LinkVeth::new("guest", "host").address(MAC.to_vec()).build();
    netlink.link().add(pair).execute().await.unwrap();
    let mut config = config();
    config.gateways = vec!["10.0.0.1".parse().unwrap()];
    let error = Netlink.configure(&config).await.unwrap_err();
    assert_eq!(error.to_string(), "cannot route by 10.0.0.1");
}
