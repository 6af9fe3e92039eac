//! systemd-machined, where there is one: a VM that is ready shows in `machinectl list`, as long as its unit is active.
//!
//! machined takes machines from root alone, which a supervisor is not. It has systemd start `volant-machine@NAME.service`, and
//! that is [`register`]. Nothing waits for it, and a VM runs as well without.

use std::{path::Path, time::Duration};

use tokio::{sync::watch, time::timeout};
use volant_dbus::vm;
use volant_spec::{Name, unit};
use zbus::{Connection, OwnedObjectPath, proxy::CacheProperties};

use crate::{
    live::Live,
    systemd::{ManagerProxy, service},
};

/// Says that machined is installed, running or not.
const INSTALLED: &str = "/usr/share/dbus-1/system-services/org.freedesktop.machine1.service";
const DEADLINE: Duration = Duration::from_secs(20);
const SERVICE: &str = "volant";
const CLASS: &str = "vm";
/// What machined says of a name that a machine has.
const EXISTS: &str = "org.freedesktop.machine1.MachineExists";

#[zbus::proxy(
    interface = "org.freedesktop.machine1.Manager",
    default_service = "org.freedesktop.machine1",
    default_path = "/org/freedesktop/machine1"
)]
trait Machined {
    #[allow(clippy::too_many_arguments, reason = "machined's call")]
    fn register_machine_with_network(
        &self,
        name: &str,
        id: &[u8],
        service: &str,
        class: &str,
        leader: u32,
        root_directory: &str,
        interfaces: &[i32],
    ) -> zbus::Result<OwnedObjectPath>;

    fn unregister_machine(&self, name: &str) -> zbus::Result<()>;

    fn get_machine(&self, name: &str) -> zbus::Result<OwnedObjectPath>;
}

#[zbus::proxy(
    interface = "org.freedesktop.machine1.Machine",
    default_service = "org.freedesktop.machine1"
)]
trait Machine {
    #[zbus(property(emits_changed_signal = "false"))]
    fn unit(&self) -> zbus::Result<String>;

    #[zbus(property(emits_changed_signal = "false"))]
    fn leader(&self) -> zbus::Result<u32>;
}

/// Why a VM is no machine of machined.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    #[error("cannot ask {whom} about VM '{name}'")]
    Ask {
        whom: &'static str,
        name: Name,
        source: zbus::Error,
    },
    #[error("the unit of VM '{0}' has no process")]
    NotRunning(Name),
    #[error("'{text}', which VM '{name}' says that it has, is no UUID")]
    Uuid { name: Name, text: String },
    #[error("machined has another machine '{name}', of {unit}")]
    Taken { name: Name, unit: String },
    #[error("machined does not take VM '{name}'")]
    Refused { name: Name, source: zbus::Error },
}

/// Has systemd tell machined of the VM `name` once it is ready. Where there is no machined, or no unit for that, nothing happens.
pub async fn announce(bus: Connection, name: Name, mut live: watch::Receiver<Live>) {
    if !Path::new(INSTALLED).exists() {
        return;
    }
    let is_ready = |live: &Live| live.ready_since_unix_ms > 0;
    if live.wait_for(is_ready).await.is_err() {
        return;
    }
    let unit = unit::machine(&name);
    let start = async {
        let manager = ManagerProxy::new(&bus).await?;
        manager.start_unit(&unit, "replace").await
    };
    match timeout(DEADLINE, start).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => tracing::debug!("systemd does not start {unit}: {error}"),
        Err(_) => tracing::debug!("systemd does not answer: {unit} is not started"),
    }
}

/// Makes the VM `name` a machine of machined, which forgets it with the VM's unit. For root. Idempotent.
///
/// Its leader is the supervisor, which ends the VM gracefully when machined signals it, and is the same one over reboots of the guest.
///
/// # Errors
/// It is none, and why.
pub async fn register(bus: &Connection, name: &Name) -> Result<(), RegisterError> {
    let ask = |whom| {
        move |source| RegisterError::Ask {
            whom,
            name: name.clone(),
            source,
        }
    };
    let main = async { service(bus, &unit::vm(name)).await?.main_pid().await };
    let leader = main.await.map_err(ask("systemd"))?;
    if leader == 0 {
        return Err(RegisterError::NotRunning(name.clone()));
    }
    let text = uuid(bus, name).await.map_err(ask("its supervisor"))?;
    let id = bytes(&text).ok_or_else(|| RegisterError::Uuid {
        name: name.clone(),
        text: text.escape_debug().to_string(),
    })?;
    let machined = MachinedProxy::new(bus).await.map_err(ask("machined"))?;
    let register = async || {
        machined
            .register_machine_with_network(name.as_str(), &id, SERVICE, CLASS, leader, "", &[])
            .await
    };
    let registered = match register().await {
        Err(zbus::Error::MethodError(error, ..)) if error.as_str() == EXISTS => {
            if !forget_old(bus, &machined, name, leader).await? {
                return Ok(());
            }
            register().await
        }
        other => other,
    };
    registered
        .map(drop)
        .map_err(|source| RegisterError::Refused {
            name: name.clone(),
            source,
        })
}

/// Makes room for this VM where machined still has an earlier run of it. Answers false where it is this run.
async fn forget_old(
    bus: &Connection,
    machined: &MachinedProxy<'_>,
    name: &Name,
    leader: u32,
) -> Result<bool, RegisterError> {
    let old = async {
        let machine = MachineProxy::builder(bus)
            .path(machined.get_machine(name.as_str()).await?)
            .cache_properties(CacheProperties::No)
            .build()
            .await?;
        Ok::<_, zbus::Error>((machine.unit().await?, machine.leader().await?))
    };
    let failed = |source| RegisterError::Ask {
        whom: "machined",
        name: name.clone(),
        source,
    };
    let (unit, old) = old.await.map_err(failed)?;
    if unit != unit::vm(name) {
        return Err(RegisterError::Taken {
            name: name.clone(),
            unit,
        });
    }
    if old == leader {
        return Ok(false);
    }
    let forgotten = machined.unregister_machine(name.as_str()).await;
    forgotten.map_err(failed)?;
    Ok(true)
}

async fn uuid(bus: &Connection, name: &Name) -> zbus::Result<String> {
    let vm = vm::VmProxy::builder(bus)
        .destination(vm::bus_name(name.as_str()))
        .cache_properties(CacheProperties::No)
        .build()
        .await?;
    vm.uuid().await
}

/// A UUID's bytes.
fn bytes(uuid: &str) -> Option<[u8; 16]> {
    let digits: Vec<u32> = uuid
        .chars()
        .filter(|c| *c != '-')
        .map(|c| c.to_digit(16))
        .collect::<Option<_>>()?;
    if digits.len() != 32 {
        return None;
    }
    let mut bytes = [0; 16];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::try_from(pair[0] << 4 | pair[1]).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_is_sixteen_bytes() {
        let id = bytes("01980000-0000-7000-8000-0000000000ff").unwrap();
        assert_eq!((id[0], id[1], id[6], id[15]), (0x01, 0x98, 0x70, 0xff));
        for text in ["", "0198", "01980000-0000-7000-8000-0000000000fg"] {
            assert_eq!(bytes(text), None, "{text}");
        }
    }
}
