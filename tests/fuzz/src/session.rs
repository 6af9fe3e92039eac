//! What a guest answers on a session, to the face that clients of a VM call.
//!
//! The first byte chooses the call; the others are the guest's, who then sends no more.

use std::{cell::OnceCell, time::Duration};

use bytes::BytesMut;
use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    runtime::Runtime,
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_stream::iter;
use tonic::{Status, Streaming, transport::Endpoint};
use vmd::{
    agent::Token,
    console::Hub,
    grpc::{Mover, Parked, Service},
    handle::{Asks, Handle},
    live::Live,
    session::MAX_WORDS,
};
use volant_proto::{
    agent::v1::{SessionEnd, SessionOpened},
    vm::v1::{
        ConnectRequest, ConnectTarget, ExecRequest, ExecStart, GetStatsRequest, PackRequest,
        UnpackRequest, UnpackTarget, connect_request, connect_response, exec_request,
        exec_response, pack_response, unpack_request, vm_service_client::VmServiceClient,
    },
};
use volant_session::{Frame, Kind, MAX_PAYLOAD, Reader};

/// A call ends within that, whatever the guest sends.
const DEADLINE: Duration = Duration::from_secs(8);
/// Of a list of processes that is asked for.
const PROCESSES: u32 = 10;

type Client = VmServiceClient<tonic::transport::Channel>;

/// A supervisor's face, its client, and the guest behind it.
struct Face {
    runtime: Runtime,
    client: Client,
    /// What the guest sends on its next session.
    next: mpsc::Sender<Vec<u8>>,
    _kept: (TempDir, watch::Sender<Live>, Asks, Mover),
}

thread_local! {
    static FACE: OnceCell<Face> = const { OnceCell::new() };
}

/// Sessions of each kind. A client gets what the guest sent and no more, an end, and words that no terminal obeys; no call
/// keeps a session's place.
pub fn session(bytes: &[u8]) {
    let Some((call, bytes)) = bytes.split_first() else {
        return;
    };
    FACE.with(|face| {
        let face = face.get_or_init(Face::new);
        face.next
            .try_send(bytes.to_vec())
            .expect("the guest waits for its bytes");
        let client = face.client.clone();
        let said = Said::parse(bytes);
        face.runtime.block_on(async {
            let called = async {
                match call % 5 {
                    0 => exec(client, &said).await,
                    1 => pack(client, &said).await,
                    2 => unpack(client, &said).await,
                    3 => connect(client, &said).await,
                    _ => stats(client, &said).await,
                }
            };
            timeout(DEADLINE, called).await.expect("the call ends");
        });
    });
}

/// What the guest said, as `session.proto` has it.
struct Said {
    opened: Option<SessionOpened>,
    /// The frames after OPENED that are output, an error or an output's end, in their order.
    frames: Vec<Frame>,
    /// The frame after those, if it is END.
    end: Option<SessionEnd>,
}

impl Said {
    fn parse(bytes: &[u8]) -> Self {
        let mut rest = BytesMut::from(bytes);
        let mut next = || volant_session::parse(&mut rest).ok().flatten();
        let opened = next().filter(|frame| frame.kind == Kind::Opened);
        let mut said = Self {
            opened: opened.and_then(|frame| frame.decode().ok()),
            frames: Vec::new(),
            end: None,
        };
        if said.opened.is_some() {
            while let Some(frame) = next() {
                match frame.kind {
                    Kind::Output | Kind::Error | Kind::OutputEnd => said.frames.push(frame),
                    Kind::End => {
                        said.end = frame.decode().ok();
                        break;
                    }
                    _ => break,
                }
            }
        }
        said
    }

    /// The payloads of one kind, of the frames before the first of a kind that a call does not take.
    fn all(&self, kind: Kind, taken: &[Kind]) -> Vec<u8> {
        let taken = self
            .frames
            .iter()
            .take_while(|frame| taken.contains(&frame.kind));
        let wanted = taken.filter(|frame| frame.kind == kind);
        wanted.flat_map(|frame| frame.payload.to_vec()).collect()
    }

    /// Its end, for a call that takes those kinds.
    fn end(&self, taken: &[Kind]) -> Option<&SessionEnd> {
        let fits = self.frames.iter().all(|frame| taken.contains(&frame.kind));
        self.end.as_ref().filter(|_| fits)
    }
}

async fn exec(mut client: Client, said: &Said) {
    const TAKEN: &[Kind] = &[Kind::Output, Kind::Error];
    let start = ExecRequest {
        message: Some(exec_request::Message::Start(ExecStart::default())),
    };
    let Some(mut answers) = begun(client.exec(iter([start])).await, said) else {
        return;
    };
    let (mut stdout, mut stderr, mut exited) = (Vec::new(), Vec::new(), None);
    while let Some(answer) = answers
        .message()
        .await
        .expect("an exec ends by its message")
    {
        assert!(exited.is_none(), "something comes after the end");
        match answer.message.expect("a message") {
            exec_response::Message::Stdout(bytes) => stdout.extend(piece(bytes)),
            exec_response::Message::Stderr(bytes) => stderr.extend(piece(bytes)),
            exec_response::Message::Exited(end) => exited = Some(end),
            exec_response::Message::Started(started) => {
                assert_eq!(Some(started.pid), said.opened.as_ref().map(|it| it.pid));
            }
            exec_response::Message::Moved(_) => panic!("nobody takes over"),
        }
    }
    assert_eq!(stdout, said.all(Kind::Output, TAKEN));
    assert_eq!(stderr, said.all(Kind::Error, TAKEN));
    let exited = exited.expect("an end");
    harmless(&exited.error);
    match said.end(TAKEN) {
        Some(end) => assert_eq!((exited.code, exited.signal), (end.code, end.signal)),
        None => assert!(!exited.error.is_empty(), "a broken session ends well"),
    }
}

async fn pack(mut client: Client, said: &Said) {
    const TAKEN: &[Kind] = &[Kind::Output, Kind::OutputEnd];
    let request = PackRequest {
        path: "/".to_owned(),
        follow: false,
    };
    let Some(mut answers) = begun(client.pack(request).await, said) else {
        return;
    };
    let mut data = Vec::new();
    let ended = drain(&mut answers, |answer| match answer.message {
        Some(pack_response::Message::Chunk(bytes)) => data.extend(piece(bytes)),
        Some(pack_response::Message::Path(_)) => {}
        None => panic!("an empty message"),
    })
    .await;
    assert_eq!(data, said.all(Kind::Output, TAKEN));
    let well = said.end(TAKEN).is_some_and(|end| end.error.is_empty());
    assert_eq!(ended, well, "an archive is whole when the guest says so");
}

async fn unpack(mut client: Client, said: &Said) {
    let target = UnpackRequest {
        message: Some(unpack_request::Message::Target(UnpackTarget::default())),
    };
    match client.unpack(iter([target])).await {
        Ok(answer) => {
            let end = said.end(&[]).expect("no guest's end, and yet unpacked");
            assert_eq!(answer.into_inner().entries, end.entries);
        }
        Err(status) => complaint(&status, said),
    }
}

async fn connect(mut client: Client, said: &Said) {
    let target = ConnectRequest {
        message: Some(connect_request::Message::Target(ConnectTarget::default())),
    };
    let Some(mut answers) = begun(client.connect(iter([target])).await, said) else {
        return;
    };
    let mut data = Vec::new();
    let ended = drain(&mut answers, |answer| match answer.message {
        Some(connect_response::Message::Data(bytes)) => data.extend(piece(bytes)),
        Some(connect_response::Message::Connected(_)) => {}
        None => panic!("an empty message"),
    })
    .await;
    // Nothing is taken after the output's end.
    assert_eq!(data, said.all(Kind::Output, &[Kind::Output]));
    if said.frames.iter().all(|frame| frame.kind == Kind::Output) {
        let well = said.end.as_ref().is_some_and(|end| end.error.is_empty());
        assert_eq!(ended, well, "a connection that broke is told");
    }
}

async fn stats(mut client: Client, said: &Said) {
    let request = GetStatsRequest {
        processes: PROCESSES,
    };
    let answer = match client.get_stats(request).await {
        Ok(answer) => answer.into_inner(),
        Err(status) => return complaint(&status, said),
    };
    let opened = said
        .opened
        .as_ref()
        .expect("no guest's word, and yet known");
    let figures = opened.stats.clone().unwrap_or_default();
    assert_eq!(answer.cpu_busy_ms, figures.cpu_busy_ms);
    harmless(&answer.health);
    assert!(answer.processes.len() <= 10, "more than were asked for");
    for process in &answer.processes {
        harmless(&process.user);
        harmless(&process.command);
    }
    for filesystem in &answer.filesystems {
        harmless(&filesystem.mount_point);
        harmless(&filesystem.kind);
    }
}

/// The answers of a call that the guest opened.
fn begun<T>(
    called: Result<tonic::Response<Streaming<T>>, Status>,
    said: &Said,
) -> Option<Streaming<T>> {
    match called {
        Ok(answers) => {
            assert!(said.opened.is_some(), "a session that no guest opened");
            Some(answers.into_inner())
        }
        Err(status) => {
            assert!(said.opened.is_none(), "{status}");
            complaint(&status, said);
            None
        }
    }
}

/// Takes all answers; gives whether they ended well.
async fn drain<T>(answers: &mut Streaming<T>, mut take: impl FnMut(T)) -> bool {
    loop {
        match answers.message().await {
            Ok(Some(answer)) => take(answer),
            Ok(None) => return true,
            Err(status) => {
                harmless(status.message());
                return false;
            }
        }
    }
}

fn complaint(status: &Status, said: &Said) {
    harmless(status.message());
    let full = status.message().starts_with("the VM has") && said.opened.is_some();
    assert!(!full, "sessions that ended keep their places");
}

fn piece(bytes: Vec<u8>) -> Vec<u8> {
    assert!(bytes.len() <= MAX_PAYLOAD);
    bytes
}

fn harmless(words: &str) {
    assert!(
        words.chars().all(|c| c == '\t' || !c.is_control()),
        "{words:?}"
    );
    // An escape is up to ten bytes of one; a few words of ours stand before.
    assert!(words.len() <= 11 * MAX_WORDS);
}

impl Face {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let folder = tempfile::tempdir().expect("a folder");
        let entered = runtime.enter();
        let vsock = UnixListener::bind(folder.path().join("vsock")).expect("a socket");
        let (next, bytes) = mpsc::channel(1);
        runtime.spawn(guest(vsock, bytes));
        let (live, watched) = watch::channel(Live::default());
        let token = Token::known([7; 32]);
        let (handle, asks) = Handle::new(watched, folder.path().join("vsock"), token);
        let (mover, moving) = Mover::new();
        let service = Service::new(handle, Hub::default(), Parked::default(), moving);
        let socket = folder.path().join("vmd.sock");
        let listener = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
        listener.set_nonblocking(true).expect("a socket's flag");
        runtime.spawn(service.serve(listener, std::future::pending()));
        let connect = tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://vmd").connect_with_connector_lazy(connect);
        drop(entered);
        Self {
            runtime,
            client: VmServiceClient::new(channel),
            next,
            _kept: (folder, live, asks, mover),
        }
    }
}

/// Sends what it is told to, each time on a session of its own.
async fn guest(listener: UnixListener, mut bytes: mpsc::Receiver<Vec<u8>>) {
    while let Ok((stream, _)) = listener.accept().await {
        let Some(bytes) = bytes.recv().await else {
            return;
        };
        tokio::spawn(async move {
            let (read, mut write) = stream.into_split();
            let mut read = BufReader::new(read);
            let mut line = String::new();
            let _ = (&mut read).take(64).read_line(&mut line).await;
            let _ = write.write_all(b"OK 1073741824\n").await;
            let mut reader = Reader::new(read);
            let _ = reader.next().await;
            // The host may leave before it has heard all.
            let _ = write.write_all(&bytes).await;
            let _ = write.shutdown().await;
            // What was not read when a socket is closed would take from the other side what it did not read yet.
            while let Ok(Some(_)) = reader.next().await {}
        });
    }
}
