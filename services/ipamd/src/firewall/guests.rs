//! What a guest may send: frames with the addresses of its lease, and nothing that steers a network. Decides only;
//! speaks nft's JSON.
//!
//! The rules are in a table of the family `bridge`, where a frame comes by before the bridge learns from it. Leases
//! are elements of sets, so that a frame costs the same however many VMs there are.

use std::{collections::BTreeSet, net::IpAddr};

use serde_json::{Value, json};

use super::{
    listed::Listed,
    rules::{TABLE, made_anew},
};
use crate::{network::tap, pool::Lease};

pub(super) const FAMILY: &str = "bridge";

/// The set of the taps of VMs. Any other port of any bridge is none of our business.
const TAPS: &str = "taps";

/// The set of what a tap may send from: its lease's MAC with its lease's address.
const SENDERS: &str = "senders";

/// What to change of `listing` (of `nft -j list ruleset bridge`) so that guests are held to these leases; empty if
/// they are.
#[must_use]
pub fn mend(listing: &Value, leases: &[Lease]) -> Vec<Value> {
    let listed = Listed::of(listing);
    let mut objects = vec![
        set(TAPS, &json!("ifname")),
        set(SENDERS, &json!(["ifname", "ether_addr", "ipv4_addr"])),
    ];
    objects.extend(chain());
    let wanted = [(TAPS, taps(leases)), (SENDERS, senders(leases))];
    if !listed.has(FAMILY, &objects) {
        let mut commands = made_anew(FAMILY, objects);
        commands.extend(
            wanted
                .into_iter()
                .filter_map(|(set, elements)| change("add", set, elements)),
        );
        return commands;
    }
    let mut commands = Vec::new();
    for (set, elements) in wanted {
        let found = listed.elements(FAMILY, set);
        commands.extend(change("delete", set, without(found, &elements)));
        commands.extend(change("add", set, without(&elements, found)));
    }
    commands
}

/// The elements that `others` has not.
fn without(elements: &[Value], others: &[Value]) -> Vec<Value> {
    let others: BTreeSet<String> = others.iter().map(Value::to_string).collect();
    let is_new = |element: &&Value| !others.contains(&element.to_string());
    elements.iter().filter(is_new).cloned().collect()
}

fn taps(leases: &[Lease]) -> Vec<Value> {
    leases
        .iter()
        .map(|lease| Value::from(tap::name(lease.cid)))
        .collect()
}

fn senders(leases: &[Lease]) -> Vec<Value> {
    leases
        .iter()
        .filter(|lease| matches!(lease.address, IpAddr::V4(_)))
        .map(|lease| {
            json!({"concat": [tap::name(lease.cid), lease.mac.to_string(), lease.address.to_string()]})
        })
        .collect()
}

fn change(act: &str, set: &str, elements: Vec<Value>) -> Option<Value> {
    (!elements.is_empty()).then(|| {
        json!({act: {"element": {
            "family": FAMILY, "table": TABLE, "name": set, "elem": elements,
        }}})
    })
}

fn set(name: &str, kind: &Value) -> Value {
    json!({"set": {"family": FAMILY, "table": TABLE, "name": name, "type": kind}})
}

/// The chain and its rules.
fn chain() -> Vec<Value> {
    const CHAIN: &str = "guests";
    let payload =
        |protocol: &str, field: &str| json!({"payload": {"protocol": protocol, "field": field}});
    let is =
        |left: Value, right: Value| json!({"match": {"op": "==", "left": left, "right": right}});
    let port = || json!({"meta": {"key": "iifname"}});
    let sender = |mac: Value, address: Value| {
        is(
            json!({"concat": [port(), mac, address]}),
            json!(format!("@{SENDERS}")),
        )
    };
    let source = || payload("ether", "saddr");
    let kind = |name: &str| is(payload("ether", "type"), json!(name));
    let accept = || json!({"accept": null});
    let refuse = || [json!({"counter": null}), json!({"drop": null})];
    let rule = |comment: &str, expr: Vec<Value>| {
        json!({"rule": {
            "family": FAMILY, "table": TABLE, "chain": CHAIN, "comment": comment, "expr": expr,
        }})
    };
    // Hosts look at no more than these fields to see that a message is about Ethernet and IPv4.
    let arp = |kind_of: Value| {
        vec![
            kind("arp"),
            is(payload("arp", "htype"), json!(1)),
            is(payload("arp", "ptype"), json!("ip")),
            is(payload("arp", "hlen"), json!(6)),
            is(payload("arp", "plen"), json!(4)),
            is(payload("arp", "operation"), kind_of),
        ]
    };
    let arp_from = |field: &str| {
        [
            sender(source(), payload("arp", field)),
            sender(payload("arp", "saddr ether"), payload("arp", field)),
            accept(),
        ]
    };
    // Spanning tree, LLDP and their like, whatever is in them.
    let to_bridges = is(
        payload("ether", "daddr"),
        json!({"prefix": {"addr": "01:80:c2:00:00:00", "len": 44}}),
    );
    let is_udp = is(payload("ip", "protocol"), json!("udp"));
    let from_dhcp_server = is(payload("udp", "sport"), json!(67));
    let nobody = is(payload("arp", "saddr ip"), json!("0.0.0.0"));
    vec![
        json!({"chain": {
            "family": FAMILY, "table": TABLE, "name": CHAIN,
            "type": "filter", "hook": "prerouting", "prio": -200, "policy": "accept",
        }}),
        rule(
            "from no VM: accept",
            vec![
                json!({"match": {"op": "!=", "left": port(), "right": format!("@{TAPS}")}}),
                accept(),
            ],
        ),
        rule(
            "for bridges themselves: drop",
            [vec![to_bridges], refuse().to_vec()].concat(),
        ),
        rule(
            "a DHCP server's answers: drop",
            [
                vec![kind("ip"), is_udp, from_dhcp_server],
                refuse().to_vec(),
            ]
            .concat(),
        ),
        rule(
            "IPv4 of the lease: accept",
            vec![
                kind("ip"),
                sender(source(), payload("ip", "saddr")),
                accept(),
            ],
        ),
        rule(
            "ARP of the lease: accept",
            [
                arp(json!({"set": ["request", "reply"]})),
                arp_from("saddr ip").to_vec(),
            ]
            .concat(),
        ),
        rule(
            "whether somebody else has the lease's address: accept",
            [
                arp(json!("request")),
                vec![nobody],
                arp_from("daddr ip").to_vec(),
            ]
            .concat(),
        ),
        rule("anything else of a VM: drop", refuse().to_vec()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::{Choice, choose};

    fn leases(names: &[&str]) -> Vec<Lease> {
        let mut leases = Vec::new();
        for name in names {
            let net: ipnet::Ipv4Net = "10.0.0.0/16".parse().unwrap();
            let subnet = net.try_into().unwrap();
            let Choice::New(lease) = choose(subnet, &leases, &name.parse().unwrap()).unwrap()
            else {
                panic!("{name} twice")
            };
            leases.push(lease);
        }
        leases
    }

    /// What nft would list after our commands on an empty ruleset.
    fn applied(commands: &[Value]) -> Value {
        let mut objects: Vec<Value> = commands[2..]
            .iter()
            .map(|command| command["add"].clone())
            .collect();
        let (elements, mut rest): (Vec<_>, Vec<_>) = objects
            .drain(..)
            .partition(|object| object.get("element").is_some());
        for object in &mut rest {
            if let Some(set) = object.get_mut("set") {
                let of = elements
                    .iter()
                    .map(|object| &object["element"])
                    .find(|element| element["name"] == set["name"]);
                if let Some(of) = of {
                    set["elem"] = of["elem"].clone();
                }
            }
        }
        json!({"nftables": rest})
    }

    #[test]
    fn guests_that_are_held_to_their_leases_are_left_alone() {
        for names in [&[][..], &["a"], &["a", "b", "c"]] {
            let leases = leases(names);
            let right = applied(&mend(&json!({}), &leases));
            assert_eq!(mend(&right, &leases), Vec::<Value>::new(), "{names:?}");
        }
    }

    #[test]
    fn a_table_that_lost_or_changed_anything_is_made_anew() {
        let leases = leases(&["a", "b"]);
        let right = applied(&mend(&json!({}), &leases));
        let count = right["nftables"].as_array().unwrap().len();
        for missing in 0..count {
            let mut less = right.clone();
            less["nftables"].as_array_mut().unwrap().remove(missing);
            assert_eq!(mend(&less, &leases), mend(&json!({}), &leases), "{missing}");
        }
        let mut dormant = right.clone();
        dormant["nftables"][0]["table"]["flags"] = json!("dormant");
        assert!(!mend(&dormant, &leases).is_empty());
    }

    #[test]
    fn leases_that_come_and_go_change_elements_alone() {
        let before = leases(&["a", "b", "c"]);
        let listing = applied(&mend(&json!({}), &before[..2]));
        let elements = |commands: &[Value], act: &str| -> Vec<Value> {
            commands
                .iter()
                .filter_map(|command| command.get(act))
                .map(|object| object["element"]["elem"].clone())
                .collect()
        };
        let commands = mend(&listing, &before);
        assert_eq!(commands.len(), 2);
        assert_eq!(
            elements(&commands, "add"),
            [
                json!(["vt5"]),
                json!([{"concat": ["vt5", "02:76:0a:00:00:04", "10.0.0.4"]}])
            ]
        );
        let commands = mend(&listing, &before[..1]);
        assert_eq!(commands.len(), 2);
        assert_eq!(
            elements(&commands, "delete"),
            [
                json!(["vt4"]),
                json!([{"concat": ["vt4", "02:76:0a:00:00:03", "10.0.0.3"]}])
            ]
        );
        // Another's address among a VM's own, put there by somebody, goes.
        let mut listing = applied(&mend(&json!({}), &before));
        let forged = json!({"concat": ["vt3", "02:76:0a:00:00:02", "10.0.0.9"]});
        let senders = &mut listing["nftables"][2]["set"]["elem"];
        senders.as_array_mut().unwrap().push(forged.clone());
        assert_eq!(
            elements(&mend(&listing, &before), "delete"),
            [json!([forged])]
        );
    }

    #[test]
    fn a_thousand_leases_have_as_many_rules_as_one() {
        let names: Vec<String> = (0..1000).map(|number| format!("vm{number}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let (one, many) = (leases(&names[..1]), leases(&names));
        assert_eq!(mend(&json!({}), &one).len(), mend(&json!({}), &many).len());
    }
}
