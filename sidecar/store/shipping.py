"""Statements that read how shipping goes: for /healthz, /api/shipping, `status`, `parked list` and the session page."""

from __future__ import annotations

from typing import Any

from sidecar.canonical import to_iso
from sidecar.store.database import Connection, rows
from sidecar.store.documents import read_session, tombstone_object
from sidecar.store.outbox import finished_ranges, read_destination
from sidecar.store.shipping_text import Waiting, say_state
from sidecar.store.tombstones import read_counts as count_tombstones
from sidecar.store.tombstones import read_tombstone

BATCHES_SHOWN = 20
COUNTED_MAX = 10_000  # where /healthz, which anybody may ask, ends to count
STATES = ("ready", "waiting", "blocked", "off")  # of a destination

_COUNT = "SELECT count(*) FROM sessions WHERE revision > shipped_revision AND revision > ? AND revision < ?"
_COUNT_SOME = """
SELECT count(*) FROM (SELECT 1 FROM sessions WHERE revision > shipped_revision AND revision > ? AND revision < ?
LIMIT ?)"""
_COUNT_ERASURES = """
SELECT count(*) FROM (SELECT 1 FROM tombstones WHERE revision > shipped_revision LIMIT ?)"""
_COUNT_REFUSED = """
SELECT (SELECT count(*) FROM (SELECT discarded_at FROM parked LIMIT ?1) WHERE discarded_at IS NULL)
    + (SELECT count(*) FROM (SELECT refusal FROM tombstones LIMIT ?1) WHERE refusal IS NOT NULL)"""
_OLDEST = """
SELECT revision FROM sessions WHERE revision > shipped_revision AND revision > ?1 AND revision < ?2
ORDER BY revision LIMIT 1"""
# (parked, of all refused the ones without something new): the latter are neither waiting nor confirmed.
_COUNT_PARKED = """
SELECT count(*) FILTER (WHERE p.discarded_at IS NULL), count(*) FILTER (WHERE s.revision <= s.shipped_revision)
FROM parked AS p JOIN sessions AS s ON s.session_key = p.session_key"""

_FORMER = "SELECT address, max(since) FROM destinations WHERE current = 0"  # SQLite: the address of that row
_LAST_BATCHES = """
SELECT batch_id, site, lines_count, body_bytes, attempts, state, claimed_at, settled_at, answer
FROM batches ORDER BY batch_key DESC LIMIT ?"""


def read_state(conn: Connection) -> dict[str, Any]:
    """`{"state", "reason", "since"}` of the destination, for /healthz: no address, no counting, one row read."""
    destination = read_destination(conn)
    if destination is None or destination.state == "off":
        return {"state": "off", "reason": None, "since": None}
    return {"state": destination.state, "reason": destination.reason, "since": to_iso(destination.since)}


def read_health(conn: Connection, now: int, timeout_ms: int) -> dict[str, Any]:
    """As `read_state`, with `nextAttemptAt` and a `sentence` for a person; for /healthz, which needs no token.

    It names no address and no id, and costs the same however much waits: it counts to 10,000.
    """
    destination = read_destination(conn)
    past, ahead = finished_ranges(now, timeout_ms)
    sessions = sum(_count_some(conn, _COUNT_SOME, bounds) for bounds in (past, ahead))
    oldest = conn.execute(_OLDEST, past).fetchone()
    waiting = Waiting(
        sessions=min(sessions, COUNTED_MAX),
        oldest=oldest[0] if oldest else None,
        erasures=_count_some(conn, _COUNT_ERASURES),
        parked=_count_some(conn, _COUNT_REFUSED),
        more=sessions > COUNTED_MAX,
    )
    until = destination.next_attempt_at if destination and destination.state in ("waiting", "blocked") else None
    return {**read_state(conn), "nextAttemptAt": to_iso(until), "sentence": say_state(destination, waiting, now)}


def _count_some(conn: Connection, sql: str, bounds: tuple[int, ...] = ()) -> int:
    return int(conn.execute(sql, (*bounds, COUNTED_MAX + 1)).fetchone()[0])


def count_waiting(conn: Connection, now: int, timeout_ms: int, ceiling: int | None = None) -> int:
    """Sessions that one pass at `now` finds, with unfinished ones up to the revision `ceiling` where that is given."""
    past, ahead = finished_ranges(now, timeout_ms)
    if ceiling is not None:
        past = (past[0], max(past[1], ceiling + 1))
    return sum(int(conn.execute(_COUNT, bounds).fetchone()[0]) for bounds in (past, ahead))


def read_shipping(conn: Connection, now: int, timeout_ms: int) -> dict[str, Any]:
    """All there is to say about shipping; call it inside a snapshot. Times ISO 8601, sizes in bytes.

    `sentence` is the short form of it. `waitingSessions` are finished and not confirmed, `oldestWaiting` is since when
    the first of them has not changed (`oldestWaitingSeconds` ago; 0 where none waits), `unfinishedSessions` have
    something new that is not finished yet. `tombstones` are erasures in all, some of them waiting to be told or refused
    by the destination. `formerDestination` was left at `changedAt`, where there has been another one.
    """
    destination = read_destination(conn)
    off = destination is None or destination.state == "off"
    past, ahead = finished_ranges(now, timeout_ms)
    oldest = conn.execute(_OLDEST, past).fetchone()
    waiting = count_waiting(conn, now, timeout_ms)
    unfinished = conn.execute(_COUNT, (past[1] - 1, ahead[0] + 1)).fetchone()[0]
    parked, aside = conn.execute(_COUNT_PARKED).fetchone()
    total = conn.execute("SELECT count(*) FROM sessions").fetchone()[0]
    graves = count_tombstones(conn)
    refused = parked + graves["refusedTombstones"]
    told = Waiting(waiting, oldest[0] if oldest else None, graves["waitingTombstones"], refused)
    former, changed_at = conn.execute(_FORMER).fetchone()
    return {
        "destination": None if destination is None or off else destination.address,
        "formerDestination": former,
        "changedAt": to_iso(changed_at),
        **read_state(conn),
        "sentence": say_state(destination, told, now),
        "nextAttemptAt": to_iso(destination.next_attempt_at)
        if destination and destination.state in ("waiting", "blocked")
        else None,
        "confirmedAt": to_iso(destination.confirmed_at) if destination else None,
        "waitingSessions": waiting,
        "oldestWaiting": to_iso(oldest[0]) if oldest else None,
        "oldestWaitingSeconds": (now - oldest[0]) // 1000 if oldest else 0,
        "unfinishedSessions": unfinished,
        "confirmedSessions": total - waiting - unfinished - aside,
        "parkedSessions": parked,
        **graves,
        "batches": [
            {
                "batchId": row["batch_id"],
                "site": row["site"],
                "lines": row["lines_count"],
                "bytes": row["body_bytes"],
                "attempts": row["attempts"],
                "state": row["state"],
                "claimedAt": to_iso(row["claimed_at"]),
                "settledAt": to_iso(row["settled_at"]),
                "answer": row["answer"],
            }
            for row in rows(conn, _LAST_BATCHES, (BATCHES_SHOWN,))
        ],
    }


_SHIPPING_OF = """
SELECT s.revision, s.shipped_revision, s.shipped_at, f.site, p.revision AS parked_revision, p.confirmed_revision,
    p.reason, p.batch_id AS parked_batch, p.parked_at, p.discarded_at,
    (SELECT b.batch_id FROM batch_lines AS l JOIN batches AS b ON b.batch_key = l.batch_key
     WHERE l.session_key = s.session_key) AS open_batch
FROM sessions AS s JOIN funnels AS f ON f.funnel_key = s.funnel_key
LEFT JOIN parked AS p ON p.session_key = s.session_key WHERE s.session_key = ?"""
_CONFIRMED_IN = "SELECT batch_id FROM batches WHERE state = 'confirmed' AND settled_at = ? AND site = ? LIMIT 2"


def read_session_shipping(conn: Connection, session_key: int) -> dict[str, Any]:
    """Where one session is on its way upstream. Raises LookupError where there is no such session.

    `shipping`: `waiting` (it has something that is not confirmed), `sending` (in an open batch), `parked`, `discarded`
    or `shipped`. `shippedRevision` is the one confirmed last, `batchId` its batch, as far as that is still known.
    """
    row = next(rows(conn, _SHIPPING_OF, (session_key,)), None)
    if row is None:
        raise LookupError(f"no session with the key {session_key}")
    refused = row["parked_revision"] is not None
    confirmed = row["confirmed_revision"] if refused else row["shipped_revision"]
    if row["open_batch"] is not None:
        state = "sending"
    elif row["revision"] > row["shipped_revision"]:
        state = "waiting"
    elif refused:
        state = "parked" if row["discarded_at"] is None else "discarded"
    else:
        state = "shipped"
    found = conn.execute(_CONFIRMED_IN, (row["shipped_at"], row["site"])).fetchall()
    return {
        "shipping": state,
        "shippedRevision": None if confirmed < 0 else confirmed,
        "shippedAt": to_iso(row["shipped_at"]),
        "batchId": found[0][0] if len(found) == 1 else None,
        "openBatchId": row["open_batch"],
        "parkedRevision": row["parked_revision"],
        "parkedReason": row["reason"],
        "parkedAt": to_iso(row["parked_at"]),
        "parkedBatchId": row["parked_batch"],
    }


# --- what was refused ------------------------------------------------------------------------------------------------

_PARKED = """
SELECT p.session_key AS id, f.site, f.funnel_id, s.session_id, p.revision, p.reason, p.batch_id, p.parked_at,
    p.discarded_at
FROM parked AS p JOIN sessions AS s ON s.session_key = p.session_key
JOIN funnels AS f ON f.funnel_key = s.funnel_key"""
_REFUSED = "SELECT tombstone_key, site, visitor_hash, erased_at, refusal FROM tombstones WHERE refusal IS NOT NULL"


def list_parked(conn: Connection, *, most: int = -1) -> list[dict[str, Any]]:
    """What the destination has refused and nobody has discarded, the longest parked first, `most` of it (-1: all).

    `id` is what the other functions take.
    """
    sql = f"{_PARKED} WHERE p.discarded_at IS NULL ORDER BY p.parked_at, id LIMIT ?"
    return [_parked(row) for row in rows(conn, sql, (most,))]


def _parked(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": row["id"],
        "site": row["site"],
        "funnelId": row["funnel_id"],
        "sessionId": row["session_id"],
        "revision": row["revision"],
        "reason": row["reason"],
        "batchId": row["batch_id"],
        "parkedAt": to_iso(row["parked_at"]),
    }


def list_refused(conn: Connection, *, most: int = -1) -> list[dict[str, Any]]:
    """The tombstones that the destination has refused; their `id` is `t` and the key."""
    return [_refused(row) for row in rows(conn, f"{_REFUSED} ORDER BY tombstone_key LIMIT ?", (most,))]


def _refused(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": f"t{row['tombstone_key']}",
        "site": row["site"],
        "visitorHash": row["visitor_hash"],
        "erasedAt": to_iso(row["erased_at"]),
        "reason": row["refusal"],
    }


def read_parked(conn: Connection, key: int, now: int, timeout_ms: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """One parked session as in `list_parked` with its `state`, also a discarded one, and its document of now.

    Raises LookupError where it is not parked.
    """
    row = next(rows(conn, f"{_PARKED} WHERE p.session_key = ?", (key,)), None)
    if row is None:
        raise LookupError(f"no session with the key {key} is parked")
    discarded = row["discarded_at"]
    state = "parked" if discarded is None else f"discarded at {to_iso(discarded)}"
    return {**_parked(row), "state": state}, read_session(conn, key, now, timeout_ms)


def read_refused(conn: Connection, key: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """One refused tombstone as in `list_refused`, and its document. Raises LookupError where it is not refused."""
    row = next(rows(conn, f"{_REFUSED} AND tombstone_key = ?", (key,)), None)
    if row is None:
        raise LookupError(f"no tombstone with the key {key} was refused")
    return _refused(row), tombstone_object(read_tombstone(conn, key))
