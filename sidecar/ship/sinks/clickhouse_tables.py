"""What ClickHouse holds: tables, views, and the rows that session documents and tombstones become.

Nothing here is newer than ClickHouse 18.16: no DateTime64, Map, LowCardinality or Bool. Times are integer ms, as in the
sidecar's own tables; '' and NULL both mean "missing". Rows hold all that a document holds.
"""

from __future__ import annotations

import gzip
import io
import json
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from sidecar.canonical import from_iso, to_json
from sidecar.store.outbox import Batch
from sidecar.store.tombstones import hash_of

ROWS_MAX = 5000  # rows an INSERT: one block, so one part, which is there whole or not at all
HASHES_MAX = 1000  # hashes a statement: 67 bytes each, and an old server reads statements of up to 256 KiB
_PACKING = 6  # gzip's default: 9 takes twice as long for 1 % less
_HASH = re.compile(r"[0-9a-f]{64}")


class UnreadableLineError(ValueError):
    """A line of a batch that no row can be made of; the text names the line, from 0."""


# --- columns ---------------------------------------------------------------------------------------------------------


class Kind(NamedTuple):
    """A type of ClickHouse, and how a value of a document becomes one of it."""

    type: str
    read: Callable[[Any], Any]


class Column(NamedTuple):
    """A column, and the field of the document that it is read from."""

    name: str
    field: str
    kind: Kind


_TEXT = Kind("String", lambda value: "" if value is None else value)
_JSON = Kind("String", lambda value: "" if value is None else to_json(value))
_FLAG = Kind("UInt8", lambda value: int(bool(value)))
_COUNT = Kind("UInt64", lambda value: value or 0)
_TIME = Kind("Int64", from_iso)
_MAYBE_TIME = Kind("Nullable(Int64)", lambda value: None if value is None else from_iso(value))
_WHOLE = Kind("Nullable(Int64)", lambda value: value)
_NUMBER = Kind("Nullable(Float64)", lambda value: value)
_VALUE = Kind("Float64", lambda value: value)
_PLACE = Kind("UInt32", lambda value: 0 if value is None else value + 1)  # arrays of ClickHouse begin at 1; 0: unknown


def _columns(*named: tuple[str, str, Kind]) -> tuple[Column, ...]:
    return tuple(Column(*one) for one in named)


_SESSION = _columns(
    ("site", "site", _TEXT),
    ("funnel_id", "funnelId", _TEXT),
    ("session_id", "sessionId", _TEXT),
    ("revision", "revision", _COUNT),
    ("subaccount_id", "subaccountId", _TEXT),
    ("finished", "finished", _FLAG),
    ("provisional", "provisional", _FLAG),
    ("started_at", "startedAt", _TIME),
    ("ended_at", "endedAt", _TIME),
    ("duration_seconds", "durationSeconds", _COUNT),
    ("page_views", "pageViews", _COUNT),
    ("events_count", "eventsCount", _COUNT),
    ("converted", "converted", _FLAG),
    ("conversion_type", "conversionType", _TEXT),
    ("conversion_value", "conversionValue", _NUMBER),
    ("currency", "currency", _TEXT),
    ("first_page_url", "firstPageUrl", _TEXT),
    ("last_page_url", "lastPageUrl", _TEXT),
    ("first_referrer", "firstReferrer", _TEXT),
    ("first_source", "firstSource", _TEXT),
    ("first_medium", "firstMedium", _TEXT),
    ("first_campaign", "firstCampaign", _TEXT),
    ("last_source", "lastSource", _TEXT),
    ("last_medium", "lastMedium", _TEXT),
    ("last_campaign", "lastCampaign", _TEXT),
    ("device_type", "deviceType", _TEXT),
    ("browser_name", "browserName", _TEXT),
    ("browser_version", "browserVersion", _TEXT),
    ("os_name", "osName", _TEXT),
    ("os_version", "osVersion", _TEXT),
    ("country_code", "countryCode", _TEXT),
    ("country_name", "countryName", _TEXT),
    ("region", "region", _TEXT),
    ("city", "city", _TEXT),
    ("ip_address", "ipAddress", _TEXT),
    ("avg_lcp", "avgLcp", _NUMBER),
    ("avg_inp", "avgInp", _NUMBER),
    ("avg_cls", "avgCls", _NUMBER),
    ("avg_fcp", "avgFcp", _NUMBER),
    ("avg_ttfb", "avgTtfb", _NUMBER),
    ("experience_score", "experienceScore", _NUMBER),
    ("active_seconds", "activeSeconds", _NUMBER),
)
_VISITOR = _columns(
    ("anonymous_id", "anonymousId", _TEXT),
    ("display_name", "displayName", _TEXT),
    ("first_seen", "firstSeen", _MAYBE_TIME),
    ("last_seen", "lastSeen", _MAYBE_TIME),
    ("total_sessions", "totalSessions", _WHOLE),
    ("total_events", "totalEvents", _WHOLE),
    ("user_id", "userId", _TEXT),
    ("traits", "traits", _JSON),
)
_DERIVED = _columns(("session_hash", "", _TEXT), ("visitor_hash", "", _TEXT), ("bot", "", _TEXT))
_CLIENT = _columns(
    ("device_type", "deviceType", _TEXT),
    ("browser_name", "browserName", _TEXT),
    ("browser_version", "browserVersion", _TEXT),
    ("os_name", "osName", _TEXT),
    ("os_version", "osVersion", _TEXT),
    ("screen_width", "screenWidth", _WHOLE),
    ("screen_height", "screenHeight", _WHOLE),
    ("bot", "bot", _TEXT),
    ("country_code", "countryCode", _TEXT),
    ("country_name", "countryName", _TEXT),
    ("region", "region", _TEXT),
    ("city", "city", _TEXT),
    ("ip_address", "ipAddress", _TEXT),
)
_FACT = _columns(
    ("page_url", "pageUrl", _TEXT),
    ("page_path", "pagePath", _TEXT),
    ("page_title", "pageTitle", _TEXT),
    ("anonymous_id", "anonymousId", _TEXT),
    ("client", "client", _PLACE),
    ("timestamp", "timestamp", _TIME),
    ("clock_skewed", "clockSkewed", _FLAG),
)
_VITAL = (
    *_columns(
        ("metric", "metric", _TEXT),
        ("id", "id", _TEXT),
        ("value", "value", _VALUE),
        ("rating", "rating", _TEXT),
        ("delta", "delta", _NUMBER),
        ("navigation_type", "navigationType", _TEXT),
        ("seq", "seq", _COUNT),
    ),
    *_FACT,
)
_EVENT = (
    *_columns(
        ("event_id", "eventId", _TEXT),
        ("event_name", "eventName", _TEXT),
        ("properties", "properties", _JSON),
        ("referrer", "referrer", _TEXT),
        ("context", "context", _JSON),
    ),
    *_FACT,
)
# Nested(...) is written out as arrays of one prefix: what it becomes, whatever `flatten_nested` a profile sets.
NESTED = {"clients": ("clients", _CLIENT), "web_vitals": ("webVitals", _VITAL), "events": ("events", _EVENT)}

SESSION_COLUMNS: dict[str, str] = {
    **{column.name: column.kind.type for column in (*_SESSION, *_VISITOR, *_DERIVED)},
    **{
        f"{prefix}.{column.name}": f"Array({column.kind.type})"
        for prefix, (_, columns) in NESTED.items()
        for column in columns
    },
}
TOMBSTONE_COLUMNS = {"site": "String", "visitor_hash": "String", "session_hash": "String", "erased_at": "Int64"}
TABLES = {"sessions": SESSION_COLUMNS, "tombstones": TOMBSTONE_COLUMNS}
VIEW_COLUMNS = ("site", "funnel_id", "session_id", "anonymous_id", "bot")  # by these we know a view of ours


# --- statements ------------------------------------------------------------------------------------------------------


def quote(name: str) -> str:
    """An identifier in backquotes."""
    return "`" + name.replace("\\", "\\\\").replace("`", "\\`") + "`"


def literal(text: str) -> str:
    """A text as a literal."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _define(columns: dict[str, str]) -> str:
    return ",\n".join(f"    {quote(name)} {kind}" for name, kind in columns.items())


def create_database(database: str) -> str:
    """The statement that makes the database."""
    return f"CREATE DATABASE IF NOT EXISTS {quote(database)}"


def create_tables(database: str) -> dict[str, str]:
    """Statements that make the tables, by name.

    The sorting key is what a session is called, and there is no PARTITION BY: only rows of one key in one partition
    replace each other, and a late fact can move `started_at` into another month.
    """
    within = quote(database)
    return {
        "sessions": f"""\
CREATE TABLE IF NOT EXISTS {within}.sessions (
{_define(SESSION_COLUMNS)}
)
ENGINE = ReplacingMergeTree(revision) ORDER BY (site, funnel_id, session_id) SETTINGS index_granularity = 1024""",
        # One row a hash ('' for the visitor's own), so that what is told twice, or late, only ever adds.
        "tombstones": f"""\
CREATE TABLE IF NOT EXISTS {within}.tombstones (
{_define(TOMBSTONE_COLUMNS)}
)
ENGINE = ReplacingMergeTree() ORDER BY (site, visitor_hash, session_hash)""",
    }


def create_views(database: str) -> dict[str, str]:
    """Statements that make the views, by name, in their order.

    `in_figures` is 1 for what /api/vitals counts: no bots, no FID, no TTFB that is only a placeholder.
    """
    within = quote(database)
    return {
        "current_sessions": f"""\
CREATE VIEW {within}.current_sessions AS
SELECT {", ".join(quote(name) for name in SESSION_COLUMNS)}, toDateTime(intDiv(started_at, 1000), 'UTC') AS started
FROM {within}.sessions FINAL
WHERE (site, session_hash) NOT IN (SELECT site, session_hash FROM {within}.tombstones)
AND (site, visitor_hash) NOT IN (SELECT site, visitor_hash FROM {within}.tombstones)""",
        "web_vitals": f"""\
CREATE VIEW {within}.web_vitals AS
SELECT site, funnel_id, session_id, anonymous_id, bot, metric, id, value, rating, delta, navigation_type, seq,
    page_url, page_path, page_title, timestamp, toDateTime(intDiv(timestamp, 1000), 'UTC') AS time, clock_skewed,
    `clients.device_type`[client] AS device_type, `clients.browser_name`[client] AS browser_name,
    `clients.os_name`[client] AS os_name, `clients.country_code`[client] AS country_code,
    bot = '' AND metric <> 'FID'
    AND NOT (metric = 'TTFB' AND navigation_type IN ('back-forward-cache', 'soft-navigation')) AS in_figures
FROM {within}.current_sessions
ARRAY JOIN `web_vitals.metric` AS metric, `web_vitals.id` AS id, `web_vitals.value` AS value,
    `web_vitals.rating` AS rating, `web_vitals.delta` AS delta, `web_vitals.navigation_type` AS navigation_type,
    `web_vitals.seq` AS seq, `web_vitals.page_url` AS page_url, `web_vitals.page_path` AS page_path,
    `web_vitals.page_title` AS page_title, `web_vitals.client` AS client, `web_vitals.timestamp` AS timestamp,
    `web_vitals.clock_skewed` AS clock_skewed""",
        "events": f"""\
CREATE VIEW {within}.events AS
SELECT site, funnel_id, session_id, anonymous_id, bot, event_id, event_name, properties, page_url, page_path,
    page_title, referrer, context, timestamp, toDateTime(intDiv(timestamp, 1000), 'UTC') AS time, clock_skewed,
    `clients.device_type`[client] AS device_type, `clients.browser_name`[client] AS browser_name,
    `clients.os_name`[client] AS os_name, `clients.country_code`[client] AS country_code
FROM {within}.current_sessions
ARRAY JOIN `events.event_id` AS event_id, `events.event_name` AS event_name, `events.properties` AS properties,
    `events.page_url` AS page_url, `events.page_path` AS page_path, `events.page_title` AS page_title,
    `events.referrer` AS referrer, `events.context` AS context, `events.client` AS client,
    `events.timestamp` AS timestamp, `events.clock_skewed` AS clock_skewed""",
    }


def fleet_p75(database: str) -> str:
    """The query for the p75 and the page views behind it, of each site and vital: the figures of /api/vitals.

    quantileExactWeighted is the nearest rank, position ceil(0.75 n); quantileExact takes the next one where 0.75 n is
    whole. `timestamp` (ms) and `time` (DateTime) are there for a WHERE.
    """
    return f"""\
SELECT site, metric, quantileExactWeighted(0.75)(value, 1) AS p75, count() AS page_views
FROM {quote(database)}.web_vitals WHERE in_figures GROUP BY site, metric ORDER BY site, metric"""


def statements(database: str) -> list[str]:
    """All that make what an empty server needs, in their order."""
    return [create_database(database), *create_tables(database).values(), *create_views(database).values()]


def insert(database: str, table: str) -> str:
    """The statement that rows follow."""
    columns = ", ".join(quote(name) for name in TABLES[table])
    return f"INSERT INTO {quote(database)}.{table} ({columns}) FORMAT JSONEachRow"


def erase(database: str, batch: Batch) -> Iterator[str]:
    """Statements that delete the sessions which the tombstones of a batch match, in all their revisions.

    Raises UnreadableLineError.
    """
    for column in ("session_hash", "visitor_hash"):
        found: dict[str, list[str]] = {}
        for row in _rows(batch, _bury):
            if row[column]:
                hashes = found.setdefault(row["site"], [])
                if row[column] not in hashes[-1:]:  # the rows of one visitor follow each other
                    hashes.append(row[column])
                if len(hashes) == HASHES_MAX:
                    yield _delete(database, row["site"], column, found.pop(row["site"]))
        for site, hashes in found.items():
            yield _delete(database, site, column, hashes)


def _delete(database: str, site: str, column: str, hashes: list[str]) -> str:
    listed = ", ".join(f"'{one}'" for one in hashes)
    return f"ALTER TABLE {quote(database)}.sessions DELETE WHERE site = {literal(site)} AND {column} IN ({listed})"


# --- rows ------------------------------------------------------------------------------------------------------------


def pack_rows(batch: Batch) -> Iterator[bytes]:
    """The rows of a batch as gzipped JSONEachRow, at most ROWS_MAX each; the same batch gives the same bytes.

    A line at a time: memory is that of the largest document and of one packed request. Raises UnreadableLineError.
    """
    rows = _rows(batch, _bury if batch.holds_tombstones else _lay_out)
    row = next(rows, None)
    while row is not None:
        packed, count = io.BytesIO(), 0
        with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=_PACKING, mtime=0) as stream:
            while row is not None and count < ROWS_MAX:
                stream.write(json.dumps(row, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode())
                stream.write(b"\n")
                row, count = next(rows, None), count + 1
        yield packed.getvalue()


def _rows(batch: Batch, make: Callable[[dict[str, Any]], Iterator[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    with gzip.GzipFile(fileobj=io.BytesIO(batch.body)) as lines:
        for number, line in enumerate(lines):
            try:
                made = list(make(json.loads(line)))
            except (ValueError, TypeError, LookupError, AttributeError) as error:
                raise UnreadableLineError(f"line {number} makes no row: {type(error).__name__}") from error
            yield from made


def _lay_out(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    row = {column.name: column.kind.read(document.get(column.field)) for column in _SESSION}
    visitor = document.get("visitor") or {}
    row |= {column.name: column.kind.read(visitor.get(column.field)) for column in _VISITOR}
    clients = document.get("clients") or [{}]
    row["session_hash"] = hash_of(row["site"], row["funnel_id"], row["session_id"])
    row["visitor_hash"] = hash_of(row["site"], row["anonymous_id"]) if row["anonymous_id"] else ""
    row["bot"] = clients[0].get("bot") or ""  # clients are numbered in the order of the facts
    for prefix, (field, columns) in NESTED.items():
        entries = document.get(field) or []
        for column in columns:
            row[f"{prefix}.{column.name}"] = [column.kind.read(entry.get(column.field)) for entry in entries]
    yield row


def _bury(tombstone: dict[str, Any]) -> Iterator[dict[str, Any]]:
    visitor_hash, erased_at = tombstone["visitorHash"], from_iso(tombstone["erasedAt"])
    for one in (visitor_hash, *tombstone["sessionHashes"]):
        if not _HASH.fullmatch(one):
            raise ValueError("no hash")
    for session_hash in ("", *tombstone["sessionHashes"]):
        yield {
            "site": tombstone["site"],
            "visitor_hash": visitor_hash,
            "session_hash": session_hash,
            "erased_at": erased_at,
        }
