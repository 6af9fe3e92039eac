//! The key that is to be trusted, and the file that it becomes.

use std::{
    fmt,
    fs::File,
    io::{self, Read},
    path::Path,
};

use serde_json::{Value, json};
use volant_spec::Name;
use volant_trust::{Pattern, PublicKey, TrustedKey, key_file};

use super::TrustError;
use crate::args::AddKey;

/// No file with a public key is larger, in bytes.
const MAX_BYTES: u64 = 16 * 1024;

/// A key to trust.
#[derive(Debug)]
pub struct NewKey {
    pub name: String,
    pub key: PublicKey,
    /// What its file says.
    pub text: String,
    plugins: Vec<Pattern>,
    comment: Option<String>,
    is_limited: bool,
}

impl NewKey {
    /// Reads what was given: the key itself, or the file that it is in.
    pub fn of(given: &AddKey) -> Result<Self, TrustError> {
        let (key, usual_name) = match PublicKey::parse(&given.key) {
            Ok(key) => {
                let id = key.id().to_string().to_lowercase();
                (key, Ok(id))
            }
            Err(source) if is_meant_as_key(&given.key) => {
                let text = given.key.clone();
                return Err(TrustError::Key { text, source });
            }
            Err(_) => {
                let path = Path::new(&given.key);
                let text = read(path).map_err(|source| TrustError::NoKey {
                    text: given.key.clone(),
                    source,
                })?;
                let key = PublicKey::parse(&text).map_err(|source| TrustError::KeyFile {
                    path: path.to_owned(),
                    source,
                })?;
                let stem = path.file_stem().unwrap_or_default().to_string_lossy();
                let name = stem.parse::<Name>().map(String::from);
                (key, name.map_err(|_| TrustError::Name(stem.into_owned())))
            }
        };
        let name = match &given.name {
            Some(name) => name.to_string(),
            None => usual_name?,
        };
        let is_limited = !given.plugins.is_empty() || given.comment.is_some();
        let plugins = match given.plugins.as_slice() {
            [] => vec![Pattern::any()],
            patterns => patterns.to_vec(),
        };
        let text = if is_limited {
            key_file(&key, &plugins, given.comment.as_deref()).map_err(TrustError::Content)?
        } else {
            key.to_file()
        };
        Ok(Self {
            name,
            key,
            text,
            plugins,
            comment: given.comment.clone(),
            is_limited,
        })
    }

    /// minisign's own form where that says all.
    pub fn file_name(&self) -> String {
        let ending = if self.is_limited { "toml" } else { "pub" };
        format!("{}.{ending}", self.name)
    }

    /// Whether a key that is trusted already is this one, for the same plugins. A comment that was not given is no matter.
    pub fn is(&self, there: &TrustedKey) -> bool {
        self.key.to_string() == there.key.to_string()
            && self.plugins == there.plugins
            && (self.comment.is_none() || self.comment == there.comment)
    }

    pub fn patterns(&self) -> String {
        if self.plugins == [Pattern::any()] {
            return "all plugins".to_owned();
        }
        let patterns: Vec<&str> = self.plugins.iter().map(Pattern::as_str).collect();
        patterns.join(", ")
    }

    pub fn view(&self, folder: &Path) -> Value {
        json!({
            "name": self.name, "key_id": self.key.id().to_string(), "public_key": self.key.to_string(),
            "plugins": self.plugins, "comment": self.comment, "file": folder.join(self.file_name()),
        })
    }
}

/// `key NAME (ID)`.
impl fmt::Display for NewKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "key {} ({})", self.name, self.key.id())
    }
}

/// A key with a slip of the pen is no file that is missing.
fn is_meant_as_key(text: &str) -> bool {
    text.starts_with("RW") && !Path::new(text).exists()
}

fn read(path: &Path) -> io::Result<String> {
    if !path.metadata()?.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    let mut text = String::new();
    File::open(path)?
        .take(MAX_BYTES)
        .read_to_string(&mut text)?;
    Ok(text)
}
