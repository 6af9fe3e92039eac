//! Configurations, secrets, and changes of what runs.

use axum::body::Body;
use http::{Method, Request};
use serde_json::{Value, json};

use crate::{
    Setup,
    client::Answer,
    systemd::{Live, Unit},
};

const CONFIG: &str = "/api/v1/vms/web/config";

impl Setup {
    async fn matching(&self, method: Method, kind: &str, tag: Option<&str>, json: Value) -> Answer {
        let mut request = Request::builder().method(method).uri(CONFIG);
        request = request.header("content-type", kind);
        if let Some(tag) = tag {
            request = request.header("if-match", tag);
        }
        self.ask(request.body(Body::from(json.to_string())).unwrap())
            .await
    }
}

#[tokio::test]
async fn a_configuration_has_versions_and_a_tag_guards_the_newest() {
    let setup = Setup::new().await;
    setup.world.lock().vm("web", false);
    let first = setup.get(CONFIG).await;
    assert_eq!(first.headers["etag"], "\"1\"");
    assert_eq!(first.json()["config"], json!({}));
    assert_eq!(first.json()["effective"], json!({"cpu_cores":1}));

    let json = "application/json";
    let second = setup
        .matching(Method::PUT, json, Some("\"1\""), json!({"user":"www"}))
        .await;
    assert_eq!(
        (
            second.status.as_u16(),
            second.headers["etag"].to_str().unwrap()
        ),
        (200, "\"2\"")
    );
    let late = setup
        .matching(Method::PUT, json, Some("\"1\""), json!({"user":"me"}))
        .await;
    let (kind, detail) = late.problem();
    assert_eq!(
        (late.status.as_u16(), kind.as_str()),
        (412, "version-conflict")
    );
    assert!(detail.contains("version 2"), "{detail}");
    let wrong = setup
        .matching(Method::PUT, json, None, json!({"usr":"me"}))
        .await;
    assert_eq!(wrong.status.as_u16(), 400);

    let patch = "application/merge-patch+json";
    let third = setup
        .matching(
            Method::PATCH,
            patch,
            None,
            json!({"user":null,"workdir":"/srv"}),
        )
        .await;
    assert_eq!(third.json()["config"], json!({"workdir":"/srv"}));
    let late = setup
        .matching(Method::PATCH, patch, Some("\"2\""), json!({}))
        .await;
    assert_eq!(late.status.as_u16(), 412);
    let plain = setup.matching(Method::PATCH, json, None, json!({})).await;
    assert_eq!(plain.status.as_u16(), 415);

    let back = setup
        .post(&format!("{CONFIG}/rollback"), r#"{"version":2}"#)
        .await
        .json();
    assert_eq!(
        (&back["version"], &back["config"]),
        (&4.into(), &json!({"user":"www"}))
    );
    assert_eq!(back["reason"], "rolled back to 2");
    let history = setup.get(&format!("{CONFIG}/history")).await.json();
    assert_eq!(history.as_array().unwrap().len(), 4);
    assert_eq!(history[0]["version"], 4);
    let old = setup.get(&format!("{CONFIG}?version=1")).await.json();
    assert_eq!(old["reason"], "created");
    let none = setup.get(&format!("{CONFIG}?version=9")).await;
    assert_eq!(none.problem().0, "no-such-version");
    let none = setup.get("/api/v1/vms/none/config?version=9").await;
    assert_eq!(none.problem().0, "no-such-vm");
}

#[tokio::test]
async fn a_vm_is_made_with_its_configuration_and_secrets() {
    let setup = Setup::new().await;
    let body = json!({
        "name": "web", "plugin": "caddy", "start": false, "config": {"workdir": "/srv"},
        "secrets": [{"name": "key", "value_base64": "AAH/"}],
    });
    let vm = setup.post("/api/v1/vms", &body.to_string()).await.json();
    assert_eq!(vm["secrets"], json!(["key"]));
    let key = |name: &str| ("web".to_owned(), name.to_owned());
    assert_eq!(setup.world.lock().secrets[&key("key")], [0, 1, 255]);
    assert_eq!(
        setup.get(CONFIG).await.json()["config"],
        json!({"workdir":"/srv"})
    );

    let path = "/api/v1/vms/web/secrets/db";
    let put = async |bytes: Vec<u8>| {
        let request = Request::put(path).body(Body::from(bytes)).unwrap();
        setup.ask(request).await.status.as_u16()
    };
    assert_eq!(put(vec![9; 128 * 1024]).await, 204);
    assert_eq!(setup.world.lock().secrets[&key("db")].len(), 128 * 1024);
    assert_eq!(put(vec![9; 128 * 1024 + 1]).await, 413);
    assert_eq!(setup.delete(path).await.status.as_u16(), 204);
    assert!(!setup.world.lock().secrets.contains_key(&key("db")));
    assert_eq!(
        setup
            .delete("/api/v1/vms/web/secrets/.x")
            .await
            .status
            .as_u16(),
        400
    );

    // What is no base64 is not quoted: it may be the secret itself.
    let body = json!({
        "name": "b", "plugin": "caddy", "secrets": [{"name": "key", "value_base64": "hunter2!"}],
    });
    let refused = setup.post("/api/v1/vms", &body.to_string()).await;
    assert_eq!(refused.status.as_u16(), 400);
    assert!(!refused.problem().1.contains("hunter"), "{refused:?}");
}

#[tokio::test]
async fn a_scale_reaches_the_running_guest_or_says_when_it_will() {
    let setup = Setup::new().await;
    let (vmd, _process) = setup.running("web");
    let scale = async |body: Value| {
        let answer = setup.post("/api/v1/vms/web/scale", &body.to_string()).await;
        assert_eq!(answer.status.as_u16(), 200, "{answer:?}");
        answer.json()
    };
    let done = scale(json!({"memory_mb":256})).await;
    assert_eq!(done["applied"], "unchanged", "{done}");
    assert!(vmd.lock().calls.is_empty());

    let done = scale(json!({"memory_mb":512})).await;
    assert_eq!(
        (&done["applied"], &done["reason"]),
        (&"live".into(), &Value::Null)
    );
    // Of what is as it was, the VMM is not asked.
    assert_eq!(vmd.lock().calls, ["Resize 0 512"]);
    // The stand-in's guest has what it had.
    assert_eq!(done["vm"]["restart_required"], true);

    vmd.lock().cannot_resize = true;
    let done = scale(json!({"cpu_cores":4})).await;
    assert_eq!(done["applied"], "at-next-start");
    assert_eq!(done["reason"], "qemu cannot be resized");
    assert_eq!(done["vm"]["restart_required"], true);
    let done = scale(json!({"cpu_cores":2,"restart":true})).await;
    assert_eq!(done["applied"], "restarted");
    assert!(
        setup
            .systemd
            .calls()
            .contains(&"restart volant-vm@web.service".to_owned())
    );

    setup.world.lock().vm("off", false);
    let done = setup
        .post("/api/v1/vms/off/scale", r#"{"cpu_cores":2}"#)
        .await
        .json();
    assert_eq!(done["applied"], "at-next-start", "{done}");
    let nothing = setup.post("/api/v1/vms/web/scale", "{}").await;
    assert_eq!(nothing.status.as_u16(), 400);
}

#[tokio::test]
async fn a_restart_is_required_when_a_running_guest_would_differ() {
    let setup = Setup::new().await;
    let (_vmd, _process) = setup.running("web");
    let required = async || setup.get("/api/v1/vms/web").await.json()["restart_required"].clone();
    assert_eq!(required().await, false);
    // Applied live.
    setup
        .world
        .lock()
        .config("web", br#"{"memory_mb":512}"#, "scaled");
    assert_eq!(required().await, true);
    setup.systemd.set_live(Live {
        memory_mb: 512,
        ..Live::default()
    });
    assert_eq!(required().await, false);
    setup
        .world
        .lock()
        .config("web", br#"{"memory_mb":512,"user":"www"}"#, "set");
    assert_eq!(required().await, true);
}

#[tokio::test]
async fn a_vm_is_paused_resumed_and_reloaded() {
    let setup = Setup::new().await;
    let (vmd, _process) = setup.running("web");
    for act in ["pause", "resume", "reload"] {
        let answer = setup.post(&format!("/api/v1/vms/web/{act}"), "").await;
        assert_eq!(
            (answer.status.as_u16(), &answer.json()["name"]),
            (200, &"web".into()),
            "{act}"
        );
    }
    assert_eq!(vmd.lock().calls, ["Pause", "Resume"]);
    assert_eq!(setup.systemd.calls(), ["reload volant-vm@web.service"]);
    setup
        .systemd
        .set("volant-vm@web.service", Unit::new("inactive"));
    let answer = setup.post("/api/v1/vms/web/reload", "").await;
    assert_eq!(
        (answer.status.as_u16(), answer.problem().0.as_str()),
        (409, "not-running")
    );
}
