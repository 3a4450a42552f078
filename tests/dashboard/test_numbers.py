"""The figures that the Overview and the Vitals page show equal those of an independent script over the export."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import pytest
from starlette.testclient import TestClient

from sidecar.model import Client, Fact
from sidecar.store.database import open_database, open_read_only, snapshot
from sidecar.store.lines import export_all
from sidecar.store.samples import list_missing, put_chunks
from tests.builders import BOT, START, event, open_dashboard, page_of, record_facts, vital
from tests.dashboard import independent
from tests.dashboard.independent import Document, Slice

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
NOW = START + HOUR_MS // 3
UNTIL = START + HOUR_MS  # periods end with the hour
TIMEOUT_MS = 1_800_000
ROWS = 8  # of a list
PATHS = [f"/{name}" for name in ("a", "b", "c", "checkout", "d<e>", "f&g", *"hijklmn")]
CLIENTS = (
    Client("desktop", "Chrome", "131", "Windows", "10", 1920, 1080, None, "DE", "Germany"),
    Client("mobile", "Mobile Safari", "17", "iOS", "17", 390, 844, None, "FR", "France"),
    Client("mobile", "Chrome Mobile", "131", "Android", "14"),
    Client("tablet", "Safari", "17", "iPadOS", "17", None, None, None, "DE", "Germany"),
    BOT,
    None,
)
VALUES = {"LCP": 2300, "INP": 180, "CLS": 0.09, "FCP": 1500, "TTFB": 600, "FID": 20}
NAVIGATIONS = ("navigate", "navigate", "reload", "back-forward-cache", "soft-navigation", None)
NAVIGATION_NAMES = {
    "navigate": "opened",
    "reload": "reloaded",
    "back-forward-cache": "back or forward, from the cache",
    "soft-navigation": "within the page",
    "unknown": "not said",
}
TITLES = {
    "pages": "Pages",
    "entry pages": "Entry pages",
    "exit pages": "Exit pages",
    "referrers": "Referrers",
    "campaigns": "Campaigns",
    "countries": "Countries",
    "devices": "Devices",
    "browsers": "Browsers",
    "systems": "Systems",
}
MISSING = {"referrers": "direct", "campaigns": "none"}
ASKED: dict[str, Slice] = {
    "": Slice(UNTIL - 7 * DAY_MS, UNTIL),
    "?period=24h": Slice(UNTIL - DAY_MS, UNTIL),
    "?period=30d&funnelId=checkout": Slice(UNTIL - 30 * DAY_MS, UNTIL, funnel_id="checkout"),
    "?period=90d&device=mobile&site=shop": Slice(UNTIL - 90 * DAY_MS, UNTIL, site="shop", device="mobile"),
    "?period=30d&country=DE&page=%2Fa": Slice(UNTIL - 30 * DAY_MS, UNTIL, country="DE", page="/a"),
    "?period=30d&country=unknown": Slice(UNTIL - 30 * DAY_MS, UNTIL, country="unknown"),
    "?since=2026-11-01&until=2026-11-10&tz=Europe/Berlin": Slice(  # midnight in Berlin, the last day included
        round(datetime(2026, 11, 1, tzinfo=ZoneInfo("Europe/Berlin")).timestamp() * 1000),
        round(datetime(2026, 11, 11, tzinfo=ZoneInfo("Europe/Berlin")).timestamp() * 1000),
    ),
}


def make_facts(rng: random.Random) -> Iterator[list[Fact]]:
    """Facts of sessions, in an order in which beacons may come: some late, some alone, some of two clients."""
    for number in range(420):
        owner: Any = {"site": rng.choice(("default", "shop")), "funnel_id": rng.choice(("default", "checkout", "blog"))}
        began = -round(rng.expovariate(1 / 12) * DAY_MS) - 1000
        name = f"s{number}"
        client = rng.choice(CLIENTS)
        seen = [page_of(rng.choice(PATHS)) for _ in range(rng.choice((1, 1, 2, 3)))]
        said = {"visitor": f"v{rng.randrange(250)}" if rng.random() < 0.9 else None, "client": client, **owner}
        facts: list[Fact] = []
        if rng.random() < 0.9:  # else: provisional
            referrer = rng.choice((None, "https://Search.example/?q=1", "https://news.example/x"))
            for place, page in enumerate(seen):
                at = began + place * 30_000
                facts.append(event(name, at=at, page=page, referrer=None if place else referrer, **said))
            if rng.random() < 0.3:
                value = rng.choice((None, {"value": rng.randrange(1, 9000) / 100, "currency": "EUR"}))
                facts.append(event(name, "conversion", at=began + 70_000, properties=value, page=seen[-1], **said))
            if rng.random() < 0.3:
                facts.append(event(name, "session_end", at=began + 80_000, page=seen[-1], **said))
        for metric, typical in VALUES.items():
            for index in range(rng.choice((0, 1, 1, 2))):
                other = rng.choice(CLIENTS) if rng.random() < 0.1 else client
                late = DAY_MS if rng.random() < 0.05 and began < -2 * DAY_MS else 0
                fact = vital(
                    name,
                    metric,
                    round(typical * rng.lognormvariate(0, 0.6), 3),
                    fact_id=f"{metric}-{index}",
                    at=began + 1000 * index + late,
                    page=rng.choice(seen),
                    navigation_type=rng.choice(NAVIGATIONS),
                    **said | {"client": other},
                )
                facts.insert(rng.randrange(len(facts) + 1), fact)
        yield facts


class Made(NamedTuple):
    """The dashboard, and what the export says."""

    client: TestClient
    documents: list[Document]


@pytest.fixture(scope="module", params=[False, True], ids=["facts", "samples"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """Without and with rows of `samples`."""
    path: Path = tmp_path_factory.mktemp("numbers") / "sidecar.db"
    rng = random.Random(5)
    halves: tuple[list[Fact], list[Fact]] = ([], [])
    for facts in make_facts(rng):
        half = rng.randrange(len(facts) + 1)
        halves[0].extend(facts[half:])
        halves[1].extend(facts[:half])
    for part in halves:
        record_facts(path, part, now=NOW)
    if request.param:
        with closing(open_database(path, durability="normal")) as conn:
            put_chunks(conn, list_missing(conn))
    with closing(open_read_only(path)) as conn, snapshot(conn):
        documents = [json.loads(line) for line in export_all(conn, NOW, TIMEOUT_MS)]
    with open_dashboard(path, now=NOW) as client:
        yield Made(client, documents)


# --- reading a page --------------------------------------------------------------------------------------------------

VOID = {"meta", "link", "input", "br", "img", "hr", "path", "rect", "line", "circle"}


class Node:
    """An element, with what is in it."""

    def __init__(self, tag: str, attributes: dict[str, str | None]) -> None:
        self.tag = tag
        self.attributes = attributes
        self.parts: list[Node | str] = []

    def all(self, tag: str, **attributes: str) -> list[Node]:
        """The elements within, in their order; `_` stands for `-` in names of attributes."""
        wanted = {name.replace("_", "-"): value for name, value in attributes.items()}
        found = []
        for part in self.parts:
            if isinstance(part, Node):
                if part.tag == tag and all(part.attributes.get(name) == value for name, value in wanted.items()):
                    found.append(part)
                found += part.all(tag, **attributes)
        return found

    @property
    def text(self) -> str:
        """What a person reads."""
        return " ".join("".join(part if isinstance(part, str) else part.text for part in self.parts).split())

    @property
    def number(self) -> float | None:
        """The exact figure; None for a dash."""
        found = self.all("data")
        return float(found[0].attributes["value"] or "nan") if found else None


class Tree(HTMLParser):
    """A page as nodes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.root = Node("", {})
        self._open = [self.root]
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        node = Node(tag, dict(attrs))
        self._open[-1].parts.append(node)
        if tag not in VOID:
            self._open.append(node)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open[-1].parts.append(Node(tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if any(node.tag == tag for node in self._open):
            while self._open.pop().tag != tag:
                pass

    def handle_data(self, data: str) -> None:
        self._open[-1].parts.append(data)


def read_page(made: Made, path: str) -> Node:
    """A page that answers."""
    answer = made.client.get(path)
    assert answer.status_code == 200, answer.text
    return Tree(answer.text).root


def table(page: Node, caption: str) -> list[list[Node]]:
    """The cells of the body of the one table with this in its caption."""
    [found] = [one for one in page.all("table") if caption in one.all("caption")[0].text]
    body = found.all("tbody")[0]
    return [[part for part in row.parts if isinstance(part, Node)] for row in body.all("tr")]


# --- the pages -------------------------------------------------------------------------------------------------------


def same(said: float | None, expected: float | None) -> bool:
    """Whether two figures are one, but for the order of a sum."""
    if said is None or expected is None:
        return said is expected
    return math.isclose(said, expected, rel_tol=1e-9, abs_tol=1e-9)


@pytest.mark.parametrize("query", ASKED)
def test_the_overview_agrees(made: Made, query: str) -> None:
    """Tiles, lists of the most, the table behind the chart, and the strip of vitals."""
    page, asked = read_page(made, f"/{query}"), ASKED[query]
    totals = independent.totals(made.documents, asked)
    assert totals["sessions"] > 3
    expected = {
        "visitors": totals["visitors"],
        "sessions": totals["sessions"],
        "page-views": totals["page_views"],
        "events": totals["events"],
        "bounce-rate": totals["bounces"] / totals["sessions"],
        "conversions": totals["conversions"],
        "conversion-rate": totals["conversions"] / totals["sessions"],
        "conversion-value": totals["conversion_value"],
        "median-duration": totals["median_s"],
    }
    for name, value in expected.items():
        [tile] = page.all("div", data_live=f"figure-{name}")
        assert same(tile.number, value), (name, tile.number, value)

    for kind, title in TITLES.items():
        counted = independent.tops(made.documents, asked, kind)
        named = {MISSING.get(kind, "unknown") if name is None else name: amount for name, amount in counted.items()}
        [found] = [one for one in page.all("table") if one.all("caption")[0].text == title]
        shown = [(row.all("th")[0].text, row.all("td")[0].number) for row in found.all("tbody")[0].all("tr")]
        assert [amount for _, amount in shown] == sorted(counted.values(), reverse=True)[:ROWS], kind
        assert all(named[name] == amount for name, amount in shown), (kind, shown, named)

    points = [[int(cell.text.replace(",", "")) for cell in row[1:]] for row in table(page, "over time")]
    sums = [sum(column) for column in zip(*points, strict=True)]
    assert sums[1:] == [totals["sessions"], totals["page_views"], totals["conversions"]]
    for metric, one in independent.vitals(independent.samples(made.documents, asked)).items():
        [tile] = page.all("div", data_live=f"vital-{metric}")
        assert tile.number == one["p75"], metric


def check_cells(cells: list[Node], instances: list[tuple[Document, Document]]) -> None:
    """p75 of each metric in its column."""
    expected = independent.vitals(instances)
    assert [cell.number for cell in cells] == [expected[metric]["p75"] for metric in independent.METRICS]


@pytest.mark.parametrize("query", ASKED)
def test_the_vitals_agree(made: Made, query: str) -> None:
    """p75, samples, distribution of each metric; by page, device and navigation."""
    page, asked = read_page(made, f"/vitals{query}"), ASKED[query]
    instances = independent.samples(made.documents, asked)
    assert len(instances) > 10
    cards = [card for card in page.all("section") if card.all("p") and card.all("h2") and card.all("svg")]
    courses = {card.all("h2")[0].text.split()[0]: card for card in cards}
    for metric, one in independent.vitals(instances).items():
        if one["p75"] is None:
            assert metric not in courses
            continue
        card = courses[metric]
        assert card.number == one["p75"]
        assert (
            card.all("header")[0].all("p")[0].text == f"{one['samples']:,} sample{'' if one['samples'] == 1 else 's'}"
        )
        titles = [title.text.split() for title in card.all("svg")[0].all("title")]
        assert [int(words[0]) for words in titles] == [one["good"], one["fair"], one["poor"]], titles

    pages = table(page, "worst first")
    assert {row[0].all("a")[0].attributes["title"] for row in pages} == {each["pagePath"] for _, each in instances}
    for row in pages:
        mine = [(one, each) for one, each in instances if each["pagePath"] == row[0].all("a")[0].attributes["title"]]
        # What a page has most of: one load reports each metric once.
        assert row[1].number == max(one["samples"] for one in independent.vitals(mine).values())
        check_cells(row[2:], mine)
    split: dict[str, Callable[[Any, Any], str]] = {
        "by kind of device": lambda one, _: one["deviceType"] or "unknown",
        "by how the page was reached": lambda _, each: NAVIGATION_NAMES[each["navigationType"] or "unknown"],
    }
    for caption, name_of in split.items():
        rows = {row[0].text.lower(): row[1::2] for row in table(page, caption)}
        assert {*rows} == {name_of(*pair) for pair in instances}
        for name, cells in rows.items():
            check_cells(cells, [pair for pair in instances if name_of(*pair) == name])


def test_the_set_is_worth_counting(made: Made) -> None:
    """Each of what figures must leave out, or count in a way of its own, is in it."""
    sessions = [one for one in made.documents if one["type"] == "session"]
    vitals = [each for one in sessions for each in one["webVitals"]]
    assert any(map(independent.is_bot, sessions))
    assert any(one["provisional"] for one in sessions)
    assert any(one["converted"] and one["conversionValue"] is None for one in sessions)
    assert any(len(one["clients"]) > 1 for one in sessions)
    assert {one["site"] for one in sessions} == {"default", "shop"}
    assert any(each["metric"] == "FID" for each in vitals)
    assert any(each["metric"] == "TTFB" and each["navigationType"] == "soft-navigation" for each in vitals)
    days = {datetime.fromtimestamp(independent.ms(one["startedAt"]) / 1000, UTC).date() for one in sessions}
    assert len(days) > 30
