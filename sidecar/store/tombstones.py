"""Tombstones: hashes of what was erased, by which later facts of it are refused, here and upstream.

Keys are texts in hex, so that JSON carries them as they are. A tombstone counts for its site only: whoever may write
one site can refuse nothing of another.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import lru_cache
from hashlib import sha256
from json import dumps, loads
from typing import Any, NamedTuple

from sidecar.model import Fact
from sidecar.store.database import Connection

ERASED = "erased"  # the reason of what is refused


class Tombstone(NamedTuple):
    """An erased visitor. Hashes are SHA-256 in hex; `erased_at` in ms."""

    site: str
    visitor_hash: str
    session_hashes: frozenset[str]
    erased_at: int


def hash_of(*texts: str) -> str:
    """SHA-256, in hex, of texts with zero bytes between: of (site, visitor id) or (site, funnel id, session id)."""
    return sha256("\0".join(texts).encode()).hexdigest()


# --- refusing --------------------------------------------------------------------------------------------------------

_ANY = "SELECT EXISTS (SELECT 1 FROM tombstones)"
_FIND_VISITORS = """
SELECT json_group_array(value) FROM json_each(?2) CROSS JOIN tombstones ON site = ?1 AND visitor_hash = value"""
_FIND_SESSIONS = """
SELECT json_group_array(value) FROM json_each(?2) CROSS JOIN tombstone_sessions AS s ON s.session_hash = value
CROSS JOIN tombstones AS t ON t.tombstone_key = s.tombstone_key AND t.site = ?1"""
_hash_again = lru_cache(maxsize=16_384)(hash_of)  # beacons bring the same visitors and sessions again and again


def has_any(conn: Connection) -> bool:
    """Whether anything was ever erased: what keeps the check below free where nothing was."""
    return bool(conn.execute(_ANY).fetchone()[0])


def _find(conn: Connection, sql: str, names: Collection[tuple[str, ...]]) -> set[tuple[str, ...]]:
    """Those of the names (site first) that have a tombstone."""
    found: set[tuple[str, ...]] = set()
    for site in {name[0] for name in names}:
        by_hash = {_hash_again(*name): name for name in names if name[0] == site}
        found |= {by_hash[one] for one in loads(conn.execute(sql, (site, dumps(list(by_hash)))).fetchone()[0])}
    return found


def find_visitors(conn: Connection, names: Iterable[tuple[str, ...]]) -> set[tuple[str, ...]]:
    """Those of the visitors (site, id) that were erased."""
    return _find(conn, _FIND_VISITORS, set(names))


def find_sessions(conn: Connection, owners: Iterable[tuple[str, ...]]) -> set[tuple[str, ...]]:
    """Those of the sessions (site, funnel, session) that were erased."""
    return _find(conn, _FIND_SESSIONS, set(owners))


def find_erased(conn: Connection, facts: Sequence[Fact]) -> set[int]:
    """Places of the facts that name an erased visitor or belong to an erased session.

    Costs one short read where nothing was ever erased, else two more and 5-10 us a fact of a new visitor.
    """
    if not has_any(conn):
        return set()
    visitors = find_visitors(conn, ((f.site, f.anonymous_id) for f in facts if f.anonymous_id is not None))
    sessions = find_sessions(conn, {fact[:3] for fact in facts})
    if not visitors and not sessions:
        return set()
    return {
        place
        for place, fact in enumerate(facts)
        if fact[:3] in sessions or (fact.anonymous_id is not None and (fact.site, fact.anonymous_id) in visitors)
    }


# --- keeping ---------------------------------------------------------------------------------------------------------

_HELD = "SELECT tombstone_key, erased_at FROM tombstones WHERE site = ? AND visitor_hash = ?"
_ADD = "INSERT INTO tombstones (site, visitor_hash, erased_at, revision) VALUES (?, ?, ?, ?) RETURNING tombstone_key"
_CHANGE = """
UPDATE tombstones SET erased_at = max(erased_at, ?2), revision = max(revision + 1, ?3), refusal = NULL
WHERE tombstone_key = ?1"""
_ADD_SESSIONS = """
INSERT INTO tombstone_sessions (tombstone_key, session_hash) SELECT ?1, value FROM json_each(?2) WHERE true
ON CONFLICT (tombstone_key, session_hash) DO NOTHING"""


def put(conn: Connection, tombstone: Tombstone, now: int) -> bool:
    """Keep a tombstone, merged with one that is held: the later time, all sessions. Whether that changed anything."""
    held = conn.execute(_HELD, (tombstone.site, tombstone.visitor_hash)).fetchone()
    said = (tombstone.site, tombstone.visitor_hash, tombstone.erased_at, now)
    key = conn.execute(_ADD, said).fetchone()[0] if held is None else held[0]
    added = conn.execute(_ADD_SESSIONS, (key, dumps(sorted(tombstone.session_hashes)))).rowcount > 0
    if held is None:
        return True
    changed = added or tombstone.erased_at > held[1]
    if changed:
        conn.execute(_CHANGE, (key, tombstone.erased_at, now))
    return changed


# --- reading ---------------------------------------------------------------------------------------------------------

_ONE = "SELECT site, visitor_hash, erased_at FROM tombstones WHERE tombstone_key = ?"
_SESSIONS_OF = "SELECT session_hash FROM tombstone_sessions WHERE tombstone_key = ?"
_LIST = """
SELECT tombstone_key FROM tombstones
WHERE erased_at >= coalesce(?1, erased_at) AND erased_at < coalesce(?2, erased_at + 1)
ORDER BY site, visitor_hash"""


def read_tombstone(conn: Connection, key: int) -> Tombstone:
    """One tombstone. Raises LookupError where there is none."""
    row = conn.execute(_ONE, (key,)).fetchone()
    if row is None:
        raise LookupError(f"no tombstone with the key {key}")
    hashes = frozenset(one for (one,) in conn.execute(_SESSIONS_OF, (key,)))
    return Tombstone(row[0], row[1], hashes, row[2])


def list_tombstones(conn: Connection, since: int | None, until: int | None) -> Iterator[Tombstone]:
    """Tombstones erased within [since, until) (ms), by (site, hash): the order of export."""
    for (key,) in conn.execute(_LIST, (since, until)).fetchall():
        yield read_tombstone(conn, key)


_COUNT = """
SELECT count(*), count(*) FILTER (WHERE revision > shipped_revision), count(*) FILTER (WHERE refusal IS NOT NULL)
FROM tombstones"""


def read_counts(conn: Connection) -> dict[str, Any]:
    """`tombstones` in all, those `waitingTombstones` to be shipped, those `refusedTombstones` by the destination."""
    counts = conn.execute(_COUNT).fetchone()
    return dict(zip(("tombstones", "waitingTombstones", "refusedTombstones"), counts, strict=True))
