"""Makes databases for tests, of facts with defaults recorded as beacons are, and clients that read them."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.testclient import TestClient

from sidecar.canonical import to_json
from sidecar.model import Campaign, Client, EventFact, Fact, Page, VitalFact, rate
from sidecar.store.database import Connection, immediate, open_database
from sidecar.store.facts import Recording, record
from sidecar.store.readers import Readers
from sidecar.web import pages, read
from sidecar.web.access import Access
from sidecar.web.read import Context

START = 1_795_330_800_000  # 2026-11-22T07:00:00.000Z
CHROME = Client("desktop", "Chrome", "131", "Windows", "10", 1920, 1080)
BOT = Client(bot="Examplebot")


def page_of(path: str, title: str | None = None) -> Page:
    """A page of shop.test."""
    return Page(f"https://shop.test{path}", path.partition("?")[0], title)


def vital(
    session_id: str,
    metric: str,
    value: float,
    *,
    site: str = "default",
    funnel_id: str = "default",
    fact_id: str | None = None,
    at: int = 0,
    navigation_type: str | None = "navigate",
    page: Page | None = page_of("/"),  # noqa: B008 - a constant
    visitor: str | None = None,
    client: Client | None = CHROME,
    clock_skewed: bool = False,
) -> VitalFact:
    """A web vital `at` ms after START; its id is the metric where none is given."""
    return VitalFact(
        site,
        funnel_id,
        session_id,
        metric,
        fact_id or f"v-{metric}",
        float(value),
        rate(metric, value),
        None,
        navigation_type,
        0,
        page,
        visitor,
        client,
        START + at,
        clock_skewed,
    )


def event(
    session_id: str,
    name: str = "page_view",
    *,
    site: str = "default",
    funnel_id: str = "default",
    fact_id: str | None = None,
    at: int = 0,
    properties: dict[str, object] | None = None,
    page: Page | None = page_of("/"),  # noqa: B008 - a constant
    referrer: str | None = None,
    campaign: Campaign | None = None,
    visitor: str | None = None,
    client: Client | None = CHROME,
    clock_skewed: bool = False,
) -> EventFact:
    """An event `at` ms after START; its id is its name and `at` where none is given."""
    return EventFact(
        site,
        funnel_id,
        session_id,
        fact_id or f"e-{name}-{at}",
        name,
        None if properties is None else to_json(properties),
        page,
        referrer,
        None,
        campaign,
        None,
        visitor,
        client,
        START + at,
        clock_skewed,
    )


def record_facts(path: Path, facts: Sequence[Fact], *, now: int = START) -> Path:
    """Record facts into the file at `path`, made where there is none, as one beacon received at `now` (ms)."""
    conn = open_database(path, durability="normal")  # a test survives no power loss
    try:
        with immediate(conn):
            record(conn, [Recording([*enumerate(facts)], now)])
    finally:
        conn.close()
    return path


def _build(path: Path, readers: Readers, token: str | None, now: int, context: dict[str, Any]) -> Starlette:
    def clock() -> int:
        return now

    async def write(function: Callable[[Connection], Any]) -> Any:
        conn = open_database(path, durability="normal")
        try:
            with immediate(conn):
                return function(conn)
        finally:
            conn.close()

    async def tidy() -> None:
        """The file goes with the test."""

    given: dict[str, Any] = {
        "readers": readers,
        "access": Access(token, clock),
        "clock": clock,
        "session_timeout_ms": 1_800_000,
        "read_shipping": lambda *_: {"state": "ready", "reason": None},
        "read_session_shipping": lambda *_: None,
        "write": write,
        "tidy": tidy,
    }
    made = Context(**(given | context))
    return Starlette(routes=[*read.routes(made), *pages.routes(made)])


@contextmanager
def open_dashboard(
    path: Path, *, token: str | None = None, now: int = START, peer: str = "127.0.0.1", **context: Any
) -> Iterator[TestClient]:
    """A client of the JSON API and the pages over the file at `path`, as a loopback browser sees them at `now` (ms)."""
    readers = Readers(path)
    app = _build(path, readers, token, now, context)
    yield TestClient(app, base_url="http://127.0.0.1:8787", client=(peer, 50_000), follow_redirects=False)
    readers.close()


@contextmanager
def serve_dashboard(path: Path) -> Iterator[int]:
    """A real server of the same on loopback, without a token: its port."""
    readers = Readers(path)
    app = _build(path, readers, None, START, {})
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", proxy_headers=False, lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
        readers.close()
