//! Answers line by line (NDJSON), for clients that accept them.

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use http::{
    HeaderMap,
    header::{ACCEPT, CONTENT_TYPE},
};
use serde::Serialize;

const NDJSON: &str = "application/x-ndjson";

/// A value in a line of its own.
pub fn line(value: &impl Serialize) -> Bytes {
    let mut text = serde_json::to_vec(value).expect("a struct of texts and numbers is always JSON");
    // A manifest stands in it as its author wrote it, over several lines maybe. In JSON a line feed can only be white space.
    for byte in text.iter_mut().filter(|byte| matches!(byte, b'\n' | b'\r')) {
        *byte = b' ';
    }
    text.push(b'\n');
    text.into()
}

/// The answer that is these lines.
pub fn answer(lines: impl Stream<Item = Bytes> + Send + 'static) -> Response {
    let lines = lines.map(Ok::<_, std::convert::Infallible>);
    ([(CONTENT_TYPE, NDJSON)], Body::from_stream(lines)).into_response()
}

/// Whether the client wants lines.
pub fn accepted(headers: &HeaderMap) -> bool {
    let values = headers.get_all(ACCEPT).into_iter();
    values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|item| item.split(';').next())
        .any(|essence| essence.trim().eq_ignore_ascii_case(NDJSON))
}
