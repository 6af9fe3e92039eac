//! A fake of gatewayd: the REST contract on a Unix socket, over plugins and VMs in memory. It starts nothing.

mod devices;
mod plugins;
pub mod running;

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Path, State},
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::{get, head, post},
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::UnixListener;

/// What the fake knows, for a test to look at or to change.
#[derive(Debug, Default)]
pub struct Kept {
    /// By `NAME@VERSION`.
    pub plugins: BTreeMap<String, Value>,
    /// The manifests of plugins, as they came.
    pub manifests: BTreeMap<String, String>,
    pub vms: BTreeMap<String, Value>,
    pub blobs: BTreeMap<String, Vec<u8>>,
    pub uploads: usize,
    /// The last body that asked for an install.
    pub install: Value,
    /// Whether each manifest that is sent is refused.
    pub trusts_nobody: bool,
    /// Whether the store is damaged.
    pub damaged: bool,
    /// The policy on signatures; "require" when empty.
    pub policy: String,
    /// The last body that asked for a VM.
    pub create: Value,
    /// The last message that opened a session.
    pub exec: Value,
    /// Sessions whose client went away before their end.
    pub gone: usize,
    pub forwards: Vec<HashMap<String, String>>,
    /// The last query for a console, and for a log.
    pub console: HashMap<String, String>,
    pub logs: HashMap<String, String>,
    /// Archives at paths of every guest.
    pub files: BTreeMap<String, running::Archive>,
    pub put: running::Put,
    pub looks: u64,
    pub waits: Vec<HashMap<String, String>>,
    /// The last body that changed a configuration.
    pub config: Value,
    pub secrets: BTreeMap<String, Vec<u8>>,
    pub devices: Vec<Value>,
    /// What speaks against every wish for devices, and the last such wish.
    pub problems: Vec<String>,
    pub wish: Value,
}

#[derive(Debug)]
pub struct FakeGateway {
    kept: Shared,
    folder: TempDir,
    _runtime: tokio::runtime::Runtime,
}

type Shared = Arc<Mutex<Kept>>;

impl FakeGateway {
    pub fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let folder = tempfile::tempdir().unwrap();
        let kept = Shared::default();
        let guard = runtime.enter();
        let listener = UnixListener::bind(folder.path().join("api.sock")).unwrap();
        drop(guard);
        let router = router(Arc::clone(&kept));
        runtime.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            kept,
            folder,
            _runtime: runtime,
        }
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("api.sock")
    }

    pub fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap()
    }

    /// One with VMs of these names that run.
    pub fn with(names: &[&str]) -> Self {
        let gateway = Self::start();
        for name in names {
            let vm = Self::vm(name, "running");
            gateway.kept().vms.insert((*name).to_owned(), vm);
        }
        gateway
    }

    /// Waits until it knows something; a session ends on its own time.
    pub fn eventually(&self, what: &str, holds: impl Fn(&Kept) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !holds(&self.kept()) {
            assert!(Instant::now() < deadline, "{what}: {:?}", self.kept());
            std::thread::yield_now();
        }
    }

    /// A VM as the API shows it.
    pub fn vm(name: &str, phase: &str) -> Value {
        json!({
            "name": name, "uuid": "0198", "plugin": "caddy", "plugin_version": "2.6.2", "cpu_cores": 2,
            "memory_mb": 512, "created_at": "2026-01-02T03:04:05Z",
            "vmm": {"requested": "auto", "used": "qemu", "reason": "no KVM", "pid": 77},
            "phase": phase, "status": "serving \u{1b}[31m", "address": "192.168.127.2",
            "mac": "52:54:00:00:00:02", "cid": 3, "unit": format!("volant-vm@{name}.service"), "enabled": false,
            "agent_version": "0.1.0", "memory_total_kib": 500_000, "memory_available_kib": 400_000,
            "ready_since": null, "deleting": false, "restarts": 0,
        })
    }
}

fn router(kept: Shared) -> Router {
    Router::new()
        .route("/api/v1/vms", get(vms).post(create))
        .route("/api/v1/vms/{name}", get(vm).delete(delete))
        .route("/api/v1/vms/{name}/{verb}", post(change))
        .route("/api/v1/blobs/{digest}", head(blob).put(upload))
        .merge(devices::router())
        .merge(plugins::router())
        .merge(running::router())
        .layer(DefaultBodyLimit::disable())
        .with_state(kept)
}

fn problem(status: u16, slug: &str, detail: &str) -> Response {
    let body = json!({
        "type": format!("https://volantvm.com/problems/{slug}"), "title": slug, "status": status, "detail": detail,
    });
    let status = StatusCode::from_u16(status).unwrap();
    (
        status,
        [(CONTENT_TYPE, "application/problem+json")],
        body.to_string(),
    )
        .into_response()
}

async fn vms(State(kept): State<Shared>) -> Json<Vec<Value>> {
    Json(kept.lock().unwrap().vms.values().cloned().collect())
}

async fn vm(State(kept): State<Shared>, Path(name): Path<String>) -> Response {
    match kept.lock().unwrap().vms.get(&name) {
        Some(vm) => Json(vm).into_response(),
        None => problem(404, "no-such-vm", &format!("there is no VM {name}")),
    }
}

async fn create(State(kept): State<Shared>, Json(body): Json<Value>) -> Response {
    let mut kept = kept.lock().unwrap();
    kept.create = body.clone();
    let name = body["name"].as_str().unwrap();
    match body["plugin"].as_str().unwrap() {
        "unknown" => return problem(400, "unknown-plugin", "there is no plugin unknown"),
        "broken" => return problem(502, "start-failed", "no agent called\u{1b}[2J"),
        _ if kept.vms.contains_key(name) => return problem(409, "vm-exists", "there is a VM web"),
        _ => {}
    }
    let vm = FakeGateway::vm(
        name,
        if body["start"] == json!(true) {
            "running"
        } else {
            "stopped"
        },
    );
    kept.vms.insert(name.to_owned(), vm.clone());
    (StatusCode::CREATED, Json(vm)).into_response()
}

async fn delete(State(kept): State<Shared>, Path(name): Path<String>) -> Response {
    match kept.lock().unwrap().vms.remove(&name) {
        Some(_) => StatusCode::NO_CONTENT.into_response(),
        None => problem(404, "no-such-vm", &format!("there is no VM {name}")),
    }
}

async fn change(
    State(kept): State<Shared>,
    Path((name, verb)): Path<(String, String)>,
) -> Response {
    let mut kept = kept.lock().unwrap();
    let Some(vm) = kept.vms.get_mut(&name) else {
        return problem(404, "no-such-vm", &format!("there is no VM {name}"));
    };
    match verb.as_str() {
        "start" | "restart" => vm["phase"] = json!("running"),
        "stop" => vm["phase"] = json!("stopped"),
        "pause" => vm["paused"] = json!(true),
        "resume" => vm["paused"] = json!(false),
        "reload" => {}
        "enable" => vm["enabled"] = json!(true),
        "disable" => vm["enabled"] = json!(false),
        _ => return problem(404, "not-found", "there is nothing at this path"),
    }
    Json(&*vm).into_response()
}

async fn blob(State(kept): State<Shared>, Path(digest): Path<String>) -> StatusCode {
    if kept.lock().unwrap().blobs.contains_key(&digest) {
        StatusCode::OK
    } else {
        StatusCode::NOT_FOUND
    }
}

async fn upload(State(kept): State<Shared>, Path(digest): Path<String>, body: Bytes) -> Response {
    let mut kept = kept.lock().unwrap();
    kept.uploads += 1;
    let answer = json!({"digest": digest, "size": body.len()});
    kept.blobs.insert(digest, body.to_vec());
    (StatusCode::CREATED, Json(answer)).into_response()
}
