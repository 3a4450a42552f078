-- Sessions are packed beside their web vitals. The rows are made again in the background.
DROP TABLE samples;
DROP TRIGGER samples_of_deleted;
-- Sessions and their web vitals packed for reading, 512 sessions a row: made in the background when they are at rest,
-- dropped when one of them changes. What has no row is read from the facts. Derived: `verify` makes each row again.
CREATE TABLE samples (
    chunk            INTEGER PRIMARY KEY,  -- session_key / 512
    first_at         INTEGER,              -- the earliest and the latest time of its web vitals
    last_at          INTEGER,
    first_started_at INTEGER,              -- the earliest and the latest start of its sessions
    last_started_at  INTEGER,
    vitals           BLOB NOT NULL,        -- columns, compressed: sidecar/store/samples.py
    sessions         BLOB NOT NULL
) STRICT;
CREATE TRIGGER samples_of_deleted AFTER DELETE ON sessions
BEGIN
    DELETE FROM samples WHERE chunk = OLD.session_key / 512;
END;

-- No beacon makes a fact this large, a document may: of such a session the bytes are counted before it has many facts.
CREATE INDEX events_large ON events (session_key) WHERE content_bytes > 65536;
