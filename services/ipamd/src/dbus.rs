//! The D-Bus face: `com.volantvm.Ipam1`.

use async_trait::async_trait;
use volant_dbus::ipam::{Attachment, NAME, PATH};
use volant_service::vm_of_pid;
use volant_spec::Name;
use zbus::{Connection, OwnedFd, connection, fdo, interface, message::Header};

use crate::{
    AttachError, Ipam, Place, chain, pool::ChoiceError, store::LeaseError, store::StoreError,
};

/// Tells which VM a call comes from.
#[async_trait]
pub trait Callers: Send + Sync + 'static {
    /// # Errors
    /// Why the caller is no VM's supervisor.
    async fn vm(&self, bus: &Connection, header: &Header<'_>) -> Result<Name, String>;
}

/// Asks the bus for the caller's process, and systemd's control groups for that process's unit.
#[derive(Debug)]
pub struct ByUnit;

#[async_trait]
impl Callers for ByUnit {
    async fn vm(&self, bus: &Connection, header: &Header<'_>) -> Result<Name, String> {
        let sender = header
            .sender()
            .ok_or_else(|| "the call has no sender".to_owned())?;
        let credentials = fdo::DBusProxy::new(bus)
            .await
            .map_err(|error| format!("cannot ask the bus about {sender}: {error}"))?
            .get_connection_credentials(sender.clone().into())
            .await
            .map_err(|error| format!("cannot ask the bus about {sender}: {error}"))?;
        let pid = credentials
            .process_id()
            .ok_or_else(|| format!("the bus does not know the process of {sender}"))?;
        vm_of_pid(pid).map_err(|error| chain(&error))
    }
}

/// What a call can fail with.
#[derive(Debug, zbus::DBusError)]
#[zbus(prefix = "com.volantvm.Ipam1.Error")]
pub enum Error {
    #[zbus(error)]
    ZBus(zbus::Error),
    /// The subnet is full.
    NoFreeAddress(String),
    /// The VM holds an address that the configured subnet has no place for.
    LeaseOutsideSubnet(String),
    /// The caller is not in a VM's unit.
    NotAVm(String),
    /// The host's network could not be set up.
    Network(String),
    /// The leases could not be read or kept.
    Store(String),
}

impl From<&AttachError> for Error {
    fn from(error: &AttachError) -> Self {
        let text = chain(error);
        match error {
            AttachError::Network { .. } => Self::Network(text),
            AttachError::Lease(LeaseError::Store(_)) => Self::Store(text),
            AttachError::Lease(LeaseError::Choice(choice)) => match choice {
                ChoiceError::Exhausted { .. } | ChoiceError::NoContextId { .. } => {
                    Self::NoFreeAddress(text)
                }
                ChoiceError::OutsideSubnet { .. } => Self::LeaseOutsideSubnet(text),
            },
        }
    }
}

/// The object at [`PATH`].
struct Manager {
    ipam: Ipam,
    callers: Box<dyn Callers>,
}

#[interface(name = "com.volantvm.Ipam1.Manager")]
impl Manager {
    /// Leases an address to the VM whose unit the caller is in (idempotent) and opens a tap on the bridge for it. The
    /// tap is gone when the last holder of the descriptor is; an older one of the same VM is waited for.
    async fn attach(
        &self,
        #[zbus(connection)] bus: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<(Attachment, OwnedFd), Error> {
        let vm = self.callers.vm(bus, &header).await.map_err(Error::NotAVm)?;
        let (place, tap) = self.ipam.attach(&vm).await.map_err(|error| {
            tracing::error!(VOLANT_VM = vm.as_str(), "{}", chain(&error));
            Error::from(&error)
        })?;
        Ok((wire(&place), tap.into()))
    }

    /// Leases: VM, address, MAC, CID; by address.
    async fn list_leases(&self) -> Result<Vec<(String, String, String, u32)>, Error> {
        let leases = self.ipam.leases().map_err(|error| store(&error))?;
        Ok(leases
            .into_iter()
            .map(|lease| {
                (
                    lease.vm.to_string(),
                    lease.address.to_string(),
                    lease.mac.to_string(),
                    lease.cid.get(),
                )
            })
            .collect())
    }

    #[zbus(property(emits_changed_signal = "const"))]
    async fn bridge(&self) -> fdo::Result<String> {
        Ok(self.overview()?.bridge)
    }

    #[zbus(property(emits_changed_signal = "const"))]
    async fn subnet(&self) -> fdo::Result<String> {
        Ok(self.overview()?.subnet.to_string())
    }

    #[zbus(property(emits_changed_signal = "const"))]
    async fn gateway(&self) -> fdo::Result<String> {
        Ok(self.overview()?.gateway.to_string())
    }

    #[zbus(property(emits_changed_signal = "false"))]
    async fn lease_count(&self) -> fdo::Result<u32> {
        Ok(u32::try_from(self.overview()?.leased).unwrap_or(u32::MAX))
    }
}

impl Manager {
    fn overview(&self) -> fdo::Result<crate::Overview> {
        self.ipam
            .overview()
            .map_err(|error| fdo::Error::Failed(chain(&error)))
    }
}

/// Serves on a connection that is yet to be built: the object first, the name last.
///
/// # Errors
/// There is no bus, or it refuses the name.
pub async fn serve(ipam: Ipam, callers: Box<dyn Callers>) -> zbus::Result<Connection> {
    object(connection::Builder::system(), ipam, callers)
        .name(NAME)
        .build()
        .await
}

/// Puts the object on a connection.
pub fn object(
    builder: connection::Builder<'_>,
    ipam: Ipam,
    callers: Box<dyn Callers>,
) -> connection::Builder<'_> {
    builder.serve_at(PATH, Manager { ipam, callers })
}

/// Gives the name back. What was called by then is still answered.
///
/// # Errors
/// The bus is gone.
pub async fn release(bus: &Connection) -> zbus::Result<()> {
    bus.release_name(NAME).await.map(drop)
}

fn wire(place: &Place) -> Attachment {
    Attachment {
        addresses: vec![place.address.to_string()],
        gateways: vec![place.gateway.to_string()],
        dns: place.dns.iter().map(ToString::to_string).collect(),
        mac: place.lease.mac.to_string(),
        cid: place.lease.cid.get(),
        tap: place.tap.clone(),
    }
}

fn store(error: &StoreError) -> Error {
    let text = chain(error);
    tracing::error!("{text}");
    Error::Store(text)
}
