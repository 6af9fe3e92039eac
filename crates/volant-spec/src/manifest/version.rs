//! A plugin's version, and which of two is the newer.

use std::{cmp::Ordering, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A plugin's version: 1 to 64 characters of `A-Z a-z 0-9 . _ + -`.
///
/// Versions are ordered as semantic versions are, loosely: parts between dots compare as numbers where both are; `1.0-rc1`
/// comes before `1.0`; what follows a `+` decides last. Texts that differ never compare as equal.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Version(String);

/// The longest version, in characters.
pub const MAX_VERSION_LEN: usize = 64;

impl Version {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Release, pre-release, build.
    fn parts(&self) -> (&str, Option<&str>, &str) {
        let (rest, build) = self.0.split_once('+').unwrap_or((&self.0, ""));
        match rest.split_once('-') {
            Some((release, pre)) => (release, Some(pre), build),
            None => (rest, None, build),
        }
    }
}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        let (release, pre, build) = self.parts();
        let (other_release, other_pre, other_build) = other.parts();
        segments(release, other_release)
            .then_with(|| match (pre, other_pre) {
                (None, None) => Ordering::Equal,
                (None, Some(_)) => Ordering::Greater,
                (Some(_), None) => Ordering::Less,
                (Some(pre), Some(other)) => segments(pre, other),
            })
            .then_with(|| segments(build, other_build))
            // 1.0 and 1.00 are alike up to here.
            .then_with(|| self.0.cmp(&other.0))
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Compares piece by piece: runs of digits as numbers, other runs as texts; a number is above a text, more pieces are above
/// fewer.
fn segments(one: &str, other: &str) -> Ordering {
    let mut others = pieces(other);
    for piece in pieces(one) {
        let Some(other) = others.next() else {
            return Ordering::Greater;
        };
        let order = match (number(piece), number(other)) {
            (Some(one), Some(other)) => one.len().cmp(&other.len()).then_with(|| one.cmp(other)),
            (Some(_), None) => Ordering::Greater,
            (None, Some(_)) => Ordering::Less,
            (None, None) => piece.cmp(other),
        };
        if order.is_ne() {
            return order;
        }
    }
    match others.next() {
        Some(_) => Ordering::Less,
        None => Ordering::Equal,
    }
}

fn pieces(text: &str) -> impl Iterator<Item = &str> {
    text.split(['.', '_', '-'])
        .flat_map(|part| {
            part.as_bytes()
                .chunk_by(|a, b| a.is_ascii_digit() == b.is_ascii_digit())
        })
        // Pieces of ASCII text are ASCII text.
        .map(|piece| std::str::from_utf8(piece).unwrap_or_default())
}

/// The digits without leading zeros.
fn number(piece: &str) -> Option<&str> {
    piece
        .bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| piece.trim_start_matches('0'))
}

impl FromStr for Version {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let fits = (1..=MAX_VERSION_LEN).contains(&text.len())
            && text
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '+' | '-'));
        if fits {
            Ok(Self(text.to_owned()))
        } else {
            let start: String = text.chars().take(MAX_VERSION_LEN).collect();
            Err(format!(
                "version '{}' is not 1 to {MAX_VERSION_LEN} characters of A-Z a-z 0-9 . _ + -",
                start.escape_debug()
            ))
        }
    }
}

impl TryFrom<String> for Version {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Version> for String {
    fn from(version: Version) -> Self {
        version.0
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_in_the_order_that_people_mean() {
        let sorted = [
            "0.9",
            "1.0.0-alpha",
            "1.0.0-alpha.1",
            "1.0.0-beta",
            "1.0.0-rc2",
            "1.0.0-rc10",
            "1.0.0",
            "1.0.0+1",
            "1.0.0+2",
            "1.0.1",
            "1.2",
            "1.10",
            "2.0",
            "10",
            "99999999999999999999999.1",
        ];
        for (at, one) in sorted.iter().enumerate() {
            for (other_at, other) in sorted.iter().enumerate() {
                let (one, other): (Version, Version) =
                    (one.parse().unwrap(), other.parse().unwrap());
                assert_eq!(one.cmp(&other), at.cmp(&other_at), "{one} {other}");
            }
        }
    }

    #[test]
    fn different_texts_are_never_equal() {
        let (one, other): (Version, Version) = ("1.0".parse().unwrap(), "1.00".parse().unwrap());
        assert_ne!(one.cmp(&other), Ordering::Equal);
        assert_eq!(one.cmp(&other), other.cmp(&one).reverse());
    }
}
