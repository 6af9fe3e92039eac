//! The example plugin: `examples/caddy`, with the program from Debian's caddy package.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::{
    build::{target, workspace},
    cache, prerequisites, say,
};

/// Gathers the example in `target/examples/caddy`, ready for `fledge build`; gives that folder.
///
/// # Errors
/// The package cannot be downloaded or unpacked.
pub fn caddy() -> Result<PathBuf> {
    let kept = cache::folder("caddy")?;
    let _lock = cache::lock(&kept)?;
    let folder = target().join("examples/caddy");
    copy_to(&workspace().join("examples/caddy"), &folder)?;
    let program = kept.join("caddy");
    if !program.exists() {
        say::step("Downloading Debian's caddy package");
        download(&kept)?;
    }
    copy_file(&program, &folder.join("caddy"))?;
    Ok(folder)
}

/// Leaves the program in `kept`, whole or not at all.
fn download(kept: &Path) -> Result<()> {
    let new = kept.join("new");
    if new.exists() {
        fs::remove_dir_all(&new).context("cannot remove what an earlier download left")?;
    }
    fs::create_dir(&new).context("cannot make a folder for the download")?;
    let fetch = || {
        let mut command = Command::new("apt-get");
        command
            .args(["-q", "-o", "APT::Sandbox::User=root", "download", "caddy"])
            .current_dir(&new);
        say::quietly(&mut command)
    };
    if fetch().is_err() {
        // The machine's lists of packages may be absent, or older than the archive.
        prerequisites::refresh()?;
        fetch()?;
    }
    say::quietly(
        Command::new("sh")
            .args(["-c", "dpkg-deb -x caddy_*.deb ."])
            .current_dir(&new),
    )?;
    fs::rename(new.join("usr/bin/caddy"), kept.join("caddy")).context("cannot keep caddy")?;
    fs::remove_dir_all(&new).context("cannot remove the unpacked package")
}

/// Copies the files of a folder (no folders in it) into another.
///
/// # Errors
/// A file cannot be read or written.
pub fn copy_to(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("cannot make {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot list {}", from.display()))? {
        let path = entry
            .with_context(|| format!("cannot list {}", from.display()))?
            .path();
        let name = path.file_name().context("an example's file has no name")?;
        copy_file(&path, &to.join(name))?;
    }
    Ok(())
}

/// Whoever reads the target sees the old file or the new one, whole.
fn copy_file(from: &Path, to: &Path) -> Result<()> {
    let mut new = to.as_os_str().to_owned();
    new.push(".new");
    fs::copy(from, &new)
        .and_then(|_| fs::rename(&new, to))
        .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}
