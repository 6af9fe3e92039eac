//! What the unit of a VM may use: from its definition and what its VMM needs, unless an operator said otherwise. Pure; [`crate::systemd`]
//! asks and tells systemd.

mod dropins;
mod overhead;

pub use dropins::{is_own, setting};
pub use overhead::overhead_mb;

use std::time::Duration;

use crate::definition::Share;

/// A limit, by systemd's two names for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// On the bus.
    pub property: &'static str,
    /// In a unit's file.
    pub directive: &'static str,
}

const MEMORY: Limit = Limit {
    property: "MemoryMax",
    directive: "MemoryMax",
};
const CPU_QUOTA: Limit = Limit {
    property: "CPUQuotaPerSecUSec",
    directive: "CPUQuota",
};
const CPU_WEIGHT: Limit = Limit {
    property: "CPUWeight",
    directive: "CPUWeight",
};
const IO_WEIGHT: Limit = Limit {
    property: "IOWeight",
    directive: "IOWeight",
};

/// As systemd writes "none".
const NONE: u64 = u64::MAX;

/// The unit, as systemd has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnitFacts {
    /// `TimeoutStopSec=`; `None`: systemd never ends a stop.
    pub stop_timeout: Option<Duration>,
    /// The texts of its files that are not vmd's own work, later ones over earlier ones.
    pub texts: Vec<String>,
    /// vmd's own drop-ins, of this or an earlier start.
    pub own: Vec<String>,
}

impl UnitFacts {
    fn has_own(&self, limit: Limit) -> bool {
        let file = format!("/50-{}.conf", limit.directive);
        self.own.iter().any(|path| path.ends_with(&file))
    }
}

/// What systemd is to be told for a guest with so much memory, whose VMM needs `overhead_mb` beside it. What an operator set is
/// left alone; or set again, where an earlier start of this unit left a drop-in that could win over it.
#[must_use]
pub fn properties(
    unit: &UnitFacts,
    memory_mb: u32,
    overhead_mb: u32,
    share: Share,
) -> Vec<(&'static str, u64)> {
    let memory = (u64::from(memory_mb) + u64::from(overhead_mb)) << 20;
    let some = |value: u32| (value > 0).then_some(u64::from(value));
    let wanted = [
        (MEMORY, Some(memory)),
        // Microseconds in a second.
        (
            CPU_QUOTA,
            some(share.cpu_quota_percent).map(|percent| percent * 10_000),
        ),
        (CPU_WEIGHT, some(share.cpu_weight)),
        (IO_WEIGHT, some(share.io_weight)),
    ];
    let told = wanted.into_iter().filter_map(|(limit, wanted)| {
        let value = match setting(&unit.texts, limit.directive) {
            Some(operators) if unit.has_own(limit) => parse(limit, &operators)?,
            Some(_) => return None,
            None if wanted.is_none() && unit.has_own(limit) => NONE,
            None => wanted?,
        };
        Some((limit.property, value))
    });
    told.collect()
}

/// An operator's value as the bus has it; `None` for one that is relative to the host, or not understood.
fn parse(limit: Limit, text: &str) -> Option<u64> {
    if text == "infinity" {
        return Some(NONE);
    }
    if limit == CPU_QUOTA {
        return text
            .strip_suffix('%')?
            .parse::<u64>()
            .ok()?
            .checked_mul(10_000);
    }
    let (digits, shift) = match text.strip_suffix(['K', 'M', 'G', 'T']) {
        Some(digits) if limit == MEMORY => (
            digits,
            match text.as_bytes().last()? {
                b'K' => 10,
                b'M' => 20,
                b'G' => 30,
                _ => 40,
            },
        ),
        _ => (text, 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(texts: &[&str], own: &[&str]) -> UnitFacts {
        let folder = "/run/systemd/system.control/volant-vm@web.service.d/50-";
        UnitFacts {
            stop_timeout: None,
            texts: texts
                .iter()
                .map(|text| format!("[Service]\n{text}"))
                .collect(),
            own: own
                .iter()
                .map(|name| format!("{folder}{name}.conf"))
                .collect(),
        }
    }

    const SHARE: Share = Share {
        cpu_quota_percent: 150,
        cpu_weight: 50,
        io_weight: 0,
    };

    #[test]
    fn the_definitions_limits_hold_where_no_operator_said_otherwise() {
        type Told<'a> = &'a [(&'static str, u64)];
        let memory = ("MemoryMax", 192 << 20);
        let quota = ("CPUQuotaPerSecUSec", 1_500_000);
        let weight = ("CPUWeight", 50);
        let cases: [(UnitFacts, Share, Told); 8] = [
            (unit(&[], &[]), SHARE, &[memory, quota, weight]),
            (unit(&[], &[]), Share::default(), &[memory]),
            (unit(&["MemoryMax=1G"], &[]), SHARE, &[quota, weight]),
            (
                unit(&["CPUQuota=20%", "CPUWeight="], &[]),
                SHARE,
                &[memory, weight],
            ),
            // What an earlier start left is taken back, or brought in line.
            (
                unit(&[], &["CPUQuota", "IOWeight"]),
                Share::default(),
                &[memory, ("CPUQuotaPerSecUSec", NONE), ("IOWeight", NONE)],
            ),
            (
                unit(
                    &["MemoryMax=1G", "CPUQuota=20%"],
                    &["MemoryMax", "CPUQuota"],
                ),
                SHARE,
                &[
                    ("MemoryMax", 1 << 30),
                    ("CPUQuotaPerSecUSec", 200_000),
                    weight,
                ],
            ),
            (
                unit(&["MemoryMax=infinity"], &["MemoryMax"]),
                Share::default(),
                &[("MemoryMax", NONE)],
            ),
            (
                unit(&["MemoryMax=50%"], &["MemoryMax"]),
                Share::default(),
                &[],
            ),
        ];
        for (unit, share, expected) in cases {
            assert_eq!(properties(&unit, 128, 64, share), expected, "{unit:?}");
        }
    }

    #[test]
    fn operators_values_are_read_as_systemd_reads_them() {
        for (limit, text, expected) in [
            (MEMORY, "1024", Some(1024)),
            (MEMORY, "3K", Some(3072)),
            (MEMORY, "2T", Some(2 << 40)),
            (MEMORY, "99999999999999T", None),
            (MEMORY, "1.5G", None),
            (CPU_QUOTA, "250%", Some(2_500_000)),
            (CPU_QUOTA, "250", None),
            (CPU_WEIGHT, "500", Some(500)),
            (CPU_WEIGHT, "idle", None),
            (IO_WEIGHT, "5K", None),
        ] {
            assert_eq!(parse(limit, text), expected, "{text}");
        }
    }
}
