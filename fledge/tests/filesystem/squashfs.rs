//! Squashfs, read by `unsquashfs`.

use std::{fs, path::Path, process::Command};

use fledge::filesystem::{DEFAULT_LEVEL, FilesystemError, Format};

use crate::{
    sample::{build, linked, odd, run},
    thing::{Things, assert_same, of_folder},
};

const SQUASHFS: Format = Format::Squashfs {
    level: DEFAULT_LEVEL,
};

fn unpack(image: &Path, folder: &Path) -> Things {
    // As root: owners, devices and all attributes come out.
    run(Command::new("unsquashfs")
        .args(["-no-progress", "-quiet", "-dest"])
        .arg(folder)
        .arg(image));
    of_folder(folder)
}

#[test]
fn everything_in_a_tree_is_in_its_squashfs() {
    let folder = tempfile::tempdir().unwrap();
    let expected = crate::sample::expected();
    let (layer, tree) = linked(&odd());
    let image = folder.path().join("image.squashfs");
    let built = build(&SQUASHFS, &layer, &tree, &image).unwrap();
    assert_eq!(built.warnings, Vec::<String>::new());
    assert_same(&unpack(&image, &folder.path().join("root")), &expected);
}

#[test]
fn the_compression_level_is_in_the_image_and_a_wrong_one_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (layer, tree) = linked(&odd());
    let image = folder.path().join("image.squashfs");
    build(&Format::Squashfs { level: 3 }, &layer, &tree, &image).unwrap();
    let told = run(Command::new("unsquashfs").arg("-stat").arg(&image));
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(told.contains("Compression zstd"), "{told}");
    assert!(told.contains("compression-level 3"), "{told}");
    fs::remove_file(&image).unwrap();
    for level in [0, 23] {
        let failed = build(&Format::Squashfs { level }, &layer, &tree, &image).unwrap_err();
        assert!(matches!(failed, FilesystemError::Level(found) if found == level));
    }
    assert!(crate::sample::names(folder.path()).is_empty());
}

/// Set for the process that a test starts for itself, in which there is no other tool than the given one.
const ALONE: &str = "FLEDGE_TEST_ALONE";

/// What a build says where PATH is that folder alone.
fn failure_with_path(test: &str, path: &Path) -> String {
    let output = run(Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", &format!("squashfs::{test}")])
        .env(ALONE, "1")
        .env("PATH", path));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// In that process: builds, prints the error, and whether something was left.
fn fail_alone() -> bool {
    if std::env::var_os(ALONE).is_none() {
        return false;
    }
    let folder = tempfile::tempdir().unwrap();
    let (layer, tree) = linked(&odd());
    let failed = build(&SQUASHFS, &layer, &tree, &folder.path().join("image")).unwrap_err();
    assert!(crate::sample::names(folder.path()).is_empty());
    eprintln!("{failed}");
    true
}

#[test]
fn a_tool_that_is_missing_is_named_with_its_package() {
    if fail_alone() {
        return;
    }
    let empty = tempfile::tempdir().unwrap();
    let said = failure_with_path(
        "a_tool_that_is_missing_is_named_with_its_package",
        empty.path(),
    );
    assert!(said.contains("tar2sqfs is not installed"), "{said}");
    assert!(
        said.contains("install the package squashfs-tools-ng"),
        "{said}"
    );
}

#[test]
fn what_the_tool_says_when_it_fails_is_told() {
    use std::os::unix::fs::PermissionsExt;

    if fail_alone() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let tool = folder.path().join("tar2sqfs");
    fs::write(&tool, "#!/bin/sh\necho 'no room\\033' >&2\nexit 3\n").unwrap();
    fs::set_permissions(&tool, fs::Permissions::from_mode(0o755)).unwrap();
    let said = failure_with_path("what_the_tool_says_when_it_fails_is_told", folder.path());
    let told = "tar2sqfs failed (exit status: 3): no room\\u{1b}";
    assert!(said.contains(told), "{said}");
}
