//! Bridge and taps, in a real kernel.

use std::time::{Duration, Instant};

use crate::host::{Host, addresses, ipam, link, network, sh};
use ipamd::AttachError;
use volant_spec::Name;

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

#[test]
fn netns_a_vm_gets_a_port_of_the_bridge_that_goes_with_its_descriptor() {
    let Some(host) = Host::new() else { return };
    host.block_on(|| async {
        let state = tempfile::tempdir().unwrap();
        let ipam = ipam(state.path(), "");
        let (place, tap) = ipam.attach(&name("web")).await.unwrap();
        assert_eq!(place.address.to_string(), "192.168.127.2/24");
        assert_eq!(place.gateway.to_string(), "192.168.127.1");
        assert_eq!(addresses("vbr0"), ["192.168.127.1/24"]);

        let bridge = link("vbr0");
        assert_eq!(bridge["ifalias"], "volant", "{bridge}");
        assert_eq!(bridge["address"], "02:76:c0:a8:7f:01");
        let port = link(&place.tap);
        assert_eq!(port["master"], "vbr0", "{port}");
        assert_eq!(port["ifalias"], "volant web");
        assert_eq!(port["linkinfo"]["info_data"]["vnet_hdr"], true);
        assert!(port["flags"].to_string().contains("\"UP\""), "{port}");
        assert_eq!(sh("cat /proc/sys/net/ipv4/ip_forward"), "1\n");
        assert_eq!(sh("cat /proc/sys/net/ipv6/conf/vbr0/disable_ipv6"), "1\n");

        drop(tap);
        assert!(link(&place.tap).is_null());
        // Another VM changes nothing about the bridge's own address.
        let (other, _tap) = ipam.attach(&name("db")).await.unwrap();
        assert_ne!(other.address, place.address);
        assert_eq!(link("vbr0")["address"], "02:76:c0:a8:7f:01");
    });
}

#[test]
fn netns_a_bridge_that_was_deleted_comes_back_with_the_ports_of_running_vms() {
    let Some(host) = Host::new() else { return };
    host.block_on(|| async {
        let state = tempfile::tempdir().unwrap();
        let ipam = ipam(state.path(), "");
        let (web, _web) = ipam.attach(&name("web")).await.unwrap();
        sh("ip link del vbr0");
        assert!(link(&web.tap)["master"].is_null());
        let (_, _db) = ipam.attach(&name("db")).await.unwrap();
        assert_eq!(link(&web.tap)["master"], "vbr0");
        assert_eq!(addresses("vbr0"), ["192.168.127.1/24"]);
    });
}

#[test]
fn netns_a_changed_subnet_or_name_moves_our_bridge_and_is_told_to_old_vms() {
    let Some(host) = Host::new() else { return };
    host.block_on(|| async {
        let state = tempfile::tempdir().unwrap();
        let before = ipam(state.path(), "");
        drop(before.attach(&name("old")).await.unwrap());
        let after = ipam(
            state.path(),
            "[network]\nsubnet = '10.9.0.0/16'\nbridge = 'vbr1'",
        );
        let (place, _tap) = after.attach(&name("new")).await.unwrap();
        assert_eq!(place.address.to_string(), "10.9.0.2/16");
        assert_eq!(addresses("vbr1"), ["10.9.0.1/16"]);
        assert!(link("vbr0").is_null());
        let moved = ipam(
            state.path(),
            "[network]\nsubnet = '10.8.0.0/16'\nbridge = 'vbr1'",
        );
        moved.attach(&name("newest")).await.unwrap();
        assert_eq!(addresses("vbr1"), ["10.8.0.1/16"]);
        let error = moved.attach(&name("old")).await.unwrap_err();
        assert!(matches!(error, AttachError::Lease(_)), "{error:?}");
        assert!(error.to_string().contains("192.168.127.2"), "{error}");
    });
}

#[test]
fn netns_a_link_of_that_name_that_is_no_bridge_is_left_alone() {
    let Some(host) = Host::new() else { return };
    host.block_on(|| async {
        sh("ip link add vbr0 type veth peer name x");
        let error = network("").ensure(&[]).await.unwrap_err().to_string();
        assert!(
            error.contains("'vbr0'") && error.contains("no bridge"),
            "{error}"
        );
        assert_eq!(link("vbr0")["linkinfo"]["info_kind"], "veth");
        assert_eq!(sh("nft list ruleset"), "");
    });
}

#[test]
fn netns_somebody_elses_bridge_is_used_and_outlives_us() {
    let Some(host) = Host::new() else { return };
    host.block_on(|| async {
        sh("ip link add vbr0 type bridge; ip addr add 172.31.0.1/24 dev vbr0");
        let network = network("");
        network.ensure(&[]).await.unwrap();
        assert_eq!(addresses("vbr0"), ["172.31.0.1/24", "192.168.127.1/24"]);
        assert!(link("vbr0")["ifalias"].is_null());
        network.teardown().await.unwrap();
        assert!(!link("vbr0").is_null());
    });
}

#[test]
fn netns_an_older_tap_is_waited_for_and_named_if_it_stays() {
    let Some(host) = Host::new() else { return };
    host.block_on(|| async {
        let state = tempfile::tempdir().unwrap();
        let ipam = ipam(state.path(), "");
        let (place, tap) = ipam.attach(&name("web")).await.unwrap();
        let error = ipam.release(&name("web")).await.unwrap_err();
        assert!(
            matches!(error, ipamd::ReleaseError::InUse { .. }),
            "{error:?}"
        );
        assert_eq!(ipam.leases().unwrap(), std::slice::from_ref(&place.lease));

        let begun = Instant::now();
        let second = tokio::spawn({
            let ipam = ipam.clone();
            async move { ipam.attach(&name("web")).await }
        });
        tokio::time::timeout(Duration::from_millis(200), async {
            while !second.is_finished() {
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap_err();
        drop(tap);
        let (again, tap) = second.await.unwrap().unwrap();
        assert_eq!(again, place);
        assert!(begun.elapsed() < Duration::from_secs(4));

        let error = ipam.attach(&name("web")).await.unwrap_err();
        let AttachError::Network { source, .. } = error else {
            panic!("{error:?}")
        };
        assert!(source.to_string().contains("last run"), "{source}");
        drop(tap);
        assert!(ipam.release(&name("web")).await.unwrap());
        assert!(!ipam.release(&name("web")).await.unwrap());
    });
}

#[test]
fn netns_others_are_served_while_an_older_tap_is_waited_for() {
    let Some(host) = Host::new() else { return };
    host.block_on(|| async {
        let state = tempfile::tempdir().unwrap();
        let ipam = ipam(state.path(), "");
        let (place, tap) = ipam.attach(&name("web")).await.unwrap();
        let (again, released) = (ipam.clone(), ipam.clone());
        let again = tokio::spawn(async move { again.attach(&name("web")).await });
        let released = tokio::spawn(async move { released.release(&name("web")).await });
        tokio::time::sleep(Duration::from_millis(100)).await;
        for vm in ["db", "mail", "db2"] {
            let vm = name(vm);
            let attached = tokio::time::timeout(Duration::from_secs(3), ipam.attach(&vm)).await;
            attached.expect("it waits for another VM").unwrap();
        }
        ipam.mend().await.unwrap();
        assert!(!again.is_finished(), "{:?}", again.await);
        assert!(!released.is_finished(), "{:?}", released.await);
        drop(tap);
        // Whoever comes first, an address that is in use is not given away.
        let (found, _tap) = again.await.unwrap().unwrap();
        match released.await.unwrap() {
            Ok(true) => {}
            other => assert!(
                matches!(other, Err(ipamd::ReleaseError::InUse { .. })),
                "{other:?}"
            ),
        }
        assert_eq!(found, place);
        assert!(ipam.leases().unwrap().contains(&place.lease));
    });
}

#[test]
fn netns_another_link_of_a_taps_name_is_not_taken_over() {
    let Some(host) = Host::new() else { return };
    host.block_on(|| async {
        let state = tempfile::tempdir().unwrap();
        let ipam = ipam(state.path(), "");
        sh("ip tuntap add vt3 mode tap");
        let error = ipam.attach(&name("web")).await.unwrap_err();
        let AttachError::Network { source, .. } = error else {
            panic!("{error:?}")
        };
        assert!(
            source.to_string().contains("another network link"),
            "{source}"
        );
        assert!(link("vt3")["master"].is_null());
        // Nor does it stand in the way of the lease's end.
        assert!(ipam.release(&name("web")).await.unwrap());
    });
}
