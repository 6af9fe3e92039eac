//! An index of plugins: a JSON file on a web server, which anyone can keep.

use serde::{Deserialize, Serialize};

use crate::{
    Digest, Name,
    manifest::{SchemaVersion, Version},
};

/// The largest index that is read, in bytes.
pub const MAX_BYTES: usize = 16 * 1024 * 1024;

/// An index. Unknown fields are passed over: whoever keeps it may say more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Index {
    #[cfg_attr(feature = "schema", schemars(with = "crate::schema::SchemaVersion"))]
    pub schema_version: SchemaVersion,
    pub plugins: Vec<Entry>,
}

/// A plugin in an index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Entry {
    #[cfg_attr(feature = "schema", schemars(with = "crate::schema::Name"))]
    pub name: Name,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    pub versions: Vec<Release>,
}

/// A version of a plugin in an index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Release {
    #[cfg_attr(feature = "schema", schemars(with = "crate::schema::Version"))]
    pub version: Version,
    /// Where its manifest is: a URL, also relative to the index's; or `oci://HOST/REPO[:TAG|@DIGEST]`.
    pub manifest: String,
    /// Of the manifest's bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<crate::schema::Digest>"))]
    pub checksum: Option<Digest>,
}

/// Why bytes are no [`Index`].
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    #[error("the index has {0} bytes; at most {MAX_BYTES} are read")]
    TooLarge(usize),
    #[error("the index is not valid")]
    Json(#[source] serde_json::Error),
}

impl Index {
    /// Reads an index from JSON.
    ///
    /// # Errors
    /// Too large, or not valid: the source names the field, line and column.
    pub fn parse(bytes: &[u8]) -> Result<Self, IndexError> {
        if bytes.len() > MAX_BYTES {
            return Err(IndexError::TooLarge(bytes.len()));
        }
        serde_json::from_slice(bytes).map_err(IndexError::Json)
    }

    /// The release of that name and version; without a version, the newest.
    #[must_use]
    pub fn find(&self, name: &Name, version: Option<&Version>) -> Option<&Release> {
        self.plugins
            .iter()
            .filter(|entry| entry.name == *name)
            .flat_map(|entry| &entry.versions)
            .filter(|release| version.is_none_or(|version| release.version == *version))
            .max_by(|one, other| one.version.cmp(&other.version))
    }

    /// The entries whose name or description has that text in it, whatever the case.
    pub fn search<'a>(&'a self, text: &str) -> impl Iterator<Item = &'a Entry> {
        let text = text.to_lowercase();
        self.plugins.iter().filter(move |entry| {
            let has = |field: &str| field.to_lowercase().contains(&text);
            has(entry.name.as_str()) || entry.description.as_deref().is_some_and(has)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index() -> Index {
        let json = serde_json::json!({
            "schema_version": "1", "maintainer": "x",
            "plugins": [
                {"name": "caddy", "description": "A Web server", "versions": [
                    {"version": "2.10.0", "manifest": "caddy/2.10.0.json"},
                    {"version": "2.6.2", "manifest": "oci://a.example/caddy:2.6.2"},
                ]},
                {"name": "empty", "versions": []},
            ],
        });
        Index::parse(&serde_json::to_vec(&json).unwrap()).unwrap()
    }

    #[test]
    fn a_release_is_found_by_name_the_newest_unless_told() {
        let (caddy, empty): (Name, Name) = ("caddy".parse().unwrap(), "empty".parse().unwrap());
        let version: Version = "2.6.2".parse().unwrap();
        let index = index();
        assert_eq!(index.find(&caddy, None).unwrap().version.as_str(), "2.10.0");
        assert_eq!(
            index.find(&caddy, Some(&version)).unwrap().manifest,
            "oci://a.example/caddy:2.6.2"
        );
        assert_eq!(index.find(&empty, None), None);
    }

    #[test]
    fn a_search_looks_into_names_and_descriptions() {
        let index = index();
        for (text, found) in [("CADDY", 1), ("web", 1), ("", 2), ("nginx", 0)] {
            assert_eq!(index.search(text).count(), found, "{text}");
        }
    }
}
