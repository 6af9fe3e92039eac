//! Indexes as they are read: few at a time, as a large one takes room while it is, and never on the thread that serves.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};
use url::Url;
use volant_spec::index::{Index, IndexError, MAX_BYTES};

use crate::{
    blocking,
    fetch::{FetchError, Fetcher},
};

/// How many are fetched at a time.
const FETCHED: usize = 2;
/// How many larger ones are in memory at a time, as what they say.
const PARSED: usize = 1;
/// The largest that is kept for others who asked already, in bytes.
const SMALL: usize = 1024 * 1024;
/// How many of those are kept.
const KEPT: usize = 4;

#[derive(Debug)]
pub(crate) struct Readings {
    fetching: Arc<Semaphore>,
    parsing: Arc<Semaphore>,
    /// The oldest first.
    recent: Mutex<Vec<Recent>>,
}

#[derive(Debug)]
struct Recent {
    url: Url,
    /// When it was asked for.
    at: Instant,
    index: Arc<Index>,
}

/// An index that was read. A large one keeps others from being read while this lives.
#[derive(Debug)]
pub(crate) struct Reading {
    pub(crate) index: Arc<Index>,
    _room: Option<OwnedSemaphorePermit>,
}

/// Why there is none.
#[derive(Debug)]
pub(crate) enum Unread {
    Fetch(FetchError),
    Parse(IndexError),
}

impl Default for Readings {
    fn default() -> Self {
        Self {
            fetching: Arc::new(Semaphore::new(FETCHED)),
            parsing: Arc::new(Semaphore::new(PARSED)),
            recent: Mutex::default(),
        }
    }
}

impl Readings {
    /// The index at `url`, as it is now: one that was fetched for another caller is answered only if that began after this
    /// call did.
    pub(crate) async fn read(&self, fetcher: &Fetcher, url: &Url) -> Result<Reading, Unread> {
        let asked = Instant::now();
        let _turn = turn(&self.fetching).await;
        if let Some(index) = self.since(url, asked) {
            return Ok(Reading { index, _room: None });
        }
        let at = Instant::now();
        let bytes = fetcher.small(url, MAX_BYTES).await;
        let bytes = bytes.map_err(Unread::Fetch)?;
        let small = bytes.len() <= SMALL;
        let room = turn(&self.parsing).await;
        let index = blocking(move || Index::parse(&bytes).map(Arc::new)).await;
        let index = index.map_err(Unread::Parse)?;
        if small {
            self.remember(Recent {
                url: url.clone(),
                at,
                index: Arc::clone(&index),
            });
        }
        Ok(Reading {
            index,
            _room: room.filter(|_| !small),
        })
    }

    fn since(&self, url: &Url, asked: Instant) -> Option<Arc<Index>> {
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let found = recent.iter().find(|one| one.url == *url)?;
        (found.at >= asked).then(|| Arc::clone(&found.index))
    }

    fn remember(&self, read: Recent) {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.retain(|one| one.url != read.url);
        if recent.len() == KEPT {
            recent.remove(0);
        }
        recent.push(read);
    }
}

/// `None` only of a semaphore that was closed, and none is.
async fn turn(of: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
    Arc::clone(of).acquire_owned().await.ok()
}
