"""What the destination refused, in a real Chromium: looked at, given up after a question, sent again; two real ends."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from tests.dashboard.stage import TOKEN, viewing
from tests.servers import Server, vital

RECEIVE_TOKEN = "a token between two sidecars"
SESSIONS = ("s-1", "s-2", "s-3")
PATIENCE_S = 30.0


def tokens(*sites: str) -> str:
    """RECEIVE_TOKEN that lets these sites write."""
    return json.dumps([{"token": RECEIVE_TOKEN, "sites": list(sites)}])


@pytest.fixture
def upstream(tmp_path: Path) -> Iterator[Server]:
    """A sidecar that takes another site than the one that ships to it."""
    with Server(tmp_path / "upstream.db", RECEIVE_TOKEN=tokens("another")) as running:
        yield running


def wait_for(server: Server, field: str, count: int) -> None:
    """Until /api/shipping says so many."""
    end = time.monotonic() + PATIENCE_S
    with server.client() as client:
        client.headers["Authorization"] = f"Bearer {TOKEN}"
        while client.get("/api/shipping").json()[field] != count:
            assert time.monotonic() < end, client.get("/api/shipping").json()
            time.sleep(0.1)


def parked(page: Page) -> Locator:
    """The rows of the table of what was refused."""
    return page.get_by_role("region", name="What the destination has refused").locator("tbody tr")


@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no scripts"])
def test_parked_sessions_are_given_up_or_sent_again(
    browser: Browser, tmp_path: Path, upstream: Server, scripts: bool
) -> None:
    """Three are refused for their site. One is given up, after a question; the others go when they are allowed."""
    shipping = {"UPSTREAM_URL": f"{upstream.url}/api/sessions", "UPSTREAM_TOKEN": RECEIVE_TOKEN, "SHIP_INTERVAL": "1"}
    with Server(tmp_path / "shop.db", SITE="shop", DASHBOARD_TOKEN=TOKEN, SESSION_TIMEOUT="1", **shipping) as server:
        with server.client() as client:
            client.post("/api/track/web-vitals", json=[vital(name) for name in SESSIONS]).raise_for_status()
        wait_for(server, "parkedSessions", len(SESSIONS))
        with viewing(browser, server.url, java_script_enabled=scripts) as viewer:
            page = viewer.page
            page.goto("/shipping")
            expect(parked(page)).to_have_count(3)
            expect(parked(page).first).to_contain_text("site")
            row = parked(page).filter(has_text="s-2")
            row.get_by_role("link", name="Give up").click()
            page.get_by_role("link", name="Keep it parked").click()
            expect(parked(page)).to_have_count(3)
            row.get_by_role("link", name="Give up").click()
            page.get_by_role("button", name="Give it up").click()
            expect(page.locator("main")).to_contain_text("Given up: it stays here")
            expect(parked(page)).to_have_count(2)

            upstream.stop()
            upstream.set(RECEIVE_TOKEN=tokens("shop"))
            upstream.restart()
            page.get_by_role("button", name="Send all again").click()
            expect(page.locator("main")).to_contain_text("2 sent again with the next pass.")
            wait_for(server, "confirmedSessions", 2)
            page.goto("/shipping")
            expect(parked(page)).to_have_count(0)
        with upstream.client() as client:
            held = client.get("/api/sessions").json()["items"]
        assert sorted(item["sessionId"] for item in held) == ["s-1", "s-3"]
