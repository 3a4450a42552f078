"""The dashboard's own pages, measured by its own tracker in a real Chromium."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import Browser, Page, Request, expect

from sidecar.store.database import open_database
from tests.benchmarks.dashboard import fill
from tests.dashboard.stage import PATIENCE_MS, Viewer
from tests.servers import Server, event

TRACKER = Path(__file__).parents[2] / "sidecar" / "tracker"
SESSIONS = 1500  # over 90 days, on 500 pages
PAGES = ("/", "/vitals", "/sessions", "/visitors", "/funnels", "/shipping")
BYTES_MAX = 60_000
REQUESTS_MAX = 3  # the page, and two others
CLS_MAX = 0.02
# Pages allow no script but their own: the context steps over that. The tag is put in once the page is parsed.
INJECT = """
addEventListener('DOMContentLoaded', () => {
  const tag = document.createElement('script');
  tag.src = '/sidecar.js';
  tag.dataset.funnel = 'dashboard';
  document.head.append(tag);
});
window.shifts = 0;
window.painted = false;
new PerformanceObserver((list) => { for (const entry of list.getEntries()) shifts += entry.value; }).observe(
  { type: 'layout-shift', buffered: true });
new PerformanceObserver(() => { painted = true; }).observe({ type: 'largest-contentful-paint', buffered: true });
"""
OF_THE_TRACKER = ("/sidecar.js", "/api/track/")


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A sidecar that holds many sessions and pages, open to this machine."""
    subprocess.run([sys.executable, str(TRACKER / "build.py")], check=True, stdout=subprocess.DEVNULL)
    path = tmp_path_factory.mktemp("own") / "sidecar.db"
    with closing(open_database(path, durability="normal")) as conn:
        fill(conn, SESSIONS, int(time.time()) * 1000)
    with Server(path, DURABILITY="normal") as running:
        yield running


def read_own(client: httpx2.Client) -> dict[str, dict[str, tuple[float, str]]]:
    """By path and metric: value and rating of what the tracker has sent of the dashboard."""
    found: dict[str, dict[str, tuple[float, str]]] = {}
    for item in client.get("/api/sessions", params={"funnelId": "dashboard"}).json()["items"]:
        session = client.get(f"/api/sessions/{item['sessionId']}").json()
        for vital in session["webVitals"]:
            found.setdefault(vital["pagePath"], {})[vital["metric"]] = (vital["value"], vital["rating"])
    return found


def load(page: Page, path: str) -> list[Request]:
    """Open a page until it is painted and the tracker has run: the requests that the page itself made."""
    requests: list[Request] = []
    page.context.on("request", lambda request: requests.append(request))
    page.goto(path)
    page.wait_for_function("painted && performance.getEntriesByName(location.origin + '/sidecar.js').length")
    page.wait_for_load_state("networkidle")
    return [one for one in requests if not any(word in one.url for word in (*OF_THE_TRACKER, "data:"))]


def test_every_page_is_light_quick_and_still(browser: Browser, full: Server) -> None:
    """LCP good, CLS below its bound; one page and at most two other requests, below 60 KB in all, with a cold cache."""
    light: dict[str, tuple[int, int]] = {}
    for path in PAGES:
        viewer = Viewer(browser, full.url, bypass_csp=True)
        viewer.context.add_init_script(INJECT)
        requests = load(viewer.page, path)
        assert [one.resource_type for one in requests].count("document") == 1
        size = sum(one.sizes()["responseBodySize"] + one.sizes()["responseHeadersSize"] for one in requests)
        light[path] = (len(requests), size)
        viewer.page.goto("about:blank")  # the tracker sends when a page is left
        viewer.page.wait_for_timeout(100)
        viewer.context.close()
        assert viewer.complaints == []
    assert all(count <= REQUESTS_MAX and 0 < size < BYTES_MAX for count, size in light.values()), light

    with full.client() as client:
        end = time.monotonic() + PATIENCE_MS / 1000
        while any({"LCP", "CLS"} - {*read_own(client).get(path, {})} for path in PAGES):
            assert time.monotonic() < end, read_own(client)
            time.sleep(0.1)
        own = read_own(client)
    assert {path: own[path]["LCP"][1] for path in PAGES} == dict.fromkeys(PAGES, "good"), own
    assert max(own[path]["CLS"][0] for path in PAGES) < CLS_MAX, own


def test_an_open_overview_follows_without_a_shift(browser: Browser, full: Server) -> None:
    """A new session shows in the tiles after 10 s, on their clock; nothing moves, and an open table stays open."""
    viewer = Viewer(browser, full.url, bypass_csp=True)
    viewer.context.add_init_script(INJECT)
    page = viewer.page
    page.clock.install()
    page.goto("/")
    table = page.get_by_text("The numbers as a table")
    table.click()
    tile = page.locator("[data-live='figure-sessions'] data")
    before = int(tile.get_attribute("value") or "0")
    shifts = page.evaluate("shifts")
    with full.client() as client:
        sent = client.post("/api/track/events", json=event("one-more"))
        assert sent.json()["success"] is True
    with page.expect_response(lambda answer: answer.request.headers.get("sidecar-live") == "1"):
        page.clock.run_for(11_000)
    expect(tile).not_to_have_attribute("value", str(before))
    assert page.evaluate("shifts") == shifts
    assert page.locator("details.behind").first.get_attribute("open") is not None
    viewer.context.close()
    assert viewer.complaints == []
