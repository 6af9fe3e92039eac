//! The manifest of what was built.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use volant_spec::{
    Manifest,
    manifest::{self, CloudInit, ManifestError, Network, Workload},
};

use crate::recipe::{self, Document, Recipe};

/// Why there is no manifest.
#[derive(Debug, thiserror::Error)]
pub enum DescribeError {
    #[error("cannot read cloud_init.{key}.path {}", path.display())]
    Document {
        key: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("the manifest that these settings make is not valid")]
    Invalid(#[source] ManifestError),
    #[error("the manifest has {0} bytes; at most {max} are read", max = manifest::MAX_BYTES)]
    TooLarge(usize),
}

/// A manifest without its artifacts. Documents' paths are relative to `folder`.
pub fn manifest(
    recipe: &Recipe,
    workload: Workload,
    network: Option<Network>,
    folder: &Path,
) -> Result<Manifest, DescribeError> {
    let plugin = &recipe.plugin;
    let mut manifest = Manifest::new(plugin.name.clone(), plugin.version.clone(), workload);
    manifest.description.clone_from(&plugin.description);
    manifest.runtime.clone_from(&plugin.runtime);
    manifest.openapi.clone_from(&plugin.openapi);
    manifest.init.clone_from(&plugin.init);
    manifest.resources = recipe.resources;
    manifest.limits = recipe.limits;
    manifest.root_disk = recipe.root_disk;
    manifest.network = recipe.network.clone().or(network);
    manifest.cloud_init = recipe
        .cloud_init
        .as_ref()
        .map(|given| cloud_init(given, folder))
        .transpose()?;
    manifest.devices.clone_from(&recipe.devices);
    manifest.actions.clone_from(&recipe.actions);
    manifest.labels.clone_from(&recipe.labels);
    Ok(manifest)
}

/// The manifest's bytes, as they are written and signed.
pub fn bytes(manifest: &Manifest) -> Result<Vec<u8>, DescribeError> {
    let mut text = serde_json::to_vec_pretty(manifest).expect("a manifest has no keys but texts");
    text.push(b'\n');
    if text.len() > manifest::MAX_BYTES {
        return Err(DescribeError::TooLarge(text.len()));
    }
    // What is put together field by field can be what no host would take.
    Manifest::parse(&text).map_err(DescribeError::Invalid)?;
    Ok(text)
}

fn cloud_init(given: &recipe::CloudInit, folder: &Path) -> Result<CloudInit, DescribeError> {
    let read = |key, document: &Option<Document>| {
        let content = match document {
            None => return Ok(None),
            Some(Document::Content(text)) => text.content.clone(),
            Some(Document::Path(at)) => {
                let path = folder.join(&at.path);
                fs::read_to_string(&path).map_err(|source| DescribeError::Document {
                    key,
                    path,
                    source,
                })?
            }
        };
        Ok(Some(manifest::Document {
            content,
            inline: None,
        }))
    };
    Ok(CloudInit {
        datasource: given.datasource,
        seed_mode: None,
        user_data: read("user_data", &given.user_data)?,
        meta_data: read("meta_data", &given.meta_data)?,
        network_config: read("network_config", &given.network_config)?,
        vendor_data: read("vendor_data", &given.vendor_data)?,
    })
}
