//! Whether an artifact is still what it was when it was kept. Each time one is handed out this is found out anew, cheaply:
//! by fs-verity's digest where the file system has it; else by a stamp of the file's inode, and when that is another than
//! when the bytes were last read, by reading them. Nothing here holds the store's lock while it reads.

use std::{
    fmt,
    fs::{File, Metadata},
    io,
    os::unix::fs::{FileExt, MetadataExt},
};

use rusqlite::params;
use sha2::{Digest as _, Sha256};
use volant_spec::Digest;

use super::{Store, StoreError, blobs::Record, verity};

/// What is wrong with an artifact that should be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    Missing,
    Size {
        found: u64,
        expected: u64,
    },
    /// As many bytes as there should be, but others.
    Bytes,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("is missing from the store"),
            Self::Size { found, expected } => {
                write!(f, "is damaged: it has {found} bytes instead of {expected}")
            }
            Self::Bytes => f.write_str("is damaged: its bytes were changed"),
        }
    }
}

/// How an inode was: no write leaves it as it was. The time of the last change (ctime) cannot be set by anyone.
pub(super) fn stamp(meta: &Metadata) -> String {
    format!(
        "{}.{}:{}:{}.{:09}:{}.{:09}",
        meta.dev(),
        meta.ino(),
        meta.len(),
        meta.mtime(),
        meta.mtime_nsec(),
        meta.ctime(),
        meta.ctime_nsec(),
    )
}

impl Store {
    /// The size of an artifact that is there and whole.
    ///
    /// # Errors
    /// The database or the file system failed.
    pub fn there(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        match self.open_blob(digest)? {
            Ok(file) => {
                let meta = file.metadata();
                let meta =
                    meta.map_err(|e| StoreError::file("read", &self.blob_path(digest), e))?;
                Ok(Some(meta.len()))
            }
            Err(_) => Ok(None),
        }
    }

    /// Opens an artifact for reading, once it was found to be whole.
    ///
    /// # Errors
    /// The database or the file system failed.
    pub fn open_blob(&self, digest: &Digest) -> Result<Result<File, Damage>, StoreError> {
        let Some(record) = self.record(&self.lock(), digest)? else {
            return Ok(Err(Damage::Missing));
        };
        let (file, before) = match self.open_sized(digest, &record)? {
            Ok(opened) => opened,
            Err(damage) => return Ok(Err(damage)),
        };
        if record.damaged {
            return Ok(Err(Damage::Bytes));
        }
        let measured = verity::measure(&file);
        let held = measured.is_some() && measured == record.verity;
        let unchanged = record.stamp.as_deref() == Some(before.as_str());
        if held || unchanged {
            return Ok(Ok(file));
        }
        if let Some(damage) = self.damage_in(&file, digest)? {
            return Ok(Err(damage));
        }
        let path = self.blob_path(digest);
        let after = file
            .metadata()
            .map_err(|e| StoreError::file("read", &path, e))?;
        if stamp(&after) == before {
            self.lock()
                .execute(
                    "UPDATE blobs SET verity = ?2, stamp = ?3 WHERE digest = ?1",
                    params![digest.hex(), measured, before],
                )
                .map_err(|source| self.failed("remember that an artifact is whole", source))?;
        }
        Ok(Ok(file))
    }

    /// Reads an artifact from its first to its last byte, whatever vouches for it. `None` when it is whole; one that is not
    /// is handed out no more until it is kept anew.
    ///
    /// # Errors
    /// The database or the file system failed.
    pub fn reread(&self, digest: &Digest) -> Result<Option<Damage>, StoreError> {
        let Some(record) = self.record(&self.lock(), digest)? else {
            return Ok(Some(Damage::Missing));
        };
        let file = match self.open_sized(digest, &record)? {
            Ok(_) if record.damaged => return Ok(Some(Damage::Bytes)),
            Ok((file, _)) => file,
            Err(damage) => return Ok(Some(damage)),
        };
        let damage = self.damage_in(&file, digest)?;
        if damage.is_some() {
            self.mark_damaged(digest, &record)?;
        }
        Ok(damage)
    }

    /// The file and its stamp.
    fn open_sized(
        &self,
        digest: &Digest,
        record: &Record,
    ) -> Result<Result<(File, String), Damage>, StoreError> {
        let path = self.blob_path(digest);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Err(Damage::Missing));
            }
            Err(source) => return Err(StoreError::file("open", &path, source)),
        };
        let meta = file
            .metadata()
            .map_err(|e| StoreError::file("read", &path, e))?;
        let (found, expected) = (meta.len(), record.size);
        if found == expected {
            Ok(Ok((file, stamp(&meta))))
        } else {
            Ok(Err(Damage::Size { found, expected }))
        }
    }

    fn damage_in(&self, file: &File, digest: &Digest) -> Result<Option<Damage>, StoreError> {
        match hash(file) {
            Ok(found) => Ok((found != *digest).then_some(Damage::Bytes)),
            // What fs-verity and broken disks say of bytes that are not what they were.
            Err(error) if error.raw_os_error() == Some(EIO) => Ok(Some(Damage::Bytes)),
            Err(source) => Err(StoreError::file("read", &self.blob_path(digest), source)),
        }
    }
}

const EIO: i32 = 5;

/// Of the whole file; its offset stays where it is.
fn hash(file: &File) -> io::Result<Digest> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 256 * 1024];
    let mut at = 0;
    loop {
        let got = file.read_at(&mut buffer, at)?;
        if got == 0 {
            return Ok(Digest::from_bytes(hash.finalize().into()));
        }
        hash.update(&buffer[..got]);
        at += got as u64;
    }
}
