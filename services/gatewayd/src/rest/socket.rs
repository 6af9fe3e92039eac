//! WebSockets of sessions: taken, bounded, kept alive, and closed with a word.
//!
//! A session reads from its client only what it can pass on, and takes from the guest only what its client takes: a slow
//! one slows itself.

use std::time::Duration;

use axum::extract::ws::{
    CloseFrame, Message, Utf8Bytes, WebSocket, WebSocketUpgrade, close_code,
    rejection::WebSocketUpgradeRejection,
};
use axum::response::Response;
use bytes::Bytes;
use futures_util::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use serde::Serialize;
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval_at, timeout, timeout_at},
};
use tracing::Instrument;

use crate::{Gateway, Problem, Session, problem};

/// The most that a message carries: a channel's byte, and a piece of data.
pub const MAX_MESSAGE: usize = PIECE + 1;
/// The most data in a message, in bytes.
pub const PIECE: usize = 64 * 1024;
/// Messages that wait for a client that reads slowly; then what makes them waits.
const AHEAD: usize = 4;
const PING: Duration = Duration::from_secs(20);
/// After so long without a message or a pong, a client is gone.
const SILENCE: Duration = Duration::from_secs(60);
/// What a client may take to read the last messages.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// The request to become a WebSocket.
pub type Upgrade = Result<WebSocketUpgrade, WebSocketUpgradeRejection>;

/// What a session tells its client. Waits while the client is behind; what is told to one that is gone is lost.
#[derive(Clone, Debug)]
pub struct Outgoing(mpsc::Sender<Message>);

/// What a client says.
#[derive(Debug)]
pub struct Incoming {
    stream: SplitStream<WebSocket>,
    heard: Instant,
    /// Not a sender of its own, which would keep the socket open.
    out: mpsc::WeakSender<Message>,
}

/// Something that a client said.
#[derive(Debug)]
pub enum Said {
    Binary(Bytes),
    Text(Utf8Bytes),
    /// It closed the socket, went away, broke the rules of WebSockets, or fell silent.
    Gone,
}

/// Room for one message.
#[derive(Debug)]
pub struct Room<'a>(mpsc::Permit<'a, Message>);

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// All was said.
    Done,
    /// The client is gone.
    Gone,
    /// This service ends.
    Ending,
}

#[derive(Serialize)]
struct Failure<'a> {
    problem: problem::Body<'a>,
}

/// The upgrade, or why there is none.
pub fn wanted(upgrade: Upgrade) -> Result<WebSocketUpgrade, Problem> {
    upgrade.map_err(|rejection| {
        let detail = format!("this path is a WebSocket: {}", rejection.body_text());
        Problem::invalid(detail)
    })
}

/// Answers the upgrade, and carries the session out once the client has its answer.
pub fn accept<W>(
    gateway: &Gateway,
    upgrade: WebSocketUpgrade,
    protocol: &'static str,
    place: Session,
    work: impl FnOnce(Incoming, Outgoing) -> W + Send + 'static,
) -> Response
where
    W: Future<Output = End> + Send,
{
    let ending = gateway.ending().clone();
    let span = tracing::Span::current();
    upgrade
        .protocols([protocol])
        .max_message_size(MAX_MESSAGE)
        .max_frame_size(MAX_MESSAGE)
        .on_upgrade(move |socket| {
            let session = async move {
                let _place = place;
                let (sink, stream) = socket.split();
                let (out, messages) = mpsc::channel(AHEAD);
                let incoming = Incoming {
                    stream,
                    heard: Instant::now(),
                    out: out.downgrade(),
                };
                let work = async {
                    let work = work(incoming, Outgoing(out));
                    tokio::select! {
                        end = work => end,
                        () = ending.cancelled() => End::Ending,
                    }
                };
                carry(work, sink, messages).await;
            };
            session.instrument(span)
        })
}

/// Writes what the work says until the work is done and all is said, or the client is gone.
async fn carry(
    work: impl Future<Output = End>,
    mut sink: SplitSink<WebSocket, Message>,
    mut messages: mpsc::Receiver<Message>,
) {
    let end = {
        let writer = write(&mut sink, &mut messages);
        tokio::pin!(work, writer);
        tokio::select! {
            end = &mut work => {
                match end {
                    End::Gone => end,
                    End::Done | End::Ending => match timeout(LAST_WORDS, writer).await {
                        Ok(Ok(())) => end,
                        Ok(Err(_)) | Err(_) => End::Gone,
                    },
                }
            }
            // It cannot be written to: nobody is there.
            _ = &mut writer => End::Gone,
        }
    };
    let (code, reason) = match end {
        End::Done => (close_code::NORMAL, ""),
        End::Ending => (close_code::RESTART, "the service is ending; connect again"),
        End::Gone => {
            tracing::debug!("a session's client is gone");
            return;
        }
    };
    let close = Message::Close(Some(CloseFrame {
        code,
        reason: reason.into(),
    }));
    // The client may be faster.
    let _ = timeout(LAST_WORDS, sink.send(close)).await;
}

/// Until nobody has anything to say.
async fn write(
    sink: &mut SplitSink<WebSocket, Message>,
    messages: &mut mpsc::Receiver<Message>,
) -> Result<(), axum::Error> {
    let mut pings = interval_at(Instant::now() + PING, PING);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            message = messages.recv() => match message {
                Some(message) => sink.send(message).await?,
                None => return Ok(()),
            },
            _ = pings.tick() => sink.send(Message::Ping(Bytes::new())).await?,
        }
    }
}

impl Outgoing {
    /// Room for one message; a client that is gone has no more.
    pub async fn room(&self) -> Option<Room<'_>> {
        self.0.reserve().await.ok().map(Room)
    }

    pub async fn text(&self, value: &impl Serialize) {
        if let Some(room) = self.room().await {
            room.text(value);
        }
    }

    /// Tells data, in messages that are not too large, each behind these bytes. The first one takes the room.
    pub async fn data(&self, room: Room<'_>, channel: &[u8], data: Vec<u8>) {
        if channel.is_empty() && data.len() <= PIECE {
            // As it is: no copy.
            return room.binary(data.into());
        }
        let mut room = Some(room);
        for piece in data.chunks(PIECE) {
            let Some(room) = (match room.take() {
                Some(room) => Some(room),
                None => self.room().await,
            }) else {
                return;
            };
            room.binary([channel, piece].concat().into());
        }
    }

    pub async fn problem(&self, problem: &Problem) {
        tracing::info!("a session failed: {problem}");
        self.text(&Failure {
            problem: problem.body(),
        })
        .await;
    }
}

impl Room<'_> {
    pub fn text(self, value: &impl Serialize) {
        self.0.send(Message::Text(json(value)));
    }

    pub fn binary(self, bytes: Bytes) {
        self.0.send(Message::Binary(bytes));
    }
}

fn json(value: &impl Serialize) -> Utf8Bytes {
    serde_json::to_string(value)
        .expect("a struct of texts and numbers is always JSON")
        .into()
}

impl Incoming {
    /// What the client says next. Nothing is lost when this is dropped before it is there.
    pub async fn next(&mut self) -> Said {
        loop {
            let Ok(message) = timeout_at(self.heard + SILENCE, self.stream.next()).await else {
                if self.is_behind() {
                    self.hold();
                    continue;
                }
                return Said::Gone;
            };
            self.hold();
            match message {
                Some(Ok(Message::Binary(bytes))) => return Said::Binary(bytes),
                Some(Ok(Message::Text(text))) => return Said::Text(text),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Close(_))) | None => return Said::Gone,
                Some(Err(error)) => {
                    tracing::debug!("cannot read from a session's client: {error}");
                    return Said::Gone;
                }
            }
        }
    }

    /// To be called while nothing is read on purpose: the client's silence does not count then.
    pub fn hold(&mut self) {
        self.heard = Instant::now();
    }

    /// Whether it is there, and reads slowly: it sees a ping only behind what waits for it.
    fn is_behind(&self) -> bool {
        let out = self.out.upgrade();
        out.is_some_and(|out| out.capacity() == 0)
    }
}
