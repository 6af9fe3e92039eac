//! A tree with all odd things, and what tests do with an image of it.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
    process::{Command, Output},
};

use fledge::{
    Cancel,
    filesystem::{self, Built, FilesystemError, Format},
};
use volant_layers::{Content, Inode, Kind, Layer, Limits, TarSink, Tree, merge};

use crate::thing::{Things, of_tree};

const DAY: i64 = 1_600_000_000;

/// `cap_net_bind_service=ep`, as the kernel has it.
const CAPABILITY: &[u8] = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// A tar stream in memory.
#[derive(Clone)]
pub struct Memory(pub Vec<u8>);

impl Layer for Memory {
    fn open(&self) -> io::Result<Box<dyn Read + '_>> {
        Ok(Box::new(&self.0[..]))
    }

    fn name(&self) -> String {
        "memory".to_owned()
    }
}

/// Bytes that do not repeat.
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 1_u64;
    (0..length)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 56) as u8
        })
        .collect()
}

fn bytes(bytes: &[u8]) -> Kind {
    Kind::File(Content::Bytes(bytes.to_vec()))
}

/// A tree whose contents are all in memory; hard links are made by [`linked`].
pub fn odd() -> Tree {
    let mut tree = Tree::new();
    let mut add = |path: &str, mode: u32, kind: Kind, change: &dyn Fn(&mut Inode)| {
        let mut inode = Inode::new(mode, kind);
        inode.meta.mtime = DAY;
        change(&mut inode);
        tree.insert(Path::new(path), inode).unwrap();
    };
    let plain = |_: &mut Inode| {};
    add("/empty", 0o700, Kind::Directory, &|inode| {
        (inode.meta.uid, inode.meta.gid) = (3_000_000, u32::MAX - 1);
        inode.meta.mtime = 0;
    });
    add("/tmp", 0o1777, Kind::Directory, &plain);
    add("/dev", 0o755, Kind::Directory, &plain);
    let null = Kind::CharDevice { major: 1, minor: 3 };
    add("/dev/null", 0o666, null, &plain);
    let disk = Kind::BlockDevice {
        major: 259,
        minor: 70_000,
    };
    add("/dev/disk", 0o660, disk, &|inode| inode.meta.gid = 6);
    add("/fifo", 0o640, Kind::Fifo, &plain);
    for (name, length) in [("short", 5), ("fifty9", 59), ("sixty", 60), ("long", 3000)] {
        let target = Kind::Symlink(vec![b'x'; length].into());
        add(&format!("/link-{name}"), 0o777, target, &|inode| {
            inode.meta.uid = 5;
        });
    }
    add("/bin", 0o755, Kind::Directory, &plain);
    add("/bin/ping", 0o6755, bytes(&noise(300_000)), &|inode| {
        inode.meta.uid = 33;
        let xattrs = &mut inode.meta.xattrs;
        xattrs.insert(b"security.capability"[..].into(), CAPABILITY.into());
        xattrs.insert(b"user.empty"[..].into(), b""[..].into());
        xattrs.insert(b"user.large"[..].into(), noise(2500).into());
        xattrs.insert(b"trusted.binary"[..].into(), b"\0\xff\n"[..].into());
    });
    add("/bin/small", 0o755, bytes(b"#!/bin/sh\n"), &|inode| {
        inode
            .meta
            .xattrs
            .insert(b"security.capability"[..].into(), CAPABILITY.into());
    });
    add("/attributed", 0o750, Kind::Directory, &|inode| {
        inode
            .meta
            .xattrs
            .insert(b"user.note"[..].into(), b"folder"[..].into());
    });
    for length in [0, 1, 4095, 4096, 4097, 8192, 131_072, 262_145, 1_000_003] {
        add(
            &format!("/size-{length}"),
            0o644,
            bytes(&noise(length)),
            &plain,
        );
    }
    add("/zeros", 0o644, bytes(&vec![0; 700_000]), &plain);
    add("/late", 0o444, bytes(b"late"), &|inode| {
        inode.meta.mtime = i64::from(i32::MAX);
    });
    add("/sp ace\nnew\"quote\\", 0o600, bytes(b"q"), &plain);
    add(&format!("/{}", "n".repeat(255)), 0o600, bytes(b"n"), &plain);
    let deep = format!("/deep{}", format!("/{}", "d".repeat(200)).repeat(15));
    add(&format!("{deep}/file"), 0o600, bytes(b"deep"), &plain);
    add("/many", 0o755, Kind::Directory, &plain);
    for number in 0..1500 {
        let name = format!("/many/{number}-{}", "m".repeat(number % 60));
        add(&name, 0o644, bytes(number.to_string().as_bytes()), &plain);
    }
    tree
}

/// The tree with hard links, and a root that is not the usual one: through a layer, as images have them.
pub fn linked(tree: &Tree) -> (Memory, Tree) {
    let stream = tar_of(tree);
    let end = stream.len() - 1024;
    let mut more = tar::Builder::new(stream[..end].to_vec());
    let mut root = tar::Header::new_ustar();
    root.set_entry_type(tar::EntryType::Directory);
    root.set_mode(0o1751);
    root.set_uid(12);
    root.set_gid(34);
    root.set_mtime(1_500_000_000);
    root.set_size(0);
    more.append_pax_extensions([("SCHILY.xattr.user.root", &b"r"[..])])
        .unwrap();
    more.append_data(&mut root, "./", io::empty()).unwrap();
    for (name, target) in [
        ("bin/ping6", "bin/ping"),
        ("a-ping", "bin/ping"),
        ("node", "dev/null"),
    ] {
        let mut link = tar::Header::new_ustar();
        link.set_entry_type(tar::EntryType::Link);
        link.set_size(0);
        more.append_link(&mut link, name, target).unwrap();
    }
    let layer = Memory(more.into_inner().unwrap());
    let tree = merge(&[&layer], &Limits::default()).unwrap();
    (layer, tree)
}

pub fn tar_of(tree: &Tree) -> Vec<u8> {
    let mut sink = TarSink::new(Vec::new());
    tree.emit(&[], &mut sink, &mut |_| {}).unwrap();
    sink.finish().unwrap()
}

pub fn build(
    format: &Format,
    layer: &Memory,
    tree: &Tree,
    output: &Path,
) -> Result<Built, FilesystemError> {
    let mut read = 0;
    let built = filesystem::build(
        format,
        tree,
        &[layer],
        output,
        &Cancel::default(),
        &mut |bytes| read += bytes,
    )?;
    assert_eq!(read, tree.size());
    assert_eq!(built.size, fs::metadata(output).unwrap().len());
    Ok(built)
}

/// Runs a tool of the tests; fails with its words.
pub fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| {
        panic!("cannot run {command:?}: {error}; `cargo xtask test` installs what tests need")
    });
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}",
        String::from_utf8_lossy(&output.stderr),
        String::from_utf8_lossy(&output.stdout),
    );
    output
}

/// What is in a folder, hidden or not.
pub fn names(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect()
}

/// What [`linked`] of [`odd`] is once it is unpacked.
pub fn expected() -> Things {
    let mut things = of_tree(&odd());
    let root = things.get_mut(&b""[..]).unwrap();
    (root.mode, root.uid, root.gid, root.mtime) = (0o1751, 12, 34, 1_500_000_000);
    root.xattrs.insert(b"user.root".to_vec(), b"r".to_vec());
    for (paths, first) in [
        (&["a-ping", "bin/ping", "bin/ping6"][..], "a-ping"),
        (&["dev/null", "node"], "dev/null"),
    ] {
        let there = paths.iter().find_map(|path| things.get(path.as_bytes()));
        let mut thing = there.unwrap().clone();
        (thing.first, thing.links) = (first.into(), paths.len() as u64);
        for path in paths {
            things.insert(path.as_bytes().to_vec(), thing.clone());
        }
    }
    things
}
