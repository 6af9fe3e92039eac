//! The entries of an archive, made one after the other.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Read, Seek as _, SeekFrom, Write as _},
    os::{fd::AsFd, unix::ffi::OsStrExt as _},
};

use rustix::{
    fs::{
        AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags, chmodat,
        chownat, fchmod, fsetxattr, futimens, linkat, makedev, mkdirat, mknodat, openat, symlinkat,
        utimensat,
    },
    io::Errno,
};
use volant_layers::{Metadata, TarEntry, TarError, TarReader, What, shown};
use volant_proto::agent::v1::UnpackSession;

use super::folder::{Folder, Place};

/// As `PATH_MAX` and `NAME_MAX` are.
const LONGEST_PATH: usize = 4095;
const LONGEST_NAME: usize = 255;
const FOLDER: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);
/// As much as the archive's reader keeps itself: it hands on what is as long without a copy of its own.
const CHUNK: usize = 128 * 1024;
/// What would let a program be more than who runs it is: it keeps its meaning with its owner alone.
const PRIVILEGES: u32 = 0o6000;

/// Why the archive is not unpacked whole.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    #[error("cannot read the archive: {0}")]
    Archive(#[from] TarError),
    #[error("cannot unpack {name}: {source}")]
    Make { name: String, source: io::Error },
    #[error("cannot unpack {name}: {why}")]
    Refused { name: String, why: &'static str },
}

/// A folder whose content may still come: what it should be is set after that.
#[derive(Debug)]
struct Pending {
    name: Vec<u8>,
    mode: u32,
    times: Timestamps,
}

#[derive(Debug)]
pub struct Unpacker {
    folder: Folder,
    keep_owner: bool,
    no_overwrite: bool,
    entries: u64,
    /// Each is in the one before it.
    pending: Vec<Pending>,
}

impl Unpacker {
    pub fn new(folder: Folder, wanted: &UnpackSession) -> Self {
        Self {
            folder,
            keep_owner: wanted.keep_owner,
            no_overwrite: wanted.no_overwrite_dir_non_dir,
            entries: 0,
            pending: Vec::new(),
        }
    }

    /// How many entries were made.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// Unpacks all of a stream.
    ///
    /// # Errors
    /// It is no archive, or an entry cannot be made: those before it are there.
    pub fn all(&mut self, stream: impl Read) -> Result<(), UnpackError> {
        let mut reader = TarReader::new(stream, u64::MAX);
        let result = self.entries_of(&mut reader);
        let finished = self.finish(b"");
        result.and(finished)
    }

    fn entries_of(&mut self, reader: &mut TarReader<impl Read>) -> Result<(), UnpackError> {
        let mut buffer = vec![0; CHUNK];
        while let Some(entry) = reader.next()? {
            let name = relative(&entry.name).map_err(|why| UnpackError::Refused {
                name: shown(&entry.name),
                why,
            })?;
            // The folder itself is as it is.
            if name.is_empty() {
                continue;
            }
            self.finish(&name)?;
            self.entry(&name, &entry, reader, &mut buffer)?;
            self.entries += 1;
        }
        // What follows the archive, so that its sender is not held up.
        Ok(reader.drain()?)
    }

    fn entry(
        &mut self,
        name: &[u8],
        entry: &TarEntry,
        reader: &mut TarReader<impl Read>,
        buffer: &mut [u8],
    ) -> Result<(), UnpackError> {
        let failed = |source: io::Error| UnpackError::Make {
            name: shown(name),
            source,
        };
        let refused = |why| UnpackError::Refused {
            name: shown(name),
            why,
        };
        let place = self.folder.place(name).map_err(failed)?;
        if let Some(stat) = place.look().map_err(failed)? {
            let is_folder = is_folder(&stat);
            match (is_folder, matches!(entry.what, What::Directory)) {
                (true, true) => {}
                (true, false) if self.no_overwrite => {
                    return Err(refused("a folder is there, which it would replace"));
                }
                (false, true) if self.no_overwrite => {
                    return Err(refused("something is there that is no folder"));
                }
                _ => {
                    if let What::Link(target) = &entry.what
                        && relative(target).is_ok_and(|target| target == name)
                    {
                        return Err(refused("it is a link to itself"));
                    }
                    place.clear(&stat).map_err(failed)?;
                }
            }
        }
        match &entry.what {
            What::Directory => {
                match mkdirat(&place, place.name, Mode::from_raw_mode(0o700)) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(errno) => return Err(failed(errno.into())),
                }
                let made = openat(&place, place.name, FOLDER, Mode::empty());
                let made = made.map_err(|errno| failed(errno.into()))?;
                self.own(&place, &entry.meta).map_err(failed)?;
                self.attributes(&made, &entry.meta).map_err(failed)?;
                drop(place);
                self.pending.push(Pending {
                    name: name.to_vec(),
                    mode: self.mode(entry.meta.mode),
                    times: times(entry),
                });
                return Ok(());
            }
            What::File { size, .. } => {
                let flags = OFlags::WRONLY
                    | OFlags::CREATE
                    | OFlags::EXCL
                    | OFlags::NOFOLLOW
                    | OFlags::CLOEXEC;
                let made = openat(&place, place.name, flags, Mode::from_raw_mode(0o600))
                    .map_err(|errno| failed(errno.into()))?;
                let mut file = File::from(made);
                content(&mut file, *size, reader, buffer).map_err(failed)?;
                self.own(&place, &entry.meta).map_err(failed)?;
                self.attributes(&file, &entry.meta).map_err(failed)?;
                let mode = Mode::from_raw_mode(self.mode(entry.meta.mode));
                fchmod(&file, mode).map_err(|errno| failed(errno.into()))?;
                return futimens(&file, &times(entry)).map_err(|errno| failed(errno.into()));
            }
            What::Symlink(target) => {
                symlinkat(OsStr::from_bytes(target), &place, place.name)
                    .map_err(|errno| failed(errno.into()))?;
                self.own(&place, &entry.meta).map_err(failed)?;
                return set_times(&place, &times(entry)).map_err(failed);
            }
            What::Link(target) => {
                let target = relative(target).map_err(refused)?;
                self.link(&target, &place).map_err(failed)?;
                // It has what its first name was given.
                return Ok(());
            }
            What::CharDevice(major, minor) => {
                node(&place, FileType::CharacterDevice, *major, *minor).map_err(failed)?;
            }
            What::BlockDevice(major, minor) => {
                node(&place, FileType::BlockDevice, *major, *minor).map_err(failed)?;
            }
            What::Fifo => node(&place, FileType::Fifo, 0, 0).map_err(failed)?,
            What::Unknown(_) => return Err(refused("it is of a kind that is not known")),
        }
        self.own(&place, &entry.meta).map_err(failed)?;
        let mode = Mode::from_raw_mode(self.mode(entry.meta.mode));
        // What was made here is no link.
        chmodat(&place, place.name, mode, AtFlags::empty())
            .map_err(|errno| failed(errno.into()))?;
        set_times(&place, &times(entry)).map_err(failed)
    }

    fn link(&self, target: &[u8], place: &Place<'_>) -> io::Result<()> {
        let target = self.folder.place(target)?;
        Ok(linkat(
            &target,
            target.name,
            place,
            place.name,
            AtFlags::empty(),
        )?)
    }

    /// Before the mode: a change of the owner takes privileges away.
    fn own(&self, place: &Place<'_>, meta: &Metadata) -> io::Result<()> {
        let (uid, gid) = match self.keep_owner {
            true => (meta.uid, meta.gid),
            false => (0, 0),
        };
        // For the system, the largest number leaves the owner as it is.
        let is_number = |id: u32| id != u32::MAX;
        if !is_number(uid) || !is_number(gid) {
            return Err(io::Error::other("nobody can have the number of its owner"));
        }
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        Ok(chownat(
            place,
            place.name,
            Some(uid),
            Some(gid),
            AtFlags::SYMLINK_NOFOLLOW,
        )?)
    }

    fn mode(&self, mode: u32) -> u32 {
        match self.keep_owner {
            true => mode,
            false => mode & !PRIVILEGES,
        }
    }

    fn attributes(&self, file: impl AsFd, meta: &Metadata) -> io::Result<()> {
        for (name, value) in &meta.xattrs {
            if !self.keep_owner && !name.starts_with(b"user.") {
                continue;
            }
            let set = fsetxattr(&file, OsStr::from_bytes(name), value, XattrFlags::empty());
            match set {
                // A file system that has none, as tar takes it.
                Ok(()) | Err(Errno::OPNOTSUPP) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Gives the folders that `next` is not in what they should have.
    fn finish(&mut self, next: &[u8]) -> Result<(), UnpackError> {
        while let Some(last) = self.pending.last() {
            let is_within = next
                .strip_prefix(&*last.name)
                .is_some_and(|rest| rest.starts_with(b"/"));
            if is_within {
                return Ok(());
            }
            let Some(last) = self.pending.pop() else {
                return Ok(());
            };
            let failed = |source| UnpackError::Make {
                name: shown(&last.name),
                source,
            };
            let place = self.folder.place(&last.name).map_err(failed)?;
            let mode = Mode::from_raw_mode(last.mode);
            match openat(&place, place.name, FOLDER, Mode::empty()) {
                Ok(folder) => fchmod(&folder, mode)
                    .and_then(|()| futimens(&folder, &last.times))
                    .map_err(|errno| failed(errno.into()))?,
                // A later entry has replaced it.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(errno) => return Err(failed(errno.into())),
            }
        }
        Ok(())
    }
}

fn is_folder(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

/// Fills a file; where the archive has a hole, the file has one.
fn content(
    file: &mut File,
    size: u64,
    reader: &mut TarReader<impl Read>,
    buffer: &mut [u8],
) -> io::Result<()> {
    let mut at = 0;
    let mut ends_in_hole = false;
    while at < size {
        let hole = reader.skip_hole();
        if hole > 0 {
            at += hole;
            ends_in_hole = true;
            file.seek(SeekFrom::Start(at))?;
            continue;
        }
        let count = match reader.read(buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        file.write_all(&buffer[..count])?;
        at += count as u64;
        ends_in_hole = false;
    }
    if ends_in_hole {
        file.set_len(size)?;
    }
    Ok(())
}

fn node(place: &Place<'_>, kind: FileType, major: u32, minor: u32) -> io::Result<()> {
    let device = makedev(major, minor);
    Ok(mknodat(
        place,
        place.name,
        kind,
        Mode::from_raw_mode(0o600),
        device,
    )?)
}

fn set_times(place: &Place<'_>, times: &Timestamps) -> io::Result<()> {
    Ok(utimensat(
        place,
        place.name,
        times,
        AtFlags::SYMLINK_NOFOLLOW,
    )?)
}

fn times(entry: &TarEntry) -> Timestamps {
    let time = Timespec {
        tv_sec: entry.meta.mtime,
        tv_nsec: entry.nanos.into(),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

/// The path that a name means, below the folder; empty for the folder itself.
fn relative(name: &[u8]) -> Result<Vec<u8>, &'static str> {
    if name.contains(&0) || name.is_empty() {
        return Err("its name is none");
    }
    let mut path = Vec::new();
    for part in name.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => continue,
            b".." => return Err("its name has \"..\" in it, and could leave the folder"),
            part if part.len() > LONGEST_NAME => return Err("its name is too long"),
            part => {
                if !path.is_empty() {
                    path.push(b'/');
                }
                path.extend_from_slice(part);
            }
        }
    }
    if path.len() > LONGEST_PATH {
        return Err("its name is too long");
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_below_the_folder_or_refused() {
        let cases: [(&[u8], Option<&[u8]>); 9] = [
            (b"a", Some(b"a")),
            (b"./a//b/./", Some(b"a/b")),
            (b"/etc/passwd", Some(b"etc/passwd")),
            (b"./", Some(b"")),
            (b"...", Some(b"...")),
            (b"", None),
            (b"a\0b", None),
            (b"../a", None),
            (b"a/../../b", None),
        ];
        for (name, expected) in cases {
            assert_eq!(relative(name).ok().as_deref(), expected, "{}", shown(name));
        }
        assert!(relative(&[b'a'; 256]).is_err());
        assert!(relative(&b"a/".repeat(2100)).is_err());
    }
}
