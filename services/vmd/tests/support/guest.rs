//! A guest's agent as the tests play it: a script for each session, on the Unix socket that a VMM would have.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{
        UnixListener, UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::AbortHandle,
};
use tonic::transport::{Channel, Endpoint};
use vmd::{
    agent::Token,
    console::Hub,
    grpc::{Mover, Parked, Service},
    handle::{Asks, Handle},
    live::Live,
};
use volant_proto::{
    agent::v1::{SessionEnd, SessionOpened, SessionRequest, session_request},
    vm::v1::vm_service_client::VmServiceClient,
};
use volant_session::{Frame, Kind, Reader, Writer};

use super::TOKEN;

/// The agent's end of a session.
pub struct Peer {
    pub ask: session_request::Session,
    pub reader: Reader<BufReader<OwnedReadHalf>>,
    pub writer: Writer<OwnedWriteHalf>,
}

impl Peer {
    /// Answers `CONNECT` and reads OPEN.
    async fn greet(stream: UnixStream) -> Self {
        let (read, mut write) = stream.into_split();
        let mut read = BufReader::new(read);
        let mut line = String::new();
        (&mut read).take(64).read_line(&mut line).await.unwrap();
        assert_eq!(line, "CONNECT 1023\n");
        write.write_all(b"OK 1073741824\n").await.unwrap();
        let mut reader = Reader::new(read);
        let open = reader.next().await.unwrap().unwrap();
        assert_eq!(open.kind, Kind::Open);
        let request: SessionRequest = open.decode().unwrap();
        assert_eq!(request.token, TOKEN);
        let ask = request.session.unwrap();
        Self {
            ask,
            reader,
            writer: Writer(write),
        }
    }

    /// An error is the host's leaving, which is the host's matter.
    pub async fn send(&mut self, frame: Frame) -> bool {
        self.writer.send(&frame).await.is_ok()
    }

    pub async fn opened(&mut self, pid: u32) {
        let opened = SessionOpened {
            pid,
            ..SessionOpened::default()
        };
        self.send(Frame::message(Kind::Opened, &opened)).await;
    }

    pub async fn output(&mut self, bytes: &[u8]) -> bool {
        self.send(Frame::new(Kind::Output, bytes.to_vec())).await
    }

    pub async fn end(&mut self, end: SessionEnd) {
        self.send(Frame::message(Kind::End, &end)).await;
    }

    pub async fn next(&mut self) -> Option<Frame> {
        self.reader.next().await.ok().flatten()
    }

    pub async fn raw(&mut self, bytes: &[u8]) -> bool {
        self.writer.0.write_all(bytes).await.is_ok()
    }
}

/// Plays the agent on `vsock`: `script` has each session.
pub fn play<F>(vsock: &Path, script: impl Fn(Peer) -> F + Send + Sync + 'static) -> AbortHandle
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = UnixListener::bind(vsock).unwrap();
    let script = Arc::new(script);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let script = Arc::clone(&script);
            tokio::spawn(async move { script(Peer::greet(stream).await).await });
        }
    })
    .abort_handle()
}

/// A supervisor's face with a guest behind it.
pub struct Face {
    pub folder: tempfile::TempDir,
    pub hub: Hub,
    pub parked: Parked,
    pub asks: Asks,
    pub socket: PathBuf,
    pub live: watch::Sender<Live>,
    mover: Mover,
}

impl Face {
    pub async fn serve<F>(script: impl Fn(Peer) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let folder = tempfile::tempdir().unwrap();
        let vsock = folder.path().join("vsock");
        play(&vsock, script);
        Self::on(folder)
    }

    /// A face on the guest whose vsock is in that folder.
    pub fn on(folder: tempfile::TempDir) -> Self {
        let vsock = folder.path().join("vsock");
        let (live, watched) = watch::channel(Live::default());
        let (handle, asks) = Handle::new(watched, vsock, Token::known(TOKEN));
        let hub = Hub::default();
        let parked = Parked::default();
        let (mover, moving) = Mover::new();
        let socket = folder.path().join("vmd.sock");
        let listener = listen(&socket);
        let service = Service::new(handle, hub.clone(), parked.clone(), moving);
        tokio::spawn(service.serve(listener, std::future::pending()));
        Self {
            folder,
            hub,
            parked,
            asks,
            socket,
            live,
            mover,
        }
    }

    pub async fn client(&self) -> VmServiceClient<Channel> {
        client(self.socket.clone()).await
    }

    /// Has all move; what is parked then is found again by a new face on the same guest.
    pub fn go(&self) {
        self.mover.go();
    }

    /// Another supervisor with what was parked.
    pub fn succeed(&mut self) {
        let (mover, moving) = Mover::new();
        self.mover = mover;
        let vsock = self.folder.path().join("vsock");
        let (handle, asks) = Handle::new(self.live.subscribe(), vsock, Token::known(TOKEN));
        self.asks = asks;
        self.socket = self.folder.path().join("vmd2.sock");
        let listener = listen(&self.socket);
        let service = Service::new(handle, self.hub.clone(), self.parked.clone(), moving);
        tokio::spawn(service.serve(listener, std::future::pending()));
    }
}

pub async fn client(socket: PathBuf) -> VmServiceClient<Channel> {
    let connect = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move {
            let stream = UnixStream::connect(socket).await?;
            Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
        }
    });
    // What a client that does not read holds is small, so that what the supervisor holds is seen.
    let endpoint = Endpoint::from_static("http://vmd")
        .initial_stream_window_size(64 * 1024)
        .initial_connection_window_size(64 * 1024);
    VmServiceClient::new(endpoint.connect_with_connector(connect).await.unwrap())
}

fn listen(socket: &Path) -> std::os::unix::net::UnixListener {
    let _ = std::fs::remove_file(socket);
    let listener = std::os::unix::net::UnixListener::bind(socket).unwrap();
    listener.set_nonblocking(true).unwrap();
    listener
}
