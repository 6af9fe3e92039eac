//! The image that a root comes from, brought here.

use std::{
    io,
    path::{Path, PathBuf},
};

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
    #[error(
        "the output folder {} is inside {image}: the image would hold its own results; give another with -o",
        output.display()
    )]
    OutputInside { output: PathBuf, image: String },
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

/// Brings an image here. Paths are relative to `folder`; the results go to `output`, which may not be a part of it.
pub fn obtain(
    source: &recipe::Source,
    folder: &Path,
    output: &Path,
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
    if let Source::Tree(tree) = &parsed
        && is_inside(output, tree).unwrap_or(false)
    {
        return Err(ObtainError::OutputInside {
            output: output.to_owned(),
            image: parsed.to_string(),
        });
    }
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

/// Whether a folder, which may be missing yet, is or will be inside another.
fn is_inside(folder: &Path, outer: &Path) -> io::Result<bool> {
    let folder = std::path::absolute(folder)?;
    let there = folder.ancestors().find(|path| path.exists());
    let there = there.unwrap_or(Path::new("/")).canonicalize()?;
    Ok(there.starts_with(outer.canonicalize()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_inside_another_by_whatever_name() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        std::fs::create_dir_all(at("tree/out")).unwrap();
        std::fs::create_dir(at("tree-too")).unwrap();
        std::os::unix::fs::symlink("tree/out", at("link")).unwrap();
        for (folder, expected) in [
            ("tree", true),
            ("tree/out", true),
            ("tree/new/newer", true),
            ("link", true),
            ("link/new", true),
            ("./tree-too/../tree/new", true),
            ("tree-too", false),
            ("tree-three", false),
            ("", false),
        ] {
            assert_eq!(
                is_inside(&at(folder), &at("tree")).unwrap(),
                expected,
                "{folder}"
            );
        }
    }
}
