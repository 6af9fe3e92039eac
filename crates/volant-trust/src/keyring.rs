//! The keys that a host trusts: the files of `/etc/volant/trust.d`.
//!
//! A file that is not valid, or that others could have written, is a [`Problem`] of its own: the other keys
//! are as good as before.

use std::{
    ffi::OsStr,
    fmt,
    fs::{self, File, Metadata},
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use crate::{
    key_file::{self, KeyFileError},
    pattern::Pattern,
    public::{KeyId, PublicKey},
};

/// The largest file that is read, in bytes.
const MAX_FILE_BYTES: u64 = 64 * 1024;
/// The most keys of one folder.
const MAX_KEYS: usize = 1024;

/// Trusted keys.
#[derive(Clone, Debug, Default)]
pub struct Keyring {
    keys: Vec<TrustedKey>,
}

/// A key that the host trusts for the plugins that fit one of its patterns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustedKey {
    /// The file's name without `.pub` or `.toml`.
    pub name: String,
    pub key: PublicKey,
    pub plugins: Vec<Pattern>,
    pub comment: Option<String>,
    pub path: PathBuf,
}

/// What [`Keyring::load`] found.
#[derive(Debug, Default)]
pub struct Loaded {
    pub keyring: Keyring,
    /// What gives no key, and why; to be told to the administrator.
    pub problems: Vec<Problem>,
}

/// A file, or the folder, that gives no key.
#[derive(Debug, thiserror::Error)]
#[error("no key is taken from {}", path.display())]
pub struct Problem {
    pub path: PathBuf,
    #[source]
    pub kind: ProblemKind,
}

/// Why a file gives no key.
#[derive(Debug, thiserror::Error)]
pub enum ProblemKind {
    #[error("it cannot be read")]
    Read(#[source] io::Error),
    #[error("it is no file")]
    NoFile,
    #[error("its name is no text that can be shown")]
    Name,
    #[error("it belongs to the user id {found}, not to {expected}: chown it to {expected}")]
    Owner { found: u32, expected: u32 },
    #[error("others can write to it (mode {:04o}): chmod go-w", .0)]
    Writable(u32),
    #[error("it has more than {MAX_FILE_BYTES} bytes")]
    TooLarge,
    #[error("it is no text")]
    NoText,
    #[error("{0} has the same name and is taken instead")]
    Twice(String),
    #[error("the folder has more than {MAX_KEYS} keys")]
    TooMany,
    #[error(transparent)]
    Content(#[from] KeyFileError),
}

impl Keyring {
    /// Reads `*.pub` and `*.toml` in `folder`; other files are not looked at. The folder and each file must
    /// belong to `owner` (root's 0 on a host) and be writable by nobody else. A folder that is not there is
    /// an empty keyring.
    #[must_use]
    pub fn load(folder: &Path, owner: u32) -> Loaded {
        let mut loaded = Loaded::default();
        let problem = |path: &Path, kind| Problem {
            path: path.to_owned(),
            kind,
        };
        let paths = match paths(folder, owner) {
            Ok(paths) => paths,
            Err(ProblemKind::Read(error)) if error.kind() == io::ErrorKind::NotFound => {
                return loaded;
            }
            Err(kind) => {
                loaded.problems.push(problem(folder, kind));
                return loaded;
            }
        };
        for path in &paths {
            if loaded.keyring.keys.len() == MAX_KEYS {
                loaded.problems.push(problem(folder, ProblemKind::TooMany));
                break;
            }
            // A NAME.toml is the narrower of the two: whoever wrote it did so to limit the key.
            let limited = path.with_extension("toml");
            let key = if *path != limited && paths.binary_search(&limited).is_ok() {
                let name = limited.file_name().unwrap_or_default();
                Err(ProblemKind::Twice(name.to_string_lossy().into_owned()))
            } else {
                read(path, owner)
            };
            match key {
                Ok(key) => loaded.keyring.keys.push(key),
                Err(kind) => loaded.problems.push(problem(path, kind)),
            }
        }
        loaded
    }

    /// The keys, by name.
    pub fn keys(&self) -> impl Iterator<Item = &TrustedKey> {
        self.keys.iter()
    }

    /// The keys with this id: one, unless a key is in several files or ids collide.
    pub fn with_id(&self, id: KeyId) -> impl Iterator<Item = &TrustedKey> {
        self.keys
            .iter()
            .filter(move |trusted| trusted.key.id() == id)
    }
}

impl FromIterator<TrustedKey> for Keyring {
    fn from_iter<I: IntoIterator<Item = TrustedKey>>(keys: I) -> Self {
        Self {
            keys: keys.into_iter().collect(),
        }
    }
}

/// `NAME (ID)`.
impl fmt::Display for TrustedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.key.id())
    }
}

/// The files to read, sorted.
fn paths(folder: &Path, owner: u32) -> Result<Vec<PathBuf>, ProblemKind> {
    let entries = fs::read_dir(folder).map_err(ProblemKind::Read)?;
    only_owners(&fs::metadata(folder).map_err(ProblemKind::Read)?, owner)?;
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(ProblemKind::Read)?.path();
        let is_hidden = path
            .file_name()
            .is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        let extension = path.extension().and_then(OsStr::to_str);
        if !is_hidden && matches!(extension, Some("pub" | "toml")) {
            if paths.len() == 2 * MAX_KEYS {
                return Err(ProblemKind::TooMany);
            }
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn read(path: &Path, owner: u32) -> Result<TrustedKey, ProblemKind> {
    let name = path
        .file_stem()
        .and_then(OsStr::to_str)
        .filter(|name| !name.chars().any(char::is_control))
        .ok_or(ProblemKind::Name)?;
    // Before it is opened: opening a pipe would wait for its writer.
    if !fs::metadata(path).map_err(ProblemKind::Read)?.is_file() {
        return Err(ProblemKind::NoFile);
    }
    let file = File::open(path).map_err(ProblemKind::Read)?;
    only_owners(&file.metadata().map_err(ProblemKind::Read)?, owner)?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(ProblemKind::Read)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(ProblemKind::TooLarge);
    }
    let text = String::from_utf8(bytes).map_err(|_| ProblemKind::NoText)?;
    let read = match path.extension().and_then(OsStr::to_str) {
        Some("toml") => key_file::parse_toml(&text)?,
        _ => key_file::parse_pub(&text)?,
    };
    Ok(TrustedKey {
        name: name.to_owned(),
        key: read.key,
        plugins: read.plugins,
        comment: read.comment,
        path: path.to_owned(),
    })
}

fn only_owners(metadata: &Metadata, owner: u32) -> Result<(), ProblemKind> {
    let found = metadata.uid();
    if found != owner {
        return Err(ProblemKind::Owner {
            found,
            expected: owner,
        });
    }
    let mode = metadata.mode() & 0o7777;
    if mode & 0o022 != 0 {
        return Err(ProblemKind::Writable(mode));
    }
    Ok(())
}
