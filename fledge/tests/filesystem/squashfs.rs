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
