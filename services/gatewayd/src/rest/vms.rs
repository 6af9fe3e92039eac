//! `/api/v1/vms`

use std::fmt;

use axum::{
    Json,
    extract::{Request, State},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use http::StatusCode;
use serde::Deserialize;
use volant_proto::registry::v1::{CreateVmRequest, SecretValue};
use volant_spec::{VmConfig, config::Vmm};

use super::{
    config::{MAX_SECRET, secret_name},
    extract::{Named, json_body, name, parse, plugin},
};
use crate::{
    Gateway, Kind, Problem, config,
    lifecycle::{AtBoot, NewVm},
    systemd::Change,
    view::Vm,
};

/// The body of a create.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Create {
    name: String,
    /// `NAME` or `NAME@VERSION`.
    plugin: String,
    cpu_cores: Option<u32>,
    memory_mb: Option<u32>,
    vmm: Option<String>,
    /// Its own configuration; the three above are set over it.
    config: Option<VmConfig>,
    #[serde(default)]
    secrets: Vec<Secret>,
    #[serde(default = "yes")]
    start: bool,
    #[serde(default)]
    enable: bool,
}

/// A secret that it has from its first start on.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Secret {
    name: String,
    value_base64: String,
}

/// Its value is in no log.
impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl TryFrom<Secret> for SecretValue {
    type Error = Problem;

    fn try_from(secret: Secret) -> Result<Self, Problem> {
        let name = secret_name(secret.name)?;
        let value = STANDARD.decode(secret.value_base64);
        // The decoder's words would quote a part of the secret.
        let value =
            value.map_err(|_| Problem::invalid(format!("the secret {name} is no base64")))?;
        if value.len() > MAX_SECRET {
            let detail = format!("the secret {name} is larger than {} KiB", MAX_SECRET / 1024);
            return Err(Problem::new(Kind::TooLarge, detail));
        }
        Ok(Self { name, value })
    }
}

fn yes() -> bool {
    true
}

impl TryFrom<Create> for NewVm {
    type Error = Problem;

    fn try_from(create: Create) -> Result<Self, Problem> {
        let vmm = match create.vmm.as_deref() {
            None => "",
            Some(text) => text.parse::<Vmm>().map_err(Problem::invalid)?.as_str(),
        };
        let vm = name(&create.name)?;
        let request = CreateVmRequest {
            name: vm.to_string(),
            plugin: plugin(&create.plugin)?.to_string(),
            cpu_cores: create.cpu_cores,
            memory_mb: create.memory_mb,
            vmm: vmm.to_owned(),
            config: create
                .config
                .as_ref()
                .map(config::bytes)
                .unwrap_or_default(),
            secrets: create
                .secrets
                .into_iter()
                .map(SecretValue::try_from)
                .collect::<Result<_, _>>()?,
        };
        Ok(Self {
            name: vm,
            request,
            start: create.start,
            enable: create.enable,
        })
    }
}

pub async fn list(State(gateway): State<Gateway>) -> Result<Json<Vec<Vm>>, Problem> {
    gateway.vms().await.map(Json)
}

pub async fn show(State(gateway): State<Gateway>, Named(name): Named) -> Result<Json<Vm>, Problem> {
    gateway.vm(&name).await.map(Json)
}

/// Answers once the VM is ready.
pub async fn create(
    State(gateway): State<Gateway>,
    request: Request,
) -> Result<(StatusCode, Json<Vm>), Problem> {
    let body = json_body(request).await?;
    let create: Create = parse(&body)?;
    let vm = gateway.create(create.try_into()?).await?;
    Ok((StatusCode::CREATED, Json(vm)))
}

pub async fn delete(
    State(gateway): State<Gateway>,
    Named(name): Named,
) -> Result<StatusCode, Problem> {
    gateway.delete(&name).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub async fn start(
    State(gateway): State<Gateway>,
    Named(name): Named,
) -> Result<Json<Vm>, Problem> {
    gateway.change(name, Change::Start).await.map(Json)
}

pub async fn stop(State(gateway): State<Gateway>, Named(name): Named) -> Result<Json<Vm>, Problem> {
    gateway.change(name, Change::Stop).await.map(Json)
}

pub async fn restart(
    State(gateway): State<Gateway>,
    Named(name): Named,
) -> Result<Json<Vm>, Problem> {
    gateway.change(name, Change::Restart).await.map(Json)
}

pub async fn enable(
    State(gateway): State<Gateway>,
    Named(name): Named,
) -> Result<Json<Vm>, Problem> {
    gateway.at_boot(name, AtBoot::Start).await.map(Json)
}

pub async fn disable(
    State(gateway): State<Gateway>,
    Named(name): Named,
) -> Result<Json<Vm>, Problem> {
    gateway.at_boot(name, AtBoot::Leave).await.map(Json)
}
