//! The image that a root comes from, brought here.

use std::path::Path;

use tokio::runtime::Handle;
use volant_oci::{
    Cache, Client, Image, ImageError, Loader, Platform, PlatformError, ProgressFn, Source,
    SourceError,
};

use crate::{
    cancel::{Cancel, Cancelled},
    dockerfile::{self, BuiltImage, DockerfileError},
    recipe::{self, Origin},
};

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum ObtainError {
    #[error("oci_source.platform")]
    Platform(#[source] PlatformError),
    #[error("oci_source.image")]
    Source(#[source] SourceError),
    #[error("cannot take the image {image}")]
    Image {
        image: String,
        source: Box<ImageError>,
    },
    #[error(transparent)]
    Dockerfile(#[from] DockerfileError),
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

/// An image whose layers are on this machine.
#[derive(Debug)]
pub struct Obtained {
    pub image: Image,
    /// How a registry's image is called; what is on this machine has no name elsewhere.
    pub reference: Option<String>,
    /// Keeps the layers of an image that was built.
    _built: Option<BuiltImage>,
}

/// What reaches registries.
#[derive(Clone, Debug)]
pub struct Registries {
    pub runtime: Handle,
    pub client: Client,
    pub cache: Cache,
}

/// Brings an image here. Paths are relative to `folder`.
pub fn obtain(
    source: &recipe::Source,
    folder: &Path,
    registries: &Registries,
    progress: ProgressFn,
    cancel: &Cancel,
) -> Result<Obtained, ObtainError> {
    let platform: Platform = match &source.platform {
        Some(text) => text.parse().map_err(ObtainError::Platform)?,
        None => Platform::default(),
    };
    let (text, built) = match &source.origin {
        Origin::Image(image) => (image.clone(), None),
        Origin::Dockerfile(dockerfile) => {
            let platform = source.platform.as_deref();
            let built = dockerfile::build(dockerfile, folder, platform, cancel)?;
            (built.source(), Some(built))
        }
    };
    let parsed = Source::parse(&text, folder).map_err(ObtainError::Source)?;
    let reference = match &parsed {
        Source::Registry(reference) => Some(reference.to_string()),
        _ => None,
    };
    let loader = Loader {
        client: registries.client.clone(),
        cache: registries.cache.clone(),
        platform,
        progress: Some(progress),
    };
    let image = registries.runtime.block_on(async {
        tokio::select! {
            image = parsed.load(&loader) => image.map_err(|source| ObtainError::Image {
                image: parsed.to_string(),
                source: Box::new(source),
            }),
            () = cancel.cancelled() => Err(Cancelled.into()),
        }
    })?;
    Ok(Obtained {
        image,
        reference,
        _built: built,
    })
}
