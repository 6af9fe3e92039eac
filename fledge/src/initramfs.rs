//! An initramfs from a tree: the same tree gives the same bytes, on any day and in any folder.

use std::{fs::File, io::Write, path::Path};

use crate::{
    newc::Archive,
    tree::{Content, Node, Tree},
};

pub use crate::newc::ArchiveError;

/// kestrel alone, not compressed: what the kernel package bakes into its `bzImage`.
///
/// # Errors
/// kestrel has 4 GiB or more.
pub fn boot(kestrel: &[u8]) -> Result<Vec<u8>, ArchiveError> {
    write(
        &Tree::with_agent(Content::Bytes(kestrel.to_vec())),
        Vec::new(),
        &mut |_| (),
    )
}

/// Writes the tree as a cpio archive; `progress` is called with the bytes of each finished file.
///
/// # Errors
/// A file cannot be read, or the archive cannot be written.
pub fn write<W: Write>(
    tree: &Tree,
    out: W,
    progress: &mut dyn FnMut(u64),
) -> Result<W, ArchiveError> {
    let mut archive = Archive::new(out);
    for (path, node) in tree.iter() {
        match node {
            Node::Directory { mode } => archive.directory(path, *mode)?,
            Node::Symlink { target } => archive.symlink(path, target)?,
            Node::CharDevice { mode, major, minor } => {
                archive.char_device(path, *mode, (*major, *minor))?;
            }
            Node::File { mode, content } => progress(file(&mut archive, path, *mode, content)?),
        }
    }
    archive.finish()
}

fn file<W: Write>(
    archive: &mut Archive<W>,
    path: &Path,
    mode: u32,
    content: &Content,
) -> Result<u64, ArchiveError> {
    match content {
        Content::Bytes(bytes) => {
            let size = bytes.len() as u64;
            archive.file(path, mode, size, bytes.as_slice(), path)?;
            Ok(size)
        }
        Content::File { path: source, size } => {
            let file = File::open(source).map_err(|error| ArchiveError::Read {
                path: source.clone(),
                source: error,
            })?;
            archive.file(path, mode, *size, file, source)?;
            Ok(*size)
        }
    }
}
