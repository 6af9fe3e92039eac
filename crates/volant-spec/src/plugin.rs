//! How a plugin is named: `caddy`, or `caddy@2.6.2`.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{Name, manifest::Version, name::NameError};

/// A plugin, or one version of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PluginRef {
    pub name: Name,
    /// Absent: the newest that is enabled.
    pub version: Option<Version>,
}

/// Why a text is no [`PluginRef`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PluginRefError {
    #[error(transparent)]
    Name(#[from] NameError),
    #[error("{0}")]
    Version(String),
}

impl FromStr for PluginRef {
    type Err = PluginRefError;

    fn from_str(text: &str) -> Result<Self, PluginRefError> {
        let (name, version) = match text.split_once('@') {
            Some((name, version)) => (name, Some(version)),
            None => (text, None),
        };
        Ok(Self {
            name: name.parse()?,
            version: version
                .map(str::parse)
                .transpose()
                .map_err(PluginRefError::Version)?,
        })
    }
}

impl TryFrom<String> for PluginRef {
    type Error = PluginRefError;

    fn try_from(text: String) -> Result<Self, PluginRefError> {
        text.parse()
    }
}

impl From<PluginRef> for String {
    fn from(plugin: PluginRef) -> Self {
        plugin.to_string()
    }
}

impl From<Name> for PluginRef {
    fn from(name: Name) -> Self {
        Self {
            name,
            version: None,
        }
    }
}

impl fmt::Display for PluginRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.version {
            Some(version) => write!(f, "{}@{version}", self.name),
            None => self.name.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plugin_is_named_with_or_without_its_version() {
        for (text, version) in [("caddy", None), ("caddy@2.6.2", Some("2.6.2"))] {
            let plugin: PluginRef = text.parse().unwrap();
            assert_eq!(plugin.name.as_str(), "caddy");
            assert_eq!(plugin.version.as_ref().map(Version::as_str), version);
            assert_eq!(plugin.to_string(), text);
        }
        for text in ["", "@1", "caddy@", "caddy@a b", "caddy@1@2", "a/b@1"] {
            assert!(text.parse::<PluginRef>().is_err(), "{text}");
        }
    }
}
