"""Web vitals: all five, under the ids, page and session they belong to."""

from __future__ import annotations

from typing import Any

from playwright.sync_api import Page

from tests.tracker.site import Site, until

# As `visibilitychange` looks to a script when the visitor turns to another tab; headless Chromium never hides a page.
HIDE = """Object.defineProperty(document, 'visibilityState', {get: () => 'hidden', configurable: true});
    document.dispatchEvent(new Event('visibilitychange', {bubbles: true}))"""
SHOW = "delete document.visibilityState; document.dispatchEvent(new Event('visibilitychange', {bubbles: true}))"

PAINTED = "() => performance.getEntriesByName('first-contentful-paint').length"

LATER = "const real = Date.now; Date.now = () => real() + %d * 60000"


def named(site: Site, kind: str = "navigate") -> dict[str, dict[str, Any]]:
    return {name: item for (name, _), item in site.vitals().items() if item["navigationType"] == kind}


def test_five_vitals_of_a_page_and_one_flush_when_it_is_left(site: Site, page: Page) -> None:
    """`pagehide` comes before the library's last reports; sending waits for those."""
    site.attributes = 'data-funnel="shop"'
    page.goto("/vitals")
    page.click("#slow")
    page.wait_for_timeout(1600)
    until(lambda: site.beacons)  # the first flush, two seconds in; the next is a quarter minute away
    page.wait_for_timeout(500)  # its other beacon, where a vital was there by then
    before = len(site.beacons)
    page.goto("about:blank")
    until(lambda: set(named(site)) == {"LCP", "INP", "CLS", "FCP", "TTFB"})
    vitals = named(site)
    view, end = until(lambda: site.events() if len(site.events()) == 2 else [])
    page.wait_for_timeout(200)
    assert sorted(beacon.path for beacon in site.beacons[before:]) == ["events", "web-vitals"]
    assert end["eventName"] == "session_end"
    assert 1.5 <= end["properties"]["activeTime"] <= 8
    assert end["context"]["page"]["path"] == "/vitals"
    for item in vitals.values():
        assert item["sessionId"] == view["context"]["session"]["sessionId"]
        assert item["anonymousId"] == view["context"]["user"]["anonymousId"]
        assert item["funnelId"] == "shop"
        assert item["pageUrl"] == f"{site.origin}/vitals"
        assert (item["pagePath"], item["pageTitle"]) == ("/vitals", "vitals")
        assert (item["screenWidth"], item["screenHeight"]) == (1280, 720)
        assert item["rating"] in ("good", "needs-improvement", "poor")
        assert item["id"].startswith("v6-")
        assert isinstance(item["delta"], int | float)
        assert 0 <= item["timestamp"] - view["timestamp"] < 10_000
    assert vitals["INP"]["value"] >= 100
    assert vitals["CLS"]["value"] == 0
    seqs = [item["seq"] for item in vitals.values()]
    assert len(set(seqs)) == 5
    assert min(seqs) == 1
    assert max(seqs) <= 6  # INP is reported when it is measured and again, where it changed, when the page hides
    by_seq = sorted(vitals.values(), key=lambda item: int(item["seq"]))
    assert [item["timestamp"] for item in by_seq] == sorted(item["timestamp"] for item in by_seq)


def test_soft_navigation_has_vitals_of_its_own(site: Site, page: Page) -> None:
    page.goto("/spa")
    page.click("#soft")
    page.wait_for_timeout(1500)
    page.evaluate("history.replaceState({}, '', '/elsewhere')")  # reports must not look at the present address
    page.goto("about:blank")
    until(lambda: {"FCP", "TTFB", "CLS"} <= set(named(site, "soft-navigation")))
    until(lambda: len(site.events("page_view")) == 3)
    soft = named(site, "soft-navigation")
    assert {item["pagePath"] for item in soft.values()} == {site.events("page_view")[1]["context"]["page"]["path"]}
    assert {item["pageTitle"] for item in soft.values()} == {"soft"}
    assert soft["TTFB"]["value"] == 0
    hard = named(site)
    assert {item["pagePath"] for item in hard.values()} == {"/spa"}
    assert {item["pageTitle"] for item in hard.values()} == {"spa"}
    assert {item["sessionId"] for item in [*soft.values(), *hard.values()]} == {hard["FCP"]["sessionId"]}


def test_a_later_report_has_the_same_id_and_a_higher_seq(site: Site, page: Page) -> None:
    page.goto("/shift")
    page.wait_for_function(PAINTED)
    page.wait_for_timeout(100)
    page.evaluate(HIDE)
    until(lambda: "CLS" in named(site))
    first = named(site)["CLS"]
    page.evaluate(SHOW)
    page.evaluate("document.body.insertAdjacentHTML('afterbegin', '<div style=\"height: 200px\"></div>')")
    page.wait_for_timeout(300)
    page.evaluate(HIDE)
    until(lambda: named(site)["CLS"]["value"] > 0)
    second = named(site)["CLS"]
    assert (second["id"], second["sessionId"]) == (first["id"], first["sessionId"])
    assert second["seq"] > first["seq"]
    assert second["timestamp"] > first["timestamp"]


def test_only_the_newest_report_is_in_a_flush(site: Site, page: Page) -> None:
    site.answer(503)
    page.goto("/often")
    page.wait_for_function(PAINTED)
    page.wait_for_timeout(100)
    for _ in range(3):
        page.evaluate("document.body.insertAdjacentHTML('afterbegin', '<div style=\"height: 100px\"></div>')")
        page.wait_for_timeout(250)
        page.evaluate(HIDE)
        page.evaluate(SHOW)
    page.wait_for_timeout(200)
    site.answer(200)
    page.evaluate(HIDE)
    until(lambda: "CLS" in named(site))
    reports = [item for item in site.got("web-vitals") if item["metric"] == "CLS"]
    assert len(reports) == 1
    assert reports[0]["seq"] == max(item["seq"] for item in site.got("web-vitals", stored=False))


def test_vitals_stay_with_the_session_of_their_page(site: Site, page: Page) -> None:
    """The visitor comes back to an open page after 40 minutes: a new session, without the old one's facts."""
    page.goto("/lunch")
    page.wait_for_function(PAINTED)
    page.wait_for_timeout(200)
    page.evaluate(LATER % 40)
    page.mouse.move(5, 5)
    page.evaluate("sidecar.track('back')")
    page.evaluate(HIDE)
    until(lambda: site.events("back") and "CLS" in named(site))
    view = site.events("page_view")[0]
    old = view["context"]["session"]["sessionId"]
    back = site.events("back")[0]
    assert back["context"]["session"]["sessionId"] != old
    assert back["context"]["user"] == view["context"]["user"]
    assert back["timestamp"] - view["timestamp"] > 39 * 60_000
    cls = named(site)["CLS"]
    assert cls["sessionId"] == old
    # Not at the present time: that would stretch the old session over the pause.
    assert cls["timestamp"] - view["timestamp"] < 60_000
    ends = {item["context"]["session"]["sessionId"]: item for item in site.events("session_end")}
    assert ends[old]["timestamp"] - view["timestamp"] < 60_000
    assert ends[old]["properties"]["activeTime"] <= 31


def test_interaction_is_measured_though_the_page_never_gets_idle(site: Site, page: Page) -> None:
    """The visitor clicks and is gone: the library waits for an idle moment to look at the click."""
    page.add_init_script("window.requestIdleCallback = () => 0; window.cancelIdleCallback = () => undefined;")
    page.add_init_script(
        "new PerformanceObserver(() => { window.clicked = true; }).observe({type: 'event', durationThreshold: 100})"
    )
    page.goto("/gone")
    page.wait_for_function(PAINTED)
    page.click("#slow")
    page.wait_for_function("window.clicked")
    page.goto("about:blank")
    until(lambda: "INP" in named(site))
    assert named(site)["INP"]["value"] >= 100
