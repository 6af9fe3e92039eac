//! Indexes, manifests and configurations of images, and choosing among them.

use std::{fs, path::Path, sync::OnceLock};

use futures_util::FutureExt;
use tempfile::TempDir;
use volant_oci::{
    Cache, Client, Credentials, ImageConfig, Limits, Loader, Platform, Reference, Registries,
    Source, digest_of, manifest::Document,
};

/// A document alone, and a layout of three: index, manifest and configuration, parted by NUL. In the index `@M` stands
/// for the manifest's digest and size, in the manifest `@C` for the configuration's, `@L` for those of an empty layer.
pub fn oci_index(bytes: &[u8]) {
    match Document::parse(bytes) {
        Ok(Document::Manifest(manifest)) => {
            let text = serde_json::to_vec(&manifest).expect("a manifest can be written");
            let again = Document::parse(&text).expect("what was written is a manifest");
            assert_eq!(again, Document::Manifest(manifest));
        }
        Ok(Document::Index(index)) => {
            let text = serde_json::to_vec(&index).expect("an index can be written");
            let again = Document::parse(&text).expect("what was written is an index");
            assert_eq!(again, Document::Index(index));
        }
        Err(error) => assert!(!error.to_string().is_empty(), "an error says something"),
    }
    let _ = ImageConfig::parse(bytes);
    if let Ok(text) = std::str::from_utf8(bytes) {
        if let Ok(reference) = text.parse::<Reference>() {
            let again = reference.to_string().parse();
            assert_eq!(again, Ok(reference));
        }
        if let Ok(platform) = text.parse::<Platform>() {
            assert_eq!(platform.to_string().parse(), Ok(platform));
        }
        let _ = Source::parse(text, Path::new("/"));
    }
    // Files are slow, and a layout has more than one document.
    if bytes.contains(&0) {
        layout(bytes);
    }
}

fn layout(bytes: &[u8]) {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    let folder = FOLDER
        .get_or_init(|| TempDir::new().expect("a temporary folder can be made"))
        .path();
    let blobs = folder.join("blobs/sha256");
    // Of the bytes before only.
    let _ = fs::remove_dir_all(&blobs);
    fs::create_dir_all(&blobs).expect("the folder can be written to");
    let put = |bytes: &[u8]| {
        let digest = digest_of(bytes);
        fs::write(blobs.join(digest.hex()), bytes).expect("the folder can be written to");
        format!("\"digest\":\"{digest}\",\"size\":{}", bytes.len())
    };
    let mut parts = bytes.splitn(3, |byte| *byte == 0);
    let mut part = || String::from_utf8_lossy(parts.next().unwrap_or_default());
    let (index, manifest, config) = (part(), part(), part());
    let (config, layer) = (put(config.as_bytes()), put(&[]));
    let manifest = put(manifest
        .replace("@C", &config)
        .replace("@L", &layer)
        .as_bytes());
    let index = index.replace("@M", &manifest);
    fs::write(folder.join("index.json"), index).expect("the folder can be written to");
    let source = Source::Layout {
        dir: folder.to_owned(),
        tag: None,
    };
    let loader = Loader {
        client: Client::new(
            Credentials::none(),
            Registries::default(),
            Limits::default(),
        ),
        cache: Cache::at(folder.join("cache")),
        platform: Platform::default(),
        progress: None,
    };
    let loaded = source
        .load(&loader)
        .now_or_never()
        .expect("a layout is read without waiting");
    if let Ok(image) = loaded {
        assert_eq!(image.layers.len(), image.config.diff_ids.len());
    }
}
