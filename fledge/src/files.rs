//! Files that are read with a bound, and written whole or not at all.

use std::{
    fs::{File, Permissions},
    io::{self, Read, Write},
    os::unix::fs::PermissionsExt,
    path::Path,
};

use tempfile::NamedTempFile;

/// Reads a regular file of at most `max` bytes.
pub(crate) fn read(path: &Path, max: usize) -> io::Result<Vec<u8>> {
    // Asked of the path: opening a pipe would wait for its writer.
    if !path.metadata()?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let mut bytes = Vec::new();
    File::open(path)?
        .take(max as u64 + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() > max {
        return Err(io::Error::other(format!("it has more than {max} bytes")));
    }
    Ok(bytes)
}

/// As [`read`], for a text.
pub(crate) fn read_text(path: &Path, max: usize) -> io::Result<String> {
    String::from_utf8(read(path, max)?).map_err(|_| io::Error::other("it is no text"))
}

/// A file that is whole, beside its place.
#[derive(Debug)]
pub(crate) struct Pending(NamedTempFile);

/// Writes what will be at `path`, for its owner and those that `mode` adds.
pub(crate) fn prepare(path: &Path, bytes: &[u8], mode: u32) -> io::Result<Pending> {
    let folder = path
        .parent()
        .filter(|folder| *folder != Path::new(""))
        .unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new()
        .prefix(".fledge-")
        .tempfile_in(folder)?;
    // Made for its owner alone; a secret is never wider, not for a moment.
    file.write_all(bytes)?;
    file.as_file()
        .set_permissions(Permissions::from_mode(mode))?;
    file.as_file().sync_all()?;
    Ok(Pending(file))
}

impl Pending {
    /// Takes the place, also that of a file that is there if `replace`; readers see the old or the new one.
    pub(crate) fn keep(self, path: &Path, replace: bool) -> io::Result<()> {
        let kept = if replace {
            self.0.persist(path)
        } else {
            self.0.persist_noclobber(path)
        };
        kept.map(|_| ()).map_err(|error| error.error)
    }
}
