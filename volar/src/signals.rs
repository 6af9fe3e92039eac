//! The signals that end a program, and the one that says the terminal has another size.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::failure::Failure;

/// What came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Came {
    /// A signal that ends a program: its number.
    End(u8),
    Resized,
}

/// From now on these end this program no more by themselves.
#[derive(Debug)]
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    quit: Signal,
    resized: Signal,
}

impl Signals {
    pub fn listen() -> Result<Self, Failure> {
        let listen = |kind| {
            signal(kind).map_err(|source| Failure::Io {
                act: "cannot listen for signals".to_owned(),
                source,
            })
        };
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
            quit: listen(SignalKind::quit())?,
            resized: listen(SignalKind::window_change())?,
        })
    }

    pub async fn next(&mut self) -> Came {
        tokio::select! {
            _ = self.interrupt.recv() => Came::End(2),
            _ = self.terminate.recv() => Came::End(15),
            _ = self.hangup.recv() => Came::End(1),
            _ = self.quit.recv() => Came::End(3),
            _ = self.resized.recv() => Came::Resized,
        }
    }

    /// The first that ends a program: its number.
    pub async fn end(&mut self) -> u8 {
        loop {
            if let Came::End(number) = self.next().await {
                return number;
            }
        }
    }
}
