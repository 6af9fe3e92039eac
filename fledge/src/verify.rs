//! `fledge verify`: whether a manifest is the one that a key signed, and its artifacts those that it means.

use std::{
    io,
    path::{Path, PathBuf},
};

use volant_spec::Manifest;
use volant_trust::{
    MAX_SIGNATURE_BYTES, PublicKey, PublicKeyError, Signature, SignatureError, VerifyError, verify,
};

use crate::{
    files,
    local::{self, Artifact, LocalError, State},
    sign::signature_path,
};

/// No public key's file is larger.
const MAX_KEY_BYTES: usize = 64 * 1024;

/// A manifest whose signature is right.
#[derive(Debug)]
pub struct Verified {
    pub manifest: Manifest,
    pub trusted_comment: String,
    /// In seconds since 1970, if the signer said so.
    pub timestamp: Option<u64>,
    /// Those on this machine may be wrong all the same.
    pub artifacts: Vec<Artifact>,
}

/// Why a manifest is not the one that a key signed.
#[derive(Debug, thiserror::Error)]
pub enum VerificationError {
    #[error("cannot read the public key {}", path.display())]
    ReadKey { path: PathBuf, source: io::Error },
    #[error("cannot use the public key {}", path.display())]
    Key {
        path: PathBuf,
        source: PublicKeyError,
    },
    #[error(transparent)]
    Manifest(#[from] LocalError),
    #[error("{} is not signed: there is no {}", manifest.display(), signature_path(manifest).display())]
    NotSigned { manifest: PathBuf },
    #[error("cannot read the signature {}", path.display())]
    ReadSignature { path: PathBuf, source: io::Error },
    #[error("{} is no signature of minisign", path.display())]
    Signature {
        path: PathBuf,
        source: SignatureError,
    },
    #[error("{} cannot be trusted", path.display())]
    Untrusted { path: PathBuf, source: VerifyError },
}

/// Reads a public key's file.
///
/// # Errors
/// It cannot be read, or is something else.
pub fn read_key(path: &Path) -> Result<PublicKey, VerificationError> {
    let text =
        files::read_text(path, MAX_KEY_BYTES).map_err(|source| VerificationError::ReadKey {
            path: path.to_owned(),
            source,
        })?;
    PublicKey::parse(&text).map_err(|source| VerificationError::Key {
        path: path.to_owned(),
        source,
    })
}

impl Verified {
    /// Verifies the signature beside the manifest at `path`, then looks at its artifacts.
    ///
    /// # Errors
    /// The manifest is not the one that `key` signed.
    pub fn read(path: &Path, key: &PublicKey) -> Result<Self, VerificationError> {
        let bytes = local::read(path)?;
        let signature = signature(path)?;
        verify(key, &bytes, &signature).map_err(|source| VerificationError::Untrusted {
            path: path.to_owned(),
            source,
        })?;
        let manifest = local::parse(path, &bytes)?;
        Ok(Self {
            artifacts: local::artifacts(path, &manifest),
            manifest,
            trusted_comment: signature.trusted_comment().to_owned(),
            timestamp: signature.timestamp(),
        })
    }

    /// The artifacts that are missing or others than the manifest says.
    pub fn wrong(&self) -> impl Iterator<Item = &Artifact> {
        self.artifacts
            .iter()
            .filter(|artifact| matches!(artifact.state, State::Wrong(_)))
    }
}

fn signature(manifest: &Path) -> Result<Signature, VerificationError> {
    let path = signature_path(manifest);
    let bytes = files::read(&path, MAX_SIGNATURE_BYTES).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => VerificationError::NotSigned {
            manifest: manifest.to_owned(),
        },
        _ => VerificationError::ReadSignature {
            path: path.clone(),
            source,
        },
    })?;
    Signature::parse(&bytes).map_err(|source| VerificationError::Signature { path, source })
}
