-- A visitor that was erased: nothing is held of it but hashes, by which what comes later is refused, and which ship
-- upstream. `visitor_hash` is SHA-256, in hex, of the site, a zero byte and the visitor's id.
CREATE TABLE tombstones (
    tombstone_key    INTEGER PRIMARY KEY,
    site             TEXT NOT NULL,
    visitor_hash     TEXT NOT NULL,
    erased_at        INTEGER NOT NULL,
    revision         INTEGER NOT NULL,             -- grows with each change; a time in ms
    shipped_revision INTEGER NOT NULL DEFAULT -1,  -- up to which the destination has confirmed or refused it; -1: none
    refusal          TEXT,                         -- why the destination refused it
    UNIQUE (site, visitor_hash)
) STRICT;
CREATE INDEX tombstones_to_ship ON tombstones (revision) WHERE revision > shipped_revision;

-- The sessions that went with it: SHA-256, in hex, of the site, a zero byte, the funnel's id, a zero byte, the session's id.
CREATE TABLE tombstone_sessions (
    tombstone_key INTEGER NOT NULL REFERENCES tombstones (tombstone_key),
    session_hash  TEXT NOT NULL,
    PRIMARY KEY (tombstone_key, session_hash)
) STRICT, WITHOUT ROWID;
CREATE INDEX tombstone_sessions_by_hash ON tombstone_sessions (session_hash);

-- A line of a batch may be a tombstone. Dropped and made again under its name: after a RENAME the text in sqlite_master
-- would differ from that of schema.sql.
CREATE TEMP TABLE lines_kept AS SELECT batch_key, line, session_key, revision FROM batch_lines;
DROP TABLE batch_lines;
CREATE TABLE batch_lines (
    batch_key     INTEGER NOT NULL REFERENCES batches (batch_key),
    line          INTEGER NOT NULL,
    session_key   INTEGER REFERENCES sessions (session_key),
    tombstone_key INTEGER REFERENCES tombstones (tombstone_key),
    revision      INTEGER NOT NULL,
    PRIMARY KEY (batch_key, line),
    CHECK ((session_key IS NULL) <> (tombstone_key IS NULL))
) STRICT, WITHOUT ROWID;
CREATE INDEX batch_lines_by_session ON batch_lines (session_key);
CREATE INDEX batch_lines_by_tombstone ON batch_lines (tombstone_key) WHERE tombstone_key IS NOT NULL;
INSERT INTO batch_lines (batch_key, line, session_key, revision) SELECT * FROM lines_kept;
DROP TABLE temp.lines_kept;
