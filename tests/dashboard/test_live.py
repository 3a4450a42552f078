"""An open overview follows what happens, in a real browser: in its place, without a word, and only while it is seen."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import Browser, Locator, Page, expect

from tests.builders import event, page_of, record_facts, serve_dashboard
from tests.web.reader import MINUTE
from tests.web.test_overview import NOW, some_weeks


def test_an_open_page_follows_without_moving(tmp_path: Path, browser: Browser) -> None:
    """Numbers change in their place: no layout shift, no message, focus and an opened table stay."""
    path = record_facts(tmp_path / "live.db", some_weeks(), now=NOW)
    with serve_dashboard(path) as port:
        page = browser.new_page()
        complaints: list[str] = []
        requests_seen: list[str] = []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("requestfailed", lambda request: complaints.append(request.url))
        page.on("request", lambda request: requests_seen.append(request.url))
        page.clock.install()
        page.add_init_script(
            """window.moved = 0; new PerformanceObserver((list) => {
            for (const entry of list.getEntries()) window.moved += entry.value;
            }).observe({type: "layout-shift", buffered: true});"""
        )
        page.goto(f"http://127.0.0.1:{port}/")
        page.locator(".behind summary").click()
        link = page.locator(".tops a").first
        link.focus()
        figure = page.locator('[data-live="figure-sessions"] data')
        assert figure.inner_text() == "3"
        assert len(requests_seen) == 3
        more = [event(f"new-{n}", at=-n, visitor=f"v{n}") for n in range(1500)]
        record_facts(path, more, now=NOW)
        page.clock.run_for(10_000)
        expect(figure).to_have_text("1,503")
        assert page.locator('[data-live="points"] td').all_inner_texts()[-4:] == ["1,502", "1,502", "1,501", "0"]
        assert link.evaluate("(one) => one === document.activeElement")
        assert page.locator("details.behind").get_attribute("open") is not None
        assert page.evaluate("window.moved") < 0.02
        assert complaints == []
        page.close()


def test_a_hidden_page_asks_nothing(tmp_path: Path, browser: Browser) -> None:
    path = record_facts(tmp_path / "live.db", some_weeks(), now=NOW)
    with serve_dashboard(path) as port:
        page = browser.new_page()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.clock.install()
        page.add_init_script(
            "Object.defineProperty(document, 'hidden', {get: () => window.away === true, configurable: true});"
        )
        page.goto(f"http://127.0.0.1:{port}/")
        page.evaluate("window.away = true; document.dispatchEvent(new Event('visibilitychange'))")
        page.clock.run_for(60_000)
        assert len(asked) == 3
        with page.expect_response("**/") as back:  # seen again, it asks at once
            page.evaluate("window.away = false; document.dispatchEvent(new Event('visibilitychange'))")
            page.clock.run_for(1)
        assert back.value.status == 200
        assert len(asked) == 4
        page.close()


def _follow(page: Page, locator: Locator, text: list[str]) -> None:
    """Let the page ask until it shows that: it asks 10 s after the last answer, which may still be on its way."""
    for _ in range(10):
        page.clock.run_for(10_000)
        try:
            expect(locator).to_have_text(text, timeout=1_000)
        except AssertionError:
            continue
        return
    expect(locator).to_have_text(text)


def test_a_first_session_opens_the_page_by_itself(tmp_path: Path, browser: Browser) -> None:
    """The page that says how to begin, and one without anything in its period, are loaded again; the lists follow."""
    path = record_facts(tmp_path / "live.db", [], now=NOW)
    with serve_dashboard(path) as port:
        page = browser.new_page()
        page.clock.install()
        page.goto(f"http://127.0.0.1:{port}/")
        expect(page.get_by_role("heading", level=1)).to_have_text("Ready for the first session")
        with page.expect_response("**/"):  # and nothing has come
            page.clock.run_for(10_000)
        record_facts(path, [event("first", at=-MINUTE, page=page_of("/one"))], now=NOW)
        _follow(page, page.locator('[data-live="figure-sessions"] data'), ["1"])
        pages = page.locator('[data-live="top-pages"] tbody tr th')
        _follow(page, pages, ["/one"])
        record_facts(path, [event("second", at=-MINUTE, page=page_of("/two"))], now=NOW)
        _follow(page, pages, ["/one", "/two"])
        page.close()
