//! Plugins: a name, a manifest, and the artifacts that it names.

use rusqlite::{Connection, OptionalExtension, Row, params};
use volant_spec::{Manifest, Name};

use super::{Store, StoreError, blobs};

/// An installed plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plugin {
    pub name: String,
    pub version: String,
    /// As it was given, byte for byte.
    pub manifest: Vec<u8>,
    /// RFC 3339.
    pub installed_at: String,
    /// Of all its artifacts together.
    pub size_bytes: u64,
}

/// Why a plugin was not answered, kept or removed.
#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    #[error("no plugin '{0}' is installed; `volar plugins list` shows those there are")]
    NotFound(Name),
    #[error("the plugin '{plugin}' is in use by {}; delete them first", some_of(.vms))]
    InUse { plugin: Name, vms: Vec<String> },
    #[error(
        "the artifact '{artifact}' of the plugin '{plugin}' is not in the store; upload it and install again"
    )]
    NoArtifact {
        plugin: Name,
        artifact: &'static str,
    },
    #[error(transparent)]
    Store(#[from] StoreError),
}

const COLUMNS: &str = "SELECT p.name, p.version, p.manifest, p.installed_at,
        (SELECT coalesce(sum(b.size), 0) FROM plugin_blobs pb JOIN blobs b USING (digest) WHERE pb.plugin = p.name)
     FROM plugins p";

impl Store {
    /// Installs a plugin, in place of another of its name. `bytes` are the manifest's own. The same bytes again change
    /// nothing. Its artifacts must be in the store.
    ///
    /// # Errors
    /// An artifact is not there, or the store failed: nothing is changed then.
    pub fn put_plugin(
        &self,
        manifest: &Manifest,
        bytes: &[u8],
        now: jiff::Timestamp,
    ) -> Result<Plugin, PluginError> {
        let name = manifest.name.as_str();
        let failed = |source| self.failed("install a plugin", source);
        let mut db = self.lock();
        for (artifact, spec) in manifest.artifacts() {
            if self.stored_size(&db, &spec.checksum)?.is_none() {
                return Err(PluginError::NoArtifact {
                    plugin: manifest.name.clone(),
                    artifact,
                });
            }
        }
        if let Some(same) = self
            .plugin_in(&db, &manifest.name)?
            .filter(|plugin| plugin.manifest == bytes)
        {
            return Ok(same);
        }
        let tx = db.transaction().map_err(failed)?;
        let before = self.blobs_of_plugin(&tx, name)?;
        tx.execute(
            "INSERT INTO plugins (name, version, manifest, installed_at) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (name) DO UPDATE SET
                 version = excluded.version, manifest = excluded.manifest, installed_at = excluded.installed_at",
            params![name, manifest.version.as_str(), bytes, now.to_string()],
        )
        .map_err(failed)?;
        tx.execute("DELETE FROM plugin_blobs WHERE plugin = ?1", [name])
            .map_err(failed)?;
        for (_, spec) in manifest.artifacts() {
            tx.execute(
                "INSERT OR IGNORE INTO plugin_blobs (plugin, digest) VALUES (?1, ?2)",
                [name, &spec.checksum.hex()],
            )
            .map_err(failed)?;
        }
        let files = self.forget_unused(&tx, &before)?;
        tx.commit().map_err(failed)?;
        blobs::remove_files(&files);
        self.plugin_in(&db, &manifest.name)?
            .ok_or_else(|| PluginError::NotFound(manifest.name.clone()))
    }

    /// # Errors
    /// There is none of that name, or the store failed.
    pub fn plugin(&self, name: &Name) -> Result<Plugin, PluginError> {
        self.plugin_in(&self.lock(), name)?
            .ok_or_else(|| PluginError::NotFound(name.clone()))
    }

    /// All plugins, by name.
    ///
    /// # Errors
    /// The store failed.
    pub fn plugins(&self) -> Result<Vec<Plugin>, PluginError> {
        let sql = format!("{COLUMNS} ORDER BY p.name");
        Ok(self.query(&self.lock(), &sql, [], read_plugin)?)
    }

    /// The names of all plugins, sorted.
    ///
    /// # Errors
    /// The store failed.
    pub fn plugin_names(&self) -> Result<Vec<String>, PluginError> {
        let sql = "SELECT name FROM plugins ORDER BY name";
        Ok(self.query(&self.lock(), sql, [], |row| row.get(0))?)
    }

    /// Removes a plugin, and the artifacts that nothing else uses.
    ///
    /// # Errors
    /// There is none, VMs use it, or the store failed.
    pub fn remove_plugin(&self, name: &Name) -> Result<(), PluginError> {
        let failed = |source| self.failed("remove a plugin", source);
        let mut db = self.lock();
        let tx = db.transaction().map_err(failed)?;
        let vms = self.query(
            &tx,
            "SELECT name FROM vms WHERE plugin = ?1 ORDER BY name",
            [name.as_str()],
            |row| row.get(0),
        )?;
        if !vms.is_empty() {
            return Err(PluginError::InUse {
                plugin: name.clone(),
                vms,
            });
        }
        let before = self.blobs_of_plugin(&tx, name.as_str())?;
        let removed = tx
            .execute("DELETE FROM plugins WHERE name = ?1", [name.as_str()])
            .map_err(failed)?;
        if removed == 0 {
            return Err(PluginError::NotFound(name.clone()));
        }
        let files = self.forget_unused(&tx, &before)?;
        tx.commit().map_err(failed)?;
        blobs::remove_files(&files);
        Ok(())
    }

    pub(super) fn plugin_in(
        &self,
        db: &Connection,
        name: &Name,
    ) -> Result<Option<Plugin>, StoreError> {
        let sql = format!("{COLUMNS} WHERE p.name = ?1");
        db.query_row(&sql, [name.as_str()], read_plugin)
            .optional()
            .map_err(|source| self.failed("look up a plugin", source))
    }

    fn blobs_of_plugin(&self, db: &Connection, name: &str) -> Result<Vec<String>, StoreError> {
        let sql = "SELECT digest FROM plugin_blobs WHERE plugin = ?1";
        self.query(db, sql, [name], |row| row.get(0))
    }
}

fn read_plugin(row: &Row<'_>) -> rusqlite::Result<Plugin> {
    Ok(Plugin {
        name: row.get(0)?,
        version: row.get(1)?,
        manifest: row.get(2)?,
        installed_at: row.get(3)?,
        size_bytes: row.get(4)?,
    })
}

/// How many names an error tells.
const NAMED: usize = 5;

fn some_of(vms: &[String]) -> String {
    let named: Vec<_> = vms.iter().take(NAMED).map(|vm| format!("'{vm}'")).collect();
    let what = if vms.len() == 1 { "the VM" } else { "the VMs" };
    match vms.len().saturating_sub(NAMED) {
        0 => format!("{what} {}", named.join(", ")),
        more => format!("{what} {} and {more} more", named.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_vms_are_named_and_the_others_counted() {
        let vms = |n: usize| (1..=n).map(|i| format!("v{i}")).collect::<Vec<_>>();
        assert_eq!(some_of(&vms(1)), "the VM 'v1'");
        assert_eq!(some_of(&vms(2)), "the VMs 'v1', 'v2'");
        assert_eq!(
            some_of(&vms(7)),
            "the VMs 'v1', 'v2', 'v3', 'v4', 'v5' and 2 more"
        );
    }
}
