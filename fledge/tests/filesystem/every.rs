//! What holds for all formats.

use std::{
    fs,
    io::{self, Read},
    path::Path,
    process::Command,
};

use fledge::{
    Cancel,
    filesystem::{self, DEFAULT_LEVEL, FilesystemError, Format},
};
use volant_layers::{Layer, Limits, merge};

use crate::sample::{Memory, build, linked, names, odd};

const ALL: [Format; 3] = [
    Format::Squashfs {
        level: DEFAULT_LEVEL,
    },
    Format::Erofs,
    Format::Ext4 { size: None },
];

/// Set for the process that [`the_same_tree_gives_the_same_bytes_anywhere`] starts for itself.
const INSIDE: &str = "FLEDGE_TEST_OUTPUT";

#[test]
fn the_same_tree_gives_the_same_bytes_anywhere() {
    if let Some(folder) = std::env::var_os(INSIDE) {
        build_all(Path::new(&folder));
        return;
    }
    let here = tempfile::tempdir().unwrap();
    build_all(here.path());
    let there = tempfile::tempdir().unwrap();
    let deep = there.path().join("another folder");
    fs::create_dir(&deep).unwrap();
    // As nobody, on one processor, with other settings.
    run_as_nobody(&deep, there.path());
    for (number, format) in ALL.iter().enumerate() {
        let name = number.to_string();
        let first = fs::read(here.path().join(&name)).unwrap();
        let second = fs::read(deep.join(&name)).unwrap();
        assert!(first == second, "{format:?} differs");
    }
}

fn build_all(folder: &Path) {
    let (layer, tree) = linked(&odd());
    for (number, format) in ALL.iter().enumerate() {
        build(format, &layer, &tree, &folder.join(number.to_string())).unwrap();
    }
}

fn run_as_nobody(folder: &Path, readable: &Path) {
    use std::os::unix::fs::{PermissionsExt, chown};

    // Nobody may be unable to reach the test itself.
    let program = readable.join("test");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    fs::set_permissions(readable, fs::Permissions::from_mode(0o755)).unwrap();
    chown(folder, Some(65534), Some(65534)).unwrap();
    crate::sample::run(
        Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
            .args(["taskset", "1", "sh", "-c", "umask 077; exec \"$0\" \"$@\""])
            .arg(program)
            .args([
                "--exact",
                "every::the_same_tree_gives_the_same_bytes_anywhere",
            ])
            .env(INSIDE, folder)
            .env("TZ", "Pacific/Kiritimati")
            .env("LC_ALL", "tr_TR.UTF-8")
            .env("SOURCE_DATE_EPOCH", "12345")
            .current_dir(folder),
    );
}

/// A layer that can be read whole but once.
struct Broken(Memory, std::sync::atomic::AtomicBool);

impl Layer for Broken {
    fn open(&self) -> io::Result<Box<dyn Read + '_>> {
        let bytes = &self.0.0;
        if self.1.swap(true, std::sync::atomic::Ordering::Relaxed) {
            return Ok(Box::new(&bytes[..bytes.len() / 2]));
        }
        Ok(Box::new(&bytes[..]))
    }

    fn name(&self) -> String {
        "broken".to_owned()
    }
}

#[test]
fn a_failure_leaves_nothing_and_what_was_there_stays() {
    for format in ALL {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("image");
        fs::write(&output, "old").unwrap();
        let (layer, _) = linked(&odd());
        let layer = Broken(layer, false.into());
        let tree = merge(&[&layer], &Limits::default()).unwrap();
        let failed = filesystem::build(
            &format,
            &tree,
            &[&layer],
            &output,
            &Cancel::default(),
            &mut |_| {},
        );
        assert!(
            matches!(failed, Err(FilesystemError::Tree(_))),
            "{failed:?}"
        );
        assert_eq!(fs::read(&output).unwrap(), b"old");
        assert_eq!(names(folder.path()), [output]);
    }
}

#[test]
fn a_build_that_is_cancelled_leaves_nothing() {
    for format in ALL {
        let folder = tempfile::tempdir().unwrap();
        let (layer, tree) = linked(&odd());
        let cancel = Cancel::default();
        let failed = filesystem::build(
            &format,
            &tree,
            &[&layer],
            &folder.path().join("image"),
            &cancel,
            &mut |_| cancel.cancel(),
        );
        assert!(
            matches!(failed, Err(FilesystemError::Cancelled(_))),
            "{failed:?}"
        );
        assert!(names(folder.path()).is_empty());
    }
}

#[test]
fn what_a_format_cannot_keep_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let mut tree = volant_layers::Tree::new();
    let mut inode = volant_layers::Inode::directory(0o755);
    inode.meta.mtime = -1;
    for name in [&b"system.nfs4_acl"[..], b"user.kept"] {
        inode.meta.xattrs.insert(name.into(), b"1"[..].into());
    }
    tree.insert(Path::new("/folder"), inode).unwrap();
    for format in ALL {
        let output = folder.path().join("image");
        let built = build(&format, &Memory(Vec::new()), &tree, &output).unwrap();
        assert_eq!(built.warnings.len(), 1, "{format:?}");
        assert!(built.warnings[0].starts_with("/folder: "));
        assert!(built.warnings[0].ends_with("system.nfs4_acl"));
    }
}

#[test]
fn an_output_that_cannot_be_is_named() {
    let (layer, tree) = linked(&odd());
    for format in ALL {
        let failed = build(&format, &layer, &tree, Path::new("/nowhere/image")).unwrap_err();
        assert_eq!(failed.to_string(), "cannot write /nowhere/image");
    }
}
