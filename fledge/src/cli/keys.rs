//! What the commands about keys have in common: where keys are by default, and passwords.

use std::{
    env, fs,
    io::{self, IsTerminal, Read},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use zeroize::Zeroizing;

/// No password is longer, in bytes; minisign reads no more.
const MAX_PASSWORD: u64 = 1024;

/// `given`, or `name` in the user's configuration of Volant.
pub fn path(given: Option<PathBuf>, name: &str) -> Result<PathBuf> {
    if let Some(path) = given {
        return Ok(path);
    }
    let absolute = |name| {
        env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let folder = absolute("XDG_CONFIG_HOME")
        .or_else(|| Some(absolute("HOME")?.join(".config")))
        .with_context(|| format!("there is no HOME to find volant/{name} in; name the file"))?;
    Ok(folder.join("volant").join(name))
}

/// The password in the first line of `file`, or what the user types; twice if `is_new`.
pub fn password(file: Option<&Path>, is_new: bool) -> Result<Zeroizing<String>> {
    if let Some(path) = file {
        return from_file(path)
            .with_context(|| format!("cannot read a password from {}", path.display()));
    }
    ensure!(
        io::stdin().is_terminal(),
        "there is no terminal to ask for the key's password on; give --password-file FILE{}",
        if is_new { ", or --no-password" } else { "" }
    );
    let ask = |prompt| {
        rpassword::prompt_password(prompt)
            .map(Zeroizing::new)
            .context("cannot ask for the key's password")
    };
    let password = ask("Password of the key: ")?;
    if is_new {
        ensure!(
            !password.is_empty(),
            "the password is empty; --no-password makes a key without one"
        );
        ensure!(
            *ask("The same again: ")? == *password,
            "the two passwords differ"
        );
    }
    Ok(password)
}

fn from_file(path: &Path) -> Result<Zeroizing<String>> {
    // A pipe is as good as a file here: it is how secrets are handed over.
    let mut text = Zeroizing::new(String::new());
    fs::File::open(path)?
        .take(MAX_PASSWORD + 2)
        .read_to_string(&mut text)?;
    let line = text.split('\n').next().unwrap_or_default();
    let line = Zeroizing::new(line.strip_suffix('\r').unwrap_or(line).to_owned());
    if line.is_empty() {
        bail!("its first line is empty");
    }
    ensure!(
        line.len() as u64 <= MAX_PASSWORD,
        "its first line has more than {MAX_PASSWORD} bytes"
    );
    Ok(line)
}
