//! An image as `umoci unpack` leaves it, path by path. Needs root, umoci and GNU tar.

#![allow(clippy::unwrap_used, reason = "a test may fail loudly")]

mod common;

use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, MetadataExt},
    },
    path::Path,
    process::Command,
};

use common::{Archive, Seen, borrowed, describe, merged, quoted};
use rustix::fs::{lgetxattr, llistxattr};
use volant_layers::{Inode, Kind, Limits, Metadata, TarSink};

const CAPABILITY: &[u8] = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

fn run(command: &mut Command) {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?} is needed by this test: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn file(
    name: &str,
    mode: u32,
    owner: (u64, u64),
    time: u64,
    content: &str,
) -> (tar::Header, String) {
    let mut header = Archive::header(b'0', name.as_bytes(), content.len() as u64);
    header.set_mode(mode);
    header.set_uid(owner.0);
    header.set_gid(owner.1);
    header.set_mtime(time);
    (header, content.into())
}

trait With {
    fn with(self, file: (tar::Header, String)) -> Self;
}

impl With for Archive {
    fn with(self, (header, content): (tar::Header, String)) -> Self {
        self.raw(header, content.as_bytes())
    }
}

/// Sparse files and long names as GNU tar writes them, in each of its formats.
fn by_gnu_tar(folder: &Path) -> Vec<Archive> {
    let source = folder.join("source");
    fs::create_dir_all(source.join("long").join("n".repeat(200))).unwrap();
    fs::write(
        source
            .join("long")
            .join("n".repeat(200))
            .join("m".repeat(200)),
        "long",
    )
    .unwrap();
    [
        "gnu",
        "posix --sparse-version=0.0",
        "posix --sparse-version=0.1",
        "posix --sparse-version=1.0",
    ]
    .iter()
    .enumerate()
    .map(|(number, format)| {
        let name = format!("sparse{number}");
        let sparse = File::create(source.join(&name)).unwrap();
        for piece in 0..30 {
            sparse
                .write_all_at(name.as_bytes(), piece * 40_000 + 5000)
                .unwrap();
        }
        sparse.set_len(3_000_000).unwrap();
        let archive = folder.join(format!("{number}.tar"));
        let mut tar = Command::new("tar");
        tar.arg("-C")
            .arg(&source)
            .arg("--sparse")
            .arg("-cf")
            .arg(&archive);
        run(tar.args(format!("--format={format}").split(' ')).arg("."));
        Archive(fs::read(archive).unwrap())
    })
    .collect()
}

fn layers(folder: &Path) -> Vec<Archive> {
    let long = format!("{}/{}", "d".repeat(150), "f".repeat(180));
    let mut device = Archive::header(b'3', b"dev/zero", 0);
    device.set_device_major(1).unwrap();
    device.set_device_minor(5).unwrap();
    let mut disk = Archive::header(b'4', b"dev/disk", 0);
    disk.set_device_major(8).unwrap();
    disk.set_device_minor(300).unwrap();
    let mut sticky = Archive::header(b'5', b"tmp/", 0);
    sticky.set_mode(0o1777);
    let mut root = Archive::header(b'5', b"./", 0);
    root.set_mode(0o711);
    let mut layers = vec![
        Archive::new()
            .raw(root, b"")
            .dir("usr/")
            .dir("usr/bin/")
            .dir("usr/lib/")
            .symlink("lib", "usr/lib")
            .symlink("var-run", "/run")
            .dir("run/")
            .raw(sticky, b"")
            .with(file("usr/bin/su", 0o4755, (0, 0), 1_500_000_000, "su"))
            .with(file("usr/bin/wall", 0o2755, (0, 5), 1_500_000_001, "wall"))
            .pax(&[("SCHILY.xattr.security.capability", CAPABILITY)])
            .with(file("usr/bin/ping", 0o755, (0, 0), 1_500_000_002, "ping"))
            .pax(&[
                ("uid", b"3000000000"),
                ("gid", b"2097152"),
                ("mtime", b"1234567890.75"),
            ])
            .with(file("odd", 0o600, (0, 0), 0, "odd"))
            .dir("dev/")
            .raw(device, b"")
            .raw(disk, b"")
            .entry(b'6', "dev/pipe", "")
            .dir(&"d".repeat(99))
            .pax(&[("path", long.split('/').next().unwrap().as_bytes())])
            .dir("x")
            .pax(&[("path", long.as_bytes())])
            .with(file("x", 0o644, (0, 0), 5, "long"))
            .dir("opaque/")
            .with(file("opaque/below", 0o644, (0, 0), 5, "below"))
            .dir("opaque/kept/")
            .with(file("opaque/kept/below", 0o644, (0, 0), 5, "below"))
            .dir("removed/")
            .with(file("removed/file", 0o644, (0, 0), 5, ""))
            .with(file("removed-too", 0o644, (0, 0), 5, ""))
            .with(file("shared1", 0o640, (1, 2), 7, "shared"))
            .link("shared2", "shared1")
            .link("shared4", "/shared1")
            .dir("becomes-file/")
            .with(file("becomes-file/x", 0o644, (0, 0), 5, ""))
            .with(file("becomes-dir", 0o644, (0, 0), 5, "")),
        Archive::new()
            .with(file("opaque/kept/above", 0o644, (0, 0), 5, "above"))
            .with(file("opaque/.wh..wh..opq", 0o644, (0, 0), 0, ""))
            // umoci leaves today's time where it removed something.
            .dir("opaque/kept/")
            .with(file(".wh.removed", 0o644, (0, 0), 0, ""))
            .with(file(".wh.removed-too", 0o644, (0, 0), 0, ""))
            .with(file("lib/libc.so", 0o755, (0, 0), 9, "libc"))
            .with(file("var-run/pid", 0o644, (0, 0), 9, "1"))
            .with(file("becomes-file", 0o644, (0, 0), 5, "file"))
            .dir("becomes-dir/")
            .with(file("becomes-dir/x", 0o644, (0, 0), 5, "")),
        Archive::new()
            .link("shared3", "shared2")
            .with(file("shared1", 0o644, (0, 0), 8, "no longer shared"))
            .pax(&[("SCHILY.xattr.user.empty-line", b"\n")])
            .dir("usr/lib/")
            .pax(&[("SCHILY.xattr.trusted.x", b"\0\xff")])
            .with(file("lib/extra", 0o644, (0, 0), 9, "")),
    ];
    // umoci does not know GNU's own sparse files.
    layers.extend(by_gnu_tar(folder).into_iter().skip(1));
    layers
}

/// What is at a path of the disk, as an inode without content.
fn on_disk(path: &Path) -> Inode {
    let found = fs::symlink_metadata(path).unwrap();
    let (major, minor) = (
        rustix::fs::major(found.rdev()),
        rustix::fs::minor(found.rdev()),
    );
    let kind = match found.mode() & 0o170_000 {
        0o040_000 => Kind::Directory,
        0o100_000 => Kind::File(volant_layers::Content::Bytes(Vec::new())),
        0o120_000 => Kind::Symlink(fs::read_link(path).unwrap().as_os_str().as_bytes().into()),
        0o020_000 => Kind::CharDevice { major, minor },
        0o060_000 => Kind::BlockDevice { major, minor },
        0o010_000 => Kind::Fifo,
        other => panic!("{} has type {other:o}", path.display()),
    };
    let mut buffer = vec![0; 65536];
    let size = llistxattr(path, &mut buffer[..]).unwrap();
    let names: Vec<Vec<u8>> = buffer[..size]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(<[u8]>::to_vec)
        .collect();
    let xattrs = names
        .into_iter()
        .map(|name| {
            let size = lgetxattr(path, &*name, &mut buffer[..]).unwrap();
            (name.into(), buffer[..size].into())
        })
        .collect();
    let meta = Metadata {
        mode: found.mode() & 0o7777,
        uid: found.uid(),
        gid: found.gid(),
        mtime: found.mtime(),
        xattrs,
    };
    Inode { meta, kind }
}

/// All paths below a folder, with what is there; of several names of one inode the first stands for the others.
fn unpacked(root: &Path) -> BTreeMap<String, String> {
    let mut paths = vec![root.to_owned()];
    let mut at = 0;
    while at < paths.len() {
        if fs::symlink_metadata(&paths[at]).unwrap().is_dir() {
            paths.extend(
                fs::read_dir(&paths[at])
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        }
        at += 1;
    }
    let mut named: Vec<_> = paths
        .iter()
        .map(|path| {
            (
                path.strip_prefix(root)
                    .unwrap()
                    .to_str()
                    .unwrap()
                    .to_owned(),
                path,
            )
        })
        .collect();
    named.sort();
    let (mut first, mut found) = (BTreeMap::new(), BTreeMap::new());
    for (name, path) in named {
        let disk = fs::symlink_metadata(path).unwrap();
        let inode = on_disk(path);
        let mut text = describe(&inode);
        if !inode.is_directory() && disk.nlink() > 1 {
            let earlier = first.entry(disk.ino()).or_insert_with(|| name.clone());
            if *earlier != name {
                text = format!("= {earlier}");
            }
        }
        if matches!(inode.kind, Kind::File(_)) && !text.starts_with('=') {
            text += &quoted(&fs::read(path).unwrap());
        }
        found.insert(name, text);
    }
    found
}

#[test]
fn layers_are_merged_as_umoci_unpacks_them() {
    assert!(
        fs::metadata("/proc/self").unwrap().uid() == 0,
        "this test compares owners and devices: run it as root"
    );
    let folder = tempfile::tempdir().unwrap();
    let layers = layers(folder.path());
    let umoci = |arguments: &[&str]| {
        run(Command::new("umoci")
            .args(arguments)
            .current_dir(folder.path()));
    };
    umoci(&["init", "--layout", "image"]);
    umoci(&["new", "--image", "image:test"]);
    for layer in &layers {
        fs::write(folder.path().join("layer.tar"), &layer.0).unwrap();
        umoci(&["raw", "add-layer", "--image", "image:test", "layer.tar"]);
    }
    umoci(&["raw", "unpack", "--image", "image:test", "rootfs"]);

    let expected = unpacked(&folder.path().join("rootfs"));
    let tree = merged(&layers).unwrap();
    let found = Seen::emitted(&tree, &borrowed(&layers)).paths;
    assert!(expected.len() > 30, "{expected:#?}");
    assert_eq!(
        found.keys().collect::<Vec<_>>(),
        expected.keys().collect::<Vec<_>>()
    );
    for (path, expected) in &expected {
        let found = &found[path];
        assert_eq!(found, expected, "/{path}");
    }
}

#[test]
fn what_is_written_is_unpacked_by_gnu_tar_as_it_was() {
    assert!(
        fs::metadata("/proc/self").unwrap().uid() == 0,
        "this test compares owners and devices: run it as root"
    );
    let folder = tempfile::tempdir().unwrap();
    let layers = layers(folder.path());
    let layers = borrowed(&layers);
    let tree = volant_layers::merge(&layers, &Limits::default()).unwrap();
    let archive = folder.path().join("root.tar");
    let mut sink = TarSink::new(File::create(&archive).unwrap());
    tree.emit(&layers, &mut sink, &mut |_| ()).unwrap();
    sink.finish().unwrap();

    let root = folder.path().join("root");
    fs::create_dir(&root).unwrap();
    let mut tar = Command::new("tar");
    tar.args([
        "--xattrs",
        "--xattrs-include=*",
        "--numeric-owner",
        "--delay-directory-restore",
        "-xpf",
    ]);
    run(tar.arg(&archive).arg("-C").arg(&root));
    assert_eq!(Seen::emitted(&tree, &layers).paths, unpacked(&root));
}

#[test]
fn sparse_files_of_gnu_tar_are_what_they_were() {
    let folder = tempfile::tempdir().unwrap();
    let layers = by_gnu_tar(folder.path());
    let tree = merged(&layers).unwrap();
    let contents = Seen::emitted(&tree, &borrowed(&layers)).contents;
    for name in ["sparse0", "sparse1", "sparse2", "sparse3"] {
        let expected = fs::read(folder.path().join("source").join(name)).unwrap();
        assert!(contents[name.as_bytes()] == expected, "{name}");
    }
}
