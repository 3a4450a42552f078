"""Page views: what is one, and what it says."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import BrowserContext, Page

from tests.tracker.site import Site, until
from tests.tracker.test_vitals import HIDE, SHOW


def paths(site: Site) -> list[str]:
    return [item["context"]["page"]["path"] for item in site.events("page_view")]


def test_page_view_says_where_who_and_how(site: Site, page: Page) -> None:
    site.attributes = 'data-funnel="landing" data-key="k 1"'
    page.goto("/start")
    page.evaluate("location.href = '/a/b?utm_source=news&UTM_Campaign=may&gclid=g1&q=1#secret'")
    page.wait_for_url("**/a/b*")
    page.goto("about:blank")
    view = until(lambda: [each for each in site.events("page_view") if each["context"]["page"]["path"] == "/a/b"])[0]
    context = view["context"]
    assert context["page"] == {
        "url": f"{site.origin}/a/b?utm_source=news&UTM_Campaign=may&gclid=g1&q=1",
        "path": "/a/b",
        "title": "a b",
        "referrer": f"{site.origin}/start",
    }
    assert context["utm"] == {"source": "news", "campaign": "may"}
    assert context["clickIds"] == {"gclid": "g1"}
    assert context["device"] == {"screenWidth": 1280, "screenHeight": 720, "language": "en-US", "timezone": "UTC"}
    assert view["funnelId"] == "landing"
    assert re.fullmatch(r"[0-9a-z]{16,28}", view["eventId"])
    assert re.fullmatch(r"[0-9a-z]{16,28}", context["session"]["sessionId"])
    assert re.fullmatch(r"[0-9a-z]{16,28}", context["user"]["anonymousId"])
    assert "gdpr" not in context
    assert all(beacon.query == {"apiKey": ["k 1"]} for beacon in site.beacons)
    assert all(beacon.headers["content-type"].startswith("text/plain") for beacon in site.beacons)


def test_page_view_goes_out_soon(site: Site, page: Page) -> None:
    page.goto("/now")
    until(lambda: paths(site) == ["/now"], timeout_s=4)


def test_ipad_in_desktop_mode_is_a_tablet(site: Site, context: BrowserContext) -> None:
    context.add_init_script(
        "Object.defineProperty(navigator, 'userAgent', {value: "
        "'Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 Version/17.5 Safari/605.1.15'});"
        "Object.defineProperty(navigator, 'maxTouchPoints', {value: 5})"
    )
    page = context.new_page()
    page.goto("/a")
    page.goto("about:blank")
    device = until(lambda: site.events("page_view"))[0]["context"]["device"]
    said = ("tablet", "iPadOS", "Mobile Safari", "17.5")
    names = ("deviceType", "osName", "browserName", "browserVersion")
    assert tuple(device[name] for name in names) == said
    vital = until(lambda: list(site.vitals().values()))[0]
    assert tuple(vital[name] for name in names) == said


@pytest.mark.parametrize("with_navigation_api", [True, False])
def test_single_page_navigations(site: Site, context: BrowserContext, with_navigation_api: bool) -> None:
    if not with_navigation_api:
        context.add_init_script("Object.defineProperty(window, 'navigation', {value: undefined})")
    page = context.new_page()
    page.goto("/app?utm_source=x")
    for step in (
        "history.replaceState({}, '', '/app')",  # a cleaned query is no page view
        "history.pushState({}, '', '/app')",  # nor the same address again
        "location.hash = 'section'",  # nor an anchor
        "history.pushState({}, '', '/two'); setTimeout(() => { document.title = 'Two' }, 20)",
        "history.pushState({}, '', '/old'); history.replaceState({}, '', '/new')",  # a redirect is one
        "history.pushState({}, '', '/new?page=2')",
        "location.hash = '#/route'",  # a hash router's
        "history.back()",
        "history.pushState({}, '', '/x'); history.pushState({}, '', '/y')",
    ):
        page.evaluate(step)
        page.wait_for_timeout(120)  # the title is read after 100 ms
    page.goto("about:blank")
    expected = ["/app", "/two", "/new", "/new", "/new#/route", "/new", "/x", "/y"]
    until(lambda: len(paths(site)) >= len(expected))
    assert paths(site) == expected
    views = site.events("page_view")
    assert [each["context"]["page"]["title"] for each in views[:3]] == ["app", "Two", "Two"]
    assert [each["context"]["page"]["referrer"].removeprefix(site.origin) for each in views[1:4]] == [
        "/app",
        "/two",
        "/new",
    ]
    assert [each["timestamp"] for each in views] == sorted(each["timestamp"] for each in views)
    assert len({each["context"]["session"]["sessionId"] for each in views}) == 1


@pytest.mark.parametrize("delay_s", [0.0, 0.8])
def test_restore_from_the_back_forward_cache_is_a_page_view(site: Site, page: Page, delay_s: float) -> None:
    """Also where the page is left while a request awaits its answer: that must not cost it its place in the cache."""
    page.goto("/first")
    if delay_s:
        site.delay_s = delay_s
        page.evaluate(HIDE)
        page.evaluate(SHOW)
        until(lambda: len(site.beacons) == 2)  # and none of them answered
    page.evaluate("window.alive = 'alive'")
    page.goto("/second")
    page.go_back(wait_until="commit")
    page.wait_for_timeout(300)
    assert page.evaluate("window.alive") == "alive"
    page.goto("about:blank")
    until(lambda: len(paths(site)) == 3)
    views = sorted(site.events("page_view"), key=lambda each: int(each["timestamp"]))
    assert [each["context"]["page"]["path"] for each in views] == ["/first", "/second", "/first"]
    restored = until(
        lambda: [each for each in site.vitals().values() if each["navigationType"] == "back-forward-cache"]
    )
    assert {each["pagePath"] for each in restored} == {"/first"}


def test_page_view_by_hand_is_not_counted_twice(site: Site, page: Page) -> None:
    page.goto("/a")
    page.evaluate("history.pushState({}, '', '/b'); sidecar.page()")
    page.wait_for_timeout(200)
    page.evaluate("sidecar.page()")
    page.goto("about:blank")
    until(lambda: paths(site) == ["/a", "/b", "/b"])


def test_two_tags_count_once(site: Site, page: Page) -> None:
    site.head = '<script defer src="/sidecar.js"></script>'
    page.goto("/twice")
    page.goto("about:blank")
    until(lambda: paths(site))
    page.wait_for_timeout(200)
    assert paths(site) == ["/twice"]


def test_prerendered_page_counts_when_it_is_shown(site: Site, page: Page) -> None:
    site.body = """<script type="speculationrules">
        {"prerender": [{"source": "list", "urls": ["/next"], "eagerness": "immediate"}]}</script>
        <a id="next" href="/next">next</a>"""
    page.goto("/here")
    until(lambda: "/next" in site.pages)
    page.wait_for_timeout(300)
    page.click("#next")
    page.wait_for_url("**/next")
    page.wait_for_timeout(300)
    started = page.evaluate("performance.getEntriesByType('navigation')[0].activationStart")
    page.goto("about:blank")
    until(lambda: paths(site) == ["/here", "/next"])
    if started:
        kinds = until(
            lambda: {each["navigationType"] for each in site.vitals().values() if each["pagePath"] == "/next"}
        )
        assert kinds == {"prerender"}
