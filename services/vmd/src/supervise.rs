//! Carries out what [`crate::life`] decides: one VM, from its launch to its end.

use std::{collections::VecDeque, io, os::fd::OwnedFd, pin::Pin, sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, watch},
    task::{AbortHandle, JoinHandle},
    time::{Instant, MissedTickBehavior, interval, sleep_until, timeout},
};
use volant_proto::agent::v1::RunConfig;

use crate::{
    agent::{self, Agent, Commands, Fact, ListenError},
    console,
    ended::Ended,
    hypervisor::{Control, Hypervisor, LaunchError, Machine, MachineSpec, Nic, VmmExit},
    life::{Effect, Event, Life, Request, Step, Times},
    live::Live,
    logs::Logs,
    memory::OomKills,
};

/// How often systemd hears of a VM that is on its way up or down; it must be less than half of the unit's watchdog.
const TICK: Duration = Duration::from_secs(5);
/// What systemd is asked for beyond each tick, while the VM is on its way down.
const EXTENSION: Duration = Duration::from_secs(20);
/// How long the console may take to its end once the VMM is gone.
const LAST_WORDS: Duration = Duration::from_secs(1);
const PRESS: Duration = Duration::from_secs(1);

type Launching = Pin<Box<dyn Future<Output = Result<Machine, LaunchError>> + Send>>;

/// A VM that is to be run.
#[derive(Debug)]
pub struct Vm {
    pub hypervisor: Arc<dyn Hypervisor>,
    /// It is launched again with the same when the guest reboots.
    pub spec: MachineSpec,
    /// What the guest is told.
    pub run_config: RunConfig,
    pub times: Times,
    pub logs: Logs,
    /// Where it is published how the VM is.
    pub live: watch::Sender<Live>,
}

/// Runs a VM to its end; asks for its stop when `stop` resolves (once).
///
/// # Errors
/// Nobody can listen for the agent: nothing was started then.
pub async fn run(vm: Vm, stop: impl Future<Output = &'static str>) -> Result<Ended, ListenError> {
    let listener = agent::listen(&vm.spec.vsock)?;
    let (agent, commands, facts) = Agent::new(vm.run_config.clone(), vm.logs.clone());
    let server = tokio::spawn(agent::serve(listener, agent, vm.logs.clone()));
    let _server = AbortOnDrop(server.abort_handle());
    let (life, effects) = Life::begin(vm.times);
    let (tell_panic, panics) = mpsc::channel(1);
    let mut supervisor = Supervisor {
        deadline: Instant::now() + life.patience().unwrap_or_default(),
        life,
        begun: Instant::now(),
        commands,
        facts,
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
    supervisor.show();
    supervisor.carry_out(effects).await;
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

/// A VMM whose console is read elsewhere.
struct Running {
    pid: u32,
    control: Box<dyn Control>,
}

enum Happened {
    Stop(&'static str),
    Fact(Fact),
    Panic(String),
    Launch(Result<Machine, LaunchError>),
    Exit(VmmExit),
    Overdue,
    Tick,
}

impl Supervisor {
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
                () = sleep_until(deadline) => Happened::Overdue,
                _ = tick.tick() => Happened::Tick,
            };
            match happened {
                Happened::Stop(signal) => {
                    stop_asked = true;
                    self.stop(signal).await;
                }
                Happened::Fact(fact) => self.take(fact).await,
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
        let (life, effects) = self.life.clone().request(Request::Stop);
        self.turn(life, effects).await;
        volant_service::stopping(&self.vm.live.borrow().status.clone());
        volant_service::extend_timeout(EXTENSION);
    }

    async fn take(&mut self, fact: Fact) {
        let event = match fact {
            Fact::Hello {
                boot_id,
                version,
                uptime_ms,
            } => {
                tracing::info!(
                    "kestrel {version} said hello {uptime_ms} ms after the guest's start"
                );
                self.vm
                    .live
                    .send_modify(|live| live.agent_version = version);
                Event::Hello { boot_id }
            }
            Fact::WorkloadStarted { pid } => {
                self.vm.live.send_modify(|live| live.workload_pid = pid);
                Event::WorkloadStarted
            }
            Fact::WorkloadExited(exit) => Event::WorkloadExited(exit),
            Fact::Fatal(cause) => Event::Fatal(cause),
            Fact::GoingDown(reason) => Event::GoingDown(reason),
            Fact::Ready | Fact::WorkloadRestarting { .. } | Fact::Health { .. } => return,
            Fact::Heartbeat(heartbeat) => {
                self.vm.live.send_modify(|live| live.heartbeat = heartbeat);
                if *self.life.step() == Step::Running {
                    self.deadline = Instant::now() + self.life.patience().unwrap_or_default();
                    volant_service::alive();
                }
                return;
            }
        };
        self.observe(event).await;
    }

    async fn launched(&mut self, result: Result<Machine, LaunchError>) {
        self.launching = None;
        let event = match result {
            Ok(machine) => {
                let pid = machine.pid;
                self.vm.live.send_modify(|live| live.vmm_pid = pid);
                tracing::info!("the VMM runs as process {pid}");
                self.adopt(machine);
                Event::Launched
            }
            Err(error) => Event::NotLaunched {
                missing: matches!(error, LaunchError::NotInstalled { .. }),
                cause: volant_service::chain(&error),
            },
        };
        self.observe(event).await;
    }

    fn adopt(&mut self, machine: Machine) {
        let Machine {
            pid,
            console,
            control,
        } = machine;
        let reader = console::read(console, self.vm.logs.clone(), self.tell_panic.clone());
        self.console = Some(tokio::spawn(reader));
        self.machine = Some(Running { pid, control });
    }

    async fn vmm_ended(&mut self, exit: VmmExit) {
        self.machine = None;
        self.last_words().await;
        while let Ok(fact) = self.facts.try_recv() {
            self.take(fact).await;
        }
        if let Ok(line) = self.panics.try_recv() {
            self.observe(Event::Panic(line)).await;
        }
        let killed = matches!(exit, VmmExit::Killed { signal: 9, .. });
        let out_of_memory = killed && self.oom.count() > self.oom_before;
        self.vm.live.send_modify(|live| {
            live.vmm_pid = 0;
            live.workload_pid = 0;
        });
        self.observe(Event::VmmEnded {
            exit,
            out_of_memory,
        })
        .await;
    }

    /// Lets the console's reader come to its end: the last line may be the cause of it all.
    async fn last_words(&mut self) {
        if let Some(mut console) = self.console.take()
            && timeout(LAST_WORDS, &mut console).await.is_err()
        {
            console.abort();
        }
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
        self.life = life;
        if effects.contains(&Effect::SayReady) {
            self.vm.live.send_modify(Live::ready_now);
        }
        self.show();
        self.carry_out(effects).await;
    }

    /// Publishes how the VM is, and tells systemd and the journal when the line for people changed.
    fn show(&mut self) {
        let before = self.vm.live.borrow().status.clone();
        let life = &self.life;
        self.vm.live.send_modify(|live| live.show(life));
        let status = self.vm.live.borrow().status.clone();
        if status == before {
            return;
        }
        volant_service::status(&status);
        if !matches!(self.life.step(), Step::Ended(_)) {
            tracing::info!("{status}");
        }
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
                Effect::Kill => self.kill().await,
            }
        }
    }

    fn launch(&mut self) {
        self.oom_before = self.oom.count();
        match again(&self.vm.spec) {
            Ok(spec) => {
                let hypervisor = Arc::clone(&self.vm.hypervisor);
                self.launching = Some(Box::pin(async move { hypervisor.launch(spec).await }));
            }
            Err(error) => self.pending.push_back(Event::NotLaunched {
                missing: false,
                cause: format!("cannot keep the VM's files open: {error}"),
            }),
        }
    }

    async fn press_power_button(&mut self) {
        let Some(machine) = &mut self.machine else {
            return;
        };
        match timeout(PRESS, machine.control.press_power_button()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!("{error}"),
            Err(_) => tracing::warn!("the VMM did not press the power button in time"),
        }
    }

    async fn kill(&mut self) {
        if self.launching.take().is_some() {
            let program = self.vm.hypervisor.name();
            self.pending.push_back(Event::VmmEnded {
                exit: VmmExit::Killed { program, signal: 9 },
                out_of_memory: false,
            });
        }
        if let Some(machine) = &mut self.machine
            && timeout(self.vm.times.kill, machine.control.kill())
                .await
                .is_err()
        {
            tracing::error!("process {} does not die", machine.pid);
        }
    }

    fn tick(&self) {
        // A running VM feeds the watchdog by its heartbeats alone; all other steps have an end of their own.
        if *self.life.step() != Step::Running {
            volant_service::alive();
        }
        if matches!(self.life.step(), Step::Stopping(_)) {
            volant_service::extend_timeout(EXTENSION);
        }
    }

    async fn finish(&mut self, ended: &Ended) {
        self.launching = None;
        self.kill().await;
        self.last_words().await;
        self.vm.logs.ended(ended.clone()).await;
    }
}

/// Never resolves while nothing is launched.
async fn poll_launch(launching: &mut Option<Launching>) -> Result<Machine, LaunchError> {
    match launching {
        Some(launch) => launch.await,
        None => std::future::pending().await,
    }
}

/// Never resolves while there is no VMM.
async fn wait(machine: &mut Option<Running>) -> VmmExit {
    match machine {
        Some(machine) => machine.control.wait().await,
        None => std::future::pending().await,
    }
}

/// The same machine once more, with descriptors of its own.
fn again(spec: &MachineSpec) -> io::Result<MachineSpec> {
    let clone = |fd: &Option<OwnedFd>| fd.as_ref().map(OwnedFd::try_clone).transpose();
    let nic = match &spec.nic {
        Some(nic) => Some(Nic {
            tap: nic.tap.try_clone()?,
            mac: nic.mac.clone(),
        }),
        None => None,
    };
    Ok(MachineSpec {
        name: spec.name.clone(),
        uuid: spec.uuid.clone(),
        resources: spec.resources,
        kernel: spec.kernel.try_clone()?,
        initramfs: clone(&spec.initramfs)?,
        rootfs: clone(&spec.rootfs)?,
        nic,
        cid: spec.cid,
        run_dir: spec.run_dir.clone(),
        vsock: spec.vsock.clone(),
    })
}
