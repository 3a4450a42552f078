"""uvicorn's HTTP protocol, with a short way for beacons: from the parsed request to the store without ASGI between.

A beacon that comes as browsers send it (POST to a track route, no query, nothing before it unanswered) is taken where
its last byte is parsed, and its answer is written where its group is committed: no task, no scope, no coroutine, no
messages. Everything else, and all of it on h11, takes uvicorn's own way to the same `Collect`.
"""

from __future__ import annotations

import asyncio
from functools import lru_cache, partial
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol
from uvicorn.protocols.http.h11_impl import H11Protocol

from sidecar.burst import Burst, Transport
from sidecar.web.collect import BODY_MAX, ONE_ACCEPTED, PARSERS, TOO_LONG, Answer, Collect, Headers, Parse, Request

ORIGINS_MAX = 256  # of which the usual answer is kept ready
ORIGIN_LENGTH_MAX = 256  # of those; a host's name is at most 253 characters
HALF_CLOSED_MAX = 100  # connections whose client says no more and waits for its answer

_TRACKS: dict[bytes, Parse] = {path.encode(): parse for path, parse in PARSERS.items()}
_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}


class _Nobody:
    """Stands for the event that uvicorn sets for whoever waits for a request's body."""

    def set(self) -> None:
        """As of an asyncio.Event."""


class _Beacon:
    """A request on the short way. uvicorn's protocol takes it for its `cycle`."""

    __slots__ = ("body", "disconnected", "is_whole", "keep_alive", "parse", "request", "response_complete")
    message_event = _Nobody()

    def __init__(self, parse: Parse, request: Request, *, keep_alive: bool) -> None:
        self.parse = parse
        self.request = request
        self.keep_alive = keep_alive
        self.body = bytearray()
        self.is_whole = False
        self.response_complete = False
        self.disconnected = False


def _lines(headers: Headers) -> bytes:
    return b"".join([b"%b: %b\r\n" % header for header in headers])


class _Answers:
    """Answers as bytes: the usual one is kept for each origin, and what all begin with until the second is over."""

    def __init__(self, collect: Collect) -> None:
        self._collect = collect
        self._default: Headers | None = None
        self._default_lines = b""
        self._begin_usual = b""
        self._end_usual = lru_cache(maxsize=ORIGINS_MAX)(lambda origin: self._end(ONE_ACCEPTED, origin))

    def write(self, answer: Answer, origin: bytes | None, default: Headers, *, keep_alive: bool) -> bytes:
        """The answer to a beacon from that origin. `default`: what uvicorn puts into every answer."""
        if default is not self._default:
            self._default = default
            self._default_lines = _lines(default)
            self._begin_usual = _STATUS_LINES[200] + self._default_lines
        if answer is ONE_ACCEPTED and keep_alive and (origin is None or len(origin) <= ORIGIN_LENGTH_MAX):
            return self._begin_usual + self._end_usual(origin)
        close = b"" if keep_alive else b"connection: close\r\n"
        return _STATUS_LINES[answer.status] + self._default_lines + close + self._end(answer, origin)

    def _end(self, answer: Answer, origin: bytes | None) -> bytes:
        return _lines(self._collect.write_headers(answer, origin)) + b"\r\n" + answer.body


def make_protocol(collect: Collect | None = None) -> type[asyncio.Protocol]:
    """The protocol of one event loop; without `collect` there is no short way."""
    bursts: list[Burst] = []

    class Bursting(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
        def connection_made(self, transport: asyncio.Transport) -> None:
            if not bursts:
                bursts.append(Burst(self.loop))
            super().connection_made(Transport(transport, bursts[0]))

        def eof_received(self) -> bool | None:
            self.transport.flush()  # the loop closes the connection now: before, the answer was on its way already
            super().eof_received()
            return None

    if collect is None or issubclass(AutoHTTPProtocol, H11Protocol):
        return Bursting
    return _shorten(Bursting, collect)


def _shorten(base: Any, collect: Collect) -> type[asyncio.Protocol]:
    answers = _Answers(collect)
    half_closed: set[Any] = set()

    class Protocol(base):  # type: ignore[misc]
        cycle: Any
        headers: Headers
        _in_head = False
        _beacon: _Beacon | None = None  # None: the request that comes in takes uvicorn's way
        _resting_since: float | None = None

        def on_message_begin(self) -> None:
            self.url = b""
            self.headers = []
            self._in_head = True
            self._beacon = None
            self._resting_since = None  # what came with it in one piece may have been answered already

        def on_header(self, name: bytes, value: bytes) -> None:
            if self._in_head:  # what comes after the body is no header: no proxy has looked at it
                self.headers.append((name.lower(), value))

        def on_headers_complete(self) -> None:
            self._in_head = False
            parse = _TRACKS.get(self.url)
            if parse is not None and self._is_plain():
                by_name = dict(self.headers)
                if b"expect" not in by_name:
                    self._begin_beacon(parse, Request(by_name, self.headers, b"", self.client and self.client[0]))
                    return
            url, headers = self.url, self.headers
            super().on_message_begin()
            self.url = url
            for name, value in headers:
                super().on_header(name, value)
            super().on_headers_complete()

        def _begin_beacon(self, parse: Parse, request: Request) -> None:
            self._beacon = self.cycle = _Beacon(parse, request, keep_alive=self.parser.should_keep_alive())
            refused = collect.refuse(request)
            if refused is not None:
                self._settle(self._beacon, refused)

        def _is_plain(self) -> bool:
            """Whether a request wants nothing of HTTP that only uvicorn knows how to do."""
            before, parser = self.cycle, self.parser
            return (
                (before is None or before.response_complete)
                and not self.flow.write_paused
                and parser.get_method() == b"POST"
                and parser.get_http_version() == "1.1"
                and not parser.should_upgrade()
            )

        def on_body(self, body: bytes) -> None:
            beacon = self._beacon
            if beacon is None:
                super().on_body(body)
            elif not beacon.response_complete:
                beacon.body += body
                if len(beacon.body) > BODY_MAX:
                    beacon.body.clear()
                    self._settle(beacon, TOO_LONG)

        def on_message_complete(self) -> None:
            beacon = self._beacon
            if beacon is None:
                super().on_message_complete()
            elif not beacon.response_complete:
                beacon.is_whole = True
                body = bytes(beacon.body)
                beacon.body.clear()
                collect.take(beacon.parse, beacon.request, body, partial(self._settle, beacon))

        def _settle(self, beacon: _Beacon, answer: Answer) -> None:
            if beacon.response_complete:
                return
            beacon.response_complete = True
            collect.beacons[answer.status] += 1
            if beacon.disconnected:
                return
            try:
                origin = beacon.request.headers.get(b"origin")
                default = self.server_state.default_headers
                self.transport.write(answers.write(answer, origin, default, keep_alive=beacon.keep_alive))
                if not beacon.keep_alive:
                    self.transport.close()
                self.on_response_complete()
            except Exception:
                self.transport.abort()  # better no answer than a client that waits for it
                raise

        def eof_received(self) -> bool | None:
            super().eof_received()
            beacon = self._beacon
            if beacon is None or not beacon.is_whole or beacon.response_complete:
                return None
            if len(half_closed) >= HALF_CLOSED_MAX:
                return None
            half_closed.add(self)
            beacon.keep_alive = False
            return True  # the connection stays until the answer is written

        def on_response_complete(self) -> None:
            self.server_state.total_requests += 1
            if self.transport.is_closing():
                return
            self.flow.resume_reading()
            if self.pipeline:
                self._start_asgi_task(*self.pipeline.pop())
                return
            self._resting_since = self.loop.time()
            if self.timeout_keep_alive_task is None:
                self._set_timer(self.timeout_keep_alive)

        # uvicorn sets a timer after each answer and cancels it with the next request: 2 us. This one stays, and looks
        # when it rings for how long nothing has come.
        def _set_timer(self, delay_s: float) -> None:
            self.timeout_keep_alive_task = self.loop.call_later(delay_s, self._look)

        def _look(self) -> None:
            self.timeout_keep_alive_task = None
            if self._resting_since is not None:
                left_s = self._resting_since + self.timeout_keep_alive - self.loop.time()
                if left_s > 0:
                    self._set_timer(left_s)
                else:
                    self.timeout_keep_alive_handler()

        def _unset_keepalive_if_required(self) -> None:
            self._resting_since = None

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            half_closed.discard(self)
            if self.timeout_keep_alive_task is not None:
                self.timeout_keep_alive_task.cancel()
                self.timeout_keep_alive_task = None

    return Protocol
