//! Standard input and output as streams. Each is read or written by a thread of its own: they may be files and
//! terminals that nobody can wait for otherwise, and a thread in a read keeps no program from ending.

use std::{
    io::{self, Write},
    thread,
};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use crate::failure::Failure;

/// The most that is read at once.
const CHUNK: usize = 32 * 1024;
/// Chunks that wait; then whoever gives them waits.
const WAITING: usize = 8;

/// Reads standard input from now on; the end of it is the channel's.
pub fn input() -> Result<mpsc::Receiver<Bytes>, Failure> {
    let (sender, receiver) = mpsc::channel(WAITING);
    let read = move || {
        let mut buffer = vec![0; CHUNK];
        loop {
            match rustix::io::read(io::stdin(), &mut buffer) {
                Err(rustix::io::Errno::INTR) => {}
                // A terminal that is gone ends like a file.
                Ok(0) | Err(_) => return,
                Ok(count) => {
                    let chunk = Bytes::copy_from_slice(&buffer[..count]);
                    if sender.blocking_send(chunk).is_err() {
                        return;
                    }
                }
            }
        }
    };
    spawn("stdin", read)?;
    Ok(receiver)
}

/// Writes to standard output or standard error in order, and waits when nobody reads.
#[derive(Debug)]
pub struct Out {
    sender: mpsc::Sender<Bytes>,
    ended: oneshot::Receiver<io::Result<()>>,
}

/// Nobody reads any more.
#[derive(Debug, PartialEq, Eq)]
pub struct Gone;

impl Out {
    pub fn stdout() -> Result<Self, Failure> {
        Self::new("stdout", io::stdout())
    }

    pub fn stderr() -> Result<Self, Failure> {
        Self::new("stderr", io::stderr())
    }

    fn new(name: &str, mut out: impl Write + Send + 'static) -> Result<Self, Failure> {
        let (sender, mut receiver) = mpsc::channel::<Bytes>(WAITING);
        let (tell, ended) = oneshot::channel();
        let write = move || {
            let mut written = Ok(());
            while let Some(chunk) = receiver.blocking_recv() {
                written = out.write_all(&chunk).and_then(|()| out.flush());
                if written.is_err() {
                    break;
                }
            }
            drop(receiver);
            let _ = tell.send(written);
        };
        spawn(name, write)?;
        Ok(Self { sender, ended })
    }

    pub async fn write(&mut self, chunk: Bytes) -> Result<(), Gone> {
        self.sender.send(chunk).await.map_err(|_| Gone)
    }

    /// Comes back when nobody reads any more.
    pub async fn gone(&self) {
        self.sender.closed().await;
    }

    /// Comes back when all is written. That nobody reads it is no error.
    pub async fn finish(self) -> Result<(), Failure> {
        drop(self.sender);
        match self.ended.await {
            Ok(Err(source)) if source.kind() != io::ErrorKind::BrokenPipe => Err(Failure::Io {
                act: "cannot write what came".to_owned(),
                source,
            }),
            _ => Ok(()),
        }
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), Failure> {
    let spawned = thread::Builder::new().name(name.to_owned()).spawn(work);
    spawned.map(drop).map_err(|source| Failure::Io {
        act: format!("cannot start a thread for {name}"),
        source,
    })
}
