//! `POST /api/v1/plugins`: installs, which take long and go on when the client goes away.

use std::time::Duration;

use axum::{
    Json,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::StreamExt;
use http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use volant_proto::registry::v1::{
    InstallPluginRequest, InstallPluginResponse, install_plugin_request::Source,
    install_plugin_response::Event,
};
use volant_spec::manifest;

use super::{
    extract::{json_body, parse, plugin},
    lines::{self, line},
};
use crate::{Gateway, Kind, Problem, problem, refusal, registry::of_install, view::plugin::Plugin};

/// How long an install may be silent.
const SILENCE: Duration = Duration::from_secs(10 * 60);

/// The body of an install: one of the four sources.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Install<'a> {
    /// The manifest itself, or a text that it is in: its bytes are kept as they were written, as a signature covers them.
    #[serde(borrow)]
    manifest: Option<&'a RawValue>,
    /// Of `manifest`: minisign's file.
    signature: Option<String>,
    manifest_url: Option<String>,
    oci_reference: Option<String>,
    /// `NAME` or `NAME@VERSION`, from an index.
    name: Option<String>,
    #[serde(default)]
    allow_downgrade: bool,
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

/// Installs, and answers when it is done; or line by line for a client that accepts that. Goes on when the client
/// goes away.
pub async fn install(
    State(gateway): State<Gateway>,
    headers: HeaderMap,
    request: Request,
) -> Result<Response, Problem> {
    let body = json_body(request).await?;
    let request = asked(parse(&body)?)?;
    let (lines, heard) = mpsc::channel(16);
    let this = gateway.clone();
    let install = gateway.see_through(async move { carry_out(&this, &request, lines).await });
    if !lines::accepted(&headers) {
        drop(heard);
        let plugin = install.await?;
        return Ok((StatusCode::CREATED, Json(plugin)).into_response());
    }
    let last = async move {
        let installed = install.await;
        line(&match &installed {
            Ok(plugin) => Line::Plugin(plugin),
            Err(problem) => {
                // An upload is asked for, and not yet a failure.
                if problem.kind != Kind::MissingArtifact {
                    tracing::warn!("an install failed: {problem}");
                }
                Line::Problem(problem.body())
            }
        })
    };
    let lines = ReceiverStream::new(heard).chain(futures_util::stream::once(last));
    Ok(lines::answer(lines))
}

/// Exactly one source must be there, and what belongs to another one must not.
fn asked(install: Install<'_>) -> Result<InstallPluginRequest, Problem> {
    let Install {
        manifest,
        signature,
        manifest_url,
        oci_reference,
        name,
        allow_downgrade,
    } = install;
    if signature.is_some() && manifest.is_none() {
        return Err(Problem::invalid(
            "a 'signature' goes with 'manifest' alone; other sources have theirs where the manifest is",
        ));
    }
    let mut sources = [
        manifest.map(exact).transpose()?.map(Source::Manifest),
        manifest_url.map(Source::ManifestUrl),
        oci_reference.map(Source::OciReference),
        name.map(|name| plugin(&name).map(|plugin| Source::Name(plugin.to_string())))
            .transpose()?,
    ]
    .into_iter()
    .flatten();
    match (sources.next(), sources.next()) {
        (Some(source), None) => Ok(InstallPluginRequest {
            source: Some(source),
            signature: signature.unwrap_or_default().into_bytes(),
            allow_downgrade,
        }),
        _ => Err(Problem::invalid(
            "an install needs one of 'manifest', 'manifest_url', 'oci_reference' and 'name'",
        )),
    }
}

/// The manifest's bytes.
fn exact(given: &RawValue) -> Result<Vec<u8>, Problem> {
    let bytes = if given.get().starts_with('"') {
        parse::<String>(given.get().as_bytes())?.into_bytes()
    } else {
        given.get().as_bytes().to_vec()
    };
    if bytes.len() > manifest::MAX_BYTES {
        let limit = manifest::MAX_BYTES / 1024 / 1024;
        let detail = format!("the manifest is larger than {limit} MiB");
        return Err(Problem::new(Kind::TooLarge, detail));
    }
    Ok(bytes)
}

/// Installs, telling progress to who still listens and keeps up.
async fn carry_out(
    gateway: &Gateway,
    request: &InstallPluginRequest,
    lines: mpsc::Sender<Bytes>,
) -> Result<Plugin, Problem> {
    let mut events = gateway.registry().install(request).await?;
    loop {
        let event = tokio::time::timeout(SILENCE, events.message()).await;
        let event = event.map_err(|_| {
            let minutes = SILENCE.as_secs() / 60;
            let detail = format!("registryd was silent for {minutes} minutes of an install");
            Problem::new(Kind::Unavailable, detail)
        })?;
        let event = event.map_err(|status| refusal::problem(of_install(request), &status))?;
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
