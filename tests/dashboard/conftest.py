"""A browser and a filled sidecar for each module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.browser import launch
from tests.dashboard.stage import demo_server
from tests.servers import Server


# A module, not the session: playwright's loop runs in this thread, where tests of other modules start their own.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium."""
    with sync_playwright() as playwright:
        running = launch(playwright)
        yield running
        running.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A sidecar with the demo's sessions."""
    with demo_server(tmp_path_factory.mktemp("dashboard") / "sidecar.db") as running:
        yield running
