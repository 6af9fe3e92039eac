//! Erofs, judged and read by `fsck.erofs`.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use fledge::filesystem::Format;

use crate::{
    sample::{build, expected, linked, odd, run},
    thing::{Things, What, assert_same, of_folder},
};

fn unpack(image: &Path, folder: &Path) -> Things {
    run(Command::new("fsck.erofs")
        .args(["--preserve", &format!("--extract={}", folder.display())])
        .arg(image));
    of_folder(folder)
}

/// The attributes of the inode at a path, which the tool does not take out, by the description of the format.
fn attributes(image: &[u8], nid: usize) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let half = |at: usize| usize::from(u16::from_le_bytes([image[at], image[at + 1]]));
    let mut found = BTreeMap::new();
    let count = half(nid * 32 + 2);
    if count == 0 {
        return found;
    }
    let begin = nid * 32 + 64;
    let end = begin + 12 + (count - 1) * 4;
    let mut at = begin + 12;
    while at < end {
        let prefix = match image[at + 1] {
            1 => "user.",
            4 => "trusted.",
            6 => "security.",
            other => panic!("attribute of namespace {other}"),
        };
        let (name, value) = (usize::from(image[at]), half(at + 2));
        let text = &image[at + 4..][..name];
        found.insert(
            [prefix.as_bytes(), text].concat(),
            image[at + 4 + name..][..value].to_vec(),
        );
        at += (4 + name + value).next_multiple_of(4);
    }
    found
}

#[test]
fn everything_in_a_tree_is_in_its_erofs() {
    let folder = tempfile::tempdir().unwrap();
    let (layer, tree) = linked(&odd());
    let image = folder.path().join("image.erofs");
    let built = build(&Format::Erofs, &layer, &tree, &image).unwrap();
    assert_eq!(built.warnings, Vec::<String>::new());

    let whole = expected();
    let bytes = fs::read(&image).unwrap();
    let mut nids = BTreeMap::new();
    for (path, thing) in &whole {
        if path.contains(&b'\n') || path.starts_with(b"many/") {
            continue;
        }
        let path = String::from_utf8(path.clone()).unwrap();
        let told = run(Command::new("dump.erofs")
            .arg(format!("--path=/{path}"))
            .arg(&image));
        let told = String::from_utf8_lossy(&told.stdout).into_owned();
        let (_, nid) = told.split_once("NID: ").unwrap();
        let nid = nid
            .split_whitespace()
            .next()
            .unwrap()
            .parse::<usize>()
            .unwrap();
        assert_eq!(attributes(&bytes, nid), thing.xattrs, "{path}");
        let mode = u16::from_le_bytes([bytes[nid * 32 + 4], bytes[nid * 32 + 5]]);
        assert_eq!(u32::from(mode) & 0o7777, thing.mode, "{path}");
        if thing.kind != What::Directory {
            assert!(
                told.contains(&format!("Links: {} ", thing.links)),
                "{path}: {told}"
            );
            assert_eq!(
                *nids.entry(thing.first.clone()).or_insert(nid),
                nid,
                "{path}"
            );
        }
    }

    // It makes a file of each hard link, and forgets setuid.
    let mut found = unpack(&image, &folder.path().join("root"));
    let mut plain = whole;
    for (path, thing) in plain.iter_mut().chain(&mut found) {
        thing.xattrs.clear();
        thing.first.clone_from(path);
        thing.links = 1;
        if path.ends_with(b"ping") || path.ends_with(b"ping6") {
            thing.mode &= 0o777;
        }
    }
    assert_same(&found, &plain);
}
