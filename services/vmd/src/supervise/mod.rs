//! Carries out what [`crate::life`] decides: one VM, from its launch to its end.

mod facts;
mod handover;
mod machine;
mod wishes;

pub use handover::{Busy, Estate, Handover, Handovers, Left, Snapshot, Take, release_signals};

use std::{collections::VecDeque, os::fd::OwnedFd, pin::Pin, sync::Arc, time::Duration};

use tokio::{
    net::UnixListener,
    sync::{mpsc, watch},
    task::{AbortHandle, JoinHandle},
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use volant_proto::agent::v1::RunConfig;

use self::{
    handover::copy,
    machine::{Running, poll_launch, wait},
};
use crate::{
    agent::{self, Agent, Boot, Commands, Fact, ListenError, Token},
    console,
    ended::Ended,
    handle::{Ask, Asks},
    happening::Happening,
    hypervisor::{Hypervisor, LaunchError, Machine, MachineSpec, VmmExit},
    life::{Effect, Event, Life, News, Step, Times, news},
    live::Live,
    logs::Logs,
    memory::OomKills,
};

/// How often systemd hears of a VM that is on its way up or down; it must be less than half of the unit's watchdog.
const TICK: Duration = Duration::from_secs(5);
/// What systemd is asked for beyond each tick, while the VM is on its way up: each step of it has an end of its own.
const EXTENSION: Duration = Duration::from_secs(20);

type Launching = Pin<Box<dyn Future<Output = Result<Machine, LaunchError>> + Send>>;

/// A VM that is to be run.
#[derive(Debug)]
pub struct Vm {
    pub hypervisor: Arc<dyn Hypervisor>,
    /// It is launched again with the same when the guest reboots.
    pub spec: MachineSpec,
    /// What the guest is told.
    pub run_config: RunConfig,
    /// What its agent proves itself with.
    pub token: Token,
    pub times: Times,
    pub logs: Logs,
    /// The guest's serial console, over all of its boots.
    pub console: console::Hub,
    /// Where it is published how the VM is.
    pub live: watch::Sender<Live>,
    /// What is wished of it.
    pub asks: Asks,
    /// Who follows what happens; one that is behind misses it.
    pub events: mpsc::Sender<Happening>,
}

/// Runs a VM to its end; asks for its stop when `stop` resolves (once).
///
/// # Errors
/// Nobody can listen for the agent: nothing was started then.
pub async fn run(vm: Vm, stop: impl Future<Output = &'static str>) -> Result<Ended, ListenError> {
    let (_, nobody) = mpsc::channel(1);
    run_until_taken(vm, stop, nobody).await
}

/// The same for a VM that others may take over: they ask for it by `handovers`.
///
/// # Errors
/// As for [`run`].
pub async fn run_until_taken(
    vm: Vm,
    stop: impl Future<Output = &'static str>,
    handovers: Handovers,
) -> Result<Ended, ListenError> {
    let listener = agent::listen(&vm.spec.vsock)?;
    let (life, effects) = Life::begin(vm.times);
    let (mut supervisor, _server) =
        Supervisor::new(vm, listener, Boot::default(), life, handovers)?;
    supervisor.show();
    supervisor.carry_out(effects).await;
    Ok(supervisor.supervise(stop).await)
}

/// Goes on with a VM that another supervisor left, to its end.
///
/// # Errors
/// Nobody can listen for the agent, or to the console.
pub async fn go_on(
    vm: Vm,
    left: Left,
    stop: impl Future<Output = &'static str>,
    handovers: Handovers,
) -> Result<Ended, ListenError> {
    let path = agent::socket(&vm.spec.vsock);
    let failed = |source| ListenError::new(&path, source);
    left.agent.set_nonblocking(true).map_err(failed)?;
    let listener = UnixListener::from_std(left.agent).map_err(failed)?;
    let (mut supervisor, _server) = Supervisor::new(vm, listener, left.boot, left.life, handovers)?;
    let now = Instant::now();
    supervisor.begun = now.checked_sub(left.elapsed).unwrap_or(now);
    supervisor.deadline = now + left.left.unwrap_or_default();
    supervisor.oom_before = left.oom_before;
    supervisor.adopt(left.machine).map_err(failed)?;
    supervisor.vm.live.send_modify(|live| live.generation += 1);
    supervisor.show();
    let generation = supervisor.vm.live.borrow().generation;
    supervisor.tell(Happening::reloaded(generation)).await;
    Ok(supervisor.supervise(stop).await)
}

struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

struct Supervisor {
    vm: Vm,
    life: Life,
    begun: Instant,
    /// Of the life's present step.
    deadline: Instant,
    commands: Commands,
    facts: mpsc::Receiver<Fact>,
    /// The agent's, for who takes over.
    listener: OwnedFd,
    handovers: Handovers,
    tell_panic: mpsc::Sender<String>,
    panics: mpsc::Receiver<String>,
    launching: Option<Launching>,
    machine: Option<Running>,
    console: Option<JoinHandle<()>>,
    oom: OomKills,
    oom_before: u64,
    /// Events that effects brought about.
    pending: VecDeque<Event>,
}

enum Happened {
    Stop(&'static str),
    Fact(Fact),
    Ask(Ask),
    Handover(Handover),
    Panic(String),
    Launch(Result<Machine, LaunchError>),
    Exit(VmmExit),
    Overdue,
    Tick,
}

impl Supervisor {
    /// A supervisor that has not begun; the agent is served as long as the second value lives.
    fn new(
        vm: Vm,
        listener: UnixListener,
        boot: Boot,
        life: Life,
        handovers: Handovers,
    ) -> Result<(Self, AbortOnDrop), ListenError> {
        let path = agent::socket(&vm.spec.vsock);
        let kept = copy(&listener).map_err(|source| ListenError::new(&path, source))?;
        let (agent, commands, facts) = Agent::known(
            vm.run_config.clone(),
            vm.token.clone(),
            boot,
            vm.logs.clone(),
        );
        let server = tokio::spawn(agent::serve(listener, agent, vm.logs.clone()));
        let (tell_panic, panics) = mpsc::channel(1);
        let supervisor = Self {
            deadline: Instant::now() + life.patience().unwrap_or_default(),
            life,
            begun: Instant::now(),
            commands,
            facts,
            listener: kept,
            handovers,
            tell_panic,
            panics,
            launching: None,
            machine: None,
            console: None,
            oom: OomKills::of_this_unit(),
            oom_before: 0,
            pending: VecDeque::new(),
            vm,
        };
        Ok((supervisor, AbortOnDrop(server.abort_handle())))
    }

    async fn supervise(mut self, stop: impl Future<Output = &'static str>) -> Ended {
        tokio::pin!(stop);
        let mut stop_asked = false;
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            while let Some(event) = self.pending.pop_front() {
                self.observe(event).await;
            }
            if let Step::Ended(ended) = self.life.step() {
                let ended = ended.clone();
                self.finish(&ended).await;
                return ended;
            }
            let deadline = self.deadline;
            // What the guest said comes before the end of its VMM.
            let happened = tokio::select! {
                biased;
                signal = &mut stop, if !stop_asked => Happened::Stop(signal),
                Some(fact) = self.facts.recv() => Happened::Fact(fact),
                Some(line) = self.panics.recv() => Happened::Panic(line),
                launched = poll_launch(&mut self.launching) => Happened::Launch(launched),
                exit = wait(&mut self.machine) => Happened::Exit(exit),
                Some(ask) = self.vm.asks.recv() => Happened::Ask(ask),
                Some(handover) = self.handovers.recv() => Happened::Handover(handover),
                () = sleep_until(deadline), if self.life.patience().is_some() => Happened::Overdue,
                _ = tick.tick() => Happened::Tick,
            };
            match happened {
                Happened::Stop(signal) => {
                    stop_asked = true;
                    self.stop(signal).await;
                }
                Happened::Fact(fact) => self.take(fact).await,
                Happened::Ask(ask) => self.answer(ask).await,
                Happened::Handover(handover) => {
                    let listening = (!stop_asked).then_some(stop.as_mut());
                    if let Some(signal) = self.hand_over(handover, listening).await {
                        stop_asked = true;
                        self.stop(signal).await;
                    }
                }
                Happened::Panic(line) => self.observe(Event::Panic(line)).await,
                Happened::Launch(result) => self.launched(result).await,
                Happened::Exit(exit) => self.vmm_ended(exit).await,
                Happened::Overdue => self.observe(Event::Overdue).await,
                Happened::Tick => self.tick(),
            }
        }
    }

    async fn stop(&mut self, signal: &str) {
        tracing::info!("{signal}: the VM is to stop");
        let (life, effects) = self.life.clone().stop();
        self.turn(life, effects).await;
        volant_service::stopping(&self.vm.live.borrow().status.clone());
    }

    async fn observe(&mut self, event: Event) {
        let at = self.begun.elapsed();
        let (life, effects) = self.life.clone().observe(event, at);
        self.turn(life, effects).await;
    }

    async fn turn(&mut self, life: Life, effects: Vec<Effect>) {
        if life.step() != self.life.step() {
            self.deadline = Instant::now() + life.patience().unwrap_or_default();
        }
        let news = news(&self.life, &life);
        self.life = life;
        if effects.contains(&Effect::SayReady) {
            self.vm.live.send_modify(Live::ready_now);
        }
        if news == Some(News::Rebooting) {
            self.vm.live.send_modify(Live::boots);
        }
        let changed = self.show();
        // What is told as news need not be told twice.
        match news {
            Some(news) if news != News::Ended => {
                let status = self.vm.live.borrow().status.clone();
                let happening = Happening::news(news, &status);
                if changed && happening.message_id.is_none() {
                    tracing::info!("{status}");
                }
                self.tell(happening).await;
            }
            _ if changed && news.is_none() => tracing::info!("{}", self.vm.live.borrow().status),
            _ => {}
        }
        self.carry_out(effects).await;
    }

    /// Tells those who follow the VM.
    async fn tell(&mut self, happening: Happening) {
        // Whoever is behind reads the properties.
        let _ = self.vm.events.try_send(happening.clone());
        self.vm.logs.happened(happening).await;
    }

    /// Publishes how the VM is, and tells systemd when the line for people changed: answers whether it did.
    fn show(&mut self) -> bool {
        let before = self.vm.live.borrow().status.clone();
        let life = &self.life;
        self.vm.live.send_modify(|live| live.show(life));
        let status = self.vm.live.borrow().status.clone();
        let changed = status != before;
        if changed {
            volant_service::status(&status);
        }
        changed
    }

    async fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Launch => self.launch(),
                Effect::SayReady => {
                    let status = self.vm.live.borrow().status.clone();
                    if let Err(error) = volant_service::ready(&status) {
                        tracing::error!("cannot tell systemd that the VM is ready: {error}");
                    }
                }
                Effect::AskAgent => self.commands.shut_down(self.vm.times.grace),
                Effect::PressPowerButton => self.press_power_button().await,
                // Asked for by a wish, which gets the answer; or as the VM is to be stopped.
                Effect::Pause => {}
                Effect::Resume => self.resume_for_stop().await,
                Effect::Kill => self.kill().await,
            }
        }
    }

    fn tick(&self) {
        // A running VM feeds the watchdog by its heartbeats alone; all other steps have an end of their own.
        if *self.life.step() != Step::Running {
            volant_service::alive();
        }
        // Its own patience ends it sooner, and says why.
        if matches!(self.life.step(), Step::Starting | Step::Booting { .. }) {
            volant_service::extend_timeout(EXTENSION);
        }
    }

    async fn finish(&mut self, ended: &Ended) {
        self.launching = None;
        self.kill().await;
        self.last_words().await;
        self.tell(Happening::ended(ended)).await;
        self.vm.logs.ended(ended.clone()).await;
    }
}
