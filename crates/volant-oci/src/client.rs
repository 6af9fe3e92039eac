//! The registry client: requests with the login they take, over https or, where that is allowed, plain http.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use reqwest::{Method, RequestBuilder, Response, StatusCode};
use url::Url;

use crate::{
    auth::Credentials,
    error::{RegistryError, Trouble},
    http::{Limits, Transport, failure},
    reference::Reference,
    registries_conf::{Endpoint, Registries, RegistriesError},
    token::{self, Authorization, Challenge},
};

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
    /// The helper that should have had a host's login, and is not installed.
    missing_helpers: Mutex<HashMap<String, String>>,
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct ClientError(#[from] RegistriesError);

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
                missing_helpers: Mutex::default(),
            }),
        }
    }

    #[must_use]
    pub fn limits(&self) -> Limits {
        self.inner.transport.limits
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
            Err(self.failure(response, endpoint).await)
        }
    }

    /// What an answer that is no success means.
    pub(crate) async fn failure(&self, response: Response, endpoint: &Endpoint) -> Trouble {
        let trouble = failure(response, endpoint, self.limits()).await;
        self.explained(trouble, endpoint)
    }

    /// With the reason why there was no login, if a helper was missing.
    fn explained(&self, mut trouble: Trouble, endpoint: &Endpoint) -> Trouble {
        if let Trouble::Unauthorized { detail, .. } = &mut trouble
            && let Some(name) = locked(&self.inner.missing_helpers).get(&endpoint.host)
        {
            detail.push_str("; the credential helper docker-credential-");
            detail.push_str(name);
            detail.push_str(" is not installed");
        }
        trouble
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
        let found = self
            .inner
            .credentials
            .lookup(&endpoint.host, &endpoint.repository)
            .await?;
        if let Some(name) = found.missing_helper {
            locked(&self.inner.missing_helpers).insert(endpoint.host.clone(), name);
        }
        let login = match (&challenge, found.credential) {
            (Challenge::Basic, Some(crate::auth::Credential::Password { user, password })) => {
                Authorization::Basic { user, password }
            }
            (Challenge::Basic, _) => return Ok(false),
            (Challenge::Bearer { realm, service }, credential) => {
                let at = (realm.as_str(), service.as_deref());
                let transport = self.transport();
                token::fetch(transport, endpoint, at, &scope, credential.as_ref(), url)
                    .await
                    .map_err(|trouble| self.explained(trouble, endpoint))?
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

pub(crate) fn plain_endpoint(reference: &Reference) -> Endpoint {
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

/// Annotations, in the order in which they are written.
pub(crate) type Annotations = BTreeMap<String, String>;
