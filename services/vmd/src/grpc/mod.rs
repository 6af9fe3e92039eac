//! `volant.vm.v1.VmService` on a Unix socket: what people and programs do with a running VM. Who may, the socket's mode says.
//!
//! A thin face: programs, files and connections are [`crate::session`]s in the guest, the console is [`crate::console`]'s, and
//! the machine itself is the supervisor's, asked by [`crate::handle`].

mod connect;
mod console;
mod exec;
mod files;
mod moving;
mod parked;
mod serving;
mod stats;
mod status;

pub use moving::{Mover, Moving};
pub use parked::{Parked, Program};
pub use serving::Serving;

use std::{io, os::unix::net::UnixListener as StdUnixListener};

use tokio::{net::UnixListener, sync::mpsc};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Request, Response, Status, Streaming, transport::Server};
use volant_proto::{
    agent::v1::{
        ConnectSession, PackSession, StatsSession, UnpackSession, session_request::Session as Ask,
    },
    vm::v1::{
        ConnectRequest, ConnectResponse, ConsoleRequest, ConsoleResponse, ExecRequest,
        ExecResponse, GetStatsRequest, GetStatsResponse, PackRequest, PackResponse, PauseRequest,
        PauseResponse, ResizeRequest, ResizeResponse, ResumeRequest, ResumeResponse, UnpackRequest,
        UnpackResponse, connect_request, console_request, exec_request, unpack_request,
        vm_service_server::{VmService, VmServiceServer},
    },
};

use self::{console::Watch, exec::Exec};
use crate::{
    console::Hub,
    handle::{Handle, HandleError},
    session::{Session, Sessions},
};

/// The longest message of a client.
const MAX_MESSAGE: usize = 1024 * 1024;
/// Calls of one client connection at once: more than there are sessions.
const MAX_STREAMS: u32 = 256;
/// What a client may send before it is taken: a copy is not held up for every frame of it, and a guest that takes none has
/// little kept here.
const STREAM_WINDOW: u32 = 256 * 1024;
/// Half of it pays for small messages that wait, as a guest takes them slowly; the library ends the connection beyond.
const CONNECTION_WINDOW: u32 = 16 * 1024 * 1024;
/// A message of a copy in one piece.
const MAX_FRAME: u32 = 128 * 1024;
/// Messages to a client that wait for it.
const WAITING: usize = 1;

/// The face. Clones are the same.
#[derive(Clone, Debug)]
pub struct Service {
    handle: Handle,
    sessions: Sessions,
    console: Hub,
    parked: Parked,
    moving: Moving,
}

impl Service {
    #[must_use]
    pub fn new(handle: Handle, console: Hub, parked: Parked, moving: Moving) -> Self {
        Self {
            sessions: Sessions::new(handle.vsock().to_owned(), handle.token().clone()),
            handle,
            console,
            parked,
            moving,
        }
    }

    /// Serves clients until `stop` resolves and the calls that run then have ended.
    ///
    /// # Errors
    /// The listener is of no use.
    pub async fn serve(
        self,
        listener: StdUnixListener,
        stop: impl Future<Output = ()>,
    ) -> io::Result<()> {
        let listener = UnixListener::from_std(listener)?;
        let served = Server::builder()
            .max_concurrent_streams(MAX_STREAMS)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(MAX_FRAME)
            .serve_with_incoming_shutdown(
                VmServiceServer::new(self).max_decoding_message_size(MAX_MESSAGE),
                UnixListenerStream::new(listener),
                stop,
            )
            .await;
        served.map_err(io::Error::other)
    }

    /// Opens a session that is to be a call's.
    async fn open(
        &self,
        ask: Ask,
    ) -> Result<(volant_proto::agent::v1::SessionOpened, Session), Status> {
        if self.handle.live().borrow().paused {
            return Err(Status::unavailable("the VM is paused"));
        }
        let opened = self.sessions.open(ask).await;
        opened.map_err(|error| status::not_opened(&error))
    }
}

#[tonic::async_trait]
impl VmService for Service {
    type ExecStream = ReceiverStream<Result<ExecResponse, Status>>;

    async fn exec(
        &self,
        request: Request<Streaming<ExecRequest>>,
    ) -> Result<Response<Self::ExecStream>, Status> {
        let mut requests = request.into_inner();
        let first = requests.message().await?.and_then(|first| first.message);
        let program = match first {
            Some(exec_request::Message::Start(start)) => {
                let input_ended = !start.stdin;
                let (opened, session) = self.open(Ask::Exec(exec::request(start))).await?;
                Program {
                    id: self.parked.id(),
                    pid: opened.pid,
                    session,
                    undelivered: None,
                    input_ended,
                    deaf: false,
                }
            }
            Some(exec_request::Message::Attach(attach)) => {
                let parked = self.parked.take(&attach.id);
                parked.ok_or_else(|| Status::not_found("no such program waits for its client"))?
            }
            _ => return Err(status::first("start or attach")),
        };
        let (answers, stream) = mpsc::channel(WAITING);
        let exec = Exec {
            program,
            requests,
            answers,
        };
        tokio::spawn(exec.run(self.moving.clone(), self.parked.clone()));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    type PackStream = ReceiverStream<Result<PackResponse, Status>>;

    async fn pack(
        &self,
        request: Request<PackRequest>,
    ) -> Result<Response<Self::PackStream>, Status> {
        let PackRequest { path, follow } = request.into_inner();
        let (opened, session) = self.open(Ask::Pack(PackSession { path, follow })).await?;
        let (answers, stream) = mpsc::channel(WAITING);
        tokio::spawn(files::pack(opened, session, answers));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn unpack(
        &self,
        request: Request<Streaming<UnpackRequest>>,
    ) -> Result<Response<UnpackResponse>, Status> {
        let mut requests = request.into_inner();
        let first = requests.message().await?.and_then(|first| first.message);
        let Some(unpack_request::Message::Target(target)) = first else {
            return Err(status::first("the target"));
        };
        let ask = Ask::Unpack(UnpackSession {
            path: target.path,
            keep_owner: target.keep_owner,
            no_overwrite_dir_non_dir: target.no_overwrite_dir_non_dir,
        });
        let (_, session) = self.open(ask).await?;
        files::unpack(session, requests).await.map(Response::new)
    }

    type ConnectStream = ReceiverStream<Result<ConnectResponse, Status>>;

    async fn connect(
        &self,
        request: Request<Streaming<ConnectRequest>>,
    ) -> Result<Response<Self::ConnectStream>, Status> {
        let mut requests = request.into_inner();
        let first = requests.message().await?.and_then(|first| first.message);
        let Some(connect_request::Message::Target(target)) = first else {
            return Err(status::first("the target"));
        };
        let ask = Ask::Connect(ConnectSession {
            host: target.host,
            port: target.port,
        });
        let (_, session) = self.open(ask).await?;
        let (answers, stream) = mpsc::channel(WAITING);
        tokio::spawn(connect::run(session, requests, answers));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    type ConsoleStream = ReceiverStream<Result<ConsoleResponse, Status>>;

    async fn console(
        &self,
        request: Request<Streaming<ConsoleRequest>>,
    ) -> Result<Response<Self::ConsoleStream>, Status> {
        let mut requests = request.into_inner();
        let first = requests.message().await?.and_then(|first| first.message);
        let Some(console_request::Message::Open(open)) = first else {
            return Err(status::first("how the console is opened"));
        };
        let watch = Watch::open(&self.console, &open)?;
        let (answers, stream) = mpsc::channel(console::ROOM);
        tokio::spawn(watch.run(requests, answers, self.moving.clone()));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn get_stats(
        &self,
        request: Request<GetStatsRequest>,
    ) -> Result<Response<GetStatsResponse>, Status> {
        let processes = request.into_inner().processes;
        let (opened, _session) = self.open(Ask::Stats(StatsSession { processes })).await?;
        Ok(Response::new(stats::response(
            opened.stats.unwrap_or_default(),
            processes,
        )))
    }

    async fn pause(
        &self,
        _request: Request<PauseRequest>,
    ) -> Result<Response<PauseResponse>, Status> {
        self.handle.pause().await.map_err(|error| refused(&error))?;
        Ok(Response::new(PauseResponse {}))
    }

    async fn resume(
        &self,
        _request: Request<ResumeRequest>,
    ) -> Result<Response<ResumeResponse>, Status> {
        self.handle
            .resume()
            .await
            .map_err(|error| refused(&error))?;
        Ok(Response::new(ResumeResponse {}))
    }

    async fn resize(
        &self,
        request: Request<ResizeRequest>,
    ) -> Result<Response<ResizeResponse>, Status> {
        let ResizeRequest {
            cpu_cores,
            memory_mb,
        } = request.into_inner();
        let some = |value| (value != 0).then_some(value);
        let resized = self.handle.resize(some(cpu_cores), some(memory_mb)).await;
        resized.map_err(|error| refused(&error))?;
        Ok(Response::new(ResizeResponse {}))
    }
}

fn refused(error: &HandleError) -> Status {
    let text = error.to_string();
    match error {
        HandleError::Denied(_) => Status::failed_precondition(text),
        HandleError::Invalid(_) => Status::invalid_argument(text),
        HandleError::Unsupported(_) => Status::unimplemented(text),
        HandleError::Failed(_) => Status::internal(text),
        HandleError::Gone => Status::unavailable(text),
    }
}
