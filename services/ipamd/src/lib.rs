//! ipamd: which address belongs to which VM, and how packets flow.
//!
//! [`Ipam`] has every ability; [`grpc`] and [`dbus`] are thin faces on it. A lease is kept before anything is done with
//! it, and what the kernel should have is derived from the leases and the configuration, again at every call: what
//! somebody else took away in between comes back.

pub mod dbus;
mod dns;
pub mod events;
mod firewall;
pub mod grpc;
pub mod network;
pub mod pool;
pub mod store;

use std::{
    net::{IpAddr, Ipv4Addr},
    os::fd::OwnedFd,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ipnet::IpNet;
use tokio::time::{Instant, sleep};
use volant_service::{Idle, chain};
use volant_spec::{Name, config};

use network::{Network, NetworkError};
use pool::{Lease, capacity};
use store::{LeaseError, Store, StoreError};

/// The kernel has no "wait until this tap is gone": look until it is.
const LOOK_AGAIN: Duration = Duration::from_millis(25);

/// The one door. Clones share everything.
#[derive(Clone, Debug)]
pub struct Ipam(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Locked for no `.await`.
    store: Mutex<Store>,
    network: Network,
    /// One at a time tells the kernel things: what is found must still be so when it is mended. Nobody waits for a
    /// process to end meanwhile.
    turn: tokio::sync::Mutex<()>,
    settings: config::Network,
    idle: Idle,
}

/// A VM's place on the bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub lease: Lease,
    /// The lease's address with the subnet's prefix length.
    pub address: IpNet,
    pub gateway: IpAddr,
    pub dns: Vec<IpAddr>,
    pub tap: String,
}

/// The network that addresses are taken from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overview {
    pub bridge: String,
    pub subnet: IpNet,
    pub gateway: IpAddr,
    pub capacity: u64,
    pub leased: u64,
}

/// Why a VM could not be attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    #[error(transparent)]
    Lease(#[from] LeaseError),
    #[error("cannot attach VM '{vm}' to the network")]
    Network { vm: Name, source: NetworkError },
}

/// Why a lease could not be released.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot release the lease of VM '{vm}'")]
    InUse { vm: Name, source: NetworkError },
}

/// Why the network could not be mended.
#[derive(Debug, thiserror::Error)]
pub enum MendError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Network(#[from] NetworkError),
}

impl Ipam {
    /// Opens the leases in `state_dir`. The kernel is told nothing before there is a VM.
    ///
    /// # Errors
    /// The leases cannot be opened.
    pub fn open(network: Network, state_dir: &Path, idle: Idle) -> Result<Self, StoreError> {
        let settings = network.settings().clone();
        let store = Store::open(&state_dir.join("leases.db"))?;
        Ok(Self(Arc::new(Inner {
            store: Mutex::new(store),
            network,
            turn: tokio::sync::Mutex::new(()),
            settings,
            idle,
        })))
    }

    /// Leases an address to the VM (the one it has, if it has one) and opens a tap for it. The tap is gone when the
    /// last holder of the descriptor is.
    ///
    /// # Errors
    /// There is no address for it, or the host's network cannot be set up; a lease that was given stays.
    pub async fn attach(&self, vm: &Name) -> Result<(Place, OwnedFd), AttachError> {
        let _busy = self.0.idle.busy();
        let deadline = Instant::now() + network::tap::PATIENCE;
        let failed = |source| AttachError::Network {
            vm: vm.clone(),
            source,
        };
        let (lease, tap) = loop {
            let turn = self.0.turn.lock().await;
            let lease = self.store().lease(self.0.settings.subnet, vm)?;
            let leases = self.store().leases().map_err(LeaseError::Store)?;
            match self.0.network.attach(&lease, &leases).await {
                Ok(tap) => break (lease, tap),
                Err(error) if !error.may_pass() || Instant::now() >= deadline => {
                    return Err(failed(error));
                }
                Err(_) => drop(turn),
            }
            self.wait_free(&lease, deadline).await.map_err(failed)?;
        };
        let prefix = self.0.settings.subnet.net().prefix_len();
        let place = Place {
            address: IpNet::new_assert(lease.address, prefix),
            gateway: self.gateway().into(),
            dns: dns::for_guests(&self.0.settings.dns),
            tap: network::tap::name(lease.cid),
            lease,
        };
        tracing::info!(
            VOLANT_VM = vm.as_str(),
            "VM '{vm}' has {} by the tap '{}'",
            place.address,
            place.tap
        );
        Ok((place, tap))
    }

    /// Takes a VM's lease away; false if it had none.
    ///
    /// # Errors
    /// The VM is attached still: its address must not become another's.
    pub async fn release(&self, vm: &Name) -> Result<bool, ReleaseError> {
        let _busy = self.0.idle.busy();
        let deadline = Instant::now() + network::tap::PATIENCE;
        let (_turn, lease) = loop {
            let turn = self.0.turn.lock().await;
            let Some(lease) = self.lease_of(vm)? else {
                return Ok(false);
            };
            match self.0.network.detached(&lease).await {
                Ok(()) => break (turn, lease),
                Err(source) if !source.may_pass() || Instant::now() >= deadline => {
                    let vm = vm.clone();
                    return Err(ReleaseError::InUse { vm, source });
                }
                Err(_) => drop(turn),
            }
            sleep(LOOK_AGAIN).await;
        };
        let released = self.store().release(vm)?;
        let leases = self.store().leases()?;
        if let Err(error) = self.0.network.forget(&leases).await {
            tracing::warn!("{}", chain(&error));
        }
        tracing::info!(
            VOLANT_VM = vm.as_str(),
            "VM '{vm}' gave {} back",
            lease.address
        );
        Ok(released)
    }

    /// All leases, by address.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn leases(&self) -> Result<Vec<Lease>, StoreError> {
        let _busy = self.0.idle.busy();
        self.store().leases()
    }

    /// The network that addresses are taken from.
    ///
    /// # Errors
    /// The leases cannot be read.
    pub fn overview(&self) -> Result<Overview, StoreError> {
        let settings = &self.0.settings;
        Ok(Overview {
            bridge: settings.bridge.as_str().to_owned(),
            subnet: IpNet::V4(settings.subnet.net()),
            gateway: self.gateway().into(),
            capacity: capacity(settings.subnet),
            leased: self.leases()?.len() as u64,
        })
    }

    /// Makes the host's network be as its VMs need it. Does nothing on a host without leases.
    ///
    /// # Errors
    /// What could not be mended.
    pub async fn mend(&self) -> Result<(), MendError> {
        let _busy = self.0.idle.busy();
        let _turn = self.0.turn.lock().await;
        let leases = self.store().leases()?;
        if !leases.is_empty() {
            self.0.network.ensure(&leases).await?;
        }
        Ok(())
    }

    /// Waits until the name of the VM's tap is free, or for the deadline. Each look is in turn: the kernel lists one
    /// thing at a time for a socket.
    async fn wait_free(&self, lease: &Lease, deadline: Instant) -> Result<(), NetworkError> {
        while Instant::now() < deadline {
            sleep(LOOK_AGAIN).await;
            let _turn = self.0.turn.lock().await;
            if self.0.network.is_free(lease).await? {
                break;
            }
        }
        Ok(())
    }

    fn lease_of(&self, vm: &Name) -> Result<Option<Lease>, StoreError> {
        let leases = self.store().leases()?;
        Ok(leases.into_iter().find(|lease| lease.vm == *vm))
    }

    fn gateway(&self) -> Ipv4Addr {
        self.0.settings.subnet.gateway()
    }

    /// The store is whole even if a holder of the lock panicked: its changes are transactions.
    fn store(&self) -> MutexGuard<'_, Store> {
        self.0.store.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
