//! What happens to VMs, told to all who watch. One listener on the bus serves them; it begins with the first and ends with
//! the last.
//!
//! ```text
//! systemd  PropertiesChanged of volant-vm@ units     ─▶ started, stopped, failed
//! vmd      Happened                                  ─▶ ready, rebooting, paused, ...
//! this     a VM was created or deleted               ─▶ created, deleted
//! ```

mod listener;
mod units;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use tokio::sync::broadcast;

use crate::{Systemd, systemd::SystemdError};

/// Events that wait for a watcher; one that is further behind is cut off.
const AHEAD: usize = 512;

/// Something that happened to a VM.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Event {
    /// Grows with each event of this process.
    #[serde(skip)]
    pub id: u64,
    /// RFC 3339, with milliseconds.
    pub time: String,
    pub vm: String,
    /// `ready`, `stopped`, `paused`, ...
    pub event: String,
    pub details: BTreeMap<String, Value>,
}

/// Tells all who watch. Clones share it.
#[derive(Clone, Debug)]
pub struct Events {
    told: broadcast::Sender<Arc<Event>>,
    last: Arc<AtomicU64>,
    /// As long as somebody watches.
    listening: Arc<Mutex<Weak<Listening>>>,
}

/// A listener on the bus, for as long as this value lives.
#[derive(Debug)]
struct Listening(tokio::task::JoinHandle<()>);

impl Drop for Listening {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Somebody who watches.
#[derive(Debug)]
pub struct Watch {
    events: broadcast::Receiver<Arc<Event>>,
    _listening: Arc<Listening>,
}

/// The watcher was too slow, or the bus is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CutOff {
    #[error("{0} events were not read in time")]
    Slow(u64),
    #[error("the system bus is gone")]
    Gone,
}

impl Events {
    #[must_use]
    pub fn new() -> Self {
        Self {
            told: broadcast::Sender::new(AHEAD),
            last: Arc::default(),
            listening: Arc::default(),
        }
    }

    /// Watches: every event from now on is told, in order.
    ///
    /// # Errors
    /// The bus does not answer.
    pub async fn watch(&self, systemd: &Systemd) -> Result<Watch, SystemdError> {
        // Subscribed before the listener begins: nothing is missed.
        let events = self.told.subscribe();
        let there = self
            .listening()
            .upgrade()
            .filter(|there| !there.0.is_finished());
        let listening = match there {
            Some(listening) => listening,
            None => {
                let task = listener::begin(systemd, self.clone()).await?;
                let begun = Arc::new(Listening(task));
                let mut listening = self.listening();
                // Two may have begun at once: one of them is enough.
                match listening.upgrade().filter(|there| !there.0.is_finished()) {
                    Some(other) => other,
                    None => {
                        *listening = Arc::downgrade(&begun);
                        begun
                    }
                }
            }
        };
        Ok(Watch {
            events,
            _listening: listening,
        })
    }

    /// Tells that something happens now.
    pub fn tell(&self, vm: &str, event: &str) {
        self.tell_at(Timestamp::now(), vm, event, BTreeMap::new());
    }

    fn tell_at(&self, time: Timestamp, vm: &str, event: &str, details: BTreeMap<String, Value>) {
        let event = Event {
            id: self.last.fetch_add(1, Ordering::Relaxed) + 1,
            time: format!("{time:.3}"),
            vm: vm.to_owned(),
            event: event.to_owned(),
            details,
        };
        // Nobody watches: nobody misses it.
        let _ = self.told.send(Arc::new(event));
    }

    /// Whether somebody listens on the bus.
    #[must_use]
    pub fn is_listening(&self) -> bool {
        self.listening()
            .upgrade()
            .is_some_and(|there| !there.0.is_finished())
    }

    fn listening(&self) -> MutexGuard<'_, Weak<Listening>> {
        // No change can be left half done by a panic.
        self.listening
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Events {
    fn default() -> Self {
        Self::new()
    }
}

impl Watch {
    /// The next event. Nothing is lost when this is dropped before it is there.
    ///
    /// # Errors
    /// Events were missed, or none will come any more.
    pub async fn next(&mut self) -> Result<Arc<Event>, CutOff> {
        match self.events.recv().await {
            Ok(event) => Ok(event),
            Err(broadcast::error::RecvError::Lagged(missed)) => Err(CutOff::Slow(missed)),
            Err(broadcast::error::RecvError::Closed) => Err(CutOff::Gone),
        }
    }

    /// Resolves once the listener ended, which it does with the bus alone.
    #[must_use]
    pub fn is_cut_off(&self) -> bool {
        self._listening.0.is_finished()
    }
}
