//! `/api/v1/devices`: what the host has, and whether a VM could have it.

use axum::{
    Json,
    extract::{Path, Request, State, rejection::PathRejection},
};
use serde::{Deserialize, Serialize};
use volant_spec::manifest::Devices;

use super::extract::{json_body, name, parse};
use crate::{Gateway, Problem, devices::Device};

/// Devices that somebody would have.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wish {
    pci: Vec<String>,
    #[serde(default)]
    allowlist: Vec<String>,
    /// Absent: a VM that is not there yet.
    vm: Option<String>,
}

#[derive(Debug, Serialize)]
pub struct Validated {
    /// None: such a VM can have them now.
    problems: Vec<String>,
}

pub async fn list(State(gateway): State<Gateway>) -> Result<Json<Vec<Device>>, Problem> {
    gateway.devices().await.map(Json)
}

pub async fn show(
    State(gateway): State<Gateway>,
    address: Result<Path<String>, PathRejection>,
) -> Result<Json<Device>, Problem> {
    let Path(address) = address.map_err(|rejection| Problem::invalid(rejection.body_text()))?;
    gateway.device(&address).await.map(Json)
}

/// Changes nothing.
pub async fn validate(
    State(gateway): State<Gateway>,
    request: Request,
) -> Result<Json<Validated>, Problem> {
    let body = json_body(request).await?;
    let Wish { pci, allowlist, vm } = parse(&body)?;
    let vm = vm.map(|vm| name(&vm)).transpose()?;
    let vm = vm.map(|vm| vm.to_string()).unwrap_or_default();
    let devices = Devices { pci, allowlist };
    let problems = gateway.validate_devices(&vm, &devices).await?;
    Ok(Json(Validated { problems }))
}
