//! The client of the host: every call has a deadline, and goes on over a new connection when the old one breaks.

use std::{
    error::Error as _,
    fs, io,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use hyper_util::rt::TokioIo;
use nix::time::{ClockId, clock_gettime};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{Mutex, mpsc},
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_vsock::{VMADDR_CID_HOST, VsockAddr, VsockStream};
use tonic::{
    Code, Status, Streaming,
    transport::{Channel, Endpoint},
};
use tower::service_fn;
use volant_proto::agent::v1::{
    self, HOST_PORT, HeartbeatRequest, HelloRequest, HelloResponse, ReportRequest, RunConfig,
    SendLogsRequest, WatchCommandsRequest, WatchCommandsResponse,
    agent_host_service_client::AgentHostServiceClient, report_request::Report,
};

/// How long one attempt to connect may take, and one answer.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// Why the host does not answer as it should.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    #[error("the host does not answer: {0}")]
    Unreachable(String),
    #[error("the host does not answer within {} ms", .0.as_millis())]
    Silent(Duration),
    #[error("the host refuses: {0}")]
    Refused(String),
    #[error("the host's answer to hello has no run configuration")]
    NoConfig,
}

/// The host's end of the vsock. Clones share one connection, which is made at the first call.
///
/// A host that is replaced while the guest runs knows nobody by the new connection. A call that it refuses so says hello
/// again, with the token of the first answer, and is made once more.
#[derive(Clone, Debug)]
pub struct Host {
    client: AgentHostServiceClient<Channel>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// How many were answered.
    hellos: AtomicU64,
    /// Held while one is said.
    greeting: Mutex<()>,
    /// Of the host's first answer; it is in no log.
    token: RwLock<Token>,
}

#[derive(Clone, Default)]
struct Token(Vec<u8>);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(..)")
    }
}

impl Host {
    /// The host of this guest. Call within a runtime.
    #[must_use]
    pub fn over_vsock() -> Self {
        Self::over(|| VsockStream::connect(VsockAddr::new(VMADDR_CID_HOST, HOST_PORT)))
    }

    /// A host to which `dial` makes connections. Call within a runtime.
    pub fn over<D, F, S>(dial: D) -> Self
    where
        D: Fn() -> F + Send + 'static,
        F: Future<Output = io::Result<S>> + Send + 'static,
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        // The name is for the HTTP header alone.
        let channel = Endpoint::from_static("http://host")
            .connect_timeout(CONNECT_WITHIN)
            .connect_with_connector_lazy(service_fn(move |_| {
                let dialled = dial();
                async move { dialled.await.map(TokioIo::new) }
            }));
        Self {
            client: AgentHostServiceClient::new(channel),
            shared: Arc::default(),
        }
    }

    /// The token of the host's answer to hello; empty before.
    #[must_use]
    pub fn token(&self) -> Vec<u8> {
        let token = self.shared.token.read();
        token.unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    /// Takes a token that an earlier process of this agent was given.
    pub fn set_token(&self, token: Vec<u8>) {
        let mut known = self
            .shared
            .token
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        *known = Token(token);
    }

    /// Says hello until the host answers, and returns what it answers; keeps the answer's token. With a token already, the
    /// host takes this for the agent that it knows.
    ///
    /// # Errors
    /// The host refuses, or does not answer `within` that time.
    pub async fn hello(&self, within: Duration) -> Result<RunConfig, HostError> {
        let _greeting = self.shared.greeting.lock().await;
        let response = insist(within, || self.say_hello()).await?;
        if !response.token.is_empty() {
            self.set_token(response.token);
        }
        response.run_config.ok_or(HostError::NoConfig)
    }

    /// How many hellos were answered so far, for [`Self::greet`].
    #[must_use]
    pub fn hellos(&self) -> u64 {
        self.shared.hellos.load(Ordering::Relaxed)
    }

    /// Says hello again, unless that was done since there were `hellos` of them.
    ///
    /// # Errors
    /// The host refuses, or does not answer `within` that time.
    pub async fn greet(&self, hellos: u64, within: Duration) -> Result<(), HostError> {
        let _greeting = self.shared.greeting.lock().await;
        if self.hellos() > hellos {
            return Ok(());
        }
        insist(within, || self.say_hello()).await.map(drop)
    }

    async fn say_hello(&self) -> Result<HelloResponse, Status> {
        let hello = hello(self.token());
        let answer = self.client.clone().hello(hello).await?;
        self.shared.hellos.fetch_add(1, Ordering::Relaxed);
        Ok(answer.into_inner())
    }

    /// Makes a call, and once more after a hello where the host does not know this connection.
    async fn known<T, F>(&self, attempt: impl Fn() -> F) -> Result<T, Status>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let hellos = self.hellos();
        match attempt().await {
            Err(status)
                if matches!(
                    status.code(),
                    Code::FailedPrecondition | Code::PermissionDenied | Code::Unauthenticated
                ) =>
            {
                match self.greet(hellos, ANSWER_WITHIN).await {
                    Ok(()) => attempt().await,
                    Err(_) => Err(status),
                }
            }
            answer => answer,
        }
    }

    /// Reports a fact until the host has it.
    ///
    /// # Errors
    /// The host refuses, or does not answer `within` that time.
    pub async fn report(&self, report: &Report, within: Duration) -> Result<(), HostError> {
        let request = ReportRequest {
            report: Some(report.clone()),
        };
        insist(within, || {
            self.known(|| {
                let (mut client, request) = (self.client.clone(), request.clone());
                async move { client.report(request).await }
            })
        })
        .await
        .map(drop)
    }

    /// Says once that the guest is alive.
    ///
    /// # Errors
    /// The host did not take it; the next heartbeat will tell.
    pub async fn heartbeat(&self, heartbeat: HeartbeatRequest) -> Result<(), HostError> {
        let attempt = || {
            let mut client = self.client.clone();
            async move { client.heartbeat(heartbeat).await }
        };
        match timeout(ANSWER_WITHIN, self.known(attempt)).await {
            Ok(answer) => answer.map(drop).map_err(|status| told(&status)),
            Err(_) => Err(HostError::Silent(ANSWER_WITHIN)),
        }
    }

    /// Sends lines until their sender is gone or the host wants no more by this stream; gives how many it took. It takes as
    /// long as the host does.
    ///
    /// # Errors
    /// The stream broke; what the host took of it is not known.
    pub async fn send_logs(
        &self,
        lines: mpsc::Receiver<SendLogsRequest>,
    ) -> Result<u64, HostError> {
        let lines = ReceiverStream::new(lines);
        match self.client.clone().send_logs(lines).await {
            Ok(answer) => Ok(answer.into_inner().lines),
            Err(status) => Err(told(&status)),
        }
    }

    /// Opens the stream of what the host wants.
    ///
    /// # Errors
    /// The host refuses or does not answer.
    pub async fn watch_commands(&self) -> Result<Streaming<WatchCommandsResponse>, HostError> {
        let attempt = || {
            let mut client = self.client.clone();
            async move { client.watch_commands(WatchCommandsRequest {}).await }
        };
        match timeout(ANSWER_WITHIN, self.known(attempt)).await {
            Ok(Ok(stream)) => Ok(stream.into_inner()),
            Ok(Err(status)) => Err(told(&status)),
            Err(_) => Err(HostError::Silent(ANSWER_WITHIN)),
        }
    }
}

fn hello(token: Vec<u8>) -> HelloRequest {
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let uptime = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from);
    HelloRequest {
        protocol: v1::PROTOCOL,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        boot_id: boot_id.trim().to_owned(),
        uptime_ms: uptime.as_millis().try_into().unwrap_or(u64::MAX),
        token,
    }
}

/// Tries again, with growing pauses, as long as the host does not answer at all.
async fn insist<T, F>(within: Duration, attempt: impl Fn() -> F) -> Result<T, HostError>
where
    F: Future<Output = Result<T, Status>>,
{
    let deadline = Instant::now() + within;
    let mut pause = FIRST_PAUSE;
    let mut last = HostError::Silent(within);
    loop {
        match timeout_at(deadline.min(Instant::now() + ANSWER_WITHIN), attempt()).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(status)) => match told(&status) {
                error @ HostError::Unreachable(_) => last = error,
                error => return Err(error),
            },
            Err(_) => {}
        }
        if Instant::now() + pause >= deadline {
            return Err(last);
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Tells a host that is not there from one that does not want.
fn told(status: &Status) -> HostError {
    match status.code() {
        Code::Unavailable | Code::Unknown | Code::Cancelled | Code::DeadlineExceeded => {
            let mut words = status.message().to_owned();
            let mut source = status.source();
            while let Some(error) = source {
                let cause = error.to_string();
                if !words.contains(&cause) {
                    words = format!("{words}: {cause}");
                }
                source = error.source();
            }
            HostError::Unreachable(words)
        }
        _ => HostError::Refused(status.message().to_owned()),
    }
}
