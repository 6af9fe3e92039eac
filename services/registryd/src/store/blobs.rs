//! Artifacts: files named by their digest, and the rows that vouch for them.
//!
//! A row is written after its file is whole, verified and on disk; a file without a row is an orphan of a crash.
//! Files of removed rows go last. So whatever a row names was there, and a cut leaves at most an orphan.

use std::{
    collections::HashSet,
    fs, io,
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

/// What a collection takes of that which nothing refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Collect {
    /// Artifacts that nobody wanted for [`UNUSED_FOR`], and old remains of downloads.
    Stale,
    /// Also what a broken install fetched. An upload still waits for its install.
    All,
}

/// What was removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    pub artifacts: u64,
    pub bytes: u64,
}

/// Who brings an artifact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bringer {
    /// A client, which installs it in a call of its own.
    Upload,
    /// An install, which has it pinned.
    Install,
}

/// What is known of an artifact.
#[derive(Clone, Debug)]
pub(super) struct Record {
    pub(super) size: u64,
    pub(super) verity: Option<String>,
    pub(super) stamp: Option<String>,
    /// Its bytes are not its own, whatever the others tell.
    pub(super) damaged: bool,
}

impl Store {
    /// As [`Store::there`], for a client that means to install it: one that nothing uses yet is kept for another
    /// [`UNUSED_FOR`].
    ///
    /// # Errors
    /// The database or the file system failed.
    pub fn blob(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        let size = self.there(digest)?;
        if size.is_some() {
            self.lock()
                .execute(
                    "UPDATE blobs SET wanted_at = ?2, uploaded = 1 WHERE digest = ?1",
                    params![digest.hex(), seconds(SystemTime::now())],
                )
                .map_err(|source| self.failed("note that an artifact is wanted", source))?;
        }
        Ok(size)
    }

    /// Keeps what was received, durably, once its bytes match `digest`. Answers its size.
    ///
    /// # Errors
    /// The bytes do not match, or cannot be kept; nothing is then.
    pub fn keep(
        &self,
        incoming: Incoming,
        digest: &Digest,
        bringer: Bringer,
    ) -> Result<u64, BlobError> {
        let verified = incoming.verify(digest)?;
        let db = self.lock();
        let put = verified.put(&self.blob_path(digest))?;
        db.execute(
            "INSERT INTO blobs (digest, size, verity, stamp, wanted_at, uploaded) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
             ON CONFLICT (digest) DO UPDATE SET
                 size = excluded.size, verity = excluded.verity, stamp = excluded.stamp, damaged = 0,
                 wanted_at = excluded.wanted_at, uploaded = max(uploaded, excluded.uploaded)",
            params![
                digest.hex(),
                put.size,
                put.verity,
                put.stamp,
                seconds(SystemTime::now()),
                bringer == Bringer::Upload,
            ],
        )
        .map_err(|source| self.failed("keep an artifact", source))?;
        Ok(put.size)
    }

    /// Removes artifacts that nothing refers to, orphans, and remains of downloads.
    ///
    /// # Errors
    /// The database or the file system failed.
    pub fn collect(&self, what: Collect, now: SystemTime) -> Result<Collected, StoreError> {
        let db = self.lock();
        let mut collected = Collected::default();
        let mut add = |count: u64, bytes: u64| {
            collected.artifacts += count;
            collected.bytes += bytes;
        };
        for (hex, size) in self.collectable(&db, what, now)? {
            db.execute("DELETE FROM blobs WHERE digest = ?1", [&hex])
                .map_err(|source| self.failed("forget an artifact", source))?;
            remove_file(&self.blobs_dir().join(&hex))?;
            add(1, size);
        }
        let kept: HashSet<String> = self
            .query(&db, "SELECT digest FROM blobs", [], |row| row.get(0))?
            .into_iter()
            .collect();
        let dir = self.blobs_dir();
        let failed = |source| StoreError::file("read", &dir, source);
        for entry in fs::read_dir(&dir).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let orphan = entry
                .file_name()
                .to_str()
                .is_none_or(|name| !kept.contains(name));
            if orphan {
                let size = entry.metadata().map_err(failed)?.len();
                remove_file(&entry.path())?;
                add(1, size);
            }
        }
        let (count, bytes) = self.collect_partials(now, what == Collect::All)?;
        add(count, bytes);
        Ok(collected)
    }

    /// Digest and size of what goes.
    fn collectable(
        &self,
        db: &Connection,
        what: Collect,
        now: SystemTime,
    ) -> Result<Vec<(String, u64)>, StoreError> {
        // A time in the future is that of a clock that was set back: young, too.
        let young_from = seconds(now) - i64::try_from(UNUSED_FOR.as_secs()).unwrap_or(i64::MAX);
        let sql = format!(
            "SELECT digest, size FROM blobs WHERE {UNREFERENCED}
             AND NOT (coalesce(wanted_at, 0) > ?1 AND uploaded >= ?2)"
        );
        let only_uploads = what == Collect::All;
        let mut found: Vec<(String, u64)> =
            self.query(db, &sql, params![young_from, only_uploads], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })?;
        found.retain(|(hex, _)| !self.is_pinned(hex));
        Ok(found)
    }

    /// Forgets those of `digests` that nothing uses any more and nobody waits for; their files are for the caller to remove
    /// once the transaction is durable.
    pub(super) fn forget_unused(
        &self,
        tx: &Connection,
        digests: &[String],
    ) -> Result<Vec<PathBuf>, StoreError> {
        let mut files = Vec::new();
        for hex in digests.iter().filter(|hex| !self.is_pinned(hex)) {
            let gone = tx
                .execute(
                    &format!(
                        "DELETE FROM blobs WHERE digest = ?1 AND wanted_at IS NULL AND {UNREFERENCED}"
                    ),
                    [hex],
                )
                .map_err(|source| self.failed("forget an artifact", source))?;
            if gone > 0 {
                files.push(self.blobs_dir().join(hex));
            }
        }
        Ok(files)
    }

    /// Removes those of `digests` that were sent for an install and that nothing refers to, as their install does not come.
    ///
    /// # Errors
    /// The database failed: nothing is removed then.
    pub fn forget_uploads(&self, digests: &[Digest]) -> Result<(), StoreError> {
        let failed = |source| self.failed("forget what was sent", source);
        let mut db = self.lock();
        let tx = db.transaction().map_err(failed)?;
        let mut sent = Vec::new();
        for hex in digests.iter().map(Digest::hex) {
            if self.is_pinned(&hex) {
                continue;
            }
            let sql = "UPDATE blobs SET wanted_at = NULL, uploaded = 0 WHERE digest = ?1 AND uploaded = 1";
            if tx.execute(sql, [&hex]).map_err(failed)? > 0 {
                sent.push(hex);
            }
        }
        let files = self.forget_unused(&tx, &sent)?;
        tx.commit().map_err(failed)?;
        remove_files(&files);
        Ok(())
    }

    /// Notes that a plugin uses an artifact now: nobody waits for it any more.
    pub(super) fn installed(&self, tx: &Connection, digest: &Digest) -> Result<(), StoreError> {
        tx.execute(
            "UPDATE blobs SET wanted_at = NULL, uploaded = 0 WHERE digest = ?1",
            [digest.hex()],
        )
        .map_err(|source| self.failed("note that an artifact is used", source))?;
        Ok(())
    }

    /// Remembers that the file which `known` tells of has other bytes than its own; another in its place since then is not
    /// meant.
    pub(super) fn mark_damaged(&self, digest: &Digest, known: &Record) -> Result<(), StoreError> {
        self.lock()
            .execute(
                "UPDATE blobs SET verity = NULL, stamp = NULL, damaged = 1
                 WHERE digest = ?1 AND verity IS ?2 AND stamp IS ?3",
                params![digest.hex(), known.verity, known.stamp],
            )
            .map_err(|source| self.failed("remember that an artifact is damaged", source))?;
        Ok(())
    }

    /// The size of an artifact that is there, whole as far as is known without reading it.
    pub(super) fn stored_size(
        &self,
        db: &Connection,
        digest: &Digest,
    ) -> Result<Option<u64>, StoreError> {
        let Some(record) = self.record(db, digest)?.filter(|known| !known.damaged) else {
            return Ok(None);
        };
        let path = self.blob_path(digest);
        match fs::metadata(&path) {
            Ok(meta) => Ok((meta.len() == record.size).then_some(record.size)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StoreError::file("read", &path, source)),
        }
    }

    pub(super) fn record(
        &self,
        db: &Connection,
        digest: &Digest,
    ) -> Result<Option<Record>, StoreError> {
        db.query_row(
            "SELECT size, verity, stamp, damaged FROM blobs WHERE digest = ?1",
            [digest.hex()],
            |row| {
                Ok(Record {
                    size: row.get(0)?,
                    verity: row.get(1)?,
                    stamp: row.get(2)?,
                    damaged: row.get(3)?,
                })
            },
        )
        .optional()
        .map_err(|source| self.failed("look up an artifact", source))
    }

    pub(super) fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.blobs_dir().join(digest.hex())
    }

    fn is_pinned(&self, hex: &str) -> bool {
        hex.parse().is_ok_and(|digest| self.pins.has(&digest))
    }
}

/// Since 1970.
fn seconds(at: SystemTime) -> i64 {
    let since = at
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// Removes files of artifacts that no row names any more. A failure is logged: the next collection removes them.
pub(super) fn remove_files(files: &[PathBuf]) {
    for path in files {
        if let Err(error) = remove_file(path) {
            tracing::warn!("{}", crate::status::chain(&error));
        }
    }
}

pub(super) fn remove_file(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(StoreError::file("remove", path, error))
        }
        _ => Ok(()),
    }
}
