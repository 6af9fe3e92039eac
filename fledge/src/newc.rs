//! Writes the `newc` cpio format, which the kernel unpacks as an initramfs. It has no extended attributes.

use std::{
    collections::HashMap,
    io::{self, Read, Write},
};

use volant_layers::{Entry, Inode, Kind, Sink, shown};

const DIRECTORY: u32 = 0o040_000;
const CHAR_DEVICE: u32 = 0o020_000;
const BLOCK_DEVICE: u32 = 0o060_000;
const FIFO: u32 = 0o010_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const TRAILER: &[u8] = b"TRAILER!!!";

#[derive(Debug, thiserror::Error)]
#[error("it has {0} bytes; a file in an initramfs has less than 4 GiB")]
struct TooLarge(u64);

/// An archive that is being written; [`Archive::finish`] ends it.
#[derive(Debug)]
pub struct Archive<W> {
    out: W,
    /// The number of the last inode.
    last: u32,
    /// The inodes that have several paths, by the first.
    shared: HashMap<Vec<u8>, u32>,
    /// The programs that lost their capabilities.
    powerless: Vec<String>,
    buffer: Vec<u8>,
}

#[derive(Default)]
struct Header {
    inode: u32,
    mode: u32,
    uid: u32,
    gid: u32,
    links: u32,
    mtime: u32,
    size: u32,
    device: (u32, u32),
}

impl<W: Write> Archive<W> {
    pub fn new(out: W) -> Self {
        Self {
            out,
            last: 0,
            shared: HashMap::new(),
            powerless: Vec::new(),
            buffer: vec![0; 128 * 1024],
        }
    }

    /// Ends the archive; gives what it was written to, and the paths of the programs that have capabilities,
    /// which the format cannot hold.
    pub fn finish(mut self) -> io::Result<(W, Vec<String>)> {
        let header = Header {
            links: 1,
            ..Header::default()
        };
        self.put_header(&header, TRAILER)?;
        Ok((self.out, self.powerless))
    }

    /// Writes the header of an entry; `size` is that of what follows.
    fn header(&mut self, entry: &Entry<'_>, size: u64, inode: u32) -> io::Result<()> {
        let Inode { meta, kind } = entry.inode;
        let (format, device) = match kind {
            Kind::Directory => (DIRECTORY, (0, 0)),
            Kind::File(_) => (REGULAR, (0, 0)),
            Kind::Symlink(_) => (SYMLINK, (0, 0)),
            Kind::CharDevice { major, minor } => (CHAR_DEVICE, (*major, *minor)),
            Kind::BlockDevice { major, minor } => (BLOCK_DEVICE, (*major, *minor)),
            Kind::Fifo => (FIFO, (0, 0)),
        };
        let links = match kind {
            Kind::Directory => 2,
            Kind::Symlink(_) => 1,
            _ => entry.links,
        };
        let header = Header {
            inode,
            mode: format | meta.mode,
            uid: meta.uid,
            gid: meta.gid,
            links,
            // The format knows no other times.
            mtime: meta.mtime.clamp(0, u32::MAX.into()) as u32,
            size: u32::try_from(size)
                .map_err(|_| io::Error::new(io::ErrorKind::FileTooLarge, TooLarge(size)))?,
            device,
        };
        match entry.path {
            b"" => self.put_header(&header, b"."),
            // It would end the archive.
            TRAILER => self.put_header(&header, &[b"./", TRAILER].concat()),
            path => self.put_header(&header, path),
        }
    }

    /// A number for an inode that was not written yet.
    fn number(&mut self, entry: &Entry<'_>) -> u32 {
        self.last += 1;
        if entry.links > 1 {
            self.shared.insert(entry.path.to_vec(), self.last);
        }
        if entry
            .inode
            .meta
            .xattrs
            .contains_key(&b"security.capability"[..])
        {
            self.powerless.push(shown(entry.path));
        }
        self.last
    }

    fn put_header(&mut self, header: &Header, path: &[u8]) -> io::Result<()> {
        let Header {
            inode,
            mode,
            uid,
            gid,
            links,
            mtime,
            size,
            device: (major, minor),
        } = *header;
        let name_size = path.len() + 1;
        // After the size: the file system's device, the node's device, name, check.
        let text = format!(
            "070701{inode:08X}{mode:08X}{uid:08X}{gid:08X}{links:08X}{mtime:08X}{size:08X}{0:08X}{0:08X}\
             {major:08X}{minor:08X}{name_size:08X}{0:08X}",
            0
        );
        self.out.write_all(text.as_bytes())?;
        self.out.write_all(path)?;
        self.out.write_all(&[0])?;
        self.pad(text.len() + name_size)
    }

    fn pad(&mut self, written: usize) -> io::Result<()> {
        self.out.write_all(&[0; 3][..written.wrapping_neg() % 4])
    }
}

impl<W: Write> Sink for Archive<W> {
    fn node(&mut self, entry: &Entry<'_>) -> io::Result<()> {
        let number = self.number(entry);
        let Kind::Symlink(target) = &entry.inode.kind else {
            return self.header(entry, 0, number);
        };
        self.header(entry, target.len() as u64, number)?;
        self.out.write_all(target)?;
        self.pad(target.len())
    }

    fn file(&mut self, entry: &Entry<'_>, content: &mut dyn Read) -> io::Result<()> {
        let size = entry.inode.size();
        let number = self.number(entry);
        self.header(entry, size, number)?;
        loop {
            match content.read(&mut self.buffer) {
                Ok(0) => break,
                Ok(count) => self.out.write_all(&self.buffer[..count])?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        // Only the last two bits of the length matter.
        self.pad((size % 4) as usize)
    }

    fn link(&mut self, entry: &Entry<'_>, target: &[u8]) -> io::Result<()> {
        match self.shared.get(target) {
            // The kernel makes links of files and devices alone; of a symbolic link there are two then.
            Some(number) if !matches!(entry.inode.kind, Kind::Symlink(_)) => {
                // The content came with the first.
                self.header(entry, 0, *number)
            }
            _ => self.node(&Entry { links: 1, ..*entry }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use volant_layers::{Content, Metadata, Tree};

    use super::*;

    fn file(bytes: &[u8]) -> Inode {
        Inode::file(0o644, Content::Bytes(bytes.to_vec()))
    }

    #[test]
    fn every_entry_begins_at_a_multiple_of_four() {
        let mut tree = Tree::new();
        for (path, content) in [
            ("/a/b", &b""[..]),
            ("/a/bc", b"1"),
            ("/a/bcd", b"12345"),
            ("/a/bcde", b"1234"),
        ] {
            tree.insert(path.as_ref(), file(content)).unwrap();
        }
        tree.insert("/z".as_ref(), Inode::symlink(b"a/bc")).unwrap();
        let mut archive = Archive::new(Vec::new());
        tree.emit(&[], &mut archive, &mut |_| ()).unwrap();
        let (bytes, _) = archive.finish().unwrap();
        assert_eq!(bytes.len() % 4, 0);
        let entries: Vec<usize> = bytes
            .windows(6)
            .enumerate()
            .filter(|(_, window)| window == b"070701")
            .map(|(at, _)| at)
            .collect();
        assert_eq!(entries.len(), 8);
        assert!(entries.iter().all(|at| at % 4 == 0), "{entries:?}");
    }

    #[test]
    fn a_file_of_four_gibibytes_is_refused() {
        let content = Content::Layer {
            layer: 0,
            entry: 0,
            size: 1 << 32,
        };
        let inode = Inode::file(0o644, content);
        let entry = Entry {
            path: b"f",
            inode: &inode,
            links: 1,
        };
        let error = Archive::new(io::sink())
            .file(&entry, &mut io::empty())
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "it has 4294967296 bytes; a file in an initramfs has less than 4 GiB"
        );
    }

    #[test]
    fn owners_and_times_are_kept_and_lost_capabilities_told() {
        let meta = Metadata {
            mode: 0o4755,
            uid: 1000,
            gid: 50,
            mtime: 1 << 40,
            xattrs: [(b"security.capability"[..].into(), b"x"[..].into())].into(),
        };
        let mut inode = file(b"");
        inode.meta = meta;
        let mut tree = Tree::new();
        tree.insert("/bin/ping".as_ref(), inode).unwrap();
        let mut archive = Archive::new(Vec::new());
        tree.emit(&[], &mut archive, &mut |_| ()).unwrap();
        let (bytes, powerless) = archive.finish().unwrap();
        assert_eq!(powerless, ["bin/ping"]);
        let header = "000089ED000003E80000003200000001FFFFFFFF00000000";
        assert!(String::from_utf8_lossy(&bytes).contains(header));
    }

    #[test]
    fn hard_links_are_links_once_unpacked() {
        let (inode, link) = (file(b"shared"), Inode::symlink(b"a"));
        let entry = |path, inode| Entry {
            path,
            inode,
            links: 2,
        };
        let mut archive = Archive::new(Vec::new());
        archive.node(&entry(b"l", &link)).unwrap();
        archive.link(&entry(b"m", &link), b"l").unwrap();
        archive
            .file(&entry(b"a", &inode), &mut &b"shared"[..])
            .unwrap();
        archive.link(&entry(b"b", &inode), b"a").unwrap();
        let (bytes, _) = archive.finish().unwrap();

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cpio");
        std::fs::write(&path, bytes).unwrap();
        let status = std::process::Command::new("cpio")
            .args(["-i", "--quiet"])
            .stdin(std::fs::File::open(path).unwrap())
            .current_dir(&folder)
            .status()
            .expect("this test needs the package cpio");
        assert!(status.success());
        for name in ["a", "b", "l", "m"] {
            let path = folder.path().join(name);
            assert_eq!(std::fs::read(&path).unwrap(), b"shared", "{name}");
        }
        let inodes = ["a", "b", "l", "m"].map(|name| {
            std::fs::symlink_metadata(folder.path().join(name))
                .unwrap()
                .ino()
        });
        assert_eq!(inodes[0], inodes[1]);
        assert_ne!(inodes[2], inodes[3]);
    }
}
