//! Volant's plugin as an OCI artifact: the manifest, its signature and what it names, each a layer with its file name
//! as title, so that other tools that pull it give a folder that installs.
//!
//! What is read here comes from a registry and is not trusted: who installs a plugin checks the signature over the
//! manifest's bytes, and every artifact against the manifest.

use std::path::PathBuf;

use bytes::Bytes;
use volant_spec::Digest;

use crate::{
    client::{Annotations, Client},
    config::ImageConfig,
    error::RegistryError,
    image::shown,
    index::platforms,
    manifest::{Descriptor, Document, EMPTY, ImageManifest, ManifestError, OCI_MANIFEST},
    push::BlobSource,
    reference::Reference,
    verify::digest_of,
    {Progress, ProgressFn},
};

pub const ARTIFACT_TYPE: &str = "application/vnd.volant.plugin.v1";
pub const MANIFEST_TYPE: &str = "application/vnd.volant.plugin.manifest.v1+json";
pub const SIGNATURE_TYPE: &str = "application/vnd.volant.plugin.signature.v1";
pub const FILE_TYPE: &str = "application/vnd.volant.plugin.artifact.v1";

const TITLE: &str = "org.opencontainers.image.title";
const VERSION: &str = "org.opencontainers.image.version";
const DESCRIPTION: &str = "org.opencontainers.image.description";
const CREATED: &str = "org.opencontainers.image.created";

const MAX_PLUGIN_MANIFEST: usize = 4 * 1024 * 1024;
const MAX_SIGNATURE: usize = 64 * 1024;
const MAX_CONFIG: usize = crate::config::MAX_CONFIG;

/// A plugin to be pushed.
#[derive(Clone, Debug)]
pub struct Package {
    pub name: String,
    pub version: String,
    pub description: Option<String>,
    /// RFC 3339. `None` leaves it out; what is pushed twice with the same is the same.
    pub created: Option<String>,
    /// The manifest's exact bytes, over which the signature is.
    pub manifest: Vec<u8>,
    pub signature: Option<Vec<u8>>,
    pub artifacts: Vec<File>,
}

/// A file of a plugin that is to be pushed.
#[derive(Clone, Debug)]
pub struct File {
    /// The relative URL by which the manifest names it.
    pub title: String,
    pub path: PathBuf,
    pub digest: Digest,
    pub size: u64,
}

/// A plugin in a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pulled {
    /// Of the OCI manifest.
    pub digest: Digest,
    /// The plugin manifest's exact bytes.
    pub manifest: Vec<u8>,
    pub signature: Option<Vec<u8>>,
    /// What [`Client::blob`] gives by digest, from the same reference.
    pub artifacts: Vec<Artifact>,
    pub annotations: Annotations,
}

/// A file of a plugin in a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Artifact {
    pub title: Option<String>,
    pub digest: Digest,
    pub size: u64,
}

/// What a reference names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Inspection {
    Plugin(Pulled),
    Image {
        digest: Digest,
        config: Box<ImageConfig>,
        layers: Vec<Artifact>,
        annotations: Annotations,
    },
    /// An image for several platforms.
    Index {
        digest: Digest,
        platforms: Vec<String>,
    },
    /// Something else, by its type.
    Other {
        digest: Digest,
        kind: String,
    },
}

/// Why a plugin was not pushed or pulled.
#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error("{reference} has no usable manifest")]
    Manifest {
        reference: Reference,
        source: ManifestError,
    },
    #[error("{reference} is no Volant plugin but {what}")]
    NotAPlugin { reference: Reference, what: String },
    #[error("{reference} is a broken plugin: {why}")]
    Broken {
        reference: Reference,
        why: &'static str,
    },
    #[error("the configuration of {reference} is not usable")]
    Config {
        reference: Reference,
        source: crate::config::ConfigError,
    },
    #[error("{reference} has a digest; push to a tag")]
    PushToDigest { reference: Reference },
}

/// Pushes a plugin; what the repository has already is not sent again. Answers with the OCI manifest's digest, which
/// is the same for the same plugin.
///
/// # Errors
/// The registry cannot be reached or refuses; a file cannot be read or is not what its digest says.
pub async fn push(
    client: &Client,
    reference: &Reference,
    package: &Package,
    progress: Option<&ProgressFn>,
) -> Result<Digest, PluginError> {
    if reference.digest().is_some() {
        let reference = reference.clone();
        return Err(PluginError::PushToDigest { reference });
    }
    for (descriptor, source) in blobs(package) {
        let digest = descriptor.digest;
        let total = source.size();
        let tell = |done| {
            if let Some(progress) = progress {
                progress(Progress {
                    digest,
                    done,
                    total,
                });
            }
        };
        client.push_blob(reference, &digest, &source, &tell).await?;
        tell(total);
    }
    let manifest = oci_manifest(package);
    Ok(client
        .push_manifest(reference, manifest, OCI_MANIFEST)
        .await?)
}

/// The blobs of a plugin: first the empty configuration, then the layers in their order.
fn blobs(package: &Package) -> Vec<(Descriptor, BlobSource)> {
    let bytes = |kind: &str, title: Option<String>, bytes: Vec<u8>| {
        let size = bytes.len() as u64;
        let descriptor = descriptor(kind, digest_of(&bytes), size, title);
        (descriptor, BlobSource::Bytes(Bytes::from(bytes)))
    };
    let name = format!("{}.manifest.json", package.name);
    let signature = package.signature.clone().map(|signature| {
        let title = format!("{name}.minisig");
        bytes(SIGNATURE_TYPE, Some(title), signature)
    });
    let files = package.artifacts.iter().map(|file| {
        let File {
            title,
            path,
            digest,
            size,
        } = file.clone();
        let descriptor = descriptor(FILE_TYPE, digest, size, Some(title));
        (descriptor, BlobSource::File { path, size })
    });
    [
        bytes(EMPTY, None, b"{}".to_vec()),
        bytes(MANIFEST_TYPE, Some(name.clone()), package.manifest.clone()),
    ]
    .into_iter()
    .chain(signature)
    .chain(files)
    .collect()
}

fn descriptor(kind: &str, digest: Digest, size: u64, title: Option<String>) -> Descriptor {
    Descriptor {
        media_type: kind.to_owned(),
        digest,
        size,
        annotations: title.map(|title| [(TITLE.to_owned(), title)].into()),
        platform: None,
        artifact_type: None,
    }
}

fn oci_manifest(package: &Package) -> Vec<u8> {
    let mut descriptors = blobs(package).into_iter().map(|(descriptor, _)| descriptor);
    let config = descriptors.next().expect("the configuration is the first");
    let annotations = [
        (TITLE, Some(&package.name)),
        (VERSION, Some(&package.version)),
        (DESCRIPTION, package.description.as_ref()),
        (CREATED, package.created.as_ref()),
    ];
    let annotations = annotations
        .into_iter()
        .filter_map(|(key, value)| Some((key.to_owned(), value?.clone())))
        .collect();
    let manifest = ImageManifest {
        schema_version: 2,
        media_type: Some(OCI_MANIFEST.to_owned()),
        artifact_type: Some(ARTIFACT_TYPE.to_owned()),
        config,
        layers: descriptors.collect(),
        annotations: Some(annotations),
    };
    serde_json::to_vec(&manifest).expect("a manifest has no keys but texts")
}

/// Pulls a plugin's manifest and signature; its artifacts stay where they are.
///
/// # Errors
/// The registry does not give it; it is something else, or broken.
pub async fn pull(client: &Client, reference: &Reference) -> Result<Pulled, PluginError> {
    let not_a_plugin = |what| PluginError::NotAPlugin {
        reference: reference.clone(),
        what,
    };
    match inspect(client, reference).await? {
        Inspection::Plugin(pulled) => Ok(pulled),
        Inspection::Image { .. } | Inspection::Index { .. } => {
            let what = "an image; make a plugin of it with 'fledge build'";
            Err(not_a_plugin(what.to_owned()))
        }
        Inspection::Other { kind, .. } => Err(not_a_plugin(format!("of type '{kind}'"))),
    }
}

/// Looks at what a reference names; nothing large is downloaded.
///
/// # Errors
/// The registry does not give it, or it is broken.
pub async fn inspect(client: &Client, reference: &Reference) -> Result<Inspection, PluginError> {
    let document = client.manifest(reference).await?;
    let digest = document.digest;
    let parsed = Document::parse(&document.bytes).map_err(|source| PluginError::Manifest {
        reference: reference.clone(),
        source,
    })?;
    let manifest = match parsed {
        Document::Index(index) => {
            let platforms = platforms(&index).iter().map(|text| shown(text)).collect();
            return Ok(Inspection::Index { digest, platforms });
        }
        Document::Manifest(manifest) => *manifest,
    };
    // From the same place, whatever the tag is by now.
    let reference = &reference.at(digest);
    match manifest.kind() {
        ARTIFACT_TYPE => {
            let pulled = pull_parts(client, reference, digest, manifest).await?;
            Ok(Inspection::Plugin(pulled))
        }
        "application/vnd.oci.image.config.v1+json"
        | "application/vnd.docker.container.image.v1+json" => {
            let at = &manifest.config;
            let config = client
                .small_blob(reference, &at.digest, at.size, MAX_CONFIG)
                .await?;
            let config = ImageConfig::parse(&config).map_err(|source| PluginError::Config {
                reference: reference.clone(),
                source,
            })?;
            Ok(Inspection::Image {
                digest,
                config: Box::new(config),
                layers: manifest.layers.iter().map(artifact).collect(),
                annotations: manifest.annotations.unwrap_or_default(),
            })
        }
        other => Ok(Inspection::Other {
            digest,
            kind: shown(other),
        }),
    }
}

async fn pull_parts(
    client: &Client,
    reference: &Reference,
    digest: Digest,
    oci: ImageManifest,
) -> Result<Pulled, PluginError> {
    let parts = parts(&oci).map_err(|why| PluginError::Broken {
        reference: reference.clone(),
        why,
    })?;
    let at = parts.manifest;
    let manifest = client
        .small_blob(reference, &at.digest, at.size, MAX_PLUGIN_MANIFEST)
        .await?;
    let signature = match parts.signature {
        Some(at) => {
            let small = client.small_blob(reference, &at.digest, at.size, MAX_SIGNATURE);
            Some(small.await?)
        }
        None => None,
    };
    Ok(Pulled {
        digest,
        manifest,
        signature,
        artifacts: parts.artifacts,
        annotations: oci.annotations.unwrap_or_default(),
    })
}

struct Parts<'a> {
    manifest: &'a Descriptor,
    signature: Option<&'a Descriptor>,
    artifacts: Vec<Artifact>,
}

/// Takes a plugin's OCI manifest apart. Layers of unknown types are left alone: a later version may add some.
fn parts(oci: &ImageManifest) -> Result<Parts<'_>, &'static str> {
    let of = |kind: &'static str| {
        oci.layers
            .iter()
            .filter(move |layer| layer.media_type == kind)
    };
    let single = |kind, why| {
        let mut found = of(kind);
        let first = found.next();
        match found.next() {
            Some(_) => Err(why),
            None => Ok(first),
        }
    };
    Ok(Parts {
        manifest: single(MANIFEST_TYPE, "it has several manifests")?
            .ok_or("it has no plugin manifest")?,
        signature: single(SIGNATURE_TYPE, "it has several signatures")?,
        artifacts: of(FILE_TYPE).map(artifact).collect(),
    })
}

fn artifact(layer: &Descriptor) -> Artifact {
    Artifact {
        title: layer.annotation(TITLE).map(shown),
        digest: layer.digest,
        size: layer.size,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package() -> Package {
        Package {
            name: "caddy".into(),
            version: "2.6.2".into(),
            description: None,
            created: None,
            manifest: b"{\"name\":\"caddy\"}".to_vec(),
            signature: Some(b"untrusted comment: x\n".to_vec()),
            artifacts: vec![File {
                title: "rootfs.squashfs".into(),
                path: "/nowhere".into(),
                digest: digest_of(b"image"),
                size: 5,
            }],
        }
    }

    #[test]
    fn a_plugins_oci_manifest_is_always_the_same() {
        let expected = format!(
            concat!(
                r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","#,
                r#""artifactType":"application/vnd.volant.plugin.v1","#,
                r#""config":{{"mediaType":"application/vnd.oci.empty.v1+json","digest":"{empty}","size":2}},"#,
                r#""layers":["#,
                r#"{{"mediaType":"application/vnd.volant.plugin.manifest.v1+json","digest":"{manifest}","size":16,"#,
                r#""annotations":{{"org.opencontainers.image.title":"caddy.manifest.json"}}}},"#,
                r#"{{"mediaType":"application/vnd.volant.plugin.signature.v1","digest":"{signature}","size":21,"#,
                r#""annotations":{{"org.opencontainers.image.title":"caddy.manifest.json.minisig"}}}},"#,
                r#"{{"mediaType":"application/vnd.volant.plugin.artifact.v1","digest":"{file}","size":5,"#,
                r#""annotations":{{"org.opencontainers.image.title":"rootfs.squashfs"}}}}],"#,
                r#""annotations":{{"org.opencontainers.image.title":"caddy","#,
                r#""org.opencontainers.image.version":"2.6.2"}}}}"#,
            ),
            empty = digest_of(b"{}"),
            manifest = digest_of(b"{\"name\":\"caddy\"}"),
            signature = digest_of(b"untrusted comment: x\n"),
            file = digest_of(b"image"),
        );
        assert_eq!(
            String::from_utf8(oci_manifest(&package())).unwrap(),
            expected
        );
    }

    #[test]
    fn a_plugin_without_a_manifest_or_with_two_is_broken() {
        let Ok(Document::Manifest(good)) = Document::parse(&oci_manifest(&package())) else {
            panic!("a manifest");
        };
        let taken = parts(&good).unwrap();
        assert_eq!(taken.artifacts.len(), 1);
        assert!(taken.signature.is_some());
        let mut none = good.clone();
        none.layers.remove(0);
        assert_eq!(parts(&none).err(), Some("it has no plugin manifest"));
        let mut two = good.clone();
        two.layers.push(good.layers[0].clone());
        assert_eq!(parts(&two).err(), Some("it has several manifests"));
        let mut two = good.clone();
        two.layers.push(good.layers[1].clone());
        assert_eq!(parts(&two).err(), Some("it has several signatures"));
    }
}
