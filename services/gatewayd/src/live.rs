//! What a running VM's supervisor says of it, by its D-Bus properties.

use std::{collections::HashMap, time::Duration};

use volant_dbus::vm;
use volant_spec::Name;
use zbus::{OwnedVariant, fdo::PropertiesProxy, names::InterfaceName};

use crate::Systemd;

/// What a supervisor may take to answer; without an answer the VM is shown without its live part.
const PATIENCE: Duration = Duration::from_secs(1);
const INTERFACE: &str = "com.volantvm.Vm1";

/// A supervisor's words; what it has not said (yet) is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Live {
    pub phase: Option<String>,
    pub status: Option<String>,
    pub address: Option<String>,
    pub mac: Option<String>,
    pub cid: Option<u32>,
    pub vmm: Option<String>,
    pub vmm_reason: Option<String>,
    pub vmm_pid: Option<u32>,
    pub agent_version: Option<String>,
    pub ready_since_unix_ms: Option<u64>,
    pub memory_total_kib: Option<u64>,
    pub memory_available_kib: Option<u64>,
    pub agent_resident_kib: Option<u64>,
    pub paused: bool,
    pub config_version: Option<u64>,
    pub cpu_cores: Option<u32>,
    pub memory_mb: Option<u32>,
    pub reboots: u32,
    pub workload_restarts: u32,
    pub health: Option<String>,
    pub ended: Option<String>,
    pub exit_code: Option<i32>,
    pub generation: Option<u32>,
}

/// Asks a VM's supervisor; `None` when there is none, or when it does not answer in time.
pub async fn ask(systemd: &Systemd, name: &Name) -> Option<Live> {
    let (bus, _room) = systemd.bus().await;
    let asked = async {
        let proxy = PropertiesProxy::builder(bus)
            .destination(vm::bus_name(name.as_str()))
            .path(vm::PATH)
            .build()
            .await?;
        let interface = InterfaceName::try_from(INTERFACE)?;
        Ok::<_, zbus::Error>(proxy.get_all(interface).await?)
    };
    match tokio::time::timeout(PATIENCE, asked).await {
        Ok(Ok(properties)) => Some(read(properties)),
        Ok(Err(error)) => {
            tracing::debug!("the supervisor of VM {name} does not answer: {error}");
            None
        }
        Err(_) => {
            tracing::warn!("the supervisor of VM {name} did not answer within {PATIENCE:?}");
            None
        }
    }
}

fn read(mut properties: HashMap<String, OwnedVariant>) -> Live {
    let mut text = |name| take::<String>(&mut properties, name).filter(|text| !text.is_empty());
    let phase = text("Phase");
    let status = text("Status");
    let address = text("Address");
    let mac = text("Mac");
    let vmm = text("Vmm");
    let vmm_reason = text("VmmReason");
    let agent_version = text("AgentVersion");
    let health = text("Health");
    let ended = text("Ended");
    let mut large = |name| take::<u64>(&mut properties, name).filter(|&number| number != 0);
    let ready_since_unix_ms = large("ReadySinceUnixMs");
    let memory_total_kib = large("MemoryTotalKib");
    let memory_available_kib = large("MemoryAvailableKib");
    let agent_resident_kib = large("AgentResidentKib");
    let config_version = large("ConfigVersion");
    let paused = take(&mut properties, "Paused").unwrap_or_default();
    let exit_code = take::<i32>(&mut properties, "ExitCode").filter(|&code| code >= 0);
    let mut small = |name| take::<u32>(&mut properties, name).filter(|&number| number != 0);
    Live {
        phase,
        status,
        address,
        mac,
        cid: small("Cid"),
        vmm,
        vmm_reason,
        vmm_pid: small("VmmPid"),
        agent_version,
        ready_since_unix_ms,
        memory_total_kib,
        memory_available_kib,
        agent_resident_kib,
        paused,
        config_version,
        cpu_cores: small("CpuCores"),
        memory_mb: small("MemoryMb"),
        reboots: small("Reboots").unwrap_or_default(),
        workload_restarts: small("WorkloadRestarts").unwrap_or_default(),
        health,
        ended,
        exit_code,
        generation: small("Generation"),
    }
}

/// A property of that name and type; the zero of its type stands for "not yet", see `volant_dbus::vm`.
fn take<T: TryFrom<OwnedVariant>>(
    properties: &mut HashMap<String, OwnedVariant>,
    name: &str,
) -> Option<T> {
    properties.remove(name)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_supervisor_does_not_have_is_absent() {
        assert_eq!(read(HashMap::new()), Live::default());
    }
}
