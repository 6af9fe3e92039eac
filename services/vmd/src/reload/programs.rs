//! Programs in the guest whose sessions go on with the next vmd.

use std::{
    io,
    os::{fd::RawFd, unix::net::UnixStream as StdUnixStream},
};

use bytes::BytesMut;
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;
use volant_service::{Heirlooms, inherited};
use volant_session::parse;

use crate::{
    grpc::{Parked, Program},
    session::{Outbox, Sessions},
};

/// A parked program, written down.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ProgramState {
    id: String,
    pid: u32,
    connection: RawFd,
    received: Vec<u8>,
    unsent: Vec<u8>,
    /// A whole frame, as it was sent.
    undelivered: Vec<u8>,
    input_ended: bool,
    deaf: bool,
}

impl ProgramState {
    fn save(program: &Program, heirlooms: &mut Heirlooms) -> io::Result<Self> {
        let Program {
            id,
            pid,
            session,
            undelivered,
            input_ended,
            deaf,
        } = program;
        let mut whole = Outbox::new(());
        if let Some(frame) = undelivered {
            whole.put(frame);
        }
        Ok(Self {
            id: id.clone(),
            pid: *pid,
            connection: heirlooms.keep(session.reader.get_ref().as_ref())?,
            received: session.reader.rest().to_vec(),
            unsent: session.outbox.rest().to_vec(),
            undelivered: whole.rest().to_vec(),
            input_ended: *input_ended,
            deaf: *deaf,
        })
    }

    fn restore(self, sessions: &Sessions) -> io::Result<Program> {
        let connection = StdUnixStream::from(inherited(self.connection)?);
        connection.set_nonblocking(true)?;
        let received = BytesMut::from(self.received.as_slice());
        let unsent = BytesMut::from(self.unsent.as_slice());
        let session = sessions
            .resume(UnixStream::from_std(connection)?, received, unsent)
            .map_err(io::Error::other)?;
        let mut undelivered = BytesMut::from(self.undelivered.as_slice());
        Ok(Program {
            id: self.id,
            pid: self.pid,
            session,
            undelivered: parse(&mut undelivered).map_err(io::Error::other)?,
            input_ended: self.input_ended,
            deaf: self.deaf,
        })
    }
}

/// All that are parked, written down.
///
/// # Errors
/// There are too many descriptors.
pub(super) fn save(parked: &Parked, heirlooms: &mut Heirlooms) -> io::Result<Vec<ProgramState>> {
    let states = parked.look(|program| ProgramState::save(program, heirlooms));
    states.into_iter().collect()
}

/// Parks what was left, for clients that come back. One that cannot go on is told, and ends.
pub(super) fn restore(states: Vec<ProgramState>, count: u64, sessions: &Sessions) -> Parked {
    let parked = Parked::with_count(count);
    for state in states {
        let id = state.id.clone();
        match state.restore(sessions) {
            Ok(program) => parked.put(program),
            Err(error) => tracing::warn!("{id} cannot go on: {error}"),
        }
    }
    parked
}
