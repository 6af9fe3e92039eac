//! What an agent tells, cut to size and made harmless, and what that is in the life of its VM. Pure.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use volant_proto::agent::v1::{
    HeartbeatRequest, HelloRequest, WorkloadExited, going_down::Reason, report_request::Report,
};

use crate::{
    ended::WorkloadExit,
    life::{DownReason, Event},
    text::printable,
};

/// Of what it says for people, in bytes.
const MAX_CAUSE: usize = 1024;
pub(super) const MAX_WORD: usize = 64;

/// What an agent told, checked and cut to size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    Hello {
        boot_id: String,
        version: String,
        uptime_ms: u64,
    },
    WorkloadStarted {
        pid: u32,
    },
    WorkloadExited(WorkloadExit),
    Fatal(String),
    GoingDown(DownReason),
    /// The workload is healthy for the first time in this boot.
    Ready,
    WorkloadRestarting(Restarting),
    Health {
        healthy: bool,
        detail: String,
    },
    Heartbeat(Heartbeat),
}

/// The workload ended, and is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restarting {
    pub exit: WorkloadExit,
    /// How often in this boot, with this one.
    pub restarts: u32,
    pub delay: Duration,
    /// The agent ended it, as its health check failed.
    pub unhealthy: bool,
}

/// How the guest is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    pub memory_total_kib: u64,
    pub memory_available_kib: u64,
    pub agent_resident_kib: u64,
}

impl Fact {
    #[must_use]
    pub fn greeted(hello: &HelloRequest) -> Self {
        Self::Hello {
            boot_id: printable(hello.boot_id.as_bytes(), MAX_WORD),
            version: printable(hello.version.as_bytes(), MAX_WORD),
            uptime_ms: hello.uptime_ms,
        }
    }

    #[must_use]
    pub fn beat(beat: HeartbeatRequest) -> Self {
        Self::Heartbeat(Heartbeat {
            memory_total_kib: beat.memory_total_kib,
            memory_available_kib: beat.memory_available_kib,
            agent_resident_kib: beat.agent_resident_kib,
        })
    }

    #[must_use]
    pub fn reported(report: Report) -> Self {
        match report {
            Report::WorkloadStarted(started) => Self::WorkloadStarted { pid: started.pid },
            Report::WorkloadExited(exited) => Self::WorkloadExited(exit(exited)),
            Report::Fatal(fatal) => Self::Fatal(printable(fatal.cause.as_bytes(), MAX_CAUSE)),
            Report::Ready(_) => Self::Ready,
            Report::WorkloadRestarting(restarting) => Self::WorkloadRestarting(Restarting {
                exit: exit(restarting.exit.unwrap_or_default()),
                restarts: restarting.restarts,
                delay: Duration::from_millis(restarting.delay_ms.into()),
                unhealthy: restarting.unhealthy,
            }),
            Report::HealthChanged(health) => Self::Health {
                healthy: health.healthy,
                detail: printable(health.detail.as_bytes(), MAX_CAUSE),
            },
            Report::GoingDown(down) => Self::GoingDown(match down.reason() {
                Reason::Requested => DownReason::Requested,
                Reason::WorkloadExited => DownReason::WorkloadExited,
                Reason::PowerButton => DownReason::PowerButton,
                Reason::GuestPoweroff | Reason::Unspecified => DownReason::PowerOff,
                Reason::GuestReboot => DownReason::Reboot,
                Reason::Fatal => DownReason::Fatal,
                Reason::Unhealthy => DownReason::Unhealthy,
            }),
        }
    }

    /// What it is in the VM's life; nothing where it changes none of its steps.
    #[must_use]
    pub fn event(self) -> Option<Event> {
        Some(match self {
            Self::Hello { boot_id, .. } => Event::Hello { boot_id },
            Self::WorkloadStarted { .. } => Event::WorkloadStarted,
            Self::WorkloadExited(exit) => Event::WorkloadExited(exit),
            Self::Fatal(cause) => Event::Fatal(cause),
            Self::GoingDown(reason) => Event::GoingDown(reason),
            Self::Ready => Event::Ready,
            Self::Health { healthy, detail } => Event::Health { healthy, detail },
            Self::WorkloadRestarting(_) | Self::Heartbeat(_) => return None,
        })
    }
}

fn exit(exited: WorkloadExited) -> WorkloadExit {
    WorkloadExit {
        // What no process can end with is the worst of what one can.
        code: u8::try_from(exited.code).unwrap_or(u8::MAX),
        signal: exited.signal,
        out_of_memory: exited.out_of_memory,
    }
}
