//! The message catalog explains all that vmd says with a `MESSAGE_ID=`, and nothing else.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends here")]

use std::{collections::BTreeSet, fs, path::Path};

/// What looks like an id, as a text of its own: 32 lower-case hex digits between quotes.
fn ids_in(source: &str) -> impl Iterator<Item = String> {
    source
        .split('"')
        .filter(|text| is_id(text))
        .map(str::to_owned)
}

fn is_id(text: &str) -> bool {
    text.len() == 32
        && text
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

fn said(folder: &Path, ids: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            said(&path, ids);
        } else {
            for id in ids_in(&fs::read_to_string(&path).unwrap()) {
                assert!(
                    ids.insert(id.clone()),
                    "{id} is there twice, also in {}",
                    path.display()
                );
            }
        }
    }
}

#[test]
fn each_message_is_explained_once_and_no_explanation_is_for_nothing() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut said_ids = BTreeSet::new();
    said(&root.join("src"), &mut said_ids);
    assert!(said_ids.len() > 20, "{said_ids:?}");

    let catalog = fs::read_to_string(root.join("../../units/volant.catalog")).unwrap();
    let mut explained = BTreeSet::new();
    for entry in catalog.split("\n-- ").skip(1) {
        let (id, text) = entry.split_once('\n').unwrap();
        assert!(is_id(id), "{id}");
        assert!(explained.insert(id.to_owned()), "{id} is explained twice");
        let (head, body) = text.split_once("\n\n").unwrap();
        for needed in ["Subject: ", "Defined-By: Volant", "Support: https://"] {
            assert!(head.contains(needed), "{id} has no {needed}");
        }
        assert!(body.trim().len() > 30, "{id} says nothing");
        // Fields that all entries have, or those of this message.
        for field in text.split('@').skip(1) {
            let is_field =
                !field.is_empty() && field.bytes().all(|b| b.is_ascii_uppercase() || b == b'_');
            if is_field {
                assert!(
                    ["VOLANT_VM", "VOLANT_RUNG"].contains(&field),
                    "{id}: {field}"
                );
            }
        }
    }
    assert_eq!(explained, said_ids);
}
