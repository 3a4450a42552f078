"""A file at its limit, and a disk that is full: new sessions wait, nothing that was taken is lost, and it recovers."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2
import pytest

from sidecar.errors import UnavailableError
from sidecar.store.database import Connection, immediate, open_database, open_read_only, probe_write
from sidecar.store.erasure import forget
from sidecar.store.facts import Recorded, Recording
from sidecar.store.limit import FULL, Limit, level_of, used_bytes
from sidecar.store.retention import Rule, prune, run_pass
from sidecar.store.verify import verify
from sidecar.store.writer import Task, Writer
from tests.builders import START, event, vital
from tests.servers import Server, sidecar
from tests.servers import event as event_item
from tests.servers import vital as vital_item

MEGABYTE = 1_000_000
LONG = "x" * 12_000  # makes a session 12 kB large, so that few fill a megabyte


@pytest.fixture
def conn(tmp_path: Path) -> Iterator[Connection]:
    with closing(open_database(tmp_path / "l.db", durability="normal")) as opened:
        yield opened


def take(conn: Connection, limit: Limit, *recordings: Recording) -> list[str]:
    """Record beacons as one group: `stored`, or why not."""
    with immediate(conn):
        results = limit.record(conn, recordings)
    return [str(one) if isinstance(one, UnavailableError) else one.judged[0].reason or "stored" for one in results]


def of(session: str, *, visitor: str | None = None, metric: str = "LCP") -> Recording:
    return Recording([(0, vital(session, metric, 900, visitor=visitor))], START)


# --- the limit -------------------------------------------------------------------------------------------------------


def test_only_new_sessions_are_refused(conn: Connection) -> None:
    """In one group: facts of known sessions are stored beside beacons that are refused as a whole."""
    assert take(conn, Limit(0), of("known")) == ["stored"]
    mixed = Recording([(0, vital("known", "CLS", 0.1)), (1, vital("new", "CLS", 0.1))], START)
    said = take(conn, Limit(1), of("known", metric="INP"), of("new"), mixed, of("known", metric="FCP"))
    assert said == ["stored", FULL, FULL, "stored"]
    found = conn.execute("SELECT metric FROM web_vitals ORDER BY 1").fetchall()
    assert found == [("FCP",), ("INP",), ("LCP",)]
    assert conn.execute("SELECT session_id FROM sessions").fetchall() == [("known",)]


def test_what_was_erased_is_not_asked_for_again(conn: Connection) -> None:
    """It would never be stored, so it is not to be sent again either."""
    take(conn, Limit(0), of("hers", visitor="ada"))
    with immediate(conn):
        forget(conn, "default", "ada", START)
    said = take(conn, Limit(1), of("hers"), of("other", visitor="ada"), of("new", visitor="bob"))
    assert said == ["erased", "erased", FULL]


def test_pruning_lifts_it_at_once(conn: Connection) -> None:
    """Without a VACUUM: the file is as large as before, and its free pages are used again."""
    facts = [event(f"s-{number}", properties={"text": LONG}) for number in range(100)]
    limit = Limit(MEGABYTE)
    assert take(conn, limit, Recording([*enumerate(facts)], START)) == ["stored"]  # the group that goes over it
    assert used_bytes(conn) > MEGABYTE
    assert take(conn, limit, of("new")) == [FULL]
    assert repr(limit) == "<Limit 1000000 bytes, 1 refused>"
    rule = Rule(START + 1, START + 10**10, 1000, None)
    path = Path(conn.execute("PRAGMA database_list").fetchone()[2])
    pages = conn.execute("PRAGMA page_count").fetchone()
    assert run_pass(conn, path, prune(rule, START, run=1)).sessions == 100
    assert used_bytes(conn) < MEGABYTE / 2
    assert conn.execute("PRAGMA page_count").fetchone() == pages
    assert take(conn, limit, of("new")) == ["stored"]


def test_levels() -> None:
    """80, 90 and 100 percent, and none where there is no limit."""
    assert [level_of(used, 1000) for used in (0, 799, 800, 899, 900, 999, 1000, 5000)] == [
        *(0, 0, 80, 80, 90, 90, 100, 100)
    ]
    assert level_of(10**12, 0) == 0


def test_a_refused_result_is_its_tasks_own(tmp_path: Path) -> None:
    """The writer commits the others of the group."""
    writer = Writer(open_database(tmp_path / "w.db", durability="normal"))
    settled: list[Any] = []

    def settle(result: Any, error: BaseException | None) -> None:
        settled.append(error or result)

    limit = Limit(1)
    writer.submit_all([Task(limit.record, of(name), settle) for name in ("a", "b")])
    writer.start()
    writer.close()
    assert [str(one) for one in settled] == [FULL, FULL]
    assert all(isinstance(one, UnavailableError) and one.retry_after_s == 60 for one in settled)
    assert not any(isinstance(one, Recorded) for one in settled)


# --- a server at its limit -------------------------------------------------------------------------------------------


def fill(client: httpx2.Client) -> list[str]:
    """Sessions until one is refused: the names of those that were taken."""
    taken: list[str] = []
    while len(taken) < 500:
        name = f"s-{len(taken)}"
        answer = client.post("/api/track/events", json=event_item(name, properties={"text": LONG}))
        if answer.status_code != 200:
            assert (answer.status_code, answer.headers["Retry-After"]) == (503, "60")
            assert answer.json() == {"error": FULL}
            return taken
        taken.append(name)
    raise AssertionError("nothing was refused")


def deliver(client: httpx2.Client, *lines: bytes) -> httpx2.Response:
    body = gzip.compress(b"".join(line + b"\n" for line in lines), mtime=0)
    digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
    headers = {
        "Authorization": "Bearer secret",
        "Content-Encoding": "gzip",
        "Content-Digest": f"sha-256=:{digest}:",
        "X-Records": str(len(lines)),
        "Idempotency-Key": f'"{digest}"',
    }
    return client.post("/api/sessions", content=body, headers=headers)


def test_a_server_at_its_limit(tmp_path: Path) -> None:
    """Beacons, batches and imports of new sessions are refused and what is known goes on; it is said everywhere."""
    with Server(tmp_path / "b.db") as other, other.client() as client:
        client.post("/api/track/events", json=event_item("elsewhere"))
    [line] = sidecar("export", DATABASE=str(other.database)).stdout.splitlines()
    settings: dict[str, Any] = {"MAX_DATABASE_MB": "1", "RETENTION_DAYS": "0"}
    with Server(tmp_path / "l.db", RECEIVE_TOKEN="secret", **settings) as server, server.client() as client:
        assert client.get("/healthz").json()["database"]["state"] == "ok"
        taken = fill(client)
        assert 40 < len(taken) < 100  # 12 kB each, and what an empty file holds
        late = [vital_item(taken[0]), vital_item("one-more")]
        assert client.post("/api/track/web-vitals", json=late[0]).json()["accepted"] == 1
        mixed = client.post("/api/track/web-vitals", json=late)
        assert (mixed.status_code, mixed.json()) == (503, {"error": FULL})
        cross = client.post("/api/track/web-vitals", json=late[1], headers={"Origin": "https://shop.example"})
        assert (cross.status_code, cross.headers["Access-Control-Allow-Origin"]) == (503, "https://shop.example")
        refused = deliver(client, line)
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "60")
        [known] = [
            one
            for one in sidecar("export", DATABASE=str(server.database)).stdout.splitlines()
            if json.loads(one)["sessionId"] == taken[0]
        ]
        assert deliver(client, known).json()["duplicate"] == 1
        told = client.get("/healthz")
        assert told.status_code == 200  # what is running goes on
        assert told.json()["database"]["state"] == "full"
        assert told.json()["database"]["limitBytes"] == MEGABYTE <= told.json()["database"]["usedBytes"]
        metrics = client.get("/metrics").text
        sizes = dict(row.split() for row in metrics.splitlines() if row.startswith("sidecar_database_"))
        assert float(sizes["sidecar_database_limit_bytes"]) == MEGABYTE
        assert float(sizes["sidecar_database_used_bytes"]) == told.json()["database"]["usedBytes"]
    (tmp_path / "more.ndjson").write_bytes(line + b"\n")
    done = sidecar("import", str(tmp_path / "more.ndjson"), DATABASE=str(server.database), **settings)
    assert done.returncode == 1
    assert b"is full (SIDECAR_MAX_DATABASE_MB=1): line 1 and all after it were not read" in done.stderr
    status = sidecar("status", DATABASE=str(server.database), **settings).stdout.decode()
    assert "of 1 MB (" in status
    assert "new sessions are refused" in status
    with closing(open_read_only(server.database)) as conn:
        assert {name for (name,) in conn.execute("SELECT session_id FROM sessions")} == set(taken)
    with Server(server.database, **settings) as server:  # it warns at its start, too
        deadline = time.monotonic() + 20
        while b"the database has reached 100 % of SIDECAR_MAX_DATABASE_MB" not in server.log.read_bytes():
            assert time.monotonic() < deadline
            time.sleep(0.05)


# --- a full disk -----------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 6 MB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a tmpfs; `test_a_database_that_cannot_grow` is the same without")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_full(small_disk: Path) -> None:
    """503 with Retry-After, alive, nothing that was answered 200 is lost; with room again it stores again."""
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"\0" * 4_500_000)
    taken: list[str] = []
    with Server(small_disk / "d.db", RETENTION_DAYS="0") as server, server.client() as client:
        while len(taken) < 1000:
            name = f"s-{len(taken)}"
            answer = client.post("/api/track/events", json=event_item(name, properties={"text": LONG}))
            if answer.status_code != 200:
                break
            taken.append(name)
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "10")
        assert answer.json()["error"].startswith("cannot store now: ")
        assert client.get("/healthz").status_code == 503
        assert client.get("/api/sessions?limit=1").status_code == 200
        ballast.unlink()
        assert client.post("/api/track/web-vitals", json=vital_item("after")).status_code == 200
        assert client.get("/healthz").status_code == 200
    with closing(open_database(server.database)) as conn:
        held = {name for (name,) in conn.execute("SELECT session_id FROM sessions")}
        assert held == {*taken, "after"}
        with immediate(conn):
            assert [str(one) for one in verify(conn, lambda: None)] == []


def test_a_database_that_cannot_grow(tmp_path: Path) -> None:
    """The same without a disk: the writer says what is the matter, and finds out by itself that it is over."""
    conn = open_database(tmp_path / "g.db", durability="normal")
    pages = conn.execute("PRAGMA page_count").fetchone()[0]
    conn.execute(f"PRAGMA max_page_count = {pages + 10}")
    writer = Writer(conn)
    writer.start()
    large = [event(f"s-{number}", properties={"text": LONG}) for number in range(50)]
    try:
        waiter = writer.call(lambda opened: Limit(0).record(opened, [Recording([*enumerate(large)], START)]))
        with pytest.raises(UnavailableError, match="cannot store now") as caught:
            waiter.result(30)
        assert caught.value.retry_after_s == 10
        assert writer.failure is not None
        writer.maintain(lambda opened: opened.execute("PRAGMA max_page_count = 100000")).result(30)
        writer.call(probe_write).result(30)
        assert writer.failure is None
        writer.call(lambda opened: Limit(0).record(opened, [Recording([*enumerate(large)], START)])).result(30)
    finally:
        writer.close()


def test_the_probe_needs_room(tmp_path: Path) -> None:
    """It writes a page: a probe that writes nothing would call a full disk well."""
    with closing(open_database(tmp_path / "p.db", durability="normal")) as conn:
        conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        with immediate(conn):
            probe_write(conn)
        assert Path(f"{tmp_path / 'p.db'}-wal").stat().st_size > 4096
