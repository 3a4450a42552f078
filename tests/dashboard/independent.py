"""The figures of the dashboard once more, from the lines of `sidecar export` alone: plain Python, nothing of ours.

Slow and simple on purpose: a second opinion that tests compare the pages with. `Slice` says what to count: sessions
by their start, web vitals by their own time, `since <= t < until` in ms.
"""

from __future__ import annotations

import math
from collections import Counter
from datetime import datetime
from statistics import median
from typing import Any, NamedTuple
from urllib.parse import urlsplit

METRICS = ("LCP", "INP", "CLS", "FCP", "TTFB")
LIMITS = {"LCP": (2500, 4000), "INP": (200, 500), "CLS": (0.1, 0.25), "FCP": (1800, 3000), "TTFB": (800, 1800)}
Document = dict[str, Any]


class Slice(NamedTuple):
    """What to count; None for all."""

    since: int
    until: int
    site: str | None = None
    funnel_id: str | None = None
    device: str | None = None
    country: str | None = None
    page: str | None = None


def ms(text: str) -> int:
    """2026-11-22T07:00:00.000Z -> 1795330800000."""
    moment = datetime.fromisoformat(text)
    return round(moment.timestamp() * 1000)


def is_bot(session: Document) -> bool:
    """A session whose first known client is a bot."""
    order = {"LCP": 1, "INP": 2, "CLS": 3, "FCP": 4, "TTFB": 5, "FID": 6}
    facts = [(ms(e["timestamp"]), 0, e["eventId"], e["client"]) for e in session["events"]]
    facts += [(ms(v["timestamp"]), order[v["metric"]], v["id"], v["client"]) for v in session["webVitals"]]
    clients = [client for *_, client in sorted(facts, key=lambda fact: fact[:3]) if client is not None]
    return bool(clients) and session["clients"][clients[0]]["bot"] is not None


def fits(session: Document, asked: Slice) -> bool:
    """Whether a session passes the filters, but for the time and the page."""
    return (
        not is_bot(session)
        and asked.site in (None, session["site"])
        and asked.funnel_id in (None, session["funnelId"])
        and asked.device in (None, session["deviceType"] or "unknown")
        and asked.country in (None, session["countryCode"] or "unknown")
    )


def paths(session: Document) -> set[str | None]:
    """The paths of all its facts."""
    return {fact["pagePath"] for fact in session["events"] + session["webVitals"]}


def chosen(documents: list[Document], asked: Slice) -> list[Document]:
    """Sessions that started within the slice and have a fact of its page."""
    return [
        one
        for one in documents
        if one["type"] == "session"
        and fits(one, asked)
        and asked.since <= ms(one["startedAt"]) < asked.until
        and (asked.page is None or asked.page in paths(one))
    ]


def is_bounce(session: Document) -> bool:
    """At most one page view and no other event but session_end."""
    others = [e for e in session["events"] if e["eventName"] not in ("page_view", "session_end")]
    return session["pageViews"] <= 1 and not others


def totals(documents: list[Document], asked: Slice) -> dict[str, Any]:
    """The totals of a slice."""
    sessions = chosen(documents, asked)
    values = [one["conversionValue"] for one in sessions if one["conversionValue"] is not None]
    return {
        "visitors": len({(one["site"], one["visitor"]["anonymousId"]) for one in sessions if one["visitor"]}),
        "sessions": len(sessions),
        "provisional": sum(one["provisional"] for one in sessions),
        "page_views": sum(one["pageViews"] for one in sessions),
        "events": sum(one["eventsCount"] for one in sessions),
        "conversions": sum(one["converted"] for one in sessions),
        "conversion_value": math.fsum(values) if values else None,
        "bounces": sum(map(is_bounce, sessions)),
        "median_s": median(one["durationSeconds"] for one in sessions) if sessions else None,
    }


def tops(documents: list[Document], asked: Slice, kind: str) -> dict[str | None, int]:
    """Name -> amount of one list of the most."""
    counted: Counter[str | None] = Counter()
    for one in chosen(documents, asked):
        match kind:
            case "pages":
                views = [e for e in one["events"] if e["eventName"] == "page_view"]
                counted.update(e["pagePath"] for e in views if asked.page in (None, e["pagePath"]))
            case "entry pages":
                counted[path_of(one, one["firstPageUrl"], first=True)] += 1
            case "exit pages":
                counted[path_of(one, one["lastPageUrl"], first=False)] += 1
            case "campaigns":
                parts = [one[name] for name in ("firstSource", "firstMedium", "firstCampaign")]
                text = parts[0] or ""
                for part in parts[1:]:
                    text += f" / {part}" if part is not None else ""
                counted[text or None] += 1
            case "referrers":
                said = one["firstReferrer"]
                host = urlsplit(said).netloc.lower().removeprefix("www.") if said and "://" in said else said
                counted[host or None] += 1
            case "countries":
                counted[one["countryName"] or one["countryCode"]] += 1
            case "devices":
                counted[one["deviceType"]] += 1
            case "browsers":
                counted[one["browserName"]] += 1
            case "systems":
                counted[one["osName"]] += 1
    return dict(counted)


def path_of(session: Document, url: str | None, *, first: bool) -> str | None:
    """The path that the first or last fact with a page says beside its URL."""
    order = {"LCP": 1, "INP": 2, "CLS": 3, "FCP": 4, "TTFB": 5, "FID": 6}
    facts = [((ms(e["timestamp"]), 0, e["eventId"]), e) for e in session["events"] if e["pageUrl"]]
    facts += [((ms(v["timestamp"]), order[v["metric"]], v["id"]), v) for v in session["webVitals"] if v["pageUrl"]]
    if url is None:
        return None
    found = (min if first else max)(facts, key=lambda fact: fact[0])[1]
    path: str | None = found["pagePath"]
    return path


def samples(documents: list[Document], asked: Slice) -> list[tuple[Document, Document]]:
    """(session, web vital) of every instance in a slice: no bots, no FID, no placeholder of TTFB."""
    return [
        (one, vital)
        for one in documents
        if one["type"] == "session" and fits(one, asked)
        for vital in one["webVitals"]
        if vital["metric"] in METRICS
        and asked.since <= ms(vital["timestamp"]) < asked.until
        and asked.page in (None, vital["pagePath"])
        and not (vital["metric"] == "TTFB" and vital["navigationType"] in ("back-forward-cache", "soft-navigation"))
    ]


def vitals(found: list[tuple[Document, Document]]) -> dict[str, dict[str, Any]]:
    """By metric: p75 (nearest rank), rating, samples, and how many are good, fair, poor."""
    said = {}
    for metric in METRICS:
        values = sorted(vital["value"] for _, vital in found if vital["metric"] == metric)
        good_to, fair_to = LIMITS[metric]
        p75 = values[math.ceil(0.75 * len(values)) - 1] if values else None
        rating = (
            None if p75 is None else "good" if p75 <= good_to else "needs-improvement" if p75 <= fair_to else "poor"
        )
        good = sum(value <= good_to for value in values)
        poor = sum(value > fair_to for value in values)
        counts = {"samples": len(values), "good": good, "fair": len(values) - good - poor, "poor": poor}
        said[metric] = {"p75": p75, "rating": rating, **counts}
    return said
