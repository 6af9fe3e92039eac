//! `/api/v1/plugins`

use std::time::Duration;

use axum::{
    Json,
    body::Body,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::StreamExt;
use http::{
    HeaderMap, StatusCode,
    header::{ACCEPT, CONTENT_TYPE},
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use volant_proto::registry::v1::{
    InstallPluginResponse, install_plugin_request::Source, install_plugin_response::Event,
};
use volant_spec::manifest;

use super::extract::{Named, json_body, parse};
use crate::{
    Gateway, Kind, Problem, problem,
    refusal::{self, Asked},
    view::Plugin,
};

const NDJSON: &str = "application/x-ndjson";
/// How long an install may be silent.
const SILENCE: Duration = Duration::from_secs(10 * 60);

/// The body of an install: one of the two.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Install<'a> {
    /// Kept as it was written: a signature would cover these bytes.
    #[serde(borrow)]
    manifest: Option<&'a RawValue>,
    manifest_url: Option<String>,
}

/// A line of an install's answer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum Line<'a> {
    Progress(Progress),
    Plugin(&'a Plugin),
    Problem(problem::Body<'a>),
}

#[derive(Debug, Serialize)]
struct Progress {
    artifact: String,
    done_bytes: u64,
    /// 0 when not known.
    total_bytes: u64,
}

pub async fn list(State(gateway): State<Gateway>) -> Result<Json<Vec<Plugin>>, Problem> {
    let plugins = gateway.registry().plugins().await?;
    let plugins: Result<_, _> = plugins.into_iter().map(Plugin::try_from).collect();
    plugins.map(Json)
}

pub async fn show(
    State(gateway): State<Gateway>,
    Named(name): Named,
) -> Result<Json<Plugin>, Problem> {
    gateway.registry().plugin(&name).await?.try_into().map(Json)
}

pub async fn remove(
    State(gateway): State<Gateway>,
    Named(name): Named,
) -> Result<StatusCode, Problem> {
    gateway.registry().remove_plugin(&name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Installs, and answers when it is done; or line by line for a client that accepts that. Goes on when the client
/// goes away.
pub async fn install(
    State(gateway): State<Gateway>,
    headers: HeaderMap,
    request: Request,
) -> Result<Response, Problem> {
    let body = json_body(request).await?;
    let source = source(parse(&body)?)?;
    let (lines, heard) = mpsc::channel(16);
    let this = gateway.clone();
    let install = gateway.see_through(async move { carry_out(&this, source, lines).await });
    if !accepts_lines(&headers) {
        drop(heard);
        let plugin = install.await?;
        return Ok((StatusCode::CREATED, Json(plugin)).into_response());
    }
    let last = async move {
        let installed = install.await;
        line(&match &installed {
            Ok(plugin) => Line::Plugin(plugin),
            Err(problem) => {
                tracing::warn!("an install failed: {problem}");
                Line::Problem(problem.body())
            }
        })
    };
    let lines = ReceiverStream::new(heard).chain(futures_util::stream::once(last));
    let lines = lines.map(Ok::<_, std::convert::Infallible>);
    Ok(([(CONTENT_TYPE, NDJSON)], Body::from_stream(lines)).into_response())
}

/// Exactly one of the two must be there, and the manifest no larger than manifests are.
fn source(install: Install<'_>) -> Result<Source, Problem> {
    match (install.manifest, install.manifest_url) {
        (Some(manifest), None) if manifest.get().len() > manifest::MAX_BYTES => {
            let limit = manifest::MAX_BYTES / 1024 / 1024;
            let detail = format!("the manifest is larger than {limit} MiB");
            Err(Problem::new(Kind::TooLarge, detail))
        }
        (Some(manifest), None) => Ok(Source::Manifest(manifest.get().as_bytes().to_vec())),
        (None, Some(url)) => Ok(Source::ManifestUrl(url)),
        (Some(_), Some(_)) | (None, None) => Err(Problem::invalid(
            "an install needs either 'manifest' or 'manifest_url'",
        )),
    }
}

/// Installs, telling progress to who still listens and keeps up.
async fn carry_out(
    gateway: &Gateway,
    source: Source,
    lines: mpsc::Sender<Bytes>,
) -> Result<Plugin, Problem> {
    let mut events = gateway.registry().install(source).await?;
    loop {
        let event = tokio::time::timeout(SILENCE, events.message()).await;
        let event = event.map_err(|_| {
            let minutes = SILENCE.as_secs() / 60;
            let detail = format!("registryd was silent for {minutes} minutes of an install");
            Problem::new(Kind::Unavailable, detail)
        })?;
        let event = event.map_err(|status| refusal::problem(Asked::InstallPlugin, &status))?;
        let Some(InstallPluginResponse { event }) = event else {
            return Err(Problem::internal(
                "registryd did not say how the install ended",
            ));
        };
        match event {
            Some(Event::Plugin(plugin)) => return plugin.try_into(),
            Some(Event::Progress(progress)) => {
                let progress = Progress {
                    artifact: progress.artifact,
                    done_bytes: progress.done_bytes,
                    total_bytes: progress.total_bytes,
                };
                // Who reads slowly, or no more, misses some of it and holds nothing up.
                let _ = lines.try_send(line(&Line::Progress(progress)));
            }
            // Something that a newer registryd tells.
            None => {}
        }
    }
}

fn line(line: &Line<'_>) -> Bytes {
    let mut text = serde_json::to_vec(line).expect("a struct of texts and numbers is always JSON");
    // A manifest stands in it as its author wrote it, over several lines maybe. In JSON a line feed can only be white space.
    for byte in text.iter_mut().filter(|byte| matches!(byte, b'\n' | b'\r')) {
        *byte = b' ';
    }
    text.push(b'\n');
    text.into()
}

fn accepts_lines(headers: &HeaderMap) -> bool {
    let values = headers.get_all(ACCEPT).into_iter();
    values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|item| item.split(';').next())
        .any(|essence| essence.trim().eq_ignore_ascii_case(NDJSON))
}
