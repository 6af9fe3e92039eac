//! The way in: from a session's frames to a program's standard input or to a connection.
//!
//! Input that its reader does not take waits in a queue of [`QUEUE_BYTES`]. While that is full no frame is read: a SIGNAL or
//! a RESIZE behind it waits too, as the order of frames says. Only the end of the connection is seen before its turn.

use std::{collections::VecDeque, future::pending};

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use volant_session::{Frame, Kind};

use super::{Input, descriptor::Descriptor};

/// How much input waits for its reader before no more frames are read.
const QUEUE_BYTES: usize = 256 * 1024;
/// What a frame costs beside its bytes, so that empty ones fill the queue too.
const FRAME_COST: usize = 64;

/// The host has closed the connection, or sent what is no frame of a session: it wants nothing any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone;

/// Input on its way.
#[derive(Debug)]
struct Queue<W> {
    /// Absent: nobody reads it, and it is dropped.
    sink: Option<W>,
    chunks: VecDeque<Bytes>,
    bytes: usize,
    is_ending: bool,
}

/// Carries INPUT to `sink` and gives every RESIZE and SIGNAL to `control`, until the host is gone. The end of the input shuts
/// the sink down and drops it. `connection` is the one that `input` reads.
pub async fn feed<W: AsyncWrite + Unpin>(
    input: &mut Input,
    connection: &Descriptor,
    sink: Option<W>,
    mut control: impl FnMut(&Frame),
) -> Gone {
    let mut queue = Queue {
        sink,
        chunks: VecDeque::new(),
        bytes: 0,
        is_ending: false,
    };
    loop {
        let is_full = queue.bytes >= QUEUE_BYTES;
        tokio::select! {
            frame = input.next(), if !is_full => match frame {
                Ok(Some(frame)) => match frame.kind {
                    Kind::Input => queue.push(frame.payload),
                    Kind::InputEnd => queue.is_ending = true,
                    Kind::Resize | Kind::Signal => control(&frame),
                    _ => return Gone,
                },
                Ok(None) | Err(_) => return Gone,
            },
            () = connection.hung_up(), if is_full => return Gone,
            () = queue.advance() => {}
        }
    }
}

impl<W: AsyncWrite + Unpin> Queue<W> {
    fn push(&mut self, chunk: Bytes) {
        if self.sink.is_some() && !self.is_ending {
            self.bytes += chunk.len() + FRAME_COST;
            self.chunks.push_back(chunk);
        }
    }

    /// Writes some of the input; waits for ever when there is nothing to do. May be dropped at its await: nothing is lost.
    async fn advance(&mut self) {
        let Some(sink) = &mut self.sink else {
            return pending().await;
        };
        let Some(front) = self.chunks.front_mut() else {
            if self.is_ending {
                // What cannot be shut down has nobody who waits for the end.
                let _ = sink.shutdown().await;
                self.sink = None;
                return;
            }
            return pending().await;
        };
        match sink.write(front).await {
            Ok(count) => {
                front.advance(count);
                self.bytes = self.bytes.saturating_sub(count);
                if front.is_empty() {
                    self.chunks.pop_front();
                    self.bytes = self.bytes.saturating_sub(FRAME_COST);
                }
            }
            // Its reader has closed: the rest is of no use, which is no failure.
            Err(_) => {
                self.sink = None;
                self.chunks.clear();
                self.bytes = 0;
            }
        }
    }
}
