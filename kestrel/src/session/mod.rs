//! Sessions: what the host does in this guest, each on a connection of its own, in frames (`session.proto`).
//!
//! ```text
//! accept ─▶ OPEN ─▶ token? ─▶ exec │ pack │ unpack │ connect │ stats ─▶ OPENED … END
//!             └────────┴──────── REFUSED ◀──────────┘
//! ```
//! A session holds a few frames at most: one whose host does not read holds up the program, the archive or the peer that
//! it serves, and nothing else. A host that closes the connection ends the session.

mod archive;
mod connect;
mod descriptor;
mod direct;
mod exec;
mod feed;
mod kin;
mod listen;
pub mod names;
mod pack;
mod program;
mod spawn;
mod stats;
mod terminal;
mod unpack;

use std::{
    collections::BTreeMap,
    io,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::Semaphore,
    time::{sleep, timeout},
};
use volant_proto::agent::v1::{
    SessionEnd, SessionOpened, SessionRefused, SessionRequest, session_refused::Kind as Why,
    session_request::Session,
};
use volant_session::{Frame, FrameError, Kind, MAX_PAYLOAD, Reader, Writer};

use self::descriptor::Descriptor;
pub use self::listen::listen;
use crate::{logs::Logs, reap::Reaper};

/// How many sessions there are at a time.
const MOST_SESSIONS: usize = 128;
/// With those that have not said yet what they want, or are told that there are too many.
const MOST_CONNECTIONS: usize = 2 * MOST_SESSIONS;
const OPEN_WITHIN: Duration = Duration::from_secs(10);
/// How long the host may take to close after the last frame. One that is closed under what it still sends may lose that
/// frame.
const CLOSED_WITHIN: Duration = Duration::from_secs(2);
/// When there is nothing to accept with: descriptors or memory.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

type Input = Reader<Descriptor>;
type Output = Writer<Descriptor>;

/// What all sessions of a guest share.
#[derive(Debug)]
pub struct Sessions {
    /// What the host proves itself with: of its answer to hello.
    pub token: Vec<u8>,
    /// The workload's environment, without its secrets.
    pub env: BTreeMap<String, String>,
    /// The workload's working directory.
    pub workdir: PathBuf,
    /// Where the guest's `/etc` is.
    pub root: PathBuf,
    pub reaper: Arc<Reaper>,
    /// Takes the output of detached programs.
    pub logs: Arc<Logs>,
    pub facts: Arc<Facts>,
}

/// What a session tells of the workload. Whoever runs it keeps them up to date.
#[derive(Debug, Default)]
pub struct Facts {
    restarts: AtomicU32,
    health: AtomicU8,
}

/// The words of `GuestStats`, by what [`Facts`] has.
const HEALTH: [&str; 4] = ["", "starting", "healthy", "unhealthy"];

impl Facts {
    /// The workload was started again so often in this boot.
    pub fn set_restarts(&self, restarts: u32) {
        self.restarts.store(restarts, Ordering::Relaxed);
    }

    /// There is a health check, and nothing is known yet.
    pub fn set_starting(&self) {
        self.health.store(1, Ordering::Relaxed);
    }

    /// What the health check says.
    pub fn set_healthy(&self, is_healthy: bool) {
        let health = if is_healthy { 2 } else { 3 };
        self.health.store(health, Ordering::Relaxed);
    }

    fn restarts(&self) -> u32 {
        self.restarts.load(Ordering::Relaxed)
    }

    fn health(&self) -> &'static str {
        let health = usize::from(self.health.load(Ordering::Relaxed));
        HEALTH.get(health).copied().unwrap_or_default()
    }
}

/// Why a session is not opened. The message names the act, the object and why.
#[derive(Debug)]
struct Refusal {
    why: Why,
    message: String,
}

impl Refusal {
    fn new(why: Why, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { why, message }
    }

    /// What the system's error says of that act on something that was named in the request.
    fn system(act: &str, error: &io::Error) -> Self {
        let why = match error.kind() {
            io::ErrorKind::NotFound => Why::NotFound,
            io::ErrorKind::InvalidInput => Why::Invalid,
            _ => Why::Unusable,
        };
        Self::new(why, format!("{act}: {error}"))
    }
}

/// How a session goes that was opened: the last frame, or nobody is there to read it.
type Ended = Option<SessionEnd>;

/// An end with these words of what went wrong.
fn failed(error: impl Into<String>) -> Ended {
    Some(SessionEnd {
        error: error.into(),
        ..SessionEnd::default()
    })
}

/// Accepts sessions for as long as it is polled. Only a host is a peer, where the socket can tell.
pub async fn serve(listener: OwnedFd, sessions: Arc<Sessions>) {
    let listener = match Descriptor::new(listener) {
        Ok(listener) => listener,
        Err(error) => {
            return sessions
                .logs
                .say(&format!("cannot serve sessions: {error}"));
        }
    };
    let connections = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let places = Arc::new(Semaphore::new(MOST_SESSIONS));
    let mut is_told = false;
    loop {
        // Never closed.
        let Ok(permit) = Arc::clone(&connections).acquire_owned().await else {
            return;
        };
        let connection = match listen::accept(&listener).await {
            Ok(connection) => connection,
            Err(error) => {
                if !std::mem::replace(&mut is_told, true) {
                    sessions
                        .logs
                        .say(&format!("cannot take a session: {error}"));
                }
                sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        let (sessions, places) = (Arc::clone(&sessions), Arc::clone(&places));
        tokio::spawn(async move {
            let mut input = Reader::new(connection.clone());
            let mut output = Writer(connection.clone());
            let mut within = Some(OPEN_WITHIN);
            while converse(&mut input, &mut output, within, &sessions, &places).await {
                // Whoever keeps a connection says nothing on it until there is something to say.
                within = None;
            }
            // The host closes: it may still be sending what is of no use any more.
            let closed = async {
                while connection
                    .chunk(MAX_PAYLOAD)
                    .await
                    .is_ok_and(|bytes| !bytes.is_empty())
                {}
            };
            let _ = timeout(CLOSED_WITHIN, closed).await;
            drop(permit);
        });
    }
}

/// From OPEN to the last frame: whether another OPEN may come. A host that is gone is told nothing.
async fn converse(
    input: &mut Input,
    output: &mut Output,
    within: Option<Duration>,
    sessions: &Sessions,
    places: &Semaphore,
) -> bool {
    let mut again = false;
    let last = match open(input, within, sessions, places).await {
        Some(Ok((session, _place))) => {
            again = may_follow(&session);
            match hold(session, input, output, sessions).await {
                Ok(Some(end)) => Frame::message(Kind::End, &end),
                Ok(None) => return false,
                Err(refusal) => {
                    again = false;
                    refused(refusal)
                }
            }
        }
        Some(Err(refusal)) => refused(refusal),
        None => return false,
    };
    // A host that is gone needs no last frame.
    let sent = timeout(CLOSED_WITHIN, output.send(&last)).await;
    again && matches!(sent, Ok(Ok(())))
}

/// Whether another session may follow this one on its connection: not where a thread had that for itself, or data went
/// through it to its end.
fn may_follow(session: &Session) -> bool {
    matches!(session, Session::Exec(_) | Session::Stats(_))
}

fn refused(refusal: Refusal) -> Frame {
    let refused = SessionRefused {
        kind: refusal.why.into(),
        message: refusal.message,
    };
    Frame::message(Kind::Refused, &refused)
}

/// What the host wants, and a place for it.
async fn open<'a>(
    input: &mut Input,
    within: Option<Duration>,
    sessions: &Sessions,
    places: &'a Semaphore,
) -> Option<Result<(Session, tokio::sync::SemaphorePermit<'a>), Refusal>> {
    let first = match within {
        Some(within) => timeout(within, input.next()).await,
        None => Ok(next_open(input).await),
    };
    let request = match first {
        Ok(Ok(Some(frame))) if frame.kind == Kind::Open => frame.decode::<SessionRequest>(),
        Ok(Ok(Some(_))) => {
            let message = "a session begins with OPEN";
            return Some(Err(Refusal::new(Why::Invalid, message)));
        }
        Ok(Err(error)) => Err(error),
        Ok(Ok(None)) | Err(_) => return None,
    };
    Some(match request {
        Ok(request) => admit(request, sessions, places),
        Err(error @ (FrameError::Read(_) | FrameError::CutOff)) => {
            sessions
                .logs
                .say(&format!("a session did not begin: {error}"));
            return None;
        }
        Err(error) => Err(Refusal::new(Why::Invalid, error.to_string())),
    })
}

/// The OPEN that follows another session, whose last frames the host sent before it knew of its end.
async fn next_open(input: &mut Input) -> Result<Option<Frame>, FrameError> {
    loop {
        match input.next().await? {
            Some(frame)
                if matches!(
                    frame.kind,
                    Kind::Input | Kind::InputEnd | Kind::Resize | Kind::Signal
                ) => {}
            other => return Ok(other),
        }
    }
}

fn admit<'a>(
    request: SessionRequest,
    sessions: &Sessions,
    places: &'a Semaphore,
) -> Result<(Session, tokio::sync::SemaphorePermit<'a>), Refusal> {
    if sessions.token.is_empty() || !same(&request.token, &sessions.token) {
        return Err(Refusal::new(Why::Denied, "the session's token is wrong"));
    }
    let session = request.session.ok_or_else(|| {
        Refusal::new(
            Why::Invalid,
            "the session is of no kind that this agent knows",
        )
    })?;
    let place = places.try_acquire().map_err(|_| {
        let message = format!("the guest has {MOST_SESSIONS} sessions already");
        Refusal::new(Why::Busy, message)
    })?;
    Ok((session, place))
}

/// Whether they are the same, in a time that does not tell where they differ.
fn same(a: &[u8], b: &[u8]) -> bool {
    let differ = a.iter().zip(b).fold(0, |differ, (a, b)| differ | (a ^ b));
    a.len() == b.len() && std::hint::black_box(differ) == 0
}

async fn hold(
    session: Session,
    input: &mut Input,
    output: &mut Output,
    sessions: &Sessions,
) -> Result<Ended, Refusal> {
    match session {
        Session::Exec(wanted) => exec::run(wanted, input, output, sessions).await,
        Session::Pack(wanted) => pack::run(&wanted, output).await,
        Session::Unpack(wanted) => unpack::run(&wanted, input, output).await,
        Session::Connect(wanted) => connect::run(&wanted, input, output, &sessions.root).await,
        Session::Stats(wanted) => {
            let opened = SessionOpened {
                stats: Some(stats::measure(wanted.processes, sessions)),
                again: true,
                ..SessionOpened::default()
            };
            Ok(answer(output, &opened).await.then(SessionEnd::default))
        }
    }
}

/// Says that the session is open; `false` when nobody is there.
async fn answer(output: &mut Output, opened: &SessionOpened) -> bool {
    output
        .send(&Frame::message(Kind::Opened, opened))
        .await
        .is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_bytes_are_the_same() {
        for (a, b, expected) in [
            (&b"abc"[..], &b"abc"[..], true),
            (b"abc", b"abd", false),
            (b"abc", b"ab", false),
            (b"", b"a", false),
            (b"", b"", true),
        ] {
            assert_eq!(same(a, b), expected);
        }
    }

    #[test]
    fn facts_have_the_words_of_the_contract() {
        let facts = Facts::default();
        assert_eq!(facts.health(), "");
        facts.set_starting();
        assert_eq!(facts.health(), "starting");
        facts.set_healthy(true);
        assert_eq!(facts.health(), "healthy");
        facts.set_healthy(false);
        facts.set_restarts(3);
        assert_eq!((facts.health(), facts.restarts()), ("unhealthy", 3));
    }
}
