//! The registry client: manifests, blobs and tags, from mirrors or the registry itself.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use reqwest::{
    Method, RequestBuilder, Response, StatusCode,
    header::{ACCEPT, CONTENT_RANGE, CONTENT_TYPE, LINK, RANGE},
};
use serde::Deserialize;
use url::Url;
use volant_spec::Digest;

use crate::{
    auth::Credentials,
    error::{RegistryError, Trouble},
    http::{Body, Limits, Transport, failure},
    manifest::{self, MAX_MANIFEST},
    reference::Reference,
    registries_conf::{Endpoint, Registries, RegistriesError},
    token::{self, Authorization, Challenge},
    verify::digest_of,
};

const MAX_TAGS: usize = 10_000;
const MAX_TAG_PAGES: usize = 100;

/// Speaks to registries. Cheap to clone; clones share connections and logins.
#[derive(Clone, Debug)]
pub struct Client {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    transport: Transport,
    credentials: Credentials,
    registries: Registries,
    /// What a host that may speak plain http was found to speak.
    schemes: Mutex<HashMap<String, &'static str>>,
    logins: Mutex<HashMap<(String, String), Authorization>>,
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct ClientError(#[from] RegistriesError);

/// A manifest or an index, as its bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PulledManifest {
    pub bytes: Vec<u8>,
    pub media_type: String,
    pub digest: Digest,
}

/// What a login is for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Access {
    Pull,
    Push,
}

impl Client {
    /// With the calling user's credentials and `registries.conf`.
    ///
    /// # Errors
    /// A `registries.conf` that is there cannot be read.
    pub fn from_env() -> Result<Self, ClientError> {
        let registries = Registries::from_env()?;
        Ok(Self::new(
            Credentials::from_env(),
            registries,
            Limits::default(),
        ))
    }

    #[must_use]
    pub fn new(credentials: Credentials, registries: Registries, limits: Limits) -> Self {
        Self {
            inner: Arc::new(Inner {
                transport: Transport::new(limits),
                credentials,
                registries,
                schemes: Mutex::default(),
                logins: Mutex::default(),
            }),
        }
    }

    #[must_use]
    pub fn limits(&self) -> Limits {
        self.inner.transport.limits
    }

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
                Err(error) if error.is_passing() => match self.inner.transport.pause(attempt, None)
                {
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

    pub(crate) fn endpoints(
        &self,
        reference: &Reference,
        act: &str,
        mirrors: bool,
    ) -> Result<Vec<Endpoint>, RegistryError> {
        self.inner
            .registries
            .endpoints(reference, mirrors)
            .map_err(|blocked| error(act, &plain_endpoint(reference), blocked.into()))
    }

    pub(crate) fn transport(&self) -> &Transport {
        &self.inner.transport
    }

    /// Makes a request for `path` below the repository, with what login it takes, and again when the trouble is
    /// passing. Answers with a success.
    pub(crate) async fn request(
        &self,
        endpoint: &Endpoint,
        access: Access,
        method: Method,
        path: &str,
        finish: &(dyn Fn(RequestBuilder) -> RequestBuilder + Sync),
    ) -> Result<Response, Trouble> {
        let base = self.base(endpoint).await?;
        let url = base
            .join(&format!("{}/{path}", endpoint.repository))
            .map_err(|_| Trouble::Protocol("the request makes no URL".into()))?;
        let response = self.answer(endpoint, access, method, &url, finish).await?;
        if response.status().is_success() {
            Ok(response)
        } else {
            Err(failure(response, endpoint, self.limits()).await)
        }
    }

    /// As [`Client::request`], for a whole URL of the endpoint, and whatever the status is.
    pub(crate) async fn answer(
        &self,
        endpoint: &Endpoint,
        access: Access,
        method: Method,
        url: &Url,
        finish: &(dyn Fn(RequestBuilder) -> RequestBuilder + Sync),
    ) -> Result<Response, Trouble> {
        let client = self.transport().client(endpoint)?;
        let mut attempt = 0;
        let mut asked_to_log_in = false;
        loop {
            attempt += 1;
            let request = finish(client.request(method.clone(), url.clone()));
            let login = self.login(endpoint, access);
            let request = login
                .iter()
                .fold(request, |request, login| login.apply(request));
            let sent = self.transport().send(request).await;
            let response = match token::passing(sent, self.transport(), attempt) {
                Ok(response) => response.map_err(|trouble| not_tls(trouble, endpoint))?,
                Err(pause) => {
                    tokio::time::sleep(pause).await;
                    continue;
                }
            };
            if response.status() != StatusCode::UNAUTHORIZED || asked_to_log_in {
                return Ok(response);
            }
            // A token may have grown old, too: then this gets a new one.
            asked_to_log_in = true;
            if !self.log_in(endpoint, access, &response, url).await? {
                return Ok(response);
            }
        }
    }

    pub(crate) fn login(&self, endpoint: &Endpoint, access: Access) -> Option<Authorization> {
        let key = (endpoint.host.clone(), scope(endpoint, access));
        locked(&self.inner.logins).get(&key).cloned()
    }

    /// Answers a 401. `false` when there is nothing to answer it with.
    async fn log_in(
        &self,
        endpoint: &Endpoint,
        access: Access,
        response: &Response,
        url: &Url,
    ) -> Result<bool, Trouble> {
        // What another host than the registry asks, to where a redirect led, is not answered.
        let Some(challenge) =
            Challenge::of(response.headers()).filter(|_| response.url().origin() == url.origin())
        else {
            return Ok(false);
        };
        let scope = scope(endpoint, access);
        let credential = self
            .inner
            .credentials
            .lookup(&endpoint.host, &endpoint.repository)
            .await?;
        let login = match (&challenge, credential) {
            (Challenge::Basic, Some(crate::auth::Credential::Password { user, password })) => {
                Authorization::Basic { user, password }
            }
            (Challenge::Basic, _) => return Ok(false),
            (Challenge::Bearer { realm, service }, credential) => {
                let at = (realm.as_str(), service.as_deref());
                let transport = self.transport();
                token::fetch(transport, endpoint, at, &scope, credential.as_ref(), url).await?
            }
        };
        let key = (endpoint.host.clone(), scope);
        let earlier = locked(&self.inner.logins).insert(key, login.clone());
        Ok(earlier.as_ref() != Some(&login))
    }

    /// `https://HOST/v2/`; plain http where that is allowed and spoken.
    pub(crate) async fn base(&self, endpoint: &Endpoint) -> Result<Url, Trouble> {
        let host = match endpoint.host.as_str() {
            "docker.io" => "registry-1.docker.io",
            host => host,
        };
        let url = |scheme: &str| {
            Url::parse(&format!("{scheme}://{host}/v2/"))
                .map_err(|_| Trouble::Protocol(format!("'{host}' makes no URL")))
        };
        if !endpoint.insecure && !endpoint.is_loopback() {
            return url("https");
        }
        let known = locked(&self.inner.schemes).get(host).copied();
        if let Some(scheme) = known {
            return url(scheme);
        }
        let client = self.transport().client(endpoint)?;
        let scheme = if endpoint.is_loopback() {
            let asked = self.transport().send(client.get(url("http")?)).await;
            match asked {
                Ok(response) if !wants_tls(&response) => "http",
                Ok(_) => "https",
                // Let the request itself say what is wrong.
                Err(_) => return url("http"),
            }
        } else {
            match self.transport().send(client.get(url("https")?)).await {
                Ok(_) => "https",
                Err(_) => "http",
            }
        };
        locked(&self.inner.schemes).insert(host.to_owned(), scheme);
        url(scheme)
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

/// A server that expects TLS answers a plain request with 400, if at all; a registry answers `/v2/` with 200 or 401.
fn wants_tls(response: &Response) -> bool {
    response.status() == StatusCode::BAD_REQUEST
}

fn not_tls(trouble: Trouble, endpoint: &Endpoint) -> Trouble {
    let Trouble::Request(source) = trouble else {
        return trouble;
    };
    let mut error: Option<&dyn std::error::Error> = Some(&source);
    while let Some(inner) = error {
        if inner.to_string().contains("corrupt message") {
            let host = endpoint.host.clone();
            return Trouble::NotTls { host, source };
        }
        error = inner.source();
    }
    Trouble::Request(source)
}

fn scope(endpoint: &Endpoint, access: Access) -> String {
    let actions = match access {
        Access::Pull => "pull",
        Access::Push => "pull,push",
    };
    format!("repository:{}:{actions}", endpoint.repository)
}

/// The query of the next page of tags in a `Link` header. The rest of that URL is known.
fn next_query(link: &str) -> Option<String> {
    let (target, parameters) = link.strip_prefix('<')?.split_once('>')?;
    let next = parameters.contains("rel=\"next\"") || parameters.contains("rel=next");
    let (_, query) = target.split_once('?')?;
    (next && query.len() < 2048 && !query.contains('#')).then(|| query.to_owned())
}

fn plain_endpoint(reference: &Reference) -> Endpoint {
    Endpoint {
        host: reference.registry().to_owned(),
        repository: reference.repository().to_owned(),
        insecure: false,
    }
}

pub(crate) fn error(act: &str, endpoint: &Endpoint, trouble: Trouble) -> RegistryError {
    RegistryError {
        act: act.to_owned(),
        registry: endpoint.host.clone(),
        repository: endpoint.repository.clone(),
        trouble: Box::new(trouble),
        mirrors: Vec::new(),
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind these locks is whole after each step.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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

/// Annotations, in the order in which they are written.
pub(crate) type Annotations = BTreeMap<String, String>;

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
