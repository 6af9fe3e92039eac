//! What a supervisor asks for before it starts anything: its VM's definition and artifacts of registryd, its attachment
//! of ipamd. Both tell by the caller's unit which VM it is.

use std::{collections::HashMap, os::fd::OwnedFd};

use volant_dbus::{
    ipam::{self, Attachment},
    registry,
};
use volant_spec::Name;
use zbus::Connection;

use crate::{
    definition::{Definition, DefinitionError},
    ended::{EXIT_UNDEFINED, EXIT_UNPREPARED},
};

/// All that a VM needs.
#[derive(Debug)]
pub struct Prepared {
    pub definition: Definition,
    pub initramfs: OwnedFd,
    /// Absent: the host's kernel.
    pub kernel: Option<OwnedFd>,
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
    #[error("the registry gave no initramfs for VM '{0}'")]
    NoInitramfs(Name),
    #[error("cannot attach VM '{name}' to the network")]
    Attach { name: Name, source: zbus::Error },
}

impl PrepareError {
    /// What vmd exits with: [`EXIT_UNDEFINED`] where another try will not succeed.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Refused { .. } | Self::Definition(_) | Self::NoInitramfs(_) => EXIT_UNDEFINED,
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
    let definition = Definition::parse(name, definition)?;
    let mut artifact = |kind: &str| artifacts.remove(kind).map(OwnedFd::from);
    let initramfs = artifact("initramfs").ok_or_else(|| PrepareError::NoInitramfs(name.clone()))?;
    let kernel = artifact("kernel");
    let attach = async {
        let ipam = ipam::ManagerProxy::new(bus).await?;
        ipam.attach().await
    };
    let (attachment, tap) = attach.await.map_err(|source| PrepareError::Attach {
        name: name.clone(),
        source,
    })?;
    Ok(Prepared {
        definition,
        initramfs,
        kernel,
        attachment,
        tap: tap.into(),
    })
}

async fn open_vm(
    name: &Name,
    bus: &Connection,
) -> Result<(registry::VmDefinition, HashMap<String, zbus::OwnedFd>), PrepareError> {
    let open = async {
        let registry = registry::ManagerProxy::new(bus).await?;
        registry.open_vm().await
    };
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

/// Whether the registry's answer stays the same when it is asked again.
fn is_final(error: &str) -> bool {
    matches!(error.rsplit('.').next(), Some("NoSuchVm" | "BeingDeleted"))
}
