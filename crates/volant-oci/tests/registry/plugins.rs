//! Plugins in a registry, as we and as others see them.

use volant_oci::{
    BlobSource, ImageError, Reference, digest_of,
    plugin::{self, File, Inspection, Package, PluginError},
};

use crate::tools::{Registry, chain, client, layout, load, loader, run, skopeo_copy};

fn package(dir: &std::path::Path) -> Package {
    let content = b"an image, say".repeat(100_000);
    let path = dir.join("rootfs.squashfs");
    std::fs::write(&path, &content).unwrap();
    Package {
        name: "caddy".into(),
        version: "2.6.2".into(),
        description: Some("a web server".into()),
        created: None,
        manifest: br#"{"name": "caddy"}"#.to_vec(),
        signature: Some(b"untrusted comment: signature\nRUQ\n".to_vec()),
        artifacts: vec![File {
            title: "rootfs.squashfs".into(),
            path,
            digest: digest_of(&content),
            size: content.len() as u64,
        }],
    }
}

#[tokio::test]
async fn a_plugin_comes_back_as_it_was_pushed_and_skopeo_reads_it() {
    let registry = Registry::open();
    let dir = tempfile::tempdir().unwrap();
    let package = package(dir.path());
    let client = client();
    let host = &registry.host;
    let reference: Reference = format!("oci://{host}/plugins/caddy:2.6.2").parse().unwrap();
    let digest = plugin::push(&client, &reference, &package, None)
        .await
        .unwrap();

    let pulled = plugin::pull(&client, &reference).await.unwrap();
    assert_eq!(pulled.digest, digest);
    assert_eq!(pulled.manifest, package.manifest);
    assert_eq!(pulled.signature, package.signature);
    assert_eq!(
        pulled.artifacts[0].title.as_deref(),
        Some("rootfs.squashfs")
    );
    assert_eq!(pulled.artifacts[0].digest, package.artifacts[0].digest);
    assert_eq!(
        pulled.annotations["org.opencontainers.image.version"],
        "2.6.2"
    );

    // A stream from the middle is the rest of the file.
    let artifact = &pulled.artifacts[0];
    let mut stream = client
        .blob(&reference, &artifact.digest, artifact.size, 1000)
        .await
        .unwrap();
    let mut rest = Vec::new();
    while let Some(chunk) = stream.chunk().await.unwrap() {
        rest.extend_from_slice(&chunk);
    }
    assert!(rest == std::fs::read(&package.artifacts[0].path).unwrap()[1000..]);

    let at = format!("docker://{host}/plugins/caddy:2.6.2");
    let raw = run("skopeo", &["inspect", "--tls-verify=false", "--raw", &at]);
    assert_eq!(digest_of(&raw), digest);
    let copy = dir.path().join("copy").display().to_string();
    skopeo_copy(&[&at, &format!("oci:{copy}:v1")]);
    let hex = package.artifacts[0].digest.hex();
    let copied = std::fs::read(format!("{copy}/blobs/sha256/{hex}")).unwrap();
    assert_eq!(digest_of(&copied), package.artifacts[0].digest);

    let error = load(
        &loader(client, dir.path()),
        &format!("{host}/plugins/caddy:2.6.2"),
    )
    .await;
    assert!(matches!(error, Err(ImageError::Plugin)), "{error:?}");
}

#[tokio::test]
async fn the_same_plugin_pushed_twice_is_the_same_and_is_not_sent_again() {
    let registry = Registry::open();
    let dir = tempfile::tempdir().unwrap();
    let package = package(dir.path());
    let client = client();
    let reference: Reference = format!("{}/caddy:a", registry.host).parse().unwrap();
    let first = plugin::push(&client, &reference, &package, None)
        .await
        .unwrap();
    let source = BlobSource::File {
        path: "/there/is/no/such/file".into(),
        size: package.artifacts[0].size,
    };
    let sent = client.push_blob(&reference, &package.artifacts[0].digest, &source, &|_| {});
    assert!(
        !sent.await.unwrap(),
        "it is there already, so its file is not even opened"
    );
    let reference: Reference = format!("{}/caddy:b", registry.host).parse().unwrap();
    let second = plugin::push(&client, &reference, &package, None)
        .await
        .unwrap();
    assert_eq!(first, second);

    let pinned: Reference = format!("{}/caddy@{first}", registry.host).parse().unwrap();
    assert_eq!(plugin::pull(&client, &pinned).await.unwrap().digest, first);
    let error = plugin::push(&client, &pinned, &package, None)
        .await
        .unwrap_err();
    assert!(matches!(error, PluginError::PushToDigest { .. }), "{error}");
}

#[tokio::test]
async fn a_file_that_changed_since_its_digest_was_taken_is_not_pushed() {
    let registry = Registry::open();
    let dir = tempfile::tempdir().unwrap();
    let mut package = package(dir.path());
    package.artifacts[0].digest = digest_of(b"something else");
    let reference: Reference = format!("{}/caddy:v1", registry.host).parse().unwrap();
    let error = plugin::push(&client(), &reference, &package, None)
        .await
        .unwrap_err();
    let text = chain(&error);
    assert!(text.contains("push blob") && text.contains("400"), "{text}");
    let error = plugin::pull(&client(), &reference).await.unwrap_err();
    assert!(chain(&error).contains("404"), "nothing is there: {error}");
}

#[tokio::test]
async fn an_image_is_told_from_a_plugin() {
    let registry = Registry::open();
    let dir = tempfile::tempdir().unwrap();
    let layout = layout(dir.path(), "amd64");
    let host = &registry.host;
    skopeo_copy(&[
        &format!("oci:{layout}:v1"),
        &format!("docker://{host}/app:v1"),
    ]);
    let reference = format!("{host}/app:v1").parse().unwrap();
    match plugin::inspect(&client(), &reference).await.unwrap() {
        Inspection::Image { config, layers, .. } => {
            assert_eq!(config.user, "www-data");
            assert_eq!(layers.len(), 1);
        }
        other => panic!("{other:?}"),
    }
    let error = plugin::pull(&client(), &reference).await.unwrap_err();
    assert!(error.to_string().contains("fledge build"), "{error}");
}
