"""Nothing is lost on the way to the sidecar, and no more is sent than that takes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from playwright.sync_api import BrowserContext, Page

from tests.tracker.site import Site, until
from tests.tracker.test_vitals import HIDE, PAINTED, SHOW

QUEUES = """() => Object.keys(localStorage).filter((key) => key.startsWith('sidecar.queue.'))
    .map((key) => JSON.parse(localStorage[key]))"""


def queued(page: Page) -> list[dict[str, Any]]:
    """All that the origin's pages still keep."""
    return [json.loads(entry["json"]) for queue in page.evaluate(QUEUES) for entry in queue["items"]]


def names(items: list[dict[str, Any]]) -> list[str]:
    return [item["eventName"] for item in items if "eventName" in item]


@pytest.mark.parametrize("status", [503, 429, 0])
def test_a_failed_request_is_repeated_with_the_same_ids(site: Site, page: Page, status: int) -> None:
    site.answer(status, Retry_After="4")
    page.clock.install()
    page.goto("/retry")
    page.evaluate("sidecar.track('kept', {n: 1})")
    page.clock.fast_forward(2500)
    until(lambda: site.beacons)
    page.wait_for_timeout(100)
    page.clock.fast_forward(1500)  # not before its time: 4 s were asked for, and half of 5 s is the least
    page.wait_for_timeout(100)
    # Chromium itself repeats a request whose connection broke without an answer.
    assert len({json.dumps(beacon.body) for beacon in site.beacons}) == 1, "a failed request is followed by no other"
    site.answer(200)
    page.clock.fast_forward(8000)
    until(lambda: site.events("kept"))
    assert site.events("kept") == site.events("kept", stored=False)
    until(lambda: not queued(page))


def test_backoff_grows_and_is_bounded(site: Site, page: Page) -> None:
    site.answer(503)
    page.clock.install()
    page.goto("/backoff")
    tries: list[int] = []
    for _ in range(40):  # 20 minutes
        page.clock.fast_forward(30_000)
        page.wait_for_timeout(15)
        tries.append(len(site.beacons))
    # 5, 10, 20, ... 300 s, each cut to between a half and the whole: 5 to 7 tries in the first 5 minutes, then one in
    # 2.5 to 5; ever trying, never hammering.
    assert 4 <= tries[10] <= 10
    assert 2 <= tries[-1] - tries[10] <= 8


def test_a_sidecar_that_is_back_ends_the_wait(site: Site, page: Page) -> None:
    site.answer(503, Retry_After="3600")
    page.clock.install()
    page.goto("/back")
    page.clock.fast_forward(2500)
    until(lambda: site.beacons)
    page.wait_for_timeout(100)
    site.answer(200)
    page.evaluate(HIDE)  # tries whatever was asked for: there may be no other chance
    until(lambda: site.events("page_view"))
    until(lambda: not queued(page))
    page.evaluate(SHOW)
    page.evaluate("sidecar.track('soon')")
    page.clock.fast_forward(16_000)
    until(lambda: site.events("soon"))


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, {"success": True, "rejected": [{"index": 0, "reason": "no"}]}),
        (202, {"success": True, "stored": False, "reason": "consent"}),
        (401, {"error": "key"}),
        (422, {"error": "every item rejected"}),
    ],
)
def test_what_is_answered_for_is_gone(site: Site, page: Page, status: int, body: dict[str, Any]) -> None:
    site.answer(status, body)
    page.goto("/answered")
    page.evaluate(HIDE)
    until(lambda: len(site.beacons) >= 2)
    until(lambda: not queued(page))


def test_items_survive_the_page(site: Site, page: Page) -> None:
    """What a dying page could not deliver goes out with the next one, under the same ids."""
    site.answer(0)
    page.goto("/lost")
    page.evaluate("sidecar.track('precious')")
    page.goto("about:blank")
    until(lambda: site.events("precious", stored=False))
    before = {item["eventId"] for item in site.events(stored=False)}
    vitals = set(site.vitals(stored=False))
    site.answer(200)
    page.goto("/next")
    page.evaluate(HIDE)
    until(lambda: site.events("precious"))
    assert before <= {item["eventId"] for item in site.events()}
    until(lambda: vitals <= set(site.vitals()))
    until(lambda: not queued(page))


def test_beacons_are_confirmed_once_by_a_page_that_stays(site: Site, page: Page) -> None:
    for path in ("/1", "/2", "/3"):  # left before any answer could be heard
        page.goto(path)
    page.goto("/stay")
    page.evaluate(HIDE)
    until(lambda: {item["context"]["page"]["path"] for item in site.events("page_view")} == {"/1", "/2", "/3", "/stay"})
    until(lambda: not queued(page))
    page.goto("/more")
    page.goto("about:blank")
    until(lambda: len(site.events("page_view")) == 5)
    sent = [item["eventId"] for item in site.got("events") if item["context"]["page"]["path"] in ("/1", "/2", "/3")]
    assert {sent.count(each) for each in sent} == {2}


def test_requests_stay_within_the_limits(site: Site, page: Page) -> None:
    page.goto("/many")
    page.evaluate(
        """for (let n = 0; n < 250; n += 1) sidecar.track('n' + n, {});
        for (let n = 0; n < 12; n += 1) sidecar.track('big' + n, {text: 'ä'.repeat(4500)})"""
    )
    until(lambda: len(site.events()) >= 263)
    assert max(len(beacon.items) for beacon in site.beacons) == 100
    assert max(int(beacon.headers["content-length"]) for beacon in site.beacons) <= 60 * 1024 + 20
    assert len(site.beacons) <= 10


def test_the_queue_is_bounded_oldest_first(site: Site, page: Page) -> None:
    site.answer(503)
    page.goto("/bound")
    page.evaluate("for (let n = 0; n < 700; n += 1) sidecar.track('n' + n)")
    page.wait_for_timeout(100)
    kept = [name for name in names(queued(page)) if name != "page_view"]
    assert 250 < len(kept) <= 500
    assert kept[-1] == "n699"
    assert "n0" not in kept
    assert sum(len(json.dumps(item)) for item in queued(page)) < 300 * 1024


def test_an_oversized_event_goes_without_its_properties(site: Site, page: Page) -> None:
    page.goto("/large")
    page.evaluate("sidecar.track('large', {lines: Array(9).fill('x'.repeat(2000))})")
    page.goto("about:blank")
    assert "properties" not in until(lambda: site.events("large"))[0]


@pytest.mark.parametrize(
    "lacking",
    [
        "navigator.sendBeacon = undefined",
        "delete Request.prototype.keepalive",
        "navigator.sendBeacon = () => false",
        "navigator.sendBeacon = () => { throw new TypeError('no') }",
    ],
)
def test_older_browsers(site: Site, context: BrowserContext, lacking: str) -> None:
    context.add_init_script(lacking)
    page = context.new_page()
    page.goto("/old")
    page.wait_for_function(PAINTED)
    page.evaluate(HIDE)
    until(lambda: len(site.events("page_view")) == 1)
    page.evaluate(SHOW)
    page.evaluate("sidecar.track('last')")
    page.goto("/older")
    page.evaluate(HIDE)
    until(lambda: site.events("last") and "CLS" in {name for name, _ in site.vitals()})


def test_a_hidden_page_that_is_closed_sends_nothing_twice(site: Site, page: Page) -> None:
    page.goto("/tab")
    page.click("h1")  # LCP is final
    page.wait_for_timeout(400)
    page.evaluate(HIDE)
    until(lambda: len(site.beacons) >= 2)
    until(lambda: not queued(page))
    before = len(site.beacons)
    page.goto("about:blank")
    page.wait_for_timeout(300)
    assert len(site.beacons) == before


def test_pages_take_over_what_was_left_and_leave_the_living_alone(site: Site, context: BrowserContext) -> None:
    site.answer(503)
    living, dead = context.new_page(), context.new_page()
    living.goto("/living")
    living.evaluate("sidecar.track('of the living')")
    dead.goto("/dead")
    dead.evaluate("sidecar.track('of the dead')")
    dead.wait_for_timeout(150)
    # As it is when the browser was killed a good minute ago: no `pagehide`, and nothing new since.
    dead.evaluate(
        """for (const key of Object.keys(localStorage)) {
            if (!localStorage[key].includes('of the dead')) continue;
            localStorage['sidecar.queue.killed'] = localStorage[key].replace(/"at":\\d+,"left":false/,
                '"at":' + (Date.now() - 61000) + ',"left":false');
        }
        localStorage['sidecar.queue.broken'] = '{]';
        localStorage['sidecar.queue.stranger'] =
            JSON.stringify({base: 'https://x.example/', at: Date.now(), items: []})"""
    )
    site.answer(200)
    third = context.new_page()
    third.goto("/third")
    third.wait_for_timeout(100)
    keys = third.evaluate("Object.keys(localStorage)")
    assert "sidecar.queue.killed" not in keys
    assert "sidecar.queue.broken" not in keys
    assert "sidecar.queue.stranger" in keys
    assert names(queued(third)).count("of the living") == 1
    third.goto("about:blank")
    until(lambda: site.events("of the dead"))
    until(lambda: site.events("of the living"))


def test_each_funnel_keeps_its_own_key(site: Site, page: Page) -> None:
    """Items that another funnel's page delivers still go out under the key they were made for."""
    site.answer(503)
    site.attributes = 'data-funnel="one" data-key="k1"'
    page.goto("/one")
    page.goto("about:blank")
    until(lambda: len(site.beacons) >= 2)
    site.answer(200)
    site.attributes = 'data-funnel="two" data-key="k2"'
    page.goto("/two")
    page.evaluate(HIDE)
    until(lambda: len(site.events("page_view")) == 2)
    for beacon in site.beacons:
        assert {item["funnelId"] for item in beacon.items} == {{"k1": "one", "k2": "two"}[beacon.query["apiKey"][0]]}


def test_tracker_of_another_origin(site: Site, page: Page) -> None:
    """The sidecar under a name of its own, in a folder: items go there, without a preflight."""
    site.head = f'<script defer src="http://localhost:{site.port}/folder/sidecar.js"></script>'
    page.route("**/127.0.0.1:*/sidecar.js", lambda route: route.fulfill(body=""))
    page.goto("/cross")
    page.evaluate(HIDE)
    until(lambda: site.beacons)
    assert {beacon.headers["host"] for beacon in site.beacons} == {f"localhost:{site.port}"}
    until(lambda: not queued(page))
