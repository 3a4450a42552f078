"""Answers go out whole, in one write, and lose nothing on the way; on real sockets and a real uvicorn."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from sidecar import burst

BODY = b"It is what it is."
CHUNK = b"x" * 10_000
CHUNKS = 500


async def _hello(_: Request) -> Response:
    return PlainTextResponse(BODY)


async def _echo(request: Request) -> Response:
    return PlainTextResponse(await request.body())


async def _chunks(_: Request) -> Response:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(CHUNKS):
            yield CHUNK

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
        APP, http=burst.make_protocol(), loop=request.param, log_level="error", timeout_graceful_shutdown=1
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
        conn.sendall(b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert conn.recv(65536).endswith(b"\r\n\r\n")


def test_go_on_comes_before_the_body(port: int) -> None:
    """`100 Continue` is sent while the request still waits for its body."""
    with closing(_connect(port)) as conn:
        conn.sendall(b"POST /echo HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        assert conn.recv(65536).startswith(b"HTTP/1.1 100 ")
        conn.sendall(b"ok")
        assert conn.recv(65536).endswith(b"\r\n\r\nok")


def test_a_long_answer_is_whole(port: int) -> None:
    """Chunks that come without a pause, to a reader that is slower."""
    with closing(_connect(port)) as conn:
        conn.sendall(b"GET /chunks HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        threading.Event().wait(0.2)
        assert _read_all(conn).count(b"x") == CHUNKS * len(CHUNK)


def test_readers_that_leave_disturb_nobody(port: int) -> None:
    """They ask and go, some with a reset; the next is answered."""
    for number in range(30):
        conn = _connect(port)
        if number % 2:
            conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        conn.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        conn.close()
    with closing(_connect(port)) as conn:
        conn.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert conn.recv(65536).endswith(BODY)


class _Sent:
    """A transport that notes what is sent."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.sent.append(data)

    def is_closing(self) -> bool:
        return False


def test_what_is_held_has_a_bound() -> None:
    """A coroutine that writes without ever giving way does not fill the memory."""

    async def write() -> tuple[list[bytes], list[bytes]]:
        sent: Any = _Sent()
        transport = burst._Transport(sent, burst._Burst(asyncio.get_running_loop()))
        for _ in range(20):
            transport.write(CHUNK)
        meanwhile = list(sent.sent)
        await asyncio.sleep(0)
        return meanwhile, sent.sent

    meanwhile, sent = asyncio.run(write())
    assert [len(data) for data in meanwhile] == [70_000, 70_000]
    assert [len(data) for data in sent] == [70_000, 70_000, 60_000]
