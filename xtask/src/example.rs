//! The example plugin: `examples/caddy`, with the program from Debian's caddy package.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::{
    build::{target, workspace},
    cache, say,
};

/// Gathers the example in `target/examples/caddy`, ready for `fledge build`; gives that folder.
///
/// # Errors
/// The package cannot be downloaded or unpacked.
pub fn caddy() -> Result<PathBuf> {
    let folder = target().join("examples/caddy");
    copy_to(&workspace().join("examples/caddy"), &folder)?;
    let program = folder.join("caddy");
    if !program.exists() {
        let kept = cache::folder("caddy")?;
        let _lock = cache::lock(&kept)?;
        let kept_program = kept.join("usr/bin/caddy");
        if !kept_program.exists() {
            say::step("Downloading Debian's caddy package");
            say::quietly(
                Command::new("apt-get")
                    .args(["-q", "-o", "APT::Sandbox::User=root", "download", "caddy"])
                    .current_dir(&kept),
            )?;
            say::quietly(
                Command::new("sh")
                    .args(["-c", "dpkg-deb -x caddy_*.deb ."])
                    .current_dir(&kept),
            )?;
        }
        fs::copy(&kept_program, &program).context("cannot copy caddy into the example")?;
    }
    Ok(folder)
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
        fs::copy(&path, to.join(name))
            .with_context(|| format!("cannot copy {}", path.display()))?;
    }
    Ok(())
}
