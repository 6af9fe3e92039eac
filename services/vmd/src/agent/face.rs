//! The calls of an agent, each checked and turned into a fact.
//!
//! The first connection that says hello is the agent's; while it lives, calls of others are refused. So a process in the
//! guest that is not the agent cannot speak for it, nor read the run configuration, nor use up its calls.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, atomic::Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures_util::{Stream, stream};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tonic::{Request, Response, Status, Streaming};
use volant_proto::agent::v1::{
    HeartbeatRequest, HeartbeatResponse, HelloRequest, HelloResponse, PROTOCOL, ReportRequest,
    ReportResponse, RunConfig, SendLogsRequest, SendLogsResponse, SetClock, Shutdown,
    WatchCommandsRequest, WatchCommandsResponse, agent_host_service_server::AgentHostService,
    send_logs_request, watch_commands_response::Command,
};

use super::{
    admission::{Boot, Refusal, Standing, Token},
    connection::{Caller, Identity},
    fact::{Fact, MAX_WORD},
};
use crate::{
    bucket::{Bucket, Rate},
    logs::{Logs, Stream as LogStream},
    messages::NOT_THE_AGENT,
    text::printable,
};

/// Facts on their way to the supervisor.
const QUEUE: usize = 16;
/// Calls that the agent may make; it makes one in some seconds. Refusals of others are counted at their own connection.
const CALLS: Rate = Rate {
    burst: 200,
    per_second: 20,
};
/// Of those, calls that are told in the journal or on the bus: hellos and reports. A workload that is started again and again makes two
/// in some seconds.
const TOLD: Rate = Rate {
    burst: 60,
    per_second: 4,
};
/// Heartbeats that come sooner are answered, but tell nothing.
const BEAT: Duration = Duration::from_millis(900);
/// For log streams to end.
const LAST_LINES: Duration = Duration::from_secs(1);
/// How often it is told that somebody else in the guest said hello.
const TELL: Duration = Duration::from_secs(60);

/// The service that an agent calls. Clones are the same service.
#[derive(Clone, Debug)]
pub struct Agent(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    config: RunConfig,
    token: Token,
    facts: mpsc::Sender<Fact>,
    logs: Logs,
    orders: watch::Receiver<Orders>,
    /// Counts the streams of commands; all but the last end.
    watchers: watch::Sender<u64>,
    state: Mutex<State>,
    /// Another supervisor takes over: no line is taken that could be lost.
    leaving: watch::Sender<bool>,
    /// How many streams of log lines are under way.
    log_streams: watch::Sender<usize>,
    begun: Instant,
}

/// What the agent is to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Orders {
    /// The grace of the shutdown that is asked for.
    shutdown: Option<u32>,
    /// How often the clock was to be set.
    clocks: u64,
}

#[derive(Debug)]
struct State {
    calls: Bucket,
    facts: Bucket,
    /// The agent's connection, once there was a hello.
    agent: Option<Weak<Identity>>,
    boot: Boot,
    beat: Option<Duration>,
    /// When it was last told that somebody else said hello.
    told: Option<Duration>,
}

/// The way to tell an agent what to do.
#[derive(Debug)]
pub struct Commands {
    orders: watch::Sender<Orders>,
    shared: Arc<Shared>,
}

impl Commands {
    /// Asks the agent to shut the guest down, with that grace for the workload. An agent that does not listen now is told
    /// when it does.
    pub fn shut_down(&self, grace: Duration) {
        let grace = u32::try_from(grace.as_millis()).unwrap_or(u32::MAX);
        self.orders
            .send_modify(|orders| orders.shutdown = Some(grace));
    }

    /// Has the agent set the guest's clock to what the host's is when the agent is told.
    pub fn set_clock(&self) {
        self.orders.send_modify(|orders| orders.clocks += 1);
    }

    /// The guest boots anew: whoever says hello first is the agent.
    pub fn expect_boot(&self) {
        let mut state = lock(&self.shared.state);
        state.agent = None;
        state.boot = Boot::default();
    }

    /// Ends the agent's streams of log lines, each with the answer how many of its lines were taken: the agent sends the others to
    /// who takes over. Waits a little for that.
    pub async fn end_logs(&self) {
        self.shared.leaving.send_replace(true);
        let mut streams = self.shared.log_streams.subscribe();
        let ended = streams.wait_for(|streams| *streams == 0);
        if tokio::time::timeout(LAST_LINES, ended).await.is_err() {
            tracing::warn!("the agent's log lines did not end in time: some may come twice");
        }
    }

    /// Takes log lines again, as nobody took over.
    pub fn take_logs(&self) {
        self.shared.leaving.send_replace(false);
    }

    /// The boot that the agent told of; what a supervisor that takes over must know of it, beside the token.
    #[must_use]
    pub fn boot(&self) -> Boot {
        lock(&self.shared.state).boot.clone()
    }
}

impl Agent {
    /// A service that gives its agent `config`; what the agent tells arrives at the receiver.
    #[must_use]
    pub fn new(
        config: RunConfig,
        token: Token,
        logs: Logs,
    ) -> (Self, Commands, mpsc::Receiver<Fact>) {
        Self::known(config, token, Boot::default(), logs)
    }

    /// The same for an agent that told another supervisor of its boot.
    #[must_use]
    pub fn known(
        config: RunConfig,
        token: Token,
        boot: Boot,
        logs: Logs,
    ) -> (Self, Commands, mpsc::Receiver<Fact>) {
        let (facts, queue) = mpsc::channel(QUEUE);
        let (orders, watched) = watch::channel(Orders::default());
        let state = State {
            calls: Bucket::new(CALLS, Duration::ZERO),
            facts: Bucket::new(TOLD, Duration::ZERO),
            agent: None,
            boot,
            beat: None,
            told: None,
        };
        let shared = Arc::new(Shared {
            config,
            token,
            facts,
            logs,
            orders: watched,
            watchers: watch::Sender::new(0),
            state: Mutex::new(state),
            leaving: watch::Sender::new(false),
            log_streams: watch::Sender::new(0),
            begun: Instant::now(),
        });
        let commands = Commands {
            orders,
            shared: Arc::clone(&shared),
        };
        (Self(shared), commands, queue)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.0.state)
    }

    /// Refuses a call that is one too many, or not of the agent. A hello makes its caller the agent, if it may.
    fn admit<T>(&self, request: &Request<T>, hello: Option<&HelloRequest>) -> Result<(), Status> {
        let caller = caller(request)?;
        let now = self.0.begun.elapsed();
        let mut state = self.state();
        let standing = match state.agent.as_ref().and_then(Weak::upgrade) {
            None => Standing::Vacant,
            Some(agent) if agent.id == caller.0.id => Standing::Own,
            Some(_) => Standing::Other,
        };
        let admitted = match hello {
            Some(hello) => {
                let boot_id = printable(hello.boot_id.as_bytes(), MAX_WORD);
                state
                    .boot
                    .hello(&boot_id, &hello.token, &self.0.token, standing)
            }
            None => state.boot.call(standing),
        };
        if let Err(refusal) = admitted {
            let tell = refusal == Refusal::NoToken
                && state
                    .told
                    .is_none_or(|told| now.saturating_sub(told) >= TELL);
            if tell {
                state.told = Some(now);
            }
            drop(state);
            if tell {
                self.0.logs.warn_of(
                    "not-the-agent",
                    NOT_THE_AGENT,
                    "a process in the guest said hello, but is not the agent: it does not know the agent's token"
                        .to_owned(),
                );
            }
            return Err(self.refuse(caller, status(refusal)));
        }
        if !state.calls.take(1, now) {
            return Err(Status::resource_exhausted("too many calls"));
        }
        state.agent = Some(Arc::downgrade(&caller.0));
        caller.0.trusted.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// The answer to a call that is refused, which counts for its connection alone.
    fn refuse(&self, caller: &Caller, status: Status) -> Status {
        if caller.0.refuse(self.0.begun.elapsed()) {
            status
        } else {
            Status::resource_exhausted("too many calls that are not this connection's to make")
        }
    }

    /// Tells what is not to be told too often.
    async fn tell_in_turn(&self, fact: Fact) -> Result<(), Status> {
        let now = self.0.begun.elapsed();
        if !self.state().facts.take(1, now) {
            return Err(Status::resource_exhausted("too many reports"));
        }
        self.tell(fact).await
    }

    async fn tell(&self, fact: Fact) -> Result<(), Status> {
        let told = self.0.facts.send(fact).await;
        told.map_err(|_| Status::unavailable("the VM is at its end"))
    }
}

#[tonic::async_trait]
impl AgentHostService for Agent {
    async fn hello(
        &self,
        request: Request<HelloRequest>,
    ) -> Result<Response<HelloResponse>, Status> {
        let hello = request.get_ref();
        if hello.boot_id.is_empty() || hello.boot_id.len() > MAX_WORD {
            let status = Status::invalid_argument("the boot id has 1 to 64 bytes");
            return Err(self.refuse(caller(&request)?, status));
        }
        self.admit(&request, Some(request.get_ref()))?;
        let hello = request.into_inner();
        if hello.protocol != PROTOCOL {
            let cause = format!(
                "the host speaks agent protocol {PROTOCOL}, the agent {}: build the plugin with the kestrel of this version",
                hello.protocol
            );
            self.tell(Fact::Fatal(cause.clone())).await?;
            return Err(Status::failed_precondition(cause));
        }
        self.tell_in_turn(Fact::greeted(&hello)).await?;
        Ok(Response::new(HelloResponse {
            run_config: Some(RunConfig {
                time_unix_ns: now_unix_ns(),
                ..self.0.config.clone()
            }),
            token: self.0.token.as_bytes().to_vec(),
        }))
    }

    async fn report(
        &self,
        request: Request<ReportRequest>,
    ) -> Result<Response<ReportResponse>, Status> {
        self.admit(&request, None)?;
        let report = request.into_inner().report;
        let report = report.ok_or_else(|| Status::invalid_argument("the report is empty"))?;
        self.tell_in_turn(Fact::reported(report)).await?;
        Ok(Response::new(ReportResponse {}))
    }

    async fn heartbeat(
        &self,
        request: Request<HeartbeatRequest>,
    ) -> Result<Response<HeartbeatResponse>, Status> {
        self.admit(&request, None)?;
        let now = self.0.begun.elapsed();
        let due = {
            let mut state = self.state();
            let due = state
                .beat
                .is_none_or(|last| now.saturating_sub(last) >= BEAT);
            if due {
                state.beat = Some(now);
            }
            due
        };
        if due {
            let beat = request.into_inner();
            self.tell(Fact::beat(beat)).await?;
        }
        Ok(Response::new(HeartbeatResponse {}))
    }

    async fn send_logs(
        &self,
        request: Request<Streaming<SendLogsRequest>>,
    ) -> Result<Response<SendLogsResponse>, Status> {
        self.admit(&request, None)?;
        let mut lines = request.into_inner();
        let mut leaving = self.0.leaving.subscribe();
        // Its sender is ours.
        let _ = leaving.wait_for(|leaving| !leaving).await;
        let _under_way = UnderWay::new(&self.0.log_streams);
        let mut taken = 0;
        loop {
            let line = tokio::select! {
                biased;
                _ = leaving.wait_for(|leaving| *leaving) => break,
                line = lines.message() => line?,
            };
            let Some(line) = line else { break };
            taken += 1;
            if line.dropped > 0 {
                self.0.logs.dropped_in_guest(line.dropped);
            }
            let stream = match line.stream() {
                send_logs_request::Stream::Stdout => LogStream::Stdout,
                send_logs_request::Stream::Stderr => LogStream::Stderr,
                send_logs_request::Stream::Agent | send_logs_request::Stream::Unspecified => {
                    LogStream::Agent
                }
            };
            self.0.logs.put(stream, &line.line).await;
        }
        Ok(Response::new(SendLogsResponse { lines: taken }))
    }

    type WatchCommandsStream =
        Pin<Box<dyn Stream<Item = Result<WatchCommandsResponse, Status>> + Send>>;

    async fn watch_commands(
        &self,
        request: Request<WatchCommandsRequest>,
    ) -> Result<Response<Self::WatchCommandsStream>, Status> {
        self.admit(&request, None)?;
        self.0.watchers.send_modify(|watchers| *watchers += 1);
        let watchers = self.0.watchers.subscribe();
        let commands = stream::unfold(
            (self.0.orders.clone(), watchers, Orders::default()),
            |(mut orders, mut watchers, told)| async move {
                // `changed` sees what comes after `subscribe`: a newer stream. Without orders the supervisor is gone.
                let (asked, told) = tokio::select! {
                    asked = orders.wait_for(|orders| *orders != told) => next(*asked.ok()?, told),
                    _ = watchers.changed() => return None,
                };
                let response = WatchCommandsResponse {
                    command: Some(asked),
                };
                Some((Ok(response), (orders, watchers, told)))
            },
        );
        Ok(Response::new(Box::pin(commands)))
    }
}

/// Counts as long as it lives.
struct UnderWay<'a>(&'a watch::Sender<usize>);

impl<'a> UnderWay<'a> {
    fn new(count: &'a watch::Sender<usize>) -> Self {
        count.send_modify(|count| *count += 1);
        Self(count)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

/// The first command of `orders` that is not told yet, and what is told then.
fn next(orders: Orders, told: Orders) -> (Command, Orders) {
    match orders.shutdown {
        Some(grace_ms) if told.shutdown.is_none() => {
            let told = Orders {
                shutdown: orders.shutdown,
                ..told
            };
            (Command::Shutdown(Shutdown { grace_ms }), told)
        }
        _ => {
            let time_unix_ns = now_unix_ns();
            (Command::SetClock(SetClock { time_unix_ns }), orders)
        }
    }
}

fn now_unix_ns() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| u64::try_from(now.as_nanos()).unwrap_or(u64::MAX))
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn status(refusal: Refusal) -> Status {
    match refusal {
        Refusal::NotGreeted => Status::failed_precondition("say hello first"),
        Refusal::OtherConnection => Status::permission_denied("another connection is the agent's"),
        Refusal::NoToken => Status::permission_denied("this is not the agent's token"),
    }
}

fn caller<T>(request: &Request<T>) -> Result<&Caller, Status> {
    let caller = request.extensions().get::<Caller>();
    caller.ok_or_else(|| Status::internal("the connection is not known"))
}
