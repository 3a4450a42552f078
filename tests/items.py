"""Hypothesis strategies for item sets that hit the edges of the law of merging (contract 5).

All pools are tiny, and every set holds variations of its own items, so that ids, timestamps and contents collide.
`deliveries` stays inside the time window of contract 5.8 (with room for a clock that goes on during a test),
`skewed_deliveries` stays outside it, and `groupings` draws one way in which deliveries could arrive.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, Literal

from hypothesis import strategies as st
from hypothesis.strategies import DataObject, DrawFn, SearchStrategy

Object = dict[str, Any]
Path = Literal["web-vitals", "events"]


@dataclass(frozen=True)
class Delivery:
    """One item on its way: contract 5.1 "each with its user agent and address"."""

    path: Path
    item: Object
    user_agent: str
    address: str


@dataclass(frozen=True)
class Beacon:
    """One request; `items` is what `body` holds, in order."""

    path: Path
    body: object
    items: tuple[Object, ...]
    user_agent: str
    address: str


CHROME_LINUX = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.0.0 Safari/537.36"
SAFARI_IPHONE = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5_1 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
    "Version/17.5 Mobile/15E148 Safari/604.1"
)
FIREFOX_WINDOWS = "Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:133.0) Gecko/20100101 Firefox/133.0"
CHROME_ANDROID = (
    "Mozilla/5.0 (Linux; Android 14; Pixel 8) AppleWebKit/537.36 (KHTML, like Gecko) "
    "Chrome/131.0.6778.81 Mobile Safari/537.36"
)
USER_AGENTS = (CHROME_LINUX, SAFARI_IPHONE, FIREFOX_WINDOWS, CHROME_ANDROID)
ADDRESSES = ("127.0.0.1", "127.0.0.2", "127.8.0.1", "2001:db8:1:2:3:4:5:6", "2001:db8:9::1")


def client_of(user_agent: str) -> dict[str, str | None]:
    """What a reader of User-Agents could say of the pool; a product's reader may use other names."""
    names = ("deviceType", "browserName", "browserVersion", "osName", "osVersion")
    values: dict[str, tuple[str | None, ...]] = {
        CHROME_LINUX: ("desktop", "Chrome", "131.0.0.0", "Linux", None),
        SAFARI_IPHONE: ("mobile", "Mobile Safari", "17.5", "iOS", "17.5.1"),
        FIREFOX_WINDOWS: ("desktop", "Firefox", "133.0", "Windows", "10"),
        CHROME_ANDROID: ("mobile", "Chrome Mobile", "131.0.6778.81", "Android", "14"),
    }
    return dict(zip(names, values[user_agent], strict=True))


# Orders of code points, UTF-16 units and bytes differ for the last two.
IDS = st.sampled_from(["v5-1", "v5-2", "V5-1", "é", "\uff5a", "\U0001f600"])
SESSIONS = st.sampled_from(["s-1", "s-1", "s-1", "s-2", "S-1"])
FUNNELS = st.sampled_from([None, None, "landing", "default", "", 7, "f" * 129])
VISITORS = st.sampled_from(
    [None, None, None, *["visitor-aaaaaa"] * 4, "visitor-bbbbbb", "visitor-bbbbbb", "v", "", 5, "x" * 129]
)
URLS = st.sampled_from(
    [
        "https://shop.test/",
        "https://shop.test",
        "https://shop.test/a?utm_source=mail&utm_medium=&utm_campaign=sp%C3%A4t+1",
        "https://shop.test/a?utm_source=ads&utm_source=two&gclid=abc#utm_medium=no",
        "https://shop.test/a?utm_term=only",
        "/relative?utm_medium=rel",
        "https://shop.test/" + "long" * 520,
    ]
)
NOTHING: SearchStrategy[Object] = st.builds(dict)
WRONG_TEXTS: SearchStrategy[Any] = st.sampled_from([None, "", 5, True, [], {}])
TITLES = st.one_of(st.sampled_from(["Home", "Ünïcode", "\U0001f600" * 513]), WRONG_TEXTS)
VALUES = st.sampled_from(
    [0, 0.0, -0.0, 0.02, 0.15, 0.1, 0.25, 5e-7, 116, 116.0, 200.5, 1234.5678915, 2500, 2500.000001, 4000.5, 1e7]
)
STRANGE_NUMBERS: SearchStrategy[Any] = st.sampled_from(
    [49.9, 0, 0.1, 0.2, 1e-7, 2.5e-6, -5.25, 30, 30.0, "49.90", True, None, {}, 1e12, 1e13, 10**15, -1e12]
)
DEVICE: dict[str, SearchStrategy[Any]] = {
    "deviceType": st.sampled_from(["mobile", "tablet", "Unknown", "", None, 3, "d" * 200]),
    "browserName": st.sampled_from(["Opera", "Unknown", "", False]),
    "browserVersion": st.sampled_from(["1.2", 12, None]),
    "osName": st.sampled_from(["Plan 9", "Unknown"]),
    "osVersion": st.sampled_from(["4", 4]),
    "screenWidth": st.sampled_from([1920, 1920.0, 1920.5, "1920", True, 2**53 + 1]),
    "screenHeight": st.sampled_from([1080, None]),
}
TRAITS = st.sampled_from(
    [
        None,
        {},
        5,
        {"name": "Ada"},
        {"name": "", "email": "ada@shop.test"},
        {"name": 5, "plan": 2.0},
        {"email": "b@shop.test", "name": "Béa", "deep": {"z": [1.0, None], "a": ""}},
    ]
)
UTMS = st.sampled_from(
    [
        {"source": "news", "medium": "email", "campaign": "autumn"},
        {"source": "", "campaign": "alone"},
        {"content": "only"},
        {"source": 5, "medium": None},
        {},
        "no object",
    ]
)


def _weighted(*strategies: SearchStrategy[Any]) -> SearchStrategy[Any]:
    """One of `strategies`, each as often as it is given (`one_of` would count equal ones once)."""
    return st.integers(0, len(strategies) - 1).flatmap(strategies.__getitem__)


def _rarely(strategy: SearchStrategy[Object], share: int) -> SearchStrategy[Object]:
    """`strategy` in one of `share` draws, else an empty object."""
    return _weighted(*[NOTHING] * (share - 1), strategy)


def _times(now_ms: int) -> SearchStrategy[Any]:
    """Timestamps inside the window, in every notation of contract 2.1."""
    base = now_ms - 3 * 86_400_000
    offsets = [0, 0, 1, 999, 1000, 1001, 61_500]
    moments = [base + offset for offset in offsets] + [now_ms - 6 * 86_400_000, now_ms - 1000, now_ms + 120_000]
    return st.builds(_written, st.sampled_from(moments), st.sampled_from(NOTATIONS))


def _skewed_times(now_ms: int) -> SearchStrategy[Any]:
    """Timestamps outside the window: stopped, fast and slow clocks, seconds for milliseconds."""
    day = 86_400_000
    far = [0, -5, now_ms // 1000, now_ms - 8 * day, now_ms - 30 * day, now_ms + 3_600_000, now_ms + 400 * day]
    return st.one_of(
        st.builds(_written, st.sampled_from(far), st.sampled_from(NOTATIONS)), st.sampled_from([1e15, 2**53])
    )


def _moment(time: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=time)


NOTATIONS: list[Callable[[int], Any]] = [
    lambda time: time,
    lambda time: float(time),
    lambda time: time + 0.75,
    lambda time: _moment(time).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
    lambda time: _moment(time).astimezone(timezone(timedelta(hours=2))).isoformat(timespec="milliseconds"),
    lambda time: _moment(time).replace(tzinfo=None).isoformat(timespec="milliseconds"),
    lambda time: (_moment(time) + timedelta(microseconds=999)).isoformat(timespec="microseconds"),
]


def _written(time: int, notation: Callable[[int], Any]) -> Any:
    return notation(time)


def _report() -> SearchStrategy[Object]:
    """The fields of a vital that are the same in an item of 2.1 and in the properties of a `web_vital` event."""
    return st.fixed_dictionaries(
        {
            "metric": st.sampled_from(["LCP", "INP", "inp", "Cls", "CLS", "FCP", "TTFB", "TTFB", "FID"]),
            "value": VALUES,
            "id": _weighted(*[IDS] * 5, WRONG_TEXTS),
        },
        optional={
            "seq": st.sampled_from([0, 1, 2, 1.0, -1, "1", None, 1.5, True]),
            "rating": st.sampled_from(["good", "Needs_Improvement", "POOR", "bad", 5, None]),
            "delta": st.sampled_from([0, -0.25, 12.0, 2**53 + 1, "1", None]),
            "navigationType": st.sampled_from(
                ["navigate", "back-forward-cache", "soft-navigation", "restore", "other", 5]
            ),
        },
    )


def _renamed(item: Object, names: Object) -> Object:
    return {names.get(key, key): value for key, value in item.items()}


def _aliases(**names: str) -> SearchStrategy[Object]:
    return _rarely(st.fixed_dictionaries({}, optional={key: st.just(value) for key, value in names.items()}), 3)


def _vitals(times: SearchStrategy[Any]) -> SearchStrategy[Object]:
    """Items of contract 2.1, some of them wrong."""
    page = st.fixed_dictionaries(
        {"sessionId": SESSIONS, "timestamp": times, "pageUrl": URLS, "anonymousId": VISITORS, "funnelId": FUNNELS},
        optional={"pageTitle": TITLES, "pagePath": st.one_of(st.just("/said"), WRONG_TEXTS)},
    )
    wrong: SearchStrategy[Object] = st.sampled_from(
        [
            {"value": -1},
            {"value": "5"},
            {"value": True},
            {"value": 10_000_001},
            {"sessionId": ""},
            {"sessionId": 5},
            {"sessionId": "s" * 129},
            {"metric": "XYZ", "name": "LCP"},
            {"timestamp": "yesterday"},
            {"timestamp": True},
            {"pageUrl": 5},
            {"pageUrl": None},
        ]
    )
    unknown = st.just({"entries": [{"name": "x"}], "attribution": {"target": "#a"}, "other": None})
    names = _aliases(metric="name", pageUrl="navigationURL", id="id_metric")
    return st.builds(
        lambda page, report, device, unknown, wrong, names: _renamed(
            {**page, **report, **device, **unknown, **wrong}, names
        ),
        page,
        _report(),
        _rarely(st.fixed_dictionaries({}, optional=DEVICE), 3),
        _rarely(unknown, 6),
        _rarely(wrong, 15),
        names,
    )


def _contexts() -> SearchStrategy[Object]:
    """`context` of contract 2.2."""
    named = st.fixed_dictionaries({"anonymousId": VISITORS}, optional={"userId": st.just("u-7")})
    user = _weighted(*[named] * 5, st.sampled_from([None, 5]))
    page = st.fixed_dictionaries(
        {"url": _weighted(URLS, URLS, WRONG_TEXTS)},
        optional={
            "path": st.one_of(st.just("/said"), WRONG_TEXTS),
            "title": TITLES,
            "referrer": st.sampled_from(["https://search.test/?q=a", "https://news.test/", "", None, 5]),
        },
    )
    device = st.fixed_dictionaries(
        {},
        optional={
            **DEVICE,
            "userAgent": st.sampled_from([*USER_AGENTS, "", None, 5]),
            "language": st.just("de"),
            "ipAddress": st.just("203.0.113.9"),
        },
    )
    sometimes = st.fixed_dictionaries(
        {},
        optional={
            "utm": UTMS,
            "clickIds": st.sampled_from([{"gclid": "g1"}, {"fbclid": "f1", "gclid": 2.0}, {}, None]),
            "gdpr": st.just({"consentVersion": "2", "consentGiven": True}),
            "other": st.sampled_from([1.0, {"b": 1, "a": None}]),
        },
    )
    paged = st.fixed_dictionaries({"page": _weighted(*[page] * 5, st.sampled_from([None, "page"]))})
    devices = st.fixed_dictionaries({"device": _weighted(*[device] * 5, st.sampled_from([None, []]))})
    return st.builds(
        lambda parts, page, device, sometimes: {**parts, **page, **device, **sometimes},
        st.fixed_dictionaries({"session": SESSIONS.map(lambda each: {"sessionId": each}), "user": user}),
        _weighted(NOTHING, paged, paged),
        _rarely(devices, 3),
        _rarely(sometimes, 2),
    )


PROPERTIES: dict[str, SearchStrategy[Any]] = {
    "page_view": st.sampled_from([None, {}, {"b": 1.0, "a": [True, {"z": None, "y": ""}]}, "text"]),
    "session_end": st.fixed_dictionaries({"activeTime": STRANGE_NUMBERS}, optional={"idleTime": STRANGE_NUMBERS}),
    "user_identified": st.fixed_dictionaries(
        {"userId": st.sampled_from(["u-1", "u-2", "", None, 5]), "traits": TRAITS}
    ),
    "cta click": st.sampled_from([None, {"n": 1e20, "m": 2**60, "o": -0.0, "p": "é"}]),
} | dict.fromkeys(
    ("conversion", "purchase", "checkout_completed"),
    st.fixed_dictionaries(
        {"revenue": STRANGE_NUMBERS},
        optional={
            "currency": st.sampled_from(["EUR", "USD", "", 5]),
            "conversionType": st.sampled_from(["signup", "order", None, []]),
            "orderId": st.just("o-1"),
        },
    ),
)


def _events(times: SearchStrategy[Any]) -> dict[str, SearchStrategy[Object]]:
    """Events of contract 2.2 by their kind, some of them wrong."""
    contexts = _contexts()
    wrong: SearchStrategy[Object] = _rarely(
        st.sampled_from(
            [
                {"eventName": ""},
                {"eventName": 5},
                {"timestamp": None},
                {"context": None},
                {"context": {"session": "s-1"}},
            ]
        ),
        15,
    )

    def named(name: str, properties: SearchStrategy[Any]) -> SearchStrategy[Object]:
        return st.fixed_dictionaries(
            {
                "eventId": _weighted(*[IDS] * 5, WRONG_TEXTS),
                "eventName": st.just(name),
                "timestamp": times,
                "funnelId": FUNNELS,
                "properties": properties,
                "context": contexts,
            }
        )

    def with_page(event: Object, url: Any) -> Object:
        # A `web_vital` without a page is an open question of the contract, so that each has one here.
        said = event["context"].get("page")
        page = {**(said if isinstance(said, dict) else {}), "url": url}
        return {**event, "context": {**event["context"], "page": page}}

    report = st.builds(_renamed, _report(), _aliases(metric="name", id="id_metric"))
    kinds = {name: named(name, properties) for name, properties in PROPERTIES.items()}
    kinds["web_vital"] = st.builds(with_page, named("web_vital", report), URLS)
    return {kind: st.builds(lambda event, wrong: {**event, **wrong}, each, wrong) for kind, each in kinds.items()}


def _sets(times: SearchStrategy[Any], most: int) -> SearchStrategy[list[Delivery]]:
    """Fresh items of few kinds, then variations: the same identity with another time, value, content or sender."""
    kinds: dict[str, SearchStrategy[tuple[Path, Object]]] = {
        "vital": st.tuples(st.just("web-vitals"), _vitals(times)),
        **{kind: st.tuples(st.just("events"), events) for kind, events in _events(times).items()},
    }
    all_senders = st.lists(st.tuples(st.sampled_from(USER_AGENTS), st.sampled_from(ADDRESSES)), min_size=1, max_size=3)
    themes = st.lists(
        st.sampled_from(["vital", "vital", "user_identified", "page_view", *kinds]), min_size=1, max_size=4
    )
    timed: dict[str, SearchStrategy[Any]] = {"timestamp": times}
    vital_changes = st.fixed_dictionaries(
        {}, optional={**timed, "value": VALUES, "seq": st.integers(0, 2), "pageTitle": TITLES}
    )
    event_changes = st.fixed_dictionaries({}, optional=timed)
    reports = st.fixed_dictionaries({}, optional={"value": VALUES, "seq": st.integers(0, 2)})

    @st.composite
    def draw_set(draw: DrawFn) -> list[Delivery]:
        senders = st.sampled_from(draw(all_senders))
        theme = st.sampled_from(draw(themes)).flatmap(kinds.__getitem__)
        fresh = draw(st.lists(theme, min_size=1, max_size=most))
        varied = []
        for index in draw(st.lists(st.integers(0, len(fresh) - 1), max_size=most)):
            path, item = deepcopy(fresh[index])
            if path == "web-vitals":
                item |= draw(vital_changes)
            else:
                item |= draw(event_changes)
                if item["eventName"] == "web_vital":
                    item["properties"] |= draw(reports)
                elif item["eventName"] in PROPERTIES:
                    item["properties"] = draw(PROPERTIES[item["eventName"]])
            varied.append((path, item))
        return [Delivery(path, item, *draw(senders)) for path, item in fresh + varied]

    return draw_set()


def deliveries(now_ms: int, most: int = 12) -> SearchStrategy[list[Delivery]]:
    """Item sets with every timestamp inside the window: 1 to `most` fresh items and up to `most` variations."""
    return _sets(_times(now_ms), most)


def skewed_deliveries(now_ms: int, most: int = 12) -> SearchStrategy[list[Delivery]]:
    """As `deliveries`, with wrong clocks; contract 5.1 does not hold for these."""
    return _sets(_skewed_times(now_ms), most)


def groupings(data: DataObject, sent: list[Delivery]) -> list[Beacon]:
    """One way for `sent` to arrive: a random order, repeats, and grouping into beacons of one sender and path."""
    repeats = data.draw(st.lists(st.integers(0, len(sent) - 1), max_size=len(sent)), label="repeats")
    order = data.draw(st.permutations([*range(len(sent)), *repeats]), label="order")
    groups: list[list[Delivery]] = []
    opened: dict[tuple[str, str, str], list[Delivery]] = {}
    for index in order:
        one = sent[index]
        sender = (one.path, one.user_agent, one.address)
        group = opened.get(sender)
        if group is None or len(group) >= 100 or not data.draw(st.booleans()):
            group = opened[sender] = []
            groups.append(group)
        group.append(one)
    return [_beacon(data, group) for group in groups]


def _beacon(data: DataObject, group: list[Delivery]) -> Beacon:
    first = group[0]
    items = [deepcopy(one.item) for one in group]
    forms = ["array", "body"] if first.path == "events" else ["array"]
    form = data.draw(st.sampled_from([*forms, "single"] if len(items) == 1 else forms))
    body: object = items
    if form == "single":
        body = items[0]
    elif form == "body":
        body = _body(data, items)
    return Beacon(first.path, body, tuple(items), first.user_agent, first.address)


def _body(data: DataObject, items: list[Object]) -> Object:
    """The form `{"funnelId", "events"}`, with a funnel of its own only where that leaves every item in its funnel."""
    funnels = {item["funnelId"] for item in items if _is_identifier(item.get("funnelId"))}
    if not all(_is_identifier(item.get("funnelId")) for item in items):
        return {"events": items, "sentAt": "ignored"} if data.draw(st.booleans()) else {"events": items}
    body_funnel = data.draw(st.sampled_from([*sorted(funnels), "never used"]), label="funnel of the body")
    for item in items:
        # An item without an eventId may get one from its content, so that its funnel has to stay where it was.
        if item["funnelId"] == body_funnel and _is_identifier(item.get("eventId")) and data.draw(st.booleans()):
            del item["funnelId"]
    return {"funnelId": body_funnel, "events": items}


def _is_identifier(value: object) -> bool:
    return isinstance(value, str) and 1 <= len(value) <= 128
