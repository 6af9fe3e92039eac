//! Names of VMs, plugins and deployments: RFC 1123 labels.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// An RFC 1123 label: 1 to 63 characters of `a-z`, `0-9` and `-`, with no hyphen at either end.
///
/// It is therefore safe as a file name, a unit's instance, a host name and a D-Bus name's part.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// The longest name, in characters.
pub const MAX_LEN: usize = 63;

/// Why a text is not a [`Name`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("a name cannot be empty")]
    Empty,
    #[error("the name '{}…' has {len} characters; at most {MAX_LEN} are allowed", .start.escape_debug())]
    TooLong { start: String, len: usize },
    #[error("the name '{}' has '{}' in it; only a-z, 0-9 and '-' are allowed", .name.escape_debug(), .found.escape_debug())]
    Character { name: String, found: char },
    #[error(
        "the name '{0}' begins or ends with '-'; it must begin and end with a letter or a digit"
    )]
    Hyphen(String),
}

impl Name {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        let len = text.chars().count();
        if len > MAX_LEN {
            return Err(NameError::TooLong {
                start: text.chars().take(20).collect(),
                len,
            });
        }
        if let Some(found) = text
            .chars()
            .find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '-'))
        {
            return Err(NameError::Character {
                name: text.to_owned(),
                found,
            });
        }
        if text.starts_with('-') || text.ends_with('-') {
            return Err(NameError::Hyphen(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for Name {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for Name {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_names() {
        let longest = "a".repeat(MAX_LEN);
        for text in ["a", "web", "web-1", "9lives", "a--b", longest.as_str()] {
            assert_eq!(text.parse::<Name>().unwrap().as_str(), text);
        }
    }

    #[test]
    fn everything_else_is_refused_and_told_why() {
        let too_long = "a".repeat(MAX_LEN + 1);
        let cases = [
            ("", "cannot be empty"),
            ("a/b", "has '/' in it"),
            ("..", "has '.' in it"),
            ("Web", "has 'W' in it"),
            ("web_1", "has '_' in it"),
            ("a b", "has ' ' in it"),
            ("a\nb", "has '\\n' in it"),
            ("wéb", "has 'é' in it"),
            ("-web", "begins or ends with '-'"),
            ("web-", "begins or ends with '-'"),
            (&too_long, "has 64 characters"),
        ];
        for (text, expected) in cases {
            let error = text.parse::<Name>().unwrap_err().to_string();
            assert!(error.contains(expected), "{text:?}: {error}");
        }
    }
}
