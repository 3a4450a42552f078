"""One process ships from a database file at a time."""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from sidecar.errors import DestinationBusyError

_POLL_S = 0.05


class ShipLock:
    """One process ships from a file at a time: `flock` on `<database>.ship.lock`, gone with the process."""

    def __init__(self, path: Path) -> None:
        self.path = Path(f"{path}.ship.lock")

    @asynccontextmanager
    async def held(self, wait_s: float) -> AsyncIterator[None]:
        """Hold the lock for the length of the block. Raises DestinationBusyError where it is not free in time.

        It is polled, without a thread: a try takes 10 us, and a thread that waits could not be cancelled.
        """
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            deadline = time.monotonic() + wait_s
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        raise DestinationBusyError(
                            f"another process is shipping from this database (it holds {self.path.name})"
                        ) from None
                await asyncio.sleep(_POLL_S)
            yield
        finally:
            os.close(descriptor)
