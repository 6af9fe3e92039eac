//! The calls of VMs' supervisors: work and streams of one running VM, on its own socket.
//!
//! Each session has a connection of its own: one that nobody reads holds up itself alone.

use std::{
    io,
    net::Shutdown,
    ops::{Deref, DerefMut},
    os::unix::net::UnixStream as StdStream,
    path::{Path, PathBuf},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};
use volant_proto::vm::v1::{
    GetStatsRequest, GetStatsResponse, PauseRequest, ResizeRequest, ResumeRequest,
    vm_service_client::VmServiceClient,
};
use volant_spec::{Name, unit};

use crate::{Gateway, Kind, Problem};

/// A client of one supervisor. When it is dropped its connection is cut off at once: a stream of requests that was not ended
/// then never looks as if it were.
#[derive(Debug)]
pub struct Client {
    grpc: VmServiceClient<Channel>,
    _connection: CutOff,
}

/// The connection's socket.
#[derive(Debug)]
struct CutOff(StdStream);

impl Drop for CutOff {
    fn drop(&mut self) {
        // It may be closed already.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

impl Deref for Client {
    type Target = VmServiceClient<Channel>;

    fn deref(&self) -> &Self::Target {
        &self.grpc
    }
}

impl DerefMut for Client {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.grpc
    }
}

/// What a connection may take; the socket is there or not.
const CONNECT: Duration = Duration::from_secs(5);
/// What a call may take that is no stream.
const CALL: Duration = Duration::from_secs(30);
/// What a supervisor may have sent of a stream that was not read yet, in bytes.
const WINDOW: u32 = 256 * 1024;
/// HTTP/2's library ends a connection on which more small frames wait than half of its window pays for, with 256 bytes for
/// each. A program that prints byte by byte to a slow reader is no reason to: as many as fit into [`WINDOW`] may wait.
const CONNECTION_WINDOW: u32 = 64 * WINDOW;
/// A message of a copy in one piece.
const MAX_FRAME: u32 = 128 * 1024;
/// The largest message that is taken: a guest's statistics with its processes.
const MAX_MESSAGE: usize = 4 * 1024 * 1024;

/// Where supervisors listen: `FOLDER/NAME/vmd.sock`.
#[derive(Clone, Debug)]
pub struct Vmds(PathBuf);

impl Vmds {
    #[must_use]
    pub fn at(folder: &Path) -> Self {
        Self(folder.to_owned())
    }

    /// A new connection to a VM's supervisor.
    ///
    /// # Errors
    /// Nobody listens.
    pub async fn connect(&self, name: &Name) -> Result<Client, ConnectError> {
        let socket = self.0.join(name.as_str()).join("vmd.sock");
        let stream = tokio::time::timeout(CONNECT, UnixStream::connect(&socket)).await;
        let stream = stream.map_err(|_| ConnectError::Slow)??;
        let stream = stream.into_std()?;
        let cut_off = CutOff(stream.try_clone()?);
        let stream = UnixStream::from_std(stream)?;
        let mut once = Some(stream);
        let connector = tower::service_fn(move |_| {
            // A connection that broke is not made again: its session is over.
            let stream = once
                .take()
                .ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected));
            std::future::ready(stream.map(TokioIo::new))
        });
        let channel = Endpoint::from_static("http://vmd.sock")
            .max_frame_size(MAX_FRAME)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .connect_with_connector(connector)
            .await?;
        Ok(Client {
            grpc: VmServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE),
            _connection: cut_off,
        })
    }
}

/// A supervisor cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("it does not take the connection in time")]
    Slow,
    #[error("nobody takes the connection")]
    Io(#[from] io::Error),
    #[error("it does not speak HTTP/2")]
    Http(#[from] tonic::transport::Error),
}

impl Gateway {
    /// A new connection to the supervisor of a VM that runs.
    ///
    /// # Errors
    /// There is no such VM, it does not run, or its supervisor does not answer.
    pub(crate) async fn vmd(&self, name: &Name) -> Result<Client, Problem> {
        match self.vmds().connect(name).await {
            Ok(client) => Ok(client),
            Err(error) => Err(self.unconnected(name, &error).await),
        }
    }

    /// Why a supervisor could not be reached.
    async fn unconnected(&self, name: &Name, error: &ConnectError) -> Problem {
        if let Err(problem) = self.registry().vm(name).await {
            return problem;
        }
        let unit = unit::vm(name);
        match self.systemd().unit(&unit).await {
            Err(error) => error.into(),
            Ok(state) if state.active.is_down() => {
                Problem::new(Kind::NotRunning, format!("VM {name} does not run"))
            }
            Ok(_) => {
                tracing::debug!("cannot connect to the supervisor of VM {name}: {error:?}");
                let detail = format!(
                    "the supervisor of VM {name} does not answer (yet); see: journalctl -u {unit}"
                );
                Problem::new(Kind::GuestAway, detail)
            }
        }
    }

    /// How the guest is, by its own word.
    ///
    /// # Errors
    /// The VM does not run, or its agent does not answer within `patience`.
    pub(crate) async fn guest_stats(
        &self,
        name: &Name,
        processes: u32,
        patience: Duration,
    ) -> Result<GetStatsResponse, Problem> {
        let mut client = self.vmd(name).await?;
        in_time(
            name,
            patience,
            client.get_stats(GetStatsRequest { processes }),
        )
        .await
    }

    /// Stops the guest's CPUs. Idempotent.
    ///
    /// # Errors
    /// The VM does not run, or cannot be paused now.
    pub(crate) async fn pause(&self, name: &Name) -> Result<(), Problem> {
        let mut client = self.vmd(name).await?;
        in_time(name, CALL, client.pause(PauseRequest {}))
            .await
            .map(drop)
    }

    /// Lets the guest's CPUs go on. Idempotent.
    ///
    /// # Errors
    /// The VM does not run, or cannot be resumed now.
    pub(crate) async fn resume(&self, name: &Name) -> Result<(), Problem> {
        let mut client = self.vmd(name).await?;
        in_time(name, CALL, client.resume(ResumeRequest {}))
            .await
            .map(drop)
    }

    /// Gives the running guest other resources; 0 leaves one as it is.
    ///
    /// # Errors
    /// `Kind::NotPossible`, saying why, where the VMM cannot.
    pub(crate) async fn resize(
        &self,
        name: &Name,
        cpu_cores: u32,
        memory_mb: u32,
    ) -> Result<(), Problem> {
        let mut client = self.vmd(name).await?;
        let request = ResizeRequest {
            cpu_cores,
            memory_mb,
        };
        in_time(name, CALL, client.resize(request)).await.map(drop)
    }
}

async fn in_time<T>(
    name: &Name,
    patience: Duration,
    call: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, Problem> {
    match tokio::time::timeout(patience, call).await {
        Ok(answer) => answer
            .map(tonic::Response::into_inner)
            .map_err(|status| problem(name, &status)),
        Err(_) => {
            let detail = format!("the supervisor of VM {name} did not answer within {patience:?}");
            Err(Problem::new(Kind::GuestAway, detail))
        }
    }
}

/// The problem that a supervisor's refusal is. Its words, and the guest's, are the detail.
#[must_use]
pub fn problem(name: &Name, status: &Status) -> Problem {
    let kind = match status.code() {
        Code::NotFound => Kind::NotInGuest,
        Code::InvalidArgument | Code::OutOfRange => Kind::InvalidRequest,
        Code::FailedPrecondition | Code::AlreadyExists => Kind::UnusableInGuest,
        Code::ResourceExhausted => Kind::TooManySessions,
        Code::Unimplemented => Kind::NotPossible,
        // The last three are what a call gets whose callee died under it.
        Code::Unavailable
        | Code::Aborted
        | Code::DeadlineExceeded
        | Code::Cancelled
        | Code::Unknown => Kind::GuestAway,
        Code::Ok
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::Internal
        | Code::DataLoss => Kind::Internal,
    };
    let message = status.message();
    let detail = match kind {
        Kind::GuestAway | Kind::Internal => {
            format!(
                "VM {name}: {message}; see: journalctl -u {}",
                unit::vm(name)
            )
        }
        _ => message.to_owned(),
    };
    Problem::new(kind, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_supervisors_code_means_what_the_contract_says() {
        let name: Name = "web".parse().unwrap();
        let cases = [
            (Code::NotFound, Kind::NotInGuest, 404),
            (Code::FailedPrecondition, Kind::UnusableInGuest, 409),
            (Code::Unavailable, Kind::GuestAway, 503),
            (Code::ResourceExhausted, Kind::TooManySessions, 503),
            (Code::Unimplemented, Kind::NotPossible, 409),
            (Code::InvalidArgument, Kind::InvalidRequest, 400),
            (Code::DataLoss, Kind::Internal, 500),
        ];
        for (code, kind, status) in cases {
            let problem = problem(&name, &Status::new(code, "why"));
            assert_eq!(problem.kind, kind, "{code:?}");
            assert_eq!(problem.kind.status().as_u16(), status);
            assert!(problem.detail.contains("why"), "{problem}");
        }
    }
}
