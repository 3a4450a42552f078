"""The shipper: claim, send, settle; one request in flight, all state in the database.

A batch that is open at the start is simply sent again: same bytes, same id. So a process killed anywhere in between
costs a repeat, which the id and the revisions make harmless.
"""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import anyio.to_thread
import structlog

from sidecar.errors import DestinationBusyError
from sidecar.ship.decide import ASKED_MAX_MS, WAIT_FIRST_MS, WAIT_MAX_MS, Act, Settlement, decide
from sidecar.ship.lock import ShipLock
from sidecar.ship.sinks import Answer, Sink, Verdict
from sidecar.store import outbox, shipping
from sidecar.store.database import Connection, open_read_only, snapshot
from sidecar.store.outbox import Batch, Destination, Draft
from sidecar.store.tombstones import ERASED
from sidecar.store.writer import Writer

# What an attempt can come to, as /api/shipping and /metrics name it.
OUTCOMES = {
    Act.CONFIRM: "confirmed",
    Act.WAIT: "again",
    Act.SPLIT: "split",
    Act.PARK: "parked",
    Act.BLOCK: "blocked",
}
LOCK_WAIT_S = 10.0
_DRAFTS_MAX = 10  # tries to claim before what is drafted has changed
# After each document (0.2 ms of Python) the threads that answer beacons go first. Without it they wait for the
# interpreter's lock, 5 ms at every hand-over, as long as a batch is drafted; with it a draft takes twice as long.
_REST_S = 0.0002

log = structlog.get_logger("sidecar.ship")

Result = TypeVar("Result")


def settle(
    conn: Connection, batch: Batch, answer: Answer, settlement: Settlement, now: int, make_id: Callable[[], str]
) -> None:
    """Write what was decided; for the writer."""
    destination = outbox.read_destination(conn)
    if destination is None:
        return
    match settlement.act:
        case Act.CONFIRM:
            outbox.confirm(conn, batch.batch_key, rejected=settlement.rejected, answer=answer.text, now=now)
        case Act.SPLIT:
            if settlement.too_large:
                outbox.remember_size(conn, destination.address, batch.body_bytes, now)
            outbox.split(conn, batch.batch_key, make_id=make_id, answer=answer.text, now=now)
        case Act.PARK:
            outbox.park(conn, batch.batch_key, reason=answer.text, now=now)
        case Act.WAIT:
            outbox.note_answer(conn, batch.batch_key, answer.text)
            outbox.postpone(
                conn,
                destination.address,
                reason=answer.reason,
                until=settlement.until,
                failures=settlement.failures,
                now=now,
                asked=settlement.asked,
            )
            return
        case Act.BLOCK:
            outbox.note_answer(conn, batch.batch_key, answer.text)
            failures, until = settlement.failures, settlement.until
            outbox.block(conn, destination.address, reason=answer.reason, until=until, failures=failures, now=now)
            return
    outbox.make_ready(conn, destination.address, now)


class Passed(NamedTuple):
    """What one pass did. `confirmed`, `parked`: sessions; `requests`: attempts; `state`: of the destination, after.

    `erasures`: tombstones confirmed; a refused one counts as parked.
    """

    requests: int
    batches: int
    confirmed: int
    parked: int
    waiting: int
    state: str
    reason: str | None
    erasures: int = 0

    @property
    def sentence(self) -> str:
        """One line for a person."""
        text = f"{self.confirmed} sessions shipped in {self.batches} batches ({self.requests} requests)"
        if self.erasures:
            text += f", {self.erasures} erasures told"
        if self.parked:
            text += f", {self.parked} parked"
        if self.waiting:
            text += f", {self.waiting} still waiting"
        return text if self.reason is None else f"{text}; {self.state}: {self.reason}"


class _Tally:
    def __init__(self) -> None:
        self.requests = self.batches = self.confirmed = self.parked = self.erasures = 0


class _Order(NamedTuple):
    """What one pass is to do: sessions finished at `now`, and unfinished ones up to the revision `ceiling`."""

    now: int
    ceiling: int | None
    by_hand: bool


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _rest() -> None:
    time.sleep(_REST_S)


def _new_id() -> str:
    return str(uuid.uuid4())


class Shipper:
    """Ships from the database at `path` to `sink`. It writes through `writer` and keeps nothing in memory.

    `clock` gives ms since the epoch, `make_id` batch ids, `rng` spreads the waits.
    """

    def __init__(
        self,
        writer: Writer,
        path: Path,
        sink: Sink,
        *,
        timeout_ms: int,
        interval_s: float = 60.0,
        lines_max: int = 500,
        bytes_max: int = outbox.BATCH_BYTES_MAX,
        lock_wait_s: float = LOCK_WAIT_S,
        clock: Callable[[], int] = _now_ms,
        make_id: Callable[[], str] = _new_id,
        rng: random.Random | None = None,
    ) -> None:
        self._writer = writer
        self._path = path
        self._sink = sink
        self._timeout_ms = timeout_ms
        self._interval_s = interval_s
        self._lines_max = lines_max
        self._bytes_max = bytes_max
        self._lock = ShipLock(path)
        self._lock_wait_s = lock_wait_s
        self._clock = clock
        self._make_id = make_id
        self._rng = rng or random.Random()  # noqa: S311 - spreads waits
        self._phase = "not started"
        self.requests_count = 0
        self.confirmed_count = 0
        self.parked_count = 0
        self.failures_count = 0  # passes in a row that raised
        self.attempts = dict.fromkeys(OUTCOMES.values(), 0)  # answered, since this process began

    def __repr__(self) -> str:
        done = f"{self.requests_count} requests, {self.confirmed_count} sessions confirmed, {self.parked_count} parked"
        return f"<Shipper {self._phase}: {done}>"

    async def run(self) -> None:
        """Ship until cancelled: every interval, or sooner where a wait ends. Survives whatever a pass raises."""
        begun = False
        try:
            while True:
                try:
                    await self._pass(begun=begun)
                    pause_s = await self._read_pause_s()
                    self.failures_count, begun = 0, True
                except DestinationBusyError:
                    pause_s = min(self._interval_s, 1.0)
                except Exception:
                    pause_s = min(WAIT_MAX_MS, WAIT_FIRST_MS << min(self.failures_count, 16)) / 1000
                    self.failures_count += 1
                    log.exception("a shipping pass failed", failures=self.failures_count)
                self._phase = "idle" if not self.failures_count else "failing"
                await asyncio.sleep(pause_s)
        finally:
            self._phase = "stopped"
            await self._sink.close()

    async def ship_once(
        self, *, include_unfinished: bool = False, show: Callable[[int, int], None] | None = None
    ) -> Passed:
        """One pass over what is finished now (`include_unfinished`: over all that has not been shipped).

        A person asked for it, so waits of our own do not count; silence that the destination asked for does.
        `show` is told, first and after each batch, how many sessions are confirmed or parked, and of how many.
        Raises DestinationBusyError where another process ships for longer than the lock's wait.
        """
        try:
            tally = await self._pass(by_hand=True, include_unfinished=include_unfinished, show=show)
            told = await self._read(lambda conn: shipping.read_shipping(conn, self._clock(), self._timeout_ms))
        finally:
            self._phase = "idle"
            await self._sink.close()
        waiting, state, reason = told["waitingSessions"], told["state"], told["reason"]
        done = (tally.requests, tally.batches, tally.confirmed, tally.parked)
        return Passed(*done, waiting, state, reason, tally.erasures)

    async def _pass(
        self,
        *,
        by_hand: bool = False,
        begun: bool = False,
        include_unfinished: bool = False,
        show: Callable[[int, int], None] | None = None,
    ) -> _Tally:
        async with self._lock.held(self._lock_wait_s if by_hand else 0):
            self._phase = "working"
            now, tally = self._clock(), _Tally()
            if not begun or await self._read(self._find_destination) is None:
                await self._write(lambda conn: outbox.set_destination(conn, self._sink.address, now))
            ceiling = None
            if include_unfinished:
                ceiling = await self._read(lambda conn: outbox.find_ceiling(conn, now, self._timeout_ms))
            order = _Order(now, ceiling, by_hand)
            if show is None:
                while await self._step(order, tally):
                    pass
                return tally
            total = await self._read(lambda conn: shipping.count_waiting(conn, now, self._timeout_ms, ceiling))
            show(0, total)
            while await self._step(order, tally):
                show(tally.confirmed + tally.parked, total)
        return tally

    async def _step(self, order: _Order, tally: _Tally) -> bool:
        """One batch, from claim to settlement. False where the pass is over."""
        destination = await self._read(self._find_destination)
        if destination is None or self._must_wait(destination, order):
            return False
        batch = await self._next(order, destination)
        if batch is None:
            return False
        if not await self._write(lambda conn: outbox.count_attempt(conn, batch.batch_key)):
            return True  # erased in the meantime: the next step claims what is left of it
        tally.requests += 1
        self.requests_count += 1
        answer = await self._send(batch)
        now = self._clock()
        settlement = decide(answer, batch, destination, now, self._rng)
        await self._write(lambda conn: settle(conn, batch, answer, settlement, now, self._make_id))
        self._count(batch, answer, settlement, tally)
        if settlement.act in (Act.WAIT, Act.BLOCK):
            wait_s = round((settlement.until - now) / 1000, 1)
            said = {"reason": answer.reason, "detail": answer.text, "act": settlement.act, "wait_s": wait_s}
            log.warning("the destination did not take a batch", **said)
            return False
        return True

    def _find_destination(self, conn: Connection) -> Destination | None:
        """The sink's destination, where it is the current one and on."""
        destination = outbox.read_destination(conn)
        known = destination and destination.address == self._sink.address and destination.state != "off"
        return destination if known else None

    def _must_wait(self, destination: Destination, order: _Order) -> bool:
        until = destination.asked_until if order.by_hand else destination.next_attempt_at
        left = until - self._clock()
        return 0 < left <= ASKED_MAX_MS  # more than the longest wait: the clock was set back

    async def _next(self, order: _Order, destination: Destination) -> Batch | None:
        batch = await self._read(outbox.next_open)
        for _ in range(_DRAFTS_MAX):
            if batch is not None:
                return batch
            draft = await self._read(partial(self._draft, order=order, destination=destination))
            if draft is None:
                return None
            batch_id, now = self._make_id(), self._clock()
            batch = await self._write(
                partial(outbox.claim, draft=draft, address=destination.address, batch_id=batch_id, now=now)
            )
        return batch

    def _draft(self, conn: Connection, *, order: _Order, destination: Destination) -> Draft | None:
        bytes_max = self._bytes_max
        if destination.bytes_max is not None and destination.bytes_max_until > order.now:
            bytes_max = min(bytes_max, destination.bytes_max)
        return outbox.draft_batch(
            conn,
            lines_max=self._lines_max,
            bytes_max=bytes_max,
            now=order.now,
            timeout_ms=self._timeout_ms,
            ceiling=order.ceiling,
            rest=None if order.by_hand else _rest,
        )

    async def _send(self, batch: Batch) -> Answer:
        try:
            return await self._sink.send(batch, self._clock())
        except Exception as error:
            log.exception("a destination raised", sink=repr(self._sink))
            return Answer(Verdict.AGAIN, f"no answer: {type(error).__name__}")

    def _count(self, batch: Batch, answer: Answer, settlement: Settlement, tally: _Tally) -> None:
        self.attempts[OUTCOMES[settlement.act]] += 1
        parked = 0
        if settlement.act is Act.CONFIRM:
            lines = range(batch.lines_count)
            parked = sum(line in lines and reason != ERASED for line, reason in settlement.rejected.items())
            tally.batches += 1
            confirmed = batch.lines_count - parked
            if batch.holds_tombstones:
                tally.erasures += confirmed
            else:
                tally.confirmed += confirmed
                self.confirmed_count += confirmed
        elif settlement.act is Act.PARK:
            parked = 1
        if parked:
            refused = [reason for line, reason in sorted(settlement.rejected.items()) if reason != ERASED]
            why = refused[0] if refused else answer.text
            log.warning("the destination refused for good: `sidecar parked list`", lines=parked, reason=why)
        tally.parked += parked
        self.parked_count += parked

    async def _read_pause_s(self) -> float:
        destination = await self._read(self._find_destination)
        if destination is None or destination.state == "ready":
            return self._interval_s
        return min(self._interval_s, max(0.05, (destination.next_attempt_at - self._clock()) / 1000))

    async def _read(self, function: Callable[[Connection], Result]) -> Result:
        """A read in one snapshot, in a thread, on a connection of its own: it cannot be closed under its feet."""

        def work() -> Result:
            conn = open_read_only(self._path)
            try:
                with snapshot(conn):
                    return function(conn)
            finally:
                conn.close()

        return await anyio.to_thread.run_sync(work)

    async def _write(self, function: Callable[[Connection], Result]) -> Result:
        """A write through the writer. Shielded: a future cancelled under the writer would end its thread."""
        return await asyncio.shield(asyncio.wrap_future(self._writer.call(function)))
