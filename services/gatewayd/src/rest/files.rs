//! `/api/v1/vms/{name}/files`: files of a guest as archives, passed on piece by piece.

use axum::{
    Json,
    body::{Body, BodyDataStream},
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::StreamExt;
use http::{HeaderMap, HeaderName, HeaderValue, Uri, header::CONTENT_TYPE};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use volant_proto::vm::v1::{
    PackRequest, PackResponse, UnpackRequest, UnpackTarget, pack_response::Message as Packed,
    unpack_request::Message as Part,
};

use super::extract::{Named, query, throw_away, unread};
use crate::{Gateway, Kind, Problem, vmd};

const TAR: &str = "application/x-tar";
const IS_DIRECTORY: HeaderName = HeaderName::from_static("x-volant-is-directory");
const SIZE: HeaderName = HeaderName::from_static("x-volant-size");
/// The most that one message to the guest carries, in bytes.
const PIECE: usize = 64 * 1024;
/// Messages that wait for the guest; then the client waits.
const AHEAD: usize = 4;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct From {
    path: String,
    #[serde(default)]
    follow: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Into {
    path: String,
    #[serde(default)]
    keep_owner: bool,
    #[serde(default)]
    no_overwrite_dir_non_dir: bool,
}

#[derive(Debug, Serialize)]
pub struct Unpacked {
    entries: u64,
}

/// Answers once the guest found the path; what fails later cuts the body off.
pub async fn pack(
    State(gateway): State<Gateway>,
    Named(name): Named,
    uri: Uri,
) -> Result<Response, Problem> {
    let From { path, follow } = query(&uri)?;
    absolute(&path)?;
    let place = gateway.session()?;
    let mut client = gateway.vmd(&name).await?;
    let refused = |status| vmd::problem(&name, &status);
    let packed = client.pack(PackRequest { path, follow }).await;
    let mut packed = packed.map_err(refused)?.into_inner();
    let first = packed.message().await.map_err(refused)?;
    let Some(Packed::Path(about)) = first.and_then(|first| first.message) else {
        let detail = format!("the supervisor of VM {name} did not tell of the path");
        return Err(Problem::internal(detail));
    };
    let vm = name.clone();
    let pieces = packed.filter_map(move |piece| {
        // Both live as long as the body.
        let _held = (&place, &client);
        if let Err(status) = &piece {
            tracing::warn!("files of VM {vm} are cut off: {status}");
        }
        async {
            match piece {
                Ok(PackResponse {
                    message: Some(Packed::Chunk(bytes)),
                }) => Some(Ok(Bytes::from(bytes))),
                Ok(_) => None,
                Err(status) => {
                    // What came before is sent first: an error cuts off what waits to be written, too.
                    tokio::task::yield_now().await;
                    Some(Err(status))
                }
            }
        }
    });
    let size = HeaderValue::from(about.size);
    let is_directory = HeaderValue::from_static(if about.is_directory { "true" } else { "false" });
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static(TAR)),
        (IS_DIRECTORY, is_directory),
        (SIZE, size),
    ];
    Ok((headers, Body::from_stream(pieces)).into_response())
}

/// Answers once the guest has written all of it.
pub async fn unpack(
    State(gateway): State<Gateway>,
    Named(name): Named,
    uri: Uri,
    request: Request,
) -> Result<Json<Unpacked>, Problem> {
    let Into {
        path,
        keep_owner,
        no_overwrite_dir_non_dir,
    } = query(&uri)?;
    absolute(&path)?;
    is_tar(request.headers())?;
    let _place = gateway.session()?;
    let mut client = gateway.vmd(&name).await?;
    let target = UnpackTarget {
        path,
        keep_owner,
        no_overwrite_dir_non_dir,
    };
    let mut body = request.into_body().into_data_stream();
    let answer = {
        let (parts, sent) = mpsc::channel(AHEAD);
        let call = client.unpack(ReceiverStream::new(sent));
        tokio::pin!(call);
        let answer = tokio::select! {
            // The guest may refuse before it has all.
            answer = &mut call => Some(answer),
            pumped = pump(target, &mut body, &parts) => {
                pumped?;
                None
            }
        };
        drop(parts);
        match answer {
            Some(answer) => answer,
            None => call.await,
        }
    };
    throw_away(Body::from_stream(body)).await;
    let unpacked = answer.map_err(|status| vmd::problem(&name, &status))?;
    Ok(Json(Unpacked {
        entries: unpacked.into_inner().entries,
    }))
}

async fn pump(
    target: UnpackTarget,
    body: &mut BodyDataStream,
    parts: &mpsc::Sender<UnpackRequest>,
) -> Result<(), Problem> {
    let send = async |part| {
        let message = Some(part);
        parts.send(UnpackRequest { message }).await
    };
    let mut taken = send(Part::Target(target)).await;
    while taken.is_ok() {
        let Some(chunk) = body.next().await else {
            return Ok(());
        };
        let mut chunk = chunk.map_err(|error| unread(&error))?;
        while !chunk.is_empty() && taken.is_ok() {
            let piece = chunk.split_to(chunk.len().min(PIECE));
            taken = send(Part::Chunk(piece.to_vec())).await;
        }
    }
    // A call that takes no more has its answer ready.
    Ok(())
}

fn absolute(path: &str) -> Result<(), Problem> {
    match path.starts_with('/') {
        true => Ok(()),
        false => Err(Problem::invalid(format!(
            "the path '{path}' in the guest is not absolute"
        ))),
    }
}

fn is_tar(headers: &HeaderMap) -> Result<(), Problem> {
    let value = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    match value.is_some_and(|value| value.eq_ignore_ascii_case(TAR)) {
        true => Ok(()),
        false => Err(Problem::new(
            Kind::UnsupportedMediaType,
            format!("the body must be an archive, with Content-Type: {TAR}"),
        )),
    }
}
