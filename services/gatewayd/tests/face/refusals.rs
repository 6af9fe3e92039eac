//! Each kind of problem, and that nothing is left of a request that was one.

use axum::body::Body;
use http::{Method, Request};

use crate::{Setup, systemd::Unit};

#[tokio::test]
async fn an_unknown_path_and_a_wrong_method_are_problems() {
    let setup = Setup::new().await;
    let answer = setup.get("/api/v2/vms").await;
    assert_eq!(
        (answer.status.as_u16(), answer.problem().0.as_str()),
        (404, "not-found")
    );
    let answer = setup.delete("/api/v1/vms").await;
    assert_eq!(
        (answer.status.as_u16(), answer.problem().0.as_str()),
        (405, "method-not-allowed")
    );
}

#[tokio::test]
async fn a_bad_body_is_refused_and_told_why() {
    let setup = Setup::new().await;
    let long = format!(r#"{{"name":"{}","plugin":"caddy"}}"#, "a".repeat(64));
    let cases = [
        (
            r#"{"name":"a/b","plugin":"caddy"}"#,
            400,
            "invalid-name",
            "has '/' in it",
        ),
        (
            r#"{"name":"..","plugin":"caddy"}"#,
            400,
            "invalid-name",
            "has '.' in it",
        ),
        (&long, 400, "invalid-name", "64 characters"),
        (
            r#"{"name":"web","plugin":"Caddy"}"#,
            400,
            "invalid-name",
            "'C'",
        ),
        (
            r#"{"name":"web","plugin":"caddy","cpus":2}"#,
            400,
            "invalid-request",
            "unknown field `cpus`",
        ),
        (
            r#"{"name":"web","plugin":"caddy","cpu_cores":-1}"#,
            400,
            "invalid-request",
            "-1",
        ),
        (
            r#"{"name":"web","plugin":"caddy","vmm":"xen"}"#,
            400,
            "invalid-request",
            "'xen'",
        ),
        (
            r#"{"name":"web"}"#,
            400,
            "invalid-request",
            "missing field `plugin`",
        ),
        (r#"{"name":"web""#, 400, "invalid-request", "EOF"),
        ("", 400, "invalid-request", "EOF"),
        (
            r#"{"name":"web","plugin":"nginx"}"#,
            400,
            "unknown-plugin",
            "no plugin nginx",
        ),
        (
            r#"{"name":"web","plugin":"caddy","memory_mb":0}"#,
            400,
            "invalid-request",
            "0 MiB",
        ),
    ];
    for (body, status, kind, detail) in cases {
        let answer = setup.post("/api/v1/vms", body).await;
        let problem = answer.problem();
        assert_eq!(
            (answer.status.as_u16(), problem.0.as_str()),
            (status, kind),
            "{body}"
        );
        assert!(problem.1.contains(detail), "{body}: {}", problem.1);
    }
    assert!(setup.world.lock().vms.is_empty());
    assert_eq!(setup.systemd.calls(), Vec::<String>::new());
}

#[tokio::test]
async fn a_bad_name_in_a_path_is_refused() {
    let setup = Setup::new().await;
    for path in [
        "/api/v1/vms/a%2Fb",
        "/api/v1/vms/%2e%2e",
        "/api/v1/plugins/A",
        "/api/v1/vms/a%0ab",
    ] {
        let answer = setup.get(path).await;
        assert_eq!(
            (answer.status.as_u16(), answer.problem().0.as_str()),
            (400, "invalid-name"),
            "{path}"
        );
    }
    let answer = setup.get("/api/v1/vms/%ff").await;
    assert_eq!(
        (answer.status.as_u16(), answer.problem().0.as_str()),
        (400, "invalid-request")
    );
    let answer = setup
        .send(Method::PUT, "/api/v1/blobs/md5:abc", Body::empty())
        .await;
    assert_eq!(
        (answer.status.as_u16(), answer.problem().0.as_str()),
        (400, "invalid-request")
    );
}

#[tokio::test]
async fn a_huge_body_is_refused_though_the_client_writes_all_of_it() {
    let setup = Setup::new().await;
    let piece = bytes::Bytes::from(vec![b' '; 1 << 20]);
    let pieces = std::iter::repeat_n(Ok::<_, std::convert::Infallible>(piece), 100);
    let body = Body::from_stream(tokio_stream::iter(pieces));
    let answer = setup.send(Method::POST, "/api/v1/plugins", body).await;
    assert_eq!(
        (answer.status.as_u16(), answer.problem().0.as_str()),
        (413, "too-large")
    );
    let large = format!(
        r#"{{"manifest":{{"description":"{}"}}}}"#,
        "a".repeat(1 << 20)
    );
    let answer = setup.post("/api/v1/plugins", &large).await;
    assert_eq!(
        (answer.status.as_u16(), answer.problem().0.as_str()),
        (413, "too-large")
    );
    assert_eq!(setup.world.calls(), Vec::<String>::new());
}

#[tokio::test]
async fn a_body_that_is_not_json_is_refused_as_such() {
    let setup = Setup::new().await;
    let request = Request::post("/api/v1/vms")
        .body(Body::from("name=web"))
        .unwrap();
    let answer = setup.ask(request).await;
    let kind = answer.problem().0;
    assert_eq!(
        (answer.status.as_u16(), kind.as_str()),
        (415, "unsupported-media-type")
    );
}

#[tokio::test]
async fn what_is_not_there_is_told_apart() {
    let setup = Setup::new().await;
    let missing = [
        (setup.get("/api/v1/vms/web").await, "no-such-vm"),
        (setup.delete("/api/v1/vms/web").await, "no-such-vm"),
        (setup.post("/api/v1/vms/web/start", "").await, "no-such-vm"),
        (setup.post("/api/v1/vms/web/enable", "").await, "no-such-vm"),
        (setup.get("/api/v1/plugins/web").await, "no-such-plugin"),
        (setup.delete("/api/v1/plugins/web").await, "no-such-plugin"),
    ];
    for (answer, kind) in missing {
        assert_eq!(
            (answer.status.as_u16(), answer.problem().0.as_str()),
            (404, kind)
        );
    }
    assert_eq!(setup.systemd.calls(), Vec::<String>::new());
}

#[tokio::test]
async fn a_missing_polkit_rule_is_named() {
    let setup = Setup::new().await;
    setup.world.lock().vm("web", false);
    setup.systemd.deny();
    let answer = setup.post("/api/v1/vms/web/start", "").await;
    let (kind, detail) = answer.problem();
    assert_eq!((answer.status.as_u16(), kind.as_str()), (500, "internal"));
    assert!(detail.contains("start volant-vm@web.service"), "{detail}");
    assert!(detail.contains("50-volant.rules"), "{detail}");
}

#[tokio::test]
async fn a_failure_of_registryd_names_its_journal() {
    let setup = Setup::new().await;
    setup.world.lock().fails = true;
    let answer = setup.get("/api/v1/vms").await;
    let (kind, detail) = answer.problem();
    assert_eq!((answer.status.as_u16(), kind.as_str()), (500, "internal"));
    assert!(detail.contains("on fire"), "{detail}");
    assert!(
        detail.contains("journalctl -u volant-registryd"),
        "{detail}"
    );
}

#[tokio::test]
async fn a_state_that_nobody_knows_is_said_to_be_so() {
    let setup = Setup::new().await;
    setup.world.lock().vm("web", false);
    setup
        .systemd
        .set("volant-vm@web.service", Unit::new("levitating"));
    let (kind, detail) = setup.get("/api/v1/vms/web").await.problem();
    assert_eq!(kind, "internal");
    assert!(detail.contains("levitating"), "{detail}");
}
