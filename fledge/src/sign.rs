//! `fledge sign`: a signature beside a manifest, once manifest and artifacts are seen to belong together.

use std::{
    ffi::OsString,
    io,
    path::{Path, PathBuf},
};

use volant_spec::{Manifest, manifest::SIGNATURE_SUFFIX};
use volant_trust::{OpenError, SecretKey, SecretKeyFile, SignError};

use crate::{
    files,
    local::{self, Artifact, LocalError, State, Wrong},
};

/// No secret key's file is larger.
const MAX_KEY_BYTES: usize = 64 * 1024;

/// A manifest that may be signed.
#[derive(Debug)]
pub struct Signable {
    path: PathBuf,
    bytes: Vec<u8>,
    pub manifest: Manifest,
    /// All are right, or elsewhere.
    pub artifacts: Vec<Artifact>,
}

/// Why nothing was signed.
#[derive(Debug, thiserror::Error)]
pub enum SigningError {
    #[error(transparent)]
    Manifest(#[from] LocalError),
    #[error("{} is not signed: its {field} is not what it says", path.display())]
    Artifact {
        path: PathBuf,
        field: String,
        source: Box<Wrong>,
    },
    #[error("cannot read the secret key {}; `fledge keygen` makes one", path.display())]
    ReadKey { path: PathBuf, source: io::Error },
    #[error("cannot use the secret key {}", path.display())]
    Key { path: PathBuf, source: OpenError },
    #[error("cannot sign {}", path.display())]
    Sign { path: PathBuf, source: SignError },
    #[error("cannot write {}", path.display())]
    Write { path: PathBuf, source: io::Error },
}

/// The signature's file of the manifest at `path`.
#[must_use]
pub fn signature_path(path: &Path) -> PathBuf {
    let mut text = OsString::from(path);
    text.push(SIGNATURE_SUFFIX);
    text.into()
}

/// Reads the file of a secret key.
///
/// # Errors
/// It cannot be read, or is something else.
pub fn read_key(path: &Path) -> Result<SecretKeyFile, SigningError> {
    let text = files::read_text(path, MAX_KEY_BYTES).map_err(|source| SigningError::ReadKey {
        path: path.to_owned(),
        source,
    })?;
    SecretKeyFile::parse(&text).map_err(|source| SigningError::Key {
        path: path.to_owned(),
        source,
    })
}

impl Signable {
    /// Reads the manifest at `path` and each of its artifacts that is on this machine.
    ///
    /// # Errors
    /// It is no manifest, or an artifact is missing or another than it says.
    pub fn read(path: &Path) -> Result<Self, SigningError> {
        let bytes = local::read(path)?;
        let manifest = local::parse(path, &bytes)?;
        let mut artifacts = local::artifacts(path, &manifest);
        let wrong = artifacts
            .iter()
            .position(|artifact| matches!(artifact.state, State::Wrong(_)));
        if let Some(at) = wrong
            && let Artifact {
                field,
                state: State::Wrong(source),
                ..
            } = artifacts.swap_remove(at)
        {
            return Err(SigningError::Artifact {
                path: path.to_owned(),
                field,
                source: Box::new(source),
            });
        }
        Ok(Self {
            path: path.to_owned(),
            bytes,
            manifest,
            artifacts,
        })
    }

    /// Writes the signature beside the manifest, in place of an older one. `now` is in seconds since 1970.
    /// Without a `comment` the trusted comment has the file, name and version; the time it always has.
    ///
    /// # Errors
    /// The comment cannot stand in a signature, or the file cannot be written.
    pub fn sign(
        &self,
        key: &SecretKey,
        comment: Option<&str>,
        now: u64,
    ) -> Result<PathBuf, SigningError> {
        let text = key
            .sign(&self.bytes, &self.comment(comment, now))
            .map_err(|source| SigningError::Sign {
                path: self.path.clone(),
                source,
            })?;
        let path = signature_path(&self.path);
        let written = files::prepare(&path, text.as_bytes(), 0o644)
            .and_then(|pending| pending.keep(&path, true));
        match written {
            Ok(()) => Ok(path),
            Err(source) => Err(SigningError::Write { path, source }),
        }
    }

    fn comment(&self, comment: Option<&str>, now: u64) -> String {
        match comment {
            Some(comment)
                if comment
                    .split('\t')
                    .any(|part| part.starts_with("timestamp:")) =>
            {
                comment.to_owned()
            }
            Some(comment) => format!("timestamp:{now}\t{comment}"),
            None => {
                let file = self.path.file_name().unwrap_or_default().to_string_lossy();
                let Manifest { name, version, .. } = &self.manifest;
                format!("timestamp:{now}\tfile:{file}\tname:{name}\tversion:{version}")
            }
        }
    }
}
