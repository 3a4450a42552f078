"""The background makes the rows of `samples` when sessions are at rest, and goes on after a failure."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from sidecar.errors import UnavailableError
from sidecar.packing import Packer
from sidecar.store.database import open_database, snapshot
from sidecar.store.readers import Readers
from sidecar.store.writer import Writer
from tests.builders import START, record_facts, vital

REST_MS = 1000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with one session, that changed at START."""
    file = tmp_path / "p.db"
    record_facts(file, [vital("s-1", "LCP", 1, at=START)])
    return file


@pytest.fixture
def readers(path: Path) -> Iterator[Readers]:
    """Of that file."""
    opened = Readers(path)
    yield opened
    opened.close()


def count_rows(path: Path) -> int:
    """Rows of `samples`."""
    with closing(open_database(path)) as conn, snapshot(conn):
        return int(conn.execute("SELECT count(*) FROM samples").fetchone()[0])


async def run_until(packer: Packer, is_done: Callable[[], bool]) -> None:
    """Let it run until something holds, ten seconds at most; then cancel it."""
    task = asyncio.create_task(packer.run())
    for _ in range(1000):
        await asyncio.sleep(0.01)
        if is_done():
            break
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert is_done()


def test_sessions_at_rest_are_packed(path: Path, readers: Readers) -> None:
    """Not before they rest; once, not again."""
    now = START
    writer = Writer(open_database(path))
    writer.start()
    packer = Packer(writer, readers, rest_ms=REST_MS, clock=lambda: now, interval_s=0.01, pause_s=0)
    assert repr(packer) == "<Packer not started: 0 chunks>"
    rounds = 0

    def has_looked() -> bool:
        nonlocal rounds
        rounds += repr(packer) == "<Packer idle: 0 chunks>"
        return rounds > 5

    asyncio.run(run_until(packer, has_looked))
    assert count_rows(path) == 0
    now += REST_MS
    asyncio.run(run_until(packer, lambda: packer.chunks_count == 1))
    assert count_rows(path) == 1
    assert repr(packer) == "<Packer stopped: 1 chunks>"
    writer.close()


@pytest.mark.parametrize("error", [UnavailableError("the queue is full"), RuntimeError("something else")])
def test_a_failure_is_tried_again(path: Path, readers: Readers, error: Exception) -> None:
    """The next round makes what the last one could not."""
    failures = [error]
    writer = Writer(open_database(path))
    writer.start()

    def clock() -> int:
        if failures:
            raise failures.pop()
        return START + REST_MS

    packer = Packer(writer, readers, rest_ms=REST_MS, clock=clock, interval_s=0.01, pause_s=0)
    asyncio.run(run_until(packer, lambda: packer.chunks_count == 1))
    assert (failures, count_rows(path)) == ([], 1)
    writer.close()
