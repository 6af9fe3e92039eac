//! What it reports of a workload that is not there.

use volant_proto::agent::v1::{
    HealthChanged, Ready, WorkloadExited, WorkloadRestarting, WorkloadStarted,
    report_request::Report,
};

/// The reports of that name, after the workload's start and its readiness.
pub fn of(attack: &str) -> Vec<Report> {
    match attack {
        "exits" => exits(),
        "restarts" => restarts(),
        _ => Vec::new(),
    }
}

/// Ends out of range, more than one, and life after them.
fn exits() -> Vec<Report> {
    let exited = |code, signal| {
        Report::WorkloadExited(WorkloadExited {
            code,
            signal,
            out_of_memory: code != 0,
        })
    };
    vec![
        exited(4_000_000_000, 77_777),
        exited(0, 0),
        Report::Ready(Ready {}),
        Report::WorkloadStarted(WorkloadStarted { pid: 0 }),
        exited(7, 0),
    ]
}

/// Counts that jump, and health that is never the same.
fn restarts() -> Vec<Report> {
    let restarting = |restarts| {
        Report::WorkloadRestarting(WorkloadRestarting {
            exit: None,
            restarts,
            delay_ms: u32::MAX,
            unhealthy: true,
        })
    };
    let health = |healthy| {
        Report::HealthChanged(HealthChanged {
            healthy,
            detail: "\x1b]0;".repeat(10_000),
        })
    };
    let mut lies = vec![restarting(7), restarting(u32::MAX), restarting(1)];
    lies.extend((0..100).map(|round: u32| health(round.is_multiple_of(2))));
    lies
}
