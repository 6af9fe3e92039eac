//! The life of a guest, from a mounted `/proc` to the last word before power-off. [`crate::life`] decides, this does.

use std::{fs, io, path::PathBuf, sync::Arc, time::Duration};

use nix::{
    sys::signal::Signal,
    time::{ClockId, clock_gettime},
};
use tokio::{
    sync::mpsc,
    task::{JoinHandle, JoinSet},
    time::{Instant, MissedTickBehavior, interval, sleep_until, timeout},
};
use volant_proto::agent::v1::{
    self, HelloRequest, report_request::Report, send_logs_request::Stream,
};

use crate::{
    config::{Config, ConfigError, WorkloadConfig},
    console, etc,
    host::{Host, HostError},
    kernel::{Ending, Kernel},
    life::{Ask, Effect, Event, Reason, State},
    logs::{self, Logs},
    mounts::{MountError, SCRATCH, mount_all, release_all},
    network::{Network, NetworkError},
    reap::{Exit, Reaper},
    requests,
    root::{self, RootError},
    usage,
    workload::{self, Workload, WorkloadError},
};

/// The host may be slow to listen: it starts its VMM and its listener at the same time.
const HELLO_WITHIN: Duration = Duration::from_secs(20);
const REPORT_WITHIN: Duration = Duration::from_secs(5);
/// The last words are not worth more: the machine goes down with them or without.
const LAST_WORD_WITHIN: Duration = Duration::from_secs(2);
/// How long what was killed may take to be gone.
const GONE_WITHIN: Duration = Duration::from_secs(2);
const DRAINED_WITHIN: Duration = Duration::from_secs(1);
const SHIPPED_WITHIN: Duration = Duration::from_secs(3);
const RELEASED_WITHIN: Duration = Duration::from_secs(10);
/// As container engines set them: a guest's one workload may serve any port and send pings, whoever it runs as.
const PARAMETERS: &[(&str, &str)] = &[
    ("net/ipv4/ip_unprivileged_port_start", "0"),
    ("net/ipv4/ping_group_range", "0 2147483647"),
];
/// What stands for an exit that was lost.
const UNKNOWN_EXIT: Exit = Exit {
    code: 255,
    signal: 0,
};

/// Why a guest cannot run its workload.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    #[error("cannot prepare the file systems")]
    Mounts(#[source] MountError),
    #[error("cannot handle signals")]
    Signals(#[source] io::Error),
    #[error("cannot set up the network")]
    Network(#[source] NetworkError),
    #[error("cannot get the run configuration")]
    Hello(#[source] HostError),
    #[error("cannot use the run configuration")]
    Config(#[source] ConfigError),
    #[error("cannot enter the root file system")]
    Root(#[source] RootError),
    #[error("cannot set the host name")]
    Hostname(#[source] io::Error),
    #[error("cannot run the workload")]
    Workload(#[source] WorkloadError),
}

/// What a guest is made of. The caller gives all that is the machine's own.
#[derive(Debug)]
pub struct Guest<K, N> {
    pub kernel: K,
    pub network: N,
    pub host: Host,
    /// Where `/etc` is, once the workload's root is there.
    pub root: PathBuf,
    pub logs: Arc<Logs>,
    pub asks: mpsc::Sender<Ask>,
}

/// What is there once the host has been met.
#[derive(Debug, Default)]
struct Running {
    reaper: Option<Arc<Reaper>>,
    shipping: Option<JoinHandle<()>>,
    /// The readers of the workload's pipes.
    readers: JoinSet<()>,
    exit: Option<Exit>,
}

impl<K: Kernel, N: Network> Guest<K, N> {
    /// Runs the guest's life and says how the machine should end; file systems are released, and nothing runs but this.
    /// `prepared` is how the preparation before it went.
    pub async fn live(
        self,
        prepared: Result<(), GuestError>,
        mut asked: mpsc::Receiver<Ask>,
    ) -> Ending {
        let mut running = Running::default();
        let started = tokio::select! {
            started = self.start(prepared, &mut running) => Ok(started),
            Some(ask) = asked.recv() => Err(ask),
        };
        let event = match started {
            Ok(Ok((workload, config))) => {
                let reason = self
                    .supervise(workload, &config, &mut asked, &mut running)
                    .await;
                return self.end(reason, running).await;
            }
            Ok(Err(error)) => {
                self.confess(&error).await;
                Event::Failed
            }
            Err(ask) => {
                self.logs.say(&format!(
                    "asked to go down before the workload started: {:?}",
                    ask.reason
                ));
                Event::Asked(ask)
            }
        };
        let reason = match State::Starting.on(event) {
            (State::Down(reason), _) => reason,
            _ => Reason::Fatal,
        };
        self.end(reason, running).await
    }

    /// From nothing to a started workload. May be dropped at any await: there is no workload before the last one.
    async fn start(
        &self,
        prepared: Result<(), GuestError>,
        running: &mut Running,
    ) -> Result<(Workload, WorkloadConfig), GuestError> {
        prepared?;
        let reaper = running
            .reaper
            .insert(Reaper::start().map_err(GuestError::Signals)?);
        self.network.loopback().await.map_err(GuestError::Network)?;
        let config = self
            .host
            .hello(&hello(), HELLO_WITHIN)
            .await
            .map_err(GuestError::Hello)?;
        // From here on the host hears of everything, and may ask.
        running.shipping = Some(tokio::spawn({
            let (host, logs) = (self.host.clone(), Arc::clone(&self.logs));
            async move { logs::ship(host, &logs).await }
        }));
        tokio::spawn(requests::watch_host(
            self.host.clone(),
            self.asks.clone(),
            Arc::clone(&self.logs),
        ));
        let config = Config::try_from(config).map_err(GuestError::Config)?;
        tokio::spawn(beat(
            self.host.clone(),
            config.heartbeat,
            Arc::clone(&self.logs),
        ));
        root::check(
            &self.kernel,
            &root::E2fsck::new(Arc::clone(reaper)),
            config.root.as_ref(),
            &config.volumes,
            &self.logs,
        )
        .await
        .map_err(GuestError::Root)?;
        match &config.root {
            Some(root) => root::enter(&self.kernel, root, &self.logs)
                .await
                .map_err(GuestError::Root)?,
            None => drop(mount_all(&self.kernel, SCRATCH).map_err(GuestError::Mounts)?),
        }
        root::mount_volumes(&self.kernel, &config.volumes, &self.logs)
            .await
            .map_err(GuestError::Root)?;
        for (name, value) in PARAMETERS {
            if let Err(error) = self.kernel.set_parameter(name, value) {
                self.logs.say(&format!("cannot set {name}: {error}"));
            }
        }
        self.kernel
            .set_hostname(&config.hostname)
            .map_err(|errno| GuestError::Hostname(errno.into()))?;
        if let Some(network) = &config.network {
            self.network
                .configure(network)
                .await
                .map_err(GuestError::Network)?;
        }
        for error in etc::write(&self.root.join("etc"), &config) {
            self.logs.say(&chain(&error));
        }
        let workload =
            workload::start(&config.workload, &self.root, reaper).map_err(GuestError::Workload)?;
        Ok((workload, config.workload))
    }

    /// From a started workload to the wish to end the machine.
    async fn supervise(
        &self,
        workload: Workload,
        config: &WorkloadConfig,
        asked: &mut mpsc::Receiver<Ask>,
        running: &mut Running,
    ) -> Reason {
        let Workload {
            pid,
            mut exit,
            stdout,
            stderr,
        } = workload;
        for (pipe, stream) in [(stdout, Stream::Stdout), (stderr, Stream::Stderr)] {
            let logs = Arc::clone(&self.logs);
            running
                .readers
                .spawn(async move { logs::read(pipe, stream, &logs).await });
        }
        // Reported on the side: an exit or a request must not wait for the host.
        let told_start = tokio::spawn({
            let (host, logs) = (self.host.clone(), Arc::clone(&self.logs));
            let pid = pid.as_raw().try_into().unwrap_or(0);
            async move {
                let started = Report::WorkloadStarted(v1::WorkloadStarted { pid });
                if let Err(error) = host.report(&started, REPORT_WITHIN).await {
                    logs.say(&format!("cannot report the start of the workload: {error}"));
                }
            }
        });
        let (mut state, _) = State::Starting.on(Event::Started);
        let mut deadline = None;
        let reason = loop {
            let event = tokio::select! {
                ended = &mut exit, if running.exit.is_none() => {
                    running.exit = Some(ended.unwrap_or(UNKNOWN_EXIT));
                    Event::Exited
                }
                Some(ask) = asked.recv() => Event::Asked(ask),
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => Event::TimeOver,
            };
            let (next, effect) = state.on(event);
            state = next;
            match effect {
                Effect::Nothing => {}
                Effect::Stop { grace } => {
                    let grace = grace.unwrap_or(config.stop_grace);
                    self.logs.say(&format!(
                        "stopping the workload with {}, {} ms of grace",
                        config.stop_signal,
                        grace.as_millis()
                    ));
                    self.signal(pid, config.stop_signal);
                    deadline = Some(Instant::now() + grace);
                }
                Effect::Hurry { grace } => deadline = deadline.min(Some(Instant::now() + grace)),
                Effect::Kill => {
                    self.logs.say("the workload's grace is over: killing it");
                    self.signal(pid, Signal::SIGKILL);
                    deadline = Some(Instant::now() + GONE_WITHIN);
                }
                Effect::EndMachine(reason) => break reason,
            }
        };
        if timeout(LAST_WORD_WITHIN, told_start).await.is_err() {
            console::say("the host did not take the report of the workload's start");
        }
        reason
    }

    fn signal(&self, workload: nix::unistd::Pid, signal: Signal) {
        // ESRCH: all of the group has ended, and its exit is on its way.
        match self.kernel.signal_group(workload, signal) {
            Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
            Err(errno) => self
                .logs
                .say(&format!("cannot send {signal} to the workload: {errno}")),
        }
    }

    /// Tells the cause to all that can hear it.
    async fn confess(&self, error: &GuestError) {
        let cause = chain(error);
        console::say(&cause);
        let fatal = Report::Fatal(v1::Fatal { cause });
        if let Err(error) = self.host.report(&fatal, LAST_WORD_WITHIN).await {
            console::say(&format!("cannot report that to the host: {error}"));
        }
    }

    /// Ends all but the machine. Every step is bounded, and the next one comes whatever became of it.
    async fn end(&self, reason: Reason, mut running: Running) -> Ending {
        if let Some(Exit { code, signal }) = running.exit {
            let exited = Report::WorkloadExited(v1::WorkloadExited {
                code,
                signal,
                out_of_memory: false,
            });
            if let Err(error) = self.host.report(&exited, LAST_WORD_WITHIN).await {
                console::say(&format!(
                    "the workload ended with {code}; cannot report that: {error}"
                ));
            }
        }
        self.kernel.kill_all();
        if let Some(reaper) = &running.reaper
            && timeout(GONE_WITHIN, reaper.childless()).await.is_err()
        {
            console::say("some processes did not end when they were killed");
        }
        let drained = async { while running.readers.join_next().await.is_some() {} };
        if timeout(DRAINED_WITHIN, drained).await.is_err() {
            self.logs.say("the workload's output did not end with it");
        }
        self.logs.close();
        if let Some(shipping) = running.shipping
            && timeout(SHIPPED_WITHIN, shipping).await.is_err()
        {
            console::say("the host did not take the last lines of the workload's output");
        }
        self.release().await;
        let going_down = Report::GoingDown(v1::GoingDown {
            reason: v1::going_down::Reason::from(reason).into(),
        });
        if let Err(error) = self.host.report(&going_down, LAST_WORD_WITHIN).await {
            console::say(&format!(
                "going down ({reason:?}); cannot report that: {error}"
            ));
        }
        match reason {
            Reason::GuestReboot => Ending::Reset,
            Reason::Requested
            | Reason::WorkloadExited
            | Reason::PowerButton
            | Reason::GuestPowerOff
            | Reason::Fatal => Ending::PowerOff,
        }
    }

    /// In a thread of its own: a dead disk holds who writes to it, and must not hold the rest.
    async fn release(&self) {
        let kernel = self.kernel.clone();
        let released = tokio::task::spawn_blocking(move || {
            let mounts = fs::read("/proc/self/mounts").unwrap_or_default();
            release_all(&kernel, &mounts)
        });
        match timeout(RELEASED_WITHIN, released).await {
            Ok(Ok(failed)) => failed.iter().for_each(|error| console::say(&chain(error))),
            Ok(Err(error)) => console::say(&format!("cannot release the file systems: {error}")),
            Err(_) => console::say("the file systems could not be written out in time"),
        }
    }
}

fn hello() -> HelloRequest {
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let uptime = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from);
    HelloRequest {
        protocol: v1::PROTOCOL,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        boot_id: boot_id.trim().to_owned(),
        uptime_ms: uptime.as_millis().try_into().unwrap_or(u64::MAX),
        token: Vec::new(),
    }
}

/// Sends heartbeats for as long as the guest lives. A host that misses some says so by itself.
async fn beat(host: Host, every: Duration, logs: Arc<Logs>) {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut is_heard = true;
    loop {
        ticks.tick().await;
        let result = host.heartbeat(usage::measure()).await;
        // Once, not at every beat.
        if let (true, Err(error)) = (is_heard, &result) {
            logs.say(&format!("cannot send a heartbeat: {error}"));
        }
        is_heard = result.is_ok();
    }
}

/// An error and its causes, outermost first.
fn chain(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        words = format!("{words}: {cause}");
        source = cause.source();
    }
    words
}
