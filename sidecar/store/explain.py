"""Why a session is what it is: each derived value, the rule in plain words, and the facts that it came from.

A second telling of the view `derived_sessions` in schema.sql, in Python and one fact after the other, for people who
doubt a value; tests hold the two together.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from math import copysign, fsum
from typing import Any, NamedTuple

from sidecar.canonical import number, to_iso, to_json
from sidecar.model import (
    CONVERSION_EVENTS,
    NO_CLIENT,
    PLACEHOLDER_TTFB,
    Campaign,
    Client,
    EventFact,
    Fact,
    VitalFact,
    rate,
)
from sidecar.store.documents import fact_order

AMOUNT_MAX = 1e12  # of `revenue` and `activeTime`; what is greater is a mistake, and would hide all others in a sum
NUMBERS_MAX = 12  # ranges of fact numbers in a line of text


class LeftOut(NamedTuple):
    """A fact that might have counted, and why it does not."""

    fact: Fact
    reason: str


class Explained(NamedTuple):
    """One derived value: `facts` are those that it came from, in their order.

    `value` is as in a session document. It is computed from the facts, but for what other sessions have a say in
    (names that begin with `visitor.`) or the clock (`finished`): these are taken from the document.
    """

    name: str
    value: Any
    rule: str
    facts: list[Fact]
    left_out: list[LeftOut]


# What a metric's average costs the experience score: (needs improvement, poor).
PENALTIES = {"LCP": (15, 30), "INP": (12, 25), "CLS": (10, 20), "FCP": (7, 15), "TTFB": (5, 10)}
_AVERAGES = {"LCP": "avgLcp", "INP": "avgInp", "CLS": "avgCls", "FCP": "avgFcp", "TTFB": "avgTtfb"}
_DEVICE = {
    "deviceType": "device_type",
    "browserName": "browser_name",
    "browserVersion": "browser_version",
    "osName": "os_name",
    "osVersion": "os_version",
}
_PLACE = {"countryCode": "country_code", "countryName": "country_name", "region": "region", "city": "city"}


def explain(facts: Sequence[Fact], document: dict[str, Any]) -> list[Explained]:
    """Every derived value of a session, in the order of its document. `facts` are all it has, in any order."""
    ordered = sorted(facts, key=fact_order)
    events = [fact for fact in ordered if isinstance(fact, EventFact)]
    vitals = [fact for fact in ordered if isinstance(fact, VitalFact)]
    averages = [_average(metric, vitals) for metric in _AVERAGES]
    return [
        *_state(events, vitals, document),
        *_visitor(ordered, events, document),
        *_times(ordered),
        *_counts(events),
        *_conversion(events),
        *_pages(ordered),
        *_source(events),
        *_client(ordered),
        *averages,
        _score(averages),
        _active(events),
    ]


# --- one value after the other ---------------------------------------------------------------------------------------


def _state(events: list[EventFact], vitals: list[VitalFact], document: dict[str, Any]) -> list[Explained]:
    finished = "Its facts have not changed for the session timeout (or its revision is that far ahead of the clock)."
    provisional = "It has web vitals and no event yet; the first event ends that."
    funnel = "Of its funnel: from the settings, else from the document of the highest revision."
    return [
        Explained("subaccountId", document["subaccountId"], funnel, [], []),
        Explained("finished", document["finished"], finished, [], []),
        Explained("provisional", not events, provisional, [*events[:1]] or [*vitals], []),
    ]


def _visitor(facts: list[Fact], events: list[EventFact], document: dict[str, Any]) -> list[Explained]:
    naming = [fact for fact in facts if fact.anonymous_id is not None]
    first = naming[0].anonymous_id if naming else None
    others = [
        LeftOut(fact, f"it names {fact.anonymous_id}; the first fact that names one counts")
        for fact in naming
        if fact.anonymous_id != first
    ]
    explained = [
        Explained("visitor.anonymousId", first, "Of the first fact that names a visitor.", [*naming[:1]], others)
    ]
    said = document["visitor"]
    if said is None:
        return explained
    identifying = [event for event in events if event.name == "user_identified"]
    latest = "of all its sessions: identifications are ordered by (time, funnel, session, event)"
    rules: list[tuple[str, str, list[Fact]]] = [
        (
            "displayName",
            "traits.name, else traits.email, else userId, else `Visitor #` and the last six characters of the id.",
            [*identifying],
        ),
        ("firstSeen", "The earliest start of all its sessions.", []),
        ("lastSeen", "The latest end of all its sessions.", []),
        ("totalSessions", "The sessions whose first naming fact names it.", []),
        ("totalEvents", "The events of all its sessions.", []),
        ("userId", f"Of the latest identification {latest}.", [*identifying]),
        ("traits", f"Of the latest identification that has any, {latest}.", [*identifying]),
    ]
    return explained + [Explained(f"visitor.{name}", said[name], rule, used, []) for name, rule, used in rules]


def _times(facts: list[Fact]) -> list[Explained]:
    first, last = facts[0], max(facts, key=lambda fact: fact.timestamp)
    seconds = (last.timestamp - first.timestamp) // 1000
    return [
        Explained("startedAt", to_iso(first.timestamp), "The time of the earliest fact.", [first], []),
        Explained("endedAt", to_iso(last.timestamp), "The time of the latest fact.", [last], []),
        Explained("durationSeconds", seconds, "Whole seconds between the two, rounded down.", [first, last], []),
    ]


def _counts(events: list[EventFact]) -> list[Explained]:
    views = [event for event in events if event.name == "page_view"]
    return [
        Explained("pageViews", len(views), "Its events named page_view.", [*views], []),
        Explained("eventsCount", len(events), "Its events, each id once.", [*events], []),
    ]


def _conversion(events: list[EventFact]) -> list[Explained]:
    conversions = [event for event in events if event.name in CONVERSION_EVENTS]
    first: list[Fact] = [*conversions[:1]]
    said = _properties(conversions[0]) if conversions else {}
    later = [LeftOut(event, "a later conversion; the first one counts") for event in conversions[1:]]
    value, counted, left_out = _sum(conversions, "revenue")
    names = "conversion, purchase or checkout_completed"
    return [
        Explained("converted", bool(conversions), f"Whether it has an event named {names}.", [*conversions], []),
        Explained("conversionType", _text(said.get("conversionType")), "Of its first conversion.", first, later),
        Explained("conversionValue", value, "The sum of `revenue` over its conversions.", counted, left_out),
        Explained("currency", _text(said.get("currency")), "Of its first conversion.", first, later),
    ]


def _pages(facts: list[Fact]) -> list[Explained]:
    named = [fact for fact in facts if fact.page is not None and fact.page.url is not None]
    return [
        _one("firstPageUrl", "The page of the first fact that has one.", named[:1], lambda fact: fact.page.url),
        _one("lastPageUrl", "The page of the last fact that has one.", named[-1:], lambda fact: fact.page.url),
    ]


def _source(events: list[EventFact]) -> list[Explained]:
    referred = [event for event in events if event.referrer is not None]
    named = [event for event in events if event.campaign is not None]
    rule = "Of the {} event with UTM parameters, its own or those of its page address: all five together."
    explained = [
        _one("firstReferrer", "Of the first event that has a referrer.", referred[:1], lambda fact: fact.referrer)
    ]
    for which, used in (("first", named[:1]), ("last", named[-1:])):
        campaign = (used[0].campaign if used else None) or Campaign(None, None, None, None, None)
        for name in ("source", "medium", "campaign"):
            value = getattr(campaign, name)
            explained.append(Explained(f"{which}{name.capitalize()}", value, rule.format(which), [*used], []))
    clicked = [event for event in events if event.click_ids is not None]
    clicks = "Of the {} event with click ids, its own or those of its page address: as a set."
    for which, picked in (("first", clicked[:1]), ("last", clicked[-1:])):
        said = json.loads(picked[0].click_ids or "null") if picked else None
        explained.append(Explained(f"{which}ClickIds", said, clicks.format(which), [*picked], []))
    return explained


def _client(facts: list[Fact]) -> list[Explained]:
    known = [(fact, fact.client) for fact in facts if fact.client is not None]
    parts: list[tuple[dict[str, str], str, Callable[[Client], bool]]] = [
        (_DEVICE, "Of the first fact with a device: the five together.", lambda client: client[:5] != NO_CLIENT[:5]),
        (_PLACE, "Of the first fact with a place: the four together.", lambda client: client[8:12] != NO_CLIENT[8:12]),
        (
            {"ipAddress": "ip_address"},
            "Of the first fact with an address, as far as the settings keep it.",
            lambda client: client.ip_address is not None,
        ),
    ]
    explained = []
    for names, rule, has in parts:
        fact, client = next(((fact, client) for fact, client in known if has(client)), (None, NO_CLIENT))
        used = [] if fact is None else [fact]
        explained += [Explained(name, getattr(client, field), rule, used, []) for name, field in names.items()]
    return explained


def _average(metric: str, vitals: list[VitalFact]) -> Explained:
    """The mean of one metric, rounded to 6 decimals."""
    mine = [vital for vital in vitals if vital.metric == metric]
    counted = [vital for vital in mine if not _is_placeholder(vital)]
    left_out = [
        LeftOut(vital, f"a placeholder: no time is measured for {vital.navigation_type}")
        for vital in mine
        if _is_placeholder(vital)
    ]
    if metric == "INP":  # FID was what INP replaced, so this is where people look for it
        left_out += [LeftOut(vital, "FID is in no average") for vital in vitals if vital.metric == "FID"]
    value = None
    if counted:
        value = _round(fsum(vital.value for vital in counted) / len(counted))
    rule = f"The mean of its {metric} reports, each instance once with its newest report."
    return Explained(_AVERAGES[metric], value, rule, [*counted], left_out)


def _is_placeholder(vital: VitalFact) -> bool:
    return vital.metric == "TTFB" and vital.navigation_type in PLACEHOLDER_TTFB


def _score(averages: list[Explained]) -> Explained:
    lost = []
    used: list[Fact] = []
    for metric, average in zip(_AVERAGES, averages, strict=True):
        if average.value is None:
            continue
        used += average.facts
        rating = rate(metric, average.value)
        points = {"good": 0, "needs-improvement": PENALTIES[metric][0], "poor": PENALTIES[metric][1]}[rating]
        lost.append((f"{metric} {rating} -{points}" if points else f"{metric} good", points))
    value = max(0, 100 - sum(points for _, points in lost)) if used else None
    said = f" Here: {', '.join(words for words, _ in lost)}." if lost else ""
    costs = ", ".join(f"{metric} {fair}/{poor}" for metric, (fair, poor) in PENALTIES.items())
    rule = f"100 less what each average costs (needs improvement/poor: {costs}), at least 0.{said}"
    return Explained("experienceScore", value, rule, sorted(used, key=fact_order), [])


def _active(events: list[EventFact]) -> Explained:
    value, counted, left_out = _sum([event for event in events if event.name == "session_end"], "activeTime")
    return Explained("activeSeconds", value, "The sum of `activeTime` over its session_end events.", counted, left_out)


# --- what several of them need ---------------------------------------------------------------------------------------


def _one(name: str, rule: str, used: Iterable[Any], read: Callable[[Any], Any]) -> Explained:
    facts = [*used]
    return Explained(name, read(facts[0]) if facts else None, rule, facts, [])


def _properties(event: EventFact) -> dict[str, Any]:
    said = json.loads(event.properties) if event.properties else {}
    return said if isinstance(said, dict) else {}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _round(value: float) -> float:
    """6 decimals, halves away from zero, by the very steps of schema.sql."""
    if abs(value) >= 4e9:
        return number(round(value, 6))
    return number(int(value * 1e6 + copysign(0.5, value)) / 1e6)


def _sum(events: list[EventFact], name: str) -> tuple[float | None, list[Fact], list[LeftOut]]:
    """The sum of a property, rounded to 6 decimals, the events that count in it, and those that do not."""
    amounts: list[float] = []
    counted: list[Fact] = []
    left_out: list[LeftOut] = []
    for event in events:
        amount = _properties(event).get(name)
        if amount is None:
            left_out.append(LeftOut(event, f"it has no {name}"))
        elif isinstance(amount, bool) or not isinstance(amount, int | float):
            left_out.append(LeftOut(event, f"its {name} is no number"))
        elif abs(amount) > AMOUNT_MAX:
            left_out.append(LeftOut(event, f"its {name} is beyond {AMOUNT_MAX:g}"))
        else:
            amounts.append(float(amount))
            counted.append(event)
    return (_round(fsum(amounts)) if amounts else None), counted, left_out


# --- as text ---------------------------------------------------------------------------------------------------------


def value_text(value: Any) -> str:
    """A value as JSON, but a text as it is."""
    return value if isinstance(value, str) else to_json(value)


def count_facts(numbers: Iterable[int]) -> str:
    """`#1-#3 #7` of fact numbers; the first NUMBERS_MAX ranges, the rest counted."""
    ranges: list[tuple[int, int]] = []
    for each in sorted(set(numbers)):
        if ranges and ranges[-1][1] == each - 1:
            ranges[-1] = (ranges[-1][0], each)
        else:
            ranges.append((each, each))
    words = [f"#{first}" if first == last else f"#{first}-#{last}" for first, last in ranges[:NUMBERS_MAX]]
    rest = sum(last - first + 1 for first, last in ranges[NUMBERS_MAX:])
    return " ".join(words) + (f" and {rest} more" if rest else "")


def group_left_out(left_out: Iterable[LeftOut], numbers: dict[Fact, int]) -> list[tuple[str, str]]:
    """(fact numbers, reason) of what was left out, one a reason."""
    by_reason: dict[str, list[int]] = {}
    for fact, reason in left_out:
        by_reason.setdefault(reason, []).append(numbers[fact])
    return [(count_facts(found), reason) for reason, found in by_reason.items()]
