use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const EXITED: Event = Event::Exited { success: false };

fn asked(reason: Reason, grace: Option<Duration>) -> Event {
    Event::Asked(Ask { reason, grace })
}

/// One event a second.
fn run(policy: Restart, events: &[Event]) -> (State, Vec<Effect>) {
    let mut life = Life::new(policy);
    let mut now = Duration::ZERO;
    let mut effects = Vec::new();
    for event in events {
        effects.push(life.on(*event, now));
        now += SECOND;
    }
    (life.state, effects)
}

fn wait(millis: u64, restarts: u32, unhealthy: bool) -> Effect {
    Effect::Wait {
        delay: Duration::from_millis(millis),
        restarts,
        unhealthy,
    }
}

#[test]
fn a_request_stops_then_kills_then_ends_and_keeps_its_reason() {
    let (state, effects) = run(
        Restart::Always,
        &[
            Event::Started,
            asked(Reason::PowerButton, None),
            asked(Reason::Requested, None),
            asked(Reason::Requested, Some(SECOND)),
            Event::TimeOver,
            Event::TimeOver,
        ],
    );
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
fn a_workload_that_ends_by_itself_ends_the_machine_or_is_started_again() {
    let (_, effects) = run(Restart::Never, &[Event::Started, EXITED]);
    assert_eq!(effects[1], Effect::EndMachine(Reason::WorkloadExited));
    let success = Event::Exited { success: true };
    let (_, effects) = run(Restart::OnFailure, &[Event::Started, success]);
    assert_eq!(effects[1], Effect::EndMachine(Reason::WorkloadExited));
    let again = [
        Event::Started,
        EXITED,
        Event::TimeOver,
        Event::Started,
        EXITED,
        asked(Reason::Requested, Some(SECOND)),
    ];
    let (_, effects) = run(Restart::OnFailure, &again);
    assert_eq!(
        effects[1..],
        [
            wait(100, 1, false),
            Effect::Launch,
            Effect::Nothing,
            wait(200, 2, false),
            Effect::EndMachine(Reason::Requested),
        ]
    );
}

#[test]
fn bad_health_ends_a_workload_and_starts_it_again_or_ends_the_machine() {
    let ill = [
        Event::Started,
        Event::Unhealthy,
        Event::TimeOver,
        EXITED,
        Event::TimeOver,
        Event::Started,
    ];
    let (state, effects) = run(Restart::Always, &ill);
    assert_eq!(state, State::Running);
    assert_eq!(
        effects[1..5],
        [
            Effect::Stop { grace: None },
            Effect::Kill,
            wait(100, 1, true),
            Effect::Launch
        ]
    );
    let (_, effects) = run(Restart::Never, &ill[..4]);
    assert_eq!(effects[3], Effect::EndMachine(Reason::Unhealthy));
    // The sixth in ten minutes.
    let (state, effects) = run(Restart::Always, &ill.repeat(6));
    assert_eq!(state, State::Down(Reason::Unhealthy));
    let cures = effects
        .iter()
        .filter(|effect| matches!(effect, Effect::Wait { .. }))
        .count();
    assert_eq!(cures, 5);
}

#[test]
fn who_asks_while_a_workload_is_cured_is_heard() {
    let ask = asked(Reason::Requested, Some(SECOND));
    let (_, effects) = run(
        Restart::Always,
        &[Event::Started, Event::Unhealthy, ask, EXITED],
    );
    assert_eq!(
        effects[2..],
        [
            Effect::Hurry { grace: SECOND },
            Effect::EndMachine(Reason::Requested)
        ]
    );
    let events = [
        Event::Started,
        Event::Unhealthy,
        Event::TimeOver,
        ask,
        Event::TimeOver,
    ];
    let (_, effects) = run(Restart::Always, &events);
    assert_eq!(effects[4], Effect::EndMachine(Reason::Requested));
}

#[test]
fn a_workload_that_ends_in_its_grace_is_not_killed() {
    let (_, effects) = run(
        Restart::Always,
        &[
            Event::Started,
            asked(Reason::Requested, Some(SECOND)),
            EXITED,
        ],
    );
    let grace = Some(SECOND);
    assert_eq!(
        effects[1..],
        [
            Effect::Stop { grace },
            Effect::EndMachine(Reason::Requested)
        ]
    );
}

#[test]
fn without_a_workload_there_is_nothing_to_wait_for() {
    let reboot = asked(Reason::GuestReboot, None);
    assert_eq!(
        run(Restart::Always, &[reboot]).1,
        [Effect::EndMachine(Reason::GuestReboot)]
    );
    assert_eq!(
        run(Restart::Always, &[Event::Failed]).1,
        [Effect::EndMachine(Reason::Fatal)]
    );
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        Just(Event::Started),
        Just(EXITED),
        Just(Event::Exited { success: true }),
        Just(Event::TimeOver),
        Just(Event::Unhealthy),
        Just(Event::Failed),
        Just(asked(Reason::Requested, None)),
        Just(asked(Reason::GuestReboot, Some(SECOND))),
    ]
}

fn policy() -> impl Strategy<Value = Restart> {
    prop::sample::select(vec![Restart::Never, Restart::OnFailure, Restart::Always])
}

proptest! {
    #[test]
    fn the_machine_ends_once_and_a_workload_is_stopped_before_it_is_killed(
        policy in policy(),
        events in prop::collection::vec(event(), 0..40),
    ) {
        let (state, effects) = run(policy, &events);
        let ends = effects.iter().filter(|effect| matches!(effect, Effect::EndMachine(_))).count();
        prop_assert_eq!(ends, usize::from(matches!(state, State::Down(_))));
        // Of each run of the workload.
        let mut stopped = false;
        for effect in &effects {
            match effect {
                Effect::Stop { .. } => stopped = true,
                Effect::Launch => stopped = false,
                Effect::Kill | Effect::Hurry { .. } => prop_assert!(stopped),
                Effect::Nothing | Effect::Wait { .. } | Effect::EndMachine(_) => {}
            }
        }
    }

    #[test]
    fn each_launch_has_its_wait_and_none_comes_without_the_policy(
        policy in policy(),
        events in prop::collection::vec(event(), 0..60),
    ) {
        let (_, effects) = run(policy, &events);
        let mut waiting = false;
        let mut last = 0;
        for effect in &effects {
            match effect {
                Effect::Wait { delay, restarts, .. } => {
                    prop_assert!(!waiting && policy != Restart::Never);
                    prop_assert!(*delay >= Duration::from_millis(100) && *delay <= Duration::from_secs(30));
                    prop_assert_eq!(*restarts, last + 1);
                    last = *restarts;
                    waiting = true;
                }
                Effect::Launch => {
                    prop_assert!(waiting);
                    waiting = false;
                }
                Effect::Stop { .. } | Effect::Kill | Effect::Hurry { .. } => prop_assert!(!waiting),
                Effect::Nothing | Effect::EndMachine(_) => {}
            }
        }
    }
}
