"""What every destination has in common: a batch goes in, an answer comes out. No database, no waiting, no retries."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import NamedTuple, Protocol

from sidecar.store.outbox import Batch

_NOTHING: Mapping[int, str] = MappingProxyType({})


class Verdict(StrEnum):
    """What a destination says to a batch; what follows from it is the shipper's business."""

    TAKEN = "taken"
    AGAIN = "again"  # the same bytes, later
    REFUSED = "refused"  # something in it is wrong
    TOO_LARGE = "too large"
    BLOCKED = "blocked"  # somebody has to do something


class Answer(NamedTuple):
    """A destination's answer to one attempt.

    `reason` is one short line that names no address and no id: it stands in /healthz. `detail` is the destination's
    own words, for the batch. `retry_after` as in HTTP: seconds, or a date. `rejected`: line -> reason, where taken.
    """

    verdict: Verdict
    reason: str
    detail: str = ""
    retry_after: str | None = None
    rejected: Mapping[int, str] = _NOTHING

    @property
    def text(self) -> str:
        """Reason and detail, for people who look at the batch."""
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


class Sink(Protocol):
    """A destination."""

    @property
    def address(self) -> str:
        """Which destination it is, without credentials: confirmations belong to it."""
        ...

    async def send(self, batch: Batch, now: int) -> Answer:
        """Make one attempt (`now` in ms). What goes wrong on the way is an answer, too, not an exception."""
        ...

    async def close(self) -> None:
        """Give up connections."""
        ...
