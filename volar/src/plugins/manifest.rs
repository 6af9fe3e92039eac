//! A manifest on this machine, its signature, and where its artifacts are. The artifacts are only named.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use url::Url;
use volant_spec::{
    Digest, Manifest,
    manifest::{MAX_BYTES, SIGNATURE_SUFFIX},
};
use volant_trust::MAX_SIGNATURE_BYTES;

use crate::failure::Failure;

/// A valid manifest, as it was written, with its local artifacts.
#[derive(Debug)]
pub struct Local {
    pub written: String,
    pub artifacts: Vec<LocalArtifact>,
}

/// An artifact that is a file here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalArtifact {
    /// The manifest's field.
    pub field: String,
    pub path: PathBuf,
    pub digest: Digest,
    pub size: Option<u64>,
}

/// Reads a manifest. A file that is too large is not read.
pub fn read(path: &Path) -> Result<Local, Failure> {
    let failed = |source| Failure::ReadManifest {
        path: path.to_owned(),
        source,
    };
    let bytes = match bounded(path, MAX_BYTES).map_err(failed)? {
        Bounded::Whole(bytes) => bytes,
        Bounded::TooLarge(size) => {
            let path = path.to_owned();
            return Err(Failure::ManifestTooLarge { path, size });
        }
    };
    let manifest = Manifest::parse(&bytes).map_err(|source| Failure::Manifest {
        path: path.to_owned(),
        source,
    })?;
    let written = text(bytes).map_err(failed)?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut artifacts = Vec::new();
    for artifact in manifest.artifacts() {
        let (field, url) = (artifact.field, artifact.url);
        let Some(found) = local_path(folder, url) else {
            let (artifact, url) = (field, url.to_owned());
            return Err(Failure::ArtifactUrl { artifact, url });
        };
        if let Some(path) = found {
            artifacts.push(LocalArtifact {
                field,
                path,
                digest: artifact.checksum,
                size: artifact.size,
            });
        }
    }
    Ok(Local { written, artifacts })
}

/// Reads the signature of a manifest: from `given`, which must be there then, or from beside the manifest.
pub fn signature(manifest: &Path, given: Option<&Path>) -> Result<Option<String>, Failure> {
    let path = given.map_or_else(|| beside(manifest), Path::to_owned);
    let read = bounded(&path, MAX_SIGNATURE_BYTES).and_then(|read| match read {
        Bounded::Whole(bytes) => text(bytes).map(Some),
        Bounded::TooLarge(size) => Err(io::Error::other(format!(
            "it has {size} bytes; a signature has at most {MAX_SIGNATURE_BYTES}"
        ))),
    });
    match read {
        Err(error) if given.is_none() && error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Failure::Signature { path, source }),
        read => Ok(read.unwrap_or_default()),
    }
}

/// Where the signature of a manifest is by default.
fn beside(manifest: &Path) -> PathBuf {
    let mut path = manifest.as_os_str().to_owned();
    path.push(SIGNATURE_SUFFIX);
    path.into()
}

enum Bounded {
    Whole(Vec<u8>),
    /// At least of that many bytes.
    TooLarge(u64),
}

/// Reads a file of at most so many bytes; one that is larger is not read.
fn bounded(path: &Path, most: usize) -> io::Result<Bounded> {
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    if size > most as u64 {
        return Ok(Bounded::TooLarge(size));
    }
    let mut bytes = Vec::new();
    // What is no ordinary file may hold more than it says.
    file.take(most as u64 + 1).read_to_end(&mut bytes)?;
    Ok(if bytes.len() > most {
        Bounded::TooLarge(bytes.len() as u64)
    } else {
        Bounded::Whole(bytes)
    })
}

fn text(bytes: Vec<u8>) -> io::Result<String> {
    String::from_utf8(bytes)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is no UTF-8 text"))
}

/// The file that a URL means: `Some(None)` for one that Volant fetches itself, `None` for none at all.
fn local_path(folder: &Path, url: &str) -> Option<Option<PathBuf>> {
    if !url.contains("://") {
        let is_path = !url.is_empty() && !url.contains('\0');
        return is_path.then(|| Some(folder.join(url)));
    }
    let url = Url::parse(url).ok()?;
    match url.scheme() {
        "http" | "https" => Some(None),
        "file" => url.to_file_path().ok().map(Some),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_artifact_is_found_from_the_manifests_folder() {
        let cases = [
            ("caddy.cpio.gz", Some(Some("/m/caddy.cpio.gz"))),
            ("../caddy.cpio.gz", Some(Some("/m/../caddy.cpio.gz"))),
            ("/a/caddy.cpio.gz", Some(Some("/a/caddy.cpio.gz"))),
            ("file:///a/my%20caddy", Some(Some("/a/my caddy"))),
            ("https://example.com/caddy", Some(None)),
            ("http://example.com/caddy", Some(None)),
            ("file://caddy.cpio.gz", None),
            ("ftp://example.com/caddy", None),
            ("https://", None),
            ("", None),
        ];
        for (url, expected) in cases {
            let expected = expected.map(|path| path.map(PathBuf::from));
            assert_eq!(local_path(Path::new("/m"), url), expected, "{url}");
        }
    }
}
