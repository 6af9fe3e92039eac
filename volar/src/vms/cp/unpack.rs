//! Unpacks an archive of a guest that may be hostile. Each entry is made below one open folder, step by step and
//! without following any link; no devices are made, and no bits that give rights but for root who asked for owners.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, Read},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
};

use rustix::{
    fs::{AtFlags, Gid, Mode, OFlags, Timespec, Timestamps, Uid},
    io::Errno,
};
use volant_layers::{Metadata, TarEntry, TarError, TarReader, What, shown};

/// Why an archive is not unpacked, or not all of it.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    #[error("the guest sent an archive that is none")]
    Archive(#[source] TarError),
    #[error("refused '{0}' of the guest: it leads out of what is copied")]
    Outside(String),
    #[error("refused '{0}' of the guest: something else was asked for")]
    Other(String),
    #[error("the guest sent nothing")]
    Nothing,
    #[error("cannot make {name}")]
    Make { name: String, source: io::Error },
    #[error("{name}: there is a folder where a file is to be, or the other way round")]
    Mismatch { name: String },
}

/// How an archive is unpacked.
#[derive(Debug)]
pub struct Unpack {
    /// What the first part of each name becomes; nothing: what is below it goes into the folder itself.
    pub top: Option<OsString>,
    /// The archive is of what is in a folder: its names have no first part of their own.
    pub contents: bool,
    /// Owners are the archive's.
    pub keep_owner: bool,
}

/// A folder that entries are made in at the moment.
struct Level {
    name: OsString,
    fd: OwnedFd,
    /// What it is to be once all in it is made.
    becomes: Option<(Metadata, u32)>,
}

struct Unpacking<'a> {
    how: &'a Unpack,
    folder: BorrowedFd<'a>,
    levels: Vec<Level>,
    /// The first part of the archive's names.
    seen: Option<Vec<u8>>,
    may_give_rights: bool,
}

impl Unpack {
    /// Unpacks below the folder; gives the names of what cannot be copied.
    pub fn run(
        &self,
        folder: BorrowedFd<'_>,
        archive: impl Read,
    ) -> Result<Vec<String>, UnpackError> {
        let mut reader = TarReader::new(archive, u64::MAX);
        let mut work = Unpacking {
            how: self,
            folder,
            levels: Vec::new(),
            seen: None,
            may_give_rights: self.keep_owner && nix::unistd::geteuid().is_root(),
        };
        let (mut left_out, mut any) = (Vec::new(), false);
        if let Some(top) = self.top.as_deref().filter(|_| self.contents) {
            work.enter(std::slice::from_ref(&top.to_owned()))?;
            any = true;
        }
        while let Some(entry) = reader.next().map_err(UnpackError::Archive)? {
            any = true;
            if !work.make(&entry, &mut reader)? && left_out.len() < MOST_TOLD {
                left_out.push(shown(&entry.name));
            }
        }
        reader.drain().map_err(UnpackError::Archive)?;
        work.leave(0)?;
        if any || self.contents {
            Ok(left_out)
        } else {
            Err(UnpackError::Nothing)
        }
    }
}

/// More are not told.
const MOST_TOLD: usize = 10;

impl Unpacking<'_> {
    /// Makes an entry; gives whether it is one that can be made.
    fn make(
        &mut self,
        entry: &TarEntry,
        content: &mut TarReader<impl Read>,
    ) -> Result<bool, UnpackError> {
        let path = self.place(&entry.name)?;
        let Some((name, parents)) = path.split_last() else {
            // The folder itself: it is the user's own.
            return Ok(true);
        };
        let failed = |error: Errno| UnpackError::Make {
            name: shown(&entry.name),
            source: error.into(),
        };
        let mismatch = || UnpackError::Mismatch {
            name: shown(&entry.name),
        };
        self.enter(parents)?;
        if let What::Directory = entry.what {
            self.enter(&path)?;
            if let Some(level) = self.levels.last_mut() {
                level.becomes = Some((entry.meta.clone(), entry.nanos));
            }
            return Ok(true);
        }
        if !matches!(
            entry.what,
            What::File { .. } | What::Symlink(_) | What::Link(_)
        ) {
            return Ok(false);
        }
        let link = match &entry.what {
            What::Link(target) => Some(self.place(target)?),
            _ => None,
        };
        if link.as_ref() == Some(&path) {
            return Err(UnpackError::Outside(shown(&entry.name)));
        }
        let at = self.current();
        match rustix::fs::unlinkat(at, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::ISDIR) => return Err(mismatch()),
            Err(error) => return Err(failed(error)),
        }
        match &entry.what {
            What::Symlink(target) => {
                rustix::fs::symlinkat(OsStr::from_bytes(target), at, name).map_err(failed)?;
                if self.how.keep_owner {
                    let (user, group) = owner(&entry.meta);
                    let flags = AtFlags::SYMLINK_NOFOLLOW;
                    rustix::fs::chownat(at, name, user, group, flags).map_err(failed)?;
                }
                let times = times(&entry.meta, entry.nanos);
                rustix::fs::utimensat(at, name, &times, AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(failed)?;
            }
            What::File { size, .. } => {
                let flags = OFlags::WRONLY
                    | OFlags::CREATE
                    | OFlags::EXCL
                    | OFlags::NOFOLLOW
                    | OFlags::CLOEXEC;
                let fd =
                    rustix::fs::openat(at, name, flags, Mode::RUSR | Mode::WUSR).map_err(failed)?;
                let file = File::from(fd);
                fill(&file, content, *size).map_err(|source| UnpackError::Make {
                    name: shown(&entry.name),
                    source,
                })?;
                self.finish(file.as_fd(), &entry.meta, entry.nanos)
                    .map_err(failed)?;
            }
            _ => {
                let link = link.unwrap_or_default();
                let Some((old, parents)) = link.split_last() else {
                    return Err(UnpackError::Outside(shown(&entry.name)));
                };
                let from = self.find(parents).map_err(failed)?;
                let from = from.as_ref().map_or(self.folder, OwnedFd::as_fd);
                rustix::fs::linkat(from, old, at, name, AtFlags::empty()).map_err(failed)?;
            }
        }
        Ok(true)
    }

    /// The parts of a name below the folder. What leads anywhere else is refused.
    fn place(&mut self, name: &[u8]) -> Result<Vec<OsString>, UnpackError> {
        let outside = || UnpackError::Outside(shown(name));
        if name.starts_with(b"/") || name.contains(&0) {
            return Err(outside());
        }
        let mut parts: Vec<&[u8]> = Vec::new();
        for part in name.split(|byte| *byte == b'/') {
            match part {
                b"" | b"." => {}
                b".." => return Err(outside()),
                part => parts.push(part),
            }
        }
        if !self.how.contents {
            let Some((first, rest)) = parts.split_first() else {
                return Err(UnpackError::Other(shown(name)));
            };
            if self.seen.get_or_insert_with(|| first.to_vec()) != first {
                return Err(UnpackError::Other(shown(name)));
            }
            parts = rest.to_vec();
        }
        let parts = parts
            .into_iter()
            .map(|part| OsStr::from_bytes(part).to_owned());
        Ok(self.how.top.iter().cloned().chain(parts).collect())
    }

    fn current(&self) -> BorrowedFd<'_> {
        self.levels
            .last()
            .map_or(self.folder, |level| level.fd.as_fd())
    }

    /// Goes to a folder, and makes what of it is not there.
    fn enter(&mut self, path: &[OsString]) -> Result<(), UnpackError> {
        let same = self
            .levels
            .iter()
            .zip(path)
            .take_while(|(level, name)| level.name == **name)
            .count();
        self.leave(same)?;
        for name in &path[same..] {
            let at = self.current();
            let made = match rustix::fs::mkdirat(at, name, Mode::RWXU) {
                Ok(()) => Ok(Some(())),
                Err(Errno::EXIST) => Ok(None),
                Err(error) => Err(error),
            };
            let opened = made.and_then(|made| open_folder(at, name).map(|fd| (fd, made)));
            let (fd, made) = opened.map_err(|error| match error {
                Errno::NOTDIR | Errno::LOOP => UnpackError::Mismatch {
                    name: shown(name.as_bytes()),
                },
                error => UnpackError::Make {
                    name: shown(name.as_bytes()),
                    source: error.into(),
                },
            })?;
            // One that the archive says nothing of is as any new folder.
            if made.is_some() {
                let _ = rustix::fs::fchmod(&fd, Mode::from_raw_mode(0o755));
            }
            self.levels.push(Level {
                name: name.clone(),
                fd,
                becomes: None,
            });
        }
        Ok(())
    }

    /// Leaves folders until so many are open; each becomes what the archive says.
    fn leave(&mut self, most: usize) -> Result<(), UnpackError> {
        while self.levels.len() > most
            && let Some(level) = self.levels.pop()
        {
            let Some((meta, nanos)) = &level.becomes else {
                continue;
            };
            self.finish(level.fd.as_fd(), meta, *nanos)
                .map_err(|error| UnpackError::Make {
                    name: shown(level.name.as_bytes()),
                    source: error.into(),
                })?;
        }
        Ok(())
    }

    /// A folder that is there; nothing is the one that all is in.
    fn find(&self, path: &[OsString]) -> Result<Option<OwnedFd>, Errno> {
        let mut found: Option<OwnedFd> = None;
        for name in path {
            let at = found.as_ref().map_or(self.folder, OwnedFd::as_fd);
            found = Some(open_folder(at, name)?);
        }
        Ok(found)
    }

    fn finish(&self, fd: BorrowedFd<'_>, meta: &Metadata, nanos: u32) -> Result<(), Errno> {
        if self.how.keep_owner {
            let (user, group) = owner(meta);
            rustix::fs::fchown(fd, user, group)?;
        }
        let bits = if self.may_give_rights { 0o7777 } else { 0o777 };
        rustix::fs::fchmod(fd, Mode::from_raw_mode(meta.mode & bits))?;
        rustix::fs::futimens(fd, &times(meta, nanos))
    }
}

fn open_folder(at: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(at, name, flags, Mode::empty())
}

fn owner(meta: &Metadata) -> (Option<Uid>, Option<Gid>) {
    // The highest number is none.
    let (uid, gid) = (meta.uid.min(u32::MAX - 1), meta.gid.min(u32::MAX - 1));
    (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
}

fn times(meta: &Metadata, nanos: u32) -> Timestamps {
    let time = Timespec {
        tv_sec: meta.mtime,
        tv_nsec: nanos.min(999_999_999).into(),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

/// Writes the content of the entry that was read last; holes stay holes.
fn fill(mut file: &File, content: &mut TarReader<impl Read>, size: u64) -> io::Result<()> {
    use io::{Seek, SeekFrom, Write};
    let mut buffer = vec![0; 64 * 1024];
    let mut ends_in_hole = false;
    loop {
        let hole = content.skip_hole();
        if hole > 0 {
            let by = i64::try_from(hole).map_err(io::Error::other)?;
            file.seek(SeekFrom::Current(by))?;
            ends_in_hole = true;
            continue;
        }
        let read = content.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        file.write_all(&buffer[..read])?;
        ends_in_hole = false;
    }
    if ends_in_hole {
        file.set_len(size)?;
    }
    Ok(())
}
