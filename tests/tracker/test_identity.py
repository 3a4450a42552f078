"""Who is here: visitor, session, user, consent; and `window.sidecar`."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import BrowserContext, Page

from tests.tracker.site import Site, until
from tests.tracker.test_delivery import queued
from tests.tracker.test_vitals import HIDE

BLOCKED = """Object.defineProperty(window, 'localStorage', {
    get() { throw new DOMException('The operation is insecure.', 'SecurityError') }})"""
FULL = "Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError') }"


def sessions(items: list[dict[str, Any]]) -> set[str]:
    return {item["context"]["session"]["sessionId"] for item in items}


def visitors(items: list[dict[str, Any]]) -> set[str]:
    return {item["context"]["user"]["anonymousId"] for item in items}


def ours(page: Page) -> list[str]:
    return sorted(key for key in page.evaluate("Object.keys(localStorage)") if key.startswith("sidecar."))


def test_tabs_share_visitor_and_session(site: Site, context: BrowserContext) -> None:
    one, two = context.new_page(), context.new_page()
    one.goto("/one")
    two.goto("/two")
    one.evaluate("sidecar.track('again')")
    one.goto("about:blank")
    two.goto("about:blank")
    until(lambda: len(site.events("page_view")) == 2 and site.events("again"))
    assert len(sessions(site.events())) == 1
    assert len(visitors(site.events())) == 1


@pytest.mark.parametrize(("minutes", "count"), [(29, 1), (31, 2)])
def test_session_ends_after_half_an_hour_of_nothing(site: Site, page: Page, minutes: int, count: int) -> None:
    page.goto("/before")
    page.goto("about:blank")
    until(lambda: len(site.events("page_view")) == 1)
    page.route("**/blank", lambda route: route.fulfill(status=200, content_type="text/html", body=""))
    page.goto("/blank")  # the origin without the tracker
    page.evaluate(
        """(minutes) => { const held = JSON.parse(localStorage['sidecar.session']);
            held.at -= minutes * 60000; localStorage['sidecar.session'] = JSON.stringify(held) }""",
        minutes,
    )
    page.unroute_all()
    page.goto("/much-later")
    page.goto("about:blank")
    until(lambda: len(site.events("page_view")) == 2)
    assert len(sessions(site.events())) == count
    assert len(visitors(site.events())) == 1


def test_input_keeps_a_session_running(site: Site, page: Page) -> None:
    page.goto("/long")
    page.evaluate("const real = Date.now; window.ahead = 0; Date.now = () => real() + window.ahead * 60000")
    for minutes in (20, 40, 60):
        page.evaluate(f"window.ahead = {minutes}")
        page.mouse.move(minutes, minutes)
    page.evaluate("sidecar.track('still here')")
    page.goto("about:blank")
    until(lambda: site.events("still here"))
    assert len(sessions(site.events())) == 1
    engaged = sum(item["properties"]["activeTime"] for item in site.events("session_end"))
    assert 90 <= engaged <= 95, "half a minute after each input, not the pauses"


@pytest.mark.parametrize("script", [BLOCKED, FULL])
def test_storage_that_throws(site: Site, context: BrowserContext, script: str) -> None:
    context.add_init_script(script)
    page = context.new_page()
    page.goto("/private")
    page.evaluate("sidecar.track('a'); sidecar.track('b')")
    page.goto("about:blank")
    until(lambda: len(site.events()) >= 4)
    assert len(sessions(site.events())) == 1
    assert len(visitors(site.events())) == 1


def test_sandboxed_frame(site: Site, context: BrowserContext) -> None:
    page = context.new_page()
    page.route("**/outer", lambda route: route.fulfill(
        content_type="text/html", body='<iframe sandbox="allow-scripts" src="/inner"></iframe>'
    ))  # fmt: skip
    page.goto("/outer")
    page.frames[1].wait_for_selector("h1")
    page.goto("about:blank")
    until(lambda: [item["context"]["page"]["path"] for item in site.events("page_view")] == ["/inner"])
    assert site.beacons[0].headers["origin"] == "null"


def test_functions_of_the_page(site: Site, page: Page) -> None:
    page.goto("/api")
    page.evaluate("sidecar.track('before')")
    page.evaluate("sidecar.identify('user-7', {name: 'Ada', plan: 'pro'})")
    page.evaluate("sidecar.track('plan', {size: 3, nested: {list: [1, 2]}})")
    page.evaluate("sidecar.conversion({type: 'purchase', revenue: '49.90', currency: 'EUR', orderId: 'A-1'})")
    page.goto("/thanks")
    page.evaluate("sidecar.conversion({type: 'purchase', revenue: 49.9, currency: 'EUR', orderId: 'A-1'})")
    page.evaluate("sidecar.conversion({type: 'lead'})")
    page.goto("about:blank")
    until(lambda: len(site.events("conversion")) == 2 and site.events("plan"))
    assert "userId" not in site.events("before")[0]["context"]["user"]
    identified = site.events("user_identified")[0]
    assert identified["properties"] == {"userId": "user-7", "traits": {"name": "Ada", "plan": "pro"}}
    assert site.events("plan")[0]["properties"] == {"size": 3, "nested": {"list": [1, 2]}}
    assert site.events("plan")[0]["context"]["user"]["userId"] == "user-7"
    order, lead = site.events("conversion")
    assert order["properties"] == {
        "conversionType": "purchase",
        "revenue": 49.9,
        "currency": "EUR",
        "orderId": "A-1",
    }, "a reloaded thank-you page does not sell twice"
    assert lead["properties"] == {"conversionType": "lead"}
    assert lead["context"]["user"]["userId"] == "user-7", "also on the next page"


def test_nothing_is_thrown_into_the_page(site: Site, page: Page) -> None:
    page.goto("/odd")
    thrown = page.evaluate(
        """() => {
            const loop = {}; loop.loop = loop;
            const trap = {get a() { throw new Error('trap') }};
            const odd = [undefined, null, 0, '', NaN, loop, trap, 10n, Symbol('s'), () => 1, [1], new Date(NaN),
                         '\\ud800', {deep: '\\udfff'}, {n: 10n}];
            const errors = [];
            for (const name of Object.keys(sidecar)) {
                if (['forget', 'revokeConsent'].includes(name)) continue;
                for (const a of odd) for (const b of odd) {
                    try { if (sidecar[name](a, b) !== undefined) errors.push(name) }
                    catch (error) { errors.push(error) }
                }
            }
            return errors.map(String);
        }"""
    )
    assert thrown == []
    page.evaluate("document.title = 'half \\ud83d of a pair'; sidecar.track('fine', {text: 'half \\ud83d'})")
    page.evaluate(HIDE)
    page.goto("/next")  # more than 60 KiB: not all of it fits into the beacons of a page that is being left
    fine = until(lambda: site.events("fine"))[0]
    assert fine["properties"] == {"text": "half �"}
    assert fine["context"]["page"]["title"] == "half � of a pair"
    assert "\\ud8" not in str(site.got("events")).lower()


def test_nothing_is_logged_unless_asked_for(site: Site, page: Page) -> None:
    """The other half is in the fixture `context`, for every test."""
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.route("**/sidecar.js", lambda route: route.fulfill(
        content_type="text/javascript",
        body="console.log = ((log) => (...words) => log('[expected]', ...words))(console.log);" + site.bundle.decode(),
    ))  # fmt: skip
    site.attributes = "data-debug"
    page.goto("/debug")
    page.evaluate(HIDE)
    until(lambda: site.beacons, pause=lambda seconds: page.wait_for_timeout(seconds * 1000))
    assert any("[sidecar] kept" in text for text in said)


def test_forget(site: Site, context: BrowserContext) -> None:
    other = context.new_page()
    other.goto("/other")
    page = context.new_page()
    page.goto("/forget")
    page.evaluate("sidecar.identify('u1'); sidecar.track('unsent')")
    visitor = page.evaluate("localStorage['sidecar.visitor']")
    site.answer(503)
    page.evaluate("sidecar.forget()")
    until(lambda: site.got("delete", stored=False))
    assert not [key for key in ours(page) if "queue" not in key]
    assert queued(page) == [{"anonymousId": visitor}], "kept until the sidecar has heard it"
    page.evaluate("sidecar.track('no more'); sidecar.page(); history.pushState({}, '', '/spa')")
    other.evaluate("sidecar.track('no more')")
    page.wait_for_timeout(150)
    assert queued(page) == [{"anonymousId": visitor}]
    site.answer(200)
    page.goto("/new-life")
    page.evaluate(HIDE)
    assert {item["anonymousId"] for item in until(lambda: site.got("delete"))} == {visitor}
    until(lambda: site.events("page_view"))
    until(lambda: not queued(page))
    other.goto("about:blank")
    page.goto("about:blank")
    page.wait_for_timeout(200)
    assert visitor not in visitors(site.events())
    assert not site.events("no more", stored=False)
    assert not site.events("unsent", stored=False)


def test_forgotten_while_in_the_back_forward_cache(site: Site, page: Page) -> None:
    page.goto("/kept")
    visitor = page.evaluate("localStorage['sidecar.visitor']")
    page.goto("/leave")
    page.evaluate("sidecar.forget()")
    until(lambda: site.got("delete"))
    site.beacons.clear()
    page.go_back(wait_until="commit")
    page.wait_for_timeout(200)
    page.goto("about:blank")
    until(lambda: site.events("page_view"))
    assert visitor not in visitors(site.events())


def test_consent_is_waited_for(site: Site, page: Page) -> None:
    site.attributes = "data-require-consent"
    page.goto("/ask")
    page.evaluate("sidecar.track('early')")
    page.mouse.move(5, 5)
    page.evaluate(HIDE)
    page.goto("/ask-again")
    page.evaluate("sidecar.identify('u1'); sidecar.track('second')")
    page.wait_for_timeout(300)
    assert ours(page) == []
    assert site.beacons == []
    page.evaluate("sidecar.grantConsent('v2')")
    page.goto("/granted")
    page.evaluate("sidecar.grantConsent('v2')")
    page.goto("about:blank")
    until(lambda: len(site.events("page_view")) == 2)
    assert not site.events("early"), "of a page without consent"
    assert site.events("second")
    given = site.events("page_view")[0]["context"]["gdpr"]
    assert given["consentGiven"] is True
    assert given["consentVersion"] == "v2"
    assert given["consentTimestamp"].endswith("Z")
    assert all(item["context"]["gdpr"] == given for item in site.events())
    until(lambda: site.vitals())
    assert all(item["gdpr"] == given for item in site.vitals().values())


def test_consent_is_taken_back(site: Site, page: Page) -> None:
    page.goto("/on")
    visitor = page.evaluate("localStorage['sidecar.visitor']")
    page.evaluate("sidecar.revokeConsent(); sidecar.track('after')")
    page.goto("/off")
    page.evaluate("sidecar.track('after')")
    page.wait_for_timeout(200)
    assert ours(page) == ["sidecar.consent"]
    page.evaluate("sidecar.revokeConsent(); sidecar.track('after'); sidecar.grantConsent('v3')")
    page.goto("about:blank")
    views = until(lambda: site.events("page_view"))
    assert [item["context"]["page"]["path"] for item in views] == ["/off"]
    assert visitor not in visitors(site.events())
    assert not site.events("after", stored=False)


@pytest.mark.parametrize(("reason", "kept"), [("do-not-track", []), ("bot", ["sidecar.session", "sidecar.visitor"])])
def test_a_sidecar_that_wants_nothing_is_left_alone(site: Site, page: Page, reason: str, kept: list[str]) -> None:
    site.answer(202, {"success": True, "stored": False, "reason": reason})
    page.goto("/unwanted")
    page.evaluate(HIDE)
    until(lambda: site.beacons and ours(page) == kept)
    page.wait_for_timeout(200)
    before = len(site.beacons)
    page.evaluate("sidecar.track('more')")
    page.goto("about:blank")
    page.wait_for_timeout(200)
    assert len(site.beacons) == before
