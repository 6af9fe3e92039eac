//! Sessions in the guest, from the host's side: a vsock connection each, with frames on it (`session.proto`).
//!
//! The guest is hostile. It can end, stall or corrupt its own sessions; it makes nobody here hold more than a frame or two of
//! each, and what it says in words is cut to size and made printable. What a session's frames mean to a client is
//! [`crate::grpc`]'s matter.

mod outbox;

pub use outbox::Outbox;

use std::{
    io,
    os::fd::AsRawFd as _,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::BytesMut;
use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, recv},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use volant_proto::agent::v1::{
    SESSION_PORT, SessionEnd, SessionOpened, SessionRefused, SessionRequest, session_refused,
    session_request,
};
use volant_session::{Frame, FrameError, Kind, Reader};

use crate::{agent::Token, text::printable};

/// Sessions of one VM at once.
pub const MAX_SESSIONS: usize = 64;
/// From the connection to the answer to OPEN.
const OPEN_DEADLINE: Duration = Duration::from_secs(10);
/// The longest answer of a VMM to `CONNECT`.
const MAX_ANSWER: usize = 64;
/// The longest word of a guest that is shown, in bytes.
pub const MAX_WORDS: usize = 1024;

/// The way to open sessions in one guest. Clones share the limit.
#[derive(Clone, Debug)]
pub struct Sessions(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    vsock: PathBuf,
    token: Token,
    slots: Arc<Semaphore>,
    /// A connection on which the agent waits for the next session: it spares that the way to a new one, which takes the guest
    /// longer than to open a session.
    kept: Mutex<Option<UnixStream>>,
}

/// A session that the guest opened.
#[derive(Debug)]
pub struct Session {
    pub reader: Reader<OwnedReadHalf>,
    pub outbox: Outbox<OwnedWriteHalf>,
    /// Where the connection may go after this session; nowhere: it ends with it.
    home: Option<Sessions>,
    _slot: OwnedSemaphorePermit,
}

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("the VM has {MAX_SESSIONS} sessions already")]
    TooMany,
    #[error("the guest's agent cannot be reached")]
    Unreachable(#[source] io::Error),
    #[error("the guest's agent did not answer within {} s", OPEN_DEADLINE.as_secs())]
    Silent,
    #[error("{message}")]
    Refused {
        kind: session_refused::Kind,
        message: String,
    },
    #[error("the guest's agent does not speak as it should")]
    Garbage(#[from] Garbage),
    #[error("the request is too long for the guest's agent: {0} bytes")]
    TooLong(usize),
}

/// What a guest sent in the place of the next frame.
#[derive(Debug, thiserror::Error)]
pub enum Garbage {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("it sent {0:?} where that makes no sense")]
    Kind(Kind),
    #[error("it closed the connection")]
    Closed,
}

impl Sessions {
    /// Sessions in the guest whose vsock is `vsock`, and whose agent knows `token`.
    #[must_use]
    pub fn new(vsock: PathBuf, token: Token) -> Self {
        Self(Arc::new(Shared {
            vsock,
            token,
            slots: Arc::new(Semaphore::new(MAX_SESSIONS)),
            kept: Mutex::default(),
        }))
    }

    /// Opens a session.
    ///
    /// # Errors
    /// There are too many, the agent cannot be reached, or it refuses.
    pub async fn open(
        &self,
        session: session_request::Session,
    ) -> Result<(SessionOpened, Session), OpenError> {
        let slot = self.slot()?;
        let has_stats = matches!(session, session_request::Session::Stats(_));
        let request = Frame::message(
            Kind::Open,
            &SessionRequest {
                token: self.0.token.as_bytes().to_vec(),
                session: Some(session),
            },
        );
        if request.payload.len() > volant_session::MAX_PAYLOAD {
            return Err(OpenError::TooLong(request.payload.len()));
        }
        let opened = timeout(OPEN_DEADLINE, self.ask(&request, slot)).await;
        let (mut opened, session) = opened.unwrap_or(Err(OpenError::Silent))?;
        if !has_stats {
            // A frame can have statistics that take some megabytes: with nobody to read them they go before another
            // session's come.
            opened.stats = None;
        }
        Ok((opened, session))
    }

    /// A session whose connection was opened by an earlier supervisor.
    ///
    /// # Errors
    /// There are too many.
    pub fn resume(
        &self,
        connection: UnixStream,
        received: BytesMut,
        unsent: BytesMut,
    ) -> Result<Session, OpenError> {
        let slot = self.slot()?;
        let (read, write) = connection.into_split();
        Ok(Session {
            reader: Reader::with_rest(read, received),
            outbox: Outbox::with_rest(write, unsent),
            home: None,
            _slot: slot,
        })
    }

    fn slot(&self) -> Result<OwnedSemaphorePermit, OpenError> {
        let slot = Arc::clone(&self.0.slots).try_acquire_owned();
        slot.map_err(|_| OpenError::TooMany)
    }

    async fn ask(
        &self,
        request: &Frame,
        slot: OwnedSemaphorePermit,
    ) -> Result<(SessionOpened, Session), OpenError> {
        let (connection, received) = match self.kept() {
            Some(connection) => (connection, BytesMut::new()),
            None => self.connect().await.map_err(OpenError::Unreachable)?,
        };
        let (read, write) = connection.into_split();
        let mut session = Session {
            reader: Reader::with_rest(read, received),
            outbox: Outbox::new(write),
            home: None,
            _slot: slot,
        };
        session.outbox.put(request);
        let sent = session.outbox.flush().await;
        sent.map_err(OpenError::Unreachable)?;
        let frame = session.next().await?;
        match frame.kind {
            Kind::Opened => {
                let opened: SessionOpened = frame.decode().map_err(Garbage::Frame)?;
                session.home = opened.again.then(|| self.clone());
                Ok((opened, session))
            }
            Kind::Refused => {
                let refused: SessionRefused = frame.decode().map_err(Garbage::Frame)?;
                Err(OpenError::Refused {
                    kind: refused.kind(),
                    message: words(&refused.message),
                })
            }
            kind => Err(Garbage::Kind(kind).into()),
        }
    }

    /// A connection of an earlier session, if there is one that the agent has not closed.
    fn kept(&self) -> Option<UnixStream> {
        let connection = self.keeper().take()?;
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        // An agent has nothing to say here.
        let is_open = recv(connection.as_raw_fd(), &mut [0], flags) == Err(Errno::EAGAIN);
        is_open.then_some(connection)
    }

    fn keeper(&self) -> MutexGuard<'_, Option<UnixStream>> {
        self.0.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection to the agent, and what came on it already.
    async fn connect(&self) -> io::Result<(UnixStream, BytesMut)> {
        let mut connection = UnixStream::connect(&self.0.vsock).await?;
        let hello = format!("CONNECT {SESSION_PORT}\n");
        connection.write_all(hello.as_bytes()).await?;
        let mut answer = BytesMut::with_capacity(MAX_ANSWER);
        loop {
            if let Some(end) = answer.iter().position(|byte| *byte == b'\n') {
                let line = answer.split_to(end + 1);
                if line.starts_with(b"OK ") {
                    return Ok((connection, answer));
                }
                return Err(refused(&format!(
                    "the VMM answers '{}'",
                    printable(&line, MAX_ANSWER)
                )));
            }
            if answer.len() >= MAX_ANSWER {
                return Err(refused("the VMM does not answer in one line"));
            }
            let room = MAX_ANSWER - answer.len();
            let mut limited = (&mut connection).take(u64::try_from(room).unwrap_or(0));
            if limited.read_buf(&mut answer).await? == 0 {
                return Err(refused("it does not listen"));
            }
        }
    }
}

impl Session {
    /// The next frame of a session that has not ended. May be dropped at its await.
    ///
    /// # Errors
    /// What comes is no frame, or the connection ended.
    pub async fn next(&mut self) -> Result<Frame, Garbage> {
        self.reader.next().await?.ok_or(Garbage::Closed)
    }

    /// Keeps the connection for the next session, if it can have another. Call after [`Kind::End`].
    pub fn give_back(self) {
        let Self {
            reader,
            outbox,
            home,
            ..
        } = self;
        let (Some(home), true, true) = (home, reader.rest().is_empty(), outbox.is_empty()) else {
            return;
        };
        let Ok(connection) = reader.into_parts().0.reunite(outbox.into_inner()) else {
            return;
        };
        home.keeper().get_or_insert(connection);
    }
}

/// How a session ended, by the guest's word.
///
/// # Errors
/// The frame is none that ends a session.
pub fn end(frame: &Frame) -> Result<SessionEnd, Garbage> {
    if frame.kind != Kind::End {
        return Err(Garbage::Kind(frame.kind));
    }
    let mut end: SessionEnd = frame.decode()?;
    end.error = words(&end.error);
    Ok(end)
}

/// A guest's words, fit to be shown.
#[must_use]
pub fn words(text: &str) -> String {
    printable(text.as_bytes(), MAX_WORDS)
}

fn refused(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionRefused, why.to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use volant_proto::agent::v1::{GuestStats, PackSession, StatsSession};
    use volant_session::Writer;

    use super::*;

    fn sessions(folder: &tempfile::TempDir) -> Sessions {
        Sessions::new(folder.path().join("vsock"), Token::known([7; 32]))
    }

    #[tokio::test(start_paused = true)]
    async fn an_agent_that_says_nothing_is_given_up_on() {
        let folder = tempfile::tempdir().unwrap();
        let _listener = UnixListener::bind(folder.path().join("vsock")).unwrap();
        let sessions = sessions(&folder);
        let ask = session_request::Session::Stats(StatsSession { processes: 0 });
        let error = sessions.open(ask).await.unwrap_err();
        assert!(matches!(error, OpenError::Silent), "{error}");
        assert_eq!(sessions.0.slots.available_permits(), MAX_SESSIONS);
    }

    #[tokio::test]
    async fn a_vmm_that_does_not_connect_is_told_of() {
        let folder = tempfile::tempdir().unwrap();
        let listener = tokio::net::UnixListener::bind(folder.path().join("vsock")).unwrap();
        for (answer, expected) in [
            (&b""[..], "it does not listen"),
            (b"NO\x1b[1m\n", "the VMM answers 'NO\\u{1b}[1m'"),
            (&[b'x'; 200], "does not answer in one line"),
        ] {
            let vmm = async {
                let (mut vmm, _) = listener.accept().await.unwrap();
                let mut asked = [0; 13];
                vmm.read_exact(&mut asked).await.unwrap();
                assert_eq!(&asked, b"CONNECT 1023\n");
                vmm.write_all(answer).await.unwrap();
            };
            let sessions = sessions(&folder);
            let ask = session_request::Session::Stats(StatsSession { processes: 0 });
            let ((), opened) = tokio::join!(vmm, sessions.open(ask));
            let error = volant_service::chain(&opened.unwrap_err());
            assert!(error.contains(expected), "{error}");
        }
    }

    #[tokio::test]
    async fn a_connection_is_kept_for_the_next_session_until_the_guest_closes_it() {
        let folder = tempfile::tempdir().unwrap();
        let listener = tokio::net::UnixListener::bind(folder.path().join("vsock")).unwrap();
        let sessions = sessions(&folder);
        let ask = || {
            let ask = session_request::Session::Stats(StatsSession { processes: 0 });
            sessions.open(ask)
        };
        let accept = async || {
            let (mut vmm, _) = listener.accept().await.unwrap();
            vmm.read_exact(&mut [0; 13]).await.unwrap();
            vmm.write_all(b"OK 5\n").await.unwrap();
            vmm
        };
        let answer = async |vmm: &mut UnixStream, again| {
            let (read, write) = vmm.split();
            let request = Reader::new(read).next().await.unwrap().unwrap();
            assert_eq!(request.kind, Kind::Open);
            let opened = SessionOpened {
                again,
                ..SessionOpened::default()
            };
            let mut writer = volant_session::Writer(write);
            let frame = Frame::message(Kind::Opened, &opened);
            writer.send(&frame).await.unwrap();
        };
        let first = async {
            let mut vmm = accept().await;
            answer(&mut vmm, true).await;
            vmm
        };
        let (mut vmm, opened) = tokio::join!(first, ask());
        opened.unwrap().1.give_back();
        // The same connection, whose guest wants no further one.
        let ((), opened) = tokio::join!(answer(&mut vmm, false), ask());
        opened.unwrap().1.give_back();
        let (mut other, opened) = tokio::join!(
            async {
                let mut vmm = accept().await;
                answer(&mut vmm, true).await;
                vmm
            },
            ask()
        );
        // What is not sent yet belongs to the session that ended.
        let mut session = opened.unwrap().1;
        session.outbox.put(&Frame::new(Kind::InputEnd, ""));
        session.give_back();
        assert_eq!(other.read(&mut [0]).await.unwrap(), 0);
        let third = async {
            let mut vmm = accept().await;
            answer(&mut vmm, true).await;
            vmm
        };
        let (vmm, opened) = tokio::join!(third, ask());
        opened.unwrap().1.give_back();
        drop(vmm);
        let fourth = async {
            let mut vmm = accept().await;
            answer(&mut vmm, false).await;
        };
        let ((), opened) = tokio::join!(fourth, ask());
        opened.unwrap();
    }

    #[tokio::test]
    async fn statistics_that_nobody_asked_for_are_not_kept() {
        let folder = tempfile::tempdir().unwrap();
        let listener = tokio::net::UnixListener::bind(folder.path().join("vsock")).unwrap();
        let sessions = sessions(&folder);
        let asked = [
            session_request::Session::Stats(StatsSession { processes: 1 }),
            session_request::Session::Pack(PackSession::default()),
        ];
        for (ask, kept) in asked.into_iter().zip([true, false]) {
            let guest = async {
                let (mut guest, _) = listener.accept().await.unwrap();
                let mut asked = [0; 13];
                guest.read_exact(&mut asked).await.unwrap();
                guest.write_all(b"OK 1\n").await.unwrap();
                let opened = SessionOpened {
                    stats: Some(GuestStats::default()),
                    ..SessionOpened::default()
                };
                let mut writer = Writer(&mut guest);
                let opened = Frame::message(Kind::Opened, &opened);
                writer.send(&opened).await.unwrap();
                guest
            };
            let (_guest, opened) = tokio::join!(guest, sessions.open(ask));
            assert_eq!(opened.unwrap().0.stats.is_some(), kept);
        }
    }
}
