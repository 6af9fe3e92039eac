//! Waits and events.

use std::{collections::HashMap, time::Duration};

use axum::body::Body;
use http::Request;
use http_body_util::BodyExt;
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use zbus::Variant;

use crate::{
    Setup, eventually,
    systemd::{Live, Unit},
};

const UNIT: &str = "volant-vm@web.service";

/// A watcher of events.
struct Watcher {
    body: Incoming,
    text: String,
    _connection: tokio::task::JoinHandle<()>,
}

impl Watcher {
    async fn begin(setup: &Setup, path: &str) -> Self {
        let stream = UnixStream::connect(&setup.socket).await.unwrap();
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        let connection = tokio::spawn(async move {
            let _ = connection.await;
        });
        let request = Request::get(path).body(Body::empty()).unwrap();
        let answer = sender.send_request(request).await.unwrap();
        assert_eq!(answer.headers()["content-type"], "text/event-stream");
        let mut watcher = Self {
            body: answer.into_body(),
            text: String::new(),
            _connection: connection,
        };
        assert_eq!(watcher.block().await.unwrap(), ": watching");
        watcher
    }

    /// What comes next; `None` at the end.
    async fn block(&mut self) -> Option<String> {
        loop {
            if let Some((block, rest)) = self.text.split_once("\n\n") {
                let block = block.to_owned();
                self.text = rest.to_owned();
                return Some(block);
            }
            let frame = tokio::time::timeout(Duration::from_secs(10), self.body.frame()).await;
            let frame = frame.expect("it says nothing")?.unwrap();
            self.text
                .push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap());
        }
    }

    /// The next event's name and data.
    async fn event(&mut self) -> (String, serde_json::Value) {
        let block = self.block().await.unwrap();
        let line = |name: &str| {
            let mut lines = block.lines();
            lines
                .find_map(|line| line.strip_prefix(name))
                .unwrap_or_else(|| panic!("{block}"))
                .to_owned()
        };
        (
            line("event: "),
            serde_json::from_str(&line("data: ")).unwrap(),
        )
    }
}

#[tokio::test]
async fn events_come_from_units_supervisors_and_this_service() {
    let setup = Setup::new().await;
    setup.systemd.own("com.volantvm.vm.web", ":1.7").await;
    let mut all = Watcher::begin(&setup, "/api/v1/events").await;
    let mut web = Watcher::begin(&setup, "/api/v1/events?vm=web").await;
    setup
        .systemd
        .becomes("volant-vm@db.service", "active")
        .await;
    setup.systemd.becomes(UNIT, "activating").await;
    // Somebody else says the same.
    setup
        .systemd
        .happened(":1.66", "ready", HashMap::new())
        .await;
    let details = HashMap::from([("address", Variant::from("192.168.127.2"))]);
    setup.systemd.happened(":1.7", "ready", details).await;
    let (event, data) = web.event().await;
    assert_eq!((event.as_str(), &data["vm"]), ("ready", &"web".into()));
    assert_eq!(data["time"], "2023-11-14T22:13:20.123Z");
    assert_eq!(data["details"]["address"], "192.168.127.2");
    setup.systemd.becomes(UNIT, "failed").await;
    assert_eq!(web.event().await.0, "failed");
    let mut told = Vec::new();
    for _ in 0..3 {
        let (event, data) = all.event().await;
        told.push(format!("{} {event}", data["vm"].as_str().unwrap()));
    }
    told.sort();
    assert_eq!(told, ["db started", "web failed", "web ready"]);

    let body = r#"{"name":"new","plugin":"caddy","start":false}"#;
    setup.post("/api/v1/vms", body).await;
    setup.delete("/api/v1/vms/new").await;
    assert_eq!(all.event().await.0, "created");
    let (event, data) = all.event().await;
    assert_eq!((event.as_str(), &data["vm"]), ("deleted", &"new".into()));
}

#[tokio::test]
async fn a_supervisor_that_comes_later_is_known_by_its_name() {
    let setup = Setup::new().await;
    let mut watcher = Watcher::begin(&setup, "/api/v1/events").await;
    setup.systemd.own("com.volantvm.vm.web", ":1.9").await;
    setup
        .systemd
        .happened(":1.9", "paused", HashMap::new())
        .await;
    let (event, data) = watcher.event().await;
    assert_eq!((event.as_str(), &data["vm"]), ("paused", &"web".into()));
}

#[tokio::test]
async fn the_bus_is_listened_to_while_somebody_watches() {
    let setup = Setup::new().await;
    let events = setup.gateway.events();
    assert!(!events.is_listening());
    let first = Watcher::begin(&setup, "/api/v1/events").await;
    let second = Watcher::begin(&setup, "/api/v1/events").await;
    drop(first);
    assert!(events.is_listening());
    drop(second);
    eventually("nobody listens", || !events.is_listening()).await;
}

#[tokio::test]
async fn a_watcher_that_is_too_slow_is_cut_off_with_a_word() {
    let setup = Setup::new().await;
    let mut watcher = Watcher::begin(&setup, "/api/v1/events").await;
    // More than waits for it, and more than its connection holds.
    let name = "n".repeat(60);
    for _ in 0..20_000 {
        setup.gateway.events().tell(&name, "ready");
    }
    let mut last = String::new();
    while let Some(block) = watcher.block().await {
        last = block;
    }
    assert!(
        last.starts_with("event: cut-off\ndata: {\"reason\":\""),
        "{last}"
    );
}

#[tokio::test]
async fn watchers_are_told_that_the_service_ends() {
    let mut setup = Setup::new().await;
    let mut watcher = Watcher::begin(&setup, "/api/v1/events").await;
    setup.end.take().unwrap().send(()).unwrap();
    assert!(watcher.block().await.unwrap().contains("ending"));
    assert_eq!(watcher.block().await, None);
    eventually("it ended", || setup.serving.is_finished()).await;
}

#[tokio::test]
async fn a_wait_is_answered_by_what_happens_and_not_by_looking() {
    let setup = Setup::new().await;
    setup.world.lock().vm("web", false);
    let begun = std::time::Instant::now();
    let waiting = setup.get("/api/v1/vms/web/wait?for=ready&timeout=60");
    let change = async {
        eventually("it waits", || setup.systemd.loads() > 0).await;
        setup.systemd.becomes(UNIT, "activating").await;
        setup.systemd.becomes(UNIT, "active").await;
    };
    let (answer, ()) = tokio::join!(waiting, change);
    assert_eq!(
        (answer.status.as_u16(), &answer.json()["phase"]),
        (200, &"running".into())
    );
    assert!(
        begun.elapsed() < Duration::from_secs(10),
        "{:?}",
        begun.elapsed()
    );
    let stopped = setup
        .get("/api/v1/vms/web/wait?for=stopped&timeout=0.3")
        .await;
    assert_eq!(
        (stopped.status.as_u16(), stopped.problem().0.as_str()),
        (504, "wait-timed-out")
    );
}

#[tokio::test]
async fn a_wait_for_what_cannot_come_ends() {
    let setup = Setup::new().await;
    let (_vmd, _process) = setup.running("web");
    let wait = async |query: &str| {
        let answer = setup
            .get(&format!("/api/v1/vms/web/wait?for={query}"))
            .await;
        let kind = match answer.status.as_u16() {
            200 => String::new(),
            _ => answer.problem().0,
        };
        (answer.status.as_u16(), kind)
    };
    assert_eq!(wait("healthy").await, (409, "wait-impossible".to_owned()));
    setup.systemd.set_live(Live {
        health: "healthy",
        ..Live::default()
    });
    assert_eq!(wait("healthy").await.0, 200);
    setup.systemd.set(UNIT, Unit::new("failed"));
    assert_eq!(wait("ready").await, (409, "wait-impossible".to_owned()));
    assert_eq!(wait("stopped").await.0, 200);
    assert_eq!(wait("rainbows").await.0, 400);
    assert_eq!(wait("ready&timeout=-1").await.0, 400);
    setup.world.lock().vm("web", true);
    assert_eq!(wait("stopped").await, (409, "wait-impossible".to_owned()));
}
