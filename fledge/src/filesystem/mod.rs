//! File-system images out of a tree: streamed from the layers, never unpacked, never as root, never mounted.
//!
//! Squashfs is compressed by `tar2sqfs`; erofs and ext4 are written here, since no tool of Debian 12 makes them
//! from a stream, with their times kept and the same bytes for the same tree. The image has no name until it is
//! whole: whatever ends this process leaves nothing behind, where the file system of the output can do that.

use std::{
    fs::File,
    io::{self, Read, Seek},
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};
use volant_layers::{EmitError, Entry, Layer, Sink, Tree, shown};
use volant_spec::Digest;

use crate::cancel::{Cancel, Cancelled};
use output::Pending;
use plan::{Contents, Plan, Unfit};

mod attributes;
mod erofs;
mod ext4;
mod output;
mod plan;
mod squashfs;

pub use squashfs::{DEFAULT_LEVEL, LEVELS};

/// What the image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Compressed with zstd.
    Squashfs {
        /// One of [`LEVELS`].
        level: u32,
    },
    /// Not compressed.
    Erofs,
    /// To be mounted read-only or not; without a journal.
    Ext4 {
        /// In bytes, rounded down to blocks of 4096; what is needed and a tenth if absent.
        size: Option<u64>,
    },
}

/// An image that is in its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Built {
    /// Bytes of the image.
    pub size: u64,
    pub digest: Digest,
    /// What the format cannot keep, for people; most trees have nothing of that kind.
    pub warnings: Vec<String>,
}

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum FilesystemError {
    #[error("cannot write {}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Tree(#[from] EmitError),
    #[error(
        "cannot make a squashfs image, because tar2sqfs is not installed: install the package squashfs-tools-ng (of Debian, Ubuntu and Fedora alike)"
    )]
    NoTool,
    #[error("cannot run tar2sqfs")]
    Run(#[source] io::Error),
    #[error("tar2sqfs failed ({status}): {said}")]
    Tool {
        status: std::process::ExitStatus,
        /// The end of what it wrote to its standard error.
        said: String,
    },
    #[error("the compression level of squashfs is from 1 to 22, not {0}")]
    Level(u32),
    #[error("/{path} cannot be in the image: {why}")]
    Unfit { path: String, why: &'static str },
    #[error("an ext4 image of that size cannot hold the tree: make it {needed} MiB or more")]
    TooSmall {
        /// In MiB.
        needed: u64,
    },
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

/// Writes an image of a tree that was merged from `layers` to `output`, over what is there. `progress` is called
/// with the bytes of content that were read since the last call; their sum is [`Tree::size`]. The same tree gives
/// the same bytes, whatever the day, the folder, the user or the machine, with the same version of the tool.
///
/// # Errors
/// Anything that keeps the image from being whole; nothing is left then, and what was at its place stays.
pub fn build(
    format: &Format,
    tree: &Tree,
    layers: &[&dyn Layer],
    output: &Path,
    cancel: &Cancel,
    progress: &mut dyn FnMut(u64),
) -> Result<Built, FilesystemError> {
    let failed = |source| FilesystemError::Write {
        path: output.to_owned(),
        source,
    };
    let pending = Pending::new(output).map_err(failed)?;
    let mut emit = |sink: &mut dyn Sink| -> Result<(), FilesystemError> {
        let emitted = tree.emit(layers, &mut Cancellable { sink, cancel }, progress);
        cancel.check()?;
        Ok(emitted?)
    };
    let warnings = match *format {
        Format::Squashfs { level } => squashfs::write(level, pending.path(), &mut emit)?,
        Format::Erofs => {
            let plan = Plan::new(tree);
            let layout = erofs::Layout::new(&plan).map_err(|unfit| refused(&plan, unfit))?;
            layout.write(pending.file()).map_err(failed)?;
            let place = |number| layout.place(number);
            emit(&mut Contents::new(&plan, pending.file(), &place))?;
            layout.warnings
        }
        Format::Ext4 { size } => {
            let plan = Plan::new(tree);
            let layout = ext4::Layout::new(&plan, size).map_err(|error| match error {
                ext4::Error::Unfit(unfit) => refused(&plan, unfit),
                ext4::Error::TooSmall { needed } => FilesystemError::TooSmall {
                    needed: needed.div_ceil(1 << 20),
                },
            })?;
            layout.write(pending.file()).map_err(failed)?;
            let place = |number| layout.place(number);
            emit(&mut Contents::new(&plan, pending.file(), &place))?;
            layout.warnings
        }
    };
    let (digest, size) = digest(pending.file(), cancel).map_err(failed)?;
    cancel.check()?;
    pending.keep(output).map_err(failed)?;
    Ok(Built {
        size,
        digest,
        warnings,
    })
}

fn refused(plan: &Plan<'_>, (number, why): Unfit) -> FilesystemError {
    FilesystemError::Unfit {
        path: shown(plan.nodes[number].path),
        why,
    }
}

/// Gives the tree to a sink.
type Emit<'a> = &'a mut dyn FnMut(&mut dyn Sink) -> Result<(), FilesystemError>;

/// Reads a file from its start; ends early when cancelled.
fn digest(mut file: &File, cancel: &Cancel) -> io::Result<(Digest, u64)> {
    file.rewind()?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 256 * 1024];
    let mut size = 0;
    while !cancel.is_cancelled() {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        hash.update(&buffer[..count]);
        size += count as u64;
    }
    Ok((Digest::from_bytes(hash.finalize().into()), size))
}

/// A sink that fails once it is cancelled.
pub(crate) struct Cancellable<'a> {
    pub sink: &'a mut dyn Sink,
    pub cancel: &'a Cancel,
}

impl Sink for Cancellable<'_> {
    fn node(&mut self, entry: &Entry<'_>) -> io::Result<()> {
        self.cancel.check().map_err(io::Error::other)?;
        self.sink.node(entry)
    }

    fn file(&mut self, entry: &Entry<'_>, content: &mut dyn Read) -> io::Result<()> {
        let cancel = self.cancel;
        self.sink.file(entry, &mut Checked { content, cancel })
    }

    fn link(&mut self, entry: &Entry<'_>, target: &[u8]) -> io::Result<()> {
        self.sink.link(entry, target)
    }
}

/// The content of one file, which may be large.
struct Checked<'a> {
    content: &'a mut dyn Read,
    cancel: &'a Cancel,
}

impl Read for Checked<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.cancel.check().map_err(io::Error::other)?;
        self.content.read(buffer)
    }
}
