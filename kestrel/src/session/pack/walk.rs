//! The way through the files that are packed. They may change meanwhile: what is gone is left out.

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs::{File, Metadata, OpenOptions, ReadDir},
    io::{self, Seek as _, Write as _},
    os::unix::{
        ffi::OsStrExt as _,
        fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{
        SeekFrom, StatFs, getxattr, lgetxattr, listxattr, llistxattr, major, minor, seek, statfs,
    },
    io::Errno,
};

use super::{Chunks, Top};
use crate::session::archive::{self, Head, Type};

/// Hard links beyond so many files are packed as files of their own: their first names are no longer known.
const MOST_LINKED: usize = 64 * 1024;
/// A file of more pieces is packed whole.
const MOST_PIECES: usize = 16 * 1024;
const MOST_XATTRS: usize = 64 * 1024;
/// `linux/magic.h`: proc, sysfs, cgroup, cgroup2, devpts, debugfs, tracefs, securityfs, bpf, mqueue, efivarfs, pstore.
const KERNELS: [u32; 12] = [
    0x9fa0,
    0x6265_6572,
    0x0027_e0eb,
    0x6367_7270,
    0x1cd1,
    0x6462_6720,
    0x7472_6163,
    0x7363_6673,
    0xcafe_4a11,
    0x1980_0202,
    0xde5e_81e4,
    0x6165_676c,
];

/// Why the archive is not whole.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} became shorter while it was read", .0.display())]
    Shrunk(PathBuf),
    #[error("cannot send the archive: {0}")]
    Send(#[from] io::Error),
}

fn unread(path: &Path) -> impl FnOnce(io::Error) -> PackError {
    let path = path.to_owned();
    |source| PackError::Read { path, source }
}

/// Packs all that is below `top`. A file that became shorter is filled up with zeros, and told at the end.
///
/// # Errors
/// Something is there and cannot be read, or nobody takes the archive.
pub fn pack(top: &Top, out: &mut Chunks) -> Result<(), PackError> {
    let mut packer = Packer {
        out,
        linked: HashMap::new(),
        shrunk: None,
    };
    packer.all(top)?;
    archive::end(packer.out)?;
    packer.out.flush()?;
    packer
        .shrunk
        .map_or(Ok(()), |path| Err(PackError::Shrunk(path)))
}

struct Packer<'a> {
    out: &'a mut Chunks,
    /// The name of each file that has more than one, by device and number.
    linked: HashMap<(u64, u64), Vec<u8>>,
    shrunk: Option<PathBuf>,
}

/// A folder that is being listed.
struct Folder {
    path: PathBuf,
    name: Vec<u8>,
    device: u64,
    entries: ReadDir,
}

impl Packer<'_> {
    fn all(&mut self, top: &Top) -> Result<(), PackError> {
        let meta = match top.follow {
            true => top.path.metadata(),
            false => top.path.symlink_metadata(),
        };
        let meta = meta.map_err(unread(&top.path))?;
        let mut folders = Vec::new();
        if !meta.is_dir() {
            return self.entry(&top.path, &top.name, &meta, top.follow);
        }
        let shown = if top.name.is_empty() {
            b"."
        } else {
            &*top.name
        };
        self.entry(&top.path, shown, &meta, true)?;
        folders.push(Folder {
            path: top.path.clone(),
            name: top.name.clone(),
            device: meta.dev(),
            entries: top.path.read_dir().map_err(unread(&top.path))?,
        });
        // As deep as paths can be, and no deeper.
        while let Some(folder) = folders.last_mut() {
            let Some(entry) = folder.entries.next() else {
                folders.pop();
                continue;
            };
            let entry = entry.map_err(unread(&folder.path))?;
            let path = entry.path();
            let mut name = folder.name.clone();
            if !name.is_empty() {
                name.push(b'/');
            }
            name.extend_from_slice(entry.file_name().as_bytes());
            let meta = match path.symlink_metadata() {
                Ok(meta) => meta,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(unread(&path)(error)),
            };
            self.entry(&path, &name, &meta, false)?;
            if meta.is_dir() && !(meta.dev() != folder.device && is_kernel_s(&path)) {
                match path.read_dir() {
                    Ok(entries) => folders.push(Folder {
                        path,
                        name,
                        device: meta.dev(),
                        entries,
                    }),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(unread(&path)(error)),
                }
            }
        }
        Ok(())
    }

    /// Packs one file of whatever kind; of a folder, not what is in it.
    fn entry(
        &mut self,
        path: &Path,
        name: &[u8],
        meta: &Metadata,
        follow: bool,
    ) -> Result<(), PackError> {
        let kind = meta.file_type();
        let mut name = name.to_vec();
        let mut head = Head {
            kind: Type::File,
            name: &[],
            link: &[],
            mode: meta.mode(),
            uid: meta.uid(),
            gid: meta.gid(),
            mtime: (meta.mtime(), u32::try_from(meta.mtime_nsec()).unwrap_or(0)),
            stored: 0,
            device: (0, 0),
            xattrs: &[],
            sparse: None,
        };
        let first_name;
        if !kind.is_dir() && meta.nlink() > 1 {
            let file = (meta.dev(), meta.ino());
            if let Some(first) = self.linked.get(&file) {
                first_name = first.clone();
                (head.kind, head.link, head.name) = (Type::Link, &first_name, &name);
                return Ok(archive::head(self.out, &head)?);
            }
            if self.linked.len() < MOST_LINKED {
                self.linked.insert(file, name.clone());
            }
        }
        let xattrs = xattrs(path, follow);
        head.xattrs = &xattrs;
        let target;
        if kind.is_file() {
            head.name = &name;
            return self.file(path, head, meta, follow);
        } else if kind.is_dir() {
            name.push(b'/');
            head.kind = Type::Folder;
        } else if kind.is_symlink() {
            target = match path.read_link() {
                Ok(target) => target,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(error) => return Err(unread(path)(error)),
            };
            (head.kind, head.link) = (Type::Symlink, target.as_os_str().as_bytes());
        } else if kind.is_fifo() {
            head.kind = Type::Fifo;
        } else if kind.is_char_device() || kind.is_block_device() {
            let is_block = kind.is_block_device();
            head.kind = if is_block {
                Type::BlockDevice
            } else {
                Type::CharDevice
            };
            head.device = (major(meta.rdev()), minor(meta.rdev()));
        } else {
            // A socket is nothing without who listens on it.
            return Ok(());
        }
        head.name = &name;
        Ok(archive::head(self.out, &head)?)
    }

    fn file(
        &mut self,
        path: &Path,
        head: Head<'_>,
        meta: &Metadata,
        follow: bool,
    ) -> Result<(), PackError> {
        // It may have become a pipe, or a link that leads elsewhere.
        let no_follow = if follow { 0 } else { nix::libc::O_NOFOLLOW };
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(no_follow | nix::libc::O_NONBLOCK | nix::libc::O_NOCTTY)
            .open(path);
        let mut file = match opened {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(unread(path)(error)),
        };
        let size = meta.len();
        let may_have_holes = meta.blocks().saturating_mul(512) < size;
        let pieces = may_have_holes.then(|| pieces(&file, size)).flatten();
        let mut head = head;
        if let Some(pieces) = &pieces {
            head.kind = Type::Sparse;
            head.stored = pieces.iter().map(|(_, length)| length).sum();
            head.sparse = Some((size, pieces));
        } else {
            head.stored = size;
        }
        archive::head(self.out, &head)?;
        for (offset, length) in pieces.as_deref().unwrap_or(&[(0, size)]) {
            file.seek(io::SeekFrom::Start(*offset))
                .map_err(unread(path))?;
            self.content(path, &mut file, *length)?;
        }
        Ok(archive::pad(self.out, head.stored)?)
    }

    /// Exactly so many bytes.
    fn content(&mut self, path: &Path, file: &mut File, length: u64) -> Result<(), PackError> {
        let mut left = length;
        while left > 0 {
            let most = self
                .out
                .room()
                .min(usize::try_from(left).unwrap_or(usize::MAX));
            let count = match self.out.read(file, most) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(unread(path)(error)),
            };
            if count == 0 {
                self.shrunk.get_or_insert_with(|| path.to_owned());
                self.out.zeros(most);
            }
            let count = if count == 0 { most } else { count };
            left -= count as u64;
            self.out.send_full()?;
        }
        Ok(())
    }
}

/// Where the bytes of a file are; `None`: it has no holes, or too many.
fn pieces(file: &File, size: u64) -> Option<Vec<(u64, u64)>> {
    let mut pieces = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match seek(file, SeekFrom::Data(at)) {
            Ok(start) if start < size => start,
            // Nothing but a hole comes any more.
            Ok(_) | Err(Errno::NXIO) => break,
            Err(_) => return None,
        };
        let end = seek(file, SeekFrom::Hole(start)).ok()?.min(size);
        if end <= start || pieces.len() == MOST_PIECES {
            return None;
        }
        pieces.push((start, end - start));
        at = end;
    }
    if pieces == [(0, size)] {
        return None;
    }
    if at < size || pieces.is_empty() {
        // GNU tar ends a map with an empty piece at the file's end when a hole is there.
        pieces.push((size, 0));
    }
    Some(pieces)
}

fn is_kernel_s(path: &Path) -> bool {
    statfs(path).is_ok_and(|found: StatFs| {
        let kind = found.f_type as u32;
        KERNELS.contains(&kind)
    })
}

/// The extended attributes of a file; what cannot be read is left out, as a file system without any does.
fn xattrs(path: &Path, follow: bool) -> Vec<(Vec<u8>, Vec<u8>)> {
    // Most files have none: ask before there is a buffer.
    let list = |buffer: &mut [u8]| match follow {
        true => listxattr(path, buffer),
        false => llistxattr(path, buffer),
    };
    let Some(length) = list(&mut [])
        .ok()
        .filter(|length| (1..=MOST_XATTRS).contains(length))
    else {
        return Vec::new();
    };
    let mut names = vec![0; length];
    let count = list(&mut names).unwrap_or(0);
    names[..count]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .filter_map(|name| {
            let value = |buffer: &mut [u8]| match follow {
                true => getxattr(path, OsStr::from_bytes(name), buffer),
                false => lgetxattr(path, OsStr::from_bytes(name), buffer),
            };
            let length = value(&mut [])
                .ok()
                .filter(|length| *length <= MOST_XATTRS)?;
            let mut bytes = vec![0; length];
            let count = value(&mut bytes).ok()?;
            bytes.truncate(count);
            Some((name.to_vec(), bytes))
        })
        .collect()
}
