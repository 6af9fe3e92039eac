//! Ext4, judged by `e2fsck` and read by `debugfs`.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use fledge::filesystem::{FilesystemError, Format};
use volant_layers::{Content, Inode, Kind, Tree};

use crate::{
    sample::{build, expected, linked, noise, odd, run},
    thing::{Things, What, assert_same, of_folder},
};

const EXT4: Format = Format::Ext4 { size: None };

fn check(image: &Path) {
    run(Command::new("e2fsck").args(["-f", "-n"]).arg(image));
}

fn debugfs(image: &Path, request: &str) -> String {
    let output = run(Command::new("debugfs").args(["-R", request]).arg(image));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What `debugfs` takes out: files, folders and links with their owners, modes and times.
fn unpack(image: &Path, folder: &Path) -> Things {
    fs::create_dir(folder).unwrap();
    debugfs(image, &format!("rdump / {}", folder.display()));
    of_folder(folder)
}

/// The word after a title in what `stat` of debugfs says.
fn field(stat: &str, title: &str) -> String {
    let at = stat
        .find(title)
        .unwrap_or_else(|| panic!("no {title} in {stat}"));
    let rest = stat[at + title.len()..].trim_start();
    rest.split_whitespace().next().unwrap().to_owned()
}

#[test]
fn everything_in_a_tree_is_in_its_ext4() {
    let folder = tempfile::tempdir().unwrap();
    let (layer, tree) = linked(&odd());
    let image = folder.path().join("image.ext4");
    let built = build(&EXT4, &layer, &tree, &image).unwrap();
    assert_eq!(built.warnings, Vec::<String>::new());
    check(&image);
    let whole = expected();
    let mut inodes = BTreeMap::new();
    for (path, thing) in &whole {
        // Its command line has no way to write these names.
        if path.iter().any(|byte| b"\n\"\\".contains(byte)) {
            continue;
        }
        let path = String::from_utf8(path.clone()).unwrap();
        if path.starts_with("many/") && !path.starts_with("many/1-") {
            continue;
        }
        let stat = debugfs(&image, &format!("stat \"/{path}\""));
        let kind = match thing.kind {
            What::Directory => "directory",
            What::File(_) => "regular",
            What::Symlink(_) => "symlink",
            What::Char(..) => "character",
            What::Block(..) => "block",
            What::Fifo => "FIFO",
        };
        assert_eq!(field(&stat, "Type:"), kind, "{path}");
        let mode = u32::from_str_radix(&field(&stat, "Mode:"), 8);
        assert_eq!(mode, Ok(thing.mode), "{path}");
        // It shows them with a sign.
        let owner = ["User:", "Group:"].map(|title| field(&stat, title));
        let signed = [thing.uid, thing.gid].map(|id| (id as i32).to_string());
        assert_eq!(owner, signed, "{path}");
        assert!(
            stat.contains(&format!("mtime: 0x{:08x}:", thing.mtime)),
            "{path}: {stat}"
        );
        if let What::Char(major, minor) | What::Block(major, minor) = thing.kind {
            let number = format!("Device major/minor number: {major:02}:{minor:02} ");
            assert!(stat.contains(&number), "{path}: {stat}");
        }
        if thing.kind != What::Directory {
            assert_eq!(field(&stat, "Links:"), thing.links.to_string(), "{path}");
            let first = inodes
                .entry(thing.first.clone())
                .or_insert_with(|| field(&stat, "Inode:"));
            assert_eq!(field(&stat, "Inode:"), *first, "{path}");
        }
        for (name, value) in &thing.xattrs {
            let name = String::from_utf8_lossy(name);
            let out = folder.path().join("value");
            debugfs(
                &image,
                &format!("ea_get -f {} \"/{path}\" {name}", out.display()),
            );
            assert_eq!(fs::read(&out).unwrap(), *value, "{path} {name}");
        }
        let listed = debugfs(&image, &format!("ea_list \"/{path}\""));
        let listed = listed
            .lines()
            .filter(|line| line.contains(" = ") || line.contains(" ("))
            .count();
        assert_eq!(listed, thing.xattrs.len(), "{path}");
    }

    // It takes out no devices, attributes and setuid, only the targets of links, and makes files of hard links.
    let mut found = unpack(&image, &folder.path().join("root"));
    let mut plain = expected();
    assert!(found.remove(&b"lost+found"[..]).is_some());
    plain.retain(|_, thing| {
        matches!(
            thing.kind,
            What::Directory | What::File(_) | What::Symlink(_)
        )
    });
    for (path, thing) in plain.iter_mut().chain(&mut found) {
        thing.xattrs.clear();
        thing.first.clone_from(path);
        thing.links = 1;
        thing.mode &= 0o777;
        if matches!(thing.kind, What::Directory) {
            // The time of a folder is that of what was taken out into it last.
            thing.mtime = 0;
        }
        if matches!(thing.kind, What::Symlink(_)) {
            (thing.uid, thing.mtime) = (0, 0);
        }
        if path.is_empty() {
            (thing.mode, thing.uid, thing.gid) = (0, 0, 0);
        }
    }
    assert_same(&found, &plain);
}

#[test]
fn an_image_of_a_given_size_has_it_and_room_to_write() {
    let folder = tempfile::tempdir().unwrap();
    let (layer, tree) = linked(&odd());
    let image = folder.path().join("image.ext4");
    for mebibytes in [24, 300] {
        let size = Some(mebibytes << 20);
        build(&Format::Ext4 { size }, &layer, &tree, &image).unwrap();
        assert_eq!(fs::metadata(&image).unwrap().len(), mebibytes << 20);
        check(&image);
        // A file more, and a journal, as for a disk that is to be kept.
        let written = folder.path().join("written");
        fs::write(&written, noise(2_000_000)).unwrap();
        run(Command::new("debugfs")
            .args(["-w", "-R", &format!("write {} more", written.display())])
            .arg(&image));
        run(Command::new("tune2fs").arg("-j").arg(&image));
        check(&image);
    }
}

#[test]
fn an_image_that_is_too_small_is_refused_with_the_size_that_would_do() {
    let folder = tempfile::tempdir().unwrap();
    let (layer, tree) = linked(&odd());
    let image = folder.path().join("image.ext4");
    for size in [0, 1, 1 << 20, 2 << 20] {
        let format = Format::Ext4 { size: Some(size) };
        let failed = build(&format, &layer, &tree, &image).unwrap_err();
        assert!(crate::sample::names(folder.path()).is_empty());
        let FilesystemError::TooSmall { needed } = failed else {
            panic!("{failed}");
        };
        let size = Some(needed << 20);
        build(&Format::Ext4 { size }, &layer, &tree, &image).unwrap();
        check(&image);
        fs::remove_file(&image).unwrap();
    }
}

#[test]
fn a_tree_may_have_a_lost_and_found_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image.ext4");
    let mut tree = odd();
    let mut inode = Inode::directory(0o711);
    inode.meta.uid = 7;
    tree.insert(Path::new("/lost+found"), inode).unwrap();
    build(&EXT4, &crate::sample::Memory(Vec::new()), &tree, &image).unwrap();
    check(&image);
    let stat = debugfs(&image, "stat /lost+found");
    assert_eq!(field(&stat, "Inode:"), "11");
    assert_eq!(field(&stat, "User:"), "7");

    let mut tree = Tree::new();
    tree.insert(Path::new("/lost+found"), Inode::symlink(b"x"))
        .unwrap();
    let failed = build(&EXT4, &crate::sample::Memory(Vec::new()), &tree, &image).unwrap_err();
    assert!(matches!(failed, FilesystemError::Unfit { path, .. } if path == "lost+found"));
}

#[test]
fn a_file_over_several_groups_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    // Nothing but its two ends.
    let source = folder.path().join("large");
    let size = 150_000_000;
    let file = fs::File::create(&source).unwrap();
    file.set_len(size).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"begin", 0).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"end", size - 3).unwrap();
    let mut tree = Tree::new();
    let content = Content::File {
        path: source.clone(),
        size,
    };
    tree.insert(Path::new("/large"), Inode::file(0o600, content))
        .unwrap();
    let small = Kind::File(Content::Bytes(b"after".to_vec()));
    tree.insert(Path::new("/z"), Inode::new(0o600, small))
        .unwrap();
    let image = folder.path().join("image.ext4");
    build(&EXT4, &crate::sample::Memory(Vec::new()), &tree, &image).unwrap();
    check(&image);
    let copy = folder.path().join("copy");
    debugfs(&image, &format!("dump /large {}", copy.display()));
    run(Command::new("cmp").arg(&source).arg(&copy));
}
