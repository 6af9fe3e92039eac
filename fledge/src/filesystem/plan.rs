//! The inodes of a tree, numbered, with what is in each folder: what a writer of file systems needs to know
//! before the first content comes.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
};

use sha2::{Digest as _, Sha256};
use volant_layers::{Content, Entry, Inode, Kind, Sink, Tree};

/// How much is copied at once; a whole number of blocks.
const CHUNK: usize = 128 * 1024;

static ZEROS: [u8; CHUNK] = [0; CHUNK];

pub(super) struct Node<'a> {
    /// Its first path.
    pub path: &'a [u8],
    pub inode: &'a Inode,
    /// As `stat` tells it: of a folder, two and its folders.
    pub links: u32,
    /// The number of the folder of its first path; the root is in itself.
    pub parent: usize,
    /// Names and numbers, sorted.
    pub children: Vec<(&'a [u8], usize)>,
}

/// The root is number 0.
pub(super) struct Plan<'a> {
    pub nodes: Vec<Node<'a>>,
    numbers: HashMap<&'a [u8], usize>,
}

/// The number of a node, and why it does not fit into an image.
pub(super) type Unfit = (usize, &'static str);

/// What makes two paths one inode.
#[derive(PartialEq, Eq, Hash)]
enum Identity {
    Memory(*const Inode),
    Layer(u32, u32),
}

impl<'a> Plan<'a> {
    pub(super) fn new(tree: &'a Tree) -> Self {
        let mut plan = Self {
            nodes: Vec::new(),
            numbers: HashMap::new(),
        };
        let mut inodes = HashMap::new();
        for (path, inode) in tree.iter() {
            let identity = match &inode.kind {
                Kind::File(Content::Layer { layer, entry, .. }) => Identity::Layer(*layer, *entry),
                _ => Identity::Memory(inode),
            };
            let (folder, name) = match path.iter().rposition(|byte| *byte == b'/') {
                Some(at) => (&path[..at], &path[at + 1..]),
                None => (&path[..0], path),
            };
            let parent = plan.numbers.get(folder).copied().unwrap_or(0);
            let number = *inodes.entry(identity).or_insert(plan.nodes.len());
            if number == plan.nodes.len() {
                let links = if inode.is_directory() { 2 } else { 0 };
                plan.nodes.push(Node {
                    path,
                    inode,
                    links,
                    parent,
                    children: Vec::new(),
                });
            }
            plan.numbers.insert(path, number);
            if inode.is_directory() {
                plan.nodes[parent].links += u32::from(!path.is_empty());
            } else {
                plan.nodes[number].links += 1;
            }
            if !path.is_empty() {
                plan.nodes[parent].children.push((name, number));
            }
        }
        plan
    }

    /// An id of the image that is the same for the same tree.
    pub(super) fn uuid(&self) -> [u8; 16] {
        let mut hash = Sha256::new();
        for (number, node) in self.nodes.iter().enumerate() {
            for (name, child) in &node.children {
                hash.update(number.to_le_bytes());
                hash.update(name);
                hash.update(child.to_le_bytes());
            }
            let meta = &node.inode.meta;
            for field in [
                meta.mode.into(),
                meta.uid.into(),
                meta.gid.into(),
                meta.mtime as u64,
                node.inode.size(),
            ] {
                hash.update(field.to_le_bytes());
            }
        }
        let mut uuid: [u8; 16] = hash.finalize()[..16].try_into().expect("it is longer");
        // As RFC 9562 has those of own making.
        uuid[6] = uuid[6] & 0x0f | 0x80;
        uuid[8] = uuid[8] & 0x3f | 0x80;
        uuid
    }
}

/// A part of the image that takes the next bytes of a content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub offset: u64,
    pub length: u64,
}

/// Puts the contents of files where they belong; all else was written before.
pub(super) struct Contents<'a> {
    plan: &'a Plan<'a>,
    image: &'a File,
    /// Where the content of a node goes.
    place: &'a dyn Fn(usize) -> Vec<Span>,
    buffer: Vec<u8>,
}

impl<'a> Contents<'a> {
    pub(super) fn new(
        plan: &'a Plan<'a>,
        image: &'a File,
        place: &'a dyn Fn(usize) -> Vec<Span>,
    ) -> Self {
        Self {
            plan,
            image,
            place,
            buffer: vec![0; CHUNK],
        }
    }
}

impl Sink for Contents<'_> {
    fn node(&mut self, _entry: &Entry<'_>) -> io::Result<()> {
        Ok(())
    }

    fn file(&mut self, entry: &Entry<'_>, content: &mut dyn Read) -> io::Result<()> {
        let number = self.plan.numbers.get(entry.path);
        let number = *number.ok_or_else(|| io::Error::other("it was not in the tree before"))?;
        for span in (self.place)(number) {
            let mut done = 0;
            while done < span.length {
                let most = (span.length - done).min(CHUNK as u64) as usize;
                let chunk = &mut self.buffer[..most];
                content.read_exact(chunk)?;
                // What is not written reads as zeros, and takes no room here.
                if *chunk != ZEROS[..most] {
                    self.image.write_all_at(chunk, span.offset + done)?;
                }
                done += most as u64;
            }
        }
        Ok(())
    }

    fn link(&mut self, _entry: &Entry<'_>, _target: &[u8]) -> io::Result<()> {
        Ok(())
    }
}

/// A device number as the kernel writes it: 12 bits of major, 20 of minor.
pub(super) fn device(major: u32, minor: u32) -> Result<u32, &'static str> {
    if major >= 1 << 12 || minor >= 1 << 20 {
        return Err("its device numbers are beyond those of Linux");
    }
    Ok(minor & 0xff | major << 8 | (minor & !0xff) << 12)
}

/// The type bits of a mode.
pub(super) fn type_bits(kind: &Kind) -> u32 {
    match kind {
        Kind::Fifo => 0o010_000,
        Kind::CharDevice { .. } => 0o020_000,
        Kind::Directory => 0o040_000,
        Kind::BlockDevice { .. } => 0o060_000,
        Kind::File(_) => 0o100_000,
        Kind::Symlink(_) => 0o120_000,
    }
}

/// The type in an entry of a folder, which erofs and ext4 have in common.
pub(super) fn entry_type(kind: &Kind) -> u8 {
    match kind {
        Kind::File(_) => 1,
        Kind::Directory => 2,
        Kind::CharDevice { .. } => 3,
        Kind::BlockDevice { .. } => 4,
        Kind::Fifo => 5,
        Kind::Symlink(_) => 7,
    }
}

/// Writes numbers into the bytes of a structure, little-endian.
pub(super) fn put<const N: usize>(bytes: &mut [u8], at: usize, value: [u8; N]) {
    bytes[at..at + N].copy_from_slice(&value);
}
