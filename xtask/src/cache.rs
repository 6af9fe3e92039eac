//! Where slow results are kept between clones. It may vanish at any time.

use std::{
    env,
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// The cache folder's part for `area`: below `$VOLANT_CACHE`, else `$XDG_CACHE_HOME/volant`, else `~/.cache/volant`.
///
/// # Errors
/// It cannot be made.
pub fn folder(area: &str) -> Result<PathBuf> {
    let base = env::var_os("VOLANT_CACHE")
        .map(PathBuf::from)
        .or_else(|| env::var_os("XDG_CACHE_HOME").map(|dir| Path::new(&dir).join("volant")))
        .or_else(|| env::home_dir().map(|home| home.join(".cache/volant")))
        .context("no cache folder: set VOLANT_CACHE or HOME")?;
    let folder = base.join(area);
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(folder)
}

/// A short name for what `parts` make: 16 hex digits.
pub fn key(parts: &[&[u8]]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hex::encode(&hash.finalize()[..8])
}

/// Holds off other xtasks that make the same thing, until the answer is dropped.
///
/// # Errors
/// The lock file cannot be made.
pub fn lock(folder: &Path) -> Result<File> {
    let path = folder.join("lock");
    let file = File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
    if file.try_lock().is_err() {
        crate::say::step(format!(
            "Waiting for another xtask that works in {}",
            folder.display()
        ));
        file.lock()
            .with_context(|| format!("cannot lock {}", path.display()))?;
    }
    Ok(file)
}
