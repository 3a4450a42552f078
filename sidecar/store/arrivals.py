"""What was not taken, for people who ask why: the last repeats, older reports and refusals of each session.

A note, not a fact: it is in no figure, in no document and in nothing that is compared. Beacons of which everything is
accepted write none, and what comes in documents is not noted: there repeats are the ordinary case.
"""

from __future__ import annotations

from collections.abc import Iterable
from json import dumps
from typing import Any, NamedTuple

from sidecar.canonical import number, to_iso
from sidecar.model import Fact, Outcome, VitalFact
from sidecar.store.database import Connection, rows

ARRIVALS_MAX = 20  # kept of a session

_NOTE = """
INSERT INTO arrivals (session_key, metric, id, outcome, reason, first_at, last_at)
SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 5
FROM json_each(?) WHERE true
ON CONFLICT (session_key, metric, id, outcome, reason)
DO UPDATE SET times = times + 1, last_at = max(last_at, excluded.last_at)"""
_KEEP_LAST = """
DELETE FROM arrivals WHERE session_key = ?1 AND (metric, id, outcome, reason) IN (
    SELECT metric, id, outcome, reason FROM arrivals WHERE session_key = ?1
    ORDER BY last_at DESC, metric, id, outcome, reason LIMIT -1 OFFSET ?2)"""
_FIND = """
SELECT s.session_key FROM funnels AS f CROSS JOIN sessions AS s ON s.funnel_key = f.funnel_key AND s.session_id = ?3
WHERE f.site = ?1 AND f.funnel_id = ?2"""


class Refused(NamedTuple):
    """An item that became no fact: whose it said it was (`metric` '' of an event, `id` '' of none), and why."""

    site: str
    funnel_id: str
    session_id: str
    metric: str
    id: str
    reason: str


_Arrival = tuple[int, str, str, Outcome, str, int]  # session key, metric, id, outcome, reason, received at in ms


def arrival_of(session_key: int, fact: Fact, outcome: Outcome, reason: str | None, at: int) -> _Arrival:
    """The note of a fact that was not accepted, or of one that a newer report has replaced; `at` in ms."""
    metric = fact.metric if isinstance(fact, VitalFact) else ""
    if outcome is Outcome.SUPERSEDED:
        value = f"{number(fact.value)} " if isinstance(fact, VitalFact) else ""
        reason = f"{value}of {to_iso(fact.timestamp)}"
    return session_key, metric, fact.id, outcome, reason or "", at


def find_refused(conn: Connection, refused: Iterable[Refused], at: int) -> list[_Arrival]:
    """Notes of refused items; those of sessions that do not exist leave none: a refusal makes no session."""
    found = ((conn.execute(_FIND, one[:3]).fetchone(), one) for one in refused)
    return [(key[0], one.metric, one.id, Outcome.REJECTED, one.reason, at) for key, one in found if key]


def note_arrivals(conn: Connection, arrivals: list[_Arrival]) -> None:
    """Note what was not taken; the last ARRIVALS_MAX of a session stay."""
    if not arrivals:
        return
    conn.execute(_NOTE, (dumps(arrivals),))
    for key in {arrival[0] for arrival in arrivals}:
        conn.execute(_KEEP_LAST, (key, ARRIVALS_MAX))


def read_arrivals(conn: Connection, session_key: int) -> list[dict[str, Any]]:
    """`metric` ('' of an event), `id`, `outcome`, `reason`, `times`, `first_at`, `last_at` (ms); the last one first."""
    return list(
        rows(
            conn,
            """SELECT metric, id, outcome, reason, times, first_at, last_at FROM arrivals WHERE session_key = ?
            ORDER BY last_at DESC, metric, id, outcome, reason""",
            (session_key,),
        )
    )
