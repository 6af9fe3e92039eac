//! The service as such: health, ids, other services that die, and its own end.

use std::{sync::Arc, time::Duration};

use axum::body::Body;
use http::Request;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::{net::UnixStream, sync::Semaphore};

use crate::{Setup, eventually, systemd::Unit};

#[tokio::test]
async fn health_looks_at_nothing_and_every_answer_has_an_id() {
    let mut setup = Setup::new().await;
    setup.registryd.kill();
    let answer = setup.get("/healthz").await;
    assert_eq!(
        (answer.status.as_u16(), answer.body.as_slice()),
        (200, &br#"{"status":"ok"}"#[..])
    );
    let first = answer.headers["x-request-id"].clone();
    let answer = setup.get("/nothing").await;
    assert_ne!(answer.headers["x-request-id"], first);
}

#[tokio::test]
async fn the_next_call_after_a_kill_works() {
    let mut setup = Setup::new().await;
    setup.world.lock().vm("web", false);
    for _ in 0..5 {
        assert_eq!(setup.get("/api/v1/vms/web").await.status.as_u16(), 200);
        setup.registryd.kill();
        setup.ipamd.kill();
        setup.registryd.run_registry(setup.world.clone());
        setup.ipamd.run_ipam(setup.world.clone());
        assert_eq!(setup.get("/api/v1/vms/web").await.status.as_u16(), 200);
    }
}

#[tokio::test]
async fn a_call_that_registryd_dies_under_is_made_again() {
    let mut setup = Setup::new().await;
    setup.world.lock().vm("web", false);
    let gate = Arc::new(Semaphore::new(0));
    setup.world.lock().listing = Some(gate);
    let stream = UnixStream::connect(&setup.socket).await.unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = Request::get("/api/v1/vms").body(Body::empty()).unwrap();
    let answer = tokio::spawn(async move { sender.send_request(request).await });
    eventually("the list is asked for", || {
        setup.world.calls() == ["ListVms"]
    })
    .await;
    setup.world.lock().listing = None;
    setup.registryd.kill();
    setup.registryd.run_registry(setup.world.clone());
    assert_eq!(answer.await.unwrap().unwrap().status().as_u16(), 200);
    assert_eq!(setup.world.calls(), ["ListVms", "ListVms"]);
    connection.abort();
}

#[tokio::test]
async fn a_hundred_vms_are_listed_quickly_and_in_order() {
    let setup = Setup::new().await;
    for number in 0..100 {
        let name = format!("vm-{number:02}");
        setup.world.lock().vm(&name, false);
        setup
            .systemd
            .set(&format!("volant-vm@{name}.service"), Unit::new("active"));
    }
    setup.get("/api/v1/vms").await;
    let begun = std::time::Instant::now();
    let vms = setup.get("/api/v1/vms").await.json();
    assert_eq!(vms.as_array().unwrap().len(), 100);
    assert_eq!(vms[7]["name"], "vm-07");
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test]
async fn the_bus_is_not_asked_more_at_once_than_it_allows() {
    let setup = Setup::new().await;
    setup.world.lock().vm("web", false);
    let looks = (0..200).map(|_| setup.get("/api/v1/vms/web"));
    for answer in futures_util::future::join_all(looks).await {
        assert_eq!(answer.status.as_u16(), 200);
    }
    let most = setup.systemd.most_loading();
    assert!((2..=128).contains(&most), "{most}");
}

#[tokio::test]
async fn vms_are_shown_without_their_addresses_when_ipamd_is_broken_or_silent() {
    let mut setup = Setup::new().await;
    setup.world.lock().vm("web", false);
    setup.ipamd.kill();
    // The socket is there, and nobody behind it.
    for path in ["/api/v1/vms/web", "/api/v1/vms"] {
        let vms = setup.get(path).await.json();
        let vm = vms.get(0).unwrap_or(&vms);
        let shown = (&vm["phase"], &vm["address"]);
        assert_eq!(
            shown,
            (&"stopped".into(), &serde_json::Value::Null),
            "{path}"
        );
    }
    // Something else answers there: every call fails at once.
    setup.ipamd.run_registry(setup.world.clone());
    let vm = setup.get("/api/v1/vms/web").await.json();
    assert_eq!(vm["address"], serde_json::Value::Null);
}

#[tokio::test]
async fn it_ends_when_nothing_is_asked_for_and_not_before() {
    let setup = Setup::ending_after(Some(Duration::from_millis(300))).await;
    setup.world.lock().vm("web", false);
    let gate = Arc::new(Semaphore::new(0));
    setup.world.lock().listing = Some(Arc::clone(&gate));
    let list = setup.get("/api/v1/vms");
    let release = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(
            !setup.serving.is_finished(),
            "it ended with a request under way"
        );
        gate.add_permits(1);
    };
    let (answer, ()) = tokio::join!(list, release);
    assert_eq!(answer.status.as_u16(), 200);
    // One that is connected and asks for nothing does not hold it up.
    let _silent = UnixStream::connect(&setup.socket).await.unwrap();
    eventually("it ended", || setup.serving.is_finished()).await;
}

#[tokio::test]
async fn told_to_end_it_answers_what_is_under_way() {
    let mut setup = Setup::new().await;
    let gate = Arc::new(Semaphore::new(0));
    setup.world.lock().listing = Some(Arc::clone(&gate));
    let end = setup.end.take().unwrap();
    let list = setup.get("/api/v1/vms");
    let release = async {
        eventually("the list is asked for", || {
            setup.world.calls() == ["ListVms"]
        })
        .await;
        end.send(()).unwrap();
        gate.add_permits(1);
    };
    let (answer, ()) = tokio::join!(list, release);
    assert_eq!(answer.status.as_u16(), 200);
    eventually("it ended", || setup.serving.is_finished()).await;
}
