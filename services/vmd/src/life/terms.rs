//! The words of a VM's life: its steps, what is asked, what happens, what is to be done.

use std::time::Duration;

use crate::{
    ended::{Ended, WorkloadExit},
    hypervisor::VmmExit,
};

/// How long each step may last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// From the VMM's start to the agent's hello.
    pub boot: Duration,
    /// From the hello to the workload's start.
    pub workload_start: Duration,
    /// Between two heartbeats.
    pub silence: Duration,
    /// What the workload may take from its stop signal to its end.
    pub grace: Duration,
    /// What the agent may take beyond the workload's grace.
    pub agent: Duration,
    /// Between two presses of the power button.
    pub button: Duration,
    /// What a guest may take that goes down by itself.
    pub guest: Duration,
    /// From SIGKILL to the VMM's end.
    pub kill: Duration,
}

impl Times {
    #[must_use]
    pub fn new(boot: Duration, grace: Duration) -> Self {
        Self {
            boot,
            workload_start: Duration::from_secs(30),
            silence: Duration::from_secs(30),
            grace,
            agent: Duration::from_secs(5),
            button: Duration::from_secs(2),
            guest: Duration::from_secs(30),
            kill: Duration::from_secs(10),
        }
    }
}

/// Where the VM's life is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Starting,
    Booting {
        /// The agent said hello.
        greeted: bool,
    },
    Running,
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
}

/// What somebody wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    Stop,
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
    /// The workload runs for the first time.
    SayReady,
    AskAgent,
    PressPowerButton,
    Kill,
}
