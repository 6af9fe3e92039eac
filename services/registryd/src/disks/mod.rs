//! The disks that are a VM's own: what its root keeps, its volumes, and the seed that cloud-init reads.
//!
//! A disk is a sparse file, `STATE/disks/VM'S UUID/NAME.img`. It comes to be when the VM is opened for the first time, with an
//! ext4 in it, whole or not at all; it grows when the configuration says more, and it goes with the VM. No space is set aside
//! for it: a host that is full is told by the guest's failing writes. The seed is made anew each time, in memory.
//!
//! All calls block.

mod fat;
mod file;
mod seed;

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use volant_spec::{Name, manifest::CloudInit, vm_config::VmConfig};

pub use file::{LARGEST_MB, SMALLEST_MB};
pub use seed::Seed;

/// The name of the disk below a root.
pub const ROOT: &str = "root";
/// The name of the seed.
pub const SEED: &str = "cidata";

/// The folder of all disks.
#[derive(Clone, Debug)]
pub struct Disks {
    dir: PathBuf,
    mke2fs: PathBuf,
    /// Two who open a VM at once must not both make its disks.
    opening: Arc<Mutex<()>>,
}

/// The disks that a VM has, by its configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmDisks {
    pub uuid: String,
    pub name: Name,
    /// Name and size in MiB.
    pub disks: Vec<(String, u32)>,
    pub seed: Option<Seed>,
}

/// Why a VM does not get its disks.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    #[error(
        "the disk '{disk}' of the VM '{vm}' has {has} MiB and cannot shrink to {wanted} MiB; give it {has} MiB or more"
    )]
    Shrinks {
        vm: Name,
        disk: String,
        has: u64,
        wanted: u32,
    },
    #[error(
        "the disk '{disk}' of the VM '{vm}' cannot have {wanted} MiB; give it {SMALLEST_MB} to {LARGEST_MB} MiB"
    )]
    Size { vm: Name, disk: String, wanted: u32 },
    #[error(
        "a volume of the VM '{vm}' cannot be named '{name}', as another disk is; choose another name"
    )]
    Reserved { vm: Name, name: String },
    #[error("no space left on the host for the disk '{disk}' of the VM '{vm}', below {}", dir.display())]
    NoSpace {
        vm: Name,
        disk: String,
        dir: PathBuf,
    },
    #[error("cannot {act} the disk '{disk}' of the VM '{vm}'")]
    File {
        act: &'static str,
        vm: Name,
        disk: String,
        source: io::Error,
    },
    #[error("mke2fs cannot make a file system on the disk '{disk}' of the VM '{vm}': {words}")]
    Format {
        vm: Name,
        disk: String,
        words: String,
    },
    #[error("cannot make the cloud-init seed of the VM '{vm}'")]
    Seed { vm: Name, source: io::Error },
}

/// Why disks that nobody has any more are still there.
#[derive(Debug, thiserror::Error)]
#[error("cannot remove {}", path.display())]
pub struct RemoveError {
    path: PathBuf,
    source: io::Error,
}

impl VmDisks {
    /// What follows from a configuration with its plugin's values in it.
    ///
    /// # Errors
    /// A volume has a name that is taken.
    pub fn of(uuid: &str, name: &Name, effective: &VmConfig) -> Result<Self, DiskError> {
        let mut disks: Vec<(String, u32)> = Vec::new();
        if let Some(root) = &effective.root_disk {
            disks.push((ROOT.to_owned(), root.size_mb));
        }
        for volume in &effective.volumes {
            let taken = [ROOT, SEED].contains(&volume.name.as_str())
                || disks.iter().any(|(disk, _)| disk == volume.name.as_str());
            if taken {
                return Err(DiskError::Reserved {
                    vm: name.clone(),
                    name: volume.name.to_string(),
                });
            }
            if let Some(size_mb) = volume.size_mb {
                disks.push((volume.name.to_string(), size_mb));
            }
        }
        let seed = |documents: &CloudInit| Seed {
            uuid: uuid.to_owned(),
            hostname: name.to_string(),
            documents: documents.clone(),
        };
        Ok(Self {
            uuid: uuid.to_owned(),
            name: name.clone(),
            disks,
            seed: effective.cloud_init.as_ref().map(seed),
        })
    }
}

impl Disks {
    /// In a folder below the registry's state; it is made when it is needed.
    #[must_use]
    pub fn new(state_dir: &Path) -> Self {
        Self {
            dir: state_dir.join("disks"),
            mke2fs: PathBuf::from("/usr/sbin/mke2fs"),
            opening: Arc::default(),
        }
    }

    /// A VM's disks, made and grown where needed: `disk.NAME`, open for reading and writing, and `disk.cidata`, for reading.
    /// Idempotent. Disks that its configuration names no more stay as they are.
    ///
    /// # Errors
    /// Which disk cannot be had, and why. The others may have been made.
    pub fn open(&self, vm: &VmDisks) -> Result<Vec<(String, File)>, DiskError> {
        let _opening = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = self.dir.join(&vm.uuid);
        let mut opened = Vec::new();
        for (disk, size_mb) in &vm.disks {
            let wanted = file::Wanted {
                vm: &vm.name,
                disk,
                size_mb: *size_mb,
            };
            let file = file::open(&folder, &self.mke2fs, &wanted)?;
            opened.push((format!("disk.{disk}"), file));
        }
        if let Some(seed) = &vm.seed {
            let file = seed.file().map_err(|source| DiskError::Seed {
                vm: vm.name.clone(),
                source,
            })?;
            opened.push((format!("disk.{SEED}"), file));
        }
        Ok(opened)
    }

    /// How large a VM's disk is now, in MiB; absent: there is none yet.
    #[must_use]
    pub fn size_mb(&self, uuid: &str, disk: &str) -> Option<u64> {
        let path = file::path(&self.dir.join(uuid), disk);
        fs::metadata(path).ok().map(|meta| meta.len() >> 20)
    }

    /// Removes a VM's disks for good. Idempotent.
    ///
    /// # Errors
    /// What cannot be removed.
    pub fn remove(&self, uuid: &str) -> Result<(), RemoveError> {
        let path = self.dir.join(uuid);
        match fs::remove_dir_all(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(RemoveError { path, source })
            }
            _ => Ok(()),
        }
    }

    /// Removes what a removal that was cut off left: the disks of VMs that are not among `known`. Tells how many VMs' they were.
    ///
    /// # Errors
    /// What cannot be listed or removed.
    pub fn sweep(&self, known: &BTreeSet<String>) -> Result<usize, RemoveError> {
        let failed = |source| RemoveError {
            path: self.dir.clone(),
            source,
        };
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            Err(error) => return Err(failed(error)),
        };
        let mut removed = 0;
        for entry in entries {
            let name = entry.map_err(failed)?.file_name();
            let Some(uuid) = name.to_str().filter(|name| !known.contains(*name)) else {
                continue;
            };
            self.remove(uuid)?;
            removed += 1;
        }
        Ok(removed)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use volant_spec::vm_config::{RootDisk, Volume};

    use super::*;

    const UUID: &str = "01980000-0000-7000-8000-000000000001";

    fn volume(name: &str, size_mb: Option<u32>) -> Volume {
        Volume {
            name: name.parse().unwrap(),
            target: "/data".into(),
            size_mb,
            host_path: size_mb.is_none().then(|| "/srv".into()),
            read_only: false,
        }
    }

    fn config(volumes: Vec<Volume>) -> VmConfig {
        VmConfig {
            root_disk: Some(RootDisk { size_mb: 64 }),
            volumes,
            ..VmConfig::default()
        }
    }

    #[test]
    fn a_vm_has_the_disks_of_its_configuration_and_no_two_of_a_name() {
        let name = "web".parse().unwrap();
        let volumes = vec![volume("data", Some(32)), volume("code", None)];
        let mut effective = config(volumes);
        let vm = VmDisks::of(UUID, &name, &effective).unwrap();
        assert_eq!(vm.disks, [("root".into(), 64), ("data".into(), 32)]);
        assert_eq!(vm.seed, None);
        effective.cloud_init = Some(CloudInit::default());
        assert!(VmDisks::of(UUID, &name, &effective).unwrap().seed.is_some());
        for taken in ["root", "cidata", "data"] {
            let volumes = vec![volume("data", Some(32)), volume(taken, Some(32))];
            let error = VmDisks::of(UUID, &name, &config(volumes)).unwrap_err();
            assert!(error.to_string().contains(taken), "{error}");
        }
    }

    #[test]
    fn two_who_open_a_vm_at_once_get_the_same_disk() {
        let state = tempfile::tempdir().unwrap();
        let disks = Disks::new(state.path());
        let vm = VmDisks::of(UUID, &"web".parse().unwrap(), &config(Vec::new())).unwrap();
        let inode = || {
            let opened = disks.open(&vm).unwrap();
            opened[0].1.metadata().unwrap().ino()
        };
        let inodes: Vec<u64> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(inode)).collect();
            threads.into_iter().map(|one| one.join().unwrap()).collect()
        });
        assert!(inodes.iter().all(|one| *one == inodes[0]), "{inodes:?}");
    }

    #[test]
    fn disks_are_opened_under_their_names_and_go_with_their_vm() {
        let state = tempfile::tempdir().unwrap();
        let disks = Disks::new(state.path());
        let mut effective = config(vec![volume("data", Some(32))]);
        effective.cloud_init = Some(CloudInit::default());
        let vm = VmDisks::of(UUID, &"web".parse().unwrap(), &effective).unwrap();
        let opened = disks.open(&vm).unwrap();
        let names: Vec<_> = opened.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["disk.root", "disk.data", "disk.cidata"]);
        assert_eq!(disks.size_mb(UUID, "data"), Some(32));
        assert_eq!(disks.size_mb(UUID, "other"), None);

        let known = BTreeSet::from([UUID.to_owned()]);
        assert_eq!(disks.sweep(&known).unwrap(), 0);
        assert_eq!(disks.size_mb(UUID, "data"), Some(32));
        assert_eq!(disks.sweep(&BTreeSet::new()).unwrap(), 1);
        assert_eq!(disks.size_mb(UUID, "data"), None);
        disks.remove(UUID).unwrap();
        disks.remove(UUID).unwrap();
    }
}
