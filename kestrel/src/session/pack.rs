//! Files of the guest as a tar.
//!
//! A thread reads them and sends them on: one frame is between the two, and no more. Kernel file systems below what is packed
//! are left empty, as they have no files that could be kept.

use std::{
    io::{self, Read as _, Write},
    path::{Path, PathBuf},
};

use volant_proto::agent::v1::{
    PackSession, PathInfo, SessionEnd, SessionOpened, session_refused::Kind as Why,
};

use super::{
    Ended, Output, Refusal, answer,
    direct::{Outgoing, in_thread},
    failed,
};

mod walk;

/// Packs what is wanted.
///
/// # Errors
/// It is not there.
pub async fn run(wanted: &PackSession, output: &mut Output) -> Result<Ended, Refusal> {
    let top = Top::of(wanted)?;
    let opened = SessionOpened {
        path: Some(top.info),
        ..SessionOpened::default()
    };
    if !answer(output, &opened).await {
        return Ok(None);
    }
    let connection = output.0.clone();
    let mut out = Chunks(Outgoing::new(connection.clone()));
    let packed = in_thread(&connection, move || walk::pack(&top, &mut out)).await;
    Ok(match packed {
        Ok(Some(Ok(()))) => Some(SessionEnd::default()),
        // Nobody is there to be told.
        Ok(Some(Err(walk::PackError::Send(_)))) => None,
        Ok(Some(Err(error))) => failed(error.to_string()),
        Ok(None) => failed("the packing ended early"),
        Err(error) => failed(format!("cannot begin to pack: {error}")),
    })
}

/// What is packed.
#[derive(Debug)]
struct Top {
    path: PathBuf,
    /// Of the first entry; empty: what is in the folder.
    name: Vec<u8>,
    follow: bool,
    info: PathInfo,
}

impl Top {
    fn of(wanted: &PackSession) -> Result<Self, Refusal> {
        let text = wanted.path.as_str();
        let act = format!("cannot pack {}", text.escape_debug());
        if !text.starts_with('/') || text.contains('\0') {
            return Err(Refusal::new(
                Why::Invalid,
                format!("{act}: it is no absolute path"),
            ));
        }
        let bare = text.trim_end_matches('/');
        let (bare, only_content) = match bare.strip_suffix("/.") {
            Some(folder) => (folder.trim_end_matches('/'), true),
            None => (bare, bare.is_empty()),
        };
        // "folder/" is what "folder" leads to.
        let follow = wanted.follow || only_content || text.ends_with('/');
        let path = PathBuf::from(if bare.is_empty() { "/" } else { bare });
        let meta = if follow {
            path.metadata()
        } else {
            path.symlink_metadata()
        };
        let meta = meta.map_err(|error| Refusal::system(&act, &error))?;
        if !meta.is_dir() && (only_content || text.ends_with('/')) {
            return Err(Refusal::new(
                Why::Unusable,
                format!("{act}: it is no folder"),
            ));
        }
        let name = match path.file_name() {
            _ if only_content => Vec::new(),
            Some(name) => name.as_encoded_bytes().to_vec(),
            // It ends with "..", and has no other name than that of the folder that it leads to.
            None => parent_name(&path).map_err(|error| Refusal::system(&act, &error))?,
        };
        let info = PathInfo {
            is_directory: meta.is_dir(),
            size: if meta.is_file() { meta.len() } else { 0 },
        };
        Ok(Self {
            path,
            name,
            follow,
            info,
        })
    }
}

fn parent_name(path: &Path) -> io::Result<Vec<u8>> {
    let real = path.canonicalize()?;
    let name = real.file_name().unwrap_or_default();
    Ok(name.as_encoded_bytes().to_vec())
}

/// Sends what is written in chunks, and waits while nobody takes them.
#[derive(Debug)]
struct Chunks(Outgoing);

impl Chunks {
    /// How much more fits in this chunk.
    fn room(&self) -> usize {
        self.0.room()
    }

    /// Adds up to `most` bytes of the file, which fit; gives how many.
    fn read(&mut self, file: &mut std::fs::File, most: usize) -> io::Result<usize> {
        let buffer = &mut self.0.frame;
        let start = buffer.len();
        // Straight to where it is sent from, and without zeroing the place first.
        if buffer.capacity() - start == most {
            let room = rustix::buffer::spare_capacity(buffer);
            return Ok(rustix::io::read(file, room)?);
        }
        buffer.resize(start + most, 0);
        let read = file.read(&mut buffer[start..]);
        buffer.truncate(start + read.as_ref().map_or(0, |count| *count));
        read
    }

    /// Adds so many zeros, which fit.
    fn zeros(&mut self, count: usize) {
        let buffer = &mut self.0.frame;
        buffer.resize(buffer.len() + count, 0);
    }

    fn send_full(&mut self) -> io::Result<()> {
        if self.room() == 0 {
            self.flush()
        } else {
            Ok(())
        }
    }
}

impl Write for Chunks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(self.room());
        self.0.frame.extend_from_slice(&bytes[..count]);
        self.send_full()?;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.send()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_says_what_is_packed_and_how_it_is_called() {
        let root = tempfile::tempdir().unwrap();
        let base = root.path().to_str().unwrap().to_owned();
        std::fs::create_dir_all(root.path().join("folder/below")).unwrap();
        std::fs::write(root.path().join("file"), "12345").unwrap();
        std::os::unix::fs::symlink("folder", root.path().join("link")).unwrap();
        let top = |path: &str, follow| {
            let path = format!("{base}{path}");
            Top::of(&PackSession { path, follow })
                .map(|top| {
                    (
                        String::from_utf8(top.name).unwrap(),
                        top.info.is_directory,
                        top.info.size,
                    )
                })
                .map_err(|refusal| refusal.why)
        };
        let named = |name: &str, is_directory, size| Ok((name.to_owned(), is_directory, size));
        assert_eq!(top("/folder", false), named("folder", true, 0));
        assert_eq!(top("/folder/", false), named("folder", true, 0));
        assert_eq!(top("/folder/.", false), named("", true, 0));
        assert_eq!(top("/folder/./", false), named("", true, 0));
        assert_eq!(top("/folder/below/..", false), named("folder", true, 0));
        assert_eq!(top("/link", false), named("link", false, 0));
        assert_eq!(top("/link", true), named("link", true, 0));
        assert_eq!(top("/link/", false), named("link", true, 0));
        assert_eq!(top("/file", false), named("file", false, 5));
        assert_eq!(top("/file/", false), Err(Why::Unusable));
        assert_eq!(top("/gone", false), Err(Why::NotFound));
        assert_eq!(top("/file\0", false), Err(Why::Invalid));
        let relative = PackSession {
            path: "etc".to_owned(),
            follow: false,
        };
        assert_eq!(Top::of(&relative).unwrap_err().why, Why::Invalid);
        let all = PackSession {
            path: "/".to_owned(),
            follow: false,
        };
        assert_eq!(Top::of(&all).unwrap().name, b"");
    }
}
