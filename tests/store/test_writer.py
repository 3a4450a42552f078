"""The writer: groups, order, failures, bounds."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from sidecar.errors import UnavailableError
from sidecar.store import writer as writer_module
from sidecar.store.database import Connection, OperationalError, checkpoint, open_database, open_read_only
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


def test_who_finds_nobody_at_work_writes_at_once(writer: Writer, path: Path) -> None:
    """In its own thread, committed when it returns, and counted as a group."""
    threads: list[str] = []

    def work(conn: Connection, payloads: Sequence[Any]) -> list[str]:
        threads.append(threading.current_thread().name)
        return Notes().work(conn, payloads)

    assert writer.run_now(work, ["one", "two"]) == ["stored one", "stored two"]
    assert threads == [threading.current_thread().name]
    assert read_notes(path) == ["one", "two"]
    assert (writer.groups_count, writer.tasks_count) == (1, 2)


def test_who_finds_somebody_at_work_does_not(writer: Writer, path: Path) -> None:
    """Neither beside a group nor before what waits, nor more than a group's worth, nor after the end."""
    notes, gate = Notes(), Gate()
    assert writer.run_now(notes.work, [str(number) for number in range(257)]) is None
    held = writer.call(gate)
    assert gate.reached.wait(10)
    assert writer.run_now(notes.work, ["beside"]) is None
    waits = writer.call(lambda conn: conn.execute("INSERT INTO notes VALUES ('waited')").rowcount)
    gate.open.set()
    assert (held.result(10), waits.result(10)) == ("through", 1)
    gate = Gate()
    chore = writer.maintain(lambda conn: gate(conn))
    assert gate.reached.wait(10)
    assert writer.run_now(notes.work, ["beside a chore"]) is None
    gate.open.set()
    assert chore.result(10) == "through"
    writer.close()
    assert writer.run_now(notes.work, ["after the end"]) is None
    assert notes.groups == []
    assert read_notes(path) == ["waited"]


def test_what_fails_at_once_leaves_nothing(writer: Writer, path: Path) -> None:
    """The whole of it is rolled back, for the thread does it again; the next one is none the worse."""
    notes = Notes()
    assert writer.run_now(notes.work, ["one", "two", "one"]) is None
    assert read_notes(path) == []
    assert writer.run_now(notes.work, ["three"]) == ["stored three"]
    assert read_notes(path) == ["three"]


def test_another_process_is_waited_for_in_the_thread(writer: Writer, path: Path) -> None:
    """Who would write at once is told at once; the thread waits, as long as it must."""
    notes = Notes()
    other = open_database(path)
    other.execute("BEGIN IMMEDIATE")
    began = time.monotonic()
    assert writer.run_now(notes.work, ["now"]) is None
    assert time.monotonic() - began < 1
    writer.submit(notes.task("later", last=True))
    assert not notes.done.wait(0.3)
    other.execute("COMMIT")
    other.close()
    assert notes.done.wait(10)
    assert read_notes(path) == ["later"]


def test_after_a_slow_one_the_thread_has_the_work(writer: Writer, monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """A disk that takes long holds up who answers others one time in a hundred, and not each time."""
    monkeypatch.setattr(writer_module, "WAIT_MAX_S", 0.05)
    monkeypatch.setattr(writer_module, "REST_FACTOR", 10)

    def slow(conn: Connection, payloads: Sequence[Any]) -> list[str]:
        time.sleep(0.06)
        return Notes().work(conn, payloads)

    began = time.monotonic()
    assert writer.run_now(slow, ["slow"]) == ["stored slow"]
    assert writer.run_now(Notes().work, ["too early"]) is None
    while writer.run_now(Notes().work, ["in time"]) is None:
        assert time.monotonic() - began < 20
        time.sleep(0.01)
    assert time.monotonic() - began > 0.06 * 10
    assert read_notes(path) == ["in time", "slow"]


def test_what_takes_long_is_broken_off(writer: Writer, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of it is left, and the thread does it, however long it takes."""
    monkeypatch.setattr(writer_module, "NOW_MAX_S", 0.02)
    long = "WITH RECURSIVE n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n WHERE i < 2e7) SELECT count(*) FROM n"
    notes, counted = Notes(), threading.Event()

    def work(conn: Connection, payloads: Sequence[Any]) -> list[str]:
        stored = notes.work(conn, payloads)
        if threading.current_thread().name != "writer":
            conn.execute(long).fetchall()
            counted.set()
        return stored

    began = time.monotonic()
    assert writer.run_now(work, ["long"]) is None
    assert time.monotonic() - began < 1
    assert not counted.is_set()
    assert read_notes(path) == []
    assert writer.run_now(notes.work, ["too early"]) is None
    writer.submit(Task(work, "long", lambda *_: notes.done.set()))
    assert notes.done.wait(10)
    assert read_notes(path) == ["long"]


def test_what_waits_is_not_overtaken(path: Path) -> None:
    """What is queued, a task or a chore, is done before what would be written at once."""
    for queue in (lambda writer: writer.call(lambda _: "done"), lambda writer: writer.maintain(lambda _: "done")):
        notes, writer = Notes(), Writer(open_database(path))
        queued = queue(writer)  # type: ignore[no-untyped-call]
        assert writer.run_now(notes.work, ["too early"]) is None
        writer.start()
        assert queued.result(10) == "done"
        writer.close()
        assert notes.groups == []


def test_what_waits_for_its_turn_is_seen_to_wait(writer: Writer, path: Path) -> None:
    """The thread takes nothing out of the queue while somebody else writes."""
    gate, notes = Gate(), Notes()
    at_once = threading.Thread(target=lambda: writer.run_now(lambda conn, _: [gate(conn)], ["first"]))
    at_once.start()
    assert gate.reached.wait(10)
    writer.submit(notes.task("second", last=True))
    time.sleep(0.1)  # the thread has woken up by then
    assert writer.waiting_count == 1
    gate.open.set()
    at_once.join(10)
    assert notes.done.wait(10)
    assert read_notes(path) == ["second"]


def test_the_thread_moves_the_wal(writer: Writer, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who writes at once asks for it after a number of rows, does not wait for it, and need not fear its failure."""
    monkeypatch.setattr(writer_module, "CHECKPOINT_ROWS", 5)
    threads: list[str] = []
    moved = threading.Event()

    def noted(conn: Connection) -> None:
        threads.append(threading.current_thread().name)
        checkpoint(conn)
        moved.set()

    monkeypatch.setattr(writer_module, "checkpoint", noted)
    in_file = path.stat().st_size
    for number in range(5):
        assert writer.run_now(Notes().work, [f"{number} {'x' * 4096}"]) is not None
    assert not moved.wait(0.2)
    assert path.stat().st_size == in_file
    assert writer.run_now(Notes().work, ["5"]) is not None
    assert moved.wait(10)
    assert path.stat().st_size > in_file + 4 * 4096
    assert threads == ["writer"]


def test_two_threads_write_by_turns(writer: Writer, path: Path) -> None:
    """At once and by the queue, at the same time: all is stored, each once."""
    notes, ways = Notes(), Counter[bool]()

    def queue() -> None:
        for number in range(100):
            writer.submit(notes.task(f"queued {number}"))
            time.sleep(0.002)

    queueing = threading.Thread(target=queue)
    queueing.start()
    number = 0
    while queueing.is_alive():
        at_once = writer.run_now(notes.work, [f"now {number}"]) is not None
        ways[at_once] += 1
        if not at_once:
            writer.submit(notes.task(f"now {number}"))
            time.sleep(0.001)
        number += 1
    queueing.join()
    writer.close()
    expected = [f"queued {n}" for n in range(100)] + [f"now {n}" for n in range(number)]
    assert read_notes(path) == sorted(expected)
    assert writer.tasks_count == len(expected)
    assert ways[True] > 0
    assert ways[False] > 0
