//! Layers of an image, merged and given on.

use std::{
    collections::BTreeSet,
    io::{self, Read},
};

use volant_layers::{Entry, Kind, Layer, Limits, Sink, TarSink, Tree, merge};

use crate::program;

/// Small, so that it is the limits that end a hostile stream and not the fuzzer's patience.
const LIMITS: Limits = Limits {
    entries: 10_000,
    memory: 16 << 20,
    content: 1 << 20,
};

struct Stream(Vec<u8>);

impl Layer for Stream {
    fn open(&self) -> io::Result<Box<dyn Read + '_>> {
        Ok(Box::new(self.0.as_slice()))
    }

    fn name(&self) -> String {
        "layer".to_owned()
    }
}

/// Merges the layers that `bytes` mean. No path leaves the root, folders come first, and what is written as one
/// layer merges to the same again.
pub fn layers(bytes: &[u8]) {
    let streams: Vec<Stream> = program::layers(bytes).into_iter().map(Stream).collect();
    let layers: Vec<&dyn Layer> = streams.iter().map(|stream| stream as &dyn Layer).collect();
    let Ok(tree) = merge(&layers, &LIMITS) else {
        return;
    };
    let mut checker = Checker::default();
    let mut told = 0;
    tree.emit(&layers, &mut checker, &mut |count| told += count)
        .expect("what was merged can be read again");
    assert_eq!(told, tree.size(), "progress ends at the size");
    assert_eq!(checker.paths.len(), tree.iter().count());

    let written = tar(&tree, &layers);
    let layer = Stream(written);
    let again: [&dyn Layer; 1] = [&layer];
    let tree = merge(&again, &Limits::default()).expect("what was written is a layer");
    assert!(
        tar(&tree, &again) == layer.0,
        "a layer of the whole tree is that tree"
    );
}

fn tar(tree: &Tree, layers: &[&dyn Layer]) -> Vec<u8> {
    let mut sink = TarSink::new(Vec::new());
    tree.emit(layers, &mut sink, &mut |_| {})
        .expect("memory can be written to");
    sink.finish().expect("memory can be written to")
}

/// What was given so far.
#[derive(Default)]
struct Checker {
    paths: BTreeSet<Vec<u8>>,
    folders: BTreeSet<Vec<u8>>,
}

impl Checker {
    fn see(&mut self, path: &[u8]) {
        if !path.is_empty() {
            let mut parts = path.split(|byte| *byte == b'/');
            assert!(
                parts.all(|part| !matches!(part, b"" | b"." | b"..") && !part.contains(&0)),
                "{} leaves its folder",
                path.escape_ascii()
            );
            let folder = path.iter().rposition(|byte| *byte == b'/');
            assert!(
                self.folders.contains(&path[..folder.unwrap_or(0)]),
                "{} comes before its folder",
                path.escape_ascii()
            );
        }
        assert!(self.paths.insert(path.to_vec()), "a path comes twice");
    }
}

impl Sink for Checker {
    fn node(&mut self, entry: &Entry<'_>) -> io::Result<()> {
        self.see(entry.path);
        match entry.inode.kind {
            Kind::Directory => {
                self.folders.insert(entry.path.to_vec());
            }
            Kind::File(_) => panic!("a file comes without its content"),
            _ => {}
        }
        Ok(())
    }

    fn file(&mut self, entry: &Entry<'_>, content: &mut dyn Read) -> io::Result<()> {
        self.see(entry.path);
        let read = io::copy(content, &mut io::sink())?;
        assert_eq!(read, entry.inode.size(), "a file has the size it says");
        Ok(())
    }

    fn link(&mut self, entry: &Entry<'_>, target: &[u8]) -> io::Result<()> {
        assert!(
            self.paths.contains(target),
            "a link comes before its target"
        );
        assert!(!self.folders.contains(target), "a link is to a folder");
        self.see(entry.path);
        Ok(())
    }
}
