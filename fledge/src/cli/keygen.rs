//! `fledge keygen`.

use std::{io::Write, path::PathBuf};

use anyhow::{Context, Result};
use fledge::keygen::KeyFiles;

use super::keys;

#[derive(clap::Args)]
pub struct Keygen {
    /// The public key's file, to be given to others [default: ~/.config/volant/signing.pub]
    #[arg(short, long, value_name = "FILE")]
    public: Option<PathBuf>,
    /// The secret key's file, to be kept [default: ~/.config/volant/signing.key]
    #[arg(short, long, value_name = "FILE")]
    secret: Option<PathBuf>,
    /// Protect the secret key with the password in the first line of this file, and do not ask
    #[arg(long, value_name = "FILE", env = "FLEDGE_PASSWORD_FILE")]
    password_file: Option<PathBuf>,
    /// Do not protect the secret key: whoever can read its file can sign
    #[arg(long)]
    no_password: bool,
    /// Replace a key pair that is there
    #[arg(short, long)]
    force: bool,
}

pub fn run(args: Keygen) -> Result<()> {
    let files = KeyFiles {
        secret: keys::path(args.secret, "signing.key")?,
        public: keys::path(args.public, "signing.pub")?,
    };
    files.check(args.force)?;
    let password = match args.no_password {
        true => None,
        false => Some(keys::password(args.password_file.as_deref(), true)?),
    };
    let password = password.as_ref().map(|password| password.as_str());
    let public = files.generate(password, args.force)?;
    let (secret_path, public_path) = (files.secret.display(), files.public.display());
    writeln!(
        std::io::stdout(),
        "{public}\n\n\
         The secret key is {secret_path}: keep it to yourself, and keep a copy.\n\
         The public key is {public_path}, or the line above: give it to those who install what you sign.\n\
         They trust it, as root, with\n    \
         volar plugins trust add {public_path}\n\
         and you sign with\n    \
         fledge sign NAME.manifest.json"
    )
    .context("cannot write to standard output")
}
