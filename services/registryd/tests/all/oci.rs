//! Plugins from an OCI registry: one that only gives, in this process.

use registryd::{InstallError, Registry, Source};
use serde_json::{Value, json};

use crate::{
    common::{bytes, chain, digest, manifest, registry, temp_dir},
    web::{Page, Web},
};

fn layer(kind: &str, content: &[u8]) -> Value {
    json!({
        "mediaType": format!("application/vnd.volant.plugin.{kind}"),
        "digest": digest(content), "size": content.len(),
    })
}

/// A registry with the plugin `manifest` as `acme/caddy:1`, whose artifacts come in pieces.
async fn serving(manifest: &Value, artifacts: &[&[u8]]) -> Web {
    let manifest = bytes(manifest);
    let web = Web::serve([("/v2/", Page::Body(b"{}".to_vec()))]).await;
    let mut layers = vec![layer("manifest.v1+json", &manifest)];
    layers.extend(
        artifacts
            .iter()
            .map(|content| layer("artifact.v1", content)),
    );
    let oci = bytes(&json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "artifactType": "application/vnd.volant.plugin.v1",
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": digest(b"{}"), "size": 2},
        "layers": layers,
    }));
    for reference in ["1".to_owned(), digest(&oci).to_string()] {
        let path = format!("/v2/acme/caddy/manifests/{reference}");
        web.put(&path, Page::Body(oci.clone()));
    }
    for content in artifacts.iter().copied().chain([&manifest[..]]) {
        let path = format!("/v2/acme/caddy/blobs/{}", digest(content));
        web.put(&path, Page::Piecewise(content.to_vec(), 500_000));
    }
    web
}

async fn install(registry: &Registry, web: &Web) -> Result<registryd::Installed, InstallError> {
    let source = Source::parse(&format!("oci://{}/acme/caddy:1", web.at)).unwrap();
    registry.install(source, |_| {}).await
}

#[tokio::test]
async fn a_plugin_and_its_artifacts_come_from_one_repository() {
    let dir = temp_dir();
    let registry = registry(&dir);
    let content = vec![3; 800_000];
    let given = manifest("caddy", "i.cpio", &content);
    let web = serving(&given, &[&content]).await;
    let installed = install(&registry, &web).await.unwrap();
    assert_eq!(installed.original.manifest, bytes(&given));
    assert_eq!(
        installed.plugin.source,
        format!("oci://{}/acme/caddy:1", web.at)
    );
    // It broke off once, and went on.
    assert_eq!(web.ranges(), ["bytes=500000-"]);

    let blob = format!("/v2/acme/caddy/blobs/{}", digest(&content));
    let asked = || web.asked().iter().filter(|path| **path == blob).count();
    let before = asked();
    assert_eq!(install(&registry, &web).await.unwrap(), installed);
    assert_eq!(asked(), before);
}

#[tokio::test]
async fn an_artifact_elsewhere_is_fetched_from_there() {
    let dir = temp_dir();
    let registry = registry(&dir);
    let other = Web::serve([("/i", Page::Body(b"initramfs".to_vec()))]).await;
    let web = serving(&manifest("caddy", &other.url("/i"), b"initramfs"), &[]).await;
    install(&registry, &web).await.unwrap();
    assert_eq!(other.asked(), ["/i"]);
}

#[tokio::test]
async fn what_is_not_there_or_no_plugin_is_told() {
    let dir = temp_dir();
    let registry = registry(&dir);
    let web = serving(&manifest("caddy", "i.cpio", b"not pushed"), &[]).await;
    let error = install(&registry, &web).await.unwrap_err();
    assert!(
        matches!(error, InstallError::NotPushed { .. }),
        "{}",
        chain(&error)
    );
    let image = bytes(&json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "artifactType": "application/x", "layers": [],
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": digest(b"{}"), "size": 2},
    }));
    web.put("/v2/acme/caddy/manifests/1", Page::Body(image));
    let error = chain(&install(&registry, &web).await.unwrap_err());
    assert!(error.contains("is no Volant plugin"), "{error}");
    web.put("/v2/acme/caddy/manifests/1", Page::Status(404));
    let error = chain(&install(&registry, &web).await.unwrap_err());
    assert!(error.contains("404"), "{error}");
    let error = registry
        .install(Source::Oci("oci://".to_owned()), |_| {})
        .await;
    assert!(matches!(error.unwrap_err(), InstallError::Reference(_)));
    assert_eq!(registry.plugins(None).await.unwrap(), []);
}

#[tokio::test]
async fn a_blob_that_is_not_what_its_digest_says_is_not_kept() {
    let dir = temp_dir();
    let registry = registry(&dir);
    let content = vec![3; 800_000];
    let web = serving(&manifest("caddy", "i.cpio", &content), &[&content]).await;
    let blob = format!("/v2/acme/caddy/blobs/{}", digest(&content));
    web.put(&blob, Page::Body(vec![4; 800_000]));
    let error = chain(&install(&registry, &web).await.unwrap_err());
    assert!(error.contains("have the checksum"), "{error}");
    assert_eq!(crate::common::blob_files(&dir), Vec::<String>::new());
}
