//! Plugins: a name, a version, a manifest, and the artifacts that it names. Several versions stand side by side.

use std::{collections::HashMap, str::FromStr};

use rusqlite::{Connection, OptionalExtension, Row, params, types::Type};
use volant_spec::{Digest, Manifest, Name, PluginRef, manifest::Version};
use volant_trust::Accepted;

use super::{Store, StoreError, blobs, digests};

/// An installed version of a plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plugin {
    pub name: Name,
    pub version: Version,
    pub description: String,
    pub enabled: bool,
    /// Of the manifest's bytes.
    pub manifest_digest: Digest,
    /// RFC 3339.
    pub installed_at: String,
    /// Of all its artifacts together.
    pub size_bytes: u64,
    /// The key whose signature was verified when it was installed.
    pub signed_by: Option<SignedBy>,
    /// A URL without what may be secret in it, an `oci://` reference, or empty for an upload.
    pub source: String,
    /// The VMs that were created from it, by name.
    pub vms: Vec<String>,
}

/// Which key made a signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedBy {
    /// The key's name among the trusted ones at that time.
    pub key: String,
    /// 16 hex digits.
    pub key_id: String,
    /// The signature's trusted comment.
    pub comment: String,
}

/// What a plugin was installed from, byte for byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Original {
    pub manifest: Vec<u8>,
    pub signature: Option<Vec<u8>>,
}

/// A plugin that is to be installed.
#[derive(Clone, Debug)]
pub struct NewPlugin {
    /// What is in `original.manifest`.
    pub manifest: Manifest,
    pub original: Original,
    pub signed_by: Option<SignedBy>,
    /// What is remembered of it for ever, if its signature was verified.
    pub accepted: Option<Accepted>,
    pub source: String,
}

/// Why a plugin was not answered, kept or removed.
#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    #[error("no plugin '{0}' is installed; `volar plugins list` shows those there are")]
    NotFound(PluginRef),
    #[error("the plugin '{plugin}' is in use by {}; delete them first", some_of("VM", .vms))]
    InUse { plugin: PluginRef, vms: Vec<String> },
    #[error(
        "the plugin '{plugin}' is installed in {}; name one as '{plugin}@VERSION', or remove all versions",
        some_of("version", .versions)
    )]
    SeveralVersions { plugin: Name, versions: Vec<String> },
    #[error(
        "the artifact '{artifact}' of the plugin '{plugin}' is not in the store; upload it and install again"
    )]
    NoArtifact { plugin: Name, artifact: String },
    #[error(transparent)]
    Store(#[from] StoreError),
}

const COLUMNS: &str =
    "SELECT p.name, p.version, p.description, p.enabled, p.manifest_digest, p.installed_at,
        (SELECT coalesce(sum(b.size), 0) FROM plugin_blobs pb JOIN blobs b USING (digest)
         WHERE pb.plugin = p.name AND pb.version = p.version),
        p.signed_key, p.signed_key_id, p.signed_comment, p.source
     FROM plugins p";

impl Store {
    /// Installs a plugin, in place of another of its name and version. The same bytes again change nothing but what is
    /// known of their signature. Its artifacts must be in the store.
    ///
    /// # Errors
    /// An artifact is not there, or the store failed: nothing is changed then.
    pub fn put_plugin(&self, new: &NewPlugin, now: jiff::Timestamp) -> Result<Plugin, PluginError> {
        let (name, version) = (&new.manifest.name, &new.manifest.version);
        let this = exactly(name, version);
        let failed = |source| self.failed("install a plugin", source);
        let mut db = self.lock();
        for artifact in new.manifest.artifacts() {
            if self.stored_size(&db, &artifact.checksum)?.is_none() {
                return Err(PluginError::NoArtifact {
                    plugin: name.clone(),
                    artifact: artifact.field,
                });
            }
        }
        let digest = digests::of(&new.original.manifest);
        let there = self.plugins_in(&db, &this)?.pop();
        let same = there.is_some_and(|there| there.manifest_digest == digest);
        let tx = db.transaction().map_err(failed)?;
        let mut files = Vec::new();
        if !same {
            let before = self.blobs_of_plugin(&tx, &this)?;
            tx.execute(
                "INSERT INTO plugins (name, version, manifest, manifest_digest, description, enabled, installed_at,
                     source)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
                 ON CONFLICT (name, version) DO UPDATE SET
                     manifest = excluded.manifest, manifest_digest = excluded.manifest_digest,
                     description = excluded.description, installed_at = excluded.installed_at,
                     source = excluded.source",
                params![
                    name.as_str(),
                    version.as_str(),
                    new.original.manifest,
                    digest.to_string(),
                    new.manifest.description.as_deref().unwrap_or_default(),
                    new.manifest.enabled,
                    now.to_string(),
                    new.source,
                ],
            )
            .map_err(failed)?;
            tx.execute(
                "DELETE FROM plugin_blobs WHERE plugin = ?1 AND version = ?2",
                [name.as_str(), version.as_str()],
            )
            .map_err(failed)?;
            for artifact in new.manifest.artifacts() {
                let hex = artifact.checksum.hex();
                tx.execute(
                    "INSERT OR IGNORE INTO plugin_blobs (plugin, version, digest) VALUES (?1, ?2, ?3)",
                    [name.as_str(), version.as_str(), &hex],
                )
                .map_err(failed)?;
            }
            files = self.forget_unused(&tx, &before)?;
        }
        if !same || new.signed_by.is_some() {
            let signed = new.signed_by.as_ref();
            tx.execute(
                "UPDATE plugins SET signature = ?3, signed_key = ?4, signed_key_id = ?5, signed_comment = ?6
                 WHERE name = ?1 AND version = ?2",
                params![
                    name.as_str(),
                    version.as_str(),
                    new.original.signature,
                    signed.map(|by| &by.key),
                    signed.map(|by| &by.key_id),
                    signed.map(|by| &by.comment),
                ],
            )
            .map_err(failed)?;
        }
        for artifact in new.manifest.artifacts() {
            self.installed(&tx, &artifact.checksum)?;
        }
        if let Some(accepted) = &new.accepted {
            self.remember(&tx, name, accepted)?;
        }
        tx.commit().map_err(failed)?;
        blobs::remove_files(&files);
        self.plugins_in(&db, &this)?
            .pop()
            .ok_or(PluginError::NotFound(this))
    }

    /// That version; without one the newest that is enabled, else the newest.
    ///
    /// # Errors
    /// There is none, or the store failed.
    pub fn plugin(&self, plugin: &PluginRef) -> Result<Plugin, PluginError> {
        self.chosen_in(&self.lock(), plugin)?
            .ok_or_else(|| PluginError::NotFound(plugin.clone()))
    }

    /// What exactly this version was installed from.
    ///
    /// # Errors
    /// There is none, or the store failed.
    pub fn original(&self, name: &Name, version: &Version) -> Result<Original, PluginError> {
        self.original_in(&self.lock(), name, version)?
            .ok_or_else(|| PluginError::NotFound(exactly(name, version)))
    }

    /// All plugins, or those that fit: by name, then the newest first.
    ///
    /// # Errors
    /// There is none that fits, or the store failed.
    pub fn plugins(&self, fitting: Option<&PluginRef>) -> Result<Vec<Plugin>, PluginError> {
        let db = self.lock();
        match fitting {
            None => Ok(self.all_plugins(&db)?),
            Some(plugin) => Ok(self.present(&db, plugin)?),
        }
    }

    /// The names of all plugins, sorted, each once.
    ///
    /// # Errors
    /// The store failed.
    pub fn plugin_names(&self) -> Result<Vec<String>, PluginError> {
        let sql = "SELECT DISTINCT name FROM plugins ORDER BY name";
        Ok(self.query(&self.lock(), sql, [], |row| row.get(0))?)
    }

    /// Enables or disables that version, or all of that name. Idempotent.
    ///
    /// # Errors
    /// There is none, or the store failed.
    pub fn enable_plugin(&self, plugin: &PluginRef, on: bool) -> Result<Vec<Plugin>, PluginError> {
        let db = self.lock();
        self.present(&db, plugin)?;
        db.execute(
            "UPDATE plugins SET enabled = ?3 WHERE name = ?1 AND version = coalesce(?2, version)",
            params![plugin.name.as_str(), version_of(plugin), on],
        )
        .map_err(|source| self.failed("change a plugin", source))?;
        Ok(self.plugins_in(&db, plugin)?)
    }

    /// Removes that version, and the artifacts that nothing else uses. Without a version: the only one, or with
    /// `all_versions` all of them.
    ///
    /// # Errors
    /// There is none, there are several, VMs use it, or the store failed: nothing is removed then.
    pub fn remove_plugin(&self, plugin: &PluginRef, all_versions: bool) -> Result<(), PluginError> {
        let failed = |source| self.failed("remove a plugin", source);
        let mut db = self.lock();
        let tx = db.transaction().map_err(failed)?;
        let found = self.present(&tx, plugin)?;
        if found.len() > 1 && !all_versions {
            return Err(PluginError::SeveralVersions {
                plugin: plugin.name.clone(),
                versions: found.iter().map(|one| one.version.to_string()).collect(),
            });
        }
        let vms: Vec<_> = found.iter().flat_map(|one| one.vms.clone()).collect();
        if !vms.is_empty() {
            return Err(PluginError::InUse {
                plugin: plugin.clone(),
                vms,
            });
        }
        let before = self.blobs_of_plugin(&tx, plugin)?;
        tx.execute(
            "DELETE FROM plugins WHERE name = ?1 AND version = coalesce(?2, version)",
            params![plugin.name.as_str(), version_of(plugin)],
        )
        .map_err(failed)?;
        let files = self.forget_unused(&tx, &before)?;
        tx.commit().map_err(failed)?;
        blobs::remove_files(&files);
        Ok(())
    }

    /// As [`Store::plugin`], `None` when there is none.
    pub(super) fn chosen_in(
        &self,
        db: &Connection,
        plugin: &PluginRef,
    ) -> Result<Option<Plugin>, StoreError> {
        let mut found = self.plugins_in(db, plugin)?;
        let at = found.iter().position(|one| one.enabled).unwrap_or(0);
        Ok((!found.is_empty()).then(|| found.swap_remove(at)))
    }

    pub(super) fn original_in(
        &self,
        db: &Connection,
        name: &Name,
        version: &Version,
    ) -> Result<Option<Original>, StoreError> {
        db.query_row(
            "SELECT manifest, signature FROM plugins WHERE name = ?1 AND version = ?2",
            [name.as_str(), version.as_str()],
            |row| {
                Ok(Original {
                    manifest: row.get(0)?,
                    signature: row.get(1)?,
                })
            },
        )
        .optional()
        .map_err(|source| self.failed("look up a plugin", source))
    }

    /// Those that fit, at least one.
    fn present(&self, db: &Connection, plugin: &PluginRef) -> Result<Vec<Plugin>, PluginError> {
        let found = self.plugins_in(db, plugin)?;
        if found.is_empty() {
            return Err(PluginError::NotFound(plugin.clone()));
        }
        Ok(found)
    }

    /// Those that fit, the newest first.
    fn plugins_in(&self, db: &Connection, plugin: &PluginRef) -> Result<Vec<Plugin>, StoreError> {
        let sql = format!("{COLUMNS} WHERE p.name = ?1 AND p.version = coalesce(?2, p.version)");
        let params = params![plugin.name.as_str(), version_of(plugin)];
        let found = self.query(db, &sql, params, read_plugin)?;
        let used = "SELECT plugin, plugin_version, name FROM vms WHERE plugin = ?1 ORDER BY name";
        let used = self.query(db, used, [plugin.name.as_str()], read_use)?;
        Ok(sorted(found, used))
    }

    fn all_plugins(&self, db: &Connection) -> Result<Vec<Plugin>, StoreError> {
        let found = self.query(db, COLUMNS, [], read_plugin)?;
        let used = "SELECT plugin, plugin_version, name FROM vms ORDER BY name";
        let used = self.query(db, used, [], read_use)?;
        Ok(sorted(found, used))
    }

    fn blobs_of_plugin(
        &self,
        db: &Connection,
        plugin: &PluginRef,
    ) -> Result<Vec<String>, StoreError> {
        let sql = "SELECT DISTINCT digest FROM plugin_blobs
                   WHERE plugin = ?1 AND version = coalesce(?2, version)";
        let params = params![plugin.name.as_str(), version_of(plugin)];
        self.query(db, sql, params, |row| row.get(0))
    }
}

fn exactly(name: &Name, version: &Version) -> PluginRef {
    PluginRef {
        name: name.clone(),
        version: Some(version.clone()),
    }
}

fn version_of(plugin: &PluginRef) -> Option<&str> {
    plugin.version.as_ref().map(Version::as_str)
}

/// Plugin, version and VM.
type Use = (String, String, String);

fn sorted(mut plugins: Vec<Plugin>, used: Vec<Use>) -> Vec<Plugin> {
    plugins.sort_by(|a, b| a.name.cmp(&b.name).then_with(|| b.version.cmp(&a.version)));
    let mut vms: HashMap<(String, String), Vec<String>> = HashMap::new();
    for (plugin, version, vm) in used {
        vms.entry((plugin, version)).or_default().push(vm);
    }
    for plugin in &mut plugins {
        let key = (plugin.name.to_string(), plugin.version.to_string());
        plugin.vms = vms.remove(&key).unwrap_or_default();
    }
    plugins
}

fn read_use(row: &Row<'_>) -> rusqlite::Result<Use> {
    Ok((row.get(0)?, row.get(1)?, row.get(2)?))
}

fn read_plugin(row: &Row<'_>) -> rusqlite::Result<Plugin> {
    let key: Option<String> = row.get(7)?;
    let signed_by = match key {
        Some(key) => Some(SignedBy {
            key,
            key_id: row.get(8)?,
            comment: row.get(9)?,
        }),
        None => None,
    };
    Ok(Plugin {
        name: column(row, 0)?,
        version: column(row, 1)?,
        description: row.get(2)?,
        enabled: row.get(3)?,
        manifest_digest: column(row, 4)?,
        installed_at: row.get(5)?,
        size_bytes: row.get(6)?,
        signed_by,
        source: row.get(10)?,
        vms: Vec::new(),
    })
}

/// A column whose text was parsed before it was kept.
pub(super) fn column<T: FromStr<Err: Into<Box<dyn std::error::Error + Send + Sync>>>>(
    row: &Row<'_>,
    at: usize,
) -> rusqlite::Result<T> {
    let text: String = row.get(at)?;
    text.parse().map_err(|error: T::Err| {
        rusqlite::Error::FromSqlConversionFailure(at, Type::Text, error.into())
    })
}

/// How many names an error tells.
const NAMED: usize = 5;

fn some_of(what: &str, names: &[String]) -> String {
    let named: Vec<_> = names
        .iter()
        .take(NAMED)
        .map(|name| format!("'{name}'"))
        .collect();
    let plural = if names.len() == 1 { "" } else { "s" };
    let named = format!("the {what}{plural} {}", named.join(", "));
    match names.len().saturating_sub(NAMED) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_vms_are_named_and_the_others_counted() {
        let vms = |n: usize| (1..=n).map(|i| format!("v{i}")).collect::<Vec<_>>();
        assert_eq!(some_of("VM", &vms(1)), "the VM 'v1'");
        assert_eq!(some_of("VM", &vms(2)), "the VMs 'v1', 'v2'");
        assert_eq!(
            some_of("VM", &vms(7)),
            "the VMs 'v1', 'v2', 'v3', 'v4', 'v5' and 2 more"
        );
    }
}
