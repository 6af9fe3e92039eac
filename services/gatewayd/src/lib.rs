//! The door of Volant: a REST face on a Unix socket, in front of registryd, ipamd and systemd.
//!
//! It keeps no state: what should exist is registryd's, who has which address is ipamd's, what runs is systemd's. What
//! it does own is the order of the steps when a VM is created or deleted (`lifecycle.rs`).

mod deletion;
pub mod ipam;
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

use std::sync::Arc;

use volant_service::{Busy, Idle};

pub use problem::{Kind, Problem};
pub use systemd::Systemd;

use crate::{deletion::Deletions, ipam::Ipam, registry::Registry};

/// Everything that a request can ask for. Clones share it.
#[derive(Clone, Debug)]
pub struct Gateway(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    registry: Registry,
    ipam: Ipam,
    systemd: Systemd,
    idle: Idle,
    deletions: Deletions,
}

impl Gateway {
    #[must_use]
    pub fn new(registry: Registry, ipam: Ipam, systemd: Systemd, idle: Idle) -> Self {
        Self(Arc::new(Inner {
            registry,
            ipam,
            systemd,
            idle,
            deletions: Deletions::default(),
        }))
    }

    /// Marks something as under way, so that the service does not exit.
    #[must_use]
    pub fn busy(&self) -> Busy {
        self.0.idle.busy()
    }

    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.0.registry
    }

    pub(crate) fn ipam(&self) -> &Ipam {
        &self.0.ipam
    }

    pub(crate) fn systemd(&self) -> &Systemd {
        &self.0.systemd
    }
}
