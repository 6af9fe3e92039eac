//! A life for the supervisor that takes over. Pure.
//!
//! Only what a life is when nobody is in the middle of something is written down: while a VMM is launched or a guest goes down
//! nobody takes over.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Life, Seen, Step, Times};

/// A life that goes on elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedLife {
    step: SavedStep,
    times: Times,
    boot_id: Option<String>,
    started: bool,
    ready: bool,
    ill: Option<String>,
    panic: Option<String>,
    ready_said: bool,
    agent_called: bool,
    reboots: Vec<Duration>,
    rebooted: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum SavedStep {
    Booting { greeted: bool },
    Running,
    Paused,
}

/// Why nobody can take over now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsaved {
    #[error("its VMM is being started")]
    Starts,
    #[error("it is being stopped")]
    Stops,
    #[error("it is at its end")]
    Ended,
}

impl Life {
    /// This life, written down.
    ///
    /// # Errors
    /// It is in the middle of something.
    pub fn save(&self) -> Result<SavedLife, Unsaved> {
        let step = match self.step {
            Step::Booting { greeted } => SavedStep::Booting { greeted },
            Step::Running => SavedStep::Running,
            Step::Paused => SavedStep::Paused,
            Step::Starting => return Err(Unsaved::Starts),
            Step::Stopping(_) => return Err(Unsaved::Stops),
            Step::Ended(_) => return Err(Unsaved::Ended),
        };
        let Seen {
            launched: _,
            boot_id,
            started,
            ready,
            ill,
            exited,
            fatal,
            going_down,
            panic,
        } = &self.seen;
        // A paused guest that goes down once it can.
        let goes_down = exited.is_some() || fatal.is_some() || going_down.is_some();
        if goes_down || self.stop_asked || self.doom.is_some() {
            return Err(Unsaved::Stops);
        }
        Ok(SavedLife {
            step,
            times: self.times,
            boot_id: boot_id.clone(),
            started: *started,
            ready: *ready,
            ill: ill.clone(),
            panic: panic.clone(),
            ready_said: self.ready_said,
            agent_called: self.agent_called,
            reboots: self.reboots.clone(),
            rebooted: self.rebooted,
        })
    }
}

impl SavedLife {
    #[must_use]
    pub fn times(&self) -> Times {
        self.times
    }

    /// Whether systemd was told that the VM is ready.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.ready_said
    }
}

impl From<SavedLife> for Life {
    fn from(saved: SavedLife) -> Self {
        Self {
            step: match saved.step {
                SavedStep::Booting { greeted } => Step::Booting { greeted },
                SavedStep::Running => Step::Running,
                SavedStep::Paused => Step::Paused,
            },
            times: saved.times,
            seen: Seen {
                launched: true,
                boot_id: saved.boot_id,
                started: saved.started,
                ready: saved.ready,
                ill: saved.ill,
                panic: saved.panic,
                ..Seen::default()
            },
            doom: None,
            stop_asked: false,
            ready_said: saved.ready_said,
            agent_called: saved.agent_called,
            reboots: saved.reboots,
            rebooted: saved.rebooted,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::life::{DownReason, Event};

    fn after(events: &[Event]) -> Life {
        let minute = Duration::from_secs(60);
        let times = Times::new(minute, minute, minute, Some(minute));
        let (mut life, _) = Life::begin(times);
        for (event, at) in events.iter().zip(1..) {
            (life, _) = life.observe(event.clone(), Duration::from_secs(at));
        }
        life
    }

    fn hello(boot_id: &str) -> Event {
        Event::Hello {
            boot_id: boot_id.to_owned(),
        }
    }

    #[test]
    fn a_life_goes_on_as_it_was() {
        let ill = Event::Health {
            healthy: false,
            detail: "no answer".to_owned(),
        };
        let all = [
            Event::Launched,
            hello("a"),
            Event::WorkloadStarted,
            ill,
            Event::Ready,
            Event::Panic("oops".to_owned()),
            Event::Paused,
            Event::Resumed,
        ];
        for count in 1..=all.len() {
            let life = after(&all[..count]);
            let text = serde_json::to_string(&life.save().unwrap()).unwrap();
            let saved: SavedLife = serde_json::from_str(&text).unwrap();
            assert_eq!(Life::from(saved), life, "{text}");
        }
        // Reboots are remembered: the guest may be in a loop.
        let rebooted = after(&[Event::Launched, hello("a"), Event::Ready, hello("b")]);
        let again = Life::from(rebooted.save().unwrap());
        assert_eq!((again.reboots(), again.rebooted()), (1, 1));
        assert_eq!(again, rebooted);
    }

    #[test]
    fn nobody_takes_over_in_the_middle_of_something() {
        let ready = [Event::Launched, hello("a"), Event::Ready];
        let mut paused_and_down = ready.to_vec();
        paused_and_down.extend([Event::Paused, Event::GoingDown(DownReason::PowerOff)]);
        assert_eq!(after(&[]).save(), Err(Unsaved::Starts));
        assert_eq!(after(&ready).stop().0.save(), Err(Unsaved::Stops));
        assert_eq!(after(&paused_and_down).save(), Err(Unsaved::Stops));
        assert_eq!(after(&[]).stop().0.save(), Err(Unsaved::Ended));
    }
}
