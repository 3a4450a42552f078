"""What is erased leaves the bytes of a running server's files, whoever asked for it, and also through its end."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import time
from contextlib import closing
from pathlib import Path

import httpx2
import pytest

from sidecar.store.database import open_read_only, rewrite
from sidecar.store.tombstones import hash_of
from tests.builders import event as event_fact
from tests.servers import Server, event, sidecar, vital
from tests.ship.house import House

VISITOR = "visitor-5ae13c90b7d2"
SESSION = "session-77d0c4e1a9f3"
OTHER = "visitor-0fd1b2c3a4e5"


def held(database: Path) -> bytes:
    """Every byte of the database's files."""
    names = [str(name) for name in database.parent.glob(f"{database.name}*")]
    return subprocess.run(["cat", *names], capture_output=True, check=True).stdout


def owed(database: Path) -> int:
    """How many erasures the file holds traces of; read by another process than the server's."""
    with closing(open_read_only(database)) as conn:
        return int(conn.execute("PRAGMA user_version").fetchone()[0])


def wait_until_tidy(database: Path) -> None:
    """Until the file was written anew."""
    deadline = time.monotonic() + 30
    while owed(database):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def tombstone(visitor: str, *sessions: str) -> bytes:
    """A line that erases a visitor and sessions of the default site and funnel."""
    line = {"type": "tombstone", "version": 1, "site": "default", "visitorHash": hash_of("default", visitor)}
    hashes = [hash_of("default", "default", session) for session in sessions]
    return json.dumps(line | {"sessionHashes": hashes, "erasedAt": "2026-11-22T08:00:00.000Z"}).encode() + b"\n"


def deliver(client: httpx2.Client, body: bytes, key: str) -> httpx2.Response:
    """Send a batch as another sidecar does."""
    digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
    headers = {
        "Authorization": "Bearer secret",
        "Content-Digest": f"sha-256=:{digest}:",
        "X-Records": str(len(body.splitlines())),
        "Idempotency-Key": f'"{key}"',
    }
    return client.post("/api/sessions", content=body, headers=headers)


def view(session: str, visitor: str, **fields: object) -> dict[str, object]:
    """A page view of a visitor."""
    page = {"url": f"https://shop.example/?me={visitor}", "path": "/"}
    context = {"session": {"sessionId": session}, "user": {"anonymousId": visitor}, "page": page}
    return event(session, context=context, **fields)


def test_a_tombstone_that_is_received(tmp_path: Path) -> None:
    """The plain ids are gone from database and WAL once it is answered, and a rewrite of the file follows."""
    with Server(tmp_path / "up.db", RECEIVE_TOKEN="secret") as server, server.client() as client:
        client.post("/api/track/events", json=view(SESSION, VISITOR))
        client.post("/api/track/web-vitals", json=vital("s-other", anonymousId=OTHER))
        assert VISITOR.encode() in held(server.database)
        answer = deliver(client, tombstone(VISITOR), "one")
        assert (answer.status_code, answer.json()["accepted"]) == (200, 1)
        files = held(server.database)
        assert VISITOR.encode() not in files
        assert SESSION.encode() not in files
        assert OTHER.encode() in files
        wait_until_tidy(server.database)
        assert deliver(client, tombstone("nobody-0123456789ab"), "two").json()["accepted"] == 1
        assert owed(server.database) == 0, "nothing was erased by it"
        assert "Traceback" not in server.log.read_text()


@pytest.mark.parametrize("beside", ["a server", "nothing"])
def test_a_tombstone_that_is_imported(tmp_path: Path, beside: str) -> None:
    """When `import` returns, nothing of the visitor is in the files, whether or not a server runs on them."""
    with Server(tmp_path / "up.db") as server, server.client() as client:
        client.post("/api/track/events", json=[view(SESSION, VISITOR), view("s-other", OTHER)])
        if beside == "nothing":
            server.kill()
        done = sidecar("import", "-", stdin=tombstone("0" * 20, SESSION), DATABASE=str(server.database))
        assert (done.returncode, done.stderr) == (0, b"")
        files = held(server.database)
        assert VISITOR.encode() not in files
        assert SESSION.encode() not in files
        assert OTHER.encode() in files
        assert owed(server.database) == 0


def test_what_was_only_loosened_is_written_anew_too(tmp_path: Path) -> None:
    """No session goes, but facts of somebody else lose the name."""
    with Server(tmp_path / "l.db") as server, server.client() as client:
        client.post("/api/track/events", json=view("s-other", OTHER))
        client.post("/api/track/web-vitals", json=vital("s-other", anonymousId=VISITOR, timestamp=now_ms() + 1000))
        assert VISITOR.encode() in held(server.database)
        answer = client.post("/api/track/delete", json={"anonymousId": VISITOR})
        assert answer.json()["deleted"] == {"sessions": 0, "webVitals": 0, "events": 0}
        assert VISITOR.encode() not in held(server.database)
        wait_for_log(server, "erased a visitor")
        wait_until_tidy(server.database)
        for number in range(3):  # beyond the first, they wait for their turn
            client.post("/api/track/web-vitals", json=vital("s-other", "CLS", 0.1, anonymousId=f"guest-{number}"))
            client.post("/api/track/delete", json={"anonymousId": f"guest-{number}"})
        assert owed(server.database) > 0


def now_ms() -> int:
    """The clock."""
    return int(time.time() * 1000)


def wait_for_log(server: Server, text: str) -> None:
    """Until the server has said something."""
    deadline = time.monotonic() + 20
    while text not in server.log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_a_rewrite_that_waits_outlives_the_server(tmp_path: Path, end: str) -> None:
    """A second erasure waits a minute for its rewrite: an orderly end does it, after a kill the next start."""
    with Server(tmp_path / "k.db") as server, server.client() as client:
        for visitor in (VISITOR, OTHER):
            client.post("/api/track/events", json=view(f"session-of-{visitor}", visitor))
            client.post("/api/track/delete", json={"anonymousId": visitor})
            if visitor == VISITOR:
                wait_until_tidy(server.database)
        assert owed(server.database) == 1
        if end == "stop":
            server.stop()
            assert owed(server.database) == 0
            assert "Traceback" not in server.log.read_text()
            return
        server.kill()
        assert owed(server.database) == 1
        server.restart()
        wait_until_tidy(server.database)
        assert OTHER.encode() not in held(server.database)


def test_an_erasure_during_the_rewrite_is_not_forgotten(tmp_path: Path) -> None:
    """What another process erases while the file is written anew leaves it owed."""
    with House(tmp_path / "h.db") as house:
        house.record(event_fact("s", visitor=VISITOR))
        house.write(lambda conn: conn.execute("PRAGMA user_version = 3"))
        assert house.writer.maintain(lambda conn: conn.execute("PRAGMA user_version").fetchone()).result() == (3,)

        def work(conn: object) -> None:
            seen = iter((2, 3))
            with pytest.MonkeyPatch.context() as patched:
                patched.setattr("sidecar.store.database.count_erasures", lambda _: next(seen))
                rewrite(conn)  # type: ignore[arg-type]

        house.writer.maintain(work).result()
        assert owed(tmp_path / "h.db") == 3
        house.writer.maintain(rewrite).result()
        assert owed(tmp_path / "h.db") == 0
