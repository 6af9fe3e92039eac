//! A VM's disks besides its root, and the directories that it shares: as the machine has them, and as the guest is told.
//!
//! A disk is found in the guest by a serial number that is chosen here, and by nothing else: so none is taken for another.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Seek as _, SeekFrom, Write as _},
    os::fd::OwnedFd,
    path::{Component, Path, PathBuf},
};

use nix::sys::memfd::{MFdFlags, memfd_create};
use volant_dbus::registry::VmDefinition;
use volant_proto::agent::v1::{RunConfig, Volume, volume::Source};

use volant_spec::config::VmDefaults;

use crate::hypervisor::{DiskSpec, ShareSpec, real_path};

/// The disk below a root.
const LAYER: &str = "layer";
/// What cloud-init looks for is the label; this is for people.
const SEED: &str = "cidata";
/// A machine of QEMU has places for 24 devices, its root and what every machine has among them.
const MOST: usize = 16;

/// What a VM has besides its root. By default nothing.
#[derive(Debug, Default)]
pub struct Disks {
    pub specs: Vec<DiskSpec>,
    pub shares: Vec<ShareSpec>,
    volumes: Vec<Volume>,
    has_layer: bool,
}

/// Why a VM's disks cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum DisksError {
    #[error("the registry gave no disk '{0}'")]
    Missing(String),
    #[error("{0} disks and directories are more than the {MOST} that a machine has places for")]
    TooMany(usize),
    #[error("'{kind}' is no kind of the volume '{name}'")]
    Kind { name: String, kind: String },
    #[error("the volume '{name}' cannot be a share of '{}'", path.escape_debug())]
    Path { name: String, path: String },
}

/// Why a directory is not shared.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    #[error(
        "cannot share {}: it must be a directory that the VM's own user can reach (those of /home, /root and /tmp it cannot)",
        path.display()
    )]
    Look { path: PathBuf, source: io::Error },
    #[error(
        "the host does not share {} (really {}): vm.share_paths in /etc/volant/volant.toml allows what it may",
        path.display(),
        real.display()
    )]
    Forbidden { path: PathBuf, real: PathBuf },
}

impl Disks {
    /// Takes the files of `definition`'s disks out of `files`, which the registry named.
    ///
    /// # Errors
    /// The definition makes no sense, or a file is not there.
    pub fn take<F: Into<OwnedFd>>(
        definition: &VmDefinition,
        files: &mut HashMap<String, F>,
    ) -> Result<Self, DisksError> {
        if definition.mounts.len() > MOST {
            return Err(DisksError::TooMany(definition.mounts.len()));
        }
        let mut disks = Self::default();
        let mut add = |file: String, serial: String, is_read_only| {
            let Some(open) = files.remove(&file) else {
                return Err(DisksError::Missing(file));
            };
            disks.specs.push(DiskSpec {
                serial,
                file: open.into(),
                is_read_only,
            });
            Ok(())
        };
        if definition.is_persistent {
            add("disk.root".to_owned(), LAYER.to_owned(), false)?;
            disks.has_layer = true;
        }
        if definition.has_seed {
            add("disk.cidata".to_owned(), SEED.to_owned(), true)?;
        }
        for (number, mount) in definition.mounts.iter().enumerate() {
            let name = &mount.name;
            let source = match mount.kind.as_str() {
                "disk" => {
                    let serial = format!("vol-{number}");
                    add(format!("disk.{name}"), serial.clone(), mount.is_read_only)?;
                    Source::Serial(serial)
                }
                "image" => {
                    let serial = format!("img-{number}");
                    add(format!("disks.{name}"), serial.clone(), true)?;
                    Source::Serial(serial)
                }
                "share" => {
                    let tag = format!("share-{number}");
                    let path = PathBuf::from(&mount.host_path);
                    if !is_plain(&path) {
                        return Err(DisksError::Path {
                            name: name.clone(),
                            path: mount.host_path.clone(),
                        });
                    }
                    disks.shares.push(ShareSpec {
                        tag: tag.clone(),
                        path,
                    });
                    Source::VirtiofsTag(tag)
                }
                other => {
                    return Err(DisksError::Kind {
                        name: name.clone(),
                        kind: other.to_owned(),
                    });
                }
            };
            disks.volumes.push(Volume {
                name: name.clone(),
                target: mount.target.clone(),
                read_only: mount.is_read_only || mount.kind != "disk",
                owned: mount.kind == "disk",
                source: Some(source),
            });
        }
        Ok(disks)
    }

    /// Makes sure that the host allows what is shared, wherever links lead to. As the VM's own user: what that cannot reach
    /// is not shared.
    ///
    /// # Errors
    /// Which directory cannot be shared, and why.
    pub fn allow(&mut self, host: &VmDefaults) -> Result<(), ShareError> {
        for share in &mut self.shares {
            let path = share.path.clone();
            let real = match real_path(&path) {
                Ok(real) => real,
                Err(source) => return Err(ShareError::Look { path, source }),
            };
            if !host.may_share(&real) {
                return Err(ShareError::Forbidden { path, real });
            }
            share.path = real;
        }
        Ok(())
    }

    /// Tells the guest of them.
    pub fn tell(&self, config: &mut RunConfig) {
        config.volumes.clone_from(&self.volumes);
        if let Some(root) = config.root.as_mut().filter(|_| self.has_layer) {
            LAYER.clone_into(&mut root.layer_serial);
        }
    }

    /// Whether the guest checks a file system before it mounts it: it needs the tools for it then.
    #[must_use]
    pub fn need_tools(&self) -> bool {
        self.has_layer || self.volumes.iter().any(|volume| volume.owned)
    }
}

fn is_plain(path: &Path) -> bool {
    let mut parts = path.components();
    path.is_absolute()
        && parts.all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
}

/// An initramfs with `tools`, another one, after it: the kernel unpacks both. Without `initramfs` the tools alone, beside what
/// the kernel has in it.
///
/// # Errors
/// A file cannot be read, or there is no memory.
pub fn with_tools(initramfs: Option<OwnedFd>, mut tools: File) -> io::Result<OwnedFd> {
    /// What the kernel wants each archive to begin at a multiple of.
    const ALIGNMENT: u64 = 4;
    let Some(initramfs) = initramfs else {
        return Ok(tools.into());
    };
    let mut both = File::from(memfd_create(c"initramfs", MFdFlags::MFD_CLOEXEC)?);
    let mut first = File::from(initramfs);
    // Its place is shared with whoever else has it open.
    first.seek(SeekFrom::Start(0))?;
    let length = io::copy(&mut first, &mut both)?;
    let gap = length.next_multiple_of(ALIGNMENT) - length;
    both.write_all(&vec![0; usize::try_from(gap).unwrap_or(0)])?;
    io::copy(&mut tools, &mut both)?;
    Ok(both.into())
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Read as _, os::fd::AsRawFd as _};

    use volant_dbus::registry::Mount;
    use volant_proto::agent::v1::RootFilesystem;

    use super::*;

    fn mount(name: &str, kind: &str) -> Mount {
        Mount {
            name: name.to_owned(),
            kind: kind.to_owned(),
            host_path: "/srv/code".to_owned(),
            target: format!("/{name}"),
            is_read_only: kind == "share",
        }
    }

    fn files(names: &[&str]) -> HashMap<String, File> {
        let open = |name: &&str| ((*name).to_owned(), File::open("/dev/null").unwrap());
        names.iter().map(open).collect()
    }

    fn definition(mounts: Vec<Mount>) -> VmDefinition {
        VmDefinition {
            is_persistent: true,
            has_seed: true,
            mounts,
            ..VmDefinition::default()
        }
    }

    const ALL: &[&str] = &[
        "disk.root",
        "disk.cidata",
        "disk.data",
        "disks.models",
        "rootfs",
    ];

    #[test]
    fn each_disk_has_a_serial_number_of_its_own_and_the_guest_is_told_it() {
        let definition = definition(vec![
            mount("data", "disk"),
            mount("models", "image"),
            mount("code", "share"),
        ]);
        let mut files = files(ALL);
        let disks = Disks::take(&definition, &mut files).unwrap();
        assert!(disks.need_tools());
        let specs: Vec<_> = disks
            .specs
            .iter()
            .map(|disk| (disk.serial.as_str(), disk.is_read_only))
            .collect();
        assert_eq!(
            specs,
            [
                ("layer", false),
                ("cidata", true),
                ("vol-0", false),
                ("img-1", true)
            ]
        );
        assert_eq!(disks.shares[0].path, Path::new("/srv/code"));
        assert_eq!(files.keys().collect::<Vec<_>>(), ["rootfs"]);

        let mut config = RunConfig {
            root: Some(RootFilesystem::default()),
            ..RunConfig::default()
        };
        disks.tell(&mut config);
        assert_eq!(config.root.unwrap().layer_serial, "layer");
        let told: Vec<_> = config
            .volumes
            .iter()
            .map(|volume| {
                (
                    volume.source.clone().unwrap(),
                    volume.read_only,
                    volume.owned,
                )
            })
            .collect();
        assert_eq!(
            told,
            [
                (Source::Serial("vol-0".to_owned()), false, true),
                (Source::Serial("img-1".to_owned()), true, false),
                (Source::VirtiofsTag("share-2".to_owned()), true, false),
            ]
        );
    }

    #[test]
    fn a_vm_without_disks_has_none_and_needs_no_tools() {
        let definition = VmDefinition::default();
        let disks = Disks::take(&definition, &mut files(ALL)).unwrap();
        assert!(disks.specs.is_empty() && !disks.need_tools());
    }

    #[test]
    fn what_makes_no_sense_is_told() {
        let mut outside = mount("code", "share");
        outside.host_path = "/srv/../etc".to_owned();
        let many = (0..17).map(|n| mount(&format!("d{n}"), "share")).collect();
        for (mounts, expected) in [
            (vec![mount("other", "disk")], "no disk 'disk.other'"),
            (vec![mount("data", "floppy")], "'floppy' is no kind"),
            (vec![outside], "'/srv/../etc'"),
            (many, "17 disks and directories"),
        ] {
            let error = Disks::take(&definition(mounts), &mut files(ALL)).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        }
    }

    #[test]
    fn what_links_lead_to_must_be_allowed_too() {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().canonicalize().unwrap();
        for name in ["open", "open/inside", "closed"] {
            fs::create_dir(base.join(name)).unwrap();
        }
        fs::write(base.join("open/file"), "").unwrap();
        std::os::unix::fs::symlink(base.join("closed"), base.join("open/link")).unwrap();
        let open = base.join("open").display().to_string();
        let host: volant_spec::Config =
            serde_json::from_value(serde_json::json!({"vm": {"share_paths": [open]}})).unwrap();
        for (path, expected) in [
            ("open/inside", None),
            ("open", None),
            ("closed", Some("the host does not share")),
            ("open/link", Some("the host does not share")),
            ("open/file", Some("cannot share")),
            ("open/absent", Some("cannot share")),
        ] {
            let share = ShareSpec {
                tag: "share-0".to_owned(),
                path: base.join(path),
            };
            let mut disks = Disks {
                shares: vec![share],
                ..Disks::default()
            };
            let allowed = disks.allow(&host.vm);
            match expected {
                None => allowed.unwrap(),
                Some(words) => {
                    let error = allowed.unwrap_err().to_string();
                    assert!(error.contains(words), "{path}: {error}");
                }
            }
        }
    }

    #[test]
    fn two_archives_follow_each_other_aligned() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            File::open(path).unwrap()
        };
        let read = |fd: OwnedFd| {
            let mut text = String::new();
            // As a VMM does: opened anew.
            let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
            File::open(path).unwrap().read_to_string(&mut text).unwrap();
            text
        };
        let mut first = file("first", "12345");
        first.read_exact(&mut [0; 3]).unwrap();
        let both = with_tools(Some(first.into()), file("tools", "tools")).unwrap();
        assert_eq!(read(both), "12345\0\0\0tools");
        let alone = with_tools(None, file("tools", "tools")).unwrap();
        assert_eq!(read(alone), "tools");
    }
}
