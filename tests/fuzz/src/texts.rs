//! Texts that people write: manifests, indexes and recipes.

use volant_spec::{Manifest, PluginRef, index::Index};

/// A plugin's manifest, and an index of plugins. What is read is written as something that reads the same.
pub fn manifest(bytes: &[u8]) {
    if let Ok(manifest) = Manifest::parse(bytes) {
        let text = serde_json::to_vec(&manifest).expect("a manifest can be written");
        let again = Manifest::parse(&text).expect("what was written is a manifest");
        assert_eq!(manifest, again);
        let _ = manifest.unsupported();
        assert!(manifest.artifacts().next().is_some(), "it boots something");
        let plugin: PluginRef = format!("{}@{}", manifest.name, manifest.version)
            .parse()
            .expect("name and version make a reference");
        assert_eq!(plugin.version, Some(manifest.version));
    }
    if let Ok(index) = Index::parse(bytes) {
        let text = serde_json::to_vec(&index).expect("an index can be written");
        assert_eq!(Index::parse(&text).ok(), Some(index));
    }
}

/// `fledge.toml`, and the host's configuration.
pub fn recipe(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    match fledge::recipe::Recipe::parse(text) {
        Ok(recipe) => {
            let _ = recipe.root.source();
        }
        Err(error) => assert!(!error.to_string().is_empty(), "an error says something"),
    }
}
