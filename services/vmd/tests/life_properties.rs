//! The life of a VM against any sequence of wishes and facts.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use std::time::Duration;

use proptest::prelude::*;
use vmd::{
    ended::{Ended, WorkloadExit},
    hypervisor::VmmExit,
    life::{
        Denied, DownReason, Effect, Event, Life, MAX_REBOOTS, News, Request, Rung, STOP_TIMEOUT,
        Step, Times, news,
    },
};

#[derive(Clone, Debug)]
enum Op {
    Wish(Request),
    Fact(Event),
}

fn times() -> Times {
    Times::new(
        Duration::from_secs(60),
        Duration::from_secs(30),
        Duration::from_secs(10),
        Some(STOP_TIMEOUT),
    )
}

fn exit() -> impl Strategy<Value = VmmExit> {
    prop_oneof![
        Just(VmmExit::GuestPowerOff),
        Just(VmmExit::GuestReset),
        Just(VmmExit::Exited {
            program: "qemu",
            code: 1,
            message: String::new()
        }),
        Just(VmmExit::Killed {
            program: "qemu",
            signal: 9
        }),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let reason = prop_oneof![
        Just(DownReason::Requested),
        Just(DownReason::WorkloadExited),
        Just(DownReason::PowerOff),
        Just(DownReason::Reboot),
        Just(DownReason::Fatal),
        Just(DownReason::Unhealthy),
    ];
    let fact = prop_oneof![
        4 => Just(Event::Launched),
        4 => (0..2u8).prop_map(|boot| Event::Hello { boot_id: boot.to_string() }),
        4 => Just(Event::WorkloadStarted),
        4 => Just(Event::Ready),
        1 => any::<bool>().prop_map(|healthy| Event::Health { healthy, detail: "why".to_owned() }),
        1 => Just(Event::WorkloadExited(WorkloadExit::new(3, 0))),
        1 => Just(Event::Fatal("why".to_owned())),
        2 => reason.prop_map(Event::GoingDown),
        1 => Just(Event::Panic("Kernel panic".to_owned())),
        2 => Just(Event::Overdue),
        2 => (exit(), any::<bool>())
            .prop_map(|(exit, out_of_memory)| Event::VmmEnded { exit, out_of_memory }),
    ];
    let wish = prop_oneof![
        1 => Just(Request::Stop),
        2 => Just(Request::Pause),
        2 => Just(Request::Resume),
    ];
    prop_oneof![1 => wish.prop_map(Op::Wish), 5 => fact.prop_map(Op::Fact)]
}

/// A life, and what a supervisor holds for it.
struct World {
    life: Life,
    effects: Vec<Effect>,
    /// The VMM was launched, and its end was not seen.
    vmm: bool,
    killed: bool,
    /// The guest's CPUs stand still.
    stands: bool,
    clock: Duration,
}

impl World {
    fn new() -> Self {
        let (life, effects) = Life::begin(times());
        let mut world = Self {
            life,
            effects: Vec::new(),
            vmm: false,
            killed: false,
            stands: false,
            clock: Duration::ZERO,
        };
        world.carry_out(effects);
        world
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Launch => {
                    assert!(!self.vmm, "launched twice");
                    self.vmm = true;
                    self.killed = false;
                    self.stands = false;
                }
                Effect::Kill | Effect::PressPowerButton | Effect::AskAgent => {
                    assert!(self.vmm, "{effect:?} without a VMM");
                    self.killed |= effect == Effect::Kill;
                }
                Effect::SayReady => {}
                Effect::Pause => {
                    assert!(self.vmm && !self.stands, "paused what stands still");
                    self.stands = true;
                }
                Effect::Resume => {
                    assert!(self.vmm && self.stands, "resumed what runs");
                    self.stands = false;
                }
            }
            self.effects.push(effect);
        }
    }

    fn apply(&mut self, op: Op) {
        self.clock += Duration::from_secs(1);
        let life = self.life.clone();
        let (life, effects) = match op {
            Op::Wish(request) => {
                let Ok((life, effects)) = life.clone().request(request) else {
                    assert!(request != Request::Stop, "a stop was denied");
                    return;
                };
                let done = match request {
                    _ if effects.is_empty() => None,
                    Request::Pause => Some(Event::Paused),
                    Request::Resume => Some(Event::Resumed),
                    Request::Stop => None,
                };
                self.life = life;
                self.carry_out(effects);
                match done {
                    Some(event) => self.life.clone().observe(event, self.clock),
                    None => return,
                }
            }
            // A VMM that does not run cannot end.
            Op::Fact(Event::VmmEnded { .. }) if !self.vmm => return,
            Op::Fact(event) => {
                self.vmm &= !matches!(event, Event::VmmEnded { .. });
                life.observe(event, self.clock)
            }
        };
        self.life = life;
        self.carry_out(effects);
    }

    fn ended(&self) -> bool {
        matches!(self.life.step(), Step::Ended(_))
    }
}

proptest! {
    #[test]
    fn a_vmm_is_held_exactly_between_launch_and_its_end(ops in prop::collection::vec(op(), 0..60)) {
        let mut world = World::new();
        for op in ops {
            let before = (world.ended(), world.effects.len());
            world.apply(op);
            if before.0 {
                prop_assert!(world.ended(), "it came back to life");
                prop_assert_eq!(before.1, world.effects.len(), "an effect after the end");
            }
            // Whoever is not ended holds a VMM, else nothing would ever happen again.
            prop_assert!(world.ended() || world.vmm, "{:?}", world.life);
        }
    }

    #[test]
    fn readiness_is_said_once_at_most(ops in prop::collection::vec(op(), 0..80)) {
        let mut world = World::new();
        for op in ops {
            world.apply(op);
        }
        let said = world.effects.iter().filter(|effect| **effect == Effect::SayReady).count();
        prop_assert!(said <= 1);
        prop_assert!(*world.life.step() != Step::Running || said == 1);
    }

    #[test]
    fn everything_ends_by_waiting_alone(ops in prop::collection::vec(op(), 0..40)) {
        let mut world = World::new();
        for op in ops {
            world.apply(op);
        }
        // Only time passes, and a VMM that was killed ends.
        for _ in 0..20 {
            if world.ended() {
                break;
            }
            // What somebody paused waits for somebody.
            if *world.life.step() == Step::Paused {
                world.apply(Op::Wish(Request::Resume));
            }
            prop_assert!(world.life.patience().is_some());
            if world.killed {
                let exit = VmmExit::Killed { program: "qemu", signal: 9 };
                world.apply(Op::Fact(Event::VmmEnded { exit, out_of_memory: false }));
            } else {
                world.apply(Op::Fact(Event::Overdue));
            }
        }
        prop_assert!(world.ended(), "{:?}", world.life);
    }

    #[test]
    fn a_guest_stands_still_exactly_while_its_life_is_paused(ops in prop::collection::vec(op(), 0..60)) {
        let mut world = World::new();
        for op in ops {
            world.apply(op);
            let paused = *world.life.step() == Step::Paused;
            prop_assert_eq!(paused, world.stands && !world.ended() && !world.killed, "{:?}", world.life);
            prop_assert_eq!(paused, world.life.patience().is_none() && !world.ended());
        }
    }

    #[test]
    fn after_a_stop_nothing_is_launched_again(
        before in prop::collection::vec(op(), 0..30),
        after in prop::collection::vec(op(), 0..30),
    ) {
        let mut world = World::new();
        for op in before {
            world.apply(op);
        }
        world.apply(Op::Wish(Request::Stop));
        let launches = |world: &World| world.effects.iter().filter(|effect| **effect == Effect::Launch).count();
        let before = launches(&world);
        for op in after {
            world.apply(op);
        }
        prop_assert_eq!(before, launches(&world));
    }
}

fn life_after(events: &[Event]) -> Life {
    let (mut life, _) = Life::begin(times());
    for event in events {
        life = life.observe(event.clone(), Duration::ZERO).0;
    }
    life
}

fn hello(boot: &str) -> Event {
    Event::Hello {
        boot_id: boot.to_owned(),
    }
}

fn ended(exit: VmmExit) -> Event {
    Event::VmmEnded {
        exit,
        out_of_memory: false,
    }
}

#[test]
fn the_stop_ladder_is_climbed_rung_by_rung() {
    let life = life_after(&[
        Event::Launched,
        hello("a"),
        Event::WorkloadStarted,
        Event::Ready,
    ]);
    let (mut life, effects) = life.stop();
    assert_eq!(effects, [Effect::AskAgent]);
    assert_eq!(life.patience(), Some(Duration::from_secs(15)));
    let expected = [
        Effect::PressPowerButton,
        Effect::PressPowerButton,
        Effect::PressPowerButton,
        Effect::Kill,
    ];
    for expected in expected {
        let (next, effects) = life.observe(Event::Overdue, Duration::ZERO);
        assert_eq!(effects, [expected]);
        life = next;
    }
    let killed = ended(VmmExit::Killed {
        program: "qemu",
        signal: 9,
    });
    let (life, _) = life.observe(killed, Duration::ZERO);
    assert_eq!(*life.step(), Step::Ended(Ended::Stopped(Rung::Kill)));
}

#[test]
fn a_guest_without_agent_is_stopped_at_once() {
    let (life, effects) = life_after(&[Event::Launched]).stop();
    assert_eq!(effects, [Effect::Kill]);
    assert_eq!(*life.step(), Step::Stopping(Rung::Kill));
}

#[test]
fn ends_are_told_apart() {
    let running = [
        Event::Launched,
        hello("a"),
        Event::WorkloadStarted,
        Event::Ready,
    ];
    let exit = WorkloadExit::new(3, 0);
    let crash = VmmExit::Killed {
        program: "qemu",
        signal: 11,
    };
    let cases: [(Vec<Event>, Ended); 11] = [
        (
            vec![
                Event::WorkloadExited(exit),
                Event::GoingDown(DownReason::WorkloadExited),
                ended(VmmExit::GuestReset),
            ],
            Ended::Workload(exit),
        ),
        (
            vec![
                Event::Health {
                    healthy: false,
                    detail: "status 500".to_owned(),
                },
                Event::GoingDown(DownReason::Unhealthy),
                ended(VmmExit::GuestReset),
            ],
            Ended::Unhealthy {
                detail: "status 500".to_owned(),
            },
        ),
        // It said so, and was paused before it was gone.
        (
            vec![
                Event::Paused,
                Event::WorkloadExited(exit),
                Event::GoingDown(DownReason::WorkloadExited),
                Event::Resumed,
                ended(VmmExit::GuestReset),
            ],
            Ended::Workload(exit),
        ),
        (
            vec![
                Event::GoingDown(DownReason::PowerOff),
                ended(VmmExit::GuestReset),
            ],
            Ended::GuestPowerOff,
        ),
        (vec![ended(VmmExit::GuestPowerOff)], Ended::GuestPowerOff),
        (
            vec![
                Event::Panic("Kernel panic".to_owned()),
                ended(VmmExit::GuestReset),
            ],
            Ended::KernelPanic {
                line: "Kernel panic".to_owned(),
                agent_called: true,
            },
        ),
        (
            vec![
                Event::Fatal("no disk".to_owned()),
                ended(VmmExit::GuestReset),
            ],
            Ended::AgentFatal {
                cause: "no disk".to_owned(),
            },
        ),
        (
            vec![Event::Overdue, ended(crash.clone())],
            Ended::AgentSilent { seconds: 30 },
        ),
        (vec![ended(crash.clone())], Ended::VmmCrashed(crash.clone())),
        (
            vec![Event::VmmEnded {
                exit: crash,
                out_of_memory: true,
            }],
            Ended::OutOfMemory,
        ),
        // A panic, and a VMM that resets the machine by itself.
        (
            vec![
                Event::Panic("Kernel panic".to_owned()),
                hello("b"),
                ended(VmmExit::GuestPowerOff),
            ],
            Ended::KernelPanic {
                line: "Kernel panic".to_owned(),
                agent_called: true,
            },
        ),
    ];
    for (events, expected) in cases {
        let all: Vec<Event> = running.iter().cloned().chain(events.clone()).collect();
        assert_eq!(
            *life_after(&all).step(),
            Step::Ended(expected),
            "{events:?}"
        );
    }
}

#[test]
fn a_panic_tells_whether_an_agent_ever_called() {
    let panic = || Event::Panic("Kernel panic".to_owned());
    let reset = || ended(VmmExit::GuestReset);
    let cases = [
        (vec![panic(), reset()], false),
        (vec![panic(), Event::Overdue, reset()], false),
        (vec![hello("a"), panic(), reset()], true),
        (vec![hello("a"), panic(), Event::Overdue, reset()], true),
        // The boot before it had an agent.
        (
            vec![hello("a"), reset(), Event::Launched, panic(), reset()],
            true,
        ),
    ];
    for (events, agent_called) in cases {
        let all: Vec<Event> = [Event::Launched].into_iter().chain(events).collect();
        let panicked = Ended::KernelPanic {
            line: "Kernel panic".to_owned(),
            agent_called,
        };
        assert_eq!(*life_after(&all).step(), Step::Ended(panicked), "{all:?}");
    }
}

#[test]
fn a_reboot_launches_again_until_there_were_too_many() {
    let (mut life, _) = Life::begin(times());
    for reboot in 1..=MAX_REBOOTS + 1 {
        for event in [Event::Launched, hello(&reboot.to_string())] {
            life = life.observe(event, Duration::ZERO).0;
        }
        life = life
            .observe(Event::GoingDown(DownReason::Reboot), Duration::ZERO)
            .0;
        let (next, effects) = life.observe(ended(VmmExit::GuestReset), Duration::ZERO);
        life = next;
        assert_eq!(effects.is_empty(), reboot > MAX_REBOOTS, "{reboot}");
    }
    assert_eq!(
        *life.step(),
        Step::Ended(Ended::RebootLoop {
            reboots: 6,
            seconds: 60
        })
    );
}

#[test]
fn reboots_that_are_far_apart_are_forgotten() {
    let (mut life, _) = Life::begin(times());
    for reboot in 0..20u64 {
        life = life
            .observe(ended(VmmExit::GuestReset), Duration::from_secs(reboot * 20))
            .0;
    }
    assert_eq!(*life.step(), Step::Starting);
    assert_eq!(life.reboots(), 3);
}

#[test]
fn a_vm_is_running_once_it_is_ready_and_not_before() {
    let booted = [Event::Launched, hello("a"), Event::WorkloadStarted];
    let life = life_after(&booted);
    assert_eq!(*life.step(), Step::Booting { greeted: true });
    assert_eq!(life.patience(), Some(Duration::from_secs(30)));
    let (life, effects) = life.observe(Event::Ready, Duration::ZERO);
    assert_eq!(effects, [Effect::SayReady]);
    assert_eq!(*life.step(), Step::Running);

    let ill = Event::Health {
        healthy: false,
        detail: "connection refused".to_owned(),
    };
    let never = |events: &[Event]| {
        let (life, effects) = life_after(events).observe(Event::Overdue, Duration::ZERO);
        assert_eq!(effects, [Effect::Kill]);
        let killed = ended(VmmExit::GuestReset);
        life.observe(killed, Duration::ZERO).0.step().clone()
    };
    assert_eq!(
        never(&booted),
        Step::Ended(Ended::Unhealthy {
            detail: "not ready within 30 s: its health check said nothing".to_owned()
        })
    );
    let [launched, hello, started] = booted;
    assert_eq!(
        never(&[launched.clone(), hello.clone(), started, ill]),
        Step::Ended(Ended::Unhealthy {
            detail: "not ready within 30 s: connection refused".to_owned()
        })
    );
    assert_eq!(
        never(&[launched, hello]),
        Step::Ended(Ended::NoWorkload { seconds: 30 })
    );
}

#[test]
fn what_cannot_be_now_is_denied_with_the_reason() {
    let running = [Event::Launched, hello("a"), Event::Ready];
    let paused = |events: &[Event]| {
        let life = life_after(events);
        life.observe(Event::Paused, Duration::ZERO).0
    };
    let stopping = life_after(&running).stop().0;
    let over = life_after(&[ended(VmmExit::GuestPowerOff)]);
    for request in [Request::Pause, Request::Resume] {
        for (life, expected) in [
            (life_after(&[]), Denied::Boots),
            (life_after(&[Event::Launched]), Denied::Boots),
            (life_after(&[Event::Launched, hello("a")]), Denied::Boots),
            (stopping.clone(), Denied::Stops),
            (over.clone(), Denied::Ended),
        ] {
            assert_eq!(life.request(request), Err(expected));
        }
    }
    // Already so.
    let (_, effects) = paused(&running).request(Request::Pause).unwrap();
    assert_eq!(effects, []);
    let (_, effects) = life_after(&running).request(Request::Resume).unwrap();
    assert_eq!(effects, []);
    // Whoever stops it has it go on first.
    let (life, effects) = paused(&running).stop();
    assert_eq!(effects, [Effect::Resume, Effect::AskAgent]);
    assert_eq!(*life.step(), Step::Stopping(Rung::Agent));
}

#[test]
fn each_turn_of_a_life_is_news_once() {
    let (mut life, _) = Life::begin(times());
    let exit = || ended(VmmExit::GuestReset);
    let told = [
        (Event::Launched, None),
        (hello("a"), Some(News::Booted)),
        (Event::WorkloadStarted, None),
        (Event::Ready, Some(News::Ready)),
        (Event::Ready, None),
        (Event::Paused, Some(News::Paused)),
        (Event::Paused, None),
        (Event::Resumed, Some(News::Resumed)),
        (Event::GoingDown(DownReason::Reboot), Some(News::Stopping)),
        (exit(), Some(News::Rebooting)),
        (Event::Launched, None),
        (hello("b"), Some(News::Booted)),
        (Event::Ready, Some(News::Ready)),
        (Event::GoingDown(DownReason::PowerOff), Some(News::Stopping)),
        (exit(), Some(News::Ended)),
        (exit(), None),
    ];
    for (event, expected) in told {
        let (after, _) = life.clone().observe(event.clone(), Duration::ZERO);
        assert_eq!(news(&life, &after), expected, "{event:?}");
        life = after;
    }
    assert_eq!(life.rebooted(), 1);
}
