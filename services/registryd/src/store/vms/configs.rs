//! The versions of a VM's configuration.

use rusqlite::{Connection, OptionalExtension, Row, params};
use volant_spec::{
    Manifest, Name,
    vm_config::{Effective, MAX_BYTES, VmConfig},
};

use super::{
    super::{Store, StoreError},
    Vm, VmError,
};
use crate::disks;

/// So many versions of a configuration are kept for each VM.
pub const KEPT_CONFIGS: u64 = 100;

/// A version of a VM's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigVersion {
    pub version: u64,
    /// JSON: a [`VmConfig`].
    pub config: String,
    /// RFC 3339.
    pub created_at: String,
    /// For people.
    pub reason: String,
}

/// A new configuration for a VM.
#[derive(Clone, Debug)]
pub struct NewConfig {
    pub config: VmConfig,
    /// Absent: whatever the newest version is.
    pub expected: Option<u64>,
    /// For people.
    pub reason: String,
}

impl Store {
    /// A version of a VM's configuration, absent: the newest; and all that follows from it and its plugin.
    ///
    /// # Errors
    /// There is no such VM or version, or the store failed.
    pub fn vm_config(
        &self,
        name: &Name,
        version: Option<u64>,
    ) -> Result<(ConfigVersion, Effective), VmError> {
        let db = self.lock();
        let vm = self.existing_in(&db, name)?;
        let found = match version {
            None => self.newest_in(&db, &vm)?,
            Some(version) => {
                let sql = format!("{SELECT} WHERE vm = ?1 AND version = ?2");
                let mut found = self.query(&db, &sql, params![vm.seq, version], read)?;
                match found.pop() {
                    Some(found) => found,
                    None => return Err(self.no_version_in(&db, &vm, name, version)?),
                }
            }
        };
        let manifest = self.manifest_in(&db, &vm)?;
        let effective = self.effective(name, &found, &manifest)?;
        Ok((found, effective))
    }

    /// All versions of a VM's configuration that are kept, the newest first.
    ///
    /// # Errors
    /// There is no such VM, or the store failed.
    pub fn vm_configs(&self, name: &Name) -> Result<Vec<ConfigVersion>, VmError> {
        let db = self.lock();
        let vm = self.existing_in(&db, name)?;
        let sql = format!("{SELECT} WHERE vm = ?1 ORDER BY version DESC");
        Ok(self.query(&db, &sql, [vm.seq], read)?)
    }

    /// Makes a configuration the newest version; durable when answered. What is the newest already is answered alike, also to
    /// one that expects the version before it. Disks that it names no more stay until the VM is purged.
    ///
    /// # Errors
    /// There is no such VM, it is being deleted, its newest version is not the expected one, the configuration is not valid or does
    /// not go with the plugin, a disk would shrink, or the store failed.
    pub fn set_vm_config(
        &self,
        name: &Name,
        new: &NewConfig,
        now: jiff::Timestamp,
    ) -> Result<(ConfigVersion, Effective), VmError> {
        let failed = |source| self.failed("change a VM's configuration", source);
        let mut db = self.lock();
        let tx = db.transaction().map_err(failed)?;
        let vm = self.existing_in(&tx, name)?;
        if vm.deleting {
            return Err(VmError::BeingDeleted(name.clone()));
        }
        let newest = self.newest_in(&tx, &vm)?;
        let manifest = self.manifest_in(&tx, &vm)?;
        let (json, effective) = self.checked(name, &new.config, &manifest)?;
        if newest.config == json {
            return Ok((newest, effective));
        }
        if let Some(expected) = new.expected.filter(|expected| *expected != newest.version) {
            return Err(VmError::Changed {
                vm: name.clone(),
                expected,
                newest: newest.version,
            });
        }
        self.refuse_to_shrink(name, &vm.uuid, &effective)?;
        let made = ConfigVersion {
            version: newest.version + 1,
            config: json,
            created_at: now.to_string(),
            reason: new.reason.clone(),
        };
        self.put_config_in(&tx, vm.seq, &made, &effective)?;
        tx.execute(
            "DELETE FROM vm_configs WHERE vm = ?1 AND version <= ?2",
            params![vm.seq, made.version.saturating_sub(KEPT_CONFIGS)],
        )
        .map_err(failed)?;
        tx.commit().map_err(failed)?;
        Ok((made, effective))
    }

    /// Its JSON, and what follows from it and a manifest.
    pub(super) fn checked(
        &self,
        vm: &Name,
        config: &VmConfig,
        manifest: &Manifest,
    ) -> Result<(String, Effective), VmError> {
        config.check().map_err(|source| VmError::Config {
            vm: vm.clone(),
            source,
        })?;
        let effective = config.over(manifest).map_err(|source| VmError::Conflict {
            vm: vm.clone(),
            plugin: format!("{}@{}", manifest.name, manifest.version),
            source,
        })?;
        let json = String::from_utf8_lossy(&config.to_json()).into_owned();
        if json.len() > MAX_BYTES {
            return Err(VmError::ConfigTooLarge {
                vm: vm.clone(),
                size: json.len(),
            });
        }
        Ok((json, effective))
    }

    /// Keeps a version, and what follows from it.
    pub(super) fn put_config_in(
        &self,
        db: &Connection,
        vm: i64,
        made: &ConfigVersion,
        effective: &Effective,
    ) -> Result<(), StoreError> {
        let failed = |source| self.failed("keep a VM's configuration", source);
        db.execute(
            "INSERT INTO vm_configs (vm, version, config, created_at, reason) VALUES (?1, ?2, ?3, ?4, ?5)",
            params![vm, made.version, made.config, made.created_at, made.reason],
        )
        .map_err(failed)?;
        db.execute(
            "UPDATE vms SET cpu_cores = ?2, memory_mb = ?3, vmm = ?4 WHERE seq = ?1",
            params![
                vm,
                effective.resources.cpu_cores,
                effective.resources.memory_mb,
                effective.vmm.as_str()
            ],
        )
        .map_err(failed)?;
        Ok(())
    }

    pub(super) fn newest_in(&self, db: &Connection, vm: &Vm) -> Result<ConfigVersion, StoreError> {
        let sql = format!("{SELECT} WHERE vm = ?1 ORDER BY version DESC LIMIT 1");
        db.query_row(&sql, [vm.seq], read)
            .map_err(|source| self.failed("look up a VM's configuration", source))
    }

    /// What follows from a version that was checked before it was kept.
    pub(super) fn effective(
        &self,
        vm: &Name,
        kept: &ConfigVersion,
        manifest: &Manifest,
    ) -> Result<Effective, StoreError> {
        self.parse_kept(vm, kept)?
            .over(manifest)
            .map_err(|error| self.damaged(what(vm, kept), &error))
    }

    fn parse_kept(&self, vm: &Name, kept: &ConfigVersion) -> Result<VmConfig, StoreError> {
        VmConfig::parse(kept.config.as_bytes())
            .map_err(|error| self.damaged(what(vm, kept), &error))
    }

    fn no_version_in(
        &self,
        db: &Connection,
        vm: &Vm,
        name: &Name,
        version: u64,
    ) -> Result<VmError, StoreError> {
        let sql = "SELECT min(version), max(version) FROM vm_configs WHERE vm = ?1";
        let (oldest, newest) = db
            .query_row(sql, [vm.seq], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()
            .map_err(|source| self.failed("look up a VM's configurations", source))?
            .unwrap_or_default();
        Ok(VmError::NoVersion {
            vm: name.clone(),
            version,
            oldest,
            newest,
        })
    }

    fn refuse_to_shrink(
        &self,
        vm: &Name,
        uuid: &str,
        effective: &Effective,
    ) -> Result<(), VmError> {
        let root = effective
            .root_disk
            .map(|disk| (disks::ROOT, "root_disk".to_owned(), disk.size_mb));
        let volumes = effective.volumes.iter().filter_map(|volume| {
            let field = format!("volumes.{}", volume.name);
            Some((volume.name.as_str(), field, volume.size_mb?))
        });
        for (disk, field, wanted) in root.into_iter().chain(volumes) {
            match self.disks.size_mb(uuid, disk) {
                Some(has) if has > u64::from(wanted) => {
                    return Err(VmError::Shrinks {
                        vm: vm.clone(),
                        field: format!("{field}.size_mb"),
                        has,
                        wanted,
                    });
                }
                _ => {}
            }
        }
        Ok(())
    }
}

const SELECT: &str = "SELECT version, config, created_at, reason FROM vm_configs";

fn what(vm: &Name, kept: &ConfigVersion) -> String {
    format!("version {} of the configuration of '{vm}'", kept.version)
}

fn read(row: &Row<'_>) -> rusqlite::Result<ConfigVersion> {
    Ok(ConfigVersion {
        version: row.get(0)?,
        config: row.get(1)?,
        created_at: row.get(2)?,
        reason: row.get(3)?,
    })
}
