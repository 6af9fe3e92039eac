//! What stands at a path, from a tree or from a folder, to be compared.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt},
    },
    path::Path,
};

use volant_layers::{Content, Inode, Kind, Tree};

/// Everything that can differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thing {
    pub kind: What,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: i64,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The first path of the same inode.
    pub first: Vec<u8>,
    /// Of what is no folder.
    pub links: u64,
}

#[derive(Clone, PartialEq, Eq)]
pub enum What {
    Directory,
    File(Vec<u8>),
    Symlink(Vec<u8>),
    Char(u32, u32),
    Block(u32, u32),
    Fifo,
}

impl std::fmt::Debug for What {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(bytes) => write!(
                out,
                "File of {} ({})",
                bytes.len(),
                bytes[..bytes.len().min(16)].escape_ascii()
            ),
            Self::Symlink(target) => write!(
                out,
                "Symlink of {} ({})",
                target.len(),
                target[..target.len().min(16)].escape_ascii()
            ),
            Self::Char(major, minor) => write!(out, "Char {major}:{minor}"),
            Self::Block(major, minor) => write!(out, "Block {major}:{minor}"),
            Self::Directory => out.write_str("Directory"),
            Self::Fifo => out.write_str("Fifo"),
        }
    }
}

pub type Things = BTreeMap<Vec<u8>, Thing>;

/// What is in a tree of which all content is in memory.
pub fn of_tree(tree: &Tree) -> Things {
    let mut inodes: BTreeMap<usize, (Vec<u8>, u64)> = BTreeMap::new();
    let number = |inode: &Inode| std::ptr::from_ref(inode) as usize;
    for (path, inode) in tree.iter() {
        let of = inodes.entry(number(inode)).or_insert((path.to_vec(), 0));
        of.1 += 1;
    }
    tree.iter()
        .map(|(path, inode)| {
            let (first, links) = inodes[&number(inode)].clone();
            let kind = match &inode.kind {
                Kind::Directory => What::Directory,
                Kind::File(Content::Bytes(bytes)) => What::File(bytes.clone()),
                Kind::File(content) => panic!("{content:?} is not in memory"),
                Kind::Symlink(target) => What::Symlink(target.to_vec()),
                Kind::CharDevice { major, minor } => What::Char(*major, *minor),
                Kind::BlockDevice { major, minor } => What::Block(*major, *minor),
                Kind::Fifo => What::Fifo,
            };
            let xattrs = &inode.meta.xattrs;
            let thing = Thing {
                kind,
                mode: inode.meta.mode,
                uid: inode.meta.uid,
                gid: inode.meta.gid,
                mtime: inode.meta.mtime,
                xattrs: xattrs
                    .iter()
                    .map(|(name, value)| (name.to_vec(), value.to_vec()))
                    .collect(),
                first,
                links,
            };
            (path.to_vec(), thing)
        })
        .collect()
}

/// What is in a folder, read as root.
pub fn of_folder(root: &Path) -> Things {
    let mut found = Things::new();
    let mut inodes = BTreeMap::new();
    let mut todo = vec![Vec::new()];
    while let Some(path) = todo.pop() {
        let place = root.join(OsStr::from_bytes(&path));
        let meta = fs::symlink_metadata(&place).unwrap();
        let (major, minor) = (
            rustix::fs::major(meta.rdev()),
            rustix::fs::minor(meta.rdev()),
        );
        let kind = match meta.file_type() {
            kind if kind.is_dir() => {
                for entry in fs::read_dir(&place).unwrap() {
                    let mut below = path.clone();
                    if !below.is_empty() {
                        below.push(b'/');
                    }
                    below.extend_from_slice(entry.unwrap().file_name().as_bytes());
                    todo.push(below);
                }
                What::Directory
            }
            kind if kind.is_file() => What::File(fs::read(&place).unwrap()),
            kind if kind.is_symlink() => What::Symlink(
                fs::read_link(&place)
                    .unwrap()
                    .into_os_string()
                    .as_bytes()
                    .to_vec(),
            ),
            kind if kind.is_char_device() => What::Char(major, minor),
            kind if kind.is_block_device() => What::Block(major, minor),
            kind if kind.is_fifo() => What::Fifo,
            kind => panic!("{} is {kind:?}", place.display()),
        };
        let first = inodes.entry(meta.ino()).or_insert_with(|| path.clone());
        if path < *first {
            first.clone_from(&path);
        }
        let links = if kind == What::Directory {
            1
        } else {
            meta.nlink()
        };
        let thing = Thing {
            kind,
            mode: meta.mode() & 0o7777,
            uid: meta.uid(),
            gid: meta.gid(),
            mtime: meta.mtime(),
            xattrs: xattrs(&place),
            first: meta.ino().to_le_bytes().to_vec(),
            links,
        };
        found.insert(path, thing);
    }
    for thing in found.values_mut() {
        let number = u64::from_le_bytes(thing.first[..].try_into().unwrap());
        thing.first.clone_from(&inodes[&number]);
    }
    found
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0; 65536];
    let length = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let mut value = vec![0; 65536];
            let length =
                rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value[..]).unwrap();
            value.truncate(length);
            (name.to_vec(), value)
        })
        .collect()
}

/// Fails with what differs, path by path.
pub fn assert_same(found: &Things, expected: &Things) {
    let mut differences = Vec::new();
    for path in found.keys().chain(expected.keys()) {
        if found.get(path) != expected.get(path) {
            differences.push(format!(
                "{}:\n  expected {:?}\n  found    {:?}",
                path.escape_ascii(),
                expected.get(path),
                found.get(path)
            ));
        }
    }
    differences.sort();
    differences.dedup();
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}
