//! Packs files of this machine as a POSIX tar: links stay links, and nothing is read that is not a file.

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs::{self, File, Metadata},
    io::{self, Read, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use tar::{Builder, EntryType, Header};

/// The longest name that a header holds itself.
const MAX_NAME: usize = 100;

/// Why something cannot be packed.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} became shorter while it was copied", path.display())]
    Shorter { path: PathBuf },
    #[error("cannot send {}", path.display())]
    Send { path: PathBuf, source: io::Error },
}

/// What is packed.
#[derive(Debug)]
pub struct Pack {
    pub path: PathBuf,
    /// What it is called in the archive; nothing: what is in it is packed, by itself.
    pub top: Option<String>,
    /// A symbolic link at the path is followed.
    pub follow: bool,
}

struct Packing<W: Write> {
    tar: Builder<W>,
    /// Where a file with several names was packed, by device and inode.
    seen: HashMap<(u64, u64), Vec<u8>>,
    left_out: Vec<PathBuf>,
}

impl Pack {
    /// Writes the archive; gives what cannot be packed: sockets, pipes and devices.
    pub fn run(&self, out: impl Write) -> Result<Vec<PathBuf>, PackError> {
        let mut packing = Packing {
            tar: Builder::new(out),
            seen: HashMap::new(),
            left_out: Vec::new(),
        };
        let meta = if self.follow || self.top.is_none() {
            fs::metadata(&self.path)
        } else {
            fs::symlink_metadata(&self.path)
        };
        let meta = meta.map_err(|source| read(&self.path, source))?;
        match &self.top {
            Some(top) => packing.add(&self.path, top.as_bytes(), &meta)?,
            None => packing.add_contents(&self.path, b"")?,
        }
        let end = packing.tar.into_inner().and_then(|mut out| out.flush());
        end.map_err(|source| send(&self.path, source))?;
        Ok(packing.left_out)
    }
}

impl<W: Write> Packing<W> {
    fn add(&mut self, path: &Path, name: &[u8], meta: &Metadata) -> Result<(), PackError> {
        let kind = meta.file_type();
        if kind.is_dir() {
            self.entry(
                path,
                &[name, b"/"].concat(),
                b"",
                meta,
                EntryType::Directory,
                io::empty(),
            )?;
            return self.add_contents(path, name);
        }
        if kind.is_symlink() {
            let target = fs::read_link(path).map_err(|source| read(path, source))?;
            let target = target.as_os_str().as_bytes();
            return self.entry(path, name, target, meta, EntryType::Symlink, io::empty());
        }
        if kind.is_socket() || kind.is_fifo() || kind.is_block_device() || kind.is_char_device() {
            self.left_out.push(path.to_owned());
            return Ok(());
        }
        if meta.nlink() > 1 {
            if let Some(first) = self.seen.get(&(meta.dev(), meta.ino())) {
                let first = first.clone();
                return self.entry(path, name, &first, meta, EntryType::Link, io::empty());
            }
            self.seen.insert((meta.dev(), meta.ino()), name.to_vec());
        }
        let file = open(path).map_err(|source| read(path, source))?;
        // What is open is what is packed.
        let meta = file.metadata().map_err(|source| read(path, source))?;
        if !meta.is_file() {
            self.left_out.push(path.to_owned());
            return Ok(());
        }
        let mut content = Exactly {
            file,
            left: meta.len(),
            is_short: false,
            failed: false,
        };
        let packed = self.entry(path, name, b"", &meta, EntryType::Regular, &mut content);
        match packed {
            Err(_) if content.is_short => Err(PackError::Shorter {
                path: path.to_owned(),
            }),
            Err(PackError::Send { path, source }) if content.failed => Err(read(&path, source)),
            packed => packed,
        }
    }

    fn add_contents(&mut self, folder: &Path, name: &[u8]) -> Result<(), PackError> {
        let failed = |source| read(folder, source);
        let mut entries: Vec<_> = fs::read_dir(folder)
            .map_err(failed)?
            .map(|entry| entry.map(|entry| entry.file_name()))
            .collect::<Result<_, _>>()
            .map_err(failed)?;
        entries.sort_unstable();
        for entry in entries {
            let path = folder.join(&entry);
            let meta = match fs::symlink_metadata(&path) {
                // It went away in between.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                meta => meta.map_err(|source| read(&path, source))?,
            };
            self.add(&path, &below(name, &entry), &meta)?;
        }
        Ok(())
    }

    fn entry(
        &mut self,
        path: &Path,
        name: &[u8],
        link: &[u8],
        meta: &Metadata,
        kind: EntryType,
        content: impl Read,
    ) -> Result<(), PackError> {
        let failed = |source| send(path, source);
        let mut header = Header::new_gnu();
        header.set_metadata(meta);
        header.set_entry_type(kind);
        if !kind.is_file() {
            header.set_size(0);
        }
        let seconds = u64::try_from(meta.mtime()).unwrap_or(0);
        header.set_mtime(seconds);
        let mut records: Vec<(&str, Vec<u8>)> = Vec::new();
        let old = header.as_old_mut();
        for (key, value, field) in [
            ("path", name, &mut old.name),
            ("linkpath", link, &mut old.linkname),
        ] {
            field.fill(0);
            let fits = value.len().min(MAX_NAME);
            field[..fits].copy_from_slice(&value[..fits]);
            if value.len() > MAX_NAME {
                records.push((key, value.to_vec()));
            }
        }
        if meta.mtime_nsec() > 0 && meta.mtime() >= 0 {
            let time = format!("{}.{:09}", meta.mtime(), meta.mtime_nsec());
            records.push(("mtime", time.into_bytes()));
        }
        header.set_cksum();
        let extensions = records.iter().map(|(key, value)| (*key, value.as_slice()));
        self.tar.append_pax_extensions(extensions).map_err(failed)?;
        self.tar.append(&header, content).map_err(failed)
    }
}

fn below(folder: &[u8], entry: &OsStr) -> Vec<u8> {
    if folder.is_empty() {
        entry.as_bytes().to_vec()
    } else {
        [folder, b"/", entry.as_bytes()].concat()
    }
}

/// Waits for nobody, should it have become a pipe.
fn open(path: &Path) -> io::Result<File> {
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    fs::OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)
}

/// So many bytes of a file, as its header said.
struct Exactly {
    file: File,
    left: u64,
    is_short: bool,
    failed: bool,
}

impl Read for Exactly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer
            .len()
            .min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if most == 0 {
            return Ok(0);
        }
        let read = self.file.read(&mut buffer[..most]);
        self.failed = read.is_err();
        let read = read?;
        if read == 0 {
            self.is_short = true;
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= read as u64;
        Ok(read)
    }
}

fn read(path: &Path, source: io::Error) -> PackError {
    PackError::Read {
        path: path.to_owned(),
        source,
    }
}

fn send(path: &Path, source: io::Error) -> PackError {
    PackError::Send {
        path: path.to_owned(),
        source,
    }
}
