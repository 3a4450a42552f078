"""Erasing visitors: facts, sessions, names and frozen batches go, hashes stay (`tombstones`).

What is erased of a visitor is every session that is its own: whose first naming fact names it. In a session of somebody
else the facts that name it stay, for they are that session's, and lose the name (`loosen`). So do facts that hold its
id, or that of a session that goes, as a whole text of properties or context.

No fact table has an index on who or what a fact names: beacons would pay for it, and erasures are rare. So one erasure
reads all facts: 0.7 s for 1.5 million of them, on the writer's thread, and up to 2 s more for a million events.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from sidecar.canonical import content_size, to_json
from sidecar.model import EventFact, Fact, Outcome, VitalFact
from sidecar.store import outbox, tombstones
from sidecar.store.database import Connection, note_erasure
from sidecar.store.documents import Document, LineResult, fact_order, read_facts
from sidecar.store.facts import FactOwner
from sidecar.store.tombstones import Tombstone, find_sessions, find_visitors, has_any, hash_of

_SAID_TWICE = ("utm", "clickIds")  # parts of the context that stand in columns of their own, too
_INDEX_FROM = 8  # rows of one table to drop; see _drop_rows
_TREE_FROM = 5  # texts to look for; see _HOLDING_TREE

# What nobody can guess, and no site says of many visitors: at least 16 characters, with a digit. Whoever sends a beacon
# as the visitor `USD` and has it erased must not take the currency, or an article's number, out of everybody's facts.
_OWN_TEXT = re.compile(r"(?=\D*\d)[\w.:~=+-]{16,}")


class Erased(NamedTuple):
    """What an erasure deleted."""

    sessions: int
    web_vitals: int
    events: int


# --- names in other visitors' sessions -------------------------------------------------------------------------------


def names_any(fact: Fact, names: Collection[str]) -> bool:
    """Whether a fact names one of the visitors: as its own, or in the `user` of the context that is kept with it."""
    if fact.anonymous_id in names:
        return True
    user = json.loads(fact.context).get("user") if isinstance(fact, EventFact) and fact.context else None
    return isinstance(user, dict) and user.get("anonymousId") in names


def loosen(fact: Fact, names: Collection[str], texts: Collection[str] = ()) -> Fact:
    """A fact without the names of erased visitors, and without what else must not be said any more (`texts`).

    With the visitor's id goes all of `context.user`, since its `userId` says the same in other words, and of an
    identification the `userId` and `traits`: they are the erased person's, not those of the visitor whose session this
    is. Elsewhere in properties and context the id, where it is a whole text, becomes ''. So do `texts`, also in a fact
    that names none of the visitors. A fact with nothing of it comes back as it is.
    """
    is_named = names_any(fact, names)
    if fact.anonymous_id in names:
        fact = fact._replace(anonymous_id=None)
    if isinstance(fact, VitalFact):
        return fact
    gone = {*names, *texts} if is_named else texts
    context = {} if fact.context is None else json.loads(fact.context)
    properties = None if fact.properties is None else json.loads(fact.properties)
    left = {
        key: _blank(part, gone) if key not in _SAID_TWICE else part for key, part in context.items() if key not in gone
    }
    if not is_named and left == context and _blank(properties, gone) == properties:
        return fact
    context = left
    if is_named:
        context.pop("user", None)
        if properties is not None and fact.name == "user_identified":
            properties = {key: value for key, value in properties.items() if key not in ("userId", "traits")}
    return fact._replace(
        context=to_json(context) if context else None,
        properties=None if properties is None else to_json(_blank(properties, gone)),
    )


def _blank(value: Any, names: Collection[str]) -> Any:
    if isinstance(value, dict):
        return {key: _blank(item, names) for key, item in value.items() if key not in names}
    if isinstance(value, list):
        return [_blank(item, names) for item in value]
    return "" if isinstance(value, str) and value in names else value


# --- erasing ---------------------------------------------------------------------------------------------------------

_NAME = "SELECT visitor_key FROM anonymous_ids WHERE site = ? AND anonymous_id = ?"
_OWN_SESSIONS = """
SELECT s.session_key, s.visitor_key, f.funnel_id, s.session_id
FROM sessions AS s CROSS JOIN funnels AS f ON f.funnel_key = s.funnel_key
WHERE s.session_key IN (SELECT session_key FROM sessions WHERE visitor_key IN (SELECT value FROM json_each(?1))
                        UNION SELECT value FROM json_each(?2))"""
_NAMING_SESSIONS = """
SELECT s.session_key, f.site, f.funnel_id, s.session_id
FROM sessions AS s CROSS JOIN funnels AS f ON f.funnel_key = s.funnel_key
WHERE f.site = ?3 AND s.session_key IN (
    SELECT session_key FROM web_vitals WHERE visitor_key IN (SELECT value FROM json_each(?1))
    UNION
    SELECT session_key FROM events WHERE visitor_key IN (SELECT value FROM json_each(?1))
    OR context ->> '$.user.anonymousId' IN (SELECT value FROM json_each(?2)))"""
# Facts of whomever that hold a text, as a value or key, wherever it stands. Looking for each in turn costs 0.6 us a
# text and event; for many the JSON is taken apart once (2 us an event).
_HOLDING = """
SELECT s.session_key, f.site, f.funnel_id, s.session_id
FROM sessions AS s CROSS JOIN funnels AS f ON f.funnel_key = s.funnel_key
WHERE f.site = ?1 AND s.session_key IN (
    SELECT session_key FROM events
    WHERE EXISTS (SELECT 1 FROM json_each(?2) WHERE instr(properties, value) OR instr(context, value)))"""
_HOLDING_TREE = """
SELECT s.session_key, f.site, f.funnel_id, s.session_id
FROM sessions AS s CROSS JOIN funnels AS f ON f.funnel_key = s.funnel_key
WHERE f.site = ?1 AND s.session_key IN (
    SELECT session_key FROM events
    WHERE EXISTS (SELECT 1 FROM json_tree(iif(json_valid(properties), properties, NULL))
                  WHERE atom IN (SELECT value FROM json_each(?2)) OR key IN (SELECT value FROM json_each(?2)))
    OR EXISTS (SELECT 1 FROM json_tree(iif(json_valid(context), context, NULL))
               WHERE atom IN (SELECT value FROM json_each(?2)) OR key IN (SELECT value FROM json_each(?2))))"""
_SHARED_BY_VITALS = """
SELECT json_group_array(DISTINCT page_key) FILTER (WHERE page_key IN (SELECT value FROM json_each(?1, '$.pages'))),
    json_group_array(DISTINCT client_key) FILTER (WHERE client_key IN (SELECT value FROM json_each(?1, '$.clients'))),
    json_group_array(DISTINCT visitor_key) FILTER (
        WHERE visitor_key IN (SELECT value FROM json_each(?1, '$.anonymous_ids')))
FROM web_vitals"""
_SHARED_BY_EVENTS = """
SELECT json_group_array(DISTINCT page_key) FILTER (WHERE page_key IN (SELECT value FROM json_each(?1, '$.pages'))),
    json_group_array(DISTINCT client_key) FILTER (WHERE client_key IN (SELECT value FROM json_each(?1, '$.clients'))),
    json_group_array(DISTINCT visitor_key) FILTER (
        WHERE visitor_key IN (SELECT value FROM json_each(?1, '$.anonymous_ids'))),
    json_group_array(DISTINCT campaign_key) FILTER (
        WHERE campaign_key IN (SELECT value FROM json_each(?1, '$.campaigns')))
FROM events"""
_USED_BY_VITALS = """
SELECT json_group_array(DISTINCT page_key), json_group_array(DISTINCT client_key),
    json_group_array(DISTINCT visitor_key)
FROM web_vitals WHERE session_key IN (SELECT value FROM json_each(?))"""
_USED_BY_EVENTS = """
SELECT json_group_array(DISTINCT page_key), json_group_array(DISTINCT client_key),
    json_group_array(DISTINCT visitor_key), json_group_array(DISTINCT campaign_key)
FROM events WHERE session_key IN (SELECT value FROM json_each(?))"""
_LOOSEN_VITAL = """
UPDATE web_vitals SET visitor_key = iif(?4, NULL, visitor_key), content_bytes = ?5
WHERE session_key = ?1 AND metric = ?2 AND id = ?3"""
_LOOSEN_EVENT = """
UPDATE events SET visitor_key = iif(?3, NULL, visitor_key), content_bytes = ?4, properties = ?5, context = ?6
WHERE session_key = ?1 AND event_id = ?2"""
_DERIVE = "INSERT INTO derivations (sessions, with_events, moved, visitors, now) VALUES (?1, ?1, ?1, ?2, ?3)"

# What facts share, by the table that holds it: the column of a fact that points at it, and the tables of such facts.
_SHARED = {
    "pages": ("page_key", ("web_vitals", "events")),
    "clients": ("client_key", ("web_vitals", "events")),
    "anonymous_ids": ("visitor_key", ("web_vitals", "events")),
    "campaigns": ("campaign_key", ("events",)),
}


def forget(conn: Connection, site: str, anonymous_id: str, now: int, *, anybody: bool = False) -> Erased:
    """Erase a visitor and leave its tombstone, also of one that is not known. For the writer, in its transaction.

    `anybody`: who asks may have made the id up, so in facts that do not name the visitor a text that equals it goes
    only where it looks like the id of one person. The WAL holds what was erased until it is emptied, and the file may
    until it is written anew: `database.rewrite`, then `database.empty_wal`.
    """
    found = conn.execute(_NAME, (site, anonymous_id)).fetchone()
    known = found is not None
    texts = {anonymous_id} if not anybody or _OWN_TEXT.fullmatch(anonymous_id) else set()
    erased, hashes = _erase(conn, site, {found[0]: anonymous_id} if known else {}, [], now, texts)
    if known or not find_visitors(conn, [(site, anonymous_id)]):
        own = frozenset(hashes.get(found[0], ())) if known else frozenset()
        tombstones.put(conn, Tombstone(site, hash_of(site, anonymous_id), own, now), now)
    return erased


def _erase(
    conn: Connection, site: str, names: Mapping[int, str], chosen: Collection[int], now: int, texts: Collection[str]
) -> tuple[Erased, dict[int | None, set[str]]]:
    """Erase visitors (key -> id), the sessions with the keys `chosen`, and `texts` and session ids in facts of others.

    Gives the hashes of erased sessions by visitor, too.
    """
    if not names and not chosen and not texts:
        return Erased(0, 0, 0), {}
    keys = json.dumps(list(names))
    hashes: dict[int | None, set[str]] = {}
    gone: list[int] = []
    said = {*names.values(), *texts}
    found = conn.execute(_OWN_SESSIONS, (keys, json.dumps(list(chosen)))).fetchall()
    for session_key, visitor_key, funnel_id, session_id in found:
        hashes.setdefault(visitor_key, set()).add(hash_of(site, funnel_id, session_id))
        gone.append(session_key)
        said.add(session_id)
    wanted = {*texts, *(session_id for *_, session_id in found if _OWN_TEXT.fullmatch(session_id))}
    touched = _find_loosened(conn, site, names, wanted, set(gone))
    conn.execute("PRAGMA secure_delete = ON")  # also freed pages are overwritten; it stays on for this connection
    dropped = outbox.release_naming(conn, site, sorted(said), now)
    if not names and not gone and not touched and not dropped:
        return Erased(0, 0, 0), {}

    note_erasure(conn)
    outbox.release(conn, [*gone, *touched], now)
    shared = _read_shared(conn, _USED_BY_VITALS, _USED_BY_EVENTS, json.dumps([*gone, *touched]))
    shared["anonymous_ids"] |= set(names)
    for session_key, facts in touched.items():
        _write_loosened(conn, session_key, facts)
    visitors = [key for key in {*names, *hashes} if key is not None]
    erased = delete_sessions(conn, gone)
    conn.execute(_DERIVE, (json.dumps(list(touched)), json.dumps(visitors), now))
    _drop_unused(conn, shared)
    return erased, hashes


def _find_loosened(
    conn: Connection, site: str, names: Mapping[int, str], texts: Collection[str], gone: Collection[int]
) -> dict[int, list[Fact]]:
    """What facts of others become without names and texts: those that change, by session."""
    owners: dict[int, FactOwner] = {}
    if names:
        keys, said = json.dumps(list(names)), json.dumps(list(names.values()))
        owners |= {row[0]: FactOwner(*row[1:]) for row in conn.execute(_NAMING_SESSIONS, (keys, said, site))}
    if 0 < len(texts) < _TREE_FROM:
        quoted = [json.dumps(text, ensure_ascii=False) for text in texts]  # as `to_json` writes them
        owners |= {row[0]: FactOwner(*row[1:]) for row in conn.execute(_HOLDING, (site, json.dumps(quoted)))}
    elif texts:
        rows = conn.execute(_HOLDING_TREE, (site, json.dumps(list(texts))))
        owners |= {row[0]: FactOwner(*row[1:]) for row in rows}
    changed: dict[int, list[Fact]] = {}
    for session_key, owner in owners.items():
        if session_key in gone:
            continue
        held = read_facts(conn, session_key, owner)
        loosened = [loosen(fact, set(names.values()), texts) for fact in held]
        facts = [loose for fact, loose in zip(held, loosened, strict=True) if loose != fact]
        if facts:
            changed[session_key] = facts
    return changed


def _write_loosened(conn: Connection, session_key: int, facts: Iterable[Fact]) -> None:
    for loose in facts:
        said = (session_key, loose.metric, loose.id) if isinstance(loose, VitalFact) else (session_key, loose.id)
        size = (loose.anonymous_id is None, content_size(loose))
        if isinstance(loose, EventFact):
            conn.execute(_LOOSEN_EVENT, (*said, *size, loose.properties, loose.context))
        else:
            conn.execute(_LOOSEN_VITAL, (*said, *size))


def delete_sessions(conn: Connection, gone: list[int]) -> Erased:
    """Delete sessions with their facts, after `outbox.release`; their visitors are still to be derived."""
    keys = json.dumps(gone)
    counts = [
        conn.execute(f"DELETE FROM {table} WHERE session_key IN (SELECT value FROM json_each(?))", (keys,)).rowcount
        for table in ("web_vitals", "events", "sessions")
    ]
    return Erased(counts[2], counts[0], counts[1])


def _read_shared(conn: Connection, by_vitals: str, by_events: str, parameter: str) -> dict[str, set[int]]:
    vitals, events = (conn.execute(sql, (parameter,)).fetchone() for sql in (by_vitals, by_events))
    columns = zip(_SHARED, (*vitals, "[]"), events, strict=True)
    return {table: {*json.loads(one), *json.loads(other)} - {None} for table, one, other in columns}


def _drop_unused(conn: Connection, shared: dict[str, set[int]]) -> None:
    """Of the rows that facts shared, delete those that no fact is left for: an address may hold a person's id."""
    wanted = json.dumps({table: sorted(keys) for table, keys in shared.items()})
    used = _read_shared(conn, _SHARED_BY_VITALS, _SHARED_BY_EVENTS, wanted)
    for table, (key, users) in _SHARED.items():
        unused = sorted(shared[table] - used[table])
        if unused:
            _drop_rows(conn, table, key, users, unused)


def _drop_rows(conn: Connection, table: str, key: str, users: Sequence[str], keys: list[int]) -> None:
    """Delete rows that facts could point at.

    SQLite looks for facts that still do, and without an index it reads all of them for each row: 0.14 s for 1.5 million
    facts. From a few rows on an index for the length of the transaction is cheaper: 0.5 s however many rows.
    """
    indexed = users if len(keys) >= _INDEX_FROM else ()
    for user in indexed:
        conn.execute(f"CREATE INDEX erasing_{user} ON {user} ({key})")
    conn.execute(f"DELETE FROM {table} WHERE {key} IN (SELECT value FROM json_each(?))", (json.dumps(keys),))
    for user in indexed:
        conn.execute(f"DROP INDEX erasing_{user}")


# --- tombstones and documents that come in ---------------------------------------------------------------------------

_NAMES_OF = "SELECT visitor_key, anonymous_id FROM anonymous_ids WHERE site = ?"
_SESSIONS_OF = """
SELECT s.session_key, f.funnel_id, s.session_id
FROM funnels AS f CROSS JOIN sessions AS s ON s.funnel_key = f.funnel_key WHERE f.site = ?"""


def bury(conn: Connection, received: Sequence[Tombstone], now: int) -> list[LineResult]:
    """Erase what tombstones of others match, and keep them. One result each: accepted, or a duplicate.

    A hash cannot be looked up, so all ids of the site are hashed, once for all tombstones of it: 2.5 us a visitor, and
    as much a session where a tombstone names sessions.
    """
    results: dict[int, LineResult] = {}
    for site in {one.site for one in received}:
        of_site = [(place, one) for place, one in enumerate(received) if one.site == site]
        by_hash = {one.visitor_hash: None for _, one in of_site}
        names = {key: text for key, text in conn.execute(_NAMES_OF, (site,)) if hash_of(site, text) in by_hash}
        wanted = frozenset().union(*(one.session_hashes for _, one in of_site))
        chosen = [
            key
            for key, *texts in (conn.execute(_SESSIONS_OF, (site,)) if wanted else ())
            if hash_of(site, *texts) in wanted
        ]
        texts = {text for text in names.values() if _OWN_TEXT.fullmatch(text)}
        _, hashes = _erase(conn, site, names, chosen, now, texts)
        added = {hash_of(site, text): frozenset(hashes.get(key, ())) for key, text in names.items()}
        for place, one in of_site:
            more = one.session_hashes | added.get(one.visitor_hash, frozenset())
            changed = tombstones.put(conn, one._replace(session_hashes=more), now)
            results[place] = LineResult(Outcome.ACCEPTED if changed else Outcome.DUPLICATE)
    return [results[place] for place in range(len(received))]


def screen(conn: Connection, documents: Sequence[Document]) -> list[Document | None]:
    """Documents without what was erased: None for one whose session or visitor was.

    In a document of somebody else the facts that name an erased visitor lose that name, as held ones did when it was
    erased, and all facts the ids of erased visitors and sessions (of the document's funnel) that are whole texts in
    them: the outcome is the same whichever comes first.
    """
    if not has_any(conn):
        return list(documents)
    return [_screen(conn, document) for document in documents]


def _screen(conn: Connection, document: Document) -> Document | None:
    site, funnel_id, _ = document.owner
    if find_sessions(conn, [document.owner]):
        return None
    said = {name for fact in document.facts for name in _names_of(fact)}
    held = {text for fact in document.facts if isinstance(fact, EventFact) for text in _own_texts(fact)}
    erased = {name for _, name in find_visitors(conn, [(site, text) for text in said | held])}
    gone = {text for *_, text in find_sessions(conn, [(site, funnel_id, text) for text in held])}
    if not erased and not gone:
        return document
    first = next((f.anonymous_id for f in sorted(document.facts, key=fact_order) if f.anonymous_id is not None), None)
    if first in erased:
        return None
    return document._replace(facts=[loosen(fact, erased & said, gone | erased & held) for fact in document.facts])


def _own_texts(fact: EventFact) -> Iterable[str]:
    """The texts in properties and context that may be the id of one person."""
    waiting = [json.loads(part) for part in (fact.properties, fact.context) if part is not None]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str) and _OWN_TEXT.fullmatch(value):
            yield value
        elif isinstance(value, dict):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, list):
            waiting += value


def _names_of(fact: Fact) -> Iterable[str]:
    if fact.anonymous_id is not None:
        yield fact.anonymous_id
    user = json.loads(fact.context).get("user") if isinstance(fact, EventFact) and fact.context else None
    if isinstance(user, dict) and isinstance(user.get("anonymousId"), str):
        yield user["anonymousId"]
