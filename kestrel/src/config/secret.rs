//! What the workload alone may know.

use std::fmt;

use volant_proto::agent::v1;

use super::{ConfigError, invalid, is_variable};

const LONGEST_NAME: usize = 255;

/// A file in `/run/secrets`. Its value is in no text that is made of it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    /// A file name: no folder's, nor hidden.
    pub name: String,
    pub value: Vec<u8>,
    /// The variable that has it, too.
    pub env: Option<String>,
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret")
            .field("name", &self.name)
            .field("env", &self.env)
            .finish_non_exhaustive()
    }
}

impl TryFrom<v1::Secret> for Secret {
    type Error = ConfigError;

    fn try_from(secret: v1::Secret) -> Result<Self, ConfigError> {
        let is_name = (1..=LONGEST_NAME).contains(&secret.name.len())
            && !secret.name.starts_with('.')
            && !secret.name.contains(['/', '\0', '\n']);
        if !is_name {
            return Err(invalid("name of a secret", secret.name));
        }
        if !secret.env.is_empty() {
            if !is_variable(&secret.env) {
                return Err(invalid("name of an environment variable", secret.env));
            }
            if secret.value.contains(&0) {
                return Err(ConfigError::SecretInEnv(secret.name));
            }
        }
        Ok(Self {
            name: secret.name,
            value: secret.value,
            env: Some(secret.env).filter(|env| !env.is_empty()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(name: &str, value: &[u8], env: &str) -> Result<Secret, String> {
        let (name, value, env) = (name.into(), value.into(), env.into());
        Secret::try_from(v1::Secret { name, value, env }).map_err(|error| error.to_string())
    }

    #[test]
    fn a_secret_has_a_file_s_name_and_shows_its_value_to_nobody() {
        let shown = format!("{:?}", secret("db.key", b"hunter2", "DB_KEY").unwrap());
        assert_eq!(
            shown,
            "Secret { name: \"db.key\", env: Some(\"DB_KEY\"), .. }"
        );
        assert_eq!(secret("key", b"a\0b", "").unwrap().env, None);
        for name in ["", ".", "..", ".hidden", "a/b", "a\nb"] {
            assert_eq!(
                secret(name, b"", ""),
                Err(format!("'{name}' is no name of a secret"))
            );
        }
        assert!(secret("key", b"", "A=B").is_err());
        assert_eq!(
            secret("key", b"hunter\x002", "KEY"),
            Err("the secret 'key' has a zero byte, which no environment variable can hold".into())
        );
    }
}
