//! The two forms of a file in the folder of trusted keys.
//!
//! `NAME.pub` is minisign's file, and its key may sign any plugin. `NAME.toml` says which:
//! ```toml
//! public_key = "RWQ…"
//! plugins = ["caddy", "acme-*"]
//! comment = "of our builds"
//! ```

use serde::{Deserialize, Serialize};

use crate::{
    lines::is_plain,
    pattern::Pattern,
    public::{PublicKey, PublicKeyError},
};

/// The longest comment that is kept, in bytes.
const MAX_COMMENT_BYTES: usize = 1024;
/// The most patterns of one key.
const MAX_PATTERNS: usize = 256;

/// What a file of either form says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct KeyFile {
    pub key: PublicKey,
    pub plugins: Vec<Pattern>,
    pub comment: Option<String>,
}

/// Why a file gives no trusted key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyFileError {
    #[error(transparent)]
    Key(#[from] PublicKeyError),
    /// The text names the line.
    #[error("{0}")]
    Toml(String),
    #[error("public_key: {0}")]
    PublicKey(PublicKeyError),
    #[error("plugins is empty: the key could sign nothing; plugins = [\"*\"] is any name")]
    NoPatterns,
    #[error("plugins has {0} patterns; at most {MAX_PATTERNS} are allowed")]
    Patterns(usize),
    #[error("comment is not one line of at most {MAX_COMMENT_BYTES} bytes")]
    Comment,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Toml {
    public_key: String,
    plugins: Vec<Pattern>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    comment: Option<String>,
}

/// The text of a `NAME.toml` that trusts `key` for `plugins`.
///
/// # Errors
/// What the text would say could not be read back.
pub fn key_file(
    key: &PublicKey,
    plugins: &[Pattern],
    comment: Option<&str>,
) -> Result<String, KeyFileError> {
    let file = Toml {
        public_key: key.to_string(),
        plugins: plugins.to_vec(),
        comment: comment.map(str::to_owned),
    };
    let text = toml::to_string(&file).map_err(|error| KeyFileError::Toml(error.to_string()))?;
    parse_toml(&text)?;
    Ok(text)
}

pub(crate) fn parse_pub(text: &str) -> Result<KeyFile, KeyFileError> {
    let key = PublicKey::parse(text)?;
    let comment = key.comment().map(str::to_owned);
    Ok(KeyFile {
        plugins: vec![Pattern::any()],
        comment: checked(comment)?,
        key,
    })
}

pub(crate) fn parse_toml(text: &str) -> Result<KeyFile, KeyFileError> {
    let file: Toml = toml::from_str(text)
        .map_err(|error| KeyFileError::Toml(error.to_string().trim_end().to_owned()))?;
    match file.plugins.len() {
        0 => return Err(KeyFileError::NoPatterns),
        1..=MAX_PATTERNS => (),
        more => return Err(KeyFileError::Patterns(more)),
    }
    Ok(KeyFile {
        key: PublicKey::parse(&file.public_key).map_err(KeyFileError::PublicKey)?,
        plugins: file.plugins,
        comment: checked(file.comment)?,
    })
}

fn checked(comment: Option<String>) -> Result<Option<String>, KeyFileError> {
    match comment {
        Some(text) if text.len() > MAX_COMMENT_BYTES || !is_plain(&text) => {
            Err(KeyFileError::Comment)
        }
        comment => Ok(comment),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3";

    #[test]
    fn a_written_file_is_read_back() {
        let key = PublicKey::parse(KEY).unwrap();
        let plugins = ["caddy".parse().unwrap(), "acme-*".parse().unwrap()];
        let text = key_file(&key, &plugins, Some("our \"builds\"")).unwrap();
        let read = parse_toml(&text).unwrap();
        assert_eq!(read.key, key);
        assert_eq!(read.plugins, plugins);
        assert_eq!(read.comment.as_deref(), Some("our \"builds\""));
        assert_eq!(key_file(&key, &[], None), Err(KeyFileError::NoPatterns));
        assert_eq!(
            key_file(&key, &plugins, Some("a\nb")),
            Err(KeyFileError::Comment)
        );
    }

    #[test]
    fn minisigns_own_file_is_trusted_for_any_name() {
        let read = parse_pub(&format!("untrusted comment: me\n{KEY}\n")).unwrap();
        assert_eq!(read.plugins, [Pattern::any()]);
        assert_eq!(read.comment.as_deref(), Some("me"));
    }

    #[test]
    fn a_mistake_is_named_with_its_line() {
        let key = format!("public_key = '{KEY}'\n");
        for (text, expected) in [
            (key.clone(), "missing field `plugins`"),
            (format!("{key}plugins = []"), "plugins is empty"),
            (format!("{key}plugins = ['A']"), "line 2"),
            (format!("{key}plugins = ['A']"), "has 'A' in it"),
            (format!("{key}\nplugin = ['a']"), "unknown field `plugin`"),
            (
                "plugins = ['*']\npublic_key = 'x'".into(),
                "public_key: this is no minisign",
            ),
            ("public_key".into(), "line 1"),
        ] {
            let error = parse_toml(&text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
