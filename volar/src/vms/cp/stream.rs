//! Between a thread that reads or writes an archive and a connection: a few chunks, and whoever is ahead waits.

use std::io::{self, Read, Write};

use bytes::{Buf, Bytes, BytesMut};
use tokio::sync::mpsc;

const CHUNK: usize = 64 * 1024;
/// Chunks that wait.
pub const WAITING: usize = 8;

/// Chunks; an error is the last one.
pub type Chunks = mpsc::Receiver<io::Result<Bytes>>;

/// For a thread that writes.
#[derive(Debug)]
pub struct Sending {
    sender: mpsc::Sender<io::Result<Bytes>>,
    chunk: BytesMut,
}

impl Sending {
    pub fn new(sender: mpsc::Sender<io::Result<Bytes>>) -> Self {
        let chunk = BytesMut::with_capacity(CHUNK);
        Self { sender, chunk }
    }
}

impl Write for Sending {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.chunk.extend_from_slice(data);
        if self.chunk.len() >= CHUNK {
            self.flush()?;
        }
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        let chunk = self.chunk.split().freeze();
        self.chunk.reserve(CHUNK);
        self.sender
            .blocking_send(Ok(chunk))
            .map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// For a thread that reads.
#[derive(Debug)]
pub struct Receiving {
    chunks: Chunks,
    chunk: Bytes,
}

impl Receiving {
    pub fn new(chunks: Chunks) -> Self {
        let chunk = Bytes::new();
        Self { chunks, chunk }
    }
}

impl Read for Receiving {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            match self.chunks.blocking_recv() {
                Some(chunk) => self.chunk = chunk?,
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.chunk.len());
        self.chunk.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}
