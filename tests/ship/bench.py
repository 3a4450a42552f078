"""What the fault matrix stands on: a sender, a proxy of faults, and a receiver, the ends as real processes."""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar

import httpx2

from sidecar.ship.shipper import Passed as Pass
from sidecar.ship.sinks.http import HttpSink
from sidecar.store.database import Connection, open_database, open_read_only, snapshot
from sidecar.store.lines import export_all
from sidecar.store.verify import verify
from tests.forks import Ended, Fork, Forks, Serving
from tests.proxy import Passed, Proxy, wait_until
from tests.ship.house import TIMEOUT_MS, House

TOKEN = "secret"
PATH = "/api/sessions"
QUIET = {"RETENTION_DAYS": "0"}  # the facts of these tests have times of their own: none is to be pruned
SESSIONS = 4  # that most rows send
Result = TypeVar("Result")


def now_ms() -> int:
    """The clock, in ms."""
    return time.time_ns() // 1_000_000


def read(path: Path, function: Callable[[Connection], Result]) -> Result:
    """Read from a file that another process may be writing."""
    conn = open_read_only(path)
    try:
        with snapshot(conn):
            return function(conn)
    finally:
        conn.close()


def export(path: Path) -> list[dict[str, Any]]:
    """The lines of an export, but for whether they are finished: that depends on the clock."""
    lines = read(path, lambda conn: [*export_all(conn, now_ms(), TIMEOUT_MS)])
    return [{name: value for name, value in json.loads(line).items() if name != "finished"} for line in lines]


def facts_of(lines: Sequence[dict[str, Any]]) -> set[str]:
    """Every fact in an export, as a text with its owner."""
    facts: set[str] = set()
    for line in lines:
        owner = [line["site"], line.get("funnelId"), line.get("sessionId")]
        for kind in ("webVitals", "events"):
            facts |= {json.dumps([owner, kind, fact | {"client": None}]) for fact in line.get(kind, ())}
    return facts


class Bench:
    """One sender, one proxy, one receiver. The sender's file is also open here, to record into it and to look at it."""

    def __init__(self, forks: Forks, folder: Path) -> None:
        self.forks = forks
        self.folder = folder
        self.sender = House(folder / "sender.db")
        self.sender.now = now_ms()
        self.receiver = Serving(forks, folder / "receiver.db", RECEIVE_TOKEN=TOKEN, **QUIET)
        self.proxy = Proxy(self.receiver.port)
        self.settings = {"DATABASE": str(self.sender.path), "UPSTREAM_URL": self.proxy.url, "UPSTREAM_TOKEN": TOKEN}
        self.settings |= QUIET | {"SITE": "default", "SHIP_INTERVAL": "0.05"}

    def __enter__(self) -> Bench:
        self.sender.__enter__()
        try:
            self.proxy.__enter__()
            self.receiver.start()
        except BaseException:
            self.__exit__()  # a thread that goes on to accept would keep the test run from ending
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.proxy.close()
        self.receiver.kill()
        self.sender.__exit__()

    # --- the sender ---

    def ship(self, *arguments: str, **options: Any) -> Ended:
        """`sidecar ship`, to its end."""
        return self.start_ship(*arguments, **options).wait()

    def start_ship(self, *arguments: str, **options: Any) -> Fork:
        """`sidecar ship`, started."""
        return self.forks.start("ship", *arguments, settings=self.settings, **options)

    @contextmanager
    def serving(self, **options: Any) -> Iterator[Serving]:
        """`sidecar serve` as the sender, which ships by itself; killed at the end."""
        given = {name: value for name, value in self.settings.items() if name != "DATABASE"}
        sender = Serving(self.forks, self.sender.path, **given)
        sender.start(**options)
        try:
            yield sender
        finally:
            sender.kill()

    def ship_here(self, *, url: str | None = None, **options: Any) -> Pass:
        """One pass in this process, with the sender's clock where it stands; `options` are of the sink."""
        sink = HttpSink(url or self.proxy.url, token=TOKEN, **options)
        return asyncio.run(self.sender.shipper(sink).ship_once())

    def await_health(self, sender: Serving, state: str, reason: str | None) -> None:
        """Until /healthz of the sender says so (a reason that ends in `...` may go on)."""
        seen: list[dict[str, Any]] = []

        def happened() -> bool:
            answer = sender.get("/healthz")
            assert (answer.status_code, answer.json()["status"]) == (200, "ok"), "trouble upstream is no trouble here"
            said = answer.json()["shipping"]
            seen[:] = [said]
            assert str(said["sentence"]).startswith(f"{said['state']}: {said['reason'] or ''}"), "the same in words"
            return said["state"] == state and _is_said(said["reason"], reason)

        wait_until(happened, f"{state}: {reason}")
        assert reason is None or "sessions waiting" in seen[0]["sentence"]

    def expect(self, state: str, reason: str | None, **counts: int) -> None:
        """What the sender's file says: state, reason, and counts by the names of /api/shipping."""
        told = self.sender.shipping()
        assert (told["state"], _is_said(told["reason"], reason)) == (state, True), (told["state"], told["reason"])
        assert {name: told[name] for name in counts} == counts

    def reopen_sender(self) -> None:
        """Open the sender's file anew, after it was replaced."""
        self.sender = House(self.sender.path)
        self.sender.now = now_ms()
        self.sender.__enter__()

    # --- the receiver ---

    @contextmanager
    def receiver_locked(self) -> Iterator[None]:
        """Nothing can be written at the receiver meanwhile."""
        conn = open_database(self.receiver.database)
        conn.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            conn.execute("ROLLBACK")
            conn.close()

    def restart_receiver(self, clock_ms: int = 0, **settings: str) -> None:
        """Kill it and start it with other settings."""
        self.receiver.kill()
        self.receiver.settings |= settings
        self.receiver.start(clock_ms=clock_ms)

    def count_receipts(self) -> int:
        """Batches that the receiver has noted."""
        return int(self._receipts("count(*)") or 0)

    def _receipts(self, what: str) -> int | None:
        found = read(self.receiver.database, lambda conn: conn.execute(f"SELECT {what} FROM receipts").fetchone()[0])
        return None if found is None else int(found)

    def post(self, body: bytes, records: int, *, key: str, encoding: str = "gzip", **headers: str) -> httpx2.Response:
        """A batch by hand, straight to the receiver."""
        digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
        whole = {"Content-Digest": f"sha-256=:{digest}:", "X-Records": str(records), "Idempotency-Key": f'"{key}"'}
        whole |= {"Authorization": f"Bearer {TOKEN}", "Content-Encoding": encoding}
        whole |= {name.replace("_", "-"): value for name, value in headers.items()}
        return self._send(body, whole)

    def replay(self, request: Passed, *, key: str | None = None) -> httpx2.Response:
        """A request once more, as it was sent then; under another key, where one is said."""
        headers = {name: value for name, value in request.headers.items() if name not in ("host", "connection")}
        return self._send(request.body, headers | ({"idempotency-key": f'"{key}"'} if key else {}))

    def _send(self, body: bytes, headers: dict[str, str]) -> httpx2.Response:
        url = self.receiver.url + PATH
        return httpx2.post(url, content=body, headers=headers, verify=False, timeout=30)

    # --- both ---

    def check(self, *, accepted: int | None = None, exact: bool = True, counted: bool = True) -> None:
        """All is delivered, nothing is doubled, both files are in order, and nothing waits.

        `accepted`: how many lines the receiver has taken as new, over all batches; one for each where it is not said.
        `counted`: it still has the receipts that say so. `exact`: both hold the same, revisions, too; else the receiver
        holds all facts of the sender, and perhaps more.
        """
        ours, theirs = export(self.sender.path), export(self.receiver.database)
        assert facts_of(ours) <= facts_of(theirs)
        if exact:
            assert theirs == ours
        if exact and counted:
            assert self._receipts("sum(json_extract(answer, '$.accepted'))") == (accepted or len(ours))
        self.expect("ready", None, waitingSessions=0, unfinishedSessions=0, parkedSessions=0, waitingTombstones=0)
        open_batches = "SELECT count(*) FROM batches WHERE state = 'open'"
        assert self.sender.read(lambda conn: conn.execute(open_batches).fetchone()) == (0,)
        for path in (self.sender.path, self.receiver.database):
            assert read(path, lambda conn: [str(found) for found in verify(conn, lambda: None)]) == []

    def same_bytes(self) -> None:
        """Every request was the same batch: its bytes and its id."""
        assert len({(request.key, request.body) for request in self.proxy.requests}) == 1


def _is_said(said: str | None, wanted: str | None) -> bool:
    if said is not None and wanted is not None and wanted.endswith("..."):
        return said.startswith(wanted[:-3])
    return said == wanted


def lines_of(body: bytes) -> list[bytes]:
    """The lines of a packed batch."""
    return gzip.decompress(body).splitlines(keepends=True)


def pack(lines: Sequence[bytes]) -> bytes:
    """A packed batch of lines."""
    return gzip.compress(b"".join(lines), mtime=0)


Row = Callable[[Bench], None]


def named(status: int) -> str:
    """A status with its phrase: 413 and 422 have others since Python 3.13."""
    return f"{status} {HTTPStatus(status).phrase}" if status in set(HTTPStatus) else str(status)
