-- A VM's own configuration over its plugin's: JSON, every version that is kept, the newest in force. The columns cpu_cores,
-- memory_mb and vmm of `vms` are what follows from it and from the VM's manifest.
CREATE TABLE vm_configs (
    vm INTEGER NOT NULL REFERENCES vms (seq) ON DELETE CASCADE,
    version INTEGER NOT NULL CHECK (version > 0),
    config TEXT NOT NULL,
    created_at TEXT NOT NULL,
    reason TEXT NOT NULL,
    PRIMARY KEY (vm, version)
) STRICT;
-- What a VM was created with, the plugin's values among them: they are in its manifest, too, which it keeps.
INSERT INTO vm_configs (vm, version, config, created_at, reason)
    SELECT seq, 1, json_object('cpu_cores', cpu_cores, 'memory_mb', memory_mb, 'vmm', vmm), created_at, 'created' FROM vms;
