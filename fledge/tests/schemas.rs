//! The published JSON Schemas are those of the types that read the documents.

#![allow(clippy::unwrap_used, reason = "a test may fail loudly")]

use std::{fs, path::Path};

use fledge::schema::Document;

#[test]
fn the_published_schemas_are_those_of_the_code() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/schemas");
    for document in Document::ALL {
        let path = folder.join(document.file_name());
        let schema = document.schema();
        let published = fs::read_to_string(&path).unwrap_or_default();
        assert!(
            published == schema,
            "{} is not as the code has it; run `cargo xtask schemas`",
            path.display()
        );
    }
}
