//! The tree of a root file system, and the merging of OCI layers into it from tar streams: nothing is ever
//! unpacked to a disk.
//!
//! [`merge`] reads the headers of each [`Layer`] once and decides what stands where; [`Tree::insert`] adds
//! files of the host. [`Tree::emit`] reads the layers a second time and gives everything to a [`Sink`], such
//! as [`TarSink`], in an order that is the same for the same input. No registry and no manifest is known here.

mod emit;
mod inode;
mod merge;
mod name;
mod read;
mod tree;
mod write;

pub use emit::{EmitError, Entry, Sink};
pub use inode::{Content, Inode, Kind, Metadata, Xattrs};
pub use merge::{Layer, Limits, MergeError, Refusal, merge};
pub use name::shown;
pub use read::{Entry as TarEntry, Reader as TarReader, TarError, What};
pub use tree::{Tree, TreeError};
pub use write::{Records, TarSink};
