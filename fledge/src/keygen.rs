//! `fledge keygen`: a key pair in minisign's files.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use volant_trust::{PublicKey, SecretKey, SecretKeyError};

use crate::files::{self, Pending};

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
        if self.secret == self.public {
            return Err(KeygenError::Same(self.clone()));
        }
        let taken = [&self.secret, &self.public]
            .into_iter()
            .find(|path| !replace && path.symlink_metadata().is_ok());
        match taken {
            Some(path) => Err(KeygenError::Exists(path.clone())),
            None => Ok(()),
        }
    }

    /// Makes a key pair, and writes its secret half for the owner alone.
    ///
    /// # Errors
    /// As [`KeyFiles::check`], or a file cannot be written; no half is left then.
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
        keep(secret, &self.secret, replace)?;
        if let Err(error) = keep(open, &self.public, replace) {
            // The error to tell is that of the public half; a secret that nobody can verify is of no use.
            let _ = fs::remove_file(&self.secret);
            return Err(error);
        }
        Ok(public)
    }
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
