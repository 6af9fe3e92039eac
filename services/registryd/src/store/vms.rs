//! VM definitions: what a VM is made of, for as long as it has its name.

use std::fs::File;

use rusqlite::{Connection, OptionalExtension, Row, params};
use uuid::Uuid;
use volant_spec::{
    Digest, Manifest, Name, PluginRef, Resources, config::Vmm, manifest::ManifestError,
    resources::ResourcesError,
};

use super::{Damage, Store, StoreError, blobs, digests};

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
}

/// What a new VM is asked to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewVm {
    pub name: Name,
    /// Without a version: the newest that is enabled.
    pub plugin: PluginRef,
    /// Absent: the plugin's, else the default.
    pub cpu_cores: Option<u32>,
    pub memory_mb: Option<u32>,
    pub vmm: Vmm,
}

/// A VM with all that its supervisor needs.
#[derive(Debug)]
pub struct OpenVm {
    pub vm: Vm,
    pub uid: u32,
    pub manifest: Manifest,
    /// By the manifest's field.
    pub artifacts: Vec<(String, File)>,
}

/// Why a VM was not answered or changed.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    #[error("no VM '{0}' is defined; `volar vms list` shows those there are")]
    NotFound(Name),
    #[error("the name '{0}' is taken by a VM; choose another, or delete that VM first")]
    Taken(Name),
    #[error("the name '{0}' is taken by a VM that is being deleted; try again when it is gone")]
    TakenByDeleting(Name),
    #[error("no plugin '{0}' is installed; `volar plugins list` shows those there are")]
    NoPlugin(PluginRef),
    #[error(
        "the plugin '{0}' is disabled and makes no new VMs; enable it first: `volar plugins enable {0}`"
    )]
    Disabled(PluginRef),
    #[error(
        "no VM can be made of the plugin '{plugin}': this version of Volant cannot do what its manifest asks for with {}",
        .fields.join(", ")
    )]
    Unsupported {
        plugin: PluginRef,
        fields: Vec<String>,
    },
    #[error("the VM '{vm}' cannot have these resources")]
    Resources { vm: Name, source: ResourcesError },
    #[error("the VM '{0}' is not marked as being deleted; delete it instead")]
    NotMarked(Name),
    #[error("all user ids for VMs are used up on this host: no VM can be created any more")]
    UidsUsedUp,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a VM was not opened for its supervisor.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("no VM '{0}' is defined; `volar vms list` shows those there are")]
    NotFound(Name),
    #[error("the VM '{0}' is being deleted and does not start any more")]
    BeingDeleted(Name),
    #[error(
        "the artifact '{artifact}' ({digest}) of the plugin '{plugin}' {damage}; install the plugin again: \
         `volar plugins install`"
    )]
    Artifact {
        /// With its version.
        plugin: String,
        artifact: String,
        digest: Digest,
        damage: Damage,
    },
    #[error(
        "the manifest that the VM '{vm}' was created with, of the plugin '{plugin}', was changed in the database; delete \
         the VM and create it anew"
    )]
    Manifest {
        vm: Name,
        /// With its version.
        plugin: String,
    },
    #[error(transparent)]
    Store(#[from] StoreError),
}

const COLUMNS: &str =
    "seq, uuid, name, plugin, plugin_version, cpu_cores, memory_mb, vmm, created_at, deleting";

impl Store {
    /// Defines a VM; durable when answered. It keeps the plugin's manifest and artifacts of this moment.
    ///
    /// # Errors
    /// The name is taken, the plugin is not installed, the resources are out of range, or the store failed.
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
        let default = manifest.resources.unwrap_or_default();
        let resources = Resources::new(
            new.cpu_cores.unwrap_or(default.cpu_cores),
            new.memory_mb.unwrap_or(default.memory_mb),
        )
        .map_err(|source| VmError::Resources {
            vm: new.name.clone(),
            source,
        })?;
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
                resources.cpu_cores,
                resources.memory_mb,
                new.vmm.as_str(),
                now.to_string(),
            ],
        )
        .map_err(failed)?;
        let seq = tx.last_insert_rowid();
        uid(seq).ok_or(VmError::UidsUsedUp)?;
        for artifact in manifest.artifacts() {
            tx.execute(
                "INSERT OR IGNORE INTO vm_blobs (vm, digest) VALUES (?1, ?2)",
                params![seq, artifact.checksum.hex()],
            )
            .map_err(failed)?;
        }
        let vm = self
            .vm_in(&tx, &new.name)?
            .ok_or_else(|| VmError::NotFound(new.name.clone()))?;
        tx.commit().map_err(failed)?;
        Ok(vm)
    }

    /// # Errors
    /// There is none of that name, or the store failed.
    pub fn vm(&self, name: &Name) -> Result<Vm, VmError> {
        self.vm_in(&self.lock(), name)?
            .ok_or_else(|| VmError::NotFound(name.clone()))
    }

    /// All VMs, by name; also those that are being deleted.
    ///
    /// # Errors
    /// The store failed.
    pub fn vms(&self) -> Result<Vec<Vm>, VmError> {
        let sql = format!("SELECT {COLUMNS} FROM vms ORDER BY name");
        Ok(self.query(&self.lock(), &sql, [], read_vm)?)
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
        self.vm_in(&db, name)?
            .ok_or_else(|| VmError::NotFound(name.clone()))
    }

    /// Removes a VM that is marked, and the artifacts that nothing else uses. Idempotent: one that is not there is fine.
    ///
    /// # Errors
    /// It is not marked, or the store failed.
    pub fn purge_vm(&self, name: &Name) -> Result<(), VmError> {
        let failed = |source| self.failed("remove a VM", source);
        let mut db = self.lock();
        let tx = db.transaction().map_err(failed)?;
        let Some(vm) = self.vm_in(&tx, name)? else {
            return Ok(());
        };
        if !vm.deleting {
            return Err(VmError::NotMarked(name.clone()));
        }
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
    /// when it was created. That may take the time of reading large files; no other call waits for it.
    ///
    /// # Errors
    /// There is none, it is being deleted, something is missing or was changed, or the store failed.
    pub fn open_vm(&self, name: &Name) -> Result<OpenVm, OpenError> {
        let (vm, bytes) = self.defined(name)?;
        let plugin = format!("{}@{}", vm.plugin, vm.plugin_version);
        let Some(bytes) = bytes else {
            return Err(OpenError::Manifest {
                vm: name.clone(),
                plugin,
            });
        };
        let manifest = self.parse_stored(name, &bytes)?;
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
        Ok(OpenVm {
            vm,
            uid,
            manifest,
            artifacts,
        })
    }

    /// A VM that may start, and its manifest if that is the one that it was created with.
    fn defined(&self, name: &Name) -> Result<(Vm, Option<Vec<u8>>), OpenError> {
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
        Ok((vm, same.then_some(bytes)))
    }

    fn no_uid(&self, vm: &Vm) -> StoreError {
        let error = VmError::UidsUsedUp;
        self.damaged(
            format!("the number {} of the VM '{}'", vm.seq, vm.name),
            &error,
        )
    }

    fn vm_in(&self, db: &Connection, name: &Name) -> Result<Option<Vm>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM vms WHERE name = ?1");
        db.query_row(&sql, [name.as_str()], read_vm)
            .optional()
            .map_err(|source| self.failed("look up a VM", source))
    }

    /// A manifest that was parsed before it was kept; one that no longer parses was changed since.
    fn parse_stored(&self, of: &Name, bytes: &[u8]) -> Result<Manifest, StoreError> {
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
