//! A VM's part of the journal, by a stand-in for journalctl.

use std::{os::unix::fs::PermissionsExt, path::Path};

use axum::body::Body;
use http::Request;
use http_body_util::BodyExt;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;

use crate::{Setup, eventually};

/// A program that writes its arguments and its pid down, and then does that.
fn stand_in(setup: &Setup, does: &str) {
    let dir = setup.dir.path();
    let file = dir.join("journalctl");
    let script = format!(
        "#!/bin/sh\nprintf '%s\\n' \"$@\" >{0}/arguments\necho $$ >{0}/pid\n{does}\n",
        dir.display()
    );
    std::fs::write(&file, script).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
}

fn entry(stream: &str, message: &str) -> String {
    format!(
        r#"echo '{{"__REALTIME_TIMESTAMP":"1700000000123456","__CURSOR":"c","MESSAGE":"{message}","VOLANT_STREAM":"{stream}","_SYSTEMD_UNIT":"volant-vm@web.service"}}'"#
    )
}

#[tokio::test]
async fn entries_are_lines_of_the_sources_that_are_asked_for() {
    let setup = Setup::new().await;
    setup.world.lock().vm("web", false);
    let script = [
        entry("stdout", "one"),
        entry("console", "two"),
        "echo rubbish".to_owned(),
        // Longer than an entry may be.
        "head -c 3000000 /dev/zero | tr '\\0' x; echo".to_owned(),
        entry("stderr", "three"),
    ];
    stand_in(&setup, &script.join("\n"));
    let answer = setup
        .get("/api/v1/vms/web/logs?tail=7&since=2026-11-24T10:00:00Z")
        .await;
    assert_eq!(answer.headers["content-type"], "application/x-ndjson");
    let lines: Vec<Value> = answer
        .body
        .split(|&byte| byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 3, "{lines:?}");
    let expected = serde_json::json!({
        "time": "2023-11-14T22:13:20.123456Z", "source": "stdout", "message": "one",
        "priority": 6, "cursor": "c",
    });
    assert_eq!(lines[0], expected);
    assert!(lines[1]["message"].as_str().unwrap().contains("too long"));
    assert_eq!(
        (&lines[2]["source"], &lines[2]["message"]),
        (&"stderr".into(), &"three".into())
    );
    let arguments = std::fs::read_to_string(setup.dir.path().join("arguments")).unwrap();
    for argument in [
        "--lines=7",
        "--since=@1795514400.000000",
        "_SYSTEMD_UNIT=volant-vm@web.service",
    ] {
        assert!(
            arguments.lines().any(|line| line == argument),
            "{arguments}"
        );
    }
    assert!(!arguments.contains("--follow"), "{arguments}");
}

#[tokio::test]
async fn what_goes_wrong_is_told() {
    let setup = Setup::new().await;
    for (path, status) in [
        ("none/logs", 404),
        ("web/logs?since=soon", 400),
        ("web/logs?source=tv", 400),
    ] {
        setup.world.lock().vm("web", false);
        let answer = setup.get(&format!("/api/v1/vms/{path}")).await;
        assert_eq!(answer.status.as_u16(), status, "{path}");
    }
    let answer = setup.get("/api/v1/vms/web/logs").await;
    assert_eq!(answer.status.as_u16(), 500, "there is no journalctl");
    stand_in(&setup, "echo 'no journal files' >&2; exit 1");
    let answer = setup.get("/api/v1/vms/web/logs").await;
    let detail = answer.json()["problem"]["detail"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(detail.contains("no journal files"), "{detail}");
}

#[tokio::test]
async fn the_reader_is_killed_with_its_client_and_with_the_service() {
    let mut setup = Setup::new().await;
    setup.world.lock().vm("web", false);
    let follow = |setup: &Setup| {
        stand_in(
            setup,
            &format!("{}\nexec sleep 1000", entry("stdout", "one")),
        );
        let socket = setup.socket.clone();
        async move {
            let stream = UnixStream::connect(&socket).await.unwrap();
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
            let connection = tokio::spawn(connection);
            let request = Request::get("/api/v1/vms/web/logs?follow=true");
            let request = request.body(Body::empty()).unwrap();
            let answer = sender.send_request(request).await.unwrap();
            let mut body = answer.into_body();
            body.frame().await.unwrap().unwrap();
            (body, connection)
        }
    };
    let runs = |pid: &str| Path::new("/proc").join(pid).join("fd/0").exists();
    let pid = |setup: &Setup| {
        let pid = std::fs::read_to_string(setup.dir.path().join("pid")).unwrap();
        pid.trim().to_owned()
    };
    let (body, connection) = follow(&setup).await;
    let first = pid(&setup);
    assert!(runs(&first));
    drop(body);
    connection.abort();
    eventually("the reader is gone", || !runs(&first)).await;

    let (mut body, _connection) = follow(&setup).await;
    let second = pid(&setup);
    setup.end.take().unwrap().send(()).unwrap();
    assert!(body.frame().await.is_none(), "it goes on");
    eventually("it ended", || setup.serving.is_finished()).await;
    eventually("the reader is gone", || !runs(&second)).await;
}
