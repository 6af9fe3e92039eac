//! The host's root: a tmpfs with an overlay over `/` in it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// A mounted root. Dropping it unmounts and removes everything.
#[derive(Debug)]
pub struct Root {
    base: PathBuf,
}

impl Root {
    /// Mounts a root at `base/root`: what is written lands in `base/upper`, over `layers` (topmost first) and `/`.
    pub fn mount(base: &Path, layers: &[PathBuf]) -> Result<Self> {
        fs::create_dir_all(base).with_context(|| format!("cannot make {}", base.display()))?;
        mount(
            Some("tmpfs"),
            base,
            Some("tmpfs"),
            MsFlags::empty(),
            Some("mode=0755"),
        )
        .with_context(|| format!("cannot mount a tmpfs at {}", base.display()))?;
        let root = Self {
            base: base.to_owned(),
        };
        for dir in ["upper", "work", "root"] {
            fs::create_dir(base.join(dir))
                .with_context(|| format!("cannot make the host's {dir} folder"))?;
        }
        let mut lower: Vec<String> = layers
            .iter()
            .map(|layer| layer.display().to_string())
            .collect();
        lower.push("/".to_owned());
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            lower.join(":"),
            root.upper().display(),
            base.join("work").display()
        );
        mount(
            Some("overlay"),
            &root.path(),
            Some("overlay"),
            MsFlags::empty(),
            Some(options.as_str()),
        )
        .with_context(|| format!("cannot mount an overlay ({options})"))?;
        Ok(root)
    }

    /// What the host sees as `/`.
    pub fn path(&self) -> PathBuf {
        self.base.join("root")
    }

    /// What the host wrote.
    pub fn upper(&self) -> PathBuf {
        self.base.join("upper")
    }

    pub fn base(&self) -> &Path {
        &self.base
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        for target in [self.path(), self.base.clone()] {
            if let Err(error) = umount2(&target, MntFlags::MNT_DETACH) {
                eprintln!("cannot unmount {}: {error}", target.display());
            }
        }
        if let Err(error) = fs::remove_dir(&self.base) {
            eprintln!("cannot remove {}: {error}", self.base.display());
        }
    }
}
