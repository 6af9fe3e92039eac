//! Digests of manifests that were kept before there was a column for them.

use rusqlite::{Connection, params};
use sha2::{Digest as _, Sha256};
use volant_spec::Digest;

/// The digest of a manifest's bytes.
pub(super) fn of(bytes: &[u8]) -> Digest {
    Digest::from_bytes(Sha256::digest(bytes).into())
}

/// Gives all manifests that have none their digest.
pub(super) fn fill(db: &Connection) -> rusqlite::Result<()> {
    for table in ["plugins", "vms"] {
        let sql = format!("SELECT rowid, manifest FROM {table} WHERE manifest_digest IS NULL");
        let mut statement = db.prepare(&sql)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let (id, manifest): (i64, Vec<u8>) = (row.get(0)?, row.get(1)?);
            db.execute(
                &format!("UPDATE {table} SET manifest_digest = ?2 WHERE rowid = ?1"),
                params![id, of(&manifest).to_string()],
            )?;
        }
    }
    Ok(())
}
