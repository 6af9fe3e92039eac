//! Which device is lent to which VM, and which driver it had: a file for each VM, in a folder that goes with the boot, as the
//! kernel's own memory of drivers does.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use volant_spec::Name;

use crate::sysfs::Address;

/// What one VM has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Loan {
    pub devices: Vec<Lent>,
}

/// A device that was lent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lent {
    pub address: Address,
    /// That it goes back to; absent: it had none.
    pub driver: Option<String>,
    pub group: Option<u32>,
}

#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    #[error("cannot {act} {}", path.display())]
    File {
        act: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{} cannot be understood", path.display())]
    Content {
        path: PathBuf,
        source: serde_json::Error,
    },
}

/// The folder of all loans.
#[derive(Clone, Debug)]
pub struct Ledger(PathBuf);

impl Ledger {
    #[must_use]
    pub fn at(folder: impl Into<PathBuf>) -> Self {
        Self(folder.into())
    }

    /// What that VM has; nothing, when it has no file.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn loan(&self, vm: &Name) -> Result<Loan, LedgerError> {
        read(&self.path(vm))
    }

    /// Which VM has which device.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn lent(&self) -> Result<BTreeMap<Address, String>, LedgerError> {
        let entries = match fs::read_dir(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
            entries => entries.map_err(|source| self.failed("list", source))?,
        };
        let mut lent = BTreeMap::new();
        for entry in entries {
            let path = entry.map_err(|source| self.failed("list", source))?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            let Some(vm) = name.and_then(|name| name.strip_suffix(".json")) else {
                continue;
            };
            for device in read(&path)?.devices {
                lent.insert(device.address, vm.to_owned());
            }
        }
        Ok(lent)
    }

    /// Writes down what a VM is going to have; before anything is touched.
    ///
    /// # Errors
    /// It cannot be kept.
    pub fn write(&self, vm: &Name, loan: &Loan) -> Result<(), LedgerError> {
        let (path, new) = (self.path(vm), self.0.join(format!(".{vm}.new")));
        let failed = |act, path: &Path| {
            let path = path.to_owned();
            move |source| LedgerError::File { act, path, source }
        };
        fs::create_dir_all(&self.0).map_err(failed("make", &self.0))?;
        let text = serde_json::to_vec(loan).map_err(|source| LedgerError::Content {
            path: path.clone(),
            source,
        })?;
        fs::write(&new, text).map_err(failed("write", &new))?;
        fs::rename(&new, &path).map_err(failed("keep", &path))
    }

    /// Forgets a loan that was given back. Idempotent.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn forget(&self, vm: &Name) -> Result<(), LedgerError> {
        let path = self.path(vm);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(LedgerError::File {
                act: "remove",
                path,
                source,
            }),
            _ => Ok(()),
        }
    }

    fn path(&self, vm: &Name) -> PathBuf {
        self.0.join(format!("{vm}.json"))
    }

    fn failed(&self, act: &'static str, source: io::Error) -> LedgerError {
        LedgerError::File {
            act,
            path: self.0.clone(),
            source,
        }
    }
}

fn read(path: &Path) -> Result<Loan, LedgerError> {
    let bytes = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Loan::default()),
        bytes => bytes.map_err(|source| LedgerError::File {
            act: "read",
            path: path.to_owned(),
            source,
        })?,
    };
    serde_json::from_slice(&bytes).map_err(|source| LedgerError::Content {
        path: path.to_owned(),
        source,
    })
}
