//! What a supervisor asks for before it starts anything: its VM's definition and artifacts of registryd, its attachment
//! of ipamd. Both tell by the caller's unit which VM it is, and both answer the same when they are asked again: so a service
//! that dies meanwhile is asked once more, when the bus has started it anew.

use std::{collections::HashMap, os::fd::OwnedFd, time::Duration};

use volant_dbus::{
    ipam::{self, Attachment},
    registry,
};
use volant_spec::Name;
use zbus::{Connection, DBusError};

use crate::{
    definition::{Definition, DefinitionError, Kernel},
    disks::{Disks, DisksError},
    ended::{EXIT_UNDEFINED, EXIT_UNPREPARED},
};

/// How often a service is asked that does not answer.
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_millis(200);

/// All that a VM needs.
#[derive(Debug)]
pub struct Prepared {
    pub definition: Definition,
    /// Absent: the boot initramfs. There is an initramfs or a rootfs.
    pub initramfs: Option<OwnedFd>,
    /// There when the definition has its format.
    pub rootfs: Option<OwnedFd>,
    /// There when the definition says that the plugin brings it; else it is the host's.
    pub kernel: Option<OwnedFd>,
    pub disks: Disks,
    pub attachment: Attachment,
    pub tap: OwnedFd,
}

/// Why a VM cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    #[error("the registry does not give VM '{name}': {reason}")]
    Refused { name: Name, reason: String },
    #[error("cannot ask the registry for VM '{name}'")]
    Registry { name: Name, source: zbus::Error },
    #[error(transparent)]
    Definition(#[from] DefinitionError),
    #[error("the disks of VM '{name}' cannot be used")]
    Disks { name: Name, source: DisksError },
    #[error("the registry gave no {kind} for VM '{name}'")]
    NoArtifact { name: Name, kind: &'static str },
    #[error("cannot attach VM '{name}' to the network")]
    Attach { name: Name, source: zbus::Error },
}

impl PrepareError {
    /// What vmd exits with: [`EXIT_UNDEFINED`] where another try will not succeed.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Refused { .. }
            | Self::Definition(_)
            | Self::Disks { .. }
            | Self::NoArtifact { .. } => EXIT_UNDEFINED,
            Self::Registry { .. } | Self::Attach { .. } => EXIT_UNPREPARED,
        }
    }
}

/// Asks registryd and ipamd over `bus`.
///
/// # Errors
/// One of them cannot be asked, or has nothing for this VM.
pub async fn prepare(name: &Name, bus: &Connection) -> Result<Prepared, PrepareError> {
    let (definition, mut artifacts) = open_vm(name, bus).await?;
    let taken = Disks::take(&definition, &mut artifacts);
    let disks = taken.map_err(|source| PrepareError::Disks {
        name: name.clone(),
        source,
    })?;
    let definition = Definition::parse(name, definition)?;
    let mut artifact = |kind: &'static str, is_needed: bool| {
        let given = artifacts.remove(kind).map(OwnedFd::from);
        if is_needed && given.is_none() {
            return Err(PrepareError::NoArtifact {
                name: name.clone(),
                kind,
            });
        }
        Ok(given)
    };
    let has_rootfs = definition.rootfs_format.is_some();
    let initramfs = artifact("initramfs", !has_rootfs)?;
    let rootfs = artifact("rootfs", has_rootfs)?.filter(|_| has_rootfs);
    let kernel = match definition.kernel {
        Kernel::Own => artifact("kernel", true)?,
        Kernel::Vmlinux | Kernel::BzImage => None,
    };
    let attach = ask(async || ipam::ManagerProxy::new(bus).await?.attach().await);
    let (attachment, tap) = attach.await.map_err(|source| PrepareError::Attach {
        name: name.clone(),
        source,
    })?;
    Ok(Prepared {
        definition,
        initramfs,
        rootfs,
        kernel,
        disks,
        attachment,
        tap: tap.into(),
    })
}

async fn open_vm(
    name: &Name,
    bus: &Connection,
) -> Result<(registry::VmDefinition, HashMap<String, zbus::OwnedFd>), PrepareError> {
    let open = ask(async || registry::ManagerProxy::new(bus).await?.open_vm().await);
    open.await.map_err(|source| match &source {
        zbus::Error::MethodError(error, reason, _) if is_final(error.as_str()) => {
            PrepareError::Refused {
                name: name.clone(),
                reason: reason.clone().unwrap_or_else(|| error.to_string()),
            }
        }
        _ => PrepareError::Registry {
            name: name.clone(),
            source,
        },
    })
}

/// Makes an idempotent call, and again while the service is not there.
async fn ask<T>(call: impl AsyncFn() -> zbus::Result<T>) -> zbus::Result<T> {
    for _ in 1..TRIES {
        match call().await {
            Err(error) if is_absence(&error) => {
                tracing::warn!("asking once more: {error}");
                tokio::time::sleep(PAUSE).await;
            }
            answer => return answer,
        }
    }
    call().await
}

/// Whether it was not the service that answered, but the bus or the manager, as the service is not there.
fn is_absence(error: &zbus::Error) -> bool {
    match error {
        zbus::Error::MethodError(name, ..) => names_absence(name.as_str()),
        zbus::Error::FDO(error) => names_absence(error.name().as_str()),
        _ => false,
    }
}

fn names_absence(error: &str) -> bool {
    match error.strip_prefix("org.freedesktop.DBus.Error.") {
        Some("NoReply" | "Disconnected" | "ServiceUnknown" | "NameHasNoOwner" | "TimedOut") => true,
        Some(other) => other.starts_with("Spawn."),
        None => error.starts_with("org.freedesktop.systemd1."),
    }
}

/// Whether the registry's answer stays the same when it is asked again.
fn is_final(error: &str) -> bool {
    matches!(error.rsplit('.').next(), Some("NoSuchVm" | "BeingDeleted"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_that_is_not_there_is_told_from_one_that_answered() {
        let cases = [
            ("org.freedesktop.DBus.Error.NoReply", true),
            ("org.freedesktop.DBus.Error.Disconnected", true),
            ("org.freedesktop.DBus.Error.ServiceUnknown", true),
            ("org.freedesktop.DBus.Error.NameHasNoOwner", true),
            ("org.freedesktop.DBus.Error.TimedOut", true),
            ("org.freedesktop.DBus.Error.Spawn.ChildSignaled", true),
            ("org.freedesktop.systemd1.ShuttingDown", true),
            ("org.freedesktop.DBus.Error.Failed", false),
            ("org.freedesktop.DBus.Error.AccessDenied", false),
            ("org.freedesktop.DBus.Error.Spawn", false),
            ("com.volantvm.Registry1.Error.NoSuchVm", false),
            ("com.volantvm.Ipam1.Error.NoReply", false),
        ];
        for (error, expected) in cases {
            assert_eq!(names_absence(error), expected, "{error}");
        }
        let told = zbus::fdo::Error::NameHasNoOwner(String::new());
        assert!(is_absence(&zbus::Error::FDO(Box::new(told))));
    }
}
