//! How the guest is, by its own word: bounded by the frame that it came in, and made harmless.

use volant_proto::{agent::v1::GuestStats, vm::v1};

use crate::session::words;

/// More are not shown: an agent of ours tells of fewer.
const MAX_FILESYSTEMS: usize = 64;
const MAX_PROCESSES: usize = 1024;

/// What is shown of `stats` to a client that asked for so many processes.
pub(super) fn response(stats: GuestStats, processes: u32) -> v1::GetStatsResponse {
    let processes = usize::try_from(processes).unwrap_or(MAX_PROCESSES);
    v1::GetStatsResponse {
        uptime_ms: stats.uptime_ms,
        load_centi: stats.load_centi,
        cpus: stats.cpus,
        cpu_busy_ms: stats.cpu_busy_ms,
        cpu_total_ms: stats.cpu_total_ms,
        memory_total_kib: stats.memory_total_kib,
        memory_available_kib: stats.memory_available_kib,
        swap_total_kib: stats.swap_total_kib,
        swap_free_kib: stats.swap_free_kib,
        receive_bytes: stats.receive_bytes,
        transmit_bytes: stats.transmit_bytes,
        disk_read_bytes: stats.disk_read_bytes,
        disk_written_bytes: stats.disk_written_bytes,
        filesystems: stats
            .filesystems
            .into_iter()
            .take(MAX_FILESYSTEMS)
            .map(|filesystem| v1::Filesystem {
                mount_point: words(&filesystem.mount_point),
                kind: words(&filesystem.kind),
                total_kib: filesystem.total_kib,
                available_kib: filesystem.available_kib,
            })
            .collect(),
        processes: stats
            .processes
            .into_iter()
            .take(processes.min(MAX_PROCESSES))
            .map(|process| v1::Process {
                pid: process.pid,
                user: words(&process.user),
                resident_kib: process.resident_kib,
                cpu_ms: process.cpu_ms,
                command: words(&process.command),
            })
            .collect(),
        process_count: stats.process_count,
        restarts: stats.restarts,
        health: words(&stats.health),
    }
}
