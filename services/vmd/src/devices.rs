//! The host's PCI devices for this VM: systemd lends them, by a unit that is root's and that lives no longer than this one.
//!
//! This process and the guest get to no driver. `volant-vm-devices@NAME.service` asks the registry itself which devices these
//! are; it ends with the VM's unit, however that ends, and gives them back.

use std::time::Duration;

use futures_util::StreamExt;
use tokio::time::timeout;
use volant_spec::Name;
use zbus::Connection;

use crate::{
    ended::{EXIT_UNAVAILABLE, EXIT_UNPREPARED},
    systemd::{ManagerProxy, service},
};

/// Longer than the unit takes to give back what it has, and to lend again.
const DEADLINE: Duration = Duration::from_secs(150);
/// The new job takes the place of one that contradicts it: of the stop that the end of the last run began.
const MODE: &str = "replace";

/// Why a VM does not have its devices.
#[derive(Debug, thiserror::Error)]
pub enum DevicesError {
    /// The host does not lend them, and says why.
    #[error("{0}")]
    Refused(String),
    #[error("devices are lent to a VM's unit alone, and systemd does not say that this is it")]
    NoUnit,
    #[error("cannot have systemd start {unit}")]
    Systemd { unit: String, source: zbus::Error },
    #[error("{unit} did not lend the VM's devices within {} s", DEADLINE.as_secs())]
    Slow { unit: String },
}

impl DevicesError {
    /// What vmd exits with: [`EXIT_UNAVAILABLE`] where another try will not succeed.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Refused(_) => EXIT_UNAVAILABLE,
            Self::NoUnit | Self::Systemd { .. } | Self::Slow { .. } => EXIT_UNPREPARED,
        }
    }
}

/// Has the host lend the VM `name` its devices, and waits until it has them. Idempotent: what it had is given back first.
///
/// # Errors
/// It does not have them, and why.
pub async fn lend(bus: &Connection, name: &Name) -> Result<(), DevicesError> {
    let unit = volant_spec::unit::devices(name);
    let failed = |source| DevicesError::Systemd {
        unit: unit.clone(),
        source,
    };
    let result = match timeout(DEADLINE, restart(bus, &unit)).await {
        Ok(result) => result.map_err(failed)?,
        Err(_) => return Err(DevicesError::Slow { unit }),
    };
    if result == "done" {
        return Ok(());
    }
    let said = async { service(bus, &unit).await?.status_text().await };
    let said = said.await.unwrap_or_default();
    let reason = match said.is_empty() {
        true => format!("{unit} did not start ({result}); see: journalctl -u {unit}"),
        false => said,
    };
    Err(DevicesError::Refused(reason))
}

/// Gives the result of the job.
async fn restart(bus: &Connection, unit: &str) -> zbus::Result<String> {
    let manager = ManagerProxy::new(bus).await?;
    // Listened to before there is a job: its end cannot be missed.
    let mut ended = manager.receive_job_removed().await?;
    manager.subscribe().await?;
    let job = manager.restart_unit(unit, MODE).await?;
    while let Some(signal) = ended.next().await {
        let told = signal.args()?;
        if told.job == job {
            return Ok(told.result);
        }
    }
    Err(zbus::Error::Failure(
        "the bus closed the connection".to_owned(),
    ))
}
