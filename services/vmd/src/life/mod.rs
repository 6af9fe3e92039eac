//! The life of a VM as a state machine: pure, total, without clock.
//!
//! ```text
//!            Launched            hello, ready         paused
//!  Starting ─────────▶ Booting ─────────▶ Running ◀────────▶ Paused
//!     ▲                   │                  │      resumed     │
//!     │                   │                  │ ◀────────────────┘  stop asked, or the guest goes down by itself
//!     │ reboot            └───────┬──────────┘
//!     └──────────────────────  Stopping: Agent ▶ Button ▶ Kill,  or Guest ▶ Kill
//!                                 │ the VMM ended
//!                                 ▼
//!                               Ended
//! ```
//! [`Life::request`] takes what somebody wants, [`Life::observe`] what happened; both answer with the effects that the
//! supervisor carries out. Every step but the last has a [`Life::patience`], after which [`Event::Overdue`] is
//! observed: nothing waits for ever, but for somebody who paused it.

mod news;
mod saved;
mod terms;
mod times;

pub use news::{News, news};
pub use saved::{SavedLife, Unsaved};
pub use terms::{Denied, DownReason, Effect, Event, Request, Rung, Step};
pub use times::{BUTTON_PRESSES, STOP_TIMEOUT, Times};

use std::time::Duration;

use crate::{
    ended::{Ended, WorkloadExit},
    hypervisor::VmmExit,
};

/// More reboots than this within [`REBOOT_WINDOW`] end the VM.
pub const MAX_REBOOTS: usize = 5;
pub const REBOOT_WINDOW: Duration = Duration::from_secs(60);

/// What was learnt of the guest since its boot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Seen {
    launched: bool,
    boot_id: Option<String>,
    started: bool,
    ready: bool,
    /// What the health check said last, when it said that the workload is not well.
    ill: Option<String>,
    exited: Option<WorkloadExit>,
    fatal: Option<String>,
    going_down: Option<DownReason>,
    panic: Option<String>,
}

/// What becomes of a VM whose VMM is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Fate {
    End(Ended),
    Reboot,
}

/// A VM's life until now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Life {
    step: Step,
    times: Times,
    seen: Seen,
    /// What was decided when the VMM was killed, so that its exit decides nothing.
    doom: Option<Fate>,
    stop_asked: bool,
    ready_said: bool,
    /// An agent said hello, in this boot or an earlier one.
    agent_called: bool,
    /// When, on the clock of `observe`.
    reboots: Vec<Duration>,
    /// All of them.
    rebooted: u32,
}

impl Life {
    /// A life at its beginning, and what to do first.
    #[must_use]
    pub fn begin(times: Times) -> (Self, Vec<Effect>) {
        let life = Self {
            step: Step::Starting,
            times,
            seen: Seen::default(),
            doom: None,
            stop_asked: false,
            ready_said: false,
            agent_called: false,
            reboots: Vec::new(),
            rebooted: 0,
        };
        (life, vec![Effect::Launch])
    }

    #[must_use]
    pub fn step(&self) -> &Step {
        &self.step
    }

    #[must_use]
    pub fn phase(&self) -> &'static str {
        match self.step {
            Step::Starting => "starting",
            Step::Booting { .. } => "booting",
            Step::Running | Step::Paused => "running",
            Step::Stopping(_) => "stopping",
            Step::Ended(_) => "ended",
        }
    }

    /// Reboots within the last window.
    #[must_use]
    pub fn reboots(&self) -> usize {
        self.reboots.len()
    }

    /// How often the guest was rebooted.
    #[must_use]
    pub fn rebooted(&self) -> u32 {
        self.rebooted
    }

    /// How long the present step may last; `None` at the end, and as long as somebody has it paused.
    #[must_use]
    pub fn patience(&self) -> Option<Duration> {
        let times = &self.times;
        match self.step {
            Step::Starting | Step::Booting { greeted: false } => Some(times.boot),
            Step::Booting { greeted: true } => Some(times.workload_start),
            Step::Running => Some(times.silence),
            Step::Stopping(Rung::Agent) => Some(times.grace.saturating_add(times.agent)),
            Step::Stopping(Rung::Button(_)) => Some(times.button),
            Step::Stopping(Rung::Guest) => Some(times.guest),
            Step::Stopping(Rung::Kill) => Some(times.kill),
            Step::Paused | Step::Ended(_) => None,
        }
    }

    /// Takes a wish; one that is under way, or is so already, does nothing.
    ///
    /// # Errors
    /// It cannot be now. A stop always can.
    pub fn request(self, request: Request) -> Result<(Self, Vec<Effect>), Denied> {
        match (request, &self.step) {
            (Request::Stop, _) => Ok(self.stop()),
            (Request::Pause, Step::Running) => Ok((self, vec![Effect::Pause])),
            (Request::Resume, Step::Paused) => Ok((self, vec![Effect::Resume])),
            (Request::Pause, Step::Paused) | (Request::Resume, Step::Running) => {
                Ok((self, Vec::new()))
            }
            (Request::Pause | Request::Resume, Step::Starting | Step::Booting { .. }) => {
                Err(Denied::Boots)
            }
            (Request::Pause | Request::Resume, Step::Stopping(_)) => Err(Denied::Stops),
            (Request::Pause | Request::Resume, Step::Ended(_)) => Err(Denied::Ended),
        }
    }

    /// Stops the VM, gracefully if there is somebody to ask.
    #[must_use]
    pub fn stop(mut self) -> (Self, Vec<Effect>) {
        self.stop_asked = true;
        match self.step {
            // A launch that is under way is given up; its processes die with the supervisor.
            Step::Starting => self.end(Ended::Stopped(Rung::Kill)),
            // Without an agent nobody in the guest hears of the power button, and there is nothing to lose yet.
            Step::Booting { greeted: false } => self.kill(None),
            Step::Booting { greeted: true } | Step::Running => {
                self.step = Step::Stopping(Rung::Agent);
                (self, vec![Effect::AskAgent])
            }
            Step::Paused => {
                self.step = Step::Stopping(Rung::Agent);
                (self, vec![Effect::Resume, Effect::AskAgent])
            }
            Step::Stopping(_) | Step::Ended(_) => (self, Vec::new()),
        }
    }

    /// Takes a fact. `at` is any clock that does not go back.
    #[must_use]
    pub fn observe(mut self, event: Event, at: Duration) -> (Self, Vec<Effect>) {
        if let Step::Ended(_) = self.step {
            return (self, Vec::new());
        }
        match event {
            Event::Launched => self.seen.launched = true,
            Event::NotLaunched {
                missing: true,
                cause,
            } => return self.end(Ended::VmmMissing { cause }),
            Event::NotLaunched {
                missing: false,
                cause,
            } => return self.end(Ended::VmmFailed { cause }),
            Event::Hello { boot_id } => return self.greeted(boot_id, at),
            Event::WorkloadStarted => self.seen.started = self.seen.boot_id.is_some(),
            Event::Ready => {
                self.seen.ready = self.seen.boot_id.is_some();
                self.seen.ill = None;
            }
            Event::Health { healthy, detail } => self.seen.ill = (!healthy).then_some(detail),
            Event::Paused => {
                if self.step == Step::Running {
                    self.step = Step::Paused;
                }
            }
            Event::Resumed => return self.resumed(),
            Event::WorkloadExited(exit) => {
                self.seen.exited.get_or_insert(exit);
                return self.goes_down();
            }
            Event::Fatal(cause) => {
                self.seen.fatal.get_or_insert(cause);
                return self.goes_down();
            }
            Event::GoingDown(reason) => {
                self.seen.going_down.get_or_insert(reason);
                return self.goes_down();
            }
            Event::Panic(line) => {
                self.seen.panic.get_or_insert(line);
            }
            Event::Overdue => return self.overdue(),
            Event::VmmEnded {
                exit,
                out_of_memory,
            } => {
                let fate = self.fate(&exit, out_of_memory);
                return self.meet(fate, at);
            }
        }
        self.advance()
    }

    /// Goes as far up as what was seen allows.
    fn advance(mut self) -> (Self, Vec<Effect>) {
        if !matches!(self.step, Step::Starting | Step::Booting { .. }) || !self.seen.launched {
            return (self, Vec::new());
        }
        if !self.seen.ready {
            self.step = Step::Booting {
                greeted: self.seen.boot_id.is_some(),
            };
            return (self, Vec::new());
        }
        self.step = Step::Running;
        let first = !std::mem::replace(&mut self.ready_said, true);
        (
            self,
            if first {
                vec![Effect::SayReady]
            } else {
                Vec::new()
            },
        )
    }

    fn greeted(mut self, boot_id: String, at: Duration) -> (Self, Vec<Effect>) {
        self.agent_called = true;
        match &self.seen.boot_id {
            Some(known) if *known == boot_id => (self, Vec::new()),
            None => {
                self.seen.boot_id = Some(boot_id);
                self.advance()
            }
            // The guest is on its way down, and a new boot is stopped as the old one was; or it stands still, and said this before.
            Some(_) if matches!(self.step, Step::Stopping(_) | Step::Paused) => (self, Vec::new()),
            // The machine was reset, and the VMM went on with it.
            Some(_) => {
                if let Some(panicked) = self.panicked() {
                    return self.kill(Some(Fate::End(panicked)));
                }
                if let Some(loops) = self.count_reboot(at) {
                    return self.kill(Some(Fate::End(loops)));
                }
                self.seen = Seen {
                    launched: true,
                    boot_id: Some(boot_id),
                    ..Seen::default()
                };
                self.step = Step::Booting { greeted: true };
                (self, Vec::new())
            }
        }
    }

    /// The guest told that it will not go on; it gets some time to end by itself, once it can.
    fn goes_down(mut self) -> (Self, Vec<Effect>) {
        if !matches!(self.step, Step::Stopping(_) | Step::Paused) {
            self.step = Step::Stopping(Rung::Guest);
        }
        (self, Vec::new())
    }

    fn resumed(mut self) -> (Self, Vec<Effect>) {
        if self.step != Step::Paused {
            return (self, Vec::new());
        }
        self.step = Step::Running;
        let Seen {
            exited,
            fatal,
            going_down,
            ..
        } = &self.seen;
        // It said so before it was paused.
        if exited.is_some() || fatal.is_some() || going_down.is_some() {
            return self.goes_down();
        }
        (self, Vec::new())
    }

    fn overdue(self) -> (Self, Vec<Effect>) {
        let times = self.times;
        match self.step {
            Step::Starting => self.end(Ended::VmmFailed {
                cause: format!("the VMM did not start within {} s", times.boot.as_secs()),
            }),
            Step::Booting { greeted: false } => {
                let seconds = times.boot.as_secs();
                let ended = self.panicked().unwrap_or(Ended::NoAgent { seconds });
                self.kill(Some(Fate::End(ended)))
            }
            Step::Booting { greeted: true } => {
                let ended = self.panicked().unwrap_or_else(|| self.not_ready());
                self.kill(Some(Fate::End(ended)))
            }
            Step::Running => {
                let seconds = times.silence.as_secs();
                let ended = self.panicked().unwrap_or(Ended::AgentSilent { seconds });
                self.kill(Some(Fate::End(ended)))
            }
            Step::Stopping(Rung::Guest) => {
                let doom = (!self.stop_asked).then(|| self.fate(&VmmExit::GuestPowerOff, false));
                self.kill(doom)
            }
            // An agent that said its last word does not hear the power button.
            Step::Stopping(Rung::Agent) if self.seen.going_down.is_some() => self.kill(None),
            Step::Stopping(Rung::Agent) => self.press(1),
            Step::Stopping(Rung::Button(presses)) if presses < BUTTON_PRESSES => {
                self.press(presses + 1)
            }
            Step::Stopping(Rung::Button(_)) => self.kill(None),
            Step::Stopping(Rung::Kill) => {
                let cause = format!(
                    "the VMM did not end within {} s of SIGKILL",
                    times.kill.as_secs()
                );
                self.end(Ended::VmmFailed { cause })
            }
            Step::Paused | Step::Ended(_) => (self, Vec::new()),
        }
    }

    /// The end of a guest whose agent called, and whose workload did not become ready.
    fn not_ready(&self) -> Ended {
        let seconds = self.times.workload_start.as_secs();
        if !self.seen.started {
            return Ended::NoWorkload { seconds };
        }
        let why = self
            .seen
            .ill
            .as_deref()
            .unwrap_or("its health check said nothing");
        Ended::Unhealthy {
            detail: format!("not ready within {seconds} s: {why}"),
        }
    }

    fn fate(&self, exit: &VmmExit, out_of_memory: bool) -> Fate {
        match &self.doom {
            // Stopped while it was killed for a reboot that it did not finish.
            Some(Fate::Reboot) if self.stop_asked => {}
            Some(doom) => return doom.clone(),
            None => {}
        }
        let rung = match self.step {
            Step::Stopping(rung) => rung,
            _ => Rung::Guest,
        };
        let crashed = matches!(exit, VmmExit::Exited { .. } | VmmExit::Killed { .. });
        if crashed && rung != Rung::Kill {
            return Fate::End(if out_of_memory {
                Ended::OutOfMemory
            } else {
                Ended::VmmCrashed(exit.clone())
            });
        }
        if self.stop_asked {
            return Fate::End(Ended::Stopped(rung));
        }
        if let Some(cause) = self.seen.fatal.clone() {
            return Fate::End(Ended::AgentFatal { cause });
        }
        let down = || {
            self.seen
                .exited
                .map_or(Ended::GuestPowerOff, Ended::Workload)
        };
        match (self.seen.going_down, self.panicked(), exit) {
            (Some(DownReason::Reboot), _, _) => Fate::Reboot,
            (Some(DownReason::Fatal), _, _) => Fate::End(Ended::AgentFatal {
                cause: "it gave no cause".to_owned(),
            }),
            (Some(DownReason::Unhealthy), _, _) => Fate::End(Ended::Unhealthy {
                detail: self.seen.ill.clone().unwrap_or_default(),
            }),
            (Some(_), _, _) => Fate::End(down()),
            (None, Some(panicked), VmmExit::GuestReset) => Fate::End(panicked),
            // A reset without a word, by a workload that goes past its init.
            (None, None, VmmExit::GuestReset) if self.seen.exited.is_none() => Fate::Reboot,
            (None, _, _) => Fate::End(down()),
        }
    }

    /// The end by the panic that the console told of.
    fn panicked(&self) -> Option<Ended> {
        let line = self.seen.panic.clone()?;
        Some(Ended::KernelPanic {
            line,
            agent_called: self.agent_called,
        })
    }

    fn meet(mut self, fate: Fate, at: Duration) -> (Self, Vec<Effect>) {
        match fate {
            Fate::End(ended) => self.end(ended),
            Fate::Reboot => {
                if let Some(loops) = self.count_reboot(at) {
                    return self.end(loops);
                }
                self.seen = Seen::default();
                self.doom = None;
                self.step = Step::Starting;
                (self, vec![Effect::Launch])
            }
        }
    }

    /// The end, when there were too many.
    fn count_reboot(&mut self, at: Duration) -> Option<Ended> {
        self.reboots
            .retain(|earlier| at.saturating_sub(*earlier) < REBOOT_WINDOW);
        self.reboots.push(at);
        self.rebooted = self.rebooted.saturating_add(1);
        (self.reboots.len() > MAX_REBOOTS).then(|| Ended::RebootLoop {
            reboots: self.reboots.len(),
            seconds: REBOOT_WINDOW.as_secs(),
        })
    }

    fn press(mut self, presses: u8) -> (Self, Vec<Effect>) {
        self.step = Step::Stopping(Rung::Button(presses));
        (self, vec![Effect::PressPowerButton])
    }

    fn kill(mut self, doom: Option<Fate>) -> (Self, Vec<Effect>) {
        self.doom = doom;
        self.step = Step::Stopping(Rung::Kill);
        (self, vec![Effect::Kill])
    }

    fn end(mut self, ended: Ended) -> (Self, Vec<Effect>) {
        self.step = Step::Ended(ended);
        (self, Vec::new())
    }
}
