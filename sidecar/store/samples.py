"""Sessions and their web vitals packed for reading: the table `samples`, one row for SESSIONS_A_CHUNK sessions.

Percentiles need every instance, and what an overview counts needs every session: 2,000,000 rows fetched one by one take
3 s, as packed columns 0.1 s. A row is made in the background when its sessions are at rest, and dropped in the
transaction that changes one of them; what has no row is read from the facts, so figures are the same with and without.
`verify` makes each row again and compares. Sessions whose first known client is a bot are in no row.
"""

from __future__ import annotations

import json
import struct
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from math import nan
from typing import Any, NamedTuple

from sidecar.attribution import host_of
from sidecar.store.database import Connection

SESSIONS_A_CHUNK = 512  # as in schema.sql
METRIC_CODES = {"LCP": 0, "INP": 1, "CLS": 2, "FCP": 3, "TTFB": 4}
PROVISIONAL, CONVERTED, BOUNCED = 1, 2, 4  # flags of a session
Layout = tuple[tuple[str, str], ...]  # name and array type of each column; native order: a file does not move between
VITALS: Layout = (
    ("value", "d"),
    ("timestamp", "q"),
    ("page_key", "I"),
    ("funnel_key", "I"),
    ("client", "H"),  # place in the chunk's list of [device_type, country_code]
    ("metric", "B"),
    ("navigation", "B"),  # the code and one, 0 where none is known
)
SESSIONS: Layout = (
    ("started_at", "q"),
    ("seconds", "q"),
    ("conversion_value", "d"),  # NaN: none
    ("visitor_key", "I"),
    ("funnel_key", "I"),
    ("first_page_key", "I"),
    ("last_page_key", "I"),
    ("campaign_key", "I"),
    ("page_views", "H"),  # a session holds at most 10,000 facts
    ("events_count", "H"),
    ("referrer", "H"),  # place in the chunk's list of hosts, None where none is known
    ("client", "H"),  # place in the chunk's list of [device_type, country_code, country_name, browser_name, os_name]
    ("flags", "B"),
)
PAGES: Layout = (  # each page that a fact of a session names
    ("row", "H"),  # place of the session in the chunk
    ("page_key", "I"),
    ("page_views", "H"),  # of this page; the page of a fact without one has key 0
)
Listed = list[Any]  # what a column of places points into: texts, None, or lists of them

_CLIENT_ROWS = """
SELECT s.session_key, s.funnel_key, d.device_type, p.country_code
FROM sessions AS s
LEFT JOIN clients AS d ON d.client_key = s.device_client_key
LEFT JOIN clients AS p ON p.client_key = s.place_client_key
LEFT JOIN clients AS f ON f.client_key = s.first_client_key
WHERE s.session_key >= :first AND s.session_key < :end AND f.bot IS NULL
ORDER BY s.session_key"""
_VITAL_ROWS = """
SELECT session_key, value, timestamp, coalesce(page_key, 0),
    (instr('LCP INP CLS FCP TTFB', metric) - 1) / 4, coalesce(navigation_code + 1, 0)
FROM web_vitals
WHERE session_key >= :first AND session_key < :end AND metric <> 'FID'
AND NOT (metric = 'TTFB' AND coalesce(navigation_code, 0) IN (3, 6))
ORDER BY session_key, metric, id"""
# A bounce: at most one page view, and no other event but session_end.
_SESSION_ROWS = f"""
SELECT s.session_key, s.first_referrer, d.device_type, p.country_code, p.country_name, d.browser_name, d.os_name,
    s.started_at, s.duration_seconds, s.conversion_value, coalesce(s.visitor_key, 0), s.funnel_key,
    coalesce(s.first_page_key, 0), coalesce(s.last_page_key, 0), coalesce(s.first_campaign_key, 0),
    s.page_views, s.events_count,
    iif(s.events_count = 0, {PROVISIONAL}, 0) + iif(s.converted, {CONVERTED}, 0)
    + iif(s.page_views <= 1 AND (s.events_count = s.page_views OR NOT EXISTS (
        SELECT 1 FROM events AS e
        WHERE e.session_key = s.session_key AND e.event_name NOT IN ('page_view', 'session_end'))), {BOUNCED}, 0)
FROM sessions AS s
LEFT JOIN clients AS d ON d.client_key = s.device_client_key
LEFT JOIN clients AS p ON p.client_key = s.place_client_key
LEFT JOIN clients AS f ON f.client_key = s.first_client_key
WHERE s.session_key >= :first AND s.session_key < :end AND s.started_at IS NOT NULL AND f.bot IS NULL
ORDER BY s.session_key"""
_PAGE_ROWS = """
SELECT session_key, page_key, sum(is_view) FROM (
    SELECT session_key, coalesce(page_key, 0) AS page_key, event_name = 'page_view' AS is_view
    FROM events WHERE session_key >= :first AND session_key < :end
    UNION ALL
    SELECT session_key, coalesce(page_key, 0), 0
    FROM web_vitals WHERE session_key >= :first AND session_key < :end)
GROUP BY 1, 2 ORDER BY 1, 2"""
_PUT = """
INSERT OR REPLACE INTO samples (chunk, first_at, last_at, first_started_at, last_started_at, vitals, sessions)
VALUES (?, ?, ?, ?, ?, ?, ?)"""
_KNOWN = "SELECT chunk FROM samples"
_CHUNKS = "SELECT max(session_key) / 512 FROM sessions"
# The greatest revision of a chunk's sessions: the last time that one of them changed.
_CHANGED = "SELECT max(revision) FROM sessions WHERE session_key >= ? AND session_key < ?"
_COUNT = struct.Struct("=I")
_ITEM_BYTES = {code: array(code).itemsize for code in "dqIHB"}


class VitalColumns(NamedTuple):
    """The web vitals of a chunk: columns of VITALS, and the list that `client` points into."""

    vitals: list[bytes]
    clients: Listed


class SessionColumns(NamedTuple):
    """The sessions of a chunk: columns of SESSIONS and of PAGES, and what `referrer` and `client` point into."""

    sessions: list[bytes]
    pages: list[bytes]
    hosts: Listed
    clients: Listed


class PackedError(ValueError):
    """A packed row cannot be read. What it holds stands in the facts, too."""


class Packed(NamedTuple):
    """One chunk: time spans in ms of its web vitals and of its sessions' starts (None: it has none), columns."""

    first_at: int | None
    last_at: int | None
    first_started_at: int | None
    last_started_at: int | None
    vitals: bytes
    sessions: bytes


def _span(chunk: int) -> dict[str, int]:
    return {"first": chunk * SESSIONS_A_CHUNK, "end": (chunk + 1) * SESSIONS_A_CHUNK}


def _bodies(layout: Layout, found: Sequence[Sequence[Any]]) -> list[bytes]:
    columns = zip(*found, strict=True) if found else ((),) * len(layout)
    return [array(code, column).tobytes() for (_, code), column in zip(layout, columns, strict=True)]


def count_rows(layout: Layout, columns: Sequence[bytes]) -> int:
    """Rows of a table of columns."""
    return len(columns[0]) // _ITEM_BYTES[layout[0][1]]


class _Places(dict[Any, int]):
    """The place of each thing in the order in which they were first asked for."""

    def __missing__(self, thing: Any) -> int:
        self[thing] = len(self)
        return self[thing]


def read_vitals(conn: Connection, chunk: int) -> VitalColumns:
    """The web vitals of a chunk from the facts: no bots, no FID, no placeholder TTFB."""
    clients = _Places()
    found = conn.execute(_CLIENT_ROWS, _span(chunk))
    owners = {key: (funnel_key, clients[device, country]) for key, funnel_key, device, country in found}
    vitals = [
        (value, timestamp, page_key, *owners[key], metric, navigation)
        for key, value, timestamp, page_key, metric, navigation in conn.execute(_VITAL_ROWS, _span(chunk))
        if key in owners
    ]
    return VitalColumns(_bodies(VITALS, vitals), list(clients))


def read_sessions(conn: Connection, chunk: int) -> SessionColumns:
    """The sessions of a chunk from their rows, and their pages from the facts; no bots."""
    hosts, clients = _Places(), _Places()
    places: dict[int, int] = {}
    sessions = []
    for row in conn.execute(_SESSION_ROWS, _span(chunk)):
        key, referrer, client = row[0], row[1], row[2:7]
        started_at, seconds, value, *counts, flags = row[7:]
        host = hosts[host_of(referrer)]
        worth = nan if value is None else value
        sessions.append((started_at, seconds, worth, *counts, host, clients[client], flags))
        places[key] = len(places)
    pages = [
        (places[key], page_key, views)
        for key, page_key, views in conn.execute(_PAGE_ROWS, _span(chunk))
        if key in places
    ]
    return SessionColumns(_bodies(SESSIONS, sessions), _bodies(PAGES, pages), list(hosts), list(clients))


def _time_span(times: Sequence[int]) -> tuple[int | None, int | None]:
    return min(times, default=None), max(times, default=None)


def pack(conn: Connection, chunk: int) -> Packed:
    """A chunk made from the facts; the same facts make the same bytes."""
    found, columns = read_vitals(conn, chunk), read_sessions(conn, chunk)
    starts = array("q", columns.sessions[0])
    return Packed(
        *_time_span(array("q", found.vitals[1])),
        *_time_span(starts),
        _compress([(VITALS, found.vitals)], [found.clients]),
        _compress([(SESSIONS, columns.sessions), (PAGES, columns.pages)], [columns.hosts, columns.clients]),
    )


def _compress(tables: Sequence[tuple[Layout, list[bytes]]], lists: Sequence[Listed]) -> bytes:
    """Rows of each table, then their columns, then the lists as JSON."""
    counts = b"".join(_COUNT.pack(count_rows(layout, table)) for layout, table in tables)
    columns = b"".join(column for _, table in tables for column in table)
    return zlib.compress(counts + columns + json.dumps(lists, ensure_ascii=False).encode(), 1)


def plain_of(body: bytes) -> bytes:
    """A packed row as it was before packing; what makes it is not the same in every zlib. Raises PackedError."""
    try:
        return zlib.decompress(body)
    except zlib.error as error:
        raise PackedError(str(error)) from error


def _decompress(body: bytes, layouts: Sequence[Layout], lists_count: int) -> tuple[list[list[bytes]], list[Listed]]:
    """The tables and lists of a packed row. Raises PackedError."""
    try:
        tables, lists = _read_plain(memoryview(plain_of(body)), layouts)
    except (ValueError, struct.error) as error:
        raise PackedError(str(error)) from error
    if len(lists) != lists_count:
        raise PackedError("not the lists that belong to it")
    return tables, lists


def _read_plain(plain: memoryview, layouts: Sequence[Layout]) -> tuple[list[list[bytes]], list[Listed]]:
    at = _COUNT.size * len(layouts)
    tables = []
    for place, layout in enumerate(layouts):
        [count] = _COUNT.unpack_from(plain, place * _COUNT.size)
        columns = []
        for _, code in layout:
            size = _ITEM_BYTES[code] * count
            columns.append(bytes(plain[at : at + size]))
            at += size
        tables.append(columns)
    return tables, json.loads(bytes(plain[at:]))


def unpack_vitals(body: bytes) -> VitalColumns:
    """The web vitals of a packed row. Raises PackedError."""
    [vitals], [clients] = _decompress(body, (VITALS,), 1)
    return VitalColumns(vitals, clients)


def unpack_sessions(body: bytes) -> SessionColumns:
    """The sessions of a packed row. Raises PackedError."""
    [sessions, pages], [hosts, clients] = _decompress(body, (SESSIONS, PAGES), 2)
    return SessionColumns(sessions, pages, hosts, clients)


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
    """Make the rows of chunks; how many. For the writer: 13 ms each."""
    made = [(chunk, *pack(conn, chunk)) for chunk in chunks]
    conn.executemany(_PUT, made)
    return len(made)


def list_vitals(conn: Connection, since: int, until: int) -> Iterator[VitalColumns]:
    """The vitals of every chunk that may hold one of a period (ms), packed ones first; call it in a snapshot."""
    held = "SELECT chunk, vitals FROM samples WHERE last_at >= ? AND first_at < ?"
    for chunk, body in conn.execute(held, (since, until)).fetchall():
        try:
            yield unpack_vitals(body)
        except PackedError:  # `verify` names it
            yield read_vitals(conn, chunk)
    for chunk in list_missing(conn):
        yield read_vitals(conn, chunk)


def list_sessions(conn: Connection, since: int, until: int) -> Iterator[SessionColumns]:
    """The sessions of every chunk in which one may have started in a period (ms); as `list_vitals`."""
    held = "SELECT chunk, sessions FROM samples WHERE last_started_at >= ? AND first_started_at < ?"
    for chunk, body in conn.execute(held, (since, until)).fetchall():
        try:
            yield unpack_sessions(body)
        except PackedError:
            yield read_sessions(conn, chunk)
    for chunk in list_missing(conn):
        yield read_sessions(conn, chunk)
