-- A note of what was not taken says why. Dropped and made again under its name: after ALTER TABLE the text in
-- sqlite_master would differ from that of schema.sql.
CREATE TEMP TABLE arrivals_kept AS SELECT * FROM arrivals;
DROP TABLE arrivals;
-- What was not taken of a session, for people who ask why: the last 20 items that were repeated, superseded or refused.
-- A note: in no figure and no document, and `sidecar verify` does not look at it.
CREATE TABLE arrivals (
    session_key INTEGER NOT NULL REFERENCES sessions (session_key) ON DELETE CASCADE,
    metric      TEXT NOT NULL,  -- '' of an event
    id          TEXT NOT NULL,  -- '' where a refused item had none
    outcome     TEXT NOT NULL CHECK (outcome IN ('duplicate', 'superseded', 'rejected')),
    reason      TEXT NOT NULL,  -- why it was rejected, what a superseded report said, or ''
    times       INTEGER NOT NULL DEFAULT 1,
    first_at    INTEGER NOT NULL,  -- by the clock of the sidecar, as last_at
    last_at     INTEGER NOT NULL,
    PRIMARY KEY (session_key, metric, id, outcome, reason)
) STRICT, WITHOUT ROWID;
INSERT INTO arrivals (session_key, metric, id, outcome, reason, times, first_at, last_at)
SELECT session_key, metric, id, outcome, iif(outcome = 'rejected', 'session is full', ''), times, first_at, last_at
FROM arrivals_kept;
DROP TABLE temp.arrivals_kept;
