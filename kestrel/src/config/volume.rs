//! A file system besides the root.

use std::path::{Component, Path, PathBuf};

use volant_proto::agent::v1::{self, volume::Source};

use super::{ConfigError, invalid};

/// The longest tag of a virtiofs that its device holds.
const LONGEST_TAG: usize = 36;

/// A disk or a directory of the host, and where it is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeConfig {
    /// For people.
    pub name: String,
    pub source: VolumeSource,
    /// Absolute, without `..`, and not the root.
    pub target: PathBuf,
    pub read_only: bool,
    /// An ext4 that is checked before it is mounted, and grown to its disk.
    pub owned: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VolumeSource {
    /// The virtio disk with this serial number.
    Disk { serial: String },
    /// The virtiofs with this tag.
    Share { tag: String },
}

impl TryFrom<v1::Volume> for VolumeConfig {
    type Error = ConfigError;

    fn try_from(volume: v1::Volume) -> Result<Self, ConfigError> {
        let source = match volume
            .source
            .ok_or(ConfigError::Missing("source of a volume"))?
        {
            Source::Serial(serial) if !serial.is_empty() => VolumeSource::Disk { serial },
            Source::VirtiofsTag(tag) if (1..=LONGEST_TAG).contains(&tag.len()) => {
                VolumeSource::Share { tag }
            }
            Source::Serial(serial) => return Err(invalid("serial number of a volume", serial)),
            Source::VirtiofsTag(tag) => return Err(invalid("tag of a volume", tag)),
        };
        let target = PathBuf::from(&volume.target);
        if !is_plain(&target) || volume.target.contains('\0') {
            return Err(invalid("place for a volume", volume.target));
        }
        Ok(Self {
            name: volume.name,
            source,
            target,
            read_only: volume.read_only,
            owned: volume.owned,
        })
    }
}

/// Whether it is absolute, below the root, and says nothing of parents.
fn is_plain(path: &Path) -> bool {
    path.is_absolute()
        && path.components().count() > 1
        && path
            .components()
            .all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(source: Option<Source>, target: &str) -> Result<VolumeConfig, String> {
        let volume = v1::Volume {
            name: "data".into(),
            source,
            target: target.into(),
            read_only: false,
            owned: true,
        };
        VolumeConfig::try_from(volume).map_err(|error| error.to_string())
    }

    #[test]
    fn a_volume_is_a_disk_or_a_share_below_the_root() {
        let disk = || Some(Source::Serial("data".into()));
        let parsed = volume(disk(), "/srv/data").unwrap();
        assert_eq!(
            parsed.source,
            VolumeSource::Disk {
                serial: "data".into()
            }
        );
        assert_eq!(parsed.target, PathBuf::from("/srv/data"));
        assert!(parsed.owned && !parsed.read_only);
        let share = volume(Some(Source::VirtiofsTag("code".into())), "/code").unwrap();
        assert_eq!(share.source, VolumeSource::Share { tag: "code".into() });
        for (source, target, message) in [
            (
                None,
                "/data",
                "the run configuration has no source of a volume",
            ),
            (disk(), "data", "'data' is no place for a volume"),
            (disk(), "/", "'/' is no place for a volume"),
            (disk(), "", "'' is no place for a volume"),
            (disk(), "/a/../b", "'/a/../b' is no place for a volume"),
            (disk(), "/a\0", "'/a\0' is no place for a volume"),
            (
                Some(Source::Serial(String::new())),
                "/data",
                "'' is no serial number of a volume",
            ),
            (
                Some(Source::VirtiofsTag("x".repeat(37))),
                "/data",
                &format!("'{}' is no tag of a volume", "x".repeat(37)),
            ),
        ] {
            assert_eq!(volume(source, target), Err(message.to_owned()));
        }
    }
}
