//! What can stand at a path: metadata and a kind. Several paths may share one inode.

use std::{collections::BTreeMap, path::PathBuf};

/// Extended attributes, names with their namespace (`security.capability`).
pub type Xattrs = BTreeMap<Box<[u8]>, Box<[u8]>>;

/// What every kind of inode has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// The lower twelve bits: permissions, setuid, setgid and sticky.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds since 1970.
    pub mtime: i64,
    pub xattrs: Xattrs,
}

/// What an inode is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    Directory,
    File(Content),
    /// The target as it is written.
    Symlink(Box<[u8]>),
    CharDevice {
        major: u32,
        minor: u32,
    },
    BlockDevice {
        major: u32,
        minor: u32,
    },
    Fifo,
}

/// Where a file's bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    Bytes(Vec<u8>),
    /// A file of the host.
    File {
        path: PathBuf,
        size: u64,
    },
    /// An entry of a layer, both counted from zero. Inodes with the same entry come out as one file.
    Layer {
        layer: u32,
        entry: u32,
        size: u64,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inode {
    pub meta: Metadata,
    pub kind: Kind,
}

impl Inode {
    /// Of root's, from 1970.
    #[must_use]
    pub fn new(mode: u32, kind: Kind) -> Self {
        let meta = Metadata {
            mode,
            ..Metadata::default()
        };
        Self { meta, kind }
    }

    #[must_use]
    pub fn directory(mode: u32) -> Self {
        Self::new(mode, Kind::Directory)
    }

    #[must_use]
    pub fn file(mode: u32, content: Content) -> Self {
        Self::new(mode, Kind::File(content))
    }

    #[must_use]
    pub fn symlink(target: &[u8]) -> Self {
        Self::new(0o777, Kind::Symlink(target.into()))
    }

    #[must_use]
    pub fn is_directory(&self) -> bool {
        self.kind == Kind::Directory
    }

    /// The bytes of a file; zero for all else.
    #[must_use]
    pub fn size(&self) -> u64 {
        match &self.kind {
            Kind::File(content) => content.size(),
            Kind::Directory
            | Kind::Symlink(_)
            | Kind::CharDevice { .. }
            | Kind::BlockDevice { .. }
            | Kind::Fifo => 0,
        }
    }

    /// The memory that it takes, roughly and never less by much; the bytes of files in memory are not counted.
    pub(crate) fn cost(&self) -> u64 {
        let target = match &self.kind {
            Kind::Symlink(target) => target.len(),
            _ => 0,
        };
        let xattrs: usize = self
            .meta
            .xattrs
            .iter()
            .map(|(name, value)| 64 + name.len() + value.len())
            .sum();
        (size_of::<Self>() + 64 + target + xattrs) as u64
    }
}

impl Content {
    #[must_use]
    pub fn size(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File { size, .. } | Self::Layer { size, .. } => *size,
        }
    }
}
