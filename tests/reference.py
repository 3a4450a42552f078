"""A second, deliberately simple implementation of sections 2, 5 and 6 of the contract, to test the product against.

Facts are held in one dict under the identity of contract 5.2. `export` derives every session and visitor anew from the
list of facts, by sorting. No SQL, no state but the facts, nothing shared with the product.

Not modelled: answers of a whole beacon (status codes), DNT, consent, keys, rate limits, bots, GeoIP, erasure, the bound
of 5.10, import, `revision` (always 0) and `finished` (always False), and the objects of the `web-vitals` library
without a session (2.1; `LookupError`, since their session is the product's own hash).

Where the contract is silent or can be read in two ways, this module decides:

 1. Device (2.1 "together"): the five fields are one set. Where the item says any of them, all five are the item's.
 2. "Unknown" is missing in any case, from the item and from the User-Agent.
 3. An item's own `device.userAgent` that is a non-empty text replaces the header wholly, also where it tells nothing.
 4. Cuts count code points. The path is derived from the cut URL; an empty path is `/`; a URL that cannot be parsed
    gives none.
 5. Events: `page.url`, `page.path`, `page.referrer` are cut at 2,048 and `page.title` at 512, as in 2.1; a wrong one
    is left out. UTM, `conversionType`, `currency`, `properties`, `context` and `traits` are not cut.
 6. An alias counts where the first name is missing. A wrong required field rejects even where its alias is right; a
    wrong optional `id` is left out, so that `id_metric` counts.
 7. Identifiers longer than 128 or not texts: required ones reject; `id`, `eventId` are left out, so an id is derived;
    `funnelId` falls to the next source; `anonymousId` is null. Blanks are not trimmed anywhere.
 8. `1920.0` is an integer. Any number beyond +-2^53 is wrong in a typed field (`delta`, `timestamp`, `seq`, screens).
    Integers too large for a double are not finite.
 9. A negative screen size is kept. `navigationType` only in the exact spelling of the library. A wrong `rating` is
    derived like a missing one; `needs improvement` with a blank is wrong.
10. Both ends of the window of 5.8 are inside. An ISO date without a time is its midnight UTC.
11. `web_vital` events: metric, value, id, seq, rating, delta, navigationType from `properties` (aliases too); session,
    visitor, page, device from `context`; page fields that `context.page` lacks from `properties`. A page URL is
    required, as in 2.1. Their `context` and referrer are not kept and their UTM does not count.
12. `properties` that are missing or no object are null, `{}` stays `{}`. Nulls and '' inside `properties` and
    `context` stay. `context` is null where nothing but session, page and device was in it.
13. UTM: where any of the five in `context.utm` is a non-empty text, the set is that object alone; else the `utm_*` of
    the page URL (first non-empty of each, decoded). `term` or `content` alone make a set; its shown fields are null.
14. `conversionType`, `currency`: of the first conversion, null where that one has none; non-texts are null.
15. `activeSeconds` is null where no `session_end` has an `activeTime` that counts. Negative numbers count.
16. `userId` is of the latest identification even where that one names none (then null); non-texts are null. `traits`
    that are an empty object or no object are none. An identification is for the visitor of its session, whatever the
    event itself names.
17. Scores are taken from the rounded averages. TTFB with a placeholder `navigationType` is left out of the averages
    whatever its value.
18. Integral floats up to 2^53 are written as integers everywhere; larger ones stay floats.
19. Canonical JSON: Python's `json.dumps(ensure_ascii=False)`; texts and keys in order of code points.
20. A repeat of a skewed fact (5.8) is a duplicate also where its own time is inside the window by now.
21. A report that was once held and then replaced is `superseded` when it comes again, not `duplicate`.
22. 16 KiB of an item are measured on its canonical JSON; the item itself is the first of its 16 levels.
23. Derived ids come from the item as sent, without what its beacon adds (funnel, user agent, address).
24. An object with a list `events` is the body form of 2.2, any other object one event. More than 100 items are all
    rejected.
25. A client's `bot` comes from the caller's User-Agent dict (key `bot`), else null.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from typing import Any
from urllib.parse import parse_qs, urlsplit

Object = dict[str, Any]
UserAgentClient = Mapping[str, str | None]

METRICS = ("LCP", "INP", "CLS", "FCP", "TTFB", "FID")
LIMITS = {
    "LCP": (2500, 4000),
    "INP": (200, 500),
    "CLS": (0.1, 0.25),
    "FCP": (1800, 3000),
    "TTFB": (800, 1800),
    "FID": (100, 300),
}
PENALTIES = {"LCP": (15, 30), "INP": (12, 25), "CLS": (10, 20), "FCP": (7, 15), "TTFB": (5, 10)}
NAVIGATION_TYPES = (
    "navigate",
    "reload",
    "back-forward",
    "back-forward-cache",
    "prerender",
    "restore",
    "soft-navigation",
)
PLACEHOLDERS = ("back-forward-cache", "soft-navigation")
CONVERSIONS = ("conversion", "purchase", "checkout_completed")
DEVICE = ("deviceType", "browserName", "browserVersion", "osName", "osVersion")
PLACE = ("countryCode", "countryName", "region", "city")
UTM = ("source", "medium", "campaign", "term", "content")
DAY_MS = 86_400_000
LARGEST_INTEGER = 2**53


class WrongItemError(Exception):
    """The item is rejected; the text says why."""


@dataclass(frozen=True)
class Fact:
    """An item as stored; `content` is the fact of contract 6 with `client` as its object. `metric` None: an event."""

    funnel: str
    session: str
    metric: str | None
    id: str
    time: int
    skewed: bool
    content: Object

    @property
    def identity(self) -> tuple[str, str, str | None, str]:
        """Contract 5.2, within one site."""
        return (self.funnel, self.session, self.metric, self.id)

    @property
    def rank(self) -> tuple[Any, ...]:
        """Contract 5.2: of several reports the greatest wins."""
        if self.metric is None:
            return (self.time, canonical(self.content))
        return (self.time, self.content["seq"], self.content["value"], canonical(self.content))

    @property
    def place_in_session(self) -> tuple[Any, ...]:
        """Contract 5.3: the order of a session's facts."""
        if self.metric is None:
            return (self.time, 0, 0, self.id)
        return (self.time, 1, METRICS.index(self.metric), self.id)

    def but_for_its_time(self) -> Object:
        """What contract 5.8 compares for a wrong clock."""
        return {key: value for key, value in self.content.items() if key not in ("timestamp", "clockSkewed")}


def tidy(value: Any) -> Any:
    """JSON value as the export writes it: integral floats as integers, keys sorted."""
    if isinstance(value, float) and value.is_integer() and abs(value) <= LARGEST_INTEGER:
        return int(value)
    if isinstance(value, list):
        return [tidy(each) for each in value]
    if isinstance(value, dict):
        return {key: tidy(value[key]) for key in sorted(value)}
    return value


def canonical(value: Any) -> bytes:
    """Contract 5.2: sorted keys, no spaces, UTF-8."""
    return json.dumps(tidy(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def derive_id_from_content(item: Object) -> str:
    """A stable id for an item without one; the product's own differs, see `Reference`."""
    return hashlib.sha256(canonical(item)).hexdigest()[:32]


def iso(time: int) -> str:
    """1795330800000 -> 2026-11-22T07:00:00.000Z."""
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=time)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def rounded(value: float) -> int | float:
    """At 6 decimals, halves away from zero (contract 5.3, 5.4)."""
    # From 2**52 on, a double has no half left to add: Decimal knows what the digits are.
    if abs(value) * 1e6 >= 2**52:
        return tidy(float(Decimal(value).quantize(Decimal("0.000001"), ROUND_HALF_UP)))  # type: ignore[no-any-return]
    magnitude = math.floor(abs(value) * 1e6 + 0.5) / 1e6
    result: int | float = tidy(math.copysign(magnitude, value))
    return result


def rating_of(metric: str, value: float) -> str:
    """Contract 5.4, limits inclusive."""
    good, poor = LIMITS[metric]
    return "good" if value <= good else "needs-improvement" if value <= poor else "poor"


def missing(value: Any) -> bool:
    """`null` and '' (contract, at the top)."""
    return value is None or value == ""


def present(*values: Any) -> Any:
    """The first that is not missing, else None."""
    return next((value for value in values if not missing(value)), None)


def text(value: Any, cut: int | None = None) -> str | None:
    """A non-empty text, cut; anything else is None."""
    return value[:cut] if isinstance(value, str) and value else None


def identifier(value: Any) -> str | None:
    """A text of 1-128, else None."""
    return value if isinstance(value, str) and 1 <= len(value) <= 128 else None


def number(value: Any) -> int | float | None:
    """A JSON number of a typed field, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > LARGEST_INTEGER:
        return None
    result: int | float = tidy(value)
    return result


def integer(value: Any) -> int | None:
    """A JSON number without a fraction, else None."""
    found = number(value)
    return found if isinstance(found, int) else None


def an_object(value: Any) -> Object:
    """`value` where it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def path_of(url: str | None) -> str | None:
    """/a for https://x.test/a?b."""
    if url is None:
        return None
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    return text(parts.path, 2048) or "/"


def check(value: Any, level: int = 1) -> None:
    """What rejects an item wherever it stands (contract 2.1): not finite, lone surrogates, nesting over 16 levels."""
    if isinstance(value, str):
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise WrongItemError("lone surrogate")
    elif isinstance(value, int | float):
        try:
            finite = math.isfinite(value)
        except OverflowError:
            finite = False
        if not finite:
            raise WrongItemError("number not finite")
    elif isinstance(value, list | dict):
        if level > 16:
            raise WrongItemError("nesting over 16 levels")
        for each in value:
            check(each, level + 1)
        for each in value.values() if isinstance(value, dict) else ():
            check(each, level + 1)


def checked(item: object) -> Object:
    """The item as an object, or WrongItemError."""
    if not isinstance(item, dict):
        raise WrongItemError("not an object")
    check(item)
    if len(canonical(item)) > 16 * 1024:
        raise WrongItemError("over 16 KiB")
    return item


def client_of(said: Object, user_agent: UserAgentClient | None, address: str | None) -> Object | None:
    """`clients[]` of contract 6 from what the item says, the User-Agent and the address; None where all is unknown."""
    named = {key: _device_text(said.get(key)) for key in DEVICE}
    if not any(named.values()):
        named = {key: _device_text((user_agent or {}).get(key)) for key in DEVICE}
    client = {
        **named,
        "screenWidth": integer(said.get("screenWidth")),
        "screenHeight": integer(said.get("screenHeight")),
        "bot": (user_agent or {}).get("bot"),
        **dict.fromkeys(PLACE),
        "ipAddress": text(address),
    }
    return client if any(value is not None for value in client.values()) else None


def _device_text(value: Any) -> str | None:
    found = text(value, 128)
    return None if found is not None and found.lower() == "unknown" else found


def utm_of(event: Object) -> Object | None:
    """The UTM set of an event fact, None where it has none (contract 5.3)."""
    said = an_object(an_object(event["context"]).get("utm"))
    found = {key: text(said.get(key)) for key in UTM}
    if not any(found.values()):
        try:
            query = parse_qs(urlsplit(event["pageUrl"] or "").query, errors="replace")
        except ValueError:
            return None
        found = {key: query.get("utm_" + key, [None])[0] for key in UTM}
    return found if any(found.values()) else None


def counted(event: Object, name: str) -> int | float | None:
    """`revenue` or `activeTime` where it counts: a JSON number of magnitude <= 1e12 (contract 5.3)."""
    value = an_object(event["properties"]).get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e12:
        return None
    return value


class Reference:
    """One site. `now_ms` is the receive time of what comes next.

    `derive_id(item)` gives the id of an item without one; `read_user_agent(text)` reads an event's own
    `device.userAgent` as the caller reads the header's; `subaccounts` is funnel -> subaccountId.
    """

    def __init__(
        self,
        *,
        site: str = "default",
        now_ms: Callable[[], int],
        derive_id: Callable[[Object], str] = derive_id_from_content,
        read_user_agent: Callable[[str], UserAgentClient | None] | None = None,
        subaccounts: Mapping[str, str] | None = None,
    ) -> None:
        self.site = site
        self.now_ms = now_ms
        self.derive_id = derive_id
        self.read_user_agent = read_user_agent or (lambda _: None)
        self.subaccounts = subaccounts or {}
        self.facts: dict[tuple[str, str, str | None, str], Fact] = {}

    # ---- beacons in

    def web_vitals(
        self,
        body: object,
        *,
        user_agent_client: UserAgentClient | None,
        address: str | None,
        header_funnel: str | None = None,
    ) -> list[str]:
        """Contract 2.1: an object or an array; one of accepted, duplicate, superseded, rejected an item."""
        items = body if isinstance(body, list) else [body] if isinstance(body, dict) else []

        def read(item: Object) -> Fact:
            funnel = identifier(item.get("funnelId")) or identifier(header_funnel) or "default"
            return self._read_vital(item, funnel, user_agent_client, address)

        return self._take(items, read)

    def events(
        self,
        body: object,
        *,
        user_agent_client: UserAgentClient | None,
        address: str | None,
        header_funnel: str | None = None,
    ) -> list[str]:
        """Contract 2.2: `{"funnelId", "events"}`, one event or an array; answers as for `web_vitals`."""
        items: list[Any] = body if isinstance(body, list) else []
        body_funnel = None
        if isinstance(body, dict):
            in_body = isinstance(body.get("events"), list)
            items = body["events"] if in_body else [body]
            body_funnel = identifier(body.get("funnelId")) if in_body else None

        def read(item: Object) -> Fact:
            own = identifier(item.get("funnelId"))
            funnel = own or body_funnel or identifier(header_funnel) or "default"
            return self._read_event(item, funnel, user_agent_client, address)

        return self._take(items, read)

    def _take(self, items: list[Any], read: Callable[[Object], Fact]) -> list[str]:
        if len(items) > 100:
            return ["rejected"] * len(items)
        answers = []
        for item in items:
            try:
                answers.append(self._merge(read(checked(item))))
            except WrongItemError:
                answers.append("rejected")
        return answers

    def _merge(self, new: Fact) -> str:
        """Contract 5.2 and 5.8."""
        held = self.facts.get(new.identity)
        if held is not None:
            if canonical(new.content) == canonical(held.content):
                return "duplicate"
            if (new.skewed or held.skewed) and canonical(new.but_for_its_time()) == canonical(held.but_for_its_time()):
                return "duplicate"
            if new.rank < held.rank:
                return "superseded"
        self.facts[new.identity] = new
        return "accepted"

    def _time(self, value: Any) -> tuple[int, bool]:
        """The time a fact gets and whether the clock was wrong (contract 5.8)."""
        if isinstance(value, str):
            try:
                moment = datetime.fromisoformat(value)
            except ValueError as error:
                raise WrongItemError("timestamp") from error
            moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
            time = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
        else:
            said = number(value)
            if said is None:
                raise WrongItemError("timestamp")
            time = math.floor(said)
        now = self.now_ms()
        return (time, False) if now - 7 * DAY_MS <= time <= now + 300_000 else (now, True)

    def _read_vital(self, item: Object, funnel: str, user_agent: UserAgentClient | None, address: str | None) -> Fact:
        """Contract 2.1."""
        named = [not missing(item.get(key)) for key in ("name", "value", "id")]
        unlinked = [missing(item.get(key)) for key in ("sessionId", "anonymousId", "timestamp")]
        if all(named) and all(unlinked):
            raise LookupError("objects of the web-vitals library without a session are not modelled")
        session = identifier(item.get("sessionId"))
        url = present(item.get("pageUrl"), item.get("navigationURL"))
        if session is None or not isinstance(url, str):
            raise WrongItemError("sessionId or pageUrl")
        page = {"url": url, "path": item.get("pagePath"), "title": item.get("pageTitle")}
        return self._vital(
            item,
            funnel=funnel,
            session=session,
            visitor=identifier(item.get("anonymousId")),
            page=page,
            client=client_of(item, user_agent, address),
            timestamp=item.get("timestamp"),
            otherwise_id=lambda: self.derive_id(item),
        )

    def _vital(
        self,
        fields: Object,
        *,
        funnel: str,
        session: str,
        visitor: str | None,
        page: Object,
        client: Object | None,
        timestamp: Any,
        otherwise_id: Callable[[], str],
    ) -> Fact:
        named = present(fields.get("metric"), fields.get("name"))
        metric = named.upper() if isinstance(named, str) else ""
        value = number(fields.get("value"))
        if metric not in METRICS or value is None or not 0 <= value <= 10_000_000:
            raise WrongItemError("metric or value")
        time, skewed = self._time(timestamp)
        said = fields.get("rating")
        rating = said.lower().replace("_", "-") if isinstance(said, str) else ""
        seq = integer(fields.get("seq"))
        kind = fields.get("navigationType")
        url = text(page["url"], 2048)
        vital_id = identifier(fields.get("id")) or identifier(fields.get("id_metric")) or otherwise_id()
        content = {
            "metric": metric,
            "id": vital_id,
            "value": value,
            "rating": rating if rating in ("good", "needs-improvement", "poor") else rating_of(metric, value),
            "delta": number(fields.get("delta")),
            "navigationType": kind if kind in NAVIGATION_TYPES else None,
            "seq": seq if seq is not None and seq >= 0 else 0,
            "pageUrl": url,
            "pagePath": text(page["path"], 2048) or path_of(url),
            "pageTitle": text(page["title"], 512),
            "anonymousId": visitor,
            "client": client,
            "timestamp": iso(time),
            "clockSkewed": skewed,
        }
        return Fact(funnel, session, metric, vital_id, time, skewed, content)

    def _read_event(self, item: Object, funnel: str, user_agent: UserAgentClient | None, address: str | None) -> Fact:
        """Contract 2.2."""
        context = an_object(item.get("context"))
        session = identifier(an_object(context.get("session")).get("sessionId"))
        name = identifier(item.get("eventName"))
        if session is None or name is None:
            raise WrongItemError("session or eventName")
        event_id = identifier(item.get("eventId")) or self.derive_id(item)
        visitor = identifier(an_object(context.get("user")).get("anonymousId"))
        device = an_object(context.get("device"))
        own_agent = text(device.get("userAgent"))
        client = client_of(device, self.read_user_agent(own_agent) if own_agent else user_agent, address)
        page = an_object(context.get("page"))
        said = item.get("properties")
        if name == "web_vital":
            fields = an_object(said)
            url = text(page.get("url")) or text(fields.get("pageUrl")) or text(fields.get("navigationURL"))
            if url is None:
                raise WrongItemError("pageUrl")
            return self._vital(
                fields,
                funnel=funnel,
                session=session,
                visitor=visitor,
                page={
                    "url": url,
                    "path": text(page.get("path")) or fields.get("pagePath"),
                    "title": text(page.get("title")) or fields.get("pageTitle"),
                },
                client=client,
                timestamp=item.get("timestamp"),
                otherwise_id=lambda: event_id,
            )
        time, skewed = self._time(item.get("timestamp"))
        page_url = text(page.get("url"), 2048)
        kept = {key: value for key, value in context.items() if key not in ("session", "page", "device")}
        content = {
            "eventId": event_id,
            "eventName": name,
            "properties": tidy(said) if isinstance(said, dict) else None,
            "pageUrl": page_url,
            "pagePath": text(page.get("path"), 2048) or path_of(page_url),
            "pageTitle": text(page.get("title"), 512),
            "referrer": text(page.get("referrer"), 2048),
            "context": tidy(kept) or None,
            "anonymousId": visitor,
            "client": client,
            "timestamp": iso(time),
            "clockSkewed": skewed,
        }
        return Fact(funnel, session, None, event_id, time, skewed, content)

    # ---- documents out

    def export(self) -> list[Object]:
        """Session documents of contract 6, sorted by (site, funnelId, sessionId), keys in its order."""
        sessions: dict[tuple[str, str], list[Fact]] = {}
        for fact in sorted(self.facts.values(), key=lambda fact: fact.place_in_session):
            sessions.setdefault((fact.funnel, fact.session), []).append(fact)
        visitor_of = {
            key: next((fact.content["anonymousId"] for fact in facts if fact.content["anonymousId"]), None)
            for key, facts in sessions.items()
        }
        documents = []
        for (funnel, session), facts in sorted(sessions.items()):
            visitor = visitor_of[funnel, session]
            own = [each for key, each in sessions.items() if visitor_of[key] == visitor]
            documents.append(
                {
                    "type": "session",
                    "version": 1,
                    "site": self.site,
                    "funnelId": funnel,
                    "subaccountId": self.subaccounts.get(funnel),
                    "sessionId": session,
                    "revision": 0,
                    "finished": False,
                    "provisional": all(fact.metric is not None for fact in facts),
                    "visitor": None if visitor is None else derive_visitor(visitor, own),
                    **derive_session(facts),
                    **lists_of(facts),
                }
            )
        return documents


def derive_session(facts: list[Fact]) -> Object:
    """The scalar fields of contract 6 from `startedAt` on; `facts` of one session in the order of 5.3."""
    contents = [fact.content for fact in facts]
    events = [fact.content for fact in facts if fact.metric is None]
    conversions = [event for event in events if event["eventName"] in CONVERSIONS]
    revenues = [value for event in conversions if (value := counted(event, "revenue")) is not None]
    ends = [event for event in events if event["eventName"] == "session_end"]
    active = [value for event in ends if (value := counted(event, "activeTime")) is not None]
    first_conversion = an_object(conversions[0]["properties"]) if conversions else {}
    pages = [content["pageUrl"] for content in contents if content["pageUrl"]]
    campaigns = [utm for event in events if (utm := utm_of(event)) is not None]
    clients = [content["client"] for content in contents if content["client"]]
    devices = [client for client in clients if any(client[key] for key in DEVICE)]
    places = [client for client in clients if any(client[key] for key in PLACE)]
    averages = {metric: average(metric, contents) for metric in PENALTIES}
    started = min(fact.time for fact in facts)
    ended = max(fact.time for fact in facts)
    first_utm = campaigns[0] if campaigns else {}
    last_utm = campaigns[-1] if campaigns else {}
    return {
        "startedAt": iso(started),
        "endedAt": iso(ended),
        "durationSeconds": (ended - started) // 1000,
        "pageViews": len([event for event in events if event["eventName"] == "page_view"]),
        "eventsCount": len(events),
        "converted": bool(conversions),
        "conversionType": text(first_conversion.get("conversionType")),
        "conversionValue": rounded(math.fsum(revenues)) if revenues else None,
        "currency": text(first_conversion.get("currency")),
        "firstPageUrl": pages[0] if pages else None,
        "lastPageUrl": pages[-1] if pages else None,
        "firstReferrer": next((event["referrer"] for event in events if event["referrer"]), None),
        "firstSource": first_utm.get("source"),
        "firstMedium": first_utm.get("medium"),
        "firstCampaign": first_utm.get("campaign"),
        "lastSource": last_utm.get("source"),
        "lastMedium": last_utm.get("medium"),
        "lastCampaign": last_utm.get("campaign"),
        **{key: devices[0][key] if devices else None for key in DEVICE},
        **{key: places[0][key] if places else None for key in PLACE},
        "ipAddress": next((client["ipAddress"] for client in clients if client["ipAddress"]), None),
        "avgLcp": averages["LCP"],
        "avgInp": averages["INP"],
        "avgCls": averages["CLS"],
        "avgFcp": averages["FCP"],
        "avgTtfb": averages["TTFB"],
        "experienceScore": score(averages),
        "activeSeconds": rounded(math.fsum(active)) if active else None,
    }


def average(metric: str, contents: list[Object]) -> int | float | None:
    """The mean over a session's vitals of one metric (contract 5.4)."""
    values = [
        content["value"]
        for content in contents
        if content.get("metric") == metric and not (metric == "TTFB" and content["navigationType"] in PLACEHOLDERS)
    ]
    return rounded(math.fsum(values) / len(values)) if values else None


def score(averages: Mapping[str, float | None]) -> int | None:
    """`experienceScore` of contract 5.4."""
    result = 100
    rated = [(metric, value) for metric, value in averages.items() if value is not None]
    for metric, value in rated:
        needs_improvement, poor = PENALTIES[metric]
        result -= {"good": 0, "needs-improvement": needs_improvement, "poor": poor}[rating_of(metric, value)]
    return max(result, 0) if rated else None


def derive_visitor(visitor: str, sessions: Iterable[list[Fact]]) -> Object:
    """The document's `visitor` from the facts of all its sessions (contract 5.5)."""
    sessions = list(sessions)
    facts = [fact for facts in sessions for fact in facts]
    events = [fact for fact in facts if fact.metric is None]
    identifications = sorted(
        (fact for fact in events if fact.content["eventName"] == "user_identified"),
        key=lambda fact: (fact.time, fact.funnel, fact.session, fact.id),
    )
    said = [an_object(fact.content["properties"]) for fact in identifications]
    traits = next((each for one in reversed(said) if (each := an_object(one.get("traits")))), None)
    user = text(said[-1].get("userId")) if said else None
    name = text((traits or {}).get("name")) or text((traits or {}).get("email"))
    return {
        "anonymousId": visitor,
        "displayName": name or user or "Visitor #" + visitor[-6:],
        "firstSeen": iso(min(fact.time for fact in facts)),
        "lastSeen": iso(max(fact.time for fact in facts)),
        "totalSessions": len(sessions),
        "totalEvents": len(events),
        "userId": user,
        "traits": traits,
    }


def lists_of(facts: list[Fact]) -> Object:
    """`clients`, `webVitals`, `events` of contract 6; `facts` of one session in the order of 5.3."""
    clients: list[Object] = []
    for fact in facts:
        if fact.content["client"] is not None and fact.content["client"] not in clients:
            clients.append(fact.content["client"])

    def written(fact: Fact) -> Object:
        client = fact.content["client"]
        return {**fact.content, "client": None if client is None else clients.index(client)}

    ordered = sorted(facts, key=lambda fact: (fact.time, fact.id, fact.metric or ""))
    return {
        "clients": clients,
        "webVitals": [written(fact) for fact in ordered if fact.metric is not None],
        "events": [written(fact) for fact in ordered if fact.metric is None],
    }
