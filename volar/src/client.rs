//! The REST API over its Unix socket: one method a call, problems as errors.

use std::{path::PathBuf, time::Duration};

use reqwest::{Body, Method, RequestBuilder, Response, StatusCode, header};
use serde::{Deserialize, Serialize};
use serde_json::{Value, value::RawValue};
use volant_spec::{Digest, Name, config::Vmm};

use crate::{
    args::Host,
    failure::{Failure, Problem},
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
    socket: PathBuf,
}

/// A VM to create. What is absent is the plugin's to say.
#[derive(Debug, Serialize)]
pub struct NewVm {
    pub name: Name,
    pub plugin: Name,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_cores: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vmm: Option<Vmm>,
    pub start: bool,
    pub enable: bool,
}

/// What can be asked of a VM that there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Start,
    Stop,
    Restart,
    Enable,
    Disable,
}

/// Where the API gets a manifest.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// As its author wrote it.
    Manifest(Box<RawValue>),
    ManifestUrl(String),
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
enum Line {
    Progress(Progress),
    Plugin(Value),
    Problem(Problem),
}

impl Client {
    pub fn new(host: &Host) -> Result<Self, Failure> {
        let http = reqwest::Client::builder()
            .unix_socket(host.socket.as_path())
            .user_agent(concat!("volar/", env!("CARGO_PKG_VERSION")))
            // Nothing is encrypted on the socket, and a host without certificates is fine.
            .tls_certs_only([])
            .build()
            .map_err(Failure::Broken)?;
        Ok(Self {
            http,
            socket: host.socket.clone(),
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

    pub async fn plugin(&self, name: &Name) -> Result<Value, Failure> {
        self.json(self.get(&format!("/plugins/{name}"))).await
    }

    pub async fn remove_plugin(&self, name: &Name) -> Result<(), Failure> {
        self.send(
            self.request(Method::DELETE, &format!("/plugins/{name}"))
                .timeout(LOOK),
        )
        .await?;
        Ok(())
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
        source: &Source,
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<Value, Failure> {
        let request = self
            .request(Method::POST, "/plugins")
            .header(header::ACCEPT, "application/x-ndjson")
            .json(source);
        let mut response = self.send(request).await?;
        let mut received = Vec::new();
        loop {
            while let Some(end) = received.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = received.drain(..=end).collect();
                match serde_json::from_slice(&line).map_err(|error| not_understood(&error))? {
                    Line::Progress(step) => progress(&step),
                    Line::Plugin(plugin) => return Ok(plugin),
                    Line::Problem(problem) => return Err(problem.into()),
                }
            }
            if received.len() > MAX_LINE {
                return Err(Failure::Answer("a line without an end".to_owned()));
            }
            match response.chunk().await.map_err(|error| self.failed(error))? {
                Some(chunk) => received.extend_from_slice(&chunk),
                None => {
                    return Err(Failure::Answer(
                        "it did not say how the install ended".to_owned(),
                    ));
                }
            }
        }
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

    fn failed(&self, error: reqwest::Error) -> Failure {
        Failure::of_http(error, &self.socket)
    }
}

fn not_understood(error: &serde_json::Error) -> Failure {
    Failure::Answer(error.to_string())
}
