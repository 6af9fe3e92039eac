//! Results on their way: all of them are put in their places together, or none is.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use volant_spec::{Digest, manifest::SIGNATURE_SUFFIX};

/// Why a result is not there.
#[derive(Debug, thiserror::Error)]
pub enum StagingError {
    #[error("cannot write {}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
}

/// A folder in the output folder, which is gone when the value is.
#[derive(Debug)]
pub struct Staging {
    output: PathBuf,
    folder: TempDir,
    names: Vec<String>,
    /// After the folder in it.
    _made: Made,
}

/// Folders that were missing; those that stay empty go with the value.
#[derive(Debug, Default)]
struct Made(Vec<PathBuf>);

impl Staging {
    /// Makes the output folder when it is missing.
    pub fn new(output: &Path) -> Result<Self, StagingError> {
        let failed = |source| StagingError::Write {
            path: output.to_owned(),
            source,
        };
        let mut made = Made::folder(output).map_err(failed)?;
        let mut folder = inside(output);
        if missing(&folder) {
            // Another build made the folder, and took it with it.
            made = Made::folder(output).map_err(failed)?;
            folder = inside(output);
        }
        Ok(Self {
            output: output.to_owned(),
            folder: folder.map_err(failed)?,
            names: Vec::new(),
            _made: made,
        })
    }

    /// Where a result of that name is written to. Results are put in their places in the order of these calls.
    pub fn add(&mut self, name: &str) -> PathBuf {
        self.names.push(name.to_owned());
        self.folder.path().join(name)
    }

    /// Adds a result of these bytes.
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<(), StagingError> {
        let path = self.add(name);
        fs::write(&path, bytes).map_err(|source| StagingError::Write {
            path: self.output.join(name),
            source,
        })
    }

    /// Adds a copy of a file; gives its digest and size.
    pub fn copy(&mut self, name: &str, from: &Path) -> Result<(Digest, u64), StagingError> {
        let path = self.add(name);
        let read = |source| StagingError::Read {
            path: from.to_owned(),
            source,
        };
        let write = |source| StagingError::Write {
            path: self.output.join(name),
            source,
        };
        let mut source = File::open(from).map_err(read)?;
        let mut target = File::create(&path).map_err(write)?;
        let (mut hash, mut size, mut buffer) = (Sha256::new(), 0, vec![0; 128 * 1024]);
        loop {
            let count = source.read(&mut buffer).map_err(read)?;
            if count == 0 {
                break;
            }
            target.write_all(&buffer[..count]).map_err(write)?;
            hash.update(&buffer[..count]);
            size += count as u64;
        }
        Ok((Digest::from_bytes(hash.finalize().into()), size))
    }

    /// Puts all results in their places. A signature of a manifest that is no longer the same is removed: it says no more
    /// than that something was changed. Two builds into one folder do this one after the other.
    pub fn publish(self) -> Result<(), StagingError> {
        let output = File::open(&self.output).map_err(|source| StagingError::Read {
            path: self.output.clone(),
            source,
        })?;
        // Held until the folder is closed; some network file systems have no locks.
        let _ = flock(&output, FlockOperation::LockExclusive);
        for name in &self.names {
            let (from, to) = (self.folder.path().join(name), self.output.join(name));
            let failed = |source| StagingError::Write {
                path: to.clone(),
                source,
            };
            if name.ends_with(".json") && fs::read(&from).ok() != fs::read(&to).ok() {
                let mut signature = to.as_os_str().to_owned();
                signature.push(SIGNATURE_SUFFIX);
                match fs::remove_file(&signature) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(failed(error));
                    }
                    _ => {}
                }
            }
            fs::rename(&from, &to).map_err(failed)?;
        }
        Ok(())
    }
}

impl Made {
    /// Makes a folder, and those above it.
    fn folder(path: &Path) -> io::Result<Self> {
        let missing: Vec<&Path> = path
            .ancestors()
            .take_while(|path| *path != Path::new("") && !path.exists())
            .collect();
        let mut made = Self::default();
        for folder in missing.into_iter().rev() {
            match fs::create_dir(folder) {
                Ok(()) => made.0.push(folder.to_owned()),
                Err(_) if folder.is_dir() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(made)
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for folder in self.0.iter().rev() {
            // Not when something is in it.
            let _ = fs::remove_dir(folder);
        }
    }
}

fn inside(output: &Path) -> io::Result<TempDir> {
    tempfile::Builder::new()
        .prefix(".fledge-")
        .tempdir_in(output)
}

fn missing(folder: &io::Result<TempDir>) -> bool {
    folder
        .as_ref()
        .is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_together_and_a_signature_of_other_bytes_goes() {
        let output = tempfile::tempdir().unwrap();
        let names = || {
            let mut names: Vec<_> = fs::read_dir(output.path())
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        };
        let stage = |text: &str| {
            let mut staging = Staging::new(output.path()).unwrap();
            staging.write("a.img", b"image").unwrap();
            staging.write("a.json", text.as_bytes()).unwrap();
            staging
        };
        drop(stage("1"));
        assert!(names().is_empty());
        stage("1").publish().unwrap();
        fs::write(output.path().join("a.json.minisig"), "signature").unwrap();
        stage("1").publish().unwrap();
        assert_eq!(names(), ["a.img", "a.json", "a.json.minisig"]);
        stage("2").publish().unwrap();
        assert_eq!(names(), ["a.img", "a.json"]);
    }

    #[test]
    fn folders_that_were_made_for_nothing_go() {
        let root = tempfile::tempdir().unwrap();
        let output = root.path().join("a/b/c");
        fs::create_dir(root.path().join("a")).unwrap();
        drop(Staging::new(&output).unwrap());
        assert!(!root.path().join("a/b").exists() && root.path().join("a").exists());

        let first = Staging::new(&output).unwrap();
        let mut second = Staging::new(&output).unwrap();
        drop(first);
        second.write("a.img", b"image").unwrap();
        second.publish().unwrap();
        drop(Staging::new(&output).unwrap());
        assert_eq!(fs::read_dir(&output).unwrap().count(), 1);

        fs::write(root.path().join("file"), "").unwrap();
        Staging::new(&root.path().join("file/a")).unwrap_err();
        Staging::new(&root.path().join("file")).unwrap_err();
    }

    #[test]
    fn results_of_two_builds_are_put_one_after_the_other() {
        let output = tempfile::tempdir().unwrap();
        let mut staging = Staging::new(output.path()).unwrap();
        staging.write("a.img", b"image").unwrap();
        let other = File::open(output.path()).unwrap();
        flock(&other, FlockOperation::LockExclusive).unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        let publishing = std::thread::spawn(move || {
            staging.publish().unwrap();
            tell.send(()).unwrap();
        });
        let early = told.recv_timeout(std::time::Duration::from_millis(100));
        assert!(early.is_err() && !output.path().join("a.img").exists());
        drop(other);
        publishing.join().unwrap();
        assert!(output.path().join("a.img").exists());
    }
}
