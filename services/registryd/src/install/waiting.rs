//! Waiting for somebody else's download of the same artifact: not silently, and not for ever.

use std::time::Duration;

use tokio::time::{Instant, interval};

use super::{InstallError, download::Wanted};
use crate::{Registry, sink::Sink, status::chain};

/// How often it is told that a download is waited for.
const TOLD_EVERY: Duration = Duration::from_secs(1);
/// A download is waited for as long as it gets so many times what keeps it from being given up. What is slower is gone on
/// with, but whoever waits asks a server, too.
const FASTER: u64 = 32;

impl Registry {
    /// Downloads an artifact once nobody else does, or does it too slowly.
    pub(super) async fn take_turn(&self, wanted: &Wanted<'_>) -> Result<(), InstallError> {
        let turn = tokio::select! {
            biased;
            turn = wanted.shared.turn.lock() => turn,
            () = self.wait(wanted, true) => match self.beside(wanted).await {
                Ok(()) => return Ok(()),
                // The slow one is better than none.
                Err(error) => {
                    tracing::debug!("waiting for another download again: {}", chain(&error));
                    tokio::select! {
                        biased;
                        turn = wanted.shared.turn.lock() => turn,
                        () = self.wait(wanted, false) => return Err(error),
                    }
                }
            }
        };
        if self.is_there(wanted.artifact).await? {
            return Ok(());
        }
        let sink = Sink::resume(self.store(), wanted.artifact.checksum).await;
        let sink = sink.map_err(|source| wanted.keep(source))?;
        let done = self.download(wanted, sink).await;
        drop(turn);
        done
    }

    /// Downloads an artifact whoever else does.
    pub(super) async fn beside(&self, wanted: &Wanted<'_>) -> Result<(), InstallError> {
        let sink = Sink::beside(self.store()).await;
        let sink = sink.map_err(|source| wanted.keep(source))?;
        self.download(wanted, sink).await
    }

    /// Tells how far the others are; with an end to its patience, until they got too little for a while.
    async fn wait(&self, wanted: &Wanted<'_>, patience_ends: bool) {
        let limits = self.fetcher().limits();
        let mut told = interval(TOLD_EVERY.min(limits.window));
        let (mut since, mut received) = (Instant::now(), wanted.shared.received());
        loop {
            told.tick().await;
            wanted.tell(wanted.shared.done(), wanted.artifact.size);
            if since.elapsed() < limits.window {
                continue;
            }
            let now = wanted.shared.received();
            if patience_ends && now - received < limits.bytes * FASTER {
                return;
            }
            (since, received) = (Instant::now(), now);
        }
    }
}
