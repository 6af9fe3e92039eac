//! Images in folders and archives.

use std::fs;

use volant_layers::{Layer, merge};

use crate::tools::{chain, client, hello, layout, load, loader, run, skopeo_copy};

#[tokio::test]
async fn layouts_and_archives_give_the_same_image() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let layout = layout(dir.path(), "amd64");
    let from = format!("oci:{layout}:v1");
    skopeo_copy(&[&from, &format!("oci-archive:{}:v1", at("o.tar"))]);
    skopeo_copy(&[
        &from,
        &format!("docker-archive:{}:registry.example/app:v1", at("d.tar")),
    ]);
    let loader = loader(client(), &dir.path().join("cache"));
    let reference = load(&loader, &from).await.unwrap();
    let sources = [
        format!("oci:{layout}"),
        format!("oci-archive:{}:v1", at("o.tar")),
        format!("oci-archive:{}", at("o.tar")),
        format!("docker-archive:{}", at("d.tar")),
        format!("docker-archive:{}:v1", at("d.tar")),
        format!("docker-archive:{}:registry.example/app:v1", at("d.tar")),
    ];
    for source in sources {
        let image = load(&loader, &source).await.unwrap();
        assert_eq!(hello(&image), "hello from amd64\n", "{source}");
        assert_eq!(image.config.diff_ids, reference.config.diff_ids, "{source}");
        assert_eq!(image.config.user, "www-data", "{source}");
    }
    for (source, word) in [
        (format!("oci:{layout}:v2"), "there are: v1"),
        (
            format!("docker-archive:{}:v2", at("d.tar")),
            "registry.example/app:v1",
        ),
        (format!("oci-archive:{}", at("nowhere.tar")), "nowhere.tar"),
        (format!("oci:{}", at("nowhere")), "index.json"),
    ] {
        let error = load(&loader, &source).await.unwrap_err().to_string();
        assert!(error.contains(word), "{source}: {error}");
    }
    assert!(
        !dir.path().join("cache").exists(),
        "what is here is read in place"
    );
}

#[tokio::test]
async fn dockers_archive_with_a_layout_in_it_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let layout = layout(dir.path(), "amd64");
    let loader = loader(client(), dir.path());
    let image = load(&loader, &format!("oci:{layout}:v1")).await.unwrap();
    let blob = |digest: volant_oci::Digest| format!("blobs/sha256/{}", digest.hex());
    let volant_oci::ImageLayer::Blob(layer) = &image.layers[0] else {
        panic!("a blob");
    };
    let manifest = format!(
        r#"[{{"Config":"{}","RepoTags":["app:v1"],"Layers":["{}"]}}]"#,
        blob(image.config_digest.unwrap()),
        blob(layer.digest().unwrap()),
    );
    run("tar", &["-C", &layout, "-cf", &at("layout.tar"), "."]);
    let source = format!("docker-archive:{}", at("layout.tar"));
    assert_eq!(
        hello(&load(&loader, &source).await.unwrap()),
        "hello from amd64\n"
    );

    fs::write(format!("{layout}/manifest.json"), &manifest).unwrap();
    run("tar", &["-C", &layout, "-cf", &at("both.tar"), "."]);
    let source = format!("docker-archive:{}:app:v1", at("both.tar"));
    assert_eq!(
        hello(&load(&loader, &source).await.unwrap()),
        "hello from amd64\n"
    );

    let out = manifest.replace("blobs/sha256", "../blobs/sha256");
    fs::write(format!("{layout}/manifest.json"), out).unwrap();
    run("tar", &["-C", &layout, "-cf", &at("out.tar"), "."]);
    let error = load(&loader, &format!("docker-archive:{}", at("out.tar")))
        .await
        .unwrap_err();
    assert!(
        chain(&error).contains("leads out of the archive"),
        "{}",
        chain(&error)
    );
}

#[tokio::test]
async fn a_layout_of_several_images_wants_a_name() {
    let dir = tempfile::tempdir().unwrap();
    let layout = layout(dir.path(), "amd64");
    run(
        "umoci",
        &[
            "config",
            "--image",
            &format!("{layout}:v1"),
            "--tag",
            "v2",
            "--config.user",
            "other",
        ],
    );
    let loader = loader(client(), dir.path());
    let error = load(&loader, &format!("oci:{layout}"))
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("v1, v2"), "{error}");
    let image = load(&loader, &format!("oci:{layout}:v2")).await.unwrap();
    assert_eq!(image.config.user, "other");
}

#[tokio::test]
async fn a_changed_byte_in_a_layout_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let layout = layout(dir.path(), "amd64");
    let loader = loader(client(), dir.path());
    let source = format!("oci:{layout}:v1");
    let image = load(&loader, &source).await.unwrap();
    let config = image.config_digest.unwrap();
    let path = format!("{layout}/blobs/sha256/{}", config.hex());
    let mut bytes = fs::read(&path).unwrap();
    bytes[10] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let error = load(&loader, &source).await.unwrap_err().to_string();
    assert!(error.contains("digest"), "{error}");
    bytes.push(b' ');
    fs::write(&path, &bytes).unwrap();
    let error = load(&loader, &source).await.unwrap_err().to_string();
    assert!(error.contains("bytes, not"), "{error}");
}

#[tokio::test]
async fn a_directory_and_a_tar_of_it_are_images() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    fs::create_dir_all(root.join("etc")).unwrap();
    fs::write(root.join("etc/hello"), "hello from a tree\n").unwrap();
    fs::write(root.join("etc/.wh.hello"), "").unwrap();
    fs::write(root.join("etc/.wh..wh..opq"), "").unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    run("tar", &["-C", &at("root"), "-cf", &at("r.tar"), "."]);
    run("tar", &["-C", &at("root"), "-czf", &at("r.tar.gz"), "."]);
    let loader = loader(client(), dir.path());
    for source in ["dir:root", "tar:r.tar", "tar:r.tar.gz"] {
        let source = volant_oci::Source::parse(source, dir.path()).unwrap();
        let image = source.load(&loader).await.unwrap();
        assert_eq!(hello(&image), "hello from a tree\n", "{source}");
        assert_eq!(image.config.architecture, "amd64");
        let layers: Vec<&dyn Layer> = image.layers.iter().map(|layer| layer as _).collect();
        let tree = merge(&layers, &volant_layers::Limits::default()).unwrap();
        for path in ["etc/hello", "etc/.wh.hello", "etc/.wh..wh..opq"] {
            let there = tree.get(path.as_bytes()).is_some();
            assert!(there, "{path} of {source}: it is no layer of an image");
        }
    }
    let error = load(&loader, &format!("dir:{}", at("r.tar")))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("r.tar"), "{error}");
}
