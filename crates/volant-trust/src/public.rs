//! Public keys, as minisign writes them: `Ed`, the key's id and the Ed25519 point.

use std::{fmt, str::FromStr};

use ed25519_dalek::VerifyingKey;

use crate::lines::{self, UNTRUSTED, lines};

/// The algorithm in keys of either kind.
pub(crate) const KEY_ALGORITHM: [u8; 2] = *b"Ed";

/// The id of a key pair: random, and no more than a hint which key to try.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub(crate) [u8; 8]);

/// As minisign shows it: 16 hex digits.
impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016X}", u64::from_le_bytes(self.0))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A minisign public key; shown and parsed as its line of base64 (`RWQ…`).
///
/// Two are equal when id and point are, whatever their comments say.
#[derive(Clone)]
pub struct PublicKey {
    pub(crate) id: KeyId,
    pub(crate) key: VerifyingKey,
    comment: Option<String>,
}

/// Why a text is no [`PublicKey`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublicKeyError {
    #[error(
        "this is no minisign public key; one is a line of 56 characters that begins with RWQ, \
         alone or below an 'untrusted comment:' line"
    )]
    Form,
    #[error("this is a secret key; keep it to yourself, and give the public key (a .pub file)")]
    Secret,
    #[error("the key's algorithm is not Ed25519")]
    Algorithm,
    #[error("the key is no point that Ed25519 can verify with")]
    Point,
}

impl PublicKey {
    pub(crate) fn new(id: KeyId, key: VerifyingKey) -> Self {
        let comment = None;
        Self { id, key, comment }
    }

    /// Reads the line of base64, or the file that minisign writes.
    ///
    /// # Errors
    /// The text is something else, or no key that could verify anything.
    pub fn parse(text: &str) -> Result<Self, PublicKeyError> {
        let mut lines = lines(text);
        let mut line = lines.next().unwrap_or_default();
        let comment = line.strip_prefix(UNTRUSTED).map(str::to_owned);
        if comment.is_some() {
            line = lines.next().ok_or(PublicKeyError::Form)?;
        }
        if lines.next().is_some() {
            return Err(PublicKeyError::Form);
        }
        if line.len() > 200 {
            return Err(PublicKeyError::Secret);
        }
        let bytes: [u8; 42] = lines::decode(line.trim()).ok_or(PublicKeyError::Form)?;
        let mut bytes = bytes.as_slice();
        if lines::take(&mut bytes) != KEY_ALGORITHM {
            return Err(PublicKeyError::Algorithm);
        }
        let id = KeyId(lines::take(&mut bytes));
        let key = VerifyingKey::from_bytes(&lines::take(&mut bytes))
            .ok()
            .filter(|key| !key.is_weak())
            .ok_or(PublicKeyError::Point)?;
        Ok(Self { id, key, comment })
    }

    #[must_use]
    pub fn id(&self) -> KeyId {
        self.id
    }

    /// What the file's first line says; nobody has signed it.
    #[must_use]
    pub fn comment(&self) -> Option<&str> {
        self.comment.as_deref()
    }

    /// The file of this key, as minisign writes it.
    #[must_use]
    pub fn to_file(&self) -> String {
        format!("{UNTRUSTED}minisign public key {}\n{self}\n", self.id)
    }
}

impl PartialEq for PublicKey {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id && self.key == other.key
    }
}

impl Eq for PublicKey {}

impl FromStr for PublicKey {
    type Err = PublicKeyError;

    fn from_str(text: &str) -> Result<Self, PublicKeyError> {
        Self::parse(text)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = [&KEY_ALGORITHM, &self.id.0[..], self.key.as_bytes()].concat();
        f.write_str(&lines::encode(&bytes))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3";

    #[test]
    fn a_key_is_read_as_a_line_and_as_a_file() {
        let key = PublicKey::parse(KEY).unwrap();
        assert_eq!(key.id().to_string(), "E7620F1842B4E81F");
        assert_eq!(key.to_string(), KEY);
        assert_eq!(key.comment(), None);
        for file in [
            format!("untrusted comment: of a friend\n{KEY}\n"),
            format!("untrusted comment: of a friend\r\n{KEY}\r\n\r\n"),
        ] {
            let read = PublicKey::parse(&file).unwrap();
            assert_eq!(read.to_string(), KEY);
            assert_eq!(read.comment(), Some("of a friend"));
        }
        let written = PublicKey::parse(&key.to_file()).unwrap();
        assert_eq!(written.to_string(), KEY);
        assert_eq!(
            written.comment(),
            Some("minisign public key E7620F1842B4E81F")
        );
    }

    #[test]
    fn what_is_no_key_is_told_why() {
        let of = |algorithm: &[u8; 2], point: [u8; 32]| {
            lines::encode(&[&algorithm[..], &[7; 8], &point].concat())
        };
        let mut unit = [0; 32];
        unit[0] = 1;
        let mut no_point = [0; 32];
        no_point[0] = 2;
        let cases = [
            (String::new(), PublicKeyError::Form),
            ("RWQ".to_owned(), PublicKeyError::Form),
            (KEY[..55].to_owned(), PublicKeyError::Form),
            (format!("{KEY}\nmore"), PublicKeyError::Form),
            ("untrusted comment: a".to_owned(), PublicKeyError::Form),
            ("A".repeat(212), PublicKeyError::Secret),
            (of(b"ED", [3; 32]), PublicKeyError::Algorithm),
            (of(b"Ed", unit), PublicKeyError::Point),
            (of(b"Ed", no_point), PublicKeyError::Point),
        ];
        for (text, expected) in cases {
            assert_eq!(PublicKey::parse(&text), Err(expected), "{text}");
        }
    }
}
