"""What the event loop hands to the store: in groups, at once or through the thread, and nobody is forgotten."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from sidecar.errors import UnavailableError
from sidecar.store.facts import Recording
from sidecar.store.writer import Task
from sidecar.web import mailbox
from sidecar.web.mailbox import Mailbox


class Writer:
    """A writer of the test's making: does at once what it is told to, else in a thread, or takes nothing."""

    def __init__(self, *, at_once: bool = True, takes: bool = True) -> None:
        self.at_once = at_once
        self.takes = takes
        self.groups: list[tuple[str, int]] = []

    def run_now(self, work: Any, payloads: Sequence[Any]) -> list[Any] | None:
        if not self.at_once:
            return None
        self.groups.append(("now", len(payloads)))
        results: list[Any] = work(None, payloads)
        return results

    def submit_all(self, tasks: Sequence[Task]) -> None:
        if not self.takes:
            raise UnavailableError("the write queue is full", retry_after_s=1)
        self.groups.append(("queued", len(tasks)))
        thread = threading.Thread(target=lambda: [task.settle(*self._result(task)) for task in tasks])
        thread.start()

    def _result(self, task: Task) -> tuple[Any, Any]:
        [result] = task.work(None, [task.payload])  # type: ignore[arg-type]
        return (None, result) if isinstance(result, UnavailableError) else (result, None)


def record(_: Any, recordings: Sequence[Recording]) -> list[Any]:
    """What it is given, for a recording of 13: that the file is full."""
    return [UnavailableError("full") if one.now == 13 else one.now for one in recordings]


Told = list[tuple[Any, str | None]]


def send(writer: Writer, recordings: list[Recording], then: Callable[[Any], None] = lambda _: None) -> Told:
    """Send recordings in one turn of a loop; what each was told, in order."""

    async def main() -> Told:
        box = Mailbox(asyncio.get_running_loop(), writer, record)  # type: ignore[arg-type]
        told: Told = []
        everybody = asyncio.Event()

        def done(result: Any, error: BaseException | None) -> None:
            told.append((result, None if error is None else str(error)))
            if len(told) == len(recordings):
                everybody.set()
            then(result)

        for recording in recordings:
            box.send(recording, done)
        await asyncio.wait_for(everybody.wait(), 10)
        assert repr(box) == "<Mailbox: 0 to hand over, 0 to deliver>"
        return told

    return asyncio.run(main())


RECORDINGS = [Recording([], now) for now in range(10, 15)]
TOLD = [(10, None), (11, None), (12, None), (None, "full"), (14, None)]


def test_a_turn_is_one_group() -> None:
    """Recorded at once where the writer is free, else queued; each is told what became of it."""
    for at_once, way in ((True, "now"), (False, "queued")):
        writer = Writer(at_once=at_once)
        assert send(writer, RECORDINGS) == TOLD
        assert writer.groups == [(way, 5)]


def test_a_large_group_is_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop does not stand still for many facts; what comes after is small again."""
    monkeypatch.setattr(mailbox, "FACTS_NOW_MAX", 5)
    facts: list[Any] = [(place, None) for place in range(3)]
    for count, way in ((1, "now"), (2, "queued"), (1, "now")):
        writer = Writer()
        assert send(writer, [Recording(facts, 7)] * count) == [(7, None)] * count
        assert writer.groups == [(way, count)]


def test_where_nothing_is_taken_everybody_is_told() -> None:
    """A full queue is the answer to each."""
    assert send(Writer(at_once=False, takes=False), RECORDINGS) == [(None, "the write queue is full")] * 5


def test_one_that_cannot_be_told_leaves_the_others(caplog: pytest.LogCaptureFixture) -> None:
    """What answering one of them raises is said, and the next are answered."""

    def then(result: Any) -> None:
        if result == 11:
            raise ZeroDivisionError("a bug")

    for at_once in (True, False):
        caplog.clear()
        assert send(Writer(at_once=at_once), RECORDINGS, then) == TOLD
        assert "a beacon could not be answered" in caplog.text
