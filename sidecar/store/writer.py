"""One writable connection, one thread that waits for it, group commit. Knows no tables: functions of a connection.

Whatever is queued when a transaction ends is the next group, up to a bound; no artificial delay. A waiter is resolved
only after COMMIT. When a group fails it is rolled back and its tasks run one by one, so that the one that fails does so
alone and with its own cause.

Who has a group at hand while nobody writes may write it in its own thread (`run_now`): two threads that take turns at
Python's lock need half as much CPU again for a beacon.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

from sidecar.errors import UnavailableError
from sidecar.store.database import Connection, checkpoint, immediate, is_full

GROUP_MAX = 256
QUEUE_MAX = 4096
# Who writes in its own thread breaks off after NOW_MAX_S (sessions of thousands of facts). Where that came to pass, or
# the disk was waited for for WAIT_MAX_S, the writer's thread has the work for REST_FACTOR times as long: so the other
# stands still a tenth of the time at the most.
NOW_MAX_S = 0.05
WAIT_MAX_S = 0.02
REST_FACTOR = 10
PROGRESS_STEPS = 50_000  # of SQLite's virtual machine between two looks at the clock: about 1 ms
# Rows changed until the thread moves the WAL into the file, which takes 5 to 50 ms. 5,000 rows of beacons are 3,000
# pages of the WAL, so it comes before the COMMIT in which SQLite would do it, after 4,000.
CHECKPOINT_ROWS = 5000

Result = TypeVar("Result")
Work = Callable[[Connection, Sequence[Any]], Sequence[Any]]


class Task(NamedTuple):
    """One thing to do in a transaction. Neighbours with the same `work` are done in one call, one payload each.

    `settle(result, error)` is called after COMMIT, in the writer's thread. A result that is an UnavailableError is the
    error of its task: what was done for the others is kept.
    """

    work: Work
    payload: Any
    settle: Callable[[Any, BaseException | None], None]


def told(result: Any) -> tuple[Any, UnavailableError | None]:
    """A task's result and error, of what its work gave for it."""
    return (None, result) if isinstance(result, UnavailableError) else (result, None)


def _one(conn: Connection, payloads: Sequence[Callable[[Connection], Any]]) -> list[Any]:
    return [payload(conn) for payload in payloads]


class Writer:
    """The one door to the database: takes ownership of a writable connection and closes it."""

    def __init__(self, conn: Connection, *, queue_max: int = QUEUE_MAX, group_max: int = GROUP_MAX) -> None:
        self._conn = conn
        self._queue: deque[Task] = deque()
        self._chores: deque[Callable[[], None]] = deque()
        self._queue_max = queue_max
        self._group_max = group_max
        self._wake = threading.Condition()
        self._turn = threading.Lock()  # of whoever uses the connection
        self._slow_until = 0.0  # by time.monotonic
        self._rows_at_checkpoint = conn.total_changes
        self._closing = False
        self._failure: str | None = None
        self.groups_count = 0
        self.tasks_count = 0
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)

    def __repr__(self) -> str:
        phase = "closed" if self._closing else "running" if self._thread.is_alive() else "not started"
        failure = f", failing: {self._failure}" if self._failure else ""
        done = f"{self.tasks_count} done in {self.groups_count} groups"
        return f"<Writer {phase}: {len(self._queue)} waiting, {done}{failure}>"

    @property
    def waiting_count(self) -> int:
        """Tasks that are queued."""
        return len(self._queue)

    @property
    def failure(self) -> str | None:
        """Why the last group could not be stored (full disk and the like); None when it could."""
        return self._failure

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(self, task: Task) -> None:
        """Queue a task. Raises UnavailableError when the queue is full or the writer is closing."""
        self.submit_all([task])

    def submit_all(self, tasks: Sequence[Task]) -> None:
        """Queue tasks, all or none. Raises UnavailableError when the queue is full or the writer is closing."""
        with self._wake:
            if self._closing:
                raise UnavailableError("shutting down")
            if len(self._queue) + len(tasks) > self._queue_max:
                raise UnavailableError("the write queue is full", retry_after_s=1)
            self._queue.extend(tasks)
            self._wake.notify()

    def run_now(self, work: Work, payloads: Sequence[Any]) -> Sequence[Any] | None:
        """Do it in the calling thread if that is free to go at once: the results, after COMMIT.

        None where somebody waits or writes, here or in another process, where it was slow lately, and where it failed:
        then nothing was done, and `submit_all` does it, or says why not.
        """
        if len(payloads) > self._group_max or not self._turn.acquire(blocking=False):
            return None
        try:
            if self._queue or self._chores or self._closing or time.monotonic() < self._slow_until:
                return None
            results = self._transact_now(work, payloads)
            is_due = self._conn.total_changes - self._rows_at_checkpoint > CHECKPOINT_ROWS
            if is_due:
                self._rows_at_checkpoint = self._conn.total_changes
        finally:
            self._turn.release()
        if is_due:
            with suppress(UnavailableError):  # closing does it, too
                self.maintain(checkpoint)
        return results

    def _transact_now(self, work: Work, payloads: Sequence[Any]) -> Sequence[Any] | None:
        began, used = time.monotonic(), time.thread_time()
        self._conn.set_progress_handler(lambda: time.monotonic() > began + NOW_MAX_S, PROGRESS_STEPS)
        try:
            with immediate(self._conn, wait=False):
                results = work(self._conn, payloads)
        except Exception:  # the thread tries again, each task alone, and tells each its own cause
            return None
        finally:
            self._conn.set_progress_handler(None, 0)
            ended = time.monotonic()
            took = ended - began
            waited = took - (time.thread_time() - used)
            if took > NOW_MAX_S or waited > WAIT_MAX_S:
                self._slow_until = ended + took * REST_FACTOR
        self._count(payloads)
        return results

    def _count(self, group: Sequence[Any]) -> None:
        self._failure = None
        self.groups_count += 1
        self.tasks_count += len(group)

    def call(self, function: Callable[[Connection], Result]) -> Future[Result]:
        """Run one function of a connection in a transaction; its result, or what it raised, after COMMIT."""
        future: Future[Result] = Future()

        def settle(result: Any, error: BaseException | None) -> None:
            if not future.set_running_or_notify_cancel():
                return  # its waiter was cancelled, the work is done all the same
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

        self.submit(Task(_one, function, settle))
        return future

    def maintain(self, function: Callable[[Connection], Result]) -> Future[Result]:
        """Run one function of the connection between groups, outside of any transaction. Beacons wait for its end.

        Raises UnavailableError when the writer is closing.
        """
        future: Future[Result] = Future()

        def work() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function(self._conn))
            except Exception as error:
                future.set_exception(error)

        with self._wake:
            if self._closing:
                raise UnavailableError("shutting down")
            self._chores.append(work)
            self._wake.notify()
        return future

    def close(self) -> None:
        """Finish what is queued, then close the connection."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        if self._thread.ident is not None:
            self._thread.join()
        with self._turn:
            self._conn.close()

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._queue and not self._chores and not self._closing:
                    self._wake.wait()
                if not self._queue and not self._chores:
                    return
            with self._turn:
                with self._wake:  # not before: what waits for its turn is seen to wait
                    group = [self._queue.popleft() for _ in range(min(self._group_max, len(self._queue)))]
                    chores = [self._chores.popleft() for _ in range(len(self._chores))]
                if group:
                    self._commit(group)
                for chore in chores:
                    chore()

    def _commit(self, group: list[Task]) -> None:
        try:
            results = self._transaction(group)
        except Exception as error:
            if len(group) == 1 or is_full(error):
                self._fail(group, error)
            else:
                for task in group:
                    self._commit([task])
            return
        self._count(group)
        for task, result in zip(group, results, strict=True):
            task.settle(*told(result))

    def _transaction(self, group: list[Task]) -> list[Any]:
        results: list[Any] = []
        with immediate(self._conn):
            start = 0
            for end in range(1, len(group) + 1):
                if end == len(group) or group[end].work != group[start].work:
                    part = group[start:end]
                    results += part[0].work(self._conn, [task.payload for task in part])
                    start = end
        return results

    def _fail(self, group: list[Task], error: Exception) -> None:
        told: Exception = error
        if is_full(error):
            self._failure = str(error)
            told = UnavailableError(f"cannot store now: {error}", retry_after_s=10)
        for task in group:
            task.settle(None, told)
