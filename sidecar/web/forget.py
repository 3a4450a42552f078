"""`POST /api/track/delete`: a visitor has itself erased.

It needs no key: who knows the id, which the tracker makes of 128 random bits and shows to nobody, is that visitor.
Origins and the rate limit hold as for beacons.
"""

from __future__ import annotations

import asyncio
import json

import structlog

from sidecar.errors import MalformedBeaconError, RejectedBeaconError
from sidecar.store.erasure import Erased, forget
from sidecar.store.writer import Writer
from sidecar.web.tidy import Tidy

PATH = "/api/track/delete"
ID_MAX = 128

log = structlog.get_logger("sidecar.forget")


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

    def __init__(self, writer: Writer, site: str, tidy: Tidy) -> None:
        self._writer = writer
        self._site = site
        self._tidy = tidy

    async def erase(self, anonymous_id: str, now: int) -> Erased:
        """Erase a visitor. Returns after COMMIT and a first try to empty the WAL. Raises UnavailableError."""
        future = self._writer.call(lambda conn: forget(conn, self._site, anonymous_id, now, anybody=True))
        erased = await asyncio.shield(asyncio.wrap_future(future))
        log.info("erased a visitor", **erased._asdict())
        await self._tidy.start()
        return erased
