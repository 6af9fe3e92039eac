//! Results on their way: all of them are put in their places together, or none is.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

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
}

impl Staging {
    /// Makes the output folder when it is missing.
    pub fn new(output: &Path) -> Result<Self, StagingError> {
        let failed = |source| StagingError::Write {
            path: output.to_owned(),
            source,
        };
        fs::create_dir_all(output).map_err(failed)?;
        let folder = tempfile::Builder::new()
            .prefix(".fledge-")
            .tempdir_in(output)
            .map_err(failed)?;
        Ok(Self {
            output: output.to_owned(),
            folder,
            names: Vec::new(),
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
    /// than that something was changed.
    pub fn publish(self) -> Result<(), StagingError> {
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
}
