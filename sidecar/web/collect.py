"""Beacons come in here: the track routes, answered only after COMMIT.

An ASGI class in front of Starlette, not a route of it: with 64 connections a `Route` costs a quarter of the beacons a
second that a process can take (tests/benchmarks/ingest.py).
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import parse_qs

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sidecar.errors import MalformedBeaconError, RejectedBeaconError, UnavailableError
from sidecar.ingest.enrich import DEFAULT_FUNNEL, Rules, Source, enrich
from sidecar.ingest.wire import Item, parse_events, parse_web_vitals
from sidecar.model import Outcome, Rejection
from sidecar.store.arrivals import Refused
from sidecar.store.facts import Recorded, Recording
from sidecar.store.limit import Limit
from sidecar.store.tombstones import ERASED
from sidecar.store.upkeep import put_salt
from sidecar.store.writer import Task, Work, Writer
from sidecar.web import forget
from sidecar.web.gate import Gate
from sidecar.web.tidy import Tidy

BODY_MAX = 64 * 1024  # what Chromium's sendBeacon takes
HEADERS_MAX = 64 * 1024
LINES_A_SECOND_MAX = 10
_DAY_MS = 86_400_000

log = structlog.get_logger("sidecar.collect")

Parse = Callable[[bytes, str | None], tuple[list[Item], list[Rejection]]]
_PARSERS: dict[str, Parse] = {"/api/track/web-vitals": parse_web_vitals, "/api/track/events": parse_events}
_KEPT = (Outcome.ACCEPTED, Outcome.DUPLICATE, Outcome.SUPERSEDED)
_Headers = dict[bytes, bytes]


class Answer(NamedTuple):
    """An HTTP answer: status, JSON body, more headers."""

    status: int
    body: bytes
    headers: list[tuple[bytes, bytes]] = []  # noqa: RUF012 - never changed


def _json(content: dict[str, Any]) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode()


def _error(status: int, text: str, *headers: tuple[bytes, bytes], **more: Any) -> Answer:
    return Answer(status, _json({"error": text, **more}), list(headers))


def _listed(rejected: list[Rejection]) -> list[dict[str, Any]]:
    return [{"index": r.position, "reason": r.reason} for r in sorted(rejected)]


def _stored(accepted: int, duplicate: int, superseded: int, rejected: list[Rejection]) -> bytes:
    return _json(
        {
            "success": True,
            "accepted": accepted,
            "duplicate": duplicate,
            "superseded": superseded,
            "rejected": _listed(rejected),
        }
    )


_ONE_ACCEPTED = Answer(200, _stored(1, 0, 0, []))  # nearly every answer


class BodyTooLargeError(Exception):
    """The body is over its limit."""


class ClientGoneError(Exception):
    """The client left before its body was whole."""


async def read_body(receive: Receive, length: bytes | None, limit: int = BODY_MAX) -> bytes:
    """The request's body. Raises BodyTooLargeError, as early as it is known, and ClientGoneError."""
    if length is not None and length.isdigit() and int(length[:20]) > limit:
        raise BodyTooLargeError
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body"):
        body: bytes = message.get("body", b"")
        if len(body) > limit:
            raise BodyTooLargeError
        return body
    parts: list[bytes] = []
    size = 0
    while True:
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit:
            raise BodyTooLargeError
        if not message.get("more_body"):
            return b"".join(parts)
        message = await receive()


class Mailbox:
    """Between the event loop and the writer's thread: one hand-over for three turns of the loop, one wake-up a group.

    Waking the writer for each beacon made it start with the first of many, and the two threads wait for each other:
    groups of 32 and not 59 with 64 connections, and a quarter fewer beacons a second. A turn waits for nothing: it is
    what sockets have ready, some 10 us for a beacon that comes alone.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, writer: Writer, record: Work) -> None:
        self._loop = loop
        self._writer = writer
        self._record = record
        self._tasks: list[Task] = []
        self._results: deque[tuple[asyncio.Future[Any], Any, BaseException | None]] = deque()
        self._woken = False

    def send(self, recording: Recording) -> asyncio.Future[Recorded]:
        """What becomes of a recording; UnavailableError where the writer takes nothing."""
        waiter: asyncio.Future[Recorded] = self._loop.create_future()
        if not self._tasks:
            self._loop.call_soon(self._loop.call_soon, self._loop.call_soon, self._hand_over)
        self._tasks.append(Task(self._record, recording, partial(self._post, waiter)))
        return waiter

    def _hand_over(self) -> None:
        tasks, self._tasks = self._tasks, []
        try:
            self._writer.submit_all(tasks)
        except UnavailableError as error:
            for task in tasks:
                task.settle(None, error)

    def _post(self, waiter: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
        """Called in the writer's thread."""
        self._results.append((waiter, result, error))
        if not self._woken:
            self._woken = True
            self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._woken = False
        while self._results:
            waiter, result, error = self._results.popleft()
            if waiter.done():
                continue  # its request was cancelled
            if error is None:
                waiter.set_result(result)
            else:
                waiter.set_exception(error)


class SessionLog:
    """`creating session for web vital`, at most LINES_A_SECOND_MAX a second, then a count."""

    def __init__(self, call_later: Callable[[float, Callable[[], None]], object]) -> None:
        self._call_later = call_later
        self._lines = 0
        self._left_out = 0

    def say(self, opened: list[tuple[str, str]]) -> None:
        """One line a session that a web vital created; ids are shortened, so that a log is no list of visitors."""
        for funnel_id, session_id in opened:
            if not self._lines:
                self._call_later(1.0, self._begin_second)
            self._lines += 1
            if self._lines <= LINES_A_SECOND_MAX:
                log.info("creating session for web vital", funnel=funnel_id, session=f"{session_id[:8]}...")
            else:
                self._left_out += 1

    def _begin_second(self) -> None:
        if self._left_out:
            log.info("creating sessions for web vitals", count=self._left_out)
        self._lines = self._left_out = 0


class Collect:
    """The track routes; everything else goes to `app`.

    `clock` gives ms since the epoch; `tidy` and `limit` are the writer's.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        writer: Writer,
        rules: Rules,
        gate: Gate,
        clock: Callable[[], int],
        tidy: Tidy | None = None,
        limit: Limit | None = None,
    ) -> None:
        self._app = app
        self._writer = writer
        self._limit = limit or Limit(0)
        self._rules = rules
        self._gate = gate
        self._clock = clock
        self._mailbox: Mailbox | None = None
        self._salt = (-1, b"")
        self._session_log = SessionLog(lambda delay_s, call: asyncio.get_running_loop().call_later(delay_s, call))
        self._forget = forget.Forget(writer, rules.site, tidy or Tidy(writer))
        self.beacons: Counter[int] = Counter()  # answers by status
        self.items: Counter[str] = Counter()  # by outcome

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        parse = _PARSERS.get(scope["path"])
        headers: _Headers = dict(scope["headers"])
        if parse is None and scope["path"] != forget.PATH:
            if _too_large(scope, headers):
                await _respond(send, _error(431, "headers are over 64 KiB"), [])
                return
            await self._app(scope, receive, send)
            return
        origin = headers.get(b"origin")
        try:
            if _too_large(scope, headers):
                answer = _error(431, "headers are over 64 KiB")
            elif scope["method"] == "POST":
                answer = await self._take(parse, scope, headers, receive)
            elif scope["method"] == "OPTIONS":
                answer = Answer(204, b"", _preflight(headers))
            else:
                answer = _error(405, "use POST", (b"allow", b"POST, OPTIONS"))
        except ClientGoneError:
            return
        self.beacons[answer.status] += 1
        await _respond(send, answer, self._cors(origin) if origin is not None else [])

    def _cors(self, origin: bytes) -> list[tuple[bytes, bytes]]:
        if not self._gate.allows_origin(origin.decode("latin-1")):
            return [(b"vary", b"Origin")]
        return [
            (b"access-control-allow-origin", origin),
            (b"access-control-allow-credentials", b"true"),  # sendBeacon always asks with credentials; none are read
            (b"access-control-expose-headers", b"Retry-After"),  # the tracker obeys it
            (b"vary", b"Origin"),
        ]

    async def _take(self, parse: Parse | None, scope: Scope, headers: _Headers, receive: Receive) -> Answer:
        origin = headers[b"origin"].decode("latin-1") if b"origin" in headers else None
        if not self._gate.allows_origin(origin):
            return _error(403, f"origin {origin} is not allowed")
        try:
            body = await read_body(receive, headers.get(b"content-length"))
        except BodyTooLargeError:
            return _error(413, f"body is over {BODY_MAX} bytes")
        try:
            if parse is None:
                return await self._erase(body, scope, headers)
            return await self._store(parse, body, scope, headers, origin)
        except MalformedBeaconError as error:
            return _error(400, str(error))
        except RejectedBeaconError as error:
            return _error(422, str(error), rejected=[])
        except UnavailableError as error:
            return _error(503, str(error), (b"retry-after", str(error.retry_after_s).encode()))

    def _find_address(self, scope: Scope, headers: _Headers) -> str | None:
        peer = scope["client"][0] if scope["client"] else None
        forwarded = _joined(scope, b"x-forwarded-for") if b"x-forwarded-for" in headers else None
        return self._gate.find_address(peer, forwarded)

    async def _erase(self, body: bytes, scope: Scope, headers: _Headers) -> Answer:
        now = self._clock()
        wait_s = self._gate.take(self._find_address(scope, headers), 1, now)
        if wait_s:
            return _too_many(wait_s)
        erased = await self._forget.erase(forget.read_id(body), now)
        deleted = {"sessions": erased.sessions, "webVitals": erased.web_vitals, "events": erased.events}
        return Answer(200, _json({"success": True, "deleted": deleted}))

    async def _store(self, parse: Parse, body: bytes, scope: Scope, headers: _Headers, origin: str | None) -> Answer:
        now = self._clock()
        funnel = headers.get(b"x-funnel-id") or headers.get(b"x-aurea-funnel-id")
        items, rejected = parse(body, funnel.decode("utf-8", "replace")[:128] if funnel else None)
        address = self._find_address(scope, headers)
        wait_s = self._gate.take(address, len(items) + len(rejected), now)
        if wait_s:
            return _too_many(wait_s)
        user_agent = headers.get(b"user-agent", b"").decode("latin-1")
        referer = headers[b"referer"].decode("latin-1") if b"referer" in headers else None
        do_not_track = headers.get(b"dnt") == b"1" or headers.get(b"sec-gpc") == b"1"
        salt = await self._read_salt(items, now)
        source = Source(user_agent, address, referer, do_not_track, False, salt, now)
        trusted, plain, refused = self._gate.admit(items, _key(scope, headers), origin)
        facts, dropped = enrich(plain, source, self._rules)
        if trusted:
            more_facts, more_dropped = enrich(trusted, source._replace(trusted=True), self._rules)
            facts = sorted(facts + more_facts, key=lambda fact: fact[0])
            dropped += more_dropped
        noted = () if do_not_track and self._rules.respect_dnt else self._claimed(rejected)
        if facts:
            recorded = await self._submit(Recording(facts, now, noted))
            nothing_else = not (rejected or refused.rejected or dropped)
            if nothing_else and len(recorded.judged) == 1 and recorded.judged[0].outcome is Outcome.ACCEPTED:
                self.items["accepted"] += 1
                return _ONE_ACCEPTED
            return self._answer(recorded, rejected + refused.rejected + dropped)
        if noted:
            try:
                await self._submit(Recording([], now, noted))
            except UnavailableError as error:  # the answer is the same without a note
                log.debug("a refusal was not noted", reason=str(error))
        if refused.rejected and not rejected and not dropped:
            return _error(refused.status, refused.rejected[0].reason, rejected=_listed(refused.rejected))
        return self._nothing_stored(rejected + refused.rejected + dropped)

    def _answer(self, recorded: Recorded, rejected: list[Rejection]) -> Answer:
        counts = Counter(judged.outcome for judged in recorded.judged)
        rejected = rejected + [
            Rejection(judged.position, judged.reason or "", dropped=judged.reason == ERASED)
            for judged in recorded.judged
            if judged.outcome is Outcome.REJECTED
        ]
        accepted, duplicate, superseded = (counts[outcome] for outcome in _KEPT)
        if not accepted + duplicate + superseded:
            return self._nothing_stored(rejected)
        for outcome in _KEPT:
            self.items[outcome] += counts[outcome]
        self.items["rejected"] += len(rejected)
        return Answer(200, _stored(accepted, duplicate, superseded, rejected))

    def _nothing_stored(self, rejected: list[Rejection]) -> Answer:
        if all(one.dropped for one in rejected):
            self.items["dropped"] += len(rejected)
            return Answer(202, _json({"success": True, "stored": False, "reason": rejected[0].reason}))
        self.items["rejected"] += len(rejected)
        first = min(rejected)
        text = first.reason if len(rejected) == 1 else f"every item was rejected; the first: {first.reason}"
        return _error(422, text, rejected=_listed(rejected))

    def _claimed(self, rejected: list[Rejection]) -> tuple[Refused, ...]:
        """What is noted of refusals: of a site that asks for consent nothing, for a refused item has none to show."""
        if not rejected or self._rules.require_consent:
            return ()
        return tuple(
            Refused(self._rules.site, claim.funnel_id or DEFAULT_FUNNEL, *claim[1:], reason)
            for _, reason, _, claim in rejected
            if claim is not None
        )

    async def _submit(self, recording: Recording) -> Recorded:
        if self._mailbox is None:
            self._mailbox = Mailbox(asyncio.get_running_loop(), self._writer, self._limit.record)
        recorded = await self._mailbox.send(recording)
        if recorded.opened:
            self._session_log.say(recorded.opened)
        return recorded

    async def _read_salt(self, items: list[Item], now: int) -> bytes:
        """The day's salt, where an item needs it."""
        for item in items:
            if item.session_id is None:
                break
        else:
            return b""
        day = now // _DAY_MS
        if self._salt[0] != day:
            fresh = secrets.token_bytes(32)
            self._salt = (day, await asyncio.wrap_future(self._writer.call(lambda conn: put_salt(conn, day, fresh))))
        return self._salt[1]


def _too_many(wait_s: int) -> Answer:
    return _error(429, "too many items from this address", (b"retry-after", str(wait_s).encode()))


def _too_large(scope: Scope, headers: _Headers) -> bool:
    if len(headers) == len(scope["headers"]):  # no name comes twice
        return sum(map(len, headers)) + sum(map(len, headers.values())) > HEADERS_MAX
    return sum(len(name) + len(value) for name, value in scope["headers"]) > HEADERS_MAX


def _joined(scope: Scope, wanted: bytes) -> str:
    return ",".join(value.decode("latin-1") for name, value in scope["headers"] if name == wanted)


def _key(scope: Scope, headers: _Headers) -> str | None:
    key = headers.get(b"x-api-key") or headers.get(b"x-aurea-api-key")
    if key is not None:
        return key.decode("latin-1")
    query = scope["query_string"]
    return parse_qs(query.decode("latin-1")).get("apiKey", [None])[0] if b"apiKey" in query else None


def _preflight(headers: _Headers) -> list[tuple[bytes, bytes]]:
    wanted = headers.get(b"access-control-request-headers")
    allowed = [
        (b"access-control-allow-methods", b"POST, OPTIONS"),
        (b"access-control-max-age", b"86400"),
    ]
    return [*allowed, (b"access-control-allow-headers", wanted)] if wanted else allowed


def _start(answer: Answer, cors: list[tuple[bytes, bytes]]) -> Message:
    headers = [*answer.headers, *cors]
    if answer.body:
        headers += [(b"content-type", b"application/json"), (b"content-length", str(len(answer.body)).encode())]
    return {"type": "http.response.start", "status": answer.status, "headers": headers}


async def _respond(send: Send, answer: Answer, cors: list[tuple[bytes, bytes]]) -> None:
    if answer is _ONE_ACCEPTED and not cors:
        await send(_ONE_ACCEPTED_START)
        await send(_ONE_ACCEPTED_BODY)
        return
    await send(_start(answer, cors))
    await send({"type": "http.response.body", "body": answer.body})


_ONE_ACCEPTED_START: Message = _start(_ONE_ACCEPTED, [])
_ONE_ACCEPTED_BODY: Message = {"type": "http.response.body", "body": _ONE_ACCEPTED.body}
