//! A folder that nothing leads out of: names are resolved by the kernel as if it were the root of all.

use std::{
    ffi::OsStr,
    fs, io,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use rustix::{
    fs::{
        AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, mkdirat, open, openat2, statat,
        unlinkat,
    },
    io::Errno,
};

/// Neither `..`, nor an absolute link, nor one of `/proc` leads out.
const CONFINED: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);
const PLACE: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
/// Of folders that the archive does not name.
const USUAL: Mode = Mode::from_raw_mode(0o755);

#[derive(Debug)]
pub struct Folder(OwnedFd);

/// Where an entry is or will be: a folder, and a name in it that is followed nowhere.
#[derive(Debug)]
pub struct Place<'a> {
    parent: Parent<'a>,
    pub name: &'a OsStr,
}

#[derive(Debug)]
enum Parent<'a> {
    Top(BorrowedFd<'a>),
    Below(OwnedFd),
}

impl Folder {
    /// # Errors
    /// There is none.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self(open(path, PLACE, Mode::empty())?))
    }

    /// The place of a name such as `a/b/c`; folders on the way that are missing are made.
    ///
    /// # Errors
    /// Something on the way is no folder.
    pub fn place<'a>(&'a self, name: &'a [u8]) -> io::Result<Place<'a>> {
        let (folder, name) = match name.iter().rposition(|byte| *byte == b'/') {
            Some(at) => (&name[..at], &name[at + 1..]),
            None => (&b""[..], name),
        };
        let parent = match folder {
            b"" => Parent::Top(self.0.as_fd()),
            folder => Parent::Below(match self.below(folder) {
                Err(Errno::NOENT) => self.make(folder)?,
                found => found?,
            }),
        };
        Ok(Place {
            parent,
            name: OsStr::from_bytes(name),
        })
    }

    fn below(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        openat2(&self.0, path, PLACE, Mode::empty(), CONFINED)
    }

    /// Makes the folders on the way, one after the other, each resolved anew.
    fn make(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let mut parent = None;
        let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
        for end in ends.map(|(at, _)| at).chain([path.len()]) {
            let so_far = &path[..end];
            let found = match self.below(so_far) {
                Err(Errno::NOENT) => {
                    let name = so_far.rsplit(|byte| *byte == b'/').next().unwrap_or(so_far);
                    let within = parent.as_ref().unwrap_or(&self.0);
                    match mkdirat(within, name, USUAL) {
                        // A link that leads nowhere is what is there.
                        Ok(()) | Err(Errno::EXIST) => {}
                        Err(errno) => return Err(errno),
                    }
                    self.below(so_far)?
                }
                found => found?,
            };
            parent = Some(found);
        }
        parent.ok_or(Errno::NOENT)
    }
}

impl AsFd for Place<'_> {
    /// The folder.
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.parent {
            Parent::Top(folder) => *folder,
            Parent::Below(folder) => folder.as_fd(),
        }
    }
}

impl Place<'_> {
    /// What is there; nothing when there is nothing.
    ///
    /// # Errors
    /// The system's.
    pub fn look(&self) -> io::Result<Option<Stat>> {
        match statat(self, self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Removes what is there, with all that is in it.
    ///
    /// # Errors
    /// The system's.
    pub fn clear(&self, stat: &Stat) -> io::Result<()> {
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            return Ok(unlinkat(self, self.name, AtFlags::empty())?);
        }
        // Follows no link, neither to the folder nor in it.
        let folder = format!("/proc/self/fd/{}", self.as_fd().as_raw_fd());
        fs::remove_dir_all(Path::new(&folder).join(self.name))
    }
}
