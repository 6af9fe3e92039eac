-- Artifacts whose bytes are in the store, verified. A file without a row here is an orphan of a crash.
CREATE TABLE blobs (
    digest TEXT PRIMARY KEY,
    size INTEGER NOT NULL CHECK (size >= 0)
) STRICT;

CREATE TABLE plugins (
    name TEXT PRIMARY KEY,
    version TEXT NOT NULL,
    manifest BLOB NOT NULL,
    installed_at TEXT NOT NULL
) STRICT;

CREATE TABLE plugin_blobs (
    plugin TEXT NOT NULL REFERENCES plugins (name) ON DELETE CASCADE,
    digest TEXT NOT NULL REFERENCES blobs (digest),
    PRIMARY KEY (plugin, digest)
) STRICT, WITHOUT ROWID;
CREATE INDEX plugin_blobs_digest ON plugin_blobs (digest);

-- `seq` is never given twice, also when the newest VM is gone: a VM's user id is made from it.
-- `manifest` is the plugin's at the time of creation: a VM keeps what it was created with.
CREATE TABLE vms (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    uuid TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL UNIQUE,
    plugin TEXT NOT NULL REFERENCES plugins (name),
    plugin_version TEXT NOT NULL,
    manifest BLOB NOT NULL,
    cpu_cores INTEGER NOT NULL,
    memory_mb INTEGER NOT NULL,
    vmm TEXT NOT NULL,
    created_at TEXT NOT NULL,
    deleting INTEGER NOT NULL DEFAULT 0 CHECK (deleting IN (0, 1))
) STRICT;
CREATE INDEX vms_plugin ON vms (plugin);

CREATE TABLE vm_blobs (
    vm INTEGER NOT NULL REFERENCES vms (seq) ON DELETE CASCADE,
    digest TEXT NOT NULL REFERENCES blobs (digest),
    PRIMARY KEY (vm, digest)
) STRICT, WITHOUT ROWID;
CREATE INDEX vm_blobs_digest ON vm_blobs (digest);
