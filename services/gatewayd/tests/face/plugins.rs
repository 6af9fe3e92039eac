//! Plugins and their artifacts.

use std::convert::Infallible;

use axum::body::Body;
use bytes::Bytes;
use http::{Method, Request};
use serde_json::Value;
use tokio::{io::AsyncWriteExt, net::UnixStream};

use crate::{Setup, client::Answer, eventually, services::digest};

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
async fn an_install_needs_a_manifest_or_a_url_and_not_both() {
    let setup = Setup::new().await;
    let both = r#"{"manifest":{},"manifest_url":"https://x"}"#;
    for body in ["{}", both, r#"{"manifest":{},"force":true}"#] {
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
