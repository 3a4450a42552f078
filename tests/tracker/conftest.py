"""A browser for each module, and for each test a fresh profile and a fresh site."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from tests.browser import launch
from tests.tracker.site import Site, serve

TRACKER = Path(__file__).parents[2] / "sidecar" / "tracker"


@pytest.fixture(scope="session")
def bundle() -> bytes:
    """The tracker as it is now; built where the tree has none or an old one."""
    subprocess.run([sys.executable, str(TRACKER / "build.py")], check=True, stdout=subprocess.DEVNULL)
    return (TRACKER / "bundle" / "sidecar.js").read_bytes()


# A module, not the session: playwright's loop runs in this thread, where tests of other modules start their own.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        running = launch(playwright)
        yield running
        running.close()


@pytest.fixture
def site(bundle: bytes) -> Iterator[Site]:
    with serve(bundle) as running:
        yield running


@pytest.fixture
def context(browser: Browser, site: Site) -> Iterator[BrowserContext]:
    """A visitor's profile. Whatever a page says in the console, or throws, fails the test."""
    words: list[str] = []
    profile = browser.new_context(base_url=site.origin)
    profile.on("console", lambda message: words.append(message.text))
    profile.on("weberror", lambda error: words.append(str(error.error)))
    yield profile
    profile.close()
    # Chromium itself says that a request failed; that cannot be kept from it.
    assert [word for word in words if not word.startswith(("Failed to load resource", "[expected]"))] == []


@pytest.fixture
def page(context: BrowserContext) -> Page:
    return context.new_page()
