//! The door of Volant: a REST face on a Unix socket, in front of registryd, ipamd and systemd.
//!
//! It keeps no state: what should exist is registryd's, who has which address is ipamd's, what runs is systemd's. What
//! it does own is the order of the steps when a VM is created or deleted (`lifecycle.rs`).

mod config;
mod deletion;
pub mod devices;
mod ended;
pub mod events;
pub mod ipam;
pub mod journal;
mod lifecycle;
pub mod live;
pub mod phase;
pub mod problem;
pub mod refusal;
pub mod registry;
pub mod rest;
mod rpc;
pub mod serve;
pub mod systemd;
pub mod view;
pub mod vmd;

use std::{path::PathBuf, sync::Arc};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use volant_service::{Busy, Idle};

pub use problem::{Kind, Problem};
pub use systemd::Systemd;

use crate::{
    deletion::Deletions, events::Events, ipam::Ipam, journal::Journal, registry::Registry,
    vmd::Vmds,
};

/// Streams and sessions of clients at once; more are refused.
const SESSIONS: usize = 128;

/// Everything that a request can ask for. Clones share it.
#[derive(Clone, Debug)]
pub struct Gateway(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    registry: Registry,
    ipam: Ipam,
    systemd: Systemd,
    vmds: Vmds,
    journal: Journal,
    unit_control: PathBuf,
    events: Events,
    idle: Idle,
    deletions: Deletions,
    sessions: Arc<Semaphore>,
    ending: CancellationToken,
}

/// Those whom a gateway asks.
#[derive(Debug)]
pub struct Parts {
    pub registry: Registry,
    pub ipam: Ipam,
    pub systemd: Systemd,
    pub vmds: Vmds,
    pub journal: Journal,
    /// Where systemd keeps what is set of units until the next boot: `/run/systemd/system.control`.
    pub unit_control: PathBuf,
    pub idle: Idle,
}

/// A stream or a session of a client, for as long as this value lives.
#[derive(Debug)]
pub(crate) struct Session {
    _busy: Busy,
    _place: OwnedSemaphorePermit,
}

impl Gateway {
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let Parts {
            registry,
            ipam,
            systemd,
            vmds,
            journal,
            unit_control,
            idle,
        } = parts;
        Self(Arc::new(Inner {
            registry,
            ipam,
            systemd,
            vmds,
            journal,
            unit_control,
            events: Events::new(),
            idle,
            deletions: Deletions::default(),
            sessions: Arc::new(Semaphore::new(SESSIONS)),
            ending: CancellationToken::new(),
        }))
    }

    /// Marks something as under way, so that the service does not exit.
    #[must_use]
    pub fn busy(&self) -> Busy {
        self.0.idle.busy()
    }

    /// Cancelled when the service ends: then streams that have no end of their own are to end.
    #[must_use]
    pub fn ending(&self) -> &CancellationToken {
        &self.0.ending
    }

    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.0.registry
    }

    /// A place for one more stream or session.
    pub(crate) fn session(&self) -> Result<Session, Problem> {
        match Arc::clone(&self.0.sessions).try_acquire_owned() {
            Ok(place) => Ok(Session {
                _busy: self.busy(),
                _place: place,
            }),
            Err(_) => {
                let detail = format!("{SESSIONS} sessions and streams are open: end one");
                Err(Problem::new(Kind::TooManySessions, detail))
            }
        }
    }

    pub(crate) fn ipam(&self) -> &Ipam {
        &self.0.ipam
    }

    pub(crate) fn systemd(&self) -> &Systemd {
        &self.0.systemd
    }

    pub(crate) fn vmds(&self) -> &Vmds {
        &self.0.vmds
    }

    pub(crate) fn journal(&self) -> &Journal {
        &self.0.journal
    }

    /// What happens to VMs.
    #[must_use]
    pub fn events(&self) -> &Events {
        &self.0.events
    }
}
