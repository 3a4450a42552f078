"""Session documents: out for export and shipping, in for import and receiving.

A document holds all that its facts hold, so merging documents is merging facts: what comes in goes through
`facts.store_facts` like a beacon.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from math import isfinite
from typing import Any, NamedTuple

from sidecar.attribution import campaign_of, click_ids_of
from sidecar.canonical import (
    CLIENT_FIELDS,
    client_object,
    event_object,
    from_iso,
    number,
    to_iso,
    to_json,
    vital_object,
)
from sidecar.errors import DocumentError
from sidecar.model import (
    METRICS,
    NAVIGATION_TYPES,
    NO_CLIENT,
    RATINGS,
    REVISION_MAX,
    SAFE_INTEGER_MAX,
    Client,
    EventFact,
    Fact,
    Outcome,
    Page,
    VitalFact,
)
from sidecar.store.database import Connection, rows
from sidecar.store.facts import (
    CAMPAIGN_JOIN,
    EVENT_COLUMNS,
    FACT_JOINS,
    FULL,
    VITAL_COLUMNS,
    FactOwner,
    derive,
    read_event,
    read_vital,
    store_facts,
)
from sidecar.store.tombstones import Tombstone

VERSION = 1
SITE_PATTERN = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")

# The scalar fields of a document after `visitor`: (name in the document, column of session_list), in document order.
SCALARS = (
    ("startedAt", "started_at"),
    ("endedAt", "ended_at"),
    ("durationSeconds", "duration_seconds"),
    ("pageViews", "page_views"),
    ("eventsCount", "events_count"),
    ("converted", "converted"),
    ("conversionType", "conversion_type"),
    ("conversionValue", "conversion_value"),
    ("currency", "currency"),
    ("firstPageUrl", "first_page_url"),
    ("lastPageUrl", "last_page_url"),
    ("firstReferrer", "first_referrer"),
    ("firstSource", "first_source"),
    ("firstMedium", "first_medium"),
    ("firstCampaign", "first_campaign"),
    ("lastSource", "last_source"),
    ("lastMedium", "last_medium"),
    ("lastCampaign", "last_campaign"),
    ("deviceType", "device_type"),
    ("browserName", "browser_name"),
    ("browserVersion", "browser_version"),
    ("osName", "os_name"),
    ("osVersion", "os_version"),
    ("countryCode", "country_code"),
    ("countryName", "country_name"),
    ("region", "region"),
    ("city", "city"),
    ("ipAddress", "ip_address"),
    ("avgLcp", "avg_lcp"),
    ("avgInp", "avg_inp"),
    ("avgCls", "avg_cls"),
    ("avgFcp", "avg_fcp"),
    ("avgTtfb", "avg_ttfb"),
    ("experienceScore", "experience_score"),
    ("activeSeconds", "active_seconds"),
)


# --- values ----------------------------------------------------------------------------------------------------------


def is_finished(revision: int, now: int, timeout_ms: int) -> bool:
    """Whether a session with this revision is finished; one ahead of the clock by more than the timeout is, too."""
    return revision < now - timeout_ms or revision > now + timeout_ms


def to_line(document: dict[str, Any]) -> str:
    """A document as one line of JSON without its line end."""
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


# --- out -------------------------------------------------------------------------------------------------------------

_SESSION = """
SELECT l.*, v.first_seen, v.last_seen, v.total_sessions, v.total_events, v.user_id, v.traits
FROM session_list AS l LEFT JOIN visitors AS v ON v.visitor_key = l.visitor_key WHERE l.session_key = ?"""
_VITALS = f"SELECT {VITAL_COLUMNS} FROM web_vitals AS v {FACT_JOINS} WHERE v.session_key = ?"
_EVENTS = f"SELECT {EVENT_COLUMNS} FROM events AS v {FACT_JOINS} {CAMPAIGN_JOIN} WHERE v.session_key = ?"


def visitor_object(row: dict[str, Any]) -> dict[str, Any] | None:
    """The `visitor` of a document, from the columns of `visitors`; None where the session has none."""
    if row["anonymous_id"] is None:
        return None
    return {
        "anonymousId": row["anonymous_id"],
        "displayName": row["display_name"],
        "firstSeen": to_iso(row["first_seen"]),
        "lastSeen": to_iso(row["last_seen"]),
        "totalSessions": row["total_sessions"],
        "totalEvents": row["total_events"],
        "userId": row["user_id"],
        "traits": None if row["traits"] is None else json.loads(row["traits"]),
    }


def summary(row: dict[str, Any], now: int, timeout_ms: int) -> dict[str, Any]:
    """A session document without `clients`, `webVitals` and `events`, from a row of session_list and its visitor."""
    document: dict[str, Any] = {
        "type": "session",
        "version": VERSION,
        "site": row["site"],
        "funnelId": row["funnel_id"],
        "subaccountId": row["subaccount_id"],
        "sessionId": row["session_id"],
        "revision": row["revision"],
        "finished": is_finished(row["revision"], now, timeout_ms),
        "provisional": bool(row["provisional"]),
        "visitor": visitor_object(row),
    }
    for name, column in SCALARS:
        value = row[column]
        document[name] = number(value) if isinstance(value, float) else value
    document["startedAt"] = to_iso(row["started_at"])
    document["endedAt"] = to_iso(row["ended_at"])
    document["converted"] = bool(row["converted"])
    return document


def fact_order(fact: Fact) -> tuple[int, int, str]:
    """The order of a session's facts: time, events before vitals, metric, id."""
    return fact.timestamp, METRICS.index(fact.metric) + 1 if isinstance(fact, VitalFact) else 0, fact.id


def read_facts(conn: Connection, session_key: int, owner: FactOwner) -> list[Fact]:
    """All facts of a session, in their order."""
    vitals: list[Fact] = [read_vital(row, owner) for row in conn.execute(_VITALS, (session_key,))]
    events: list[Fact] = [read_event(row, owner) for row in conn.execute(_EVENTS, (session_key,))]
    return sorted(vitals + events, key=fact_order)


def read_summary(conn: Connection, session_key: int, now: int, timeout_ms: int) -> dict[str, Any]:
    """A session document without its facts. Raises LookupError where there is none."""
    row = next(rows(conn, _SESSION, (session_key,)), None)
    if row is None:
        raise LookupError(f"no session with the key {session_key}")
    return summary(row, now, timeout_ms)


def read_session(conn: Connection, session_key: int, now: int, timeout_ms: int) -> dict[str, Any]:
    """The document of one session. Raises LookupError where there is none."""
    document = read_summary(conn, session_key, now, timeout_ms)
    facts = read_facts(conn, session_key, FactOwner(document["site"], document["funnelId"], document["sessionId"]))
    numbers: dict[Client | None, int | None] = {None: None}
    for fact in facts:
        numbers.setdefault(fact.client, len(numbers) - 1)
    document["clients"] = [client_object(client) for client in numbers if client]
    vitals = sorted(
        (fact for fact in facts if isinstance(fact, VitalFact)), key=lambda fact: (fact.timestamp, fact.id, fact.metric)
    )
    events = [fact for fact in facts if isinstance(fact, EventFact)]
    document["webVitals"] = [
        vital_object(fact) | {"client": numbers[fact.client], "timestamp": to_iso(fact.timestamp)} for fact in vitals
    ]
    document["events"] = [
        event_object(fact) | {"client": numbers[fact.client], "timestamp": to_iso(fact.timestamp)} for fact in events
    ]
    return document


def tombstone_object(tombstone: Tombstone) -> dict[str, Any]:
    """A tombstone as it stands in a line."""
    return {
        "type": "tombstone",
        "version": VERSION,
        "site": tombstone.site,
        "visitorHash": tombstone.visitor_hash,
        "sessionHashes": sorted(tombstone.session_hashes),
        "erasedAt": to_iso(tombstone.erased_at),
    }


def list_session_keys(
    conn: Connection, *, since: int | None = None, until: int | None = None, funnel_id: str | None = None
) -> Iterator[int]:
    """Keys of the sessions that started within [since, until) (ms), by (site, funnel, session): the order of export."""
    for funnel_key, name in conn.execute(
        "SELECT funnel_key, funnel_id FROM funnels ORDER BY site, funnel_id"
    ).fetchall():
        if funnel_id not in (None, name):
            continue
        for (key,) in conn.execute(
            """SELECT session_key FROM sessions WHERE funnel_key = ?1 AND started_at >= coalesce(?2, started_at)
            AND started_at < coalesce(?3, started_at + 1) ORDER BY session_id""",
            (funnel_key, since, until),
        ):
            yield key


def export_lines(conn: Connection, keys: Iterable[int], now: int, timeout_ms: int) -> Iterator[str]:
    """Documents of the sessions as lines, streamed; call it inside a snapshot."""
    for key in keys:
        yield to_line(read_session(conn, key, now, timeout_ms))


# --- in --------------------------------------------------------------------------------------------------------------


class Document(NamedTuple):
    """A session document as read: what it says of itself, and its facts."""

    owner: FactOwner
    subaccount_id: str | None
    revision: int
    facts: list[Fact]


class LineResult(NamedTuple):
    """What became of one line; `reason` where it was rejected."""

    outcome: Outcome
    reason: str | None = None


def _fail(field: str, expected: str) -> DocumentError:
    return DocumentError(f"{field}: must be {expected}")


def _text(raw: dict[str, Any], field: str, most: int) -> str | None:
    value = raw.get(field)
    if value is None or value == "":
        return None
    if not isinstance(value, str) or len(value) > most:
        raise _fail(field, f"a text of at most {most} characters")
    return value


def _name(raw: dict[str, Any], field: str) -> str:
    value = _text(raw, field, 128)
    if value is None:
        raise _fail(field, "a text of 1 to 128 characters")
    return value


def _whole(raw: dict[str, Any], field: str, least: int = -SAFE_INTEGER_MAX) -> int | None:
    value = raw.get(field)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= SAFE_INTEGER_MAX:
        raise _fail(field, f"an integer from {least} to 2^53")
    return value


def _real(raw: dict[str, Any], field: str) -> float | None:
    value = raw.get(field)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _fail(field, "a finite number")
    if isinstance(value, int) and abs(value) > SAFE_INTEGER_MAX:  # before `isfinite`, which stops at 10^309
        raise _fail(field, "within 2^53")
    if not isfinite(value):
        raise _fail(field, "a finite number")
    return float(value) + 0.0


def _time(raw: dict[str, Any]) -> int:
    try:
        return from_iso(raw.get("timestamp"))
    except ValueError:
        raise _fail("timestamp", "an ISO 8601 time") from None


def _objects(raw: dict[str, Any], field: str) -> list[dict[str, Any]]:
    value = raw.get(field)
    value = [] if value is None else value
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise _fail(field, "a list of objects")
    return value


def _json_object(raw: dict[str, Any], field: str) -> str | None:
    value = raw.get(field)
    if value is not None and not isinstance(value, dict):
        raise _fail(field, "an object")
    return None if value is None else to_json(value)


def _read_client(raw: dict[str, Any]) -> Client | None:
    sizes = {"screenWidth", "screenHeight"}
    client = Client(*(_whole(raw, name) if name in sizes else _text(raw, name, 128) for name in CLIENT_FIELDS))  # type: ignore[arg-type]
    return None if client == NO_CLIENT else client


class _Common(NamedTuple):
    page: Page | None
    anonymous_id: str | None
    client: Client | None
    timestamp: int
    clock_skewed: bool


def _read_common(raw: dict[str, Any], clients: list[Client | None]) -> _Common:
    page = Page(_text(raw, "pageUrl", 2048), _text(raw, "pagePath", 2048), _text(raw, "pageTitle", 512))
    index = _whole(raw, "client", 0)
    if index is not None and index >= len(clients):
        raise _fail("client", "an index into clients")
    skewed = raw.get("clockSkewed", False)
    if not isinstance(skewed, bool):
        raise _fail("clockSkewed", "true or false")
    client = None if index is None else clients[index]
    return _Common(page if any(page) else None, _text(raw, "anonymousId", 128), client, _time(raw), skewed)


def _read_vital(raw: dict[str, Any], owner: FactOwner, clients: list[Client | None]) -> VitalFact:
    metric, rating, navigation_type = raw.get("metric"), raw.get("rating"), raw.get("navigationType")
    if metric not in METRICS:
        raise _fail("metric", "one of " + ", ".join(METRICS))
    if rating not in RATINGS:
        raise _fail("rating", "one of " + ", ".join(RATINGS))
    if navigation_type is not None and navigation_type not in NAVIGATION_TYPES:
        raise _fail("navigationType", "one of " + ", ".join(NAVIGATION_TYPES))
    value = _real(raw, "value")
    if value is None or not 0 <= value <= 10_000_000:
        raise _fail("value", "a number from 0 to 10000000")
    said: tuple[Any, ...] = (value, rating, _real(raw, "delta"), navigation_type, _whole(raw, "seq", 0) or 0)
    return VitalFact(*owner, metric, _name(raw, "id"), *said, *_read_common(raw, clients))  # type: ignore[call-arg]


def _read_event(raw: dict[str, Any], owner: FactOwner, clients: list[Client | None]) -> EventFact:
    page, *rest = _read_common(raw, clients)
    properties, kept = _json_object(raw, "properties"), _json_object(raw, "context")
    context, url = raw.get("context") or {}, page and page.url
    said: list[Any] = [page, _text(raw, "referrer", 2048), kept, campaign_of(context.get("utm"), url)]
    said += [click_ids_of(context.get("clickIds"), url), *rest]
    return EventFact(*owner, _name(raw, "eventId"), _name(raw, "eventName"), properties, *said)


def _no_constant(name: str) -> float:
    raise DocumentError(f"{name} is no JSON")


def read_object(line: str | bytes) -> dict[str, Any]:
    """One line of JSON. Raises DocumentError with the reason."""
    try:
        raw = json.loads(line, parse_constant=_no_constant)
        if not isinstance(raw, dict):
            raise DocumentError("must be an object")
        to_json(raw).encode()  # refuses what JSON can say and the store must not hold: 1e400, lone surrogates
    except (ValueError, OverflowError, RecursionError) as error:
        raise DocumentError(f"not JSON: {error}") from None
    return raw


def read_site(raw: dict[str, Any]) -> str:
    """The site of an object of this version. Raises DocumentError."""
    version = raw.get("version")
    if type(version) is not int or version != VERSION:  # Python takes true and 1.0 for 1
        raise _fail("version", str(VERSION))
    site = raw.get("site")
    if not isinstance(site, str) or not SITE_PATTERN.fullmatch(site):
        raise _fail("site", "1 to 64 of A-Z a-z 0-9 . _ -, not starting with a dot")
    return site


def read_document(raw: dict[str, Any]) -> Document:
    """A session document from its object. Raises DocumentError with the reason."""
    owner = FactOwner(read_site(raw), _name(raw, "funnelId"), _name(raw, "sessionId"))
    revision = _whole(raw, "revision", 0)
    if revision is None or revision > REVISION_MAX:
        raise _fail("revision", "an integer from 0 to 2^53-1")
    clients = [_read_client(client) for client in _objects(raw, "clients")]
    facts: list[Fact] = [_read_vital(vital, owner, clients) for vital in _objects(raw, "webVitals")]
    facts += [_read_event(event, owner, clients) for event in _objects(raw, "events")]
    if not facts:
        raise DocumentError("holds neither webVitals nor events")
    return Document(owner, _text(raw, "subaccountId", 128), revision, facts)


_PUT_SUBACCOUNT = """
UPDATE funnels SET subaccount_id = ?3, subaccount_revision = ?4
WHERE site = ?1 AND funnel_id = ?2
AND (subaccount_revision, coalesce(subaccount_id, '')) < (?4, coalesce(?3, ''))"""
_REVISION = "SELECT revision, vitals_count + events_count FROM sessions WHERE session_key = ?"


def next_revision(held: int, said: int, *, same: bool, changed: bool, now: int) -> int:
    """The revision of a merged session. `same`: it holds just the document's facts; `changed`: the merge changed it."""
    if same:
        return max(held, said)
    if changed or said >= held:
        return min(max(held + 1, said + 1, now), REVISION_MAX)
    return held


def merge_documents(conn: Connection, documents: Sequence[Document], now: int) -> list[LineResult]:
    """Merge documents into the store: their facts as if they had come in beacons. One result a document."""
    results: list[LineResult] = []
    for document in documents:
        stored = store_facts(conn, document.facts, dated_by_arrival=False)
        session = stored.sessions[document.owner]
        if session.is_new and not stored.changed:  # each of its facts is over the bound by itself
            conn.execute("DELETE FROM sessions WHERE session_key = ?", (session.key,))
            results.append(_refused(len(document.facts)))
            continue
        held, _ = conn.execute(_REVISION, (session.key,)).fetchone()
        if stored.changed:
            derive(conn, stored.changed, None)
        _, facts_count = conn.execute(_REVISION, (session.key,)).fetchone()
        outcomes = [outcome for outcome, _ in stored.outcomes]
        kept = {Outcome.ACCEPTED, Outcome.DUPLICATE}
        same = kept.issuperset(outcomes) and facts_count == len(outcomes)
        refused = outcomes.count(Outcome.REJECTED)
        revision = next_revision(held, document.revision, same=same, changed=bool(stored.changed), now=now)
        # Two that ship to each other and hold a session full of different facts would send it round for ever.
        if revision != held and (stored.changed or not refused):
            conn.execute("UPDATE sessions SET revision = ? WHERE session_key = ?", (revision, session.key))
        conn.execute(_PUT_SUBACCOUNT, (*document.owner[:2], document.subaccount_id, document.revision))
        if refused:
            results.append(_refused(refused))
        elif stored.changed:
            results.append(LineResult(Outcome.ACCEPTED))
        else:
            results.append(LineResult(Outcome.DUPLICATE if same else Outcome.SUPERSEDED))
    return results


def _refused(count: int) -> LineResult:
    return LineResult(Outcome.REJECTED, f"{FULL}: {count} facts were not taken")


# --- tables and files ------------------------------------------------------------------------------------------------

CSV_COLUMNS = (
    *("type", "version", "site", "funnelId", "subaccountId", "sessionId", "revision", "finished", "provisional"),
    *("anonymousId", "displayName"),
    *(name for name, _ in SCALARS),
)
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # https://owasp.org/www-community/attacks/CSV_Injection


def csv_row(document: dict[str, Any]) -> list[Any]:
    """One row of CSV_COLUMNS. A text that a spreadsheet would run as a formula gets a `'` before it."""
    cells = {**document, **(document["visitor"] or {})}
    row = [cells.get(name) for name in CSV_COLUMNS]
    return [_csv_cell(cell) for cell in row]


def _csv_cell(cell: Any) -> Any:
    if isinstance(cell, bool):
        return "true" if cell else "false"
    if isinstance(cell, str):
        cell = cell.replace("\0", "\ufffd")  # many readers of CSV end at a NUL
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell
