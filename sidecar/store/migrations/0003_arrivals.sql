-- What was not taken of a session, for people who ask why: the last 20 facts that were repeated, reported older than held,
-- or refused because the session was full. A note: in no figure and no document, and `sidecar verify` does not look at it.
CREATE TABLE arrivals (
    session_key INTEGER NOT NULL REFERENCES sessions (session_key) ON DELETE CASCADE,
    metric      TEXT NOT NULL,  -- '' of an event
    id          TEXT NOT NULL,
    outcome     TEXT NOT NULL CHECK (outcome IN ('duplicate', 'superseded', 'rejected')),
    times       INTEGER NOT NULL DEFAULT 1,
    first_at    INTEGER NOT NULL,  -- by the clock of the sidecar, as last_at
    last_at     INTEGER NOT NULL,
    PRIMARY KEY (session_key, metric, id, outcome)
) STRICT, WITHOUT ROWID;
