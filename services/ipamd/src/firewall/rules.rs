//! Which firewall rules there should be, and what to change of those that are. Decides only; speaks nft's JSON.
//!
//! Rules are recognised by their comments, which say what they do: how nft prints a rule changes from version to
//! version, a comment does not.

use ipnet::Ipv4Net;
use serde_json::{Value, json};

use super::{
    guests,
    listed::{Listed, Place},
};

/// The family and the name of our table.
pub(super) const FAMILY: &str = "inet";
pub(super) const TABLE: &str = "volant";

/// Docker's place for rules of others, which it never empties.
pub(super) const DOCKER_USER: &str = "DOCKER-USER";

/// The comment of our rules in the tables of others.
pub(super) const TAG: &str = "volant";

/// Commands that turn a ruleset into one that lets VMs through; empty as far as it does already.
#[derive(Debug, Default)]
pub struct Mending {
    /// For our own table.
    pub own: Vec<Value>,
    /// For the tables of others.
    pub others: Vec<Value>,
}

/// What to change of `ruleset` (of `nft -j list ruleset`).
#[must_use]
pub fn mend(ruleset: &Value, bridge: &str, subnet: Ipv4Net) -> Mending {
    let listed = Listed::of(ruleset);
    let mut mending = Mending::default();
    let wanted = table(bridge, subnet);
    if !listed.has(FAMILY, &wanted) {
        mending.own = made_anew(FAMILY, wanted);
    }
    for chain in listed.forward_chains_that_drop() {
        let place = listed.place_in(chain);
        for (key, interface) in [("oifname", bridge), ("iifname", bridge)] {
            if !listed.has_tagged(&place, key, interface) {
                let rule = accept(&place, key, interface);
                mending.others.push(json!({"insert": {"rule": rule}}));
            }
        }
    }
    mending
}

/// The commands that put our table of that family in the place of whatever there is.
pub(super) fn made_anew(family: &str, objects: Vec<Value>) -> Vec<Value> {
    // To add before to delete: deleting what is not there is an error, adding what is there is not.
    let table = json!({"table": {"family": family, "name": TABLE}});
    let mut commands = vec![
        json!({"add": table}),
        json!({"delete": table}),
        json!({"add": table}),
    ];
    commands.extend(objects.into_iter().map(|object| json!({"add": object})));
    commands
}

/// The commands that remove all that is ours. Empty if nothing is.
#[must_use]
pub fn remove(ruleset: &Value) -> Vec<Value> {
    let listed = Listed::of(ruleset);
    let mut commands = Vec::new();
    for rule in listed.rules.iter().filter(|rule| {
        rule["comment"] == TAG && !(rule["family"] == FAMILY && rule["table"] == TABLE)
    }) {
        commands.push(json!({"delete": {"rule": {
            "family": rule["family"], "table": rule["table"], "chain": rule["chain"], "handle": rule["handle"],
        }}}));
    }
    for family in [FAMILY, guests::FAMILY] {
        if listed.has_table(family) {
            commands.push(json!({"delete": {"table": {"family": family, "name": TABLE}}}));
        }
    }
    commands
}

/// Chains and rules of our table.
///
/// From outside, nobody opens a connection to a VM but by a port that was published (DNAT), as with Docker and libvirt:
/// our rules in tables that drop by default must let answers in, cannot tell them from others (iptables does not
/// understand nft's own `ct`, and refuses a chain with it), and so leave the telling to this table.
fn table(bridge: &str, subnet: Ipv4Net) -> Vec<Value> {
    let is = |key: &str, op: &str| json!({"match": {"op": op, "left": {"meta": {"key": key}}, "right": bridge}});
    let ct = |key: &str, of: Value| json!({"match": {"op": "in", "left": {"ct": {"key": key}}, "right": of}});
    let from_vms = json!({"match": {
        "op": "==",
        "left": {"payload": {"protocol": "ip", "field": "saddr"}},
        "right": {"prefix": {"addr": subnet.network(), "len": subnet.prefix_len()}},
    }});
    let chain = |name: &str, kind: &str, hook: &str, priority: i32| {
        json!({"chain": {
            "family": FAMILY, "table": TABLE, "name": name,
            "type": kind, "hook": hook, "prio": priority, "policy": "accept",
        }})
    };
    let rule = |chain: &str, comment: String, expr: Vec<Value>| {
        json!({"rule": {
            "family": FAMILY, "table": TABLE, "chain": chain, "comment": comment, "expr": expr,
        }})
    };
    vec![
        chain("forward", "filter", "forward", 0),
        chain("postrouting", "nat", "postrouting", 100),
        rule(
            "forward",
            format!("from {bridge}: accept"),
            vec![is("iifname", "=="), json!({"accept": null})],
        ),
        rule(
            "forward",
            format!("answers to {bridge}: accept"),
            vec![
                is("oifname", "=="),
                ct("state", json!(["established", "related"])),
                json!({"accept": null}),
            ],
        ),
        rule(
            "forward",
            format!("published ports of {bridge}: accept"),
            vec![
                is("oifname", "=="),
                ct("status", json!("dnat")),
                json!({"accept": null}),
            ],
        ),
        rule(
            "forward",
            format!("anything else to {bridge}: drop"),
            vec![
                is("oifname", "=="),
                json!({"counter": null}),
                json!({"drop": null}),
            ],
        ),
        rule(
            "postrouting",
            format!("{subnet} leaving {bridge}: masquerade"),
            vec![from_vms, is("oifname", "!="), json!({"masquerade": null})],
        ),
    ]
}

/// A rule at the head of another's chain. With these expressions alone, `iptables` shows it as one of its own.
fn accept(place: &Place, key: &str, interface: &str) -> Value {
    json!({
        "family": place.family, "table": place.table, "chain": place.chain, "comment": TAG,
        "expr": [
            {"match": {"op": "==", "left": {"meta": {"key": key}}, "right": interface}},
            {"counter": null},
            {"accept": null},
        ],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net() -> Ipv4Net {
        "10.0.0.0/24".parse().unwrap()
    }

    /// What nft would list after our commands on an empty ruleset.
    fn applied(commands: &[Value]) -> Vec<Value> {
        let mut objects = vec![json!({"table": {"family": FAMILY, "name": TABLE, "handle": 1}})];
        for command in &commands[3..] {
            let object = command.get("add").or(command.get("insert")).unwrap();
            objects.push(object.clone());
        }
        objects
    }

    fn all(objects: &[Value], bridge: &str) -> Vec<Value> {
        let mending = mend(&ruleset(objects), bridge, net());
        [mending.own, mending.others].concat()
    }

    fn ruleset(objects: &[Value]) -> Value {
        json!({"nftables": objects})
    }

    fn chain(family: &str, table: &str, name: &str, hook: &str, policy: &str) -> Value {
        json!({"chain": {"family": family, "table": table, "name": name, "hook": hook, "policy": policy, "prio": 0}})
    }

    #[test]
    fn a_right_ruleset_is_not_touched() {
        let first = all(&[], "vbr0");
        let mut objects = applied(&first);
        objects.push(chain("ip", "filter", "FORWARD", "forward", "accept"));
        assert_eq!(all(&objects, "vbr0"), Vec::<Value>::new());
    }

    #[test]
    fn a_table_that_lost_or_changed_anything_is_made_anew() {
        let objects = applied(&all(&[], "vbr0"));
        for missing in 0..objects.len() {
            let mut less = objects.clone();
            less.remove(missing);
            assert!(!all(&less, "vbr0").is_empty(), "{missing}");
        }
        assert!(!all(&objects, "vbr1").is_empty());
        assert!(
            !mend(&ruleset(&objects), "vbr0", "10.1.0.0/24".parse().unwrap())
                .own
                .is_empty()
        );
        let mut dormant = objects;
        dormant[0]["table"]["flags"] = json!("dormant");
        assert!(!all(&dormant, "vbr0").is_empty());
    }

    #[test]
    fn rules_go_into_chains_that_drop_forwarded_packets_once() {
        let mut objects = applied(&all(&[], "vbr0"));
        objects.extend([
            chain("ip", "filter", "FORWARD", "forward", "drop"),
            chain("inet", "site", "fwd", "forward", "drop"),
            chain("ip6", "filter", "FORWARD", "forward", "drop"),
            chain("ip", "filter", "INPUT", "input", "drop"),
            chain("inet", "calm", "fwd", "forward", "accept"),
        ]);
        let commands = all(&objects, "vbr0");
        let places: Vec<_> = commands
            .iter()
            .map(|command| {
                let rule = &command["insert"]["rule"];
                format!(
                    "{} {} {} {}",
                    rule["family"],
                    rule["table"],
                    rule["chain"],
                    rule["expr"][0]["match"]["left"]["meta"]["key"]
                )
                .replace('"', "")
            })
            .collect();
        assert_eq!(
            places,
            [
                "ip filter FORWARD oifname",
                "ip filter FORWARD iifname",
                "inet site fwd oifname",
                "inet site fwd iifname"
            ]
        );
        objects.extend(commands.iter().map(|command| command["insert"].clone()));
        assert_eq!(all(&objects, "vbr0"), Vec::<Value>::new());
    }

    #[test]
    fn dockers_chain_for_others_is_used_where_it_is_jumped_to() {
        let jump = json!({"rule": {
            "family": "ip", "table": "filter", "chain": "FORWARD",
            "expr": [{"counter": null}, {"jump": {"target": DOCKER_USER}}],
        }});
        let objects = [
            chain("ip", "filter", "FORWARD", "forward", "drop"),
            json!({"chain": {"family": "ip", "table": "filter", "name": DOCKER_USER}}),
            jump,
        ];
        let commands = all(&objects, "vbr0");
        let rules: Vec<_> = commands
            .iter()
            .filter_map(|command| command.get("insert"))
            .collect();
        assert_eq!(rules.len(), 2);
        assert!(
            rules
                .iter()
                .all(|rule| rule["rule"]["chain"] == DOCKER_USER)
        );
        // A chain that nothing jumps to would let nothing through.
        let commands = all(&objects[..2], "vbr0");
        assert_eq!(
            commands.last().unwrap()["insert"]["rule"]["chain"],
            "FORWARD"
        );
    }

    #[test]
    fn what_is_removed_is_ours() {
        let other = json!({"rule": {"family": "ip", "table": "filter", "chain": "FORWARD", "handle": 4, "comment": "x"}});
        let ours = json!({"rule": {"family": "ip", "table": "filter", "chain": "FORWARD", "handle": 5, "comment": "volant"}});
        let table = json!({"table": {"family": "inet", "name": "volant"}});
        let namesake = json!({"table": {"family": "ip", "name": "volant"}});
        assert!(remove(&ruleset(&[other.clone(), namesake])).is_empty());
        let guard = json!({"table": {"family": "bridge", "name": "volant"}});
        let commands = remove(&ruleset(&[other, ours, table, guard]));
        assert_eq!(commands.len(), 3);
        assert_eq!(commands[2]["delete"]["table"]["family"], "bridge");
        assert_eq!(commands[0]["delete"]["rule"]["handle"], 5);
        assert_eq!(commands[1]["delete"]["table"]["name"], "volant");
    }

    #[test]
    fn nonsense_is_no_ruleset_and_no_panic() {
        for text in [
            "null",
            "[]",
            "{\"nftables\": 3}",
            "{\"nftables\": [3, {\"rule\": 4}, {\"chain\": null}]}",
        ] {
            let ruleset: Value = serde_json::from_str(text).unwrap();
            assert!(!mend(&ruleset, "vbr0", net()).own.is_empty());
            assert!(remove(&ruleset).is_empty());
        }
    }
}
