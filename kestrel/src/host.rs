//! The client of the host: every call has a deadline, and goes on over a new connection when the old one breaks.

use std::{error::Error as _, io, time::Duration};

use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
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
    HOST_PORT, HeartbeatRequest, HelloRequest, ReportRequest, RunConfig, SendLogsRequest,
    WatchCommandsRequest, WatchCommandsResponse, agent_host_service_client::AgentHostServiceClient,
    report_request::Report,
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
#[derive(Clone, Debug)]
pub struct Host {
    client: AgentHostServiceClient<Channel>,
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
        }
    }

    /// Says hello until the host answers, and returns what it answers.
    ///
    /// # Errors
    /// The host refuses, or does not answer `within` that time.
    pub async fn hello(
        &self,
        hello: &HelloRequest,
        within: Duration,
    ) -> Result<RunConfig, HostError> {
        let response = insist(within, || {
            let (mut client, hello) = (self.client.clone(), hello.clone());
            async move { client.hello(hello).await }
        })
        .await?;
        response.into_inner().run_config.ok_or(HostError::NoConfig)
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
            let (mut client, request) = (self.client.clone(), request.clone());
            async move { client.report(request).await }
        })
        .await
        .map(drop)
    }

    /// Says once that the guest is alive.
    ///
    /// # Errors
    /// The host did not take it; the next heartbeat will tell.
    pub async fn heartbeat(&self, heartbeat: HeartbeatRequest) -> Result<(), HostError> {
        match timeout(ANSWER_WITHIN, self.client.clone().heartbeat(heartbeat)).await {
            Ok(answer) => answer.map(drop).map_err(|status| told(&status)),
            Err(_) => Err(HostError::Silent(ANSWER_WITHIN)),
        }
    }

    /// Sends lines until their sender is gone; resolves when the host has them all. It takes as long as the host does.
    ///
    /// # Errors
    /// The stream broke; lines that were on their way are lost.
    pub async fn send_logs(&self, lines: mpsc::Receiver<SendLogsRequest>) -> Result<(), HostError> {
        match self
            .client
            .clone()
            .send_logs(ReceiverStream::new(lines))
            .await
        {
            Ok(_) => Ok(()),
            Err(status) => Err(told(&status)),
        }
    }

    /// Opens the stream of what the host wants.
    ///
    /// # Errors
    /// The host refuses or does not answer.
    pub async fn watch_commands(&self) -> Result<Streaming<WatchCommandsResponse>, HostError> {
        match timeout(
            ANSWER_WITHIN,
            self.client.clone().watch_commands(WatchCommandsRequest {}),
        )
        .await
        {
            Ok(Ok(stream)) => Ok(stream.into_inner()),
            Ok(Err(status)) => Err(told(&status)),
            Err(_) => Err(HostError::Silent(ANSWER_WITHIN)),
        }
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
