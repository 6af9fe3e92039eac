//! The manager's interface.

use std::collections::HashMap;

use volant_dbus::registry::{VmDefinition, plugin_path};
use volant_spec::{Name, name::NameError};
use zbus::{Connection, OwnedObjectPath, OwnedVariant, interface, message::Header};

use super::{callers::Callers, definition::resolved, error::Error, objects::Objects};
use crate::{
    Install, Original, Registry, Source,
    status::{self, chain},
    store::VmDevices,
};

pub(super) struct Manager {
    registry: Registry,
    objects: Objects,
    callers: Box<dyn Callers>,
}

impl Manager {
    pub(super) fn new(registry: Registry, objects: Objects, callers: impl Callers) -> Self {
        Self {
            registry,
            objects,
            callers: Box::new(callers),
        }
    }
}

/// Name, description, versions, the index, and the versions that are installed.
type Found = (String, String, Vec<String>, String, Vec<String>);

#[interface(name = "com.volantvm.Registry1.Manager")]
impl Manager {
    /// The definition of the VM whose unit the caller is in, and its artifacts, open for reading.
    async fn open_vm(
        &self,
        #[zbus(connection)] bus: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<(VmDefinition, HashMap<String, zbus::OwnedFd>), Error> {
        let _busy = self.registry.busy();
        let name = self.callers.vm_of(bus, &header).await?;
        let open = self.registry.open_vm(name).await.inspect_err(|error| {
            tracing::warn!("{}", chain(error));
        })?;
        Ok(resolved(open))
    }

    /// The user of a VM's VMM, and the devices that it is to have and may have. Root alone is told.
    async fn vm_devices(
        &self,
        name: &str,
        #[zbus(connection)] bus: &Connection,
        #[zbus(header)] header: Header<'_>,
    ) -> Result<(u32, Vec<String>, Vec<String>), Error> {
        let _busy = self.registry.busy();
        if self.callers.user_of(bus, &header).await? != 0 {
            let text = "root alone lends devices, and is told of them";
            return Err(Error::NotRoot(text.to_owned()));
        }
        let name: Name = name.parse().map_err(|error: NameError| {
            Error::Invalid(format!("no VM can be named so: {error}"))
        })?;
        let VmDevices { uid, devices } = self.registry.vm_devices(name).await?;
        Ok((uid, devices.pci, devices.allowlist))
    }

    /// Installs a plugin from a URL, an `oci://` reference, a name of an index, or the manifest among the options.
    async fn install_plugin(
        &self,
        source: &str,
        options: HashMap<String, OwnedVariant>,
        #[zbus(connection)] bus: &Connection,
    ) -> Result<OwnedObjectPath, Error> {
        let _busy = self.registry.busy();
        let install = install(source, options)?;
        let installed = self.registry.install(install, |_| {}).await;
        let plugin = installed
            .map_err(|error| Error::of(&status::of_install(&error)))?
            .plugin;
        self.objects.follow(bus).await?;
        let path = plugin_path(plugin.name.as_str(), plugin.version.as_str());
        Ok(OwnedObjectPath::try_from(path)?)
    }

    /// Removes a version of a plugin.
    async fn remove_plugin(
        &self,
        plugin: &str,
        #[zbus(connection)] bus: &Connection,
    ) -> Result<(), Error> {
        self.registry.remove_plugin(plugin.parse()?, false).await?;
        Ok(self.objects.follow(bus).await?)
    }

    /// Enables or disables a version of a plugin, or all.
    async fn set_plugin_enabled(
        &self,
        plugin: &str,
        enabled: bool,
        #[zbus(connection)] bus: &Connection,
    ) -> Result<(), Error> {
        self.registry
            .enable_plugin(plugin.parse()?, enabled)
            .await?;
        Ok(self.objects.follow(bus).await?)
    }

    /// Reads plugins again, and tells of each part whether it is well.
    async fn verify_plugins(
        &self,
        plugin: &str,
    ) -> Result<Vec<(String, String, String, bool, String)>, Error> {
        let fitting = match plugin {
            "" => None,
            plugin => Some(plugin.parse()?),
        };
        let mut found = Vec::new();
        let verified = self.registry.verify(fitting, |one| {
            found.push((
                one.plugin.into(),
                one.version.into(),
                one.subject,
                one.ok,
                one.detail,
            ));
            true
        });
        let verified = verified.await;
        verified.map_err(|error| Error::of(&status::of_verify(&error)))?;
        Ok(found)
    }

    /// Removes artifacts that nothing refers to.
    async fn collect_garbage(&self) -> Result<(u64, u64), Error> {
        let collected = self.registry.collect_garbage().await;
        let collected = collected.map_err(|error| Error::of(&status::of_store(&error)))?;
        Ok((collected.artifacts, collected.bytes))
    }

    /// Looks into the configured indexes.
    async fn search_plugins(&self, text: &str) -> Result<Vec<Found>, Error> {
        let search = self.registry.search(text).await;
        let search = search.map_err(|error| Error::of(&status::of_search(&error)))?;
        for problem in &search.problems {
            tracing::warn!("{problem}");
        }
        let found = search.plugins.into_iter().map(|one| {
            (
                one.name,
                one.description,
                one.versions,
                one.index,
                one.installed,
            )
        });
        Ok(found.collect())
    }

    /// The names of the installed plugins.
    #[zbus(property(emits_changed_signal = "false"))]
    async fn plugins(&self) -> zbus::fdo::Result<Vec<String>> {
        let names = self.registry.plugin_names().await;
        names.map_err(|error| zbus::fdo::Error::Failed(chain(&error)))
    }

    /// The names of the defined VMs.
    #[zbus(property(emits_changed_signal = "false"))]
    async fn vms(&self) -> zbus::fdo::Result<Vec<String>> {
        let vms = self.registry.vms().await;
        let vms = vms.map_err(|error| zbus::fdo::Error::Failed(chain(&error)))?;
        Ok(vms.into_iter().map(|vm| vm.name).collect())
    }

    /// `require`, `warn` or `off`.
    #[zbus(property(emits_changed_signal = "false"))]
    async fn signature_policy(&self) -> zbus::fdo::Result<String> {
        let _busy = self.registry.busy();
        let trust = self.registry.trust().await;
        let trust = trust.map_err(|error| zbus::fdo::Error::Failed(chain(&error)))?;
        Ok(trust.config.plugins.signatures.as_str().to_owned())
    }

    /// The keys that are trusted: name, id, public key, and the plugins that it may sign.
    #[zbus(property(emits_changed_signal = "false"))]
    async fn trusted_keys(&self) -> zbus::fdo::Result<Vec<(String, String, String, Vec<String>)>> {
        let _busy = self.registry.busy();
        let trust = self.registry.trust().await;
        let trust = trust.map_err(|error| zbus::fdo::Error::Failed(chain(&error)))?;
        let keys = trust.keyring.keys().map(|key| {
            let plugins = key.plugins.iter().map(ToString::to_string).collect();
            let id = key.key.id().to_string();
            (key.name.clone(), id, key.key.to_string(), plugins)
        });
        Ok(keys.collect())
    }
}

fn install(source: &str, options: HashMap<String, OwnedVariant>) -> Result<Install, Error> {
    let wrong = |name: &str| Error::Invalid(format!("the option '{name}' has another type"));
    let (mut manifest, mut signature, mut allow_downgrade) = (None, None, false);
    for (name, value) in options {
        match name.as_str() {
            "allow-downgrade" => allow_downgrade = value.try_into().map_err(|_| wrong(&name))?,
            "manifest" => manifest = Some(value.try_into().map_err(|_| wrong(&name))?),
            "signature" => signature = Some(value.try_into().map_err(|_| wrong(&name))?),
            _ => {
                let name = name.escape_debug();
                return Err(Error::Invalid(format!("there is no option '{name}'")));
            }
        }
    }
    let source = match manifest {
        Some(manifest) if source.is_empty() => Source::Bytes(Original {
            manifest,
            signature,
        }),
        Some(_) => {
            let text = "give a source or a manifest, not both";
            return Err(Error::Invalid(text.to_owned()));
        }
        None => Source::parse(source)?,
    };
    Ok(Install {
        source,
        allow_downgrade,
    })
}
