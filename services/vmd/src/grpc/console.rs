//! The serial console for one client.

use tokio::sync::mpsc::{PermitIterator, Sender};
use tonic::{Status, Streaming};
use volant_proto::vm::v1::{
    ConsoleOpen, ConsoleRequest, ConsoleResponse, ConsoleStolen, console_request,
    console_response::Message,
};

use super::{moving::Moving, status};
use crate::console::{Chunk, Hub, Reader, Writer};

/// What is lost, and what comes.
pub(super) const ROOM: usize = 2;

type Answer = Result<ConsoleResponse, Status>;

/// A client's place at the console.
pub(super) struct Watch {
    reader: Reader,
    writer: Option<Writer>,
    follow: bool,
}

impl Watch {
    pub(super) fn open(hub: &Hub, open: &ConsoleOpen) -> Result<Self, Status> {
        let writer = match open.write {
            true => Some(hub.writer(open.steal).map_err(status::cannot_write)?),
            false => None,
        };
        let scrollback = usize::try_from(open.scrollback_bytes).unwrap_or(usize::MAX);
        Ok(Self {
            reader: hub.reader(scrollback),
            writer,
            follow: !open.no_follow,
        })
    }

    /// Tells the client what the console says, until either ends.
    pub(super) async fn run(
        mut self,
        mut requests: Streaming<ConsoleRequest>,
        answers: Sender<Answer>,
        mut moving: Moving,
    ) {
        let mut heard_all = false;
        loop {
            tokio::select! {
                biased;
                () = moving.now() => {
                    let _ = answers.send(Err(status::moved())).await;
                    return;
                }
                () = stolen(&mut self.writer) => {
                    self.writer = None;
                    let told = Ok(response(Message::Stolen(ConsoleStolen {})));
                    if answers.send(told).await.is_err() {
                        return;
                    }
                }
                request = requests.message(), if !heard_all => match request {
                    Ok(Some(request)) => self.take(request),
                    Ok(None) => {
                        heard_all = true;
                        self.writer = None;
                    }
                    Err(_) => return,
                },
                next = next(&mut self.reader, self.follow, &answers) => {
                    let Some((room, chunk)) = next else { return };
                    let lost = (chunk.lost > 0).then_some(Message::LostBytes(chunk.lost));
                    let messages = lost.into_iter().chain([Message::Output(chunk.bytes)]);
                    for (slot, message) in room.zip(messages) {
                        slot.send(Ok(response(message)));
                    }
                }
            }
        }
    }

    fn take(&self, request: ConsoleRequest) {
        if let (Some(console_request::Message::Input(bytes)), Some(writer)) =
            (request.message, &self.writer)
        {
            // That somebody took the writing is told by `stolen`.
            let _ = writer.write(&bytes);
        }
    }
}

fn response(message: Message) -> ConsoleResponse {
    ConsoleResponse {
        message: Some(message),
    }
}

/// Never resolves for who does not write.
async fn stolen(writer: &mut Option<Writer>) {
    match writer {
        Some(writer) => writer.stolen().await,
        None => std::future::pending().await,
    }
}

/// What comes next, and room for it. Nothing is taken from the ring before there is room: whoever does not read loses there.
async fn next<'a>(
    reader: &mut Reader,
    follow: bool,
    answers: &'a Sender<Answer>,
) -> Option<(PermitIterator<'a, Answer>, Chunk)> {
    let room = answers.reserve_many(ROOM).await.ok()?;
    let chunk = match follow {
        true => reader.next().await?,
        false => Some(reader.now()).filter(|chunk| !chunk.bytes.is_empty())?,
    };
    Some((room, chunk))
}
