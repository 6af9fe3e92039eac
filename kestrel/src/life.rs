//! What an agent does when something happens: a state machine that decides, and does nothing itself.
//!
//! ```text
//! Starting ──Started──▶ Running ──Asked──▶ Stopping ──TimeOver──▶ Killing
//!    │ Failed, Asked       │ Exited           │ Exited               │ Exited, TimeOver
//!    └─────────────────────┴──────────────────┴──────────────────────┴──▶ Down
//! ```

use std::time::Duration;

use volant_proto::agent::v1::going_down;

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
    /// The workload has its stop signal.
    Stopping(Reason),
    /// The workload was killed, and is not known to be gone.
    Killing(Reason),
    Down(Reason),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Started,
    Exited,
    Asked(Ask),
    /// The time that [`Effect::Stop`], [`Effect::Hurry`] or [`Effect::Kill`] set is over.
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
    /// End everything else, then the machine.
    EndMachine(Reason),
}

impl State {
    /// The next state and what to do. Nothing happens after [`State::Down`].
    #[must_use]
    pub fn on(self, event: Event) -> (Self, Effect) {
        let down = |reason| (Self::Down(reason), Effect::EndMachine(reason));
        match (self, event) {
            (Self::Starting, Event::Started) => (Self::Running, Effect::Nothing),
            (Self::Starting, Event::Asked(ask)) => down(ask.reason),
            (Self::Starting | Self::Running, Event::Failed) => down(Reason::Fatal),
            (Self::Running, Event::Exited) => down(Reason::WorkloadExited),
            (Self::Running, Event::Asked(ask)) => (
                Self::Stopping(ask.reason),
                Effect::Stop { grace: ask.grace },
            ),
            (
                Self::Stopping(_),
                Event::Asked(Ask {
                    grace: Some(grace), ..
                }),
            ) => (self, Effect::Hurry { grace }),
            (Self::Stopping(reason), Event::TimeOver) => (Self::Killing(reason), Effect::Kill),
            (Self::Stopping(reason) | Self::Killing(reason), Event::Exited | Event::Failed)
            | (Self::Killing(reason), Event::TimeOver) => down(reason),
            // A late or repeated fact changes nothing.
            (Self::Starting, Event::Exited | Event::TimeOver)
            | (Self::Running, Event::Started | Event::TimeOver)
            | (Self::Stopping(_), Event::Started | Event::Asked(Ask { grace: None, .. }))
            | (Self::Killing(_), Event::Started | Event::Asked(_))
            | (Self::Down(_), _) => (self, Effect::Nothing),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn asked(reason: Reason, grace: Option<Duration>) -> Event {
        Event::Asked(Ask { reason, grace })
    }

    fn run(events: &[Event]) -> (State, Vec<Effect>) {
        let mut state = State::Starting;
        let mut effects = Vec::new();
        for event in events {
            let (next, effect) = state.on(*event);
            state = next;
            effects.push(effect);
        }
        (state, effects)
    }

    #[test]
    fn a_request_stops_then_kills_then_ends_and_keeps_its_reason() {
        let (state, effects) = run(&[
            Event::Started,
            asked(Reason::PowerButton, None),
            asked(Reason::Requested, None),
            asked(Reason::Requested, Some(SECOND)),
            Event::TimeOver,
            Event::TimeOver,
        ]);
        assert_eq!(state, State::Down(Reason::PowerButton));
        assert_eq!(
            effects,
            [
                Effect::Nothing,
                Effect::Stop { grace: None },
                Effect::Nothing,
                Effect::Hurry { grace: SECOND },
                Effect::Kill,
                Effect::EndMachine(Reason::PowerButton),
            ]
        );
    }

    #[test]
    fn a_workload_that_ends_by_itself_ends_the_machine() {
        let (_, effects) = run(&[Event::Started, Event::Exited]);
        assert_eq!(effects[1], Effect::EndMachine(Reason::WorkloadExited));
    }

    #[test]
    fn a_workload_that_ends_in_its_grace_is_not_killed() {
        let (_, effects) = run(&[
            Event::Started,
            asked(Reason::Requested, Some(SECOND)),
            Event::Exited,
        ]);
        assert_eq!(
            effects[1..],
            [
                Effect::Stop {
                    grace: Some(SECOND)
                },
                Effect::EndMachine(Reason::Requested)
            ]
        );
    }

    #[test]
    fn without_a_workload_there_is_nothing_to_wait_for() {
        assert_eq!(
            run(&[asked(Reason::GuestReboot, None)]).1,
            [Effect::EndMachine(Reason::GuestReboot)]
        );
        assert_eq!(run(&[Event::Failed]).1, [Effect::EndMachine(Reason::Fatal)]);
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            Just(Event::Started),
            Just(Event::Exited),
            Just(Event::TimeOver),
            Just(Event::Failed),
            Just(asked(Reason::Requested, None)),
            Just(asked(Reason::GuestReboot, Some(SECOND))),
        ]
    }

    proptest! {
        #[test]
        fn the_machine_ends_once_and_a_workload_is_stopped_before_it_is_killed(events in prop::collection::vec(event(), 0..20)) {
            let (state, effects) = run(&events);
            let ends = effects.iter().filter(|effect| matches!(effect, Effect::EndMachine(_))).count();
            prop_assert_eq!(ends, usize::from(matches!(state, State::Down(_))));
            let first = |wanted: fn(&Effect) -> bool| effects.iter().position(wanted);
            let stop = first(|effect| matches!(effect, Effect::Stop { .. }));
            let kill = first(|effect| matches!(effect, Effect::Kill));
            if let Some(kill) = kill {
                prop_assert!(stop.is_some_and(|stop| stop < kill));
            }
        }
    }
}
