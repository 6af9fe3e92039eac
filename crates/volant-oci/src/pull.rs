//! What is had from a registry: manifests, blobs and tags, from a mirror or the registry itself.

use bytes::Bytes;
use reqwest::{
    Method, RequestBuilder, Response, StatusCode,
    header::{ACCEPT, CONTENT_RANGE, CONTENT_TYPE, LINK, RANGE},
};
use serde::Deserialize;
use volant_spec::Digest;

use crate::{
    client::{Access, Client, error, plain_endpoint},
    error::{RegistryError, Trouble},
    http::Body,
    manifest::{self, MAX_MANIFEST},
    reference::Reference,
    registries_conf::Endpoint,
    verify::digest_of,
};

const MAX_TAGS: usize = 10_000;
const MAX_TAG_PAGES: usize = 100;

/// A manifest or an index, as its bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PulledManifest {
    pub bytes: Vec<u8>,
    pub media_type: String,
    pub digest: Digest,
}

impl Client {
    /// The manifest or index that `reference` names, of at most 4 MiB. Its digest is that of `reference` if that has
    /// one.
    ///
    /// # Errors
    /// The registry cannot be reached, refuses, has no such thing, or gives something else.
    pub async fn manifest(&self, reference: &Reference) -> Result<PulledManifest, RegistryError> {
        let act = format!("pull manifest {}", reference.identifier());
        let mut tries = self.tries(reference, act)?;
        while let Some(endpoint) = tries.next() {
            match self.manifest_from(&endpoint, reference).await {
                Ok(manifest) => return Ok(manifest),
                Err(trouble) => tries.failed(&endpoint, trouble),
            }
        }
        Err(tries.error())
    }

    async fn manifest_from(
        &self,
        endpoint: &Endpoint,
        reference: &Reference,
    ) -> Result<PulledManifest, Trouble> {
        let path = format!("manifests/{}", reference.identifier());
        let accept = |request: RequestBuilder| request.header(ACCEPT, manifest::ACCEPTED);
        let response = self
            .request(endpoint, Access::Pull, Method::GET, &path, &accept)
            .await?;
        let header = |name: &str| {
            let value = response.headers().get(name)?.to_str().ok()?;
            Some(value.to_owned())
        };
        let told = header("docker-content-digest");
        let content_type = header(CONTENT_TYPE.as_str());
        let bytes = Body::new(response, self.limits())
            .whole(MAX_MANIFEST)
            .await?;
        let digest = digest_of(&bytes);
        let expected = reference
            .digest()
            .or_else(|| told?.parse().ok())
            .unwrap_or(digest);
        if digest != expected {
            let got = digest;
            return Err(Trouble::Digest { got, expected });
        }
        let media_type = manifest::media_type(&bytes)
            .or(content_type)
            .unwrap_or_else(|| manifest::OCI_MANIFEST.to_owned());
        Ok(PulledManifest {
            bytes,
            media_type,
            digest,
        })
    }

    /// The bytes of a blob of `size` bytes from `offset` on. Their digest is for the caller to check, with a
    /// [`crate::Hasher`]; that there are exactly as many as were announced is checked here.
    ///
    /// # Errors
    /// As [`Client::manifest`].
    pub async fn blob(
        &self,
        reference: &Reference,
        digest: &Digest,
        size: u64,
        offset: u64,
    ) -> Result<BlobStream, RegistryError> {
        let act = format!("pull blob {digest}");
        let mut tries = self.tries(reference, act.clone())?;
        while let Some(endpoint) = tries.next() {
            match self.blob_from(&endpoint, digest, offset).await {
                Ok((response, skip)) => {
                    return Ok(BlobStream {
                        body: Body::new(response, self.limits()),
                        skip,
                        at: offset,
                        size,
                        context: (act, endpoint),
                    });
                }
                Err(trouble) => tries.failed(&endpoint, trouble),
            }
        }
        Err(tries.error())
    }

    /// The answer, and how many of its bytes come before those that were asked for.
    async fn blob_from(
        &self,
        endpoint: &Endpoint,
        digest: &Digest,
        offset: u64,
    ) -> Result<(Response, u64), Trouble> {
        let path = format!("blobs/{digest}");
        let from_offset = |request: RequestBuilder| match offset {
            0 => request,
            offset => request.header(RANGE, format!("bytes={offset}-")),
        };
        let response = self
            .request(endpoint, Access::Pull, Method::GET, &path, &from_offset)
            .await?;
        if response.status() != StatusCode::PARTIAL_CONTENT {
            return Ok((response, offset));
        }
        let from = format!("bytes {offset}-");
        let range = response.headers().get(CONTENT_RANGE);
        if range.is_some_and(|range| range.as_bytes().starts_with(from.as_bytes())) {
            Ok((response, 0))
        } else {
            let odd = "another range than the one that was asked for";
            Err(Trouble::Protocol(odd.into()))
        }
    }

    /// The whole of a small blob, checked against its digest.
    ///
    /// # Errors
    /// As [`Client::manifest`]; or it is larger than `limit`.
    pub async fn small_blob(
        &self,
        reference: &Reference,
        digest: &Digest,
        size: u64,
        limit: usize,
    ) -> Result<Vec<u8>, RegistryError> {
        if size > limit as u64 {
            let limit = limit as u64;
            let act = format!("pull blob {digest}");
            let endpoint = plain_endpoint(reference);
            return Err(error(&act, &endpoint, Trouble::TooLarge { limit }));
        }
        let mut attempt = 0;
        loop {
            attempt += 1;
            match self.try_small_blob(reference, digest, size).await {
                Err(error) if error.is_passing() => match self.transport().pause(attempt, None) {
                    Some(pause) => tokio::time::sleep(pause).await,
                    None => return Err(error),
                },
                done => return done,
            }
        }
    }

    async fn try_small_blob(
        &self,
        reference: &Reference,
        digest: &Digest,
        size: u64,
    ) -> Result<Vec<u8>, RegistryError> {
        let mut stream = self.blob(reference, digest, size, 0).await?;
        let mut all = Vec::new();
        while let Some(chunk) = stream.chunk().await? {
            all.extend_from_slice(&chunk);
        }
        let got = digest_of(&all);
        if got != *digest {
            let expected = *digest;
            return Err(stream.error(Trouble::Digest { got, expected }));
        }
        Ok(all)
    }

    /// The tags of the repository, as the registry orders them; at most 10,000.
    ///
    /// # Errors
    /// As [`Client::manifest`].
    pub async fn tags(&self, reference: &Reference) -> Result<Vec<String>, RegistryError> {
        let mut tries = self.tries(reference, "list the tags".to_owned())?;
        while let Some(endpoint) = tries.next() {
            match self.tags_from(&endpoint).await {
                Ok(tags) => return Ok(tags),
                Err(trouble) => tries.failed(&endpoint, trouble),
            }
        }
        Err(tries.error())
    }

    async fn tags_from(&self, endpoint: &Endpoint) -> Result<Vec<String>, Trouble> {
        #[derive(Deserialize)]
        struct Page {
            tags: Option<Vec<String>>,
        }
        let mut tags = Vec::new();
        let mut query = "n=1000".to_owned();
        for _ in 0..MAX_TAG_PAGES {
            let path = format!("tags/list?{query}");
            let response = self
                .request(endpoint, Access::Pull, Method::GET, &path, &|request| {
                    request
                })
                .await?;
            let link = response.headers().get(LINK);
            let next = link.and_then(|link| next_query(link.to_str().ok()?));
            let body = Body::new(response, self.limits())
                .whole(MAX_MANIFEST)
                .await?;
            let page: Page = serde_json::from_slice(&body)
                .map_err(|_| Trouble::Protocol("its list of tags is none".into()))?;
            tags.extend(page.tags.unwrap_or_default());
            match next {
                Some(next) if tags.len() < MAX_TAGS => query = next,
                _ => break,
            }
        }
        tags.truncate(MAX_TAGS);
        Ok(tags)
    }

    /// The endpoints of a pull, to be asked in turn.
    fn tries(&self, reference: &Reference, act: String) -> Result<Tries, RegistryError> {
        let mut endpoints = self.endpoints(reference, &act, true)?;
        endpoints.reverse();
        Ok(Tries {
            act,
            endpoints,
            failed: Vec::new(),
        })
    }
}

/// The mirrors and the registry, each until one gives what is wanted.
struct Tries {
    act: String,
    /// Those not asked yet, the next one last.
    endpoints: Vec<Endpoint>,
    failed: Vec<RegistryError>,
}

impl Tries {
    fn next(&mut self) -> Option<Endpoint> {
        self.endpoints.pop()
    }

    fn failed(&mut self, endpoint: &Endpoint, trouble: Trouble) {
        self.failed.push(error(&self.act, endpoint, trouble));
    }

    /// The registry's own trouble, with what the mirrors said.
    fn error(mut self) -> RegistryError {
        let mut last = self.failed.pop().expect("a reference has its own registry");
        last.mirrors = self.failed.iter().map(RegistryError::line).collect();
        last
    }
}

/// The query of the next page of tags in a `Link` header. The rest of that URL is known.
fn next_query(link: &str) -> Option<String> {
    let (target, parameters) = link.strip_prefix('<')?.split_once('>')?;
    let next = parameters.contains("rel=\"next\"") || parameters.contains("rel=next");
    let (_, query) = target.split_once('?')?;
    (next && query.len() < 2048 && !query.contains('#')).then(|| query.to_owned())
}

/// The bytes of a blob, as they come.
#[derive(Debug)]
pub struct BlobStream {
    body: Body,
    /// What is still to be dropped, as the server does not know ranges.
    skip: u64,
    at: u64,
    size: u64,
    context: (String, Endpoint),
}

impl BlobStream {
    /// The next bytes; `None` when all that were announced have come.
    ///
    /// # Errors
    /// The connection broke, the server is too slow, or it has fewer or more bytes than it should.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, RegistryError> {
        loop {
            let chunk = self.body.chunk().await;
            let Some(mut chunk) = chunk.map_err(|trouble| self.error(trouble))? else {
                if self.at == self.size {
                    return Ok(None);
                }
                let (got, size) = (self.at, self.size);
                return Err(self.error(Trouble::Short { got, size }));
            };
            let dropped = self.skip.min(chunk.len() as u64);
            self.skip -= dropped;
            let _ = chunk.split_to(usize::try_from(dropped).expect("at most a chunk's length"));
            self.at = self.at.saturating_add(chunk.len() as u64);
            if self.at > self.size {
                let limit = self.size;
                return Err(self.error(Trouble::TooLarge { limit }));
            }
            if !chunk.is_empty() {
                return Ok(Some(chunk));
            }
        }
    }

    pub(crate) fn error(&self, trouble: Trouble) -> RegistryError {
        error(&self.context.0, &self.context.1, trouble)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_found_in_a_link() {
        let cases = [
            (
                r#"</v2/a/tags/list?n=2&last=b>; rel="next""#,
                Some("n=2&last=b"),
            ),
            (
                "<https://r.example/v2/a/tags/list?last=b>; rel=next",
                Some("last=b"),
            ),
            (r#"</v2/a/tags/list?n=2>; rel="prev""#, None),
            ("</v2/a/tags/list>; rel=\"next\"", None),
            ("nonsense", None),
        ];
        for (link, expected) in cases {
            assert_eq!(next_query(link).as_deref(), expected, "{link}");
        }
    }
}
