//! The workload's secrets: credentials that systemd gave this unit.
//!
//! Those that were stored with the VM are named `secret_NAME`; every other one is an operator's, from a drop-in with
//! `LoadCredential=` or `LoadCredentialEncrypted=`, and goes by its own name. Read them before the identity is given up. A value is in
//! no message and no log.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use volant_proto::agent::v1::Secret;

/// What the names of stored ones begin with.
const STORED: &str = "secret_";
/// There so that a VM without stored ones starts: it is none.
const PLACEHOLDER: &str = "secret";
/// Of all of them together, in bytes.
pub const MOST: u64 = 1024 * 1024;

/// Why the workload cannot have its secrets.
#[derive(Debug, thiserror::Error)]
pub enum SecretsError {
    #[error("cannot read the credential {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error(
        "the credentials of the VM have more than {MOST} bytes together, which is the most a VM is given"
    )]
    TooLarge,
    #[error(
        "there is no secret '{0}': put one with `volar vms secrets`, or load a credential of this name"
    )]
    Missing(String),
    #[error("a credential has a name that is not text: {0:?}")]
    Name(PathBuf),
}

/// The secrets in `folder` (`$CREDENTIALS_DIRECTORY`; none without one), in the order of their names. `variables` tells which
/// there must be, and the variable of the workload's environment that has it too, or nothing.
///
/// # Errors
/// One is missing or cannot be read, or they are too large.
pub fn read(
    folder: Option<&Path>,
    variables: &[(String, String)],
) -> Result<Vec<Secret>, SecretsError> {
    let values = match folder {
        Some(folder) => values(folder)?,
        None => BTreeMap::new(),
    };
    if let Some((name, _)) = variables
        .iter()
        .find(|(name, _)| !values.contains_key(name))
    {
        return Err(SecretsError::Missing(name.clone()));
    }
    let variable = |name: &str| {
        let known = variables.iter().find(|(known, _)| known == name);
        known.map(|(_, variable)| variable.clone())
    };
    let secret = |(name, value): (String, Vec<u8>)| Secret {
        env: variable(&name).unwrap_or_default(),
        name,
        value,
    };
    Ok(values.into_iter().map(secret).collect())
}

fn values(folder: &Path) -> Result<BTreeMap<String, Vec<u8>>, SecretsError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| SecretsError::Read { path, source }
    };
    let mut stored = BTreeMap::new();
    let mut operators = BTreeMap::new();
    let mut left = MOST;
    for entry in fs::read_dir(folder).map_err(failed(folder))? {
        let path = entry.map_err(failed(folder))?.path();
        if !path.is_file() {
            continue;
        }
        let file_name = path.file_name().and_then(|name| name.to_str());
        let Some(file_name) = file_name.map(str::to_owned) else {
            return Err(SecretsError::Name(path));
        };
        if file_name == PLACEHOLDER {
            continue;
        }
        let mut value = Vec::new();
        let file = File::open(&path).map_err(failed(&path))?;
        let read = file.take(left + 1).read_to_end(&mut value);
        let length = u64::try_from(read.map_err(failed(&path))?).unwrap_or(u64::MAX);
        left = left.checked_sub(length).ok_or(SecretsError::TooLarge)?;
        match file_name.strip_prefix(STORED) {
            Some(name) => stored.insert(name.to_owned(), value),
            None => operators.insert(file_name, value),
        };
    }
    // What the operator says wins.
    stored.extend(operators);
    Ok(stored)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, value) in files {
            fs::write(folder.path().join(name), value).unwrap();
        }
        folder
    }

    fn variables(all: &[(&str, &str)]) -> Vec<(String, String)> {
        let own = |(name, variable): &(&str, &str)| ((*name).to_owned(), (*variable).to_owned());
        all.iter().map(own).collect()
    }

    #[test]
    fn stored_and_loaded_secrets_reach_the_workload_and_the_operators_win() {
        let folder = folder(&[
            ("secret", b""),
            ("secret_token", b"stored"),
            ("secret_key", b"\0\xff"),
            ("token", b"operator's"),
            ("cert", b"pem"),
        ]);
        fs::create_dir(folder.path().join("folder")).unwrap();
        let asked = variables(&[("token", "TOKEN"), ("key", "")]);
        let secrets = read(Some(folder.path()), &asked).unwrap();
        let told: Vec<_> = secrets
            .iter()
            .map(|secret| {
                (
                    secret.name.as_str(),
                    secret.value.as_slice(),
                    secret.env.as_str(),
                )
            })
            .collect();
        assert_eq!(
            told,
            [
                ("cert", b"pem".as_slice(), ""),
                ("key", b"\0\xff", ""),
                ("token", b"operator's", "TOKEN"),
            ]
        );
    }

    #[test]
    fn a_secret_that_is_missing_or_too_large_is_told_without_a_value() {
        assert_eq!(read(None, &[]).unwrap(), []);
        let asked = variables(&[("token", "TOKEN")]);
        let missing = read(None, &asked).unwrap_err().to_string();
        assert!(missing.contains("no secret 'token'"), "{missing}");
        let half = vec![b'x'; 600_000];
        let large = folder(&[("a", &half), ("secret_b", &half)]);
        let error = read(Some(large.path()), &[]).unwrap_err();
        assert!(matches!(error, SecretsError::TooLarge), "{error}");
        let most = vec![b'x'; 1024 * 1024];
        let exact = folder(&[("a", &most)]);
        assert_eq!(read(Some(exact.path()), &[]).unwrap().len(), 1);
        let gone = Path::new("/nowhere/credentials");
        assert!(matches!(
            read(Some(gone), &[]),
            Err(SecretsError::Read { .. })
        ));
    }
}
