//! How a tree is given on: its order, what is inserted into it, and layers that are no longer as they were.

#![allow(clippy::unwrap_used, reason = "a test may fail loudly")]

mod common;

use common::{Archive, Seen, borrowed, chain, merged};
use volant_layers::{Content, Inode, Limits, TarSink, Tree, TreeError, merge};

fn layer() -> Archive {
    Archive::new()
}

fn base() -> Archive {
    layer()
        .dir("a")
        .file("a/x", "x")
        .dir("a/d")
        .file("a/d/y", "y")
        .file("b", "b")
}

#[test]
fn everything_comes_in_an_order_that_archives_need() {
    let layers = [
        layer()
            .file("z", "z")
            .dir("d")
            .file("d/f", "f")
            .symlink("s", "z")
            .link("d/g", "z"),
        layer().file("gone", "gone"),
        layer().file(".wh.gone", "").file("a", "a"),
    ];
    let mut tree = merged(&layers).unwrap();
    for (path, content) in [("/y", "y"), ("/b/x", "x")] {
        let content = Content::Bytes(content.into());
        tree.insert(path.as_ref(), Inode::file(0o644, content))
            .unwrap();
    }
    let order = ["", "b", "d", "s", "b/x", "y", "d/g", "z", "d/f", "a"];
    // A layer of which nothing is left is not opened.
    let mut layers = borrowed(&layers);
    layers[1] = &NoLayer;
    assert_eq!(Seen::emitted(&tree, &layers).order, order);
}

#[test]
fn what_is_inserted_is_over_the_layers() {
    let layers = [base().symlink("l", "b").symlink("d", "a")];
    let mut tree = merged(&layers).unwrap();
    let file = |text: &str| Inode::file(0o644, Content::Bytes(text.into()));
    for (path, inode) in [
        ("/b", file("new")),
        ("/l", file("no link")),
        ("/d/x", file("new")),
        ("/d", Inode::directory(0o700)),
        ("/a", Inode::directory(0o700)),
    ] {
        tree.insert(path.as_ref(), inode).unwrap();
    }
    for path in ["/b", "/a/x", "/a/d"] {
        let error = tree.insert(path.as_ref(), file("again")).unwrap_err();
        assert_eq!(error, TreeError::Taken(path.into()));
    }
    let error = tree.insert("/a/d/y".as_ref(), Inode::directory(0o755));
    assert_eq!(error, Err(TreeError::Taken("/a/d/y".into())));
    let expected = [
        "a d",
        "a/d d",
        "a/d/y f'y'",
        "a/x f'new'",
        "b f'new'",
        "d l->a",
        "l f'no link'",
    ];
    assert_eq!(Seen::emitted(&tree, &borrowed(&layers)).listing(), expected);
}

#[test]
fn a_file_of_the_host_that_changes_its_size_is_noticed() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "1234").unwrap();
    for size in [3, 5] {
        let mut tree = Tree::new();
        let path = file.path().to_owned();
        let content = Content::File { path, size };
        tree.insert("/f".as_ref(), Inode::file(0o644, content))
            .unwrap();
        let mut sink = TarSink::new(std::io::sink());
        let error = tree.emit(&[], &mut sink, &mut |_| ()).unwrap_err();
        let expected = format!("{} changed while it was read", file.path().display());
        assert_eq!(error.to_string(), expected);
    }
}

struct NoLayer;

impl volant_layers::Layer for NoLayer {
    fn open(&self) -> std::io::Result<Box<dyn std::io::Read + '_>> {
        Err(std::io::Error::other("it must not be opened"))
    }

    fn name(&self) -> String {
        "none".into()
    }
}

#[test]
fn a_layer_that_cannot_be_read_again_is_named() {
    let whole = [layer().file("a", "a").file("b", "content")];
    let tree = merged(&whole).unwrap();
    let seen = |bytes: &[u8]| {
        let error = tree
            .emit(
                &borrowed(&[Archive(bytes.to_vec())]),
                &mut Seen::default(),
                &mut |_| (),
            )
            .unwrap_err();
        chain(&error)
    };
    assert_eq!(
        seen(&whole[0].0[..3 * 512 + 3]),
        "cannot read b from layer sha256:abc: unexpected end of file"
    );
    let changed = "layer sha256:abc changed after its headers were read: b is no longer there";
    assert_eq!(seen(&whole[0].0[..2 * 512]), changed);
    assert_eq!(
        seen(&layer().file("a", "a").file("b", "longer than it was").0),
        changed
    );
    let error = tree
        .emit(&[&NoLayer], &mut Seen::default(), &mut |_| ())
        .unwrap_err();
    assert_eq!(
        chain(&error),
        "cannot open layer none: it must not be opened"
    );
}

#[test]
fn a_layer_is_read_to_its_very_end() {
    struct Counted(std::cell::Cell<usize>);
    impl volant_layers::Layer for Counted {
        fn open(&self) -> std::io::Result<Box<dyn std::io::Read + '_>> {
            Ok(Box::new(Stream(self, 0)))
        }
        fn name(&self) -> String {
            "counted".into()
        }
    }
    struct Stream<'a>(&'a Counted, usize);
    impl std::io::Read for Stream<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let count = buffer.len().min(1_000_000 - self.1);
            buffer[..count].fill(0);
            self.1 += count;
            self.0.0.set(self.1);
            Ok(count)
        }
    }
    let layer = Counted(std::cell::Cell::new(0));
    merge(&[&layer], &Limits::default()).unwrap();
    assert_eq!(layer.0.get(), 1_000_000);
}
