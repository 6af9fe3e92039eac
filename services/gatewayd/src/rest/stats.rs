//! `/api/v1/vms/{name}/stats`: what a VM uses, by the host's word and by the guest's.

use std::time::Duration;

use axum::{Json, extract::State};
use futures_util::{StreamExt, stream};
use http::Uri;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use volant_proto::vm::v1::GetStatsResponse;
use volant_spec::{Name, unit};

use super::extract::{Named, query};
use crate::{Gateway, Problem, phase::Phase, systemd::Usage};

/// What a guest may take to say how it is; then the host's word stands alone.
const PATIENCE: Duration = Duration::from_secs(5);
/// In a list, where one guest holds up all.
const LIST_PATIENCE: Duration = Duration::from_secs(2);
/// The most processes that are told of.
const MAX_PROCESSES: u32 = 1000;
/// How many VMs are looked at at once for a list.
const AT_ONCE: usize = 16;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Asked {
    processes: u32,
}

#[derive(Debug, Serialize)]
pub struct Stats {
    name: String,
    phase: Phase,
    host: Usage,
    guest: Option<Guest>,
    time: String,
}

/// As the guest says.
#[derive(Debug, Serialize)]
struct Guest {
    uptime_ms: u64,
    /// Of one minute, in hundredths.
    load_centi: u32,
    cpus: u32,
    cpu_busy_ms: u64,
    cpu_total_ms: u64,
    memory_total_kib: u64,
    memory_available_kib: u64,
    swap_total_kib: u64,
    swap_free_kib: u64,
    receive_bytes: u64,
    transmit_bytes: u64,
    disk_read_bytes: u64,
    disk_written_bytes: u64,
    filesystems: Vec<Filesystem>,
    processes: Vec<Process>,
    process_count: u32,
    restarts: u32,
    health: Option<String>,
}

#[derive(Debug, Serialize)]
struct Filesystem {
    mount_point: String,
    kind: String,
    total_kib: u64,
    available_kib: u64,
}

#[derive(Debug, Serialize)]
struct Process {
    pid: u32,
    user: String,
    resident_kib: u64,
    cpu_ms: u64,
    command: String,
}

impl From<GetStatsResponse> for Guest {
    fn from(told: GetStatsResponse) -> Self {
        let filesystems = told.filesystems.into_iter().map(|told| Filesystem {
            mount_point: told.mount_point,
            kind: told.kind,
            total_kib: told.total_kib,
            available_kib: told.available_kib,
        });
        let processes = told.processes.into_iter().map(|told| Process {
            pid: told.pid,
            user: told.user,
            resident_kib: told.resident_kib,
            cpu_ms: told.cpu_ms,
            command: told.command,
        });
        Self {
            uptime_ms: told.uptime_ms,
            load_centi: told.load_centi,
            cpus: told.cpus,
            cpu_busy_ms: told.cpu_busy_ms,
            cpu_total_ms: told.cpu_total_ms,
            memory_total_kib: told.memory_total_kib,
            memory_available_kib: told.memory_available_kib,
            swap_total_kib: told.swap_total_kib,
            swap_free_kib: told.swap_free_kib,
            receive_bytes: told.receive_bytes,
            transmit_bytes: told.transmit_bytes,
            disk_read_bytes: told.disk_read_bytes,
            disk_written_bytes: told.disk_written_bytes,
            filesystems: filesystems.collect(),
            processes: processes.collect(),
            process_count: told.process_count,
            restarts: told.restarts,
            health: Some(told.health).filter(|health| !health.is_empty()),
        }
    }
}

pub async fn one(
    State(gateway): State<Gateway>,
    Named(name): Named,
    uri: Uri,
) -> Result<Json<Stats>, Problem> {
    let Asked { processes } = query(&uri)?;
    let phase = gateway.vm(&name).await?.phase;
    let processes = processes.min(MAX_PROCESSES);
    stats(&gateway, &name, phase, processes, PATIENCE)
        .await
        .map(Json)
}

/// Of all that run.
pub async fn all(State(gateway): State<Gateway>) -> Result<Json<Vec<Stats>>, Problem> {
    let gateway = &gateway;
    let vms = gateway.vms().await?.into_iter();
    let running = vms.filter(|vm| vm.phase == Phase::Running);
    let looks = running.map(|vm| async move {
        let name: Name = vm
            .name
            .parse()
            .map_err(|_| Problem::internal("a VM has no name"))?;
        stats(gateway, &name, vm.phase, 0, LIST_PATIENCE).await
    });
    let looks: Vec<_> = stream::iter(looks).buffered(AT_ONCE).collect().await;
    looks.into_iter().collect::<Result<_, _>>().map(Json)
}

async fn stats(
    gateway: &Gateway,
    name: &Name,
    phase: Phase,
    processes: u32,
    patience: Duration,
) -> Result<Stats, Problem> {
    let unit_name = unit::vm(name);
    let guest = async {
        if phase != Phase::Running {
            return None;
        }
        match gateway.guest_stats(name, processes, patience).await {
            Ok(told) => Some(Guest::from(told)),
            Err(problem) => {
                tracing::debug!("VM {name} is shown without its guest's word: {problem}");
                None
            }
        }
    };
    let (host, guest) = tokio::join!(gateway.systemd().usage(&unit_name), guest);
    Ok(Stats {
        name: name.to_string(),
        phase,
        host: host?,
        guest,
        time: format!("{:.3}", Timestamp::now()),
    })
}
