//! What an agent tells its host, in any order, among what happens to its VM: the messages as they come, and what becomes of them
//! in the VM's life.
//!
//! A byte chooses what happens; a message follows with its length.

use std::time::Duration;

use prost::Message;
use vmd::{
    agent::{Boot, Fact, Standing, Token},
    hypervisor::VmmExit,
    life::{Effect, Event, Life, MAX_REBOOTS, Request, SavedLife, Step, Times},
    live::Live,
};
use volant_proto::agent::v1::{HeartbeatRequest, HelloRequest, PROTOCOL, ReportRequest};

const TOKEN: [u8; 32] = [7; 32];
/// What is kept of a guest's words takes no more, in bytes.
const MOST_KEPT: usize = 96 * 1024;
/// A line for people, with what it has of a guest's words.
const MOST_SHOWN: usize = 16 * 1024;

/// No panic; no state but those that the life's pages show; nothing that grows with what is told; one readiness; no machine
/// too many; and an agent that has no token is not one.
pub fn control(bytes: &[u8]) {
    let (life, effects) = Life::begin(Times::new(
        Duration::from_secs(60),
        Duration::from_secs(60),
        Duration::from_secs(10),
        Some(Duration::from_secs(90)),
    ));
    let mut vm = Vm {
        life,
        boot: Boot::default(),
        clock: Duration::ZERO,
        launching: false,
        runs: false,
        ready: 0,
        stopped: false,
    };
    vm.carry_out(&effects);
    let mut bytes = Bytes(bytes);
    while let Some(choice) = bytes.next() {
        vm.go_on(choice, &mut bytes);
        vm.check();
    }
}

struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn next(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    /// The bytes of a message, up to a thousand.
    fn message(&mut self) -> &'a [u8] {
        let length = usize::from(self.next().unwrap_or(0)) * 4;
        let (message, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        message
    }
}

struct Vm {
    life: Life,
    boot: Boot,
    clock: Duration,
    launching: bool,
    runs: bool,
    ready: u32,
    stopped: bool,
}

impl Vm {
    fn go_on(&mut self, choice: u8, bytes: &mut Bytes<'_>) {
        match choice % 14 {
            0 => self.hello(bytes),
            1..=4 => {
                let Ok(ReportRequest { report: Some(told) }) =
                    ReportRequest::decode(bytes.message())
                else {
                    return;
                };
                self.told(Fact::reported(told));
            }
            5 => {
                if let Ok(beat) = HeartbeatRequest::decode(bytes.message()) {
                    assert_eq!(Fact::beat(beat).event(), None);
                }
            }
            6 if self.launching => {
                (self.launching, self.runs) = (false, true);
                self.observe(Event::Launched);
            }
            7 if self.life.patience().is_some() => self.observe(Event::Overdue),
            8 => {
                self.stopped = true;
                self.request(Request::Stop);
            }
            9 => self.request(Request::Pause),
            10 => self.request(Request::Resume),
            11 if self.runs => {
                self.runs = false;
                let exit = match bytes.next().unwrap_or(0) % 4 {
                    0 => VmmExit::GuestPowerOff,
                    1 => VmmExit::GuestReset,
                    2 => VmmExit::Killed {
                        program: "vmm",
                        signal: 9,
                    },
                    _ => VmmExit::Exited {
                        program: "vmm",
                        code: 1,
                        message: String::new(),
                    },
                };
                // The next machine's guest is another.
                self.boot = Boot::default();
                self.observe(Event::VmmEnded {
                    exit,
                    out_of_memory: false,
                });
            }
            12 => self.observe(Event::Panic("Kernel panic".to_owned())),
            13 => self.hand_over(),
            _ => self.clock += Duration::from_secs(bytes.next().unwrap_or(0).into()),
        }
    }

    /// A hello as the host's face takes it.
    fn hello(&mut self, bytes: &mut Bytes<'_>) {
        let standing = match bytes.next().unwrap_or(0) % 3 {
            0 => Standing::Own,
            1 => Standing::Vacant,
            _ => Standing::Other,
        };
        let Ok(hello) = HelloRequest::decode(bytes.message()) else {
            return;
        };
        let fact = Fact::greeted(&hello);
        let Fact::Hello {
            boot_id, version, ..
        } = &fact
        else {
            panic!("a hello is one");
        };
        harmless(boot_id, 11 * 64);
        harmless(version, 11 * 64);
        let known = self.boot.clone();
        let taken = self
            .boot
            .hello(boot_id, &hello.token, &Token::known(TOKEN), standing);
        if taken.is_err() {
            assert_eq!(self.boot, known, "a hello that is refused changes nothing");
            return;
        }
        assert!(
            hello.token.is_empty() || hello.token == TOKEN,
            "a wrong token is taken"
        );
        assert!(
            known.id().is_none_or(|id| id == boot_id),
            "another boot takes a boot's place"
        );
        if hello.protocol == PROTOCOL {
            self.told(fact);
        } else {
            self.told(Fact::Fatal("another protocol".to_owned()));
        }
    }

    fn told(&mut self, fact: Fact) {
        if let Some(event) = fact.event() {
            self.observe(event);
        }
    }

    fn request(&mut self, request: Request) {
        if let Ok((life, effects)) = self.life.clone().request(request) {
            self.life = life;
            self.carry_out(&effects);
        }
    }

    fn observe(&mut self, event: Event) {
        let ended = matches!(self.life.step(), Step::Ended(_)).then(|| self.life.clone());
        let (life, effects) = self.life.clone().observe(event, self.clock);
        self.life = life;
        if let Some(ended) = ended {
            assert_eq!(self.life, ended, "an end is not the end");
            assert!(effects.is_empty());
        }
        self.carry_out(&effects);
    }

    fn carry_out(&mut self, effects: &[Effect]) {
        for effect in effects {
            match effect {
                Effect::Launch => {
                    assert!(!self.launching && !self.runs, "two machines");
                    assert!(!self.stopped, "launched after a stop");
                    self.launching = true;
                }
                Effect::SayReady => self.ready += 1,
                Effect::Pause => self.observe(Event::Paused),
                Effect::Resume => self.observe(Event::Resumed),
                Effect::AskAgent | Effect::PressPowerButton | Effect::Kill => {}
            }
        }
    }

    /// Another supervisor goes on with what is written down.
    fn hand_over(&mut self) {
        let Ok(saved) = self.life.save() else {
            return;
        };
        let text = serde_json::to_vec(&saved).expect("it can be written down");
        assert!(text.len() < MOST_KEPT);
        let read: SavedLife = serde_json::from_slice(&text).expect("it can be read again");
        assert_eq!(read, saved);
        let life = Life::from(read);
        assert_eq!(life.step(), self.life.step());
        assert_eq!(life.patience(), self.life.patience());
        self.life = life;
    }

    fn check(&self) {
        let life = &self.life;
        assert!(self.ready <= 1, "ready twice");
        assert!(life.reboots() <= MAX_REBOOTS + 1);
        assert!(format!("{life:?}").len() < MOST_KEPT, "it grows");
        if self.stopped {
            let goes = matches!(life.step(), Step::Stopping(_) | Step::Ended(_));
            assert!(goes, "a VM that is to stop is {:?}", life.step());
        }
        let mut live = Live::default();
        live.show(life);
        harmless(&live.status, MOST_SHOWN);
        if let Step::Ended(ended) = life.step() {
            assert!(!ended.name().is_empty() && !live.ended.is_empty());
            harmless(&ended.to_string(), MOST_SHOWN);
        } else {
            assert!(
                life.patience().is_some() || *life.step() == Step::Paused,
                "nobody waits for ever"
            );
        }
    }
}

fn harmless(words: &str, most: usize) {
    assert!(
        words.chars().all(|c| c == '\t' || !c.is_control()),
        "{words:?}"
    );
    assert!(words.len() <= most, "{} bytes", words.len());
}
