//! Plugins verified, their leftovers removed, indexes searched, trusted keys listed.
//!
//! The paths are beside `/api/v1/plugins`: any word below that is a plugin's name.

use std::time::Duration;

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use futures_util::stream;
use http::{HeaderMap, Uri};
use serde::{Deserialize, Serialize};
use tonic::Streaming;
use volant_proto::registry::v1::VerifyPluginsResponse;
use volant_spec::PluginRef;

use super::{
    extract::{Plugged, query},
    lines::{self, line},
};
use crate::{
    Gateway, Kind, Problem, problem,
    refusal::{self, Asked},
    view::plugin::{Checked, Collected, Found, Trust},
};

/// How long one artifact may take to be read.
const SILENCE: Duration = Duration::from_secs(10 * 60);

/// A line of a verification's answer; the last one is `end` or `problem`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum Line<'a> {
    Checked(&'a Checked),
    End(End),
    Problem(problem::Body<'a>),
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
struct End {
    checked: u64,
    wrong: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Search {
    #[serde(default)]
    q: String,
}

pub async fn verify(
    State(gateway): State<Gateway>,
    Plugged(plugin): Plugged,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    check(&gateway, Some(&plugin), &headers).await
}

pub async fn verify_all(
    State(gateway): State<Gateway>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    check(&gateway, None, &headers).await
}

pub async fn collect_garbage(State(gateway): State<Gateway>) -> Result<Json<Collected>, Problem> {
    let collected = gateway.registry().collect_garbage().await?;
    Ok(Json(collected.into()))
}

pub async fn search(State(gateway): State<Gateway>, uri: Uri) -> Result<Json<Found>, Problem> {
    let Search { q } = query(&uri)?;
    let found = gateway.registry().search(&q).await?;
    Ok(Json(found.into()))
}

pub async fn trust(State(gateway): State<Gateway>) -> Result<Json<Trust>, Problem> {
    let trust = gateway.registry().trust().await?;
    Ok(Json(trust.into()))
}

/// Answers when all is read; or line by line for a client that accepts that.
async fn check(
    gateway: &Gateway,
    plugin: Option<&PluginRef>,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    let mut events = gateway.registry().verify(plugin).await?;
    // Before the answer has begun, a plugin that is not there can still be told by its status.
    let first = next(&mut events).await?;
    if lines::accepted(headers) {
        return Ok(lines::answer(told(first, events)));
    }
    let (mut all, mut checked) = (Vec::new(), first);
    while let Some(this) = checked {
        all.push(this);
        checked = next(&mut events).await?;
    }
    Ok(Json(all).into_response())
}

async fn next(events: &mut Streaming<VerifyPluginsResponse>) -> Result<Option<Checked>, Problem> {
    match tokio::time::timeout(SILENCE, events.message()).await {
        Ok(Ok(checked)) => Ok(checked.map(Checked::from)),
        Ok(Err(status)) => Err(refusal::problem(Asked::Plugin, &status)),
        Err(_) => {
            let minutes = SILENCE.as_secs() / 60;
            let detail = format!("registryd was silent for {minutes} minutes of a verification");
            Err(Problem::new(Kind::Unavailable, detail))
        }
    }
}

/// What was found, as it is found, and the line that ends it.
fn told(
    first: Option<Checked>,
    events: Streaming<VerifyPluginsResponse>,
) -> impl stream::Stream<Item = bytes::Bytes> + Send {
    let begun = Some((Some(first), events, End::default()));
    stream::unfold(begun, |state| async move {
        let (first, mut events, mut end) = state?;
        let found = match first {
            Some(first) => Ok(first),
            None => next(&mut events).await,
        };
        Some(match found {
            Ok(Some(checked)) => {
                end.checked += 1;
                end.wrong += u64::from(!checked.ok);
                (line(&Line::Checked(&checked)), Some((None, events, end)))
            }
            Ok(None) => (line(&Line::End(end)), None),
            Err(problem) => (line(&Line::Problem(problem.body())), None),
        })
    })
}
