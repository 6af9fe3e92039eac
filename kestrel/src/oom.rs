//! Whether the kernel killed a process for want of memory: it says so in its log, and counts it.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom},
    os::unix::fs::OpenOptionsExt as _,
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::OFlag,
    time::{ClockId, clock_gettime},
};

use crate::reap::Exit;

/// The kernel gives one record at a time, and none is longer.
const LONGEST_RECORD: usize = 8192;
/// As many records as its log can hold: a guest that fills it does not hold the agent up.
const MOST_RECORDS: usize = 65_536;
/// A workload that ends so soon after a process was killed ends because of it.
const SOON: Duration = Duration::from_secs(10);
const SIGKILL: u32 = 9;

/// Looks at what happened since it began.
#[derive(Debug)]
pub struct OomWatch {
    log: Option<File>,
    count: u64,
}

/// A process that was killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Victim {
    pid: u32,
    /// Since the boot.
    at: Duration,
}

impl OomWatch {
    /// From now on. A kernel that does not let its log be read makes it know less.
    #[must_use]
    pub fn start() -> Self {
        let log = OpenOptions::new()
            .read(true)
            .custom_flags(OFlag::O_NONBLOCK.bits())
            .open("/dev/kmsg")
            .and_then(|mut log| log.seek(SeekFrom::End(0)).map(|_| log));
        Self {
            log: log.ok(),
            count: count(),
        }
    }

    /// Whether the workload whose leader was `pid`, and ended by `exit`, ended for want of memory.
    pub fn ended(&mut self, pid: u32, exit: Exit) -> bool {
        let victims = self.victims();
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
        is_oom(&victims, count() > self.count, pid, exit, now)
    }

    fn victims(&mut self) -> Vec<Victim> {
        let mut victims = Vec::new();
        let Some(log) = &mut self.log else {
            return victims;
        };
        let mut record = [0; LONGEST_RECORD];
        for _ in 0..MOST_RECORDS {
            match log.read(&mut record) {
                Ok(count) if count > 0 => victims.extend(victim(&record[..count])),
                Ok(_) => break,
                // Records were lost: the next read goes on with the oldest that there is.
                Err(error) if error.raw_os_error() == Some(Errno::EPIPE as i32) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        victims
    }
}

fn is_oom(victims: &[Victim], counted: bool, pid: u32, exit: Exit, now: Duration) -> bool {
    let is_leader = victims.iter().any(|victim| victim.pid == pid);
    // The kernel counts before it kills, and says so after: its words may still be on their way.
    let is_counted = counted && exit.signal == SIGKILL && victims.is_empty();
    let is_part = exit.code != 0
        && victims
            .iter()
            .any(|victim| now.saturating_sub(victim.at) < SOON);
    is_leader || is_counted || is_part
}

/// How often the kernel killed for want of memory; 0 where it does not count.
fn count() -> u64 {
    let text = fs::read_to_string("/proc/vmstat").unwrap_or_default();
    text.lines()
        .find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
        .unwrap_or(0)
}

/// Of a record such as `3,512,2163021,-;Out of memory: Killed process 87 (hog) total-vm:...`. Only the kernel itself writes
/// records of its own facility, 0: what somebody wrote to its log has another.
fn victim(record: &[u8]) -> Option<Victim> {
    let text = std::str::from_utf8(record).ok()?;
    let (head, words) = text.split_once(';')?;
    let mut fields = head.split(',');
    let priority: u32 = fields.next()?.parse().ok()?;
    let micros = fields.nth(1)?.parse().ok()?;
    let words = words
        .strip_prefix("Memory cgroup out of memory: ")
        .or_else(|| words.strip_prefix("Out of memory: "))
        .or_else(|| words.strip_prefix("Out of memory (oom_kill_allocating_task): "))?;
    let digits = words.strip_prefix("Killed process ")?;
    let pid = digits.split([' ', ',']).next()?.parse().ok()?;
    (priority >> 3 == 0).then_some(Victim {
        pid,
        at: Duration::from_micros(micros),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_s_own_words_are_understood_and_nobody_else_s() {
        for (record, pid) in [
            (
                "3,512,2163021,-;Out of memory: Killed process 87 (hog) total-vm:1kB, oom_score_adj:0\n",
                Some(87),
            ),
            (
                "3,9,2163021,-,caller=T1;Memory cgroup out of memory: Killed process 9 (a b) x",
                Some(9),
            ),
            (
                "3,9,2163021,-;Out of memory: Killed process 88, UID 0, (x)",
                Some(88),
            ),
            // From user space: facility 1.
            (
                "11,9,2163021,-;Out of memory: Killed process 87 (hog)",
                None,
            ),
            ("6,9,1,-;hog invoked oom-killer: gfp_mask=0x0", None),
            ("3,9,1,-;Out of memory: Killed process x", None),
            ("3,9;Out of memory: Killed process 1", None),
            ("", None),
        ] {
            let expected = pid.map(|pid| Victim {
                pid,
                at: Duration::from_micros(2_163_021),
            });
            assert_eq!(victim(record.as_bytes()), expected, "{record}");
        }
    }

    #[test]
    fn a_workload_ends_for_want_of_memory_when_it_or_its_part_was_killed() {
        let exit = |code, signal| Exit { code, signal };
        let at = |pid, seconds| Victim {
            pid,
            at: Duration::from_secs(seconds),
        };
        for (victims, counted, exit, expected) in [
            (vec![at(7, 1)], true, exit(137, 9), true),
            (vec![], true, exit(137, 9), true),
            (vec![], true, exit(1, 0), false),
            (vec![], false, exit(137, 9), false),
            // A child's end, which the workload did not survive, or did.
            (vec![at(8, 99)], true, exit(1, 0), true),
            (vec![at(8, 99)], true, exit(0, 0), false),
            (vec![at(8, 1)], true, exit(1, 0), false),
        ] {
            let found = is_oom(&victims, counted, 7, exit, Duration::from_secs(100));
            assert_eq!(found, expected, "{victims:?} {counted} {exit:?}");
        }
    }

    #[test]
    fn what_was_before_is_not_told() {
        let mut watch = OomWatch::start();
        assert!(!watch.ended(std::process::id(), Exit { code: 1, signal: 0 }));
    }
}
