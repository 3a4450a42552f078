"""How a fact is written, so that equal content is equal bytes: in ties, in digests, in documents and in sizes.

JSON with sorted keys, no spaces, UTF-8, numbers as shortest round-trip (116.0 is written 116).
"""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from hashlib import blake2b
from json.encoder import encode_basestring
from typing import Any

from sidecar.model import NAVIGATION_TYPES, NO_CLIENT, SAFE_INTEGER_MAX, Client, EventFact, Fact, Page, VitalFact

CLIENT_FIELDS = (
    "deviceType",
    "browserName",
    "browserVersion",
    "osName",
    "osVersion",
    "screenWidth",
    "screenHeight",
    "bot",
    "countryCode",
    "countryName",
    "region",
    "city",
    "ipAddress",
)  # in the order of model.Client


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TIME_MIN = -62_135_596_800_000  # 0001-01-01T00:00:00.000Z
TIME_MAX = 253_402_300_799_999  # 9999-12-31T23:59:59.999Z


def now_ms() -> int:
    """The clock: milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def to_iso(at: int | None) -> str | None:
    """`2026-11-22T07:00:00.000Z` of integer milliseconds since the epoch, from TIME_MIN to TIME_MAX."""
    if at is None:
        return None
    moment = _EPOCH + timedelta(milliseconds=at)
    return moment.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"  # %Y would not pad the year 999


def to_iso_or_number(at: int | None) -> str | None:
    """A revision for a person: as a time, or as the number where it is none, for a document may say any number."""
    return to_iso(at) if at is None or TIME_MIN <= at <= TIME_MAX else str(at)


def from_any_iso(text: Any) -> int:
    """Milliseconds since the epoch of an ISO 8601 text (without a zone: UTC). Raises ValueError.

    A zone can carry it out of what `to_iso` can write: it is for times that are judged against a clock.
    """
    if not isinstance(text, str):
        raise ValueError("not an ISO 8601 time")
    moment = datetime.fromisoformat(text)
    since = (moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment) - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1000 + since.microseconds // 1000


def from_iso(text: Any) -> int:
    """As `from_any_iso`, from TIME_MIN to TIME_MAX: what is stored as it is must be written again."""
    at = from_any_iso(text)
    if not TIME_MIN <= at <= TIME_MAX:
        raise ValueError("not within the years 1 to 9999, in UTC")
    return at


def number(value: float) -> float:
    """The same number, as an int where that is exact: shorter, and one spelling for 116 and 116.0 (and for -0.0)."""
    return int(value) if value.is_integer() and abs(value) <= SAFE_INTEGER_MAX else value


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return number(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


def to_json(value: Any) -> str:
    """Canonical JSON text of plain data (dict, list, str, int, float, bool, None). Raises ValueError for NaN."""
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def client_object(client: Client | None) -> dict[str, Any] | None:
    """A client as it stands in a document; None where nothing is known."""
    return None if client is None else dict(zip(CLIENT_FIELDS, client, strict=True))


def _page_fields(page: Page | None) -> Page:
    return page or Page(None, None, None)


def vital_object(fact: VitalFact) -> dict[str, Any]:
    """A web vital as in a session document, in that key order, with `client` as its object."""
    page = _page_fields(fact.page)
    return {
        "metric": fact.metric,
        "id": fact.id,
        "value": number(fact.value),
        "rating": fact.rating,
        "delta": None if fact.delta is None else number(fact.delta),
        "navigationType": fact.navigation_type,
        "seq": fact.seq,
        "pageUrl": page.url,
        "pagePath": page.path,
        "pageTitle": page.title,
        "anonymousId": fact.anonymous_id,
        "client": client_object(fact.client),
        "timestamp": fact.timestamp,
        "clockSkewed": fact.clock_skewed,
    }


def event_object(fact: EventFact) -> dict[str, Any]:
    """An event as in a session document, in that key order, with `client` as its object."""
    page = _page_fields(fact.page)
    return {
        "eventId": fact.id,
        "eventName": fact.name,
        "properties": None if fact.properties is None else json.loads(fact.properties),
        "pageUrl": page.url,
        "pagePath": page.path,
        "pageTitle": page.title,
        "referrer": fact.referrer,
        "context": None if fact.context is None else json.loads(fact.context),
        "anonymousId": fact.anonymous_id,
        "client": client_object(fact.client),
        "timestamp": fact.timestamp,
        "clockSkewed": fact.clock_skewed,
    }


def content(fact: Fact) -> bytes:
    """The canonical content that breaks ties between reports of one fact (time as in SQL: it is equal in a tie)."""
    return to_json(vital_object(fact) if isinstance(fact, VitalFact) else event_object(fact)).encode()


# Lengths without building the text: 1 us instead of 9. tests/test_canonical.py compares them with `content`.
_VITAL_FRAME = len(
    to_json(
        dict.fromkeys(
            vital_object(VitalFact("", "", "", "LCP", "", 0.0, "good", None, None, 0, None, None, None, 0, False)), 0
        )
    )
)
_EVENT_FRAME = len(
    to_json(
        dict.fromkeys(
            event_object(EventFact("", "", "", "", "", None, None, None, None, None, None, None, None, 0, False)), 0
        )
    )
)


def _text(value: str | None) -> int:
    return 4 if value is None else len(encode_basestring(value).encode())


_NAVIGATION_SIZES = {name: _text(name) for name in (None, *NAVIGATION_TYPES)}


@lru_cache(maxsize=4096)
def _page_size(page: Page | None) -> int:
    return sum(map(_text, _page_fields(page)))


@lru_cache(maxsize=4096)
def _client_size(client: Client | None) -> int:
    return len(to_json(client_object(client)).encode())


def content_size(fact: Fact) -> int:
    """`len(content(fact))`, in bytes."""
    shared = (
        _page_size(fact.page)
        + _client_size(fact.client)
        + _text(fact.anonymous_id)
        + len(str(fact.timestamp))
        + (4 if fact.clock_skewed else 5)
    )
    if isinstance(fact, VitalFact):
        value, delta = fact.value, fact.delta
        value_size = len(repr(number(value)))
        return (
            (_VITAL_FRAME - 14)
            + shared
            + len(fact.metric)
            + _text(fact.id)
            + value_size
            + len(fact.rating)
            + 4  # the quotes of metric and rating
            + (value_size if delta == value else 4 if delta is None else len(repr(number(delta))))
            + _NAVIGATION_SIZES[fact.navigation_type]
            + len(str(fact.seq))
        )
    return (
        (_EVENT_FRAME - 12)
        + shared
        + _text(fact.id)
        + _text(fact.name)
        + (4 if fact.properties is None else len(fact.properties.encode()))
        + _text(fact.referrer)
        + (4 if fact.context is None else len(fact.context.encode()))
    )


@lru_cache(maxsize=8192)
def digest(texts: tuple[str | int | None, ...]) -> bytes:
    """BLAKE2b-128 of a page, client or campaign: what the store finds it by."""
    return blake2b(to_json(list(texts)).encode(), digest_size=16).digest()


def client_bits(client: Client) -> int:
    """What is known of a client: 1 device, 2 place, 4 address (the low bits of its key, see schema.sql)."""
    return (
        (1 if client[:5] != NO_CLIENT[:5] else 0)
        | (2 if client[8:12] != NO_CLIENT[8:12] else 0)
        | (4 if client.ip_address is not None else 0)
    )


def page_bits(page: Page) -> int:
    """1 where the URL of a page is known (the low bit of its key, see schema.sql)."""
    return 1 if page.url is not None else 0
