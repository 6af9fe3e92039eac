//! The place of an image that is not whole yet: a file without a name, where the file system has such.

use std::{
    fs::{File, OpenOptions, Permissions},
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

use rustix::fs::{AtFlags, CWD, OFlags, linkat};
use tempfile::NamedTempFile;

/// Minus the umask.
const MODE: u32 = 0o666;

/// A file beside its place, which it takes once it is whole; gone when it is not.
#[derive(Debug)]
pub(super) enum Pending {
    /// Gone with the last process that has it open, however that ends.
    Nameless(File),
    /// Gone when dropped: not every file system has files without names (overlayfs of old, NFS).
    Named(NamedTempFile),
}

impl Pending {
    pub(super) fn new(output: &Path) -> io::Result<Self> {
        let folder = folder(output);
        let nameless = OpenOptions::new()
            .read(true)
            .write(true)
            .mode(MODE)
            .custom_flags(OFlags::TMPFILE.bits() as i32)
            .open(folder);
        match nameless {
            // Another process reaches it by this path, and so does the link that names it.
            Ok(file) if by_descriptor(&file).exists() => Ok(Self::Nameless(file)),
            _ => builder().tempfile_in(folder).map(Self::Named),
        }
    }

    pub(super) fn file(&self) -> &File {
        match self {
            Self::Nameless(file) => file,
            Self::Named(file) => file.as_file(),
        }
    }

    /// Where another process finds it while this one has it.
    pub(super) fn path(&self) -> PathBuf {
        match self {
            Self::Nameless(file) => by_descriptor(file),
            Self::Named(file) => file.path().to_owned(),
        }
    }

    /// Puts it at its place, over what is there.
    pub(super) fn keep(self, output: &Path) -> io::Result<()> {
        let place = match self {
            Self::Named(file) => file.into_temp_path(),
            // A link cannot replace a file; a rename can.
            Self::Nameless(file) => builder()
                .make_in(folder(output), |path| {
                    linkat(
                        CWD,
                        by_descriptor(&file),
                        CWD,
                        path,
                        AtFlags::SYMLINK_FOLLOW,
                    )
                    .map_err(io::Error::from)
                })?
                .into_temp_path(),
        };
        place.persist(output).map_err(|failed| failed.error)
    }
}

fn builder() -> tempfile::Builder<'static, 'static> {
    let mut builder = tempfile::Builder::new();
    builder
        .prefix(".fledge-")
        .permissions(Permissions::from_mode(MODE));
    builder
}

fn folder(output: &Path) -> &Path {
    output
        .parent()
        .filter(|folder| *folder != Path::new(""))
        .unwrap_or(Path::new("."))
}

fn by_descriptor(file: &File) -> PathBuf {
    format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()).into()
}
