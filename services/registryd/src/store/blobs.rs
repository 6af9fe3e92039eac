//! Artifacts: files named by their digest, and the rows that vouch for them.
//!
//! A row is written after its file is whole, verified and on disk; a file without a row is an orphan of a crash.
//! Files of removed rows go last. So whatever a row names was there, and a cut leaves at most an orphan.

use std::{
    collections::HashSet,
    fs::{self, File, FileTimes},
    io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rusqlite::{Connection, OptionalExtension, params};
use volant_spec::Digest;

use super::{BlobError, Incoming, Store, StoreError};

/// How long an artifact that nothing uses yet is kept: the time from its upload to the install that needs it.
pub const UNUSED_FOR: Duration = Duration::from_secs(60 * 60);

const UNREFERENCED: &str = "NOT EXISTS (SELECT 1 FROM plugin_blobs p WHERE p.digest = blobs.digest)
     AND NOT EXISTS (SELECT 1 FROM vm_blobs v WHERE v.digest = blobs.digest)";

impl Store {
    /// The size of an artifact that is there, whole as far as its size tells. One that nothing uses yet is kept for
    /// another [`UNUSED_FOR`].
    ///
    /// # Errors
    /// The database or the file system failed.
    pub fn blob(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        let db = self.lock();
        let Some(size) = self.stored_size(&db, digest)? else {
            return Ok(None);
        };
        self.touch(digest)?;
        Ok(Some(size))
    }

    /// Keeps what was received, durably, once its bytes match `digest`. Answers its size.
    ///
    /// # Errors
    /// The bytes do not match, or cannot be kept; nothing is then.
    pub fn keep(&self, incoming: Incoming, digest: &Digest) -> Result<u64, BlobError> {
        let verified = incoming.verify(digest)?;
        let db = self.lock();
        let size = verified.put(&self.blob_path(digest))?;
        db.execute(
            "INSERT INTO blobs (digest, size) VALUES (?1, ?2)
             ON CONFLICT (digest) DO UPDATE SET size = excluded.size",
            params![digest.hex(), size],
        )
        .map_err(|source| self.failed("keep an artifact", source))?;
        Ok(size)
    }

    /// Removes the artifacts that nothing has used for `unused_for`, and orphans. Answers how many.
    ///
    /// # Errors
    /// The database or the file system failed.
    pub fn collect(&self, unused_for: Duration) -> Result<usize, StoreError> {
        let db = self.lock();
        let removed = self.collect_rows(&db, unused_for)?;
        let kept: HashSet<String> = self
            .query(&db, "SELECT digest FROM blobs", [], |row| row.get(0))?
            .into_iter()
            .collect();
        let mut orphans = 0;
        let dir = self.blobs_dir();
        let failed = |source| StoreError::file("read", &dir, source);
        for entry in fs::read_dir(&dir).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let orphan = entry
                .file_name()
                .to_str()
                .is_none_or(|name| !kept.contains(name));
            if orphan {
                remove_file(&entry.path())?;
                orphans += 1;
            }
        }
        Ok(removed + orphans)
    }

    fn collect_rows(&self, db: &Connection, unused_for: Duration) -> Result<usize, StoreError> {
        let unused: Vec<String> = self.query(
            db,
            &format!("SELECT digest FROM blobs WHERE {UNREFERENCED}"),
            [],
            |row| row.get(0),
        )?;
        let now = SystemTime::now();
        let mut removed = 0;
        for hex in unused {
            let path = self.blobs_dir().join(&hex);
            let fresh = fs::metadata(&path)
                .and_then(|meta| meta.modified())
                // A time in the future is that of a clock that was set back: young, too.
                .is_ok_and(|at| now.duration_since(at).unwrap_or_default() < unused_for);
            if fresh {
                continue;
            }
            db.execute("DELETE FROM blobs WHERE digest = ?1", [&hex])
                .map_err(|source| self.failed("forget an artifact", source))?;
            remove_file(&path)?;
            removed += 1;
        }
        Ok(removed)
    }

    /// Forgets those of `digests` that nothing uses any more; their files are for the caller to remove once the
    /// transaction is durable.
    pub(super) fn forget_unused(
        &self,
        tx: &Connection,
        digests: &[String],
    ) -> Result<Vec<PathBuf>, StoreError> {
        let mut files = Vec::new();
        for hex in digests {
            let gone = tx
                .execute(
                    &format!("DELETE FROM blobs WHERE digest = ?1 AND {UNREFERENCED}"),
                    [hex],
                )
                .map_err(|source| self.failed("forget an artifact", source))?;
            if gone > 0 {
                files.push(self.blobs_dir().join(hex));
            }
        }
        Ok(files)
    }

    /// Opens an artifact for reading. `None` when it is not there; the size that it should have when it has another.
    pub(super) fn open_blob(
        &self,
        db: &Connection,
        digest: &Digest,
    ) -> Result<Result<File, Damage>, StoreError> {
        let Some(expected) = self.recorded_size(db, digest)? else {
            return Ok(Err(Damage::Missing));
        };
        let path = self.blob_path(digest);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Err(Damage::Missing));
            }
            Err(source) => return Err(StoreError::file("open", &path, source)),
        };
        let found = file
            .metadata()
            .map_err(|source| StoreError::file("read", &path, source))?
            .len();
        if found == expected {
            Ok(Ok(file))
        } else {
            Ok(Err(Damage::Size { found, expected }))
        }
    }

    pub(super) fn stored_size(
        &self,
        db: &Connection,
        digest: &Digest,
    ) -> Result<Option<u64>, StoreError> {
        let Some(expected) = self.recorded_size(db, digest)? else {
            return Ok(None);
        };
        let path = self.blob_path(digest);
        match fs::metadata(&path) {
            Ok(meta) => Ok((meta.len() == expected).then_some(expected)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StoreError::file("read", &path, source)),
        }
    }

    fn recorded_size(&self, db: &Connection, digest: &Digest) -> Result<Option<u64>, StoreError> {
        db.query_row(
            "SELECT size FROM blobs WHERE digest = ?1",
            [digest.hex()],
            |row| row.get(0),
        )
        .optional()
        .map_err(|source| self.failed("look up an artifact", source))
    }

    fn touch(&self, digest: &Digest) -> Result<(), StoreError> {
        let path = self.blob_path(digest);
        File::open(&path)
            .and_then(|file| file.set_times(FileTimes::new().set_modified(SystemTime::now())))
            .map_err(|source| StoreError::file("touch", &path, source))
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.blobs_dir().join(digest.hex())
    }
}

/// What is wrong with an artifact that should be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    Missing,
    Size { found: u64, expected: u64 },
}

/// Removes files of artifacts that no row names any more. A failure is logged: the next collection removes them.
pub(super) fn remove_files(files: &[PathBuf]) {
    for path in files {
        if let Err(error) = remove_file(path) {
            tracing::warn!("{}", crate::status::chain(&error));
        }
    }
}

fn remove_file(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(StoreError::file("remove", path, error))
        }
        _ => Ok(()),
    }
}
