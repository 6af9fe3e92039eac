//! What is changed of a VM that runs: paused, resumed, reloaded, scaled.

use axum::{
    Json,
    extract::{Request, State},
};
use serde::Deserialize;

use super::extract::{Named, json_body, parse};
use crate::{
    Gateway, Problem,
    config::{Resources, Scaled},
    systemd::Change,
    view::Vm,
};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Scale {
    cpu_cores: Option<u32>,
    memory_mb: Option<u32>,
    #[serde(default)]
    restart: bool,
}

pub async fn pause(
    State(gateway): State<Gateway>,
    Named(name): Named,
) -> Result<Json<Vm>, Problem> {
    gateway.pause(&name).await?;
    gateway.vm(&name).await.map(Json)
}

pub async fn resume(
    State(gateway): State<Gateway>,
    Named(name): Named,
) -> Result<Json<Vm>, Problem> {
    gateway.resume(&name).await?;
    gateway.vm(&name).await.map(Json)
}

/// Has a new supervisor take the VM over; the guest runs on.
pub async fn reload(
    State(gateway): State<Gateway>,
    Named(name): Named,
) -> Result<Json<Vm>, Problem> {
    gateway.change(name, Change::Reload).await.map(Json)
}

pub async fn scale(
    State(gateway): State<Gateway>,
    Named(name): Named,
    request: Request,
) -> Result<Json<Scaled>, Problem> {
    let body = json_body(request).await?;
    let Scale {
        cpu_cores,
        memory_mb,
        restart,
    } = parse(&body)?;
    if cpu_cores.is_none() && memory_mb.is_none() {
        return Err(Problem::invalid(
            "a scale needs 'cpu_cores', 'memory_mb' or both",
        ));
    }
    let to = Resources {
        cpu_cores,
        memory_mb,
    };
    gateway.scale(name, to, restart).await.map(Json)
}
