"""A scripted TCP proxy before an HTTP server: it delays, drops, cuts and answers as it is told, request by request.

It reads a request whole, passes it on (with `Connection: close`, so that each has a connection of its own), reads the
answer whole and passes that on; a `Fault` says what goes wrong in between. Threads and sockets, nothing else; what it
holds is bounded by the constants below.
"""

from __future__ import annotations

import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from contextlib import closing
from types import TracebackType
from typing import NamedTuple

HEAD_MAX = 64 * 1024
BODY_MAX = 64 * 1024 * 1024
REQUESTS_MAX = 5_000  # one test's
HOLD_MAX_S = 20.0  # what waits for a client waits so long at most
ENDLESS_MAX = 64 * 1024 * 1024
PIECE = 64 * 1024


class Fault(NamedTuple):
    """What goes wrong with one request. What is not said does not happen.

    `reset`: the connection is cut before anything is read. `hold`: the request is read and nobody answers, until the
    client leaves. `delay_s`: before it is passed on. `edit_body`: the body that is passed on instead, with its length.
    `length_off`: what is added to the Content-Length. `body_cut`: so many bytes of the body are passed on, then both
    sides are cut. `answer`: bytes to answer with, the request is not passed on. `edit_answer`: the answer that is
    passed on instead. `answer_cut`: so many bytes of the answer reach the client (from the end, where negative), then
    it is cut. `endless`: the answer is followed by zeros for ever. `bytes_a_second`: at which the answer trickles.
    `before` and `after` are called before the request is passed on, and when its answer is there.
    """

    reset: bool = False
    hold: bool = False
    delay_s: float = 0
    edit_body: Callable[[bytes], bytes] | None = None
    length_off: int = 0
    body_cut: int | None = None
    answer: bytes | None = None
    edit_answer: Callable[[bytes], bytes] | None = None
    answer_cut: int | None = None
    endless: bool = False
    bytes_a_second: int | None = None
    before: Callable[[], object] | None = None
    after: Callable[[], object] | None = None


PASS = Fault()


class Passed(NamedTuple):
    """A request as it came in. Header names are in lower case."""

    line: str
    headers: dict[str, str]
    body: bytes

    @property
    def key(self) -> str:
        """Its idempotency key."""
        return self.headers.get("idempotency-key", "")


def http_answer(status: int, body: bytes = b"", headers: str = "") -> bytes:
    """A whole answer. `headers` are lines that end in CRLF."""
    head = f"HTTP/1.1 {status} Said\r\nContent-Length: {len(body)}\r\nConnection: close\r\n{headers}\r\n"
    return head.encode() + body


class _CutError(Exception):
    """The connection to the client is to be cut."""


class Proxy:
    """Listens on a free port of 127.0.0.1 and passes on to `port` there.

    `faults` are of the next requests, in order; then `rule` is asked, where there is one. `tls` makes it speak TLS.
    """

    def __init__(self, port: int, *faults: Fault, tls: ssl.SSLContext | None = None) -> None:
        self.target = port
        self.faults = list(faults)
        self.rule: Callable[[Passed], Fault] | None = None
        self.requests: list[Passed] = []
        self.refused_handshakes = 0
        self._tls = tls
        self._threads: list[threading.Thread] = []
        self._end = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}/api/sessions"

    def __enter__(self) -> Proxy:
        self._start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def _start(self) -> None:
        self._end.clear()
        thread = threading.Thread(target=self._accept, args=(self._listener,))
        thread.start()
        self._threads = [thread]

    def close(self) -> None:
        """Listen no more: connections are refused."""
        if self._end.is_set():
            return
        self._end.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(HOLD_MAX_S + 5)
            assert not thread.is_alive(), "a connection did not end"

    def open(self) -> None:
        """Listen again, on the same port."""
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self._start()

    def _accept(self, listener: socket.socket) -> None:
        while not self._end.is_set():
            try:
                client, _ = listener.accept()
            except OSError:
                if self._end.is_set():
                    return
                raise
            assert len(self.requests) < REQUESTS_MAX, "too many requests for one test"
            client.settimeout(HOLD_MAX_S)
            thread = threading.Thread(target=self._serve, args=(client,))
            thread.start()
            self._threads = [one for one in self._threads if one.is_alive()] + [thread]

    def _serve(self, client: socket.socket) -> None:
        try:
            if self._tls is not None:
                client = self._tls.wrap_socket(client, server_side=True)
            with closing(client):
                self._answer(client)
        except ssl.SSLError:
            self.refused_handshakes += 1
            client.close()
        except OSError:
            client.close()  # the client left in between: as it may

    def _answer(self, client: socket.socket) -> None:
        if self.faults and self.faults[0].reset:
            self.faults.pop(0)
            _cut(client)
            return
        request = _read_request(client)
        if request is None:
            return
        self.requests.append(request)
        fault = self._choose(request)
        try:
            if fault.reset:
                raise _CutError
            if fault.hold:
                client.recv(1)  # until it leaves
                return
            if self._end.wait(fault.delay_s):
                raise _CutError
            if fault.before:
                fault.before()
            answer = fault.answer if fault.answer is not None else self._pass_on(request, fault)
            if fault.after:
                fault.after()
            if fault.edit_answer:
                answer = fault.edit_answer(answer)
            self._reply(client, answer, fault)
        except _CutError:
            _cut(client)

    def _choose(self, request: Passed) -> Fault:
        if self.faults:
            return self.faults.pop(0)
        return self.rule(request) if self.rule else PASS

    def _pass_on(self, request: Passed, fault: Fault) -> bytes:
        body = fault.edit_body(request.body) if fault.edit_body else request.body
        headers = request.headers | {"connection": "close", "content-length": str(len(body) + fault.length_off)}
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        try:
            with closing(socket.create_connection(("127.0.0.1", self.target), timeout=HOLD_MAX_S)) as server:
                server.sendall(f"{request.line}\r\n{head}\r\n".encode("latin-1") + body[: fault.body_cut])
                if fault.body_cut is not None:
                    _cut(server)
                    raise _CutError
                return _read_all(server)
        except OSError:
            raise _CutError from None  # the server is down, or was killed meanwhile

    def _reply(self, client: socket.socket, answer: bytes, fault: Fault) -> None:
        if not answer:
            raise _CutError
        if fault.answer_cut is not None:
            client.sendall(answer[: fault.answer_cut])
            raise _CutError
        if fault.bytes_a_second is None:
            client.sendall(answer)
        else:
            for byte in answer:
                client.sendall(bytes([byte]))
                if self._end.wait(1 / fault.bytes_a_second):
                    return
        if fault.endless:
            for _ in range(ENDLESS_MAX // PIECE):
                client.sendall(bytes(PIECE))
            raise AssertionError(f"{ENDLESS_MAX} bytes of one answer were read")


def _read_request(client: socket.socket) -> Passed | None:
    """One request; None where the client leaves before it is whole."""
    got = b""
    while b"\r\n\r\n" not in got:
        piece = client.recv(PIECE)
        if not piece:
            return None
        got += piece
        assert len(got) <= HEAD_MAX + BODY_MAX
    head, _, rest = got.partition(b"\r\n\r\n")
    assert len(head) <= HEAD_MAX
    line, *fields = head.decode("latin-1").split("\r\n")
    headers = {name.strip().lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
    body, length = bytearray(rest), int(headers.get("content-length", "0"))
    assert length <= BODY_MAX
    while len(body) < length:
        piece = client.recv(PIECE)
        if not piece:
            return None
        body += piece
    return Passed(line, headers, bytes(body))


def _read_all(server: socket.socket) -> bytes:
    got = bytearray()
    while piece := server.recv(PIECE):
        got += piece
        assert len(got) <= BODY_MAX
    return bytes(got)


def _cut(one: socket.socket) -> None:
    """Reset the connection: what is still on its way is lost."""
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    one.close()


def wait_until(happened: Callable[[], bool], what: str, most_s: float = 20) -> None:
    """Wait until something has happened, for so long at most."""
    deadline = time.monotonic() + most_s
    while not happened():
        assert time.monotonic() < deadline, f"did not happen: {what}"
        time.sleep(0.01)
