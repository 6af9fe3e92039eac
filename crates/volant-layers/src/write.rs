//! Writes a tree as a POSIX tar stream, with extended headers where the plain ones are too small.

use std::io::{self, Read, Write};

use tar::{EntryType, Header};

use crate::{
    emit::{Entry, Sink},
    inode::{Inode, Kind},
};

const BLOCK: u64 = 512;
/// What the octal digits of a header can hold.
const MAX_ID: u32 = 0o7_777_777;
const MAX_LONG: u64 = 0o77_777_777_777;
const MAX_NAME: usize = 100;

/// A tar stream that is being written; [`TarSink::finish`] ends it.
#[derive(Debug)]
pub struct TarSink<W> {
    out: W,
    buffer: Vec<u8>,
}

impl<W: Write> TarSink<W> {
    pub fn new(out: W) -> Self {
        Self {
            out,
            buffer: vec![0; 128 * 1024],
        }
    }

    /// Ends the archive and gives back what it was written to.
    ///
    /// # Errors
    /// It cannot be written to.
    pub fn finish(mut self) -> io::Result<W> {
        self.out.write_all(&[0; 2 * BLOCK as usize])?;
        Ok(self.out)
    }

    /// Writes the headers of an entry; `link` is its target if it is a link.
    fn header(&mut self, entry: &Entry<'_>, kind: EntryType, link: &[u8]) -> io::Result<()> {
        let Inode { meta, .. } = entry.inode;
        let size = if kind.is_file() {
            entry.inode.size()
        } else {
            0
        };
        let mut path = b"./".to_vec();
        if !entry.path.is_empty() {
            path = entry.path.to_vec();
            if kind.is_dir() {
                path.push(b'/');
            }
        }
        let mut records = Records::default();
        records.add_if(path.len() > MAX_NAME, b"path", &path);
        records.add_if(link.len() > MAX_NAME, b"linkpath", link);
        records.number(meta.uid.into(), MAX_ID.into(), b"uid");
        records.number(meta.gid.into(), MAX_ID.into(), b"gid");
        records.number(size, MAX_LONG, b"size");
        let time = u64::try_from(meta.mtime)
            .ok()
            .filter(|time| *time <= MAX_LONG);
        records.add_if(time.is_none(), b"mtime", meta.mtime.to_string().as_bytes());
        if !kind.is_hard_link() {
            for (name, value) in &meta.xattrs {
                records.add(&[b"SCHILY.xattr.", &**name].concat(), value);
            }
        }
        if !records.0.is_empty() {
            let mut header = Header::new_ustar();
            header.set_entry_type(EntryType::XHeader);
            header.set_path("PaxHeader")?;
            header.set_size(records.0.len() as u64);
            header.set_cksum();
            self.out.write_all(header.as_bytes())?;
            self.out.write_all(&records.0)?;
            self.pad(records.0.len() as u64)?;
        }

        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(meta.mode);
        header.set_uid(meta.uid.min(MAX_ID).into());
        header.set_gid(meta.gid.min(MAX_ID).into());
        header.set_size(size.min(MAX_LONG));
        header.set_mtime(time.unwrap_or_default());
        let old = header.as_old_mut();
        put(&mut old.name, &path);
        put(&mut old.linkname, link);
        if let Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor } =
            entry.inode.kind
        {
            header.set_device_major(major)?;
            header.set_device_minor(minor)?;
        }
        header.set_cksum();
        self.out.write_all(header.as_bytes())
    }

    fn pad(&mut self, written: u64) -> io::Result<()> {
        let padding = written.next_multiple_of(BLOCK) - written;
        self.out.write_all(&[0; BLOCK as usize][..padding as usize])
    }
}

impl<W: Write> Sink for TarSink<W> {
    fn node(&mut self, entry: &Entry<'_>) -> io::Result<()> {
        let (kind, link): (_, &[u8]) = match &entry.inode.kind {
            Kind::Directory => (EntryType::Directory, b""),
            Kind::Symlink(target) => (EntryType::Symlink, target),
            Kind::CharDevice { .. } => (EntryType::Char, b""),
            Kind::BlockDevice { .. } => (EntryType::Block, b""),
            Kind::Fifo => (EntryType::Fifo, b""),
            Kind::File(_) => (EntryType::Regular, b""),
        };
        self.header(entry, kind, link)
    }

    fn file(&mut self, entry: &Entry<'_>, content: &mut dyn Read) -> io::Result<()> {
        self.header(entry, EntryType::Regular, b"")?;
        loop {
            match content.read(&mut self.buffer) {
                Ok(0) => break,
                Ok(count) => self.out.write_all(&self.buffer[..count])?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.pad(entry.inode.size())
    }

    fn link(&mut self, entry: &Entry<'_>, target: &[u8]) -> io::Result<()> {
        self.header(entry, EntryType::Link, target)
    }
}

/// Fills a field with as much as fits.
fn put(field: &mut [u8; MAX_NAME], bytes: &[u8]) {
    let length = bytes.len().min(field.len());
    field[..length].copy_from_slice(&bytes[..length]);
}

/// The records of an extended header.
#[derive(Clone, Debug, Default)]
pub struct Records(Vec<u8>);

impl Records {
    /// The content of the extended header.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn number(&mut self, value: u64, most: u64, key: &[u8]) {
        self.add_if(value > most, key, value.to_string().as_bytes());
    }

    fn add_if(&mut self, needed: bool, key: &[u8], value: &[u8]) {
        if needed {
            self.add(key, value);
        }
    }

    /// Adds a record; its value may be any bytes.
    pub fn add(&mut self, key: &[u8], value: &[u8]) {
        // A space, an equals sign and a newline; and the digits of the length, which count themselves.
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while rest + length.to_string().len() != length {
            length = rest + length.to_string().len();
        }
        self.0.extend_from_slice(format!("{length} ").as_bytes());
        for part in [key, b"=", value, b"\n"] {
            self.0.extend_from_slice(part);
        }
    }
}
