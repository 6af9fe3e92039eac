//! The agent beside another PID 1: the host reaches the guest by it, as by the agent that is PID 1; it runs no workload.

use std::{
    fs, io,
    os::fd::OwnedFd,
    path::PathBuf,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, sleep, sleep_until, timeout},
};
use volant_proto::agent::v1::{self, HelloResponse, report_request::Report};

use crate::{
    cause::chain,
    config::{Config, ConfigError},
    ending::LAST_WORD_WITHIN,
    health::{self, Finding},
    heartbeat::beat,
    host::{Host, HostError},
    init::{self, AnswerError, Kind, PowerOff},
    kernel::{Ending, Kernel},
    life::{Ask, Reason},
    logs::Logs,
    reap::Reaper,
    reports::Reports,
    requests,
    session::{self, Facts, Sessions},
    ship::ship,
    workload::{Program, WorkloadError},
};

const HELLO_WITHIN: Duration = Duration::from_secs(20);
const HELLO_AGAIN: Duration = Duration::from_secs(1);
/// What an init that ends the machine for its own reasons may take.
const DEFAULT_GRACE: Duration = Duration::from_secs(90);
/// The agent that was PID 1 may hold the socket of sessions for a moment.
const LISTEN_WITHIN: Duration = Duration::from_secs(10);
const LISTEN_AGAIN: Duration = Duration::from_millis(100);
const FINDINGS: usize = 4;

/// Why the agent cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    #[error("cannot learn what this guest is for")]
    Answer(#[from] AnswerError),
    #[error("cannot use the run configuration")]
    Config(#[from] ConfigError),
    #[error("cannot handle signals")]
    Signals(#[source] io::Error),
    #[error("cannot learn what PID 1 is")]
    Init(#[source] io::Error),
    #[error("cannot become the workload's user, for its health check")]
    Program(#[source] WorkloadError),
    #[error("the host does not know this agent")]
    Hello(#[source] HostError),
}

/// What a service is made of. The caller gives all that is the machine's own.
#[derive(Debug)]
pub struct Service<K> {
    pub kernel: K,
    pub host: Host,
    /// Where `/etc` and `/run` are.
    pub root: PathBuf,
    pub logs: Arc<Logs>,
    pub asks: mpsc::Sender<Ask>,
    /// The socket of sessions, where another than the host's own is used.
    pub sessions: Option<OwnedFd>,
}

/// How a service ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// The machine goes down, by its init.
    GoingDown,
    /// The init did not end the machine in its time: it is to be ended now.
    Overdue,
    /// The service alone is stopped.
    Alone,
}

impl<K: Kernel> Service<K> {
    /// Serves until the machine goes down, or somebody stops the service.
    ///
    /// # Errors
    /// It cannot serve.
    pub async fn serve(self, mut asked: mpsc::Receiver<Ask>) -> Result<Stopped, ServiceError> {
        let HelloResponse { run_config, token } = init::answer(&self.root)?;
        let config = Config::try_from(run_config.unwrap_or_default())?;
        let kind = self.kind(&config)?;
        let mut terminated = signal(SignalKind::terminate()).map_err(ServiceError::Signals)?;
        let reaper = Reaper::start().map_err(ServiceError::Signals)?;
        let program = Program::new(config.workload.clone(), &self.root, &[])
            .map_err(ServiceError::Program)?;
        self.host.set_token(token.clone());
        let shipping = self.greet(&config).await?;
        let reports = Reports::start(self.host.clone(), Arc::clone(&self.logs));
        let facts = Arc::new(Facts::default());
        let serving = tokio::spawn(serve_sessions(
            self.sessions,
            Arc::new(Sessions {
                token,
                env: config.workload.env.clone(),
                workdir: config.workload.workdir.clone(),
                root: self.root.clone(),
                reaper: Arc::clone(&reaper),
                logs: Arc::clone(&self.logs),
                facts: Arc::clone(&facts),
            }),
        ));
        let (findings, found) = mpsc::channel(FINDINGS);
        match config.workload.health.clone() {
            Some(check) => {
                facts.set_starting();
                let program = Arc::new(program);
                tokio::spawn(health::watch(check, program, reaper, 0, findings));
            }
            None => reports.tell(Report::Ready(v1::Ready {})),
        }
        let mut watch = Watch {
            kernel: &self.kernel,
            logs: &self.logs,
            reports: &reports,
            facts: &facts,
            kind,
            asked: None,
            deadline: None,
        };
        let stopped = watch
            .until_stopped(&mut asked, found, &mut terminated)
            .await;
        serving.abort();
        self.logs.close();
        // What the host does not take in this time is lost.
        let _ = timeout(LAST_WORD_WITHIN, shipping).await;
        if let Some(reason) = stopped.reason {
            reports.tell(Report::GoingDown(v1::GoingDown {
                reason: v1::going_down::Reason::from(reason).into(),
            }));
        }
        reports.flush(LAST_WORD_WITHIN).await;
        Ok(stopped.how)
    }

    fn kind(&self, config: &Config) -> Result<Kind, ServiceError> {
        let init = config.init.as_deref().unwrap_or("/sbin/init".as_ref());
        let init = init.strip_prefix("/").unwrap_or(init);
        Kind::of(&self.root.join(init)).map_err(ServiceError::Init)
    }

    /// Says hello until the host answers, and begins what goes on by itself. What the host answers is known.
    async fn greet(&self, config: &Config) -> Result<JoinHandle<()>, ServiceError> {
        loop {
            match self.host.hello(HELLO_WITHIN).await {
                Ok(_) | Err(HostError::NoConfig) => break,
                Err(error @ HostError::Refused(_)) => return Err(ServiceError::Hello(error)),
                Err(_) => sleep(HELLO_AGAIN).await,
            }
        }
        tokio::spawn(requests::watch_host(
            self.host.clone(),
            self.kernel.clone(),
            self.asks.clone(),
            Arc::clone(&self.logs),
        ));
        let logs = Arc::clone(&self.logs);
        tokio::spawn(beat(self.host.clone(), config.heartbeat, logs));
        let (host, logs) = (self.host.clone(), Arc::clone(&self.logs));
        Ok(tokio::spawn(async move { ship(host, &logs).await }))
    }
}

async fn serve_sessions(socket: Option<OwnedFd>, sessions: Arc<Sessions>) {
    let begun = Instant::now();
    let socket = match socket {
        Some(socket) => socket,
        None => loop {
            match session::listen() {
                Ok(socket) => break socket,
                Err(_) if begun.elapsed() < LISTEN_WITHIN => sleep(LISTEN_AGAIN).await,
                Err(error) => {
                    let words = format!("cannot listen for sessions: {error}");
                    return sessions.logs.say(&words);
                }
            }
        },
    };
    session::serve(socket, sessions).await;
}

/// From the start of the service to its end.
#[derive(Debug)]
struct Watch<'a, K> {
    kernel: &'a K,
    logs: &'a Logs,
    reports: &'a Reports,
    facts: &'a Facts,
    kind: Kind,
    /// Why the init was asked to end the machine.
    asked: Option<Reason>,
    deadline: Option<Instant>,
}

#[derive(Debug)]
struct End {
    how: Stopped,
    /// Absent: the machine stays.
    reason: Option<Reason>,
}

impl<K: Kernel> Watch<'_, K> {
    async fn until_stopped(
        &mut self,
        asked: &mut mpsc::Receiver<Ask>,
        mut found: mpsc::Receiver<Finding>,
        terminated: &mut Signal,
    ) -> End {
        loop {
            let deadline = self.deadline;
            tokio::select! {
                Some(ask) = asked.recv() => self.power_off(ask),
                Some(finding) = found.recv() => self.found(finding),
                Some(()) = terminated.recv() => return self.terminated(),
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                    self.logs.say("the guest's init did not end the machine in its time");
                    return End { how: Stopped::Overdue, reason: self.asked };
                }
            }
        }
    }

    /// Somebody ends this process: PID 1 all of them, or somebody this one.
    fn terminated(&self) -> End {
        let command_line = fs::read("/proc/1/cmdline").unwrap_or_default();
        match init::going_down(self.kind, &command_line) {
            Some(reason) => End {
                how: Stopped::GoingDown,
                reason: Some(self.asked.unwrap_or(reason)),
            },
            None => End {
                how: Stopped::Alone,
                reason: None,
            },
        }
    }

    fn found(&mut self, finding: Finding) {
        let is_healthy = finding.healthy.is_ok();
        self.facts.set_healthy(is_healthy);
        let detail = finding.healthy.err().unwrap_or_default();
        let changed = v1::HealthChanged {
            healthy: is_healthy,
            detail: detail.clone(),
        };
        self.reports.tell(Report::HealthChanged(changed));
        if is_healthy {
            self.reports.tell(Report::Ready(v1::Ready {}));
        } else {
            self.logs
                .say(&format!("the guest is not healthy: {detail}"));
            self.power_off(Ask {
                reason: Reason::Unhealthy,
                grace: None,
            });
        }
    }

    /// Asks the init to end the machine. Once more: a shorter grace counts.
    fn power_off(&mut self, ask: Ask) {
        let deadline = Instant::now() + ask.grace.unwrap_or(DEFAULT_GRACE);
        self.deadline = Some(self.deadline.map_or(deadline, |known| known.min(deadline)));
        if self.asked.is_some() {
            return;
        }
        self.asked = Some(ask.reason);
        let mut last = None;
        for way in self.kind.ways() {
            match self.ask_init(*way) {
                Ok(()) => return self.logs.say("asked the guest's init to power off"),
                Err(error) => last = Some(error),
            }
        }
        if let Some(error) = last {
            let words = format!("cannot ask the guest's init to power off: {error}");
            self.logs.say(&words);
        }
    }

    fn ask_init(&self, way: PowerOff) -> io::Result<()> {
        match way {
            PowerOff::RealTime(number) => {
                Ok(self.kernel.signal_init(nix::libc::SIGRTMIN() + number)?)
            }
            PowerOff::Signal(number) => Ok(self.kernel.signal_init(number)?),
            // The reaper takes its exit, which nobody waits for.
            PowerOff::Program(path) => Command::new(path).stdin(Stdio::null()).spawn().map(drop),
        }
    }
}

/// Serves the machine that this process is in. Returns when it is stopped.
///
/// # Errors
/// It cannot serve.
pub async fn live<K: Kernel>(kernel: K) -> Result<(), ServiceError> {
    let (asks, asked) = mpsc::channel(crate::ASKS);
    let service = Service {
        kernel: kernel.clone(),
        host: Host::over_vsock(),
        root: PathBuf::from("/"),
        logs: Arc::new(Logs::default()),
        asks,
        sessions: None,
    };
    if service.serve(asked).await? == Stopped::Overdue {
        kernel.sync();
        let error = crate::kernel::end_machine(&kernel, Ending::PowerOff);
        crate::console::say(&chain(&error));
    }
    Ok(())
}
