//! Keeps an object on the bus for each plugin that is installed: what was missed is made up for the next time.

use std::{collections::BTreeMap, sync::Arc};

use tokio::sync::Mutex;
use volant_dbus::registry::plugin_path;
use volant_spec::PluginRef;
use zbus::Connection;

use super::plugin::PluginObject;
use crate::{Registry, status::chain, store::Plugin};

/// The plugins' objects. Clones are the same.
#[derive(Clone, Debug)]
pub(super) struct Objects(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    registry: Registry,
    /// What the bus was told last, by path.
    shown: Mutex<BTreeMap<String, Plugin>>,
}

impl Objects {
    pub(super) fn new(registry: Registry) -> Self {
        Self(Arc::new(Inner {
            registry,
            shown: Mutex::default(),
        }))
    }

    /// Makes the objects those of the plugins that are installed now, with the signals that this takes.
    pub(super) async fn follow(&self, bus: &Connection) -> zbus::Result<()> {
        let mut shown = self.0.shown.lock().await;
        let plugins = self.0.registry.plugins(None).await;
        let plugins = plugins.map_err(|error| zbus::Error::Failure(chain(&error)))?;
        let now: BTreeMap<_, _> = plugins
            .into_iter()
            .map(|plugin| {
                (
                    plugin_path(plugin.name.as_str(), plugin.version.as_str()),
                    plugin,
                )
            })
            .collect();
        let gone: Vec<_> = shown
            .keys()
            .filter(|path| !now.contains_key(*path))
            .cloned()
            .collect();
        for path in gone {
            bus.object_server()
                .remove::<PluginObject, _>(path.as_str())
                .await?;
            shown.remove(&path);
        }
        for (path, plugin) in now {
            match shown.get(&path) {
                None => self.show(bus, &path, &plugin).await?,
                Some(before) => changed(bus, &path, before, &plugin).await?,
            }
            shown.insert(path, plugin);
        }
        Ok(())
    }

    async fn show(&self, bus: &Connection, path: &str, plugin: &Plugin) -> zbus::Result<()> {
        let this = PluginRef {
            name: plugin.name.clone(),
            version: Some(plugin.version.clone()),
        };
        let object = PluginObject::new(self.0.registry.clone(), self.clone(), this);
        bus.object_server().at(path, object).await.map(drop)
    }
}

/// Tells which properties have other values.
async fn changed(bus: &Connection, path: &str, before: &Plugin, now: &Plugin) -> zbus::Result<()> {
    let interface = bus
        .object_server()
        .interface::<_, PluginObject>(path)
        .await?;
    let (object, emitter) = (interface.get().await, interface.signal_emitter());
    if before.enabled != now.enabled {
        object.enabled_changed(emitter).await?;
    }
    if before.signed_by != now.signed_by {
        object.signed_by_changed(emitter).await?;
    }
    if before.source != now.source {
        object.source_changed(emitter).await?;
    }
    if before.manifest_digest != now.manifest_digest {
        object.manifest_digest_changed(emitter).await?;
        object.size_bytes_changed(emitter).await?;
        object.installed_at_changed(emitter).await?;
        object.manifest_invalidate(emitter).await?;
    }
    Ok(())
}
