//! Secrets as files that the workload's user alone can read, on a file system that is never written to a disk.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, chown, fchown},
    path::{Path, PathBuf},
};

use crate::{
    config::Secret,
    kernel::Kernel,
    mounts::{Mount, MountError, TAME},
    user::Identity,
};

const PLACE: &str = "run/secrets";
/// What a file takes beside its bytes, rounded up.
const FILE_COST: usize = 8192;

/// Why the workload does not get its secrets. None of their values is in it.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("cannot make the folder {}", .dir.display())]
    Folder { dir: PathBuf, source: io::Error },
    #[error(transparent)]
    Mount(#[from] MountError),
    #[error("cannot write {}", .path.display())]
    Write { path: PathBuf, source: io::Error },
}

/// Mounts `/run/secrets` below `root` and puts `secrets` in it, for `identity` (root where there is none). Does nothing
/// without secrets. What the image has in its place makes way: a link would lead them elsewhere.
///
/// # Errors
/// A secret is not there; the workload must not start.
pub fn place(
    kernel: &impl Kernel,
    root: &Path,
    secrets: &[Secret],
    identity: Option<&Identity>,
) -> Result<(), SecretError> {
    if secrets.is_empty() {
        return Ok(());
    }
    let dir = root.join(PLACE);
    for dir in [root.join("run"), dir.clone()] {
        make_folder(kernel, &dir).map_err(|source| SecretError::Folder { dir, source })?;
    }
    mount(kernel, &dir, secrets)?;
    let (uid, gid) = identity.map_or((0, 0), |who| (who.uid.as_raw(), who.gid.as_raw()));
    for secret in secrets {
        let path = dir.join(&secret.name);
        write(&path, &secret.value, uid, gid)
            .map_err(|source| SecretError::Write { path, source })?;
    }
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o500))
        .and_then(|()| chown(&dir, Some(uid), Some(gid)))
        .map_err(|source| SecretError::Folder { dir, source })
}

fn mount(kernel: &impl Kernel, dir: &Path, secrets: &[Secret]) -> Result<(), SecretError> {
    let bytes: usize = secrets
        .iter()
        .map(|secret| secret.value.len() + FILE_COST)
        .sum();
    let (target, data) = (dir.display().to_string(), format!("mode=0700,size={bytes}"));
    let flags = TAME.union(nix::mount::MsFlags::MS_NOEXEC);
    let wanted = Mount::new("tmpfs", &target, flags, &data);
    kernel.mount(&wanted).map_err(|errno| {
        SecretError::Mount(MountError::Mount {
            kind: "tmpfs".to_owned(),
            target: target.clone(),
            source: errno.into(),
        })
    })
}

/// `/run` may be a link to a folder, as some images have it; one that leads nowhere makes way, and so does anything else.
fn make_folder(kernel: &impl Kernel, dir: &Path) -> io::Result<()> {
    let is_secrets = dir.ends_with(PLACE);
    match fs::metadata(dir) {
        Ok(meta) if meta.is_dir() && !is_secrets => Ok(()),
        _ => kernel.make_mount_point(&dir.display().to_string()),
    }
}

fn write(path: &Path, value: &[u8], uid: u32, gid: u32) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o400)
        .open(path)?;
    file.write_all(value)?;
    fchown(&file, Some(uid), Some(gid))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, symlink};

    use nix::{
        errno::Errno,
        unistd::{Gid, Uid, geteuid},
    };

    use super::*;
    use crate::fake::FakeKernel;

    fn secrets() -> Vec<Secret> {
        let secret = |name: &str, value: &[u8]| Secret {
            name: name.to_owned(),
            value: value.to_owned(),
            env: None,
        };
        vec![secret("key", b"hunter2\0"), secret("empty", b"")]
    }

    #[test]
    fn they_are_the_user_s_alone() {
        if !geteuid().is_root() {
            eprintln!("skipped: only root can give files away");
            return;
        }
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join(PLACE);
        fs::create_dir_all(&dir).unwrap();
        let identity = Identity {
            uid: Uid::from_raw(4321),
            gid: Gid::from_raw(4322),
            groups: Vec::new(),
        };
        let kernel = FakeKernel::default();
        place(&kernel, root.path(), &secrets(), Some(&identity)).unwrap();
        assert_eq!(fs::read(dir.join("key")).unwrap(), b"hunter2\0");
        for (path, mode) in [(dir.clone(), 0o500), (dir.join("key"), 0o400)] {
            let meta = fs::metadata(path).unwrap();
            assert_eq!(meta.mode() & 0o7777, mode);
            assert_eq!((meta.uid(), meta.gid()), (4321, 4322));
        }
        let calls = kernel.calls();
        let target = dir.display();
        assert!(
            calls.contains(&format!(
                "mount tmpfs on {target} MS_NOSUID | MS_NODEV | MS_NOEXEC 'mode=0700,size=16392'"
            )),
            "{calls:?}"
        );
    }

    #[test]
    fn without_secrets_nothing_is_touched_and_without_the_mount_nothing_is_written() {
        let root = tempfile::tempdir().unwrap();
        let kernel = FakeKernel::default();
        place(&kernel, root.path(), &[], None).unwrap();
        assert_eq!(kernel.calls(), [""; 0]);
        fs::create_dir_all(root.path().join(PLACE)).unwrap();
        kernel.fail("mount tmpfs", Errno::EPERM);
        assert!(place(&kernel, root.path(), &secrets(), None).is_err());
        assert_eq!(fs::read_dir(root.path().join(PLACE)).unwrap().count(), 0);
    }

    #[test]
    fn a_link_in_their_place_makes_way_and_a_link_to_a_folder_stays_the_image_s_run() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        let linux = crate::kernel::Linux;
        fs::create_dir_all(path("var/run")).unwrap();
        fs::create_dir(path("etc")).unwrap();
        symlink("var/run", path("run")).unwrap();
        symlink(path("etc"), path("var/run/secrets")).unwrap();
        for name in ["run", PLACE] {
            make_folder(&linux, &path(name)).unwrap();
        }
        assert!(path("run").is_symlink());
        assert!(!path(PLACE).is_symlink() && path(PLACE).is_dir());
        fs::remove_file(path("run")).unwrap();
        symlink("nowhere", path("run")).unwrap();
        make_folder(&linux, &path("run")).unwrap();
        assert!(!path("run").is_symlink() && path("run").is_dir());
    }
}
