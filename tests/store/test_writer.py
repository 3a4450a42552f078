"""The writer: groups, order, failures, bounds."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from sidecar.errors import UnavailableError
from sidecar.store.database import Connection, OperationalError, open_database, open_read_only
from sidecar.store.writer import Task, Writer


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A database with one more table, to write to."""
    conn = open_database(tmp_path / "w.db")
    conn.execute("CREATE TABLE notes (text TEXT NOT NULL UNIQUE) STRICT")
    conn.close()
    return tmp_path / "w.db"


@pytest.fixture
def writer(path: Path) -> Iterator[Writer]:
    """A running writer."""
    running = Writer(open_database(path), queue_max=50)
    running.start()
    yield running
    running.close()


class Gate:
    """Holds the writer inside a task until it is opened."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.open = threading.Event()

    def __call__(self, _: Connection) -> str:
        self.reached.set()
        assert self.open.wait(30)
        return "through"


class Notes:
    """Work that stores texts and remembers the groups it was called with."""

    def __init__(self) -> None:
        self.groups: list[list[str]] = []
        self.settled: dict[str, object] = {}
        self.done = threading.Event()

    def work(self, conn: Connection, payloads: Sequence[Any]) -> list[str]:
        self.groups.append(list(payloads))
        for text in payloads:
            conn.execute("INSERT INTO notes VALUES (?)", (text,))
        return [f"stored {text}" for text in payloads]

    def task(self, text: str, last: bool = False) -> Task:
        def settle(result: Any, error: BaseException | None) -> None:
            self.settled[text] = result if error is None else error
            if last:
                self.done.set()

        return Task(self.work, text, settle)


def read_notes(path: Path) -> list[str]:
    conn = open_read_only(path)
    try:
        return [row[0] for row in conn.execute("SELECT text FROM notes ORDER BY text")]
    finally:
        conn.close()


def test_what_waits_is_one_group(writer: Writer, path: Path) -> None:
    """Tasks that queue up while the writer is busy are one call and one transaction."""
    gate, notes = Gate(), Notes()
    held = writer.call(gate)
    assert gate.reached.wait(30)
    for text in "abc":
        writer.submit(notes.task(text, last=text == "c"))
    assert writer.waiting_count == 3
    gate.open.set()
    assert held.result(30) == "through"
    assert notes.done.wait(30)
    assert notes.groups == [["a", "b", "c"]]
    assert notes.settled == {"a": "stored a", "b": "stored b", "c": "stored c"}
    assert read_notes(path) == ["a", "b", "c"]
    assert repr(writer) == "<Writer running: 0 waiting, 4 done in 2 groups>"


def test_a_bad_task_fails_alone(writer: Writer, path: Path) -> None:
    """The group is rolled back and run one by one: the others are stored, the bad one gets its own cause."""
    gate, notes = Gate(), Notes()
    writer.call(gate)
    assert gate.reached.wait(30)
    for number, text in enumerate("aba"):
        writer.submit(Task(notes.work, text, notes.task(f"{text}{number}", last=number == 2).settle))
    gate.open.set()
    assert notes.done.wait(30)
    assert notes.groups == [["a", "b", "a"], ["a"], ["b"], ["a"]]
    assert notes.settled["a0"] == "stored a"
    assert notes.settled["b1"] == "stored b"
    assert "UNIQUE constraint failed" in str(notes.settled["a2"])
    assert read_notes(path) == ["a", "b"]


def test_nothing_is_settled_before_commit(writer: Writer, path: Path) -> None:
    """When a waiter hears of it, another connection sees it."""
    seen: list[list[str]] = []
    done = threading.Event()

    def settle(result: Any, error: BaseException | None) -> None:
        seen.append(read_notes(path))
        done.set()

    writer.submit(Task(Notes().work, "x", settle))
    assert done.wait(30)
    assert seen == [["x"]]


def test_a_full_queue_is_refused_and_the_rest_goes_on(writer: Writer, path: Path) -> None:
    """The bound of the queue, and what becomes of what was in it."""
    gate, notes = Gate(), Notes()
    writer.call(gate)
    assert gate.reached.wait(30)
    for number in range(50):
        writer.submit(notes.task(f"{number:02d}", last=number == 49))
    with pytest.raises(UnavailableError, match="the write queue is full") as refused:
        writer.submit(notes.task("one too many"))
    assert refused.value.retry_after_s == 1
    gate.open.set()
    assert notes.done.wait(30)
    assert read_notes(path) == [f"{number:02d}" for number in range(50)]


def test_a_full_disk_is_unavailable_and_heals(writer: Writer, path: Path) -> None:
    """SQLITE_FULL ends the transaction by itself: the waiters hear `cannot store now`, and later it works again."""

    def limit(conn: Connection) -> None:
        pages = conn.execute("PRAGMA page_count").fetchone()[0]
        conn.execute(f"PRAGMA max_page_count = {pages}")

    def fill(conn: Connection) -> None:
        conn.execute("INSERT INTO notes VALUES (?)", ("x" * 1_000_000,))

    writer.call(limit).result(30)
    with pytest.raises(UnavailableError, match="cannot store now: database or disk is full"):
        writer.call(fill).result(30)
    assert writer.failure == "database or disk is full"
    writer.call(lambda conn: conn.execute("PRAGMA max_page_count = 1000000").fetchone()).result(30)
    writer.call(fill).result(30)
    assert writer.failure is None
    assert len(read_notes(path)) == 1


def test_closing_finishes_what_is_queued(path: Path) -> None:
    """Nothing that was taken is dropped, and nothing more is taken."""
    running, gate, notes = Writer(open_database(path)), Gate(), Notes()
    running.start()
    running.call(gate)
    assert gate.reached.wait(30)
    running.submit(notes.task("last"))
    closer = threading.Thread(target=running.close)
    closer.start()
    while not repr(running).startswith("<Writer closed"):
        closer.join(0.01)
    with pytest.raises(UnavailableError, match="shutting down"):
        running.submit(notes.task("late"))
    gate.open.set()
    closer.join(30)
    assert read_notes(path) == ["last"]


def test_read_only_connections_cannot_write(path: Path) -> None:
    """Readers are `mode=ro`, with foreign keys on."""
    conn = open_read_only(path)
    with pytest.raises(OperationalError, match="readonly"):
        conn.execute("INSERT INTO notes VALUES ('no')")
    assert conn.execute("PRAGMA foreign_keys").fetchone() == (1,)
    conn.close()
