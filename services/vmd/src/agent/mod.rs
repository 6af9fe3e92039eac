//! The host's face to its guest's agent: `volant.agent.v1.AgentHostService` on `<vsock>_1024`.
//!
//! The guest is hostile: connections, calls, sizes and times are bounded here, and nothing that it sends is believed
//! beyond its own VM. Past this face there are [`Fact`]s; what they mean is the supervisor's matter.

mod admission;
mod connection;
mod face;
mod fact;

pub use admission::{Boot, Refusal, Standing, Token, TokenError};
pub use connection::Door;
pub use face::{Agent, Commands};
pub use fact::{Fact, Heartbeat, Restarting};

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use tokio::net::UnixListener;
use tonic::transport::Server;
use volant_proto::agent::v1::{HOST_PORT, agent_host_service_server::AgentHostServiceServer};

use crate::logs::Logs;

/// The largest message of an agent: a log line has 8 KiB.
const MAX_MESSAGE: usize = 64 * 1024;
const MAX_STREAMS: u32 = 16;

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
