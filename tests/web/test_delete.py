"""`POST /api/track/delete` on a real server: what is answered, what is gone, and what the tracker makes of it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from uuid import uuid4

import httpx2
import pytest
from playwright.sync_api import sync_playwright

from tests.browser import launch
from tests.servers import Server, event, sidecar, vital

DELETE = "/api/track/delete"
NOTHING = {"sessions": 0, "webVitals": 0, "events": 0}
ERASED = {"success": True, "stored": False, "reason": "erased"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("delete") / "sidecar.db") as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[httpx2.Client]:
    with server.client() as http:
        yield http


def view(session: str, visitor: str) -> dict[str, object]:
    """A page view of a visitor."""
    page = {"url": f"https://shop.example/?me={visitor}", "path": "/"}
    return event(session, context={"session": {"sessionId": session}, "user": {"anonymousId": visitor}, "page": page})


def held(database: Path) -> bytes:
    """Every byte of the database's files."""
    names = [str(name) for name in database.parent.glob(f"{database.name}*")]
    return subprocess.run(["cat", *names], capture_output=True, check=True).stdout


def test_a_visitor_is_gone_from_the_files(server: Server, client: httpx2.Client) -> None:
    """Counted in the answer, gone from the pages and from the bytes of database and WAL while the server runs."""
    visitor, session = f"visitor-{uuid4()}", f"session-{uuid4()}"
    client.post("/api/track/events", json=view(session, visitor))
    client.post("/api/track/web-vitals", json=[vital(session, anonymousId=visitor), vital(session, "CLS", 0.1)])
    assert visitor.encode() in held(server.database)
    answer = client.post(DELETE, json={"anonymousId": visitor})
    assert (answer.status_code, answer.json()) == (
        200,
        {"success": True, "deleted": {"sessions": 1, "webVitals": 2, "events": 1}},
    )
    files = held(server.database)
    assert visitor.encode() not in files
    assert session.encode() not in files
    assert client.get(f"/api/sessions/{session}").status_code == 404
    assert client.get(f"/api/visitors/{visitor}").status_code == 404
    assert client.post(DELETE, json={"anonymousId": visitor}).json()["deleted"] == NOTHING
    assert "Traceback" not in server.log.read_text()
    assert visitor not in server.log.read_text()


def test_what_comes_later_is_told_erased(client: httpx2.Client) -> None:
    """202 where nothing else is in the beacon; beside others such an item is rejected with that reason."""
    visitor, session, other = (f"{name}-{uuid4()}" for name in ("visitor", "session", "other"))
    client.post("/api/track/events", json=view(session, visitor))
    client.post(DELETE, json={"anonymousId": visitor})
    for path, body in (
        ("events", view(f"new-{uuid4()}", visitor)),
        ("web-vitals", vital(session)),
        ("web-vitals", [vital(session), vital(other, anonymousId=visitor)]),
    ):
        answer = client.post(f"/api/track/{path}", json=body)
        assert (answer.status_code, answer.json()) == (202, ERASED)
    answer = client.post("/api/track/web-vitals", json=[vital(session), vital(other), {"metric": "LCP"}])
    assert answer.status_code == 200
    assert answer.json()["accepted"] == 1
    assert answer.json()["rejected"][0] == {"index": 0, "reason": "erased"}
    answer = client.post("/api/track/web-vitals", json=[vital(session), {"metric": "LCP"}])
    assert answer.status_code == 422, "one was not understood"
    assert [one["index"] for one in answer.json()["rejected"]] == [0, 1]


def test_an_unknown_visitor_is_zeros_and_a_tombstone(server: Server, client: httpx2.Client) -> None:
    """As text/plain, too, as a browser sends it without a preflight."""
    visitor = f"unknown-{uuid4()}"
    answer = client.post(DELETE, content=f'{{"anonymousId": "{visitor}"}}', headers={"Content-Type": "text/plain"})
    assert (answer.status_code, answer.json()) == (200, {"success": True, "deleted": NOTHING})
    assert client.post("/api/track/events", json=view(f"s-{uuid4()}", visitor)).json() == ERASED
    exported = sidecar("export", DATABASE=str(server.database)).stdout
    assert sha256(f"default\0{visitor}".encode()).hexdigest() in exported.decode()
    assert visitor.encode() not in exported


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        (b"", 400, "not JSON"),
        (b"{", 400, "not JSON"),
        (b"\xff", 400, "not JSON"),
        (b"7", 400, "neither an object nor an array"),
        (b"[]", 422, "anonymousId: is required"),
        (b"{}", 422, "anonymousId: is required"),
        (b'{"anonymousId": null}', 422, "anonymousId: is required"),
        (b'{"anonymousId": ""}', 422, "anonymousId: is required"),
        (b'{"anonymousId": 7}', 422, "anonymousId: must be a string"),
        (b'{"anonymousId": "\\ud800"}', 422, "anonymousId: holds a lone surrogate"),
        (b'{"anonymousId": "%s"}' % (b"x" * 129), 422, "anonymousId: must be at most 128 characters"),
        (b'{"anonymousId": "%s"}' % (b"x" * 70_000), 413, "body is over 65536 bytes"),
    ],
)
def test_what_is_wrong_is_said(client: httpx2.Client, body: bytes, status: int, error: str) -> None:
    """Nothing is erased, and never a 500."""
    answer = client.post(DELETE, content=body)
    assert answer.status_code == status
    assert answer.json()["error"].startswith(error)


def test_origins_preflight_and_methods(client: httpx2.Client) -> None:
    """As for beacons."""
    answer = client.post(DELETE, json={"anonymousId": "x"}, headers={"Origin": "https://shop.example"})
    assert answer.headers["access-control-allow-origin"] == "https://shop.example"
    asked = {"Origin": "https://shop.example", "Access-Control-Request-Headers": "content-type"}
    answer = client.options(DELETE, headers=asked)
    assert (answer.status_code, answer.headers["access-control-allow-headers"]) == (204, "content-type")
    answer = client.get(DELETE)
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST, OPTIONS")


def test_gates_hold_and_no_key_is_asked_for(tmp_path: Path) -> None:
    """Another origin is refused, too many are told to wait; a visitor of a funnel with a key needs none."""
    settings = {
        "ALLOWED_ORIGINS": "https://shop.example",
        "RATE_LIMIT": "1",
        "FUNNELS": '[{"id": "shop", "apiKey": "secret"}]',
    }
    with Server(tmp_path / "gates.db", **settings) as server, server.client() as client:
        item = vital("s", anonymousId="v", funnelId="shop")
        assert client.post("/api/track/web-vitals", json=item, headers={"X-API-Key": "secret"}).status_code == 200
        other = {"Origin": "https://elsewhere.example"}
        assert client.post(DELETE, json={"anonymousId": "v"}, headers=other).status_code == 403
        own = {"Origin": "https://shop.example"}
        assert client.post(DELETE, json={"anonymousId": "v"}, headers=own).json()["deleted"]["webVitals"] == 1
        answers = [client.post(DELETE, json={"anonymousId": "v"}) for _ in range(110)]
        assert answers[-1].status_code == 429
        assert int(answers[-1].headers["retry-after"]) >= 1


def test_a_long_reading_delays_the_last_trace(server: Server, client: httpx2.Client) -> None:
    """While somebody reads an older state the WAL keeps it; afterwards it is emptied without being asked again."""
    visitor = f"visitor-{uuid4()}"
    client.post("/api/track/events", json=view(f"s-{uuid4()}", visitor))
    code = (
        "import sys, pathlib, sidecar.store.database as d; c = d.open_read_only(pathlib.Path(sys.argv[1]));"
        "c.execute('BEGIN'); c.execute('SELECT count(*) FROM sessions').fetchone(); print('reading', flush=True);"
        "sys.stdin.read()"
    )
    reader = subprocess.Popen(
        [sys.executable, "-c", code, str(server.database)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert reader.stdout is not None
    assert reader.stdout.readline() == b"reading\n"
    assert client.post(DELETE, json={"anonymousId": visitor}).json()["deleted"]["events"] == 1
    assert visitor.encode() in held(server.database)
    reader.communicate(b"", timeout=30)
    deadline = time.monotonic() + 20
    while visitor.encode() in held(server.database):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_the_tracker_forgets(server: Server) -> None:
    """`sidecar.forget()` on a page: the visitor is erased, and the browser keeps no id of it."""
    with sync_playwright() as playwright:
        browser = launch(playwright)
        page = browser.new_page()
        shop = '<title>Shop</title><script src="/sidecar.js"></script>'
        page.route("**/shop", lambda route: route.fulfill(content_type="text/html", body=shop))
        page.goto(f"{server.url}/shop")
        visitor = page.evaluate("localStorage['sidecar.visitor']")
        with page.expect_response(lambda answer: answer.url.endswith("/events")) as sent:
            page.evaluate("sidecar.track('something')")
        assert sent.value.status == 200
        assert visitor.encode() in held(server.database)
        with page.expect_response(lambda answer: answer.url.endswith("/delete")) as forgotten:
            page.evaluate("sidecar.forget()")
        assert forgotten.value.json()["deleted"]["events"] >= 1
        assert "sidecar.visitor" not in page.evaluate("Object.keys(localStorage)")
        browser.close()
    assert visitor.encode() not in held(server.database)
