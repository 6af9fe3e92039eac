//! The face for supervisors and operators: `com.volantvm.Registry1`.
//!
//! A supervisor gets its own VM alone, as its unit tells: there is no name to ask with.

use std::{
    collections::{BTreeMap, HashMap},
    os::fd::OwnedFd,
};

use async_trait::async_trait;
use volant_dbus::registry::{NAME, PATH, VmDefinition};
use volant_service::{CallerError, vm_of_pid};
use volant_spec::{
    Name,
    manifest::{self, HostKernel, Kernel},
};
use zbus::{Connection, connection::Builder, fdo::DBusProxy, interface, message::Header};

use crate::{
    Registry,
    status::chain,
    store::{Damage, OpenError, OpenVm},
};

/// Tells which VM a call comes from.
#[async_trait]
pub trait Callers: Send + Sync + 'static {
    /// # Errors
    /// The caller cannot be told, or is no part of a VM.
    async fn vm_of(&self, bus: &Connection, header: &Header<'_>) -> Result<Name, CallersError>;
}

/// Why a caller's VM is not known.
#[derive(Debug, thiserror::Error)]
pub enum CallersError {
    #[error("cannot tell who calls")]
    Bus(#[source] zbus::Error),
    #[error("the bus does not say which process calls")]
    NoProcess,
    #[error(transparent)]
    Caller(#[from] CallerError),
}

/// Asks the bus for the caller's process, and `/proc` for that process's unit.
#[derive(Clone, Copy, Debug)]
pub struct BusCallers;

#[async_trait]
impl Callers for BusCallers {
    async fn vm_of(&self, bus: &Connection, header: &Header<'_>) -> Result<Name, CallersError> {
        let sender = header.sender().ok_or(CallersError::NoProcess)?.to_owned();
        let credentials = async {
            let daemon = DBusProxy::new(bus).await?;
            Ok(daemon.get_connection_credentials(sender.into()).await?)
        };
        let pid = credentials
            .await
            .map_err(CallersError::Bus)?
            .process_id()
            .ok_or(CallersError::NoProcess)?;
        Ok(vm_of_pid(pid)?)
    }
}

/// What the interface answers when it cannot do what was asked.
#[derive(Debug, zbus::DBusError)]
#[zbus(prefix = "com.volantvm.Registry1.Error")]
pub enum Error {
    #[zbus(error)]
    ZBus(zbus::Error),
    /// The caller is no part of a VM's unit.
    NotAVm(String),
    NoSuchVm(String),
    BeingDeleted(String),
    ArtifactMissing(String),
    ArtifactDamaged(String),
    /// The store failed.
    Failed(String),
}

impl From<OpenError> for Error {
    fn from(error: OpenError) -> Self {
        let text = chain(&error);
        match error {
            OpenError::NotFound(_) => Self::NoSuchVm(text),
            OpenError::BeingDeleted(_) => Self::BeingDeleted(text),
            OpenError::Artifact { damage, .. } => match damage {
                Damage::Missing => Self::ArtifactMissing(text),
                Damage::Size { .. } | Damage::Bytes => Self::ArtifactDamaged(text),
            },
            OpenError::Manifest { .. } => Self::ArtifactDamaged(text),
            OpenError::Store(_) => Self::Failed(text),
        }
    }
}

impl From<CallersError> for Error {
    fn from(error: CallersError) -> Self {
        let text = chain(&error);
        match error {
            CallersError::Caller(_) => Self::NotAVm(text),
            CallersError::Bus(_) | CallersError::NoProcess => Self::Failed(text),
        }
    }
}

struct Manager {
    registry: Registry,
    callers: Box<dyn Callers>,
}

#[interface(name = "com.volantvm.Registry1.Manager")]
impl Manager {
    /// The definition of the VM whose unit the caller is in, and its artifacts, open for reading.
    async fn open_vm(
        &self,
        #[zbus(connection)] bus: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<(VmDefinition, HashMap<String, zbus::OwnedFd>), Error> {
        let _busy = self.registry.busy();
        let name = self.callers.vm_of(bus, &header).await?;
        let open = self.registry.open_vm(name).await.inspect_err(|error| {
            tracing::warn!("{}", chain(error));
        })?;
        Ok(resolved(open))
    }

    /// The names of the installed plugins.
    #[zbus(property(emits_changed_signal = "false"))]
    async fn plugins(&self) -> zbus::fdo::Result<Vec<String>> {
        let names = self.registry.plugin_names().await;
        names.map_err(|error| zbus::fdo::Error::Failed(chain(&error)))
    }

    /// The names of the defined VMs.
    #[zbus(property(emits_changed_signal = "false"))]
    async fn vms(&self) -> zbus::fdo::Result<Vec<String>> {
        let vms = self.registry.vms().await;
        let vms = vms.map_err(|error| zbus::fdo::Error::Failed(chain(&error)))?;
        Ok(vms.into_iter().map(|vm| vm.name).collect())
    }
}

fn resolved(open: OpenVm) -> (VmDefinition, HashMap<String, zbus::OwnedFd>) {
    let OpenVm {
        vm,
        uid,
        manifest,
        artifacts,
    } = open;
    let workload = manifest.workload;
    let definition = VmDefinition {
        uuid: vm.uuid,
        name: vm.name,
        uid,
        plugin: vm.plugin,
        plugin_version: vm.plugin_version,
        cpu_cores: vm.cpu_cores,
        memory_mb: vm.memory_mb,
        vmm: vm.vmm,
        entrypoint: workload.entrypoint,
        env: into_map(workload.env),
        workdir: workload.workdir.unwrap_or_else(|| "/".to_owned()),
        user: workload.user.unwrap_or_default(),
        stop_signal: workload.stop_signal.unwrap_or_else(|| "SIGTERM".to_owned()),
        stop_grace_ms: workload
            .stop_grace_ms
            .unwrap_or(manifest::DEFAULT_STOP_GRACE_MS),
        kernel: match manifest.kernel {
            None | Some(Kernel::Host(HostKernel::Vmlinux)) => "vmlinux",
            Some(Kernel::Host(HostKernel::Bzimage)) => "bzimage",
            Some(Kernel::Own(_)) => "own",
        }
        .to_owned(),
        rootfs_format: manifest
            .rootfs
            .map(|rootfs| rootfs.format.as_str().to_owned())
            .unwrap_or_default(),
    };
    let artifacts = artifacts
        .into_iter()
        .map(|(name, file)| (name, OwnedFd::from(file).into()))
        .collect();
    (definition, artifacts)
}

fn into_map(map: BTreeMap<String, String>) -> HashMap<String, String> {
    map.into_iter().collect()
}

/// Serves the interface on a connection that is to be made.
///
/// # Errors
/// The connection cannot be made.
pub async fn serve(
    builder: Builder<'_>,
    registry: Registry,
    callers: impl Callers,
) -> zbus::Result<Connection> {
    let callers = Box::new(callers);
    builder
        .serve_at(PATH, Manager { registry, callers })
        .build()
        .await
}

/// Takes the well-known name, once all is ready to answer.
///
/// # Errors
/// The bus refuses: another has it, or the policy does not allow it.
pub async fn take_name(bus: &Connection) -> zbus::Result<()> {
    bus.request_name(NAME).await
}

/// Gives the name back, so that the next call starts a new process. Calls that came before are still answered.
///
/// # Errors
/// The bus cannot be reached.
pub async fn release_name(bus: &Connection) -> zbus::Result<()> {
    bus.release_name(NAME).await.map(drop)
}
