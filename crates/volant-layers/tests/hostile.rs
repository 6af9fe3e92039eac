//! Layers that were made to do harm, or are damaged: refused, and the reason told.

#![allow(clippy::unwrap_used, reason = "a test may fail loudly")]

mod common;

use common::{Archive, borrowed, chain, merged};
use volant_layers::{Limits, merge};

fn layer() -> Archive {
    Archive::new()
}

fn refused(what: &str, layers: &[Archive]) -> String {
    match merged(layers) {
        Ok(tree) => panic!("{what} was taken: {tree:?}"),
        Err(error) => chain(&error),
    }
}

#[test]
fn what_would_leave_the_root_is_refused_by_name() {
    let up = layer().symlink("up", "../../etc").symlink("evil", "up");
    let cases: Vec<(Vec<Archive>, &str)> = vec![
        (
            vec![layer().file("/etc/passwd", "")],
            "cannot have /etc/passwd: its name is absolute",
        ),
        (
            vec![layer().file("../x", "")],
            "cannot have ../x: its name has \"..\" in it",
        ),
        (
            vec![layer().dir("a").file("a/../../x", "")],
            "cannot have a/../../x: its name has",
        ),
        (
            vec![layer().file("a/../.wh.b", "")],
            "cannot have a/../.wh.b: its name has",
        ),
        (
            vec![up.clone(), layer().file("up/passwd", "")],
            "cannot have up/passwd: the symbolic link up of the image leads out of the root",
        ),
        (
            vec![up.clone(), layer().file("evil/a/passwd", "")],
            "cannot have evil/a/passwd: the symbolic link up of the image leads out",
        ),
        (
            vec![up.clone(), layer().file("up/.wh.passwd", "")],
            "leads out of the root",
        ),
        (
            vec![up.clone(), layer().file("up/.wh..wh..opq", "")],
            "leads out of the root",
        ),
        (
            vec![up.clone(), layer().link("x", "up/passwd")],
            "cannot have x: the symbolic link up",
        ),
        (
            vec![layer().symlink("a", "b/../../..").dir("b").file("a/x", "")],
            "the symbolic link a of the image leads out of the root",
        ),
        (
            vec![layer().link("x", "/etc/shadow")],
            "cannot have x: it is a link to /etc/shadow, which is not there",
        ),
        (
            vec![layer().link("x", "/../shadow")],
            "its link to /../shadow cannot be followed: its name has \"..\" in it",
        ),
        (
            vec![up.clone(), layer().link("x", "/up/passwd")],
            "cannot have x: the symbolic link up",
        ),
        (
            vec![layer().link("x", "//")],
            "it is a link to the folder //",
        ),
        (
            vec![layer().link("x", "../shadow")],
            "its link to ../shadow cannot be followed",
        ),
        (
            vec![layer().link("x", "none")],
            "cannot have x: it is a link to none, which is not there",
        ),
        (
            vec![layer().dir("d").link("x", "d")],
            "it is a link to the folder d",
        ),
        (
            vec![layer().link("x", "./")],
            "it is a link to the folder ./",
        ),
        (
            vec![layer().symlink("a", "b").symlink("b", "a").file("a/x", "")],
            "lead nowhere",
        ),
        (
            vec![layer().file("f", "").file("f/x", "")],
            "cannot have f/x: f is no folder",
        ),
        (vec![layer().symlink(".", "a")], "the root is a folder"),
        (vec![layer().file("./", "")], "the root is a folder"),
        (
            vec![layer().file("a/.wh.", "")],
            "names that begin with .wh.",
        ),
        (
            vec![layer().file("a/.wh..", "")],
            "names that begin with .wh.",
        ),
        (
            vec![layer().file("a/.wh...", "")],
            "names that begin with .wh.",
        ),
        (
            vec![layer().file(".wh.a/b", "")],
            "names that begin with .wh.",
        ),
        (vec![layer().file("", "")], "its name is empty"),
        (
            vec![layer().pax(&[("path", b"a\0b")]).file("a", "")],
            "has a NUL in it",
        ),
        (
            vec![layer().pax(&[("path", &[b'a'; 300])]).file("a", "")],
            "its name is longer",
        ),
        (
            vec![layer().pax(&[("path", b"/etc/x")]).file("a", "")],
            "cannot have /etc/x: its name is absolute",
        ),
        (
            vec![layer().entry(b'L', "L", "../x").file("a", "")],
            "cannot have ../x",
        ),
        (vec![layer().symlink("l", "")], "a symbolic link to nothing"),
        (
            vec![layer().pax(&[("linkpath", &[b'a'; 4096])]).symlink("l", "")],
            "more than 4095 bytes",
        ),
        (
            vec![layer().entry(b'M', "m\x1b[2J", "")],
            "cannot have m\\u{1b}[2J: its type 'M' is not known",
        ),
    ];
    for (layers, expected) in cases {
        let error = refused(expected, &layers);
        assert!(
            error.starts_with("layer sha256:abc cannot have "),
            "{error}"
        );
        assert!(error.contains(expected), "{error}\nshould have: {expected}");
    }
}

#[test]
fn a_path_cannot_grow_through_links() {
    let deep = "d/".repeat(30);
    let mut one = layer().file(&format!("{deep}x"), "");
    for step in 0..200 {
        let from = if step == 0 {
            String::new()
        } else {
            format!("l{}/", step - 1)
        };
        one = one
            .dir(&format!("{from}{deep}"))
            .symlink(&format!("l{step}"), &format!("{from}{deep}"));
    }
    let error = refused("a path of 12000 bytes", &[one]);
    assert!(
        error.contains("its name is longer") || error.contains("lead nowhere"),
        "{error}"
    );
}

#[test]
fn damaged_archives_are_refused() {
    let mut bad_sum = layer().file("a", "content");
    bad_sum.0[0] = b'b';
    let mut negative = Archive::header(b'0', b"a", 0);
    negative.as_old_mut().size = [0xff; 12];
    let mut huge = Archive::header(b'0', b"a", 0);
    huge.as_old_mut().size = *b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff";
    let mut larger = huge.clone();
    larger.as_old_mut().size[4] = 0xff;
    let mut text = Archive::header(b'0', b"a", 0);
    text.as_old_mut().uid = *b"nobody\0\0";
    let mut pax_huge = Archive::header(b'x', b"a", 0);
    pax_huge.as_old_mut().size = huge.as_old().size;
    let mut device = Archive::header(b'3', b"a", 0);
    device.as_ustar_mut().unwrap().dev_major = *b"0010000\0";
    let whole = layer().file("a", &"content".repeat(100));
    let sparse = |map: &'static [u8]| {
        layer()
            .pax(&[("GNU.sparse.size", b"9"), ("GNU.sparse.map", map)])
            .file("a", "ab")
    };
    let v1 = |map: &str| {
        layer()
            .pax(&[
                ("GNU.sparse.major", b"1"),
                ("GNU.sparse.minor", b"0"),
                ("GNU.sparse.realsize", b"9"),
            ])
            .file("a", map)
    };
    let cases: Vec<(Archive, &str)> = vec![
        (bad_sum, "the header at byte 0 is damaged"),
        (
            Archive(whole.0[..100].to_vec()),
            "it ends in the middle of an entry",
        ),
        (
            Archive(whole.0[..600].to_vec()),
            "it ends in the middle of an entry",
        ),
        (layer().raw(negative, b""), "a has a size that is no number"),
        (
            layer().raw(huge, b""),
            "the files of the layers have more than 68719476736 bytes",
        ),
        (layer().raw(larger, b""), "a has a size that is no number"),
        (
            layer().raw(text, b""),
            "a has an owner that is no number below 2^32",
        ),
        (
            layer().raw(pax_huge, b""),
            "the extended header at byte 0 is larger than any that is needed",
        ),
        (layer().raw(device, b""), "Linux has no device 4096:0"),
        (
            layer().entry(b'L', "L", &"x".repeat(5000)),
            "is larger than any",
        ),
        (
            layer().pax(&[("path", b"b")]),
            "it ends in the middle of an entry",
        ),
        (
            layer().entry(b'x', "x", "9 path=ab\n").file("a", ""),
            "the extended header at byte 0 is damaged",
        ),
        (
            layer().pax(&[("size", b"-1")]).file("a", ""),
            "has a size that is no number",
        ),
        (
            layer()
                .pax(&[("size", b"18446744073709551615")])
                .file("a", ""),
            "a has a size that is no number",
        ),
        (
            layer().pax(&[("SCHILY.xattr.", b"a")]).file("a", ""),
            "a name that Linux does not take",
        ),
        (
            layer()
                .pax(&[("SCHILY.xattr.user.a", &[0; 65536])])
                .file("a", ""),
            "more than 64 KiB",
        ),
        (
            layer()
                .pax(&[("LIBARCHIVE.xattr.user.a", b"*")])
                .file("a", ""),
            "that is no base64",
        ),
        (sparse(b"0,1"), "a has a sparse map that is damaged"),
        (sparse(b"4,1,0,1"), "a has a sparse map that is damaged"),
        (sparse(b"8,2"), "a has a sparse map that is damaged"),
        (
            sparse(b"18446744073709551615,2"),
            "a has a sparse map that is damaged",
        ),
        (sparse(b"0,1,4"), "a has a sparse map that is damaged"),
        (sparse(b"x"), "has a sparse map that is damaged"),
        (v1("1\n0\n"), "a has a sparse map that is damaged"),
        (v1(&"9".repeat(512)), "a has a sparse map that is damaged"),
        (
            v1(&format!("99999999\n{}", "1\n".repeat(300))),
            "a has a sparse map that is damaged",
        ),
        (
            layer().entry(b'S', "a", ""),
            "a has a sparse map that is damaged",
        ),
    ];
    for (archive, expected) in cases {
        let error = refused(expected, &[archive]);
        assert!(error.contains(expected), "{error}\nshould have: {expected}");
    }
}

#[test]
fn readers_cannot_be_made_to_see_different_archives() {
    // The size of a folder is no content, as in the reader that others unpack with; that of an extended header
    // is its own, whatever an earlier one said of the entry.
    let inner = layer().file("inner", "");
    let archive = layer()
        .raw(Archive::header(b'5', b"d", 512), b"")
        .file("a", "")
        .pax(&[("size", b"512")])
        .entry(b'L', "L", "long\0")
        .raw(Archive::header(b'0', b"b", 0), &inner.0);
    let tree = merged(&[archive]).unwrap();
    let paths: Vec<_> = tree.iter().map(|(path, _)| path).collect();
    assert_eq!(paths, [&b""[..], b"a", b"d", b"long"]);
}

#[test]
fn deep_names_links_and_marks_cannot_keep_us_busy() {
    let deep = "d/".repeat(49);
    let linked = |layer: Archive| (0..90).fold(layer, |layer, n| layer.file(&format!("l/{n}"), ""));
    let below = (0..500).fold(layer(), |layer, n| {
        layer
            .pax(&[("path", format!("{deep}{n}").as_bytes())])
            .file("a", "")
    });
    let marks = (1..49).rev().fold(below, |layer, depth| {
        layer
            .pax(&[(
                "path",
                format!("{}.wh..wh..opq", "d/".repeat(depth)).as_bytes(),
            )])
            .file("a", "")
    });
    let cases = [
        (100, linked(layer().dir(&deep).symlink("l", &deep))),
        (1000, marks),
    ];
    for (entries, archive) in cases {
        let archives = [archive];
        let limits = Limits {
            entries,
            ..Limits::default()
        };
        let error = chain(&merge(&borrowed(&archives), &limits).unwrap_err());
        assert_eq!(
            error,
            "the names and links of the layers are deeper than those of any image"
        );
    }
}

#[test]
fn a_kilobyte_cannot_make_hours_of_zeros() {
    let sparse = |holes: u64| {
        let size = (holes + 2).to_string();
        layer()
            .pax(&[
                ("GNU.sparse.size", size.as_bytes()),
                ("GNU.sparse.map", b"0,2"),
            ])
            .file("lib/bomb\x1b", "ab")
    };
    let free = 1 << 30;
    let more = layer().file("more", &"x".repeat(3000));
    let taken: [Vec<Archive>; 3] = [
        vec![sparse(free + 2000)],
        // What is stored may come later, and in another layer.
        vec![sparse(free + 3_002_000), more.clone()],
        vec![sparse(free / 2), sparse(free / 2 + 4000)],
    ];
    for layers in &taken {
        merged(layers).unwrap_or_else(|error| panic!("{}", chain(&error)));
    }
    let mark = layer()
        .pax(&[("GNU.sparse.size", b"9000000000"), ("GNU.sparse.map", b"")])
        .file(".wh.a", "");
    assert!(
        merged(&[mark]).is_ok(),
        "what removes something is not written"
    );
    let expected = "the sparse files of the layers have 1073743825 bytes of holes, most of them in lib/bomb\\u{1b} of \
                    layer sha256:abc; no more than 1073743824 are taken with 2 bytes of content";
    assert_eq!(refused("a bomb", &[sparse(free + 2001)]), expected);
    for layers in [
        vec![sparse(free + 3_002_001), more],
        vec![sparse(free / 2), sparse(free / 2 + 4001)],
        vec![sparse(60 << 30)],
    ] {
        assert!(refused("a bomb", &layers).contains("bytes of holes"));
    }
}

#[test]
fn limits_hold() {
    let hole = layer()
        .pax(&[("GNU.sparse.size", b"9000"), ("GNU.sparse.map", b"")])
        .file("a", "");
    let many = (0..11).fold(layer(), |layer, _| layer.file("a", ""));
    let names = (0..9).fold(layer(), |layer, number| {
        layer
            .pax(&[("path", format!("{}{number}", "d/".repeat(1500)).as_bytes())])
            .file("a", "")
    });
    let zeros = Archive(vec![0; 20_000]);
    let limits = Limits {
        entries: 10,
        memory: 1_000_000,
        content: 8192,
    };
    let cases = [
        (hole, "the files of the layers have more than 8192 bytes"),
        (many, "the layers have more than 10 entries"),
        (names, "take more than 1000000 bytes of memory"),
        (zeros, "it has more than 8192 bytes"),
    ];
    for (archive, expected) in cases {
        let archives = [archive];
        let limits = if expected.contains("memory") {
            Limits {
                entries: 1_000_000,
                content: 1 << 20,
                ..limits
            }
        } else {
            limits
        };
        let error = chain(&merge(&borrowed(&archives), &limits).unwrap_err());
        assert!(error.ends_with(expected), "{error}");
    }
}
