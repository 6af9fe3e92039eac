//! A running VM in the hands of the next supervisor: all that this one knows of it, written down at one moment.

use std::{
    io,
    os::{
        fd::{AsFd, OwnedFd, RawFd},
        unix::net::{UnixListener, UnixStream as StdUnixStream},
    },
    pin::Pin,
    time::Duration,
};

use futures_util::FutureExt;
use nix::sys::signal::{SigSet, Signal};
use prost::Message;
use serde::{Deserialize, Serialize};
use tokio::{net::UnixStream, sync::mpsc, time::Instant};
use volant_proto::agent::v1::RunConfig;
use volant_service::{Heirlooms, inherited};

use super::{Running, Supervisor};
use crate::{
    agent::{Boot, Token},
    hypervisor::{ControlState, Machine, MachineSpec, SpecState},
    life::{Event, Life, SavedLife, Times, Unsaved},
    live::Live,
};

/// In which a signal that came already is told.
const TURN: Duration = Duration::from_millis(2);
/// How often everything that is under way is waited for.
const ROUNDS: u32 = 8;

/// Somebody who wants the VM.
pub struct Handover {
    /// It is not to change after that: this process is executed anew.
    pub is_final: bool,
    /// Gets the VM as it is at that moment. It does not wait. If it returns, nobody took over.
    pub take: Take,
}

/// What a successor does with what it is given.
pub type Take = Box<dyn FnOnce(Result<(Snapshot, Heirlooms), Busy>) + Send>;

impl std::fmt::Debug for Handover {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { is_final, take: _ } = self;
        f.debug_struct("Handover")
            .field("is_final", is_final)
            .finish_non_exhaustive()
    }
}

/// Where a supervisor hears of who wants the VM.
pub type Handovers = mpsc::Receiver<Handover>;

/// Why the VM is not handed over now.
#[derive(Debug, thiserror::Error)]
pub enum Busy {
    #[error("the VM cannot be handed over: {0}")]
    Life(#[from] Unsaved),
    #[error("the VM cannot be handed over: its VMM ends, or its driver cannot do it")]
    Vmm,
    #[error("cannot keep the VM's descriptors")]
    Keep(#[from] io::Error),
}

/// A supervised VM at one moment. Its descriptors are heirlooms.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Snapshot {
    live: Live,
    health: String,
    life: SavedLife,
    /// Since the VM's start.
    elapsed: Duration,
    /// What is left for the present step.
    left: Option<Duration>,
    oom_before: u64,
    boot: Boot,
    token: Vec<u8>,
    run_config: Vec<u8>,
    /// The agent's listener.
    agent: RawFd,
    spec: SpecState,
    pid: u32,
    console: RawFd,
    control: ControlState,
}

/// A VM that another supervisor left, for [`super::go_on`].
#[derive(Debug)]
pub struct Left {
    pub(super) life: Life,
    pub(super) elapsed: Duration,
    pub(super) left: Option<Duration>,
    pub(super) oom_before: u64,
    pub(super) boot: Boot,
    pub(super) agent: UnixListener,
    pub(super) machine: Machine,
}

/// What a [`super::Vm`] is made of again.
#[derive(Debug)]
pub struct Estate {
    pub live: Live,
    pub times: Times,
    pub token: Token,
    pub run_config: RunConfig,
    pub spec: MachineSpec,
}

impl Snapshot {
    /// Takes over what was left. Do so once.
    ///
    /// # Errors
    /// It is not what was written down.
    pub fn restore(self) -> io::Result<(Estate, Left)> {
        let wrong = |what: &'static str| io::Error::new(io::ErrorKind::InvalidData, what);
        let token = self.token.try_into();
        let token = token.map_err(|_| wrong("the agent's token has another length"))?;
        let run_config = RunConfig::decode(self.run_config.as_slice());
        let run_config = run_config.map_err(|_| wrong("the guest's configuration is none"))?;
        let console = StdUnixStream::from(inherited(self.console)?);
        console.set_nonblocking(true)?;
        let times = self.life.times();
        let life = Life::from(self.life);
        let mut live = self.live;
        live.restore_health(&self.health);
        live.show(&life);
        let estate = Estate {
            live,
            times,
            token: Token::known(token),
            run_config,
            spec: self.spec.restore()?,
        };
        let left = Left {
            life,
            elapsed: self.elapsed,
            left: self.left,
            oom_before: self.oom_before,
            boot: self.boot,
            agent: inherited(self.agent)?.into(),
            machine: Machine {
                pid: self.pid,
                console: UnixStream::from_std(console)?,
                control: self.control.restore()?,
            },
        };
        Ok((estate, left))
    }
}

impl Supervisor {
    /// Gives the VM to who wants it. Answers with the signal to stop, when it came at this very moment.
    pub(super) async fn hand_over<S>(
        &mut self,
        handover: Handover,
        stop: Option<Pin<&mut S>>,
    ) -> Option<&'static str>
    where
        S: Future<Output = &'static str>,
    {
        if !handover.is_final {
            (handover.take)(self.snapshot());
            return None;
        }
        self.commands.end_logs().await;
        let _held = HeldSignals::hold();
        tokio::time::sleep(TURN).await;
        let signal = stop.and_then(FutureExt::now_or_never);
        self.settle().await;
        let snapshot = match signal {
            Some(_) => Err(Unsaved::Stops.into()),
            None => self.snapshot(),
        };
        (handover.take)(snapshot);
        self.commands.take_logs();
        signal
    }

    /// Does what was told or wished already, and has it written. Nothing waits between its end and what follows, so nothing new
    /// comes in between.
    async fn settle(&mut self) {
        for _ in 0..ROUNDS {
            while let Ok(fact) = self.facts.try_recv() {
                self.take(fact).await;
            }
            while let Ok(line) = self.panics.try_recv() {
                self.observe(Event::Panic(line)).await;
            }
            while let Ok(ask) = self.vm.asks.try_recv() {
                self.answer(ask).await;
            }
            while let Some(event) = self.pending.pop_front() {
                self.observe(event).await;
            }
            self.vm.logs.flush().await;
            if self.facts.is_empty() && self.panics.is_empty() && self.vm.asks.is_empty() {
                return;
            }
        }
    }

    fn snapshot(&self) -> Result<(Snapshot, Heirlooms), Busy> {
        let life = self.life.save()?;
        let Some(Running {
            pid,
            control,
            console,
        }) = &self.machine
        else {
            return Err(Busy::Vmm);
        };
        let mut heirlooms = Heirlooms::default();
        let control = control.save(&mut heirlooms)?.ok_or(Busy::Vmm)?;
        let live = self.vm.live.borrow().clone();
        let is_timed = self.life.patience().is_some();
        let snapshot = Snapshot {
            health: live.health.to_owned(),
            live,
            life,
            elapsed: self.begun.elapsed(),
            left: is_timed.then(|| self.deadline.saturating_duration_since(Instant::now())),
            oom_before: self.oom_before,
            boot: self.commands.boot(),
            token: self.vm.token.as_bytes().to_vec(),
            run_config: self.vm.run_config.encode_to_vec(),
            agent: heirlooms.keep(&self.listener)?,
            spec: self.vm.spec.save(&mut heirlooms)?,
            pid: *pid,
            console: heirlooms.keep(console)?,
            control,
        };
        Ok((snapshot, heirlooms))
    }
}

/// The signals that stop a VM wait for who takes over.
struct HeldSignals(SigSet);

impl HeldSignals {
    fn hold() -> Self {
        let signals = stop_signals();
        if let Err(error) = signals.thread_block() {
            tracing::warn!("cannot hold signals back: {error}");
        }
        Self(signals)
    }
}

impl Drop for HeldSignals {
    fn drop(&mut self) {
        if let Err(error) = self.0.thread_unblock() {
            tracing::error!("cannot let signals through again: {error}");
        }
    }
}

/// What [`volant_service::shutdown`] listens for.
fn stop_signals() -> SigSet {
    [Signal::SIGTERM, Signal::SIGINT].into_iter().collect()
}

/// Lets through what was held back while this process was executed anew. Listen for it before.
///
/// # Errors
/// The kernel refuses.
pub fn release_signals() -> io::Result<()> {
    Ok(stop_signals().thread_unblock()?)
}

/// A copy of our own, as what is served is in another's hands.
pub(super) fn copy(fd: impl AsFd) -> io::Result<OwnedFd> {
    fd.as_fd().try_clone_to_owned()
}
