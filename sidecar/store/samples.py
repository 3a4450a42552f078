"""Web vitals packed for reading: the table `samples`, one row for SESSIONS_A_CHUNK sessions.

Percentiles need every instance: 2,000,000 rows fetched one by one take 3 s, as packed columns 0.1 s. A row is made in
the background when its sessions are at rest, and dropped in the transaction that changes one of them; what has no row
is read from the facts, so figures are the same with and without. `verify` makes each row again and compares.
"""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from sidecar.store.database import Connection

SESSIONS_A_CHUNK = 512  # as in schema.sql
METRIC_CODES = {"LCP": 0, "INP": 1, "CLS": 2, "FCP": 3, "TTFB": 4}
COLUMNS = (  # name and array type; unsigned but for the times, native order: a file does not move between byte orders
    ("value", "d"),
    ("timestamp", "q"),
    ("page_key", "I"),
    ("device_key", "I"),
    ("place_key", "I"),
    ("funnel_key", "I"),
    ("metric", "B"),
    ("navigation", "B"),  # the code and one, 0 where none is known
)
_ROWS = """
SELECT v.value, v.timestamp, coalesce(v.page_key, 0), coalesce(s.device_client_key, 0), coalesce(s.place_client_key, 0),
    s.funnel_key, (instr('LCP INP CLS FCP TTFB', v.metric) - 1) / 4, coalesce(v.navigation_code + 1, 0)
FROM sessions AS s
CROSS JOIN web_vitals AS v ON v.session_key = s.session_key
WHERE s.session_key >= :first AND s.session_key < :end AND v.metric <> 'FID'
AND NOT (v.metric = 'TTFB' AND coalesce(v.navigation_code, 0) IN (3, 6))
AND (s.first_client_key IS NULL OR s.first_client_key NOT IN (SELECT client_key FROM clients WHERE bot IS NOT NULL))
ORDER BY v.session_key, v.metric, v.id"""
_PUT = "INSERT OR REPLACE INTO samples (chunk, first_at, last_at, body) VALUES (?, ?, ?, ?)"
_KNOWN = "SELECT chunk FROM samples"
_CHUNKS = "SELECT max(session_key) / 512 FROM sessions"
# The greatest revision of a chunk's sessions: the last time that one of them changed.
_CHANGED = "SELECT max(revision) FROM sessions WHERE session_key >= ? AND session_key < ?"


class Packed(NamedTuple):
    """One chunk: its time span in ms (None: it holds no web vital) and its columns, compressed."""

    first_at: int | None
    last_at: int | None
    body: bytes


def _span(chunk: int) -> dict[str, int]:
    return {"first": chunk * SESSIONS_A_CHUNK, "end": (chunk + 1) * SESSIONS_A_CHUNK}


def read_columns(conn: Connection, chunk: int) -> list[array[Any]]:
    """The columns of a chunk from the facts, in the order of COLUMNS: no bots, no FID, no placeholder TTFB."""
    found = conn.execute(_ROWS, _span(chunk)).fetchall()
    columns = zip(*found, strict=True) if found else ((),) * len(COLUMNS)
    return [array(code, column) for (_, code), column in zip(COLUMNS, columns, strict=True)]


def pack(conn: Connection, chunk: int) -> Packed:
    """A chunk made from the facts; the same facts make the same bytes."""
    columns = read_columns(conn, chunk)
    times = columns[1]
    body = zlib.compress(b"".join(column.tobytes() for column in columns), 1)
    return Packed(min(times, default=None), max(times, default=None), body)


def unpack(body: bytes) -> list[bytes]:
    """The columns of a body, as bytes, in the order of COLUMNS."""
    plain = zlib.decompress(body)
    sizes = [array(code).itemsize for _, code in COLUMNS]
    count = len(plain) // sum(sizes)
    columns, at = [], 0
    for size in sizes:
        columns.append(plain[at : at + size * count])
        at += size * count
    return columns


def list_missing(conn: Connection) -> list[int]:
    """Chunks without a row, in order."""
    last = conn.execute(_CHUNKS).fetchone()[0]
    if last is None:
        return []
    known = {chunk for (chunk,) in conn.execute(_KNOWN)}
    return [chunk for chunk in range(last + 1) if chunk not in known]


def list_resting(conn: Connection, now: int, rest_ms: int) -> list[int]:
    """Chunks without a row whose sessions have not changed for `rest_ms`."""
    resting = []
    for chunk in list_missing(conn):
        changed = conn.execute(_CHANGED, tuple(_span(chunk).values())).fetchone()[0]
        if changed is None or not now - rest_ms < changed <= now + rest_ms:
            resting.append(chunk)
    return resting


def put_chunks(conn: Connection, chunks: Iterable[int]) -> int:
    """Make the rows of chunks; how many. For the writer: 3 ms each."""
    made = [(chunk, *pack(conn, chunk)) for chunk in chunks]
    conn.executemany(_PUT, made)
    return len(made)


def read_bodies(conn: Connection, since: int, until: int) -> Iterator[list[bytes]]:
    """The columns of every chunk that may hold a web vital of a period, packed ones first; call it in a snapshot."""
    held = "SELECT body FROM samples WHERE last_at >= ? AND first_at < ?"
    for (body,) in conn.execute(held, (since, until)):
        yield unpack(body)
    for chunk in list_missing(conn):
        yield [column.tobytes() for column in read_columns(conn, chunk)]
