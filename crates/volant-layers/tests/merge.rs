//! What is left of layers, one over the other.

#![allow(clippy::unwrap_used, reason = "a test may fail loudly")]

mod common;

use common::{Archive, Seen, merged};
use volant_layers::{Layer, Limits, merge};

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

/// What is no layer of an image.
struct Whole(Archive);

impl Layer for Whole {
    fn open(&self) -> std::io::Result<Box<dyn std::io::Read + '_>> {
        self.0.open()
    }

    fn name(&self) -> String {
        self.0.name()
    }

    fn whiteouts(&self) -> bool {
        false
    }
}

#[test]
fn without_whiteouts_their_names_are_ordinary() {
    let names = [
        ".wh.b",
        "a/.wh..wh..opq",
        ".wh..wh.plnk/1",
        ".wh.d/x",
        ".wh.",
        ".wh..wh.aufs",
    ];
    let upper = names
        .iter()
        .fold(layer(), |layer, name| layer.file(name, ""))
        .symlink("l", ".wh.new")
        .file("l/y", "");
    let lower = base();
    let whole = Whole(upper);
    let layers: [&dyn Layer; 2] = [&lower, &whole];
    let tree = merge(&layers, &Limits::default()).unwrap();
    let kept = ["b", "a/x", "a/d/y", ".wh.new/y"];
    for path in kept.iter().chain(&names) {
        assert!(tree.get(path.as_bytes()).is_some(), "{path}");
    }
    Seen::emitted(&tree, &layers);
}
