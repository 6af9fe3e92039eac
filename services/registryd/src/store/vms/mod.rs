//! VM definitions: what a VM is made of, for as long as it has its name.

mod configs;
mod error;
mod secrets;

use std::{collections::BTreeSet, fmt, fs::File};

use rusqlite::{Connection, OptionalExtension, Row, params};
use uuid::Uuid;
use volant_spec::{
    Manifest, Name, PluginRef,
    manifest::{Devices, ManifestError},
    vm_config::{Effective, SecretName, VmConfig},
};

use super::{Store, StoreError, blobs, digests};
use crate::disks::VmDisks;

pub use configs::{ConfigVersion, KEPT_CONFIGS, NewConfig};
pub use error::{OpenError, VmError};
pub use secrets::{CREDENTIALS, SecretValue};

pub use volant_spec::unit::{FIRST_UID, LAST_UID};

/// The user id of the VM with that sequence number, which nobody else ever has; `None` when all are used up.
#[must_use]
pub fn uid(seq: i64) -> Option<u32> {
    let uid = FIRST_UID.checked_add(u32::try_from(seq).ok()?)?;
    (uid <= LAST_UID).then_some(uid)
}

/// A VM, as it was defined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vm {
    pub seq: i64,
    pub uuid: String,
    pub name: String,
    pub plugin: String,
    pub plugin_version: String,
    pub cpu_cores: u32,
    pub memory_mb: u32,
    pub vmm: String,
    /// RFC 3339.
    pub created_at: String,
    pub deleting: bool,
    /// The newest.
    pub config_version: u64,
    /// JSON: the newest [`VmConfig`].
    pub config: String,
    /// The names of its secrets.
    pub secrets: Vec<String>,
}

/// What a new VM is asked to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewVm {
    pub name: Name,
    /// Without a version: the newest that is enabled.
    pub plugin: PluginRef,
    pub config: VmConfig,
    pub secrets: Vec<(SecretName, SecretValue)>,
}

/// A VM with all that its supervisor needs.
#[derive(Debug)]
pub struct OpenVm {
    pub vm: Vm,
    pub uid: u32,
    pub manifest: Manifest,
    /// What follows from its configuration and the manifest.
    pub effective: Effective,
    /// By the manifest's field.
    pub artifacts: Vec<(String, File)>,
    /// Its own: `disk.NAME`.
    pub disks: Vec<(String, File)>,
}

/// What a VM is to have of the host's devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmDevices {
    pub uid: u32,
    pub devices: Devices,
}

/// Each VM with the newest version of its configuration.
const SELECT: &str =
    "SELECT v.seq, v.uuid, v.name, v.plugin, v.plugin_version, v.cpu_cores, v.memory_mb, v.vmm,
         v.created_at, v.deleting, c.version, c.config
     FROM vms v JOIN vm_configs c
         ON c.vm = v.seq AND c.version = (SELECT max(version) FROM vm_configs WHERE vm = v.seq)";

impl Store {
    /// Defines a VM; durable when answered. It keeps the plugin's manifest and artifacts of this moment, and its secrets are
    /// there before it is.
    ///
    /// # Errors
    /// The name is taken, the plugin is not installed, the configuration is not valid or does not go with it, or the store failed.
    pub fn create_vm(&self, new: &NewVm, now: jiff::Timestamp) -> Result<Vm, VmError> {
        let failed = |source| self.failed("create a VM", source);
        let mut db = self.lock();
        let tx = db.transaction().map_err(failed)?;
        match self.vm_in(&tx, &new.name)? {
            Some(vm) if vm.deleting => return Err(VmError::TakenByDeleting(new.name.clone())),
            Some(_) => return Err(VmError::Taken(new.name.clone())),
            None => {}
        }
        let plugin = self
            .chosen_in(&tx, &new.plugin)?
            .ok_or_else(|| VmError::NoPlugin(new.plugin.clone()))?;
        if !plugin.enabled {
            return Err(VmError::Disabled(new.plugin.clone()));
        }
        let bytes = self
            .original_in(&tx, &plugin.name, &plugin.version)?
            .ok_or_else(|| VmError::NoPlugin(new.plugin.clone()))?
            .manifest;
        let manifest = self.parse_stored(&plugin.name, &bytes)?;
        let fields = manifest.unsupported();
        if !fields.is_empty() {
            return Err(VmError::Unsupported {
                plugin: new.plugin.clone(),
                fields,
            });
        }
        let (config, effective) = self.checked(&new.name, &new.config, &manifest)?;
        tx.execute(
            "INSERT INTO vms (uuid, name, plugin, plugin_version, manifest, manifest_digest, cpu_cores, memory_mb, vmm,
                 created_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
            params![
                Uuid::now_v7().to_string(),
                new.name.as_str(),
                plugin.name.as_str(),
                plugin.version.as_str(),
                bytes,
                plugin.manifest_digest.to_string(),
                effective.resources.cpu_cores,
                effective.resources.memory_mb,
                effective.vmm.as_str(),
                now.to_string(),
            ],
        )
        .map_err(failed)?;
        let seq = tx.last_insert_rowid();
        uid(seq).ok_or(VmError::UidsUsedUp)?;
        let first = ConfigVersion {
            version: 1,
            config,
            created_at: now.to_string(),
            reason: "created".to_owned(),
        };
        self.put_config_in(&tx, seq, &first, &effective)?;
        for artifact in manifest.artifacts() {
            tx.execute(
                "INSERT OR IGNORE INTO vm_blobs (vm, digest) VALUES (?1, ?2)",
                params![seq, artifact.checksum.hex()],
            )
            .map_err(failed)?;
        }
        self.put_first_secrets(&new.name, &new.secrets)?;
        let vm = self.existing_in(&tx, &new.name)?;
        tx.commit().map_err(failed)?;
        Ok(vm)
    }

    /// # Errors
    /// There is none of that name, or the store failed.
    pub fn vm(&self, name: &Name) -> Result<Vm, VmError> {
        self.existing_in(&self.lock(), name)
    }

    /// All VMs, by name; also those that are being deleted.
    ///
    /// # Errors
    /// The store failed.
    pub fn vms(&self) -> Result<Vec<Vm>, VmError> {
        let sql = format!("{SELECT} ORDER BY v.name");
        let db = self.lock();
        let mut vms = self.query(&db, &sql, [], read_vm)?;
        for vm in &mut vms {
            vm.secrets = self.secret_names(&vm.name)?;
        }
        Ok(vms)
    }

    /// Marks a VM as being deleted. Idempotent.
    ///
    /// # Errors
    /// There is none of that name, or the store failed.
    pub fn delete_vm(&self, name: &Name) -> Result<Vm, VmError> {
        let db = self.lock();
        db.execute(
            "UPDATE vms SET deleting = 1 WHERE name = ?1",
            [name.as_str()],
        )
        .map_err(|source| self.failed("delete a VM", source))?;
        self.existing_in(&db, name)
    }

    /// Removes a VM that is marked, its disks and secrets, and the artifacts that nothing else uses. Idempotent: one that is not
    /// there is fine.
    ///
    /// # Errors
    /// It is not marked, or the store failed; it is still there then.
    pub fn purge_vm(&self, name: &Name) -> Result<(), VmError> {
        let failed = |source| self.failed("remove a VM", source);
        // Before nothing refers to them any more, and without the lock: removing large files takes its time.
        let marked = self.vm_in(&self.lock(), name)?.filter(|vm| vm.deleting);
        if let Some(vm) = marked {
            let removed = self.disks.remove(&vm.uuid);
            removed.map_err(|source| VmError::Disks {
                vm: name.clone(),
                source,
            })?;
        }
        let mut db = self.lock();
        let tx = db.transaction().map_err(failed)?;
        let Some(vm) = self.vm_in(&tx, name)? else {
            return Ok(());
        };
        if !vm.deleting {
            return Err(VmError::NotMarked(name.clone()));
        }
        self.remove_secrets(name)?;
        let sql = "SELECT digest FROM vm_blobs WHERE vm = ?1";
        let before = self.query(&tx, sql, [vm.seq], |row| row.get(0))?;
        tx.execute("DELETE FROM vms WHERE seq = ?1", [vm.seq])
            .map_err(failed)?;
        let files = self.forget_unused(&tx, &before)?;
        tx.commit().map_err(failed)?;
        blobs::remove_files(&files);
        Ok(())
    }

    /// A VM for its supervisor, with its artifacts open for reading: they, and its manifest, are found to be what they were
    /// when it was created. Its own disks are made, grown and opened, too. That may take the time of reading large files; no
    /// other call waits for it.
    ///
    /// # Errors
    /// There is none, it is being deleted, something is missing or was changed, a disk cannot be had, or the store failed.
    pub fn open_vm(&self, name: &Name) -> Result<OpenVm, OpenError> {
        let (vm, config, bytes) = self.defined(name)?;
        let plugin = format!("{}@{}", vm.plugin, vm.plugin_version);
        let Some(bytes) = bytes else {
            return Err(OpenError::Manifest {
                vm: name.clone(),
                plugin,
            });
        };
        let manifest = self.parse_stored(name, &bytes)?;
        let effective = self.effective(name, &config, &manifest)?;
        let mut artifacts = Vec::new();
        for artifact in manifest.artifacts() {
            let opened = self.open_blob(&artifact.checksum)?;
            let file = opened.map_err(|damage| OpenError::Artifact {
                plugin: plugin.clone(),
                artifact: artifact.field.clone(),
                digest: artifact.checksum,
                damage,
            })?;
            artifacts.push((artifact.field, file));
        }
        let uid = uid(vm.seq).ok_or_else(|| self.no_uid(&vm))?;
        let disks = VmDisks::of(&vm.uuid, name, &effective.to_config())?;
        let disks = self.disks.open(&disks)?;
        Ok(OpenVm {
            vm,
            uid,
            manifest,
            effective,
            artifacts,
            disks,
        })
    }

    /// What a VM's devices are lent by. Opens nothing.
    ///
    /// # Errors
    /// There is none, it is being deleted, its manifest was changed, or the store failed.
    pub fn vm_devices(&self, name: &Name) -> Result<VmDevices, OpenError> {
        let (vm, config, bytes) = self.defined(name)?;
        let Some(bytes) = bytes else {
            return Err(OpenError::Manifest {
                vm: name.clone(),
                plugin: format!("{}@{}", vm.plugin, vm.plugin_version),
            });
        };
        let manifest = self.parse_stored(name, &bytes)?;
        let devices = self.effective(name, &config, &manifest)?.devices;
        let uid = uid(vm.seq).ok_or_else(|| self.no_uid(&vm))?;
        Ok(VmDevices { uid, devices })
    }

    /// A VM that may start, its configuration, and its manifest if that is the one that it was created with.
    fn defined(&self, name: &Name) -> Result<(Vm, ConfigVersion, Option<Vec<u8>>), OpenError> {
        let db = self.lock();
        let vm = self
            .vm_in(&db, name)?
            .ok_or_else(|| OpenError::NotFound(name.clone()))?;
        if vm.deleting {
            return Err(OpenError::BeingDeleted(name.clone()));
        }
        let (bytes, digest): (Vec<u8>, String) = db
            .query_row(
                "SELECT manifest, manifest_digest FROM vms WHERE seq = ?1",
                [vm.seq],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )
            .map_err(|source| self.failed("look up a VM", source))?;
        let same = digests::of(&bytes).to_string() == digest;
        let config = self.newest_in(&db, &vm)?;
        Ok((vm, config, same.then_some(bytes)))
    }

    /// What a crash left of VMs that are gone, or never came to be: their disks and secrets.
    pub(super) fn sweep_vms(&self) -> Result<(), VmError> {
        let vms = self.vms()?;
        let names: BTreeSet<_> = vms.iter().map(|vm| vm.name.clone()).collect();
        self.sweep_secrets(&names)?;
        let uuids: BTreeSet<_> = vms.into_iter().map(|vm| vm.uuid).collect();
        if let Err(error) = self.disks.sweep(&uuids) {
            // They take room, and harm nobody.
            tracing::warn!("{}", crate::status::chain(&error));
        }
        Ok(())
    }

    fn manifest_in(&self, db: &Connection, vm: &Vm) -> Result<Manifest, StoreError> {
        let sql = "SELECT manifest FROM vms WHERE seq = ?1";
        let bytes: Vec<u8> = db
            .query_row(sql, [vm.seq], |row| row.get(0))
            .map_err(|source| self.failed("look up a VM", source))?;
        self.parse_stored(&vm.name, &bytes)
    }

    fn no_uid(&self, vm: &Vm) -> StoreError {
        let error = VmError::UidsUsedUp;
        self.damaged(
            format!("the number {} of the VM '{}'", vm.seq, vm.name),
            &error,
        )
    }

    fn vm_in(&self, db: &Connection, name: &Name) -> Result<Option<Vm>, StoreError> {
        let sql = format!("{SELECT} WHERE v.name = ?1");
        let mut vm = db
            .query_row(&sql, [name.as_str()], read_vm)
            .optional()
            .map_err(|source| self.failed("look up a VM", source))?;
        if let Some(vm) = &mut vm {
            vm.secrets = self.secret_names(&vm.name)?;
        }
        Ok(vm)
    }

    fn existing_in(&self, db: &Connection, name: &Name) -> Result<Vm, VmError> {
        self.vm_in(db, name)?
            .ok_or_else(|| VmError::NotFound(name.clone()))
    }

    /// A manifest that was parsed before it was kept; one that no longer parses was changed since.
    fn parse_stored(&self, of: impl fmt::Display, bytes: &[u8]) -> Result<Manifest, StoreError> {
        Manifest::parse_installed(bytes)
            .map_err(|error: ManifestError| self.damaged(format!("the manifest of '{of}'"), &error))
    }
}

fn read_vm(row: &Row<'_>) -> rusqlite::Result<Vm> {
    Ok(Vm {
        seq: row.get(0)?,
        uuid: row.get(1)?,
        name: row.get(2)?,
        plugin: row.get(3)?,
        plugin_version: row.get(4)?,
        cpu_cores: row.get(5)?,
        memory_mb: row.get(6)?,
        vmm: row.get(7)?,
        created_at: row.get(8)?,
        deleting: row.get(9)?,
        config_version: row.get(10)?,
        config: row.get(11)?,
        secrets: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_id_is_given_only_inside_the_range() {
        assert_eq!(uid(1), Some(1_879_100_001));
        assert_eq!(uid(i64::from(LAST_UID - FIRST_UID)), Some(LAST_UID));
        for seq in [-1, i64::from(LAST_UID - FIRST_UID) + 1, i64::MAX] {
            assert_eq!(uid(seq), None, "{seq}");
        }
    }
}
