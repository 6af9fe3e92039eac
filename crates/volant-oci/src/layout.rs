//! OCI layouts: an `index.json` and blobs by digest, in a folder or in a tar.

use std::{io, path::PathBuf};

use volant_spec::Digest;

use crate::{
    blob::Extent,
    image::{Documents, Image, ImageError, assemble, find},
    index::Platform,
    manifest::{Descriptor, Document, MAX_MANIFEST},
    tarindex::TarIndex,
    verify::digest_of,
};

/// A layout.
#[derive(Debug)]
pub(crate) enum Layout {
    Folder(PathBuf),
    Archive(TarIndex),
}

impl Layout {
    fn file(&self, name: &str) -> io::Result<Extent> {
        match self {
            Self::Folder(dir) => Extent::whole(dir.join(name)),
            Self::Archive(tar) => tar.file(name),
        }
    }

    fn blob(&self, at: &Descriptor) -> Result<Extent, ImageError> {
        let what = || format!("blob {}", at.digest);
        let extent = self
            .file(&format!("blobs/sha256/{}", at.digest.hex()))
            .map_err(|source| ImageError::Read {
                what: what(),
                source,
            })?;
        if extent.size != at.size {
            return Err(ImageError::Size {
                what: what(),
                got: extent.size,
                expected: at.size,
            });
        }
        Ok(extent)
    }

    pub fn small(&self, at: &Descriptor, limit: usize) -> Result<Vec<u8>, ImageError> {
        let what = || format!("blob {}", at.digest);
        let bytes = self
            .blob(at)?
            .read(limit)
            .map_err(|source| ImageError::Read {
                what: what(),
                source,
            })?;
        checked(bytes, at.digest, what)
    }

    /// The image that `name` names, or the only one.
    pub async fn image(
        &self,
        shown_name: String,
        name: Option<&str>,
        platform: &Platform,
    ) -> Result<Image, ImageError> {
        let read = |source| ImageError::Read {
            what: "index.json of the layout".to_owned(),
            source,
        };
        let bytes = self
            .file("index.json")
            .and_then(|extent| extent.read(MAX_MANIFEST))
            .map_err(read)?;
        let digest = digest_of(&bytes);
        let document =
            Document::parse(&bytes).map_err(|source| ImageError::Manifest { digest, source })?;
        let Document::Index(index) = document else {
            let message = "index.json of the layout is no index";
            return Err(ImageError::Archive(message.to_owned()));
        };
        let mut roots: Vec<Descriptor> = index.named(name)?.into_iter().cloned().collect();
        // The same name may stand for several platforms.
        if roots.len() > 1 {
            let mut narrowed = index.clone();
            narrowed.manifests = roots;
            roots = narrowed.choose(platform)?.into_iter().cloned().collect();
        }
        let found = find(roots, platform, &Documents::Layout(self)).await?;
        let places: Result<Vec<Extent>, ImageError> = found
            .manifest
            .layers
            .iter()
            .map(|layer| self.blob(layer))
            .collect();
        Ok(assemble(shown_name, found, places?, false))
    }
}

pub(crate) fn checked(
    bytes: Vec<u8>,
    expected: Digest,
    what: impl Fn() -> String,
) -> Result<Vec<u8>, ImageError> {
    let got = digest_of(&bytes);
    if got == expected {
        Ok(bytes)
    } else {
        let what = what();
        Err(ImageError::Digest {
            what,
            got,
            expected,
        })
    }
}
