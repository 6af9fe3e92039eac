//! `fledge sign`.

use std::{
    env,
    io::Write,
    path::PathBuf,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result};
use fledge::{
    local::State,
    sign::{self, Signable, SigningError},
};

use super::keys;

#[derive(clap::Args)]
pub struct Sign {
    /// The secret key [default: ~/.config/volant/signing.key]
    #[arg(short, long, value_name = "FILE")]
    secret: Option<PathBuf>,
    /// The trusted comment; its time is put before it unless it has a `timestamp:` of its own
    #[arg(short, long, value_name = "TEXT")]
    comment: Option<String>,
    /// The key's password is the first line of this file; do not ask
    #[arg(long, value_name = "FILE", env = "FLEDGE_PASSWORD_FILE")]
    password_file: Option<PathBuf>,
    /// The manifests to sign; each signature goes to MANIFEST.minisig
    #[arg(required = true, value_name = "MANIFEST")]
    manifests: Vec<PathBuf>,
}

pub fn run(args: Sign) -> Result<()> {
    let secret = keys::path(args.secret, "signing.key")?;
    let file = sign::read_key(&secret)?;
    // All before the first is signed, and before anyone is asked for a password.
    let signables: Vec<Signable> = args
        .manifests
        .iter()
        .map(|path| Signable::read(path))
        .collect::<Result<_, _>>()?;
    let now = now()?;
    let password = match file.needs_password() {
        true => Some(keys::password(args.password_file.as_deref(), false)?),
        false => None,
    };
    let password = password.as_ref().map(|password| password.as_str());
    let key = file.open(password).map_err(|source| SigningError::Key {
        path: secret,
        source,
    })?;
    for signable in signables {
        for artifact in &signable.artifacts {
            if matches!(artifact.state, State::Elsewhere) {
                eprintln!(
                    "warning: {} is at {}; what is there was not compared with the manifest",
                    artifact.field,
                    artifact.url.escape_debug()
                );
            }
        }
        let path = signable.sign(&key, args.comment.as_deref(), now)?;
        let (name, version) = (&signable.manifest.name, &signable.manifest.version);
        writeln!(
            std::io::stdout(),
            "{name} {version}: signed with the key {} in {}",
            key.public().id(),
            path.display()
        )
        .context("cannot write to standard output")?;
    }
    Ok(())
}

/// In seconds since 1970; what `SOURCE_DATE_EPOCH` says, where it is set.
fn now() -> Result<u64> {
    match env::var_os("SOURCE_DATE_EPOCH") {
        Some(text) => text
            .to_str()
            .and_then(|text| text.parse().ok())
            .context("SOURCE_DATE_EPOCH is not a number of seconds since 1970"),
        None => SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map(|since| since.as_secs())
            .context("the clock stands before 1970"),
    }
}
