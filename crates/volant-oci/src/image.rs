//! An image: how it is run, and its layers; and the way to it through manifests and indexes.

use std::collections::VecDeque;

use volant_layers::Layer;
use volant_spec::Digest;

use crate::{
    blob::{BlobLayer, Extent},
    cache::CacheError,
    config::{ConfigError, ImageConfig, MAX_CONFIG},
    error::RegistryError,
    index::{Platform, PlatformError},
    layout::Layout,
    manifest::{Descriptor, Document, ImageManifest, MAX_MANIFEST, ManifestError},
    plugin,
    source::Remote,
    tree::TreeLayer,
};

/// How many manifests and indexes are looked at on the way to an image.
const MAX_DOCUMENTS: usize = 64;

/// An image whose blobs are on this machine.
#[derive(Debug)]
pub struct Image {
    /// What to call it: as its source was written, as a rule.
    pub name: String,
    /// The manifest's digest, where there is a manifest.
    pub digest: Option<Digest>,
    /// The configuration's digest: the image's id for Docker. A directory and a plain tar have none.
    pub config_digest: Option<Digest>,
    pub config: ImageConfig,
    /// From the lowest to the topmost.
    pub layers: Vec<ImageLayer>,
}

/// A layer of an image.
#[derive(Debug)]
pub enum ImageLayer {
    Blob(BlobLayer),
    Tree(TreeLayer),
}

impl Layer for ImageLayer {
    fn open(&self) -> std::io::Result<Box<dyn std::io::Read + '_>> {
        match self {
            Self::Blob(layer) => layer.open(),
            Self::Tree(layer) => layer.open(),
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Blob(layer) => layer.name(),
            Self::Tree(layer) => layer.name(),
        }
    }

    fn whiteouts(&self) -> bool {
        match self {
            Self::Blob(layer) => layer.whiteouts(),
            Self::Tree(layer) => layer.whiteouts(),
        }
    }
}

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error(transparent)]
    Platform(#[from] PlatformError),
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error(transparent)]
    Cache(#[from] CacheError),
    #[error("cannot read {what}")]
    Read {
        what: String,
        source: std::io::Error,
    },
    #[error("manifest {digest} is not usable")]
    Manifest {
        digest: Digest,
        source: ManifestError,
    },
    #[error("the image's configuration {digest} is not usable")]
    Config { digest: Digest, source: ConfigError },
    #[error("{what} has the digest {got}, not {expected}")]
    Digest {
        what: String,
        got: Digest,
        expected: Digest,
    },
    #[error("{what} has {got} bytes, not {expected}")]
    Size {
        what: String,
        got: u64,
        expected: u64,
    },
    #[error("it is a Volant plugin, not an image; install it with 'volar plugins install oci://…'")]
    Plugin,
    #[error("it is no image but an artifact of type '{0}'")]
    Artifact(String),
    #[error("layer {digest} is of type '{kind}': {why}")]
    LayerType {
        digest: Digest,
        kind: String,
        why: &'static str,
    },
    #[error("the manifest has {layers} layers, the configuration {diff_ids}")]
    Layers { layers: usize, diff_ids: usize },
    #[error("its indexes lead to more than {MAX_DOCUMENTS} manifests")]
    TooMany,
    #[error("{0}")]
    Archive(String),
}

/// Where manifests and configurations come from. What it gives has the digest that was asked for.
pub(crate) enum Documents<'a> {
    Layout(&'a Layout),
    Remote(&'a Remote<'a>),
}

impl Documents<'_> {
    async fn manifest(&self, at: &Descriptor) -> Result<Vec<u8>, ImageError> {
        match self {
            Self::Layout(layout) => layout.small(at, MAX_MANIFEST),
            Self::Remote(remote) => remote.manifest(at).await,
        }
    }

    async fn config(&self, at: &Descriptor) -> Result<Vec<u8>, ImageError> {
        match self {
            Self::Layout(layout) => layout.small(at, MAX_CONFIG),
            Self::Remote(remote) => remote.config(at).await,
        }
    }
}

/// An image that was found, before its layers are fetched.
#[derive(Debug)]
pub(crate) struct Found {
    pub digest: Digest,
    pub manifest: ImageManifest,
    pub config: ImageConfig,
}

/// Follows indexes from `roots` to the image for `platform`. A cycle cannot be, as each is named by its digest.
pub(crate) async fn find(
    roots: Vec<Descriptor>,
    platform: &Platform,
    documents: &Documents<'_>,
) -> Result<Found, ImageError> {
    let mut queue = VecDeque::from(roots);
    let mut there: Vec<String> = Vec::new();
    let mut looked_at = 0;
    while let Some(next) = queue.pop_front() {
        looked_at += 1;
        if looked_at > MAX_DOCUMENTS {
            return Err(ImageError::TooMany);
        }
        let bytes = documents.manifest(&next).await?;
        let digest = next.digest;
        let document =
            Document::parse(&bytes).map_err(|source| ImageError::Manifest { digest, source })?;
        match document {
            Document::Manifest(manifest) => {
                check_kind(&manifest)?;
                let config = read_config(&manifest, documents).await?;
                let variant = config.variant.as_deref();
                if platform.admits(&config.os, &config.architecture, variant) {
                    check_layers(&manifest, &config)?;
                    return Ok(Found {
                        digest,
                        manifest: *manifest,
                        config,
                    });
                }
                there.push(format!("{}/{}", config.os, config.architecture));
            }
            Document::Index(index) => match index.choose(platform) {
                Ok(entries) => queue.extend(entries.into_iter().cloned()),
                Err(PlatformError::NotThere { there: more, .. }) => there.extend(more),
                Err(error) => return Err(error.into()),
            },
        }
    }
    there.sort();
    there.dedup();
    let wanted = platform.clone();
    Err(PlatformError::NotThere { wanted, there }.into())
}

async fn read_config(
    manifest: &ImageManifest,
    documents: &Documents<'_>,
) -> Result<ImageConfig, ImageError> {
    let bytes = documents.config(&manifest.config).await?;
    let digest = manifest.config.digest;
    ImageConfig::parse(&bytes).map_err(|source| ImageError::Config { digest, source })
}

fn check_kind(manifest: &ImageManifest) -> Result<(), ImageError> {
    match manifest.kind() {
        "application/vnd.oci.image.config.v1+json"
        | "application/vnd.docker.container.image.v1+json"
        | "" => Ok(()),
        plugin::ARTIFACT_TYPE => Err(ImageError::Plugin),
        other => Err(ImageError::Artifact(shown(other))),
    }
}

/// Whether each layer is one that can be read.
pub(crate) fn check_layers(
    manifest: &ImageManifest,
    config: &ImageConfig,
) -> Result<(), ImageError> {
    for layer in &manifest.layers {
        let kind = layer.media_type.as_str();
        let base = kind
            .strip_suffix("+gzip")
            .or_else(|| kind.strip_suffix("+zstd"))
            .or_else(|| kind.strip_suffix(".gzip"))
            .or_else(|| kind.strip_suffix(".zstd"))
            .unwrap_or(kind);
        let why = match base {
            "application/vnd.oci.image.layer.v1.tar"
            | "application/vnd.docker.image.rootfs.diff.tar" => continue,
            other if other.contains("nondistributable") || other.contains("foreign") => {
                "its content is not in the image"
            }
            other if other.contains("+encrypted") => "it is encrypted",
            _ => "this type is not known",
        };
        return Err(ImageError::LayerType {
            digest: layer.digest,
            kind: shown(kind),
            why,
        });
    }
    let (layers, diff_ids) = (manifest.layers.len(), config.diff_ids.len());
    if layers != diff_ids {
        return Err(ImageError::Layers { layers, diff_ids });
    }
    Ok(())
}

/// The image, with its layers at these places.
pub(crate) fn assemble(name: String, found: Found, places: Vec<Extent>, cached: bool) -> Image {
    let layers = found
        .manifest
        .layers
        .iter()
        .zip(places)
        .zip(&found.config.diff_ids)
        .map(|((layer, at), diff_id)| {
            ImageLayer::Blob(BlobLayer {
                name: layer.digest.to_string(),
                at,
                digest: Some(layer.digest),
                diff_id: Some(*diff_id),
                cached,
                whiteouts: true,
            })
        })
        .collect();
    Image {
        name,
        digest: Some(found.digest),
        config_digest: Some(found.manifest.config.digest),
        config: found.config,
        layers,
    }
}

/// A text of others as an error shows it: bounded, and nothing in it that a terminal would obey.
pub(crate) fn shown(text: &str) -> String {
    text.chars()
        .take(200)
        .flat_map(char::escape_debug)
        .collect()
}
