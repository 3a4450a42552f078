"""`POST /api/track/delete`: a visitor has itself erased.

It needs no key: who knows the id, which the tracker makes of 128 random bits and shows to nobody, is that visitor.
Origins and the rate limit hold as for beacons.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import TypeVar

import structlog

from sidecar.errors import MalformedBeaconError, RejectedBeaconError, StoreError, UnavailableError
from sidecar.store.database import Connection, empty_wal, rewrite
from sidecar.store.erasure import Erased, forget
from sidecar.store.writer import Writer

PATH = "/api/track/delete"
ID_MAX = 128
TIDY_S = 1.0
REWRITE_PAUSE_S = 60.0
REWRITE_SHARE = 100

log = structlog.get_logger("sidecar.forget")

Result = TypeVar("Result")


def read_id(body: bytes) -> str:
    """The visitor of a request. Raises MalformedBeaconError (no JSON object or array), RejectedBeaconError."""
    try:
        raw = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise MalformedBeaconError(f"not JSON: {error}") from None
    if not isinstance(raw, dict | list):
        raise MalformedBeaconError("neither an object nor an array")
    anonymous_id = raw.get("anonymousId") if isinstance(raw, dict) else None
    if anonymous_id is None or anonymous_id == "":
        raise RejectedBeaconError("anonymousId: is required")
    if not isinstance(anonymous_id, str):
        raise RejectedBeaconError("anonymousId: must be a string")
    if len(anonymous_id) > ID_MAX:
        raise RejectedBeaconError(f"anonymousId: must be at most {ID_MAX} characters")
    if any("\ud800" <= letter <= "\udfff" for letter in anonymous_id):
        raise RejectedBeaconError("anonymousId: holds a lone surrogate")
    return anonymous_id


class Forget:
    """Erases visitors of one site, and sees to it that their bytes go, too."""

    def __init__(self, writer: Writer, site: str) -> None:
        self._writer = writer
        self._site = site
        self._must_rewrite = False
        self._rewrite_from = 0.0  # monotonic s
        self._tidying: asyncio.Task[None] | None = None

    async def erase(self, anonymous_id: str, now: int) -> Erased:
        """Erase a visitor. Returns after COMMIT and a first try to empty the WAL. Raises UnavailableError."""
        future = self._writer.call(lambda conn: forget(conn, self._site, anonymous_id, now))
        erased = await asyncio.shield(asyncio.wrap_future(future))
        log.info("erased a visitor", **erased._asdict())
        emptied = await self._maintain(empty_wal)
        self._must_rewrite = self._must_rewrite or erased.sessions > 0
        if (self._must_rewrite or not emptied) and (self._tidying is None or self._tidying.done()):
            self._tidying = asyncio.create_task(self._tidy(), name="tidying after erasures")
        return erased

    async def _maintain(self, function: Callable[[Connection], Result]) -> Result:
        return await asyncio.shield(asyncio.wrap_future(self._writer.maintain(function)))

    async def _tidy(self) -> None:
        """Write the file anew, once for all erasures up to then, and empty the WAL when no reader holds on to it.

        Beacons wait while the file is written, so at most a hundredth of the time goes to it, whoever asks how often.
        """
        emptied = False
        while self._must_rewrite or not emptied:
            try:
                if self._must_rewrite and time.monotonic() >= self._rewrite_from:
                    await self._rewrite()
                emptied = await self._maintain(empty_wal)
            except UnavailableError:
                return  # the server ends, and the WAL with it
            await asyncio.sleep(TIDY_S)

    async def _rewrite(self) -> None:
        self._must_rewrite = False
        started = time.monotonic()
        try:
            await self._maintain(rewrite)
        except StoreError as error:
            log.warning(str(error))
            self._must_rewrite = True
        took_s = time.monotonic() - started
        self._rewrite_from = time.monotonic() + max(REWRITE_PAUSE_S, REWRITE_SHARE * took_s)
