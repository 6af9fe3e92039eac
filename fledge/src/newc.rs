//! Writes the `newc` cpio format, which the kernel unpacks as an initramfs.
//!
//! Nothing of this machine or day gets in: every owner is root, every time is zero, inodes are counted.

use std::{
    io::{self, Read, Write},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

const DIRECTORY: u32 = 0o040_000;
const CHAR_DEVICE: u32 = 0o020_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const TRAILER: &[u8] = b"TRAILER!!!";

/// Why an archive could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    #[error("cannot write the archive")]
    Write(#[source] io::Error),
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} changed while it was read", .0.display())]
    Changed(PathBuf),
    #[error("{} has {size} bytes; a file in an initramfs has less than 4 GiB", path.display())]
    TooLarge { path: PathBuf, size: u64 },
}

/// An archive that is being written; [`Archive::finish`] ends it.
#[derive(Debug)]
pub struct Archive<W> {
    out: W,
    inode: u32,
}

struct Header<'a> {
    path: &'a [u8],
    mode: u32,
    links: u32,
    size: u32,
    device: (u32, u32),
}

impl<W: Write> Archive<W> {
    pub fn new(out: W) -> Self {
        Self { out, inode: 0 }
    }

    pub fn directory(&mut self, path: &Path, mode: u32) -> Result<(), ArchiveError> {
        self.header(path, DIRECTORY | mode, 2, 0, (0, 0))
    }

    pub fn char_device(
        &mut self,
        path: &Path,
        mode: u32,
        device: (u32, u32),
    ) -> Result<(), ArchiveError> {
        self.header(path, CHAR_DEVICE | mode, 1, 0, device)
    }

    pub fn symlink(&mut self, path: &Path, target: &Path) -> Result<(), ArchiveError> {
        let target = target.as_os_str().as_bytes();
        let size = u32::try_from(target.len()).map_err(|_| ArchiveError::TooLarge {
            path: path.to_owned(),
            size: u64::MAX,
        })?;
        self.header(path, SYMLINK | 0o777, 1, size, (0, 0))?;
        self.put(target)?;
        self.pad(target.len())
    }

    /// Writes a file of exactly `size` bytes; `source` is what an error calls it.
    pub fn file(
        &mut self,
        path: &Path,
        mode: u32,
        size: u64,
        mut content: impl Read,
        source: &Path,
    ) -> Result<(), ArchiveError> {
        let short = u32::try_from(size).map_err(|_| ArchiveError::TooLarge {
            path: source.to_owned(),
            size,
        })?;
        self.header(path, REGULAR | mode, 1, short, (0, 0))?;
        let mut buffer = vec![0; 128 * 1024];
        let mut left = size;
        loop {
            let count = match content.read(&mut buffer) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    return Err(ArchiveError::Read {
                        path: source.to_owned(),
                        source: error,
                    });
                }
            };
            left = left
                .checked_sub(count as u64)
                .ok_or_else(|| ArchiveError::Changed(source.to_owned()))?;
            if count == 0 {
                break;
            }
            self.put(&buffer[..count])?;
        }
        if left > 0 {
            return Err(ArchiveError::Changed(source.to_owned()));
        }
        // Only the last two bits of the length matter.
        self.pad((size % 4) as usize)
    }

    /// Ends the archive and gives back what it was written to.
    pub fn finish(mut self) -> Result<W, ArchiveError> {
        self.write_header(&Header {
            path: TRAILER,
            mode: 0,
            links: 1,
            size: 0,
            device: (0, 0),
        })?;
        Ok(self.out)
    }

    fn header(
        &mut self,
        path: &Path,
        mode: u32,
        links: u32,
        size: u32,
        device: (u32, u32),
    ) -> Result<(), ArchiveError> {
        self.inode += 1;
        self.write_header(&Header {
            path: path.as_os_str().as_bytes(),
            mode,
            links,
            size,
            device,
        })
    }

    fn write_header(&mut self, header: &Header<'_>) -> Result<(), ArchiveError> {
        let Header {
            path,
            mode,
            links,
            size,
            device: (major, minor),
        } = *header;
        let inode = if path == TRAILER { 0 } else { self.inode };
        let name_size = path.len() + 1;
        // inode, mode, uid, gid, links, mtime, size, the file system's device, the node's device, name, check
        let text = format!(
            "070701{inode:08X}{mode:08X}{0:08X}{0:08X}{links:08X}{0:08X}{size:08X}{0:08X}{0:08X}\
             {major:08X}{minor:08X}{name_size:08X}{0:08X}",
            0
        );
        self.put(text.as_bytes())?;
        self.put(path)?;
        self.put(&[0])?;
        self.pad(text.len() + name_size)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), ArchiveError> {
        self.out.write_all(bytes).map_err(ArchiveError::Write)
    }

    fn pad(&mut self, written: usize) -> Result<(), ArchiveError> {
        self.put(&[0; 3][..written.wrapping_neg() % 4])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_begins_at_a_multiple_of_four() {
        let mut archive = Archive::new(Vec::new());
        archive.directory(Path::new("a"), 0o755).unwrap();
        for (path, content) in [
            ("a/b", &b""[..]),
            ("a/bc", b"1"),
            ("a/bcd", b"12345"),
            ("a/bcde", b"1234"),
        ] {
            archive
                .file(
                    Path::new(path),
                    0o644,
                    content.len() as u64,
                    content,
                    Path::new(path),
                )
                .unwrap();
        }
        archive.symlink(Path::new("z"), Path::new("a/bc")).unwrap();
        let bytes = archive.finish().unwrap();
        assert_eq!(bytes.len() % 4, 0);
        let entries: Vec<usize> = bytes
            .windows(6)
            .enumerate()
            .filter(|(_, window)| window == b"070701")
            .map(|(at, _)| at)
            .collect();
        assert_eq!(entries.len(), 7);
        assert!(entries.iter().all(|at| at % 4 == 0), "{entries:?}");
    }

    #[test]
    fn a_file_that_changes_its_size_is_noticed() {
        for size in [3, 5] {
            let error = Archive::new(Vec::new())
                .file(Path::new("f"), 0o644, size, &b"1234"[..], Path::new("./f"))
                .unwrap_err();
            assert_eq!(error.to_string(), "./f changed while it was read");
        }
    }

    #[test]
    fn a_file_of_four_gibibytes_is_refused() {
        let error = Archive::new(io::sink())
            .file(
                Path::new("f"),
                0o644,
                1 << 32,
                io::empty(),
                Path::new("./f"),
            )
            .unwrap_err();
        assert!(matches!(
            error,
            ArchiveError::TooLarge {
                size: 4_294_967_296,
                ..
            }
        ));
    }
}
