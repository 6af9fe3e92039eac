//! The paths of plugins.

use std::collections::HashMap;

use axum::{
    Json, Router,
    extract::{Path, Query, State},
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::{Value, json};
use volant_spec::{Manifest, manifest::Named};

use super::{Kept, Shared, problem};

pub fn router() -> Router<Shared> {
    Router::new()
        .route("/api/v1/plugins", get(list).post(install))
        .route("/api/v1/plugins/{plugin}", get(show).delete(remove))
        .route("/api/v1/plugins/{plugin}/manifest", get(manifest))
        .route("/api/v1/plugins/{plugin}/enable", post(enable))
        .route("/api/v1/plugins/{plugin}/disable", post(disable))
        .route("/api/v1/plugins/{plugin}/verify", post(verify))
        .route("/api/v1/registry/verify", post(verify_all))
        .route("/api/v1/registry/gc", post(collect))
        .route("/api/v1/index/search", get(search))
        .route("/api/v1/trust", get(trust))
}

impl Kept {
    fn meant(&self, plugin: &str) -> Vec<String> {
        let is_meant = |key: &&String| *key == plugin || key.split('@').next() == Some(plugin);
        self.plugins.keys().filter(is_meant).cloned().collect()
    }

    /// The first artifact of a manifest that would have to be uploaded.
    fn lacks(&self, manifest: &str) -> Option<String> {
        let manifest = Manifest::parse(manifest.as_bytes()).unwrap();
        let is_lacking = |artifact: &Named<'_>| {
            !artifact.url.starts_with("http")
                && !self.blobs.contains_key(&artifact.checksum.to_string())
        };
        manifest
            .artifacts()
            .find(is_lacking)
            .map(|artifact| artifact.field)
    }
}

fn none(plugin: &str) -> Response {
    problem(
        404,
        "no-such-plugin",
        &format!("there is no plugin {plugin}"),
    )
}

async fn list(State(kept): State<Shared>) -> Json<Vec<Value>> {
    let bare = |plugin: &Value| {
        let mut plugin = plugin.clone();
        plugin.as_object_mut().unwrap().remove("manifest");
        plugin
    };
    Json(kept.lock().unwrap().plugins.values().map(bare).collect())
}

async fn show(State(kept): State<Shared>, Path(plugin): Path<String>) -> Response {
    let kept = kept.lock().unwrap();
    match kept.meant(&plugin).pop() {
        Some(key) => Json(&kept.plugins[&key]).into_response(),
        None => none(&plugin),
    }
}

async fn manifest(State(kept): State<Shared>, Path(plugin): Path<String>) -> Response {
    let kept = kept.lock().unwrap();
    match kept.meant(&plugin).pop() {
        Some(key) => kept.manifests[&key].clone().into_response(),
        None => none(&plugin),
    }
}

async fn remove(
    State(kept): State<Shared>,
    Path(plugin): Path<String>,
    Query(query): Query<HashMap<String, String>>,
) -> Response {
    let mut kept = kept.lock().unwrap();
    let meant = kept.meant(&plugin);
    let name = plugin.split('@').next().unwrap().to_owned();
    if kept.vms.values().any(|vm| vm["plugin"] == json!(name)) {
        return problem(409, "plugin-in-use", "1 VM uses it");
    }
    if meant.len() > 1 && !query.contains_key("all_versions") {
        return problem(
            409,
            "several-versions",
            &format!("{} are installed", meant.join(", ")),
        );
    }
    if meant.is_empty() {
        return none(&plugin);
    }
    for key in meant {
        kept.plugins.remove(&key);
    }
    StatusCode::NO_CONTENT.into_response()
}

async fn enable(kept: State<Shared>, plugin: Path<String>) -> Response {
    set_enabled(kept, plugin, true)
}

async fn disable(kept: State<Shared>, plugin: Path<String>) -> Response {
    set_enabled(kept, plugin, false)
}

fn set_enabled(State(kept): State<Shared>, Path(plugin): Path<String>, enabled: bool) -> Response {
    let mut kept = kept.lock().unwrap();
    let mut changed = Vec::new();
    for key in kept.meant(&plugin) {
        let plugin = kept.plugins.get_mut(&key).unwrap();
        plugin["enabled"] = json!(enabled);
        changed.push(plugin.clone());
    }
    if changed.is_empty() {
        return none(&plugin);
    }
    Json(changed).into_response()
}

/// Answers in lines, as volar asks for.
async fn install(State(kept): State<Shared>, Json(given): Json<Value>) -> Response {
    let mut kept = kept.lock().unwrap();
    kept.install = given.clone();
    let refused = |kind: &str, status: u16, detail: &str| {
        let kind = format!("x/{kind}");
        let problem = json!({"type": kind, "title": "t", "status": status, "detail": detail});
        lines(&[json!({ "problem": problem })])
    };
    let text = match (&given["manifest"], given["manifest_url"].as_str()) {
        (Value::String(_), _) if kept.trusts_nobody => {
            return refused("untrusted-plugin", 403, "the key 01 is not trusted here");
        }
        (Value::String(text), _) => match kept.lacks(text) {
            Some(artifact) => {
                let detail = format!("the artifact '{artifact}' is not in the store");
                return refused("missing-artifact", 409, &detail);
            }
            None => text.clone(),
        },
        (_, Some(url)) if url.ends_with("broken.json") => {
            return refused("invalid-request", 400, "a wrong checksum");
        }
        (_, Some(url)) if url.ends_with("untrusted.json") => {
            return refused("untrusted-plugin", 403, "the key 01 is not trusted here");
        }
        (_, Some(url)) if url.ends_with("older.json") => {
            return refused("untrusted-plugin", 403, "allow a downgrade if you mean it");
        }
        _ if given["name"] == json!("nothing") => {
            return refused("not-in-index", 404, "no index has plugin nothing");
        }
        _ => json!({"name": "remote", "version": "1"}).to_string(),
    };
    let manifest: Value = serde_json::from_str(&text).unwrap();
    let signed = json!({"key": "acme", "key_id": "E7620F1842B4E81F", "comment": "timestamp:1"});
    let is_signed = given["manifest"].is_null() || given["signature"].is_string();
    let mut plugin = json!({
        "name": manifest["name"], "version": manifest["version"], "enabled": true, "description": null,
        "size_bytes": 15_000_000, "installed_at": "2026-01-02T03:04:05Z", "manifest_digest": "sha256:00",
        "signed_by": if is_signed { signed } else { Value::Null }, "source": null, "vms": [], "manifest": manifest,
    });
    let (name, version) = (&manifest["name"], &manifest["version"]);
    let key = format!("{}@{}", name.as_str().unwrap(), version.as_str().unwrap());
    kept.plugins.insert(key.clone(), plugin.clone());
    kept.manifests.insert(key, text);
    if !is_signed {
        plugin["warnings"] = json!(["the manifest is not signed \u{1b}[2J"]);
    }
    let progress =
        json!({"progress": {"artifact": "initramfs", "done_bytes": 1, "total_bytes": 2}});
    lines(&[progress, json!({ "plugin": plugin })])
}

async fn verify(State(kept): State<Shared>, Path(plugin): Path<String>) -> Response {
    let kept = kept.lock().unwrap();
    match kept.meant(&plugin) {
        keys if keys.is_empty() => none(&plugin),
        keys => checked(&kept, &keys),
    }
}

async fn verify_all(State(kept): State<Shared>) -> Response {
    let kept = kept.lock().unwrap();
    checked(&kept, &kept.plugins.keys().cloned().collect::<Vec<_>>())
}

fn checked(kept: &Kept, keys: &[String]) -> Response {
    let mut told = Vec::new();
    for key in keys {
        let (plugin, version) = key.split_once('@').unwrap();
        let part = |subject: &str, ok: bool, detail: Value| {
            json!({"checked": {
                "plugin": plugin, "version": version, "subject": subject, "ok": ok, "detail": detail,
            }})
        };
        told.push(part("signature", true, json!("signed by acme")));
        let detail = if kept.damaged {
            json!("its bytes were changed")
        } else {
            Value::Null
        };
        told.push(part("initramfs", !kept.damaged, detail));
    }
    told.push(json!({"end": {"checked": told.len(), "wrong": 0}}));
    lines(&told)
}

async fn collect(State(kept): State<Shared>) -> Json<Value> {
    let bytes: usize = kept.lock().unwrap().blobs.values().map(Vec::len).sum();
    let artifacts = std::mem::take(&mut kept.lock().unwrap().blobs).len();
    Json(json!({"artifacts": artifacts, "bytes": bytes}))
}

async fn search(Query(query): Query<HashMap<String, String>>) -> Json<Value> {
    let found = json!({
        "name": "caddy", "description": "a web server", "versions": ["4", "3", "2", "1.0"], "installed": ["3"],
        "index": "https://a.example/index.json",
    });
    let plugins = if query["q"] == "&nothing" {
        vec![]
    } else {
        vec![found]
    };
    Json(json!({"plugins": plugins, "problems": ["https://b.example/index.json: no answer"]}))
}

async fn trust(State(kept): State<Shared>) -> Json<Value> {
    let policy = match kept.lock().unwrap().policy.as_str() {
        "" => "require".to_owned(),
        policy => policy.to_owned(),
    };
    Json(json!({
        "policy": policy,
        "keys": [{
            "name": "acme", "key_id": "E7620F1842B4E81F", "public_key": "RWQ", "plugins": ["caddy", "acme-*"],
            "comment": "of our builds",
        }],
        "problems": ["bad.pub: it is no text"],
    }))
}

fn lines(values: &[Value]) -> Response {
    let text: String = values.iter().map(|value| format!("{value}\n")).collect();
    ([(CONTENT_TYPE, "application/x-ndjson")], text).into_response()
}
