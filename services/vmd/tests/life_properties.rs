//! The life of a VM against any sequence of wishes and facts.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use std::time::Duration;

use proptest::prelude::*;
use vmd::{
    ended::{Ended, WorkloadExit},
    hypervisor::VmmExit,
    life::{DownReason, Effect, Event, Life, MAX_REBOOTS, Request, Rung, Step, Times},
};

#[derive(Clone, Debug)]
enum Op {
    Stop,
    Fact(Event),
}

fn times() -> Times {
    Times::new(Duration::from_secs(60), Duration::from_secs(10))
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
    ];
    let fact = prop_oneof![
        4 => Just(Event::Launched),
        4 => (0..2u8).prop_map(|boot| Event::Hello { boot_id: boot.to_string() }),
        4 => Just(Event::WorkloadStarted),
        1 => Just(Event::WorkloadExited(WorkloadExit { code: 3, signal: 0 })),
        1 => Just(Event::Fatal("why".to_owned())),
        2 => reason.prop_map(Event::GoingDown),
        1 => Just(Event::Panic("Kernel panic".to_owned())),
        2 => Just(Event::Overdue),
        2 => (exit(), any::<bool>())
            .prop_map(|(exit, out_of_memory)| Event::VmmEnded { exit, out_of_memory }),
    ];
    prop_oneof![1 => Just(Op::Stop), 8 => fact.prop_map(Op::Fact)]
}

/// A life, and what a supervisor holds for it.
struct World {
    life: Life,
    effects: Vec<Effect>,
    /// The VMM was launched, and its end was not seen.
    vmm: bool,
    killed: bool,
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
                }
                Effect::Kill | Effect::PressPowerButton | Effect::AskAgent => {
                    assert!(self.vmm, "{effect:?} without a VMM");
                    self.killed |= effect == Effect::Kill;
                }
                Effect::SayReady => {}
            }
            self.effects.push(effect);
        }
    }

    fn apply(&mut self, op: Op) {
        self.clock += Duration::from_secs(1);
        let life = self.life.clone();
        let (life, effects) = match op {
            Op::Stop => life.request(Request::Stop),
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
    fn after_a_stop_nothing_is_launched_again(
        before in prop::collection::vec(op(), 0..30),
        after in prop::collection::vec(op(), 0..30),
    ) {
        let mut world = World::new();
        for op in before {
            world.apply(op);
        }
        world.apply(Op::Stop);
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
    let life = life_after(&[Event::Launched, hello("a"), Event::WorkloadStarted]);
    let (mut life, effects) = life.request(Request::Stop);
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
    let (life, effects) = life_after(&[Event::Launched]).request(Request::Stop);
    assert_eq!(effects, [Effect::Kill]);
    assert_eq!(*life.step(), Step::Stopping(Rung::Kill));
}

#[test]
fn ends_are_told_apart() {
    let running = [Event::Launched, hello("a"), Event::WorkloadStarted];
    let exit = WorkloadExit { code: 3, signal: 0 };
    let crash = VmmExit::Killed {
        program: "qemu",
        signal: 11,
    };
    let cases: [(Vec<Event>, Ended); 9] = [
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
