"""axe-core on every view, light and dark, at the width of a desk and of a phone: no serious finding.

axe-core is not ours to carry: npm brings it into pytest's cache, once.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from tests.dashboard.stage import Viewer
from tests.servers import Server

PACKAGE = "axe-core@4.14.1"
WIDTHS = ((1280, 900), (390, 844))
SERIOUS = ("serious", "critical")
# In the dark only colours can differ.
RUN = """async (isDark) => {
  const found = await axe.run(document, isDark ? { runOnly: { type: 'rule', values: ['color-contrast'] } } : {});
  return found.violations.map((one) => [one.impact, one.id, one.nodes.slice(0, 3).map((node) => node.html)]);
}"""
VIEWS = {
    "overview": "/",
    "overview, filtered": "/?period=30d&device=mobile",
    "overview, nothing there": "/?page=/nowhere",
    "vitals": "/vitals",
    "sessions": "/sessions?q=%2Fcheckout",
    "visitors": "/visitors?q=a",
    "funnels": "/funnels",
    "shipping": "/shipping",
    "time zones": "/preferences",
}


@pytest.fixture(scope="module")
def axe(request: pytest.FixtureRequest) -> str:
    """The source of axe-core. Without it the tests are skipped, but fail in CI, where nobody would notice a skip."""
    folder = Path(request.config.cache.mkdir(PACKAGE.replace("@", "-")))
    source = folder / "node_modules" / "axe-core" / "axe.min.js"
    if not source.exists():
        command = ["npm", "install", "--no-audit", "--no-fund", "--no-save", "--prefix", str(folder), PACKAGE]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
            reason = f"npm could not install {PACKAGE}: {done.stderr[-300:]}"
        except (OSError, subprocess.TimeoutExpired) as error:
            reason = f"npm could not install {PACKAGE}: {error}"
        if not source.exists():
            if os.environ.get("CI") == "true":
                pytest.fail(reason)
            pytest.skip(reason)
    return source.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def viewer(browser: Browser, server: Server) -> Iterator[Viewer]:
    """A viewer who has signed in."""
    viewer = Viewer(browser, server.url)
    viewer.sign_in()
    yield viewer
    viewer.context.close()


def findings(page: Page, axe: str) -> list[Any]:
    """(width, scheme, impact, rule, elements) of every serious finding on the page that is open."""
    found: list[Any] = []
    page.evaluate(axe)
    # What is folded is read, too.
    page.evaluate("for (const one of document.querySelectorAll('details.behind')) one.open = true")
    for width, height in WIDTHS:
        page.set_viewport_size({"width": width, "height": height})
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
            said = page.evaluate(RUN, scheme == "dark")
            found += [(width, scheme, *one) for one in said if one[0] in SERIOUS]
    page.set_viewport_size({"width": WIDTHS[0][0], "height": WIDTHS[0][1]})
    return found


@pytest.mark.parametrize("path", VIEWS.values(), ids=VIEWS)
def test_a_view_has_no_serious_finding(viewer: Viewer, axe: str, path: str) -> None:
    """Each view of the navigation, full and empty."""
    viewer.page.goto(path)
    assert findings(viewer.page, axe) == []


def test_a_session_and_a_visitor_have_no_serious_finding(viewer: Viewer, axe: str) -> None:
    """A session with everything on it, its visitor, and the question whether to erase it."""
    page = viewer.page
    page.goto("/sessions?sort=events")
    page.locator("table.sessions tbody tr:has(a[href^='/visitors/']) th a").first.click()
    assert findings(page, axe) == []
    page.locator("main a[href^='/visitors/']").first.click()
    assert findings(page, axe) == []
    page.get_by_role("link", name="Erase this visitor").click()
    assert findings(page, axe) == []


def test_the_door_and_the_first_steps_have_no_serious_finding(
    browser: Browser, server: Server, axe: str, tmp_path: Path
) -> None:
    """The sign-in, an error, and the overview before the first session."""
    outside = Viewer(browser, server.url)
    outside.page.goto("/sign-in")
    assert findings(outside.page, axe) == []
    outside.context.close()
    with Server(tmp_path / "empty.db") as empty:
        first = Viewer(browser, empty.url)
        first.page.goto("/")
        assert "data-funnel" in first.page.locator("pre").inner_text()
        assert findings(first.page, axe) == []
        first.page.goto("/sessions/none")
        assert findings(first.page, axe) == []
        first.context.close()


def test_a_finding_is_found(viewer: Viewer, axe: str) -> None:
    """The check itself: a picture without words and pale text are seen."""
    viewer.page.goto("/shipping")
    viewer.page.evaluate(
        """() => { document.querySelector('main').insertAdjacentHTML('beforeend',
        '<img src="data:,"><p>pale</p>'); document.querySelector('main > p:last-child').style.color = '#8888'; }"""
    )
    assert {rule for _, _, _, rule, _ in findings(viewer.page, axe)} >= {"image-alt", "color-contrast"}
