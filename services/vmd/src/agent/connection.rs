//! Connections of a guest: few at a time, and only those that soon say something sensible.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{Stream, stream};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, Sleep, sleep},
};
use tonic::transport::server::Connected;

use crate::{
    bucket::{Bucket, Rate},
    logs::Logs,
    text::printable,
};

/// The agent needs one, and one more while it comes back.
const MAX_CONNECTIONS: usize = 8;
/// From the connection to the first call that is let through.
const FIRST_CALL: Duration = Duration::from_secs(10);
/// How often bad connections are told.
const TELL: Duration = Duration::from_secs(60);
/// Refusals that a connection may get; more end it. An agent that comes back may meet its old connection a few times.
const REFUSALS: Rate = Rate {
    burst: 20,
    per_second: 1,
};
/// Bytes of a bad connection that are told.
const EXCERPT: usize = 32;

/// Lets connections in, and keeps count of the bad ones. Clones share the count.
#[derive(Clone, Debug)]
pub struct Door {
    slots: Arc<Semaphore>,
    next: Arc<AtomicU64>,
    bad: Arc<Mutex<Bad>>,
    logs: Logs,
}

#[derive(Debug, Default)]
struct Bad {
    untold: u64,
    told: Option<Instant>,
}

/// A connection's identity, which its calls carry.
#[derive(Debug)]
pub struct Identity {
    pub id: u64,
    /// One of its calls was let through.
    pub trusted: AtomicBool,
    refusals: Mutex<Bucket>,
    /// There were too many refusals.
    expelled: AtomicBool,
}

impl Identity {
    /// Counts a call that was refused, at `now` on a clock that does not go back. Answers false when it was one too many:
    /// the connection ends then.
    pub fn refuse(&self, now: Duration) -> bool {
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        let within = refusals.take(1, now);
        if !within {
            self.expelled.store(true, Ordering::Relaxed);
        }
        within
    }
}

/// A connection as its calls see it.
#[derive(Clone, Debug)]
pub struct Caller(pub Arc<Identity>);

impl Door {
    #[must_use]
    pub fn new(logs: Logs) -> Self {
        Self {
            slots: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            next: Arc::default(),
            bad: Arc::default(),
            logs,
        }
    }

    /// The connections that are let in.
    pub fn incoming(self, listener: UnixListener) -> impl Stream<Item = io::Result<Connection>> {
        stream::unfold((self, listener), |(door, listener)| async move {
            loop {
                match listener.accept().await {
                    Ok((io, _)) => match Arc::clone(&door.slots).try_acquire_owned() {
                        Ok(slot) => {
                            let connection = door.let_in(io, slot);
                            return Some((Ok(connection), (door, listener)));
                        }
                        Err(_) => door.refuse("too many connections at once"),
                    },
                    Err(error) => {
                        tracing::warn!("cannot accept a connection of the guest: {error}");
                        // Descriptors may be short: accept would fail again at once.
                        sleep(Duration::from_millis(100)).await;
                    }
                }
            }
        })
    }

    fn let_in(&self, io: UnixStream, slot: OwnedSemaphorePermit) -> Connection {
        let identity = Identity {
            id: self.next.fetch_add(1, Ordering::Relaxed),
            trusted: AtomicBool::new(false),
            refusals: Mutex::new(Bucket::new(REFUSALS, Duration::ZERO)),
            expelled: AtomicBool::new(false),
        };
        Connection {
            io,
            identity: Arc::new(identity),
            deadline: Box::pin(sleep(FIRST_CALL)),
            overdue: false,
            begin: Vec::new(),
            door: self.clone(),
            _slot: slot,
        }
    }

    /// Counts a connection that was dropped; the first is told at once, the others with the next after a minute.
    fn refuse(&self, why: &str) {
        let mut bad = self.bad.lock().unwrap_or_else(PoisonError::into_inner);
        bad.untold += 1;
        if bad.told.is_some_and(|told| told.elapsed() < TELL) {
            return;
        }
        bad.told = Some(Instant::now());
        let count = std::mem::take(&mut bad.untold);
        drop(bad);
        self.logs.warn(format!(
            "guest sent garbage on vsock: {why}; {count} connections dropped"
        ));
    }
}

/// A connection of the guest. It fails when no call of it is let through in time, or when too many were refused.
#[derive(Debug)]
pub struct Connection {
    io: UnixStream,
    identity: Arc<Identity>,
    deadline: Pin<Box<Sleep>>,
    overdue: bool,
    /// The first bytes, to tell what the garbage was.
    begin: Vec<u8>,
    door: Door,
    _slot: OwnedSemaphorePermit,
}

impl Connection {
    fn trusted(&self) -> bool {
        self.identity.trusted.load(Ordering::Relaxed)
    }

    fn expelled(&self) -> bool {
        self.identity.expelled.load(Ordering::Relaxed)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if self.expelled() {
            return self.door.refuse("calls that are not its to make");
        }
        if self.trusted() {
            return;
        }
        let begin = printable(&self.begin, EXCERPT);
        let why = match (self.overdue, begin.as_str()) {
            (true, "") => "nothing for 10 s".to_owned(),
            (true, begin) => format!("no call for 10 s, but '{begin}'"),
            (false, "") => "a connection without a word".to_owned(),
            (false, begin) => format!("'{begin}'"),
        };
        self.door.refuse(&why);
    }
}

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        Caller(Arc::clone(&self.identity))
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.expelled() {
            return Poll::Ready(Err(io::ErrorKind::PermissionDenied.into()));
        }
        if this.trusted() {
            return Pin::new(&mut this.io).poll_read(cx, buf);
        }
        if this.deadline.as_mut().poll(cx).is_ready() {
            this.overdue = true;
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let before = buf.filled().len();
        let read = Pin::new(&mut this.io).poll_read(cx, buf);
        let new = buf.filled().get(before..).unwrap_or_default();
        let room = EXCERPT - this.begin.len();
        this.begin.extend_from_slice(new.get(..room).unwrap_or(new));
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}
