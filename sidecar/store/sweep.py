"""Deleting what no fact is left for: pages, clients, campaigns and visitor ids, beside a server that goes on storing.

No fact table has an index on these links, so both questions are a reading of all facts: which rows are unused, and
SQLite's own check of the foreign key, once for each row that is deleted. Neither may hold up beacons. So the first is
asked on a snapshot, and what is linked to after it is noted by triggers for as long as the sweep lasts, whichever
process links it; the second is left out while the rows go, in transactions of their own that know the answer.

The notes and triggers are in the file, so a killed sweep leaves them; the next one begins with dropping them. Only one
sweep can go on at a time: one that begins ends another.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from sidecar.errors import StoreError
from sidecar.store.database import Connection, immediate

ROWS_A_STEP = 1000  # 5 ms
ROWS_MAX = 1_000_000  # of one table in one sweep; the next one goes on

# Tables that facts share, with the column that points at a row and the tables that have it.
SHARED: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "pages": ("page_key", ("web_vitals", "events")),
    "clients": ("client_key", ("web_vitals", "events")),
    "anonymous_ids": ("visitor_key", ("web_vitals", "events", "visitors")),
    "campaigns": ("campaign_key", ("events",)),
}
_NOTES = """
CREATE TABLE sweeping (
    kind TEXT NOT NULL,  -- the column of a fact that points at the key; 'run': the key is the number of the sweep
    key  INTEGER NOT NULL,
    PRIMARY KEY (kind, key)
) STRICT, WITHOUT ROWID"""
_NOTE = """
    INSERT INTO sweeping SELECT '{column}', NEW.{column} WHERE NEW.{column} IS NOT NULL
    AND NOT EXISTS (SELECT 1 FROM sweeping WHERE kind = '{column}' AND key = NEW.{column});"""
_TRIGGERS = [(table, act) for table in ("web_vitals", "events") for act in ("insert", "update")]


class Unused(NamedTuple):
    """Rows of one table that no fact points at, by their keys."""

    table: str
    keys: array[int]

    @property
    def parts(self) -> Iterator[Unused]:
        """The same in parts for one step each."""
        for start in range(0, len(self.keys), ROWS_A_STEP):
            yield Unused(self.table, self.keys[start : start + ROWS_A_STEP])


def begin(conn: Connection, run: int) -> None:
    """Note from now on what facts are linked to; in a transaction, committed before `find_unused` reads.

    `run`: any number that no other sweep has.
    """
    end(conn)
    conn.execute(_NOTES)
    conn.execute("INSERT INTO sweeping VALUES ('run', ?)", (run,))
    for table, act in _TRIGGERS:
        columns = [column for column, users in SHARED.values() if table in users]
        notes = "".join(_NOTE.format(column=column) for column in columns)
        conn.execute(f"CREATE TRIGGER sweeping_{table}_{act} AFTER {act} ON {table}\nBEGIN{notes}\nEND")


def end(conn: Connection) -> None:
    """Stop noting; in a transaction."""
    for table, act in _TRIGGERS:
        conn.execute(f"DROP TRIGGER IF EXISTS sweeping_{table}_{act}")
    conn.execute("DROP TABLE IF EXISTS sweeping")


def is_left(conn: Connection) -> bool:
    """Whether a sweep goes on, or was killed."""
    return conn.execute("SELECT 1 FROM sqlite_master WHERE name = 'sweeping'").fetchone() is not None


def find_unused(conn: Connection) -> list[Unused]:
    """The rows that no fact points at, at most ROWS_MAX of each table; on a snapshot after `begin`.

    1.4 s for a million facts.
    """
    found = []
    for table, (column, users) in SHARED.items():
        used = " UNION ".join(f"SELECT {column} FROM {user} WHERE {column} IS NOT NULL" for user in users)
        rows = conn.execute(f"SELECT {column} FROM {table} WHERE {column} NOT IN ({used}) LIMIT ?", (ROWS_MAX,))
        found.append(Unused(table, array("q", (key for (key,) in rows))))
    return found


def drop(conn: Connection, run: int, unused: Unused) -> int | None:
    """Delete one part of unused rows but for those that were linked to since `begin`; how many.

    A transaction of its own, for a connection that is in none. None where another sweep has ended this one.
    """
    column, _ = SHARED[unused.table]
    with _unlinked(conn), immediate(conn):
        if not goes_on(conn, run):
            return None
        return int(
            conn.execute(
                f"""DELETE FROM {unused.table} WHERE {column} IN (SELECT value FROM json_each(?))
                AND {column} NOT IN (SELECT key FROM sweeping WHERE kind = '{column}')""",
                (json.dumps(unused.keys.tolist()),),
            ).rowcount
        )


def finish(conn: Connection, run: int) -> None:
    """Stop noting, where the sweep is still this one; in a transaction."""
    if goes_on(conn, run):
        end(conn)


def goes_on(conn: Connection, run: int) -> bool:
    """Whether this sweep goes on: it was begun, and no other has been since."""
    if not is_left(conn):
        return False
    return conn.execute("SELECT 1 FROM sweeping WHERE kind = 'run' AND key = ?", (run,)).fetchone() is not None


@contextmanager
def _unlinked(conn: Connection) -> Iterator[None]:
    """Foreign keys are not checked within; a no-op inside a transaction, so it is asked whether it was done."""
    conn.execute("PRAGMA foreign_keys = OFF")
    try:
        if conn.execute("PRAGMA foreign_keys").fetchone() != (0,):
            raise StoreError("a sweep was begun inside a transaction")
        yield
    finally:
        conn.execute("PRAGMA foreign_keys = ON")
        if conn.execute("PRAGMA foreign_keys").fetchone() != (1,):
            raise StoreError("SQLite would not switch foreign keys on again")
