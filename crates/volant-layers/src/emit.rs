//! Gives a tree to whatever makes a file system or an archive of it, in an order that every archive can have.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read},
    path::PathBuf,
    sync::Arc,
};

use crate::{
    inode::{Content, Inode, Kind},
    merge::Layer,
    name::shown,
    read::{Reader, TarError, What},
    tree::Tree,
};

/// A path of the tree.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// Relative to the root; empty for the root itself.
    pub path: &'a [u8],
    pub inode: &'a Inode,
    /// How many paths the inode has.
    pub links: u32,
}

/// Takes a tree. Folders come before what is in them, and all that is no file before the files.
pub trait Sink {
    /// Takes a directory, symbolic link, device or fifo.
    ///
    /// # Errors
    /// It cannot be written.
    fn node(&mut self, entry: &Entry<'_>) -> io::Result<()>;

    /// Takes a file with its content, which has exactly [`Inode::size`] bytes. What is not read of it is skipped.
    ///
    /// # Errors
    /// It cannot be written, or the content not be read; an error of the content need not be kept.
    fn file(&mut self, entry: &Entry<'_>, content: &mut dyn Read) -> io::Result<()>;

    /// Takes another path of an inode that came earlier as `target`.
    ///
    /// # Errors
    /// It cannot be written.
    fn link(&mut self, entry: &Entry<'_>, target: &[u8]) -> io::Result<()>;
}

/// Why a tree could not be given on.
#[derive(Debug, thiserror::Error)]
pub enum EmitError {
    #[error("cannot write {path}")]
    Write { path: String, source: io::Error },
    #[error("cannot read {}", path.display())]
    ReadFile { path: PathBuf, source: io::Error },
    #[error("{} changed while it was read", .0.display())]
    FileChanged(PathBuf),
    #[error("cannot open layer {layer}")]
    Open { layer: String, source: io::Error },
    #[error("cannot read layer {layer}")]
    ReadLayer { layer: String, source: TarError },
    #[error("cannot read {path} from layer {layer}")]
    ReadEntry {
        path: String,
        layer: String,
        source: io::Error,
    },
    #[error("layer {layer} changed after its headers were read: {path} is no longer there")]
    LayerChanged { path: String, layer: String },
}

/// A file whose content is in a layer.
struct Stored<'a> {
    layer: u32,
    number: u32,
    path: &'a [u8],
    inode: &'a Inode,
}

impl Tree {
    /// Gives everything to a sink: first what is no file, then the files of the host and of memory, each sorted
    /// by path; then those of the layers as they come in their streams. Of several paths of one inode the first
    /// is its path, the others are links to it. `progress` is called with the bytes of content that were read
    /// since the last call; their sum is [`Tree::size`].
    ///
    /// `layers` are those that the tree was merged from; one without a file that is left is not opened.
    ///
    /// # Errors
    /// A content cannot be read or is not as it was, or the sink fails.
    pub fn emit(
        &self,
        layers: &[&dyn Layer],
        sink: &mut dyn Sink,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), EmitError> {
        let shared = self.paths_of_shared();
        let (mut local, mut stored) = (Vec::new(), Vec::new());
        for (path, inode) in self.shared() {
            match &inode.kind {
                Kind::File(Content::Layer { layer, entry, .. }) => stored.push(Stored {
                    layer: *layer,
                    number: *entry,
                    path,
                    inode,
                }),
                Kind::File(content) => local.push((path, inode, content)),
                _ => {
                    let (target, entry) = entry(&shared, path, inode);
                    if target == path {
                        sink.node(&entry)
                    } else {
                        sink.link(&entry, target)
                    }
                    .map_err(|source| write_error(path, source))?;
                }
            }
        }
        for (path, inode, content) in local {
            let (target, entry) = entry(&shared, path, inode);
            if target == path {
                emit_local(sink, &entry, content, progress)?;
            } else {
                sink.link(&entry, target)
                    .map_err(|source| write_error(path, source))?;
            }
        }
        stored.sort_by_key(|file| (file.layer, file.number));
        for files in stored.chunk_by(|a, b| a.layer == b.layer) {
            let layer = layers.get(files[0].layer as usize);
            emit_layer(
                sink,
                *layer.ok_or_else(|| no_layer(&files[0]))?,
                files,
                progress,
            )?;
        }
        Ok(())
    }

    /// The first path and the number of paths of each inode that has several.
    fn paths_of_shared(&self) -> HashMap<*const Inode, (&[u8], u32)> {
        let mut paths = HashMap::new();
        for (path, inode) in self.shared() {
            if Arc::strong_count(inode) > 1 {
                paths.entry(Arc::as_ptr(inode)).or_insert((path, 0)).1 += 1;
            }
        }
        paths
    }
}

/// The first path of an inode, and the entry for this one.
fn entry<'a>(
    shared: &HashMap<*const Inode, (&'a [u8], u32)>,
    path: &'a [u8],
    inode: &'a Arc<Inode>,
) -> (&'a [u8], Entry<'a>) {
    let (first, links) = shared
        .get(&Arc::as_ptr(inode))
        .copied()
        .unwrap_or((path, 1));
    (first, Entry { path, inode, links })
}

fn emit_local(
    sink: &mut dyn Sink,
    entry: &Entry<'_>,
    content: &Content,
    progress: &mut dyn FnMut(u64),
) -> Result<(), EmitError> {
    match content {
        Content::Bytes(bytes) => {
            let mut content = Exact::new(bytes.as_slice(), entry.inode.size(), progress);
            sink.file(entry, &mut content)
                .map_err(|source| write_error(entry.path, source))
        }
        Content::File { path, size } => {
            let failed = |source| EmitError::ReadFile {
                path: path.clone(),
                source,
            };
            let mut file = File::open(path).map_err(failed)?;
            let mut content = Exact::new(&mut file, *size, progress);
            let written = sink.file(entry, &mut content);
            match content.failure {
                Some(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(EmitError::FileChanged(path.clone()));
                }
                Some(error) => return Err(failed(error)),
                None => written.map_err(|source| write_error(entry.path, source))?,
            }
            let whole = content.left == 0;
            // It may have grown, too.
            if whole && file.read(&mut [0]).map_err(failed)? > 0 {
                return Err(EmitError::FileChanged(path.clone()));
            }
            Ok(())
        }
        Content::Layer { .. } => Ok(()),
    }
}

/// Reads a layer as far as the last of its files that are left.
fn emit_layer(
    sink: &mut dyn Sink,
    layer: &dyn Layer,
    files: &[Stored<'_>],
    progress: &mut dyn FnMut(u64),
) -> Result<(), EmitError> {
    let stream = layer.open().map_err(|source| EmitError::Open {
        layer: layer.name(),
        source,
    })?;
    let mut reader = Reader::new(stream, u64::MAX);
    let mut number = 0;
    for paths in files.chunk_by(|a, b| a.number == b.number) {
        let file = &paths[0];
        let changed = || EmitError::LayerChanged {
            path: shown(file.path),
            layer: layer.name(),
        };
        let found = loop {
            let next = reader.next().map_err(|source| EmitError::ReadLayer {
                layer: layer.name(),
                source,
            })?;
            let next = next.ok_or_else(changed)?;
            number += 1;
            if number > file.number {
                break next;
            }
        };
        let size = file.inode.size();
        if !matches!(found.what, What::File { size: found, .. } if found == size) {
            return Err(changed());
        }
        let mut entry = Entry {
            path: file.path,
            inode: file.inode,
            links: paths.len() as u32,
        };
        let mut content = Exact::new(&mut reader, size, progress);
        let written = sink.file(&entry, &mut content);
        if let Some(source) = content.failure {
            return Err(EmitError::ReadEntry {
                path: shown(file.path),
                layer: layer.name(),
                source,
            });
        }
        written.map_err(|source| write_error(file.path, source))?;
        for other in &paths[1..] {
            entry.path = other.path;
            sink.link(&entry, file.path)
                .map_err(|source| write_error(other.path, source))?;
        }
    }
    Ok(())
}

fn write_error(path: &[u8], source: io::Error) -> EmitError {
    EmitError::Write {
        path: shown(path),
        source,
    }
}

fn no_layer(file: &Stored<'_>) -> EmitError {
    EmitError::LayerChanged {
        path: shown(file.path),
        layer: format!("number {}", file.layer),
    }
}

/// A content of a known size; keeps an error, so that it can be told from one of the sink.
struct Exact<'a, R> {
    content: R,
    left: u64,
    failure: Option<io::Error>,
    progress: &'a mut dyn FnMut(u64),
}

impl<'a, R> Exact<'a, R> {
    fn new(content: R, size: u64, progress: &'a mut dyn FnMut(u64)) -> Self {
        Self {
            content,
            left: size,
            failure: None,
            progress,
        }
    }
}

impl<R: Read> Read for Exact<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer
            .len()
            .min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if most == 0 {
            return Ok(0);
        }
        let read = match self.content.read(&mut buffer[..most]) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            result => result,
        };
        match read {
            Ok(count) => {
                self.left -= count as u64;
                (self.progress)(count as u64);
                Ok(count)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(error) => {
                let told = io::Error::new(error.kind(), error.to_string());
                self.failure = Some(error);
                Err(told)
            }
        }
    }
}
