"""The nouns: what a beacon says, what is stored of it, and the limits of the vitals.

NamedTuples, not frozen dataclasses: one is made for every item, and a frozen dataclass costs 2.5 us more.
All times are integer milliseconds since the epoch (UTC).
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import NamedTuple

SESSION_FACTS_MAX = 10_000
SESSION_BYTES_MAX = 16 * 1024 * 1024
SAFE_INTEGER_MAX = 2**53  # beyond it a JSON number is no longer exact everywhere
REVISION_MAX = SAFE_INTEGER_MAX - 1  # a session there grows no further: one more would be refused by every receiver
CONVERSION_EVENTS = frozenset({"conversion", "purchase", "checkout_completed"})
PLACEHOLDER_TTFB = frozenset({"back-forward-cache", "soft-navigation"})  # the web-vitals library reports 0 for these

METRICS = ("LCP", "INP", "CLS", "FCP", "TTFB", "FID")  # in the order of facts
RATINGS = ("good", "needs-improvement", "poor")  # the place of each is its code in the store
NAVIGATION_TYPES = (
    "navigate",
    "reload",
    "back-forward",
    "back-forward-cache",
    "prerender",
    "restore",
    "soft-navigation",
)  # likewise

# https://web.dev/articles/vitals#core-web-vitals: (good up to, needs improvement up to), inclusive; ms, CLS unitless
LIMITS: dict[str, tuple[float, float]] = {
    "LCP": (2500, 4000),
    "INP": (200, 500),
    "CLS": (0.1, 0.25),
    "FCP": (1800, 3000),
    "TTFB": (800, 1800),
    "FID": (100, 300),
}


def rate(metric: str, value: float) -> str:
    """`good`, `needs-improvement` or `poor`; limits are inclusive."""
    good, fair = LIMITS[metric]
    return "good" if value <= good else "needs-improvement" if value <= fair else "poor"


def nearest_rank(values: list[float], share: float) -> float | None:
    """The percentile of an ascending list by nearest rank: position ceil(share * n). None of an empty list."""
    return values[max(1, math.ceil(share * len(values))) - 1] if values else None


class Outcome(StrEnum):
    """What became of one item; `rejected` carries a reason beside it."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    SUPERSEDED = "superseded"
    REJECTED = "rejected"


class Page(NamedTuple):
    """Where a fact happened; at least one of the three is known."""

    url: str | None
    path: str | None
    title: str | None


class Place(NamedTuple):
    """Where an address is, by an MMDB file."""

    country_code: str | None = None
    country_name: str | None = None
    region: str | None = None
    city: str | None = None


class Client(NamedTuple):
    """What sent a fact. The field order is that of `clients` in a session document."""

    device_type: str | None = None
    browser_name: str | None = None
    browser_version: str | None = None
    os_name: str | None = None
    os_version: str | None = None
    screen_width: int | None = None
    screen_height: int | None = None
    bot: str | None = None
    country_code: str | None = None
    country_name: str | None = None
    region: str | None = None
    city: str | None = None
    ip_address: str | None = None


NO_CLIENT = Client()


class Campaign(NamedTuple):
    """UTM parameters, as a set."""

    source: str | None
    medium: str | None
    campaign: str | None
    term: str | None
    content: str | None


class VitalFact(NamedTuple):
    """One report of one metric instance, ready to be stored. `value` and `delta` in ms (CLS: no unit)."""

    site: str
    funnel_id: str
    session_id: str
    metric: str
    id: str
    value: float
    rating: str
    delta: float | None
    navigation_type: str | None
    seq: int
    page: Page | None
    anonymous_id: str | None
    client: Client | None
    timestamp: int
    clock_skewed: bool


class EventFact(NamedTuple):
    """One report of one event, ready to be stored. `properties`, `context` and `click_ids` are canonical JSON texts."""

    site: str
    funnel_id: str
    session_id: str
    id: str
    name: str
    properties: str | None
    page: Page | None
    referrer: str | None
    context: str | None
    campaign: Campaign | None
    click_ids: str | None
    anonymous_id: str | None
    client: Client | None
    timestamp: int
    clock_skewed: bool


Fact = VitalFact | EventFact


class Claim(NamedTuple):
    """What a refused item said it was, as far as that could be read. `metric` is '' for an event, `id` '' for none."""

    funnel_id: str | None
    session_id: str
    metric: str
    id: str


class Rejection(NamedTuple):
    """An item that is not stored, by its place in the beacon. `dropped` ones are left out on purpose (HTTP 202)."""

    position: int
    reason: str
    dropped: bool = False
    claim: Claim | None = None
