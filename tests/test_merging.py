"""The law of merging, clause by clause: directed cases on the product itself, each small enough to say what broke.

Every set of items is delivered in several orders, alone and as one group, each time to a file of its own: all must end
the same and verify clean. So a case is a list of items and the figures that anyone can work out from them by hand.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from sidecar.canonical import to_iso
from sidecar.model import Fact, Place
from sidecar.store.database import immediate, snapshot
from sidecar.store.facts import Recording, record
from sidecar.store.queries import Filters, percentile_vitals
from tests.items import CHROME_LINUX, SAFARI_IPHONE, Delivery, Object
from tests.local import RULES, TIMEOUT_MS, LocalSidecar, dump, read

NOW = 1_795_330_800_000  # 2026-11-22T07:00:00.000Z
T = NOW - 3_600_000  # 2026-11-22T06:00:00.000Z
DAY = 86_400_000
PLAIN = "Plain/1.0"  # a user agent that names no device
BERLIN, PARIS, NOWHERE = "192.0.2.7", "198.51.100.7", "203.0.113.7"
PLACES = {BERLIN: Place("DE", "Germany", "Berlin", None), PARIS: Place("FR", "France", None, "Paris")}


class Atlas:
    """Two addresses that are somewhere."""

    def find(self, address: str | None) -> Place:
        """The place of an address."""
        return PLACES.get(address or "", Place())


def vital(
    metric: str = "LCP", value: float = 100, at: float = 0, *, agent: str = PLAIN, address: str = "", **fields: Any
) -> Delivery:
    """A report `at` ms after T of the instance v, in session s, from nobody known, but for what is given."""
    item = {"sessionId": "s", "metric": metric, "value": value, "id": "v", "timestamp": T + at, "pageUrl": "/"}
    return Delivery("web-vitals", item | fields, agent, address)


def event(
    name: str = "page_view",
    at: float = 0,
    *,
    session: str = "s",
    visitor: str | None = None,
    page: Object | None = None,
    agent: str = PLAIN,
    address: str = "",
    context: Object | None = None,
    **fields: Any,
) -> Delivery:
    """An event `at` ms after T, with the id name@at, in session s, from nobody known, but for what is given."""
    said: Object = {"session": {"sessionId": session}} | (context or {})
    said |= {} if visitor is None else {"user": {"anonymousId": visitor}}
    said |= {} if page is None else {"page": page}
    item = {"eventId": f"{name}@{at}", "eventName": name, "timestamp": T + at, "context": said}
    return Delivery("events", item | fields, agent, address)


def identified(at: float, **properties: Any) -> Delivery:
    """A `user_identified` of session s, which says no visitor id of its own."""
    return event("user_identified", at, properties=properties)


def url(text: str) -> Object:
    """A page with that address."""
    return {"url": text}


class Held(NamedTuple):
    """What a file holds: the documents of an export, the ids in `visitors`, first and last click ids by session."""

    documents: list[Object]
    visitors: list[str]
    clicks: list[tuple[Object | None, Object | None]]

    @property
    def session(self) -> Object:
        """The only session."""
        [document] = self.documents
        return document

    def figures(self, names: Iterable[str]) -> Object:
        """Some fields of the only session."""
        return {name: self.session[name] for name in names}


Merge = Callable[..., Held]


def send(sidecar: LocalSidecar, *sent: Delivery) -> list[str]:
    """Each item as a beacon of its own; the outcomes."""
    return [out for one in sent for out in sidecar.send(one.path, one.item, one.user_agent, one.address)]


def facts_of(sidecar: LocalSidecar, sent: Iterable[Delivery]) -> list[Fact]:
    """What the items are to the store."""
    said = [read(one.path, dump(one.item), sidecar.now, one.user_agent, one.address, sidecar.rules) for one in sent]
    return [fact for [fact] in said if not isinstance(fact, str)]


def store(sidecar: LocalSidecar, facts: Sequence[Fact]) -> list[tuple[str, str | None]]:
    """All facts in one transaction; outcome and reason of each."""
    with immediate(sidecar.conn):
        [recorded] = record(sidecar.conn, [Recording([*enumerate(facts)], sidecar.now)])
    return [(str(judged.outcome), judged.reason) for judged in recorded.judged]


def look(sidecar: LocalSidecar) -> Held:
    """What there is; it must verify clean."""
    assert sidecar.findings() == []
    visitors = sidecar.conn.execute("SELECT anonymous_id FROM visitors ORDER BY anonymous_id").fetchall()
    clicks = sidecar.conn.execute("SELECT first_click_ids, last_click_ids FROM sessions ORDER BY session_id").fetchall()
    read_ids = [(json.loads(first or "null"), json.loads(last or "null")) for first, last in clicks]
    return Held(sidecar.export_documents(), [name for (name,) in visitors], read_ids)


def orders(sent: Sequence[Delivery]) -> list[Sequence[Delivery]]:
    """All orders of few items, some of many; the one that is given comes first, its reverse last."""
    if len(sent) <= 3:
        return list(itertools.permutations(sent))
    return [sent, [*sent[1::2], *sent[::2]], [*sent[len(sent) // 2 :], *sent[: len(sent) // 2]], sent[::-1]]


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new file, to be copied: that is quicker than to make one."""
    path = tmp_path_factory.mktemp("merging") / "empty.db"
    LocalSidecar(path, NOW).conn.close()
    return path


@pytest.fixture
def merge(empty: Path, tmp_path: Path) -> Merge:
    """Delivers items in every order and returns what is held; it must be the same each time."""
    numbers = itertools.count()

    def merged(sent: Sequence[Delivery], *, grouped: bool) -> Held:
        path = tmp_path / f"{next(numbers)}.db"
        shutil.copyfile(empty, path)
        with LocalSidecar(path, NOW, RULES._replace(places=Atlas())) as sidecar:
            if grouped:
                store(sidecar, facts_of(sidecar, sent))
            else:
                send(sidecar, *sent)
            held = look(sidecar)
            assert "accepted" not in send(sidecar, *sent), "all was held"
            assert look(sidecar) == held
        return held

    def merge_all(*sent: Delivery) -> Held:
        tried = orders(sent)
        held = [merged(order, grouped=False) for order in tried]
        held += [merged(order, grouped=True) for order in (tried[0], tried[-1])]
        for other in held:
            assert json.dumps(other) == json.dumps(held[0])
        return held[0]

    return merge_all


@pytest.fixture
def sidecar(empty: Path, tmp_path: Path) -> Iterator[LocalSidecar]:
    """One file, for cases where the order is the point."""
    shutil.copyfile(empty, tmp_path / "one.db")
    with LocalSidecar(tmp_path / "one.db", NOW) as opened:
        yield opened
        assert opened.findings() == []


# --- 2 identity and the newest report --------------------------------------------------------------------------------

CONTEXT_A, CONTEXT_B = ({"gdpr": {"consentVersion": version}} for version in "ab")
REPORTS = {
    "the time counts before seq and value": (vital("INP", 480, 0, seq=9), vital("INP", 120, 1)),
    "one ms is enough": (vital("LCP", 900, 10), vital("LCP", 800, 11)),
    "seq counts before the value": (vital("INP", 480, seq=1), vital("INP", 120, seq=2)),
    "seq is a number": (vital("INP", 480, seq=9), vital("INP", 120, seq=10)),
    "then the value": (vital("CLS", 0.02), vital("CLS", 0.15)),
    "the value is a number": (vital("LCP", 9.5, delta=99), vital("LCP", 10, delta=1)),
    "then the content: its keys are sorted": (
        vital(anonymousId="a", pageTitle="z"),
        vital(anonymousId="b", pageTitle="a"),
    ),
    "a text is less than null": (vital(pageTitle="B"), vital()),
    "as bytes, not as numbers": (vital(delta=10), vital(delta=2)),
    "capitals first": (vital(pageTitle="Z"), vital(pageTitle="a")),
    "UTF-8, not UTF-16": (vital(pageTitle="\uff5a"), vital(pageTitle="\U0001f600")),
    "a known client is more than none": (vital(pageTitle="z"), vital(deviceType="tv", pageTitle="a")),
    "the client's keys are sorted": (
        vital(browserName="A", deviceType="z"),
        vital(browserName="B", deviceType="a"),
    ),
    "the client by its texts, whichever came first": (vital(address=BERLIN), vital(address=NOWHERE)),
    "an event: the time": (event("z", 0, eventId="e", properties={"n": 9}), event("a", 1, eventId="e")),
    "an event: then the content": (event(properties={"n": 10}), event(properties={"n": 2})),
    "an event: the context before the name": (
        event("z", eventId="e", context=CONTEXT_A),
        event("a", eventId="e", context=CONTEXT_B),
    ),
    "an event: its name before its page": (
        event("a", eventId="e", page=url("/z")),
        event("b", eventId="e", page=url("/a")),
    ),
}


@pytest.mark.parametrize("case", REPORTS)
def test_of_several_reports_the_newest_wins(merge: Merge, sidecar: LocalSidecar, case: str) -> None:
    """By (timestamp, seq, value), an event by timestamp, then by content: as if the other had never been made."""
    older, newer = REPORTS[case]
    held = merge(older, newer)
    assert held == merge(newer)
    assert held != merge(older)
    assert send(sidecar, older, newer, older, newer) == ["accepted", "accepted", "superseded", "duplicate"]


def test_a_smaller_newer_value_counts(merge: Merge) -> None:
    """INP may go down; it is one vital, and the average is its newest value."""
    session = merge(vital("INP", 480, 0), vital("INP", 300, 5), vital("INP", 120, 9)).session
    assert (session["avgInp"], [one["value"] for one in session["webVitals"]]) == (120, [120])


@pytest.mark.parametrize(
    ("one", "same"),
    [
        (vital("LCP", 116), vital("lcp", 116.0)),
        (vital("LCP", 116, funnelId="default"), vital("LCP", 116)),
        (vital("CLS", 0), vital("CLS", -0.0)),
        (vital(seq=0, rating="GOOD", delta=2), vital(delta=2.0)),
        (event(properties={"a": 1, "b": {"c": 2.0, "d": 0}}), event(properties={"b": {"d": -0.0, "c": 2}, "a": 1})),
        (vital("LCP", 116), event("web_vital", properties={"metric": "LCP", "value": 116, "id": "v"}, page=url("/"))),
    ],
)
def test_other_spellings_of_a_report_are_duplicates(sidecar: LocalSidecar, one: Delivery, same: Delivery) -> None:
    """Numbers, case, key order, defaults, and a vital sent as an event."""
    assert send(sidecar, one, same, one) == ["accepted", "duplicate", "duplicate"]


@pytest.mark.parametrize(
    "sent",
    [
        (vital("LCP"), vital("FCP")),
        (vital(id="a"), vital(id="A")),
        (vital(), vital(sessionId="S")),
        (vital(), vital(funnelId="landing")),
        (vital(id="x"), event(eventId="x")),
        (event(), event(session="t")),
        (event(), event(funnelId="landing")),
        (event(eventId="é"), event(eventId="e\u0301")),
    ],
)
def test_facts_of_another_identity_are_others(merge: Merge, sent: tuple[Delivery, ...]) -> None:
    """Metric, id, session and funnel; vitals and events apart; case and spelling count."""
    held = merge(*sent)
    assert sum(len(one["webVitals"]) + len(one["events"]) for one in held.documents) == 2


def test_sites_are_apart(sidecar: LocalSidecar) -> None:
    """The same ids in another site are another session and another visitor."""
    for site in ("a", "b"):
        sidecar.rules = RULES._replace(site=site)
        sent = [vital("LCP", 100 + ord(site)), event(visitor="ada"), identified(1, userId=f"u-{site}")]
        assert send(sidecar, *sent) == ["accepted"] * 3
    documents = sidecar.export_documents()
    assert [(one["site"], one["avgLcp"], one["visitor"]["userId"]) for one in documents] == [
        ("a", 197, "u-a"),
        ("b", 198, "u-b"),
    ]
    assert [one["visitor"]["totalSessions"] for one in documents] == [1, 1]


# --- 3 the session ---------------------------------------------------------------------------------------------------

METRICS = ("LCP", "INP", "CLS", "FCP", "TTFB", "FID")
IN_ORDER = [event(page=url("/event")), *(vital(metric, pageUrl=f"/{metric}") for metric in METRICS)]


@pytest.mark.parametrize(("first", "last"), [*itertools.pairwise(IN_ORDER)])
def test_facts_of_one_time_go_by_kind_and_metric(merge: Merge, first: Delivery, last: Delivery) -> None:
    """Events before vitals, these in the order LCP INP CLS FCP TTFB FID."""
    pages = [one.item.get("pageUrl") or one.item["context"]["page"]["url"] for one in (first, last)]
    assert [*merge(first, last).figures(["firstPageUrl", "lastPageUrl"]).values()] == pages


@pytest.mark.parametrize(
    ("sent", "first", "last"),
    [
        ([vital("FID", at=0, pageUrl="/a"), event(at=1, page=url("/b"))], "/a", "/b"),
        ([vital(id="B", pageUrl="/z"), vital(id="a", pageUrl="/y"), vital(id="é", pageUrl="/x")], "/z", "/x"),
        ([event(eventId="B", page=url("/z")), event(eventId="a", page=url("/y"))], "/z", "/y"),
        ([vital("LCP", id="z", pageUrl="/lcp"), vital("FCP", id="a", pageUrl="/fcp")], "/lcp", "/fcp"),
        ([event(at=-9), vital(pageUrl="/a"), event(at=9, page={"title": "T", "path": "/t"})], "/a", "/a"),
        ([vital(at=0, pageUrl="/0"), vital(at=9, pageUrl="/9"), event(at=5, page=url("/5"))], "/5", "/9"),
        ([vital(at=9, id="a", pageUrl="/late"), vital(at=0, id="z", pageUrl="/early")], "/early", "/late"),
        ([event(at=0), event(at=1)], None, None),
    ],
)
def test_first_and_last_page(merge: Merge, sent: list[Delivery], first: str | None, last: str | None) -> None:
    """In order of time, then place, then id; of facts that have an address; a report that was replaced has none."""
    assert merge(*sent).figures(["firstPageUrl", "lastPageUrl"]) == {"firstPageUrl": first, "lastPageUrl": last}


@pytest.mark.parametrize(
    ("sent", "first", "last", "seconds"),
    [
        ([vital(at=7)], 7, 7, 0),
        ([vital(at=0), event(at=999)], 0, 999, 0),
        ([event(at=0), vital(at=1999)], 0, 1999, 1),
        ([event(at=500), event(at=2500), vital(at=1000)], 500, 2500, 2),
        ([vital(at=0), vital(at=60_000)], 60_000, 60_000, 0),
        ([event("a", 90_000, eventId="e"), event("a", 5, eventId="e"), vital(at=30_000)], 30_000, 90_000, 60),
    ],
)
def test_start_and_end(merge: Merge, sent: list[Delivery], first: int, last: int, seconds: int) -> None:
    """Least and greatest time of what is held; whole seconds, rounded down; a replaced report leaves its time."""
    expected = {"startedAt": to_iso(T + first), "endedAt": to_iso(T + last), "durationSeconds": seconds}
    assert merge(*sent).figures(expected) == expected


@pytest.mark.parametrize(
    ("sent", "referrer"),
    [
        ([event(at=0), event(at=1, page={"referrer": "/b"}), event(at=2, page={"referrer": "/a"})], "/b"),
        ([event(eventId="b", page={"referrer": "/x"}), event(eventId="a", page={"referrer": "/y"})], "/y"),
        ([event(at=0, page={"referrer": ""}), vital(at=-1)], None),
    ],
)
def test_referrer(merge: Merge, sent: list[Delivery], referrer: str | None) -> None:
    """Of the first event that has one."""
    assert merge(*sent).session["firstReferrer"] == referrer


def utm(at: float = 0, page: str = "/", **fields: Any) -> Delivery:
    """An event with UTM parameters of its own."""
    return event(at=at, page=url(page), context={"utm": fields})


@pytest.mark.parametrize(
    ("sent", "first", "last"),
    [
        ([utm(0, source="a", campaign="c"), utm(1, medium="m")], ("a", None, "c"), (None, "m", None)),
        ([utm(0, "/?utm_source=url&utm_medium=no", campaign="own")], (None, None, "own"), (None, None, "own")),
        ([utm(0, "/?utm_source=a+b&utm_campaign=%C3%A9", source="")], ("a b", None, "é"), ("a b", None, "é")),
        ([event(at=-1), utm(0, source="a"), event(at=9, page=url("/?x=1"))], ("a", None, None), ("a", None, None)),
        ([vital(at=0, pageUrl="/?utm_source=v"), event(at=1)], (None, None, None), (None, None, None)),
        ([utm(0, term="only"), utm(1, source="a")], (None, None, None), ("a", None, None)),
        (
            [
                event(eventId="b", context={"utm": {"source": "b"}}),
                event(eventId="a", context={"utm": {"source": "a"}}),
                event(eventId="c", context={"utm": {"source": "c"}}),
            ],
            ("a", None, None),
            ("c", None, None),
        ),
    ],
)
def test_utm_is_a_set(
    merge: Merge, sent: list[Delivery], first: tuple[str | None, ...], last: tuple[str | None, ...]
) -> None:
    """Of the first and last event with any of the five, never mixed; its own before those of its address."""
    session = merge(*sent).session
    assert tuple(session[f"first{name}"] for name in ("Source", "Medium", "Campaign")) == first
    assert tuple(session[f"last{name}"] for name in ("Source", "Medium", "Campaign")) == last


def clicks(at: float = 0, page: str = "/", **fields: Any) -> Delivery:
    """An event with click ids of its own."""
    return event(at=at, page=url(page), context={"clickIds": fields})


@pytest.mark.parametrize(
    ("sent", "first", "last"),
    [
        ([clicks(0, gclid="1", fbclid="2"), clicks(1, gclid="3")], {"gclid": "1", "fbclid": "2"}, {"gclid": "3"}),
        ([clicks(0, "/?gclid=url&fbclid=no", gclid="own"), event(at=1)], {"gclid": "own"}, {"gclid": "own"}),
        ([clicks(0, "/?gclid=url&x=1"), clicks(1, ttclid="t")], {"gclid": "url"}, {"ttclid": "t"}),
        ([event(at=0), vital(at=1, pageUrl="/?gclid=v")], None, None),
    ],
)
def test_click_ids_are_a_set(merge: Merge, sent: list[Delivery], first: Object | None, last: Object | None) -> None:
    """Of the first and last event with any of them, never mixed; its own before those of its address."""
    assert merge(*sent).clicks == [(first, last)]


DEVICE = ("deviceType", "browserName", "osName", "osVersion")


@pytest.mark.parametrize(
    ("sent", "device"),
    [
        ([event(at=0, address=NOWHERE), vital(at=1, osName="BeOS")], (None, None, "BeOS", None)),
        ([vital(at=0, osName="BeOS"), event(at=1, agent=CHROME_LINUX)], (None, None, "BeOS", None)),
        (
            [vital(at=0, osName="Unknown", screenWidth=9), event(at=1, agent=CHROME_LINUX)],
            ("desktop", "Chrome", "Linux"),
        ),
        ([vital(at=1, agent=SAFARI_IPHONE), vital(at=0, id="w", agent=CHROME_LINUX)], ("desktop", "Chrome", "Linux")),
        ([vital(id="a", deviceType="tv"), event(eventId="z", agent=CHROME_LINUX)], ("desktop", "Chrome", "Linux")),
        ([vital("CLS", id="a", deviceType="b"), vital("INP", id="z", deviceType="c")], ("c", None, None, None)),
        ([vital("INP", id="b", deviceType="a"), vital("INP", id="a", deviceType="b")], ("b", None, None, None)),
        ([vital(at=0, agent=CHROME_LINUX), vital(at=5, deviceType="tv")], ("tv", None, None, None)),
        ([vital(), event()], (None, None, None, None)),
    ],
)
def test_the_device_is_a_set(merge: Merge, sent: list[Delivery], device: tuple[str | None, ...]) -> None:
    """Of the first fact that has one, never mixed; a screen alone is none."""
    assert tuple(merge(*sent).figures(DEVICE).values())[: len(device)] == device


@pytest.mark.parametrize(
    ("sent", "country", "city", "address"),
    [
        ([event(at=0, agent=CHROME_LINUX), vital(at=1, address=PARIS)], "FR", "Paris", "198.51.100.0"),
        ([event(at=0, address=NOWHERE), vital(at=1, address=PARIS)], "FR", "Paris", "203.0.113.0"),
        ([vital(at=0, id="a", address=BERLIN), vital(at=1, address=PARIS)], "DE", None, "192.0.2.0"),
        ([vital(at=0, address=NOWHERE), event(at=1, address=PARIS)], "FR", "Paris", "203.0.113.0"),
        ([vital(id="a", address=BERLIN), event(eventId="z", address=PARIS)], "FR", "Paris", "198.51.100.0"),
        ([vital("FCP", id="a", address=BERLIN), vital("INP", id="z", address=PARIS)], "FR", "Paris", "198.51.100.0"),
    ],
)
def test_place_and_address(merge: Merge, sent: list[Delivery], country: str, city: str | None, address: str) -> None:
    """Each of the first fact that has one: the place is a set, and the address may be of another fact."""
    expected = {"countryCode": country, "city": city, "ipAddress": address}
    assert merge(*sent).figures(expected) == expected


def test_clients_are_numbered_in_the_order_of_facts(merge: Merge) -> None:
    """Device, place and address may be of three clients; a fact of which nothing is known has none."""
    session = merge(
        vital("FCP", at=3, agent=SAFARI_IPHONE),
        vital("LCP", at=2, address=BERLIN),
        vital("CLS", at=1, address=NOWHERE),
        event(at=0),
        event("again", at=4, address=NOWHERE),
    ).session
    assert [client["ipAddress"] for client in session["clients"]] == ["203.0.113.0", "192.0.2.0", None]
    assert [one["client"] for one in session["webVitals"]] == [0, 1, 2]
    assert [one["client"] for one in session["events"]] == [None, 0]
    assert [session[name] for name in ("osName", "countryCode", "ipAddress")] == ["iOS", "DE", "203.0.113.0"]


@pytest.mark.parametrize(
    ("names", "views", "count", "converted"),
    [
        (["page_view", "page_view", "cta"], 2, 3, False),
        (["session_end", "user_identified"], 0, 2, False),
        (["conversion"], 0, 1, True),
        (["page_view", "purchase"], 1, 2, True),
        (["checkout_completed"], 0, 1, True),
        (["Purchase", "Page_View"], 0, 2, False),
    ],
)
def test_counts(merge: Merge, names: list[str], views: int, count: int, converted: bool) -> None:
    """`page_view`s, all events, and whether there is a conversion; repeats are in no figure."""
    sent = [event(name, at) for at, name in enumerate(names)]
    expected = {"pageViews": views, "eventsCount": count, "converted": converted, "provisional": False}
    assert merge(*sent, vital()).figures(expected) == expected


def test_what_was_replaced_is_counted_no_more(merge: Merge) -> None:
    """A newer report of an event may have another name: the older one is in no count."""
    held = merge(event("page_view", 0, eventId="e"), event("purchase", 1, eventId="e"), event("cta", 2, eventId="e"))
    assert held.figures(["pageViews", "eventsCount", "converted", "conversionValue"]) == {
        "pageViews": 0,
        "eventsCount": 1,
        "converted": False,
        "conversionValue": None,
    }


def bought(at: float = 0, name: str = "purchase", /, event_id: str | None = None, **properties: Any) -> Delivery:
    """A conversion."""
    return event(name, at, properties=properties, eventId=event_id or f"{name}@{at}")


@pytest.mark.parametrize(
    ("sent", "value", "kind", "currency"),
    [
        ([bought(), event(at=1)], None, None, None),
        ([bought(revenue=0)], 0, None, None),
        ([bought(revenue=0.1), bought(1, revenue=0.2), bought(2)], 0.3, None, None),
        ([bought(0, "conversion", revenue=10), bought(1, "checkout_completed", revenue=-2.5)], 7.5, None, None),
        ([bought(revenue="10"), bought(1, revenue=True), bought(2, revenue=None)], None, None, None),
        ([bought(revenue=1e12), bought(1, revenue=1.1e12)], 1e12, None, None),
        ([bought(revenue=-1e12), bought(1, revenue=-1.1e12), bought(2, revenue=-(2**63))], -1e12, None, None),
        ([bought(revenue=0.0000004), bought(1, revenue=0.0000004)], 0.000001, None, None),
        ([event("cta", properties={"revenue": 9, "currency": "EUR"})], None, None, None),
        ([bought(0, "conversion", conversionType="signup"), bought(1, conversionType="sale")], None, "signup", None),
        ([bought(0), bought(1, conversionType="sale", currency="EUR")], None, None, None),
        ([bought(5, currency="USD", revenue=1), bought(0, currency="EUR", revenue=1)], 2, None, "EUR"),
        ([bought(event_id="b", currency="USD"), bought(event_id="a", currency="EUR")], None, None, "EUR"),
        ([bought(0, event_id="e", revenue=10), bought(1, event_id="e", revenue=4)], 4, None, None),
    ],
)
def test_conversions(
    merge: Merge, sent: list[Delivery], value: float | None, kind: str | None, currency: str | None
) -> None:
    """The sum of what is a number, null where none is; type and currency of the first conversion, even if it has none.

    A conversion that came twice, or was reported again, is one.
    """
    expected = {"conversionValue": value, "conversionType": kind, "currency": currency}
    assert merge(*sent).figures(expected) == expected


@pytest.mark.parametrize(
    ("sent", "seconds"),
    [
        ([event("cta", properties={"activeTime": 5})], None),
        ([event("session_end", properties={"idleTime": 5})], None),
        ([event("session_end", properties={"activeTime": 0})], 0),
        ([event("session_end", at, properties={"activeTime": 12.5}) for at in (0, 1)], 25),
        ([event("session_end", properties={"activeTime": "5"})], None),
        ([event("session_end", at, eventId="e", properties={"activeTime": 30 - at}) for at in (0, 9)], 21),
    ],
)
def test_active_seconds(merge: Merge, sent: list[Delivery], seconds: float | None) -> None:
    """The sum over `session_end` events, each once by its newest report; null where none says it."""
    assert merge(*sent).session["activeSeconds"] == seconds


@pytest.mark.parametrize(
    ("sent", "visitor"),
    [
        ([vital(), event()], None),
        ([vital(at=0), event(at=9, visitor="ada")], "ada"),
        ([vital(at=0, anonymousId="ada"), event(at=9)], "ada"),
        ([event(at=0, visitor="ada"), event(at=1, visitor="bob"), event(at=2, visitor="bob")], "ada"),
        ([vital("LCP", id="a", anonymousId="bob"), event(eventId="z", visitor="ada")], "ada"),
        ([vital("FCP", id="a", anonymousId="ada"), vital("INP", id="z", anonymousId="bob")], "bob"),
        ([event(eventId="b", visitor="ada"), event(eventId="a", visitor="bob")], "bob"),
        ([vital(at=0, anonymousId="ada"), vital(at=9), event(at=5)], None),
        ([vital(at=0, anonymousId="ada"), vital(at=9, anonymousId="bob")], "bob"),
        ([vital(at=0, anonymousId="ada"), vital(at=9, anonymousId="ada"), event(at=5, visitor="bob")], "bob"),
    ],
)
def test_the_visitor_is_of_the_first_fact_that_names_one(
    merge: Merge, sent: list[Delivery], visitor: str | None
) -> None:
    """In order of time, events first; no other is left in `visitors`, whoever was named on the way."""
    held = merge(*sent)
    assert (held.session["visitor"] or {"anonymousId": None})["anonymousId"] == visitor
    assert held.visitors == ([] if visitor is None else [visitor])


# --- 4 averages and score --------------------------------------------------------------------------------------------

AVERAGES = ("avgLcp", "avgInp", "avgCls", "avgFcp", "avgTtfb")


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ([vital("LCP", 1000, id="a"), vital("LCP", 2000, id="b")], {"avgLcp": 1500}),
        ([vital("CLS", 0.02, 0), vital("CLS", 0.15, 1)], {"avgCls": 0.15}),
        ([vital("CLS", 0.02, 0), vital("CLS", 0.15, 1), vital("CLS", 0.05, id="b")], {"avgCls": 0.1}),
        ([vital("CLS", 0, id="a"), vital("CLS", 0.1, id="b"), vital("CLS", 0.1, id="c")], {"avgCls": 0.066667}),
        ([vital("CLS", 0)], {"avgCls": 0}),
        ([vital("FCP", 0, navigationType="back-forward-cache"), vital("FCP", 50, id="b")], {"avgFcp": 25}),
        ([vital("TTFB", 0, navigationType="back-forward-cache"), vital("TTFB", 80, id="b")], {"avgTtfb": 80}),
        ([vital("TTFB", 0, navigationType="soft-navigation"), vital("TTFB", 80, id="b")], {"avgTtfb": 80}),
        ([vital("TTFB", 0, navigationType="restore"), vital("TTFB", 80, id="b")], {"avgTtfb": 40}),
        ([vital("TTFB", 0), vital("TTFB", 80, id="b", navigationType="navigate")], {"avgTtfb": 40}),
        ([vital("TTFB", 0, navigationType="soft-navigation"), vital("LCP", 0)], {"avgLcp": 0}),
        ([vital("TTFB", 0, 0, navigationType="soft-navigation"), vital("TTFB", 70, 1)], {"avgTtfb": 70}),
        ([vital("TTFB", 70, 0), vital("TTFB", 0, 1, navigationType="back-forward-cache")], {}),
        ([vital("FID", 12), event()], {}),
        ([vital(metric, 10) for metric in ("LCP", "INP", "CLS", "FCP", "TTFB")], dict.fromkeys(AVERAGES, 10)),
    ],
)
def test_averages(merge: Merge, sent: list[Delivery], expected: Object) -> None:
    """Over instances, each once by its newest report; 0 is a value, a placeholder TTFB is none; six decimals."""
    assert merge(*sent).figures(AVERAGES) == dict.fromkeys(AVERAGES) | expected


@pytest.mark.parametrize(
    ("metric", "good", "fair", "minus_fair", "minus_poor"),
    [
        ("LCP", 2500, 4000, 15, 30),
        ("INP", 200, 500, 12, 25),
        ("CLS", 0.1, 0.25, 10, 20),
        ("FCP", 1800, 3000, 7, 15),
        ("TTFB", 800, 1800, 5, 10),
        ("FID", 100, 300, None, None),
    ],
)
def test_ratings_and_score(
    merge: Merge, metric: str, good: float, fair: float, minus_fair: int | None, minus_poor: int | None
) -> None:
    """Limits are inclusive, for the rating of an instance and for the points that an average takes off."""
    step = 0.000001
    scores = {good: 0, good + step: minus_fair, fair: minus_fair, fair + step: minus_poor}
    ratings = {good: "good", good + step: "needs-improvement", fair: "needs-improvement", fair + step: "poor"}
    for value, minus in scores.items():
        session = merge(vital(metric, value)).session
        assert session["webVitals"][0]["rating"] == ratings[value]
        assert session["experienceScore"] == (None if minus is None or minus_fair is None else 100 - minus)


@pytest.mark.parametrize(
    ("values", "score"),
    [
        ({"LCP": 0, "CLS": 0}, 100),
        ({"LCP": 2501, "INP": 200, "CLS": 0.2501, "FCP": 3001, "TTFB": 1800}, 45),
        ({"LCP": 4001, "INP": 501, "CLS": 0.2501, "FCP": 3001, "TTFB": 1801}, 0),
    ],
)
def test_the_score_is_over_all_averages(merge: Merge, values: dict[str, float], score: int) -> None:
    """100 less the points of each, and at least 0."""
    assert merge(*(vital(metric, value) for metric, value in values.items())).session["experienceScore"] == score


def test_no_average_no_score(merge: Merge) -> None:
    """Events, FID and placeholders alone."""
    session = merge(event(), vital("FID", 900), vital("TTFB", 0, navigationType="soft-navigation")).session
    assert session["experienceScore"] is None


# --- 5 the visitor ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "name", "user", "traits"),
    [
        ([], "Visitor #567890", None, None),
        ([identified(1, userId="u")], "u", "u", None),
        ([identified(1, userId="u", traits={"email": "e"})], "e", "u", {"email": "e"}),
        ([identified(1, userId="u", traits={"name": "N", "email": "e"})], "N", "u", {"email": "e", "name": "N"}),
        ([identified(1, traits={"name": "", "email": "e"})], "e", None, {"email": "e", "name": ""}),
        ([identified(1, userId="u", traits={"name": 5})], "u", "u", {"name": 5}),
        ([identified(1, traits={"plan": "pro"})], "Visitor #567890", None, {"plan": "pro"}),
        ([identified(1, traits={"name": "N"}), identified(2, userId="u", traits={})], "N", "u", {"name": "N"}),
        ([identified(1, traits={"name": "N"}), identified(2, traits="none")], "N", None, {"name": "N"}),
        ([identified(1, userId="u"), identified(2)], "Visitor #567890", None, None),
        ([identified(2, userId="new"), identified(1, userId="old")], "new", "new", None),
        ([identified(2, traits={"email": "e"}), identified(1, traits={"name": "N"})], "e", None, {"email": "e"}),
        ([event(at=1, context={"user": {"anonymousId": "1234567890", "userId": "u"}})], "Visitor #567890", None, None),
    ],
)
def test_names_of_a_visitor(
    merge: Merge, sent: list[Delivery], name: str, user: str | None, traits: Object | None
) -> None:
    """Name, else email, of the latest traits; else the latest user id; else of the id, which they need not say."""
    visitor = merge(vital(at=9, anonymousId="1234567890"), *sent).session["visitor"]
    assert (visitor["displayName"], visitor["userId"], visitor["traits"]) == (name, user, traits)


@pytest.mark.parametrize(
    ("less", "more"),
    [
        ({"at": 0, "funnel": "z", "session": "z", "id": "z"}, {"at": 1, "funnel": "a", "session": "a", "id": "a"}),
        ({"at": 0, "funnel": "a", "session": "z", "id": "z"}, {"at": 0, "funnel": "b", "session": "a", "id": "a"}),
        ({"at": 0, "funnel": "a", "session": "a", "id": "z"}, {"at": 0, "funnel": "a", "session": "b", "id": "a"}),
        ({"at": 0, "funnel": "a", "session": "a", "id": "B"}, {"at": 0, "funnel": "a", "session": "a", "id": "a"}),
    ],
)
def test_identifications_go_by_time_funnel_session_event(merge: Merge, less: Object, more: Object) -> None:
    """The latest in that order names the visitor, in all its sessions."""
    sent = [
        event(
            "user_identified",
            said["at"],
            visitor="ada",
            session=said["session"],
            funnelId=said["funnel"],
            eventId=said["id"],
            properties={"userId": user, "traits": {"name": f"name of {user}"}},
        )
        for said, user in ((less, "less"), (more, "more"))
    ]
    for document in merge(*sent).documents:
        visitor = document["visitor"]
        assert [visitor[key] for key in ("userId", "displayName")] == ["more", "name of more"]


def test_totals_are_over_sessions_and_funnels(merge: Merge) -> None:
    """A session of vitals alone counts, too; all documents of a visitor say the same."""
    held = merge(
        event(at=5, session="a", visitor="ada"),
        event("cta", at=7, session="a"),
        vital(at=-3, sessionId="b", anonymousId="ada"),
        event(at=9, session="a", funnelId="other", visitor="ada"),
        vital(at=2, sessionId="a", funnelId="other"),
        event(at=99, session="c", visitor="bob"),
    )
    ada = {
        "anonymousId": "ada",
        "displayName": "Visitor #ada",
        "firstSeen": to_iso(T - 3),
        "lastSeen": to_iso(T + 9),
        "totalSessions": 3,
        "totalEvents": 3,
        "userId": None,
        "traits": None,
    }
    assert [document["visitor"] for document in held.documents if document["sessionId"] != "c"] == [ada] * 3
    assert held.visitors == ["ada", "bob"]


def test_a_session_goes_to_another_visitor_with_all_that_is_its_own(merge: Merge) -> None:
    """A fact from before the others names someone else: identifications and totals go along; who has none is gone."""
    sent = [
        event("user_identified", 5, visitor="ada", properties={"userId": "u-1"}),
        vital(at=0, anonymousId="bob"),
        event(at=50, session="t", visitor="ada"),
    ]
    held = merge(*sent)
    s, t = (document["visitor"] for document in held.documents)
    assert [s[key] for key in ("anonymousId", "userId", "totalSessions", "totalEvents")] == ["bob", "u-1", 1, 1]
    assert [t[key] for key in ("anonymousId", "userId", "totalSessions", "totalEvents")] == ["ada", None, 1, 1]
    assert [t[key] for key in ("firstSeen", "lastSeen")] == [to_iso(T + 50)] * 2
    assert held.visitors == ["ada", "bob"]
    assert merge(*sent[:2]).visitors == ["bob"]


def test_an_identification_comes_before_anyone_is_named(sidecar: LocalSidecar) -> None:
    """It counts for the visitor that the session turns out to have, in past and future sessions."""
    send(sidecar, event(at=0, session="past", visitor="ada"), identified(5, userId="u"))
    assert [(one["visitor"] or {}).get("userId") for one in sidecar.export_documents()] == [None, None]
    send(sidecar, vital(at=9, anonymousId="ada"), event(at=60, session="then", visitor="ada"))
    assert [one["visitor"]["userId"] for one in sidecar.export_documents()] == ["u"] * 3


# --- 6 provisional ---------------------------------------------------------------------------------------------------


def test_vitals_make_a_session_and_its_first_event_completes_it(sidecar: LocalSidecar) -> None:
    """Also where the vital says it is an event, and where the event comes from before it."""
    send(sidecar, vital(at=5), event("web_vital", 6, properties={"metric": "CLS", "value": 0}, page=url("/")))
    [session] = sidecar.export_documents()
    assert (session["provisional"], session["eventsCount"], session["pageViews"]) == (True, 0, 0)
    assert (session["avgLcp"], session["avgCls"], len(session["webVitals"])) == (100, 0, 2)
    send(sidecar, event("session_end", 0))
    [session] = sidecar.export_documents()
    assert (session["provisional"], session["eventsCount"], session["startedAt"]) == (False, 1, to_iso(T))


# --- 7 percentiles ---------------------------------------------------------------------------------------------------


def percentiles(sidecar: LocalSidecar) -> dict[str, Object]:
    """What `GET /api/vitals` says."""
    with snapshot(sidecar.conn):
        return percentile_vitals(sidecar.conn, Filters())


@pytest.mark.parametrize(
    ("count", "p75"), [(1, 1), (2, 2), (3, 3), (4, 3), (5, 4), (6, 5), (7, 6), (8, 6), (9, 7), (100, 75)]
)
def test_p75_is_the_nearest_rank(sidecar: LocalSidecar, count: int, p75: int) -> None:
    """Of the values 1 to n the one at position ceil(0.75 n), whichever came first; a repeat is no sample."""
    sent = [vital("INP", value, id=str(value)) for value in range(count, 0, -1)]
    send(sidecar, *sent, *sent[:3])
    figures = percentiles(sidecar)["INP"]
    assert (figures["p75"], figures["count"]) == (p75, count)


def test_percentiles_are_over_instances(sidecar: LocalSidecar) -> None:
    """Not over sessions, by the newest report of each, and without placeholders: p75 of 100 200 300 1000."""
    values = [vital("TTFB", value, id=str(value)) for value in (100, 200, 300)]
    again = [vital("TTFB", value, at, sessionId="t") for at, value in ((0, 9999), (1, 1000), (-1, 5))]
    placeholders = [
        vital("TTFB", 0, id=kind, navigationType=kind) for kind in ("soft-navigation", "back-forward-cache")
    ]
    send(sidecar, *values, *again, *placeholders)
    assert percentiles(sidecar)["TTFB"] == {
        "p75": 300,
        "rating": "good",
        "count": 4,
        "good": 3,
        "needsImprovement": 1,
        "poor": 0,
    }


# --- 8 the time window -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [vital, event])
@pytest.mark.parametrize(
    ("said", "held", "skewed"),
    [
        (NOW - 7 * DAY, NOW - 7 * DAY, False),
        (NOW - 7 * DAY - 1, NOW, True),
        (NOW + 300_000, NOW + 300_000, False),
        (NOW + 300_001, NOW, True),
        (NOW // 1000, NOW, True),
        (NOW + 300_000.75, NOW + 300_000, False),
        (NOW - 0.25, NOW - 1, False),
        ("2026-11-15T07:00:00Z", NOW - 7 * DAY, False),
        ("2026-11-15T06:59:59.9999", NOW, True),
        ("2026-11-22T08:05:00.0009+01:00", NOW + 300_000, False),
    ],
)
def test_the_time_window(
    sidecar: LocalSidecar, make: Callable[..., Delivery], said: Any, held: int, skewed: bool
) -> None:
    """Both ends belong to it; beyond them the receive time counts; a fraction of a ms is cut, no zone is UTC."""
    assert send(sidecar, make(timestamp=said)) == ["accepted"]
    [session] = sidecar.export_documents()
    [fact] = session["webVitals"] + session["events"]
    assert (fact["timestamp"], fact["clockSkewed"]) == (to_iso(held), skewed)
    assert (session["startedAt"], session["endedAt"]) == (to_iso(held), to_iso(held))


SKEWED = [
    # now (ms after NOW), what comes, its outcome, and then the time that is held (ms after NOW), and whether skewed
    ("a repeat of a skewed one", [(0, vital(timestamp=0), "accepted"), (50, vital(timestamp=0), "duplicate")], 0, True),
    ("skewed otherwise", [(0, vital(timestamp=0), "accepted"), (50, vital(timestamp=2e12), "duplicate")], 0, True),
    (
        "held by a right clock",
        [(0, vital(timestamp=NOW - 9), "accepted"), (50, vital(timestamp=5), "duplicate")],
        -9,
        False,
    ),
    ("a right clock after", [(0, vital(timestamp=5), "accepted"), (50, vital(timestamp=NOW), "duplicate")], 0, True),
    (
        "a week later it is outside",
        [(0, vital(timestamp=NOW), "accepted"), (8 * DAY, vital(timestamp=NOW), "duplicate")],
        0,
        False,
    ),
    ("an event", [(0, event(timestamp=0), "accepted"), (50, event(timestamp=0), "duplicate")], 0, True),
    (
        "other content is newer by arrival",
        [(0, vital(timestamp=5), "accepted"), (50, vital(value=7, timestamp=5), "accepted")],
        50,
        True,
    ),
    (
        "other content is older by arrival",
        [(50, vital(timestamp=5), "accepted"), (60, vital(value=7, timestamp=NOW), "superseded")],
        50,
        True,
    ),
]


@pytest.mark.parametrize(("steps", "held", "skewed"), [case[1:] for case in SKEWED], ids=[case[0] for case in SKEWED])
def test_repeats_of_wrong_clocks(
    sidecar: LocalSidecar, steps: list[tuple[int, Delivery, str]], held: int, skewed: bool
) -> None:
    """Equal but for the time is a duplicate, and the held time stays; of different content the newest wins."""
    for at, delivery, outcome in steps:
        sidecar.now = NOW + at
        assert send(sidecar, delivery) == [outcome]
    [session] = sidecar.export_documents()
    [fact] = session["webVitals"] + session["events"]
    assert (fact["timestamp"], fact["clockSkewed"]) == (to_iso(NOW + held), skewed)


# --- 9 revisions -----------------------------------------------------------------------------------------------------


def revisions(sidecar: LocalSidecar) -> list[int]:
    """Of all sessions, as ms after NOW."""
    return [json.loads(line)["revision"] - NOW for line in sidecar.export()]


def test_a_revision_is_the_time_of_the_last_change(sidecar: LocalSidecar) -> None:
    """max(old + 1, now), also where the clock stands or goes back; what changes nothing leaves it."""
    steps = [
        (0, vital(at=5), 0),
        (10, vital(at=5), 0),  # a duplicate
        (11, vital(value=999, at=4), 0),  # superseded
        (12, vital(timestamp=0), 0),  # a duplicate with a wrong clock
        (20, vital(value=7, at=6), 20),
        (20, event(), 21),
        (7, event("cta"), 22),
        (22, event("cta", 1), 23),
        (99, event("cta", 2), 99),
    ]
    for now, delivery, expected in steps:
        sidecar.now = NOW + now
        send(sidecar, delivery)
        assert revisions(sidecar) == [expected]


def test_a_group_is_one_change(sidecar: LocalSidecar) -> None:
    """Of each session that it changes, and of no other."""
    send(sidecar, vital(), vital(sessionId="t"))
    store(sidecar, facts_of(sidecar, [event("a"), event("b"), vital("CLS"), vital(sessionId="t")]))
    assert revisions(sidecar) == [1, 0]


def test_a_change_of_the_visitor_alone_is_none_of_its_sessions(sidecar: LocalSidecar) -> None:
    """An identification in another session changes the name that a document says, not its revision."""
    send(sidecar, event(session="a", visitor="ada"))
    sidecar.now += 1000
    send(sidecar, event("user_identified", session="b", visitor="ada", properties={"userId": "u"}))
    assert revisions(sidecar) == [0, 1000]
    assert [one["visitor"]["displayName"] for one in sidecar.export_documents()] == ["u", "u"]


@pytest.mark.parametrize(
    ("after_ms", "finished"),
    [
        (0, False),
        (TIMEOUT_MS, False),
        (TIMEOUT_MS + 1, True),
        (-TIMEOUT_MS, False),
        (-TIMEOUT_MS - 1, True),
    ],
)
def test_finished(sidecar: LocalSidecar, after_ms: int, finished: bool) -> None:
    """The revision is older than the timeout, or ahead of the clock by more than that."""
    send(sidecar, vital())
    sidecar.now += after_ms
    assert [json.loads(line)["finished"] for line in sidecar.export()] == [finished]


# --- 10 the bound ----------------------------------------------------------------------------------------------------


def many(count: int, make: Callable[[int], Delivery]) -> list[Fact]:
    """Facts of numbered items, read a hundred at a time."""
    numbers = range(count)
    facts: list[Fact] = []
    for start in numbers[::100]:
        items = [make(number) for number in numbers[start : start + 100]]
        said = read(items[0].path, dump([one.item for one in items]), NOW, PLAIN, "")
        facts += [fact for fact in said if not isinstance(fact, str)]
    assert len(facts) == count
    return facts


FULL = ("rejected", "session is full")


def test_a_session_holds_ten_thousand_facts(sidecar: LocalSidecar) -> None:
    """Vitals and events together; what it holds is still reported again, and others have room."""
    facts = many(10_001, lambda number: vital("INP", 1, id=str(number)))
    assert store(sidecar, facts[:9_998]) == [("accepted", None)] * 9_998
    assert store(sidecar, facts_of(sidecar, [event()])) == [("accepted", None)]
    assert store(sidecar, facts[9_997:]) == [("duplicate", None), ("accepted", None), FULL, FULL]
    late = [event("cta"), vital("INP", 1, id="x"), vital("INP", 7, 1, id="0"), event(), vital(sessionId="t")]
    accepted, duplicate = ("accepted", None), ("duplicate", None)
    assert store(sidecar, facts_of(sidecar, late)) == [FULL, FULL, accepted, duplicate, accepted]
    [session] = [one for one in sidecar.export_documents() if one["sessionId"] == "s"]
    assert (len(session["webVitals"]), len(session["events"])) == (9_999, 1)
    assert session["avgInp"] == 1.0006  # (9998 + 7) / 9999
    assert session["endedAt"] == to_iso(T + 1)


@pytest.mark.parametrize("group", [100, 1_100])
def test_a_session_holds_16_mib_of_content(sidecar: LocalSidecar, group: int) -> None:
    """However many facts come at once; what is held is still reported again, and what is small still fits."""
    text = "x" * 16_000
    facts = many(1_100, lambda number: event("cta", eventId=f"{number:04d}", properties={"text": text}))
    outcomes = [out for start in range(0, 1_100, group) for out in store(sidecar, facts[start : start + group])]
    [(held,)] = sidecar.conn.execute("SELECT sum(content_bytes) FROM events").fetchall()
    assert 16 * 1024 * 1024 - 16_500 < held <= 16 * 1024 * 1024
    taken = outcomes.count(("accepted", None))
    assert outcomes == [("accepted", None)] * taken + [FULL] * (1_100 - taken)
    late = [event("cta", 1, eventId="0000", properties={"text": text}), event("small"), event("cta", eventId="0000")]
    assert store(sidecar, facts_of(sidecar, late)) == [("accepted", None), ("accepted", None), ("superseded", None)]
