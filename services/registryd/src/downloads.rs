//! Who downloads what now: one for each artifact, and the others wait and hear how far it is.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::watch;
use volant_spec::Digest;

/// The downloads of this moment.
#[derive(Debug, Default)]
pub(crate) struct Downloads(Mutex<HashMap<Digest, Weak<Shared>>>);

/// An artifact that somebody downloads or waits for.
#[derive(Debug)]
pub(crate) struct Shared {
    /// Whose turn it is.
    pub(crate) turn: Arc<tokio::sync::Mutex<()>>,
    /// How many bytes there are of it.
    done: AtomicU64,
    /// How many bytes came, for whomever.
    received: AtomicU64,
    /// Whether somebody has put it into the store.
    kept: watch::Sender<bool>,
}

impl Downloads {
    pub(crate) fn of(&self, digest: &Digest) -> Arc<Shared> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, shared| shared.strong_count() > 0);
        all.get(digest).and_then(Weak::upgrade).unwrap_or_else(|| {
            let shared = Arc::new(Shared {
                turn: Arc::default(),
                done: AtomicU64::new(0),
                received: AtomicU64::new(0),
                kept: watch::Sender::new(false),
            });
            all.insert(*digest, Arc::downgrade(&shared));
            shared
        })
    }
}

impl Shared {
    /// Notes that `bytes` more came, and that there are `done` now.
    pub(crate) fn got(&self, bytes: u64, done: u64) {
        self.received.fetch_add(bytes, Ordering::Relaxed);
        self.done.store(done, Ordering::Relaxed);
    }

    pub(crate) fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    pub(crate) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Notes that it is in the store.
    pub(crate) fn keep(&self) {
        self.kept.send_replace(true);
    }

    /// Resolves once somebody put it into the store.
    pub(crate) async fn kept(&self) {
        // The sender lives as long as this.
        let _ = self.kept.subscribe().wait_for(|kept| *kept).await;
    }
}
