//! `volar plugins trust add|remove`: the trusted keys of this host. Only root changes them, and not over the API:
//! who may install plugins must not be able to say whom the host trusts.
//!
//! [`key`] decides what becomes a file; this file does.

mod key;

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use volant_spec::config::TRUST_DIR;
use volant_trust::{KeyFileError, Keyring, ProblemKind, PublicKeyError};

use crate::{
    Failures,
    args::{AddKey, Host, LOCAL_SOCKET, RemoveKeys},
    ended,
    failure::Failure,
    output::Output,
};
use key::NewKey;

/// Why the trusted keys are as they were.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    #[error(
        "keys are trusted by a host itself, and not over its API: run volar on that host, as root, without --host"
    )]
    OtherHost,
    #[error("only root says whom this host trusts")]
    NotRoot,
    #[error("'{}' is neither a minisign public key (RWQ…) nor a file that can be read", .text.escape_debug())]
    NoKey { text: String, source: io::Error },
    #[error("{} is no public key", path.display())]
    KeyFile {
        path: PathBuf,
        source: PublicKeyError,
    },
    #[error("'{}' is no public key", .text.escape_debug())]
    Key {
        text: String,
        source: PublicKeyError,
    },
    #[error("the file's name '{}' cannot be the key's name; give it one with --name", .0.escape_debug())]
    Name(String),
    #[error("the key cannot be written")]
    Content(#[source] KeyFileError),
    #[error("another key is called {name} here: {}", path.display())]
    Taken { name: String, path: PathBuf },
    #[error("the key {name} is trusted already, for other plugins or with another comment: {}", path.display())]
    TrustedOtherwise { name: String, path: PathBuf },
    #[error("no key would be trusted in {}", folder.display())]
    Folder {
        folder: PathBuf,
        source: ProblemKind,
    },
    #[error("the key {name} would not be trusted, and is not written{why}")]
    Unusable { name: String, why: String },
    #[error("no key is called {name} in {}", folder.display())]
    NoSuchKey { name: String, folder: PathBuf },
    #[error("cannot {act} {}", path.display())]
    File {
        act: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

impl TrustError {
    /// As `volar --help` has them.
    pub fn code(&self) -> u8 {
        match self {
            Self::OtherHost
            | Self::NoKey { .. }
            | Self::KeyFile { .. }
            | Self::Key { .. }
            | Self::Name(_)
            | Self::Content(_) => 2,
            Self::NoSuchKey { .. } => 3,
            Self::Taken { .. } | Self::TrustedOtherwise { .. } => 4,
            Self::NotRoot | Self::Folder { .. } | Self::Unusable { .. } | Self::File { .. } => 1,
        }
    }

    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NotRoot => Some("sudo volar plugins trust …"),
            Self::Taken { .. } => {
                Some("choose another --name, or first: volar plugins trust remove NAME")
            }
            Self::TrustedOtherwise { .. } => {
                Some("to change what it may sign, first: volar plugins trust remove NAME")
            }
            Self::Folder {
                source: ProblemKind::Owner { .. } | ProblemKind::Writable(_),
                ..
            } => Some(
                "as root: chown root FOLDER && chmod go-w FOLDER; look at what is in it; then add the key again",
            ),
            Self::NoSuchKey { .. } => Some("volar plugins trust list shows all keys"),
            _ => None,
        }
    }
}

/// Trusts a key. Idempotent.
///
/// # Errors
/// It is no key, its name is taken by another one, or the folder is not for us to write to.
pub fn add(given: &AddKey, host: &Host, output: &Output) -> Result<(), Failure> {
    let folder = given.folder.trust_dir.as_path();
    let owner = owner(folder, host)?;
    let new = NewKey::of(given)?;
    let is_new = keep(&new, folder, owner)?;
    if output.is_json() {
        return output.json(&new.view(folder));
    }
    let already = if is_new { "" } else { " already" };
    output.done(&format!(
        "{} is trusted{already} for {}",
        new,
        new.patterns()
    ))
}

/// Trusts keys no more.
///
/// # Errors
/// Those that are not there, or could not be removed; the others are.
pub fn remove(given: &RemoveKeys, host: &Host, output: &Output) -> Result<(), Failures> {
    let folder = given.folder.trust_dir.as_path();
    owner(folder, host).map_err(Failure::from)?;
    let mut failures = Vec::new();
    for name in &given.names {
        let removed = take_away(name, folder).map_err(Failure::from);
        let done = || output.done(&format!("key {name} is trusted no more"));
        if let Err(failure) = removed.and_then(|()| done()) {
            failures.push(failure);
        }
    }
    if failures.is_empty() {
        output.done(
            "plugins that were signed with it stay installed: volar plugins verify names them",
        )?;
    }
    ended(failures)
}

/// Whose the keys are: root's on a host.
fn owner(folder: &Path, host: &Host) -> Result<u32, TrustError> {
    if *host != Host::Unix(LOCAL_SOCKET.into()) {
        return Err(TrustError::OtherHost);
    }
    let me = nix::unistd::geteuid();
    if folder == Path::new(TRUST_DIR) && !me.is_root() {
        return Err(TrustError::NotRoot);
    }
    Ok(me.as_raw())
}

/// Writes the key's file, whole or not at all. Tells whether it is new.
fn keep(new: &NewKey, folder: &Path, owner: u32) -> Result<bool, TrustError> {
    let failed = |act, path: &Path| {
        let path = path.to_owned();
        move |source| TrustError::File { act, path, source }
    };
    make_folder(folder).map_err(failed("create", folder))?;
    let problems = Keyring::load(folder, owner).problems;
    if let Some(problem) = problems.into_iter().find(|problem| problem.path == folder) {
        let (folder, source) = (problem.path, problem.kind);
        return Err(TrustError::Folder { folder, source });
    }
    let path = folder.join(new.file_name());
    if let Some(taken) = files(&new.name, folder).find(|path| path.symlink_metadata().is_ok()) {
        return already(new, taken, folder, owner);
    }
    let write = || {
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(new.text.as_bytes())?;
        file.as_file()
            .set_permissions(fs::Permissions::from_mode(0o644))?;
        file.as_file().sync_all()?;
        file.persist_noclobber(&path)?;
        File::open(folder)?.sync_all()
    };
    write().map_err(failed("write", &path))?;
    // What the host makes of it: the folder may be full, or the file another's on a network's file system.
    let loaded = Keyring::load(folder, owner);
    if loaded.keyring.keys().any(|key| key.path == path) {
        return Ok(true);
    }
    fs::remove_file(&path).map_err(failed("remove", &path))?;
    let (name, found) = (new.name.clone(), loaded.problems);
    let of = |at: &Path| found.iter().find(|problem| problem.path == at);
    let problem = of(&path).or_else(|| of(folder));
    let why = problem.map_or_else(String::new, |problem| format!(": {}", problem.kind));
    Err(TrustError::Unusable { name, why })
}

/// There is a file of that name: fine if it says the same.
fn already(new: &NewKey, path: PathBuf, folder: &Path, owner: u32) -> Result<bool, TrustError> {
    let loaded = Keyring::load(folder, owner);
    let name = new.name.clone();
    match loaded.keyring.keys().find(|key| key.path == path) {
        Some(there) if new.is(there) => Ok(false),
        Some(there) if there.key.to_string() == new.key.to_string() => {
            Err(TrustError::TrustedOtherwise { name, path })
        }
        _ => Err(TrustError::Taken { name, path }),
    }
}

/// With the folder above it, and readable by the services whatever the umask.
pub(crate) fn make_folder(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let above = folder.parent().unwrap_or(Path::new("/"));
    if !above.is_dir() {
        fs::create_dir_all(above)?;
        fs::set_permissions(above, fs::Permissions::from_mode(0o755))?;
    }
    fs::create_dir(folder)?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755))
}

fn take_away(name: &str, folder: &Path) -> Result<(), TrustError> {
    let mut removed = false;
    // A name is a file's name and nothing that leads elsewhere.
    let is_name = !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\0']);
    for path in files(name, folder).filter(|_| is_name) {
        match fs::remove_file(&path) {
            Ok(()) => removed = true,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => {
                let act = "remove";
                return Err(TrustError::File { act, path, source });
            }
        }
    }
    if removed {
        return Ok(());
    }
    Err(TrustError::NoSuchKey {
        name: name.to_owned(),
        folder: folder.to_owned(),
    })
}

/// Where a key of that name can be.
fn files(name: &str, folder: &Path) -> impl Iterator<Item = PathBuf> {
    ["pub", "toml"]
        .map(|ending| folder.join(format!("{name}.{ending}")))
        .into_iter()
}
