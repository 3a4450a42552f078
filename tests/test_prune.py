"""Pruning in real processes: the command, the server by itself, both beside beacons, and SIGKILL in the middle."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from sidecar.daily import Daily
from sidecar.errors import StoreError
from sidecar.model import Fact
from sidecar.store.database import Connection, immediate, open_database, open_read_only
from sidecar.store.limit import Limit
from sidecar.store.outbox import set_destination
from sidecar.store.readers import Readers
from sidecar.store.writer import Writer
from tests.builders import START, event, page_of, record_facts, vital
from tests.servers import Server, clean_environment, sidecar
from tests.servers import vital as vital_item

DAY_MS = 86_400_000


def old_facts(count: int, days: int = 200) -> list[Fact]:
    """Sessions of `days` ago, each of a visitor and a page of its own, with two facts."""
    at = int(time.time() * 1000) - days * DAY_MS - START
    facts: list[Fact] = []
    for number in range(count):
        name, page = f"old-{days}-{number}", page_of(f"/{number}")
        facts.append(event(name, at=at + number, visitor=f"v-{number}", page=page))
        facts.append(vital(name, "LCP", 900 + number, at=at + number, page=page))
    return facts


def count(database: Path, table: str = "sessions") -> int:
    with closing(open_read_only(database)) as conn:
        return int(conn.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


def check(database: Path) -> None:
    checked = sidecar("verify", DATABASE=str(database))
    assert (checked.returncode, checked.stderr) == (0, b"")


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_says_what_it_does(tmp_path: Path) -> None:
    """A dry run changes nothing and says the same; --vacuum makes the file smaller; twice is once."""
    database = record_facts(tmp_path / "p.db", old_facts(600))
    record_facts(database, [vital("recent", "LCP", 900, at=int(time.time() * 1000) - 3 * DAY_MS - START)])
    before = database.read_bytes()
    dry = sidecar("prune", "--dry-run", DATABASE=str(database))
    assert dry.returncode == 0, dry.stderr
    first, last = dry.stdout.decode().splitlines()
    assert first.startswith("older than 90 days (they ended before ")
    assert "): 600 sessions with 1200 facts, some 0." in first
    assert last == "nothing was changed"
    assert (database.read_bytes(), count(database)) == (before, 601)
    done = sidecar("prune", "--vacuum", DATABASE=str(database))
    assert done.returncode == 0, done.stderr
    told, deleted, smaller = done.stdout.decode().splitlines()
    assert told[-60:] == first[-60:]
    assert deleted.startswith("deleted 600 sessions, 600 web vitals, 600 events; 1200 pages, clients, campaigns and ")
    assert "the file was written anew: " in smaller
    assert database.stat().st_size < len(before) / 2
    assert [count(database, table) for table in ("sessions", "pages", "anonymous_ids")] == [1, 1, 0]
    check(database)
    again = sidecar("prune", DATABASE=str(database)).stdout.decode()
    assert "): no session\n" in again
    assert "deleted 0 sessions" in again


def test_settings_of_the_command(tmp_path: Path) -> None:
    """RETENTION_DAYS rules; 0 is for ever; what an upstream has not confirmed is kept, and that is said."""
    database = record_facts(tmp_path / "p.db", old_facts(3) + old_facts(2, days=20))
    kept = sidecar("prune", DATABASE=str(database), RETENTION_DAYS="0")
    assert (kept.returncode, kept.stdout) == (0, b"SIDECAR_RETENTION_DAYS=0: sessions are kept for ever\n")
    upstream = sidecar("prune", DATABASE=str(database), UPSTREAM_URL="https://up.example/", RETENTION_DAYS="10")
    assert b" and confirmed by https://up.example/: no session\n" in upstream.stdout
    assert b"kept although as old, not confirmed by the destination: 5 sessions\n" in upstream.stdout
    assert count(database) == 5
    assert sidecar("prune", DATABASE=str(database)).returncode == 0
    assert count(database) == 2
    assert sidecar("prune", DATABASE=str(database), RETENTION_DAYS="10").returncode == 0
    assert count(database) == 0
    missing = sidecar("prune", DATABASE=str(tmp_path / "none.db"))
    assert (missing.returncode, b"no such database" in missing.stderr) == (1, True)


def test_beside_a_server_under_load(tmp_path: Path) -> None:
    """Every beacon is stored, none waits for the whole pass, and the pages that beacons use again stay."""
    database = record_facts(tmp_path / "live.db", old_facts(4000))
    with Server(database, RETENTION_DAYS="0") as server, server.client() as client:
        stop, times = threading.Event(), [0.0]

        def send() -> None:
            while not stop.is_set():
                name = f"live-{len(times)}"
                item = vital_item(name, pageUrl=f"https://shop.test/{len(times) % 4000}", anonymousId=f"v-{len(times)}")
                started = time.perf_counter()
                assert client.post("/api/track/web-vitals", json=item).json()["accepted"] == 1
                times.append(time.perf_counter() - started)

        sender = threading.Thread(target=send)
        sender.start()
        started = time.perf_counter()
        done = sidecar("prune", DATABASE=str(database), RETENTION_DAYS="90")
        took = time.perf_counter() - started
        stop.set()
        sender.join()
    assert done.returncode == 0, done.stderr
    assert count(database) == len(times) - 1 > 5
    assert max(times) < took
    check(database)


@pytest.mark.timeout(300)
def test_killed_in_the_middle(tmp_path: Path) -> None:
    """SIGKILL at random moments of a pass: the file verifies each time, and the next pass goes on."""
    moments = random.Random(4)
    database = record_facts(tmp_path / "k.db", old_facts(5000))
    seen = [count(database)]
    for _ in range(8):
        command = subprocess.Popen(
            [sys.executable, "-m", "sidecar", "prune"],
            env=clean_environment(DATABASE=str(database), RETENTION_DAYS="90"),
            stdout=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 60
        while count(database) == seen[-1] and command.poll() is None:  # until its first step
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.1))
        command.send_signal(signal.SIGKILL)
        command.wait(30)
        seen.append(count(database))
        check(database)
        if not seen[-1]:
            break
    assert len([number for number in seen if 0 < number < 5000]) >= 2
    assert sidecar("prune", DATABASE=str(database), RETENTION_DAYS="90").returncode == 0
    tables = ("sessions", "web_vitals", "events", "visitors", "anonymous_ids", "pages")
    # What the last kill left unswept of a pass that had deleted all sessions is swept by the next one.
    assert [count(database, table) for table in tables] == [0] * 6
    check(database)


# --- the server by itself --------------------------------------------------------------------------------------------


def test_a_server_prunes_after_its_start(tmp_path: Path) -> None:
    """Without anybody asking, within seconds; and it says so in its log."""
    database = record_facts(tmp_path / "s.db", old_facts(50))
    with Server(database) as server:
        deadline = time.monotonic() + 40
        while b"pruned" not in server.log.read_bytes():
            assert time.monotonic() < deadline, server.log.read_text()
            time.sleep(0.1)
        assert count(database) == 0
    check(database)


def run_daily(database: Path, *, days: int = 90, upstream: str | None = None, passes: int = 1) -> Daily:
    """Passes of a server's upkeep, on a writer of its own."""
    writer, readers = Writer(open_database(database, durability="normal")), Readers(database)
    writer.start()
    daily = Daily(
        writer,
        readers,
        days=days,
        upstream=upstream,
        timeout_ms=1_800_000,
        limit=Limit(0),
        clock=lambda: int(time.time() * 1000),
    )

    async def work() -> None:
        for _ in range(passes):
            await daily.prune()

    try:
        asyncio.run(work())
    finally:
        readers.close()
        writer.close()
    return daily


def test_the_server_keeps_what_is_not_confirmed(tmp_path: Path) -> None:
    """By the address in its settings, also before its first pass of shipping; and with 0 days everything."""
    database = record_facts(tmp_path / "d.db", old_facts(4))
    with closing(open_database(database)) as conn, immediate(conn):
        set_destination(conn, "https://before.example/", START)
        conn.execute("UPDATE sessions SET shipped_revision = revision")
    run_daily(database, upstream="https://now.example/")
    run_daily(database, days=0)
    assert count(database) == 4
    daily = run_daily(database, upstream="https://before.example/", passes=2)
    assert count(database) == 0
    assert repr(daily).startswith("<Daily not started, 90 days: last pass: 0 sessions")


def test_a_failure_is_logged_and_tried_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a reader cannot open today must not end the server: the task goes on."""
    database = record_facts(tmp_path / "f.db", old_facts(4))
    moved = database.rename(tmp_path / "moved.db")
    writer, readers = Writer(open_database(moved, durability="normal")), Readers(database)
    writer.start()
    daily = Daily(
        writer,
        readers,
        days=90,
        upstream=None,
        timeout_ms=1_800_000,
        limit=Limit(0),
        clock=lambda: int(time.time() * 1000),
        first_s=-10.0,  # jitter included, at once
    )

    async def work() -> None:
        with pytest.raises(StoreError):
            await daily.prune()
        running = asyncio.create_task(daily.run())
        await asyncio.sleep(0.3)
        assert not running.done()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    try:
        asyncio.run(work())
    finally:
        readers.close()
        writer.close()
    assert "pruning failed" in capsys.readouterr().out


def open_links(conn: Connection) -> list[str]:
    """What points at nothing."""
    return [row[0] for row in conn.execute("PRAGMA foreign_key_check")]


def test_a_connection_checks_links_again_after_a_sweep(tmp_path: Path) -> None:
    """The writer's own: a page that facts point at cannot be deleted on it, before or after."""
    database = record_facts(tmp_path / "l.db", [*old_facts(4), vital("kept", "LCP", 900, at=10**11)])
    writer, readers = Writer(open_database(database, durability="normal")), Readers(database)
    writer.start()
    daily = Daily(
        writer, readers, days=90, upstream=None, timeout_ms=1, limit=Limit(0), clock=lambda: int(time.time() * 1000)
    )
    try:
        asyncio.run(daily.prune())
        assert writer.call(open_links).result() == []
        with pytest.raises(Exception, match="FOREIGN KEY"):
            writer.call(lambda conn: conn.execute("DELETE FROM pages")).result()
    finally:
        readers.close()
        writer.close()
