//! What a heartbeat tells, read from `/proc`.

use std::fs;

use nix::{
    sys::statvfs::statvfs,
    unistd::{SysconfVar, sysconf},
};
use volant_proto::agent::v1::HeartbeatRequest;

/// The guest as it is now. What cannot be read is 0.
#[must_use]
pub fn measure() -> HeartbeatRequest {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let memory = read("/proc/meminfo");
    let (cpu_busy_ms, cpu_total_ms) = cpu(&read("/proc/stat"), ticks_per_second());
    let (root_total_kib, root_available_kib) = root();
    HeartbeatRequest {
        memory_total_kib: kib(&memory, "MemTotal:"),
        memory_available_kib: kib(&memory, "MemAvailable:"),
        agent_resident_kib: kib(&read("/proc/self/status"), "VmRSS:"),
        load_centi: load_centi(&read("/proc/loadavg")),
        cpu_busy_ms,
        cpu_total_ms,
        processes: processes(),
        root_total_kib,
        root_available_kib,
    }
}

fn ticks_per_second() -> u64 {
    let ticks = sysconf(SysconfVar::CLK_TCK).ok().flatten();
    ticks.and_then(|ticks| ticks.try_into().ok()).unwrap_or(100)
}

/// What all CPUs did, in milliseconds: not idle, and all of it. Of the line `cpu  user nice system idle iowait ...`, whose
/// guest times are in user and nice already.
fn cpu(stat: &str, ticks_per_second: u64) -> (u64, u64) {
    const IDLE: std::ops::Range<usize> = 3..5;
    const GUEST: usize = 8;
    let Some(line) = stat.lines().find_map(|line| line.strip_prefix("cpu ")) else {
        return (0, 0);
    };
    let ticks = line
        .split_whitespace()
        .take(GUEST)
        .map(|word| word.parse::<u64>().unwrap_or(0))
        .enumerate();
    let (mut busy, mut total) = (0_u64, 0_u64);
    for (place, count) in ticks {
        total = total.saturating_add(count);
        if !IDLE.contains(&place) {
            busy = busy.saturating_add(count);
        }
    }
    let millis = |ticks: u64| ticks.saturating_mul(1000) / ticks_per_second.max(1);
    (millis(busy), millis(total))
}

/// How many folders of `/proc` are processes.
fn processes() -> u32 {
    let count = fs::read_dir("/proc").map_or(0, |entries| {
        entries
            .flatten()
            .filter(|entry| {
                let name = entry.file_name();
                name.as_encoded_bytes().iter().all(u8::is_ascii_digit)
            })
            .count()
    });
    count.try_into().unwrap_or(u32::MAX)
}

/// The size of the file system at `/` and what is available of it, in KiB.
fn root() -> (u64, u64) {
    statvfs("/").map_or((0, 0), |root| {
        let kib = |blocks| {
            u64::try_from(u128::from(root.fragment_size()) * u128::from(blocks) / 1024)
                .unwrap_or(u64::MAX)
        };
        (kib(root.blocks()), kib(root.blocks_available()))
    })
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
    fn the_time_of_all_cpus_is_told_in_milliseconds() {
        let stat = "cpu  10 1 20 400 50 2 3 4 5 6\ncpu0 1 1 1 1 1 1 1 1 1 1\n";
        assert_eq!(cpu(stat, 100), (400, 4900));
        assert_eq!(cpu("cpu0 1 2 3", 100), (0, 0));
        assert_eq!(cpu("cpu  x", 0), (0, 0));
    }

    #[test]
    fn this_machine_has_numbers() {
        let now = measure();
        assert!(now.agent_resident_kib > 0 && now.processes > 0);
        assert!(now.cpu_busy_ms > 0 && now.cpu_total_ms >= now.cpu_busy_ms);
        assert!(now.root_total_kib >= now.root_available_kib && now.root_total_kib > 0);
    }
}
