//! Downloads that break off, go on, and are shared.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    sync::Mutex,
    time::{Duration, Instant, SystemTime},
};

use registryd::{Bringer, Collect, Registry, UNUSED_FOR};
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    common::{blob_files, chain, digest, files, manifest, open, registry, temp_dir, unsigned},
    web::{Page, Web},
};

/// More than what is gathered before a write.
fn content() -> Vec<u8> {
    (0..900_000_u32).map(|n| n.to_le_bytes()[1]).collect()
}

async fn install(registry: &Registry, manifest: &Value) -> Result<registryd::Installed, String> {
    let installed = registry.install(unsigned(manifest), |_| {}).await;
    installed.map_err(|error| chain(&error))
}

fn nothing_is_left(dir: &TempDir) {
    for folder in ["incoming", "partial", "blobs/sha256"] {
        assert_eq!(files(dir, folder), Vec::<String>::new(), "{folder}");
    }
}

#[tokio::test]
async fn a_download_that_breaks_off_goes_on_where_it_was() {
    let (dir, content) = (temp_dir(), content());
    let web = Web::serve([("/i", Page::Piecewise(content.clone(), 400_000))]).await;
    install(
        &registry(&dir),
        &manifest("caddy", &web.url("/i"), &content),
    )
    .await
    .unwrap();
    assert_eq!(web.ranges(), ["bytes=400000-", "bytes=800000-"]);
    assert_eq!(web.sent(), content.len());
    assert_eq!(files(&dir, "partial"), Vec::<String>::new());
}

#[tokio::test]
async fn a_download_goes_on_in_another_process() {
    let (dir, content) = (temp_dir(), content());
    let wanted = |web: &Web| manifest("caddy", &web.url("/i"), &content);
    let first = Web::serve([("/i", Page::Truncated(content[..600_000].to_vec()))]).await;
    let error = install(&registry(&dir), &wanted(&first)).await.unwrap_err();
    assert!(error.contains("broke off"), "{error}");
    assert_eq!(files(&dir, "partial"), [digest(&content).hex()]);
    assert_eq!(blob_files(&dir), Vec::<String>::new());

    let second = Web::serve([("/i", Page::Piecewise(content.clone(), usize::MAX))]).await;
    install(&registry(&dir), &wanted(&second)).await.unwrap();
    assert_eq!(second.ranges(), ["bytes=600000-"]);
    assert_eq!(second.sent(), 300_000);
}

#[tokio::test]
async fn a_server_without_ranges_sends_all_again() {
    let (dir, content) = (temp_dir(), content());
    fs::create_dir(dir.path().join("partial")).unwrap();
    let partial = dir.path().join("partial").join(digest(&content).hex());
    fs::write(&partial, &content[..300_000]).unwrap();
    let web = Web::serve([("/i", Page::Body(content.clone()))]).await;
    install(
        &registry(&dir),
        &manifest("caddy", &web.url("/i"), &content),
    )
    .await
    .unwrap();
    assert_eq!(web.ranges(), ["bytes=300000-"]);
    assert_eq!(web.sent(), content.len());
}

#[tokio::test]
async fn a_beginning_that_is_wrong_is_fetched_again() {
    let content = content();
    for (part, declared) in [
        (300_000, false),
        (300_000, true),
        (900_000, true),
        (950_000, false),
    ] {
        let dir = temp_dir();
        fs::create_dir(dir.path().join("partial")).unwrap();
        let partial = dir.path().join("partial").join(digest(&content).hex());
        fs::write(&partial, vec![0; part]).unwrap();
        let web = Web::serve([("/i", Page::Piecewise(content.clone(), usize::MAX))]).await;
        let mut wanted = manifest("caddy", &web.url("/i"), &content);
        if declared {
            wanted["initramfs"]["size"] = content.len().into();
        }
        install(&registry(&dir), &wanted).await.unwrap();
        assert_eq!(files(&dir, "partial"), Vec::<String>::new());
        assert_eq!(blob_files(&dir), [digest(&content).hex()]);
    }
}

#[tokio::test]
async fn what_is_wrong_at_its_end_leaves_nothing() {
    let (dir, content) = (temp_dir(), content());
    let wrong = Page::Piecewise(vec![7; 900_000], 500_000);
    let web = Web::serve([("/i", wrong)]).await;
    let wanted = manifest("caddy", &web.url("/i"), &content);
    let error = install(&registry(&dir), &wanted).await.unwrap_err();
    assert!(error.contains("have the checksum"), "{error}");
    nothing_is_left(&dir);
    let mut longer = wanted.clone();
    longer["initramfs"]["size"] = 899_999.into();
    web.put("/i", Page::Piecewise(content.clone(), 500_000));
    let error = install(&registry(&dir), &longer).await.unwrap_err();
    assert!(error.contains("900000 bytes, not 899999"), "{error}");
    nothing_is_left(&dir);
}

#[tokio::test]
async fn what_is_there_is_never_downloaded_again() {
    let (dir, content) = (temp_dir(), content());
    let registry = registry(&dir);
    let web = Web::serve([("/i", Page::Body(content.clone()))]).await;
    install(&registry, &manifest("caddy", &web.url("/i"), &content))
        .await
        .unwrap();
    let sent = web.sent();
    for name in ["caddy", "another"] {
        install(&registry, &manifest(name, &web.url("/i"), &content))
            .await
            .unwrap();
    }
    assert_eq!((web.sent(), web.asked().len()), (sent, 1));
}

#[tokio::test]
async fn installs_that_need_the_same_share_one_download() {
    let (dir, content) = (temp_dir(), content());
    let registry = registry(&dir);
    let web = Web::serve([("/i", Page::Body(content.clone()))]).await;
    let at = web.url("/i");
    let mut twice = manifest("both", &at, &content);
    twice["rootfs"] = twice["initramfs"].clone();
    let (a, b) = (manifest("a", &at, &content), manifest("b", &at, &content));
    let (a, b, c) = tokio::join!(
        install(&registry, &a),
        install(&registry, &b),
        install(&registry, &twice)
    );
    for installed in [a, b, c] {
        installed.unwrap();
    }
    assert_eq!(web.asked(), ["/i"]);
}

#[tokio::test]
async fn an_install_that_is_cut_off_leaves_no_half_plugin_and_can_be_taken_up() {
    let (dir, content) = (temp_dir(), content());
    let registry = registry(&dir);
    let web = Web::serve([("/i", Page::Stuck), ("/r", Page::Body(content.clone()))]).await;
    let mut wanted = manifest("caddy", &web.url("/i"), b"never sent");
    wanted["rootfs"] = manifest("x", &web.url("/r"), &content)["initramfs"].clone();
    let cut = tokio::spawn({
        let (registry, wanted) = (registry.clone(), wanted.clone());
        async move { install(&registry, &wanted).await }
    });
    // The rootfs is there, the initramfs hangs.
    crate::daemon::eventually(async || (!blob_files(&dir).is_empty()).then_some(())).await;
    // While it runs nothing of it is taken, by whomever.
    assert_eq!(registry.collect_garbage().await.unwrap().artifacts, 0);
    cut.abort();
    assert!(cut.await.unwrap_err().is_cancelled());
    assert_eq!(registry.plugins(None).await.unwrap(), []);
    web.put("/i", Page::Body(b"never sent".to_vec()));
    install(&registry, &wanted).await.unwrap();
    assert_eq!(web.asked().iter().filter(|path| *path == "/r").count(), 1);
}

#[test]
fn a_download_waits_for_the_last_write_of_the_one_before() {
    let dir = temp_dir();
    let store = open(&dir);
    let content = content();
    let wanted = digest(&content);
    let mut first = store.resume(&wanted).unwrap();
    std::thread::scope(|scope| {
        let second = scope.spawn(|| store.resume(&wanted).unwrap().size());
        first.write(&content[..300_000]).unwrap();
        drop(first);
        assert_eq!(second.join().unwrap(), 300_000);
    });
    // One that was put in its place is not written to.
    let mut first = store.resume(&wanted).unwrap();
    std::thread::scope(|scope| {
        let second = scope.spawn(|| store.resume(&wanted).unwrap().size());
        first.write(&content[300_000..]).unwrap();
        store.keep(first, &wanted, Bringer::Install).unwrap();
        assert_eq!(second.join().unwrap(), 0);
    });
    assert_eq!(store.reread(&wanted).unwrap(), None);
}

#[tokio::test]
async fn what_was_sealed_and_not_put_in_its_place_is_gone_on_with() {
    let content = content();
    for (there, asked) in [(900_000, 0), (300_000, 1)] {
        let dir = temp_dir();
        let partial = dir.path().join("partial");
        fs::create_dir(&partial).unwrap();
        let partial = partial.join(digest(&content).hex());
        fs::write(&partial, &content[..there]).unwrap();
        fs::set_permissions(&partial, Permissions::from_mode(0o444)).unwrap();
        let store = open(&dir);
        drop(store.resume(&digest(&content)).unwrap());
        // Whoever runs this: root writes to files that nobody may write to.
        let mode = fs::metadata(&partial).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        fs::set_permissions(&partial, Permissions::from_mode(0o444)).unwrap();
        drop(store);

        let web = Web::serve([("/i", Page::Piecewise(content.clone(), usize::MAX))]).await;
        let wanted = manifest("caddy", &web.url("/i"), &content);
        install(&registry(&dir), &wanted).await.unwrap();
        assert_eq!(web.asked().len(), asked);
        assert_eq!(files(&dir, "partial"), Vec::<String>::new());
        assert_eq!(blob_files(&dir), [digest(&content).hex()]);
    }
}

#[tokio::test]
async fn an_answer_of_another_length_costs_nothing_of_what_is_there() {
    let (dir, content) = (temp_dir(), content());
    fs::create_dir(dir.path().join("partial")).unwrap();
    let partial = dir.path().join("partial").join(digest(&content).hex());
    fs::write(&partial, &content[..300_000]).unwrap();
    let portal = b"<html>Please log in</html>".to_vec();
    let web = Web::serve([("/i", Page::Body(portal))]).await;
    let mut wanted = manifest("caddy", &web.url("/i"), &content);
    wanted["initramfs"]["size"] = content.len().into();
    let registry = registry(&dir);
    // A page where the artifact was; another artifact, of which a part is sent.
    for page in [None, Some(Page::Piecewise(vec![0; 400_000], usize::MAX))] {
        page.into_iter().for_each(|page| web.put("/i", page));
        let error = install(&registry, &wanted).await.unwrap_err();
        assert!(error.contains("not 900000 as the manifest says"), "{error}");
        assert_eq!(fs::read(&partial).unwrap(), content[..300_000]);
    }
    web.put("/i", Page::Piecewise(content.clone(), usize::MAX));
    install(&registry, &wanted).await.unwrap();
    assert_eq!(web.ranges().last().unwrap(), "bytes=300000-");
}

#[tokio::test]
async fn a_body_that_ends_early_without_a_word_is_gone_on_with() {
    let (dir, content) = (temp_dir(), content());
    let web = Web::serve([("/i", Page::Plain(content[..500_000].to_vec()))]).await;
    let mut wanted = manifest("caddy", &web.url("/i"), &content);
    wanted["initramfs"]["size"] = content.len().into();
    let registry = registry(&dir);
    let error = install(&registry, &wanted).await.unwrap_err();
    assert!(
        error.contains("ended after 500000 of 900000 bytes"),
        "{error}"
    );
    web.put("/i", Page::Piecewise(content.clone(), usize::MAX));
    install(&registry, &wanted).await.unwrap();
    assert_eq!(web.ranges().last().unwrap(), "bytes=500000-");
}

#[tokio::test]
async fn what_may_pass_is_tried_again_and_progress_counts() {
    let content = content();
    let busy = |status| Page::Busy(status, 2, Box::new(Page::Body(content.clone())));
    for (page, asked) in [
        (busy(500), 3),
        (busy(429), 3),
        (busy(503), 3),
        // More pieces than there are tries.
        (Page::Piecewise(content.clone(), 120_000), 8),
    ] {
        let (dir, web) = (temp_dir(), Web::serve([("/i", page)]).await);
        let wanted = manifest("caddy", &web.url("/i"), &content);
        install(&registry(&dir), &wanted).await.unwrap();
        assert_eq!(web.asked().len(), asked);
    }
    // What will not pass is not.
    let (dir, web) = (temp_dir(), Web::serve([("/i", Page::Status(403))]).await);
    let wanted = manifest("caddy", &web.url("/i"), &content);
    install(&registry(&dir), &wanted).await.unwrap_err();
    assert_eq!(web.asked().len(), 1);
}

#[tokio::test]
async fn one_slow_server_holds_up_nobody_else() {
    let (dir, content) = (temp_dir(), content());
    let registry = registry(&dir);
    let web = Web::serve([
        ("/slow", Page::Paced(content.clone())),
        ("/fast", Page::Body(content.clone())),
    ])
    .await;
    let slow = tokio::spawn({
        let (registry, wanted) = (
            registry.clone(),
            manifest("caddy", &web.url("/slow"), &content),
        );
        async move { install(&registry, &wanted).await }
    });
    crate::daemon::eventually(async || (!web.asked().is_empty()).then_some(())).await;
    // Another version of the same plugin, with another artifact, does not wait at all.
    let begun = Instant::now();
    let mut other = manifest("caddy", &web.url("/other"), b"other");
    web.put("/other", Page::Body(b"other".to_vec()));
    other["version"] = "2.0".into();
    install(&registry, &other).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(10));
    // Who has no better server waits on.
    let mut worse = manifest("worse", &web.url("/absent"), &content);
    worse["initramfs"]["size"] = content.len().into();
    let worse = tokio::spawn({
        let registry = registry.clone();
        async move { install(&registry, &worse).await }
    });
    let tried = async || web.asked().iter().any(|path| path == "/absent");
    crate::daemon::eventually(async || tried().await.then_some(())).await;
    // The same artifact from elsewhere: it is told that it waits, then asks its own server, which serves both.
    let told = Mutex::new(Vec::new());
    let wanted = manifest("nginx", &web.url("/fast"), &content);
    let given = registry.install(unsigned(&wanted), |progress| {
        told.lock().unwrap().push(progress.done_bytes);
    });
    given.await.unwrap();
    let told = told.into_inner().unwrap();
    assert!(told[0] < 100_000 && told.len() > 1, "{told:?}");
    slow.await.unwrap().unwrap();
    worse.await.unwrap().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(60));
    assert_eq!(files(&dir, "partial"), Vec::<String>::new());
    assert_eq!(files(&dir, "incoming"), Vec::<String>::new());
    assert_eq!(blob_files(&dir).len(), 2);
}

#[tokio::test]
async fn remains_of_downloads_are_few_and_young_and_go_when_asked() {
    let dir = temp_dir();
    let store = open(&dir);
    let partial = dir.path().join("partial");
    for n in 0..12_u8 {
        fs::write(partial.join(digest(&[n]).hex()), [n; 10]).unwrap();
    }
    let now = SystemTime::now();
    assert_eq!(store.collect(Collect::Stale, now).unwrap().artifacts, 4);
    assert_eq!(files(&dir, "partial").len(), 8);
    let used = digest(&[0]);
    fs::write(partial.join(used.hex()), [0; 10]).unwrap();
    let pinned = store.pin([used]);
    let others = files(&dir, "partial").len() as u64 - 1;
    assert_eq!(
        store
            .collect(Collect::Stale, now + 48 * UNUSED_FOR)
            .unwrap()
            .bytes,
        others * 10
    );
    assert_eq!(files(&dir, "partial"), [used.hex()]);
    drop(pinned);
    assert_eq!(store.collect(Collect::All, now).unwrap().artifacts, 1);
    assert_eq!(files(&dir, "partial"), Vec::<String>::new());
}
