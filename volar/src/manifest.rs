//! A manifest on this machine, and where its artifacts are. Opens the manifest; the artifacts are only named.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use serde_json::value::RawValue;
use url::Url;
use volant_spec::{Digest, Manifest, manifest::MAX_BYTES};

use crate::failure::Failure;

/// A valid manifest, as it was written, with its local artifacts.
#[derive(Debug)]
pub struct Local {
    pub written: Box<RawValue>,
    pub artifacts: Vec<LocalArtifact>,
}

/// An artifact that is a file here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalArtifact {
    /// The manifest's field.
    pub field: &'static str,
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
    let file = File::open(path).map_err(failed)?;
    let size = file.metadata().map_err(failed)?.len();
    let too_large = |size| Failure::ManifestTooLarge {
        path: path.to_owned(),
        size,
    };
    if size > MAX_BYTES as u64 {
        return Err(too_large(size));
    }
    let mut bytes = Vec::new();
    // What is no ordinary file may hold more than it says.
    file.take(MAX_BYTES as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() > MAX_BYTES {
        return Err(too_large(bytes.len() as u64));
    }
    let manifest = Manifest::parse(&bytes).map_err(|source| Failure::Manifest {
        path: path.to_owned(),
        source,
    })?;
    let written = serde_json::from_slice(&bytes)
        .map_err(|error| failed(io::Error::new(io::ErrorKind::InvalidData, error)))?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut artifacts = Vec::new();
    for (field, artifact) in manifest.artifacts() {
        if let Some(path) =
            local_path(folder, &artifact.url).ok_or_else(|| Failure::ArtifactUrl {
                artifact: field,
                url: artifact.url.clone(),
            })?
        {
            let (digest, size) = (artifact.checksum, artifact.size);
            artifacts.push(LocalArtifact {
                field,
                path,
                digest,
                size,
            });
        }
    }
    Ok(Local { written, artifacts })
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
