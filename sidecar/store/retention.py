"""Retention: sessions older than RETENTION_DAYS go, step by step, so that beacons wait for one step at most.

Age is by `ended_at`, the latest time of a session's facts: it is about what is known of people for how long, whichever
way it came in, so an import of old sessions does not keep them for longer. A session that is not finished stays, and,
where there is an upstream, one that the destination has not confirmed as it is now, that is in an open batch, or that
was refused and not discarded by a person. Without an upstream age alone decides.

Tombstones stay for ever: they have to refuse what was erased for ever. So do funnels, which name nobody.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator
from contextlib import closing
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from sidecar.store import outbox, sweep
from sidecar.store.database import Connection, immediate, open_read_only, rows, snapshot
from sidecar.store.erasure import Erased, delete_sessions
from sidecar.store.limit import used_bytes
from sidecar.store.outbox import finished_ranges, read_destination

DAY_MS = 86_400_000
NOTES_KEPT_DAYS = 30  # settled batches, receipts
BATCHES_KEPT = 100  # settled batches, however old
LOOKED_AT_MAX = 1000  # sessions a step looks at
NOTES_A_STEP = 2000
STEP_S = 0.03  # what a step should take
WINDOW_S = 0.03  # the least pause of a command after a step
FACTS_FIRST = 500  # facts of the first step; then what fits into STEP_S
FACTS_LEAST, FACTS_MOST = 50, 4000


class Rule(NamedTuple):
    """What may go. `before`, `now` in ms; `address`: the destination that must have confirmed (None: by age alone)."""

    before: int
    now: int
    timeout_ms: int
    address: str | None


class Kept(NamedTuple):
    """What an old session stays for, and how many do."""

    reason: str
    sessions: int


class Survey(NamedTuple):
    """What a rule means for the file. Times in ms, None where nothing goes; `file_bytes` is an estimate by facts."""

    sessions: int
    facts: int
    oldest: int | None
    newest: int | None
    file_bytes: int
    kept: list[Kept]


class Step(NamedTuple):
    """What one step did. `after`: where the next one goes on, None where the rule has been applied to all."""

    erased: Erased
    after: tuple[int, int] | None


BEGIN = (-(2**63), 0)  # `after` of the first step


def make_rule(conn: Connection, *, days: int, upstream: str | None, now: int, timeout_ms: int) -> Rule:
    """The rule of the settings. `days` > 0; `upstream`: the address that they name.

    Where they name none, a destination that is on in the file counts: a server ships to it from this file, and a person
    at a command line has not repeated its settings.
    """
    if upstream is None:
        destination = read_destination(conn)
        if destination is not None and destination.state != "off":
            upstream = destination.address
    return Rule(now - days * DAY_MS, now, timeout_ms, upstream)


# --- which sessions --------------------------------------------------------------------------------------------------

# Why an old session stays, '' where it goes. :shipping: 0 by age alone, 1 what is confirmed, 2 nothing is confirmed.
_REASON = """
CASE WHEN NOT ((s.revision > :past_low AND s.revision < :past) OR (s.revision > :ahead AND s.revision < :ahead_high))
    THEN 'not finished'
WHEN :shipping = 0 THEN ''
WHEN EXISTS (SELECT 1 FROM batch_lines AS l WHERE l.session_key = s.session_key) THEN 'in an open batch'
WHEN EXISTS (SELECT 1 FROM parked AS p WHERE p.session_key = s.session_key AND p.discarded_at IS NULL) THEN 'parked'
WHEN :shipping = 2 OR s.revision > s.shipped_revision THEN 'not confirmed by the destination'
ELSE '' END"""
_SURVEY = f"""
SELECT {_REASON} AS reason, count(*) AS sessions, min(s.ended_at) AS oldest, max(s.ended_at) AS newest,
    sum(s.vitals_count + s.events_count) AS facts
FROM sessions AS s WHERE s.started_at < :before AND s.ended_at < :before GROUP BY 1 ORDER BY 1"""
# A session starts before it ends, so the index on `started_at` finds the old ones; ties are in the order of the key.
_WALK = f"""
SELECT s.session_key, s.started_at, s.visitor_key, s.vitals_count + s.events_count,
    s.ended_at < :before AND {_REASON} = ''
FROM sessions AS s WHERE (s.started_at, s.session_key) > (:started_at, :session_key) AND s.started_at < :before
ORDER BY s.started_at, s.session_key LIMIT :most"""
_FACTS = "SELECT (SELECT count(*) FROM web_vitals) + (SELECT count(*) FROM events)"
_DERIVE_VISITORS = """
INSERT INTO derivations (sessions, with_events, moved, visitors, now) VALUES ('[]', '[]', '[]', ?, NULL)"""


def _parameters(conn: Connection, rule: Rule) -> dict[str, int]:
    """The rule as it stands at the moment: confirmations count for the destination that they were given by."""
    destination = read_destination(conn)
    if rule.address is None:
        shipping = 0 if destination is None or destination.state == "off" else 2
    else:
        shipping = 1 if destination is not None and destination.address == rule.address else 2
    (past_low, past), (ahead, ahead_high) = finished_ranges(rule.now, rule.timeout_ms)
    bounds = {"past_low": past_low, "past": past, "ahead": ahead, "ahead_high": ahead_high}
    return {"before": rule.before, "shipping": shipping, **bounds}


def survey(conn: Connection, rule: Rule) -> Survey:
    """What would go, and what stays for which reason; on a snapshot."""
    found = {row["reason"]: row for row in rows(conn, _SURVEY, _parameters(conn, rule))}
    kept = [Kept(reason, row["sessions"]) for reason, row in found.items() if reason]
    going = found.get("")
    if going is None:
        return Survey(0, 0, None, None, 0, kept)
    share = going["facts"] / max(1, conn.execute(_FACTS).fetchone()[0])
    size = round(share * used_bytes(conn))
    return Survey(going["sessions"], going["facts"], going["oldest"], going["newest"], size, kept)


# --- step by step ----------------------------------------------------------------------------------------------------


def prune_step(conn: Connection, rule: Rule, after: tuple[int, int], facts_max: int) -> Step:
    """Delete the next sessions that may go, of `facts_max` facts in all (or one session); in a transaction."""
    where = {"started_at": after[0], "session_key": after[1], "most": LOOKED_AT_MAX}
    found = conn.execute(_WALK, _parameters(conn, rule) | where).fetchall()
    gone: list[int] = []
    visitors: set[int] = set()
    facts, looked_at = 0, 0
    for session_key, started_at, visitor_key, size, goes in found:
        if goes and gone and facts + size > facts_max:
            break
        looked_at += 1
        after = (started_at, session_key)
        if goes:
            gone.append(session_key)
            facts += size
            if visitor_key is not None:
                visitors.add(visitor_key)
    over = looked_at == len(found) < LOOKED_AT_MAX
    erased = Erased(0, 0, 0)
    if gone:
        outbox.release(conn, gone, rule.now)
        erased = delete_sessions(conn, gone)
        conn.execute(_DERIVE_VISITORS, (json.dumps(sorted(visitors)),))
    return Step(erased, None if over else after)


_OLD_BATCHES = """
DELETE FROM batches WHERE batch_key IN (
    SELECT batch_key FROM batches WHERE state <> 'open' AND settled_at < ?1
    AND batch_key NOT IN (SELECT batch_key FROM batches WHERE state <> 'open' ORDER BY batch_key DESC LIMIT ?2)
    LIMIT ?3)"""
_OLD_RECEIPTS = """
DELETE FROM receipts WHERE idempotency_key IN (
    SELECT idempotency_key FROM receipts WHERE received_at < ? ORDER BY received_at LIMIT ?)"""


def prune_notes(conn: Connection, now: int) -> int:
    """Delete old settled batches and receipts, NOTES_A_STEP of each at most; how many. In a transaction."""
    before = now - NOTES_KEPT_DAYS * DAY_MS
    batches = conn.execute(_OLD_BATCHES, (before, BATCHES_KEPT, NOTES_A_STEP)).rowcount
    return int(batches + conn.execute(_OLD_RECEIPTS, (before, NOTES_A_STEP)).rowcount)


class Pace:
    """How much a step may do, and how long others go first after it: half of the time is theirs."""

    def __init__(self) -> None:
        self.facts_max = FACTS_FIRST
        self.longest_s = 0.0

    def note(self, took_s: float) -> float:
        """Note a step; the pause (s) before the next."""
        self.longest_s = max(self.longest_s, took_s)
        wanted = self.facts_max * STEP_S / max(took_s, 0.001)
        self.facts_max = round(min(max(wanted, self.facts_max / 2, FACTS_LEAST), self.facts_max * 2, FACTS_MOST))
        return min(max(took_s, 0.002), 1.0)


class Pruned(NamedTuple):
    """What a pass deleted. `unused`: rows of what facts shared; `notes`: settled batches and receipts.

    `longest_step_s`: for how long nobody else could write, with COMMIT where a command does it.
    """

    sessions: int = 0
    web_vitals: int = 0
    events: int = 0
    unused: int = 0
    notes: int = 0
    longest_step_s: float = 0.0

    def __str__(self) -> str:
        said = f"{self.sessions} sessions, {self.web_vitals} web vitals, {self.events} events"
        return f"{said}; {self.unused} pages, clients, campaigns and visitor ids of which nothing is left"


class Where(Enum):
    """Where a piece of a pass is to be run."""

    TRANSACTION = "in a write transaction"
    ALONE = "on a connection in no transaction: it has transactions of its own"
    SNAPSHOT = "on a read-only snapshot, beside whoever writes"


class Piece(NamedTuple):
    """One thing to do, `pause_s` after the one before."""

    where: Where
    function: Callable[[Connection], Any]
    pause_s: float = 0.0


Pass = Generator[Piece, Any, Pruned]


def prune(rule: Rule | None, now: int, *, run: int, advance: Callable[[int], object] = lambda _: None) -> Pass:
    """One pass, as pieces for whoever holds the connections; the result of each is sent back into the generator.

    `rule` None: no session goes. `run`: a number that no other pass has. `advance` is called with the sessions of each
    step. What shares nothing with a fact any more goes at the end, also what a killed pass has left.
    """
    pace, pruned, after = Pace(), Pruned(), BEGIN if rule else None
    pause_s = 0.0
    while rule and after:
        work = partial(_timed, partial(_prune_and_sweep, rule=rule, after=after, facts_max=pace.facts_max, run=run))
        step, took_s = yield Piece(Where.TRANSACTION, work, pause_s)
        pause_s = pace.note(took_s)
        erased, after = step.erased, step.after
        pruned = Pruned(*(sum(pair) for pair in zip(pruned[:3], erased, strict=True)))
        advance(erased.sessions)
    notes = NOTES_A_STEP
    while notes >= NOTES_A_STEP:
        notes = yield Piece(Where.TRANSACTION, partial(prune_notes, now=now), pause_s)
        pruned = pruned._replace(notes=pruned.notes + notes)
    if (yield Piece(Where.SNAPSHOT, sweep.is_left)):
        dropped = yield from _sweep(run, pace)
        pruned = pruned._replace(unused=dropped)
    return pruned._replace(longest_step_s=pace.longest_s)


def _prune_and_sweep(conn: Connection, *, rule: Rule, after: tuple[int, int], facts_max: int, run: int) -> Step:
    step = prune_step(conn, rule, after, facts_max)
    if step.erased.sessions and not sweep.goes_on(conn, run):
        sweep.begin(conn, run)  # in the same transaction: so a kill leaves the note that something is to be swept
    return step


def _sweep(run: int, pace: Pace) -> Generator[Piece, Any, int]:
    yield Piece(Where.TRANSACTION, partial(sweep.begin, run=run))
    found: list[sweep.Unused] = yield Piece(Where.SNAPSHOT, sweep.find_unused)
    dropped, pause_s = 0, 0.0
    for part in (part for unused in found for part in unused.parts):
        count, took_s = yield Piece(Where.ALONE, partial(_timed, partial(sweep.drop, run=run, unused=part)), pause_s)
        pause_s = pace.note(took_s)
        if count is None:
            return dropped  # another process has begun a sweep since: it finds the rest
        dropped += count
    yield Piece(Where.TRANSACTION, partial(sweep.finish, run=run))
    return dropped


def _timed(function: Callable[[Connection], Any], conn: Connection) -> tuple[Any, float]:
    started = time.monotonic()
    result = function(conn)
    return result, time.monotonic() - started


def run_pass(conn: Connection, path: Path, work: Pass) -> Pruned:
    """Do all of a pass on one writable connection to the file at `path`, beside whoever else writes to it.

    They get as much time as each piece took with its COMMIT, and WINDOW_S at least: who waits for the lock polls
    for it, with up to 25 ms between two tries in the first 128 ms.
    """
    result: Any = None
    took_s = longest_s = 0.0
    while True:
        try:
            piece = work.send(result)
        except StopIteration as end:
            pruned: Pruned = end.value
            return pruned._replace(longest_step_s=longest_s)
        time.sleep(max(piece.pause_s, took_s, WINDOW_S if took_s else 0.0))
        started = time.monotonic()
        if piece.where is Where.TRANSACTION:
            with immediate(conn):
                result = piece.function(conn)
        elif piece.where is Where.ALONE:
            result = piece.function(conn)
        else:
            with closing(open_read_only(path)) as reading, snapshot(reading):
                result = piece.function(reading)
        took_s = 0.0 if piece.where is Where.SNAPSHOT else time.monotonic() - started
        longest_s = max(longest_s, took_s)
