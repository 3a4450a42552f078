"""Comparing what is stored with what it should be, and deriving it again: `sidecar verify`, with or without `--repair`.

Everything but the texts of facts themselves can be computed from something else in the file: that is done here for all
of it, a thousand sessions at a time, so that memory stays flat. What differs is named, with what it should be; where
that can be computed, it can be mended, too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from typing import Any, NamedTuple

from sidecar.attribution import campaign_of, click_ids_of
from sidecar.canonical import client_bits, content_size, digest, page_bits, to_json
from sidecar.model import RATINGS, Campaign, Client, Page, rate
from sidecar.store.database import Connection, Error, rows
from sidecar.store.facts import (
    CAMPAIGN_JOIN,
    DERIVED_SESSION_COLUMNS,
    DERIVED_VISITOR_COLUMNS,
    EVENT_COLUMNS,
    FACT_JOINS,
    VITAL_COLUMNS,
    FactOwner,
    read_event,
    read_vital,
)
from sidecar.store.samples import SESSIONS_A_CHUNK, Packed, PackedError, pack, plain_of

_CHUNK = 1000  # keys compared in one step: progress moves, and memory stays flat
_KEY_MAX = 2**63 - 1
_KINDS = (
    "file",
    "links",
    "pages",
    "clients",
    "campaigns",
    "facts",
    "sessions",
    "visitors",
    "samples",
)  # in order of need


class Difference(NamedTuple):
    """One finding. `column` '': the row as a whole, and `stored` says what is the matter with it."""

    table: str
    key: str
    column: str
    stored: Any
    expected: Any
    repaired: bool = False

    def __str__(self) -> str:
        key = self.key if self.key.isprintable() else ascii(self.key)  # ids of clients must not steer a terminal
        if not self.column:
            return f"{self.table} {key}: {self.stored}{', repaired' if self.repaired else ''}"
        words = ("was", "is") if self.repaired else ("stored", "should be")
        return f"{self.table} {key} {self.column}: {words[0]} {self.stored!r}, {words[1]} {self.expected!r}"


class Step(NamedTuple):
    """A part of the comparison: one of _KINDS, over the rows with keys from `least` to `most`."""

    kind: str
    least: int = 0
    most: int = 0


# What mends a difference: it is given the time (ms) and returns the steps that have to be looked at again for it.
_Mend = Callable[[Connection, int], list[Step]]


class _Finding(NamedTuple):
    """A difference, and the rows that cannot be compared with certainty before it is mended."""

    difference: Difference
    mend: _Mend | None = None
    unsettles: frozenset[tuple[str, int]] = frozenset()


# Rows that could not be compared with certainty: ("sessions", key) or ("visitors", key), where something that they are
# derived from differs.
Unsure = set[tuple[str, int]]
_ALL = -1  # as a key of Unsure
_UNSURE = "differs; what it should be follows from {}, of which something differs, too"
_SOURCES = {"sessions": "its facts", "visitors": "its sessions"}
_MISSING = "is missing"

_TABLES = (
    ("pages", "pages", "page_key"),
    ("clients", "clients", "client_key"),
    ("campaigns", "campaigns", "campaign_key"),
    ("facts", "sessions", "session_key"),
    ("sessions", "sessions", "session_key"),
    ("visitors", "anonymous_ids", "visitor_key"),
    ("samples", "samples", "chunk"),
)


def plan(conn: Connection) -> list[Step]:
    """All steps of a comparison, in their order. A table that cannot be read has none: the first step names it."""
    steps = [Step("file"), Step("links")]
    for kind, table, key in _TABLES:
        with suppress(Error):
            steps += [Step(kind, least, min(least + _CHUNK - 1, _KEY_MAX)) for least in _chunks(conn, table, key)]
    return steps


def _chunks(conn: Connection, table: str, key: str) -> list[int]:
    """The least keys of chunks, from one row to the next: a damaged key may be any number."""
    found: list[int] = []
    (least,) = conn.execute(f"SELECT min({key}) FROM {table}").fetchone()
    while least is not None and (not found or least > found[-1]):
        found.append(least)
        sql = f"SELECT min({key}) FROM {table} WHERE {key} >= ?"
        (least,) = conn.execute(sql, (min(least + _CHUNK, _KEY_MAX),)).fetchone()
    return found


def check(conn: Connection, step: Step, unsure: Unsure | None = None) -> Iterator[Difference]:
    """The differences of one step. Call all steps of a plan inside one snapshot, with the same set for `unsure`.

    What follows from a difference of an earlier step is not named with what it should be: that would be wrong.
    """
    said: Difference | None = None
    for finding in _find(conn, step):
        difference = finding.difference if unsure is None else _say_surely(finding, unsure)
        if difference != said:  # one line for all columns of a row that is not certain
            yield difference
        said = difference


def _say_surely(finding: _Finding, unsure: Unsure) -> Difference:
    difference = finding.difference
    table = difference.table
    compared = table in ("sessions", "visitors") and (difference.column or difference.stored == _MISSING)
    if compared and unsure & {(table, int(difference.key)), (table, _ALL)}:
        difference = difference._replace(column="", stored=_UNSURE.format(_SOURCES[table]), expected=None)
    unsure |= finding.unsettles
    return difference


def verify(conn: Connection, advance: Callable[[], object]) -> Iterator[Difference]:
    """The differences of all steps; `advance` is called after each."""
    unsure: Unsure = set()
    for step in plan(conn):
        yield from check(conn, step, unsure)
        advance()


def repair(conn: Connection, steps: Iterable[Step], now: int) -> Iterator[Difference]:
    """Look at steps again and mend what differs, inside the caller's write transaction: each difference as it was.

    A session that is derived again gets a new revision (from `now`, ms), so that it ships again. Not for a file with
    broken links: what they pointed at cannot be derived.
    """
    waiting: dict[str, dict[Step, None]] = {kind: {} for kind in _KINDS}
    for step in steps:
        waiting[step.kind][step] = None
        if step.kind == "facts":
            waiting["sessions"][step._replace(kind="sessions")] = None
    for kind in (*_KINDS[2:], *_KINDS[:2]):  # the file at last: a row that broke a rule may be mended by then
        for step in waiting[kind]:
            last: _Mend | None = None
            for difference, mend, _ in list(_find(conn, step)):
                if mend is None:
                    yield difference
                    continue
                if mend is not last:  # one for all columns of a session
                    for further in mend(conn, now):
                        waiting[further.kind][further] = None
                    last = mend
                yield difference._replace(repaired=True)


def _find(conn: Connection, step: Step) -> Iterator[_Finding]:
    span = (step.least, step.most)
    try:
        match step.kind:
            case "file":
                yield from _find_damage(conn)
            case "links":
                yield from _find_broken_links(conn)
            case "facts":
                yield from _find_vitals(conn, span)
                yield from _find_events(conn, span)
            case "sessions":
                yield from _find_sessions(conn, span)
            case "visitors":
                yield from _find_visitors(conn, span)
            case "samples":
                yield from _find_samples(conn, span)
            case _:
                yield from _find_shared(conn, _SHARED[step.kind], span)
    except _UNREADABLE as error:
        yield from _find_unreadable(conn, step, error)


# What comes of bytes that are not what was written: SQLite's own errors, and values of kinds that a column never has.
_UNREADABLE = (Error, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
_SQLITE_DAMAGED = (10, 11, 26)  # SQLITE_IOERR, SQLITE_CORRUPT, SQLITE_NOTADB


def _find_unreadable(conn: Connection, step: Step, error: Exception) -> Iterator[_Finding]:
    """Where a step cannot be read to its end: the rows of it that can, one by one, and a finding for each other.

    In a damaged file one for all of them: they are on the same pages.
    """
    is_damaged = getattr(error, "sqlite_errorcode", 0) & 0xFF in _SQLITE_DAMAGED
    if step.least == step.most or is_damaged:
        key = str(step.least) if step.kind in ("facts", "sessions", "visitors") else step.kind
        if step.least != step.most:
            key = f"{step.least} to {step.most}"
        table = "sessions" if step.kind == "facts" else step.kind
        yield _Finding(Difference(table, key, "", f"cannot be read: {error}", None))
        return
    for key_number in range(step.least, step.most + 1):
        yield from _find(conn, Step(step.kind, key_number, key_number))


# --- the file --------------------------------------------------------------------------------------------------------

_BROKEN_RULE = ("CHECK constraint failed", "NULL value in")  # a row that breaks a rule, in a file that is sound


_BROKEN_LINK = "points at no row of"


def is_damage(difference: Difference) -> bool:
    """Whether the file is damaged or a link broken, so that nothing should be derived from it.

    The link of a session to its visitor is no damage: both are derived.
    """
    if difference.table in ("file", "links"):
        return not str(difference.stored).startswith(_BROKEN_RULE)
    is_link = difference.column == "" and _BROKEN_LINK in str(difference.stored)
    return is_link and not (difference.table == "sessions" and str(difference.stored).endswith(" visitors"))


def _find_damage(conn: Connection) -> Iterator[_Finding]:
    for (text,) in conn.execute("PRAGMA integrity_check"):
        if text != "ok":
            yield _Finding(Difference("file", "integrity", "", text, None))
    for _, table, key in _TABLES:
        try:
            _chunks(conn, table, key)
        except Error as error:
            yield _Finding(Difference("file", table, "", f"cannot be read: {error}", None))


def _find_broken_links(conn: Connection) -> Iterator[_Finding]:
    broken = {(table, link): parent for table, _, parent, link in conn.execute("PRAGMA foreign_key_check")}
    for (table, link), parent in broken.items():
        yield from _find_broken(conn, table, link, parent)


def _find_broken(conn: Connection, table: str, link: int, parent: str) -> Iterator[_Finding]:
    """The rows of one table whose link, by its number there, points at nothing; each by its primary key.

    SQLite's own list has row ids instead, and none for `web_vitals` and `events`.
    """
    links = conn.execute('SELECT "from", "to" FROM pragma_foreign_key_list(?) WHERE id = ?', (table, link))
    column, target = links.fetchone()
    primary = conn.execute("SELECT name FROM pragma_table_info(?) WHERE pk > 0 ORDER BY pk", (table,))
    names = [name for (name,) in primary]
    sql = f"""
SELECT {column}, {", ".join(names)} FROM {table} AS child
WHERE {column} IS NOT NULL AND NOT EXISTS (SELECT 1 FROM {parent} WHERE {target} = child.{column})"""
    for value, *identity in conn.execute(sql):
        owner = identity[0] if table in ("web_vitals", "events") else None
        yield _Finding(
            Difference(table, _name(identity), "", f"{column} {value!r} {_BROKEN_LINK} {parent}", None),
            unsettles=frozenset() if owner is None else frozenset({("sessions", owner)}),
        )


# --- pages, clients, campaigns ---------------------------------------------------------------------------------------


class _Shared(NamedTuple):
    """A table of texts that facts share. The low `width` bits of a key are `bits` of the row."""

    table: str
    key: str
    row: type[Page] | type[Client] | type[Campaign]
    bits: Callable[[Any], int]
    width: int
    users: tuple[str, ...]


_SHARED = {
    "pages": _Shared("pages", "page_key", Page, page_bits, 1, ("web_vitals", "events")),
    "clients": _Shared("clients", "client_key", Client, client_bits, 3, ("web_vitals", "events")),
    "campaigns": _Shared("campaigns", "campaign_key", Campaign, lambda _: 0, 0, ("events",)),
}


def _find_shared(conn: Connection, shared: _Shared, span: tuple[int, int]) -> Iterator[_Finding]:
    columns = ", ".join(shared.row._fields)
    sql = f"SELECT {shared.key}, digest, {columns} FROM {shared.table} WHERE {shared.key} BETWEEN ? AND ?"
    for key, stored, *said in conn.execute(sql, span):
        row = shared.row(*said)
        mend = partial(_mend_shared, shared, key, row)
        if stored != digest(row):
            yield _Finding(Difference(shared.table, str(key), "digest", stored.hex(), digest(row).hex()), mend)
        mask = (1 << shared.width) - 1
        if key & mask != shared.bits(row):
            yield _Finding(
                Difference(shared.table, str(key), f"{shared.key} & {mask}", key & mask, shared.bits(row)),
                mend,
                frozenset({("sessions", _ALL)}),
            )


def _mend_shared(shared: _Shared, key: int, row: Any, conn: Connection, _: int) -> list[Step]:
    """Give the row its digest, and a key with its bits; where a row of the same texts has come since, become that."""
    table, name = shared.table, shared.key
    twin = conn.execute(f"SELECT {name} FROM {table} WHERE digest = ? AND {name} <> ?", (digest(row), key)).fetchone()
    if twin is None and key & ((1 << shared.width) - 1) == shared.bits(row):
        conn.execute(f"UPDATE {table} SET digest = ? WHERE {name} = ?", (digest(row), key))
        return []
    if not conn.execute(f"SELECT EXISTS (SELECT 1 FROM {table} WHERE {name} = ?)", (key,)).fetchone()[0]:
        return []  # mended already, for another difference of the same row
    if twin is None:
        greatest = conn.execute(f"SELECT max({name}) FROM {table}").fetchone()[0]
        fresh = ((greatest >> shared.width) + 1 << shared.width) + shared.bits(row)
    else:
        (fresh,) = twin
    conn.execute("PRAGMA defer_foreign_keys = ON")  # until COMMIT: for a moment facts point at a row that has gone
    touched: set[int] = set()
    for user in shared.users:
        found = conn.execute(f"UPDATE {user} SET {name} = ? WHERE {name} = ? RETURNING session_key", (fresh, key))
        touched |= {session_key for (session_key,) in found.fetchall()}
    if twin is None:
        conn.execute(f"UPDATE {table} SET {name} = ?, digest = ? WHERE {name} = ?", (fresh, digest(row), key))
    else:
        conn.execute(f"DELETE FROM {table} WHERE {name} = ?", (key,))
    return [Step("sessions", session_key, session_key) for session_key in sorted(touched)]


# --- facts -----------------------------------------------------------------------------------------------------------

_NOBODY = FactOwner("", "", "")  # whose a fact is stands in no column that is compared here
_VITALS = f"""
SELECT v.content_bytes, v.rating_code, {VITAL_COLUMNS} FROM web_vitals AS v {FACT_JOINS}
WHERE v.session_key BETWEEN ? AND ?"""
_EVENTS = f"""
SELECT v.content_bytes, {EVENT_COLUMNS} FROM events AS v {FACT_JOINS} {CAMPAIGN_JOIN}
WHERE v.session_key BETWEEN ? AND ?"""
_SET_VITAL = "UPDATE web_vitals SET {} = ? WHERE session_key = ? AND metric = ? AND id = ?"
_SET_EVENT = "UPDATE events SET {} = ? WHERE session_key = ? AND event_id = ?"


def _set(sql: str, value: Any, identity: tuple[Any, ...], conn: Connection, _: int) -> list[Step]:
    conn.execute(sql, (value, *identity))
    return [Step("sessions", identity[0], identity[0])]


def _find_vitals(conn: Connection, span: tuple[int, int]) -> Iterator[_Finding]:
    for stored_bytes, code, *row in conn.execute(_VITALS, span):
        fact = read_vital(tuple(row), _NOBODY)
        if not 0 <= code < len(RATINGS):
            rating = rate(fact.metric, fact.value)
            fact = fact._replace(rating=rating)
            yield _differing_fact("web_vitals", row[:3], "rating_code", code, RATINGS.index(rating))
        expected_bytes = content_size(fact)
        if stored_bytes != expected_bytes:
            yield _differing_fact("web_vitals", row[:3], "content_bytes", stored_bytes, expected_bytes)


def _find_events(conn: Connection, span: tuple[int, int]) -> Iterator[_Finding]:
    for stored_bytes, *row in conn.execute(_EVENTS, span):
        fact = read_event(tuple(row), _NOBODY)
        expected_bytes = content_size(fact)
        if stored_bytes != expected_bytes:
            yield _differing_fact("events", row[:2], "content_bytes", stored_bytes, expected_bytes)
        try:
            campaign, click_ids = _attribution(fact.context, fact.page and fact.page.url)
        except ValueError as error:
            difference = Difference("events", _name(row[:2]), "", f"context is no JSON: {error}", None)
            yield _Finding(difference, unsettles=frozenset({("sessions", row[0])}))
            continue
        if fact.click_ids != click_ids:
            yield _differing_fact("events", row[:2], "click_ids", fact.click_ids, click_ids)
        if fact.campaign != campaign:
            stored, expected = (one and to_json(list(one)) for one in (fact.campaign, campaign))
            mend = partial(_set_campaign, campaign, tuple(row[:2]))
            difference = Difference("events", _name(row[:2]), "campaign_key", stored, expected)
            yield _Finding(difference, mend, frozenset({("sessions", row[0])}))


@lru_cache(maxsize=4096)
def _attribution(context: str | None, url: str | None) -> tuple[Campaign | None, str | None]:
    said = json.loads(context) if context else {}
    return campaign_of(said.get("utm"), url), click_ids_of(said.get("clickIds"), url)


def _name(identity: Iterable[Any]) -> str:
    return " ".join(str(part) for part in identity)


def _differing_fact(table: str, identity: list[Any], column: str, stored: Any, expected: Any) -> _Finding:
    sql = (_SET_VITAL if table == "web_vitals" else _SET_EVENT).format(column)
    difference = Difference(table, _name(identity), column, stored, expected)
    unsettles = frozenset({("sessions", identity[0])} if column == "click_ids" else ())
    return _Finding(difference, partial(_set, sql, expected, tuple(identity)), unsettles)


def _set_campaign(campaign: Campaign | None, identity: tuple[Any, ...], conn: Connection, now: int) -> list[Step]:
    key = None
    if campaign is not None:
        conn.execute(
            """INSERT INTO campaigns (digest, source, medium, campaign, term, content) VALUES (?, ?, ?, ?, ?, ?)
            ON CONFLICT (digest) DO NOTHING""",
            (digest(campaign), *campaign),
        )
        (key,) = conn.execute("SELECT campaign_key FROM campaigns WHERE digest = ?", (digest(campaign),)).fetchone()
    return _set(_SET_EVENT.format("campaign_key"), key, identity, conn, now)


# --- sessions and visitors -------------------------------------------------------------------------------------------


def _differing(table: str, view: str, key: str, columns: tuple[str, ...]) -> str:
    unequal = " OR ".join(f"t.{column} IS NOT d.{column}" for column in columns)
    pairs = ", ".join(f"t.{column} AS stored_{column}, d.{column} AS expected_{column}" for column in columns)
    return f"""
SELECT t.{key} AS key, {pairs} FROM {table} AS t LEFT JOIN {view} AS d ON d.{key} = t.{key}
WHERE t.{key} BETWEEN ? AND ? AND ({unequal})"""


_SESSIONS = _differing("sessions", "derived_sessions", "session_key", DERIVED_SESSION_COLUMNS)
_VISITORS = _differing("visitors", "derived_visitors", "visitor_key", DERIVED_VISITOR_COLUMNS)
_EMPTY_SESSIONS = """
SELECT session_key FROM sessions AS s WHERE session_key BETWEEN ? AND ?
AND NOT EXISTS (SELECT 1 FROM web_vitals WHERE session_key = s.session_key)
AND NOT EXISTS (SELECT 1 FROM events WHERE session_key = s.session_key)"""
_MISSING_VISITORS = """
SELECT visitor_key FROM derived_visitors WHERE visitor_key BETWEEN ? AND ?
AND visitor_key NOT IN (SELECT visitor_key FROM visitors)"""
_SESSION_COLUMNS = ", ".join(DERIVED_SESSION_COLUMNS)
_DERIVE_SESSION = f"""
UPDATE sessions SET revision = min(max(revision + 1, ?2), 9007199254740991),
    ({_SESSION_COLUMNS}) = (SELECT {_SESSION_COLUMNS} FROM derived_sessions AS d WHERE d.session_key = ?1)
WHERE session_key = ?1
AND ({_SESSION_COLUMNS}) IS NOT (SELECT {_SESSION_COLUMNS} FROM derived_sessions AS d WHERE d.session_key = ?1)"""
_DERIVE_VISITOR = f"""
INSERT INTO visitors (visitor_key, {", ".join(DERIVED_VISITOR_COLUMNS)})
SELECT visitor_key, {", ".join(DERIVED_VISITOR_COLUMNS)} FROM derived_visitors WHERE visitor_key = ?
ON CONFLICT (visitor_key) DO UPDATE SET {", ".join(f"{name} = excluded.{name}" for name in DERIVED_VISITOR_COLUMNS)}"""
_DROP_VISITOR = """
DELETE FROM visitors WHERE visitor_key = ?1 AND NOT EXISTS (SELECT 1 FROM sessions WHERE visitor_key = ?1)"""


def _compare(
    conn: Connection, table: str, sql: str, span: tuple[int, int], columns: tuple[str, ...], mend: Callable[..., Any]
) -> Iterator[_Finding]:
    for row in rows(conn, sql, span):
        mend_row = partial(mend, row["key"])
        visitors = {row["stored_visitor_key"], row["expected_visitor_key"]} - {None} if table == "sessions" else ()
        unsettles = frozenset(("visitors", key) for key in visitors)
        for column in columns:
            stored, expected = row[f"stored_{column}"], row[f"expected_{column}"]
            if stored != expected:
                yield _Finding(Difference(table, str(row["key"]), column, stored, expected), mend_row, unsettles)


def _find_sessions(conn: Connection, span: tuple[int, int]) -> Iterator[_Finding]:
    yield from _compare(conn, "sessions", _SESSIONS, span, DERIVED_SESSION_COLUMNS, _derive_session)
    for (key,) in conn.execute(_EMPTY_SESSIONS, span):
        yield _Finding(Difference("sessions", str(key), "", "has no facts", None), _mend_empty(conn, key))


def _find_visitors(conn: Connection, span: tuple[int, int]) -> Iterator[_Finding]:
    yield from _compare(conn, "visitors", _VISITORS, span, DERIVED_VISITOR_COLUMNS, _derive_visitor)
    for (key,) in conn.execute(_MISSING_VISITORS, span):
        yield _Finding(Difference("visitors", str(key), "", _MISSING, None), partial(_derive_visitor, key))


def _derive_session(key: int, conn: Connection, now: int) -> list[Step]:
    """Derive one session again; its visitors, the old one and the new one, have to be looked at after it."""
    visitor = "SELECT visitor_key FROM sessions WHERE session_key = ?"
    keys = set(conn.execute(visitor, (key,)).fetchone())
    conn.execute(_DERIVE_SESSION, (key, now))
    keys |= set(conn.execute(visitor, (key,)).fetchone())
    chunk = key // SESSIONS_A_CHUNK
    further = [Step("visitors", visitor_key, visitor_key) for visitor_key in keys if visitor_key is not None]
    return [*further, Step("samples", chunk, chunk)]


def _derive_visitor(key: int, conn: Connection, _: int) -> list[Step]:
    conn.execute(_DERIVE_VISITOR, (key,))
    conn.execute(_DROP_VISITOR, (key,))
    return []


def _find_samples(conn: Connection, span: tuple[int, int]) -> Iterator[_Finding]:
    for chunk, *stored in conn.execute(
        """SELECT chunk, first_at, last_at, first_started_at, last_started_at, vitals, sessions
        FROM samples WHERE chunk BETWEEN ? AND ?""",
        span,
    ).fetchall():
        if not _is_packed(stored, pack(conn, chunk)):
            said = "is not what its sessions and their facts make"
            yield _Finding(Difference("samples", str(chunk), "", said, None), partial(_drop_sample, chunk))


def _is_packed(stored: Sequence[Any], made: Packed) -> bool:
    """Whether a row says what it should; packed by another zlib it is other bytes."""
    try:
        return Packed(*stored[:4], *map(plain_of, stored[4:])) == made._replace(
            vitals=plain_of(made.vitals), sessions=plain_of(made.sessions)
        )
    except PackedError:
        return False


def _drop_sample(chunk: int, conn: Connection, _: int) -> list[Step]:
    """It is made again in the background."""
    conn.execute("DELETE FROM samples WHERE chunk = ?", (chunk,))
    return []


def _mend_empty(conn: Connection, key: int) -> _Mend | None:
    """A session without facts goes, but for one that shipping still speaks of."""
    spoken_of = conn.execute(
        """SELECT EXISTS (SELECT 1 FROM batch_lines WHERE session_key = ?1)
        OR EXISTS (SELECT 1 FROM parked WHERE session_key = ?1)""",
        (key,),
    ).fetchone()[0]
    return None if spoken_of else partial(_drop_session, key)


def _drop_session(key: int, conn: Connection, _: int) -> list[Step]:
    conn.execute("DELETE FROM sessions WHERE session_key = ?", (key,))
    return []
