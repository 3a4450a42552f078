"""The outbox: finished sessions become batches, and batches stay until the destination has answered for each line.

A batch is drafted from one snapshot (`draft_batch`, read-only: 500 documents of ten facts take 350 ms), then claimed in
one write transaction (16 ms) that leaves out what has changed since. From then on its bytes are frozen. Functions take
`conn` and never begin or commit; the ones that settle do nothing to a batch that is no longer open.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from json import dumps
from typing import Any, NamedTuple

from sidecar.store.database import Connection
from sidecar.store.documents import read_session, to_line, tombstone_object
from sidecar.store.tombstones import ERASED, read_tombstone

BATCH_BYTES_MAX = 32 * 1024 * 1024  # unpacked
BATCHES_KEPT = 1000
SIZE_REMEMBERED_MS = 24 * 3_600_000
_WALK_FACTOR = 20  # candidates looked at for a line: those of other sites are passed over
_FOR_EVER = 2**63 - 1
_TOMBSTONE = b'{"type":"tombstone"'  # how the first line begins


class Line(NamedTuple):
    """A session document or a tombstone, up to a revision, as bytes without their line end. One of the keys is None."""

    session_key: int | None
    tombstone_key: int | None
    revision: int
    text: bytes

    @property
    def subject(self) -> tuple[int | None, int | None]:
        """The session or tombstone that it is of."""
        return self.session_key, self.tombstone_key


class Draft(NamedTuple):
    """A batch that is not claimed yet. `body` is the gzip of the lines, `body_bytes` their length unpacked."""

    site: str
    lines: list[Line]
    body: bytes
    body_bytes: int


class Batch(NamedTuple):
    """An open batch. `body` (gzip) is the same for every attempt; `attempts` counts the ones begun. Times in ms."""

    batch_key: int
    batch_id: str
    site: str
    body: bytes
    body_bytes: int
    lines_count: int
    attempts: int
    claimed_at: int

    @property
    def holds_tombstones(self) -> bool:
        """Whether its lines are tombstones; they never share a batch with documents."""
        return zlib.decompressobj(wbits=31).decompress(self.body, len(_TOMBSTONE)) == _TOMBSTONE


class Destination(NamedTuple):
    """The current destination. `state` is `ready`, `waiting`, `blocked` or `off`; times in ms, sizes in bytes."""

    address: str
    state: str
    reason: str | None
    since: int
    failures: int
    next_attempt_at: int
    asked_until: int
    bytes_max: int | None
    bytes_max_until: int
    confirmed_at: int | None


# --- the destination -------------------------------------------------------------------------------------------------

_DESTINATION = f"SELECT {', '.join(Destination._fields)} FROM destinations WHERE current = 1"
_PUT_DESTINATION = """
INSERT INTO destinations (address, current, state, since) VALUES (?1, 1, 'ready', ?2)
ON CONFLICT (address) DO UPDATE SET current = 1, state = 'ready', reason = NULL, since = ?2, failures = 0,
    next_attempt_at = 0, asked_until = 0, bytes_max = NULL, bytes_max_until = 0, confirmed_at = NULL"""
_SET_STATE = """
UPDATE destinations SET since = iif(state = ?2, since, ?3), state = ?2, reason = ?4, failures = ?5,
    next_attempt_at = ?6, asked_until = ?7
WHERE address = ?1 AND current = 1"""


def read_destination(conn: Connection) -> Destination | None:
    """The destination that confirmations belong to; None where there has never been one."""
    row = conn.execute(_DESTINATION).fetchone()
    return None if row is None else Destination(*row)


def set_destination(conn: Connection, address: str | None, now: int) -> bool:
    """Name the destination of the settings (None: there is none). True where it is another one than before.

    Confirmations belong to one destination: a new one gets everything held, so what the old one confirmed, refused or
    has not answered yet is forgotten. The same one again loses only a block (somebody may have mended its cause).
    """
    current = read_destination(conn)
    if address is None:
        if current:
            conn.execute(_SET_STATE, (current.address, "off", now, None, 0, 0, 0))
        return False
    if current and current.address == address:
        if current.state == "off":
            conn.execute(_SET_STATE, (address, "ready", now, None, 0, 0, 0))
        elif current.state == "blocked":
            conn.execute("UPDATE destinations SET next_attempt_at = 0 WHERE address = ?", (address,))
        return False
    conn.execute("UPDATE destinations SET current = 0, state = 'off', since = ? WHERE current = 1", (now,))
    for (batch_key,) in conn.execute("SELECT batch_key FROM batches WHERE state = 'open'").fetchall():
        _close(conn, batch_key, "dropped", "the destination has changed", now)
    conn.execute("DELETE FROM parked")
    conn.execute("UPDATE sessions SET shipped_revision = -1, shipped_at = NULL WHERE shipped_revision <> -1")
    conn.execute("UPDATE tombstones SET shipped_revision = -1, refusal = NULL WHERE shipped_revision <> -1")
    conn.execute(_PUT_DESTINATION, (address, now))
    return True


def postpone(
    conn: Connection, address: str, *, reason: str, until: int, failures: int, now: int, asked: bool = False
) -> None:
    """No attempt before `until` (ms); `asked`: because the destination said so, which binds a person's attempt, too."""
    conn.execute(_SET_STATE, (address, "waiting", now, reason, failures, until, until if asked else 0))


def block(conn: Connection, address: str, *, reason: str, until: int, failures: int, now: int) -> None:
    """The destination refuses all: somebody has to do something. The next attempt is at `until` (ms)."""
    conn.execute(_SET_STATE, (address, "blocked", now, reason, failures, until, 0))


def make_ready(conn: Connection, address: str, now: int) -> None:
    """The destination has answered for a batch: no wait, no failures."""
    conn.execute(_SET_STATE, (address, "ready", now, None, 0, 0, 0))


def remember_size(conn: Connection, address: str, refused_bytes: int, now: int) -> None:
    """After a 413: for a day, batches are at most half as large (unpacked) as the smallest one that was refused."""
    conn.execute(
        """UPDATE destinations SET bytes_max_until = ?3,
        bytes_max = iif(bytes_max_until > ?4, min(coalesce(bytes_max, ?2), ?2), ?2) WHERE address = ?1""",
        (address, max(1, refused_bytes // 2), now + SIZE_REMEMBERED_MS, now),
    )


# --- claiming --------------------------------------------------------------------------------------------------------

# Seeks in the partial index sessions_to_ship; what it holds and is not finished is passed over by the bounds.
_CANDIDATES = """
SELECT s.session_key, s.revision, f.site FROM sessions AS s CROSS JOIN funnels AS f ON f.funnel_key = s.funnel_key
WHERE s.revision > s.shipped_revision AND s.revision > ?1 AND s.revision < ?2
AND NOT EXISTS (SELECT 1 FROM batch_lines AS l WHERE l.session_key = s.session_key)
ORDER BY s.revision"""
_TOMBSTONES = """
SELECT t.tombstone_key, t.revision, t.site FROM tombstones AS t WHERE t.revision > t.shipped_revision
AND NOT EXISTS (SELECT 1 FROM batch_lines AS l WHERE l.tombstone_key = t.tombstone_key)
ORDER BY t.revision LIMIT ?"""
_STILL = """
SELECT session_key, NULL, revision FROM sessions WHERE session_key IN (SELECT value FROM json_each(?1))
AND revision > shipped_revision
AND NOT EXISTS (SELECT 1 FROM batch_lines AS l WHERE l.session_key = sessions.session_key)
UNION ALL
SELECT NULL, tombstone_key, revision FROM tombstones WHERE tombstone_key IN (SELECT value FROM json_each(?2))
AND revision > shipped_revision
AND NOT EXISTS (SELECT 1 FROM batch_lines AS l WHERE l.tombstone_key = tombstones.tombstone_key)"""
_ADD_BATCH = """
INSERT INTO batches (batch_id, address, site, state, body, body_bytes, lines_count, claimed_at)
VALUES (?, ?, ?, 'open', ?, ?, ?, ?) RETURNING batch_key"""
_OPEN = f"SELECT {', '.join(Batch._fields)} FROM batches WHERE state = 'open'"


def finished_ranges(now: int, timeout_ms: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """The revisions r of finished sessions as low < r < high: long past, and far ahead of the clock."""
    return (-1, now - timeout_ms), (now + timeout_ms, _FOR_EVER)


def find_ceiling(conn: Connection, now: int, timeout_ms: int) -> int:
    """The greatest revision that waits and is not ahead of the clock by more than the timeout; -1 where none does.

    One pass over unfinished sessions too ends there: what changes while it goes on is left to the next one.
    """
    found = conn.execute(
        "SELECT max(revision) FROM sessions WHERE revision > shipped_revision AND revision <= ?", (now + timeout_ms,)
    ).fetchone()[0]
    return -1 if found is None else int(found)


def freeze(site: str, lines: Sequence[Line]) -> Draft:
    """The bytes of a batch; the same lines give the same bytes."""
    plain = b"".join(line.text + b"\n" for line in lines)
    return Draft(site, list(lines), gzip.compress(plain, mtime=0), len(plain))


def draft_batch(
    conn: Connection,
    *,
    lines_max: int,
    now: int,
    timeout_ms: int,
    bytes_max: int = BATCH_BYTES_MAX,
    ceiling: int | None = None,
    rest: Callable[[], object] | None = None,
) -> Draft | None:
    """The next batch, oldest revision first, of one site; None where nothing waits. Call it inside a snapshot.

    Tombstones come first, in batches of their own: an erasure does not wait behind sessions, nor for them to finish.
    `ceiling`: unfinished sessions up to that revision as well. A batch closes at `lines_max` sessions or before
    `bytes_max` (unpacked); one larger session is a batch of its own. `rest` is called after each line.
    """
    waiting = conn.execute(_TOMBSTONES, (_WALK_FACTOR * lines_max,)).fetchall()
    if waiting:
        graves = ((None, key, revision, site) for key, revision, site in waiting)
        return _fill(
            graves, lambda _, key: to_line(tombstone_object(read_tombstone(conn, key))), lines_max, bytes_max, rest
        )
    low, high = finished_ranges(now, timeout_ms)
    ranges = (low, high) if ceiling is None else ((-1, max(low[1], ceiling + 1)), high)
    sessions = ((key, None, revision, site) for key, revision, site in _walk(conn, ranges, _WALK_FACTOR * lines_max))
    return _fill(sessions, lambda key, _: to_line(read_session(conn, key, now, timeout_ms)), lines_max, bytes_max, rest)


def _fill(
    candidates: Iterable[tuple[Any, Any, int, str]],
    write: Callable[[Any, Any], str],
    lines_max: int,
    bytes_max: int,
    rest: Callable[[], object] | None,
) -> Draft | None:
    """A draft of the first candidates (session key, tombstone key, revision, site) of the first one's site."""
    lines: list[Line] = []
    batch_site, size = None, 0
    for session_key, tombstone_key, revision, site in candidates:
        if batch_site not in (None, site):
            continue
        batch_site = site
        text = write(session_key, tombstone_key).encode()
        size += len(text) + 1
        if lines and size > bytes_max:
            break
        lines.append(Line(session_key, tombstone_key, revision, text))
        if len(lines) == lines_max:
            break
        if rest is not None:
            rest()
    return None if batch_site is None else freeze(batch_site, lines)


def _walk(conn: Connection, ranges: Iterable[tuple[int, int]], most: int) -> Iterator[tuple[int, int, str]]:
    left = most
    for bounds in ranges:
        for row in conn.execute(_CANDIDATES, bounds):
            if not left:
                return
            left -= 1
            yield row


def claim(conn: Connection, draft: Draft, *, address: str, batch_id: str, now: int) -> Batch | None:
    """Make a draft an open batch. A session that has changed or gone since it was read is left out.

    None where nothing is left of it, or where `address` is no longer the destination.
    """
    destination = read_destination(conn)
    if destination is None or destination.address != address:
        return None
    subjects = zip(*(line.subject for line in draft.lines), strict=True)
    wanted = [dumps([key for key in keys if key is not None]) for keys in subjects]
    still = {(session, tombstone): revision for session, tombstone, revision in conn.execute(_STILL, wanted)}
    lines = [line for line in draft.lines if still.get(line.subject) == line.revision]
    if not lines:
        return None
    if len(lines) < len(draft.lines):
        draft = freeze(draft.site, lines)
    return _open(conn, draft, address, batch_id, now)


def _open(conn: Connection, draft: Draft, address: str, batch_id: str, now: int) -> Batch:
    said = (batch_id, address, draft.site, draft.body, draft.body_bytes, len(draft.lines), now)
    batch_key = conn.execute(_ADD_BATCH, said).fetchone()[0]
    conn.executemany(
        "INSERT INTO batch_lines (batch_key, line, session_key, tombstone_key, revision) VALUES (?, ?, ?, ?, ?)",
        [(batch_key, number, *line.subject, line.revision) for number, line in enumerate(draft.lines)],
    )
    return Batch(batch_key, batch_id, draft.site, draft.body, draft.body_bytes, len(draft.lines), 0, now)


def next_open(conn: Connection) -> Batch | None:
    """The oldest batch that has no final answer yet."""
    row = conn.execute(f"{_OPEN} ORDER BY batch_key LIMIT 1").fetchone()
    return None if row is None else Batch(*row)


def count_attempt(conn: Connection, batch_key: int) -> bool:
    """Note, before sending, that an attempt begins. False where the batch is no longer open: do not send it."""
    done = conn.execute(
        "UPDATE batches SET attempts = attempts + 1 WHERE batch_key = ? AND state = 'open'", (batch_key,)
    )
    return bool(done.rowcount)


def note_answer(conn: Connection, batch_key: int, answer: str) -> None:
    """Keep the last answer to a batch that stays open, for people."""
    conn.execute("UPDATE batches SET answer = ? WHERE batch_key = ? AND state = 'open'", (answer, batch_key))


# --- settling --------------------------------------------------------------------------------------------------------

_CONFIRM = """
UPDATE sessions SET shipped_revision = max(shipped_revision, l.revision), shipped_at = ?3
FROM batch_lines AS l WHERE l.batch_key = ?1 AND sessions.session_key = l.session_key
AND l.line NOT IN (SELECT value FROM json_each(?2))"""
_UNPARK = """
DELETE FROM parked WHERE session_key IN (SELECT session_key FROM batch_lines AS l
WHERE l.batch_key = ?1 AND l.line NOT IN (SELECT value FROM json_each(?2)))"""
_PARK = """
INSERT INTO parked (session_key, revision, confirmed_revision, reason, batch_id, parked_at)
SELECT l.session_key, l.revision, s.shipped_revision, refused.value, b.batch_id, ?3
FROM json_each(?2) AS refused
CROSS JOIN batch_lines AS l ON l.batch_key = ?1 AND l.line = CAST(refused.key AS INTEGER)
CROSS JOIN batches AS b ON b.batch_key = l.batch_key
CROSS JOIN sessions AS s ON s.session_key = l.session_key
WHERE true
ON CONFLICT (session_key) DO UPDATE SET revision = excluded.revision, reason = excluded.reason,
    batch_id = excluded.batch_id, parked_at = excluded.parked_at, discarded_at = NULL"""
_CONFIRM_TOMBSTONES = """
UPDATE tombstones SET shipped_revision = max(shipped_revision, l.revision), refusal = NULL
FROM batch_lines AS l WHERE l.batch_key = ?1 AND tombstones.tombstone_key = l.tombstone_key
AND l.line NOT IN (SELECT value FROM json_each(?2))"""
_REFUSE_TOMBSTONES = """
UPDATE tombstones SET shipped_revision = max(shipped_revision, l.revision), refusal = refused.value
FROM json_each(?2) AS refused
CROSS JOIN batch_lines AS l ON l.batch_key = ?1 AND l.line = CAST(refused.key AS INTEGER)
WHERE tombstones.tombstone_key = l.tombstone_key"""
_SET_ASIDE = """
UPDATE sessions SET shipped_revision = max(shipped_revision, l.revision)
FROM batch_lines AS l WHERE l.batch_key = ?1 AND sessions.session_key = l.session_key
AND l.line IN (SELECT CAST(key AS INTEGER) FROM json_each(?2))"""


def _close(conn: Connection, batch_key: int, state: str, answer: str, now: int) -> None:
    conn.execute("DELETE FROM batch_lines WHERE batch_key = ?", (batch_key,))
    conn.execute(
        "UPDATE batches SET state = ?, body = NULL, settled_at = ?, answer = ? WHERE batch_key = ?",
        (state, now, answer, batch_key),
    )


def _is_open(conn: Connection, batch_key: int) -> bool:
    found = conn.execute("SELECT 1 FROM batches WHERE batch_key = ? AND state = 'open'", (batch_key,)).fetchone()
    return found is not None


def _park_lines(conn: Connection, batch_key: int, refused: Mapping[int, str], now: int) -> None:
    said = dumps(refused)
    conn.execute(_PARK, (batch_key, said, now))
    conn.execute(_SET_ASIDE, (batch_key, said))
    conn.execute(_REFUSE_TOMBSTONES, (batch_key, said))


def confirm(conn: Connection, batch_key: int, *, rejected: Mapping[int, str], answer: str, now: int) -> bool:
    """The destination has taken the batch: each session is shipped up to the revision in it, not its present one.

    `rejected` (line -> reason) are parked (a tombstone keeps the reason itself and goes again when it changes or is
    requeued); `erased` counts as confirmed. Of all but open batches the last 1,000 stay.
    """
    if not _is_open(conn, batch_key):
        return False
    refused = {line: reason for line, reason in rejected.items() if reason != ERASED}
    lines = dumps(list(refused))
    conn.execute(_CONFIRM, (batch_key, lines, now))
    conn.execute(_CONFIRM_TOMBSTONES, (batch_key, lines))
    conn.execute(_UNPARK, (batch_key, lines))
    if refused:
        _park_lines(conn, batch_key, refused, now)
    conn.execute(
        "UPDATE destinations SET confirmed_at = ?2 WHERE address = (SELECT address FROM batches WHERE batch_key = ?1)",
        (batch_key, now),
    )
    _close(conn, batch_key, "confirmed", answer, now)
    conn.execute(
        "DELETE FROM batches WHERE state <> 'open' AND batch_key <= (SELECT max(batch_key) FROM batches) - ?",
        (BATCHES_KEPT,),
    )
    return True


def park(conn: Connection, batch_key: int, *, reason: str, now: int) -> bool:
    """The destination refuses the batch for good, and it holds one line (or none can be told from the others)."""
    if not _is_open(conn, batch_key):
        return False
    found = conn.execute("SELECT line FROM batch_lines WHERE batch_key = ?", (batch_key,)).fetchall()
    _park_lines(conn, batch_key, {line: reason for (line,) in found}, now)
    _close(conn, batch_key, "parked", reason, now)
    return True


def split(conn: Connection, batch_key: int, *, make_id: Callable[[], str], answer: str, now: int) -> bool:
    """Two halves, cut from the frozen lines, take the place of a batch of two lines or more, under new ids."""
    row = conn.execute(
        "SELECT body, site, address, claimed_at FROM batches WHERE batch_key = ? AND state = 'open'", (batch_key,)
    ).fetchone()
    if row is None:
        return False
    body, site, address, claimed_at = row
    keys = conn.execute(
        "SELECT session_key, tombstone_key, revision FROM batch_lines WHERE batch_key = ? ORDER BY line", (batch_key,)
    ).fetchall()
    texts = gzip.decompress(body).split(b"\n")[:-1]
    lines = [Line(session, grave, revision, text) for (session, grave, revision), text in zip(keys, texts, strict=True)]
    _close(conn, batch_key, "split", answer, now)
    middle = len(lines) // 2
    for half in (lines[:middle], lines[middle:]):
        _open(conn, freeze(site, half), address, make_id(), claimed_at)
    return True


# --- by hand ---------------------------------------------------------------------------------------------------------


def requeue(conn: Connection, session_key: int) -> bool:
    """Send a parked session again, as it is now. False where it is not parked."""
    conn.execute(
        """UPDATE sessions SET shipped_revision = p.confirmed_revision FROM parked AS p
        WHERE p.session_key = ?1 AND sessions.session_key = ?1""",
        (session_key,),
    )
    return bool(conn.execute("DELETE FROM parked WHERE session_key = ?", (session_key,)).rowcount)


def requeue_all(conn: Connection, *, before: int, most: int) -> int:
    """`requeue` for at most `most` sessions that were parked until `before` (ms) and not discarded; how many."""
    sql = "SELECT session_key FROM parked WHERE discarded_at IS NULL AND parked_at <= ? LIMIT ?"
    return sum(requeue(conn, key) for (key,) in conn.execute(sql, (before, most)).fetchall())


def requeue_tombstones(conn: Connection, tombstone_key: int | None = None) -> int:
    """Send the tombstones that the destination refused again, or the one; how many. There is no discarding them."""
    sql = """UPDATE tombstones SET shipped_revision = -1, refusal = NULL
    WHERE refusal IS NOT NULL AND tombstone_key = coalesce(?, tombstone_key)"""
    return int(conn.execute(sql, (tombstone_key,)).rowcount)


def discard(conn: Connection, session_key: int, now: int) -> bool:
    """Give a parked session up at its refused revision; a change of it ships. False where it is not parked."""
    done = conn.execute(
        "UPDATE parked SET discarded_at = ? WHERE session_key = ? AND discarded_at IS NULL", (now, session_key)
    )
    return bool(done.rowcount)


def release(conn: Connection, session_keys: Collection[int], now: int) -> int:
    """Call it before sessions are erased, pruned or rewritten: drops every open batch that holds one; how many.

    The others of such a batch are claimed again, under a new id. What was parked of the sessions goes, too.
    """
    keys = dumps(list(session_keys))
    held = conn.execute(
        "SELECT DISTINCT batch_key FROM batch_lines WHERE session_key IN (SELECT value FROM json_each(?))", (keys,)
    ).fetchall()
    for (batch_key,) in held:
        _close(conn, batch_key, "dropped", "a session in it was erased", now)
    conn.execute("DELETE FROM parked WHERE session_key IN (SELECT value FROM json_each(?))", (keys,))
    return len(held)


def release_naming(conn: Connection, site: str, texts: Collection[str], now: int) -> int:
    """Drop every open batch of a site whose documents name one of these ids, also in what has changed since; how many.

    Answers that quote one are forgotten, too.
    """
    wanted = [dumps(text, ensure_ascii=False).encode() for text in texts]
    dropped = 0
    held = conn.execute("SELECT batch_key FROM batches WHERE state = 'open' AND site = ?", (site,)).fetchall()
    for (batch_key,) in held:
        body = conn.execute("SELECT body FROM batches WHERE batch_key = ?", (batch_key,)).fetchone()[0]
        plain = gzip.decompress(body)
        if any(text in plain for text in wanted):
            _close(conn, batch_key, "dropped", "a session in it was erased", now)
            dropped += 1
    conn.execute(
        """UPDATE batches SET answer = NULL WHERE site = ?1 AND answer IS NOT NULL
        AND EXISTS (SELECT 1 FROM json_each(?2) WHERE instr(answer, value) > 0)""",
        (site, dumps(list(texts))),
    )
    return dropped
