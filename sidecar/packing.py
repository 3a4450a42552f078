"""Sessions at rest and their web vitals are packed for the dashboard, a little at a time (store/samples.py)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

import structlog

from sidecar.errors import UnavailableError
from sidecar.store.readers import Readers
from sidecar.store.samples import list_resting, put_chunks
from sidecar.store.writer import Writer

INTERVAL_S = 60.0
PAUSE_S = 0.1  # between two transactions
CHUNKS_A_TURN = 1  # beacons wait for 13 ms

log = structlog.get_logger("sidecar.packing")


class Packer:
    """Makes missing rows of `samples` until cancelled. A reading without them gives the same figures, later.

    `rest_ms`: how long sessions must not have changed. `clock` gives ms since the epoch.
    """

    def __init__(
        self,
        writer: Writer,
        readers: Readers,
        *,
        rest_ms: int,
        clock: Callable[[], int],
        interval_s: float = INTERVAL_S,
        pause_s: float = PAUSE_S,
    ) -> None:
        self._writer = writer
        self._readers = readers
        self._rest_ms = rest_ms
        self._clock = clock
        self._interval_s = interval_s
        self._pause_s = pause_s
        self._phase = "not started"
        self.chunks_count = 0

    def __repr__(self) -> str:
        return f"<Packer {self._phase}: {self.chunks_count} chunks>"

    async def run(self) -> None:
        """Look every interval; survives whatever a round raises."""
        try:
            while True:
                self._phase = "working"
                try:
                    await self._round()
                except UnavailableError as error:
                    log.info("packing waits", reason=str(error))
                except Exception:
                    log.exception("packing failed")
                self._phase = "idle"
                await asyncio.sleep(self._interval_s)
        finally:
            self._phase = "stopped"

    async def _round(self) -> None:
        chunks = await asyncio.to_thread(self._find)
        for first in range(0, len(chunks), CHUNKS_A_TURN):
            turn = chunks[first : first + CHUNKS_A_TURN]
            # Shielded: a future cancelled under the writer would end its thread.
            future = self._writer.call(partial(put_chunks, chunks=turn))
            self.chunks_count += await asyncio.shield(asyncio.wrap_future(future))
            await asyncio.sleep(self._pause_s)

    def _find(self) -> list[int]:
        with self._readers.snapshot() as conn:
            return list_resting(conn, self._clock(), self._rest_ms)
