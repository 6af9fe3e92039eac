//! Archives made byte by byte, and trees as text.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hasher},
    io::{self, Read},
};

use tar::Header;
use volant_layers::{Entry, Inode, Kind, Layer, Limits, MergeError, Sink, Tree, merge, shown};

/// A layer in memory.
#[derive(Clone, Default)]
pub struct Archive(pub Vec<u8>);

impl Layer for Archive {
    fn open(&self) -> io::Result<Box<dyn Read + '_>> {
        Ok(Box::new(self.0.as_slice()))
    }

    fn name(&self) -> String {
        "sha256:abc".into()
    }
}

impl Archive {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn header(kind: u8, name: &[u8], size: u64) -> Header {
        let mut header = Header::new_ustar();
        header.as_old_mut().linkflag = [kind];
        header.set_mode(if kind == b'5' { 0o755 } else { 0o644 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(size);
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header
    }

    /// Adds a header as it is, checksum aside, and a content.
    pub fn raw(mut self, mut header: Header, content: &[u8]) -> Self {
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.bytes(content)
    }

    pub fn bytes(mut self, content: &[u8]) -> Self {
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub fn entry(self, kind: u8, name: &str, content: &str) -> Self {
        let header = Self::header(kind, name.as_bytes(), content.len() as u64);
        self.raw(header, content.as_bytes())
    }

    pub fn file(self, name: &str, content: &str) -> Self {
        self.entry(b'0', name, content)
    }

    pub fn dir(self, name: &str) -> Self {
        self.entry(b'5', name, "")
    }

    pub fn to(self, kind: u8, name: &str, target: &str) -> Self {
        let mut header = Self::header(kind, name.as_bytes(), 0);
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        self.raw(header, b"")
    }

    pub fn symlink(self, name: &str, target: &str) -> Self {
        self.to(b'2', name, target)
    }

    pub fn link(self, name: &str, target: &str) -> Self {
        self.to(b'1', name, target)
    }

    pub fn extended(self, kind: u8, records: &[(&str, &[u8])]) -> Self {
        let mut content = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let digits = (1..).find(|digits| (rest + digits).to_string().len() == *digits);
            content.extend_from_slice(format!("{} {key}=", rest + digits.unwrap()).as_bytes());
            content.extend_from_slice(value);
            content.push(b'\n');
        }
        let header = Self::header(kind, b"PaxHeader", content.len() as u64);
        self.raw(header, &content)
    }

    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        self.extended(b'x', records)
    }
}

pub fn merged(layers: &[Archive]) -> Result<Tree, MergeError> {
    merge(&borrowed(layers), &Limits::default())
}

pub fn borrowed(layers: &[Archive]) -> Vec<&dyn Layer> {
    layers.iter().map(|layer| layer as &dyn Layer).collect()
}

/// The error with all its causes.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text += &format!(": {error}");
        source = error.source();
    }
    text
}

/// What came out of a tree, in order.
#[derive(Default)]
pub struct Seen {
    pub order: Vec<String>,
    pub paths: BTreeMap<String, String>,
    pub contents: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Seen {
    pub fn of(layers: &[Archive]) -> Self {
        let tree = merged(layers).unwrap_or_else(|error| panic!("{}", chain(&error)));
        Self::emitted(&tree, &borrowed(layers))
    }

    pub fn emitted(tree: &Tree, layers: &[&dyn Layer]) -> Self {
        let (mut seen, mut bytes) = (Self::default(), 0);
        tree.emit(layers, &mut seen, &mut |count| bytes += count)
            .unwrap_or_else(|error| panic!("{}", chain(&error)));
        assert_eq!(bytes, tree.size());
        seen
    }

    /// The paths that are not the root, with what is there.
    pub fn listing(&self) -> Vec<String> {
        self.paths
            .iter()
            .filter(|(path, _)| !path.is_empty())
            .map(|(path, what)| format!("{path} {what}"))
            .collect()
    }

    fn add(&mut self, path: &[u8], what: String) {
        self.order.push(shown(path));
        let old = self.paths.insert(shown(path), what);
        assert!(old.is_none(), "{} came twice", shown(path));
    }
}

impl Sink for Seen {
    fn node(&mut self, entry: &Entry<'_>) -> io::Result<()> {
        self.add(entry.path, describe(entry.inode));
        Ok(())
    }

    fn file(&mut self, entry: &Entry<'_>, content: &mut dyn Read) -> io::Result<()> {
        let mut bytes = Vec::new();
        content.read_to_end(&mut bytes)?;
        assert_eq!(bytes.len() as u64, entry.inode.size());
        let text = describe(entry.inode) + &quoted(&bytes);
        self.add(entry.path, text);
        self.contents.insert(entry.path.to_vec(), bytes);
        Ok(())
    }

    fn link(&mut self, entry: &Entry<'_>, target: &[u8]) -> io::Result<()> {
        assert!(entry.links > 1);
        self.add(entry.path, format!("= {}", shown(target)));
        Ok(())
    }
}

/// A short content as text; of a long one its size and a hash.
pub fn quoted(content: &[u8]) -> String {
    if content.len() < 200 {
        return format!("'{}'", shown(content));
    }
    let mut hasher = DefaultHasher::new();
    hasher.write(content);
    format!("'{} bytes, {:x}'", content.len(), hasher.finish())
}

/// Type, and what of the metadata is not usual.
pub fn describe(inode: &Inode) -> String {
    let meta = &inode.meta;
    let usual = match inode.kind {
        Kind::Directory => 0o755,
        Kind::Symlink(_) => 0o777,
        _ => 0o644,
    };
    let mut text = match &inode.kind {
        Kind::Directory => "d".into(),
        Kind::File(_) => "f".into(),
        Kind::Symlink(target) => format!("l->{}", shown(target)),
        Kind::CharDevice { major, minor } => format!("c{major}:{minor}"),
        Kind::BlockDevice { major, minor } => format!("b{major}:{minor}"),
        Kind::Fifo => "p".into(),
    };
    if meta.mode != usual {
        text += &format!(" {:o}", meta.mode);
    }
    if (meta.uid, meta.gid) != (0, 0) {
        text += &format!(" {}:{}", meta.uid, meta.gid);
    }
    if meta.mtime != 0 {
        text += &format!(" @{}", meta.mtime);
    }
    for (name, value) in &meta.xattrs {
        text += &format!(" {}={}", shown(name), value.escape_ascii());
    }
    text
}
