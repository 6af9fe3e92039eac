//! The REST face: paths, and what every request has.

mod blobs;
mod change;
mod config;
mod console;
mod devices;
mod events;
mod exec;
mod extract;
mod files;
mod forward;
mod install;
mod lines;
mod logs;
mod plugins;
mod socket;
mod stats;
mod upkeep;
mod vms;
mod wait;

use axum::{
    Json, Router,
    body::Body,
    extract::{Request, State},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, head, post, put},
};
use http::{HeaderName, HeaderValue, Method, Uri};
use http_body_util::BodyExt;
use tracing::Instrument;
use uuid::Uuid;

use crate::{Gateway, Kind, Problem};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// All paths.
pub fn router(gateway: Gateway) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/api/v1/plugins", get(plugins::list).post(install::install))
        .route(
            "/api/v1/plugins/{plugin}",
            get(plugins::show).delete(plugins::remove),
        )
        .route("/api/v1/plugins/{plugin}/manifest", get(plugins::manifest))
        .route("/api/v1/plugins/{plugin}/enable", post(plugins::enable))
        .route("/api/v1/plugins/{plugin}/disable", post(plugins::disable))
        .route("/api/v1/plugins/{plugin}/verify", post(upkeep::verify))
        .route("/api/v1/registry/verify", post(upkeep::verify_all))
        .route("/api/v1/registry/gc", post(upkeep::collect_garbage))
        .route("/api/v1/index/search", get(upkeep::search))
        .route("/api/v1/trust", get(upkeep::trust))
        .route(
            "/api/v1/blobs/{digest}",
            head(blobs::size).put(blobs::upload),
        )
        .route("/api/v1/vms", get(vms::list).post(vms::create))
        .route("/api/v1/vms/{name}", get(vms::show).delete(vms::delete))
        .route("/api/v1/vms/{name}/start", post(vms::start))
        .route("/api/v1/vms/{name}/stop", post(vms::stop))
        .route("/api/v1/vms/{name}/restart", post(vms::restart))
        .route("/api/v1/vms/{name}/enable", post(vms::enable))
        .route("/api/v1/vms/{name}/disable", post(vms::disable))
        .route("/api/v1/vms/{name}/pause", post(change::pause))
        .route("/api/v1/vms/{name}/resume", post(change::resume))
        .route("/api/v1/vms/{name}/reload", post(change::reload))
        .route("/api/v1/vms/{name}/scale", post(change::scale))
        .route("/api/v1/vms/{name}/exec", get(exec::exec))
        .route("/api/v1/vms/{name}/forward", get(forward::forward))
        .route("/api/v1/vms/{name}/console", get(console::console))
        .route(
            "/api/v1/vms/{name}/files",
            get(files::pack).put(files::unpack),
        )
        .route("/api/v1/vms/{name}/logs", get(logs::logs))
        .route("/api/v1/vms/stats", get(stats::all))
        .route("/api/v1/vms/{name}/stats", get(stats::one))
        .route("/api/v1/vms/{name}/wait", get(wait::wait))
        .route(
            "/api/v1/vms/{name}/config",
            get(config::get).put(config::put).patch(config::patch),
        )
        .route("/api/v1/vms/{name}/config/history", get(config::history))
        .route("/api/v1/vms/{name}/config/rollback", post(config::rollback))
        .route(
            "/api/v1/vms/{name}/secrets/{secret}",
            put(config::put_secret).delete(config::remove_secret),
        )
        .route("/api/v1/devices", get(devices::list))
        .route("/api/v1/devices/validate", post(devices::validate))
        .route("/api/v1/devices/{address}", get(devices::show))
        .route("/api/v1/events", get(events::events))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(middleware::from_fn_with_state(gateway.clone(), observe))
        .with_state(gateway)
}

/// Says that this service serves; looks at nothing else.
async fn healthz() -> impl IntoResponse {
    Json(serde_json::json!({"status": "ok"}))
}

async fn not_found(uri: Uri) -> Problem {
    let detail = format!("there is nothing at {}", uri.path());
    Problem::new(Kind::NotFound, detail)
}

async fn method_not_allowed(method: Method, uri: Uri) -> Problem {
    let detail = format!("{} cannot be asked to {method}", uri.path());
    Problem::new(Kind::MethodNotAllowed, detail)
}

/// Gives each request an id, logs how it ended, and keeps the service from ending before its answer is sent.
async fn observe(State(gateway): State<Gateway>, request: Request, next: Next) -> Response {
    let busy = gateway.busy();
    let id = Uuid::now_v7().to_string();
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let span = tracing::info_span!("request", request_id = %id);
    let begun = std::time::Instant::now();
    let mut response = next.run(request).instrument(span).await;

    let (path, status, took) = (uri.path(), response.status().as_u16(), begun.elapsed());
    match response.extensions().get::<Problem>() {
        Some(problem) if problem.kind.status().is_server_error() => {
            tracing::warn!(request_id = %id, "{method} {path}: {status} in {took:.1?}: {problem}");
        }
        Some(problem) => {
            tracing::info!(request_id = %id, "{method} {path}: {status} in {took:.1?}: {problem}");
        }
        None => tracing::info!(request_id = %id, "{method} {path}: {status} in {took:.1?}"),
    }
    let id = HeaderValue::from_str(&id).expect("a UUID is visible ASCII");
    response.headers_mut().insert(REQUEST_ID, id);
    response.map(|body| {
        Body::new(body.map_frame(move |frame| {
            let _until_sent = &busy;
            frame
        }))
    })
}
