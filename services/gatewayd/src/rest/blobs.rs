//! `/api/v1/blobs`: artifacts on their way to the store, piece by piece; registryd checks and bounds them.

use axum::{
    Json,
    body::{Body, BodyDataStream},
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use futures_util::StreamExt;
use http::{HeaderName, StatusCode, header::CONTENT_LENGTH};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use volant_proto::registry::v1::{BlobHeader, UploadBlobRequest, upload_blob_request::Part};
use volant_spec::Digest;

use super::extract::{Digested, throw_away, unread};
use crate::{Gateway, Kind, Problem};

/// The most that one message carries, in bytes.
const PIECE: usize = 64 * 1024;
/// Messages that wait for registryd; then the client waits.
const AHEAD: usize = 4;
const BLOB_SIZE: HeaderName = HeaderName::from_static("x-blob-size");

/// An artifact that is in the store.
#[derive(Debug, Serialize)]
pub struct Uploaded {
    digest: String,
    size: u64,
}

pub async fn size(
    State(gateway): State<Gateway>,
    Digested(digest): Digested,
) -> Result<Response, Problem> {
    let size = gateway.registry().blob(&digest).await?;
    let headers = [(CONTENT_LENGTH, size), (BLOB_SIZE, size)];
    let headers = headers.map(|(name, size)| (name, size.to_string()));
    Ok((headers, Body::empty()).into_response())
}

pub async fn upload(
    State(gateway): State<Gateway>,
    Digested(digest): Digested,
    request: Request,
) -> Result<(StatusCode, Json<Uploaded>), Problem> {
    let mut body = request.into_body().into_data_stream();
    // Asked first: a registryd that has to start does so before the first byte, which cannot be sent twice.
    let answer = match gateway.registry().blob(&digest).await {
        Err(problem) if problem.kind == Kind::NoSuchBlob => {
            send(&gateway, &digest, &mut body).await
        }
        there => there,
    };
    throw_away(Body::from_stream(body)).await;
    let uploaded = Uploaded {
        digest: digest.to_string(),
        size: answer?,
    };
    Ok((StatusCode::CREATED, Json(uploaded)))
}

/// Sends the body on. One that breaks off is for registryd an upload of too few bytes: their digest gives it away.
async fn send(
    gateway: &Gateway,
    digest: &Digest,
    body: &mut BodyDataStream,
) -> Result<u64, Problem> {
    let (parts, sent) = mpsc::channel(AHEAD);
    let call = gateway.registry().upload(ReceiverStream::new(sent));
    let pump = pump(digest, body, parts);
    tokio::pin!(call, pump);
    tokio::select! {
        // registryd need not hear the end: it may have enough, or no room.
        answer = &mut call => answer,
        pumped = &mut pump => match pumped {
            // A call that takes no more has its answer ready.
            Ok(()) => call.await,
            Err(problem) => Err(problem),
        },
    }
}

async fn pump(
    digest: &Digest,
    body: &mut BodyDataStream,
    parts: mpsc::Sender<UploadBlobRequest>,
) -> Result<(), Problem> {
    let digest = digest.to_string();
    let header = Part::Header(BlobHeader { digest });
    let send = async |part| parts.send(UploadBlobRequest { part: Some(part) }).await;
    let mut taken = send(header).await;
    while taken.is_ok() {
        let Some(chunk) = body.next().await else {
            break;
        };
        let mut chunk = chunk.map_err(|error| unread(&error))?;
        while !chunk.is_empty() && taken.is_ok() {
            let piece = chunk.split_to(chunk.len().min(PIECE));
            taken = send(Part::Chunk(piece.to_vec())).await;
        }
    }
    Ok(())
}
