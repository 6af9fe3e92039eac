//! A directory as a layer: its tar, made while it is read.
//!
//! Ownership, modes, times and extended attributes are those that the files have: a tree that was made by a user is
//! that user's in the image, too, not root's. Sockets are left out. Entries come sorted by name, so the same tree
//! gives the same tar.

use std::{
    collections::{HashMap, VecDeque},
    fs::{self, File, Metadata},
    io::{self, Cursor, Read},
    os::unix::{
        ffi::{OsStrExt as _, OsStringExt as _},
        fs::{FileTypeExt as _, MetadataExt as _},
    },
    path::{Path, PathBuf},
};

use tar::{EntryType, Header};

use volant_layers::Layer;

/// `XATTR_LIST_MAX` and `XATTR_SIZE_MAX` of the kernel.
const MAX_XATTR: usize = 64 * 1024;
const NAME_FIELD: usize = 100;

/// The layer that a directory is.
#[derive(Clone, Debug)]
pub struct TreeLayer {
    root: PathBuf,
}

impl TreeLayer {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root }
    }
}

impl Layer for TreeLayer {
    fn open(&self) -> io::Result<Box<dyn Read + '_>> {
        Ok(Box::new(TreeReader {
            root: &self.root,
            waiting: vec![PathBuf::new()],
            seen: HashMap::new(),
            ready: VecDeque::new(),
            ended: false,
        }))
    }

    fn name(&self) -> String {
        self.root.display().to_string()
    }

    fn whiteouts(&self) -> bool {
        false
    }
}

struct TreeReader<'a> {
    root: &'a Path,
    /// Paths below the root, the next one last.
    waiting: Vec<PathBuf>,
    /// Files of several names: device and inode, and the name that came first.
    seen: HashMap<(u64, u64), PathBuf>,
    ready: VecDeque<Piece>,
    ended: bool,
}

/// A part of the tar.
enum Piece {
    Bytes(Cursor<Vec<u8>>),
    Content {
        path: PathBuf,
        file: File,
        left: u64,
    },
}

impl Piece {
    fn bytes(bytes: Vec<u8>) -> Self {
        Self::Bytes(Cursor::new(bytes))
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Bytes(bytes) => bytes.read(buffer),
            Self::Content { left: 0, .. } => Ok(0),
            Self::Content { path, file, left } => {
                let want = usize::try_from(*left).unwrap_or(usize::MAX);
                let want = want.min(buffer.len());
                let got = file.read(&mut buffer[..want]);
                let got = got.map_err(|error| about(path, &error))?;
                if got == 0 {
                    let message = format!("{} became shorter while it was read", named(path));
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, message));
                }
                *left -= got as u64;
                Ok(got)
            }
        }
    }
}

impl Read for TreeReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            while let Some(piece) = self.ready.front_mut() {
                match piece.read(buffer)? {
                    0 => drop(self.ready.pop_front()),
                    got => return Ok(got),
                }
            }
            if self.ended {
                return Ok(0);
            }
            match self.waiting.pop() {
                Some(below) => self.add(&below)?,
                None => {
                    self.ended = true;
                    self.ready.push_back(Piece::bytes(vec![0; 2 * 512]));
                }
            }
        }
    }
}

impl TreeReader<'_> {
    /// Makes what is at `below` ready: its headers, and its content if it has one.
    fn add(&mut self, below: &Path) -> io::Result<()> {
        let path = self.root.join(below);
        let in_path = |error| about(&path, &error);
        // The root itself may be a link to a directory; below it no link is followed.
        let meta = if below.as_os_str().is_empty() {
            fs::metadata(&path).map_err(in_path)?
        } else {
            fs::symlink_metadata(&path).map_err(in_path)?
        };
        let kind = meta.file_type();
        if kind.is_socket() {
            return Ok(());
        }
        if meta.nlink() > 1 && !meta.is_dir() {
            let id = (meta.dev(), meta.ino());
            if let Some(first) = self.seen.get(&id) {
                let head = head(
                    &meta,
                    EntryType::Link,
                    below,
                    Some(first.as_os_str().as_bytes()),
                    &[],
                )?;
                self.ready.push_back(Piece::bytes(head));
                return Ok(());
            }
            self.seen.insert(id, below.to_owned());
        }
        let xattrs = xattrs(&path).map_err(in_path)?;
        let (entry, link) = if meta.is_dir() {
            self.enter(&path, below)?;
            (EntryType::Directory, None)
        } else if kind.is_symlink() {
            let target = fs::read_link(&path).map_err(in_path)?;
            (EntryType::Symlink, Some(target.into_os_string().into_vec()))
        } else if kind.is_char_device() {
            (EntryType::Char, None)
        } else if kind.is_block_device() {
            (EntryType::Block, None)
        } else if kind.is_fifo() {
            (EntryType::Fifo, None)
        } else {
            (EntryType::Regular, None)
        };
        let head = head(&meta, entry, below, link.as_deref(), &xattrs)?;
        self.ready.push_back(Piece::bytes(head));
        if entry == EntryType::Regular && meta.len() > 0 {
            let file = File::open(&path).map_err(in_path)?;
            let left = meta.len();
            self.ready.push_back(Piece::Content { path, file, left });
            let padding = left.next_multiple_of(512) - left;
            let padding = usize::try_from(padding).expect("less than a block");
            self.ready.push_back(Piece::bytes(vec![0; padding]));
        }
        Ok(())
    }

    /// Puts what is in a directory before all else that waits.
    fn enter(&mut self, path: &Path, below: &Path) -> io::Result<()> {
        let names = fs::read_dir(path).and_then(|entries| {
            entries
                .map(|entry| Ok(entry?.file_name()))
                .collect::<io::Result<Vec<_>>>()
        });
        let mut names = names.map_err(|error| about(path, &error))?;
        names.sort_by(|a, b| b.cmp(a));
        self.waiting
            .extend(names.into_iter().map(|name| below.join(name)));
        Ok(())
    }
}

/// An error that says which file it is about.
fn about(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(
        error.kind(),
        format!("cannot read {}: {error}", named(path)),
    )
}

fn named(path: &Path) -> String {
    volant_layers::shown(path.as_os_str().as_bytes())
}

/// The headers of an entry. What does not fit into the old header's fields goes into a pax header before it.
fn head(
    meta: &Metadata,
    entry: EntryType,
    below: &Path,
    link: Option<&[u8]>,
    xattrs: &[(String, Vec<u8>)],
) -> io::Result<Vec<u8>> {
    let mut name = below.as_os_str().as_bytes().to_vec();
    if name.is_empty() {
        name = b".".to_vec();
    }
    if entry.is_dir() {
        name.push(b'/');
    }
    let mut header = Header::new_gnu();
    header.set_entry_type(entry);
    header.set_mode(meta.mode() & 0o7777);
    header.set_uid(u64::from(meta.uid()));
    header.set_gid(u64::from(meta.gid()));
    header.set_mtime(u64::try_from(meta.mtime()).unwrap_or(0));
    header.set_size(if entry == EntryType::Regular {
        meta.len()
    } else {
        0
    });
    if matches!(entry, EntryType::Char | EntryType::Block) {
        header.set_device_major(rustix::fs::major(meta.rdev()))?;
        header.set_device_minor(rustix::fs::minor(meta.rdev()))?;
    }
    let mut pax: Vec<(&str, &[u8])> = Vec::new();
    let fields = header.as_gnu_mut().expect("it was made as one of GNU's");
    for (key, value, field) in [
        ("path", Some(name.as_slice()), &mut fields.name),
        ("linkpath", link, &mut fields.linkname),
    ] {
        let value = value.unwrap_or_default();
        let fits = value.len().min(NAME_FIELD);
        field[..fits].copy_from_slice(&value[..fits]);
        if value.len() > NAME_FIELD {
            pax.push((key, value));
        }
    }
    header.set_cksum();
    pax.extend(
        xattrs
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_slice())),
    );
    let mut tar = tar::Builder::new(Vec::new());
    if !pax.is_empty() {
        tar.append_pax_extensions(pax)?;
    }
    let mut head = std::mem::take(tar.get_mut());
    head.extend_from_slice(header.as_bytes());
    Ok(head)
}

/// Extended attributes as pax names and values, sorted; not those by which the host labels its own files.
fn xattrs(path: &Path) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut buffer = vec![0; MAX_XATTR];
    let length = match rustix::fs::llistxattr(path, &mut buffer[..]) {
        Ok(length) => length,
        Err(rustix::io::Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let mut names: Vec<String> = buffer[..length]
        .split(|byte| *byte == 0)
        .filter_map(|name| String::from_utf8(name.to_vec()).ok())
        .filter(|name| !name.is_empty())
        .filter(|name| {
            !matches!(
                name.as_str(),
                "security.selinux" | "security.ima" | "security.evm"
            )
        })
        .collect();
    names.sort();
    let mut pairs = Vec::new();
    for name in names {
        let length = rustix::fs::lgetxattr(path, &name, &mut buffer[..])?;
        pairs.push((format!("SCHILY.xattr.{name}"), buffer[..length].to_vec()));
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn tar_of(root: &Path) -> Vec<u8> {
        let mut bytes = Vec::new();
        let layer = TreeLayer::new(root.to_owned());
        layer.open().unwrap().read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_directory_reads_as_the_tar_of_what_is_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let long = "n".repeat(150);
        fs::create_dir(root.join("b")).unwrap();
        fs::write(root.join("b/inner"), b"x".repeat(1000)).unwrap();
        fs::write(root.join("a"), b"").unwrap();
        fs::write(root.join(&long), b"long").unwrap();
        fs::hard_link(root.join("b/inner"), root.join("c")).unwrap();
        symlink(format!("..//{long}"), root.join("link")).unwrap();
        fs::set_permissions(root.join("a"), fs::Permissions::from_mode(0o4755)).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();
        rustix::fs::lsetxattr(
            root.join("a"),
            "user.k",
            b"v\n\0",
            rustix::fs::XattrFlags::empty(),
        )
        .unwrap();

        let bytes = tar_of(root);
        let record = b"27 SCHILY.xattr.user.k=v\n\0\n";
        assert!(bytes.windows(record.len()).any(|part| part == record));
        assert_eq!(bytes, tar_of(root), "the same tree gives the same tar");
        let mut archive = tar::Archive::new(&bytes[..]);
        let mut seen = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            let link = entry
                .link_name_bytes()
                .map(|link| String::from_utf8(link.to_vec()).unwrap());
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            if name == "a" {
                assert_eq!(entry.header().mode().unwrap(), 0o4755);
                assert_eq!(
                    entry.header().uid().unwrap(),
                    u64::from(fs::metadata(root.join("a")).unwrap().uid())
                );
            }
            seen.push((
                name,
                entry.header().entry_type(),
                link.unwrap_or_default(),
                content.len(),
            ));
        }
        let expected = [
            ("./".to_owned(), EntryType::Directory, String::new(), 0),
            ("a".into(), EntryType::Regular, String::new(), 0),
            ("b/".into(), EntryType::Directory, String::new(), 0),
            ("b/inner".into(), EntryType::Regular, String::new(), 1000),
            ("c".into(), EntryType::Link, "b/inner".into(), 0),
            ("link".into(), EntryType::Symlink, format!("..//{long}"), 0),
            (long, EntryType::Regular, String::new(), 4),
        ];
        assert_eq!(seen, expected);
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let layer = TreeLayer::new("/there/is/no/such\x1bplace".into());
        let error = layer.open().unwrap().read(&mut [0; 10]).unwrap_err();
        assert!(
            error.to_string().contains("/there/is/no/such\\u{1b}place"),
            "{error}"
        );
    }
}
