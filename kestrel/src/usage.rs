//! What a heartbeat tells, read from `/proc`.

use std::fs;

use volant_proto::agent::v1::HeartbeatRequest;

/// The guest as it is now. What cannot be read is 0.
#[must_use]
pub fn measure() -> HeartbeatRequest {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let memory = read("/proc/meminfo");
    HeartbeatRequest {
        memory_total_kib: kib(&memory, "MemTotal:"),
        memory_available_kib: kib(&memory, "MemAvailable:"),
        agent_resident_kib: kib(&read("/proc/self/status"), "VmRSS:"),
        load_centi: load_centi(&read("/proc/loadavg")),
        ..HeartbeatRequest::default()
    }
}

/// The number of a line such as `MemTotal:  1024 kB`.
fn kib(text: &str, label: &str) -> u64 {
    text.lines()
        .find_map(|line| {
            line.strip_prefix(label)?
                .split_whitespace()
                .next()?
                .parse()
                .ok()
        })
        .unwrap_or(0)
}

/// Hundredths of the first number of `0.52 0.58 0.59 1/123 4567`.
fn load_centi(text: &str) -> u32 {
    let first = text.split_whitespace().next().unwrap_or_default();
    first
        .split_once('.')
        .filter(|(_, fraction)| fraction.len() == 2)
        .and_then(|(whole, fraction)| format!("{whole}{fraction}").parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_and_nonsense_is_nothing() {
        let text = "MemTotal:         124672 kB\nMemFree:  1 kB\nMemAvailable: 99 kB\n";
        assert_eq!(kib(text, "MemTotal:"), 124_672);
        assert_eq!(kib(text, "MemAvailable:"), 99);
        assert_eq!(kib(text, "VmRSS:"), 0);
        assert_eq!(kib("VmRSS:", "VmRSS:"), 0);
        for (text, expected) in [
            ("12.05 0.58 0.59 1/1 1\n", 1205),
            ("0.00", 0),
            ("", 0),
            ("x.yz", 0),
            ("1.5", 0),
        ] {
            assert_eq!(load_centi(text), expected, "{text}");
        }
    }

    #[test]
    fn this_process_has_a_size() {
        assert!(measure().agent_resident_kib > 0);
    }
}
