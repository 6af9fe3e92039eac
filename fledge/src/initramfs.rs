//! An initramfs from a tree: the same tree gives the same bytes, on any day and in any folder.

use std::{
    io::{self, Write},
    path::Path,
};

use volant_layers::{Content, EmitError, Inode, Kind, Layer, Tree, TreeError};

use crate::{cancel::Cancel, filesystem::Cancellable, newc::Archive};

/// Why an archive could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    #[error(transparent)]
    Tree(#[from] EmitError),
    #[error("cannot write the archive")]
    Write(#[source] io::Error),
}

/// An archive that is whole.
#[derive(Debug)]
pub struct Written<W> {
    pub out: W,
    /// Programs that have file capabilities in the tree and cannot have them in an initramfs.
    pub powerless: Vec<String>,
}

/// Puts in what every guest has: its folders, a console for its PID 1, and kestrel as `/init`. Folders that are
/// there already, as from an image, stay.
///
/// # Errors
/// Something is there that cannot be replaced.
pub fn add_agent(tree: &mut Tree, kestrel: Content) -> Result<(), TreeError> {
    // Without the console the kernel starts /init with no standard streams, before /dev can be mounted.
    let console = Kind::CharDevice { major: 5, minor: 1 };
    for (path, inode) in [
        ("/dev", Inode::directory(0o755)),
        ("/dev/console", Inode::new(0o600, console)),
        ("/etc", Inode::directory(0o755)),
        ("/init", Inode::file(0o755, kestrel)),
        ("/proc", Inode::directory(0o555)),
        ("/root", Inode::directory(0o700)),
        ("/run", Inode::directory(0o755)),
        ("/sys", Inode::directory(0o555)),
        ("/tmp", Inode::directory(0o1777)),
    ] {
        tree.insert(Path::new(path), inode)?;
    }
    Ok(())
}

/// kestrel alone, not compressed: what the kernel package bakes into its `bzImage`.
///
/// # Errors
/// kestrel has 4 GiB or more.
pub fn boot(kestrel: &[u8]) -> Result<Vec<u8>, ArchiveError> {
    let mut tree = Tree::new();
    add_agent(&mut tree, Content::Bytes(kestrel.to_vec())).expect("nothing else is there");
    write(&tree, &[], Vec::new(), &Cancel::default(), &mut |_| ()).map(|written| written.out)
}

/// `e2fsck` alone, not compressed: what is appended to the initramfs of a VM with file systems of its own.
///
/// # Errors
/// It has 4 GiB or more.
pub fn tools(e2fsck: &[u8]) -> Result<Vec<u8>, ArchiveError> {
    let mut tree = Tree::new();
    for (path, inode) in [
        ("/.kestrel", Inode::directory(0o755)),
        (
            "/.kestrel/e2fsck",
            Inode::file(0o755, Content::Bytes(e2fsck.to_vec())),
        ),
    ] {
        tree.insert(Path::new(path), inode)
            .expect("nothing else is there");
    }
    write(&tree, &[], Vec::new(), &Cancel::default(), &mut |_| ()).map(|written| written.out)
}

/// Writes the tree, merged from `layers` and more, as a cpio archive; `progress` is called with the bytes of
/// files that were read since the last call.
///
/// # Errors
/// A file cannot be read, the archive cannot be written, or it was told to end.
pub fn write<W: Write>(
    tree: &Tree,
    layers: &[&dyn Layer],
    out: W,
    cancel: &Cancel,
    progress: &mut dyn FnMut(u64),
) -> Result<Written<W>, ArchiveError> {
    let mut archive = Archive::new(out);
    let sink = &mut archive;
    tree.emit(layers, &mut Cancellable { sink, cancel }, progress)?;
    let (out, powerless) = archive.finish().map_err(ArchiveError::Write)?;
    Ok(Written { out, powerless })
}
