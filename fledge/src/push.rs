//! From a manifest on this machine to a registry: what is sent, and whether it may be.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use volant_oci::plugin::{File, Package};
use volant_spec::{Manifest, manifest::SIGNATURE_SUFFIX};
use volant_trust::{KeyId, PublicKey, Signature, SignatureError, VerifyError, verify};

use crate::{
    files,
    local::{self, LocalError, State, Wrong},
};

/// No signature is larger, in bytes.
const MAX_SIGNATURE: usize = 64 * 1024;

/// Why a plugin is not pushed.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    #[error(transparent)]
    Local(#[from] LocalError),
    #[error("cannot push {}: the artifact '{field}' is not what it says", manifest.display())]
    Artifact {
        manifest: PathBuf,
        field: String,
        source: Box<Wrong>,
    },
    #[error("cannot read the signature {}", path.display())]
    Signature { path: PathBuf, source: io::Error },
    #[error("cannot push {path}: its signature does not fit; sign it again: fledge sign {path}", path = path.display())]
    Unfit { path: PathBuf, source: Unfit },
    #[error("there is no *.manifest.json in {}; run `fledge build`, or name the manifest", .0.display())]
    NoManifest(PathBuf),
    #[error("there are several manifests in {folder}: name one of {names}", folder = folder.display(), names = names.join(", "))]
    SeveralManifests { folder: PathBuf, names: Vec<String> },
    #[error("cannot list {}", path.display())]
    List { path: PathBuf, source: io::Error },
}

/// A plugin with all that goes to a registry.
#[derive(Debug)]
pub struct Packed {
    pub manifest: Manifest,
    pub package: Package,
    /// Artifacts that stay where they are, on the web.
    pub elsewhere: Vec<String>,
}

/// Why a signature is none of this manifest.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    #[error(transparent)]
    Signature(#[from] SignatureError),
    #[error(transparent)]
    Verify(#[from] VerifyError),
}

/// What is known of a signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is that of the key, over this manifest.
    Verified,
    /// It is another key's: nobody looked.
    Unchecked(KeyId),
}

/// Verifies the signature of a manifest when the key is the one that it names, or when it `must_be` that.
///
/// # Errors
/// It is no signature, or none of this manifest.
pub fn standing(
    manifest: &[u8],
    signature: &[u8],
    key: Option<&PublicKey>,
    must_be: bool,
) -> Result<Standing, Unfit> {
    let signature = Signature::parse(signature)?;
    match key {
        Some(key) if must_be || key.id() == signature.key_id() => {
            verify(key, manifest, &signature)?;
            Ok(Standing::Verified)
        }
        _ => Ok(Standing::Unchecked(signature.key_id())),
    }
}

/// Reads a manifest, the signature beside it, and looks at each of its artifacts.
pub fn pack(path: &Path) -> Result<Packed, PackError> {
    let bytes = local::read(path)?;
    let manifest = local::parse(path, &bytes)?;
    let (mut artifacts, mut elsewhere) = (Vec::new(), Vec::new());
    for artifact in local::artifacts(path, &manifest) {
        match (artifact.state, artifact.path) {
            (State::Right, Some(file)) => {
                let size = file.metadata().map_err(|source| PackError::Artifact {
                    manifest: path.to_owned(),
                    field: artifact.field.clone(),
                    source: Box::new(Wrong::Read {
                        path: file.clone(),
                        source,
                    }),
                })?;
                let title = title(&artifact.url, &file);
                artifacts.push(File {
                    title,
                    path: file,
                    digest: artifact.checksum,
                    size: size.len(),
                });
            }
            (State::Right | State::Elsewhere, _) => elsewhere.push(artifact.url),
            (State::Wrong(source), _) => {
                let (manifest, field) = (path.to_owned(), artifact.field);
                return Err(PackError::Artifact {
                    manifest,
                    field,
                    source: Box::new(source),
                });
            }
        }
    }
    let package = Package {
        name: manifest.name.to_string(),
        version: manifest.version.to_string(),
        description: manifest.description.clone(),
        created: None,
        manifest: bytes,
        signature: signature(path)?,
        artifacts,
    };
    Ok(Packed {
        manifest,
        package,
        elsewhere,
    })
}

/// The one manifest in a folder.
pub fn only_manifest(folder: &Path) -> Result<PathBuf, PackError> {
    let failed = |source| PackError::List {
        path: folder.to_owned(),
        source,
    };
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let name = entry
            .map_err(failed)?
            .file_name()
            .to_string_lossy()
            .into_owned();
        if name.ends_with(".manifest.json") {
            names.push(name);
        }
    }
    names.sort();
    match names.len() {
        0 => Err(PackError::NoManifest(folder.to_owned())),
        1 => Ok(folder.join(&names[0])),
        _ => Err(PackError::SeveralManifests {
            folder: folder.to_owned(),
            names,
        }),
    }
}

/// A path below the manifest is the file's name for whoever pulls it; of any other, its last part.
fn title(url: &str, file: &Path) -> String {
    let below = !url.contains(':')
        && !url.starts_with('/')
        && url.split('/').all(|part| !matches!(part, "" | "." | ".."));
    match file.file_name() {
        Some(name) if !below => name.to_string_lossy().into_owned(),
        _ => url.to_owned(),
    }
}

fn signature(manifest: &Path) -> Result<Option<Vec<u8>>, PackError> {
    let mut path = manifest.as_os_str().to_owned();
    path.push(SIGNATURE_SUFFIX);
    let path = PathBuf::from(path);
    match files::read(&path, MAX_SIGNATURE) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(PackError::Signature { path, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_keeps_the_name_that_the_manifest_gives_it() {
        let cases = [
            ("a.squashfs", "a.squashfs"),
            ("files/a.squashfs", "files/a.squashfs"),
            ("../a.squashfs", "a.squashfs"),
            ("/srv/a.squashfs", "a.squashfs"),
            ("file:///srv/a.squashfs", "a.squashfs"),
            ("./a.squashfs", "a.squashfs"),
        ];
        for (url, expected) in cases {
            assert_eq!(title(url, Path::new("/srv/a.squashfs")), expected, "{url}");
        }
    }

    #[test]
    fn a_folder_with_one_manifest_needs_no_name() {
        let folder = tempfile::tempdir().unwrap();
        let only = || only_manifest(folder.path());
        assert!(matches!(only(), Err(PackError::NoManifest(_))));
        fs::write(folder.path().join("b.manifest.json"), "{}").unwrap();
        assert_eq!(only().unwrap(), folder.path().join("b.manifest.json"));
        fs::write(folder.path().join("a.manifest.json"), "{}").unwrap();
        let error = only().unwrap_err().to_string();
        assert!(
            error.contains("a.manifest.json, b.manifest.json"),
            "{error}"
        );
    }
}
