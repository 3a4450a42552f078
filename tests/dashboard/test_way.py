"""The way through the dashboard in a real Chromium: every view, filters, order, pages, down to a visitor's end.

`viewing` asserts at its end that the console stayed silent and no request failed.
"""

from __future__ import annotations

import re
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from tests.dashboard.stage import viewing
from tests.servers import Server

SECTIONS = ("Overview", "Vitals", "Sessions", "Visitors", "Funnels", "Shipping")
ROWS = 50  # of a page of a list
TABS_MAX = 120  # until something is reached by keyboard


def asked(page: Page) -> dict[str, str]:
    """The parameters of the address."""
    return {name: values[0] for name, values in parse_qs(urlsplit(page.url).query).items()}


def go(page: Page, section: str) -> None:
    """Through the navigation."""
    page.get_by_role("navigation", name="Sections").get_by_role("link", name=section, exact=True).click()


def heading(page: Page) -> Locator:
    """The main heading."""
    return page.get_by_role("heading", level=1)


def figure(page: Page, name: str) -> float:
    """The exact figure of a tile of the overview."""
    return float(page.locator(f"[data-live='figure-{name}'] data").get_attribute("value") or "nan")


def column(page: Page, number: int) -> list[float]:
    """The exact values in a column of the table, those that are there."""
    cells = page.locator(f"main table tbody tr > :nth-child({number}) data")
    return [float(each.get_attribute("value") or "nan") for each in cells.all()]


def test_every_view_opens(browser: Browser, server: Server) -> None:
    """From the navigation, each marked as the current one, with no address but the sidecar's own."""
    with viewing(browser, server.url) as viewer:
        addresses: set[str] = set()
        viewer.context.on("request", lambda request: addresses.add(request.url))
        for section in SECTIONS:
            go(viewer.page, section)
            current = viewer.page.locator("nav.sections [aria-current='page']")
            expect(current).to_have_text(section)
            expect(heading(viewer.page)).to_have_count(1)
        assert all(address.startswith((server.url, "data:")) for address in addresses), addresses


@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no scripts"])
def test_the_way_to_a_visitor_and_its_end(browser: Browser, server: Server, scripts: bool) -> None:
    """Overview, filtered, to the vitals, the slowest page, its sessions, a session, its visitor, who is erased."""
    with viewing(browser, server.url, java_script_enabled=scripts) as viewer:
        page = viewer.page
        everything = figure(page, "sessions")
        page.get_by_role("navigation", name="Period").get_by_role("link", name="24 hours").click()
        page.get_by_text("Filter", exact=True).click()
        page.get_by_label("Device").select_option("mobile")
        page.get_by_role("button", name="Apply").click()
        expect(page.get_by_role("list", name="Filters that are set")).to_contain_text("mobile")
        assert asked(page) == {"period": "24h", "device": "mobile"}
        assert 0 < figure(page, "sessions") < everything

        go(page, "Vitals")
        assert asked(page) == {"period": "24h", "device": "mobile"}
        slow = page.locator("table", has_text="worst first").locator("tbody tr").first.get_by_role("link")
        path = slow.get_attribute("title")
        slow.click()
        expect(heading(page)).to_have_text("Sessions")
        assert asked(page) == {"period": "24h", "device": "mobile", "page": path, "sort": "slowest"}
        averages = column(page, 4)
        assert averages
        assert averages == sorted(averages, reverse=True)

        page.locator("tbody tr").filter(has=page.locator("a[href^='/visitors/']")).first.get_by_role(
            "rowheader"
        ).get_by_role("link").click()
        expect(heading(page)).to_contain_text("Session")
        expect(page.locator("section.timeline svg[role='img'] title").first).to_have_count(1)
        page.locator("main a[href^='/visitors/']").first.click()
        gone = page.url
        page.get_by_role("link", name="Erase this visitor").click()
        expect(heading(page)).to_contain_text("Erase")
        page.get_by_role("link", name="Keep it").click()
        assert page.url == gone  # asking erases nothing
        page.get_by_role("link", name="Erase this visitor").click()
        page.get_by_role("button", name="Erase for good").click()
        expect(heading(page)).to_have_text("Erased")
        assert page.request.get(gone).status == 404
        go(page, "Overview")
        assert figure(page, "sessions") < everything


@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no scripts"])
def test_lists_are_searched_sorted_and_paged(browser: Browser, server: Server, scripts: bool) -> None:
    """Order by a heading, to the next page and back, a search that finds the one, and one that finds none."""
    with viewing(browser, server.url, java_script_enabled=scripts) as viewer:
        page = viewer.page
        go(page, "Sessions")
        rows = page.locator("table.sessions tbody tr")
        expect(rows).to_have_count(ROWS)
        page.get_by_role("columnheader", name="LCP").get_by_role("link").click()
        first = column(page, 4)
        page.get_by_role("link", name="Next").click()
        second = column(page, 4)
        assert first + second == sorted(first + second, reverse=True)
        page.get_by_role("link", name="Previous").click()
        assert column(page, 4) == first

        name = (rows.first.get_by_role("rowheader").get_by_role("link").get_attribute("href") or "").split("/")[-1]
        searched = name.split("?")[0]
        page.get_by_role("searchbox").fill(searched)
        page.get_by_role("button", name="Show", exact=True).last.click()
        expect(rows).to_have_count(1)
        page.get_by_role("searchbox").fill("there is no such thing")
        page.get_by_role("button", name="Show", exact=True).last.click()
        expect(page.locator("main")).to_contain_text("No session fits the search")
        page.get_by_role("link", name="Clear the search").first.click()
        expect(rows).to_have_count(ROWS)
        go(page, "Visitors")
        page.get_by_role("columnheader", name="Sessions").get_by_role("link").click()
        amounts = [int(each.inner_text()) for each in page.locator("table.visitors tbody tr > :nth-child(5)").all()]
        assert amounts == sorted(amounts, reverse=True)


def test_from_the_funnels_to_a_session_in_three_clicks(browser: Browser, server: Server) -> None:
    """Funnels, a funnel, its sessions, a session."""
    with viewing(browser, server.url) as viewer:
        page = viewer.page
        go(page, "Funnels")
        page.get_by_role("link", name="outlet", exact=True).click()
        expect(heading(page)).to_have_text("Overview")
        assert asked(page)["funnelId"] == "outlet"
        page.get_by_role("link", name=re.compile("Sessions of")).click()
        page.locator("table.sessions tbody th a").first.click()
        expect(page.locator("main")).to_contain_text("outlet")
        expect(heading(page)).to_contain_text("Session")


def test_signing_out_closes_the_door(browser: Browser, server: Server) -> None:
    """After it, pages and API ask for the token again."""
    with viewing(browser, server.url) as viewer:
        assert viewer.page.request.get("/sessions").status == 200
        viewer.page.get_by_role("button", name="Sign out").click()
        expect(viewer.page.get_by_label("Token")).to_be_focused()
        assert [viewer.page.request.get(path).status for path in ("/", "/sessions", "/api/sessions")] == [403, 403, 403]


def reach(page: Page, wanted: Locator) -> None:
    """Press Tab until the element has the focus, which must be seen, and then Enter."""
    for _ in range(TABS_MAX):
        page.keyboard.press("Tab")
        if wanted.evaluate("element => element === document.activeElement"):
            outline = wanted.evaluate("element => getComputedStyle(element).outlineStyle")
            assert outline != "none"
            page.keyboard.press("Enter")
            return
    raise AssertionError(f"not reached with {TABS_MAX} tabs: {wanted}")


def test_the_way_by_keyboard_alone(browser: Browser, server: Server) -> None:
    """From the overview over the vitals to a page's sessions, a session, its visitor, and the question to erase it."""
    with viewing(browser, server.url) as viewer:
        page = viewer.page
        page.goto("/")
        reach(page, page.get_by_role("link", name="To the content"))
        assert page.url.endswith("#main")
        page.goto("/")
        reach(page, page.get_by_role("link", name="Vitals", exact=True).first)
        expect(heading(page)).to_contain_text("vitals")
        reach(page, page.locator("table", has_text="worst first").locator("tbody tr").first.get_by_role("link"))
        expect(heading(page)).to_have_text("Sessions")
        reach(page, page.locator("table.sessions tbody th a").first)
        expect(heading(page)).to_contain_text("Session ")
        reach(page, page.locator("main a[href^='/visitors/']").first)
        reach(page, page.get_by_role("link", name="Erase this visitor"))
        expect(page.get_by_role("button", name="Erase for good")).to_be_visible()
