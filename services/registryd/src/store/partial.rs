//! What is left of downloads that broke off, for the next to go on with: bounded in number and age.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use volant_spec::Digest;

use super::{Store, StoreError, blobs::remove_file};

/// How many are kept at most, the newest ones.
const MOST: usize = 8;
/// How long they are kept at most.
const OLDEST: Duration = Duration::from_secs(24 * 60 * 60);

#[derive(Debug)]
struct Partial {
    path: PathBuf,
    size: u64,
    modified: SystemTime,
}

impl Store {
    /// Removes those that are too many or too old, or all; never one of an install under way. Answers how many, and their
    /// bytes. The caller has the store's lock.
    pub(super) fn collect_partials(
        &self,
        now: SystemTime,
        all: bool,
    ) -> Result<(u64, u64), StoreError> {
        let mut partials = self.partials()?;
        partials.sort_by_key(|partial| std::cmp::Reverse(partial.modified));
        let (mut count, mut bytes) = (0, 0);
        for (at, partial) in partials.iter().enumerate() {
            let age = now.duration_since(partial.modified).unwrap_or_default();
            if all || at >= MOST || age > OLDEST {
                remove_file(&partial.path)?;
                count += 1;
                bytes += partial.size;
            }
        }
        Ok((count, bytes))
    }

    /// Removes what is left of the download of an artifact that came another way. Waits for whoever writes to it still.
    ///
    /// # Errors
    /// The file system failed.
    pub fn forget_partial(&self, digest: &Digest) -> Result<(), StoreError> {
        let _turn = self.turns.wait(*digest);
        remove_file(&self.partial_dir().join(digest.hex()))
    }

    /// Those that nobody is at.
    fn partials(&self) -> Result<Vec<Partial>, StoreError> {
        let dir = self.partial_dir();
        let failed = |source| StoreError::file("read", &dir, source);
        let mut found = Vec::new();
        for entry in fs::read_dir(&dir).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            let digest = name.to_str().and_then(|name| name.parse::<Digest>().ok());
            if digest.is_some_and(|digest| self.pins.has(&digest)) {
                continue;
            }
            let meta = entry.metadata().map_err(failed)?;
            found.push(Partial {
                path: entry.path(),
                size: meta.len(),
                modified: meta.modified().map_err(failed)?,
            });
        }
        Ok(found)
    }
}
