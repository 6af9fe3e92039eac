//! The JSON Schemas in `docs/schemas`, from the types of the code.

use std::fs;

use anyhow::{Context, Result};
use fledge::schema::Document;

use crate::build::workspace;

/// Writes them all.
///
/// # Errors
/// A file cannot be written.
pub fn write() -> Result<()> {
    let folder = workspace().join("docs/schemas");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    for document in Document::ALL {
        let path = folder.join(document.file_name());
        fs::write(&path, document.schema())
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
