//! The newest signed manifest of each name that was ever accepted. It outlives the plugin.

use rusqlite::{Connection, OptionalExtension, params};
use volant_spec::{Name, manifest::Version};
use volant_trust::Accepted;

use super::{Store, StoreError, plugins::column};

impl Store {
    /// The newest that was ever accepted of that name.
    ///
    /// # Errors
    /// The store failed.
    pub fn accepted(&self, name: &Name) -> Result<Option<Accepted>, StoreError> {
        self.accepted_in(&self.lock(), name)
    }

    fn accepted_in(&self, db: &Connection, name: &Name) -> Result<Option<Accepted>, StoreError> {
        db.query_row(
            "SELECT version, signed_at, manifest_digest FROM accepted WHERE name = ?1",
            [name.as_str()],
            |row| {
                Ok(Accepted {
                    version: column::<Version>(row, 0)?,
                    timestamp: row.get(1)?,
                    manifest: column(row, 2)?,
                })
            },
        )
        .optional()
        .map_err(|source| self.failed("look up what was accepted", source))
    }

    /// Remembers what was accepted, if it is the newest of its name.
    pub(super) fn remember(
        &self,
        tx: &Connection,
        name: &Name,
        accepted: &Accepted,
    ) -> Result<(), StoreError> {
        let order = |known: &Accepted| (known.version.clone(), known.timestamp);
        let newest = self.accepted_in(tx, name)?;
        if newest.is_some_and(|newest| order(&newest) > order(accepted)) {
            return Ok(());
        }
        tx.execute(
            "INSERT INTO accepted (name, version, signed_at, manifest_digest) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (name) DO UPDATE SET
                 version = excluded.version, signed_at = excluded.signed_at,
                 manifest_digest = excluded.manifest_digest",
            params![
                name.as_str(),
                accepted.version.as_str(),
                accepted.timestamp.map(|at| i64::try_from(at).unwrap_or(i64::MAX)),
                accepted.manifest.to_string(),
            ],
        )
        .map_err(|source| self.failed("remember what was accepted", source))?;
        Ok(())
    }
}
