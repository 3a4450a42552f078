"""How shipping goes, in words: one sentence for /healthz, `status` and the dashboard, and the lines of `parked`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from sidecar.canonical import to_iso, to_iso_or_number
from sidecar.store.explain_text import printable, shorten
from sidecar.store.outbox import Destination

_WAIT_MAX_MS = 3_600_000  # no wait is longer: what is further ahead was set before the clock was set back
_REASON_MAX = 100  # characters in a list
_ID_MAX = 40
_COLUMNS = (
    ("ID", "id"),
    ("PARKED AT", "parkedAt"),
    ("SITE", "site"),
    ("FUNNEL", "funnelId"),
    ("SESSION", "sessionId"),
    ("BATCH", "batchId"),
    ("REASON", "reason"),
)
_LABELS = (
    ("id", "id"),
    ("state", "state"),
    ("site", "site"),
    ("funnelId", "funnel"),
    ("sessionId", "session"),
    ("visitorHash", "visitor (its hash)"),
    ("erasedAt", "erased at"),
    ("revision", "refused revision"),
    ("parkedAt", "parked at"),
    ("batchId", "batch"),
    ("reason", "reason"),
)


class Waiting(NamedTuple):
    """What is not confirmed. `oldest` (ms): since when the first of the sessions has not changed.

    `sessions` are finished ones, and there are `more` of them where counting ended early.
    """

    sessions: int
    oldest: int | None
    erasures: int
    parked: int
    more: bool = False


def say_state(destination: Destination | None, waiting: Waiting, now: int) -> str:
    """One line for a person that begins with the state; it names no address and no id. `now` in ms."""
    if destination is None:
        return "off: no destination was named yet (SIDECAR_UPSTREAM_URL)"
    if destination.state == "off":
        return "off: SIDECAR_UPSTREAM_URL is not set any more, and everything is kept"
    parts = [*_say_waiting(waiting, now, destination.state)]
    if destination.state == "ready":
        if not waiting.sessions:
            at = destination.confirmed_at
            parts.append("nothing delivered yet" if at is None else f"last delivery {say_time(at, now)}")
        return f"ready: {', '.join(parts)}"
    reason = destination.reason or "no reason given"
    source = " from upstream" if reason[:3].isdigit() else ""  # an HTTP status; other reasons are whole by themselves
    began = f"{destination.state}: {reason}{source} since {say_time(destination.since, now)}"
    return ", ".join([began, *parts, _say_next(destination, now)])


def _say_waiting(waiting: Waiting, now: int, state: str) -> Iterator[str]:
    if waiting.more:
        yield f"more than {waiting.sessions:,} sessions waiting"
    elif waiting.sessions:
        yield f"{_count(waiting.sessions, 'session')} waiting"
    else:
        yield "nothing waiting" if not waiting.erasures else "no session waiting"
    if state == "ready" and waiting.oldest is not None:
        yield f"the oldest since {say_time(waiting.oldest, now)}"
    if waiting.erasures:
        yield f"{_count(waiting.erasures, 'erasure')} waiting"
    if waiting.parked:
        yield f"{waiting.parked:,} refused and parked"


def _say_next(destination: Destination, now: int) -> str:
    left_ms = destination.next_attempt_at - now
    if not 0 < left_ms <= _WAIT_MAX_MS:
        return "next attempt is due"
    asked = ", as it asked" if destination.asked_until > now else ""
    left_s = -(-left_ms // 1000)
    return f"next attempt in {f'{left_s} s' if left_s < 60 else f'{-(-left_s // 60)} min'}{asked}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def say_time(at: int, now: int) -> str:
    """`10:02 UTC`, with the day where that is not today. Both in ms."""
    text = to_iso(at) or ""
    day, clock = text[:10], text[11:16]
    return f"{clock} UTC" if day == (to_iso(now) or "")[:10] else f"{day} {clock} UTC"


def parked_lines(found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A table of what `list_parked` and `list_refused` found: a line each, under one line of headings."""
    if not found:
        yield "nothing is parked"
        return
    table = [[title for title, _ in _COLUMNS]]
    for row in found:
        cells = {**row}
        if "visitorHash" in row:
            cells["sessionId"] = f"(an erasure: visitor hash {row['visitorHash'][:12]})"
        table.append([_cell(cells.get(name), _REASON_MAX if name == "reason" else _ID_MAX) for _, name in _COLUMNS])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        yield "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()


def _cell(value: Any, most: int) -> str:
    return "-" if value is None else shorten(printable(str(value)), most)


def parked_story(found: Mapping[str, Any], document: Mapping[str, Any]) -> Iterator[str]:
    """All there is to say of one parked session or refused erasure, and the document as it would be sent now."""
    for name, label in _LABELS:
        if name in found:
            value = to_iso_or_number(found[name]) if name == "revision" else found[name]
            yield f"{label:<20}{_cell(value, 2_000)}"
    yield ""
    at = f", at revision {to_iso_or_number(document['revision'])}" if "revision" in document else ""
    yield f"What would be sent now{at}:"
    yield from map(printable, json.dumps(document, indent=2, ensure_ascii=False).split("\n"))
