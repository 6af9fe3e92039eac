//! What the registry keeps: an SQLite database and, beside it, the artifacts in files named by their digest.
//!
//! All calls block; whoever is async calls them on a thread for that. One connection behind one lock, which also
//! orders changes to the files: what is checked under it still holds when the transaction commits. What was
//! answered is on disk.

mod accepted;
mod blob;
mod blobs;
mod check;
mod digests;
mod partial;
mod pins;
mod plugins;
mod turns;
mod verity;
mod vms;

use std::{
    fs::{self, DirBuilder, File, TryLockError},
    io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rusqlite::{Connection, ErrorCode, Params, Row};
use rusqlite_migration::{M, MigrationDefinitionError, Migrations};

pub use blob::{BlobError, Incoming};
pub use blobs::{Bringer, Collect, Collected, UNUSED_FOR};
pub use check::Damage;
pub use pins::Pinned;
pub use plugins::{NewPlugin, Original, Plugin, PluginError, SignedBy};
pub use vms::{
    CREDENTIALS, ConfigVersion, FIRST_UID, KEPT_CONFIGS, NewConfig, NewVm, OpenError, OpenVm,
    SecretValue, Vm, VmDevices, VmError, uid,
};

use crate::disks::Disks;

/// All changes of the schema, oldest first. What was released is never edited.
pub const MIGRATIONS: Migrations<'static> = Migrations::from_slice(STEPS);
const STEPS: &[M<'static>] = &[
    M::up(include_str!("../../migrations/0001-initial.sql")),
    M::up(include_str!("../../migrations/0002-versions.sql")).foreign_key_check(),
    M::up(include_str!("../../migrations/0003-damaged.sql")),
    M::up(include_str!("../../migrations/0004-configs.sql")),
];

/// The database's file in the state folder.
pub const DATABASE: &str = "registry.db";

/// The registry's state. One process at a time has it open.
#[derive(Debug)]
pub struct Store {
    db: Mutex<Connection>,
    dir: PathBuf,
    max_blob_bytes: u64,
    pins: pins::Pins,
    turns: turns::Turns,
    disks: Disks,
    /// Held for as long as the store is open.
    _lock: File,
}

/// Why the state cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenStoreError {
    #[error("cannot {act} {}", path.display())]
    File {
        act: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("another registryd has {} open; stop it first", .0.display())]
    InUse(PathBuf),
    #[error(
        "the database {} is damaged ({detail}); restore it from a backup, or move it away to begin with an empty \
         registry (the definitions in it are lost then)",
        path.display()
    )]
    Damaged { path: PathBuf, detail: String },
    #[error("the database {} was written by a newer version of Volant; install that version", .0.display())]
    Newer(PathBuf),
    #[error("cannot open the database {}", path.display())]
    Database {
        path: PathBuf,
        source: rusqlite::Error,
    },
    #[error("cannot remove what is left of VMs that are gone")]
    Sweep(#[source] Box<VmError>),
    #[error("cannot bring the database {} up to date", path.display())]
    Migrate {
        path: PathBuf,
        source: Box<rusqlite_migration::Error>,
    },
}

/// Why the state cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error(
        "no space left in {}: free some, with `volar plugins gc` or by removing plugins that are not needed",
        .0.display()
    )]
    NoSpace(PathBuf),
    #[error("cannot {act} {}", path.display())]
    File {
        act: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("cannot {act} in the database {}", path.display())]
    Database {
        act: &'static str,
        path: PathBuf,
        source: rusqlite::Error,
    },
    #[error(
        "the database {} is damaged at {what}: {detail}; restore it from a backup",
        path.display()
    )]
    Damaged {
        path: PathBuf,
        what: String,
        detail: String,
    },
}

impl Store {
    /// Opens the state in `dir`, making what is not there yet. Temporary files that a crash left are removed.
    ///
    /// # Errors
    /// It is in use, damaged, of a newer version, or cannot be read and written.
    pub fn open(dir: &Path, max_blob_bytes: u64) -> Result<Self, OpenStoreError> {
        let made = |path: PathBuf| match make_dir(&path) {
            Ok(()) => Ok(()),
            Err(source) => Err(OpenStoreError::File {
                act: "make",
                path,
                source,
            }),
        };
        made(dir.to_owned())?;
        let lock = lock(dir)?;
        made(dir.join("blobs"))?;
        made(dir.join("blobs/sha256"))?;
        made(dir.join(CREDENTIALS))?;
        let incoming = dir.join("incoming");
        let cleared = match fs::remove_dir_all(&incoming) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
        cleared.map_err(|source| OpenStoreError::File {
            act: "clear",
            path: incoming.clone(),
            source,
        })?;
        made(incoming)?;
        made(dir.join("partial"))?;
        let db = open_database(&dir.join(DATABASE))?;
        let store = Self {
            db: Mutex::new(db),
            dir: dir.to_owned(),
            max_blob_bytes,
            pins: pins::Pins::default(),
            turns: turns::Turns::default(),
            disks: Disks::new(dir),
            _lock: lock,
        };
        let swept = store.sweep_vms();
        swept.map_err(|error| OpenStoreError::Sweep(Box::new(error)))?;
        Ok(store)
    }

    fn dir(&self) -> &Path {
        &self.dir
    }

    fn blobs_dir(&self) -> PathBuf {
        self.dir.join("blobs/sha256")
    }

    fn incoming_dir(&self) -> PathBuf {
        self.dir.join("incoming")
    }

    fn partial_dir(&self) -> PathBuf {
        self.dir.join("partial")
    }

    /// The most bytes that an artifact may have.
    #[must_use]
    pub fn max_blob_bytes(&self) -> u64 {
        self.max_blob_bytes
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        // A panic of another thread rolled its transaction back: what is behind the lock is whole.
        self.db.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, act: &'static str, source: rusqlite::Error) -> StoreError {
        match source.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => StoreError::NoSpace(self.dir.clone()),
            _ => StoreError::Database {
                act,
                path: self.dir.join(DATABASE),
                source,
            },
        }
    }

    fn damaged(&self, what: String, error: &dyn std::error::Error) -> StoreError {
        StoreError::Damaged {
            path: self.dir.join(DATABASE),
            what,
            detail: crate::status::chain(error),
        }
    }

    fn query<T>(
        &self,
        db: &Connection,
        sql: &str,
        params: impl Params,
        read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, StoreError> {
        db.prepare(sql)
            .and_then(|mut statement| statement.query_map(params, read)?.collect())
            .map_err(|source| self.failed("look something up", source))
    }
}

impl StoreError {
    fn file(act: &'static str, path: &Path, source: io::Error) -> Self {
        Self::File {
            act,
            path: path.to_owned(),
            source,
        }
    }

    /// A failed write to a file of the store in `dir`.
    fn writing(dir: &Path, path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::NoSpace(dir.to_owned())
            }
            _ => Self::file("write", path, source),
        }
    }
}

fn make_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    // Artifacts are readable by all, as whoever is handed one reopens it: the folders are what keeps others out.
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))
}

fn lock(dir: &Path) -> Result<File, OpenStoreError> {
    let path = dir.join("lock");
    let failed = |source| OpenStoreError::File {
        act: "lock",
        path: path.clone(),
        source,
    };
    let file = File::create(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenStoreError::InUse(dir.to_owned())),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

fn open_database(path: &Path) -> Result<Connection, OpenStoreError> {
    let failed = |source: rusqlite::Error| match source.sqlite_error_code() {
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => OpenStoreError::Damaged {
            path: path.to_owned(),
            detail: source.to_string(),
        },
        _ => OpenStoreError::Database {
            path: path.to_owned(),
            source,
        },
    };
    let mut db = Connection::open(path).map_err(failed)?;
    configure(&db).map_err(failed)?;
    let found: String = db
        .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
        .map_err(failed)?;
    if found != "ok" {
        return Err(OpenStoreError::Damaged {
            path: path.to_owned(),
            detail: found,
        });
    }
    MIGRATIONS
        .to_latest(&mut db)
        .map_err(|source| match source {
            rusqlite_migration::Error::MigrationDefinition(
                MigrationDefinitionError::DatabaseTooFarAhead,
            ) => OpenStoreError::Newer(path.to_owned()),
            source => OpenStoreError::Migrate {
                path: path.to_owned(),
                source: Box::new(source),
            },
        })?;
    db.pragma_update(None, "foreign_keys", true)
        .and_then(|()| digests::fill(&db))
        .map_err(failed)?;
    Ok(db)
}

fn configure(db: &Connection) -> rusqlite::Result<()> {
    db.busy_timeout(Duration::from_secs(5))?;
    db.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    // What was answered is on disk: in WAL mode only FULL says so.
    db.pragma_update(None, "synchronous", "FULL")?;
    // Tables that others refer to can be made anew only so; on again after the migrations.
    db.pragma_update(None, "foreign_keys", false)?;
    // The registry is small; so is its process.
    db.pragma_update(None, "cache_size", -512)
}

/// Makes what was renamed into a folder durable.
fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_with_the_stores_folder() {
        let dir = Path::new("/state");
        let file = dir.join("incoming/x");
        // ENOSPC, EDQUOT, EACCES
        for (errno, full) in [(28, true), (122, true), (13, false)] {
            let error = StoreError::writing(dir, &file, io::Error::from_raw_os_error(errno));
            let told = error.to_string();
            let names = told.starts_with("no space left in /state:");
            assert_eq!(names, full, "{told}");
            assert_eq!(told.contains("`volar plugins gc`"), full, "{told}");
        }
    }
}
