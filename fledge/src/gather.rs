//! Fills a tree from the files of the host. Owners and times are not taken, and modes only as far as a file
//! may be executed, so that another umask or another day changes nothing.

use std::{
    fs::{self, Metadata},
    io,
    os::unix::{ffi::OsStrExt, fs::PermissionsExt},
    path::{Path, PathBuf},
};

use volant_layers::{Content, Inode, Tree, TreeError};

use crate::recipe::{FileMapping, Mode};

/// Why a mapping could not be followed.
#[derive(Debug, thiserror::Error)]
pub enum GatherError {
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is neither a file, a folder nor a symbolic link", .0.display())]
    Special(PathBuf),
    #[error("{} is a folder, and mode is for a file; files in it keep their own x bit", .0.display())]
    ModeOfFolder(PathBuf),
    #[error(
        "cannot map {}: /init is the agent of the guest, kestrel; choose another place", .0.display()
    )]
    Agent(PathBuf),
    #[error("cannot map {}", source_path.display())]
    Place {
        source_path: PathBuf,
        source: TreeError,
    },
}

/// Puts what a mapping names into the tree. Its source is relative to `folder`.
pub fn gather(tree: &mut Tree, folder: &Path, mapping: &FileMapping) -> Result<(), GatherError> {
    // Collecting the components drops the "./" that would else stand in every message.
    let source: PathBuf = folder.join(&mapping.source).components().collect();
    // The source itself may be a link: its name was written, what it leads to is meant.
    let found = fs::metadata(&source).map_err(|error| read_error(&source, error))?;
    if found.is_dir() {
        if mapping.mode.is_some() {
            return Err(GatherError::ModeOfFolder(source));
        }
        return gather_folder(tree, &source, &mapping.dest.0, &found);
    }
    if !found.is_file() {
        return Err(GatherError::Special(source));
    }
    place(
        tree,
        &mapping.dest.0,
        file(&source, &found, mapping.mode),
        &source,
    )
}

fn gather_folder(
    tree: &mut Tree,
    source: &Path,
    dest: &Path,
    found: &Metadata,
) -> Result<(), GatherError> {
    // Anybody may write to a sticky folder such as /tmp; others are root's.
    let mode = if found.permissions().mode() & 0o1000 == 0 {
        0o755
    } else {
        0o1777
    };
    place(tree, dest, Inode::directory(mode), source)?;
    let mut entries = fs::read_dir(source)
        .and_then(Iterator::collect::<io::Result<Vec<_>>>)
        .map_err(|error| read_error(source, error))?;
    // The folder's own order is chance, and which of two mistakes is told should not be.
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let (source, dest) = (entry.path(), dest.join(entry.file_name()));
        let found = entry
            .metadata()
            .map_err(|error| read_error(&source, error))?;
        if found.is_dir() {
            gather_folder(tree, &source, &dest, &found)?;
        } else if found.is_symlink() {
            let target = fs::read_link(&source).map_err(|error| read_error(&source, error))?;
            let link = Inode::symlink(target.as_os_str().as_bytes());
            place(tree, &dest, link, &source)?;
        } else if found.is_file() {
            place(tree, &dest, file(&source, &found, None), &source)?;
        } else {
            return Err(GatherError::Special(source));
        }
    }
    Ok(())
}

fn file(source: &Path, found: &Metadata, mode: Option<Mode>) -> Inode {
    let executable = found.permissions().mode() & 0o100 != 0;
    let mode = mode.map_or(if executable { 0o755 } else { 0o644 }, |mode| mode.0);
    let content = Content::File {
        path: source.to_owned(),
        size: found.len(),
    };
    Inode::file(mode, content)
}

fn place(tree: &mut Tree, dest: &Path, inode: Inode, source: &Path) -> Result<(), GatherError> {
    tree.insert(dest, inode).map_err(|error| {
        let agent = tree.get(b"init");
        let there = tree.find(dest);
        match (error, agent.zip(there)) {
            (TreeError::Taken(_), Some((agent, there))) if std::ptr::eq(agent, there) => {
                GatherError::Agent(source.to_owned())
            }
            (error, _) => GatherError::Place {
                source_path: source.to_owned(),
                source: error,
            },
        }
    })
}

fn read_error(path: &Path, source: io::Error) -> GatherError {
    GatherError::Read {
        path: path.to_owned(),
        source,
    }
}
