"""The whole path: a visit to the demo site in a real Chromium, until the sidecar, and its upstream, hold all of it.

Vitals of single-page navigations need Chromium 151 or later.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from html import unescape
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx2
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Request, Response, sync_playwright

from sidecar.demo.children import listen, url_of
from sidecar.demo.shop import FUNNEL, build_shop, serve_shop
from sidecar.store.database import open_read_only, snapshot
from sidecar.store.documents import export_lines, list_session_keys
from tests.browser import launch
from tests.servers import Server, sidecar

T = TypeVar("T")
Document = dict[str, Any]

TRACKER = Path(__file__).parents[1] / "sidecar" / "tracker"
PATIENCE_S = 20.0  # of every wait: each is for something that happens, so only a failure takes that long

# In every page, before its own scripts: what Chromium has measured so far, so that a visit can wait for it.
WATCH = """
window.seen = [];
window.restored = false;
for (const type of ['largest-contentful-paint', 'layout-shift', 'event', 'first-input', 'soft-navigation']) {
  if (!PerformanceObserver.supportedEntryTypes.includes(type)) continue;
  new PerformanceObserver((list) => seen.push(...list.getEntries())).observe(
    { type, buffered: true, durationThreshold: 40 });
}
addEventListener('pageshow', (event) => { window.restored = event.persisted; });
"""
PAINTED = "seen.some((entry) => entry.entryType === 'largest-contentful-paint')"
SHIFTED = "seen.some((entry) => entry.entryType === 'layout-shift')"
TOUCHED = "seen.some((entry) => entry.entryType === 'first-input')"
WAITED = "seen.some((entry) => entry.entryType === 'event' && entry.name === 'click' && entry.duration >= 100)"
MOVED = "seen.some((entry) => entry.entryType === 'soft-navigation')"
# web-vitals measures a restore two frames after it.
FRAMES = "new Promise((done) => { let n = 4; (function frame() { n-- ? requestAnimationFrame(frame) : done(); })(); })"

LOAD = {"CLS", "FCP", "LCP", "TTFB"}

# Per (page, navigation type). Every load, restore and single-page navigation reports all but INP: the latter two with
# times from their own beginning, and with TTFB 0, a placeholder. INP is there where the visitor clicked; the click that
# starts a single-page navigation is the last one of the page before.
VITALS = {
    ("/gallery", "navigate"): LOAD,
    ("/configurator", "navigate"): LOAD | {"INP"},
    ("/stock", "navigate"): LOAD,
    ("/configurator", "back-forward-cache"): LOAD,
    ("/catalogue", "navigate"): LOAD | {"INP"},
    ("/catalogue/lund", "soft-navigation"): LOAD,
    ("/checkout", "navigate"): LOAD | {"INP"},
    ("/checkout", "reload"): LOAD,
}
VITALS_COUNT = 8 * 4 + 3

PAGE_VIEWS = [
    "/gallery",
    "/configurator",
    "/stock",
    "/configurator",
    "/catalogue",
    "/catalogue/lund",
    "/checkout",
    "/checkout",
]

# One `session_end` whenever a page is left: a single-page navigation leaves none.
EVENTS = {"page_view": 8, "session_end": 7, "lamp_configured": 1, "conversion": 1}
EVENTS_COUNT = 17


def until(look: Callable[[], T], pause: Callable[[float], object], what: Callable[[], object]) -> T:
    """What `look` returns once it is true. AssertionError with `what` when it is not in time."""
    end = time.monotonic() + PATIENCE_S
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < end, f"not within {PATIENCE_S:.0f} s: {what()}"
        pause(0.1)


class Visit:
    """One tab of a fresh profile, and everything in it that a visitor's developer tools would show in red."""

    def __init__(self, browser: Browser, shop_url: str) -> None:
        self.context: BrowserContext = browser.new_context(base_url=shop_url)
        self.context.add_init_script(WATCH)
        self.complaints: list[str] = []
        self._answered: set[str] = set()
        self.context.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        self.context.on("weberror", lambda error: self.complaints.append(f"thrown: {error.error}"))
        self.context.on("requestfailed", lambda request: self.complaints.append(f"{request.url}: {request.failure}"))
        self.context.on("response", self._look_at)
        self.context.on("requestfinished", self._note)
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE_S * 1000)

    def _look_at(self, response: Response) -> None:
        if response.status >= 400:
            self.complaints.append(f"{response.url}: {response.status}")

    def _note(self, request: Request) -> None:
        if request.method == "POST":
            self._answered.add(urlsplit(request.url).path)

    def _pause(self, seconds: float) -> None:
        self.page.wait_for_timeout(seconds * 1000)  # playwright's events come meanwhile

    def wait(self, *conditions: str) -> None:
        """Until each of the JavaScript conditions holds."""
        for condition in conditions:
            self.page.wait_for_function(condition)

    def wait_answered(self) -> None:
        """Until the first vitals and events of this page are stored. The next flush is a quarter minute away, so that
        no request is under way when the page is left: developer tools would show it as cancelled."""
        wanted = {"/api/track/web-vitals", "/api/track/events"}
        until(lambda: wanted <= self._answered, self._pause, lambda: f"{self.page.url}, answered: {self._answered}")

    def open(self, path: str, *conditions: str) -> None:
        """A load, long enough for all that it measures, and for the first answers."""
        self._answered.clear()
        self.page.goto(path)
        self.wait(PAINTED, *conditions)
        self.wait_answered()

    def reload(self) -> None:
        """The same page once more."""
        self._answered.clear()
        self.page.reload()
        self.wait(PAINTED)
        self.wait_answered()

    def go_back(self) -> None:
        """To the page before, which must come from the back/forward cache."""
        self.page.go_back(wait_until="commit")
        self.wait("window.restored")
        self.page.evaluate(FRAMES)


@pytest.fixture(scope="module", autouse=True)
def bundle() -> None:
    """The tracker as it is now; built where the tree has none or an old one."""
    subprocess.run([sys.executable, str(TRACKER / "build.py")], check=True, stdout=subprocess.DEVNULL)


# A module, not the session: playwright's loop runs in this thread, where tests of other modules start their own.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        running = launch(playwright)
        yield running
        running.close()


@contextmanager
def visiting(browser: Browser, server: Server) -> Iterator[Visit]:
    """A visitor of the demo site, whose pages send to that sidecar."""
    with listen(0) as listener, serve_shop(build_shop(server.url, server.url), listener):
        visit = Visit(browser, url_of(listener.getsockname()[1]))
        try:
            yield visit
        finally:
            visit.context.close()


def read_session(client: httpx2.Client) -> Document:
    """The one session, whole; nothing while there is none."""
    found = client.get("/api/sessions").json()["items"]
    if not found:
        return {}
    assert len(found) == 1, found
    document: Document = client.get(f"/api/sessions/{found[0]['sessionId']}").json()
    return document


def vitals_of(document: Document) -> dict[tuple[str, str], dict[str, float]]:
    """Values by metric, per (page, navigation type); no metric may be there twice."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for vital in document.get("webVitals", []):
        values = found.setdefault((vital["pagePath"], vital["navigationType"]), {})
        assert vital["metric"] not in values, vital
        values[vital["metric"]] = vital["value"]
    return found


def read_counts(client: httpx2.Client) -> tuple[int, int]:
    """Vitals and events of the session."""
    document = read_session(client)
    return len(document.get("webVitals", [])), len(document.get("events", []))


def tell(client: httpx2.Client) -> str:
    """What is there instead of what a test waits for."""
    document = read_session(client)
    events = [f"{each['eventName']} {each['pagePath']}" for each in document.get("events", [])]
    return f"revision {document.get('revision')}\n{vitals_of(document)}\n{events}"


def walk(visit: Visit) -> None:
    """Five pages, a click, a back, a single-page navigation, a conversion, a reload."""
    page = visit.page
    visit.open("/gallery", SHIFTED)
    visit.open("/configurator")
    page.get_by_role("button", name="Brick").click()
    visit.wait(TOUCHED, WAITED)
    visit.open("/stock")
    visit.go_back()
    assert urlsplit(page.url).path == "/configurator"
    visit.open("/catalogue")
    page.locator("#view a[href='/catalogue/lund']").click()
    visit.wait(TOUCHED, MOVED)
    assert page.get_by_role("heading", name="Lund").is_visible()
    visit.open("/checkout")
    page.get_by_label("Lamp").select_option("malmo")
    page.get_by_label("How many").fill("2")
    page.get_by_label("Name").fill("Ada Byron")
    page.get_by_role("button", name="Order and pay nothing").click()
    page.get_by_role("heading", name="Thank you.").wait_for()
    visit.wait(TOUCHED)
    visit.reload()
    page.close()


def rows_of(html: str) -> Counter[tuple[str, ...]]:
    """(metric, page, navigation type) of the vitals in the page of a session."""
    rows = []
    for row in re.findall(r"<tr>(.*?)</tr>", html, re.DOTALL):
        cells = [
            unescape(re.sub(r"<[^>]*>", "", cell)).strip()
            for cell in re.findall(r"<t[dh]\b.*?</t[dh]>", row, re.DOTALL)
        ]
        if len(cells) == 9 and cells[3] == "web vital":
            rows.append((cells[4], cells[6], cells[7]))
    return Counter(rows)


def assert_figures(client: httpx2.Client, document: Document) -> None:
    """Averages and counts over each instance once, placeholders left out."""
    vitals = vitals_of(document)
    metrics = client.get("/api/vitals").json()["metrics"]
    for metric, count in {"LCP": 8, "INP": 3, "CLS": 8, "FCP": 8, "TTFB": 6}.items():
        values = [
            found[metric]
            for (_, kind), found in vitals.items()
            if metric in found and (metric != "TTFB" or kind in ("navigate", "reload"))
        ]
        assert (len(values), metrics[metric]["count"]) == (count, count)
        assert document[f"avg{metric.capitalize()}"] == pytest.approx(sum(values) / count, abs=1e-6)


@pytest.mark.timeout(180)
def test_a_visit_is_held_as_it_was(browser: Browser, tmp_path: Path) -> None:
    """Exactly those page views and vitals, of one visitor in one session, and not a word in the console."""
    with Server(tmp_path / "sidecar.db") as server, server.client() as client:
        with visiting(browser, server) as visit:
            walk(visit)
            until(lambda: read_counts(client) == (VITALS_COUNT, EVENTS_COUNT), time.sleep, lambda: tell(client))
        assert visit.complaints == []

        document = read_session(client)
        events = sorted(document["events"], key=lambda each: str(each["timestamp"]))
        assert [each["pagePath"] for each in events if each["eventName"] == "page_view"] == PAGE_VIEWS
        assert Counter(each["eventName"] for each in events) == EVENTS
        vitals = vitals_of(document)
        assert {name: set(values) for name, values in vitals.items()} == VITALS
        assert vitals["/gallery", "navigate"]["CLS"] > 0
        assert vitals["/stock", "navigate"]["TTFB"] >= 500
        assert vitals["/configurator", "navigate"]["INP"] >= 100
        for name in (("/configurator", "back-forward-cache"), ("/catalogue/lund", "soft-navigation")):
            assert vitals[name]["TTFB"] == 0
        assert_figures(client, document)

        (conversion,) = [each for each in events if each["eventName"] == "conversion"]
        assert conversion["pagePath"] == "/checkout"
        assert conversion["properties"] | {"orderId": ""} == {
            "conversionType": "purchase",
            "revenue": 378,
            "currency": "EUR",
            "orderId": "",
        }
        summary = {
            "funnelId": FUNNEL,
            "provisional": False,
            "converted": True,
            "conversionType": "purchase",
            "conversionValue": 378,
            "currency": "EUR",
            "pageViews": 8,
            "eventsCount": EVENTS_COUNT,
            "browserName": "Chrome",
            "osName": "Linux",
        }
        assert {name: document[name] for name in summary} == summary
        assert urlsplit(document["firstPageUrl"]).path == "/gallery"
        assert urlsplit(document["lastPageUrl"]).path == "/checkout"

        (visitor,) = client.get("/api/visitors").json()["items"]
        assert (visitor["totalSessions"], visitor["totalEvents"]) == (1, EVENTS_COUNT)
        facts = document["webVitals"] + document["events"]
        assert {each["anonymousId"] for each in facts} == {visitor["anonymousId"]}
        assert not any(each["clockSkewed"] for each in facts)

        html = client.get(f"/sessions/{document['sessionId']}").text
        assert rows_of(html) == Counter((metric, *name) for name, metrics in VITALS.items() for metric in metrics)

        done = sidecar("verify", DATABASE=str(server.database))
        assert done.returncode == 0, done.stderr


def read_export(server: Server) -> list[str]:
    """What `export` writes, but for `finished`, which says when that was."""
    with closing(open_read_only(server.database)) as conn, snapshot(conn):
        lines = list(export_lines(conn, list_session_keys(conn), time.time_ns() // 1_000_000, 1000))
    assert len(lines) == 1
    return [re.sub(r'"finished":(true|false),', "", line, count=1) for line in lines]


def wait_agreed(here: httpx2.Client, there: httpx2.Client, reached: Callable[[Document], bool]) -> Document:
    """The session, once it has come so far, and the upstream holds the same."""

    def look() -> Document:
        document, copy = read_session(here), read_session(there)
        for each in (document, copy):
            each.pop("finished", None)
        return document if document and reached(document) and document == copy else {}

    return until(look, time.sleep, lambda: f"{tell(here)}\n{tell(there)}")


@pytest.mark.timeout(180)
def test_the_upstream_sees_the_same_visit(browser: Browser, tmp_path: Path) -> None:
    """Shipped while the tab is still open; its last vitals come late, and the session ships again."""
    short = {"SESSION_TIMEOUT": "1", "SHIP_INTERVAL": "0.5"}
    with (
        Server(tmp_path / "upstream.db", SITE="upstream", RECEIVE_TOKEN="t-1", **short) as upstream,
        Server(
            tmp_path / "sidecar.db",
            SITE="shop",
            UPSTREAM_URL=f"{upstream.url}/api/sessions",
            UPSTREAM_TOKEN="t-1",
            **short,
        ) as server,
        server.client() as here,
        upstream.client() as there,
    ):
        with visiting(browser, server) as visit:
            visit.open("/")
            visit.open("/configurator")
            early = wait_agreed(here, there, lambda document: document["pageViews"] == 2)
            assert set(vitals_of(early)["/", "navigate"]) == LOAD
            assert set(vitals_of(early)["/configurator", "navigate"]) == {"FCP", "TTFB"}
            assert (early["site"], early["provisional"], early["converted"]) == ("shop", False, False)
            assert read_export(server) == read_export(upstream)

            visit.page.get_by_role("button", name="Sea").click()
            visit.wait(TOUCHED, WAITED)
            visit.page.close()
            late = wait_agreed(
                here, there, lambda document: (len(document["webVitals"]), document["eventsCount"]) == (9, 5)
            )
        assert visit.complaints == []
        assert {name: set(values) for name, values in vitals_of(late).items()} == {
            ("/", "navigate"): LOAD,
            ("/configurator", "navigate"): LOAD | {"INP"},
        }
        assert late["revision"] > early["revision"]
        assert late["sessionId"] == early["sessionId"]
        assert read_export(server) == read_export(upstream)
        done = sidecar("verify", DATABASE=str(upstream.database))
        assert done.returncode == 0, done.stderr
