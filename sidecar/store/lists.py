"""Lists of the dashboard: sessions and visitors by filters, a search and an order, a page at a time.

Read by keyset in both directions: a page is what comes after (or before) the row that a cursor names, so that what
arrives meanwhile moves nothing. No order but the newest has an index: 400,000 sessions are passed in 0.1 s, and every
index would be paid for by each beacon.
"""

from __future__ import annotations

import binascii
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from typing import Any, NamedTuple

from sidecar.canonical import to_json
from sidecar.store.database import Connection, rows
from sidecar.store.queries import FilterError, Row
from sidecar.store.scope import HAS_PAGE, Scope, session_conditions

LIMIT = 50
SEARCH_MAX = 200  # characters that are looked for


class Sort(NamedTuple):
    """An order: its name for people, and what it is by. A row without a value comes last."""

    label: str
    by: str
    is_falling: bool = True


SESSION_SORTS = {
    "newest": Sort("Newest first", "s.started_at"),
    "oldest": Sort("Oldest first", "s.started_at", is_falling=False),
    "longest": Sort("Longest", "s.ended_at - s.started_at"),
    "events": Sort("Most events", "s.events_count"),
    "score": Sort("Lowest score", "coalesce(s.experience_score, 101)", is_falling=False),
    "lcp": Sort("Slowest LCP", "coalesce(s.avg_lcp, -1)"),
    "inp": Sort("Slowest INP", "coalesce(s.avg_inp, -1)"),
    "cls": Sort("Largest CLS", "coalesce(s.avg_cls, -1)"),
    "fcp": Sort("Slowest FCP", "coalesce(s.avg_fcp, -1)"),
    "ttfb": Sort("Slowest TTFB", "coalesce(s.avg_ttfb, -1)"),
}
VISITOR_SORTS = {
    "seen": Sort("Seen last", "v.last_seen"),
    "new": Sort("New first", "v.first_seen"),
    "sessions": Sort("Most sessions", "v.total_sessions"),
    "events": Sort("Most events", "v.total_events"),
}


class Wanted(NamedTuple):
    """Which page of a list: an order, a text to look for, and where to go on (`cursor` of another page)."""

    sort: str
    search: str | None = None
    cursor: str | None = None
    limit: int = LIMIT


class Part(NamedTuple):
    """One page of a list, and the cursors of the pages around it; None where there is none."""

    rows: list[Row]
    before: str | None
    after: str | None


class _Place(NamedTuple):
    """A row in an order, and whether the rows before it are wanted."""

    value: float
    key: int
    is_back: bool


def _write_cursor(kind: str, sort: str, place: _Place) -> str:
    return urlsafe_b64encode(to_json([kind, sort, *place]).encode()).decode().rstrip("=")


def _read_cursor(kind: str, sort: str, cursor: str | None) -> _Place | None:
    """The place that a cursor names. Raises FilterError for one that this list in this order did not give."""
    if cursor is None:
        return None
    try:
        said = json.loads(urlsafe_b64decode(cursor.encode() + b"=" * (-len(cursor) % 4)))
    except (binascii.Error, ValueError, RecursionError):
        said = None
    match said:
        case [str(of), str(by), int() | float() as value, int(key), bool(is_back)] if (of, by) == (kind, sort):
            if not isinstance(value, bool) and abs(value) < 2**62 and 0 <= key < 2**62:
                return _Place(value, key, is_back)
    raise FilterError("cursor", "one of the same list in the same order")


def _pattern(search: str) -> str:
    """For LIKE: the text anywhere. Only two wildcards, so that a search costs what the length of the texts is."""
    text = search.strip()[:SEARCH_MAX]
    for sign in ("\\", "%", "_"):
        text = text.replace(sign, "\\" + sign)
    return f"%{text}%"


def _read(
    conn: Connection, kind: str, wanted: Wanted, sort: Sort, chosen: str, listed: str, bound: Mapping[str, Any]
) -> Part:
    """A page: `chosen` is SQL up to its conditions, with columns (key, value); `listed` reads rows by `:keys`."""
    place = _read_cursor(kind, wanted.sort, wanted.cursor)
    is_back = place is not None and place.is_back
    falls = sort.is_falling is not is_back
    key = "s.session_key" if kind == "s" else "v.visitor_key"
    after = "" if place is None else f" AND ({sort.by}, {key}) {'<' if falls else '>'} (:value, :key)"
    order = "DESC" if falls else "ASC"
    sql = f"{chosen}{after} ORDER BY {sort.by} {order}, {key} {order} LIMIT :more"
    found = conn.execute(sql, {**bound, **(place._asdict() if place else {}), "more": wanted.limit + 1}).fetchall()
    is_more = len(found) > wanted.limit
    found = found[: wanted.limit]
    if is_back:
        found.reverse()
    by_key = {row["key_"]: row for row in rows(conn, listed, {"keys": to_json([key for key, _ in found])})}
    page = [by_key[key] for key, _ in found]
    has_before, has_after = (is_more, True) if is_back else (place is not None, is_more)
    ends = [
        _write_cursor(kind, wanted.sort, _Place(value, key, is_back=back)) if has else None
        for has, back, (key, value) in zip(
            (has_before, has_after), (True, False), (found[0], found[-1]) if found else (), strict=False
        )
    ]
    return Part(page, *(ends or (None, None)))


# --- sessions --------------------------------------------------------------------------------------------------------

_LIST_SESSIONS = """
SELECT l.session_key AS key_, l.*, v.user_id FROM session_list AS l
LEFT JOIN visitors AS v ON v.visitor_key = l.visitor_key
WHERE l.session_key IN (SELECT value FROM json_each(:keys))"""
_VISITOR_FITS = """(v.anonymous_id LIKE :search ESCAPE '\\' OR v.display_name LIKE :search ESCAPE '\\'
    OR v.user_id LIKE :search ESCAPE '\\')"""
_PAGES_FIT = "SELECT page_key FROM pages WHERE path LIKE :search ESCAPE '\\'"


# The pages between the first and the last would take reading all facts of the period: the filter on a page does.
_SESSION_FITS = f"""s.session_id LIKE :search ESCAPE '\\'
OR s.visitor_key IN (SELECT v.visitor_key FROM visitors AS v WHERE {_VISITOR_FITS})
OR s.first_page_key IN ({_PAGES_FIT}) OR s.last_page_key IN ({_PAGES_FIT})"""


def list_sessions(conn: Connection, scope: Scope, wanted: Wanted, *, visitor_key: int | None = None) -> Part:
    """Sessions that started within a scope, bots too; rows of the view `session_list`. Raises FilterError.

    `search` is looked for in the ids of session, visitor and user, the name of the visitor, and the paths of the
    first and last page.
    """
    sort = _choose(SESSION_SORTS, wanted)
    found = [session_conditions(scope, bots=True)]
    bound = scope._asdict()
    if visitor_key is not None:
        found.append("s.visitor_key = :visitor_key")
        bound["visitor_key"] = visitor_key
    if scope.page is not None:
        found.append(HAS_PAGE)
    if wanted.search:
        bound["search"] = _pattern(wanted.search)
        found.append(_SESSION_FITS)
    chosen = f"""SELECT s.session_key, {sort.by} FROM sessions AS s
    WHERE s.started_at >= :since AND s.started_at < :until AND {" AND ".join(f"({one})" for one in found)}"""
    return _read(conn, "s", wanted, sort, chosen, _LIST_SESSIONS, bound)


# --- visitors --------------------------------------------------------------------------------------------------------

_LIST_VISITORS = """
SELECT v.visitor_key AS key_, v.* FROM visitors AS v WHERE v.visitor_key IN (SELECT value FROM json_each(:keys))"""


class Belongings(NamedTuple):
    """What is held of a visitor, and goes with it."""

    sessions: int
    web_vitals: int
    events: int


def list_visitors(conn: Connection, scope: Scope, wanted: Wanted) -> Part:
    """Visitors with a session in a scope; rows of `visitors`. Raises FilterError.

    `search` is looked for in the ids of visitor and user, and in the name.
    """
    sort = _choose(VISITOR_SORTS, wanted)
    on_page = f" AND {HAS_PAGE}" if scope.page is not None else ""
    # Whoever has a session in the period was seen after its begin: with an index, that leaves out most.
    chosen = f"""SELECT v.visitor_key, {sort.by} FROM visitors AS v
    WHERE v.last_seen >= :since AND v.first_seen < :until AND EXISTS (
        SELECT 1 FROM sessions AS s WHERE s.visitor_key = v.visitor_key
        AND s.started_at >= :since AND s.started_at < :until AND {session_conditions(scope, bots=True)}{on_page})"""
    bound = scope._asdict()
    if wanted.search:
        bound["search"] = _pattern(wanted.search)
        chosen += f" AND {_VISITOR_FITS}"
    return _read(conn, "v", wanted, sort, chosen, _LIST_VISITORS, bound)


def count_belongings(conn: Connection, visitor_key: int) -> Belongings:
    """What is held of a visitor."""
    sql = """SELECT count(*), coalesce(sum(vitals_count), 0), coalesce(sum(events_count), 0)
    FROM sessions WHERE visitor_key = ?"""
    return Belongings(*conn.execute(sql, (visitor_key,)).fetchone())


def _choose(sorts: Mapping[str, Sort], wanted: Wanted) -> Sort:
    if wanted.sort not in sorts:
        raise FilterError("sort", f"one of {', '.join(sorts)}")
    return sorts[wanted.sort]
