//! What an agent does when something happens: a state machine that decides, and does nothing itself.
//!
//! ```text
//!              ┌──────────────TimeOver─────────────┐
//!              ▼                                   │
//! Starting ▶ Running ──Exited, to be restarted──▶ Waiting
//!              │  └──Unhealthy──▶ Curing ──Exited──┘
//!              │ Asked, Unhealthy   │ Asked
//!              ▼                    ▼
//!           Stopping ──TimeOver──▶ Killing ──Exited, TimeOver──▶ Down
//! ```
//! Whatever ends without another start ends in `Down`: `Asked` while there is no workload, and `Failed` at any time.

use std::time::Duration;

use volant_proto::agent::v1::going_down;

use crate::{config::Restart, restart::Restarts};

/// Why the machine goes down. The first reason stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The host wants it.
    Requested,
    WorkloadExited,
    PowerButton,
    /// Something in the guest asked for power-off.
    GuestPowerOff,
    /// Something in the guest asked for a reboot.
    GuestReboot,
    /// The agent cannot go on.
    Fatal,
    /// The workload's health check failed, and it may not be started again.
    Unhealthy,
}

impl From<Reason> for going_down::Reason {
    fn from(reason: Reason) -> Self {
        match reason {
            Reason::Requested => Self::Requested,
            Reason::WorkloadExited => Self::WorkloadExited,
            Reason::PowerButton => Self::PowerButton,
            Reason::GuestPowerOff => Self::GuestPoweroff,
            Reason::GuestReboot => Self::GuestReboot,
            Reason::Fatal => Self::Fatal,
            Reason::Unhealthy => Self::Unhealthy,
        }
    }
}

/// Somebody wants the machine to go down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    pub reason: Reason,
    /// From the stop signal to `SIGKILL`; absent: as configured.
    pub grace: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// There is no workload yet.
    Starting,
    Running,
    /// It is ended for its health, and will be started again.
    Curing {
        killed: bool,
    },
    /// It has ended, and will be started again.
    Waiting,
    /// The workload has its stop signal.
    Stopping(Reason),
    /// The workload was killed, and is not known to be gone.
    Killing(Reason),
    Down(Reason),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Started,
    Exited {
        success: bool,
    },
    Asked(Ask),
    /// The workload's health check says that it is not well.
    Unhealthy,
    /// The time that [`Effect::Stop`], [`Effect::Hurry`], [`Effect::Kill`] or [`Effect::Wait`] set is over.
    TimeOver,
    /// The agent cannot go on.
    Failed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    Nothing,
    /// Send the workload its stop signal, and give it this time.
    Stop {
        grace: Option<Duration>,
    },
    /// Give the workload no more than this time from now.
    Hurry {
        grace: Duration,
    },
    /// Kill the workload, and wait a moment for its end.
    Kill,
    /// End what the workload left, and wait this long.
    Wait {
        delay: Duration,
        restarts: u32,
        unhealthy: bool,
    },
    /// Start the workload again, now.
    Launch,
    /// End everything else, then the machine.
    EndMachine(Reason),
}

/// The state, and what decides about the next one.
#[derive(Clone, Debug)]
pub struct Life {
    state: State,
    restarts: Restarts,
}

impl Life {
    #[must_use]
    pub fn new(policy: Restart) -> Self {
        Self {
            state: State::Starting,
            restarts: Restarts::new(policy),
        }
    }

    /// What to do when `event` happens, `now` since any moment that stays the same. Nothing happens after [`State::Down`].
    pub fn on(&mut self, event: Event, now: Duration) -> Effect {
        if event == Event::Started {
            self.restarts.started(now);
        }
        let (state, effect) = self.next(event, now);
        self.state = state;
        effect
    }

    fn next(&mut self, event: Event, now: Duration) -> (State, Effect) {
        use State::{Curing, Down, Killing, Running, Starting, Stopping, Waiting};
        let state = self.state;
        let down = |reason| (Down(reason), Effect::EndMachine(reason));
        match (state, event) {
            (Starting, Event::Started) => (Running, Effect::Nothing),
            (Starting | Waiting, Event::Asked(ask)) => down(ask.reason),
            (Starting | Running | Waiting | Curing { .. }, Event::Failed) => down(Reason::Fatal),
            (Running, Event::Exited { success }) => match self.restarts.after_exit(success, now) {
                Some(delay) => self.wait(delay, false),
                None => down(Reason::WorkloadExited),
            },
            (Running, Event::Asked(ask)) => {
                (Stopping(ask.reason), Effect::Stop { grace: ask.grace })
            }
            (Running, Event::Unhealthy) => {
                let next = if self.restarts.may_cure(now) {
                    Curing { killed: false }
                } else {
                    Stopping(Reason::Unhealthy)
                };
                (next, Effect::Stop { grace: None })
            }
            (Curing { .. }, Event::Exited { .. }) => {
                let delay = self.restarts.again(now);
                self.wait(delay, true)
            }
            (Curing { killed: false }, Event::TimeOver) => (Curing { killed: true }, Effect::Kill),
            // What cannot be killed cannot be started again.
            (Curing { killed: true }, Event::TimeOver) => down(Reason::Unhealthy),
            (Curing { killed: false }, Event::Asked(ask)) => (
                Stopping(ask.reason),
                ask.grace
                    .map_or(Effect::Nothing, |grace| Effect::Hurry { grace }),
            ),
            (Curing { killed: true }, Event::Asked(ask)) => (Killing(ask.reason), Effect::Nothing),
            (Waiting, Event::TimeOver) => (Running, Effect::Launch),
            (
                Stopping(_),
                Event::Asked(Ask {
                    grace: Some(grace), ..
                }),
            ) => (state, Effect::Hurry { grace }),
            (Stopping(reason), Event::TimeOver) => (Killing(reason), Effect::Kill),
            (Stopping(reason) | Killing(reason), Event::Exited { .. } | Event::Failed)
            | (Killing(reason), Event::TimeOver) => down(reason),
            // A late or repeated fact changes nothing.
            (Starting, Event::Exited { .. } | Event::TimeOver | Event::Unhealthy)
            | (Running, Event::Started | Event::TimeOver)
            | (Curing { .. }, Event::Started | Event::Unhealthy)
            | (Waiting, Event::Started | Event::Exited { .. } | Event::Unhealthy)
            | (
                Stopping(_),
                Event::Started | Event::Unhealthy | Event::Asked(Ask { grace: None, .. }),
            )
            | (Killing(_), Event::Started | Event::Unhealthy | Event::Asked(_))
            | (Down(_), _) => (state, Effect::Nothing),
        }
    }

    fn wait(&self, delay: Duration, unhealthy: bool) -> (State, Effect) {
        let restarts = self.restarts.count();
        let wait = Effect::Wait {
            delay,
            restarts,
            unhealthy,
        };
        (State::Waiting, wait)
    }
}

#[cfg(test)]
mod tests;
