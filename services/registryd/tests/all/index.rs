//! Plugins by name, from indexes.

use registryd::{InstallError, Registry, SearchError, Source};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    common::{bytes, chain, configure, digest, manifest, registry_as_configured, temp_dir},
    web::{Page, Web},
};

const INITRAMFS: &[u8] = b"initramfs";

fn of(name: &str, version: &str) -> Value {
    let mut manifest = manifest(name, "i", INITRAMFS);
    manifest["version"] = version.into();
    manifest
}

fn index(plugins: &Value) -> Page {
    Page::Body(bytes(&json!({"schema_version": "1", "plugins": plugins})))
}

/// A registry with these indexes, and without signatures.
fn with_indexes(dir: &TempDir, indexes: &[String]) -> Registry {
    configure(
        dir,
        &format!("[plugins]\nsignatures = 'off'\nindexes = {indexes:?}"),
    );
    registry_as_configured(dir)
}

async fn market() -> Web {
    let newest = bytes(&of("caddy", "2.10"));
    let web = Web::serve([
        ("/plugins/2.10.json", Page::Body(newest.clone())),
        ("/plugins/2.6.json", Page::Body(bytes(&of("caddy", "2.6")))),
        ("/plugins/i", Page::Body(INITRAMFS.to_vec())),
        ("/text", Page::Body(b"<html>".to_vec())),
    ])
    .await;
    let listed = json!([
        {"name": "caddy", "description": "A web server", "versions": [
            {"version": "2.6", "manifest": "plugins/2.6.json"},
            {"version": "2.10", "manifest": "/plugins/2.10.json", "checksum": digest(&newest)},
            {"version": "9", "manifest": "plugins/2.6.json"},
            {"version": "8", "manifest": "plugins/2.6.json", "checksum": digest(b"other")},
            {"version": "7", "manifest": "file:///etc/passwd"},
        ]},
        {"name": "evil", "versions": [{"version": "2.6", "manifest": "plugins/2.6.json"}]},
    ]);
    web.put("/index.json?x=1", index(&listed));
    let second = json!([
        {"name": "caddy", "versions": [{"version": "99", "manifest": "absent"}]},
        {"name": "nginx", "versions": []},
    ]);
    web.put("/second.json", index(&second));
    web
}

async fn install(registry: &Registry, name: &str) -> Result<registryd::Installed, InstallError> {
    registry
        .install(Source::Name(name.parse().unwrap()), |_| {})
        .await
}

#[tokio::test]
async fn a_name_leads_to_its_manifest_by_the_first_index_that_has_it() {
    let (dir, web) = (temp_dir(), market().await);
    let indexes = [web.url("/index.json?x=1"), web.url("/second.json")];
    let registry = with_indexes(&dir, &indexes);
    let installed = install(&registry, "caddy@2.10").await.unwrap();
    assert_eq!(installed.plugin.source, web.url("/plugins/2.10.json"));
    let older = install(&registry, "caddy@2.6").await.unwrap();
    assert_eq!(older.plugin.version.as_str(), "2.6");

    // One that cannot be read is told, and the next is asked.
    let indexes = [web.url("/text"), web.url("/index.json?x=1")];
    let dir = temp_dir();
    let registry = with_indexes(&dir, &indexes);
    let installed = install(&registry, "caddy@2.6").await.unwrap();
    assert!(
        installed
            .warnings
            .iter()
            .any(|text| text.contains("/text is no index"))
    );
}

#[tokio::test]
async fn what_an_index_promises_is_compared_with_what_comes() {
    let (dir, web) = (temp_dir(), market().await);
    let registry = with_indexes(&dir, &[web.url("/index.json?x=1")]);
    let cases = [
        (
            "caddy@9",
            "leads from 'caddy@9' to the manifest of 'caddy@2.6'",
        ),
        (
            "evil",
            "leads from 'evil@2.6' to the manifest of 'caddy@2.6'",
        ),
        ("caddy@8", "has another checksum for 'caddy@8'"),
        ("caddy@7", "only http://, https:// and oci:// URLs"),
        (
            "caddy@6",
            "has 'caddy', but no version 6: it has 9, 8, 7, 2.10, 2.6",
        ),
        ("unknown", "volar plugins search"),
    ];
    for (name, expected) in cases {
        let error = chain(&install(&registry, name).await.unwrap_err());
        assert!(error.contains(expected), "{name}: {error}");
    }
    assert_eq!(registry.plugins(None).await.unwrap(), []);
    let dir = temp_dir();
    let registry = with_indexes(&dir, &[web.url("/absent")]);
    let error = chain(&install(&registry, "caddy").await.unwrap_err());
    assert!(error.contains("404"), "{error}");
    let dir = temp_dir();
    let registry = with_indexes(&dir, &[]);
    let error = chain(&install(&registry, "caddy").await.unwrap_err());
    assert!(error.contains("no index is configured"), "{error}");
}

#[tokio::test]
async fn a_name_is_that_of_the_first_index_that_has_it() {
    let (dir, web) = (temp_dir(), market().await);
    let indexes = [web.url("/index.json?x=1"), web.url("/second.json")];
    let registry = with_indexes(&dir, &indexes);
    // The second has it.
    let error = install(&registry, "caddy@99").await.unwrap_err();
    assert!(
        matches!(error, InstallError::NotThatVersion { .. }),
        "{error}"
    );
    let error = chain(&install(&registry, "nginx").await.unwrap_err());
    assert!(error.contains("no version at all: it has none"), "{error}");
}

#[tokio::test]
async fn where_signatures_count_an_index_that_is_down_is_not_passed_by() {
    let (dir, web) = (temp_dir(), market().await);
    let indexes = [web.url("/text"), web.url("/index.json?x=1")];
    configure(&dir, &format!("[plugins]\nindexes = {indexes:?}"));
    let registry = registry_as_configured(&dir);
    let error = install(&registry, "caddy@2.6").await.unwrap_err();
    let told = chain(&error);
    assert!(
        matches!(error, InstallError::IndexUnreadable { .. }),
        "{told}"
    );
    for part in [&indexes[0], "`volar plugins install --manifest`"] {
        assert!(told.contains(part), "{told}");
    }
    drop(registry);
    let none = with_indexes(&dir, &[web.url("/text"), web.url("/absent")]);
    let error = install(&none, "caddy").await.unwrap_err();
    let told = chain(&error);
    assert!(matches!(error, InstallError::NoReadableIndex(_)), "{told}");
    assert!(told.starts_with("no index can be read: "), "{told}");
}

#[tokio::test]
async fn searches_at_once_share_what_is_fetched_for_them() {
    let (dir, web) = (temp_dir(), market().await);
    let registry = with_indexes(&dir, &[web.url("/second.json")]);
    let searches = (0..16).map(|_| registry.search("caddy"));
    for found in futures_util::future::join_all(searches).await {
        assert_eq!(found.unwrap().plugins.len(), 1);
    }
    // How many depends on who comes first to be served.
    assert!(web.asked().len() < 16, "{}", web.asked().len());
    // What is searched later is searched anew.
    web.put("/second.json", index(&json!([])));
    assert_eq!(registry.search("caddy").await.unwrap().plugins.len(), 0);
}

#[tokio::test]
async fn a_search_looks_into_all_indexes() {
    let (dir, web) = (temp_dir(), market().await);
    let indexes = [
        web.url("/index.json?x=1"),
        web.url("/text"),
        web.url("/second.json"),
    ];
    let registry = with_indexes(&dir, &indexes);
    install(&registry, "caddy@2.6").await.unwrap();
    let search = registry.search("WEB").await.unwrap();
    assert_eq!(search.problems.len(), 1, "{:?}", search.problems);
    let caddy = &search.plugins[0];
    assert_eq!(caddy.versions, ["9", "8", "7", "2.10", "2.6"]);
    assert_eq!(
        (caddy.installed.as_slice(), &caddy.index),
        (&["2.6".to_owned()][..], &web.url("/index.json"))
    );
    assert_eq!(search.plugins.len(), 1);
    assert_eq!(registry.search("").await.unwrap().plugins.len(), 4);

    let dir = temp_dir();
    let registry = with_indexes(&dir, &[web.url("/text"), web.url("/absent")]);
    let error = registry.search("").await.unwrap_err();
    assert!(matches!(error, SearchError::Unreadable(_)), "{error}");
    let dir = temp_dir();
    let registry = with_indexes(&dir, &[]);
    assert_eq!(registry.search("").await.unwrap().problems.len(), 1);
}
