//! Names of secrets.

use std::{fmt, str::FromStr};

/// The most bytes that a secret may have.
pub const MAX_SECRET_BYTES: usize = 128 * 1024;
/// The most bytes that all secrets of a VM may have together: systemd passes a unit 1 MiB of credentials, and an
/// administrator may have some to add.
pub const MAX_SECRETS_BYTES: usize = 512 * 1024;

const MAX_LEN: usize = 64;

/// A secret's name: 1 to 64 of `A-Z a-z 0-9 . _ -`, not beginning with `.`. It is therefore safe as a file name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SecretName(String);

/// Why a text is not a [`SecretName`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "no secret can have the name '{}'; a name is 1 to {MAX_LEN} of A-Z a-z 0-9 . _ - and does not begin with '.'",
    .0.escape_debug()
)]
pub struct SecretNameError(String);

impl SecretName {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SecretName {
    type Err = SecretNameError;

    fn from_str(text: &str) -> Result<Self, SecretNameError> {
        let is_fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if (1..=MAX_LEN).contains(&text.len())
            && !text.starts_with('.')
            && text.chars().all(is_fine)
        {
            Ok(Self(text.to_owned()))
        } else {
            Err(SecretNameError(text.chars().take(MAX_LEN + 1).collect()))
        }
    }
}

impl fmt::Display for SecretName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
