//! `fledge schema`: the JSON Schemas of what people write, for editors and checkers.

use std::io::Write;

use anyhow::{Context, Result};
use fledge::schema::Document;

#[derive(clap::Args)]
pub struct Schema {
    /// Of which document
    #[arg(value_enum)]
    document: Document,
}

pub fn run(args: &Schema) -> Result<()> {
    std::io::stdout()
        .write_all(args.document.schema().as_bytes())
        .context("cannot write to standard output")
}
