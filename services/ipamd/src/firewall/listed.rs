//! A ruleset as nft lists it, and what is told from it. Decides only.

use serde_json::{Value, json};

use super::rules::{DOCKER_USER, FAMILY, TABLE, TAG};

/// A chain.
pub(super) struct Place {
    pub(super) family: Value,
    pub(super) table: Value,
    pub(super) chain: Value,
}

impl Place {
    fn holds(&self, rule: &Value) -> bool {
        rule["family"] == self.family && rule["table"] == self.table && rule["chain"] == self.chain
    }
}

/// A ruleset, sorted by kind.
pub(super) struct Listed<'a> {
    pub(super) tables: Vec<&'a Value>,
    pub(super) chains: Vec<&'a Value>,
    pub(super) rules: Vec<&'a Value>,
    pub(super) sets: Vec<&'a Value>,
}

impl<'a> Listed<'a> {
    pub(super) fn of(ruleset: &'a Value) -> Self {
        let objects = ruleset["nftables"].as_array();
        let of = |kind: &str| {
            objects
                .into_iter()
                .flatten()
                .filter_map(|object| object.get(kind))
                .collect()
        };
        Self {
            tables: of("table"),
            chains: of("chain"),
            rules: of("rule"),
            sets: of("set"),
        }
    }

    /// Whether our table of that family is there.
    pub(super) fn has_table(&self, family: &str) -> bool {
        self.tables
            .iter()
            .any(|table| table["family"] == family && table["name"] == TABLE)
    }

    /// The elements of a set in our table of that family.
    pub(super) fn elements(&self, family: &str, name: &str) -> &'a [Value] {
        let is_it =
            |set: &&&Value| set["family"] == family && set["table"] == TABLE && set["name"] == name;
        let set = self.sets.iter().find(is_it);
        set.and_then(|set| set["elem"].as_array())
            .map_or(&[], Vec::as_slice)
    }

    /// Whether our table of that family has exactly these sets, chains and rules, and works.
    pub(super) fn has(&self, family: &str, wanted: &[Value]) -> bool {
        let ours = |object: &&&Value| object["family"] == family && object["table"] == TABLE;
        let is_on = |table: &&&Value| {
            table["family"] == family && table["name"] == TABLE && table.get("flags").is_none()
        };
        let key = |kind: &str, object: &Value| match kind {
            "chain" => json!([
                object["name"],
                object["type"],
                object["hook"],
                object["prio"],
                object["policy"]
            ]),
            "set" => json!([object["name"], object["type"]]),
            _ => json!([object["chain"], object["comment"]]),
        };
        let same = |kind: &str, found: &[&Value]| {
            let wanted = wanted.iter().filter_map(|object| object.get(kind));
            let found = found.iter().filter(ours);
            wanted
                .map(|object| key(kind, object))
                .eq(found.map(|object| key(kind, object)))
        };
        self.tables.iter().any(|table| is_on(&table))
            && same("set", &self.sets)
            && same("chain", &self.chains)
            && same("rule", &self.rules)
    }

    /// The chains of others that decide about forwarded IPv4 packets and drop what they have no rule for. An accept
    /// of ours does not outweigh them: a packet must pass all chains of a hook.
    pub(super) fn forward_chains_that_drop(&self) -> impl Iterator<Item = &'a Value> {
        self.chains.iter().copied().filter(|chain| {
            chain["hook"] == "forward"
                && chain["policy"] == "drop"
                && (chain["family"] == "ip" || chain["family"] == "inet")
                && !(chain["family"] == FAMILY && chain["table"] == TABLE)
        })
    }

    /// Where our rules go for such a chain: where it jumps to Docker's chain for them, there, else into itself.
    pub(super) fn place_in(&self, base: &Value) -> Place {
        let place = |chain: &Value| Place {
            family: base["family"].clone(),
            table: base["table"].clone(),
            chain: chain.clone(),
        };
        let here = place(&base["name"]);
        let jumps = |rule: &&'a Value| {
            let statements = rule["expr"].as_array();
            here.holds(rule)
                && statements
                    .into_iter()
                    .flatten()
                    .any(|statement| statement["jump"]["target"] == DOCKER_USER)
        };
        if self.rules.iter().any(jumps) {
            place(&Value::from(DOCKER_USER))
        } else {
            here
        }
    }

    pub(super) fn has_tagged(&self, place: &Place, key: &str, interface: &str) -> bool {
        self.rules.iter().any(|rule| {
            let first = &rule["expr"][0]["match"];
            place.holds(rule)
                && rule["comment"] == TAG
                && first["left"]["meta"]["key"] == key
                && first["right"] == interface
        })
    }
}
