//! What a guest may send, in a real kernel: frames are written to a VM's tap, as its VMM would, and looked for at the
//! tap of its neighbour and in the host.

use std::{
    fs,
    net::UdpSocket,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
    process::Command,
    time::{Duration, Instant},
};

use crate::host::{Host, ipam, sh};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    unistd::{read, write},
};

/// The header of a frame on a tap (`IFF_VNET_HDR`): no offload.
const PLAIN: [u8; 10] = [0; 10];
/// In each frame of ours, so that others are told apart.
const MARK: &[u8] = b"volant-test-frame";

const WEB: [u8; 6] = [0x02, b'v', 192, 168, 127, 2];
const DB: [u8; 6] = [0x02, b'v', 192, 168, 127, 3];
const STRANGER: [u8; 6] = [0x02, 0, 0, 0, 0, 9];
const ALL: [u8; 6] = [0xff; 6];
const WEB_IP: [u8; 4] = [192, 168, 127, 2];
const DB_IP: [u8; 4] = [192, 168, 127, 3];
const HOST_IP: [u8; 4] = [192, 168, 127, 1];

fn frame(to: [u8; 6], from: [u8; 6], kind: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut frame = [&to[..], &from, kind, payload].concat();
    frame.extend(MARK);
    frame.resize(frame.len().max(60), 0);
    frame
}

/// A UDP packet without checksum.
fn ipv4(from: [u8; 4], to: [u8; 4], ports: (u16, u16)) -> Vec<u8> {
    let length = u16::try_from(MARK.len()).unwrap();
    let mut header = vec![0x45, 0];
    header.extend((28 + length).to_be_bytes());
    header.extend([0, 0, 0, 0, 64, 17, 0, 0]);
    header.extend([from, to].concat());
    let checksum = !sum(&header);
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    header.extend(ports.0.to_be_bytes());
    header.extend(ports.1.to_be_bytes());
    header.extend((8 + length).to_be_bytes());
    header.extend([0, 0]);
    header
}

fn arp(act: u8, mac: [u8; 6], from: [u8; 4], to: [u8; 4]) -> Vec<u8> {
    [&[0, 1, 8, 0, 6, 4, 0, act][..], &mac, &from, &[0; 6], &to].concat()
}

/// A packet to all nodes, with a right checksum if it is of ICMPv6: the bridge looks at those itself.
fn ipv6(next: u8, what: u8) -> Vec<u8> {
    let length = u8::try_from(4 + MARK.len()).unwrap();
    let mut packet = vec![0x60, 0, 0, 0, 0, length, next, 255];
    packet.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
    packet.extend([0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    packet.extend([what, 0, 0, 0]);
    let pseudo = [0, 0, 0, length, 0, 0, 0, next];
    let checksum = !sum(&[&packet[8..40], &pseudo, &packet[40..], MARK].concat());
    packet[42..44].copy_from_slice(&checksum.to_be_bytes());
    packet
}

/// As the Internet's protocols add 16 bits at a time.
fn sum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])))
        .sum();
    u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap()
}

/// What `web` has every right to send.
fn honest() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        (
            "a packet",
            frame(DB, WEB, &[8, 0], &ipv4(WEB_IP, DB_IP, (9, 9))),
        ),
        (
            "a broadcast",
            frame(ALL, WEB, &[8, 0], &ipv4(WEB_IP, [255; 4], (9, 9))),
        ),
        (
            "a request",
            frame(ALL, WEB, &[8, 6], &arp(1, WEB, WEB_IP, DB_IP)),
        ),
        (
            "an answer",
            frame(DB, WEB, &[8, 6], &arp(2, WEB, WEB_IP, DB_IP)),
        ),
        (
            "a probe",
            frame(ALL, WEB, &[8, 6], &arp(1, WEB, [0; 4], WEB_IP)),
        ),
    ]
}

/// What it has not.
fn forged() -> Vec<(&'static str, Vec<u8>)> {
    let vlan = |tag: [u8; 2], inner: &[u8]| [&[tag[0], tag[1], 0, 5, 8, 0][..], inner].concat();
    let good = ipv4(WEB_IP, DB_IP, (9, 9));
    let mut odd = arp(2, WEB, WEB_IP, DB_IP);
    odd[4] = 8;
    vec![
        (
            "db's address",
            frame(DB, WEB, &[8, 0], &ipv4(DB_IP, DB_IP, (9, 9))),
        ),
        (
            "the host's address",
            frame(DB, WEB, &[8, 0], &ipv4(HOST_IP, DB_IP, (9, 9))),
        ),
        (
            "an address from afar",
            frame(DB, WEB, &[8, 0], &ipv4([8; 4], DB_IP, (9, 9))),
        ),
        (
            "no address",
            frame(ALL, WEB, &[8, 0], &ipv4([0; 4], [255; 4], (9, 9))),
        ),
        ("another MAC", frame(DB, STRANGER, &[8, 0], &good)),
        ("db's MAC", frame(ALL, DB, &[8, 0], &good)),
        (
            "an answer for the host",
            frame(DB, WEB, &[8, 6], &arp(2, WEB, HOST_IP, DB_IP)),
        ),
        (
            "an answer with another MAC",
            frame(DB, WEB, &[8, 6], &arp(2, STRANGER, WEB_IP, DB_IP)),
        ),
        (
            "a request in db's name",
            frame(ALL, WEB, &[8, 6], &arp(1, DB, DB_IP, HOST_IP)),
        ),
        (
            "a request from another MAC",
            frame(ALL, STRANGER, &[8, 6], &arp(1, WEB, WEB_IP, DB_IP)),
        ),
        (
            "a probe for another's",
            frame(ALL, WEB, &[8, 6], &arp(1, WEB, [0; 4], DB_IP)),
        ),
        (
            "an answer from nobody",
            frame(ALL, WEB, &[8, 6], &arp(2, WEB, [0; 4], WEB_IP)),
        ),
        ("ARP of odd lengths", frame(ALL, WEB, &[8, 6], &odd)),
        (
            "reverse ARP",
            frame(ALL, WEB, &[0x80, 0x35], &arp(3, WEB, WEB_IP, DB_IP)),
        ),
        (
            "a DHCP offer",
            frame(ALL, WEB, &[8, 0], &ipv4(WEB_IP, [255; 4], (67, 68))),
        ),
        (
            "a router's advertisement",
            frame(ALL, WEB, &[0x86, 0xdd], &ipv6(58, 134)),
        ),
        ("IPv6", frame(DB, WEB, &[0x86, 0xdd], &ipv6(17, 0))),
        ("802.1Q", frame(DB, WEB, &vlan([0x81, 0], &good), &[])),
        ("802.1ad", frame(DB, WEB, &vlan([0x88, 0xa8], &good), &[])),
        (
            "802.3",
            frame(ALL, WEB, &[0, 40], &[0xaa, 0xaa, 3, 0, 0, 0, 8, 0]),
        ),
        (
            "LLDP",
            frame([1, 0x80, 0xc2, 0, 0, 0x0e], WEB, &[0x88, 0xcc], &[]),
        ),
        (
            "spanning tree",
            frame([1, 0x80, 0xc2, 0, 0, 0], WEB, &[0, 38], &[0x42, 0x42, 3]),
        ),
        (
            "a packet to bridges",
            frame([1, 0x80, 0xc2, 0, 0, 0x0e], WEB, &[8, 0], &good),
        ),
        ("its own experiment", frame(DB, WEB, &[0x88, 0xb5], &[])),
    ]
}

fn send(tap: &OwnedFd, frame: &[u8]) {
    let sent = [&PLAIN[..], frame].concat();
    assert_eq!(write(tap, &sent).unwrap(), sent.len());
}

/// Whether a frame of ours comes to that tap. The bridge is done with a frame before `write` returns, or soon after.
fn arrives(tap: &OwnedFd, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    let mut found = false;
    let mut buffer = [0; 2048];
    while let Some(left) = deadline.checked_duration_since(Instant::now()) {
        let mut fds = [PollFd::new(tap.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::try_from(left).unwrap()).unwrap();
        while let Ok(length) = read(tap, &mut buffer) {
            found |= buffer[..length]
                .windows(MARK.len())
                .any(|window| window == MARK);
        }
        if found {
            break;
        }
    }
    found
}

const LONG: Duration = Duration::from_secs(5);
const SHORT: Duration = Duration::from_millis(60);

#[test]
fn netns_a_guest_sends_from_its_own_lease_alone() {
    let Some(host) = Host::new() else { return };
    host.block_on(|| async {
        let state = tempfile::tempdir().unwrap();
        let ipam = ipam(state.path(), "");
        let (_, web) = ipam.attach(&"web".parse().unwrap()).await.unwrap();
        let (_, db) = ipam.attach(&"db".parse().unwrap()).await.unwrap();
        for round in ["at first", "after a flush"] {
            for (what, frame) in honest() {
                send(&web, &frame);
                assert!(arrives(&db, LONG), "{what}: {round}");
            }
            for (what, frame) in forged() {
                send(&web, &frame);
                assert!(!arrives(&db, SHORT), "{what}: {round}");
            }
            // Nothing of all that taught the bridge a wrong way.
            let learnt = sh("bridge fdb show dynamic 2>/dev/null || bridge fdb show");
            assert!(!learnt.contains("02:00:00:00:00:09"), "{learnt}");
            sh("nft flush ruleset");
            // What is refused comes through without the rules, or this test would tell nothing.
            for (what, frame) in forged() {
                sh("ip link set vt3 type bridge_slave fdb_flush");
                send(&web, &frame);
                assert!(arrives(&db, LONG), "{what}: without rules");
            }
            ipam.mend().await.unwrap();
            sh("ip link set vt3 type bridge_slave fdb_flush");
        }
    });
}

/// Frames for bridges themselves go past the firewall and up the stack of the tap, unless its port forwards them.
#[test]
fn netns_a_guest_reaches_the_host_by_no_side_door() {
    let Some(host) = Host::new() else { return };
    host.block_on(|| async {
        let state = tempfile::tempdir().unwrap();
        let ipam = ipam(state.path(), "");
        let (_, web) = ipam.attach(&"web".parse().unwrap()).await.unwrap();
        let socket = UdpSocket::bind("192.168.127.1:9").unwrap();
        let hears = |patience: Duration| {
            socket.set_read_timeout(Some(patience)).unwrap();
            socket.recv(&mut [0; 64]).is_ok()
        };
        let bridges = [1, 0x80, 0xc2, 0, 0, 0x0e];
        let from_afar = frame(
            bridges,
            STRANGER,
            &[8, 0],
            &ipv4([192, 168, 127, 77], HOST_IP, (9, 9)),
        );
        let right = frame(
            [0x02, b'v', 192, 168, 127, 1],
            WEB,
            &[8, 0],
            &ipv4(WEB_IP, HOST_IP, (9, 9)),
        );
        send(&web, &right);
        assert!(hears(LONG));
        let learnt = || sh("bridge fdb show").contains("02:00:00:00:00:09");
        send(&web, &from_afar);
        assert!(!hears(SHORT) && !learnt());
        // As the kernel has it by itself, and as a tap is that an older ipamd opened.
        sh("ip link set vt3 type bridge_slave group_fwd_mask 0");
        send(&web, &from_afar);
        assert!(learnt());
        ipam.mend().await.unwrap();
        sh("ip link set vt3 type bridge_slave fdb_flush");
        send(&web, &from_afar);
        assert!(!learnt());
    });
}

#[test]
fn netns_the_rules_follow_the_leases_and_whoever_changes_them() {
    let Some(host) = Host::new() else { return };
    host.block_on(|| async {
        let state = tempfile::tempdir().unwrap();
        let ipam = ipam(state.path(), "");
        let table = || sh("nft list table bridge volant | sed 's/packets.*bytes [0-9]*//'");
        // A set has its elements in no order.
        let sorted = |text: &str| {
            let mut words: Vec<_> = text
                .split([' ', '\t', '\n', ','])
                .filter(|word| !word.is_empty())
                .map(str::to_owned)
                .collect();
            words.sort();
            words
        };
        let (_, web) = ipam.attach(&"web".parse().unwrap()).await.unwrap();
        let one = table();
        assert!(one.contains("\"vt3\" . 02:76:c0:a8:7f:02 . 192.168.127.2"), "{one}");
        drop(ipam.attach(&"db".parse().unwrap()).await.unwrap());
        let both = table();
        assert!(both.contains("\"vt4\" . 02:76:c0:a8:7f:03 . 192.168.127.3"), "{both}");
        for harm in [
            "nft delete table bridge volant",
            "nft flush chain bridge volant guests",
            "nft flush set bridge volant taps",
            "nft delete element bridge volant taps '{ \"vt3\" }'",
            "nft add element bridge volant senders '{ \"vt3\" . 02:76:c0:a8:7f:02 . 192.168.127.9 }'",
        ] {
            sh(harm);
            assert_ne!(sorted(&table()), sorted(&both), "{harm}");
            ipam.mend().await.unwrap();
            assert_eq!(sorted(&table()), sorted(&both), "{harm}");
        }
        // With a lease go its elements, and nothing else.
        assert!(ipam.release(&"db".parse().unwrap()).await.unwrap());
        assert_eq!(sorted(&table()), sorted(&one));
        drop(web);
        assert!(ipam.release(&"web".parse().unwrap()).await.unwrap());
        assert!(!table().contains("vt3"));
        // The next VM has the same tap and address.
        drop(ipam.attach(&"mail".parse().unwrap()).await.unwrap());
        assert_eq!(sorted(&table()), sorted(&one));
    });
}

/// An nft that answers as the real one does where the kernel has no tables of the family bridge.
const WITHOUT_BRIDGES: &str = r#"#!/bin/sh
input=$(cat)
case "$input" in
*'"family":"bridge"'*)
    echo 'Error: Could not process rule: Operation not supported' >&2
    exit 1 ;;
esac
PATH=${PATH#*:}
printf %s "$input" | nft "$@"
"#;

#[test]
fn netns_vms_run_unguarded_where_the_kernel_cannot_filter_on_a_bridge() {
    const INNER: &str = "VOLANT_TEST_WITHOUT_BRIDGES";
    let Some(host) = Host::new() else { return };
    if std::env::var_os(INNER).is_none() {
        // Where programs are looked for is the process's: this test once more, in one of its own.
        let programs = tempfile::tempdir().unwrap();
        let nft = programs.path().join("nft");
        fs::write(&nft, WITHOUT_BRIDGES).unwrap();
        fs::set_permissions(&nft, fs::Permissions::from_mode(0o755)).unwrap();
        let path = std::env::var("PATH").unwrap();
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["netns_vms_run_unguarded", "--nocapture"])
            .env(INNER, "1")
            .env("PATH", format!("{}:{path}", programs.path().display()))
            .output()
            .unwrap();
        let said = format!("{output:?}");
        assert!(
            output.status.success() && said.contains("1 passed"),
            "{said}"
        );
        assert_eq!(
            said.matches("cannot filter on a bridge (").count(),
            1,
            "{said}"
        );
        return;
    }
    host.block_on(|| async {
        volant_service::init_logging().unwrap();
        let state = tempfile::tempdir().unwrap();
        let ipam = ipam(state.path(), "");
        let (_, _web) = ipam.attach(&"web".parse().unwrap()).await.unwrap();
        let (_, _db) = ipam.attach(&"db".parse().unwrap()).await.unwrap();
        let rules = sh("nft list ruleset");
        assert!(rules.contains("table inet volant") && !rules.contains("table bridge"));
        // Nor do frames for bridges themselves go on to others.
        let mask =
            sh("cat /sys/class/net/vt3/brport/group_fwd_mask 2>/dev/null || ip -d link show vt3");
        assert!(!mask.contains("fffd"), "{mask}");
    });
}
