//! Patterns of plugin names: which plugins a key may sign.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use volant_spec::Name;

/// The longest pattern, in characters: a name with a `*` at every place makes no more sense.
const MAX_LEN: usize = 2 * volant_spec::name::MAX_LEN;

/// A plugin's name in which each `*` stands for any characters, or none.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pattern(String);

/// Why a text is no [`Pattern`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    #[error("a pattern of plugin names cannot be empty; '*' is any name")]
    Empty,
    #[error("the pattern has {0} characters; at most {MAX_LEN} are allowed")]
    TooLong(usize),
    #[error("the pattern '{}' has '{}' in it; only a-z, 0-9, '-' and '*' are allowed", .pattern.escape_debug(), .found.escape_debug())]
    Character { pattern: String, found: char },
}

impl Pattern {
    /// The pattern of every name.
    #[must_use]
    pub fn any() -> Self {
        Self("*".to_owned())
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    #[must_use]
    pub fn matches(&self, name: &Name) -> bool {
        let mut name = name.as_str();
        let Some((first, rest)) = self.0.split_once('*') else {
            return name == self.0;
        };
        match name.strip_prefix(first) {
            Some(after) => name = after,
            None => return false,
        }
        let (middle, last) = rest.rsplit_once('*').unwrap_or(("", rest));
        // The earliest place of each part leaves the most to those after it.
        for part in middle.split('*') {
            match name.split_once(part) {
                Some((_, after)) => name = after,
                None => return false,
            }
        }
        name.ends_with(last)
    }
}

impl FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        if text.is_empty() {
            return Err(PatternError::Empty);
        }
        let len = text.chars().count();
        if len > MAX_LEN {
            return Err(PatternError::TooLong(len));
        }
        let odd = |c: &char| !matches!(c, 'a'..='z' | '0'..='9' | '-' | '*');
        match text.chars().find(odd) {
            Some(found) => Err(PatternError::Character {
                pattern: text.to_owned(),
                found,
            }),
            None => Ok(Self(text.to_owned())),
        }
    }
}

impl TryFrom<String> for Pattern {
    type Error = PatternError;

    fn try_from(text: String) -> Result<Self, PatternError> {
        text.parse()
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> Self {
        pattern.0
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matches(pattern: &str, name: &str) -> bool {
        let pattern: Pattern = pattern.parse().unwrap();
        pattern.matches(&name.parse().unwrap())
    }

    #[test]
    fn a_star_stands_for_any_characters() {
        for (pattern, names) in [
            ("*", &["a", "caddy", "a-b"][..]),
            ("**", &["a"]),
            ("caddy", &["caddy"]),
            ("acme-*", &["acme-web", "acme-x-y"]),
            ("*-web", &["acme-web", "a-web"]),
            ("a*b*c", &["abc", "axbxc", "abbcc", "aabbcbc"]),
        ] {
            for name in names {
                assert!(matches(pattern, name), "{pattern} {name}");
            }
        }
        for (pattern, names) in [
            ("caddy", &["caddy2", "acaddy"][..]),
            ("acme-*", &["acme", "xacme-a"]),
            ("a*a", &["a"]),
            ("a*b*c", &["acb", "ab", "abcd"]),
            ("ab*ba", &["aba"]),
        ] {
            for name in names {
                assert!(!matches(pattern, name), "{pattern} {name}");
            }
        }
    }

    #[test]
    fn a_pattern_that_no_name_fits_is_told_why() {
        let long = "a".repeat(MAX_LEN + 1);
        for (text, expected) in [
            ("", "cannot be empty"),
            ("Caddy", "has 'C' in it"),
            ("a?b", "has '?' in it"),
            ("[a]", "has '[' in it"),
            (&long, "has 127 characters"),
        ] {
            let error = text.parse::<Pattern>().unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    /// As slow and plain as can be.
    fn model(pattern: &[u8], name: &[u8]) -> bool {
        match (pattern.split_first(), name.split_first()) {
            (None, None) => true,
            (Some((b'*', rest)), _) => {
                (0..=name.len()).any(|skipped| model(rest, &name[skipped..]))
            }
            (Some((a, rest)), Some((b, after))) => a == b && model(rest, after),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn a_pattern_matches_as_its_model(pattern in "[ab*]{1,8}", name in "[ab]{1,10}") {
            prop_assert_eq!(matches(&pattern, &name), model(pattern.as_bytes(), name.as_bytes()));
        }
    }
}
