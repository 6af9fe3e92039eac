//! Who may bring a plugin: each refusal by its name, under each policy.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use registryd::{Install, InstallError, Installed, Original, Registry, Source, TrustError};
use serde_json::Value;
use tempfile::TempDir;
use volant_trust::{Replay, SecretKey, Untrusted};

use crate::{
    common::{
        blob_files, bytes, chain, configure, digest, manifest, registry_as_configured, temp_dir,
    },
    web::{Page, Web},
};

const INITRAMFS: &[u8] = b"initramfs";

struct Host {
    dir: TempDir,
    registry: Registry,
    key: SecretKey,
}

impl Host {
    /// Signatures are handled as `policy` says; the key 'maker' is trusted for 'caddy' and 'acme-*'.
    async fn new(policy: &str) -> Self {
        let dir = temp_dir();
        configure(&dir, policy);
        let trust = dir.path().join("trust.d");
        fs::create_dir(&trust).unwrap();
        let key = SecretKey::generate().unwrap();
        let text = format!(
            "public_key = '{}'\nplugins = ['caddy', 'acme-*']\n",
            key.public()
        );
        write(&trust.join("maker.toml"), &text);
        let registry = registry_as_configured(&dir);
        upload(&registry).await;
        Self { dir, registry, key }
    }

    async fn install(
        &self,
        original: Original,
        downgrade: bool,
    ) -> Result<Installed, InstallError> {
        let install = Install {
            source: Source::Bytes(original),
            allow_downgrade: downgrade,
        };
        self.registry.install(install, |_| {}).await
    }

    async fn refused(&self, original: Original) -> TrustError {
        let before = self.registry.plugins(None).await.unwrap();
        let error = self.install(original, false).await.unwrap_err();
        assert_eq!(self.registry.plugins(None).await.unwrap(), before);
        match error {
            InstallError::Trust(error) => error,
            error => panic!("{}", chain(&error)),
        }
    }

    fn signed(&self, name: &str, version: &str, at: u64) -> Original {
        sign(&self.key, &of(name, version), at)
    }
}

async fn upload(registry: &Registry) {
    let mut sink = registry.receive().await.unwrap();
    sink.push(INITRAMFS).await.unwrap();
    sink.finish(digest(INITRAMFS)).await.unwrap();
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
}

fn of(name: &str, version: &str) -> Value {
    let mut manifest = manifest(name, "x", INITRAMFS);
    manifest["version"] = version.into();
    manifest
}

fn sign(key: &SecretKey, manifest: &Value, at: u64) -> Original {
    let manifest = bytes(manifest);
    let comment = format!("timestamp:{at}");
    let signature = key.sign(&manifest, &comment).unwrap();
    Original {
        manifest,
        signature: Some(signature.into_bytes()),
    }
}

/// Changes the digit behind `timestamp:` of the trusted comment.
fn with_other_comment(mut original: Original) -> Original {
    let text = String::from_utf8(original.signature.unwrap()).unwrap();
    original.signature = Some(text.replace("timestamp:1", "timestamp:2").into_bytes());
    original
}

#[tokio::test]
async fn what_a_trusted_key_signed_is_installed_and_says_by_whom() {
    let host = Host::new("").await;
    for name in ["caddy", "acme-db"] {
        let installed = host
            .install(host.signed(name, "1.0", 5), false)
            .await
            .unwrap();
        let by = installed.plugin.signed_by.unwrap();
        assert_eq!(
            (by.key.as_str(), by.comment.as_str()),
            ("maker", "timestamp:5")
        );
        assert_eq!(by.key_id, host.key.public().id().to_string());
        assert_eq!(installed.warnings, Vec::<String>::new());
    }
    let trust = host.registry.trust().await.unwrap();
    assert_eq!(trust.keyring.keys().count(), 1);
}

#[tokio::test]
async fn each_reason_is_told_and_nothing_is_kept() {
    let host = Host::new("").await;
    let signed = || host.signed("caddy", "1.0", 1);
    let stranger = SecretKey::generate().unwrap();
    let without = |mut original: Original| {
        original.signature = None;
        original
    };
    let changed = |mut original: Original| {
        original.manifest.push(b' ');
        original
    };
    let garbage = |mut original: Original| {
        original.signature = Some(b"not a signature".to_vec());
        original
    };
    type Is = fn(&Untrusted) -> bool;
    let cases: [(Original, Is, &str); 6] = [
        (
            without(signed()),
            |why| matches!(why, Untrusted::NotSigned),
            "fledge sign",
        ),
        (
            changed(signed()),
            |why| matches!(why, Untrusted::BadSignature { .. }),
            "was changed",
        ),
        (
            garbage(signed()),
            |why| matches!(why, Untrusted::Malformed(_)),
            "no signature",
        ),
        (
            with_other_comment(signed()),
            |why| matches!(why, Untrusted::BadComment { .. }),
            "trusted comment",
        ),
        (
            sign(&stranger, &of("caddy", "1.0"), 1),
            |why| matches!(why, Untrusted::UnknownKey { .. }),
            "volar plugins trust add",
        ),
        (
            host.signed("nginx", "1.0", 1),
            |why| matches!(why, Untrusted::KeyNotForThisName { .. }),
            "'caddy', 'acme-*'",
        ),
    ];
    for (original, is, part) in cases {
        let error = host.refused(original).await;
        let text = chain(&error);
        let TrustError::Untrusted { source, .. } = error else {
            panic!("{text}");
        };
        assert!(is(&source), "{text}");
        assert!(text.contains(part), "{text}");
        assert!(text.contains("@1.0' is refused"), "{text}");
    }
}

#[tokio::test]
async fn what_is_refused_is_not_even_fetched() {
    let host = Host::new("").await;
    let web = Web::serve([("/i", Page::Body(b"other".to_vec()))]).await;
    let mut wanted = manifest("caddy", &web.url("/i"), b"other");
    wanted["version"] = "1.0".into();
    let mut original = sign(&host.key, &wanted, 1);
    original.manifest.push(b'\n');
    host.refused(original).await;
    assert_eq!(web.asked(), Vec::<String>::new());
    assert_eq!(blob_files(&host.dir).len(), 1);
}

#[tokio::test]
async fn what_was_sent_for_a_refused_plugin_is_gone() {
    let host = Host::new("").await;
    let mut unsigned = host.signed("caddy", "1.0", 1);
    unsigned.signature = None;
    host.refused(unsigned.clone()).await;
    assert_eq!(blob_files(&host.dir), Vec::<String>::new());
    // The verdict comes first: only what is let in is told what it lacks.
    host.refused(unsigned.clone()).await;
    let signed = host.signed("caddy", "1.0", 1);
    let error = host.install(signed.clone(), false).await.unwrap_err();
    assert!(matches!(error, InstallError::NotUploaded { .. }), "{error}");

    upload(&host.registry).await;
    host.install(signed, false).await.unwrap();
    // What another plugin uses stays, sent again or not.
    host.registry.blob(digest(INITRAMFS)).await.unwrap();
    host.refused(unsigned).await;
    assert_eq!(blob_files(&host.dir).len(), 1);
}

#[tokio::test]
async fn a_key_that_is_not_taken_is_told_with_the_refusal() {
    let host = Host::new("").await;
    let path = host.dir.path().join("trust.d/maker.toml");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
    let text = chain(&host.refused(host.signed("caddy", "1.0", 1)).await);
    assert!(
        text.contains("maker.toml") && text.contains("others can write"),
        "{text}"
    );
}

#[tokio::test]
async fn an_older_plugin_does_not_follow_a_newer_one_even_when_that_is_gone() {
    let host = Host::new("").await;
    let old = host.signed("caddy", "1.0", 1);
    host.install(old.clone(), false).await.unwrap();
    host.install(host.signed("caddy", "2.0", 2), false)
        .await
        .unwrap();
    // The very same is installed already.
    host.install(old.clone(), false).await.unwrap();
    host.registry
        .remove_plugin("caddy".parse().unwrap(), true)
        .await
        .unwrap();
    upload(&host.registry).await;

    let error = host.refused(old.clone()).await;
    let text = chain(&error);
    assert!(text.contains("older than 2.0"), "{text}");
    let TrustError::Replayed { source, .. } = error else {
        panic!("{text}");
    };
    assert!(matches!(*source, Replay::OlderVersion { .. }));
    upload(&host.registry).await;
    let installed = host.install(old.clone(), true).await.unwrap();
    assert!(
        installed.warnings[0].contains("older than 2.0"),
        "{:?}",
        installed.warnings
    );
    // What was allowed once is not what counts: 2.0 still does.
    let between = host.refused(host.signed("caddy", "1.5", 9)).await;
    assert!(chain(&between).contains("older than 2.0"));
}

#[tokio::test]
async fn an_older_signature_of_a_version_does_not_replace_a_newer_one() {
    let host = Host::new("").await;
    host.install(host.signed("caddy", "1.0", 10), false)
        .await
        .unwrap();
    let mut other = of("caddy", "1.0");
    other["description"] = "other".into();
    let error = host.refused(sign(&host.key, &other, 9)).await;
    assert!(matches!(error, TrustError::Replayed { .. }), "{error}");
    host.install(sign(&host.key, &other, 11), false)
        .await
        .unwrap();
    let error = host.refused(host.signed("caddy", "1.0", 10)).await;
    assert!(matches!(error, TrustError::Replayed { .. }), "{error}");
}

#[tokio::test]
async fn other_policies_take_it_and_say_so() {
    let host = Host::new("[plugins]\nsignatures = 'warn'").await;
    let mut original = host.signed("caddy", "1.0", 1);
    original.manifest.push(b' ');
    let installed = host.install(original, false).await.unwrap();
    assert!(
        installed.warnings[0].contains("is not trusted"),
        "{:?}",
        installed.warnings
    );
    assert_eq!(installed.plugin.signed_by, None);
    host.install(host.signed("caddy", "2.0", 2), false)
        .await
        .unwrap();
    let back = host
        .install(host.signed("caddy", "1.5", 1), false)
        .await
        .unwrap();
    assert!(
        back.warnings[0].contains("older than 2.0"),
        "{:?}",
        back.warnings
    );

    // Read anew each time.
    configure(&host.dir, "[plugins]\nsignatures = 'off'");
    let unsigned = Original {
        manifest: bytes(&of("nginx", "1.0")),
        signature: None,
    };
    let installed = host.install(unsigned, false).await.unwrap();
    assert!(
        installed.warnings[0].contains("signatures are off"),
        "{:?}",
        installed.warnings
    );
    configure(&host.dir, "[plugins]\nsignature = 'off'");
    let error = host
        .install(host.signed("caddy", "3.0", 3), false)
        .await
        .unwrap_err();
    assert!(
        matches!(error, InstallError::Config(_)),
        "{}",
        chain(&error)
    );
}

#[tokio::test]
async fn a_plugin_is_looked_at_again_with_the_keys_of_today() {
    let host = Host::new("").await;
    host.install(host.signed("caddy", "1.0", 1), false)
        .await
        .unwrap();
    let look = async || {
        let mut found = None;
        let told = host.registry.verify(None, |one| {
            if one.subject == "signature" {
                found = Some((one.ok, one.detail));
            }
            true
        });
        told.await.unwrap();
        found.unwrap()
    };
    let (ok, detail) = look().await;
    assert!(ok && detail.contains("the key maker"), "{detail}");
    fs::remove_file(host.dir.path().join("trust.d/maker.toml")).unwrap();
    let (ok, detail) = look().await;
    assert!(!ok && detail.contains("not trusted here"), "{detail}");
}

#[tokio::test]
async fn a_signature_on_the_web_is_beside_its_manifest() {
    let host = Host::new("").await;
    let original = host.signed("caddy", "1.0", 1);
    let web = Web::serve([
        ("/m.json?token=a", Page::Body(original.manifest.clone())),
        (
            "/m.json.minisig?token=a",
            Page::Body(original.signature.clone().unwrap()),
        ),
        ("/plain.json", Page::Body(original.manifest.clone())),
        ("/broken.json", Page::Body(original.manifest.clone())),
        ("/broken.json.minisig", Page::Status(500)),
        ("/huge.json", Page::Body(original.manifest.clone())),
        ("/huge.json.minisig", Page::Endless),
    ])
    .await;
    let install = async |path: &str| {
        let source = Source::Url(web.url(path));
        host.registry.install(source, |_| {}).await
    };
    let installed = install("/m.json?token=a").await.unwrap();
    assert_eq!(installed.plugin.source, web.url("/m.json"));
    assert_eq!(installed.plugin.signed_by.unwrap().key, "maker");
    for (path, expected) in [
        ("/plain.json", "is not signed"),
        ("/broken.json", "the server answered 500"),
        ("/huge.json", "larger than 16384 bytes"),
    ] {
        let error = chain(&install(path).await.unwrap_err());
        assert!(error.contains(expected), "{path}: {error}");
    }
    configure(&host.dir, "[plugins]\nsignatures = 'warn'");
    let installed = install("/broken.json").await.unwrap();
    assert_eq!(installed.warnings.len(), 2, "{:?}", installed.warnings);
}
