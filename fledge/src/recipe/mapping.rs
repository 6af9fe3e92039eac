//! Files of the host in the plugin's root.

use std::path::{Component, PathBuf};

use schemars::JsonSchema;
use serde::Deserialize;

/// A file or folder of the host, and where the guest has it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FileMapping {
    /// Relative to the folder of `fledge.toml`, or absolute.
    pub source: PathBuf,
    /// An absolute path in the guest, without `..`.
    #[schemars(with = "String")]
    pub dest: Dest,
    /// For a file alone. By default 0755 when its owner may execute it, else 0644.
    #[schemars(with = "Option<u32>")]
    pub mode: Option<Mode>,
}

/// An absolute path in the guest, without `..`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct Dest(pub PathBuf);

/// Permission bits, up to 0o7777.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "i64")]
pub struct Mode(pub u32);

impl TryFrom<String> for Dest {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let shown = text.escape_debug();
        if !text.starts_with('/') {
            return Err(format!("dest '{shown}' is not an absolute path"));
        }
        let path = PathBuf::from(&text);
        if text.contains('\0') || path.components().any(|part| part == Component::ParentDir) {
            return Err(format!("dest '{shown}' has '..' or a NUL character in it"));
        }
        if text.len() > 1 && text.ends_with('/') {
            return Err(format!(
                "dest '{shown}' ends with '/'; write the whole path of the file or folder"
            ));
        }
        Ok(Self(path))
    }
}

impl TryFrom<i64> for Mode {
    type Error = String;

    fn try_from(value: i64) -> Result<Self, String> {
        let digits = value.to_string();
        // 755 where 0o755 was meant: as octal it would be a sticky file, which nobody wants.
        if (0o1000..1000).contains(&value) && digits.bytes().all(|digit| digit < b'8') {
            return Err(format!("mode {value} is a decimal number; write 0o{value}"));
        }
        u32::try_from(value)
            .ok()
            .filter(|mode| *mode <= 0o7777)
            .map(Self)
            .ok_or_else(|| format!("mode {value} is more than 0o7777 or negative"))
    }
}
