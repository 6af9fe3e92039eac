//! What is left of layers, one over the other.

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
fn an_upper_layer_changes_what_lower_ones_left() {
    let cases: Vec<(&str, Vec<Archive>, Vec<&str>)> = vec![
        (
            "a file replaces a file",
            vec![base(), layer().file("b", "new")],
            vec!["a d", "a/d d", "a/d/y f'y'", "a/x f'x'", "b f'new'"],
        ),
        (
            "a folder over a folder keeps what is in it",
            vec![base(), layer().entry(b'5', "./a/", "")],
            vec!["a d", "a/d d", "a/d/y f'y'", "a/x f'x'", "b f'b'"],
        ),
        (
            "a file over a folder takes all that was in it",
            vec![base(), layer().file("a", "now a file")],
            vec!["a f'now a file'", "b f'b'"],
        ),
        (
            "a link over a folder, too",
            vec![base(), layer().symlink("a", "b")],
            vec!["a l->b", "b f'b'"],
        ),
        (
            "a folder over a file",
            vec![base(), layer().dir("b").file("b/in", "")],
            vec!["a d", "a/d d", "a/d/y f'y'", "a/x f'x'", "b d", "b/in f''"],
        ),
        (
            "a whiteout removes a file, and a folder with all in it",
            vec![base(), layer().file(".wh.b", "").file("a/.wh.d", "")],
            vec!["a d", "a/x f'x'"],
        ),
        (
            "a whiteout of nothing is nothing",
            vec![base(), layer().file("none/.wh.b", "").file("b/.wh.b", "")],
            vec!["a d", "a/d d", "a/d/y f'y'", "a/x f'x'", "b f'b'"],
        ),
        (
            "a whiteout leaves what its own layer has, before and after it",
            vec![
                base(),
                layer()
                    .file("b", "new")
                    .file(".wh.b", "")
                    .file("a/.wh.d", "")
                    .file("a/d/z", "z"),
            ],
            vec!["a d", "a/d d", "a/d/z f'z'", "a/x f'x'", "b f'new'"],
        ),
        (
            "a whiteout after a file in the folder that it names",
            vec![base(), layer().file("a/d/z", "z").file(".wh.a", "")],
            vec!["a d", "a/d d", "a/d/z f'z'", "b f'b'"],
        ),
        (
            "an opaque folder hides what lower layers have in it",
            vec![
                base(),
                layer().dir("a").file("a/.wh..wh..opq", "").file("a/z", "z"),
            ],
            vec!["a d", "a/z f'z'", "b f'b'"],
        ),
        (
            "an opaque mark after what it does not hide",
            vec![
                base(),
                layer()
                    .file("a/d/z", "z")
                    .file("a/x", "new")
                    .file("a/.wh..wh..opq", ""),
            ],
            vec!["a d", "a/d d", "a/d/z f'z'", "a/x f'new'", "b f'b'"],
        ),
        (
            "an opaque folder in the place of a link leaves the link's target",
            vec![
                base().symlink("l", "a"),
                layer().dir("l").file("l/.wh..wh..opq", ""),
            ],
            vec!["a d", "a/d d", "a/d/y f'y'", "a/x f'x'", "b f'b'", "l d"],
        ),
        (
            "an opaque root",
            vec![base(), layer().file(".wh..wh..opq", "").file("z", "z")],
            vec!["z f'z'"],
        ),
        (
            "a third layer over a whiteout",
            vec![base(), layer().file(".wh.a", ""), layer().file("a/q", "q")],
            vec!["a d", "a/q f'q'", "b f'b'"],
        ),
        (
            "what AUFS kept is left out, and links to it hold",
            vec![
                layer()
                    .dir(".wh..wh.plnk")
                    .file(".wh..wh.plnk/12.34", "shared")
                    .file(".wh..wh.aufs", "")
                    .dir(".wh..wh.orph")
                    .file(".wh..wh.orph/1", "")
                    .link("a", ".wh..wh.plnk/12.34")
                    .link("b", ".wh..wh.plnk/12.34"),
            ],
            vec!["a f'shared'", "b = a"],
        ),
        (
            "a folder is looked for through links inside of the root",
            vec![
                layer()
                    .dir("usr")
                    .dir("usr/lib")
                    .symlink("lib", "usr/lib")
                    .symlink("run", "/usr/lib/../run"),
                layer()
                    .file("lib/x", "x")
                    .file("run/pid", "1")
                    .file("usr/lib/y", ""),
                layer().file("lib/.wh.y", ""),
            ],
            vec![
                "lib l->usr/lib",
                "run l->/usr/lib/../run",
                "usr d",
                "usr/lib d",
                "usr/lib/x f'x'",
                "usr/run d",
                "usr/run/pid f'1'",
            ],
        ),
        (
            "a whiteout of a link removes the link",
            vec![
                base().symlink("l", "a"),
                layer().file(".wh.l", "").file(".wh.b", ""),
            ],
            vec!["a d", "a/d d", "a/d/y f'y'", "a/x f'x'"],
        ),
    ];
    for (what, layers, expected) in cases {
        assert_eq!(Seen::of(&layers).listing(), expected, "{what}");
    }
}

#[test]
fn hard_links_share_one_inode_across_layers() {
    let cases: Vec<(&str, Vec<Archive>, Vec<&str>)> = vec![
        (
            "within a layer and across",
            vec![
                layer().file("b", "1").link("c", "./b"),
                layer().link("a", "c"),
            ],
            vec!["a f'1'", "b = a", "c = a"],
        ),
        (
            "the target is replaced later in the same layer",
            vec![layer().file("b", "1").link("c", "b").file("b", "2")],
            vec!["b f'2'", "c f'1'"],
        ),
        (
            "the target is removed by an upper layer",
            vec![
                layer().file("b", "1").link("c", "b").link("d", "b"),
                layer().file(".wh.b", ""),
            ],
            vec!["c f'1'", "d = c"],
        ),
        (
            "the target is replaced by a folder, and the link by a link to itself",
            vec![
                layer().file("b", "1").link("c", "b"),
                layer().dir("b").link("c", "c"),
            ],
            vec!["b d", "c f'1'"],
        ),
        (
            "a symbolic link is linked itself, and a device, too",
            vec![
                layer()
                    .symlink("l", "none")
                    .link("m", "l")
                    .entry(b'6', "p", "")
                    .link("q", "p"),
            ],
            vec!["l l->none", "m = l", "p p", "q = p"],
        ),
        (
            "through a link of the image",
            vec![
                layer().file("usr/x", "x").symlink("u", "usr"),
                layer().link("y", "u/x"),
            ],
            vec!["u l->usr", "usr d", "usr/x f'x'", "y = usr/x"],
        ),
    ];
    for (what, layers, expected) in cases {
        assert_eq!(Seen::of(&layers).listing(), expected, "{what}");
    }
}

#[test]
fn metadata_is_that_of_the_last_entry() {
    let mut header = Archive::header(b'5', b"./", 0);
    header.set_mode(0o40_1777);
    header.set_uid(1000);
    let mut setuid = Archive::header(b'0', b"su", 2);
    setuid.set_mode(0o4755);
    setuid.set_gid(50);
    setuid.set_mtime(1_700_000_000);
    let mut device = Archive::header(b'3', b"null", 0);
    device.set_device_major(1).unwrap();
    device.set_device_minor(3).unwrap();
    let layers = [
        layer()
            .dir("./")
            .dir("a")
            .raw(setuid, b"su")
            .raw(device, b""),
        layer()
            .raw(header, b"")
            .pax(&[("SCHILY.xattr.user.a", b"\n\0=")])
            .dir("a"),
    ];
    let seen = Seen::of(&layers);
    assert_eq!(seen.paths[""], "d 1777 1000:0");
    let expected = [
        r"a d user.a=\n\x00=",
        "null c1:3",
        "su f 4755 0:50 @1700000000'su'",
    ];
    assert_eq!(seen.listing(), expected);
}

#[test]
fn extended_headers_say_what_plain_ones_cannot() {
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(200));
    let layers = [layer()
        .pax(&[
            ("path", long.as_bytes()),
            ("uid", b"4294967294"),
            ("gid", b"3000000"),
            ("mtime", b"-1.5"),
            ("SCHILY.xattr.security.capability", b"\x01\0\0\x02\0\n"),
            ("LIBARCHIVE.xattr.user.b%20c", b"YWI"),
            ("SCHILY.xattr.security.selinux", b"label"),
            ("size", b"3"),
        ])
        .raw(Archive::header(b'0', b"short", 0), b"abc")
        .pax(&[("linkpath", long.as_bytes())])
        .link("link", "short")
        .entry(b'L', "././@LongLink", &format!("{}\0", "g".repeat(150)))
        .entry(b'K', "././@LongLink", &format!("{}\0", "t".repeat(150)))
        .symlink("short", "short")
        .extended(
            b'g',
            &[("mtime", b"7"), ("path", b"nonsense"), ("comment", b"abc")],
        )
        .file("after", "")
        .entry(b'7', "contiguous", "c")
        .raw(Archive::header(0, b"olddir/", 0), b"")];
    let seen = Seen::of(&layers);
    let expected = [
        "after f @7''".to_owned(),
        "contiguous f @7'c'".to_owned(),
        format!("{} d", "d".repeat(120)),
        format!(
            "{long} f 4294967294:3000000 @-2 security.capability=\\x01\\x00\\x00\\x02\\x00\\n user.b c=ab'abc'"
        ),
        format!("{} l->{}", "g".repeat(150), "t".repeat(150)),
        format!("link = {long}"),
        "olddir d 644 @7".to_owned(),
    ];
    assert_eq!(seen.listing(), expected);
}

/// The blocks that GNU's own sparse format begins with: four pieces in the header, more in the next block.
fn old_sparse() -> Archive {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::GNUSparse);
    header.set_path("old").unwrap();
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(6);
    let gnu = header.as_gnu_mut().unwrap();
    gnu.set_real_size(20);
    gnu.set_is_extended(true);
    for (piece, at) in gnu.sparse.iter_mut().zip([1, 3, 5, 7]) {
        piece.set_offset(at);
        piece.set_length(1);
    }
    let mut more = tar::GnuExtSparseHeader::new();
    more.sparse_mut()[0].set_offset(9);
    more.sparse_mut()[0].set_length(2);
    layer()
        .raw(header, b"")
        .bytes(more.as_bytes())
        .bytes(b"abcdef")
}

#[test]
fn sparse_files_of_all_formats_come_out_whole() {
    let v1_map = b"2\n2\n3\n8\n1\n";
    let mut v1 = v1_map.to_vec();
    v1.resize(512, 0);
    v1.extend_from_slice(b"abcd");
    let layers = [
        old_sparse().file("next", "next"),
        layer()
            .pax(&[
                ("GNU.sparse.size", b"10"),
                ("GNU.sparse.numblocks", b"2"),
                ("GNU.sparse.offset", b"2"),
                ("GNU.sparse.numbytes", b"3"),
                ("GNU.sparse.offset", b"8"),
                ("GNU.sparse.numbytes", b"1"),
            ])
            .file("v00", "abcd")
            .pax(&[
                ("GNU.sparse.name", b"v01"),
                ("GNU.sparse.size", b"10"),
                ("GNU.sparse.map", b"2,3,8,1"),
            ])
            .file("GNUSparseFile.0/v01", "abcd")
            .pax(&[
                ("GNU.sparse.major", b"1"),
                ("GNU.sparse.minor", b"0"),
                ("GNU.sparse.name", b"v10"),
                ("GNU.sparse.realsize", b"10"),
            ])
            .raw(Archive::header(b'0', b"GNUSparseFile.0/v10", 516), &v1)
            .file("next2", "next"),
    ];
    let seen = Seen::of(&layers);
    assert_eq!(
        seen.contents[&b"old"[..]],
        b"\0a\0b\0c\0d\0ef\0\0\0\0\0\0\0\0\0"
    );
    for name in ["v00", "v01", "v10"] {
        assert_eq!(
            seen.contents[name.as_bytes()],
            b"\0\0abc\0\0\0d\0",
            "{name}"
        );
    }
    for name in ["next", "next2"] {
        assert_eq!(seen.contents[name.as_bytes()], b"next");
    }
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

/// As `umoci insert` of Debian 12 writes it: not even the last block is filled up.
#[test]
fn an_archive_may_end_with_the_last_byte_of_a_file() {
    let mut archive = layer().file("a", "one").file("b", "two");
    archive.0.truncate(archive.0.len() - 509);
    let tree = merged(&[archive]).unwrap();
    assert_eq!(tree.get(b"b").unwrap().size(), 3);
}

/// The upper layer writes below a folder of the lower one, and only then makes everything opaque.
#[test]
fn a_folder_that_the_layer_wrote_below_outlives_its_opaque_mark() {
    let lower = layer().dir("etc").file("etc/old", "1");
    let upper = layer().file("etc/a/b/new", "2").file(".wh..wh..opq", "");
    let tree = merged(&[lower, upper]).unwrap();
    for (path, there) in [("etc", true), ("etc/a/b/new", true), ("etc/old", false)] {
        assert_eq!(tree.get(path.as_bytes()).is_some(), there, "{path}");
    }
}
