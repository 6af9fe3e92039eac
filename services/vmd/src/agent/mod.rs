//! The host's face to its guest's agent: `volant.agent.v1.AgentHostService` on `<vsock>_1024`.
//!
//! The guest is hostile: connections, calls, sizes and times are bounded here, and nothing that it sends is believed
//! beyond its own VM. Past this face there are [`Fact`]s; what they mean is the supervisor's matter.

mod admission;
mod connection;
mod face;

pub use admission::{Boot, Token, TokenError};
pub use connection::Door;
pub use face::{Agent, Commands};

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::net::UnixListener;
use tonic::transport::Server;
use volant_proto::agent::v1::{HOST_PORT, agent_host_service_server::AgentHostServiceServer};

use crate::{ended::WorkloadExit, life::DownReason, logs::Logs};

/// The largest message of an agent: a log line has 8 KiB.
const MAX_MESSAGE: usize = 64 * 1024;
const MAX_STREAMS: u32 = 16;

/// What an agent told, checked and cut to size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    Hello {
        boot_id: String,
        version: String,
        uptime_ms: u64,
    },
    WorkloadStarted {
        pid: u32,
    },
    WorkloadExited(WorkloadExit),
    Fatal(String),
    GoingDown(DownReason),
    /// The workload is healthy for the first time in this boot.
    Ready,
    WorkloadRestarting(Restarting),
    Health {
        healthy: bool,
        detail: String,
    },
    Heartbeat(Heartbeat),
}

/// The workload ended, and is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restarting {
    pub exit: WorkloadExit,
    /// How often in this boot, with this one.
    pub restarts: u32,
    pub delay: Duration,
    /// The agent ended it, as its health check failed.
    pub unhealthy: bool,
}

/// How the guest is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    pub memory_total_kib: u64,
    pub memory_available_kib: u64,
    pub agent_resident_kib: u64,
}

/// Why nobody listens for the agent.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen for the agent on {}", path.display())]
pub struct ListenError {
    path: PathBuf,
    source: io::Error,
}

impl ListenError {
    pub(crate) fn new(path: &Path, source: io::Error) -> Self {
        Self {
            path: path.to_owned(),
            source,
        }
    }
}

/// Where the agent's calls arrive, for a guest whose vsock is `vsock`.
#[must_use]
pub fn socket(vsock: &Path) -> PathBuf {
    let mut path = vsock.as_os_str().to_owned();
    path.push(format!("_{HOST_PORT}"));
    path.into()
}

/// Listens for the agent of the guest whose vsock is `vsock`; an old socket is replaced. Do so before the guest starts.
///
/// # Errors
/// The socket cannot be made.
pub fn listen(vsock: &Path) -> Result<UnixListener, ListenError> {
    let path = socket(vsock);
    match fs::remove_file(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            return Err(ListenError { path, source });
        }
        _ => {}
    }
    UnixListener::bind(&path).map_err(|source| ListenError { path, source })
}

/// Serves the agent until this is dropped.
pub async fn serve(listener: UnixListener, agent: Agent, logs: Logs) {
    let door = Door::new(logs);
    let served = Server::builder()
        .concurrency_limit_per_connection(MAX_STREAMS as usize)
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(64 * 1024)
        .initial_connection_window_size(128 * 1024)
        .max_frame_size(16 * 1024)
        .http2_max_header_list_size(8 * 1024)
        .http2_max_pending_accept_reset_streams(Some(16))
        .http2_max_local_error_reset_streams(Some(64))
        // No keep-alive: a paused guest answers none, and whether it lives its heartbeats tell.
        .serve_with_incoming(
            AgentHostServiceServer::new(agent).max_decoding_message_size(MAX_MESSAGE),
            door.incoming(listener),
        )
        .await;
    if let Err(error) = served {
        tracing::error!("cannot serve the agent any more: {error}");
    }
}
