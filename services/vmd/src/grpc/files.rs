//! Tars out of the guest and into it.

use bytes::Bytes;
use tokio::sync::mpsc::Sender;
use tonic::{Status, Streaming};
use volant_proto::{
    agent::v1::SessionOpened,
    vm::v1::{
        PackResponse, PackedPath, UnpackRequest, UnpackResponse, pack_response, unpack_request,
    },
};
use volant_session::{Frame, Kind, MAX_PAYLOAD};

use super::status;
use crate::session::{self, Garbage, Session};

/// Sends what is packed, until its end or its client's.
pub(super) async fn pack(
    opened: SessionOpened,
    mut session: Session,
    answers: Sender<Result<PackResponse, Status>>,
) {
    let path = opened.path.unwrap_or_default();
    let head = pack_response::Message::Path(PackedPath {
        is_directory: path.is_directory,
        size: path.size,
    });
    let mut next = Some(Ok(head));
    while let Some(message) = next {
        let last = message.is_err();
        let answer = message.map(|message| PackResponse {
            message: Some(message),
        });
        if answers.send(answer).await.is_err() || last {
            return;
        }
        next = tokio::select! {
            frame = session.next() => packed(frame),
            () = answers.closed() => return,
        };
    }
}

/// What a frame is for the client; nothing at the end.
fn packed(frame: Result<Frame, Garbage>) -> Option<Result<pack_response::Message, Status>> {
    let frame = match frame {
        Ok(frame) => frame,
        Err(garbage) => return Some(Err(status::broken(&garbage))),
    };
    match frame.kind {
        Kind::Output => Some(Ok(pack_response::Message::Chunk(frame.payload.to_vec()))),
        // The end follows.
        Kind::OutputEnd => Some(Ok(pack_response::Message::Chunk(Vec::new()))),
        _ => match session::end(&frame) {
            Ok(end) if end.error.is_empty() => None,
            Ok(end) => Some(Err(status::failed(&end.error))),
            Err(garbage) => Some(Err(status::broken(&garbage))),
        },
    }
}

/// Passes a client's tar on to the guest.
pub(super) async fn unpack(
    mut session: Session,
    mut requests: Streaming<UnpackRequest>,
) -> Result<UnpackResponse, Status> {
    let mut ended = false;
    let mut deaf = false;
    loop {
        let Session { reader, outbox, .. } = &mut session;
        tokio::select! {
            biased;
            frame = reader.next() => {
                let frame = frame.map_err(Garbage::from).and_then(|frame| frame.ok_or(Garbage::Closed));
                let end = frame.and_then(|frame| session::end(&frame));
                let end = end.map_err(|garbage| status::broken(&garbage))?;
                return match end.error.as_str() {
                    // Who ends before the archive does has not read it.
                    "" if !ended && !deaf => Err(status::failed("the guest stopped before the archive's end")),
                    "" => Ok(UnpackResponse { entries: end.entries }),
                    error => Err(status::failed(error)),
                };
            }
            // Why the guest takes no more is in its last frame.
            sent = outbox.flush(), if !outbox.is_empty() && !deaf => deaf = sent.is_err(),
            request = requests.message(), if outbox.is_empty() && !ended => match request? {
                Some(UnpackRequest { message: Some(unpack_request::Message::Chunk(chunk)) }) => {
                    let chunk = Bytes::from(chunk);
                    for at in (0..chunk.len()).step_by(MAX_PAYLOAD) {
                        let piece = chunk.slice(at..chunk.len().min(at + MAX_PAYLOAD));
                        outbox.put(&Frame::new(Kind::Input, piece));
                    }
                }
                Some(_) => return Err(Status::invalid_argument("the target is told once, at first")),
                None => {
                    ended = true;
                    outbox.put(&Frame::new(Kind::InputEnd, Bytes::new()));
                }
            },
        }
    }
}
