//! An OCI image of nginx that is made here, of Debian's packages: mmdebstrap gives the root, umoci the image.
//!
//! Making it takes a minute or two, so it is kept in a cache folder.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

/// The image's tag in its layout.
pub const TAG: &str = "1.22";
/// To be raised when [`SECOND_LAYER`] or the packages change.
const EDITION: &str = "1";

/// An entrypoint that says who it is, a page, and a whiteout.
const SECOND_LAYER: &str = r#"
set -e
mkdir -p two/etc/nginx two/var/www/html two/usr/local/bin two/run two/var/lib/nginx two/var/log/nginx two/usr/share/nginx
cat > two/etc/nginx/nginx.conf <<'END'
pid /run/nginx.pid;
error_log /dev/stderr info;
events {}
http {
    access_log /dev/stdout;
    server {
        listen 80;
        root /var/www/html;
    }
}
END
echo 'page of the image' > two/var/www/html/index.html
cat > two/usr/local/bin/entry <<'END'
#!/bin/sh
echo "workload runs as $(id -un):$(id -gn) in $(pwd), $GREETING"
exec "$@"
END
chmod 755 two/usr/local/bin/entry
touch two/run/nginx.pid two/usr/share/nginx/.wh.modules-available
chown -R 33:33 two/run/nginx.pid two/var/lib/nginx two/var/log/nginx
tar --sort=name --mtime=@1700000000 --numeric-owner -C two -cf two.tar .
umoci init --layout image
umoci new --image image:1.22
umoci raw add-layer --image image:1.22 root.tar
umoci raw add-layer --image image:1.22 two.tar
umoci config --image image:1.22 --config.entrypoint /usr/local/bin/entry \
    --config.cmd nginx --config.cmd -g --config.cmd 'daemon off;' --config.user www-data \
    --config.env GREETING=hello --config.env PATH=/usr/sbin:/usr/bin:/sbin:/bin --config.exposedports 80/tcp \
    --config.workingdir /var/www --config.stopsignal SIGQUIT --config.volume /var/log/nginx
umoci gc --layout image
"#;

/// The folder of the image's layout.
///
/// # Errors
/// Debian's packages cannot be fetched, or a tool is missing.
pub fn image() -> Result<PathBuf> {
    let cache = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cache")))
        .context("neither XDG_CACHE_HOME nor HOME is set")?
        .join("volant/nginx");
    fs::create_dir_all(&cache).with_context(|| format!("cannot make {}", cache.display()))?;
    // Tests run side by side; the second waits for the first.
    let lock = fs::File::create(cache.join("lock")).context("cannot make the lock")?;
    lock.lock().context("cannot lock")?;
    let kept = cache.join(EDITION);
    if !kept.exists() {
        let new = tempfile::tempdir_in(&cache).context("cannot make a folder")?;
        eprintln!("making an image of nginx with mmdebstrap (a minute or two, once)");
        run(
            new.path(),
            "mmdebstrap --quiet --variant=minbase --include=nginx-light \
             --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
             --dpkgopt='path-exclude=/usr/share/locale/*' bookworm root.tar",
        )?;
        run(new.path(), SECOND_LAYER)?;
        fs::rename(new.path().join("image"), &kept).context("cannot keep the image")?;
    }
    Ok(kept)
}

/// Runs a script in a folder; tells what it printed when it failed.
pub(crate) fn run(folder: &Path, script: &str) -> Result<()> {
    let output = Command::new("sh")
        .args(["-c", script])
        .current_dir(folder)
        .output()
        .context("cannot run sh")?;
    ensure!(
        output.status.success(),
        "failed: {script}\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
