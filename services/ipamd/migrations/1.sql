-- Who holds what. The constraints are the last word: whatever a service believes, nothing is given twice.
CREATE TABLE lease (
    vm      TEXT NOT NULL PRIMARY KEY,
    address TEXT NOT NULL UNIQUE,
    mac     TEXT NOT NULL UNIQUE,
    cid     INTEGER NOT NULL UNIQUE CHECK (cid BETWEEN 3 AND 4294967294)
) STRICT, WITHOUT ROWID;
