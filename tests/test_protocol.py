"""The short way of beacons answers as uvicorn's own way does, and keeps to HTTP as that does; on real sockets."""

from __future__ import annotations

import json
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from sidecar import protocol
from sidecar.app import build
from sidecar.canonical import now_ms
from sidecar.config import Settings
from sidecar.store.database import open_read_only
from sidecar.web.collect import ONE_ACCEPTED, Collect, Request

TRACK = "/api/track/web-vitals"
KEEP_ALIVE_S = 1


class Served(NamedTuple):
    """A server in a thread; `calls` counts the requests that came by ASGI, by path."""

    port: int
    app: Collect
    database: Path
    calls: Counter[str]
    stop: Callable[[], None]


@contextmanager
def serving(database: Path, *, short: bool = True, loop: str = "uvloop", **settings: Any) -> Iterator[Served]:
    """The sidecar with the short way, or without."""
    app = build(Settings(database=database, **settings))
    calls: Counter[str] = Counter()

    async def counted(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            calls[scope["path"]] += 1
        await app(scope, receive, send)

    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    config = uvicorn.Config(
        counted,
        http=protocol.make_protocol(app if short else None),
        loop=loop,
        log_level="error",
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=10,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})

    def stop() -> None:
        server.should_exit = True

    thread.start()
    deadline = time.monotonic() + 20
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.01)
    try:
        yield Served(sock.getsockname()[1], app, database, calls, stop)
    finally:
        stop()
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture(scope="module", params=["uvloop", "asyncio"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with the short way, on each event loop."""
    with serving(tmp_path_factory.mktemp("protocol") / "p.db", loop=request.param) as running:
        yield running


def vital(session: str, fact: str = "v1", **changes: Any) -> dict[str, Any]:
    """An item."""
    item = {"sessionId": session, "metric": "LCP", "value": 1200, "id": fact, "timestamp": now_ms()}
    return item | {"pageUrl": "https://shop.example/"} | changes


AGENT = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/141.0.0.0 Safari/537.36"


def head(*lines: str, path: str = TRACK) -> bytes:
    """The head of a request with these lines, its empty line included."""
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: x", f"User-Agent: {AGENT}", *lines, "", ""]).encode()


def post(body: object, *lines: str, path: str = TRACK) -> bytes:
    """A request with these header lines."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return head(*lines, f"Content-Length: {len(data)}", path=path) + data


def connect(served: Served) -> socket.socket:
    """A connection."""
    return socket.create_connection(("127.0.0.1", served.port), timeout=10)


class Answers:
    """Reads answers off a connection, one by one."""

    def __init__(self, conn: socket.socket) -> None:
        self.conn = conn
        self.held = b""

    def more(self) -> bytes:
        """What comes next; empty at the end."""
        return self.conn.recv(65536)

    def next(self) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the next answer."""
        while b"\r\n\r\n" not in self.held:
            part = self.more()
            assert part, f"the connection ended after {self.held!r}"
            self.held += part
        head, _, rest = self.held.partition(b"\r\n\r\n")
        status, *lines = head.decode("latin-1").split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        assert len(headers) == len(lines), "a header came twice"
        length = int(headers.get("content-length", 0))
        while len(rest) < length:
            rest += self.more()
        self.held = rest[length:]
        match = re.fullmatch(r"HTTP/1\.1 (\d{3}) [A-Z][A-Za-z -]+", status)
        assert match, status
        return int(match[1]), headers, rest[:length]


def ask(served: Served, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """The answer to one request on a connection of its own."""
    with closing(connect(served)) as conn:
        conn.sendall(request)
        return Answers(conn).next()


def stored(served: Served, session: str) -> int:
    """How many vitals of a session the file holds."""
    with closing(open_read_only(served.database)) as conn:
        asked = "SELECT count(*) FROM web_vitals JOIN sessions USING (session_key) WHERE session_id = ?"
        count: int = conn.execute(asked, (session,)).fetchone()[0]
        return count


ORIGIN = "Origin: https://shop.example"
REQUESTS: dict[str, bytes] = {
    "one": post(vital("one"), ORIGIN),
    "again": post(vital("one", timestamp=5), ORIGIN),
    "no origin": post(vital("two")),
    "another origin": post(vital("two", "v2"), "Origin: https://evil.example"),
    "closing": post(vital("two", "v3"), ORIGIN, "Connection: close"),
    "several": post([vital("three"), vital("three", "v2"), vital("three", "v3", value="x")], ORIGIN),
    "wrong": post(vital("four", value=-1), ORIGIN),
    "not JSON": post(b"{", ORIGIN),
    "empty": post(b"", ORIGIN),
    "too long": post(b" " * 65537, ORIGIN),
    "large headers": post(vital("five"), ORIGIN, f"X-Large: {'x' * 60000}", f"X-Larger: {'x' * 6000}"),
    "do not track": post(vital("five"), ORIGIN, "DNT: 1"),
    "without a session": post(
        {"name": "LCP", "value": 5, "id": "v6-1", "rating": "good", "navigationURL": "https://shop.example/x"}, ORIGIN
    ),
    "forwarded": post(vital("six"), "X-Forwarded-For: 192.0.2.7", ORIGIN),
    "events": post({"eventName": "x", "timestamp": 5, "context": {"session": {"sessionId": "seven"}}}, ORIGIN),
    "an unknown funnel": post(vital("eight", funnelId="unknown"), "X-API-Key: k", ORIGIN),
}


def test_both_ways_answer_alike(tmp_path: Path) -> None:
    """Status, headers and body, whatever the settings and the request; and what is stored."""
    choices: list[dict[str, Any]] = [
        {},
        {"allowed_origins": ["https://shop.example"], "rate_limit": 1},
        {"funnels": [{"id": "default", "apiKey": "k"}]},
    ]
    for number, settings in enumerate(choices):
        with ExitStack() as stack:
            ways = [
                stack.enter_context(serving(tmp_path / f"{number}-{short}.db", short=short, **settings))
                for short in (True, False)
            ]
            for name, request in REQUESTS.items():
                told = [ask(way, request) for way in ways]
                for _, headers, _ in told:
                    headers.pop("date")
                assert told[0] == told[1], name
            assert not ways[0].calls
            assert ways[1].calls[TRACK] == len(REQUESTS)
            assert ways[0].app.beacons == ways[1].app.beacons
            assert ways[0].app.items == ways[1].app.items
            for session in ("one", "two", "three", "four", "five", "six", "seven", "eight"):
                assert stored(ways[0], session) == stored(ways[1], session)


def test_what_is_known_before_the_body_is_said_before_it(tmp_path: Path) -> None:
    """Nobody waits for a body that will not be taken, on both ways; the reason is the first one of several."""
    long = "Content-Length: 100000"
    large = [f"X-{number}: {'x' * 6000}" for number in range(11)]
    evil = "Origin: https://evil.example"
    requests = {
        head(long) + b"x" * 10: 413,
        head(evil, "Content-Length: 10") + b"x": 403,
        head(evil, long) + b"x" * 10: 403,
        head(*large, evil, long) + b"x" * 10: 431,
    }
    for short in (True, False):
        with serving(tmp_path / f"{short}.db", short=short, allowed_origins=["https://shop.example"]) as served:
            assert [ask(served, request)[0] for request in requests] == list(requests.values())


def test_what_comes_after_the_body_is_no_header(tmp_path: Path) -> None:
    """A proxy writes who it had the request from into the head; a trailer does not change that, on both ways."""
    data = json.dumps(vital("trailer")).encode()
    settings: dict[str, Any] = {"trusted_proxies": ["127.0.0.1"], "rate_limit": 1}
    for query in ("", "?long"):
        with serving(tmp_path / f"{len(query)}.db", **settings) as served:
            statuses = Counter(
                ask(
                    served,
                    head("X-Forwarded-For: 192.0.2.1", "Transfer-Encoding: chunked", path=TRACK + query)
                    + b"%x\r\n%b\r\n0\r\nX-Forwarded-For: 198.51.100.%d\r\n\r\n" % (len(data), data, number),
                )[0]
                for number in range(150)
            )
            assert set(statuses) == {200, 429}
            assert statuses[200] < 120


@pytest.mark.parametrize(
    "request_",
    [
        post(vital("q"), path=f"{TRACK}?apiKey=k"),
        post(vital("q"), "Expect: 100-continue"),
        post(vital("q")).replace(b"HTTP/1.1", b"HTTP/1.0"),
        post(vital("q")).replace(b"POST", b"OPTIONS"),
        post(vital("q")).replace(b"POST", b"GET"),
        post(vital("q"), "Connection: Upgrade", "Upgrade: something"),
    ],
    ids=["query", "expect", "HTTP 1.0", "preflight", "GET", "upgrade"],
)
def test_what_is_not_plain_takes_the_long_way(served: Served, request_: bytes) -> None:
    """It is answered all the same."""
    before = served.calls[TRACK]
    status, headers, body = ask(served, request_)
    if status == 100:
        assert (headers, body) == ({}, b"")
    else:
        assert status in (200, 204, 400, 405)  # 400: what asks for another protocol has no body
    assert served.calls[TRACK] == before + 1


def test_a_beacon_may_come_in_pieces(served: Served) -> None:
    """Byte by byte, and as chunks; on the short way."""
    before = served.calls[TRACK]
    whole = post(vital("pieces", "v1"))
    data = json.dumps(vital("pieces", "v2")).encode()
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in data) + b"0\r\n\r\n"
    with closing(connect(served)) as conn:
        conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        answers = Answers(conn)
        for byte in whole:
            conn.sendall(bytes([byte]))
        assert answers.next()[0] == 200
        conn.sendall(head("Transfer-Encoding: chunked") + chunks)
        assert answers.next()[0] == 200
    assert stored(served, "pieces") == 2
    assert served.calls[TRACK] == before


def test_requests_sent_ahead_are_answered_in_order(served: Served) -> None:
    """Beacons, pages and a wrong one among them, all at once; the last closes the connection."""
    requests: list[tuple[bytes, int]] = []
    for number in range(10):
        requests.append((post(vital("ahead", f"v{number}")), 200))
        requests.append((b"GET /sidecar.js HTTP/1.1\r\nHost: x\r\n\r\n", 200))
        requests.append((post(vital("ahead", value=-number - 1)), 422))
    requests.append((post(vital("ahead", "last"), "Connection: close"), 200))
    with closing(connect(served)) as conn:
        conn.sendall(b"".join(request for request, _ in requests))
        answers = Answers(conn)
        told = [answers.next() for _ in requests]
        assert answers.more() == b""
    assert [status for status, _, _ in told] == [status for _, status in requests]
    kinds = ["accepted" if b"accepted" in body else "error" if b"error" in body else "script" for _, _, body in told]
    assert kinds == [*["accepted", "script", "error"] * 10, "accepted"]
    assert stored(served, "ahead") == 11


def test_after_a_long_body_the_connection_goes_on(served: Served) -> None:
    """413 as soon as it is too long; the rest of it is passed over and the next request is answered."""
    with closing(connect(served)) as conn:
        answers = Answers(conn)
        conn.sendall(head("Content-Length: 1000000") + b" " * 66_000)
        assert answers.next()[0] == 413
        conn.sendall(b" " * 934_000 + post(vital("long")))
        assert answers.next()[0] == 200
        conn.sendall(head("Transfer-Encoding: chunked") + b"3e8\r\n%b\r\n" % (b" " * 1000) * 66)
        assert answers.next()[0] == 413
        conn.sendall(b"3e8\r\n%b\r\n" % (b" " * 1000) * 100 + b"0\r\n\r\n" + post(vital("long", "v2")))
        assert answers.next()[0] == 200


def test_a_client_that_says_no_more_is_answered(served: Served) -> None:
    """A beacon and the end of what the client sends, in one: `nc -N`. Without its end it is given up."""
    for number in range(20):
        with closing(connect(served)) as conn:
            conn.sendall(post(vital("half", f"v{number}")))
            conn.shutdown(socket.SHUT_WR)
            assert Answers(conn).next()[0] == 200
            assert conn.recv(100) == b""
    with closing(connect(served)) as conn:
        conn.sendall(post(vital("half", "never"))[:-1])
        conn.shutdown(socket.SHUT_WR)
        assert conn.recv(100) == b""
    assert stored(served, "half") == 20


def test_who_leaves_before_the_answer_is_stored(served: Served) -> None:
    """`sendBeacon` of a page that closes; here even with a reset."""
    for number in range(20):
        conn = connect(served)
        conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        conn.sendall(post(vital("gone", f"v{number}")))
        if number % 2:
            time.sleep(0.005)
        conn.close()
    deadline = time.monotonic() + 10
    while stored(served, "gone") < 20 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert stored(served, "gone") >= 10  # a reset may overtake what was sent before it
    assert ask(served, post(vital("after")))[0] == 200


def test_a_connection_that_rests_is_closed(served: Served) -> None:
    """Not before its time, also where requests came meanwhile."""
    with closing(connect(served)) as conn:
        answers = Answers(conn)
        for number in range(4):
            conn.sendall(post(vital("rest", f"v{number}")))
            assert answers.next()[0] == 200
            time.sleep(0.6 * KEEP_ALIVE_S)
        conn.sendall(b"GET /sidecar.js HTTP/1.1\r\nHost: x\r\n\r\n")
        assert answers.next()[0] == 200
        began = time.monotonic()
        assert answers.more() == b""
        assert 0.8 * KEEP_ALIVE_S < time.monotonic() - began < 5 * KEEP_ALIVE_S


def test_an_error_of_ours_is_that_of_one_beacon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """500 with a reason, on both ways; those beside it, and after it on the same connection, are stored."""
    for short in (True, False):
        with serving(tmp_path / f"{short}.db", short=short) as served:
            record = served.app._limit.record

            def broken(conn: Any, recordings: Any, record: Any = record) -> Any:
                if any(fact.session_id == "bad" for recording in recordings for _, fact in recording.facts):
                    raise ZeroDivisionError("a bug")
                return record(conn, recordings)

            monkeypatch.setattr(served.app._limit, "record", broken)
            with ExitStack() as stack:
                conns = [stack.enter_context(closing(connect(served))) for _ in range(3)]
                for conn, session in zip(conns, ("good", "bad", "fine"), strict=True):
                    conn.sendall(post(vital(session)))
                told = [Answers(conn).next() for conn in conns]
                conns[1].sendall(post(vital("later")))
                assert Answers(conns[1]).next()[0] == 200
            assert [status for status, _, _ in told] == [200, 500, 200]
            assert json.loads(told[1][2]) == {"error": "the sidecar met an error of its own; its log says which"}
            assert [stored(served, session) for session in ("good", "bad", "fine", "later")] == [1, 0, 1, 1]


def test_a_beacon_under_way_is_answered_before_the_end(tmp_path: Path) -> None:
    """The server is told to stop while the writer is held: the answer comes, and says that nothing follows."""
    with serving(tmp_path / "end.db") as served, closing(connect(served)) as conn:
        with held(served):
            conn.sendall(post(vital("end")))
            deadline = time.monotonic() + 10
            while not served.app._writer.waiting_count and time.monotonic() < deadline:
                time.sleep(0.01)
            served.stop()
            time.sleep(0.5)  # uvicorn looks ten times a second
        status, headers, _ = Answers(conn).next()
    assert (status, headers["connection"]) == (200, "close")
    assert stored(served, "end") == 1


@contextmanager
def held(served: Served) -> Iterator[None]:
    """The writer does nothing meanwhile."""
    reached, opened = threading.Event(), threading.Event()

    def hold(_: Any) -> None:
        reached.set()
        assert opened.wait(30)

    done = served.app._writer.maintain(hold)
    assert reached.wait(10)
    try:
        yield
    finally:
        opened.set()
        done.result(10)


def test_a_request_under_way_is_no_rest(served: Served) -> None:
    """Also where one that came in the same piece was answered at once: the connection stays for the other's answer."""
    with closing(connect(served)) as conn:
        answers = Answers(conn)
        with held(served):
            conn.sendall(post(b"{") + post(vital("no rest")))
            assert answers.next()[0] == 400
            time.sleep(2.5 * KEEP_ALIVE_S)
        assert answers.next()[0] == 200


def test_few_connections_are_kept_for_who_says_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages that close leave no crowd of open files behind a busy writer; what they said is stored."""
    monkeypatch.setattr(protocol, "HALF_CLOSED_MAX", 2)
    with serving(tmp_path / "few.db") as served, ExitStack() as stack:
        conns = [stack.enter_context(closing(connect(served))) for _ in range(5)]
        with held(served):
            for number, conn in enumerate(conns):
                conn.sendall(post(vital("few", f"v{number}")))
                deadline = time.monotonic() + 10
                while served.app._writer.waiting_count <= number and time.monotonic() < deadline:
                    time.sleep(0.01)
                conn.shutdown(socket.SHUT_WR)
                time.sleep(0.05)
        ends = [conn.recv(65536)[:12] for conn in conns]
        assert ends == [b"HTTP/1.1 200", b"HTTP/1.1 200", b"", b"", b""]
        assert stored(served, "few") == 5
        assert ask(served, post(vital("few", "v6")))[0] == 200
        again = stack.enter_context(closing(connect(served)))
        again.sendall(post(vital("few", "v7")))
        again.shutdown(socket.SHUT_WR)
        assert again.recv(65536)[:12] == b"HTTP/1.1 200"


def test_who_cannot_be_answered_is_not_kept_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug of ours in writing an answer ends the connection."""
    with serving(tmp_path / "abort.db") as served, closing(connect(served)) as conn:
        monkeypatch.setattr(served.app, "write_headers", lambda *_: 1 / 0)
        conn.sendall(post(vital("abort")))
        with suppress(ConnectionResetError):  # an end, too
            assert conn.recv(100) == b""
        assert stored(served, "abort") == 1


def test_only_origins_of_a_site_are_kept(tmp_path: Path) -> None:
    """The usual answer is kept for each: of those that browsers send, not for 64 KiB of anything."""
    with serving(tmp_path / "kept.db") as served:
        answers = protocol._Answers(served.app)
        for length, kept in ((256, 1), (257, 1), (60_000, 1)):
            answer = answers.write(ONE_ACCEPTED, b"https://" + b"x" * (length - 8), [], keep_alive=True)
            assert answer.endswith(b"\r\n\r\n" + ONE_ACCEPTED.body)
            assert answer.count(b"x") >= length - 8
            assert answers._end_usual.cache_info().currsize == kept


def test_a_body_in_crumbs_is_one_piece() -> None:
    """Not one object a crumb: those are thirty times as large."""
    made: Any = protocol._shorten(object, None)  # type: ignore[arg-type]
    one = made()
    one._beacon = protocol._Beacon(lambda *_: ([], []), Request({}, [], b"", None), keep_alive=True)
    for _ in range(1000):
        one.on_body(b"xy")
    assert one._beacon.body == bytearray(b"xy" * 1000)


def test_who_does_not_read_takes_the_long_way() -> None:
    """There the next answer waits until the one before has gone: answers that nobody reads do not fill the memory."""

    class Flow:
        write_paused = True

    class Parser:
        def get_method(self) -> bytes:
            return b"POST"

        def get_http_version(self) -> str:
            return "1.1"

        def should_upgrade(self) -> bool:
            return False

    made: Any = protocol._shorten(object, None)  # type: ignore[arg-type]
    one = made()
    one.cycle, one.flow, one.parser = None, Flow(), Parser()
    assert not one._is_plain()
    one.flow.write_paused = False
    assert one._is_plain()
