//! Where an image comes from, as people write it, and bringing it here.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use volant_spec::Digest;

use crate::{
    archive::docker_image,
    blob::{BlobLayer, Extent},
    cache::{Cache, ProgressFn},
    client::Client,
    config::{ImageConfig, MAX_CONFIG},
    image::{Documents, Image, ImageError, ImageLayer, assemble, find, shown},
    index::Platform,
    layout::{Layout, checked},
    manifest::Descriptor,
    pull::PulledManifest,
    reference::{Reference, ReferenceError},
    tarindex::TarIndex,
    tree::TreeLayer,
};

/// Where an image comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    Registry(Reference),
    /// `oci:DIR[:TAG]`
    Layout {
        dir: PathBuf,
        tag: Option<String>,
    },
    /// `oci-archive:FILE[:TAG]`
    LayoutArchive {
        file: PathBuf,
        tag: Option<String>,
    },
    /// `docker-archive:FILE[:TAG]`
    DockerArchive {
        file: PathBuf,
        tag: Option<String>,
    },
    /// `dir:DIR`: a directory is the root file system, with its files' owners as they are.
    Tree(PathBuf),
    /// `tar:FILE`: a tar, plain or compressed, of a root file system.
    Tar(PathBuf),
}

/// Why a text names no source.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    #[error("'{0}' names no file: write {1}")]
    NoPath(String, &'static str),
    #[error(
        "'{0}' looks like a path: write oci:DIR, oci-archive:FILE, docker-archive:FILE, dir:DIR or tar:FILE"
    )]
    Path(String),
    #[error("'{0}' images cannot be read: copy it with 'skopeo copy … oci:DIR' first")]
    Transport(String),
}

impl Source {
    /// Reads `docker://REFERENCE` or a bare reference, `oci:DIR[:TAG]`, `oci-archive:FILE[:TAG]`,
    /// `docker-archive:FILE[:TAG]`, `dir:DIR` or `tar:FILE`. Relative paths start at `base`.
    ///
    /// # Errors
    /// It is none of these.
    pub fn parse(text: &str, base: &Path) -> Result<Self, SourceError> {
        let tagged = |rest: &str, form| -> Result<(PathBuf, Option<String>), SourceError> {
            let (path, tag) = match rest.split_once(':') {
                Some((path, tag)) => (path, Some(tag.to_owned()).filter(|tag| !tag.is_empty())),
                None => (rest, None),
            };
            Ok((path_of(text, path, base, form)?, tag))
        };
        if let Some(rest) = text.strip_prefix("docker://") {
            return Ok(Self::Registry(rest.parse()?));
        }
        if text.starts_with("oci://") {
            return Ok(Self::Registry(text.parse()?));
        }
        if let Some(rest) = text.strip_prefix("oci:") {
            let (dir, tag) = tagged(rest, "oci:DIR[:TAG]")?;
            return Ok(Self::Layout { dir, tag });
        }
        if let Some(rest) = text.strip_prefix("oci-archive:") {
            let (file, tag) = tagged(rest, "oci-archive:FILE[:TAG]")?;
            return Ok(Self::LayoutArchive { file, tag });
        }
        if let Some(rest) = text.strip_prefix("docker-archive:") {
            let (file, tag) = tagged(rest, "docker-archive:FILE[:TAG]")?;
            return Ok(Self::DockerArchive { file, tag });
        }
        if let Some(rest) = text.strip_prefix("dir:") {
            return Ok(Self::Tree(path_of(text, rest, base, "dir:DIR")?));
        }
        if let Some(rest) = text.strip_prefix("tar:") {
            return Ok(Self::Tar(path_of(text, rest, base, "tar:FILE")?));
        }
        if text.starts_with(['/', '.', '~']) {
            return Err(SourceError::Path(shown(text)));
        }
        match text.split_once(':') {
            Some((transport @ ("docker-daemon" | "containers-storage" | "ostree" | "sif"), _)) => {
                Err(SourceError::Transport(transport.to_owned()))
            }
            _ => Ok(Self::Registry(text.parse()?)),
        }
    }

    /// Brings the image here: from a registry into the cache; what is a file or a folder is read where it is.
    ///
    /// # Errors
    /// It is not there, for another platform, or not sound.
    pub async fn load(&self, loader: &Loader) -> Result<Image, ImageError> {
        let name = self.to_string();
        let platform = &loader.platform;
        match self {
            Self::Registry(reference) => pull(reference, name, loader).await,
            Self::Layout { dir, tag } => {
                let layout = Layout::Folder(dir.clone());
                layout.image(name, tag.as_deref(), platform).await
            }
            Self::LayoutArchive { file, tag } => {
                let layout = Layout::Archive(open(file)?);
                layout.image(name, tag.as_deref(), platform).await
            }
            Self::DockerArchive { file, tag } => {
                docker_image(open(file)?, name, tag.as_deref(), platform).await
            }
            Self::Tree(dir) => {
                let meta = std::fs::metadata(dir).map_err(|error| unreadable(dir, error))?;
                if !meta.is_dir() {
                    let error = io::Error::from(io::ErrorKind::NotADirectory);
                    return Err(unreadable(dir, error));
                }
                let layer = ImageLayer::Tree(TreeLayer::new(dir.clone()));
                Ok(bare(name, layer, platform))
            }
            Self::Tar(file) => {
                let at = Extent::whole(file.clone()).map_err(|error| unreadable(file, error))?;
                let layer = ImageLayer::Blob(BlobLayer {
                    name: file.display().to_string(),
                    at,
                    digest: None,
                    diff_id: None,
                    cached: false,
                    whiteouts: false,
                });
                Ok(bare(name, layer, platform))
            }
        }
    }
}

fn path_of(
    text: &str,
    path: &str,
    base: &Path,
    form: &'static str,
) -> Result<PathBuf, SourceError> {
    if path.is_empty() || path.contains('\0') {
        return Err(SourceError::NoPath(shown(text), form));
    }
    Ok(base.join(path))
}

fn open(file: &Path) -> Result<TarIndex, ImageError> {
    TarIndex::open(file).map_err(|error| unreadable(file, error))
}

fn unreadable(path: &Path, source: io::Error) -> ImageError {
    ImageError::Read {
        what: path.display().to_string(),
        source,
    }
}

/// An image of one layer that says nothing of how it is run.
fn bare(name: String, layer: ImageLayer, platform: &Platform) -> Image {
    Image {
        name,
        digest: None,
        config_digest: None,
        config: ImageConfig {
            os: platform.os.clone(),
            architecture: platform.architecture.clone(),
            variant: platform.variant.clone(),
            ..ImageConfig::default()
        },
        layers: vec![layer],
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tagged = |f: &mut fmt::Formatter<'_>, kind: &str, path: &Path, tag: &Option<String>| {
            write!(f, "{kind}:{}", path.display())?;
            match tag {
                Some(tag) => write!(f, ":{tag}"),
                None => Ok(()),
            }
        };
        match self {
            Self::Registry(reference) => reference.fmt(f),
            Self::Layout { dir, tag } => tagged(f, "oci", dir, tag),
            Self::LayoutArchive { file, tag } => tagged(f, "oci-archive", file, tag),
            Self::DockerArchive { file, tag } => tagged(f, "docker-archive", file, tag),
            Self::Tree(dir) => tagged(f, "dir", dir, &None),
            Self::Tar(file) => tagged(f, "tar", file, &None),
        }
    }
}

/// What loading an image takes.
#[derive(Clone)]
pub struct Loader {
    pub client: Client,
    pub cache: Cache,
    pub platform: Platform,
    pub progress: Option<ProgressFn>,
}

impl fmt::Debug for Loader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loader")
            .field("cache", &self.cache)
            .field("platform", &self.platform)
            .finish_non_exhaustive()
    }
}

async fn pull(reference: &Reference, name: String, loader: &Loader) -> Result<Image, ImageError> {
    let root = loader.client.manifest(reference).await?;
    let descriptor = Descriptor {
        media_type: root.media_type.clone(),
        digest: root.digest,
        size: root.bytes.len() as u64,
        annotations: None,
        platform: None,
        artifact_type: None,
    };
    let remote = Remote {
        reference,
        root,
        loader,
    };
    let found = find(
        vec![descriptor],
        &loader.platform,
        &Documents::Remote(&remote),
    )
    .await?;
    let blobs: Vec<(Digest, u64)> = found
        .manifest
        .layers
        .iter()
        .map(|layer| (layer.digest, layer.size))
        .collect();
    let sizes: Vec<u64> = blobs.iter().map(|(_, size)| *size).collect();
    let paths = loader
        .cache
        .fetch_all(&loader.client, reference, blobs, loader.progress.as_ref())
        .await?;
    let places = paths.into_iter().zip(sizes);
    let places = places
        .map(|(path, size)| Extent {
            path,
            offset: 0,
            size,
        })
        .collect();
    Ok(assemble(name, found, places, true))
}

/// A registry's documents.
pub(crate) struct Remote<'a> {
    reference: &'a Reference,
    root: PulledManifest,
    loader: &'a Loader,
}

impl Remote<'_> {
    pub async fn manifest(&self, at: &Descriptor) -> Result<Vec<u8>, ImageError> {
        if at.digest == self.root.digest {
            return Ok(self.root.bytes.clone());
        }
        let reference = self.reference.at(at.digest);
        Ok(self.loader.client.manifest(&reference).await?.bytes)
    }

    pub async fn config(&self, at: &Descriptor) -> Result<Vec<u8>, ImageError> {
        let what = || format!("the configuration {}", at.digest);
        let limit = MAX_CONFIG as u64;
        if at.size > limit {
            return Err(ImageError::Size {
                what: what(),
                got: at.size,
                expected: limit,
            });
        }
        let Loader { client, cache, .. } = self.loader;
        let fetch = || cache.fetch(client, self.reference, at.digest, at.size, None);
        let path = fetch().await?;
        let bytes = std::fs::read(&path).map_err(|error| unreadable(&path, error))?;
        if let Ok(bytes) = checked(bytes, at.digest, what) {
            return Ok(bytes);
        }
        // Damaged in the cache.
        std::fs::remove_file(&path).map_err(|error| unreadable(&path, error))?;
        let path = fetch().await?;
        let bytes = std::fs::read(&path).map_err(|error| unreadable(&path, error))?;
        checked(bytes, at.digest, what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_read_as_skopeo_writes_them() {
        let base = Path::new("/base");
        let some = |text: &str| Some(text.to_owned());
        let cases = [
            (
                "nginx",
                Source::Registry("docker.io/library/nginx".parse().unwrap()),
            ),
            (
                "docker://quay.io/a/b:v1",
                Source::Registry("quay.io/a/b:v1".parse().unwrap()),
            ),
            (
                "oci:d",
                Source::Layout {
                    dir: "/base/d".into(),
                    tag: None,
                },
            ),
            (
                "oci:/abs/d:v1",
                Source::Layout {
                    dir: "/abs/d".into(),
                    tag: some("v1"),
                },
            ),
            (
                "oci-archive:f.tar",
                Source::LayoutArchive {
                    file: "/base/f.tar".into(),
                    tag: None,
                },
            ),
            (
                "docker-archive:../f.tar:nginx:1.27",
                Source::DockerArchive {
                    file: "/base/../f.tar".into(),
                    tag: some("nginx:1.27"),
                },
            ),
            ("dir:root", Source::Tree("/base/root".into())),
            ("tar:r.tar.gz", Source::Tar("/base/r.tar.gz".into())),
        ];
        for (text, expected) in cases {
            assert_eq!(Source::parse(text, base), Ok(expected), "{text}");
        }
        for (text, word) in [
            ("./rootfs", "dir:DIR"),
            ("/rootfs", "dir:DIR"),
            ("oci:", "oci:DIR"),
            ("dir:", "dir:DIR"),
            ("docker-daemon:nginx:latest", "skopeo copy"),
            ("UPPER", "lower case"),
        ] {
            let error = Source::parse(text, base).unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
    }

    #[test]
    fn loading_can_be_spawned() {
        fn is_send<T: Send>(value: T) -> T {
            value
        }
        let loader = Loader {
            client: Client::new(
                crate::Credentials::none(),
                crate::Registries::default(),
                crate::Limits::default(),
            ),
            cache: Cache::at("/nowhere"),
            platform: Platform::default(),
            progress: None,
        };
        let source = Source::Registry("nginx".parse().unwrap());
        drop(is_send(source.load(&loader)));
    }
}
