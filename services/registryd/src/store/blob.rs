//! One artifact on its way in: a temporary file, hashed while it is written.
//!
//! The file is gone when the value is dropped, unless it was put in its place.

use std::{
    fs::Permissions,
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;
use volant_spec::Digest;

use super::{Store, StoreError, sync_dir};

/// Why an artifact was not kept.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    #[error("the bytes have the checksum {actual}, not {expected}")]
    Mismatch { expected: Digest, actual: Digest },
    #[error("there are more than {limit} bytes; no larger artifact is taken")]
    TooLarge { limit: u64 },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Bytes that were received so far.
#[derive(Debug)]
pub struct Incoming {
    file: NamedTempFile,
    hash: Sha256,
    size: u64,
    limit: u64,
    state_dir: PathBuf,
}

/// Bytes that match the digest that they were announced with.
#[derive(Debug)]
pub(super) struct Verified {
    file: NamedTempFile,
    size: u64,
    state_dir: PathBuf,
}

impl Store {
    /// Begins to receive an artifact.
    ///
    /// # Errors
    /// No temporary file can be made.
    pub fn receive(&self) -> Result<Incoming, BlobError> {
        let dir = self.incoming_dir();
        let file =
            NamedTempFile::new_in(&dir).map_err(|e| StoreError::writing(self.dir(), &dir, e))?;
        Ok(Incoming {
            file,
            hash: Sha256::new(),
            size: 0,
            limit: self.max_blob_bytes(),
            state_dir: self.dir().to_owned(),
        })
    }
}

impl Incoming {
    /// Appends bytes.
    ///
    /// # Errors
    /// Too many in all, or they cannot be written.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), BlobError> {
        let size = self.size.saturating_add(bytes.len() as u64);
        if size > self.limit {
            return Err(BlobError::TooLarge { limit: self.limit });
        }
        self.file
            .write_all(bytes)
            .map_err(|e| StoreError::writing(&self.state_dir, self.file.path(), e))?;
        self.hash.update(bytes);
        self.size = size;
        Ok(())
    }

    /// How many bytes there are so far.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    pub(super) fn verify(self, expected: &Digest) -> Result<Verified, BlobError> {
        let actual = Digest::from_bytes(self.hash.finalize().into());
        if actual != *expected {
            return Err(BlobError::Mismatch {
                expected: *expected,
                actual,
            });
        }
        // To disk before anything waits for the store's lock.
        self.file
            .as_file()
            .set_permissions(Permissions::from_mode(0o444))
            .and_then(|()| self.file.as_file().sync_all())
            .map_err(|e| StoreError::writing(&self.state_dir, self.file.path(), e))?;
        Ok(Verified {
            file: self.file,
            size: self.size,
            state_dir: self.state_dir,
        })
    }
}

impl Verified {
    /// Puts the file in its place, durably; another one there is replaced.
    pub(super) fn put(self, path: &Path) -> Result<u64, StoreError> {
        let failed = |e: io::Error| StoreError::writing(&self.state_dir, path, e);
        self.file.persist(path).map_err(|e| failed(e.error))?;
        path.parent().map_or(Ok(()), sync_dir).map_err(failed)?;
        Ok(self.size)
    }
}
