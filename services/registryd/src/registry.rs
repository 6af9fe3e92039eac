//! The registry's one handle: what every face calls. It puts the store's blocking calls on threads for them.

use std::{sync::Arc, time::SystemTime};

use tokio::sync::{OwnedMutexGuard, watch};
use volant_service::{Busy, Idle};
use volant_spec::{
    Digest, Name, PluginRef,
    config::ConfigError,
    manifest::Version,
    vm_config::{Effective, SecretName, VmConfig},
};

use crate::{
    downloads::{Downloads, Shared},
    fetch::Fetcher,
    keyed::Keyed,
    readings::Readings,
    sink::Sink,
    status,
    store::{
        BlobError, Collect, Collected, ConfigVersion, NewConfig, NewVm, OpenError, OpenVm,
        Original, Plugin, PluginError, SecretValue, Store, StoreError, Vm, VmDevices, VmError,
    },
    trust::{Settings, Trust},
};

/// What should exist on this host. Clones are the same registry.
#[derive(Clone, Debug)]
pub struct Registry(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Arc<Store>,
    fetcher: Fetcher,
    settings: Settings,
    idle: Idle,
    /// Who puts a plugin of that name into the store now.
    installing: Keyed<Name>,
    downloads: Downloads,
    readings: Readings,
    /// Grows when plugins are installed, removed or changed.
    changes: watch::Sender<u64>,
}

impl Registry {
    /// Calls count as `busy` for as long as they last.
    #[must_use]
    pub fn new(store: Store, fetcher: Fetcher, settings: Settings, idle: Idle) -> Self {
        Self(Arc::new(Inner {
            store: Arc::new(store),
            fetcher,
            settings,
            idle,
            installing: Keyed::default(),
            downloads: Downloads::default(),
            readings: Readings::default(),
            changes: watch::Sender::new(0),
        }))
    }

    pub(crate) fn store(&self) -> Arc<Store> {
        Arc::clone(&self.0.store)
    }

    pub(crate) fn fetcher(&self) -> &Fetcher {
        &self.0.fetcher
    }

    pub(crate) fn readings(&self) -> &Readings {
        &self.0.readings
    }

    pub(crate) fn busy(&self) -> Busy {
        self.0.idle.busy()
    }

    /// Changes when plugins were installed, removed or changed, by whomever.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    pub(crate) fn changed(&self) {
        self.0.changes.send_modify(|generation| *generation += 1);
    }

    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        act: impl FnOnce(&Store) -> T + Send + 'static,
    ) -> T {
        let _busy = self.busy();
        let store = self.store();
        blocking(move || act(&store)).await
    }

    /// What the administrator trusts, as it is now.
    ///
    /// # Errors
    /// The configuration is not valid, or cannot be read.
    pub async fn trust(&self) -> Result<Trust, ConfigError> {
        let settings = self.0.settings.clone();
        blocking(move || settings.read()).await
    }

    /// Waits until nobody else puts a plugin of that name into the store.
    pub(crate) async fn installing(&self, name: &Name) -> OwnedMutexGuard<()> {
        self.0.installing.lock(name).await
    }

    /// The download of that artifact, which those who need it share.
    pub(crate) fn download_of(&self, digest: &Digest) -> Arc<Shared> {
        self.0.downloads.of(digest)
    }

    /// The size of an artifact that is there and whole. It is kept for a client that means to install it.
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

    /// That version; without one the newest that is enabled, else the newest. And what it was installed from.
    ///
    /// # Errors
    /// There is none, or the store failed.
    pub async fn plugin(&self, plugin: PluginRef) -> Result<(Plugin, Original), PluginError> {
        self.ask(move |store| {
            let found = store.plugin(&plugin)?;
            let original = store.original(&found.name, &found.version)?;
            Ok((found, original))
        })
        .await
    }

    /// What exactly this version was installed from.
    ///
    /// # Errors
    /// There is none, or the store failed.
    pub async fn original(&self, name: Name, version: Version) -> Result<Original, PluginError> {
        self.ask(move |store| store.original(&name, &version)).await
    }

    /// All plugins, or those that fit: by name, then the newest first.
    ///
    /// # Errors
    /// There is none that fits, or the store failed.
    pub async fn plugins(&self, fitting: Option<PluginRef>) -> Result<Vec<Plugin>, PluginError> {
        self.ask(move |store| store.plugins(fitting.as_ref())).await
    }

    /// # Errors
    /// The store failed.
    pub async fn plugin_names(&self) -> Result<Vec<String>, PluginError> {
        self.ask(Store::plugin_names).await
    }

    /// Enables or disables that version, or all of that name. Idempotent.
    ///
    /// # Errors
    /// There is none, or the store failed.
    pub async fn enable_plugin(
        &self,
        plugin: PluginRef,
        on: bool,
    ) -> Result<Vec<Plugin>, PluginError> {
        let changed = self
            .ask(move |store| store.enable_plugin(&plugin, on))
            .await?;
        self.changed();
        Ok(changed)
    }

    /// # Errors
    /// As [`Store::remove_plugin`].
    pub async fn remove_plugin(
        &self,
        plugin: PluginRef,
        all_versions: bool,
    ) -> Result<(), PluginError> {
        self.ask(move |store| store.remove_plugin(&plugin, all_versions))
            .await?;
        self.changed();
        self.tidy().await;
        Ok(())
    }

    /// Defines a VM; durable when answered.
    ///
    /// # Errors
    /// As [`Store::create_vm`].
    pub async fn create_vm(&self, new: NewVm) -> Result<Vm, VmError> {
        self.check_shares(&new.name, &new.config).await?;
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
        self.tidy().await;
        Ok(())
    }

    /// A version of a VM's configuration, absent: the newest; and all that follows from it and its plugin.
    ///
    /// # Errors
    /// As [`Store::vm_config`].
    pub async fn vm_config(
        &self,
        name: Name,
        version: Option<u64>,
    ) -> Result<(ConfigVersion, Effective), VmError> {
        self.ask(move |store| store.vm_config(&name, version)).await
    }

    /// The versions of a VM's configuration, the newest first.
    ///
    /// # Errors
    /// There is no such VM, or the store failed.
    pub async fn vm_configs(&self, name: Name) -> Result<Vec<ConfigVersion>, VmError> {
        self.ask(move |store| store.vm_configs(&name)).await
    }

    /// Makes a configuration the newest version. Idempotent.
    ///
    /// # Errors
    /// As [`Store::set_vm_config`].
    pub async fn set_vm_config(
        &self,
        name: Name,
        new: NewConfig,
    ) -> Result<(ConfigVersion, Effective), VmError> {
        self.check_shares(&name, &new.config).await?;
        self.ask(move |store| store.set_vm_config(&name, &new, jiff::Timestamp::now()))
            .await
    }

    /// Whether the administrator lets VMs have the directories of the host that a configuration asks for. A start looks again, and
    /// at where they really are.
    async fn check_shares(&self, vm: &Name, config: &VmConfig) -> Result<(), VmError> {
        let shares = config
            .volumes
            .iter()
            .filter_map(|volume| Some((&volume.name, volume.host_path.as_ref()?)));
        let shares: Vec<_> = shares.collect();
        if shares.is_empty() {
            return Ok(());
        }
        let host = self.trust().await?.config;
        match shares.iter().find(|(_, path)| !host.vm.may_share(path)) {
            None => Ok(()),
            Some((volume, path)) => Err(VmError::NotShared {
                vm: vm.clone(),
                volume: (*volume).clone(),
                path: (*path).clone(),
            }),
        }
    }

    /// Keeps a secret for a VM, or replaces it.
    ///
    /// # Errors
    /// As [`Store::put_vm_secret`].
    pub async fn put_vm_secret(
        &self,
        name: Name,
        secret: SecretName,
        value: SecretValue,
    ) -> Result<(), VmError> {
        self.ask(move |store| store.put_vm_secret(&name, &secret, &value))
            .await
    }

    /// Forgets a secret. Idempotent.
    ///
    /// # Errors
    /// There is no such VM, or the store failed.
    pub async fn remove_vm_secret(&self, name: Name, secret: SecretName) -> Result<(), VmError> {
        self.ask(move |store| store.remove_vm_secret(&name, &secret))
            .await
    }

    /// A VM for its supervisor.
    ///
    /// # Errors
    /// As [`Store::open_vm`].
    pub async fn open_vm(&self, name: Name) -> Result<OpenVm, OpenError> {
        self.ask(move |store| store.open_vm(&name)).await
    }

    /// What a VM's devices are lent by.
    ///
    /// # Errors
    /// As [`Store::vm_devices`].
    pub async fn vm_devices(&self, name: Name) -> Result<VmDevices, OpenError> {
        self.ask(move |store| store.vm_devices(&name)).await
    }

    /// Removes what nothing refers to; an upload still waits for its install.
    ///
    /// # Errors
    /// The store failed.
    pub async fn collect_garbage(&self) -> Result<Collected, StoreError> {
        self.ask(|store| store.collect(Collect::All, SystemTime::now()))
            .await
    }

    /// Removes artifacts that nobody wanted for an hour. A failure is logged: the next time does it.
    pub async fn tidy(&self) {
        let collected = self.ask(|store| store.collect(Collect::Stale, SystemTime::now()));
        match collected.await {
            Ok(Collected { artifacts: 0, .. }) => {}
            Ok(Collected { artifacts, bytes }) => {
                tracing::info!("removed {artifacts} artifacts ({bytes} bytes) that nothing used");
            }
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
