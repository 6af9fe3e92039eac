//! Reading files that an image brings: bounded, and never one that could hold who opens it.

use std::{
    fs::{self, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use nix::fcntl::OFlag;

/// Why a file of the image is not read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("it is no regular file")]
    NoFile,
    #[error("it has more than {0} bytes")]
    TooLarge(u64),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What is in the file; `None` where there is none. A pipe or a device is not opened. Call while nothing else may change
/// the file.
///
/// # Errors
/// It is something else than a file of up to `limit` bytes, or cannot be read.
pub fn read_bounded(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, ReadError> {
    match fs::metadata(path) {
        Ok(meta) if meta.is_file() => {}
        Ok(_) => return Err(ReadError::NoFile),
        // Also what a dangling symlink points at, or what would be below a file.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(error.into()),
    }
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path)?;
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(ReadError::TooLarge(limit));
    }
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use nix::{sys::stat::Mode, unistd::mkfifo};

    use super::*;

    #[test]
    fn only_small_regular_files_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("file"), "12345").unwrap();
        mkfifo(&path("pipe"), Mode::S_IRWXU).unwrap();
        symlink("pipe", path("link")).unwrap();
        symlink("nowhere", path("dangling")).unwrap();
        let read =
            |name: &str, limit| read_bounded(&path(name), limit).map_err(|error| error.to_string());
        assert_eq!(read("file", 5), Ok(Some(b"12345".to_vec())));
        assert_eq!(read("file", 4), Err("it has more than 4 bytes".to_owned()));
        assert_eq!(read("gone", 4), Ok(None));
        assert_eq!(read("dangling", 4), Ok(None));
        assert_eq!(read("file/below", 4), Ok(None));
        for name in ["pipe", "link", "."] {
            assert_eq!(read(name, 4), Err("it is no regular file".to_owned()));
        }
    }
}
