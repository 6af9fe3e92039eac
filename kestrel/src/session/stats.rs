//! How the guest is, from `/proc`. What cannot be read is 0.

use std::{collections::HashMap, fs, io, os::unix::fs::MetadataExt as _, path::Path};

use rustix::{
    fs::statvfs,
    param::{clock_ticks_per_second, page_size},
};
use volant_proto::agent::v1::{FilesystemStats, GuestStats, ProcessStats};

use super::{
    Sessions,
    kin::{self, Status},
};
use crate::files::read_bounded;

const MOST_PROCESSES: usize = 1024;
/// All of these fit into one frame, as long as paths are not.
const MOST_FILESYSTEMS: usize = 32;
/// The most bytes of a process's command line, and of a mount point, that are told.
const LONGEST: usize = 200;
/// Room for the rest of the answer.
const MOST_BYTES: usize = 48 * 1024;
const LONGEST_FILE: u64 = 1024 * 1024;
/// The sectors of /proc/diskstats, whatever the disk's are.
const SECTOR: u64 = 512;
/// Those that have nothing of their own to be full of.
const DISKLESS: [&str; 20] = [
    "proc",
    "sysfs",
    "devtmpfs",
    "devpts",
    "cgroup",
    "cgroup2",
    "mqueue",
    "debugfs",
    "tracefs",
    "securityfs",
    "bpf",
    "pstore",
    "efivarfs",
    "configfs",
    "fusectl",
    "hugetlbfs",
    "autofs",
    "binfmt_misc",
    "nsfs",
    "rootfs",
];

fn read(path: &str) -> String {
    fs::read(path)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default()
}

/// The guest as it is now, with up to so many processes, the busiest first.
pub fn measure(processes: u32, sessions: &Sessions) -> GuestStats {
    let cpu = Cpu::of(&read("/proc/stat"));
    let memory = read("/proc/meminfo");
    let (receive_bytes, transmit_bytes) = network(&read("/proc/net/dev"));
    let (disk_read_bytes, disk_written_bytes) = disks(&read("/proc/diskstats"), |disk| {
        Path::new("/sys/block").join(disk).exists()
    });
    let wanted = usize::try_from(processes)
        .unwrap_or(usize::MAX)
        .min(MOST_PROCESSES);
    let (process_count, processes) = busiest(wanted, &sessions.root);
    GuestStats {
        uptime_ms: hundredths(&read("/proc/uptime")).saturating_mul(10),
        load_centi: hundredths(&read("/proc/loadavg"))
            .try_into()
            .unwrap_or(u32::MAX),
        cpus: cpu.count,
        cpu_busy_ms: cpu.busy_ms,
        cpu_total_ms: cpu.total_ms,
        memory_total_kib: kib(&memory, "MemTotal:"),
        memory_available_kib: kib(&memory, "MemAvailable:"),
        swap_total_kib: kib(&memory, "SwapTotal:"),
        swap_free_kib: kib(&memory, "SwapFree:"),
        receive_bytes,
        transmit_bytes,
        disk_read_bytes,
        disk_written_bytes,
        filesystems: filesystems(&read("/proc/self/mounts")),
        processes,
        process_count,
        restarts: sessions.facts.restarts(),
        health: sessions.facts.health().to_owned(),
    }
}

/// The first number of a text, such as `0.52 0.58`, in hundredths.
fn hundredths(text: &str) -> u64 {
    let first = text.split_whitespace().next().unwrap_or_default();
    first
        .split_once('.')
        .filter(|(_, fraction)| fraction.len() == 2)
        .and_then(|(whole, fraction)| format!("{whole}{fraction}").parse().ok())
        .unwrap_or(0)
}

/// The number of a line such as `MemTotal:  1024 kB`.
fn kib(text: &str, label: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(label));
    let number = line.and_then(|line| line.split_whitespace().next());
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Cpu {
    count: u32,
    busy_ms: u64,
    total_ms: u64,
}

impl Cpu {
    fn of(text: &str) -> Self {
        let mut cpu = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("cpu") => {
                    // A guest's own time is in the user's already.
                    let ticks: Vec<u64> =
                        words.take(8).filter_map(|word| word.parse().ok()).collect();
                    let total = ticks.iter().sum();
                    // Idle, and waiting for a disk.
                    let idle: u64 = ticks.iter().skip(3).take(2).sum();
                    cpu.total_ms = milliseconds(total);
                    cpu.busy_ms = milliseconds(total.saturating_sub(idle));
                }
                Some(word) if word.starts_with("cpu") => cpu.count += 1,
                _ => {}
            }
        }
        cpu
    }
}

fn milliseconds(ticks: u64) -> u64 {
    ticks.saturating_mul(1000) / clock_ticks_per_second().max(1)
}

/// What all links but the loopback received and sent.
fn network(text: &str) -> (u64, u64) {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(link, _)| link.trim() != "lo")
        .fold((0, 0), |(received, sent), (_, numbers)| {
            let number = |place| {
                let word = numbers.split_whitespace().nth(place);
                word.and_then(|word| word.parse::<u64>().ok()).unwrap_or(0)
            };
            (
                received.saturating_add(number(0)),
                sent.saturating_add(number(8)),
            )
        })
}

/// What all whole disks read and wrote; partitions are in their disk's numbers.
fn disks(text: &str, is_disk: impl Fn(&str) -> bool) -> (u64, u64) {
    text.lines().fold((0, 0), |(read, written), line| {
        let words: Vec<_> = line.split_whitespace().collect();
        let number = |place: usize| {
            let sectors = words.get(place).and_then(|word| word.parse::<u64>().ok());
            sectors.unwrap_or(0).saturating_mul(SECTOR)
        };
        match words.get(2) {
            Some(name) if is_disk(name) => (
                read.saturating_add(number(5)),
                written.saturating_add(number(9)),
            ),
            _ => (read, written),
        }
    })
}

fn filesystems(mounts: &str) -> Vec<FilesystemStats> {
    let mut found: Vec<FilesystemStats> = Vec::new();
    for line in mounts.lines() {
        let mut words = line.split(' ').skip(1);
        let (Some(target), Some(kind)) = (words.next(), words.next()) else {
            continue;
        };
        if DISKLESS.contains(&kind) || target.len() > LONGEST {
            continue;
        }
        let mount_point = unescaped(target);
        // One that hangs would hold this process: those of the network are not asked.
        if kind.starts_with("nfs") || kind.starts_with("fuse") || kind == "cifs" || kind == "9p" {
            continue;
        }
        let Ok(stat) = statvfs(&*mount_point) else {
            continue;
        };
        let kib = |blocks: u64| {
            u64::try_from(u128::from(blocks) * u128::from(stat.f_frsize) / 1024).unwrap_or(u64::MAX)
        };
        // What is mounted last at a place is what is seen there.
        found.retain(|other| other.mount_point != mount_point);
        if found.len() < MOST_FILESYSTEMS {
            found.push(FilesystemStats {
                mount_point,
                kind: kind.to_owned(),
                total_kib: kib(stat.f_blocks),
                available_kib: kib(stat.f_bavail),
            });
        }
    }
    found
}

/// The kernel writes spaces and the like as `\040`.
fn unescaped(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let octal = (*first == b'\\')
            .then(|| after.get(..3))
            .flatten()
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(octal.unwrap_or(*first));
        rest = if octal.is_some() { &after[3..] } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// How many processes there are, and those that used the CPU most.
fn busiest(wanted: usize, root: &Path) -> (u32, Vec<ProcessStats>) {
    let pids = kin::pids().unwrap_or_default();
    let count = u32::try_from(pids.len()).unwrap_or(u32::MAX);
    if wanted == 0 {
        return (count, Vec::new());
    }
    let mut found: Vec<_> = pids
        .into_iter()
        .filter_map(|pid| {
            Some((
                pid,
                Status::of(&fs::read(format!("/proc/{pid}/stat")).ok()?)?,
            ))
        })
        .collect();
    found.sort_by_key(|(pid, status)| (std::cmp::Reverse(status.ticks), pid.as_raw()));
    found.truncate(wanted);
    let names = names(root);
    let mut room = MOST_BYTES;
    let mut processes = Vec::with_capacity(found.len());
    for (pid, status) in found {
        let folder = format!("/proc/{pid}");
        let uid = fs::metadata(&folder).map_or(0, |meta| meta.uid());
        let user = names.get(&uid).cloned().unwrap_or_else(|| uid.to_string());
        let command = command(&folder);
        // Numbers and their tags are less than 32 bytes.
        let Some(left) = room.checked_sub(user.len() + command.len() + 32) else {
            break;
        };
        room = left;
        processes.push(ProcessStats {
            pid: pid.as_raw().try_into().unwrap_or(0),
            user,
            resident_kib: status.resident_pages.saturating_mul(page_size() as u64) / 1024,
            cpu_ms: milliseconds(status.ticks),
            command,
        });
    }
    (count, processes)
}

/// The arguments, or the name in brackets of what has none, as the kernel's own.
fn command(folder: &str) -> String {
    let line = first_bytes(&format!("{folder}/cmdline")).unwrap_or_default();
    let end = line
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |at| at + 1);
    let mut text: String = String::from_utf8_lossy(&line[..end])
        .chars()
        .map(|char| if char.is_control() { ' ' } else { char })
        .collect();
    if text.is_empty() {
        let name = first_bytes(&format!("{folder}/comm")).unwrap_or_default();
        text = format!("[{}]", String::from_utf8_lossy(&name).trim_end());
    }
    text
}

/// The beginning of a file that may be long.
fn first_bytes(path: &str) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; LONGEST];
    let count = io::Read::read(&mut fs::File::open(path)?, &mut bytes)?;
    bytes.truncate(count);
    Ok(bytes)
}

fn names(root: &Path) -> HashMap<u32, String> {
    let passwd = read_bounded(&root.join("etc/passwd"), LONGEST_FILE);
    let passwd = passwd.ok().flatten().unwrap_or_default();
    let mut names = HashMap::new();
    for line in String::from_utf8_lossy(&passwd).lines() {
        let mut fields = line.split(':');
        let (name, uid) = (
            fields.next(),
            fields.nth(1).and_then(|uid| uid.parse().ok()),
        );
        if let (Some(name), Some(uid)) = (name, uid)
            && name.len() <= 32
        {
            names.entry(uid).or_insert_with(|| name.to_owned());
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_are_counted_and_their_time_is_told_apart() {
        let hz = clock_ticks_per_second();
        let text = format!("cpu  {hz} 0 {hz} {hz} {hz} 0 0 0 77 0\ncpu0 1 1\ncpu1 1 1\nintr 5\n");
        let expected = Cpu {
            count: 2,
            busy_ms: 2000,
            total_ms: 4000,
        };
        assert_eq!(Cpu::of(&text), expected);
        assert_eq!(Cpu::of("nonsense"), Cpu::default());
    }

    #[test]
    fn links_and_disks_are_summed_without_what_is_counted_twice() {
        let text = "Inter-|   Receive\n face |bytes packets\n    lo: 9 1 0 0 0 0 0 0 9 1\n  eth0: 100 1 0 0 0 0 0 0 20 1 0\n  eth1:1 1 0 0 0 0 0 0 2 1 0\n";
        assert_eq!(network(text), (101, 22));
        let text = " 254 0 vda 1 0 10 0 1 0 20 0\n 254 1 vda1 1 0 10 0 1 0 20 0\nshort\n";
        assert_eq!(disks(text, |name| name == "vda"), (5120, 10240));
    }

    #[test]
    fn mounts_are_told_once_and_those_of_the_kernel_not_at_all() {
        let mounts = "proc /proc proc rw 0 0\ntmpfs /tmp tmpfs rw 0 0\nrootfs / rootfs rw 0 0\n/dev/vda /tmp ext4 rw 0 0\nx\n";
        let found = filesystems(mounts);
        assert_eq!(found.len(), 1);
        assert_eq!((&*found[0].mount_point, &*found[0].kind), ("/tmp", "ext4"));
        assert!(found[0].total_kib > 0);
        assert_eq!(unescaped("/a\\040b\\x\\04"), "/a b\\x\\04");
    }

    #[test]
    fn this_process_is_among_the_busiest() {
        let (count, processes) = busiest(MOST_PROCESSES, Path::new("/"));
        assert!(count > 0);
        let this = processes
            .iter()
            .find(|process| process.pid == std::process::id());
        assert!(
            this.is_some_and(
                |process| process.resident_kib > 0 && process.command.contains("kestrel")
            )
        );
        assert!(processes.is_sorted_by_key(|process| std::cmp::Reverse(process.cpu_ms)));
        assert_eq!(busiest(1, Path::new("/")).1.len(), 1);
        assert!(busiest(0, Path::new("/")).1.is_empty());
    }
}
