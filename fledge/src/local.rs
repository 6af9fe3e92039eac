//! A manifest on this machine, and whether the artifacts beside it are those that it means.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};
use url::Url;
use volant_spec::{
    Digest, Manifest,
    manifest::{MAX_BYTES, ManifestError, Named},
};

use crate::files;

/// What became of one artifact.
#[derive(Debug)]
pub struct Artifact {
    /// `initramfs`, `rootfs`, `kernel`, `disks.NAME`.
    pub field: String,
    pub url: String,
    pub checksum: Digest,
    /// Where it is on this machine.
    pub path: Option<PathBuf>,
    pub state: State,
}

/// Whether an artifact is what its manifest says.
#[derive(Debug)]
pub enum State {
    /// Size and digest are right.
    Right,
    /// It is on another machine: nobody looked.
    Elsewhere,
    Wrong(Wrong),
}

/// Why an artifact is not what its manifest says.
#[derive(Debug, thiserror::Error)]
pub enum Wrong {
    #[error("{} cannot be read", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} has {found} bytes, not the {expected} of the manifest", path.display())]
    Size {
        path: PathBuf,
        found: u64,
        expected: u64,
    },
    #[error("{} has the digest {found}, not {expected} as the manifest says", path.display())]
    Digest {
        path: PathBuf,
        found: Digest,
        expected: Digest,
    },
    #[error("the URL '{}' leads to no file", .0.escape_debug())]
    Url(String),
}

/// Why there is no manifest.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is not a manifest", path.display())]
    Parse {
        path: PathBuf,
        source: ManifestError,
    },
}

/// The manifest's bytes, which may be anything.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, LocalError> {
    files::read(path, MAX_BYTES).map_err(|source| LocalError::Read {
        path: path.to_owned(),
        source,
    })
}

/// The manifest in bytes of the file at `path`.
pub(crate) fn parse(path: &Path, bytes: &[u8]) -> Result<Manifest, LocalError> {
    Manifest::parse(bytes).map_err(|source| LocalError::Parse {
        path: path.to_owned(),
        source,
    })
}

/// Looks at each artifact of the manifest at `path` that is on this machine.
pub(crate) fn artifacts(path: &Path, manifest: &Manifest) -> Vec<Artifact> {
    manifest
        .artifacts()
        .map(|artifact| {
            let (path, state) = state(path, &artifact);
            Artifact {
                state,
                path,
                url: artifact.url.to_owned(),
                checksum: artifact.checksum,
                field: artifact.field,
            }
        })
        .collect()
}

fn state(manifest: &Path, artifact: &Named<'_>) -> (Option<PathBuf>, State) {
    let path = match resolve(manifest, artifact.url) {
        Some(Place::Here(path)) => path,
        Some(Place::Elsewhere) => return (None, State::Elsewhere),
        None => return (None, State::Wrong(Wrong::Url(artifact.url.to_owned()))),
    };
    let state = match check(&path, artifact) {
        Ok(()) => State::Right,
        Err(wrong) => State::Wrong(wrong),
    };
    (Some(path), state)
}

enum Place {
    Here(PathBuf),
    Elsewhere,
}

/// Where a URL leads that stands in the manifest at `path`.
fn resolve(path: &Path, url: &str) -> Option<Place> {
    let base = Url::from_file_path(std::path::absolute(path).ok()?).ok()?;
    let url = base.join(url).ok()?;
    if url.scheme() == "file" {
        url.to_file_path().ok().map(Place::Here)
    } else {
        Some(Place::Elsewhere)
    }
}

fn check(path: &Path, artifact: &Named<'_>) -> Result<(), Wrong> {
    let failed = |source| Wrong::Read {
        path: path.to_owned(),
        source,
    };
    let metadata = path.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(failed(io::Error::other("it is no regular file")));
    }
    if let Some(expected) = artifact.size.filter(|size| *size != metadata.len()) {
        return Err(Wrong::Size {
            path: path.to_owned(),
            found: metadata.len(),
            expected,
        });
    }
    let found = File::open(path).and_then(digest).map_err(failed)?;
    if found != artifact.checksum {
        return Err(Wrong::Digest {
            path: path.to_owned(),
            found,
            expected: artifact.checksum,
        });
    }
    Ok(())
}

fn digest(mut file: File) -> io::Result<Digest> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 128 * 1024];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(Digest::from_bytes(hash.finalize().into())),
            count => hash.update(&buffer[..count]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_lead_from_the_manifests_folder() {
        for (url, expected) in [
            ("a.cpio.gz", Some("/plugins/a.cpio.gz")),
            ("./files/a%20b", Some("/plugins/files/a b")),
            ("../a", Some("/a")),
            ("file:///other/a", Some("/other/a")),
            ("https://example.com/a", None),
            ("oci://example.com/a:1", None),
        ] {
            match resolve(Path::new("/plugins/a.manifest.json"), url) {
                Some(Place::Here(path)) => assert_eq!(path.to_str(), expected, "{url}"),
                Some(Place::Elsewhere) => assert_eq!(expected, None, "{url}"),
                None => panic!("{url} leads nowhere"),
            }
        }
    }
}
