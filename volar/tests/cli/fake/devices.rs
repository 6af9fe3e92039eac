//! The part of the fake that is about devices.

use axum::{
    Json, Router,
    extract::{Path, State},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::{Value, json};

use super::{Shared, problem};

pub fn router() -> Router<Shared> {
    Router::new()
        .route("/api/v1/devices", get(list))
        .route("/api/v1/devices/validate", post(validate))
        .route("/api/v1/devices/{address}", get(show))
}

async fn list(State(kept): State<Shared>) -> Json<Vec<Value>> {
    Json(kept.lock().unwrap().devices.clone())
}

async fn show(State(kept): State<Shared>, Path(address): Path<String>) -> Response {
    let kept = kept.lock().unwrap();
    let found = kept
        .devices
        .iter()
        .find(|device| device["address"] == *address);
    match found {
        Some(device) => Json(device).into_response(),
        None => problem(404, "no-such-device", "there is no such device"),
    }
}

async fn validate(State(kept): State<Shared>, Json(wish): Json<Value>) -> Json<Value> {
    let mut kept = kept.lock().unwrap();
    kept.wish = wish;
    Json(json!({"problems": kept.problems}))
}
