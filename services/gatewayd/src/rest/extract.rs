//! Parts of a request, parsed at the edge: past here there are types, no texts to check again.

use std::time::Duration;

use axum::{
    body::Body,
    extract::{FromRequestParts, Path, Query, Request},
};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use http::{HeaderMap, Uri, header::CONTENT_TYPE, request::Parts};
use serde::{Deserialize, de::DeserializeOwned};
use volant_spec::{Digest, Name, PluginRef};

use crate::{Kind, Problem};

/// The largest JSON body, in bytes: a manifest of the largest size written as a text, where each quote and line feed takes
/// two bytes, and what is around it.
pub const MAX_JSON: usize = 3 * 1024 * 1024;
const JSON: &str = "application/json";
const MERGE_PATCH: &str = "application/merge-patch+json";
/// How long a JSON body may be silent.
const SILENCE: Duration = Duration::from_secs(30);
/// What the rest of a body that nobody wants may take to be thrown away.
const DRAIN: Duration = Duration::from_secs(10);

/// The name in the path.
#[derive(Debug)]
pub struct Named(pub Name);

impl<S: Send + Sync> FromRequestParts<S> for Named {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let text = segment(parts, state).await?;
        name(&text).map(Self)
    }
}

/// The plugin in the path: `NAME` or `NAME@VERSION`.
#[derive(Debug)]
pub struct Plugged(pub PluginRef);

impl<S: Send + Sync> FromRequestParts<S> for Plugged {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let text = segment(parts, state).await?;
        plugin(&text).map(Self)
    }
}

/// The digest in the path.
#[derive(Debug)]
pub struct Digested(pub Digest);

impl<S: Send + Sync> FromRequestParts<S> for Digested {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let text = segment(parts, state).await?;
        let digest = text.parse::<Digest>();
        digest
            .map(Self)
            .map_err(|error| Problem::invalid(error.to_string()))
    }
}

async fn segment<S: Send + Sync>(parts: &mut Parts, state: &S) -> Result<String, Problem> {
    let path = Path::<String>::from_request_parts(parts, state).await;
    match path {
        Ok(Path(text)) => Ok(text),
        Err(rejection) => Err(Problem::invalid(rejection.body_text())),
    }
}

/// A name, wherever in the request it stood.
pub fn name(text: &str) -> Result<Name, Problem> {
    text.parse().map_err(|error: volant_spec::name::NameError| {
        Problem::new(Kind::InvalidName, error.to_string())
    })
}

/// A plugin, wherever in the request it stood.
pub fn plugin(text: &str) -> Result<PluginRef, Problem> {
    text.parse()
        .map_err(|error: volant_spec::plugin::PluginRefError| {
            Problem::new(Kind::InvalidName, error.to_string())
        })
}

/// What stands behind the path's `?`; unknown fields are refused by the value's type.
pub fn query<T: DeserializeOwned>(uri: &Uri) -> Result<T, Problem> {
    match Query::try_from_uri(uri) {
        Ok(Query(value)) => Ok(value),
        Err(rejection) => Err(Problem::invalid(rejection.body_text())),
    }
}

/// The bytes of a JSON body.
pub async fn json_body(request: Request) -> Result<Bytes, Problem> {
    if !is_json(request.headers(), JSON) {
        let detail = "the body must be JSON, with Content-Type: application/json";
        return Err(Problem::new(Kind::UnsupportedMediaType, detail));
    }
    whole(request.into_body(), MAX_JSON, SILENCE).await
}

/// The bytes of a JSON body that is a merge patch (RFC 7396).
pub async fn merge_patch_body(request: Request) -> Result<Bytes, Problem> {
    if !is_json(request.headers(), MERGE_PATCH) {
        let detail = format!("the body must be a merge patch, with Content-Type: {MERGE_PATCH}");
        return Err(Problem::new(Kind::UnsupportedMediaType, detail));
    }
    whole(request.into_body(), MAX_JSON, SILENCE).await
}

/// The bytes of a body of any kind, of at most so many.
pub async fn bounded(body: Body, most: usize) -> Result<Bytes, Problem> {
    whole(body, most, SILENCE).await
}

/// The bytes of a body that is never silent for longer than that.
async fn whole(body: Body, most: usize, silence: Duration) -> Result<Bytes, Problem> {
    let mut body = body.into_data_stream();
    let mut bytes = BytesMut::new();
    loop {
        let chunk = tokio::time::timeout(silence, body.next()).await;
        let Some(chunk) = chunk.map_err(|_| stalled(silence))? else {
            return Ok(bytes.freeze());
        };
        let chunk = chunk.map_err(|error| unread(&error))?;
        if bytes.len() + chunk.len() > most {
            throw_away(Body::from_stream(body)).await;
            let detail = format!("the request's body is larger than {} KiB", most / 1024);
            return Err(Problem::new(Kind::TooLarge, detail));
        }
        bytes.extend_from_slice(&chunk);
    }
}

/// The value that a JSON body is; unknown fields are refused by the value's type.
pub fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Problem> {
    serde_json::from_slice(body).map_err(|error| {
        Problem::invalid(format!("the request's body is not as it must be: {error}"))
    })
}

/// Reads what is left of a body: a client that still writes would not read its answer otherwise.
pub async fn throw_away(body: Body) {
    let mut body = body.into_data_stream();
    let all = async { while let Some(Ok(_)) = body.next().await {} };
    if tokio::time::timeout(DRAIN, all).await.is_err() {
        tracing::debug!("a body that nobody wants is cut off");
    }
}

/// The client broke off: nobody reads this problem but the log.
pub fn unread(error: &axum::Error) -> Problem {
    Problem::invalid(format!("cannot read the request's body: {error}"))
}

fn stalled(silence: Duration) -> Problem {
    let detail = format!("nothing more of the request's body came within {silence:?}");
    Problem::new(Kind::RequestTimeout, detail)
}

fn is_json(headers: &HeaderMap, kind: &str) -> bool {
    let value = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    value.is_some_and(|value| {
        let essence = value.split(';').next().unwrap_or_default().trim();
        essence.eq_ignore_ascii_case(kind)
    })
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::stream;

    use super::*;

    fn pieces(
        number: usize,
        wait: Duration,
    ) -> impl futures_util::Stream<Item = Result<Bytes, Infallible>> {
        stream::iter(0..number).then(move |_| async move {
            tokio::time::sleep(wait).await;
            Ok(Bytes::from_static(b" "))
        })
    }

    #[tokio::test]
    async fn a_body_that_stalls_is_given_up() {
        let body = pieces(2, Duration::ZERO).chain(stream::pending());
        let stalled = whole(Body::from_stream(body), MAX_JSON, Duration::from_millis(50));
        let told = tokio::time::timeout(Duration::from_secs(10), stalled).await;
        let problem = told.expect("it waits for ever").unwrap_err();
        assert_eq!(
            (problem.kind, problem.kind.status().as_u16()),
            (Kind::RequestTimeout, 408)
        );
        assert!(problem.detail.ends_with("within 50ms"), "{problem}");
    }

    #[tokio::test]
    async fn a_body_that_is_slow_is_waited_for() {
        let body = Body::from_stream(pieces(6, Duration::from_millis(300)));
        let bytes = whole(body, MAX_JSON, Duration::from_millis(1500))
            .await
            .unwrap();
        assert_eq!(bytes.len(), 6);
    }
}
