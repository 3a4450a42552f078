"""A small site with the tracker on it, and a sidecar that answers what a test tells it to."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

T = TypeVar("T")

PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<link rel="icon" href="data:,">
<script defer src="{script}" {attributes}></script>{head}</head><body style="font: 20px sans-serif">
<h1>{title}</h1><p>A paragraph of text that is large enough to be painted.</p>
<button id="slow" onclick="const end = performance.now() + 120; while (performance.now() < end);
  this.textContent = 'clicked'">slow</button>
<button id="soft" onclick="history.pushState({{}}, '', '/soft/' + history.length); document.title = 'soft';
  document.querySelector('p').textContent = 'Another paragraph, painted after a single-page navigation.'">soft</button>
{body}</body></html>"""


@dataclass(frozen=True)
class Beacon:
    """One request as it came in; `at` is monotonic seconds."""

    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: Any
    status: int
    at: float

    @property
    def items(self) -> list[dict[str, Any]]:
        if self.path == "delete":
            return [self.body]
        return list(self.body["events"]) if self.path == "events" else list(self.body)


@dataclass
class Site:
    """What the server shows, what it answers, and what it got."""

    bundle: bytes
    port: int = 0
    attributes: str = ""
    head: str = ""
    body: str = ""
    # Answers in turn, the last for good: (status, body, headers); status 0 breaks the connection.
    answers: list[tuple[int, dict[str, Any], dict[str, str]]] = field(default_factory=list)
    delay_s: float = 0.0
    beacons: list[Beacon] = field(default_factory=list)
    pages: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def answer(self, status: int, body: dict[str, Any] | None = None, **headers: str) -> None:
        """From now on, for every beacon."""
        with self.lock:
            self.answers = [(status, body or {}, {name.replace("_", "-"): text for name, text in headers.items()})]

    def take_answer(self) -> tuple[int, dict[str, Any], dict[str, str]]:
        with self.lock:
            if not self.answers:
                return 200, {"success": True, "accepted": 1, "duplicate": 0, "superseded": 0, "rejected": []}, {}
            return self.answers[0] if len(self.answers) == 1 else self.answers.pop(0)

    def got(self, path: str, *, stored: bool = True) -> list[dict[str, Any]]:
        """All items of that kind in order of arrival; `stored`: only of beacons that got a 2xx."""
        with self.lock:
            beacons = [each for each in self.beacons if each.path == path and (each.status // 100 == 2 or not stored)]
        return [item for beacon in beacons for item in beacon.items]

    def events(self, name: str | None = None, *, stored: bool = True) -> list[dict[str, Any]]:
        """Events, repeats left out as a sidecar does."""
        unique = {item["eventId"]: item for item in self.got("events", stored=stored)}
        return [item for item in unique.values() if name in (None, item["eventName"])]

    def vitals(self, *, stored: bool = True) -> dict[tuple[str, str], dict[str, Any]]:
        """The newest report of each metric instance, as a sidecar keeps it."""
        newest: dict[tuple[str, str], dict[str, Any]] = {}
        for item in self.got("web-vitals", stored=stored):
            name = (item["metric"], item["id"])
            held = newest.get(name)
            if held is None or (item["timestamp"], item["seq"]) >= (held["timestamp"], held["seq"]):
                newest[name] = item
        return newest

    def page_html(self, path: str) -> str:
        title = path.strip("/").replace("/", " ") or "home"
        script = "/sidecar.js"
        return PAGE.format(title=title, script=script, attributes=self.attributes, head=self.head, body=self.body)


def until(look: Callable[[], T], timeout_s: float = 8.0, pause: Callable[[float], None] = time.sleep) -> T:
    """What `look` returns once it is true; AssertionError when it is not in time."""
    end = time.monotonic() + timeout_s
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < end, f"not within {timeout_s} s"
        pause(0.03)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: Site

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the standard library's name
        """Quiet."""

    def _send(self, status: int, content: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        origin = self.headers.get("Origin")
        if origin:
            self.send_header("Access-Control-Allow-Origin", origin)
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path.endswith("/sidecar.js"):
            self._send(200, self.site.bundle, "text/javascript; charset=utf-8")
        else:
            self.site.pages.append(path)
            self._send(200, self.site.page_html(path).encode(), "text/html; charset=utf-8")

    def do_POST(self) -> None:
        address = urlsplit(self.path)
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        status, body, headers = self.site.take_answer()
        beacon = Beacon(
            path=address.path.partition("/api/track/")[2],
            query=parse_qs(address.query),
            headers={name.lower(): text for name, text in self.headers.items()},
            body=json.loads(raw),
            status=status,
            at=time.monotonic(),
        )
        with self.site.lock:
            self.site.beacons.append(beacon)
        if self.site.delay_s:
            time.sleep(self.site.delay_s)
        if status == 0:
            self.close_connection = True
            self.connection.close()
            return
        self._send(status, json.dumps(body).encode(), "application/json", headers)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that hangs up is no error here."""


@contextmanager
def serve(bundle: bytes) -> Iterator[Site]:
    """The site on a port of its own at 127.0.0.1."""
    site = Site(bundle)
    handler = type("Handler", (_Handler,), {"site": site})
    server = _Server(("127.0.0.1", 0), handler)
    site.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
