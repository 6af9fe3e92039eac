//! `fledge keygen`: a key pair in minisign's files.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
};

use volant_trust::{PublicKey, SecretKey, SecretKeyError};

use crate::files::{self, Pending};

/// No key's file that may be replaced is larger.
const MAX_KEY_BYTES: usize = 64 * 1024;

/// Where the two halves go.
#[derive(Clone, Debug)]
pub struct KeyFiles {
    pub secret: PathBuf,
    pub public: PathBuf,
}

/// Why there is no new key pair.
#[derive(Debug, thiserror::Error)]
pub enum KeygenError {
    #[error("{} is there already; --force replaces it, and what it signed can then be signed no more", .0.display())]
    Exists(PathBuf),
    #[error("{} and {} would be one file", .0.secret.display(), .0.public.display())]
    Same(KeyFiles),
    #[error("{} is no regular file: --force replaces keys alone", .0.display())]
    NoFile(PathBuf),
    #[error("cannot read {}, which would be replaced", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Key(#[from] SecretKeyError),
    #[error("cannot write {}", path.display())]
    Write { path: PathBuf, source: io::Error },
}

impl KeyFiles {
    /// Checks that a key pair may be written, before anyone is asked for a password.
    ///
    /// # Errors
    /// One of the files is there and may not be replaced.
    pub fn check(&self, replace: bool) -> Result<(), KeygenError> {
        if place(&self.secret) == place(&self.public) {
            return Err(KeygenError::Same(self.clone()));
        }
        for path in [&self.secret, &self.public] {
            if !replace && path.symlink_metadata().is_ok() {
                return Err(KeygenError::Exists(path.clone()));
            }
            if path.metadata().is_ok_and(|metadata| !metadata.is_file()) {
                return Err(KeygenError::NoFile(path.clone()));
            }
        }
        Ok(())
    }

    /// Makes a key pair, and writes its secret half for the owner alone.
    ///
    /// # Errors
    /// As [`KeyFiles::check`], or a file cannot be written; what was there before is there still, and no new half.
    pub fn generate(
        &self,
        password: Option<&str>,
        replace: bool,
    ) -> Result<PublicKey, KeygenError> {
        self.check(replace)?;
        let key = SecretKey::generate()?;
        let public = key.public();
        let secret = prepare(&self.secret, key.to_file(password)?.as_bytes(), 0o600)?;
        // Both are on the disk before either replaces anything.
        let open = prepare(&self.public, public.to_file().as_bytes(), 0o644)?;
        self.put(secret, open, replace)?;
        Ok(public)
    }

    /// The public half first: it can be had again from the secret one, of which there may be no other.
    fn put(&self, secret: Pending, open: Pending, replace: bool) -> Result<(), KeygenError> {
        let before = match replace {
            true => older(&self.public)?,
            false => None,
        };
        keep(open, &self.public, replace)?;
        let kept = keep(secret, &self.secret, replace);
        if kept.is_err() {
            // The error to tell is that of the secret half.
            let _ = match before {
                Some(before) => keep(before, &self.public, true).is_ok(),
                None => fs::remove_file(&self.public).is_ok(),
            };
        }
        kept
    }
}

/// The file that a path leads to, by whichever of its folder's names.
fn place(path: &Path) -> PathBuf {
    let folder = path
        .parent()
        .filter(|folder| *folder != Path::new(""))
        .unwrap_or(Path::new("."));
    match (folder.canonicalize(), path.file_name()) {
        (Ok(folder), Some(name)) => folder.join(name),
        _ => std::path::absolute(path).unwrap_or_else(|_| path.to_owned()),
    }
}

/// What is at `path`, ready to be put there again.
fn older(path: &Path) -> Result<Option<Pending>, KeygenError> {
    let failed = |source| KeygenError::Read {
        path: path.to_owned(),
        source,
    };
    let bytes = match files::read(path, MAX_KEY_BYTES) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mode = path.metadata().map_err(failed)?.permissions().mode() & 0o777;
    prepare(path, &bytes, mode).map(Some)
}

fn prepare(path: &Path, bytes: &[u8], mode: u32) -> Result<Pending, KeygenError> {
    let folder = path.parent().filter(|folder| *folder != Path::new(""));
    let made = match folder {
        Some(folder) => fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder),
        None => Ok(()),
    };
    made.and_then(|()| files::prepare(path, bytes, mode))
        .map_err(|source| KeygenError::Write {
            path: path.to_owned(),
            source,
        })
}

fn keep(pending: Pending, path: &Path, replace: bool) -> Result<(), KeygenError> {
    pending
        .keep(path, replace)
        .map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => KeygenError::Exists(path.to_owned()),
            _ => KeygenError::Write {
                path: path.to_owned(),
                source,
            },
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_half_that_cannot_be_put_leaves_the_other_as_it_was() {
        for replace in [true, false] {
            let folder = tempfile::tempdir().unwrap();
            let files = KeyFiles {
                secret: folder.path().join("a.key"),
                public: folder.path().join("a.pub"),
            };
            if replace {
                fs::write(&files.public, "old").unwrap();
            }
            let secret = prepare(&files.secret, b"secret", 0o600).unwrap();
            let open = prepare(&files.public, b"new", 0o644).unwrap();
            // It came after the check.
            fs::create_dir(&files.secret).unwrap();
            files.put(secret, open, replace).unwrap_err();
            let left = fs::read_to_string(&files.public).ok();
            assert_eq!(left.as_deref(), replace.then_some("old"));
            assert_eq!(
                fs::read_dir(folder.path()).unwrap().count(),
                1 + usize::from(replace)
            );
        }
    }

    #[test]
    fn one_file_by_two_names_is_not_for_both_halves() {
        let folder = tempfile::tempdir().unwrap();
        let files = KeyFiles {
            secret: folder.path().join("a"),
            public: folder.path().join("./a"),
        };
        assert!(matches!(files.check(true), Err(KeygenError::Same(_))));
    }
}
