//! Manifests and indexes of OCI and of Docker's schema 2, as far as they are used here.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use volant_spec::Digest;

/// No manifest and no index is larger.
pub const MAX_MANIFEST: usize = 4 * 1024 * 1024;
/// No image has more layers, and no index more entries.
pub const MAX_ENTRIES: usize = 4096;

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub const EMPTY: &str = "application/vnd.oci.empty.v1+json";

/// What a registry is told that we understand.
pub(crate) const ACCEPTED: &str = "application/vnd.oci.image.manifest.v1+json, \
    application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, \
    application/vnd.docker.distribution.manifest.list.v2+json";

/// What a manifest says of something: what it is, its digest and its size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<DescribedPlatform>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
}

impl Descriptor {
    #[must_use]
    pub fn annotation(&self, key: &str) -> Option<&str> {
        Some(self.annotations.as_ref()?.get(key)?.as_str())
    }
}

/// The platform of an index's entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescribedPlatform {
    #[serde(default)]
    pub os: String,
    #[serde(default)]
    pub architecture: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// An image manifest: a configuration and layers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageManifest {
    pub schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
}

impl ImageManifest {
    /// What kind of artifact it says it is: by its own word, or by its configuration's type.
    #[must_use]
    pub fn kind(&self) -> &str {
        let own = self.artifact_type.as_deref();
        own.filter(|kind| !kind.is_empty())
            .unwrap_or(&self.config.media_type)
    }
}

/// An index, or Docker's manifest list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    pub schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    pub manifests: Vec<Descriptor>,
}

/// What is behind a reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Document {
    Manifest(Box<ImageManifest>),
    Index(Index),
}

/// Why bytes are no manifest.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("it is larger than {MAX_MANIFEST} bytes")]
    TooLarge,
    #[error("it is neither a manifest nor an index")]
    Neither(#[source] serde_json::Error),
    #[error(
        "it has schema version {0}, which is not understood; push the image anew with a present tool"
    )]
    Version(u32),
    #[error("its media type '{0}' is not understood")]
    MediaType(String),
    #[error("it has {0} entries, more than the {MAX_ENTRIES} that are allowed")]
    TooMany(usize),
}

/// The few words that tell what a document is.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    #[serde(default)]
    schema_version: u32,
    media_type: Option<String>,
    manifests: Option<serde::de::IgnoredAny>,
}

/// What `bytes` themselves say that they are.
pub(crate) fn media_type(bytes: &[u8]) -> Option<String> {
    let head: Head = serde_json::from_slice(bytes).ok()?;
    head.media_type
        .filter(|text| text.len() < 256)
        .or_else(|| head.manifests.map(|_| OCI_INDEX.to_owned()))
}

impl Document {
    /// Reads a manifest or an index, after its own media type and, without one, after its content.
    ///
    /// # Errors
    /// It is neither, of another version, or too large.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        if bytes.len() > MAX_MANIFEST {
            return Err(ManifestError::TooLarge);
        }
        let head: Head = serde_json::from_slice(bytes).map_err(ManifestError::Neither)?;
        if head.schema_version != 2 {
            return Err(ManifestError::Version(head.schema_version));
        }
        let is_index = match head.media_type.as_deref() {
            Some(OCI_INDEX | DOCKER_LIST) => true,
            Some(OCI_MANIFEST | DOCKER_MANIFEST) => false,
            None | Some("") => head.manifests.is_some(),
            Some(other) => {
                let shown = other.chars().take(100).flat_map(char::escape_debug);
                return Err(ManifestError::MediaType(shown.collect()));
            }
        };
        let (document, entries) = if is_index {
            let index: Index = serde_json::from_slice(bytes).map_err(ManifestError::Neither)?;
            let entries = index.manifests.len();
            (Self::Index(index), entries)
        } else {
            let manifest: ImageManifest =
                serde_json::from_slice(bytes).map_err(ManifestError::Neither)?;
            let entries = manifest.layers.len();
            (Self::Manifest(Box::new(manifest)), entries)
        };
        if entries > MAX_ENTRIES {
            return Err(ManifestError::TooMany(entries));
        }
        Ok(document)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn descriptor() -> String {
        format!(
            r#"{{"mediaType":"x","digest":"sha256:{}","size":1}}"#,
            "ab".repeat(32)
        )
    }

    #[test]
    fn manifests_and_indexes_are_told_apart() {
        let d = descriptor();
        let manifest = format!(r#"{{"schemaVersion":2,"config":{d},"layers":[{d}]}}"#);
        assert!(matches!(
            Document::parse(manifest.as_bytes()),
            Ok(Document::Manifest(_))
        ));
        let index = format!(r#"{{"schemaVersion":2,"manifests":[{d}]}}"#);
        assert!(matches!(
            Document::parse(index.as_bytes()),
            Ok(Document::Index(_))
        ));
    }

    #[test]
    fn hostile_manifests_are_refused_with_the_reason() {
        let d = descriptor();
        let many = vec![d.as_str(); MAX_ENTRIES + 1].join(",");
        let cases = [
            ("".to_owned(), "neither"),
            ("[]".into(), "neither"),
            ("[".repeat(100_000), "neither"),
            (
                r#"{"schemaVersion":1,"fsLayers":[]}"#.into(),
                "schema version 1",
            ),
            (
                r#"{"schemaVersion":2,"mediaType":"text/html"}"#.into(),
                "text/html",
            ),
            (r#"{"schemaVersion":2,"layers":[]}"#.into(), "neither"),
            (
                format!(
                    r#"{{"schemaVersion":2,"config":{d},"layers":[{}]}}"#,
                    d.replace("ab", "zz")
                ),
                "neither",
            ),
            (
                format!(
                    r#"{{"schemaVersion":2,"config":{d},"layers":[{}]}}"#,
                    d.replace(":1", ":-1")
                ),
                "neither",
            ),
            (
                format!(r#"{{"schemaVersion":2,"manifests":[{many}]}}"#),
                "entries",
            ),
            (" ".repeat(MAX_MANIFEST + 1), "larger"),
        ];
        for (text, word) in cases {
            let error = Document::parse(text.as_bytes()).unwrap_err().to_string();
            let shown: String = text.chars().take(80).collect();
            assert!(error.contains(word), "{shown}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Document::parse(&bytes);
        }
    }
}
