//! Which VM, or which user, a call on the bus comes from.

use async_trait::async_trait;
use volant_service::{CallerError, vm_of_pid};
use volant_spec::Name;
use zbus::{
    Connection,
    fdo::{ConnectionCredentials, DBusProxy},
    message::Header,
};

/// Tells who calls.
#[async_trait]
pub trait Callers: Send + Sync + 'static {
    /// # Errors
    /// The caller cannot be told, or is no part of a VM.
    async fn vm_of(&self, bus: &Connection, header: &Header<'_>) -> Result<Name, CallersError>;

    /// The user that a call comes from.
    ///
    /// # Errors
    /// The caller cannot be told.
    async fn user_of(&self, bus: &Connection, header: &Header<'_>) -> Result<u32, CallersError>;
}

/// Why a caller's VM is not known.
#[derive(Debug, thiserror::Error)]
pub enum CallersError {
    #[error("cannot tell who calls")]
    Bus(#[source] zbus::Error),
    #[error("the bus does not say which process calls")]
    NoProcess,
    #[error("the bus does not say which user calls")]
    NoUser,
    #[error(transparent)]
    Caller(#[from] CallerError),
}

/// Asks the bus for the caller's process, and `/proc` for that process's unit.
#[derive(Clone, Copy, Debug)]
pub struct BusCallers;

#[async_trait]
impl Callers for BusCallers {
    async fn vm_of(&self, bus: &Connection, header: &Header<'_>) -> Result<Name, CallersError> {
        let credentials = credentials(bus, header).await?;
        let pid = credentials.process_id().ok_or(CallersError::NoProcess)?;
        Ok(vm_of_pid(pid)?)
    }

    async fn user_of(&self, bus: &Connection, header: &Header<'_>) -> Result<u32, CallersError> {
        let credentials = credentials(bus, header).await?;
        credentials.unix_user_id().ok_or(CallersError::NoUser)
    }
}

async fn credentials(
    bus: &Connection,
    header: &Header<'_>,
) -> Result<ConnectionCredentials, CallersError> {
    let sender = header.sender().ok_or(CallersError::NoProcess)?.to_owned();
    let asked = async {
        let daemon = DBusProxy::new(bus).await?;
        Ok(daemon.get_connection_credentials(sender.into()).await?)
    };
    asked.await.map_err(CallersError::Bus)
}
