//! The paths of VMs that run: their sessions do what the name of the program or the port says.

use std::collections::HashMap;

use axum::{
    Json, Router,
    body::Bytes,
    extract::{
        Path, Query, State, WebSocketUpgrade,
        ws::{Message, WebSocket},
    },
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use serde_json::{Value, json};

use super::{Kept, Shared, problem};

type Asked = Query<HashMap<String, String>>;

pub fn router() -> Router<Shared> {
    Router::new()
        .route("/api/v1/vms/{name}/exec", get(exec))
        .route("/api/v1/vms/{name}/forward", get(forward))
        .route("/api/v1/vms/{name}/console", get(console))
        .route("/api/v1/vms/{name}/files", get(fetch).put(unpack))
        .route("/api/v1/vms/{name}/logs", get(logs))
        .route("/api/v1/vms/{name}/stats", get(stats))
        .route("/api/v1/vms/stats", get(all_stats))
        .route("/api/v1/vms/{name}/wait", get(wait))
        .route("/api/v1/vms/{name}/scale", post(scale))
        .route(
            "/api/v1/vms/{name}/config",
            get(config).put(put_config).patch(patch_config),
        )
        .route("/api/v1/vms/{name}/config/history", get(history))
        .route("/api/v1/vms/{name}/config/rollback", post(rollback))
        .route(
            "/api/v1/vms/{name}/secrets/{secret}",
            put(put_secret).delete(remove_secret),
        )
        .route("/api/v1/events", get(events))
}

/// A tar at a path of the fake guest.
#[derive(Debug, Default)]
pub struct Archive {
    pub is_folder: bool,
    pub tar: Vec<u8>,
    /// The connection breaks before the end.
    pub is_cut: bool,
}

/// What was put into the fake guest.
#[derive(Clone, Debug, Default)]
pub struct Put {
    pub asked: HashMap<String, String>,
    pub tar: Vec<u8>,
}

fn none(kept: &Kept, name: &str) -> Option<Response> {
    let known = kept.vms.contains_key(name);
    (!known).then(|| problem(404, "no-such-vm", &format!("there is no VM {name}")))
}

async fn exec(
    State(kept): State<Shared>,
    Path(name): Path<String>,
    upgrade: WebSocketUpgrade,
) -> Response {
    if let Some(refused) = none(&kept.lock().unwrap(), &name) {
        return refused;
    }
    upgrade
        .protocols(["v1.exec.volantvm.com"])
        .on_upgrade(async move |socket| {
            let _ = Program { socket, kept }.run().await;
        })
}

/// A program that is what its name says.
struct Program {
    socket: WebSocket,
    kept: Shared,
}

impl Program {
    async fn run(mut self) -> Option<()> {
        let Message::Text(opening) = self.hear().await? else {
            return None;
        };
        let opening: Value = serde_json::from_str(&opening).unwrap();
        self.kept.lock().unwrap().exec = opening.clone();
        let command: Vec<&str> = opening["command"]
            .as_array()
            .unwrap()
            .iter()
            .map(|word| word.as_str().unwrap())
            .collect();
        match command.first().copied().unwrap_or("shell") {
            "missing" => {
                return self
                    .say(&refused(404, "not-in-guest", "no program missing"))
                    .await;
            }
            "noexec" => {
                return self
                    .say(&refused(409, "unusable-in-guest", "not executable"))
                    .await;
            }
            "busy" => {
                return self
                    .say(&refused(503, "too-many-sessions", "too many"))
                    .await;
            }
            _ => {}
        }
        self.say(&json!({"started": {"pid": 42}})).await?;
        if opening["detach"] == true {
            return self.exit(0, 0).await;
        }
        match command.first().copied().unwrap_or("shell") {
            "exit" => self.exit(command[1].parse().unwrap(), 0).await,
            "killed" => self.exit(0, 9).await,
            "error" => {
                let error =
                    json!({"exited": {"code": 0, "signal": 0, "error": "the agent is gone"}});
                self.say(&error).await
            }
            "cut" => self.socket.send(Message::Close(None)).await.ok(),
            "both" => {
                self.put(1, b"out\n").await?;
                self.put(2, b"err\n").await?;
                self.exit(0, 0).await
            }
            "flood" => loop {
                if self.put(1, &[b'y'; 60_000]).await.is_none() {
                    self.kept.lock().unwrap().gone += 1;
                    return None;
                }
            },
            "events" | "shell" => self.events().await,
            "cat" => self.cat().await,
            other => panic!("there is no fake of {other}"),
        }
    }

    /// Writes what it hears until there is no more.
    async fn cat(&mut self) -> Option<()> {
        loop {
            match self.hear().await? {
                Message::Binary(data) if data[0] == 0 => self.put(1, &data[1..]).await?,
                Message::Text(text) if text.contains("stdin_end") => return self.exit(0, 0).await,
                _ => {}
            }
        }
    }

    /// Writes what comes besides, as it is; a 'q' ends it with 3, a signal with itself.
    async fn events(&mut self) -> Option<()> {
        self.put(1, b"ready\n").await?;
        loop {
            match self.hear().await {
                None => {
                    self.kept.lock().unwrap().gone += 1;
                    return None;
                }
                Some(Message::Binary(data)) if data.contains(&b'q') => {
                    return self.exit(3, 0).await;
                }
                Some(Message::Binary(data)) => {
                    let typed = format!("{:?}", &data[1..]);
                    self.put(1, typed.as_bytes()).await?;
                }
                Some(Message::Text(text)) => {
                    self.put(1, text.as_bytes()).await?;
                    let word: Value = serde_json::from_str(&text).unwrap();
                    if let Some(signal) = word["signal"].as_u64() {
                        return self.exit(0, signal).await;
                    }
                }
                Some(_) => {}
            }
        }
    }

    async fn hear(&mut self) -> Option<Message> {
        match self.socket.recv().await?.ok()? {
            Message::Close(_) => None,
            message => Some(message),
        }
    }

    async fn put(&mut self, channel: u8, data: &[u8]) -> Option<()> {
        let message = [&[channel], data].concat();
        self.socket.send(Message::Binary(message.into())).await.ok()
    }

    async fn say(&mut self, word: &Value) -> Option<()> {
        self.socket.send(Message::text(word.to_string())).await.ok()
    }

    async fn exit(&mut self, code: u64, signal: u64) -> Option<()> {
        let exited = json!({"exited": {"code": code, "signal": signal, "error": null}});
        self.say(&exited).await
    }
}

fn refused(status: u16, slug: &str, detail: &str) -> Value {
    json!({"problem": {
        "type": format!("https://volantvm.com/problems/{slug}"), "title": slug, "status": status, "detail": detail,
    }})
}

/// Port 80 says back what it hears once it has heard all, and 81 refuses.
async fn forward(
    State(kept): State<Shared>,
    Path(name): Path<String>,
    Query(asked): Asked,
    upgrade: WebSocketUpgrade,
) -> Response {
    if let Some(refused) = none(&kept.lock().unwrap(), &name) {
        return refused;
    }
    kept.lock().unwrap().forwards.push(asked.clone());
    upgrade
        .protocols(["v1.forward.volantvm.com"])
        .on_upgrade(async move |mut socket| {
            if asked["port"] == "81" {
                let word = refused(409, "unusable-in-guest", "connection refused");
                let _ = socket.send(Message::text(word.to_string())).await;
                return;
            }
            let connected = json!({"connected": true}).to_string();
            let _ = socket.send(Message::text(connected)).await;
            let mut heard = Vec::new();
            while let Some(Ok(message)) = socket.recv().await {
                match message {
                    Message::Binary(data) => heard.extend_from_slice(&data),
                    Message::Text(text) if text.contains("end") => break,
                    _ => {}
                }
            }
            let _ = socket.send(Message::Binary(heard.into())).await;
            let end = json!({"end": true}).to_string();
            let _ = socket.send(Message::text(end)).await;
        })
}

async fn console(
    State(kept): State<Shared>,
    Path(name): Path<String>,
    Query(asked): Asked,
    upgrade: WebSocketUpgrade,
) -> Response {
    if let Some(refused) = none(&kept.lock().unwrap(), &name) {
        return refused;
    }
    kept.lock().unwrap().console = asked.clone();
    if name == "taken" && asked["write"] == "true" && asked["steal"] == "false" {
        return problem(409, "not-possible", "somebody else writes to the console");
    }
    upgrade
        .protocols(["v1.console.volantvm.com"])
        .on_upgrade(async move |mut socket| {
            let _ = socket.send(Message::Binary("login: ".into())).await;
            if asked["follow"] == "false" {
                let _ = socket.send(Message::Close(None)).await;
                return;
            }
            while let Some(Ok(message)) = socket.recv().await {
                if let Message::Binary(data) = message {
                    if data.as_ref() == b"reload" {
                        let word = refused(503, "unavailable", "the supervisor is being replaced");
                        let _ = socket.send(Message::text(word.to_string())).await;
                        return;
                    }
                    let typed = format!("<{}>", String::from_utf8_lossy(&data));
                    let _ = socket.send(Message::Binary(typed.into())).await;
                }
            }
            kept.lock().unwrap().gone += 1;
        })
}

async fn fetch(
    State(kept): State<Shared>,
    Path(name): Path<String>,
    Query(asked): Asked,
) -> Response {
    let kept = kept.lock().unwrap();
    if let Some(refused) = none(&kept, &name) {
        return refused;
    }
    let path = &asked["path"];
    let Some(archive) = kept.files.get(path) else {
        return problem(
            404,
            "not-in-guest",
            &format!("there is no {path} in VM {name}"),
        );
    };
    let headers = [("x-volant-is-directory", archive.is_folder.to_string())];
    let tar = Bytes::from(archive.tar.clone());
    let end = archive.is_cut.then(|| Err(std::io::Error::other("cut")));
    let body = futures_util::stream::iter([Ok(tar)].into_iter().chain(end));
    (headers, axum::body::Body::from_stream(body)).into_response()
}

async fn unpack(
    State(kept): State<Shared>,
    Path(name): Path<String>,
    Query(asked): Asked,
    body: Bytes,
) -> Response {
    let mut kept = kept.lock().unwrap();
    if let Some(refused) = none(&kept, &name) {
        return refused;
    }
    kept.put = Put {
        asked,
        tar: body.to_vec(),
    };
    Json(json!({"entries": 1})).into_response()
}

async fn logs(
    State(kept): State<Shared>,
    Path(name): Path<String>,
    Query(asked): Asked,
) -> Response {
    let mut kept = kept.lock().unwrap();
    if let Some(refused) = none(&kept, &name) {
        return refused;
    }
    kept.logs = asked;
    let line = |source: &str, message: &str| {
        let time = "2026-01-02T03:04:05.000006Z";
        json!({"time": time, "source": source, "message": message, "priority": 6, "cursor": "c"})
    };
    let (first, last) = (line("stdout", "hello"), line("stderr", "oh\u{1b}[2J"));
    format!("{first}\n\n{last}\n").into_response()
}

fn sample(name: &str, look: u64) -> Value {
    json!({
        "name": name, "phase": "running", "time": "2026-01-02T03:04:05Z",
        "host": {"memory_bytes": 300_000_000, "memory_max_bytes": null, "cpu_ns": look * 1_000_000, "tasks": 9},
        "guest": {
            "load_centi": 25, "cpus": 2, "cpu_busy_ms": look * 10, "cpu_total_ms": look * 100,
            "memory_total_kib": 500_000, "memory_available_kib": 400_000, "process_count": 7,
            "processes": [{"pid": 1, "user": "root", "resident_kib": 3000, "cpu_ms": 1500, "command": "/sbin/init"}],
        },
    })
}

async fn stats(State(kept): State<Shared>, Path(name): Path<String>) -> Response {
    let mut kept = kept.lock().unwrap();
    if let Some(refused) = none(&kept, &name) {
        return refused;
    }
    kept.looks += 1;
    Json(sample(&name, kept.looks)).into_response()
}

async fn all_stats(State(kept): State<Shared>) -> Json<Vec<Value>> {
    let mut kept = kept.lock().unwrap();
    kept.looks += 1;
    let look = kept.looks;
    Json(kept.vms.keys().map(|name| sample(name, look)).collect())
}

/// A VM that is not as is waited for never will be.
async fn wait(
    State(kept): State<Shared>,
    Path(name): Path<String>,
    Query(asked): Asked,
) -> Response {
    let mut kept = kept.lock().unwrap();
    if let Some(refused) = none(&kept, &name) {
        return refused;
    }
    kept.waits.push(asked.clone());
    let wanted = if asked["for"] == "stopped" {
        "stopped"
    } else {
        "running"
    };
    let phase = kept.vms[&name]["phase"].clone();
    if phase == wanted {
        return Json(&kept.vms[&name]).into_response();
    }
    if phase == "failed" {
        return problem(409, "wait-impossible", "VM broken failed");
    }
    problem(
        504,
        "wait-timed-out",
        &format!("VM {name} is not {wanted} yet"),
    )
}

async fn scale(
    State(kept): State<Shared>,
    Path(name): Path<String>,
    Json(body): Json<Value>,
) -> Response {
    let mut kept = kept.lock().unwrap();
    if let Some(refused) = none(&kept, &name) {
        return refused;
    }
    kept.config = body.clone();
    let mut vm = kept.vms[&name].clone();
    for field in ["cpu_cores", "memory_mb"] {
        if !body[field].is_null() {
            vm[field] = body[field].clone();
        }
    }
    let (applied, reason) = if body["restart"] == true {
        ("restarted", Value::Null)
    } else {
        (
            "at-next-start",
            json!("QEMU cannot change a running machine"),
        )
    };
    Json(json!({"applied": applied, "reason": reason, "vm": vm})).into_response()
}

fn version(version: u64, config: &Value) -> Value {
    json!({
        "version": version, "created_at": "2026-01-02T03:04:05Z", "reason": "configured",
        "config": config, "effective": {"cpu_cores": 1, "env": config["env"]},
    })
}

async fn config(State(kept): State<Shared>, Path(name): Path<String>) -> Response {
    let kept = kept.lock().unwrap();
    none(&kept, &name).unwrap_or_else(|| Json(version(3, &kept.config)).into_response())
}

async fn put_config(
    state: State<Shared>,
    path: Path<String>,
    headers: HeaderMap,
    Json(body): Json<Value>,
) -> Response {
    changed("put", &state, &path, &headers, &body)
}

async fn patch_config(
    state: State<Shared>,
    path: Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    assert_eq!(headers["content-type"], "application/merge-patch+json");
    let body = serde_json::from_slice(&body).unwrap();
    changed("patch", &state, &path, &headers, &body)
}

fn changed(how: &str, kept: &Shared, name: &str, headers: &HeaderMap, body: &Value) -> Response {
    let mut kept = kept.lock().unwrap();
    if let Some(refused) = none(&kept, name) {
        return refused;
    }
    if headers
        .get("if-match")
        .is_some_and(|version| version != "\"3\"")
    {
        return problem(412, "version-conflict", "the newest configuration is 3");
    }
    kept.config = json!({how: body});
    Json(version(4, body)).into_response()
}

async fn history() -> Json<Value> {
    Json(json!([version(2, &json!({})), version(1, &json!({}))]))
}

async fn rollback(Json(body): Json<Value>) -> Response {
    if body["version"] != 1 {
        return problem(404, "no-such-version", "there is no version 9");
    }
    Json(version(4, &json!({}))).into_response()
}

async fn put_secret(
    State(kept): State<Shared>,
    Path((_, secret)): Path<(String, String)>,
    body: Bytes,
) -> StatusCode {
    kept.lock().unwrap().secrets.insert(secret, body.to_vec());
    StatusCode::NO_CONTENT
}

async fn remove_secret(
    State(kept): State<Shared>,
    Path((_, secret)): Path<(String, String)>,
) -> Response {
    match kept.lock().unwrap().secrets.remove(&secret) {
        Some(_) => StatusCode::NO_CONTENT.into_response(),
        None => problem(404, "not-found", "there is no such secret"),
    }
}

async fn events(Query(asked): Asked) -> Response {
    let name = asked.get("vm").cloned().unwrap_or("db".to_owned());
    let data = json!({
        "time": "2026-01-02T03:04:05Z", "vm": name, "event": "stopped", "details": {"exit_code": 7, "none": null},
    });
    let text = format!(": here\n\nid: 1\nevent: stopped\ndata: {data}\n\n: here\n\n");
    ([("content-type", "text/event-stream")], text).into_response()
}
