//! What the kernel is told: the bridge, the taps and the firewall. Everything here can be said again at any time; what
//! is right already is not touched.

mod bridge;
mod link;
mod sysctl;
pub mod tap;

use std::{io, os::fd::OwnedFd, sync::Arc};

use ipnet::Ipv4Net;
use rtnetlink::Handle;
use volant_spec::{Name, config};

use crate::{
    firewall::{self, FirewallError, Guard},
    pool::Lease,
};

/// The host's network, of which the bridge and what hangs on it are ours.
#[derive(Clone)]
pub struct Network {
    handle: Handle,
    settings: config::Network,
    guard: Arc<Guard>,
}

impl std::fmt::Debug for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Network")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

/// Why the host's network is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error("cannot talk to the kernel by netlink")]
    Connect(#[source] io::Error),
    #[error("cannot {act}")]
    Netlink { act: String, source: io::Error },
    #[error(
        "'{name}' is a network link, but no bridge; choose another network.bridge or remove the link"
    )]
    NoBridge { name: String },
    #[error("the network link '{name}' was removed by somebody while it was set up")]
    Vanished { name: String },
    #[error("cannot set {path} to {value}")]
    Setting {
        path: String,
        value: String,
        source: io::Error,
    },
    #[error("cannot open the tap '{name}' of VM '{vm}'")]
    Tap {
        name: String,
        vm: Name,
        source: io::Error,
    },
    #[error(
        "the tap '{name}' of VM '{vm}' is still held by a process of its last run; stop that first"
    )]
    TapInUse { name: String, vm: Name },
    #[error("cannot open the tap '{name}' of VM '{vm}': another network link has that name")]
    NameTaken { name: String, vm: Name },
    #[error(transparent)]
    Firewall(#[from] FirewallError),
}

impl NetworkError {
    /// Whether it is about a tap that may go by itself.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::TapInUse { .. } | Self::NameTaken { .. })
    }

    fn netlink(act: impl Into<String>, error: rtnetlink::Error) -> Self {
        let source = match error {
            rtnetlink::Error::NetlinkError(message) => message.to_io(),
            other => io::Error::other(other),
        };
        Self::Netlink {
            act: act.into(),
            source,
        }
    }
}

/// The bridge, as its ports need it.
#[derive(Clone, Copy, Debug)]
struct Bridge {
    index: u32,
    /// Guests are held to their leases by rules that every frame must come by.
    guarded: bool,
}

impl Network {
    /// Opens the way to the kernel, in the network namespace of the calling thread. Changes nothing.
    ///
    /// # Errors
    /// There is no netlink socket to be had.
    pub fn open(settings: config::Network) -> Result<Self, NetworkError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(NetworkError::Connect)?;
        tokio::spawn(connection);
        Ok(Self {
            handle,
            settings,
            guard: Arc::default(),
        })
    }

    #[must_use]
    pub fn settings(&self) -> &config::Network {
        &self.settings
    }

    /// Makes bridge, forwarding, firewall and the taps of running VMs be as they should.
    ///
    /// # Errors
    /// The first thing that could not be done; what was done before stays.
    pub async fn ensure(&self, leases: &[Lease]) -> Result<(), NetworkError> {
        self.ensure_bridge(leases).await.map(drop)
    }

    /// Opens the tap of a VM, after [`Self::ensure`].
    ///
    /// # Errors
    /// As there; or an older tap of the VM is there still, and may go.
    pub async fn attach(&self, lease: &Lease, leases: &[Lease]) -> Result<OwnedFd, NetworkError> {
        let bridge = self.ensure_bridge(leases).await?;
        tap::open(&self.handle, bridge, lease).await
    }

    /// Takes away what held guests to leases that are not among these.
    ///
    /// # Errors
    /// It could not be taken away; the next [`Self::ensure`] tries again.
    pub async fn forget(&self, leases: &[Lease]) -> Result<(), NetworkError> {
        self.guard.ensure(leases).await?;
        Ok(())
    }

    /// Whether the VM has no tap any more.
    ///
    /// # Errors
    /// It has.
    pub async fn detached(&self, lease: &Lease) -> Result<(), NetworkError> {
        tap::gone(&self.handle, lease).await
    }

    /// Whether no link has the name of the VM's tap.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub async fn is_free(&self, lease: &Lease) -> Result<bool, NetworkError> {
        let name = tap::name(lease.cid);
        let links = link::all(&self.handle).await?;
        Ok(!links.iter().any(|link| link.name == name))
    }

    /// Takes everything of ours away: rules in others' tables, our table, our bridges. Forwarding stays as it is, as
    /// others may rely on it by now.
    ///
    /// # Errors
    /// What could not be removed.
    pub async fn teardown(&self) -> Result<(), NetworkError> {
        firewall::remove().await?;
        for link in link::all(&self.handle).await? {
            if link.is_our_bridge() {
                bridge::remove(&self.handle, &link).await?;
            }
        }
        Ok(())
    }

    async fn ensure_bridge(&self, leases: &[Lease]) -> Result<Bridge, NetworkError> {
        let (name, subnet) = (self.settings.bridge.as_str(), self.settings.subnet);
        let address = Ipv4Net::new_assert(subnet.gateway(), subnet.net().prefix_len());
        let index = bridge::ensure(&self.handle, name, address).await?;
        sysctl::forward_ipv4()?;
        firewall::ensure(name, subnet.net()).await?;
        let guarded = self.guard.ensure(leases).await?;
        let bridge = Bridge { index, guarded };
        tap::mend(&self.handle, bridge, leases).await?;
        Ok(bridge)
    }
}
