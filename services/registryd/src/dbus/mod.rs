//! The face for supervisors and operators: `com.volantvm.Registry1`.
//!
//! A supervisor gets its own VM alone, as its unit tells: there is no name to ask with. Operators see each plugin as an object,
//! and hear of changes, whoever makes them. Who may call what is the bus policy's to say.

mod callers;
mod definition;
mod error;
mod manager;
mod objects;
mod plugin;

use tokio::task::JoinHandle;
use volant_dbus::registry::{NAME, PATH};
use zbus::{Connection, connection::Builder, fdo::ObjectManager};

pub use callers::{BusCallers, Callers, CallersError};
pub use error::Error;

use crate::{Registry, status::chain};
use manager::Manager;
use objects::Objects;

/// The interfaces on a connection, and what keeps the plugins' objects as the registry is.
#[derive(Debug)]
pub struct Face {
    bus: Connection,
    following: JoinHandle<()>,
}

/// Serves the interfaces on a connection that is to be made, with an object for each plugin that is installed.
///
/// # Errors
/// The connection cannot be made, or the store failed.
pub async fn serve(
    builder: Builder<'_>,
    registry: Registry,
    callers: impl Callers,
) -> zbus::Result<Face> {
    let mut changes = registry.changes();
    let objects = Objects::new(registry.clone());
    let manager = Manager::new(registry, objects.clone(), callers);
    let bus = builder
        .serve_at(PATH, manager)
        .serve_at(PATH, ObjectManager)
        .build()
        .await?;
    objects.follow(&bus).await?;
    let following = tokio::spawn({
        let bus = bus.clone();
        async move {
            while changes.changed().await.is_ok() {
                if let Err(error) = objects.follow(&bus).await {
                    tracing::warn!("cannot show plugins on the bus: {}", chain(&error));
                }
            }
        }
    });
    Ok(Face { bus, following })
}

impl Face {
    /// Takes the well-known name, once all is ready to answer.
    ///
    /// # Errors
    /// The bus refuses: another has it, or the policy does not allow it.
    pub async fn take_name(&self) -> zbus::Result<()> {
        self.bus.request_name(NAME).await
    }

    /// Gives the name back, so that the next call starts a new process. Calls that came before are still answered.
    ///
    /// # Errors
    /// The bus cannot be reached.
    pub async fn release_name(&self) -> zbus::Result<()> {
        self.bus.release_name(NAME).await.map(drop)
    }

    /// Resolves when the connection is gone.
    pub async fn closed(&self) {
        self.bus.closed().await;
    }

    /// Ends once all calls are answered.
    pub async fn end(self) {
        let bus = self.bus.clone();
        drop(self);
        bus.graceful_shutdown().await;
    }
}

impl Drop for Face {
    fn drop(&mut self) {
        self.following.abort();
    }
}
