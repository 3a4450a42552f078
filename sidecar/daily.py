"""What a running server does by itself: once a day it prunes, and every minute it looks at the size of its file."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Any

import anyio.to_thread
import structlog

from sidecar.store.database import Connection, probe_write
from sidecar.store.limit import LEVELS, MEGABYTE, Limit, level_of, used_bytes
from sidecar.store.readers import Readers
from sidecar.store.retention import Pass, Piece, Pruned, Where, make_rule, prune
from sidecar.store.writer import Writer

DAY_S = 86_400.0
FIRST_S = 5.0  # after the start, so that a server that is started every day prunes, too
JITTER_S = 5.0  # on top of it, at most: many sidecars may start at once
RETRY_S = 3600.0  # after a pass that failed
WATCH_S = 60.0

log = structlog.get_logger("sidecar.daily")


class Daily:
    """The upkeep of a running server. It writes through `writer` alone.

    `days`: RETENTION_DAYS; `upstream`: the destination's address, where there is one; `clock` gives ms since the epoch.
    """

    def __init__(
        self,
        writer: Writer,
        readers: Readers,
        *,
        days: int,
        upstream: str | None,
        timeout_ms: int,
        limit: Limit,
        clock: Callable[[], int],
        first_s: float = FIRST_S,
        watch_s: float = WATCH_S,
        rng: random.Random | None = None,
    ) -> None:
        self._writer = writer
        self._readers = readers
        self._days = days
        self._upstream = upstream
        self._timeout_ms = timeout_ms
        self._limit = limit
        self._clock = clock
        self._first_s = first_s
        self._watch_s = watch_s
        self._rng = rng or random.Random()  # noqa: S311 - spreads starts
        self._level = 0
        self._phase = "not started"
        self.last: Pruned | None = None

    def __repr__(self) -> str:
        done = "no pass yet" if self.last is None else f"last pass: {self.last}"
        return f"<Daily {self._phase}, {self._days} days: {done}>"

    async def run(self) -> None:
        """Prune and watch until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._prune_daily(), name="pruning")
            group.create_task(self._watch(), name="watching the size")

    # --- pruning -----------------------------------------------------------------------------------------------------

    async def _prune_daily(self) -> None:
        wait_s = self._first_s + self._rng.uniform(0, JITTER_S)
        while True:
            self._phase = "waiting"
            await asyncio.sleep(wait_s)
            wait_s = DAY_S
            self._phase = "pruning"
            try:
                await self.prune()
            except Exception:  # what a full disk or a reader in the way can cause must not end the server
                log.exception("pruning failed", again_in_s=RETRY_S)
                wait_s = RETRY_S

    async def prune(self) -> Pruned:
        """One pass. Beacons that come meanwhile wait for one piece of it at most."""
        now = self._clock()
        rule = None
        if self._days:
            days, upstream, timeout_ms = self._days, self._upstream, self._timeout_ms
            rule = await self._read(
                lambda conn: make_rule(conn, days=days, upstream=upstream, now=now, timeout_ms=timeout_ms)
            )
        started = time.monotonic()
        pruned = await self._do(prune(rule, now, run=time.time_ns()))
        if any(pruned[:5]):
            took_s = round(time.monotonic() - started, 1)
            log.info("pruned", **pruned._asdict() | {"longest_step_s": round(pruned.longest_step_s, 3)}, took_s=took_s)
        self.last = pruned
        return pruned

    async def _do(self, work: Pass) -> Pruned:
        result: Any = None
        while True:
            try:
                piece = work.send(result)
            except StopIteration as end:
                pruned: Pruned = end.value
                return pruned
            await asyncio.sleep(piece.pause_s)
            result = await self._run(piece)

    async def _run(self, piece: Piece) -> Any:
        """Shielded: a future cancelled under the writer would end its thread."""
        if piece.where is Where.TRANSACTION:
            return await asyncio.shield(asyncio.wrap_future(self._writer.call(piece.function)))
        if piece.where is Where.ALONE:
            return await asyncio.shield(asyncio.wrap_future(self._writer.maintain(piece.function)))
        return await self._read(piece.function)

    async def _read(self, function: Callable[[Connection], Any]) -> Any:
        def work() -> Any:
            with self._readers.snapshot() as conn:
                return function(conn)

        return await anyio.to_thread.run_sync(work)

    # --- watching ----------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        while True:
            try:
                if self._writer.failure:
                    # No beacon may come while /healthz says 503, so a try of our own finds out that there is room.
                    await asyncio.shield(asyncio.wrap_future(self._writer.call(probe_write)))
                if self._limit.limit_bytes:
                    self._warn(await self._read(used_bytes))
            except Exception as error:  # as above
                log.warning("the database cannot be looked at or written", reason=str(error))
            await asyncio.sleep(self._watch_s)

    def _warn(self, used: int) -> None:
        """A line when a level is reached, and when it is left again; not every minute."""
        level = level_of(used, self._limit.limit_bytes)
        said = {"used_mb": round(used / MEGABYTE, 1), "limit_mb": round(self._limit.limit_bytes / MEGABYTE, 1)}
        if level > self._level:
            refused = ": new sessions are refused" if level == LEVELS[-1] else ""
            log.warning(f"the database has reached {level} % of SIDECAR_MAX_DATABASE_MB{refused}", **said)
        elif level < self._level:
            log.info("the database is smaller again", **said)
        self._level = level
