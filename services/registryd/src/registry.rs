//! The registry's one handle: what every face calls. It puts the store's blocking calls on threads for them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use tokio::sync::OwnedMutexGuard;
use volant_service::{Busy, Idle};
use volant_spec::{Digest, Name};

use crate::{
    fetch::Fetcher,
    sink::Sink,
    status,
    store::{
        BlobError, NewVm, OpenError, OpenVm, Plugin, PluginError, Store, StoreError, UNUSED_FOR,
        Vm, VmError,
    },
};

/// What should exist on this host. Clones are the same registry.
#[derive(Clone, Debug)]
pub struct Registry(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Arc<Store>,
    fetcher: Fetcher,
    idle: Idle,
    /// Who installs a plugin of that name now.
    installing: Mutex<HashMap<Name, Weak<tokio::sync::Mutex<()>>>>,
}

impl Registry {
    /// Calls count as `busy` for as long as they last.
    #[must_use]
    pub fn new(store: Store, fetcher: Fetcher, idle: Idle) -> Self {
        Self(Arc::new(Inner {
            store: Arc::new(store),
            fetcher,
            idle,
            installing: Mutex::default(),
        }))
    }

    pub(crate) fn store(&self) -> Arc<Store> {
        Arc::clone(&self.0.store)
    }

    pub(crate) fn fetcher(&self) -> &Fetcher {
        &self.0.fetcher
    }

    pub(crate) fn busy(&self) -> Busy {
        self.0.idle.busy()
    }

    async fn ask<T: Send + 'static>(&self, act: impl FnOnce(&Store) -> T + Send + 'static) -> T {
        let _busy = self.busy();
        let store = self.store();
        blocking(move || act(&store)).await
    }

    /// Waits until nobody else installs a plugin of that name.
    pub(crate) async fn installing(&self, name: &Name) -> OwnedMutexGuard<()> {
        let lock = {
            let mut all = self
                .0
                .installing
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            all.retain(|_, lock| lock.strong_count() > 0);
            all.get(name).and_then(Weak::upgrade).unwrap_or_else(|| {
                let lock = Arc::default();
                all.insert(name.clone(), Arc::downgrade(&lock));
                lock
            })
        };
        lock.lock_owned().await
    }

    /// The size of an artifact that is there.
    ///
    /// # Errors
    /// The store failed.
    pub async fn blob(&self, digest: Digest) -> Result<Option<u64>, StoreError> {
        self.ask(move |store| store.blob(&digest)).await
    }

    /// Begins to receive an artifact.
    ///
    /// # Errors
    /// The store failed.
    pub async fn receive(&self) -> Result<Sink, BlobError> {
        Sink::open(self.store()).await
    }

    /// # Errors
    /// There is none, or the store failed.
    pub async fn plugin(&self, name: Name) -> Result<Plugin, PluginError> {
        self.ask(move |store| store.plugin(&name)).await
    }

    /// All plugins, by name.
    ///
    /// # Errors
    /// The store failed.
    pub async fn plugins(&self) -> Result<Vec<Plugin>, PluginError> {
        self.ask(Store::plugins).await
    }

    /// # Errors
    /// The store failed.
    pub async fn plugin_names(&self) -> Result<Vec<String>, PluginError> {
        self.ask(Store::plugin_names).await
    }

    /// # Errors
    /// There is none, VMs use it, or the store failed.
    pub async fn remove_plugin(&self, name: Name) -> Result<(), PluginError> {
        self.ask(move |store| store.remove_plugin(&name)).await?;
        self.collect_garbage().await;
        Ok(())
    }

    /// Defines a VM; durable when answered.
    ///
    /// # Errors
    /// As [`Store::create_vm`].
    pub async fn create_vm(&self, new: NewVm) -> Result<Vm, VmError> {
        self.ask(move |store| store.create_vm(&new, jiff::Timestamp::now()))
            .await
    }

    /// # Errors
    /// There is none, or the store failed.
    pub async fn vm(&self, name: Name) -> Result<Vm, VmError> {
        self.ask(move |store| store.vm(&name)).await
    }

    /// All VMs, by name.
    ///
    /// # Errors
    /// The store failed.
    pub async fn vms(&self) -> Result<Vec<Vm>, VmError> {
        self.ask(Store::vms).await
    }

    /// Marks a VM as being deleted. Idempotent.
    ///
    /// # Errors
    /// There is none, or the store failed.
    pub async fn delete_vm(&self, name: Name) -> Result<Vm, VmError> {
        self.ask(move |store| store.delete_vm(&name)).await
    }

    /// Removes a VM that is marked. Idempotent.
    ///
    /// # Errors
    /// It is not marked, or the store failed.
    pub async fn purge_vm(&self, name: Name) -> Result<(), VmError> {
        self.ask(move |store| store.purge_vm(&name)).await?;
        self.collect_garbage().await;
        Ok(())
    }

    /// A VM for its supervisor.
    ///
    /// # Errors
    /// As [`Store::open_vm`].
    pub async fn open_vm(&self, name: Name) -> Result<OpenVm, OpenError> {
        self.ask(move |store| store.open_vm(&name)).await
    }

    /// Removes artifacts that nothing has used for an hour. A failure is logged: the next time does it.
    pub async fn collect_garbage(&self) {
        match self.ask(|store| store.collect(UNUSED_FOR)).await {
            Ok(0) => {}
            Ok(removed) => tracing::info!("removed {removed} artifacts that nothing used"),
            Err(error) => tracing::warn!(
                "cannot remove artifacts that nothing uses: {}",
                status::chain(&error)
            ),
        }
    }
}

/// Does `act` on a thread that may block.
pub(crate) async fn blocking<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(act).await {
        Ok(answer) => answer,
        // It is never cancelled; a panic is the caller's as if there was no thread between.
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
