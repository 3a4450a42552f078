"""Looking after the file: verify, status, the daily salt."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from sidecar.store.database import Connection, rows
from sidecar.store.facts import DERIVED_SESSION_COLUMNS, DERIVED_VISITOR_COLUMNS

_CHUNK = 1000  # keys compared in one statement: progress moves, and memory stays flat


class Difference(NamedTuple):
    """One finding of `verify`. For a derived column: what is stored and what should be."""

    table: str
    key: str
    column: str
    stored: Any
    expected: Any

    def __str__(self) -> str:
        if not self.column:
            return f"{self.table} {self.key}: {self.stored}"
        return f"{self.table} {self.key} {self.column}: stored {self.stored!r}, should be {self.expected!r}"


def _differing(table: str, view: str, key: str, columns: tuple[str, ...]) -> str:
    unequal = " OR ".join(f"t.{column} IS NOT d.{column}" for column in columns)
    pairs = ", ".join(f"t.{column} AS stored_{column}, d.{column} AS expected_{column}" for column in columns)
    return f"""
SELECT t.{key} AS key, {pairs} FROM {table} AS t LEFT JOIN {view} AS d ON d.{key} = t.{key}
WHERE t.{key} BETWEEN ? AND ? AND ({unequal})"""


_SESSIONS = _differing("sessions", "derived_sessions", "session_key", DERIVED_SESSION_COLUMNS)
_VISITORS = _differing("visitors", "derived_visitors", "visitor_key", DERIVED_VISITOR_COLUMNS)
_EMPTY_SESSIONS = """
SELECT session_key FROM sessions WHERE session_key BETWEEN ? AND ? AND vitals_count + events_count = 0"""
_MISSING_VISITORS = """
SELECT visitor_key FROM derived_visitors WHERE visitor_key BETWEEN ? AND ?
AND visitor_key NOT IN (SELECT visitor_key FROM visitors)"""


def _chunks(conn: Connection, table: str, key: str) -> Iterator[tuple[int, int]]:
    least, most = conn.execute(f"SELECT min({key}), max({key}) FROM {table}").fetchone()
    for start in range(least or 0, (most or -1) + 1, _CHUNK):
        yield start, start + _CHUNK - 1


def _compare(
    conn: Connection, table: str, sql: str, span: tuple[int, int], columns: tuple[str, ...]
) -> Iterator[Difference]:
    for row in rows(conn, sql, span):
        for column in columns:
            stored, expected = row[f"stored_{column}"], row[f"expected_{column}"]
            if stored != expected:
                yield Difference(table, str(row["key"]), column, stored, expected)


def count_verify_steps(conn: Connection) -> int:
    """How often `verify` will call its `advance`."""
    return (
        2
        + sum(1 for _ in _chunks(conn, "sessions", "session_key"))
        + sum(1 for _ in _chunks(conn, "anonymous_ids", "visitor_key"))
    )


def verify(conn: Connection, advance: Callable[[], object]) -> Iterator[Difference]:
    """Every finding: a damaged file, a broken link, a derived column that is not what its facts say.

    Call it inside a snapshot. `advance` is called after each step.
    """
    for (text,) in conn.execute("PRAGMA integrity_check"):
        if text != "ok":
            yield Difference("file", "integrity", "", text, None)
    advance()
    for table, rowid, parent, _ in conn.execute("PRAGMA foreign_key_check"):
        yield Difference(table, str(rowid), "", f"points at no row of {parent}", None)
    advance()
    for span in _chunks(conn, "sessions", "session_key"):
        yield from _compare(conn, "sessions", _SESSIONS, span, DERIVED_SESSION_COLUMNS)
        for (key,) in conn.execute(_EMPTY_SESSIONS, span):
            yield Difference("sessions", str(key), "", "has no facts", None)
        advance()
    for span in _chunks(conn, "anonymous_ids", "visitor_key"):
        yield from _compare(conn, "visitors", _VISITORS, span, DERIVED_VISITOR_COLUMNS)
        for (key,) in conn.execute(_MISSING_VISITORS, span):
            yield Difference("visitors", str(key), "", "is missing", None)
        advance()


_COUNTS = """
SELECT (SELECT count(*) FROM sessions) AS sessions,
       (SELECT count(*) FROM sessions WHERE provisional) AS provisional,
       (SELECT count(*) FROM visitors) AS visitors,
       (SELECT count(*) FROM web_vitals) AS web_vitals,
       (SELECT count(*) FROM events) AS events,
       (SELECT max(revision) FROM sessions) AS last_change"""


def read_counts(conn: Connection) -> dict[str, Any]:
    """Rows by kind: sessions, provisional, visitors, web_vitals, events; last_change in ms or None."""
    return next(rows(conn, _COUNTS))


def put_salt(conn: Connection, day: int, fresh: bytes) -> bytes:
    """The day's salt; `fresh` becomes it where the day has none. Salts of earlier days are deleted."""
    conn.execute("DELETE FROM salts WHERE day < ?", (day,))
    conn.execute("INSERT INTO salts (day, salt) VALUES (?, ?) ON CONFLICT (day) DO NOTHING", (day, fresh))
    salt: bytes = conn.execute("SELECT salt FROM salts WHERE day = ?", (day,)).fetchone()[0]
    return salt


_SUBACCOUNT = """
INSERT INTO funnels (site, funnel_id, subaccount_id, subaccount_revision) VALUES (?, ?, ?, 9007199254740992)
ON CONFLICT (site, funnel_id) DO UPDATE SET subaccount_id = excluded.subaccount_id,
subaccount_revision = excluded.subaccount_revision"""


def put_subaccounts(conn: Connection, site: str, subaccounts: dict[str, str]) -> None:
    """Subaccounts of funnels by the settings: they come before what any document says."""
    for funnel_id, subaccount_id in subaccounts.items():
        conn.execute(_SUBACCOUNT, (site, funnel_id, subaccount_id))
