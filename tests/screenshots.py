"""Pictures of every view, light and dark, at the width of a desk and of a phone.

    python tests/screenshots.py [FOLDER] [--readme .readme]

Fills a sidecar with made-up sessions of 90 days and the traffic of the demo, which ships to a second sidecar, and
writes `VIEW-SCHEME-WIDTH.png`, whole pages, into FOLDER (default: `screenshots`); with `--readme` also the four
pictures of the README into that folder.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, Response, sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1]))

from sidecar.store.database import open_database
from tests.benchmarks.dashboard import fill
from tests.browser import launch
from tests.dashboard.stage import TOKEN, send_demo
from tests.servers import Server

SESSIONS = 3000
PATIENCE_S = 90.0
RECEIVE_TOKEN = "a token between two sidecars"
README_SIZE = (1180, 820)
README_VIEWS = {"overview": "light", "vitals": "dark", "sessions": "light", "session": "light"}
SIZES = {"desk": (1280, 800), "phone": (390, 844)}
VIEWS = {
    "overview": "/?period=30d",
    "overview-filtered": "/?period=7d&device=mobile&country=DE",
    "overview-nothing": "/?page=/nowhere",
    "vitals": "/vitals?period=30d",
    "sessions": "/sessions",
    "sessions-none": "/sessions?q=nobody",
    "visitors": "/visitors",
    "funnels": "/funnels?period=30d",
    "shipping": "/shipping",
    "preferences": "/preferences",
    "not-found": "/sessions/none",
}


@contextmanager
def filled(folder: Path) -> Iterator[Server]:
    """A sidecar that has shipped what it holds."""
    path = folder / "sidecar.db"
    with closing(open_database(path, durability="normal")) as conn:
        fill(conn, SESSIONS, int(time.time()) * 1000)
    with Server(folder / "upstream.db", SITE="upstream", RECEIVE_TOKEN=RECEIVE_TOKEN) as upstream:
        shipping = {"UPSTREAM_URL": f"{upstream.url}/api/sessions", "UPSTREAM_TOKEN": RECEIVE_TOKEN}
        # Sessions end soon, or nothing would ship before the pictures are taken.
        often = {"SHIP_INTERVAL": "1", "SESSION_TIMEOUT": "3"}
        with Server(path, SITE="shop", DASHBOARD_TOKEN=TOKEN, **shipping, **often) as server:
            send_demo(server)
            end = time.monotonic() + PATIENCE_S
            with server.client() as client:
                client.headers["Authorization"] = f"Bearer {TOKEN}"
                while client.get("/api/shipping").json()["confirmedSessions"] < SESSIONS and time.monotonic() < end:
                    time.sleep(0.5)
            yield server


class Camera:
    """Takes each page that is open in all four ways."""

    def __init__(self, page: Page, folder: Path, readme: Path | None = None) -> None:
        self._page = page
        self._folder = folder
        self._readme = readme

    def take(self, name: str) -> None:
        """The page as it is, whole."""
        for size, (width, height) in SIZES.items():
            for scheme in ("light", "dark"):
                self._show((width, height), scheme)
                path = self._folder / f"{name}-{scheme}-{size}.png"
                self._page.screenshot(path=path, full_page=True, animations="disabled")
                wide = self._page.evaluate("document.documentElement.scrollWidth")
                print(path, "" if wide <= width else f"is {wide} px wide instead of {width}")
        if self._readme and name in README_VIEWS:
            self._show(README_SIZE, README_VIEWS[name])
            self._page.screenshot(path=self._readme / f"{name}.png", animations="disabled")
        self._show(SIZES["desk"], "light")

    def _show(self, size: tuple[int, int], scheme: str) -> None:
        self._page.set_viewport_size({"width": size[0], "height": size[1]})
        self._page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")


def refuse_errors(response: Response) -> None:
    """A picture of an error is none."""
    if response.status >= 500:
        raise SystemExit(f"{response.url}: HTTP {response.status}")


def photograph(browser: Browser, server: Server, folder: Path, readme: Path | None) -> None:
    """Every view of a filled sidecar."""
    page = browser.new_context(base_url=server.url).new_page()
    camera = Camera(page, folder, readme)
    page.on("response", refuse_errors)
    page.goto("/sign-in")
    camera.take("sign-in")
    page.get_by_label("Token").fill(TOKEN)
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("navigation", name="Sections").wait_for()
    for name, path in VIEWS.items():
        page.goto(path)
        camera.take(name)
    page.goto("/?period=30d")
    page.get_by_text("Filter", exact=True).click()
    camera.take("overview-menu")
    page.goto("/sessions?sort=events&period=24h")
    page.locator("table.sessions tbody tr:has(a[href^='/visitors/']) th a").first.click()
    camera.take("session")
    page.locator("main a[href^='/visitors/']").first.click()
    camera.take("visitor")
    page.get_by_role("link", name="Erase this visitor").click()
    camera.take("erase")


def main() -> None:
    """Fill, photograph, end."""
    parser = argparse.ArgumentParser(description="Pictures of every view of the dashboard.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path("screenshots"))
    parser.add_argument("--readme", type=Path)
    options = parser.parse_args()
    folder = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as made, sync_playwright() as playwright:
        browser = launch(playwright)
        with filled(Path(made)) as server:
            photograph(browser, server, folder, options.readme)
        with Server(Path(made) / "empty.db") as empty:
            page = browser.new_context(base_url=empty.url).new_page()
            page.goto("/")
            Camera(page, folder).take("first")
        browser.close()


if __name__ == "__main__":
    main()
