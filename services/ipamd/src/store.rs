//! The leases on disk: SQLite, one file, any number of services.

use std::{fs::File, io, path::Path, time::Duration};

use rusqlite::{Connection, TransactionBehavior, params};
use rusqlite_migration::{M, Migrations};
use volant_spec::{Name, config::Subnet};

use crate::pool::{Choice, ChoiceError, Cid, Lease, choose};

const STEPS: &[M<'static>] = &[M::up(include_str!("../migrations/1.sql"))];
const MIGRATIONS: Migrations<'static> = Migrations::from_slice(STEPS);

/// How long to wait for another service that writes.
const BUSY: Duration = Duration::from_secs(5);

/// An open lease file.
#[derive(Debug)]
pub struct Store(Connection);

/// Why the lease file could not be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot open the leases in {path}")]
    Open {
        path: String,
        source: rusqlite::Error,
    },
    #[error("cannot lock the leases in {path}")]
    Lock { path: String, source: io::Error },
    #[error("cannot bring the leases in {path} to this version's form")]
    Migrate {
        path: String,
        source: rusqlite_migration::Error,
    },
    #[error("cannot read the leases")]
    Read(#[source] rusqlite::Error),
    #[error("cannot keep the lease of VM '{vm}'")]
    Write { vm: Name, source: rusqlite::Error },
    #[error("the lease of '{vm}' makes no sense: {what}")]
    Damaged { vm: String, what: String },
}

/// Why a VM has no lease.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    #[error(transparent)]
    Choice(#[from] ChoiceError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Store {
    /// Opens the lease file; creates it if it is not there.
    ///
    /// # Errors
    /// The file cannot be opened or written, or is of a newer version.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let named = || path.display().to_string();
        let open = |source| StoreError::Open {
            path: named(),
            source,
        };
        // SQLite waits for others when it reads and writes, but not when it changes the journal's mode, nor do two
        // migrations wait for each other.
        let guard = File::create(path.with_extension("lock"))
            .and_then(|file| file.lock().map(|()| file))
            .map_err(|source| StoreError::Lock {
                path: named(),
                source,
            })?;
        let mut db = Connection::open(path).map_err(open)?;
        db.busy_timeout(BUSY).map_err(open)?;
        db.pragma_update(None, "journal_mode", "WAL")
            .map_err(open)?;
        // What was answered must survive a power cut; a lease is written once in a VM's life.
        db.pragma_update(None, "synchronous", "FULL")
            .map_err(open)?;
        MIGRATIONS
            .to_latest(&mut db)
            .map_err(|source| StoreError::Migrate {
                path: named(),
                source,
            })?;
        drop(guard);
        Ok(Self(db))
    }

    /// The lease of a VM; it gets one if it has none. Choice and insertion are one transaction, so that services
    /// that race on one file wait for each other.
    ///
    /// # Errors
    /// Nothing is free, the VM's lease is of another subnet, or the file cannot be used.
    pub fn lease(&mut self, subnet: Subnet, vm: &Name) -> Result<Lease, LeaseError> {
        let keep = |source| StoreError::Write {
            vm: vm.clone(),
            source,
        };
        let transaction = self
            .0
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(keep)?;
        match choose(subnet, &read(&transaction)?, vm)? {
            Choice::Held(lease) => Ok(lease),
            Choice::New(lease) => {
                transaction
                    .execute(
                        "INSERT INTO lease (vm, address, mac, cid) VALUES (?1, ?2, ?3, ?4)",
                        params![
                            lease.vm.as_str(),
                            lease.address.to_string(),
                            lease.mac.to_string(),
                            lease.cid.get()
                        ],
                    )
                    .map_err(keep)?;
                transaction.commit().map_err(keep)?;
                Ok(lease)
            }
        }
    }

    /// Takes a VM's lease away; false if it had none.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn release(&mut self, vm: &Name) -> Result<bool, StoreError> {
        self.0
            .execute("DELETE FROM lease WHERE vm = ?1", [vm.as_str()])
            .map(|count| count > 0)
            .map_err(|source| StoreError::Write {
                vm: vm.clone(),
                source,
            })
    }

    /// All leases, by address.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn leases(&self) -> Result<Vec<Lease>, StoreError> {
        read(&self.0)
    }
}

fn read(db: &Connection) -> Result<Vec<Lease>, StoreError> {
    let mut statement = db
        .prepare_cached("SELECT vm, address, mac, cid FROM lease")
        .map_err(StoreError::Read)?;
    let rows = statement
        .query_map([], |row| {
            Ok((
                row.get::<_, String>(0)?,
                row.get::<_, String>(1)?,
                row.get::<_, String>(2)?,
                row.get::<_, i64>(3)?,
            ))
        })
        .map_err(StoreError::Read)?;
    let mut leases = Vec::new();
    for row in rows {
        let (vm, address, mac, cid) = row.map_err(StoreError::Read)?;
        leases.push(parse(&vm, &address, &mac, cid)?);
    }
    leases.sort_by_key(|lease| lease.address);
    Ok(leases)
}

fn parse(vm: &str, address: &str, mac: &str, cid: i64) -> Result<Lease, StoreError> {
    let what = |what: String| StoreError::Damaged {
        vm: vm.to_owned(),
        what,
    };
    Ok(Lease {
        vm: vm
            .parse()
            .map_err(|error: volant_spec::name::NameError| what(error.to_string()))?,
        address: address
            .parse()
            .map_err(|_| what(format!("'{}' is no address", address.escape_debug())))?,
        mac: mac.parse().map_err(what)?,
        cid: Cid::try_from(cid).map_err(what)?,
    })
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, sync::Barrier};

    use ipnet::Ipv4Net;

    use super::*;

    fn subnet(text: &str) -> Subnet {
        Subnet::try_from(text.parse::<Ipv4Net>().unwrap()).unwrap()
    }

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    #[test]
    fn the_migrations_are_valid() {
        MIGRATIONS.validate().unwrap();
    }

    #[test]
    fn a_lease_outlives_the_service() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("leases.db");
        let net = subnet("10.0.0.0/24");
        let first = Store::open(&path)
            .unwrap()
            .lease(net, &name("web"))
            .unwrap();
        let mut store = Store::open(&path).unwrap();
        assert_eq!(store.leases().unwrap(), std::slice::from_ref(&first));
        assert_eq!(store.lease(net, &name("web")).unwrap(), first);
        assert!(store.release(&name("web")).unwrap());
        assert!(!store.release(&name("web")).unwrap());
        assert_eq!(store.lease(net, &name("web")).unwrap(), first);
    }

    #[test]
    fn services_that_race_on_one_file_give_nothing_twice() {
        const SERVICES: usize = 16;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("leases.db");
        // Thirteen addresses for fourteen VMs, of which two are asked for twice.
        let net = subnet("10.0.0.0/28");
        let barrier = Barrier::new(SERVICES);
        let results: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..SERVICES)
                .map(|thread| {
                    let (path, barrier) = (&path, &barrier);
                    scope.spawn(move || {
                        let store = Store::open(path);
                        barrier.wait();
                        store
                            .unwrap()
                            .lease(net, &name(&format!("vm-{}", thread % 14)))
                    })
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect()
        });
        let refused = results.iter().filter(|result| result.is_err()).count();
        let leases = Store::open(&path).unwrap().leases().unwrap();
        assert_eq!(leases.len(), 13);
        assert!((1..=2).contains(&refused), "{results:?}");
        let addresses: BTreeSet<_> = leases.iter().map(|lease| lease.address).collect();
        assert_eq!(addresses.len(), 13);
        for lease in results.into_iter().flatten() {
            assert!(leases.contains(&lease), "{lease:?}");
        }
    }

    #[test]
    fn a_lease_that_makes_no_sense_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("leases.db");
        let store = Store::open(&path).unwrap();
        store
            .0
            .execute("INSERT INTO lease VALUES ('web', 'x', 'y', 3)", [])
            .unwrap();
        let error = store.leases().unwrap_err().to_string();
        assert!(
            error.contains("'web'") && error.contains("'x' is no address"),
            "{error}"
        );
    }
}
