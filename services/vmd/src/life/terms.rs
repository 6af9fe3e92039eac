//! The words of a VM's life: its steps, what is asked, what happens, what is to be done.

use crate::{
    ended::{Ended, WorkloadExit},
    hypervisor::VmmExit,
};

/// Where the VM's life is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Starting,
    Booting {
        /// The agent said hello.
        greeted: bool,
    },
    Running,
    /// The guest's CPUs stand still.
    Paused,
    Stopping(Rung),
    Ended(Ended),
}

/// A rung of the ladder by which a VM is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rung {
    /// The guest goes down by itself; nothing was done to it.
    Guest,
    /// The agent was asked to stop the workload and the machine.
    Agent,
    /// The power button was pressed, so many times.
    Button(u8),
    Kill,
}

impl Rung {
    /// For `VOLANT_RUNG=`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Guest => "guest",
            Self::Agent => "agent",
            Self::Button(_) => "button",
            Self::Kill => "kill",
        }
    }

    /// What it did, for the end of "stopped: ".
    #[must_use]
    pub fn as_past(self) -> &'static str {
        match self {
            Self::Guest => "the guest was going down by itself",
            Self::Agent => "the agent shut the guest down",
            Self::Button(_) => "the power button did it, as the agent did not answer",
            Self::Kill => "the VMM was killed",
        }
    }
}

/// Why the agent says that the machine goes down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DownReason {
    Requested,
    WorkloadExited,
    PowerButton,
    PowerOff,
    Reboot,
    Fatal,
    Unhealthy,
}

/// What somebody wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    Stop,
    /// Once it is carried out, [`Event::Paused`] is observed.
    Pause,
    /// Once it is carried out, [`Event::Resumed`] is observed.
    Resume,
}

/// Why a wish is not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    #[error("the VM boots: wait until it is ready")]
    Boots,
    #[error("the VM is being stopped")]
    Stops,
    #[error("the VM is at its end")]
    Ended,
    #[error("the VM is paused: resume it first")]
    Paused,
}

/// What happened. A fact cannot be refused; a late one changes nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Launched,
    NotLaunched {
        missing: bool,
        cause: String,
    },
    Hello {
        boot_id: String,
    },
    WorkloadStarted,
    /// The workload runs and is healthy.
    Ready,
    /// What its health check says now, and why.
    Health {
        healthy: bool,
        detail: String,
    },
    Paused,
    Resumed,
    WorkloadExited(WorkloadExit),
    Fatal(String),
    GoingDown(DownReason),
    /// The console said so.
    Panic(String),
    /// The step lasted longer than its patience.
    Overdue,
    VmmEnded {
        exit: VmmExit,
        out_of_memory: bool,
    },
}

/// What the supervisor is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    Launch,
    /// The workload is ready for the first time.
    SayReady,
    /// Stop the guest's CPUs; [`Event::Paused`] when it is done.
    Pause,
    /// Let them go on, and have the clock set; [`Event::Resumed`] when it is done.
    Resume,
    AskAgent,
    PressPowerButton,
    Kill,
}
