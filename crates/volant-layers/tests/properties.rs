//! Any layers give what the dumbest model gives, any bytes end in an answer, and what is written reads the same.

#![allow(clippy::unwrap_used, reason = "a test may fail loudly")]

mod common;

use std::collections::BTreeMap;

use common::{Archive, Seen, borrowed, merged};
use proptest::{collection::vec, prelude::*, sample::select};
use volant_layers::{Limits, TarSink, merge};

/// An entry of a layer; names are few, so that they meet.
#[derive(Clone, Debug)]
enum Op {
    File(String, u8),
    Dir(String),
    Gone(String),
    Opaque(String),
    Link(String, String),
}

fn path() -> impl Strategy<Value = String> {
    vec(select(vec!["a", "b", "a-", "c"]), 1..4).prop_map(|names| names.join("/"))
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (path(), any::<u8>()).prop_map(|(path, content)| Op::File(path, content)),
        3 => path().prop_map(Op::Dir),
        1 => path().prop_map(Op::Gone),
        1 => path().prop_map(Op::Opaque),
        1 => (path(), path()).prop_map(|(path, target)| Op::Link(path, target)),
    ]
}

/// A path's content (nothing for a folder) and whether this layer wrote it, or something in it.
type Model = BTreeMap<String, (Option<u8>, bool)>;

fn above(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(at, _)| &path[..at])
}

fn below(path: &str, other: &str) -> bool {
    other
        .strip_prefix(path)
        .is_some_and(|rest| rest.starts_with('/'))
}

/// Applies an operation, or leaves it out where a layer could not have it.
fn apply(model: &mut Model, op: &Op) -> bool {
    let put = |model: &mut Model, path: &str, content: Option<u8>| {
        for folder in above(path) {
            model.insert(folder.into(), (None, true));
        }
        if content.is_some() {
            model.retain(|other, _| !below(path, other));
        }
        model.insert(path.into(), (content, true));
    };
    let (Op::File(path, _) | Op::Dir(path) | Op::Gone(path) | Op::Opaque(path) | Op::Link(path, _)) =
        op;
    let blocked = above(path).any(|folder| {
        model
            .get(folder)
            .is_some_and(|(content, _)| content.is_some())
    });
    match op {
        Op::File(path, content) if !blocked => put(model, path, Some(*content)),
        Op::Dir(path) if !blocked => put(model, path, None),
        Op::Link(path, target) if !blocked => match model.get(target) {
            Some((Some(content), _)) => put(model, path, Some(*content)),
            _ => return false,
        },
        Op::Gone(path) => {
            model.retain(|other, (_, upper)| *upper || !(other == path || below(path, other)));
        }
        Op::Opaque(path) => model.retain(|other, (_, upper)| *upper || !below(path, other)),
        _ => return false,
    }
    true
}

fn archive(ops: &[Op]) -> Archive {
    ops.iter().fold(Archive::new(), |archive, op| match op {
        Op::File(path, content) => archive.file(path, &content.to_string()),
        Op::Dir(path) => archive.dir(path),
        Op::Link(path, target) => archive.link(path, target),
        Op::Opaque(path) => archive.file(&format!("{path}/.wh..wh..opq"), ""),
        Op::Gone(path) => match path.rsplit_once('/') {
            Some((folder, name)) => archive.file(&format!("{folder}/.wh.{name}"), ""),
            None => archive.file(&format!(".wh.{path}"), ""),
        },
    })
}

proptest! {
    #[test]
    fn layers_give_what_a_map_gives(layers in vec(vec(op(), 0..12), 1..5)) {
        let mut model = Model::new();
        let mut archives = Vec::new();
        for ops in layers {
            model.values_mut().for_each(|(_, upper)| *upper = false);
            let taken: Vec<_> = ops.into_iter().filter(|op| apply(&mut model, op)).collect();
            archives.push(archive(&taken));
        }
        let expected: BTreeMap<String, Option<String>> = model
            .into_iter()
            .map(|(path, (content, _))| (path, content.map(|content| content.to_string())))
            .collect();

        let tree = merged(&archives).unwrap();
        let seen = Seen::emitted(&tree, &borrowed(&archives));
        let found: BTreeMap<String, Option<String>> = tree
            .iter()
            .filter(|(path, _)| !path.is_empty())
            .map(|(path, inode)| {
                let first = seen.paths[str::from_utf8(path).unwrap()].strip_prefix("= ");
                let first = first.map_or(path, str::as_bytes);
                let content = seen.contents.get(first).map(|bytes| String::from_utf8(bytes.clone()).unwrap());
                assert_eq!(content.is_none(), inode.is_directory());
                (String::from_utf8(path.to_vec()).unwrap(), content)
            })
            .collect();
        prop_assert_eq!(&found, &expected);

        // Written as one archive and read again, it is the same.
        let mut sink = TarSink::new(Vec::new());
        tree.emit(&borrowed(&archives), &mut sink, &mut |_| ()).unwrap();
        let again = [Archive(sink.finish().unwrap())];
        prop_assert_eq!(Seen::of(&again).paths, seen.paths);
    }

    #[test]
    fn any_bytes_end_in_an_answer(blocks in vec((any::<u8>(), vec(any::<u8>(), 0..64), 0..2000_u64), 0..12)) {
        let archive = blocks.iter().fold(Archive::new(), |archive, (kind, bytes, size)| {
            let kinds = b"0125xgLKS3467";
            let kind = kinds.get(usize::from(*kind) % 16).copied().unwrap_or(*kind);
            archive.raw(Archive::header(kind, bytes, *size), bytes)
        });
        let limits = Limits { entries: 100, memory: 1 << 20, content: 1 << 20 };
        let archives = [archive];
        if let Ok(tree) = merge(&borrowed(&archives), &limits) {
            tree.emit(&borrowed(&archives), &mut TarSink::new(std::io::sink()), &mut |_| ()).unwrap();
        }
    }
}
