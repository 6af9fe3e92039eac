//! The JSON Schemas of the documents that people write. They are made from the types that read those documents.

use schemars::Schema;
use serde_json::Value;
use volant_spec::{Manifest, VmConfig, index::Index};

use crate::recipe::Recipe;

/// A document with a schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Document {
    /// fledge.toml
    Recipe,
    /// NAME.manifest.json
    Manifest,
    /// An index of plugins
    Index,
    /// A VM's own configuration
    VmConfig,
}

impl Document {
    pub const ALL: [Self; 4] = [Self::Recipe, Self::Manifest, Self::Index, Self::VmConfig];

    /// The schema's file name in `docs/schemas`.
    #[must_use]
    pub fn file_name(self) -> &'static str {
        match self {
            Self::Recipe => "fledge-toml-v1.json",
            Self::Manifest => "plugin-manifest-v1.json",
            Self::Index => "plugin-index-v1.json",
            Self::VmConfig => "vm-config-v1.json",
        }
    }

    /// The schema as JSON text.
    #[must_use]
    pub fn schema(self) -> String {
        let schema: Schema = match self {
            Self::Recipe => Recipe::schema(),
            Self::Manifest => schemars::schema_for!(Manifest),
            Self::Index => schemars::schema_for!(Index),
            Self::VmConfig => schemars::schema_for!(VmConfig),
        };
        let schema = sorted(schema.to_value());
        let mut text =
            serde_json::to_string_pretty(&schema).expect("a schema has no keys but texts");
        text.push('\n');
        text
    }
}

/// Keys in their order, whichever map serde_json was built with.
fn sorted(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<_> = map.into_iter().collect();
            entries.sort_by(|one, other| one.0.cmp(&other.0));
            let entries = entries.into_iter();
            entries.map(|(key, value)| (key, sorted(value))).collect()
        }
        Value::Array(list) => list.into_iter().map(sorted).collect(),
        other => other,
    }
}
