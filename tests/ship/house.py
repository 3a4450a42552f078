"""What the tests of shipping stand on: a store, a scripted sink, a scripted upstream, and a real one."""

from __future__ import annotations

import gzip
import json
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import uvicorn
from starlette.applications import Starlette
from starlette.routing import Route

from sidecar.model import Fact
from sidecar.ship.shipper import Shipper
from sidecar.ship.sinks import Answer, Sink, Verdict
from sidecar.store import outbox, shipping
from sidecar.store.database import Connection, open_database, open_read_only, snapshot
from sidecar.store.facts import Recording, record
from sidecar.store.lines import export_all
from sidecar.store.outbox import Batch
from sidecar.store.writer import Writer
from sidecar.web.receive import Receive, Tokens
from tests.builders import event, vital

NOW = 1_795_330_800_000
TIMEOUT_MS = 1_800_000
ADDRESS = "https://upstream.test/api/sessions"
Result = TypeVar("Result")


class House:
    """One database with its writer. `now` (ms) is the clock; what came before `now - TIMEOUT_MS` is finished."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.now = NOW
        self.writer = Writer(open_database(path, durability="normal"))
        self._ids = 0

    def __enter__(self) -> House:
        self.writer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.writer.close()

    def make_id(self) -> str:
        """Batch ids in order: b1, b2, ..."""
        self._ids += 1
        return f"b{self._ids}"

    def write(self, function: Callable[[Connection], Result]) -> Result:
        """Run in a transaction of the writer."""
        return self.writer.call(function).result(10)

    def read(self, function: Callable[[Connection], Result]) -> Result:
        """Run on a read-only snapshot."""
        conn = open_read_only(self.path)
        try:
            with snapshot(conn):
                return function(conn)
        finally:
            conn.close()

    def record(self, *facts: Fact, ago_ms: int = 2 * TIMEOUT_MS) -> None:
        """Store facts as a beacon that came `ago_ms` before now."""
        at = self.now - ago_ms
        self.write(lambda conn: record(conn, [Recording([*enumerate(facts)], at)]))

    def record_sessions(self, count: int, *, site: str = "default", first: int = 0) -> None:
        """Finished sessions s-000, s-001, ...: a page view and a vital each, one ms of revision apart."""
        recordings: list[Recording] = []
        for number in range(first, first + count):
            name = f"s-{number:03d}"
            facts: list[Fact] = [
                event(name, site=site, visitor=f"v-{number}"),
                vital(name, "LCP", 1200 + number, site=site, at=900),
            ]
            recordings.append(Recording([*enumerate(facts)], self.now - 2 * TIMEOUT_MS + number))
        self.write(lambda conn: [record(conn, [recording]) for recording in recordings])

    def shipper(self, sink: Sink, **options: Any) -> Shipper:
        """A shipper on this store and clock."""
        options = {"rng": random.Random(7), "lock_wait_s": 0.2, "timeout_ms": TIMEOUT_MS, **options}
        return Shipper(self.writer, self.path, sink, clock=lambda: self.now, make_id=self.make_id, **options)

    def shipping(self) -> dict[str, Any]:
        """What /api/shipping says."""
        return self.read(lambda conn: shipping.read_shipping(conn, self.now, TIMEOUT_MS))

    def session(self, session_id: str) -> dict[str, Any]:
        """What the page of a session says of its shipping."""
        return self.read(lambda conn: shipping.read_session_shipping(conn, self.key(session_id)))

    def key(self, session_id: str) -> int:
        """The key of a session."""
        sql = "SELECT session_key FROM sessions WHERE session_id = ?"
        return int(self.read(lambda conn: conn.execute(sql, (session_id,)).fetchone()[0]))

    def claim(self, **options: Any) -> Batch | None:
        """Draft and claim one batch, as the shipper does."""
        options = {"lines_max": 500, "now": self.now, "timeout_ms": TIMEOUT_MS, **options}
        draft = self.read(lambda conn: outbox.draft_batch(conn, **options))
        if draft is None:
            return None
        batch_id = self.make_id()
        return self.write(lambda conn: outbox.claim(conn, draft, address=ADDRESS, batch_id=batch_id, now=self.now))

    def export(self) -> list[str]:
        """The lines of `export`."""
        return self.read(lambda conn: [*export_all(conn, self.now, TIMEOUT_MS)])


def documents(body: bytes) -> list[dict[str, Any]]:
    """The documents in a gzipped batch."""
    return [json.loads(line) for line in gzip.decompress(body).splitlines()]


def session_ids(body: bytes) -> list[str]:
    """Their sessions."""
    return [document["sessionId"] for document in documents(body)]


TAKEN = Answer(Verdict.TAKEN, "200 OK")


class ScriptedSink:
    """A destination that answers as `script` says, and remembers what it was sent."""

    def __init__(self, script: Callable[[Batch], Answer] | None = None, address: str = ADDRESS) -> None:
        self.address = address
        self.script = script or (lambda _: TAKEN)
        self.sent: list[Batch] = []

    async def send(self, batch: Batch, now: int) -> Answer:  # noqa: ARG002 - nothing is signed
        """Answer one attempt; what the script raises is raised."""
        self.sent.append(batch)
        return self.script(batch)

    async def close(self) -> None:
        """Nothing to give up."""


class Request(NamedTuple):
    """A request as it came in."""

    path: str
    headers: dict[str, str]
    body: bytes


class Reply(NamedTuple):
    """What to answer. `cut`: fewer bytes than promised, then the end."""

    status: int = 200
    body: bytes = b'{"success":true}'
    headers: Sequence[tuple[str, str]] = ()
    cut: bool = False
    delay_s: float = 0


class Upstream:
    """An HTTP server in a thread that answers from a list, then 200."""

    def __init__(self, *replies: Reply) -> None:
        self.replies = list(replies)
        self.requests: list[Request] = []
        upstream = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                upstream.requests.append(Request(self.path, {k.lower(): v for k, v in self.headers.items()}, body))
                reply = upstream.replies.pop(0) if upstream.replies else Reply()
                time.sleep(reply.delay_s)
                self.send_response_only(reply.status)
                self.send_header("Content-Length", str(len(reply.body) + (10 if reply.cut else 0)))
                for name, value in reply.headers:
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(reply.body)
                self.close_connection = True

            def log_message(self, *_: object) -> None:
                """Tests are quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/api/sessions"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))

    def __enter__(self) -> Upstream:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@contextmanager
def serve_receiver(
    house: House, *, tokens: Tokens = (("secret", None),), secrets: Sequence[str] = (), **options: Any
) -> Iterator[str]:
    """A real sidecar's receiving end on a real server; gives its URL."""

    endpoint = Receive(house.writer, tokens, secrets, lambda: house.now, **options)
    app = Starlette(routes=[Route("/api/sessions", endpoint, methods=["POST"])])
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off", loop="asyncio", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/api/sessions"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
