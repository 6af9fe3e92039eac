//! One at a time for each artifact that is downloaded.

use std::{
    collections::HashSet,
    sync::{Arc, Condvar, Mutex, PoisonError},
};

use volant_spec::Digest;

/// Whose turn it is.
#[derive(Clone, Debug, Default)]
pub(super) struct Turns(Arc<Taken>);

#[derive(Debug, Default)]
struct Taken {
    digests: Mutex<HashSet<Digest>>,
    freed: Condvar,
}

/// The turn at an artifact, for as long as this value lives.
#[derive(Debug)]
pub(super) struct Turn {
    turns: Turns,
    digest: Digest,
}

impl Turns {
    /// Blocks until nobody else has the turn.
    pub(super) fn wait(&self, digest: Digest) -> Turn {
        let taken = self
            .0
            .digests
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut taken = self
            .0
            .freed
            .wait_while(taken, |taken| taken.contains(&digest))
            .unwrap_or_else(PoisonError::into_inner);
        taken.insert(digest);
        Turn {
            turns: self.clone(),
            digest,
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let taken = self.turns.0.digests.lock();
        taken
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.digest);
        self.turns.0.freed.notify_all();
    }
}
