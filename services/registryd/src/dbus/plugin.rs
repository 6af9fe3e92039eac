//! A plugin's object. Its properties are read when they are asked for: they are never old.

use volant_spec::PluginRef;
use zbus::{Connection, interface};

use super::{error::Error, objects::Objects};
use crate::{
    Registry, status,
    store::{Plugin, PluginError},
};

pub(super) struct PluginObject {
    registry: Registry,
    objects: Objects,
    /// With its version.
    plugin: PluginRef,
}

impl PluginObject {
    pub(super) fn new(registry: Registry, objects: Objects, plugin: PluginRef) -> Self {
        Self {
            registry,
            objects,
            plugin,
        }
    }

    async fn now(&self) -> zbus::fdo::Result<Plugin> {
        let found = self.registry.plugins(Some(self.plugin.clone())).await;
        let mut found = found.map_err(|error| Error::property(&error))?;
        let gone = || Error::property(&PluginError::NotFound(self.plugin.clone()));
        found.pop().ok_or_else(gone)
    }

    async fn set_enabled_to(&self, on: bool, bus: &Connection) -> Result<(), Error> {
        self.registry.enable_plugin(self.plugin.clone(), on).await?;
        Ok(self.objects.follow(bus).await?)
    }
}

#[interface(name = "com.volantvm.Registry1.Plugin")]
impl PluginObject {
    /// Lets new VMs be made of it.
    async fn enable(&self, #[zbus(connection)] bus: &Connection) -> Result<(), Error> {
        self.set_enabled_to(true, bus).await
    }

    /// Lets no new VMs be made of it.
    async fn disable(&self, #[zbus(connection)] bus: &Connection) -> Result<(), Error> {
        self.set_enabled_to(false, bus).await
    }

    /// Removes it.
    async fn remove(&self) -> Result<(), Error> {
        // The object goes once this is answered.
        self.registry
            .remove_plugin(self.plugin.clone(), false)
            .await?;
        Ok(())
    }

    /// Reads it again: what was looked at, whether it is well, and details.
    async fn verify(&self) -> Result<Vec<(String, bool, String)>, Error> {
        let mut found = Vec::new();
        let verified = self.registry.verify(Some(self.plugin.clone()), |one| {
            found.push((one.subject, one.ok, one.detail));
            true
        });
        let verified = verified.await;
        verified.map_err(|error| Error::of(&status::of_verify(&error)))?;
        Ok(found)
    }

    #[zbus(property(emits_changed_signal = "const"))]
    async fn name(&self) -> String {
        self.plugin.name.to_string()
    }

    #[zbus(property(emits_changed_signal = "const"))]
    async fn version(&self) -> String {
        let version = self.plugin.version.as_ref();
        version.map(ToString::to_string).unwrap_or_default()
    }

    #[zbus(property)]
    async fn enabled(&self) -> zbus::fdo::Result<bool> {
        Ok(self.now().await?.enabled)
    }

    #[zbus(property)]
    async fn manifest_digest(&self) -> zbus::fdo::Result<String> {
        Ok(self.now().await?.manifest_digest.to_string())
    }

    #[zbus(property)]
    async fn size_bytes(&self) -> zbus::fdo::Result<u64> {
        Ok(self.now().await?.size_bytes)
    }

    #[zbus(property)]
    async fn installed_at(&self) -> zbus::fdo::Result<String> {
        Ok(self.now().await?.installed_at)
    }

    #[zbus(property)]
    async fn signed_by(&self) -> zbus::fdo::Result<(String, String)> {
        let by = self.now().await?.signed_by;
        Ok(by.map(|by| (by.key, by.key_id)).unwrap_or_default())
    }

    #[zbus(property)]
    async fn source(&self) -> zbus::fdo::Result<String> {
        Ok(self.now().await?.source)
    }

    #[zbus(property(emits_changed_signal = "invalidates"))]
    async fn manifest(&self) -> zbus::fdo::Result<String> {
        let found = self.registry.plugin(self.plugin.clone()).await;
        let (_, original) = found.map_err(|error| Error::property(&error))?;
        // It was parsed as JSON, which is UTF-8.
        Ok(String::from_utf8_lossy(&original.manifest).into_owned())
    }
}
