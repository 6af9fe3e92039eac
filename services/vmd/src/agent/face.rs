//! The calls of an agent, each checked and turned into a fact.
//!
//! The first connection that says hello is the agent's; while it lives, calls of others are refused. So a process in the
//! guest that is not the agent cannot speak for it, nor read the run configuration, nor use up its calls.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, atomic::Ordering},
    time::Duration,
};

use futures_util::{Stream, stream};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tonic::{Request, Response, Status, Streaming};
use volant_proto::agent::v1::{
    HeartbeatRequest, HeartbeatResponse, HelloRequest, HelloResponse, PROTOCOL, ReportRequest,
    ReportResponse, RunConfig, SendLogsRequest, SendLogsResponse, Shutdown, WatchCommandsRequest,
    WatchCommandsResponse, agent_host_service_server::AgentHostService, going_down::Reason,
    report_request::Report, send_logs_request, watch_commands_response::Command,
};

use super::{
    Fact, Heartbeat,
    connection::{Caller, Identity},
};
use crate::{
    bucket::{Bucket, Rate},
    ended::WorkloadExit,
    life::DownReason,
    logs::{Logs, Stream as LogStream},
    text::printable,
};

/// Facts on their way to the supervisor.
const QUEUE: usize = 16;
/// Calls that the agent may make; it makes one in some seconds. Refusals of others are counted at their own connection.
const CALLS: Rate = Rate {
    burst: 200,
    per_second: 20,
};
/// Heartbeats that come sooner are answered, but tell nothing.
const BEAT: Duration = Duration::from_millis(900);
const MAX_CAUSE: usize = 1024;
const MAX_WORD: usize = 64;

/// The service that an agent calls. Clones are the same service.
#[derive(Clone, Debug)]
pub struct Agent(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    config: RunConfig,
    facts: mpsc::Sender<Fact>,
    logs: Logs,
    /// The grace of the shutdown that is asked for.
    shutdown: watch::Receiver<Option<u32>>,
    /// Counts the streams of commands; all but the last end.
    watchers: watch::Sender<u64>,
    state: Mutex<State>,
    begun: Instant,
}

#[derive(Debug)]
struct State {
    calls: Bucket,
    /// The agent's connection, once there was a hello.
    agent: Option<Weak<Identity>>,
    beat: Option<Duration>,
}

/// The way to tell an agent what to do.
#[derive(Debug)]
pub struct Commands(watch::Sender<Option<u32>>);

impl Commands {
    /// Asks the agent to shut the guest down, with that grace for the workload. An agent that does not listen now is told
    /// when it does.
    pub fn shut_down(&self, grace: Duration) {
        let grace = u32::try_from(grace.as_millis()).unwrap_or(u32::MAX);
        self.0.send_replace(Some(grace));
    }
}

impl Agent {
    /// A service that gives its agent `config`; what the agent tells arrives at the receiver.
    #[must_use]
    pub fn new(config: RunConfig, logs: Logs) -> (Self, Commands, mpsc::Receiver<Fact>) {
        let (facts, queue) = mpsc::channel(QUEUE);
        let (commands, shutdown) = watch::channel(None);
        let state = State {
            calls: Bucket::new(CALLS, Duration::ZERO),
            agent: None,
            beat: None,
        };
        let shared = Shared {
            config,
            facts,
            logs,
            shutdown,
            watchers: watch::Sender::new(0),
            state: Mutex::new(state),
            begun: Instant::now(),
        };
        (Self(Arc::new(shared)), Commands(commands), queue)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses a call that is one too many, or not of the agent. `hello` makes its caller the agent, if there is none.
    fn admit<T>(&self, request: &Request<T>, hello: bool) -> Result<(), Status> {
        let caller = caller(request)?;
        let mut state = self.state();
        match &state.agent {
            None if !hello => {
                return Err(self.refuse(caller, Status::failed_precondition("say hello first")));
            }
            Some(agent) if agent.upgrade().is_some_and(|agent| agent.id != caller.0.id) => {
                let status = Status::permission_denied("another connection is the agent's");
                return Err(self.refuse(caller, status));
            }
            _ => {}
        }
        if !state.calls.take(1, self.0.begun.elapsed()) {
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
        self.admit(&request, true)?;
        let hello = request.into_inner();
        if hello.protocol != PROTOCOL {
            let cause = format!(
                "the host speaks agent protocol {PROTOCOL}, the agent {}: build the plugin with the kestrel of this version",
                hello.protocol
            );
            self.tell(Fact::Fatal(cause.clone())).await?;
            return Err(Status::failed_precondition(cause));
        }
        self.tell(Fact::Hello {
            boot_id: printable(hello.boot_id.as_bytes(), MAX_WORD),
            version: printable(hello.version.as_bytes(), MAX_WORD),
            uptime_ms: hello.uptime_ms,
        })
        .await?;
        Ok(Response::new(HelloResponse {
            run_config: Some(self.0.config.clone()),
            token: Vec::new(),
        }))
    }

    async fn report(
        &self,
        request: Request<ReportRequest>,
    ) -> Result<Response<ReportResponse>, Status> {
        self.admit(&request, false)?;
        let report = request.into_inner().report;
        let report = report.ok_or_else(|| Status::invalid_argument("the report is empty"))?;
        self.tell(fact(report)).await?;
        Ok(Response::new(ReportResponse {}))
    }

    async fn heartbeat(
        &self,
        request: Request<HeartbeatRequest>,
    ) -> Result<Response<HeartbeatResponse>, Status> {
        self.admit(&request, false)?;
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
            self.tell(Fact::Heartbeat(Heartbeat {
                memory_total_kib: beat.memory_total_kib,
                memory_available_kib: beat.memory_available_kib,
                agent_resident_kib: beat.agent_resident_kib,
            }))
            .await?;
        }
        Ok(Response::new(HeartbeatResponse {}))
    }

    async fn send_logs(
        &self,
        request: Request<Streaming<SendLogsRequest>>,
    ) -> Result<Response<SendLogsResponse>, Status> {
        self.admit(&request, false)?;
        let mut lines = request.into_inner();
        let mut taken = 0;
        while let Some(line) = lines.message().await? {
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
        self.admit(&request, false)?;
        self.0.watchers.send_modify(|watchers| *watchers += 1);
        let watchers = self.0.watchers.subscribe();
        let commands = stream::unfold(
            (self.0.shutdown.clone(), watchers, false),
            |(mut shutdown, mut watchers, told)| async move {
                let asked = async {
                    match shutdown.wait_for(|grace| grace.is_some() && !told).await {
                        Ok(grace) => *grace,
                        // The supervisor is gone, and with it the VM.
                        Err(_) => None,
                    }
                };
                // `changed` sees what comes after `subscribe`: a newer stream.
                let grace_ms = tokio::select! {
                    asked = asked => asked?,
                    _ = watchers.changed() => return None,
                };
                let response = WatchCommandsResponse {
                    command: Some(Command::Shutdown(Shutdown { grace_ms })),
                };
                Some((Ok(response), (shutdown, watchers, true)))
            },
        );
        Ok(Response::new(Box::pin(commands)))
    }
}

fn caller<T>(request: &Request<T>) -> Result<&Caller, Status> {
    let caller = request.extensions().get::<Caller>();
    caller.ok_or_else(|| Status::internal("the connection is not known"))
}

fn fact(report: Report) -> Fact {
    match report {
        Report::WorkloadStarted(started) => Fact::WorkloadStarted { pid: started.pid },
        Report::WorkloadExited(exited) => Fact::WorkloadExited(WorkloadExit {
            code: u8::try_from(exited.code).unwrap_or(u8::MAX),
            signal: exited.signal,
        }),
        Report::Fatal(fatal) => Fact::Fatal(printable(fatal.cause.as_bytes(), MAX_CAUSE)),
        Report::Ready(_) => Fact::Ready,
        Report::WorkloadRestarting(restarting) => Fact::WorkloadRestarting {
            restarts: restarting.restarts,
        },
        Report::HealthChanged(health) => Fact::Health {
            healthy: health.healthy,
            detail: printable(health.detail.as_bytes(), MAX_CAUSE),
        },
        Report::GoingDown(down) => Fact::GoingDown(match down.reason() {
            Reason::Requested => DownReason::Requested,
            Reason::WorkloadExited => DownReason::WorkloadExited,
            Reason::PowerButton => DownReason::PowerButton,
            Reason::GuestPoweroff | Reason::Unspecified => DownReason::PowerOff,
            Reason::GuestReboot => DownReason::Reboot,
            Reason::Fatal => DownReason::Fatal,
            Reason::Unhealthy => DownReason::WorkloadExited,
        }),
    }
}
