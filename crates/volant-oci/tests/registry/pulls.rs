//! Images that skopeo pushed.

use std::sync::{Arc, Mutex};

use volant_oci::{
    BlobSource, Client, Credentials, ImageError, PlatformError, Progress, Registries, Trouble,
    digest_of,
    manifest::{Document, OCI_INDEX},
    plugin::{self, Inspection},
};

use crate::tools::{Registry, chain, client, hello, layout, load, loader, quick, run, skopeo_copy};

#[tokio::test]
async fn what_skopeo_pushed_is_pulled_in_both_formats_and_only_once() {
    let registry = Registry::open();
    let dir = tempfile::tempdir().unwrap();
    let layout = layout(dir.path(), "amd64");
    let host = &registry.host;
    skopeo_copy(&[
        &format!("oci:{layout}:v1"),
        &format!("docker://{host}/a/app:oci"),
    ]);
    skopeo_copy(&[
        "--format=v2s2",
        &format!("oci:{layout}:v1"),
        &format!("docker://{host}/a/app:docker"),
    ]);
    let cache = dir.path().join("cache");
    let seen = Arc::new(Mutex::new(Vec::new()));
    let mut loader = loader(client(), &cache);
    let told = Arc::clone(&seen);
    loader.progress = Some(Arc::new(move |step: Progress| {
        told.lock().unwrap().push(step);
    }));

    for tag in ["oci", "docker"] {
        let image = load(&loader, &format!("docker://{host}/a/app:{tag}"))
            .await
            .unwrap();
        assert_eq!(hello(&image), "hello from amd64\n");
        assert_eq!(image.config.user, "www-data");
        assert_eq!(image.config.entrypoint, ["/hello"]);
        assert_eq!(image.config.env.last().unwrap(), "A=b=c");
        assert_eq!(image.config.stop_signal.as_deref(), Some("SIGQUIT"));
        assert_eq!(image.config.volumes, ["/data"]);
        assert_eq!(image.config.exposed_ports[0].number, 8080);
        let raw = run(
            "skopeo",
            &[
                "inspect",
                "--tls-verify=false",
                "--raw",
                &format!("docker://{host}/a/app:{tag}"),
            ],
        );
        assert_eq!(image.digest, Some(digest_of(&raw)), "{tag}");
    }
    let steps = std::mem::take(&mut *seen.lock().unwrap());
    assert!(
        steps
            .iter()
            .all(|step| step.done <= step.total && step.total > 0)
    );

    load(&loader, &format!("{host}/a/app:oci")).await.unwrap();
    let steps = std::mem::take(&mut *seen.lock().unwrap());
    assert!(
        steps.iter().all(|step| step.done == step.total),
        "it is in the cache: {steps:?}"
    );

    let tags = client()
        .tags(&format!("{host}/a/app").parse().unwrap())
        .await
        .unwrap();
    assert_eq!(tags.len(), 2, "{tags:?}");
}

#[tokio::test]
async fn a_missing_image_says_where_and_what() {
    let registry = Registry::open();
    let dir = tempfile::tempdir().unwrap();
    let text = format!("{}/no/such:v9", registry.host);
    let error = load(&loader(client(), dir.path()), &text)
        .await
        .unwrap_err();
    let text = chain(&error);
    for word in [
        registry.host.as_str(),
        "no/such",
        "v9",
        "404",
        "no such image",
    ] {
        assert!(text.contains(word), "{word}: {text}");
    }
}

#[tokio::test]
async fn a_guarded_registry_asks_for_a_login_and_takes_skopeos() {
    let registry = Registry::guarded();
    let dir = tempfile::tempdir().unwrap();
    let auth = dir.path().join("auth.json");
    let authfile = auth.display().to_string();
    let host = &registry.host;
    run(
        "skopeo",
        &[
            "login",
            "--tls-verify=false",
            "--authfile",
            &authfile,
            "-u",
            "bob",
            "-p",
            "s3cret",
            host,
        ],
    );
    let layout = layout(dir.path(), "amd64");
    skopeo_copy(&[
        "--dest-authfile",
        &authfile,
        &format!("oci:{layout}:v1"),
        &format!("docker://{host}/app:v1"),
    ]);
    let text = format!("{host}/app:v1");

    let nobody = loader(client(), &dir.path().join("cache"));
    let error = load(&nobody, &text).await.unwrap_err();
    let shown = chain(&error);
    assert!(shown.contains(&format!("skopeo login {host}")), "{shown}");

    let wrong = dir.path().join("wrong.json");
    // bob:wrong-secret
    let entry = format!(r#"{{"auths":{{"{host}":{{"auth":"Ym9iOndyb25nLXNlY3JldA=="}}}}}}"#);
    std::fs::write(&wrong, entry).unwrap();
    let client = |file| Client::new(Credentials::file(file), Registries::default(), quick());
    let error = load(&loader(client(wrong), &dir.path().join("cache")), &text)
        .await
        .unwrap_err();
    let shown = format!("{} {error:?}", chain(&error));
    assert!(shown.contains("skopeo login"), "{shown}");
    assert!(
        !shown.contains("wrong-secret") && !shown.contains("Ym9i"),
        "{shown}"
    );

    let bob = loader(client(auth.clone()), &dir.path().join("cache"));
    assert_eq!(
        hello(&load(&bob, &text).await.unwrap()),
        "hello from amd64\n"
    );
    let source = BlobSource::Bytes(b"new".to_vec().into());
    let reference = text.parse().unwrap();
    let digest = digest_of(b"new");
    let pushed = bob.client.push_blob(&reference, &digest, &source, &|_| {});
    assert!(pushed.await.unwrap());
    assert!(!format!("{:?}", bob.client).contains("s3cret"));
}

#[tokio::test]
async fn the_image_for_the_platform_is_taken_from_an_index() {
    let registry = Registry::open();
    let dir = tempfile::tempdir().unwrap();
    let host = &registry.host;
    let client = client();
    let mut entries = Vec::new();
    for architecture in ["arm64", "amd64"] {
        let layout = layout(dir.path(), architecture);
        let reference = format!("{host}/multi:{architecture}");
        skopeo_copy(&[
            &format!("oci:{layout}:v1"),
            &format!("docker://{reference}"),
        ]);
        let pulled = client.manifest(&reference.parse().unwrap()).await.unwrap();
        entries.push(format!(
            r#"{{"mediaType":"{}","digest":"{}","size":{},"platform":{{"os":"linux","architecture":"{architecture}"}}}}"#,
            pulled.media_type,
            pulled.digest,
            pulled.bytes.len(),
        ));
    }
    let index = |entries: &[String]| {
        format!(
            r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[{}]}}"#,
            entries.join(",")
        )
    };
    let push = async |tag: &str, entries: &[String]| {
        let reference = format!("{host}/multi:{tag}").parse().unwrap();
        let bytes = index(entries).into_bytes();
        let size = bytes.len();
        let digest = client
            .push_manifest(&reference, bytes, OCI_INDEX)
            .await
            .unwrap();
        format!(r#"{{"mediaType":"{OCI_INDEX}","digest":"{digest}","size":{size}}}"#)
    };
    let inner = push("all", &entries).await;
    push("nested", &[inner]).await;

    let mut loader = loader(client.clone(), &dir.path().join("cache"));
    for tag in ["all", "nested"] {
        for architecture in ["amd64", "arm64"] {
            loader.platform = format!("linux/{architecture}").parse().unwrap();
            let image = load(&loader, &format!("{host}/multi:{tag}")).await.unwrap();
            assert_eq!(
                hello(&image),
                format!("hello from {architecture}\n"),
                "{tag}"
            );
        }
        loader.platform = "linux/riscv64".parse().unwrap();
        let error = load(&loader, &format!("{host}/multi:{tag}"))
            .await
            .unwrap_err();
        assert!(matches!(
            error,
            ImageError::Platform(PlatformError::NotThere { .. })
        ));
        assert!(
            error.to_string().contains("linux/amd64, linux/arm64"),
            "{error}"
        );
    }
    // A single image for another machine is told, too.
    loader.platform = "linux/amd64".parse().unwrap();
    let error = load(&loader, &format!("{host}/multi:arm64"))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("linux/arm64"), "{error}");

    let all = format!("{host}/multi:all").parse().unwrap();
    match plugin::inspect(&client, &all).await.unwrap() {
        Inspection::Index { platforms, .. } => {
            assert_eq!(platforms, ["linux/amd64", "linux/arm64"]);
        }
        other => panic!("{other:?}"),
    }
    let pulled = client.manifest(&all).await.unwrap();
    assert!(matches!(
        Document::parse(&pulled.bytes),
        Ok(Document::Index(_))
    ));
}

#[tokio::test]
async fn mirrors_are_asked_before_the_registry_and_told_of_when_all_fail() {
    let registry = Registry::open();
    let dir = tempfile::tempdir().unwrap();
    let layout = layout(dir.path(), "amd64");
    let host = &registry.host;
    skopeo_copy(&[
        &format!("oci:{layout}:v1"),
        &format!("docker://{host}/hub/library/app:v1"),
    ]);
    let conf = dir.path().join("registries.conf");
    std::fs::write(
        &conf,
        format!(
            "[[registry]]\nlocation = 'docker.io'\n\
             [[registry.mirror]]\nlocation = '127.0.0.1:1'\n\
             [[registry.mirror]]\nlocation = '{host}/hub'\n\
             [[registry]]\nprefix = 'other.invalid'\nlocation = '127.0.0.1:1'\n\
             [[registry.mirror]]\nlocation = '{host}/nothing'\n\
             [[registry]]\nlocation = 'blocked.invalid'\nblocked = true\n"
        ),
    )
    .unwrap();
    let registries = Registries::read(&conf).unwrap();
    let client = Client::new(Credentials::none(), registries, quick());
    let loader = loader(client, &dir.path().join("cache"));
    assert_eq!(
        hello(&load(&loader, "app:v1").await.unwrap()),
        "hello from amd64\n"
    );

    let error = chain(&load(&loader, "other.invalid/x").await.unwrap_err());
    assert!(error.contains(&format!("nothing/x at {host}")), "{error}");
    assert!(
        error.contains("404") && error.contains("127.0.0.1:1"),
        "{error}"
    );

    let error = load(&loader, "blocked.invalid/x").await.unwrap_err();
    assert!(
        chain(&error).contains("blocks 'blocked.invalid'"),
        "{}",
        chain(&error)
    );
    let ImageError::Registry(error) = error else {
        panic!("{error}");
    };
    assert!(matches!(error.trouble(), Trouble::Endpoint(_)));
}
