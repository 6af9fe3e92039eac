//! Layers, one over the other: which of their entries are left, and where. Reads headers, no content.

use std::{
    io::{self, Read},
    sync::Arc,
};

use crate::{
    inode::{Content, Inode, Kind},
    name::{self, MAX_PATH, NameError, shown},
    read::{Reader, TarError, What},
    tree::{Above, Tree, WalkError},
};

const WHITEOUT: &[u8] = b".wh.";
/// What AUFS kept for itself, and the name of an opaque directory's mark.
const SPECIAL: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Where AUFS kept files with several names: their other names are links to these.
const LINKS: &[u8] = b".wh..wh.plnk";
/// The names that may be looked up or passed by for each entry that there may be: images need ten or twenty.
/// Without it, a small layer of deep names, links and marks could keep us for days.
const WORK_PER_ENTRY: u64 = 50;
/// The bytes of holes that there may be for each stored byte, and for none: databases and disks have some. Without it,
/// an archive of a kilobyte could have us write zeros for minutes.
const HOLES_PER_BYTE: u64 = 1000;
const HOLES: u64 = 1 << 30;

/// A layer, as a tar stream that is not compressed. It is read once by [`merge`], to its very end, and once more
/// by [`Tree::emit`] if something of it is left, as far as needed.
pub trait Layer {
    /// Begins to read it from its start.
    ///
    /// # Errors
    /// It cannot be read.
    fn open(&self) -> io::Result<Box<dyn Read + '_>>;

    /// What errors call it: its digest, or its path.
    fn name(&self) -> String;

    /// Whether names that begin with `.wh.` say what is removed from lower layers. In what is no layer of an image,
    /// such as a folder, they are names as all others.
    fn whiteouts(&self) -> bool {
        true
    }
}

/// How large layers may be.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Entries of all layers together; what it may take to find their places follows from it.
    pub entries: u32,
    /// Bytes of memory for the paths, links and attributes of all layers together.
    pub memory: u64,
    /// Bytes of all files together, holes included, and of each layer's stream.
    pub content: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            entries: 4_000_000,
            memory: 1 << 30,
            content: 64 << 30,
        }
    }
}

/// Why layers could not be merged.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    #[error("cannot open layer {layer}")]
    Open { layer: String, source: io::Error },
    #[error("cannot read layer {layer}")]
    Read { layer: String, source: TarError },
    #[error("layer {layer} cannot have {name}")]
    Entry {
        layer: String,
        name: String,
        source: Refusal,
    },
    #[error("the layers have more than {0} entries")]
    Entries(u32),
    #[error("the names, links and attributes of the layers take more than {0} bytes of memory")]
    Memory(u64),
    #[error("the files of the layers have more than {0} bytes")]
    Content(u64),
    #[error(
        "the sparse files of the layers have {holes} bytes of holes, most of them in {name} of layer {layer}; \
         no more than {most} are taken with {stored} bytes of content"
    )]
    Holes {
        holes: u64,
        /// The file with the most.
        name: String,
        layer: String,
        most: u64,
        stored: u64,
    },
    #[error("the names and links of the layers are deeper than those of any image")]
    Work,
}

/// Why an entry was refused.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error(transparent)]
    Name(#[from] NameError),
    #[error("its link to {target} cannot be followed")]
    LinkName { target: String, source: NameError },
    #[error("the symbolic link {0} of the image leads out of the root")]
    Leaves(String),
    #[error("the symbolic links in its name lead nowhere")]
    Nowhere,
    #[error("{0} is no folder")]
    NoFolder(String),
    #[error("it is a link to {0}, which is not there")]
    NoTarget(String),
    #[error("it is a link to the folder {0}, and only files have several names")]
    Folder(String),
    #[error("the root is a folder and nothing else")]
    Root,
    #[error("it is a symbolic link to nothing, or to more than 4095 bytes")]
    Target,
    #[error("names that begin with .wh. say what a layer removes")]
    Whiteout,
    #[error("Linux has no device {0}:{1}")]
    Device(u32, u32),
    #[error("its type {0:?} is not known")]
    Type(char),
}

enum Fault {
    Entry(Refusal),
    Whole(MergeError),
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Self {
        Self::Entry(refusal)
    }
}

impl From<NameError> for Fault {
    fn from(error: NameError) -> Self {
        Self::Entry(error.into())
    }
}

/// Applies layers in order, the lowest first, by the rules of the OCI image specification. A whiteout is for
/// what lower layers left, wherever it stands in its own. A folder that a name leads through may be a symbolic
/// link of the image: it is followed as a system with that root would, and refused where it leads out.
///
/// # Errors
/// A layer cannot be read, leaves the root, is no archive that is known, or is beyond the limits.
pub fn merge(layers: &[&dyn Layer], limits: &Limits) -> Result<Tree, MergeError> {
    let mut merger = Merger {
        tree: Tree::new(),
        limits: *limits,
        entries: 0,
        content: 0,
        holes: 0,
        largest: (0, 0, String::new()),
        whiteouts: true,
        work: 0,
    };
    for (index, layer) in (0..).zip(layers) {
        merger.layer(index, *layer)?;
    }
    merger.check_holes(layers)?;
    Ok(merger.tree)
}

struct Merger {
    tree: Tree,
    limits: Limits,
    entries: u32,
    content: u64,
    /// The part of the content that is holes.
    holes: u64,
    /// The most holes of a file, its layer and its name.
    largest: (u64, u32, String),
    /// Whether the layer that is read has them.
    whiteouts: bool,
    work: u64,
}

impl Merger {
    fn layer(&mut self, index: u32, layer: &dyn Layer) -> Result<(), MergeError> {
        let read = |source| MergeError::Read {
            layer: layer.name(),
            source,
        };
        let stream = layer.open().map_err(|source| MergeError::Open {
            layer: layer.name(),
            source,
        })?;
        let mut reader = Reader::new(stream, self.limits.content);
        let mut number = 0;
        self.whiteouts = layer.whiteouts();
        while let Some(entry) = reader.next().map_err(read)? {
            self.entries += 1;
            if self.entries > self.limits.entries {
                return Err(MergeError::Entries(self.limits.entries));
            }
            self.entry(index, number, &entry.name, entry.meta, entry.what)
                .map_err(|fault| match fault {
                    Fault::Whole(error) => error,
                    Fault::Entry(source) => MergeError::Entry {
                        layer: layer.name(),
                        name: shown(&entry.name),
                        source,
                    },
                })?;
            if self.work > u64::from(self.limits.entries) * WORK_PER_ENTRY {
                return Err(MergeError::Work);
            }
            if self.tree.cost() > self.limits.memory {
                return Err(MergeError::Memory(self.limits.memory));
            }
            number += 1;
        }
        reader.drain().map_err(read)?;
        if self.whiteouts {
            self.tree.remove(LINKS);
        }
        Ok(())
    }

    /// When all is read, as the holes may come before the content.
    fn check_holes(&self, layers: &[&dyn Layer]) -> Result<(), MergeError> {
        let stored = self.content - self.holes;
        let most = stored.saturating_mul(HOLES_PER_BYTE).saturating_add(HOLES);
        if self.holes <= most {
            return Ok(());
        }
        let (_, layer, name) = &self.largest;
        Err(MergeError::Holes {
            holes: self.holes,
            name: name.clone(),
            layer: layers[*layer as usize].name(),
            most,
            stored,
        })
    }

    fn entry(
        &mut self,
        layer: u32,
        number: u32,
        name: &[u8],
        meta: crate::Metadata,
        what: What,
    ) -> Result<(), Fault> {
        let path = name::relative(name)?;
        let (folder, last) = name::split(&path);
        if !self.whiteouts {
            // All names are ordinary.
        } else if let Some(special) = name::parts(&path).find(|part| part.starts_with(SPECIAL)) {
            if special == OPAQUE && last == OPAQUE {
                let key = self.follow(folder)?.0;
                self.work += self.tree.clear(&key, layer);
                return Ok(());
            }
            if name::parts(&path).next() != Some(LINKS) {
                return Ok(());
            }
        } else if name::parts(folder).any(|part| part.starts_with(WHITEOUT)) {
            return Err(Refusal::Whiteout.into());
        } else if let Some(gone) = last.strip_prefix(WHITEOUT) {
            if matches!(gone, b"" | b"." | b"..") {
                return Err(Refusal::Whiteout.into());
            }
            let mut key = self.follow(folder)?.0;
            name::push(&mut key, gone);
            self.work += self.tree.white_out(&key, layer);
            return Ok(());
        }

        let kind = match what {
            What::Directory => Kind::Directory,
            _ if path.is_empty() => return Err(Refusal::Root.into()),
            What::File { size, holes } => {
                self.content = self.content.saturating_add(size);
                self.holes = self.holes.saturating_add(holes);
                if holes > self.largest.0 {
                    self.largest = (holes, layer, shown(name));
                }
                if self.content > self.limits.content {
                    return Err(Fault::Whole(MergeError::Content(self.limits.content)));
                }
                Kind::File(Content::Layer {
                    layer,
                    entry: number,
                    size,
                })
            }
            What::Symlink(target) => {
                if target.is_empty() || target.len() > MAX_PATH || target.contains(&0) {
                    return Err(Refusal::Target.into());
                }
                Kind::Symlink(target.into())
            }
            What::Link(target) => {
                let inode = self.target(&target)?;
                return self.place(folder, last, inode, layer);
            }
            What::CharDevice(major, minor) | What::BlockDevice(major, minor)
                if major >= 1 << 12 || minor >= 1 << 20 =>
            {
                return Err(Refusal::Device(major, minor).into());
            }
            What::CharDevice(major, minor) => Kind::CharDevice { major, minor },
            What::BlockDevice(major, minor) => Kind::BlockDevice { major, minor },
            What::Fifo => Kind::Fifo,
            What::Unknown(kind) => return Err(Refusal::Type(char::from(kind)).into()),
        };
        let mut meta = meta;
        if matches!(kind, Kind::Symlink(_)) {
            // Linux has no other.
            meta.mode = 0o777;
        }
        self.place(folder, last, Arc::new(Inode { meta, kind }), layer)
    }

    fn place(
        &mut self,
        folder: &[u8],
        last: &[u8],
        inode: Arc<Inode>,
        layer: u32,
    ) -> Result<(), Fault> {
        let (mut key, found) = self.follow(folder)?;
        if !self
            .tree
            .get(&key[..found])
            .is_some_and(Inode::is_directory)
        {
            return Err(Refusal::NoFolder(shown(&key[..found])).into());
        }
        if key.len() + 1 + last.len() > MAX_PATH {
            return Err(NameError::TooLong.into());
        }
        // A link that leads nowhere can lead to such a name, too.
        if self.whiteouts && name::parts(&key[found..]).any(|part| part.starts_with(WHITEOUT)) {
            return Err(Refusal::Whiteout.into());
        }
        self.tree.make_folders(&key, found, layer);
        if !last.is_empty() {
            name::push(&mut key, last);
        }
        self.tree.put(&key, inode, layer);
        Ok(())
    }

    /// The inode that a hard link is to; a symbolic link is not followed at the end. Older builders write such targets
    /// from the root of the image on.
    fn target(&mut self, target: &[u8]) -> Result<Arc<Inode>, Fault> {
        let from_root = target.iter().position(|byte| *byte != b'/').unwrap_or(0);
        let path = name::relative(&target[from_root..]).map_err(|source| Refusal::LinkName {
            target: shown(target),
            source,
        })?;
        let (folder, last) = name::split(&path);
        let mut key = self.follow(folder)?.0;
        if !last.is_empty() {
            name::push(&mut key, last);
        }
        match self.tree.inode(&key) {
            None => Err(Refusal::NoTarget(shown(target)).into()),
            Some(inode) if inode.is_directory() => Err(Refusal::Folder(shown(target)).into()),
            Some(inode) => Ok(Arc::clone(inode)),
        }
    }

    /// The key of a folder, and the length of the part of it that is there.
    fn follow(&mut self, folder: &[u8]) -> Result<(Vec<u8>, usize), Fault> {
        let walk = self
            .tree
            .walk(folder, Above::Leaves)
            .map_err(|error| match error {
                WalkError::Leaves(link) => Refusal::Leaves(shown(&link)),
                WalkError::Nowhere => Refusal::Nowhere,
                WalkError::TooLong => Refusal::Name(NameError::TooLong),
            })?;
        self.work += walk.work;
        Ok((walk.key, walk.found))
    }
}
