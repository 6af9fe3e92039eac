//! Artifacts that an install under way needs: nothing removes them though no row refers to them yet.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use volant_spec::Digest;

use super::Store;

/// How often each digest is needed now.
#[derive(Clone, Debug, Default)]
pub(super) struct Pins(Arc<Mutex<HashMap<Digest, usize>>>);

/// Artifacts that stay for as long as this value lives.
#[derive(Debug)]
pub struct Pinned {
    pins: Pins,
    digests: Vec<Digest>,
}

impl Pins {
    pub(super) fn has(&self, digest: &Digest) -> bool {
        self.with(|pins| pins.contains_key(digest))
    }

    fn with<T>(&self, act: impl FnOnce(&mut HashMap<Digest, usize>) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Store {
    /// Keeps artifacts, there or not yet, from being removed.
    #[must_use]
    pub fn pin(&self, digests: impl IntoIterator<Item = Digest>) -> Pinned {
        let digests: Vec<_> = digests.into_iter().collect();
        let pins = self.pins.clone();
        // Whoever removes looks while it has this lock: what is pinned now was not looked at yet, or is gone already.
        let _db = self.lock();
        pins.with(|pins| {
            for digest in &digests {
                *pins.entry(*digest).or_default() += 1;
            }
        });
        Pinned { pins, digests }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        self.pins.with(|pins| {
            for digest in &self.digests {
                if let Some(count) = pins.get_mut(digest) {
                    *count -= 1;
                    if *count == 0 {
                        pins.remove(digest);
                    }
                }
            }
        });
    }
}
