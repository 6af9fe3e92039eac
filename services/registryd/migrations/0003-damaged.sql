-- Whether other bytes than its own were read from an artifact though its file was not written to: nobody gets it until it was
-- fetched or sent again.
ALTER TABLE blobs ADD COLUMN damaged INTEGER NOT NULL DEFAULT 0 CHECK (damaged IN (0, 1));
