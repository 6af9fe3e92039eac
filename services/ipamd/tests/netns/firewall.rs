//! The firewall, in a real kernel: packets pass where others drop them, and nothing of others changes.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use crate::host::{Host, ipam, link, network, sh};
use ipamd::events;
use nix::sys::socket::{
    AddressFamily, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, socket,
};
use tokio::time::timeout;
use volant_service::Events;

/// As Docker leaves it.
const DOCKER: &str = "iptables-nft -P FORWARD DROP
    iptables-nft -N DOCKER-USER
    iptables-nft -A FORWARD -j DOCKER-USER
    iptables-nft -A DOCKER-USER -j RETURN";

/// As a careful administrator writes it.
const SITE: &str = r#"nft -f - <<'EOF'
table inet site {
    set blocked { type ipv4_addr; flags interval; elements = { 198.51.100.0/24 } }
    counter seen { packets 5000000000 bytes 50000000000000 }
    chain input { type filter hook input priority 0; policy drop; ct state established,related accept; iif "lo" accept; }
    chain forwarded {
        type filter hook forward priority 10; policy drop;
        ip saddr @blocked counter name seen drop comment "not ours"
    }
}
EOF"#;

fn ruleset() -> String {
    sh("nft -a list ruleset")
}

fn without_handles(text: &str) -> String {
    text.lines()
        .map(|line| line.split(" # handle").next().unwrap_or_default())
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn netns_chains_that_drop_are_opened_once_and_closed_again() {
    let Some(host) = Host::new() else { return };
    host.block_on(|| async {
        sh(DOCKER);
        sh(SITE);
        let before = ruleset();
        let network = network("");
        network.ensure(&[]).await.unwrap();
        let after = ruleset();
        network.ensure(&[]).await.unwrap();
        assert_eq!(ruleset(), after, "a second run changes nothing");

        // iptables shows our rules as its own, in Docker's chain for others.
        let iptables = sh("iptables-nft -S");
        let expected = "-A DOCKER-USER -i vbr0 -m comment --comment volant -j ACCEPT\n\
                        -A DOCKER-USER -o vbr0 -m comment --comment volant -j ACCEPT\n\
                        -A DOCKER-USER -j RETURN\n";
        assert!(iptables.contains(expected), "{iptables}");
        assert!(sh("iptables-nft-save").contains("DOCKER-USER -i vbr0"));

        // Beside the tagged rules and our table, every byte is as before.
        let (others, _ours) = after.split_once("table inet volant").unwrap();
        let others: Vec<_> = others
            .lines()
            .filter(|line| !line.contains("comment \"volant\""))
            .collect();
        assert_eq!(others, before.lines().collect::<Vec<_>>());

        network.teardown().await.unwrap();
        assert_eq!(ruleset(), before);
        assert!(link("vbr0").is_null());
    });
}

#[test]
fn netns_rules_that_others_flushed_come_back() {
    let Some(host) = Host::new() else { return };
    host.block_on(|| async {
        sh(DOCKER);
        let network = network("");
        network.ensure(&[]).await.unwrap();
        let right = without_handles(&ruleset());
        for harm in [
            "nft delete table inet volant",
            "nft flush chain inet volant forward",
            "iptables-nft -F DOCKER-USER; iptables-nft -A DOCKER-USER -j RETURN",
        ] {
            sh(harm);
            assert_ne!(without_handles(&ruleset()), right, "{harm}");
            network.ensure(&[]).await.unwrap();
            let tables = |text: &str| {
                let mut tables: Vec<_> = text
                    .split("\ntable ")
                    .map(str::trim)
                    .map(str::to_owned)
                    .collect();
                tables
                    .iter_mut()
                    .for_each(|table| *table = table.trim_start_matches("table ").to_owned());
                tables.sort();
                tables
            };
            assert_eq!(
                tables(&without_handles(&ruleset())),
                tables(&right),
                "{harm}"
            );
        }
    });
}

#[test]
fn netns_a_guest_reaches_the_world_through_a_forward_policy_of_drop_and_not_the_other_way() {
    let (Some(router), Some(guest), Some(world)) = (Host::new(), Host::new(), Host::new()) else {
        return;
    };
    let (to_guest, to_world) = (guest.netns.clone(), world.netns.clone());
    router.sh(DOCKER);
    router.sh(SITE);
    router.sh(&format!(
        "ip link add g0 type veth peer name eth0
         ip link set eth0 netns {}
         ip link add up0 type veth peer name eth0
         ip link set eth0 netns {}
         ip addr add 203.0.113.1/24 dev up0
         ip link set up0 up",
        to_guest.display(),
        to_world.display()
    ));
    guest.sh("ip addr add 192.168.127.2/24 dev eth0; ip link set eth0 up; ip route add default via 192.168.127.1");
    world.sh("ip addr add 203.0.113.2/24 dev eth0; ip link set eth0 up; ip route add 192.168.127.0/24 via 203.0.113.1");

    let listener = world.run(|| TcpListener::bind("203.0.113.2:0").unwrap());
    let address = listener.local_addr().unwrap();
    router.block_on(|| async { network("").ensure(&[]).await.unwrap() });
    router.sh("ip link set g0 master vbr0; ip link set g0 up");

    // Out, and back.
    let mut call = guest
        .run(move || TcpStream::connect_timeout(&address, Duration::from_secs(5)))
        .unwrap();
    let (mut answer, peer) = listener.accept().unwrap();
    assert_eq!(peer.ip().to_string(), "203.0.113.1", "masqueraded");
    answer.write_all(b"hello").unwrap();
    let mut heard = [0; 5];
    call.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"hello");

    // Not in, unless it was published.
    let listener = guest.run(|| TcpListener::bind("192.168.127.2:8080").unwrap());
    let from_world = |address: &str| {
        let address: SocketAddr = address.parse().unwrap();
        world.run(move || TcpStream::connect_timeout(&address, Duration::from_millis(700)).is_ok())
    };
    assert!(!from_world("192.168.127.2:8080"));
    router.sh("nft add table ip pub
         nft add chain ip pub pre '{ type nat hook prerouting priority -100; }'
         nft add rule ip pub pre iifname up0 tcp dport 80 dnat to 192.168.127.2:8080");
    assert!(from_world("203.0.113.1:80"));
    drop(listener);
    // The host itself reaches its guests.
    let listener = guest.run(|| TcpListener::bind("192.168.127.2:8081").unwrap());
    assert!(router.run(|| {
        let address: SocketAddr = "192.168.127.2:8081".parse().unwrap();
        // The careful administrator's input chain lets answers in.
        TcpStream::connect_timeout(&address, Duration::from_secs(5)).is_ok()
    }));
    drop(listener);
}

/// As systemd opens it for `ListenNetlink=FAMILY GROUPS`.
fn told(protocol: SockProtocol, groups: u32) -> std::os::fd::OwnedFd {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        protocol,
    )
    .unwrap();
    bind(
        std::os::fd::AsRawFd::as_raw_fd(&socket),
        &NetlinkAddr::new(0, groups),
    )
    .unwrap();
    socket
}

#[test]
fn netns_what_others_remove_is_mended_when_the_kernel_tells_and_then_it_is_quiet() {
    const PATIENCE: Duration = Duration::from_secs(10);
    let Some(host) = Host::new() else { return };
    host.block_on(|| async {
        let state = tempfile::tempdir().unwrap();
        let ipam = ipam(state.path(), "");
        let sockets = vec![
            told(SockProtocol::NetlinkNetFilter, 64),
            told(SockProtocol::NetlinkRoute, 1),
        ];
        let watching = tokio::spawn(events::watch(sockets, ipam.clone()));
        // Without a VM there is nothing to mend.
        sh("iptables-nft -P FORWARD DROP");
        let nft = Events::new(told(SockProtocol::NetlinkNetFilter, 64)).unwrap();
        let links = Events::new(told(SockProtocol::NetlinkRoute, 1)).unwrap();
        timeout(Duration::from_secs(1), nft.happened())
            .await
            .unwrap_err();
        assert!(link("vbr0").is_null());

        let (place, _tap) = ipam.attach(&"web".parse().unwrap()).await.unwrap();
        let right = || {
            link("vbr0")["ifalias"] == "volant"
                && link(&place.tap)["master"] == "vbr0"
                && sh("iptables-nft -S").contains("-i vbr0 -m comment --comment volant -j ACCEPT")
                && sh("nft list ruleset").contains("masquerade")
        };
        for harm in [
            "true",
            "ip link del vbr0",
            "nft delete table inet volant",
            "iptables-nft -F FORWARD",
            "ip link set vbr0 down; ip link set $(ip -o link | grep -o 'vt[0-9]*') nomaster",
        ] {
            sh(harm);
            timeout(PATIENCE, async {
                while !right() || link("vbr0")["flags"].to_string().contains("\"DOWN\"") {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            })
            .await
            .unwrap_or_else(|_| panic!("not mended: {harm}"));
        }
        // Our own changes are told too; they must not make us change things again and again.
        timeout(PATIENCE, async {
            loop {
                nft.drain().unwrap();
                links.drain().unwrap();
                let quiet = timeout(Duration::from_secs(1), async {
                    tokio::select! {
                        _ = nft.happened() => {}
                        _ = links.happened() => {}
                    }
                });
                if quiet.await.is_err() {
                    break;
                }
            }
        })
        .await
        .expect("it never becomes quiet");
        assert!(!watching.is_finished());
        watching.abort();
    });
}
