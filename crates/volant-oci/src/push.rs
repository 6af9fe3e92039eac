//! Sending to a registry: blobs that it does not have yet, and manifests.

use std::{
    io::{self, SeekFrom},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{Stream, stream};
use reqwest::{
    Method, Response, StatusCode,
    header::{CONTENT_LENGTH, CONTENT_TYPE, LOCATION},
};
use tokio::{
    fs::File,
    io::{AsyncReadExt as _, AsyncSeekExt as _},
};
use url::Url;
use volant_spec::Digest;

use crate::{
    client::{Access, Client, error},
    error::{RegistryError, Trouble},
    reference::Reference,
    registries_conf::Endpoint,
    verify::digest_of,
};

const CHUNK: usize = 128 * 1024;
/// A registry may look at a large blob as a whole before it says that it has it: so many windows may that take.
const WINDOWS_AFTER_SENDING: u32 = 10;

/// Where a blob that is to be pushed is.
#[derive(Clone, Debug)]
pub enum BlobSource {
    Bytes(Bytes),
    File { path: PathBuf, size: u64 },
}

impl BlobSource {
    #[must_use]
    pub fn size(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File { size, .. } => *size,
        }
    }

    /// The bytes as a request's body; `sent` counts those that were handed on.
    async fn body(&self, sent: Arc<AtomicU64>) -> io::Result<reqwest::Body> {
        Ok(match self {
            Self::Bytes(bytes) => {
                sent.store(bytes.len() as u64, Ordering::Relaxed);
                reqwest::Body::from(bytes.clone())
            }
            Self::File { path, size } => {
                let mut file = File::open(path).await?;
                file.seek(SeekFrom::Start(0)).await?;
                reqwest::Body::wrap_stream(chunks(file, *size, sent))
            }
        })
    }
}

fn chunks(file: File, size: u64, sent: Arc<AtomicU64>) -> impl Stream<Item = io::Result<Bytes>> {
    stream::try_unfold((file, size), move |(mut file, left)| {
        let sent = Arc::clone(&sent);
        async move {
            if left == 0 {
                return Ok(None);
            }
            let want = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
            let mut chunk = vec![0; want];
            let got = file.read(&mut chunk).await?;
            if got == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            chunk.truncate(got);
            sent.fetch_add(got as u64, Ordering::Relaxed);
            Ok(Some((Bytes::from(chunk), (file, left - got as u64))))
        }
    })
}

impl Client {
    /// Sends a blob if the repository does not have it; `false` if it has. `progress` is told of the bytes sent so
    /// far. Never through a mirror.
    ///
    /// # Errors
    /// The registry cannot be reached or refuses; the source cannot be read or has another digest.
    pub async fn push_blob(
        &self,
        reference: &Reference,
        digest: &Digest,
        source: &BlobSource,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<bool, RegistryError> {
        let act = format!("push blob {digest}");
        let endpoint = self.own_endpoint(reference, &act)?;
        let in_context = |trouble| error(&act, &endpoint, trouble);
        if self.has_blob(&endpoint, digest).await.map_err(in_context)? {
            return Ok(false);
        }
        let mut attempt = 0;
        loop {
            attempt += 1;
            let done = self.upload(&endpoint, digest, source, progress).await;
            match done {
                Err(trouble) if trouble.is_passing() => {
                    match self.transport().pause(attempt, None) {
                        Some(pause) => tokio::time::sleep(pause).await,
                        None => return Err(in_context(trouble)),
                    }
                }
                done => return done.map(|()| true).map_err(in_context),
            }
        }
    }

    /// Puts a manifest or an index under the reference's tag, or under its digest alone if it has no tag; answers with
    /// the digest.
    ///
    /// # Errors
    /// As [`Client::push_blob`].
    pub async fn push_manifest(
        &self,
        reference: &Reference,
        bytes: Vec<u8>,
        media_type: &str,
    ) -> Result<Digest, RegistryError> {
        let digest = digest_of(&bytes);
        let identifier = match reference.tag() {
            Some(tag) => tag.to_owned(),
            None => digest.to_string(),
        };
        let act = format!("push manifest {identifier}");
        let endpoint = self.own_endpoint(reference, &act)?;
        let bytes = Bytes::from(bytes);
        let path = format!("manifests/{identifier}");
        let put = |request: reqwest::RequestBuilder| {
            request.header(CONTENT_TYPE, media_type).body(bytes.clone())
        };
        let sent = self
            .request(&endpoint, Access::Push, Method::PUT, &path, &put)
            .await;
        sent.and_then(|response| same_digest(&response, digest))
            .map_err(|trouble| error(&act, &endpoint, trouble))?;
        Ok(digest)
    }

    fn own_endpoint(&self, reference: &Reference, act: &str) -> Result<Endpoint, RegistryError> {
        let mut endpoints = self.endpoints(reference, act, false)?;
        Ok(endpoints.pop().expect("a reference has its own registry"))
    }

    async fn has_blob(&self, endpoint: &Endpoint, digest: &Digest) -> Result<bool, Trouble> {
        let path = format!("blobs/{digest}");
        let asked = self
            .request(endpoint, Access::Push, Method::HEAD, &path, &|request| {
                request
            })
            .await;
        match asked {
            Ok(_) => Ok(true),
            Err(Trouble::NotFound { .. }) => Ok(false),
            Err(trouble) => Err(trouble),
        }
    }

    async fn upload(
        &self,
        endpoint: &Endpoint,
        digest: &Digest,
        source: &BlobSource,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<(), Trouble> {
        let begun = self
            .request(
                endpoint,
                Access::Push,
                Method::POST,
                "blobs/uploads/",
                &|request| request.header(CONTENT_LENGTH, 0),
            )
            .await?;
        let mut url = upload_url(&begun)?;
        url.query_pairs_mut()
            .append_pair("digest", &digest.to_string());

        let sent = Arc::new(AtomicU64::new(0));
        let body = source
            .body(Arc::clone(&sent))
            .await
            .map_err(Trouble::Source)?;
        let mut request = self
            .transport()
            .client(endpoint)?
            .put(url.clone())
            .header(CONTENT_TYPE, "application/octet-stream")
            .header(CONTENT_LENGTH, source.size())
            .body(body);
        // A storage elsewhere has its proof in the URL; the login is the registry's alone.
        if url.origin() == self.base(endpoint).await?.origin()
            && let Some(login) = self.login(endpoint, Access::Push)
        {
            request = login.apply(request);
        }
        let response = self
            .watched(request, source.size(), &sent, progress)
            .await?;
        if response.status() != StatusCode::CREATED && response.status() != StatusCode::NO_CONTENT {
            return Err(self.failure(response, endpoint).await);
        }
        same_digest(&response, *digest)
    }

    /// Sends, and gives up when nothing moves for a window.
    async fn watched(
        &self,
        request: reqwest::RequestBuilder,
        size: u64,
        sent: &AtomicU64,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<Response, Trouble> {
        const TICK: Duration = Duration::from_millis(100);
        let window = self.limits().window;
        let sending = request.send();
        tokio::pin!(sending);
        let mut seen = 0;
        let mut since = tokio::time::Instant::now();
        loop {
            if let Ok(answer) = tokio::time::timeout(TICK, &mut sending).await {
                progress(sent.load(Ordering::Relaxed));
                return answer.map_err(|error| Trouble::Request(error.without_url()));
            }
            let now = sent.load(Ordering::Relaxed);
            if now != seen {
                seen = now;
                since = tokio::time::Instant::now();
                progress(now);
            }
            let patience = if now >= size {
                window * WINDOWS_AFTER_SENDING
            } else {
                window
            };
            if since.elapsed() > patience {
                return Err(Trouble::Silent(patience));
            }
        }
    }
}

/// Where the registry wants the blob.
fn upload_url(begun: &Response) -> Result<Url, Trouble> {
    let odd = || Trouble::Protocol("it gives no place for an upload".into());
    let location = begun.headers().get(LOCATION).ok_or_else(odd)?;
    let from = begun.url();
    let url = from
        .join(location.to_str().map_err(|_| odd())?)
        .map_err(|_| odd())?;
    match (from.scheme(), url.scheme()) {
        (_, "https") | ("http", "http") => Ok(url),
        _ => Err(Trouble::Protocol(
            "it wants the upload sent in the clear".into(),
        )),
    }
}

/// A registry that tells a digest must tell this one.
fn same_digest(response: &Response, expected: Digest) -> Result<(), Trouble> {
    let told = response.headers().get("docker-content-digest");
    match told.and_then(|told| told.to_str().ok()?.parse::<Digest>().ok()) {
        Some(got) if got != expected => Err(Trouble::Digest { got, expected }),
        _ => Ok(()),
    }
}
