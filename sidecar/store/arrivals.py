"""What was not taken, for people who ask why: the last repeats, older reports and refusals of each session.

A note, not a fact: it is in no figure, in no document and in nothing that is compared. Beacons of which everything is
accepted write none, and what comes in documents is not noted: there repeats are the ordinary case.
"""

from __future__ import annotations

from collections.abc import Iterable
from json import dumps
from typing import Any

from sidecar.model import Fact, Outcome, VitalFact
from sidecar.store.database import Connection, rows

ARRIVALS_MAX = 20  # kept of a session

_NOTE = """
INSERT INTO arrivals (session_key, metric, id, outcome, first_at, last_at)
SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 4 FROM json_each(?) WHERE true
ON CONFLICT (session_key, metric, id, outcome)
DO UPDATE SET times = times + 1, last_at = max(last_at, excluded.last_at)"""
_KEEP_LAST = """
DELETE FROM arrivals WHERE session_key = ?1 AND (metric, id, outcome) IN (
    SELECT metric, id, outcome FROM arrivals WHERE session_key = ?1
    ORDER BY last_at DESC, metric, id, outcome LIMIT -1 OFFSET ?2)"""


def note_arrivals(conn: Connection, arrivals: Iterable[tuple[tuple[int, Fact, int], Outcome]]) -> None:
    """Note what was not accepted of ((session key, fact, received at in ms), outcome); the last ARRIVALS_MAX stay."""
    noted = [
        (key, fact.metric if isinstance(fact, VitalFact) else "", fact.id, outcome, at)
        for (key, fact, at), outcome in arrivals
        if outcome is not Outcome.ACCEPTED
    ]
    conn.execute(_NOTE, (dumps(noted),))
    for key in {note[0] for note in noted}:
        conn.execute(_KEEP_LAST, (key, ARRIVALS_MAX))


def read_arrivals(conn: Connection, session_key: int) -> list[dict[str, Any]]:
    """`metric` ('' of an event), `id`, `outcome`, `times`, `first_at` and `last_at` in ms; the last one first."""
    return list(
        rows(
            conn,
            """SELECT metric, id, outcome, times, first_at, last_at FROM arrivals WHERE session_key = ?
            ORDER BY last_at DESC, metric, id, outcome""",
            (session_key,),
        )
    )
