-- Several versions of a plugin side by side. Tables are made anew as SQLite can change no key; foreign keys are not
-- enforced while migrations run, and checked at the end.

-- `manifest_digest` is that of the manifest's bytes. NULL where it was not kept yet; filled when the store is opened.
-- `signed_*` tell what was verified when the plugin was installed; `signature` is kept verified or not, so that it can be
-- looked at again.
CREATE TABLE plugins_2 (
    name TEXT NOT NULL,
    version TEXT NOT NULL,
    manifest BLOB NOT NULL,
    manifest_digest TEXT,
    description TEXT NOT NULL DEFAULT '',
    enabled INTEGER NOT NULL DEFAULT 1 CHECK (enabled IN (0, 1)),
    installed_at TEXT NOT NULL,
    source TEXT NOT NULL DEFAULT '',
    signature BLOB,
    signed_key TEXT,
    signed_key_id TEXT,
    signed_comment TEXT,
    PRIMARY KEY (name, version)
) STRICT;
INSERT INTO plugins_2 (name, version, manifest, installed_at)
    SELECT name, version, manifest, installed_at FROM plugins;

CREATE TABLE plugin_blobs_2 (
    plugin TEXT NOT NULL,
    version TEXT NOT NULL,
    digest TEXT NOT NULL REFERENCES blobs (digest),
    PRIMARY KEY (plugin, version, digest),
    FOREIGN KEY (plugin, version) REFERENCES plugins_2 (name, version) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
INSERT INTO plugin_blobs_2 (plugin, version, digest)
    SELECT b.plugin, p.version, b.digest FROM plugin_blobs b JOIN plugins p ON p.name = b.plugin;

DROP TABLE plugin_blobs;
DROP TABLE plugins;
ALTER TABLE plugins_2 RENAME TO plugins;
ALTER TABLE plugin_blobs_2 RENAME TO plugin_blobs;
CREATE INDEX plugin_blobs_digest ON plugin_blobs (digest);

-- A VM names the plugin and version that it was created from, and lives by its own copy of the manifest: the version may
-- have been replaced since, so there is no reference to it.
CREATE TABLE vms_2 (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    uuid TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL UNIQUE,
    plugin TEXT NOT NULL,
    plugin_version TEXT NOT NULL,
    manifest BLOB NOT NULL,
    manifest_digest TEXT,
    cpu_cores INTEGER NOT NULL,
    memory_mb INTEGER NOT NULL,
    vmm TEXT NOT NULL,
    created_at TEXT NOT NULL,
    deleting INTEGER NOT NULL DEFAULT 0 CHECK (deleting IN (0, 1))
) STRICT;
INSERT INTO vms_2 (seq, uuid, name, plugin, plugin_version, manifest, cpu_cores, memory_mb, vmm, created_at, deleting)
    SELECT seq, uuid, name, plugin, plugin_version, manifest, cpu_cores, memory_mb, vmm, created_at, deleting FROM vms;
-- A user id is given once, also if its VM is gone: the count goes on where it was.
DELETE FROM sqlite_sequence WHERE name = 'vms_2';
INSERT INTO sqlite_sequence (name, seq) SELECT 'vms_2', seq FROM sqlite_sequence WHERE name = 'vms';
DROP TABLE vms;
ALTER TABLE vms_2 RENAME TO vms;
CREATE INDEX vms_plugin ON vms (plugin, plugin_version);

-- How the file was when its bytes were last found to match its digest: fs-verity's digest, or else a stamp. NULL: not
-- known, so that it is read again.
ALTER TABLE blobs ADD COLUMN verity TEXT;
ALTER TABLE blobs ADD COLUMN stamp TEXT;
-- When it was last sent or asked for by someone who means to install it (seconds since 1970), and whether by an upload.
-- An install that uses it clears them.
ALTER TABLE blobs ADD COLUMN wanted_at INTEGER;
ALTER TABLE blobs ADD COLUMN uploaded INTEGER NOT NULL DEFAULT 0 CHECK (uploaded IN (0, 1));
-- Uploads of before the migration wait on.
UPDATE blobs SET wanted_at = unixepoch(), uploaded = 1
    WHERE NOT EXISTS (SELECT 1 FROM plugin_blobs p WHERE p.digest = blobs.digest)
      AND NOT EXISTS (SELECT 1 FROM vm_blobs v WHERE v.digest = blobs.digest);

-- The newest signed manifest of each name that was ever accepted, for as long as the registry lives: what comes after must
-- not be older. `signed_at` is in seconds since 1970, if the signer said so.
CREATE TABLE accepted (
    name TEXT PRIMARY KEY,
    version TEXT NOT NULL,
    signed_at INTEGER,
    manifest_digest TEXT NOT NULL
) STRICT;
