//! A guest's sessions in this process, over a Unix socket, and a host that comes to them.
//!
//! The guest is a thread of its own, and there is one for all tests: it reaps all children of this process, so that no
//! test may start one itself.

use std::{
    collections::BTreeMap,
    fs,
    os::{fd::OwnedFd, unix::net::UnixListener},
    path::PathBuf,
    sync::{Arc, LazyLock, mpsc},
    thread,
    time::{Duration, Instant},
};

use kestrel::{
    Logs, Reaper,
    session::{Facts, Sessions, serve},
};
use tokio::net::{
    UnixStream,
    unix::{OwnedReadHalf, OwnedWriteHalf},
};
use volant_proto::agent::v1::{
    ConnectSession, ExecSession, PackSession, SessionEnd, SessionOpened, SessionRefused,
    SessionRequest, UnpackSession, session_request::Session,
};
use volant_session::{Frame, Kind, Reader, Writer};

pub const TOKEN: &[u8] = b"a token of this boot";
pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct Guest {
    pub socket: PathBuf,
    pub logs: Arc<Logs>,
    pub facts: Arc<Facts>,
    /// Nothing but what keeps the socket's folder.
    _folder: tempfile::TempDir,
}

pub static GUEST: LazyLock<Guest> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("sessions");
    let listener = UnixListener::bind(&socket).unwrap();
    let (logs, facts) = (Arc::new(Logs::default()), Arc::new(Facts::default()));
    let (ready, is_ready) = mpsc::channel();
    let (guest_logs, guest_facts) = (Arc::clone(&logs), Arc::clone(&facts));
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let sessions = Sessions {
                token: TOKEN.to_vec(),
                env: BTreeMap::from([("OF_WORKLOAD".to_owned(), "yes".to_owned())]),
                workdir: "/usr".into(),
                root: "/".into(),
                reaper: Reaper::start().unwrap(),
                logs: guest_logs,
                facts: guest_facts,
            };
            ready.send(()).unwrap();
            serve(OwnedFd::from(listener), Arc::new(sessions)).await;
        });
    });
    is_ready.recv().unwrap();
    Guest {
        socket,
        logs,
        facts,
        _folder: folder,
    }
});

/// The host's end of a session.
pub struct Client {
    pub reader: Reader<OwnedReadHalf>,
    pub writer: Writer<OwnedWriteHalf>,
}

/// What came until the last frame.
#[derive(Debug, Default)]
pub struct Done {
    pub output: Vec<u8>,
    pub error: Vec<u8>,
    pub end: SessionEnd,
}

impl Done {
    pub fn text(&self) -> String {
        String::from_utf8(self.output.clone()).unwrap()
    }

    pub fn exit(&self) -> (u32, u32) {
        assert_eq!(self.end.error, "");
        (self.end.code, self.end.signal)
    }
}

pub async fn within<F: Future>(what: F) -> F::Output {
    tokio::time::timeout(PATIENCE, what).await.unwrap()
}

impl Client {
    pub async fn connect() -> Self {
        let stream = UnixStream::connect(&GUEST.socket).await.unwrap();
        let (reader, writer) = stream.into_split();
        Self {
            reader: Reader::new(reader),
            writer: Writer(writer),
        }
    }

    pub async fn open(session: Session) -> Result<(Self, SessionOpened), SessionRefused> {
        let mut client = Self::connect().await;
        let opened = client.ask(session).await?;
        Ok((client, opened))
    }

    /// Opens a session on this connection.
    pub async fn ask(&mut self, session: Session) -> Result<SessionOpened, SessionRefused> {
        let request = SessionRequest {
            token: TOKEN.to_vec(),
            session: Some(session),
        };
        self.send(Frame::message(Kind::Open, &request)).await;
        let answer = self.next().await.expect("an answer to OPEN");
        match answer.kind {
            Kind::Opened => Ok(answer.decode().unwrap()),
            Kind::Refused => {
                assert!(self.next().await.is_none());
                Err(answer.decode().unwrap())
            }
            kind => panic!("{kind:?} is no answer"),
        }
    }

    pub async fn send(&mut self, frame: Frame) {
        within(self.writer.send(&frame)).await.unwrap();
    }

    pub async fn input(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(volant_session::MAX_PAYLOAD) {
            self.send(Frame::new(Kind::Input, chunk.to_vec())).await;
        }
    }

    pub async fn end_input(&mut self) {
        self.send(Frame::new(Kind::InputEnd, Vec::new())).await;
    }

    pub async fn signal(&mut self, number: i32) {
        let bytes = number.to_le_bytes().to_vec();
        self.send(Frame::new(Kind::Signal, bytes)).await;
    }

    pub async fn next(&mut self) -> Option<Frame> {
        within(self.reader.next()).await.unwrap()
    }

    /// Reads until the output contains `text`; gives all of it.
    pub async fn until(&mut self, text: &str) -> String {
        let mut all = String::new();
        while !all.contains(text) {
            let frame = self
                .next()
                .await
                .unwrap_or_else(|| panic!("it ended: {all}"));
            match frame.kind {
                Kind::Output => {}
                Kind::Error => continue,
                kind => panic!("{kind:?} after {all}"),
            }
            all.push_str(&String::from_utf8_lossy(&frame.payload));
        }
        all
    }

    /// Reads to the last frame.
    pub async fn done(mut self) -> Done {
        self.last().await
    }

    /// Reads to the last frame, and keeps the connection.
    pub async fn last(&mut self) -> Done {
        let mut done = Done::default();
        loop {
            let frame = self.next().await.expect("END before the connection's end");
            match frame.kind {
                Kind::Output => done.output.extend(&frame.payload),
                Kind::Error => done.error.extend(&frame.payload),
                Kind::OutputEnd => {}
                Kind::End => {
                    done.end = frame.decode().unwrap();
                    return done;
                }
                kind => panic!("{kind:?} from the guest"),
            }
        }
    }
}

pub fn sh(script: &str) -> ExecSession {
    command(&["/bin/sh", "-c", script])
}

pub fn command(words: &[&str]) -> ExecSession {
    ExecSession {
        command: words.iter().map(|word| (*word).to_owned()).collect(),
        ..ExecSession::default()
    }
}

pub async fn exec(wanted: ExecSession) -> Result<(Client, SessionOpened), SessionRefused> {
    Client::open(Session::Exec(wanted)).await
}

/// Runs it to its end.
pub async fn run(wanted: ExecSession) -> Done {
    exec(wanted).await.unwrap().0.done().await
}

pub async fn connect(host: &str, port: u16) -> Result<Client, SessionRefused> {
    let wanted = ConnectSession {
        host: host.to_owned(),
        port: port.into(),
    };
    Ok(Client::open(Session::Connect(wanted)).await?.0)
}

pub async fn pack(path: &str, follow: bool) -> Result<(Client, SessionOpened), SessionRefused> {
    let path = path.to_owned();
    Client::open(Session::Pack(PackSession { path, follow })).await
}

pub async fn unpack(wanted: UnpackSession, archive: &[u8]) -> Result<SessionEnd, SessionRefused> {
    let (mut client, _) = Client::open(Session::Unpack(wanted)).await?;
    for chunk in archive.chunks(volant_session::MAX_PAYLOAD) {
        // One that fails early does not read on.
        let frame = Frame::new(Kind::Input, chunk.to_vec());
        if within(client.writer.send(&frame)).await.is_err() {
            break;
        }
    }
    let end = Frame::new(Kind::InputEnd, Vec::new());
    let _ = within(client.writer.send(&end)).await;
    Ok(client.done().await.end)
}

/// Waits until it is so.
#[track_caller]
pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) -> impl Future<Output = ()> {
    let deadline = Instant::now() + PATIENCE;
    let what = what.to_owned();
    async move {
        while !is_so() {
            assert!(Instant::now() < deadline, "not in time: {what}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// The living processes that have `marker` among their arguments.
pub fn processes_with(marker: &str) -> Vec<u32> {
    fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid: &u32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line)
                .split('\0')
                .any(|word| word == marker)
        })
        .collect()
}
