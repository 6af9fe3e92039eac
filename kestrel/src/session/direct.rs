//! A session's connection in the hands of a thread: what files are read from or written to goes no other way than this, as
//! a guest of one CPU would change between threads for every frame.
//!
//! A thread waits in the kernel for its connection, and ends with it: whoever gives one up cuts the connection off.

use std::{
    io::{self, IoSliceMut, Read},
    os::fd::AsFd as _,
    thread,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::{Errno, readv, write},
    net::Shutdown,
};
use tokio::sync::oneshot;
use volant_session::{HEADER, Kind, MAX_PAYLOAD};

use super::descriptor::Descriptor;

/// Runs `work` in a thread of its own, and gives what it says; `None` when it panicked. Dropped before, it cuts the
/// connection off, with which the thread ends.
///
/// # Errors
/// There are too many threads.
pub async fn in_thread<T: Send + 'static>(
    connection: &Descriptor,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<Option<T>> {
    let (sender, result) = oneshot::channel();
    thread::Builder::new()
        .name("session".to_owned())
        .spawn(move || {
            // Who has given up does not listen.
            let _ = sender.send(work());
        })?;
    let mut cut = Cut(Some(connection));
    let result = result.await;
    cut.0 = None;
    Ok(result.ok())
}

struct Cut<'a>(Option<&'a Descriptor>);

impl Drop for Cut<'_> {
    fn drop(&mut self) {
        if let Some(connection) = self.0 {
            // It may be closed already.
            let _ = rustix::net::shutdown(connection.as_fd(), Shutdown::Both);
        }
    }
}

fn wait(connection: &Descriptor, what: PollFlags) -> io::Result<()> {
    match poll(&mut [PollFd::new(connection, what)], None) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// What a host sends as INPUT, up to INPUT_END.
#[derive(Debug)]
pub struct Incoming {
    connection: Descriptor,
    /// What was read of the connection before, and is looked at first.
    rest: Vec<u8>,
    looked_at: usize,
    head: [u8; HEADER],
    /// How much of `head` is there.
    known: usize,
    /// Of the present frame's payload.
    left: usize,
    has_ended: bool,
}

impl Incoming {
    pub fn new(connection: Descriptor, rest: Vec<u8>) -> Self {
        Self {
            connection,
            rest,
            looked_at: 0,
            head: [0; HEADER],
            known: 0,
            left: 0,
            has_ended: false,
        }
    }

    /// Fills `payload`, and then the next frame's head as far as it comes at the same time; gives the bytes of the payload.
    fn fill(&mut self, payload: &mut [u8]) -> io::Result<usize> {
        let rest = &self.rest[self.looked_at..];
        let count = if rest.is_empty() {
            loop {
                let is_whole = payload.len() == self.left;
                let head = if is_whole {
                    &mut self.head[self.known..]
                } else {
                    &mut []
                };
                let slices = &mut [IoSliceMut::new(payload), IoSliceMut::new(head)];
                match readv(&self.connection, slices) {
                    Ok(0) => return Err(io::ErrorKind::ConnectionAborted.into()),
                    Ok(count) => break count,
                    Err(Errno::AGAIN) => wait(&self.connection, PollFlags::IN)?,
                    Err(Errno::INTR) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
        } else {
            let of_payload = rest.len().min(payload.len());
            payload[..of_payload].copy_from_slice(&rest[..of_payload]);
            let of_head = match payload.len() == self.left {
                true => (rest.len() - of_payload).min(HEADER - self.known),
                false => 0,
            };
            self.head[self.known..self.known + of_head]
                .copy_from_slice(&rest[of_payload..of_payload + of_head]);
            self.looked_at += of_payload + of_head;
            of_payload + of_head
        };
        let of_payload = count.min(payload.len());
        self.left -= of_payload;
        self.known += count - of_payload;
        Ok(of_payload)
    }

    /// Goes on to the next frame with a payload; at the end of the input to none.
    fn next(&mut self) -> io::Result<()> {
        while self.left == 0 && !self.has_ended {
            if self.known < HEADER {
                self.fill(&mut [])?;
                continue;
            }
            self.known = 0;
            let [kind, length @ ..] = self.head;
            let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
            if length > MAX_PAYLOAD {
                return Err(io::ErrorKind::InvalidData.into());
            }
            match kind {
                kind if kind == Kind::Input as u8 => self.left = length,
                kind if kind == Kind::InputEnd as u8 && length == 0 => self.has_ended = true,
                // An archive that breaks off is not one that ends.
                _ => return Err(io::ErrorKind::ConnectionAborted.into()),
            }
        }
        Ok(())
    }
}

impl Read for Incoming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            self.next()?;
            if self.has_ended {
                return Ok(0);
            }
            let most = buffer.len().min(self.left);
            // Nothing of the payload, when the connection gave what it had before.
            match self.fill(&mut buffer[..most])? {
                0 => {}
                count => return Ok(count),
            }
        }
    }
}

/// OUTPUT for a host: one frame, which is sent when it is full.
#[derive(Debug)]
pub struct Outgoing {
    connection: Descriptor,
    /// Head and payload.
    pub frame: Vec<u8>,
}

impl Outgoing {
    /// A guest's vsock makes packets of 64 KiB: the head of a whole frame is in the same one.
    pub const MOST: usize = MAX_PAYLOAD;

    pub fn new(connection: Descriptor) -> Self {
        let mut frame = Vec::with_capacity(Self::MOST);
        frame.resize(HEADER, 0);
        Self { connection, frame }
    }

    /// How much more fits in this frame.
    pub fn room(&self) -> usize {
        Self::MOST - self.frame.len()
    }

    /// Sends what there is.
    ///
    /// # Errors
    /// Nobody takes it any more.
    pub fn send(&mut self) -> io::Result<()> {
        let length = self.frame.len() - HEADER;
        if length == 0 {
            return Ok(());
        }
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        self.frame[0] = Kind::Output as u8;
        self.frame[1..HEADER].copy_from_slice(&length.to_le_bytes());
        let mut sent = 0;
        while sent < self.frame.len() {
            match write(&self.connection, &self.frame[sent..]) {
                Ok(count) => sent += count,
                Err(Errno::AGAIN) => wait(&self.connection, PollFlags::OUT)?,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        self.frame.truncate(HEADER);
        Ok(())
    }
}
