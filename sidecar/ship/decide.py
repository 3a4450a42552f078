"""What an answer leads to: contract 8's table as one pure function. Nothing here sends, waits or writes."""

from __future__ import annotations

import random
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from enum import StrEnum
from types import MappingProxyType
from typing import NamedTuple

from sidecar.ship.sinks import Answer, Verdict
from sidecar.store.outbox import Batch, Destination

WAIT_FIRST_MS = 2_000
WAIT_MAX_MS = 300_000
BLOCKED_RETRY_MS = 300_000
ASKED_MAX_MS = 3_600_000
ASKED_MIN_MS = 1_000  # `Retry-After: 0` from a server in trouble must not become a busy loop

_NOTHING: Mapping[int, str] = MappingProxyType({})


class Act(StrEnum):
    """What becomes of a batch."""

    CONFIRM = "confirm"
    SPLIT = "split"
    PARK = "park"
    WAIT = "wait"
    BLOCK = "block"


class Settlement(NamedTuple):
    """What an answer leads to. `until` (ms) and `failures` are of the destination, where the act is WAIT or BLOCK.

    `asked`: the destination named the time. `too_large`: the size is to be remembered. `rejected`: line -> reason.
    """

    act: Act
    until: int = 0
    failures: int = 0
    asked: bool = False
    too_large: bool = False
    rejected: Mapping[int, str] = _NOTHING


def read_retry_after(text: str | None, now: int) -> int | None:
    """The wait (ms, 1 s to 1 h) of a Retry-After header: seconds, or an HTTP date; None where it says nothing."""
    text = (text or "").strip()
    if text.isascii() and text.isdigit():
        wait_ms = int(text[:9]) * 1000
    else:
        try:
            moment = parsedate_to_datetime(text)
            moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
            wait_ms = int(moment.timestamp() * 1000) - now
        except (ValueError, OverflowError):
            return None
    return min(max(wait_ms, ASKED_MIN_MS), ASKED_MAX_MS)


def decide(answer: Answer, batch: Batch, destination: Destination, now: int, rng: random.Random) -> Settlement:
    """What to do after an answer (contract 8). `now` in ms; pure but for `rng`, which spreads the waits."""
    match answer.verdict:
        case Verdict.TAKEN:
            return Settlement(Act.CONFIRM, rejected=answer.rejected)
        case Verdict.REFUSED | Verdict.TOO_LARGE:
            if batch.lines_count == 1:
                return Settlement(Act.PARK)
            return Settlement(Act.SPLIT, too_large=answer.verdict is Verdict.TOO_LARGE)
        case Verdict.BLOCKED:
            return Settlement(Act.BLOCK, until=now + BLOCKED_RETRY_MS, failures=destination.failures + 1)
        case Verdict.AGAIN:
            failures = destination.failures + 1
            asked = read_retry_after(answer.retry_after, now)
            if asked is not None:
                return Settlement(Act.WAIT, until=now + asked, failures=failures, asked=True)
            most = min(WAIT_MAX_MS, WAIT_FIRST_MS << min(destination.failures, 16))
            return Settlement(Act.WAIT, until=now + rng.randint(most // 2, most), failures=failures)
