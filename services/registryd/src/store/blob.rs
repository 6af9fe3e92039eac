//! One artifact on its way in: a file that is hashed while it is written, and then put in its place.
//!
//! An upload's file is gone when the value is dropped. A download's has the digest as its name and stays, so that the next
//! download goes on where this one ended.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Read, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;
use volant_spec::Digest;

use super::{Store, StoreError, check, sync_dir, turns::Turn, verity};

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
    path: PathBuf,
    file: File,
    hash: Sha256,
    size: u64,
    limit: u64,
    state_dir: PathBuf,
    /// What happens to the file when this is dropped.
    left: Left,
    /// Given back last, when the file is where it stays.
    turn: Option<Turn>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    /// It is removed.
    Nothing,
    /// It stays, for the next download.
    Bytes,
    /// It is elsewhere now.
    Put,
}

/// Bytes that match the digest that they were announced with, on disk.
#[derive(Debug)]
pub(super) struct Verified {
    incoming: Incoming,
    verity: Option<String>,
}

/// An artifact in its place.
#[derive(Debug)]
pub(super) struct Put {
    pub(super) size: u64,
    pub(super) verity: Option<String>,
    pub(super) stamp: String,
}

impl Store {
    /// Begins to receive an artifact.
    ///
    /// # Errors
    /// No temporary file can be made.
    pub fn receive(&self) -> Result<Incoming, BlobError> {
        let dir = self.incoming_dir();
        let (file, path) = NamedTempFile::new_in(&dir)
            .and_then(|file| Ok(file.keep()?))
            .map_err(|e| StoreError::writing(self.dir(), &dir, e))?;
        Ok(self.incoming(path, file, Left::Nothing))
    }

    /// Goes on to receive the artifact `digest` where the last download of it ended: what is there of it is read again.
    /// Waits for whoever writes to it still: the last write of a call that was given up, say.
    ///
    /// # Errors
    /// The file cannot be opened or read.
    pub fn resume(&self, digest: &Digest) -> Result<Incoming, BlobError> {
        let path = self.partial_dir().join(digest.hex());
        let failed = |e| StoreError::writing(self.dir(), &path, e);
        let turn = self.turns.wait(*digest);
        let file = open_partial(&path).map_err(failed)?;
        let mut incoming = self.incoming(path.clone(), file, Left::Bytes);
        incoming.turn = Some(turn);
        let mut buffer = vec![0; 256 * 1024];
        loop {
            let got = incoming.file.read(&mut buffer).map_err(failed)?;
            if got == 0 {
                break;
            }
            incoming.hash.update(&buffer[..got]);
            incoming.size += got as u64;
        }
        if incoming.size > incoming.limit {
            incoming.restart()?;
        }
        Ok(incoming)
    }

    fn incoming(&self, path: PathBuf, file: File, left: Left) -> Incoming {
        Incoming {
            path,
            file,
            hash: Sha256::new(),
            size: 0,
            limit: self.max_blob_bytes(),
            state_dir: self.dir().to_owned(),
            left,
            turn: None,
        }
    }
}

/// Opens what is left of a download for more. One that was sealed, and not put in its place before the process ended, is
/// unsealed; one that nothing unseals begins anew.
fn open_partial(path: &Path) -> io::Result<File> {
    match fs::metadata(path) {
        Ok(meta) if meta.permissions().mode() & 0o200 == 0 => {
            fs::set_permissions(path, Permissions::from_mode(0o600))?;
        }
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let open = || {
        let mut options = OpenOptions::new();
        let options = options.read(true).append(true).create(true).mode(0o600);
        options.open(path)
    };
    match open() {
        // fs-verity's files are never written to again.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            fs::remove_file(path)?;
            open()
        }
        opened => opened,
    }
}

impl Incoming {
    /// Appends bytes.
    ///
    /// # Errors
    /// Too many in all, or they cannot be written: nothing is left then.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), BlobError> {
        let size = self.size.saturating_add(bytes.len() as u64);
        if size > self.limit {
            self.left = Left::Nothing;
            return Err(BlobError::TooLarge { limit: self.limit });
        }
        if let Err(error) = self.file.write_all(bytes) {
            // A full disk needs the room, and what came of a broken write is not known.
            self.left = Left::Nothing;
            return Err(StoreError::writing(&self.state_dir, &self.path, error).into());
        }
        self.hash.update(bytes);
        self.size = size;
        Ok(())
    }

    /// How many bytes there are so far.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Forgets what was received.
    ///
    /// # Errors
    /// The file cannot be made empty.
    pub fn restart(&mut self) -> Result<(), BlobError> {
        let emptied = self.file.set_len(0);
        emptied.map_err(|e| StoreError::writing(&self.state_dir, &self.path, e))?;
        self.hash = Sha256::new();
        self.size = 0;
        Ok(())
    }

    /// Has nothing stay when this is dropped.
    pub fn discard(&mut self) {
        self.left = Left::Nothing;
    }

    /// The digest of what was received.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::from_bytes(self.hash.clone().finalize().into())
    }

    pub(super) fn verify(mut self, expected: &Digest) -> Result<Verified, BlobError> {
        let actual = self.digest();
        if actual != *expected {
            self.left = Left::Nothing;
            return Err(BlobError::Mismatch {
                expected: *expected,
                actual,
            });
        }
        // To disk before anything waits for the store's lock.
        let verity = self
            .seal()
            .map_err(|e| StoreError::writing(&self.state_dir, &self.path, e))?;
        Ok(Verified {
            incoming: self,
            verity,
        })
    }

    /// From now on nobody writes to the file. Answers fs-verity's digest where the file system has it.
    fn seal(&mut self) -> io::Result<Option<String>> {
        self.file.sync_all()?;
        // fs-verity wants nobody who may write; this closes the one that could.
        self.file = File::open(&self.path)?;
        let verity = match verity::enable(&self.file) {
            Ok(()) => verity::measure(&self.file),
            Err(error) => {
                tracing::debug!("{} goes without fs-verity: {error}", self.path.display());
                None
            }
        };
        self.file.set_permissions(Permissions::from_mode(0o444))?;
        self.file.sync_all()?;
        Ok(verity)
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        let keep = match self.left {
            Left::Put => true,
            Left::Bytes => self.size > 0,
            Left::Nothing => false,
        };
        if keep {
            return;
        }
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

impl Verified {
    /// Puts the file in its place, durably; another one there is replaced.
    pub(super) fn put(mut self, path: &Path) -> Result<Put, StoreError> {
        let incoming = &mut self.incoming;
        let failed = |e: io::Error| StoreError::writing(&incoming.state_dir, path, e);
        fs::rename(&incoming.path, path).map_err(failed)?;
        incoming.left = Left::Put;
        let failed = |e: io::Error| StoreError::writing(&incoming.state_dir, path, e);
        path.parent().map_or(Ok(()), sync_dir).map_err(failed)?;
        // Renaming changed it: the stamp is taken last.
        let meta = incoming.file.metadata().map_err(failed)?;
        Ok(Put {
            size: incoming.size,
            verity: self.verity,
            stamp: check::stamp(&meta),
        })
    }
}
