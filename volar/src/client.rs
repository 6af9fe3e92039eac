//! The REST API over its Unix socket: one method a call, problems as errors.

mod running;
mod socket;

use std::time::Duration;

use reqwest::{Body, Method, RequestBuilder, Response, StatusCode, header};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use volant_spec::{Digest, Name, PluginRef, config::Vmm};

pub use running::{Event, LogQuery};
pub use socket::{Receiver, Said, Sender, text};

use crate::{
    failure::{Failure, Problem},
    host::Host,
    tunnel::Tunnel,
};

/// The host name in a URL means nothing on a Unix socket.
const BASE: &str = "http://volant/api/v1";
/// For what only looks.
const LOOK: Duration = Duration::from_secs(60);
/// For what waits for a guest; the API has its own, shorter deadlines.
const WAIT: Duration = Duration::from_secs(30 * 60);
/// No line of progress is longer: the last one holds a plugin with its manifest.
const MAX_LINE: usize = 8 * 1024 * 1024;

/// Knows where the API is.
#[derive(Debug)]
pub struct Client {
    http: reqwest::Client,
    host: Host,
    tunnel: Option<Tunnel>,
}

/// A VM to create. What is absent is the plugin's to say.
#[derive(Debug, Serialize)]
pub struct NewVm {
    pub name: Name,
    pub plugin: PluginRef,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_cores: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vmm: Option<Vmm>,
    pub start: bool,
    pub enable: bool,
    #[serde(skip_serializing_if = "Value::is_null")]
    pub config: Value,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<NewSecret>,
}

/// A secret of a VM to create.
#[derive(Serialize)]
pub struct NewSecret {
    pub name: String,
    pub value_base64: String,
}

impl std::fmt::Debug for NewSecret {
    /// Without its value.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("NewSecret").field(&self.name).finish()
    }
}

/// Devices of the host that a VM would have.
#[derive(Debug, Serialize)]
pub struct Wish {
    pub pci: Vec<String>,
    pub allowlist: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vm: Option<Name>,
}

/// What can be asked of a VM that there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Start,
    Stop,
    Restart,
    Enable,
    Disable,
    Pause,
    Resume,
    Reload,
}

/// A plugin to install.
#[derive(Debug, Serialize)]
pub struct NewPlugin {
    #[serde(flatten)]
    pub source: Source,
    /// Of a manifest that is sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub allow_downgrade: bool,
}

/// Where the API gets a plugin.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// As its author wrote it, every byte.
    Manifest(String),
    ManifestUrl(String),
    OciReference(String),
    Name(PluginRef),
}

/// How far an artifact is.
#[derive(Clone, Debug, Deserialize)]
pub struct Progress {
    pub artifact: String,
    pub done_bytes: u64,
    /// 0 when not known.
    pub total_bytes: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum InstallLine {
    Progress(Progress),
    Plugin(Value),
    Problem(Problem),
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum VerifyLine {
    Checked(Value),
    End(serde::de::IgnoredAny),
    Problem(Problem),
}

impl Client {
    /// Another machine's API is reached through a Unix socket of ours.
    pub fn new(host: &Host) -> Result<Self, Failure> {
        let tunnel = match host {
            Host::Unix(_) => None,
            Host::Ssh(ssh) => Some(Tunnel::open(ssh).map_err(|source| Failure::Io {
                act: format!("cannot open a socket for {host}"),
                source,
            })?),
        };
        let socket = match (host, &tunnel) {
            (Host::Unix(path), _) => path.clone(),
            (Host::Ssh(_), Some(tunnel)) => tunnel.socket(),
            (Host::Ssh(_), None) => std::path::PathBuf::new(),
        };
        let http = reqwest::Client::builder()
            .unix_socket(socket.as_path())
            .user_agent(concat!("volar/", env!("CARGO_PKG_VERSION")))
            // Nothing is encrypted on the socket, and a host without certificates is fine.
            .tls_certs_only([])
            .build()
            .map_err(Failure::Broken)?;
        Ok(Self {
            http,
            host: host.clone(),
            tunnel,
        })
    }

    pub async fn vms(&self) -> Result<Value, Failure> {
        self.json(self.get("/vms")).await
    }

    pub async fn vm(&self, name: &Name) -> Result<Value, Failure> {
        self.json(self.get(&format!("/vms/{name}"))).await
    }

    /// Comes back when the guest is ready, or once it is clear that it will not be.
    pub async fn create_vm(&self, vm: &NewVm) -> Result<Value, Failure> {
        self.json(self.request(Method::POST, "/vms").timeout(WAIT).json(vm))
            .await
    }

    pub async fn change_vm(&self, name: &Name, change: Change) -> Result<Value, Failure> {
        let verb = match change {
            Change::Start => "start",
            Change::Stop => "stop",
            Change::Restart => "restart",
            Change::Enable => "enable",
            Change::Disable => "disable",
            Change::Pause => "pause",
            Change::Resume => "resume",
            Change::Reload => "reload",
        };
        self.json(
            self.request(Method::POST, &format!("/vms/{name}/{verb}"))
                .timeout(WAIT),
        )
        .await
    }

    pub async fn delete_vm(&self, name: &Name) -> Result<(), Failure> {
        self.send(
            self.request(Method::DELETE, &format!("/vms/{name}"))
                .timeout(WAIT),
        )
        .await?;
        Ok(())
    }

    pub async fn plugins(&self) -> Result<Value, Failure> {
        self.json(self.get("/plugins")).await
    }

    pub async fn plugin(&self, plugin: &PluginRef) -> Result<Value, Failure> {
        self.json(self.get(&format!("/plugins/{plugin}"))).await
    }

    /// The manifest's own bytes.
    pub async fn manifest(&self, plugin: &PluginRef) -> Result<Vec<u8>, Failure> {
        let request = self.get(&format!("/plugins/{plugin}/manifest"));
        let response = self.send(request).await?;
        let bytes = response.bytes().await.map_err(|error| self.failed(error))?;
        Ok(bytes.into())
    }

    /// Gives the versions that it was about.
    pub async fn enable_plugin(&self, plugin: &PluginRef, enabled: bool) -> Result<Value, Failure> {
        let verb = if enabled { "enable" } else { "disable" };
        let request = self.request(Method::POST, &format!("/plugins/{plugin}/{verb}"));
        self.json(request.timeout(LOOK)).await
    }

    pub async fn remove_plugin(&self, plugin: &PluginRef, all: bool) -> Result<(), Failure> {
        let query = if all { "?all_versions=true" } else { "" };
        let request = self.request(Method::DELETE, &format!("/plugins/{plugin}{query}"));
        self.send(request.timeout(LOOK)).await?;
        Ok(())
    }

    /// Has a plugin, or all of them, read again; tells each part as it is found.
    pub async fn verify(
        &self,
        plugin: Option<&PluginRef>,
        found: &mut dyn FnMut(Value) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let path = match plugin {
            Some(plugin) => format!("/plugins/{plugin}/verify"),
            None => "/registry/verify".to_owned(),
        };
        let mut lines = self.lines(self.request(Method::POST, &path)).await?;
        loop {
            match lines.next().await? {
                Some(VerifyLine::Checked(part)) => found(part)?,
                Some(VerifyLine::End(_)) => return Ok(()),
                Some(VerifyLine::Problem(problem)) => return Err(problem.into()),
                None => return Err(unfinished("verification")),
            }
        }
    }

    pub async fn collect_garbage(&self) -> Result<Value, Failure> {
        let request = self.request(Method::POST, "/registry/gc").timeout(WAIT);
        self.json(request).await
    }

    pub async fn search(&self, text: &str) -> Result<Value, Failure> {
        let request = self.get("/index/search").query(&[("q", text)]);
        self.json(request).await
    }

    pub async fn devices(&self) -> Result<Value, Failure> {
        self.json(self.get("/devices")).await
    }

    pub async fn device(&self, address: &str) -> Result<Value, Failure> {
        // What is no address has no place in a path.
        let is_plain = |c: char| c.is_ascii_alphanumeric() || c == ':' || c == '.';
        if !address.contains(is_plain) || !address.chars().all(is_plain) {
            return Err(Failure::Usage(format!(
                "'{}' is no PCI address as lspci -D writes it: 0000:01:00.0",
                address.escape_debug()
            )));
        }
        self.json(self.get(&format!("/devices/{address}"))).await
    }

    /// What speaks against it.
    pub async fn validate_devices(&self, wish: &Wish) -> Result<Value, Failure> {
        let request = self.request(Method::POST, "/devices/validate").json(wish);
        self.json(request.timeout(LOOK)).await
    }

    pub async fn trust(&self) -> Result<Value, Failure> {
        self.json(self.get("/trust")).await
    }

    /// Whether the store has an artifact already.
    pub async fn has_blob(&self, digest: &Digest) -> Result<bool, Failure> {
        let request = self
            .request(Method::HEAD, &format!("/blobs/{digest}"))
            .timeout(LOOK);
        let response = request.send().await.map_err(|error| self.failed(error))?;
        match response.status() {
            StatusCode::NOT_FOUND => Ok(false),
            status if status.is_success() => Ok(true),
            status => Err(Failure::Answer(format!(
                "status {status} when asked for an artifact"
            ))),
        }
    }

    pub async fn put_blob(&self, digest: &Digest, size: u64, body: Body) -> Result<(), Failure> {
        let request = self
            .request(Method::PUT, &format!("/blobs/{digest}"))
            .header(header::CONTENT_LENGTH, size)
            .header(header::CONTENT_TYPE, "application/octet-stream")
            .body(body);
        self.send(request).await?;
        Ok(())
    }

    /// Installs a plugin; gives it once it is there.
    pub async fn install(
        &self,
        plugin: &NewPlugin,
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<Value, Failure> {
        let request = self.request(Method::POST, "/plugins").json(plugin);
        let mut lines = self.lines(request).await?;
        loop {
            match lines.next().await? {
                Some(InstallLine::Progress(step)) => progress(&step),
                Some(InstallLine::Plugin(plugin)) => return Ok(plugin),
                Some(InstallLine::Problem(problem)) => return Err(problem.into()),
                None => return Err(unfinished("install")),
            }
        }
    }

    /// Asks for an answer line by line.
    async fn lines(&self, request: RequestBuilder) -> Result<Lines<'_>, Failure> {
        let request = request.header(header::ACCEPT, "application/x-ndjson");
        Ok(Lines {
            client: self,
            response: self.send(request).await?,
            received: Vec::new(),
        })
    }

    fn get(&self, path: &str) -> RequestBuilder {
        self.request(Method::GET, path).timeout(LOOK)
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{BASE}{path}"))
    }

    async fn json(&self, request: RequestBuilder) -> Result<Value, Failure> {
        let response = self.send(request).await?;
        let bytes = response.bytes().await.map_err(|error| self.failed(error))?;
        serde_json::from_slice(&bytes).map_err(|error| not_understood(&error))
    }

    /// A response that is no success is a problem.
    async fn send(&self, request: RequestBuilder) -> Result<Response, Failure> {
        let response = request.send().await.map_err(|error| self.failed(error))?;
        self.accepted(response).await
    }

    async fn accepted(&self, response: Response) -> Result<Response, Failure> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let bytes = response.bytes().await.map_err(|error| self.failed(error))?;
        match serde_json::from_slice::<Problem>(&bytes) {
            Ok(problem) => Err(problem.into()),
            Err(_) => Err(Failure::Answer(format!(
                "status {status}, and no problem with it"
            ))),
        }
    }

    /// An error of a request, or of the body that came.
    pub fn failed(&self, error: reqwest::Error) -> Failure {
        if let Some(said) = self.tunnel.as_ref().and_then(Tunnel::last_words) {
            let host = self.host.to_string();
            return Failure::Ssh { host, said };
        }
        Failure::of_http(error, self.host.to_string())
    }
}

/// An answer that comes line by line.
pub struct Lines<'a> {
    client: &'a Client,
    response: Response,
    received: Vec<u8>,
}

impl Lines<'_> {
    /// The next line; `None` after the last one.
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, Failure> {
        let line = self.line().await?;
        line.map(|line| serde_json::from_slice(&line).map_err(|error| not_understood(&error)))
            .transpose()
    }

    /// The next line as it is, with its end.
    pub async fn line(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        let mut searched = 0;
        loop {
            let found = self.received[searched..]
                .iter()
                .position(|byte| *byte == b'\n');
            if let Some(end) = found {
                return Ok(Some(self.received.drain(..=searched + end).collect()));
            }
            searched = self.received.len();
            if searched > MAX_LINE {
                return Err(Failure::Answer("a line without an end".to_owned()));
            }
            let chunk = self.response.chunk().await;
            match chunk.map_err(|error| self.client.failed(error))? {
                Some(chunk) => self.received.extend_from_slice(&chunk),
                None => return Ok(None),
            }
        }
    }
}

fn unfinished(what: &str) -> Failure {
    Failure::Answer(format!("it did not say how the {what} ended"))
}

fn not_understood(error: &serde_json::Error) -> Failure {
    Failure::Answer(error.to_string())
}
