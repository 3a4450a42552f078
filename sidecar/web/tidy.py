"""What an erasure leaves to do in the database's files of a running server: until then they hold what was erased."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import structlog

from sidecar.errors import StoreError, UnavailableError
from sidecar.store.database import Connection, count_erasures, empty_wal, rewrite
from sidecar.store.writer import Writer

TIDY_S = 1.0
REWRITE_PAUSE_S = 60.0
REWRITE_SHARE = 100
REWRITE_AT_END_S = 5.0  # what the end of the server waits for it; it is owed then to the next start

log = structlog.get_logger("sidecar.tidy")

Result = TypeVar("Result")


class Tidy:
    """Empties the WAL and writes the file anew after erasures, whoever asked for them; one for a writer."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._is_owed = False
        self._rewrite_from = 0.0  # monotonic s
        self._tidying: asyncio.Task[None] | None = None
        self._end = asyncio.Event()
        self._lock = threading.Lock()
        self._rewriting: Connection | None = None

    async def start(self) -> None:
        """Call it after the COMMIT of an erasure, and once at the start, for what an end without order has left.

        Returns after a first try to empty the WAL; the file is written anew in the background.
        """
        try:
            emptied = await self._maintain(self._empty)
        except UnavailableError:
            return  # the server ends, and the WAL with it
        if (self._is_owed or not emptied) and (self._tidying is None or self._tidying.done()):
            self._tidying = asyncio.create_task(self._tidy(), name="tidying after erasures")

    async def finish(self) -> None:
        """Before the writer is closed: write the file anew now where that is owed, for REWRITE_AT_END_S at most."""
        self._end.set()
        if self._tidying is None or self._tidying.done():
            return
        limit = asyncio.get_running_loop().call_later(REWRITE_AT_END_S, self._interrupt)
        await asyncio.wait([self._tidying])
        limit.cancel()

    async def _maintain(self, function: Callable[[Connection], Result]) -> Result:
        return await asyncio.shield(asyncio.wrap_future(self._writer.maintain(function)))

    async def _tidy(self) -> None:
        """Write the file anew, once for all erasures up to then, and empty the WAL when no reader holds on to it.

        Beacons wait while the file is written, so at most a hundredth of the time goes to it, whoever asks how often.
        """
        while True:
            is_last = self._end.is_set()
            try:
                if self._is_owed and (is_last or time.monotonic() >= self._rewrite_from):
                    await self._rewrite()
                emptied = await self._maintain(self._empty)
            except UnavailableError:
                return  # as above
            if is_last or (emptied and not self._is_owed):
                return
            with suppress(TimeoutError):
                await asyncio.wait_for(self._end.wait(), TIDY_S)

    def _empty(self, conn: Connection) -> bool:
        self._is_owed = count_erasures(conn) > 0
        return empty_wal(conn)

    async def _rewrite(self) -> None:
        started = time.monotonic()
        try:
            await self._maintain(self._rewrite_now)
        except StoreError as error:
            log.warning(str(error))
        took_s = time.monotonic() - started
        self._rewrite_from = time.monotonic() + max(REWRITE_PAUSE_S, REWRITE_SHARE * took_s)

    def _rewrite_now(self, conn: Connection) -> None:
        with self._lock:
            self._rewriting = conn
        try:
            rewrite(conn)
        finally:
            with self._lock:
                self._rewriting = None

    def _interrupt(self) -> None:
        with self._lock:
            if self._rewriting is not None:
                self._rewriting.interrupt()
