//! A program in the guest and its client: whoever is slow holds up the other, and nothing is kept but a frame each way.

use std::io;

use bytes::Bytes;
use tokio::sync::mpsc::Sender;
use tonic::{Status, Streaming};
use volant_proto::{
    agent::v1,
    vm::v1::{
        ExecExited, ExecMoved, ExecRequest, ExecResponse, ExecStart, ExecStarted, exec_request,
        exec_response::Message,
    },
};
use volant_session::{Frame, Kind, MAX_PAYLOAD};

use super::{
    moving::Moving,
    parked::{Parked, Program},
};
use crate::session::{self, Garbage};

/// What a client asks for, for the guest.
pub(super) fn request(start: ExecStart) -> v1::ExecSession {
    v1::ExecSession {
        command: start.command,
        env: start.env,
        user: start.user,
        workdir: start.workdir,
        tty: start.tty,
        size: start.size.map(|size| v1::WindowSize {
            rows: size.rows,
            columns: size.columns,
        }),
        stdin: start.stdin,
        detach: start.detach,
    }
}

type Answer = Result<ExecResponse, Status>;

/// How it goes on.
enum Turn {
    On,
    /// The program said how it ended.
    Exited,
    Ended,
    Moved,
}

/// Carries frames between a client and its program until either ends, or the program is to be parked.
pub(super) struct Exec {
    pub program: Program,
    pub requests: Streaming<ExecRequest>,
    pub answers: Sender<Answer>,
}

impl Exec {
    pub(super) async fn run(mut self, mut moving: Moving, parked: Parked) {
        let started = Message::Started(ExecStarted {
            id: self.program.id.clone(),
            pid: self.program.pid,
        });
        if self.answer(started).await.is_err() {
            return;
        }
        let mut heard_all = false;
        let mut stdin_bytes = 0;
        loop {
            let turn = self
                .turn(&mut moving, &mut heard_all, &mut stdin_bytes)
                .await;
            match turn {
                Ok(Turn::On) => {}
                // Its connection closes, which ends the program if it still runs.
                Ok(Turn::Ended) => return,
                Ok(Turn::Exited) => return self.program.session.give_back(),
                Ok(Turn::Moved) => break,
                Err(garbage) => {
                    let error = format!(
                        "the session with the guest broke: {}",
                        volant_service::chain(&garbage)
                    );
                    let _ = self
                        .answer(Message::Exited(ExecExited {
                            code: 0,
                            signal: 0,
                            error,
                        }))
                        .await;
                    return;
                }
            }
        }
        let Self {
            program, answers, ..
        } = self;
        parked.put(program);
        let moved = Message::Moved(ExecMoved { stdin_bytes });
        // A client that is gone by now does not come back either: the time limit of what is parked ends its program.
        let _ = answers
            .send(Ok(ExecResponse {
                message: Some(moved),
            }))
            .await;
    }

    async fn turn(
        &mut self,
        moving: &mut Moving,
        heard_all: &mut bool,
        stdin_bytes: &mut u64,
    ) -> Result<Turn, Garbage> {
        let Self {
            program,
            requests,
            answers,
        } = self;
        let session = &mut program.session;
        tokio::select! {
            biased;
            () = moving.now() => Ok(Turn::Moved),
            () = answers.closed() => Ok(Turn::Ended),
            slot = answers.reserve(), if program.undelivered.is_some() => {
                let (Ok(slot), Some(frame)) = (slot, program.undelivered.take()) else {
                    return Ok(Turn::Ended);
                };
                let message = shown(&frame)?;
                let ended = matches!(message, Message::Exited(_));
                slot.send(Ok(ExecResponse { message: Some(message) }));
                Ok(if ended { Turn::Exited } else { Turn::On })
            }
            frame = session.reader.next(), if program.undelivered.is_none() => {
                program.undelivered = Some(frame?.ok_or(Garbage::Closed)?);
                Ok(Turn::On)
            }
            sent = session.outbox.flush(), if !session.outbox.is_empty() && !program.deaf => {
                // The program may have said how it ended before it stopped listening.
                program.deaf = sent.is_err();
                Ok(Turn::On)
            }
            request = requests.message(), if session.outbox.is_empty() && !*heard_all => {
                match request {
                    Ok(Some(ExecRequest { message: Some(message) })) => {
                        *stdin_bytes += program.take(message);
                        Ok(Turn::On)
                    }
                    Ok(Some(ExecRequest { message: None })) => Ok(Turn::On),
                    // It has nothing more to say, and may still listen.
                    Ok(None) => {
                        *heard_all = true;
                        program.end_input();
                        Ok(Turn::On)
                    }
                    Err(_) => Ok(Turn::Ended),
                }
            }
        }
    }

    async fn answer(&self, message: Message) -> Result<(), ()> {
        let answer = ExecResponse {
            message: Some(message),
        };
        self.answers.send(Ok(answer)).await.map_err(|_| ())
    }
}

impl Program {
    /// Takes a client's word for the guest; tells how many bytes of input it had.
    fn take(&mut self, message: exec_request::Message) -> u64 {
        use exec_request::Message as M;
        match message {
            // The call has begun already.
            M::Start(_) | M::Attach(_) => 0,
            M::Stdin(bytes) => {
                let taken = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
                if !self.input_ended {
                    let bytes = Bytes::from(bytes);
                    for at in (0..bytes.len()).step_by(MAX_PAYLOAD) {
                        let chunk = bytes.slice(at..bytes.len().min(at + MAX_PAYLOAD));
                        self.session.outbox.put(&Frame::new(Kind::Input, chunk));
                    }
                }
                taken
            }
            M::StdinEnd(_) => {
                self.end_input();
                0
            }
            M::Resize(size) => {
                let size = v1::WindowSize {
                    rows: size.rows,
                    columns: size.columns,
                };
                self.session
                    .outbox
                    .put(&Frame::message(Kind::Resize, &size));
                0
            }
            M::Signal(signal) => {
                let signal = Bytes::copy_from_slice(&signal.to_le_bytes());
                self.session.outbox.put(&Frame::new(Kind::Signal, signal));
                0
            }
        }
    }

    fn end_input(&mut self) {
        if !self.input_ended {
            self.input_ended = true;
            self.session
                .outbox
                .put(&Frame::new(Kind::InputEnd, Bytes::new()));
        }
    }
}

/// A guest's frame as the client sees it.
fn shown(frame: &Frame) -> Result<Message, Garbage> {
    match frame.kind {
        Kind::Output => Ok(Message::Stdout(frame.payload.to_vec())),
        Kind::Error => Ok(Message::Stderr(frame.payload.to_vec())),
        _ => {
            let end = session::end(frame)?;
            Ok(Message::Exited(ExecExited {
                code: end.code,
                signal: end.signal,
                error: end.error,
            }))
        }
    }
}

impl From<io::Error> for Garbage {
    fn from(_: io::Error) -> Self {
        Self::Closed
    }
}
