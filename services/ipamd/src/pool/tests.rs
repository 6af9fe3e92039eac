use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn subnet(text: &str) -> Subnet {
    Subnet::try_from(text.parse::<Ipv4Net>().unwrap()).unwrap()
}

fn name(number: u8) -> Name {
    format!("vm-{number}").parse().unwrap()
}

/// Takes a lease as the store does.
fn take(subnet: Subnet, leases: &mut Vec<Lease>, number: u8) -> Result<Lease, ChoiceError> {
    match choose(subnet, leases, &name(number))? {
        Choice::Held(lease) => Ok(lease),
        Choice::New(lease) => {
            leases.push(lease.clone());
            Ok(lease)
        }
    }
}

#[test]
fn addresses_are_given_in_numeric_order_and_gaps_are_filled() {
    let subnet = subnet("192.168.127.0/24");
    let mut leases = Vec::new();
    for (number, expected) in [(0, 2), (1, 3), (2, 4)] {
        let lease = take(subnet, &mut leases, number).unwrap();
        assert_eq!(
            lease.address,
            IpAddr::from([192, 168, 127, expected]),
            "{lease:?}"
        );
        assert_eq!(lease.cid.get(), u32::from(number) + 3);
    }
    leases.remove(1);
    let lease = take(subnet, &mut leases, 9).unwrap();
    assert_eq!(lease.address, IpAddr::from([192, 168, 127, 3]));
    assert_eq!(lease.mac.to_string(), "02:76:c0:a8:7f:03");
    assert_eq!(lease.cid.get(), 4);
}

#[test]
fn a_full_subnet_is_told_with_its_size() {
    let subnet = subnet("10.0.0.0/30");
    assert_eq!(capacity(subnet), 1);
    let mut leases = Vec::new();
    take(subnet, &mut leases, 0).unwrap();
    let error = take(subnet, &mut leases, 1).unwrap_err().to_string();
    assert!(
        error.contains("'vm-1'") && error.contains("all 1 of 10.0.0.0/30"),
        "{error}"
    );
}

#[test]
fn a_changed_subnet_names_the_vm_its_address_and_the_way_out() {
    let mut leases = Vec::new();
    take(subnet("10.0.0.0/24"), &mut leases, 0).unwrap();
    let error = take(subnet("10.1.0.0/24"), &mut leases, 0)
        .unwrap_err()
        .to_string();
    for part in [
        "'vm-0'",
        "10.0.0.2",
        "10.1.0.0/24",
        "volar vms delete vm-0",
        "network.subnet",
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }
    assert_eq!(
        take(subnet("10.0.0.0/24"), &mut leases, 0).unwrap().address,
        IpAddr::from([10, 0, 0, 2])
    );
}

#[test]
fn an_address_that_became_the_hosts_is_outside() {
    let mut leases = Vec::new();
    take(subnet("10.0.0.0/30"), &mut leases, 0).unwrap();
    leases[0].address = IpAddr::from([10, 0, 0, 5]);
    // 10.0.0.5 is the first address of the new subnet, hence the host's.
    assert!(take(subnet("10.0.0.4/30"), &mut leases, 0).is_err());
}

#[test]
fn a_mac_is_read_as_it_is_written() {
    let mac = Mac::of(Ipv4Addr::new(10, 0, 255, 1));
    assert_eq!(mac.to_string().parse::<Mac>().unwrap(), mac);
    for text in [
        "",
        "02:76",
        "02:76:0:0:0:1",
        "02:76:00:00:00:01:02",
        "02:76:00:00:00:+1",
        "02-76-00-00-00-01",
    ] {
        assert!(text.parse::<Mac>().is_err(), "{text}");
    }
}

#[derive(Clone, Debug)]
enum Op {
    Lease(u8),
    Release(u8),
    Subnet(usize),
}

const SUBNETS: [&str; 4] = ["10.0.0.0/29", "10.0.0.0/28", "10.0.0.8/29", "10.9.0.0/30"];

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (0..20_u8).prop_map(Op::Lease),
        3 => (0..20_u8).prop_map(Op::Release),
        1 => (0..SUBNETS.len()).prop_map(Op::Subnet),
    ]
}

/// What the model expects of a lease: the address, or none for an error.
fn expected(model: &BTreeMap<u8, IpAddr>, net: &str, vm: u8) -> Option<IpAddr> {
    let hosts: Vec<IpAddr> = net
        .parse::<Ipv4Net>()
        .unwrap()
        .hosts()
        .skip(1)
        .map(IpAddr::V4)
        .collect();
    match model.get(&vm) {
        Some(held) => hosts.contains(held).then_some(*held),
        None => hosts
            .into_iter()
            .find(|host| !model.values().any(|held| held == host)),
    }
}

proptest! {
    #[test]
    fn leases_are_those_of_a_naive_map(ops in prop::collection::vec(op(), 0..200)) {
        let mut net = SUBNETS[0];
        let mut leases = Vec::new();
        let mut model = BTreeMap::new();
        for op in ops {
            match op {
                Op::Subnet(index) => net = SUBNETS[index],
                Op::Release(vm) => {
                    leases.retain(|lease: &Lease| lease.vm != name(vm));
                    model.remove(&vm);
                }
                Op::Lease(vm) => {
                    let expected = expected(&model, net, vm);
                    let got = take(subnet(net), &mut leases, vm);
                    prop_assert_eq!(got.ok().map(|lease| lease.address), expected);
                    if let Some(address) = expected {
                        model.insert(vm, address);
                    }
                }
            }
            let distinct = |count: usize| count == leases.len();
            prop_assert!(distinct(leases.iter().map(|l| l.address).collect::<BTreeSet<_>>().len()));
            prop_assert!(distinct(leases.iter().map(|l| l.mac).collect::<BTreeSet<_>>().len()));
            prop_assert!(distinct(leases.iter().map(|l| l.cid).collect::<BTreeSet<_>>().len()));
        }
    }
}
