//! The bare vsock stream: `tests/echo` in the guest, this process on the VM's vsock socket.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

/// Of `tests/echo`.
const PORT: u32 = 5000;
const CHUNK: usize = 64 * 1024;

/// The way to the guest's program.
#[derive(Debug)]
pub struct Bare(pub PathBuf);

impl Bare {
    fn dial(&self) -> Result<UnixStream> {
        let path: &Path = &self.0;
        let mut stream = UnixStream::connect(path)
            .with_context(|| format!("cannot connect to {}", path.display()))?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        // In one call: the VMM reads it with one.
        let ask = format!("CONNECT {PORT}\n");
        let asked = stream.write_all(ask.as_bytes());
        asked.context("cannot ask for the guest's port")?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\n") {
            let mut byte = [0];
            stream
                .read_exact(&mut byte)
                .context("the guest's port does not answer")?;
            answer.extend(byte);
        }
        ensure!(answer.starts_with(b"OK"), "the VMM refuses the connection");
        Ok(stream)
    }

    /// A connection that echoes.
    pub fn echo(&self) -> Result<Echo> {
        let mut stream = self.dial()?;
        stream.write_all(b"e")?;
        Ok(Echo(stream))
    }

    /// Sends so many bytes into the guest, until it has read them all.
    pub fn send(&self, bytes: u64) -> Result<Duration> {
        self.send_for(b"s", bytes)
    }

    /// Sends so many bytes into the guest, until it has written them all to a file in memory.
    pub fn send_to_file(&self, bytes: u64) -> Result<Duration> {
        self.send_for(b"f", bytes)
    }

    fn send_for(&self, what: &[u8], bytes: u64) -> Result<Duration> {
        let mut stream = self.dial()?;
        stream.write_all(what)?;
        let chunk = vec![b'x'; CHUNK];
        let begun = Instant::now();
        stream.write_all(&bytes.to_le_bytes())?;
        let mut left = bytes;
        while left > 0 {
            let piece = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
            stream.write_all(&chunk[..piece])?;
            left -= piece as u64;
        }
        let read = stream.read_exact(&mut [0]);
        read.context("the guest did not say that it has it all")?;
        Ok(begun.elapsed())
    }

    /// Receives so many bytes from the guest.
    pub fn receive(&self, bytes: u64) -> Result<Duration> {
        let mut stream = self.dial()?;
        stream.write_all(b"g")?;
        let begun = Instant::now();
        stream.write_all(&bytes.to_le_bytes())?;
        let mut chunk = vec![0; CHUNK];
        let mut left = bytes;
        while left > 0 {
            let read = stream.read(&mut chunk)?;
            ensure!(read > 0, "the guest's stream ended early");
            left -= read as u64;
        }
        Ok(begun.elapsed())
    }
}

/// An open connection whose other end says everything again.
#[derive(Debug)]
pub struct Echo(UnixStream);

impl Echo {
    /// There and back again.
    pub fn ping(&mut self) -> Result<()> {
        self.0.write_all(b"?")?;
        self.0.read_exact(&mut [0]).context("no echo")
    }
}
