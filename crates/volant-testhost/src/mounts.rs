//! The host's root: a tmpfs with an overlay over `/` in it.
//!
//! Its owner holds a lock beside it. Roots whose owner was killed, and so could not remove them, are swept away by the
//! next one.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::stat::{Mode, SFlag, mknod},
};

/// A mounted root. Dropping it unmounts and removes everything.
#[derive(Debug)]
pub struct Root {
    base: PathBuf,
    _lock: File,
}

/// What the machine has of its user and maybe of Volant, and a new host has not.
const HIDDEN: &[&str] = &["etc/volant", "root", "var/lib/volant"];
const EXTENSION: &str = "lock";

impl Root {
    /// Mounts a root at `base/root`: what is written lands in `base/upper`, over `layers` (topmost first) and `/`.
    pub fn mount(base: &Path, layers: &[PathBuf]) -> Result<Self> {
        fs::create_dir_all(base).with_context(|| format!("cannot make {}", base.display()))?;
        let lock = base.with_extension(EXTENSION);
        let lock =
            File::create(&lock).with_context(|| format!("cannot make {}", lock.display()))?;
        lock.lock().context("cannot lock the host's folder")?;
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
            _lock: lock,
        };
        for dir in ["upper", "work", "root"] {
            fs::create_dir(base.join(dir))
                .with_context(|| format!("cannot make the host's {dir} folder"))?;
        }
        hide(&root.upper())?;
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
        for folder in HIDDEN.iter().map(|folder| root.path().join(folder)) {
            fs::create_dir(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
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

/// Puts what overlayfs takes for "removed" (a character device 0:0) in the place of each hidden folder.
fn hide(upper: &Path) -> Result<()> {
    for folder in HIDDEN.iter().map(|folder| upper.join(folder)) {
        let parent = folder.parent().unwrap_or(upper);
        fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        mknod(&folder, SFlag::S_IFCHR, Mode::empty(), 0)
            .with_context(|| format!("cannot hide {}", folder.display()))?;
    }
    Ok(())
}

/// Removes the roots in `folder` whose owners are gone, with what still runs in them.
pub fn sweep(folder: &Path) {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    for path in entries.map(|entry| entry.path()) {
        if path
            .extension()
            .is_none_or(|extension| extension != EXTENSION)
        {
            continue;
        }
        let is_free = File::open(&path).is_ok_and(|file| file.try_lock().is_ok());
        if is_free {
            let base = path.with_extension("");
            let running = format!("systemd-nspawn.* {}/root", base.display());
            Command::new("pkill")
                .args(["-KILL", "-f", &running])
                .status()
                .ok();
            remove(&base);
        }
    }
}

fn remove(base: &Path) {
    for target in [base.join("root"), base.to_owned()] {
        if let Err(error) = umount2(&target, MntFlags::MNT_DETACH) {
            eprintln!("cannot unmount {}: {error}", target.display());
        }
    }
    for removed in [
        fs::remove_dir(base),
        fs::remove_file(base.with_extension(EXTENSION)),
    ] {
        if let Err(error) = removed {
            eprintln!("cannot remove {}: {error}", base.display());
        }
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        remove(&self.base);
    }
}
