"""What the browser tests of the dashboard stand on: a real sidecar with the demo's traffic, and a watched browser."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, BrowserContext, Page, Response

from sidecar.demo.drive import drive
from sidecar.demo.traffic import make_plan
from tests.servers import Server

TOKEN = "a token of the dashboard"
SHOP = "https://shop.example"
FUNNELS = {"lamps": 80, "outlet": 20}  # sessions of each
PATIENCE_MS = 20_000


def send_demo(server: Server) -> None:
    """The traffic of the demo, as its browsers send it: sessions of two funnels in the last six hours."""
    for number, (funnel, sessions) in enumerate(FUNNELS.items()):
        plan = make_plan(number, time.time_ns() // 1_000_000, SHOP, funnel, sessions=sessions)
        for step in (plan.opening, *plan.steps, plan.late):
            with ThreadPoolExecutor(1) as beside:  # `drive` wants a thread without an event loop; playwright has one
                assert beside.submit(drive, server.url, step).result()["acknowledged"] > 0, step.title


@contextmanager
def demo_server(database: Path, **settings: str) -> Iterator[Server]:
    """`sidecar serve` that holds the demo's sessions, with a token to sign in with."""
    with Server(database, **{"DASHBOARD_TOKEN": TOKEN, "DURABILITY": "normal"} | settings) as server:
        send_demo(server)
        yield server


class Viewer:
    """One profile with one tab, and everything in it that developer tools would show in red."""

    def __init__(self, browser: Browser, url: str, **options: Any) -> None:
        self.context: BrowserContext = browser.new_context(base_url=url, **options)
        self.complaints: list[str] = []
        self.context.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        self.context.on("weberror", lambda error: self.complaints.append(f"thrown: {error.error}"))
        self.context.on("requestfailed", lambda request: self.complaints.append(f"{request.url}: {request.failure}"))
        self.context.on("response", self._look_at)
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE_MS)

    def _look_at(self, response: Response) -> None:
        if response.status >= 400:
            self.complaints.append(f"{response.url}: {response.status}")

    def sign_in(self) -> None:
        """Through the form, to the overview."""
        self.page.goto("/sign-in")
        self.page.get_by_label("Token").fill(TOKEN)
        self.page.get_by_role("button", name="Sign in").click()
        self.page.get_by_role("navigation", name="Sections").wait_for()


@contextmanager
def viewing(browser: Browser, url: str, **options: Any) -> Iterator[Viewer]:
    """A viewer of the dashboard at an address, signed in. At the end there is nothing that it complained of."""
    viewer = Viewer(browser, url, **options)
    try:
        viewer.sign_in()
        yield viewer
        assert viewer.complaints == []
    finally:
        viewer.context.close()
