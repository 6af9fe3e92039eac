//! Plugins over gRPC: versions, upkeep, trust.

use tonic::Code;
use volant_proto::registry::v1::{self as wire, install_plugin_request::Source};

use crate::{
    common::{bytes, configure, digest, manifest},
    grpc::{Daemon, whole},
};

const CONTENT: &[u8] = b"initramfs";

async fn install(daemon: &mut Daemon, name: &str, version: &str) -> wire::Plugin {
    daemon.upload(whole(CONTENT)).await.unwrap();
    let mut given = manifest(name, "x", CONTENT);
    given["version"] = version.into();
    given["description"] = format!("{name} {version}").into();
    daemon
        .install(Source::Manifest(bytes(&given)))
        .await
        .unwrap()
}

fn named(name: &str) -> wire::GetPluginRequest {
    wire::GetPluginRequest {
        name: name.to_owned(),
    }
}

#[tokio::test]
async fn plugins_are_listed_without_and_got_with_their_manifest() {
    let mut daemon = Daemon::start().await;
    let installed = install(&mut daemon, "caddy", "1.9").await;
    assert!(
        installed.warnings[0].contains("signatures are off"),
        "{installed:?}"
    );
    install(&mut daemon, "caddy", "1.10").await;
    install(&mut daemon, "acme", "1.0").await;
    daemon.create("web", "caddy@1.9").await.unwrap();
    let listed = daemon
        .client
        .list_plugins(wire::ListPluginsRequest {})
        .await
        .unwrap();
    let listed = listed.into_inner().plugins;
    let names: Vec<_> = listed
        .iter()
        .map(|one| (one.name.as_str(), one.version.as_str()))
        .collect();
    assert_eq!(
        names,
        [("acme", "1.0"), ("caddy", "1.10"), ("caddy", "1.9")]
    );
    assert!(
        listed
            .iter()
            .all(|one| one.manifest.is_empty() && one.warnings.is_empty())
    );
    assert_eq!(
        (listed[2].vms.as_slice(), listed[2].description.as_str()),
        (&["web".to_owned()][..], "caddy 1.9")
    );

    let got = daemon.client.get_plugin(named("caddy")).await.unwrap();
    let got = got.into_inner().plugin.unwrap();
    assert_eq!(got.version, "1.10");
    assert_eq!(got.manifest_digest, digest(&got.manifest).to_string());
    for (name, code) in [
        ("caddy@3", Code::NotFound),
        ("caddy@", Code::InvalidArgument),
    ] {
        let error = daemon.client.get_plugin(named(name)).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
    }
}

#[tokio::test]
async fn a_list_of_many_large_plugins_fits_a_message() {
    let mut daemon = Daemon::start().await;
    daemon.upload(whole(CONTENT)).await.unwrap();
    for n in 0..6 {
        let mut given = manifest("caddy", "x", CONTENT);
        given["version"] = format!("{n}").into();
        given["labels"] = serde_json::json!({"filler": "x".repeat(1_000_000)});
        daemon
            .install(Source::Manifest(bytes(&given)))
            .await
            .unwrap();
    }
    let listed = daemon
        .client
        .list_plugins(wire::ListPluginsRequest {})
        .await
        .unwrap();
    assert_eq!(listed.into_inner().plugins.len(), 6);
}

#[tokio::test]
async fn plugins_are_disabled_and_removed() {
    let mut daemon = Daemon::start().await;
    for version in ["1.0", "2.0"] {
        install(&mut daemon, "caddy", version).await;
    }
    let request = wire::SetPluginEnabledRequest {
        name: "caddy".to_owned(),
        enabled: false,
    };
    let changed = daemon.client.set_plugin_enabled(request).await.unwrap();
    let changed = changed.into_inner().plugins;
    assert!(changed.len() == 2 && changed.iter().all(|one| !one.enabled));
    let error = daemon.create("web", "caddy").await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");

    let mut remove = wire::RemovePluginRequest {
        name: "caddy".to_owned(),
        all_versions: false,
    };
    let error = daemon
        .client
        .remove_plugin(remove.clone())
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    remove.all_versions = true;
    daemon.client.remove_plugin(remove.clone()).await.unwrap();
    let error = daemon.client.remove_plugin(remove).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound, "{error}");
}

#[tokio::test]
async fn upkeep_is_told_in_full() {
    let mut daemon = Daemon::start().await;
    install(&mut daemon, "caddy", "1.0").await;
    let request = wire::VerifyPluginsRequest::default();
    let mut found = daemon
        .client
        .verify_plugins(request)
        .await
        .unwrap()
        .into_inner();
    let mut subjects = Vec::new();
    while let Some(one) = found.message().await.unwrap() {
        assert!(
            one.ok && one.plugin == "caddy" && one.version == "1.0",
            "{one:?}"
        );
        subjects.push(one.subject);
    }
    assert_eq!(subjects, ["signature", "initramfs"]);
    let request = wire::VerifyPluginsRequest {
        name: "nginx".to_owned(),
    };
    let mut found = daemon
        .client
        .verify_plugins(request)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(found.message().await.unwrap_err().code(), Code::NotFound);

    std::fs::write(daemon.dir.path().join("blobs/sha256/stray"), "12345").unwrap();
    let collected = daemon
        .client
        .collect_garbage(wire::CollectGarbageRequest {})
        .await;
    let collected = collected.unwrap().into_inner();
    assert_eq!((collected.artifacts, collected.bytes), (1, 5));
    let searched = daemon
        .client
        .search_plugins(wire::SearchPluginsRequest::default())
        .await;
    assert!(searched.unwrap().into_inner().problems[0].contains("no index"));
}

#[tokio::test]
async fn trust_is_shown_and_its_refusal_has_a_code_of_its_own() {
    let mut daemon = Daemon::start().await;
    configure(&daemon.dir, "");
    daemon.upload(whole(CONTENT)).await.unwrap();
    let given = bytes(&manifest("caddy", "x", CONTENT));
    let error = daemon.install(Source::Manifest(given)).await.unwrap_err();
    assert_eq!(error.code(), Code::PermissionDenied, "{error}");
    assert!(error.message().contains("is not signed"), "{error}");
    std::fs::create_dir(daemon.dir.path().join("trust.d")).unwrap();
    std::fs::write(daemon.dir.path().join("trust.d/bad.pub"), "nonsense").unwrap();
    let trust = daemon
        .client
        .get_trust(wire::GetTrustRequest {})
        .await
        .unwrap();
    let trust = trust.into_inner();
    assert_eq!((trust.policy.as_str(), trust.keys.len()), ("require", 0));
    assert!(trust.problems[0].contains("bad.pub"), "{trust:?}");
    configure(&daemon.dir, "nonsense");
    let error = daemon
        .client
        .get_trust(wire::GetTrustRequest {})
        .await
        .unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    let index = daemon
        .install(Source::Name("a/b".to_owned()))
        .await
        .unwrap_err();
    assert_eq!(index.code(), Code::InvalidArgument, "{index}");
    let oci = daemon
        .install(Source::OciReference("oci://".to_owned()))
        .await;
    assert!(oci.is_err());
}
