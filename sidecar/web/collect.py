"""Beacons come in here: the track routes, answered only after COMMIT.

What a beacon comes to is decided in `Collect.take`, which is no coroutine: it tells its answer to a function. Two ways
lead to it: the ASGI class here, which stands in front of Starlette, and past ASGI `sidecar.protocol`.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import parse_qs

import structlog
from starlette.types import ASGIApp, Receive, Scope, Send

from sidecar.errors import OWN_ERROR, MalformedBeaconError, RejectedBeaconError, UnavailableError
from sidecar.ingest.enrich import DEFAULT_FUNNEL, Rules, Source, enrich
from sidecar.ingest.wire import Item, parse_events, parse_web_vitals
from sidecar.model import Outcome, Rejection
from sidecar.store.arrivals import Refused
from sidecar.store.facts import Recorded, Recording
from sidecar.store.limit import Limit
from sidecar.store.tombstones import ERASED
from sidecar.store.upkeep import put_salt
from sidecar.store.writer import Writer
from sidecar.web import forget
from sidecar.web.gate import Gate
from sidecar.web.mailbox import Done, Mailbox
from sidecar.web.tidy import Tidy

BODY_MAX = 64 * 1024  # what Chromium's sendBeacon takes
HEADERS_MAX = 64 * 1024
LINES_A_SECOND_MAX = 10
_DAY_MS = 86_400_000

log = structlog.get_logger("sidecar.collect")

Parse = Callable[[bytes, str | None], tuple[list[Item], list[Rejection]]]
PARSERS: dict[str, Parse] = {"/api/track/web-vitals": parse_web_vitals, "/api/track/events": parse_events}
_KEPT = (Outcome.ACCEPTED, Outcome.DUPLICATE, Outcome.SUPERSEDED)
Headers = list[tuple[bytes, bytes]]
_ByName = dict[bytes, bytes]


class Answer(NamedTuple):
    """An HTTP answer: status, JSON body, more headers."""

    status: int
    body: bytes
    headers: Headers = []  # noqa: RUF012 - never changed


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


ONE_ACCEPTED = Answer(200, _stored(1, 0, 0, []))  # nearly every answer


_TOO_LARGE = _error(431, "headers are over 64 KiB")
TOO_LONG = _error(413, f"body is over {BODY_MAX} bytes")


class BodyTooLargeError(Exception):
    """The body is over its limit."""


class ClientGoneError(Exception):
    """The client left before its body was whole."""


async def read_body(receive: Receive) -> bytes:
    """The request's body. Raises BodyTooLargeError, as soon as more than BODY_MAX has come, and ClientGoneError."""
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body"):
        body: bytes = message.get("body", b"")
        if len(body) > BODY_MAX:
            raise BodyTooLargeError
        return body
    parts: list[bytes] = []
    size = 0
    while True:
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > BODY_MAX:
            raise BodyTooLargeError
        if not message.get("more_body"):
            return b"".join(parts)
        message = await receive()


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


class Request(NamedTuple):
    """What a beacon's answer depends on beside its body. `headers`: names in lower case, the last value of each."""

    headers: _ByName
    raw_headers: Headers
    query: bytes
    peer: str | None


Settle = Callable[[Answer], None]


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
        parse = PARSERS.get(scope["path"])
        headers: _ByName = dict(scope["headers"])
        if parse is None and scope["path"] != forget.PATH:
            if _too_large(headers, scope["headers"]):
                await _respond(send, _TOO_LARGE, self.write_headers(_TOO_LARGE, None))
                return
            await self._app(scope, receive, send)
            return
        if scope["method"] == "POST":
            peer = scope["client"][0] if scope["client"] else None
            request = Request(headers, scope["headers"], scope["query_string"], peer)
            try:
                answer = await self._read(parse, request, receive)
            except ClientGoneError:
                return
        elif _too_large(headers, scope["headers"]):
            answer = _TOO_LARGE
        elif scope["method"] == "OPTIONS":
            answer = Answer(204, b"", _preflight(headers))
        else:
            answer = _error(405, "use POST", (b"allow", b"POST, OPTIONS"))
        self.beacons[answer.status] += 1
        await _respond(send, answer, self.write_headers(answer, headers.get(b"origin")))

    async def _read(self, parse: Parse | None, request: Request, receive: Receive) -> Answer:
        refused = self.refuse(request)
        if refused is not None:
            return refused
        try:
            body = await read_body(receive)
        except BodyTooLargeError:
            return TOO_LONG
        if parse is None:
            return await self._erase(body, request)
        waiter: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.take(parse, request, body, lambda answer: None if waiter.done() else waiter.set_result(answer))
        return await waiter

    def refuse(self, request: Request) -> Answer | None:
        """The answer to a request of which the body need not be read."""
        if _too_large(request.headers, request.raw_headers):
            return _TOO_LARGE
        origin = request.headers.get(b"origin")
        if origin is not None and not self._gate.allows_origin(origin.decode("latin-1")):
            return _error(403, f"origin {origin.decode('latin-1')} is not allowed")
        length = request.headers.get(b"content-length", b"")
        return TOO_LONG if length.isdigit() and int(length[:20]) > BODY_MAX else None

    def write_headers(self, answer: Answer, origin: bytes | None) -> Headers:
        """The headers of an answer, with those by which a browser lets the page of this origin see it."""
        headers = answer.headers + self._cors(origin)
        if answer.body:
            headers += [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer.body))]
        return headers

    def _cors(self, origin: bytes | None) -> Headers:
        if origin is None:
            return []
        text = origin.decode("latin-1")
        if not text.isprintable() or not self._gate.allows_origin(text):
            return [(b"vary", b"Origin")]
        return [
            (b"access-control-allow-origin", origin),
            (b"access-control-allow-credentials", b"true"),  # sendBeacon always asks with credentials; none are read
            (b"access-control-expose-headers", b"Retry-After"),  # the tracker obeys it
            (b"vary", b"Origin"),
        ]

    def take(self, parse: Parse, request: Request, body: bytes, settle: Settle) -> None:
        """Store what a beacon says. `settle` is called once, in this loop: at once, or after COMMIT."""
        try:
            self._store(parse, request, body, settle)
        except Exception as error:
            settle(_explain(error))

    def _find_address(self, request: Request) -> str | None:
        forwarded = _joined(request.raw_headers, b"x-forwarded-for") if b"x-forwarded-for" in request.headers else None
        return self._gate.find_address(request.peer, forwarded)

    async def _erase(self, body: bytes, request: Request) -> Answer:
        now = self._clock()
        try:
            wait_s = self._gate.take(self._find_address(request), 1, now)
            if wait_s:
                return _too_many(wait_s)
            erased = await self._forget.erase(forget.read_id(body), now)
        except Exception as error:
            return _explain(error)
        deleted = {"sessions": erased.sessions, "webVitals": erased.web_vitals, "events": erased.events}
        return Answer(200, _json({"success": True, "deleted": deleted}))

    def _store(self, parse: Parse, request: Request, body: bytes, settle: Settle) -> None:
        now = self._clock()
        headers = request.headers
        funnel = headers.get(b"x-funnel-id") or headers.get(b"x-aurea-funnel-id")
        items, rejected = parse(body, funnel.decode("utf-8", "replace")[:128] if funnel else None)
        address = self._find_address(request)
        wait_s = self._gate.take(address, len(items) + len(rejected), now)
        if wait_s:
            settle(_too_many(wait_s))
            return
        user_agent = headers.get(b"user-agent", b"").decode("latin-1")
        referer = headers[b"referer"].decode("latin-1") if b"referer" in headers else None
        do_not_track = headers.get(b"dnt") == b"1" or headers.get(b"sec-gpc") == b"1"
        source = Source(user_agent, address, referer, do_not_track, False, b"", now)
        for item in items:
            if item.session_id is None:
                self._with_salt(source, partial(self._record, request, items, rejected, settle), settle)
                return
        self._record(request, items, rejected, settle, source)

    def _record(
        self, request: Request, items: list[Item], rejected: list[Rejection], settle: Settle, source: Source
    ) -> None:
        origin = request.headers.get(b"origin")
        said = None if origin is None else origin.decode("latin-1")
        trusted, plain, refused = self._gate.admit(items, _key(request), said)
        facts, dropped = enrich(plain, source, self._rules)
        if trusted:
            more_facts, more_dropped = enrich(trusted, source._replace(trusted=True), self._rules)
            facts = sorted(facts + more_facts, key=lambda fact: fact[0])
            dropped += more_dropped
        noted = () if source.do_not_track and self._rules.respect_dnt else self._claimed(rejected)
        if facts:
            left_out = rejected + refused.rejected + dropped
            self._send(Recording(facts, source.now, noted), partial(self._recorded, settle, left_out))
            return
        if refused.rejected and not rejected and not dropped:
            answer = _error(refused.status, refused.rejected[0].reason, rejected=_listed(refused.rejected))
        else:
            answer = self._nothing_stored(rejected + refused.rejected + dropped)
        if noted:
            self._send(Recording([], source.now, noted), partial(self._noted, settle, answer))
        else:
            settle(answer)

    def _noted(self, settle: Settle, answer: Answer, _: Recorded | None, error: BaseException | None) -> None:
        if error is not None:  # the answer is the same without a note
            log.debug("a refusal was not noted", reason=str(error))
        settle(answer)

    def _recorded(
        self, settle: Settle, left_out: list[Rejection], recorded: Recorded | None, error: BaseException | None
    ) -> None:
        try:
            answer = _explain(error) if recorded is None else self._answer(recorded, left_out)
        except Exception as failure:
            answer = _explain(failure)
        settle(answer)

    def _answer(self, recorded: Recorded, rejected: list[Rejection]) -> Answer:
        if recorded.opened:
            self._session_log.say(recorded.opened)
        if not rejected and len(recorded.judged) == 1 and recorded.judged[0].outcome is Outcome.ACCEPTED:
            self.items["accepted"] += 1
            return ONE_ACCEPTED
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

    def _send(self, recording: Recording, done: Done) -> None:
        if self._mailbox is None:
            self._mailbox = Mailbox(asyncio.get_running_loop(), self._writer, self._limit.record)
        self._mailbox.send(recording, done)

    def _with_salt(self, source: Source, proceed: Callable[[Source], None], settle: Settle) -> None:
        """Go on with the day's salt, which only clients that name no session need."""
        day = source.now // _DAY_MS
        if self._salt[0] == day:
            proceed(source._replace(salt=self._salt[1]))
            return
        loop = asyncio.get_running_loop()
        fresh = secrets.token_bytes(32)

        def done(future: asyncio.Future[bytes]) -> None:
            try:
                self._salt = (day, future.result())
                proceed(source._replace(salt=self._salt[1]))
            except Exception as error:
                settle(_explain(error))

        asyncio.wrap_future(self._writer.call(lambda conn: put_salt(conn, day, fresh)), loop=loop).add_done_callback(
            done
        )


def _explain(error: BaseException | None) -> Answer:
    """The answer to a beacon that could not be taken."""
    match error:
        case MalformedBeaconError():
            return _error(400, str(error))
        case RejectedBeaconError():
            return _error(422, str(error), rejected=[])
        case UnavailableError():
            return _error(503, str(error), (b"retry-after", str(error.retry_after_s).encode()))
    log.error("a beacon met an error of the sidecar's own", exc_info=error)
    return _error(500, OWN_ERROR)


def _too_many(wait_s: int) -> Answer:
    return _error(429, "too many items from this address", (b"retry-after", str(wait_s).encode()))


def _too_large(headers: _ByName, raw_headers: Headers) -> bool:
    if len(headers) == len(raw_headers):  # no name comes twice
        return sum(map(len, headers)) + sum(map(len, headers.values())) > HEADERS_MAX
    return sum(len(name) + len(value) for name, value in raw_headers) > HEADERS_MAX


def _joined(headers: Headers, wanted: bytes) -> str:
    return ",".join(value.decode("latin-1") for name, value in headers if name == wanted)


def _key(request: Request) -> str | None:
    key = request.headers.get(b"x-api-key") or request.headers.get(b"x-aurea-api-key")
    if key is not None:
        return key.decode("latin-1")
    query = request.query
    return parse_qs(query.decode("latin-1")).get("apiKey", [None])[0] if b"apiKey" in query else None


def _preflight(headers: _ByName) -> Headers:
    wanted = headers.get(b"access-control-request-headers")
    allowed = [
        (b"access-control-allow-methods", b"POST, OPTIONS"),
        (b"access-control-max-age", b"86400"),
    ]
    return [*allowed, (b"access-control-allow-headers", wanted)] if wanted else allowed


async def _respond(send: Send, answer: Answer, headers: Headers) -> None:
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})
