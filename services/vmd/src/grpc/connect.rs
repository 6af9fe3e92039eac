//! A connection to a TCP port of the guest. Each side ends by itself; it is over when both have.

use bytes::Bytes;
use tokio::sync::mpsc::Sender;
use tonic::{Status, Streaming};
use volant_proto::vm::v1::{
    ConnectRequest, ConnectResponse, Connected, connect_request, connect_response::Message,
};
use volant_session::{Frame, Kind, MAX_PAYLOAD};

use super::status;
use crate::session::{self, Garbage, Session};

type Answer = Result<ConnectResponse, Status>;

/// Carries data both ways.
pub(super) async fn run(
    mut session: Session,
    mut requests: Streaming<ConnectRequest>,
    answers: Sender<Answer>,
) {
    let mut next = Some(Message::Connected(Connected {}));
    let mut heard_all = false;
    let mut said_all = false;
    let mut deaf = false;
    while !(heard_all && said_all && (deaf || session.outbox.is_empty()) && next.is_none()) {
        let Session { reader, outbox, .. } = &mut session;
        tokio::select! {
            biased;
            () = answers.closed() => return,
            slot = answers.reserve(), if next.is_some() => {
                let Ok(slot) = slot else { return };
                slot.send(Ok(ConnectResponse { message: next.take() }));
            }
            frame = reader.next(), if next.is_none() => {
                let frame = frame.map_err(Garbage::from).and_then(|frame| frame.ok_or(Garbage::Closed));
                match frame.and_then(|frame| heard(&frame)) {
                    Ok(Heard::Data(_)) if said_all => return,
                    Ok(Heard::Data(data)) => next = Some(Message::Data(data)),
                    Ok(Heard::End) => {
                        said_all = true;
                        next = Some(Message::Data(Vec::new()));
                    }
                    Ok(Heard::Over) => return,
                    Ok(Heard::Failed(error)) => {
                        let _ = answers.send(Err(status::failed(&error))).await;
                        return;
                    }
                    Err(garbage) => {
                        let _ = answers.send(Err(status::broken(&garbage))).await;
                        return;
                    }
                }
            }
            sent = outbox.flush(), if !outbox.is_empty() && !deaf => deaf = sent.is_err(),
            request = requests.message(), if outbox.is_empty() && !heard_all => match request {
                Ok(Some(ConnectRequest { message: Some(connect_request::Message::Data(data)) })) => {
                    let data = Bytes::from(data);
                    for at in (0..data.len()).step_by(MAX_PAYLOAD) {
                        let piece = data.slice(at..data.len().min(at + MAX_PAYLOAD));
                        outbox.put(&Frame::new(Kind::Input, piece));
                    }
                }
                Ok(Some(_)) => {}
                Ok(None) => {
                    heard_all = true;
                    outbox.put(&Frame::new(Kind::InputEnd, Bytes::new()));
                }
                Err(_) => return,
            },
        }
    }
}

enum Heard {
    Data(Vec<u8>),
    /// No more data.
    End,
    /// Both sides have ended.
    Over,
    Failed(String),
}

fn heard(frame: &Frame) -> Result<Heard, Garbage> {
    Ok(match frame.kind {
        Kind::Output => Heard::Data(frame.payload.to_vec()),
        Kind::OutputEnd => Heard::End,
        _ => {
            let end = session::end(frame)?;
            if end.error.is_empty() {
                Heard::Over
            } else {
                Heard::Failed(end.error)
            }
        }
    })
}
