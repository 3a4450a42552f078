"""Read-only connections for worker threads: a few, opened when first needed, lent one at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sidecar.errors import UnavailableError
from sidecar.store.database import Connection, Error, open_read_only, snapshot

READERS_MAX = 4
WAIT_S = 10.0


class Readers:
    """At most `readers_max` connections to the file at `path`. None is opened before the first reading."""

    def __init__(self, path: Path, *, readers_max: int = READERS_MAX, wait_s: float = WAIT_S) -> None:
        self._path = path
        self._readers_max = readers_max
        self._wait_s = wait_s
        self._idle: list[Connection] = []
        self._lent_count = 0
        self._closed = False
        self._changed = threading.Condition()

    def __repr__(self) -> str:
        phase = "closed" if self._closed else "open"
        return f"<Readers {phase}: {self._lent_count} of {self._readers_max} lent, {len(self._idle)} idle>"

    @contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """A connection in one state of the file, for the length of the block.

        Raises UnavailableError where none comes free in time or the readers are closed, StoreError where the file
        cannot be opened. A connection that failed is closed, not lent again.
        """
        conn = self._take()
        try:
            with snapshot(conn):
                yield conn
        except Error:
            self._give_back(conn, broken=True)
            raise
        except BaseException:
            self._give_back(conn)
            raise
        self._give_back(conn)

    def close(self) -> None:
        """Close what is idle now, and what is lent when it comes back. Later readings are refused."""
        with self._changed:
            self._closed = True
            idle, self._idle = self._idle, []
            self._changed.notify_all()
        for conn in idle:
            conn.close()

    def _take(self) -> Connection:
        with self._changed:
            free = self._changed.wait_for(lambda: self._closed or self._lent_count < self._readers_max, self._wait_s)
            if self._closed:
                raise UnavailableError("shutting down")
            if not free:
                raise UnavailableError("too many readings at once", retry_after_s=1)
            self._lent_count += 1
            conn = self._idle.pop() if self._idle else None
        try:
            return conn or open_read_only(self._path)
        except BaseException:
            with self._changed:
                self._lent_count -= 1
                self._changed.notify()
            raise

    def _give_back(self, conn: Connection, *, broken: bool = False) -> None:
        with self._changed:
            self._lent_count -= 1
            keep = not broken and not self._closed
            if keep:
                self._idle.append(conn)
            self._changed.notify()
        if not keep:
            conn.close()
