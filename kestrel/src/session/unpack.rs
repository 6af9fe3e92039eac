//! A tar of the host, unpacked to a folder of the guest.
//!
//! A thread writes the files, this session gives it what comes: a few frames are between the two, and no more.

use std::io::{self, Read};

use bytes::{Buf as _, Bytes};
use tokio::{sync::mpsc, task::JoinHandle};
use volant_proto::agent::v1::{
    SessionEnd, SessionOpened, UnpackSession, session_refused::Kind as Why,
};
use volant_session::Kind;

use self::{folder::Folder, write::Unpacker};
use super::{Ended, Input, Output, Refusal, answer};

mod folder;
mod write;

/// How many frames are on their way from the host to the files.
const FRAMES: usize = 4;

type Unpacked = (u64, Result<(), write::UnpackError>);

/// Unpacks what comes.
///
/// # Errors
/// There is no such folder.
pub async fn run(
    wanted: &UnpackSession,
    input: &mut Input,
    output: &mut Output,
) -> Result<Ended, Refusal> {
    let path = wanted.path.as_str();
    let act = format!("cannot unpack to {}", path.escape_debug());
    if !path.starts_with('/') || path.contains('\0') {
        let message = format!("{act}: it is no absolute path");
        return Err(Refusal::new(Why::Invalid, message));
    }
    let folder = Folder::open(path.as_ref()).map_err(|error| Refusal::system(&act, &error))?;
    if !answer(output, &SessionOpened::default()).await {
        return Ok(None);
    }
    let (sender, frames) = mpsc::channel(FRAMES);
    let mut unpacker = Unpacker::new(folder, wanted);
    let mut thread = tokio::task::spawn_blocking(move || {
        let stream = Frames {
            frames,
            rest: Bytes::new(),
        };
        let result = unpacker.all(stream);
        (unpacker.entries(), result)
    });
    let unpacked = tokio::select! {
        // What is there is looked at first: an archive that is whole is not cut off.
        biased;
        is_whole = carry(input, sender) => match is_whole {
            true => (&mut thread).await,
            false => return Ok(gone(thread).await),
        },
        unpacked = &mut thread => unpacked,
    };
    Ok(Some(match unpacked {
        Ok((entries, result)) => SessionEnd {
            entries,
            error: result.map_or_else(|error| error.to_string(), |()| String::new()),
            ..SessionEnd::default()
        },
        Err(error) => SessionEnd {
            error: format!("the unpacking ended early: {error}"),
            ..SessionEnd::default()
        },
    }))
}

/// The host is gone in the middle: the thread meets the archive's early end.
async fn gone(thread: JoinHandle<Unpacked>) -> Ended {
    // Nobody is there to be told.
    let _ = thread.await;
    None
}

/// Gives all INPUT on, up to its end: `false` when the host is gone before it. What comes after the archive is dropped; a
/// thread that failed is told of by its own end.
async fn carry(input: &mut Input, sender: mpsc::Sender<io::Result<Bytes>>) -> bool {
    while let Ok(Some(frame)) = input.next().await {
        match frame.kind {
            Kind::Input if frame.payload.is_empty() => {}
            Kind::Input => {
                // Nobody takes it: the archive has ended.
                let _ = sender.send(Ok(frame.payload)).await;
            }
            Kind::InputEnd => return true,
            _ => break,
        }
    }
    // An archive that breaks off is not one that ends.
    let _ = sender
        .send(Err(io::ErrorKind::ConnectionAborted.into()))
        .await;
    false
}

/// The frames as a stream of bytes, for the thread.
#[derive(Debug)]
struct Frames {
    frames: mpsc::Receiver<io::Result<Bytes>>,
    rest: Bytes,
}

impl Read for Frames {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.rest.is_empty() {
            match self.frames.blocking_recv() {
                Some(frame) => self.rest = frame?,
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.rest.len());
        self.rest.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}
