//! Blobs of registries, kept by digest: downloaded once, resumed after a break, shared by runs at the same time.
//!
//! ```text
//! DIR/blobs/sha256/HEX   whole, its digest was right when it came here; layers look again while they are read
//! DIR/partial/HEX        a download under way, or broken off: locked by who writes it
//! ```

use std::{
    env,
    fs::TryLockError,
    io::{self, SeekFrom},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::{
    fs::File,
    io::{AsyncReadExt as _, AsyncSeekExt as _, AsyncWriteExt as _, BufWriter},
};
use volant_spec::Digest;

use crate::{client::Client, error::RegistryError, reference::Reference, verify::Hasher};

const PARALLEL: usize = 3;
const BUFFER: usize = 256 * 1024;
/// How often another run's download is looked at.
const LOOK: Duration = Duration::from_millis(200);

/// How far the transfer of a blob is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    pub digest: Digest,
    pub done: u64,
    pub total: u64,
}

/// Is told of each step. It must not block.
pub type ProgressFn = Arc<dyn Fn(Progress) + Send + Sync>;

/// A folder of blobs.
#[derive(Clone, Debug)]
pub struct Cache {
    dir: PathBuf,
}

/// Why a blob is not in the cache.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    #[error("there is no folder for the cache: set XDG_CACHE_HOME or HOME")]
    NoFolder,
    #[error("cannot use the cache at {}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error("the registry gave for blob {expected} something with the digest {got}")]
    Digest { expected: Digest, got: Digest },
}

impl Cache {
    /// In `dir`, which is made when it is needed.
    #[must_use]
    pub fn at(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// The calling user's: `volant/fledge` in `$XDG_CACHE_HOME`, which is `~/.cache` as a rule.
    ///
    /// # Errors
    /// The user has no home.
    pub fn from_env() -> Result<Self, CacheError> {
        let given = |name| env::var_os(name).filter(|value| !value.is_empty());
        given("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .or_else(|| Some(PathBuf::from(given("HOME")?).join(".cache")))
            .map(|dir| Self::at(dir.join("volant/fledge")))
            .ok_or(CacheError::NoFolder)
    }

    fn blob(&self, digest: &Digest) -> PathBuf {
        self.dir.join("blobs/sha256").join(digest.hex())
    }

    fn partial(&self, digest: &Digest) -> PathBuf {
        self.dir.join("partial").join(digest.hex())
    }

    /// Sees to it that all these blobs, with their sizes, are here, up to three at a time; answers with their files in
    /// the same order.
    ///
    /// # Errors
    /// The first that did not come.
    pub(crate) async fn fetch_all(
        &self,
        client: &Client,
        reference: &Reference,
        blobs: Vec<(Digest, u64)>,
        progress: Option<&ProgressFn>,
    ) -> Result<Vec<PathBuf>, CacheError> {
        let paths: Vec<PathBuf> = blobs.iter().map(|(digest, _)| self.blob(digest)).collect();
        let mut distinct = blobs;
        let mut seen = std::collections::HashSet::new();
        distinct.retain(|(digest, _)| seen.insert(*digest));
        let mut fetches = Vec::new();
        for (digest, size) in distinct {
            fetches.push(self.fetch(client, reference, digest, size, progress));
        }
        let mut done = stream::iter(fetches).buffer_unordered(PARALLEL);
        while done.try_next().await?.is_some() {}
        Ok(paths)
    }

    /// Sees to it that the blob is here, and answers with its file.
    pub(crate) async fn fetch(
        &self,
        client: &Client,
        reference: &Reference,
        digest: Digest,
        size: u64,
        progress: Option<&ProgressFn>,
    ) -> Result<PathBuf, CacheError> {
        let tell = |done| {
            if let Some(progress) = progress {
                progress(Progress {
                    digest,
                    done,
                    total: size,
                });
            }
        };
        let path = self.blob(&digest);
        let partial = self.partial(&digest);
        let lock = loop {
            if has_size(&path, size) {
                tell(size);
                return Ok(path);
            }
            for dir in [&path, &partial]
                .into_iter()
                .filter_map(|path| path.parent())
            {
                std::fs::create_dir_all(dir).map_err(|error| in_cache(dir, error))?;
            }
            match locked(&partial).map_err(|error| in_cache(&partial, error))? {
                Some(file) => break file,
                None => tokio::time::sleep(LOOK).await,
            }
        };
        // Another run may have finished between the look and the lock.
        if !has_size(&path, size) {
            let download = Download {
                client,
                reference,
                digest,
                size,
                path: &partial,
                tell: &tell,
            };
            let got = download.run(&lock).await?;
            if got != digest {
                let expected = digest;
                remove(&partial)?;
                return Err(CacheError::Digest { expected, got });
            }
            std::fs::rename(&partial, &path).map_err(|error| in_cache(&path, error))?;
        } else {
            remove(&partial)?;
        }
        tell(size);
        drop(lock);
        Ok(path)
    }
}

fn has_size(path: &Path, size: u64) -> bool {
    std::fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.len() == size)
}

fn remove(path: &Path) -> Result<(), CacheError> {
    std::fs::remove_file(path).map_err(|error| in_cache(path, error))
}

fn in_cache(path: &Path, source: io::Error) -> CacheError {
    CacheError::Io {
        path: path.to_owned(),
        source,
    }
}

/// The file, locked; `None` while another has the lock, or when the file was renamed before the lock was ours.
fn locked(path: &Path) -> io::Result<Option<std::fs::File>> {
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(error)) => return Err(error),
    }
    let ours = file.metadata()?;
    let same = std::fs::metadata(path)
        .is_ok_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino()));
    Ok(same.then_some(file))
}

/// One blob on its way into its partial file.
struct Download<'a> {
    client: &'a Client,
    reference: &'a Reference,
    digest: Digest,
    size: u64,
    path: &'a Path,
    tell: &'a (dyn Fn(u64) + Sync),
}

impl Download<'_> {
    /// Goes on where the file ends, until it is whole; answers with its digest.
    async fn run(&self, lock: &std::fs::File) -> Result<Digest, CacheError> {
        let io = |error| in_cache(self.path, error);
        let mut file = File::from_std(lock.try_clone().map_err(io)?);
        let had = file.metadata().await.map_err(io)?.len();
        let mut hasher = Hasher::default();
        let mut at = 0;
        if had <= self.size {
            (hasher, at) = prefix(&mut file).await.map_err(io)?;
        }
        if at > 0 && at == self.size && hasher.clone().finish() == self.digest {
            return Ok(self.digest);
        }
        if had > self.size || at == self.size {
            (hasher, at) = (Hasher::default(), 0);
            file.set_len(0).await.map_err(io)?;
            file.seek(SeekFrom::Start(0)).await.map_err(io)?;
        }
        let resumed = at > 0;
        let mut file = BufWriter::with_capacity(BUFFER, file);
        let limits = self.client.limits();
        let mut fruitless = 0;
        while at < self.size {
            let before = at;
            let done = self.receive(&mut file, &mut hasher, &mut at).await;
            file.flush().await.map_err(io)?;
            match done {
                Ok(()) => {}
                Err(CacheError::Registry(error)) if error.is_passing() => {
                    fruitless = if at > before { 0 } else { fruitless + 1 };
                    if fruitless >= limits.attempts {
                        return Err(error.into());
                    }
                    tokio::time::sleep(limits.backoff).await;
                }
                Err(error) => return Err(error),
            }
        }
        let got = hasher.finish();
        if got != self.digest && resumed {
            // What an earlier run left may be the culprit: once more, from nothing.
            lock.set_len(0).map_err(io)?;
            return Box::pin(self.run(lock)).await;
        }
        Ok(got)
    }

    async fn receive(
        &self,
        file: &mut BufWriter<File>,
        hasher: &mut Hasher,
        at: &mut u64,
    ) -> Result<(), CacheError> {
        let Self {
            reference,
            digest,
            size,
            ..
        } = self;
        let mut stream = self.client.blob(reference, digest, *size, *at).await?;
        while let Some(chunk) = stream.chunk().await? {
            file.write_all(&chunk)
                .await
                .map_err(|error| in_cache(self.path, error))?;
            hasher.update(&chunk);
            *at += chunk.len() as u64;
            (self.tell)(*at);
        }
        Ok(())
    }
}

/// Hashes what is in the file and leaves it at its end.
async fn prefix(file: &mut File) -> io::Result<(Hasher, u64)> {
    let mut hasher = Hasher::default();
    let mut count = 0;
    let mut buffer = vec![0; BUFFER];
    file.seek(SeekFrom::Start(0)).await?;
    loop {
        let got = file.read(&mut buffer).await?;
        if got == 0 {
            return Ok((hasher, count));
        }
        hasher.update(&buffer[..got]);
        count += got as u64;
    }
}
