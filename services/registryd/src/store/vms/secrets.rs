//! Secrets of VMs: files that systemd passes to a VM's unit (`LoadCredential=`), and that nobody reads back.

use std::{
    collections::BTreeSet,
    fmt, fs, io,
    io::Write,
    path::{Path, PathBuf},
};

use tempfile::NamedTempFile;
use volant_spec::{
    Name,
    vm_config::{MAX_SECRET_BYTES, MAX_SECRETS_BYTES, SecretName},
};

use super::{
    super::{Store, StoreError, make_dir, sync_dir},
    VmError,
};

/// The folder of the VMs' folders of secrets, in the state folder; `volant-vm@.service` names it.
pub const CREDENTIALS: &str = "credentials";

/// A secret's bytes. They are not printed.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretValue(pub Vec<u8>);

impl fmt::Debug for SecretValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl Store {
    /// Keeps a secret for a VM, or replaces it; durable when answered.
    ///
    /// # Errors
    /// There is no such VM, it is being deleted, the secret is too large, or the store failed.
    pub fn put_vm_secret(
        &self,
        name: &Name,
        secret: &SecretName,
        value: &SecretValue,
    ) -> Result<(), VmError> {
        // Also keeps others from the folder.
        let db = self.lock();
        if self.existing_in(&db, name)?.deleting {
            return Err(VmError::BeingDeleted(name.clone()));
        }
        let folder = self.secrets_dir(name);
        let mut others = self.secret_sizes(&folder)?;
        others.retain(|(other, _)| other != secret.as_str());
        let others = others.iter().map(|(_, size)| size).sum();
        check_size(name, secret, value, others)?;
        Ok(self.write_secret(&folder, secret, value)?)
    }

    /// Forgets a secret. Idempotent.
    ///
    /// # Errors
    /// There is no such VM, or the store failed.
    pub fn remove_vm_secret(&self, name: &Name, secret: &SecretName) -> Result<(), VmError> {
        let db = self.lock();
        self.existing_in(&db, name)?;
        let folder = self.secrets_dir(name);
        let path = folder.join(secret.as_str());
        match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(StoreError::file("remove", &path, source).into()),
            Ok(()) => Ok(sync_dir(&folder)
                .map_err(|source| StoreError::file("keep changes of", &folder, source))?),
        }
    }

    /// The names of a VM's secrets, in order.
    pub(super) fn secret_names(&self, name: &str) -> Result<Vec<String>, StoreError> {
        let sizes = self.secret_sizes(&self.credentials_dir().join(name))?;
        let names: BTreeSet<_> = sizes.into_iter().map(|(name, _)| name).collect();
        Ok(names.into_iter().collect())
    }

    /// The secrets of a VM that is about to be made, in place of any that are there.
    pub(super) fn put_first_secrets(
        &self,
        name: &Name,
        secrets: &[(SecretName, SecretValue)],
    ) -> Result<(), VmError> {
        self.remove_secrets(name)?;
        let mut before = 0;
        for (secret, value) in secrets {
            check_size(name, secret, value, before)?;
            before += value.0.len() as u64;
            self.write_secret(&self.secrets_dir(name), secret, value)?;
        }
        Ok(())
    }

    /// Removes all secrets of a VM. Idempotent.
    pub(super) fn remove_secrets(&self, name: &Name) -> Result<(), StoreError> {
        let folder = self.secrets_dir(name);
        match fs::remove_dir_all(&folder) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(StoreError::file("remove", &folder, source))
            }
            _ => Ok(()),
        }
    }

    /// Removes the secrets of VMs that are not among `known`: a creation was cut off.
    pub(in super::super) fn sweep_secrets(
        &self,
        known: &BTreeSet<String>,
    ) -> Result<(), StoreError> {
        let dir = self.credentials_dir();
        let failed = |source| StoreError::file("read", &dir, source);
        for entry in fs::read_dir(&dir).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            if !name.to_str().is_some_and(|name| known.contains(name)) {
                let path = entry.path();
                fs::remove_dir_all(&path)
                    .map_err(|source| StoreError::file("remove", &path, source))?;
            }
        }
        Ok(())
    }

    fn write_secret(
        &self,
        folder: &Path,
        secret: &SecretName,
        value: &SecretValue,
    ) -> Result<(), StoreError> {
        let path = folder.join(secret.as_str());
        let failed = |source| StoreError::writing(self.dir(), &path, source);
        make_dir(folder).map_err(failed)?;
        // Beside the folder, so that a unit which starts now sees the old value or the new one. Its owner alone may read it.
        let write = || {
            let mut file = NamedTempFile::new_in(self.incoming_dir())?;
            file.write_all(&value.0)?;
            file.as_file().sync_all()?;
            file.persist(&path)?;
            sync_dir(folder)?;
            sync_dir(&self.credentials_dir())
        };
        write().map_err(failed)
    }

    /// Names and sizes of the secrets in a VM's folder.
    fn secret_sizes(&self, folder: &Path) -> Result<Vec<(String, u64)>, StoreError> {
        let failed = |source| StoreError::file("read", folder, source);
        let entries = match fs::read_dir(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed)?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            found.push((name, entry.metadata().map_err(failed)?.len()));
        }
        Ok(found)
    }

    fn credentials_dir(&self) -> PathBuf {
        self.dir().join(CREDENTIALS)
    }

    fn secrets_dir(&self, name: &Name) -> PathBuf {
        self.credentials_dir().join(name.as_str())
    }
}

fn check_size(
    vm: &Name,
    secret: &SecretName,
    value: &SecretValue,
    others: u64,
) -> Result<(), VmError> {
    let (vm, secret, size) = (vm.clone(), secret.clone(), value.0.len());
    if size > MAX_SECRET_BYTES {
        return Err(VmError::SecretTooLarge { vm, secret, size });
    }
    let size = others + size as u64;
    if size > MAX_SECRETS_BYTES as u64 {
        return Err(VmError::SecretsTooLarge { vm, secret, size });
    }
    Ok(())
}
