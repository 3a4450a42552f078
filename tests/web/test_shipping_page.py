"""The page of shipping: its words, what was refused, and its buttons."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from sidecar.store import outbox
from sidecar.store.erasure import forget
from sidecar.store.shipping import list_parked, list_refused, read_shipping
from tests.builders import open_dashboard
from tests.ship.house import ADDRESS, NOW, House
from tests.web.reader import Reader

ORIGIN = {"Origin": "http://127.0.0.1:8787", "Content-Type": "application/x-www-form-urlencoded"}
REASON = "422 <b>name</b>: too long"


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with House(tmp_path / "house.db") as opened:
        opened.write(lambda conn: outbox.set_destination(conn, ADDRESS, opened.now))
        yield opened


def deliver(house: House, reason: str | None = None) -> bool:
    """One batch: confirmed, or refused line by line. Whether there was one."""
    batch = house.claim()
    if batch is None:
        return False
    key, refused = batch.batch_key, {line: reason for line in range(batch.lines_count) if reason is not None}
    house.write(lambda conn: outbox.count_attempt(conn, key))
    return house.write(lambda conn: outbox.confirm(conn, key, rejected=refused, answer="200 OK", now=house.now))


def opened(house: House, **given: Any) -> Any:
    return open_dashboard(house.path, now=NOW, read_shipping=read_shipping, **given)


def read(client: TestClient, url: str = "/shipping", status: int = 200) -> Reader:
    answer = client.get(url)
    assert answer.status_code == status
    return Reader(answer.text)


def test_without_a_destination(tmp_path: Path) -> None:
    with House(tmp_path / "house.db") as house, opened(house) as client:
        house.record_sessions(2)
        page = read(client)
    assert "Off No destination was named yet (SIDECAR_UPSTREAM_URL)" in page.text
    assert "set SIDECAR_UPSTREAM_URL and start again" in page.text
    assert "No batch was sent yet." in page.text
    assert "Parked 0" in page.text


def test_ready_with_its_batches(house: House) -> None:
    """State, what waits, and each batch with size, attempts and answer."""
    house.record_sessions(3)
    deliver(house)
    house.record_sessions(1, first=10)
    with opened(house) as client:
        page = read(client)
    assert "Ready since 2026-11-22 07:00:00.000 UTC 1 session waiting, the oldest since 06:00 UTC" in page.text
    assert f"To {ADDRESS}" in page.text
    assert "Waiting 1 finished, not confirmed Oldest waiting 59 min ago since its last change" in page.text
    assert "Shipped 3 last just now Parked 0" in page.text
    assert "Attempts Settled Answer b1 just now confirmed 3 " in page.text
    assert " kB 1 just now 200 OK" in page.text


def test_blocked_says_why(house: House) -> None:
    def block(conn: Any) -> None:
        conn.execute("UPDATE destinations SET state = 'blocked', reason = '401 <i>no</i>', next_attempt_at = ?", (NOW,))

    house.write(block)
    with opened(house) as client:
        page = read(client)
    assert "Blocked since" in page.text
    assert "401 <i>no</i> from upstream since 07:00 UTC, nothing waiting, next attempt is due" in page.text
    assert "i" not in [tag for tag, _ in page.tags]


def test_what_was_refused_is_sent_again(house: House) -> None:
    """One of them, and then the rest, an erasure among it; each says so afterwards."""
    house.record_sessions(4)
    house.write(lambda conn: forget(conn, "default", "v-3", house.now))
    while deliver(house, REASON):
        continue
    with opened(house) as client:
        page = read(client)
        assert page.text.count(REASON) == 4
        assert "An erasure visitor hash" in page.text
        ids = [a["value"] or "" for tag, a in page.tags if tag == "input" and a.get("name") == "id"]
        assert ids[0] == "all"
        assert len(ids) == 5
        answer = client.post("/shipping/requeue", headers=ORIGIN, content=f"id={ids[1]}")
        assert (answer.status_code, answer.headers["location"]) == (303, "/shipping?done=requeued-1")
        page = read(client, answer.headers["location"])
        assert "1 sent again with the next pass." in page.text
        assert page.text.count(REASON) == 3
        assert client.post("/shipping/requeue", headers=ORIGIN, content=f"id={ids[1]}").status_code == 404
        answer = client.post("/shipping/requeue", headers=ORIGIN, content="id=all")
        assert answer.headers["location"] == "/shipping?done=requeued-3"
        assert REASON not in read(client).text
    assert house.read(list_parked) == []
    assert house.read(list_refused) == []


def test_giving_up_asks_first(house: House) -> None:
    house.record_sessions(2)
    deliver(house, REASON)
    with opened(house) as client:
        (link, _) = [link for link in read(client).links() if link.startswith("/shipping/discard")]
        asked = read(client, link)
        assert f"Give this session up? The destination has refused session s-000 : {REASON}" in asked.text
        assert len(house.read(list_parked)) == 2
        key = link.partition("id=")[2]
        assert ("input", {"type": "hidden", "name": "id", "value": key}) in asked.tags
        answer = client.post("/shipping/discard", headers=ORIGIN, content=f"id={key}")
        assert answer.headers["location"] == "/shipping?done=discarded-1"
        assert "Given up: it stays here" in read(client, answer.headers["location"]).text
        assert [row["sessionId"] for row in house.read(list_parked)] == ["s-001"]
        assert client.post("/shipping/discard", headers=ORIGIN, content=f"id={key}").status_code == 404
        assert "nothing parked has this id" in read(client, link, 404).text


@pytest.mark.parametrize(
    ("method", "url", "content", "status"),
    [
        ("POST", "/shipping/requeue", "", 400),
        ("POST", "/shipping/requeue", "id=x", 400),
        ("POST", "/shipping/requeue", "id=-1", 400),
        ("POST", "/shipping/requeue", "id=" + "9" * 30, 400),
        ("POST", "/shipping/requeue", "id=99", 404),
        ("POST", "/shipping/requeue", "id=t99", 404),
        ("POST", "/shipping/requeue", "id=" + "9" * 5000, 413),
        ("POST", "/shipping/discard", "id=all", 400),
        ("POST", "/shipping/discard", "id=t1", 400),
        ("POST", "/shipping/discard", "id=99", 404),
        ("GET", "/shipping/discard", "", 400),
        ("GET", "/shipping/discard?id=99", "", 404),
        ("GET", "/shipping/requeue", "", 405),
    ],
)
def test_what_is_not_parked(house: House, method: str, url: str, content: str, status: int) -> None:
    house.record_sessions(1)
    deliver(house, REASON)
    with opened(house) as client:
        assert client.request(method, url, headers=ORIGIN, content=content).status_code == status
    assert len(house.read(list_parked)) == 1


@pytest.mark.parametrize("url", ["/shipping/requeue", "/shipping/discard"])
def test_forms_need_their_own_origin_and_the_token(house: House, url: str) -> None:
    house.record_sessions(1)
    deliver(house, REASON)
    ((key, *_),) = [(row["id"],) for row in house.read(list_parked)]
    with opened(house) as client:
        for origin in ("http://evil.test", "null", ""):
            assert client.post(url, headers=ORIGIN | {"Origin": origin}, content=f"id={key}").status_code == 403
    with opened(house, token="s3cret", peer="192.0.2.1") as client:
        assert client.post(url, headers=ORIGIN, content=f"id={key}").status_code == 403
        assert client.get("/shipping").status_code == 403
    assert len(house.read(list_parked)) == 1


@pytest.mark.parametrize("done", ["<b>", "requeued", "requeued-x", "erased-1", "requeued-1<b>", "requeued-9999999999"])
def test_only_our_own_words_are_said(house: House, done: str) -> None:
    with opened(house) as client:
        answer = client.get("/shipping", params={"done": done})
    page = Reader(answer.text)
    assert "status" not in [a.get("role") for _, a in page.tags]
