//! Plugins and their artifacts.

use std::convert::Infallible;

use axum::body::Body;
use bytes::Bytes;
use http::{Method, Request};
use serde_json::Value;
use tokio::{io::AsyncWriteExt, net::UnixStream};

use crate::{Setup, client::Answer, eventually, world::digest};

fn blob() -> String {
    format!("/api/v1/blobs/{}", digest(&[7; 1_500_000]))
}

fn lines(answer: &Answer) -> Vec<Value> {
    let text = std::str::from_utf8(&answer.body).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[tokio::test]
async fn an_artifact_is_uploaded_in_small_pieces_and_then_there() {
    let setup = Setup::new().await;
    let answer = setup.send(Method::HEAD, &blob(), Body::empty()).await;
    assert_eq!(answer.status.as_u16(), 404);
    let chunks = (0..5).map(|_| Ok::<_, Infallible>(Bytes::from(vec![7; 300_000])));
    let body = Body::from_stream(tokio_stream::iter(chunks));
    let answer = setup.send(Method::PUT, &blob(), body).await;
    assert_eq!(answer.status.as_u16(), 201, "{answer:?}");
    assert_eq!(answer.json()["size"], 1_500_000);
    assert_eq!(answer.json()["digest"], digest(&[7; 1_500_000]));
    let pieces = setup.world.lock().pieces.clone();
    assert_eq!(pieces.iter().sum::<usize>(), 1_500_000);
    assert!(pieces.iter().all(|piece| *piece <= 64 * 1024), "{pieces:?}");

    let answer = setup.send(Method::HEAD, &blob(), Body::empty()).await;
    assert_eq!(answer.status.as_u16(), 200);
    assert_eq!(answer.headers["content-length"], "1500000");
    assert_eq!(answer.headers["x-blob-size"], "1500000");
}

#[tokio::test]
async fn an_artifact_that_is_there_is_not_sent_again() {
    let setup = Setup::new().await;
    let there = digest(&[7; 1_500_000]);
    setup.world.lock().blobs.insert(there, 7);
    let answer = setup
        .send(Method::PUT, &blob(), Body::from(vec![7; 1 << 20]))
        .await;
    assert_eq!(
        (answer.status.as_u16(), &answer.json()["size"]),
        (201, &7.into())
    );
    assert!(!setup.world.calls().contains(&"UploadBlob".to_owned()));
}

#[tokio::test]
async fn an_artifact_that_is_not_what_it_says_is_refused() {
    let setup = Setup::new().await;
    let answer = setup.send(Method::PUT, &blob(), Body::from("wrong")).await;
    assert_eq!(
        (answer.status.as_u16(), answer.problem().0.as_str()),
        (400, "invalid-request")
    );
}

#[tokio::test]
async fn a_full_disk_is_told_though_the_client_still_writes() {
    let setup = Setup::new().await;
    setup.world.lock().full = true;
    let chunks = (0..64).map(|_| Ok::<_, Infallible>(Bytes::from(vec![7; 1 << 20])));
    let body = Body::from_stream(tokio_stream::iter(chunks));
    let answer = setup.send(Method::PUT, &blob(), body).await;
    assert_eq!(
        (answer.status.as_u16(), answer.problem().0.as_str()),
        (507, "no-space")
    );
}

#[tokio::test]
async fn an_upload_that_breaks_off_is_not_kept() {
    let setup = Setup::new().await;
    let mut stream = UnixStream::connect(&setup.socket).await.unwrap();
    let head = format!(
        "PUT {} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n",
        blob()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&[7; 1000]).await.unwrap();
    eventually("a piece arrived", || !setup.world.lock().pieces.is_empty()).await;
    drop(stream);
    eventually("the upload ended", || setup.world.lock().mismatches == 1).await;
    assert!(setup.world.lock().blobs.is_empty());
}

#[tokio::test]
async fn a_manifest_reaches_the_registry_as_it_was_written() {
    let setup = Setup::new().await;
    let manifest = r#"{ "name":"caddy",  "b":1, "a":1.50, "b":2 }"#;
    let answer = setup
        .post(
            "/api/v1/plugins",
            &format!(r#"{{"manifest": {manifest} }}"#),
        )
        .await;
    assert_eq!(answer.status.as_u16(), 201, "{answer:?}");
    assert_eq!(answer.json()["name"], "caddy");
    assert_eq!(setup.world.calls(), [format!("InstallPlugin {manifest}")]);

    let answer = setup.get("/api/v1/plugins/caddy").await;
    let text = String::from_utf8(answer.body.clone()).unwrap();
    assert!(text.contains(manifest), "{text}");
    assert_eq!(answer.json()["size_bytes"], 42);
    assert_eq!(
        setup.get("/api/v1/plugins").await.json()[0]["version"],
        "1.0"
    );
}

#[tokio::test]
async fn an_install_tells_its_progress_to_who_accepts_lines() {
    let setup = Setup::new().await;
    let install = |body: &'static str| {
        Request::post("/api/v1/plugins")
            .header("content-type", "application/json; charset=utf-8")
            .header("accept", "application/json;q=0.5, application/x-ndjson")
            .body(Body::from(body))
            .unwrap()
    };
    let answer = setup
        .ask(install(r#"{"manifest_url":"https://x/y.json"}"#))
        .await;
    assert_eq!(answer.status.as_u16(), 200);
    assert_eq!(answer.headers["content-type"], "application/x-ndjson");
    let told = lines(&answer);
    let progress = serde_json::json!(
        {"progress": {"artifact": "initramfs", "done_bytes": 1, "total_bytes": 2}}
    );
    assert_eq!(told[0], progress);
    assert_eq!(told[1]["plugin"]["manifest"]["from"], "https://x/y.json");
    assert_eq!(told[1]["plugin"]["warnings"][0], "it is only a fake");
    let answer = setup
        .ask(install("{\"manifest\": {\n  \"a\": 1\r\n}}"))
        .await;
    assert_eq!(
        lines(&answer)[1]["plugin"]["manifest"]["a"],
        1,
        "a line each, however the manifest is laid out"
    );

    let answer = setup.ask(install(r#"{"manifest":{"broken":true}}"#)).await;
    let last = lines(&answer).pop().unwrap();
    assert_eq!(
        last["problem"]["type"],
        "https://volantvm.com/problems/missing-artifact"
    );
    assert_eq!(last["problem"]["status"], 409);
}

#[tokio::test]
async fn a_signed_manifest_is_a_text_whose_every_byte_reaches_the_registry() {
    let setup = Setup::new().await;
    let text = "\n{ \"name\":\t\"caddy\" }\r\n\n";
    let body = serde_json::json!({
        "manifest": text, "signature": "untrusted comment: a\nRUQ\n", "allow_downgrade": true,
    });
    let answer = setup.post("/api/v1/plugins", &body.to_string()).await;
    assert_eq!(answer.status.as_u16(), 201, "{answer:?}");
    let call =
        format!("InstallPlugin {text} signed \"untrusted comment: a\\nRUQ\\n\" though older");
    assert_eq!(setup.world.calls(), [call]);
    let answer = setup.get("/api/v1/plugins/caddy@1.0/manifest").await;
    assert_eq!(answer.headers["content-type"], "application/json");
    assert_eq!(answer.body, text.as_bytes());

    // As a text it may take twice the bytes that it has.
    let large = format!("{{\"a\":\"{}\"}}", "\\n".repeat(500_000));
    let body = serde_json::json!({ "manifest": large }).to_string();
    assert!(body.len() > 1_500_000);
    let answer = setup.post("/api/v1/plugins", &body).await;
    assert_eq!(answer.status.as_u16(), 201);
    let body = serde_json::json!({ "manifest": " ".repeat((1 << 20) + 1) });
    let answer = setup.post("/api/v1/plugins", &body.to_string()).await;
    assert_eq!(answer.problem().0, "too-large");
}

#[tokio::test]
async fn a_plugin_is_installed_from_a_registry_and_from_an_index() {
    let setup = Setup::new().await;
    for (body, from) in [
        (
            r#"{"oci_reference":"oci://a.example/caddy:1"}"#,
            "oci://a.example/caddy:1",
        ),
        (r#"{"name":"caddy@2.0+b"}"#, "caddy@2.0+b"),
        (r#"{"name":"caddy"}"#, "caddy"),
    ] {
        let answer = setup.post("/api/v1/plugins", body).await;
        assert_eq!(answer.status.as_u16(), 201, "{answer:?}");
        assert_eq!(answer.json()["manifest"]["from"], from);
    }
    for (body, status, kind) in [
        (r#"{"name":"nothing"}"#, 404, "not-in-index"),
        (
            r#"{"oci_reference":"oci://nowhere/x"}"#,
            404,
            "not-in-registry",
        ),
        (
            r#"{"oci_reference":"oci://private/x"}"#,
            409,
            "not-installable",
        ),
    ] {
        let answer = setup.post("/api/v1/plugins", body).await;
        assert_eq!(
            (answer.status.as_u16(), answer.problem().0.as_str()),
            (status, kind)
        );
    }
}

#[tokio::test]
async fn a_plugin_that_the_policy_refuses_is_a_problem_of_its_own() {
    let setup = Setup::new().await;
    let body = r#"{"manifest":{"untrusted":true}}"#;
    let answer = setup.post("/api/v1/plugins", body).await;
    let (kind, detail) = answer.problem();
    assert_eq!(
        (answer.status.as_u16(), kind.as_str()),
        (403, "untrusted-plugin")
    );
    assert!(detail.contains("the key 01"), "{detail}");
}

#[tokio::test]
async fn an_install_needs_exactly_one_source() {
    let setup = Setup::new().await;
    for body in [
        "{}",
        r#"{"manifest":{},"manifest_url":"https://x"}"#,
        r#"{"oci_reference":"oci://x/y","name":"caddy"}"#,
        r#"{"manifest_url":"https://x","signature":"RUQ"}"#,
        r#"{"manifest":{},"force":true}"#,
        r#"{"manifest":"\ud800"}"#,
    ] {
        let answer = setup.post("/api/v1/plugins", body).await;
        let kind = answer.problem().0;
        assert_eq!(
            (answer.status.as_u16(), kind.as_str()),
            (400, "invalid-request"),
            "{body}"
        );
    }
    let answer = setup
        .post("/api/v1/plugins", r#"{"manifest":{"broken":true}}"#)
        .await;
    assert_eq!(
        (answer.status.as_u16(), answer.problem().0.as_str()),
        (409, "missing-artifact")
    );
}

#[tokio::test]
async fn a_plugin_in_use_stays() {
    let setup = Setup::new().await;
    setup.world.lock().vm("web", false);
    let answer = setup.delete("/api/v1/plugins/caddy").await;
    let (kind, detail) = answer.problem();
    assert_eq!(
        (answer.status.as_u16(), kind.as_str()),
        (409, "plugin-in-use")
    );
    assert!(detail.contains("web"), "{detail}");
    setup.world.lock().vms.clear();
    assert_eq!(
        setup.delete("/api/v1/plugins/caddy").await.status.as_u16(),
        204
    );
}

#[tokio::test]
async fn versions_are_side_by_side_and_each_can_be_asked_for() {
    let setup = Setup::new().await;
    setup.world.lock().plugin("caddy@2.0", r#"{"b":2}"#);
    let listed = setup.get("/api/v1/plugins").await.json();
    let expected = serde_json::json!({
        "name": "caddy", "version": "1.0", "enabled": true, "description": "serves files",
        "size_bytes": 42, "installed_at": "2026-11-20T10:00:00Z", "manifest_digest": digest(b"{}"),
        "signed_by": {"key": "acme", "key_id": "E7620F1842B4E81F", "comment": "timestamp:1"},
        "source": null, "vms": [],
    });
    assert_eq!(listed[0], expected, "a list has no manifests");
    assert_eq!(listed[1]["version"], "2.0");
    for (path, version) in [
        ("caddy@1.0", "1.0"),
        ("caddy%402.0", "2.0"),
        ("caddy", "2.0"),
    ] {
        let shown = setup.get(&format!("/api/v1/plugins/{path}")).await.json();
        assert_eq!(shown["version"], version, "{path}");
    }
    let answer = setup.get("/api/v1/plugins/caddy@3.0").await;
    assert_eq!(answer.problem().0, "no-such-plugin");
    for path in ["caddy@", "caddy@a%20b", "@1.0", "a%2Fb@1.0"] {
        let answer = setup.get(&format!("/api/v1/plugins/{path}")).await;
        assert_eq!(answer.problem().0, "invalid-name", "{path}");
    }
}

#[tokio::test]
async fn one_of_several_versions_is_removed_only_when_it_is_said_which() {
    let setup = Setup::new().await;
    for version in ["2.0", "3.0"] {
        setup.world.lock().plugin(&format!("caddy@{version}"), "{}");
    }
    let answer = setup.delete("/api/v1/plugins/caddy").await;
    let (kind, detail) = answer.problem();
    assert_eq!(
        (answer.status.as_u16(), kind.as_str()),
        (409, "several-versions")
    );
    assert!(detail.contains("caddy@3.0"), "{detail}");
    let answer = setup.delete("/api/v1/plugins/caddy@2.0").await;
    assert_eq!(answer.status.as_u16(), 204);
    for query in ["all=true", "all_versions=maybe"] {
        let path = format!("/api/v1/plugins/caddy?{query}");
        assert_eq!(setup.delete(&path).await.problem().0, "invalid-request");
    }
    let answer = setup
        .delete("/api/v1/plugins/caddy@1.0?all_versions=true")
        .await;
    assert_eq!(answer.problem().0, "invalid-request");
    let answer = setup
        .delete("/api/v1/plugins/caddy?all_versions=true")
        .await;
    assert_eq!(answer.status.as_u16(), 204);
    assert!(setup.world.lock().plugins.is_empty());
}

#[tokio::test]
async fn a_disabled_plugin_makes_no_vms() {
    let setup = Setup::new().await;
    setup.world.lock().plugin("caddy@2.0", "{}");
    let answer = setup.post("/api/v1/plugins/caddy/disable", "").await;
    assert_eq!(answer.status.as_u16(), 200);
    assert_eq!(answer.json().as_array().unwrap().len(), 2);
    assert_eq!(answer.json()[0]["enabled"], false);
    let web = r#"{"name":"web","plugin":"caddy@1.0"}"#;
    let answer = setup.post("/api/v1/vms", web).await;
    assert_eq!(
        (answer.status.as_u16(), answer.problem().0.as_str()),
        (409, "unusable-plugin")
    );
    let answer = setup.post("/api/v1/plugins/caddy@1.0/enable", "").await;
    assert_eq!(answer.json().as_array().unwrap().len(), 1);
    let answer = setup.post("/api/v1/vms", web).await;
    assert_eq!(answer.status.as_u16(), 201, "{answer:?}");
    let made = answer.json();
    assert_eq!(
        (&made["plugin"], &made["plugin_version"]),
        (&"caddy".into(), &"1.0".into())
    );
    let answer = setup.post("/api/v1/plugins/web/enable", "").await;
    assert_eq!(answer.problem().0, "no-such-plugin");
}

#[tokio::test]
async fn plugins_are_verified_all_or_one_in_a_list_or_in_lines() {
    let setup = Setup::new().await;
    setup.world.lock().plugin("nginx", "{}");
    let all = setup.post("/api/v1/registry/verify", "").await.json();
    assert_eq!(all.as_array().unwrap().len(), 4);
    let damaged = serde_json::json!({
        "plugin": "caddy", "version": "1.0", "subject": "initramfs", "ok": false, "detail": "other bytes",
    });
    assert_eq!(all[1], damaged);
    let one = setup.post("/api/v1/plugins/nginx/verify", "").await.json();
    assert_eq!(
        (one[0]["plugin"].as_str(), one.as_array().unwrap().len()),
        (Some("nginx"), 2)
    );

    let verify = |path: &str| {
        let request = Request::post(path).header("accept", "application/x-ndjson");
        request.body(Body::empty()).unwrap()
    };
    let answer = setup.ask(verify("/api/v1/plugins/caddy@1.0/verify")).await;
    let told = lines(&answer);
    assert_eq!(told[0]["checked"]["subject"], "signature");
    assert_eq!(told[1]["checked"], damaged);
    assert_eq!(
        told[2],
        serde_json::json!({"end": {"checked": 2, "wrong": 1}})
    );
    assert_eq!(told.len(), 3);
    let answer = setup.ask(verify("/api/v1/plugins/web/verify")).await;
    assert_eq!(answer.problem().0, "no-such-plugin");
}

#[tokio::test]
async fn leftovers_are_removed_indexes_searched_and_trusted_keys_told() {
    let setup = Setup::new().await;
    let collected = setup.post("/api/v1/registry/gc", "").await.json();
    assert_eq!(
        collected,
        serde_json::json!({"artifacts": 2, "bytes": 4711})
    );
    let found = setup
        .get("/api/v1/index/search?q=a%20web+server")
        .await
        .json();
    let expected = serde_json::json!({
        "plugins": [{
            "name": "caddy", "description": null, "versions": ["2.0", "1.0"], "installed": ["1.0"],
            "index": "https://a.example/index.json",
        }],
        "problems": ["https://b.example/index.json: no answer"],
    });
    assert_eq!(found, expected);
    setup.get("/api/v1/index/search").await.json();
    let calls = setup.world.calls();
    assert_eq!(
        calls,
        [
            "CollectGarbage",
            "SearchPlugins a web server",
            "SearchPlugins "
        ]
    );
    let answer = setup.get("/api/v1/index/search?q=offline").await;
    assert_eq!(
        (answer.status.as_u16(), answer.problem()),
        (
            503,
            (
                "unavailable".to_owned(),
                "https://a.example/index.json: no answer".to_owned()
            )
        )
    );
    let trust = setup.get("/api/v1/trust").await.json();
    let expected = serde_json::json!({
        "policy": "require",
        "keys": [{
            "name": "acme", "key_id": "E7620F1842B4E81F", "public_key": "RWQ",
            "plugins": ["caddy", "acme-*"], "comment": null,
        }],
        "problems": ["bad.pub: it is no text"],
    });
    assert_eq!(trust, expected);
}
