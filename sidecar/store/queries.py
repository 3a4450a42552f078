"""Statements that read: what the JSON API, the dashboard and the command line show.

Rows of sessions have the columns of the view `session_list` and those of the session's visitor, as
`documents.summary` takes them; rows of visitors have the columns of `visitors`. Times are integer ms.

Lists are read by keyset, newest first: a page is "older than the last row seen", so that what arrives meanwhile moves
nothing. A session whose first known client is a bot is in lists, and in no figure.
"""

from __future__ import annotations

import binascii
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Any, NamedTuple

from sidecar.canonical import number
from sidecar.errors import SidecarError
from sidecar.store.database import Connection, rows
from sidecar.store.figures import Sample, count_online
from sidecar.store.scope import Scope
from sidecar.store.totals import Sessions

LIMIT_DEFAULT = 50
LIMIT_MAX = 500
Row = dict[str, Any]

_ALWAYS = 2**62  # later than any time, in ms; its negative is earlier than any
_CURSOR = re.compile(r"([sv])(-?[0-9]{1,16})\.([0-9]{1,16})")


class FilterError(SidecarError):
    """A parameter of a reading is wrong: names it and says what is allowed (HTTP 400)."""

    def __init__(self, parameter: str, allowed: str) -> None:
        super().__init__(f"{parameter}: must be {allowed}")
        self.parameter = parameter


class Filters(NamedTuple):
    """What to read. None: not given. `since <= t < until` in ms; `cursor` as a list before gave it."""

    site: str | None = None
    funnel_id: str | None = None
    since: int | None = None
    until: int | None = None
    limit: int = LIMIT_DEFAULT
    cursor: str | None = None

    def bind(self) -> Row:
        """The named parameters of the statements below, without those of the cursor."""
        return {
            "site": self.site,
            "funnel_id": self.funnel_id,
            "since": -_ALWAYS if self.since is None else self.since,
            "until": _ALWAYS if self.until is None else self.until,
            "more": self.limit + 1,  # one more than asked for tells whether there is a next page
        }


class Listed(NamedTuple):
    """One page of a list; `next_cursor` None: it is the last one."""

    rows: list[Row]
    next_cursor: str | None


def _encode_cursor(kind: str, at: int, key: int) -> str:
    return urlsafe_b64encode(f"{kind}{at}.{key}".encode()).decode().rstrip("=")


def _decode_cursor(kind: str, cursor: str | None) -> Row:
    """Where to go on: `at` (ms) and `key` of the last row seen. Raises FilterError."""
    if cursor is None:
        return {"at": _ALWAYS, "key": 0}
    try:
        text = urlsafe_b64decode(cursor.encode() + b"=" * (-len(cursor) % 4)).decode()
    except (binascii.Error, ValueError):
        text = ""
    match = _CURSOR.fullmatch(text)
    if match is None or _encode_cursor(kind, int(match[2]), int(match[3])) != cursor:
        raise FilterError("cursor", "the nextCursor of the same list")
    return {"at": int(match[2]), "key": int(match[3])}


def _page(kind: str, found: list[Row], filters: Filters, at: str, key: str) -> Listed:
    page = found[: filters.limit]
    more = len(found) > filters.limit
    return Listed(page, _encode_cursor(kind, page[-1][at], page[-1][key]) if more else None)


# --- sessions --------------------------------------------------------------------------------------------------------

# The index is named, for with a filter on funnels the planner would rather sort all their sessions. `IN (SELECT ..)`
# and not a join: SQLite flattens no view that ends in an outer join into the right side of a join.
_LIST_SESSIONS = """
SELECT l.*, v.first_seen, v.last_seen, v.total_sessions, v.total_events, v.user_id, v.traits
FROM session_list AS l LEFT JOIN visitors AS v ON v.visitor_key = l.visitor_key
WHERE l.session_key IN (
    SELECT session_key FROM sessions INDEXED BY sessions_by_start
    WHERE started_at >= :since AND started_at < :until AND (started_at, session_key) < (:at, :key)
    AND funnel_key IN (SELECT funnel_key FROM funnels
                       WHERE site = coalesce(:site, site) AND funnel_id = coalesce(:funnel_id, funnel_id))
    ORDER BY started_at DESC, session_key DESC LIMIT :more)
ORDER BY l.started_at DESC, l.session_key DESC"""

_LIST_SESSIONS_OF_VISITOR = """
SELECT l.*, v.first_seen, v.last_seen, v.total_sessions, v.total_events, v.user_id, v.traits
FROM session_list AS l LEFT JOIN visitors AS v ON v.visitor_key = l.visitor_key
WHERE l.session_key IN (
    SELECT session_key FROM sessions INDEXED BY sessions_by_visitor
    WHERE visitor_key = :visitor_key
    AND started_at >= :since AND started_at < :until AND (started_at, session_key) < (:at, :key)
    AND funnel_key IN (SELECT funnel_key FROM funnels
                       WHERE site = coalesce(:site, site) AND funnel_id = coalesce(:funnel_id, funnel_id))
    ORDER BY started_at DESC, session_key DESC LIMIT :more)
ORDER BY l.started_at DESC, l.session_key DESC"""

_FIND_SESSIONS = """
SELECT l.*, v.first_seen, v.last_seen, v.total_sessions, v.total_events, v.user_id, v.traits
FROM session_list AS l LEFT JOIN visitors AS v ON v.visitor_key = l.visitor_key
WHERE l.session_key IN (
    SELECT s.session_key FROM funnels AS f
    CROSS JOIN sessions AS s ON s.funnel_key = f.funnel_key AND s.session_id = :session_id
    WHERE f.site = coalesce(:site, f.site) AND f.funnel_id = coalesce(:funnel_id, f.funnel_id))
ORDER BY l.site, l.funnel_id LIMIT :most"""


def list_sessions(conn: Connection, filters: Filters, *, visitor_key: int | None = None) -> Listed:
    """Sessions by their start, newest first; of one visitor where it is given. Raises FilterError for the cursor."""
    bound = filters.bind() | _decode_cursor("s", filters.cursor) | {"visitor_key": visitor_key}
    bound["until"] = min(bound["until"], bound["at"] + 1)  # so that the index is entered at the cursor
    sql = _LIST_SESSIONS if visitor_key is None else _LIST_SESSIONS_OF_VISITOR
    return _page("s", list(rows(conn, sql, bound)), filters, "started_at", "session_key")


def find_sessions(
    conn: Connection, session_id: str, site: str | None = None, funnel_id: str | None = None, *, most: int = LIMIT_MAX
) -> list[Row]:
    """The sessions with this id, by (site, funnel): one, none, or one a funnel that has it; at most `most`."""
    bound = {"session_id": session_id, "site": site, "funnel_id": funnel_id, "most": most}
    return list(rows(conn, _FIND_SESSIONS, bound))


# --- visitors --------------------------------------------------------------------------------------------------------

_LIST_VISITORS = """
SELECT v.* FROM visitors AS v INDEXED BY visitors_by_last_seen
WHERE (v.last_seen, v.visitor_key) < (:at, :key)
AND EXISTS (SELECT 1 FROM sessions AS s
            WHERE s.visitor_key = v.visitor_key AND s.started_at >= :since AND s.started_at < :until
            AND s.funnel_key IN (SELECT funnel_key FROM funnels
                                 WHERE site = coalesce(:site, site) AND funnel_id = coalesce(:funnel_id, funnel_id)))
ORDER BY v.last_seen DESC, v.visitor_key DESC LIMIT :more"""

_FIND_VISITORS = """
SELECT v.* FROM (SELECT DISTINCT site FROM funnels WHERE site = coalesce(:site, site)) AS f
CROSS JOIN anonymous_ids AS a ON a.site = f.site AND a.anonymous_id = :anonymous_id
CROSS JOIN visitors AS v ON v.visitor_key = a.visitor_key
WHERE :funnel_id IS NULL
OR EXISTS (SELECT 1 FROM sessions AS s JOIN funnels AS g ON g.funnel_key = s.funnel_key
           WHERE s.visitor_key = v.visitor_key AND g.funnel_id = :funnel_id)
ORDER BY v.site LIMIT :most"""


def list_visitors(conn: Connection, filters: Filters) -> Listed:
    """Visitors with a session that passes the filters, the one seen last first. Raises FilterError for the cursor.

    A visitor that comes back while someone pages moves to the front: it is missing from later pages, never twice.
    """
    bound = filters.bind() | _decode_cursor("v", filters.cursor)
    return _page("v", list(rows(conn, _LIST_VISITORS, bound)), filters, "last_seen", "visitor_key")


def find_visitors(
    conn: Connection, anonymous_id: str, site: str | None = None, funnel_id: str | None = None, *, most: int = LIMIT_MAX
) -> list[Row]:
    """The visitors with this id, by site: one, none, or one a site that has it. A funnel: with a session in it."""
    bound = {"anonymous_id": anonymous_id, "site": site, "funnel_id": funnel_id, "most": most}
    return list(rows(conn, _FIND_VISITORS, bound))


def list_funnels(conn: Connection, *, most: int) -> list[tuple[str, str]]:
    """(site, funnel id) of the first `most` funnels, in that order."""
    return conn.execute("SELECT site, funnel_id FROM funnels ORDER BY site, funnel_id LIMIT ?", (most,)).fetchall()


# --- figures ---------------------------------------------------------------------------------------------------------

# `started_at` is the time of the first fact: where the first event is later, that was a vital, and the wait is between
# the two. Where both have one time, the event comes first: no wait.
_COUNT_PROVISIONAL = """
WITH chosen AS MATERIALIZED (
    SELECT s.provisional, s.revision,
        (SELECT min(timestamp) FROM events WHERE session_key = s.session_key) - s.started_at AS wait_ms
    FROM sessions AS s INDEXED BY sessions_by_start LEFT JOIN clients AS c ON c.client_key = s.first_client_key
    WHERE c.bot IS NULL AND s.vitals_count > 0 AND s.started_at >= :since AND s.started_at < :until
    AND s.funnel_key IN (SELECT funnel_key FROM funnels
                         WHERE site = coalesce(:site, site) AND funnel_id = coalesce(:funnel_id, funnel_id))),
waits AS MATERIALIZED (SELECT wait_ms FROM chosen WHERE wait_ms > 0),
counted AS MATERIALIZED (SELECT count(*) AS n FROM waits)
SELECT
    (SELECT total(provisional) FROM chosen) AS provisional,
    (SELECT count(*) FROM chosen WHERE provisional AND NOT revision BETWEEN :now - :timeout AND :now + :timeout)
        AS never_enriched,
    (SELECT n FROM counted) AS enriched,
    (SELECT avg(wait_ms) FROM (SELECT wait_ms FROM waits ORDER BY wait_ms
        LIMIT (SELECT 2 - n % 2 FROM counted) OFFSET (SELECT max(n - 1, 0) / 2 FROM counted))) AS median_ms,
    (SELECT wait_ms FROM waits ORDER BY wait_ms
        LIMIT 1 OFFSET (SELECT (95 * max(n, 1) + 99) / 100 - 1 FROM counted)) AS p95_ms"""


class Provisional(NamedTuple):
    """Sessions that began with a web vital. Seconds are None where none of them has an event."""

    sessions: int  # still without an event
    never_enriched: int  # of these the finished ones: no event is to be expected any more
    enriched: int  # got their first event after their first vital
    median_s: float | None  # from the first vital to the first event
    p95_s: float | None  # likewise, nearest rank


def count_provisional(conn: Connection, filters: Filters, now: int, timeout_ms: int) -> Provisional:
    """How sessions that began with a web vital went on, among those that started within the filters."""
    row = next(rows(conn, _COUNT_PROVISIONAL, filters.bind() | {"now": now, "timeout": timeout_ms}))
    waits = [None if row[name] is None else number(row[name] / 1000) for name in ("median_ms", "p95_ms")]
    return Provisional(int(row["provisional"]), row["never_enriched"], row["enriched"], *waits)


def _scope_of(filters: Filters) -> Scope:
    bound = filters.bind()
    return Scope(bound["since"], bound["until"], filters.site, filters.funnel_id)


def count_overview(conn: Connection, filters: Filters, now: int, timeout_ms: int) -> dict[str, Any]:
    """The figures of the overview, by their JSON names, over the sessions that started within the filters.

    Rates are shares from 0 to 1, null without sessions; `conversionValue` is null where no session has one.
    `onlineVisitors` are of now (ms): visitors with a fact in the last five minutes, whatever `since` and `until` say;
    a client's clock may be as far ahead. The last three are of sessions that began with a web vital (`Provisional`).
    """
    scope = _scope_of(filters)
    began = count_provisional(conn, filters, now, timeout_ms)
    totals = Sessions(conn, scope).totals()
    return {
        "visitors": totals.visitors,
        "sessions": totals.sessions,
        "provisionalSessions": totals.provisional,
        "pageViews": totals.page_views,
        "events": totals.events,
        "conversions": totals.conversions,
        "conversionRate": _rounded(totals.conversion_rate),
        "conversionValue": totals.conversion_value,
        "bounceRate": _rounded(totals.bounce_rate),
        "medianDurationSeconds": totals.median_s,
        "onlineVisitors": count_online(conn, scope, now),
        "timeToFirstEventMedianSeconds": began.median_s,
        "timeToFirstEventP95Seconds": began.p95_s,
        "neverEnrichedSessions": began.never_enriched,
    }


def _rounded(share: float | None) -> float | None:
    return None if share is None else number(round(share, 6))


def percentile_vitals(conn: Connection, filters: Filters) -> dict[str, dict[str, Any]]:
    """{metric: {p75, rating, count, good, needsImprovement, poor}} over metric instances, by their own timestamps.

    Nearest rank: the value at position ceil(0.75 n). p75 (ms; CLS no unit) and rating are None where count is 0.
    """
    found = Sample(conn, _scope_of(filters)).split()[0]
    return {
        metric: {
            "p75": one.p75,
            "rating": one.rating,
            "count": one.samples,
            "good": one.good,
            "needsImprovement": one.fair,
            "poor": one.poor,
        }
        for metric, one in found.items()
    }
