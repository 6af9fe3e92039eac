//! One disk: a sparse file with an ext4 in it.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use volant_spec::Name;

use super::DiskError;

/// Less has no room for a journal.
pub const SMALLEST_MB: u32 = 16;
/// 16 TiB: the largest file of the host's usual file systems.
pub const LARGEST_MB: u32 = 16 << 20;

/// The longest label of an ext4.
const LABEL: usize = 16;
/// How much of what mke2fs prints makes a message.
const WORDS: usize = 400;

/// The disk that is asked for.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    pub vm: &'a Name,
    pub disk: &'a str,
    pub size_mb: u32,
}

impl Wanted<'_> {
    fn bytes(&self) -> u64 {
        u64::from(self.size_mb) << 20
    }

    fn failed(&self, act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DiskError {
        let (vm, disk) = (self.vm.clone(), self.disk.to_owned());
        let dir = path.parent().unwrap_or(path).to_owned();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                DiskError::NoSpace { vm, disk, dir }
            }
            _ => DiskError::File {
                act,
                vm,
                disk,
                source,
            },
        }
    }
}

pub(super) fn path(folder: &Path, disk: &str) -> PathBuf {
    folder.join(format!("{disk}.img"))
}

/// Opens the disk in `folder`; makes it first when it is not there, grows it when it is smaller than wanted.
pub(super) fn open(folder: &Path, mke2fs: &Path, wanted: &Wanted) -> Result<File, DiskError> {
    if !(SMALLEST_MB..=LARGEST_MB).contains(&wanted.size_mb) {
        return Err(DiskError::Size {
            vm: wanted.vm.clone(),
            disk: wanted.disk.to_owned(),
            wanted: wanted.size_mb,
        });
    }
    let path = path(folder, wanted.disk);
    let open = || OpenOptions::new().read(true).write(true).open(&path);
    let file = match open() {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            make(folder, &path, mke2fs, wanted)?;
            open().map_err(wanted.failed("open", &path))?
        }
        Err(error) => return Err(wanted.failed("open", &path)(error)),
    };
    let meta = file.metadata().map_err(wanted.failed("look at", &path))?;
    if meta.len() > wanted.bytes() {
        return Err(DiskError::Shrinks {
            vm: wanted.vm.clone(),
            disk: wanted.disk.to_owned(),
            has: meta.len() >> 20,
            wanted: wanted.size_mb,
        });
    }
    if meta.len() < wanted.bytes() {
        // The guest grows the file system to it.
        let grown = file.set_len(wanted.bytes()).and_then(|()| file.sync_all());
        grown.map_err(wanted.failed("grow", &path))?;
    }
    Ok(file)
}

/// Under another name until all of it is on the host's disk: what has its name is whole.
fn make(folder: &Path, path: &Path, mke2fs: &Path, wanted: &Wanted) -> Result<(), DiskError> {
    let failed = |act| wanted.failed(act, path);
    let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(failed("make the folder of"))?;
    let new = path.with_extension("img.new");
    let blank = || {
        let file = File::create(&new)?;
        // The VMM has another user, and opens by the descriptor that it is given; nobody else comes through the folder.
        file.set_permissions(Permissions::from_mode(0o666))?;
        file.set_len(0)?;
        file.set_len(wanted.bytes())?;
        Ok(file)
    };
    let file = blank().map_err(failed("make"))?;
    format(&new, mke2fs, wanted)?;
    let keep = || {
        file.sync_all()?;
        fs::rename(&new, path)?;
        File::open(folder)?.sync_all()
    };
    keep().map_err(failed("keep"))
}

/// Zeros need not be written to what is new: that leaves it sparse, and nothing for the guest to do later.
fn format(file: &Path, mke2fs: &Path, wanted: &Wanted) -> Result<(), DiskError> {
    let label: String = wanted.disk.chars().take(LABEL).collect();
    let mut command = Command::new(mke2fs);
    command
        .args(["-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0"])
        .args(["-E", "nodiscard,assume_storage_prezeroed=1,root_owner=0:0"])
        .args(["-L", &label])
        .arg(file)
        .env_clear()
        .env("LC_ALL", "C")
        .stdin(Stdio::null());
    volant_service::die_with_parent(&mut command);
    let output = command.output();
    let output = output.map_err(wanted.failed("run mke2fs of e2fsprogs for", file))?;
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    if words.contains("No space left") {
        return Err(wanted.failed("format", file)(
            io::ErrorKind::StorageFull.into(),
        ));
    }
    let words = words.split_whitespace().collect::<Vec<_>>().join(" ");
    Err(DiskError::Format {
        vm: wanted.vm.clone(),
        disk: wanted.disk.to_owned(),
        words: format!(
            "{} ({})",
            words.chars().take(WORDS).collect::<String>(),
            output.status
        ),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    const MKE2FS: &str = "/usr/sbin/mke2fs";

    fn wanted(vm: &Name, size_mb: u32) -> Wanted<'_> {
        Wanted {
            vm,
            disk: "a-name-of-more-than-sixteen",
            size_mb,
        }
    }

    fn told(program: &str, arguments: &[&str], file: &Path) -> String {
        let output = Command::new(program).args(arguments).arg(file).output();
        let output = output.unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let words = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{text}{words}");
        text
    }

    #[test]
    fn a_disk_is_made_once_whole_and_sparse_and_grows() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("vm");
        let vm = "web".parse().unwrap();
        fs::create_dir(&dir).unwrap();
        // What was cut off before.
        let image = path(&dir, wanted(&vm, 0).disk);
        fs::write(image.with_extension("img.new"), vec![0xff; 8 << 20]).unwrap();

        let file = open(&dir, Path::new(MKE2FS), &wanted(&vm, 256)).unwrap();
        let meta = file.metadata().unwrap();
        assert_eq!(meta.len(), 256 << 20);
        assert!(meta.blocks() * 512 < 4 << 20, "{} blocks", meta.blocks());
        assert_eq!(meta.mode() & 0o7777, 0o666);
        assert!(!image.with_extension("img.new").exists());
        told("e2fsck", &["-f", "-n"], &image);
        let shown = told("dumpe2fs", &["-h"], &image);
        assert!(shown.contains("a-name-of-more-t\n"), "{shown}");

        // Marked where the boot block is: a second making would remove it.
        file.write_all_at(b"kept", 0).unwrap();
        for size in [256, 300] {
            let file = open(&dir, Path::new("/nowhere"), &wanted(&vm, size)).unwrap();
            assert_eq!(file.metadata().unwrap().len(), u64::from(size) << 20);
            let mut mark = [0; 4];
            file.read_exact_at(&mut mark, 0).unwrap();
            assert_eq!(&mark, b"kept");
        }
        let error = open(&dir, Path::new(MKE2FS), &wanted(&vm, 299)).unwrap_err();
        assert!(
            error.to_string().contains("has 300 MiB and cannot shrink"),
            "{error}"
        );
    }

    #[test]
    fn a_size_that_cannot_be_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let vm = "web".parse().unwrap();
        for size in [0, SMALLEST_MB - 1, LARGEST_MB + 1, u32::MAX] {
            let error = open(folder.path(), Path::new(MKE2FS), &wanted(&vm, size)).unwrap_err();
            assert!(matches!(error, DiskError::Size { .. }), "{error}");
        }
        open(folder.path(), Path::new(MKE2FS), &wanted(&vm, SMALLEST_MB)).unwrap();
    }

    #[test]
    fn a_failed_making_leaves_no_disk_and_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let vm = "web".parse().unwrap();
        let failing = folder.path().join("mke2fs");
        for (script, expected) in [
            (
                "echo 'a\nb: No space left on device' >&2; exit 1",
                "no space left on the host",
            ),
            (
                "echo 'all\nwrong' >&2; exit 1",
                "all wrong (exit status: 1)",
            ),
        ] {
            fs::write(&failing, format!("#!/bin/sh\n{script}\n")).unwrap();
            fs::set_permissions(&failing, Permissions::from_mode(0o755)).unwrap();
            let error = open(folder.path(), &failing, &wanted(&vm, 16)).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
            assert!(!path(folder.path(), wanted(&vm, 16).disk).exists());
        }
    }
}
