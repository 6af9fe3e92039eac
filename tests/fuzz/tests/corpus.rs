//! Feeds the kept corpus to every target: what a fuzzer once found stays found.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use std::{fs, path::Path};

#[test]
fn the_kept_corpus_finds_nothing() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus");
    for (name, target) in volant_fuzz::TARGETS {
        let mut count = 0;
        for entry in fs::read_dir(corpus.join(name)).unwrap() {
            let path = entry.unwrap().path();
            let bytes = fs::read(&path).unwrap();
            if std::panic::catch_unwind(|| target(&bytes)).is_err() {
                panic!("the target {name} finds something with {}", path.display());
            }
            count += 1;
        }
        assert!(count > 0, "the target {name} has no corpus");
    }
}
