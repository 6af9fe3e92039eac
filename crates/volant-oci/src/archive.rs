//! Docker's archives (`docker save`, `skopeo copy … docker-archive:`): a tar with a `manifest.json`.

use serde::Deserialize;

use crate::{
    blob::BlobLayer,
    config::{ImageConfig, MAX_CONFIG},
    image::{Image, ImageError, ImageLayer, shown},
    index::{Platform, PlatformError},
    layout::Layout,
    manifest::{MAX_ENTRIES, MAX_MANIFEST},
    tarindex::TarIndex,
    verify::digest_of,
};

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Item {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// The image that `tag` names (`NAME:TAG`, `NAME` or the tag alone), or the only one.
pub(crate) async fn docker_image(
    tar: TarIndex,
    name: String,
    tag: Option<&str>,
    platform: &Platform,
) -> Result<Image, ImageError> {
    if !tar.contains("manifest.json") && tar.contains("index.json") {
        return Layout::Archive(tar).image(name, tag, platform).await;
    }
    let read = |what: &str| {
        let what = shown(what);
        move |source| ImageError::Read { what, source }
    };
    let bytes = tar
        .file("manifest.json")
        .and_then(|extent| extent.read(MAX_MANIFEST))
        .map_err(read("manifest.json of the archive"))?;
    let items: Vec<Item> = serde_json::from_slice(&bytes).map_err(|error| {
        ImageError::Archive(format!("manifest.json of the archive is none: {error}"))
    })?;
    let item = choose(&items, tag)?;
    if item.layers.len() > MAX_ENTRIES {
        let message = format!("the archive's image has {} layers", item.layers.len());
        return Err(ImageError::Archive(message));
    }
    let bytes = tar
        .file(&item.config)
        .and_then(|extent| extent.read(MAX_CONFIG))
        .map_err(read(&item.config))?;
    let digest = digest_of(&bytes);
    let config =
        ImageConfig::parse(&bytes).map_err(|source| ImageError::Config { digest, source })?;
    if !platform.admits(&config.os, &config.architecture, config.variant.as_deref()) {
        return Err(ImageError::Platform(PlatformError::NotThere {
            wanted: platform.clone(),
            there: vec![format!("{}/{}", config.os, config.architecture)],
        }));
    }
    if item.layers.len() != config.diff_ids.len() {
        return Err(ImageError::Layers {
            layers: item.layers.len(),
            diff_ids: config.diff_ids.len(),
        });
    }
    let mut layers = Vec::new();
    for (path, diff_id) in item.layers.iter().zip(&config.diff_ids) {
        layers.push(ImageLayer::Blob(BlobLayer {
            name: shown(path),
            at: tar.file(path).map_err(read(path))?,
            digest: None,
            diff_id: Some(*diff_id),
            cached: false,
            whiteouts: true,
        }));
    }
    Ok(Image {
        name,
        digest: None,
        config_digest: Some(digest),
        config,
        layers,
    })
}

fn choose<'a>(items: &'a [Item], tag: Option<&str>) -> Result<&'a Item, PlatformError> {
    let tags = |item: &'a Item| item.repo_tags.as_deref().unwrap_or_default();
    let there = || items.iter().flat_map(tags).cloned().collect();
    match (items, tag) {
        ([], _) => Err(PlatformError::Empty),
        ([only], None) => Ok(only),
        (_, None) => Err(PlatformError::SeveralNames(there())),
        (items, Some(wanted)) => items
            .iter()
            .find(|item| tags(item).iter().any(|has| names(has, wanted)))
            .ok_or_else(|| PlatformError::NoName {
                wanted: wanted.to_owned(),
                there: there(),
            }),
    }
}

/// Whether `has`, of the archive, is what `wanted` means.
fn names(has: &str, wanted: &str) -> bool {
    let canonical = |text: &str| text.parse::<crate::Reference>().ok();
    has == wanted
        || has.rsplit_once(':').is_some_and(|(_, tag)| tag == wanted)
        || canonical(has).is_some_and(|has| Some(has) == canonical(wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_of_an_archive_is_chosen_by_its_name() {
        let item = |tags: &[&str]| Item {
            config: tags.join(","),
            repo_tags: Some(tags.iter().map(|&tag| tag.to_owned()).collect()),
            layers: Vec::new(),
        };
        let items = [
            item(&["nginx:latest", "nginx:1.27"]),
            item(&["localhost/app:v2"]),
        ];
        let chosen = |tag| choose(&items, tag).map(|item| item.config.as_str());
        for (tag, expected) in [
            ("nginx", "nginx:latest,nginx:1.27"),
            ("1.27", "nginx:latest,nginx:1.27"),
            ("docker.io/library/nginx:1.27", "nginx:latest,nginx:1.27"),
            ("localhost/app:v2", "localhost/app:v2"),
        ] {
            assert_eq!(chosen(Some(tag)), Ok(expected), "{tag}");
        }
        let error = chosen(Some("nginx:9")).unwrap_err().to_string();
        assert!(error.contains("nginx:1.27, localhost/app:v2"), "{error}");
        assert!(matches!(chosen(None), Err(PlatformError::SeveralNames(_))));
        assert!(choose(&items[..1], None).is_ok());
        assert_eq!(choose(&[], None).err(), Some(PlatformError::Empty));
    }
}
