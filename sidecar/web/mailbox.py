"""From the event loop to the store and back: what three turns of the loop bring is one group, and one transaction.

A turn waits for nothing: it is what sockets have ready, some 10 us for a beacon that comes alone. A group is recorded
in the loop itself where it is small and nobody else writes, else by the writer's thread (see `Writer.run_now`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from sidecar.errors import UnavailableError
from sidecar.store.facts import Recorded, Recording
from sidecar.store.writer import Task, Work, Writer, told

FACTS_NOW_MAX = 256  # of a group that is recorded in the loop: 10 to 20 ms

Done = Callable[[Recorded | None, BaseException | None], None]


class Mailbox:
    """The way of recordings to the store and of what became of them back, for one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, writer: Writer, record: Work) -> None:
        self._loop = loop
        self._writer = writer
        self._record = record
        self._sent: list[tuple[Recording, Done]] = []
        self._facts_count = 0
        self._results: deque[tuple[Done, Any, BaseException | None]] = deque()
        self._woken = False

    def __repr__(self) -> str:
        return f"<Mailbox: {len(self._sent)} to hand over, {len(self._results)} to deliver>"

    def send(self, recording: Recording, done: Done) -> None:
        """Have it recorded. `done(recorded, None)` or `done(None, error)` is called in the loop, after COMMIT.

        The error is an UnavailableError where the writer takes nothing.
        """
        if not self._sent:
            self._loop.call_soon(self._loop.call_soon, self._loop.call_soon, self._hand_over)
        self._sent.append((recording, done))
        self._facts_count += len(recording.facts)

    def _hand_over(self) -> None:
        sent, self._sent = self._sent, []
        facts_count, self._facts_count = self._facts_count, 0
        results = None
        if facts_count <= FACTS_NOW_MAX:
            results = self._writer.run_now(self._record, [recording for recording, _ in sent])
        if results is None:
            self._queue(sent)
            return
        for (_, done), result in zip(sent, results, strict=True):
            self._tell(done, *told(result))

    def _queue(self, sent: list[tuple[Recording, Done]]) -> None:
        try:
            self._writer.submit_all(
                [Task(self._record, recording, partial(self._post, done)) for recording, done in sent]
            )
        except UnavailableError as error:
            for _, done in sent:
                self._tell(done, None, error)

    def _post(self, done: Done, result: Any, error: BaseException | None) -> None:
        """Called in the writer's thread."""
        self._results.append((done, result, error))
        if not self._woken:
            self._woken = True
            self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._woken = False
        while self._results:
            self._tell(*self._results.popleft())

    def _tell(self, done: Done, result: Any, error: BaseException | None) -> None:
        try:
            done(result, error)
        except Exception as failure:  # one beacon's trouble is not the others'
            self._loop.call_exception_handler({"message": "a beacon could not be answered", "exception": failure})
