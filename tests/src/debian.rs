//! An OCI image of a whole Debian: systemd is its init, and the real cloud-init is in it. It is made here, of Debian's packages.
//!
//! Making it takes some minutes, so it is kept in a cache folder.

use std::{env, fs, path::PathBuf};

use anyhow::{Context, Result};

use crate::nginx::run;

/// The image's tag in its layout.
pub const TAG: &str = "12";
/// To be raised when [`IMAGE`] or the packages change.
const EDITION: &str = "1";

/// What a cloud's image does too: no machine id yet, no word of other data sources.
const IMAGE: &str = r#"
set -e
mkdir -p two/etc/cloud/cloud.cfg.d
: > two/etc/machine-id
echo 'datasource_list: [ NoCloud, None ]' > two/etc/cloud/cloud.cfg.d/90_sources.cfg
tar --sort=name --mtime=@1700000000 --numeric-owner -C two -cf two.tar .
umoci init --layout image
umoci new --image image:12
umoci raw add-layer --image image:12 root.tar
umoci raw add-layer --image image:12 two.tar
umoci gc --layout image
"#;

/// The folder of the image's layout.
///
/// # Errors
/// Debian's packages cannot be fetched, or a tool is missing.
pub fn image() -> Result<PathBuf> {
    let cache = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))
        .context("neither XDG_CACHE_HOME nor HOME is set")?
        .join("volant/debian");
    fs::create_dir_all(&cache).with_context(|| format!("cannot make {}", cache.display()))?;
    // Tests run side by side; the second waits for the first.
    let lock = fs::File::create(cache.join("lock")).context("cannot make the lock")?;
    lock.lock().context("cannot lock")?;
    let kept = cache.join(EDITION);
    if !kept.exists() {
        let new = tempfile::tempdir_in(&cache).context("cannot make a folder")?;
        eprintln!("making an image of Debian with mmdebstrap (some minutes, once)");
        run(
            new.path(),
            "mmdebstrap --quiet --variant=minbase --include=systemd-sysv,dbus,udev,cloud-init,netbase,procps \
             --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
             --dpkgopt='path-exclude=/usr/share/locale/*' bookworm root.tar",
        )?;
        run(new.path(), IMAGE)?;
        fs::rename(new.path().join("image"), &kept).context("cannot keep the image")?;
    }
    Ok(kept)
}
