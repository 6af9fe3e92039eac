//! Installing from the web, from servers good and bad.

use std::{sync::Mutex, time::Duration};

use registryd::{FetchError, InstallError, Progress, Registry, Source};
use tempfile::TempDir;

use crate::{
    common::{blob_files, bytes, chain, digest, files, manifest, registry, temp_dir, unsigned},
    web::{Page, Web},
};

const INITRAMFS: &[u8] = &[42; 300_000];

async fn install(
    registry: &Registry,
    source: Source,
) -> Result<registryd::Installed, InstallError> {
    let installed = registry.install(source, |_| {});
    tokio::time::timeout(Duration::from_secs(20), installed)
        .await
        .expect("an install ends")
}

/// Installs a manifest whose initramfs is at `page`, which fails; checks that nothing is left.
async fn refused(dir: &TempDir, page: Page) -> InstallError {
    let registry = registry(dir);
    let web = Web::serve([("/i", page)]).await;
    let manifest = manifest("caddy", &web.url("/i"), INITRAMFS);
    let error = install(&registry, unsigned(&manifest)).await.unwrap_err();
    assert_eq!(registry.plugins(None).await.unwrap(), []);
    assert_eq!(blob_files(dir).len() + files(dir, "incoming").len(), 0);
    error
}

#[tokio::test]
async fn a_plugin_is_installed_from_its_url() {
    let dir = temp_dir();
    let registry = registry(&dir);
    let mut wanted = manifest("caddy", "files/i.cpio.gz", INITRAMFS);
    wanted["initramfs"]["size"] = INITRAMFS.len().into();
    let wanted = bytes(&wanted);
    let web = Web::serve([
        ("/p/caddy.manifest.json", Page::Body(wanted.clone())),
        ("/p/files/i.cpio.gz", Page::Redirect("/cdn".to_owned())),
        ("/cdn", Page::Body(INITRAMFS.to_vec())),
    ])
    .await;
    let told: Mutex<Vec<Progress>> = Mutex::default();
    let source = Source::Url(web.url("/p/caddy.manifest.json"));
    let installed = registry
        .install(source.clone(), |progress| {
            told.lock().unwrap().push(progress);
        })
        .await
        .unwrap();
    assert_eq!(installed.original.manifest, wanted);
    assert_eq!(installed.plugin.size_bytes, INITRAMFS.len() as u64);
    assert_eq!(blob_files(&dir), [digest(INITRAMFS).hex()]);
    let told = told.into_inner().unwrap();
    assert_eq!(
        *told.last().unwrap(),
        Progress {
            artifact: "initramfs".to_owned(),
            done_bytes: INITRAMFS.len() as u64,
            total_bytes: Some(INITRAMFS.len() as u64),
        }
    );
    // What is there is not fetched again.
    assert_eq!(install(&registry, source).await.unwrap(), installed);
    assert_eq!(web.asked().iter().filter(|path| *path == "/cdn").count(), 1);
}

#[tokio::test]
async fn installs_of_one_plugin_wait_for_each_other() {
    let dir = temp_dir();
    let registry = registry(&dir);
    let web = Web::serve([("/i", Page::Body(INITRAMFS.to_vec()))]).await;
    let given = unsigned(&manifest("caddy", &web.url("/i"), INITRAMFS));
    let (a, b, c) = tokio::join!(
        install(&registry, given.clone()),
        install(&registry, given.clone()),
        install(&registry, given.clone()),
    );
    assert_eq!(a.unwrap(), b.unwrap());
    c.unwrap();
    assert_eq!(web.asked(), ["/i"]);
}

#[tokio::test]
async fn a_wrong_checksum_is_told_with_both_and_nothing_is_kept() {
    let error = refused(&temp_dir(), Page::Body(b"something else".to_vec())).await;
    let text = chain(&error);
    for part in [
        "'initramfs'",
        &digest(INITRAMFS).to_string(),
        &digest(b"something else").to_string(),
    ] {
        assert!(text.contains(part), "{text}");
    }
}

#[tokio::test]
async fn a_body_that_ends_early_is_refused() {
    let error = refused(&temp_dir(), Page::Truncated(INITRAMFS[..1000].to_vec())).await;
    assert!(
        matches!(
            error,
            InstallError::Fetch {
                source: FetchError::Broken { got: 1000, .. },
                ..
            }
        ),
        "{}",
        chain(&error)
    );
}

#[tokio::test]
async fn a_body_that_never_ends_is_cut_at_the_limit() {
    let error = refused(&temp_dir(), Page::Endless).await;
    assert!(
        chain(&error).contains("more than 1048576 bytes"),
        "{}",
        chain(&error)
    );
}

#[tokio::test]
async fn a_huge_body_is_refused_when_it_is_announced() {
    let error = refused(&temp_dir(), Page::Announced(1 << 40)).await;
    assert!(
        chain(&error).contains("more than 1048576 bytes"),
        "{}",
        chain(&error)
    );
}

#[tokio::test]
async fn a_server_that_trickles_or_stops_is_given_up() {
    for page in [Page::Trickle, Page::Stuck] {
        let error = refused(&temp_dir(), page.clone()).await;
        assert!(
            matches!(
                error,
                InstallError::Fetch {
                    source: FetchError::Slow { .. },
                    ..
                }
            ),
            "{page:?}: {}",
            chain(&error)
        );
    }
}

#[tokio::test]
async fn a_redirect_leads_neither_in_circles_nor_to_files() {
    let cases = [
        ("/i", "more than 5 redirects"),
        ("file:///etc/passwd", "the server answered 302"),
    ];
    for (to, expected) in cases {
        let error = chain(&refused(&temp_dir(), Page::Redirect(to.to_owned())).await);
        assert!(error.contains(expected), "{to}: {error}");
    }
}

#[tokio::test]
async fn a_size_that_is_not_the_declared_one_is_refused() {
    let dir = temp_dir();
    let registry = registry(&dir);
    let web = Web::serve([("/i", Page::Body(INITRAMFS.to_vec()))]).await;
    let mut wrong = manifest("caddy", &web.url("/i"), INITRAMFS);
    wrong["initramfs"]["size"] = 12.into();
    let error = install(&registry, unsigned(&wrong)).await.unwrap_err();
    assert!(
        matches!(
            error,
            InstallError::Size {
                found: 300_000,
                declared: 12,
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(blob_files(&dir).len() + files(&dir, "incoming").len(), 0);
}

#[tokio::test]
async fn files_of_the_host_are_out_of_reach() {
    let dir = temp_dir();
    let registry = registry(&dir);
    let secret = dir.path().join("secret");
    std::fs::write(&secret, INITRAMFS).unwrap();
    let secret = secret.to_str().unwrap();
    for url in [secret, &format!("file://{secret}"), "secret"] {
        let manifest = manifest("caddy", url, INITRAMFS);
        let error = install(&registry, unsigned(&manifest)).await.unwrap_err();
        assert!(matches!(error, InstallError::NotUploaded { .. }), "{error}");
        assert!(error.to_string().contains("upload it first"), "{error}");
    }
    let error = install(&registry, Source::Url(format!("file://{secret}"))).await;
    assert!(matches!(error.unwrap_err(), InstallError::Url { .. }));
}

#[tokio::test]
async fn a_manifest_is_bounded_too() {
    let dir = temp_dir();
    let registry = registry(&dir);
    let web = Web::serve([
        ("/huge", Page::Announced(1 << 30)),
        ("/endless", Page::Endless),
        ("/stuck", Page::Stuck),
        ("/text", Page::Body(b"no manifest".to_vec())),
    ])
    .await;
    let cases = [
        ("/huge", "larger than 1048576 bytes"),
        ("/endless", "larger than 1048576 bytes"),
        ("/stuck", "was given up"),
        ("/absent", "404"),
        ("/text", "the manifest is not valid"),
    ];
    for (path, expected) in cases {
        let error = install(&registry, Source::Url(web.url(path)))
            .await
            .unwrap_err();
        assert!(
            chain(&error).contains(expected),
            "{path}: {}",
            chain(&error)
        );
    }
}

#[tokio::test]
async fn an_artifact_that_may_be_in_two_places_is_refused() {
    let dir = temp_dir();
    let registry = registry(&dir);
    let web = Web::serve([]).await;
    for url in ["app:1.squashfs", "a?b", "a#b", "a%62", "//b.example/i", ""] {
        let given = bytes(&manifest("caddy", url, INITRAMFS));
        web.put("/p/m.json", Page::Body(given));
        let error = install(&registry, Source::Url(web.url("/p/m.json"))).await;
        let error = error.unwrap_err();
        assert!(
            chain(&error).contains("initramfs.url is not valid"),
            "{url}: {}",
            chain(&error)
        );
    }
    let asked = web.asked();
    assert!(
        asked.iter().all(|path| path.starts_with("/p/m.json")),
        "{asked:?}"
    );
}
