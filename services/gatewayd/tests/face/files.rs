//! Files of a guest, and what it uses.

use axum::body::Body;
use bytes::Bytes;
use http::{Method, Request};
use http_body_util::BodyExt;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use crate::{Setup, client::Answer, eventually};

impl Setup {
    async fn put_tar(&self, path: &str, body: Body) -> Answer {
        let request = Request::builder().method(Method::PUT).uri(path);
        let request = request.header("content-type", "application/x-tar");
        self.ask(request.body(body).unwrap()).await
    }
}

#[tokio::test]
async fn files_come_as_an_archive_and_a_break_is_no_end() {
    let setup = Setup::new().await;
    let (_vmd, _process) = setup.running("web");
    let answer = setup.get("/api/v1/vms/web/files?path=/etc/hosts").await;
    assert_eq!(
        (answer.status.as_u16(), answer.body.as_slice()),
        (200, &b"tar!"[..])
    );
    let header = |name: &str| answer.headers[name].to_str().unwrap();
    assert_eq!(header("content-type"), "application/x-tar");
    assert_eq!(header("x-volant-is-directory"), "false");
    assert_eq!(header("x-volant-size"), "4");

    let stream = UnixStream::connect(&setup.socket).await.unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = Request::get("/api/v1/vms/web/files?path=/breaks");
    let request = request.body(Body::empty()).unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.status().as_u16(), 200);
    assert!(
        response.into_body().collect().await.is_err(),
        "it looks complete"
    );
    connection.abort();
}

#[tokio::test]
async fn what_fails_before_the_first_byte_has_a_status() {
    let setup = Setup::new().await;
    let (vmd, _process) = setup.running("web");
    let cases = [
        ("web/files?path=/missing", 404, "not-in-guest"),
        ("web/files?path=etc", 400, "invalid-request"),
        ("web/files", 400, "invalid-request"),
        ("none/files?path=/etc", 404, "no-such-vm"),
    ];
    for (path, status, kind) in cases {
        let answer = setup.get(&format!("/api/v1/vms/{path}")).await;
        assert_eq!(
            (answer.status.as_u16(), answer.problem().0.as_str()),
            (status, kind),
            "{path}"
        );
    }
    vmd.lock().agent_away = true;
    let answer = setup.get("/api/v1/vms/web/files?path=/etc").await;
    assert_eq!(
        (answer.status.as_u16(), answer.problem().0.as_str()),
        (503, "guest-away")
    );
}

#[tokio::test]
async fn an_archive_is_unpacked_and_one_that_breaks_off_is_not_complete() {
    let setup = Setup::new().await;
    let (vmd, _process) = setup.running("web");
    let path = "/api/v1/vms/web/files?path=/srv";
    let archive = vec![7; 300_000];
    let answer = setup.put_tar(path, Body::from(archive.clone())).await;
    assert_eq!(
        (answer.status.as_u16(), answer.json()["entries"].as_u64()),
        (200, Some(3))
    );
    assert!(vmd.lock().unpacked == archive && vmd.lock().complete);
    let refused = setup
        .put_tar("/api/v1/vms/web/files?path=/a-file", Body::from(archive))
        .await;
    assert_eq!(
        (refused.status.as_u16(), refused.problem().0.as_str()),
        (409, "unusable-in-guest")
    );
    let answer = setup.send(Method::PUT, path, Body::from("{}")).await;
    assert_eq!(answer.status.as_u16(), 415);

    vmd.lock().complete = false;
    vmd.lock().ended = 0;
    vmd.lock().unpacked.clear();
    let (pieces, body) = tokio::sync::mpsc::channel::<Result<Bytes, std::io::Error>>(1);
    let body = Body::from_stream(tokio_stream::wrappers::ReceiverStream::new(body));
    let stream = UnixStream::connect(&setup.socket).await.unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = Request::put(path).header("content-type", "application/x-tar");
    let request = request.body(body).unwrap();
    let asking = tokio::spawn(async move { sender.send_request(request).await });
    pieces.send(Ok(Bytes::from_static(b"half"))).await.unwrap();
    eventually("half of it is there", || vmd.lock().unpacked == b"half").await;
    connection.abort();
    asking.abort();
    drop(pieces);
    eventually("the guest's side is over", || vmd.lock().ended == 1).await;
    assert!(
        !vmd.lock().complete,
        "half an archive was taken for a whole one"
    );
}

#[tokio::test]
async fn what_a_vm_uses_is_told_by_the_host_and_by_the_guest() {
    let setup = Setup::new().await;
    let (vmd, _process) = setup.running("web");
    setup.world.lock().vm("off", false);
    let stats = setup.get("/api/v1/vms/web/stats?processes=3").await.json();
    let host = serde_json::json!({
        "memory_bytes": 1024, "memory_max_bytes": null, "cpu_ns": 5, "tasks": 7,
        "io_read_bytes": null, "io_write_bytes": 9,
    });
    assert_eq!(stats["host"], host);
    assert_eq!(
        (&stats["guest"]["cpus"], &stats["phase"]),
        (&2.into(), &"running".into())
    );
    assert_eq!(vmd.lock().calls, ["GetStats 3"]);
    let all = setup.get("/api/v1/vms/stats").await.json();
    assert_eq!(all.as_array().unwrap().len(), 1, "{all}");
    vmd.lock().agent_away = true;
    let stats = setup.get("/api/v1/vms/web/stats").await.json();
    assert_eq!(
        (&stats["guest"], &stats["host"]),
        (&serde_json::Value::Null, &host)
    );
}
