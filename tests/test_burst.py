"""Answers go out whole, in one write, and lose nothing on the way; on real sockets and a real uvicorn."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from http.client import HTTPConnection
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from sidecar import burst, protocol

BODY = b"It is what it is."
CHUNK = b"x" * 10_000
CHUNKS = [b"%06d" % number * 2000 for number in range(500)]  # 6 MB: more than sockets take ahead


async def _hello(_: Request) -> Response:
    return PlainTextResponse(BODY)


async def _echo(request: Request) -> Response:
    return PlainTextResponse(await request.body())


async def _chunks(_: Request) -> Response:
    async def chunks() -> AsyncIterator[bytes]:
        for chunk in CHUNKS:
            yield chunk

    return StreamingResponse(chunks())


APP = Starlette(
    routes=[Route("/", _hello), Route("/echo", _echo, methods=["POST"]), Route("/chunks", _chunks)],
)


@pytest.fixture(scope="module", params=["uvloop", "asyncio"])
def port(request: pytest.FixtureRequest) -> Iterator[int]:
    """The port of a server with that loop."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    config = uvicorn.Config(
        APP, http=protocol.make_protocol(), loop=request.param, log_level="error", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
    thread.start()
    yield sock.getsockname()[1]
    server.should_exit = True
    thread.join(20)
    assert not thread.is_alive()


def _connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=10)


def _read_all(conn: socket.socket) -> bytes:
    parts = []
    while part := conn.recv(1 << 20):
        parts.append(part)
    return b"".join(parts)


def test_head_and_body_come_together(port: int) -> None:
    """A reader that takes what is there has all of an answer, each time."""
    with closing(_connect(port)) as conn:
        for _ in range(100):
            conn.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = conn.recv(65536)
            assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
            assert answer.endswith(b"\r\n\r\n" + BODY)


def test_requests_sent_ahead_are_answered_in_order(port: int) -> None:
    """HTTP pipelining, the last of them closing the connection: nothing is lost by its end."""
    bodies = [f"<{number}>".encode() for number in range(20)]
    with closing(_connect(port)) as conn:
        for body in bodies:
            conn.sendall(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        conn.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        said = _read_all(conn)
    assert said.count(b"HTTP/1.1 200 OK\r\n") == len(bodies) + 1
    places = [said.index(body) for body in [*bodies, BODY]]
    assert places == sorted(places)


def test_an_answer_without_a_body(port: int) -> None:
    """HEAD writes a head and nothing after it."""
    with closing(_connect(port)) as conn:
        conn.sendall(b"HEAD / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        head, end, rest = _read_all(conn).partition(b"\r\n\r\n")
    assert (head[:15], bool(end), rest) == (b"HTTP/1.1 200 OK", True, b"")


def test_go_on_comes_before_the_body(port: int) -> None:
    """`100 Continue` is sent while the request still waits for its body."""
    with closing(_connect(port)) as conn:
        conn.sendall(b"POST /echo HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        assert conn.recv(65536).startswith(b"HTTP/1.1 100 ")
        conn.sendall(b"ok")
        assert conn.recv(65536).endswith(b"\r\n\r\nok")


def test_a_long_answer_is_whole(port: int) -> None:
    """Chunks that come without a pause, to a reader that is slower."""
    with closing(HTTPConnection("127.0.0.1", port, timeout=20)) as conn:
        conn.request("GET", "/chunks")
        threading.Event().wait(0.2)
        assert conn.getresponse().read() == b"".join(CHUNKS)


def test_a_client_that_says_no_more_is_answered(port: int) -> None:
    """A request and the end of what the client sends, in one: `nc -N`, some checks of health."""
    for _ in range(20):
        with closing(_connect(port)) as conn:
            conn.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            conn.shutdown(socket.SHUT_WR)
            assert _read_all(conn).endswith(BODY)


class _Noted:
    """A transport that notes what is done with it."""

    def __init__(self, *, fails: bool = False) -> None:
        self.sent: list[bytes] = []
        self.done: list[str] = []
        self._fails = fails

    def write(self, data: bytes) -> None:
        if self._fails:
            raise OSError("broken")
        self.sent.append(data)
        self.done.append("write")

    def is_closing(self) -> bool:
        return bool({"close", "abort"} & set(self.done))

    def __getattr__(self, name: str) -> Any:
        return lambda: self.done.append(name)


def _transports(*noted: Any) -> list[Any]:
    shared = burst.Burst(asyncio.get_running_loop())
    return [burst.Transport(one, shared) for one in noted]


def test_what_is_held_has_a_bound() -> None:
    """A coroutine that writes without ever giving way does not fill the memory."""

    async def write() -> tuple[list[bytes], list[bytes]]:
        noted = _Noted()
        (transport,) = _transports(noted)
        for _ in range(20):
            transport.write(CHUNK)
        meanwhile = list(noted.sent)
        await asyncio.sleep(0)
        return meanwhile, noted.sent

    meanwhile, sent = asyncio.run(write())
    assert [len(data) for data in meanwhile] == [70_000, 70_000]
    assert [len(data) for data in sent] == [70_000, 70_000, 60_000]


def test_one_that_fails_leaves_the_others(caplog: pytest.LogCaptureFixture) -> None:
    """What cannot be written to is given up and said; those beside it get their answers, then and later."""

    async def write() -> tuple[_Noted, _Noted]:
        broken, sound = _Noted(fails=True), _Noted()
        transports = _transports(broken, sound)
        for data in (b"one", b"two"):
            for transport in transports:
                transport.write(data)
            await asyncio.sleep(0)
        return broken, sound

    broken, sound = asyncio.run(write())
    assert broken.done == ["abort"]
    assert sound.sent == [b"one", b"two"]
    assert "an answer could not be sent" in caplog.text


def test_what_is_held_goes_before_the_end() -> None:
    """Closing, half closing and parts written together keep the order; what was sent is not sent again."""

    async def write(end: str) -> _Noted:
        noted = _Noted()
        (transport,) = _transports(noted)
        transport.write(b"one ")
        transport.writelines([b"two ", b"three"])
        getattr(transport, end)()
        await asyncio.sleep(0)
        return noted

    for end in ("close", "write_eof"):
        noted = asyncio.run(write(end))
        assert (noted.sent, noted.done) == ([b"one two three"], ["write", end])
