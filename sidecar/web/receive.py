"""`POST /api/sessions`: batches from other sidecars, or from anything that writes session documents.

All checks of the body as such come before anything is noted, so a damaged delivery (408) costs nothing: the full retry
succeeds. What arrived whole is merged in one transaction, with its answer kept for a repeat, and answered after COMMIT.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import json
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import anyio.to_thread
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive as AsgiReceive
from starlette.types import Scope, Send

from sidecar.errors import DocumentError, ReceiptError, UnavailableError
from sidecar.model import Outcome
from sidecar.signing import is_fresh, read_secret, verify
from sidecar.store.database import Connection, count_erasures
from sidecar.store.documents import Document, LineResult
from sidecar.store.limit import Limit
from sidecar.store.lines import Line, merge, read_line, site_of
from sidecar.store.writer import Writer
from sidecar.web.tidy import Tidy

PACKED_MAX = 16 * 1024 * 1024
UNPACKED_MAX = 64 * 1024 * 1024
DRAIN_MAX = 48 * 1024 * 1024  # thrown away before a 413: a client that is cut off while it sends sees no answer
RECEIPTS_KEPT_MS = 30 * 86_400_000
KEY_MAX = 255
REASON_MAX = 200  # the sender reads 512 bytes of answer a line
TOGETHER_MAX = 2  # batches unpacked and parsed at a time: one may take a gigabyte as Python objects
SLICE_BYTES = 64 * 1024  # of a packed body, unpacked at a time
MEMBERS_MAX = 10_000  # of its gzip

Tokens = Sequence[tuple[str, tuple[str, ...] | None]]
Sites = frozenset[str] | None  # None: any


class _Parcel(NamedTuple):
    """A batch that arrived whole. `lines`: a document or tombstone each, or why there is none."""

    key: str
    digest: bytes
    lines: list[Line | str]


class Receive:
    """The endpoint, as an ASGI application. `tokens` pair a token with the sites it may write (None: any).

    `secrets` check signatures, where there are any. `clock` gives ms since the epoch. `tidy` is the writer's, for what
    tombstones erase; so is `limit`. Raises ValueError where a secret is no base64.
    """

    def __init__(
        self,
        writer: Writer,
        tokens: Tokens,
        secrets: Sequence[str],
        clock: Callable[[], int],
        *,
        tidy: Tidy | None = None,
        limit: Limit | None = None,
        packed_max: int = PACKED_MAX,
        unpacked_max: int = UNPACKED_MAX,
    ) -> None:
        self._writer = writer
        self._tokens = [(token.encode(), None if sites is None else frozenset(sites)) for token, sites in tokens]
        self._secrets = tuple(secrets)
        for secret in self._secrets:
            read_secret(secret)
        self._clock = clock
        self._tidy = tidy or Tidy(writer)
        self._limit = limit or Limit(0)
        self._packed_max = packed_max
        self._unpacked_max = unpacked_max
        self._turn = asyncio.Semaphore(TOGETHER_MAX)
        self.batches_count = 0

    def __repr__(self) -> str:
        signed = f"{len(self._secrets)} secrets" if self._secrets else "unsigned"
        return f"<Receive: {len(self._tokens)} tokens, {signed}, {self.batches_count} batches>"

    async def __call__(self, scope: Scope, receive: AsgiReceive, send: Send) -> None:
        """Answer one request."""
        response = await self._answer(Request(scope, receive))
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        if request.method != "POST":
            return _error(405, "use POST", {"Allow": "POST"})
        try:
            return _reply(200, await self._take(request))
        except ReceiptError as error:
            return _error(error.status, str(error), {"WWW-Authenticate": "Bearer"} if error.status == 401 else None)
        except UnavailableError as error:
            return _error(503, str(error), {"Retry-After": str(error.retry_after_s)})

    async def _take(self, request: Request) -> str:
        sites = self._authorize(request)
        packed = await self._read(request)
        now = self._clock()
        async with self._turn:
            parcel = await anyio.to_thread.run_sync(self._open, request, packed, sites, now)
            answer = await self._apply(parcel, now)
        self.batches_count += 1
        return answer

    def _authorize(self, request: Request) -> Sites:
        """The sites that the request's token may write. Raises ReceiptError 403 or 401."""
        if not self._tokens:
            raise ReceiptError(403, "this sidecar takes no batches: set SIDECAR_RECEIVE_TOKEN to a token of your own")
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        wanted = given.strip().encode() if scheme.lower() == "bearer" else b""
        allowed: list[Sites] = [sites for token, sites in self._tokens if hmac.compare_digest(token, wanted)]
        if not allowed:
            raise ReceiptError(401, "wrong token")
        return allowed[0]

    async def _read(self, request: Request) -> bytes:
        """The body as sent. Raises ReceiptError 413, or 408 where it is not of the length that was said."""
        said = request.headers.get("content-length")
        body = bytearray()
        size = 0
        try:
            async for chunk in request.stream():
                size += len(chunk)
                if size <= self._packed_max:
                    body += chunk
                elif size > self._packed_max + DRAIN_MAX:
                    break
        except ClientDisconnect:
            raise ReceiptError(408, "the body was cut") from None
        if size > self._packed_max:
            raise ReceiptError(413, f"over {self._packed_max} bytes packed")
        if said is not None and said != str(size):
            raise ReceiptError(408, "the body is not of its Content-Length")
        return bytes(body)

    def _open(self, request: Request, packed: bytes, sites: Sites, now: int) -> _Parcel:
        headers = request.headers
        digest = hashlib.sha256(packed).digest()
        said = _read_digest(headers.get("content-digest"))
        if said is not None and not hmac.compare_digest(said, digest):
            raise ReceiptError(408, "the body is not of its Content-Digest")
        body = self._unpack(headers.get("content-encoding", "identity"), packed)
        texts = [line for line in body.split(b"\n") if line.strip()]
        records = headers.get("x-records", "").strip()
        counted = records.isascii() and records.isdigit() and len(records) < 10
        if counted and int(records) != len(texts):
            raise ReceiptError(408, f"{len(texts)} lines, not the {int(records)} of X-Records")
        self._check_signature(request, body, now)
        if said is None:
            raise ReceiptError(400, "Content-Digest: must be sha-256=:base64: over the bytes sent")
        if not counted:
            raise ReceiptError(400, "X-Records: must be the number of lines")
        key = headers.get("idempotency-key", "").strip()
        key = key[1:-1] if len(key) > 1 and key[0] == key[-1] == '"' else key
        if not 1 <= len(key) <= KEY_MAX:
            raise ReceiptError(400, f"Idempotency-Key: must be 1 to {KEY_MAX} characters")
        if not texts:
            raise ReceiptError(422, "holds no document")
        return _Parcel(key, digest, [_read_line(text, sites) for text in texts])

    def _unpack(self, encoding: str, packed: bytes) -> bytes:
        """The lines. Raises ReceiptError 408 where the gzip is damaged or cut, 413 where it is a bomb, 415."""
        if encoding.strip().lower() in ("", "identity"):
            return packed
        if encoding.strip().lower() not in ("gzip", "x-gzip"):
            raise ReceiptError(415, "Content-Encoding: must be gzip, or none")
        body = bytearray()
        stream, members = zlib.decompressobj(wbits=31), 1
        try:
            # In slices, for what is behind a member is copied: 16 MiB of empty members would take minutes.
            for start in range(0, len(packed), SLICE_BYTES):
                rest = packed[start : start + SLICE_BYTES]
                while rest:
                    if stream.eof:
                        stream, members = zlib.decompressobj(wbits=31), members + 1
                        if members > MEMBERS_MAX:
                            raise ReceiptError(413, f"over {MEMBERS_MAX} members of gzip")
                    body += stream.decompress(rest, self._unpacked_max + 1 - len(body))
                    if len(body) > self._unpacked_max:
                        raise ReceiptError(413, f"over {self._unpacked_max} bytes unpacked")
                    rest = stream.unused_data
        except zlib.error as error:
            raise ReceiptError(408, f"the gzip is damaged: {error}") from None
        if not stream.eof:
            raise ReceiptError(408, "the gzip is cut")
        return bytes(body)

    def _check_signature(self, request: Request, body: bytes, now: int) -> None:
        if not self._secrets:
            return
        names = ("webhook-id", "webhook-timestamp", "webhook-signature")
        message_id, timestamp, signature = (request.headers.get(name, "") for name in names)
        if not verify(self._secrets, message_id, timestamp, signature, body):
            raise ReceiptError(401, "wrong signature")
        if not is_fresh(timestamp, now):
            raise ReceiptError(408, "the signature is more than five minutes old or ahead")

    async def _apply(self, parcel: _Parcel, now: int) -> str:
        """Merge in one transaction. Shielded: a future cancelled under the writer would end its thread."""
        future = self._writer.call(lambda conn: apply(conn, parcel, now, self._limit))
        answer, erased = await asyncio.shield(asyncio.wrap_future(future))
        if erased:
            await self._tidy.start()
        if answer is None:
            raise ReceiptError(422, "Idempotency-Key: was used for another body")
        return answer


def apply(conn: Connection, parcel: _Parcel, now: int, limit: Limit) -> tuple[str | None, bool]:
    """Merge a batch and keep its answer, or give the kept one; None where the key came with other bytes before.

    With it, whether tombstones have erased anything. Raises UnavailableError where the limit of the file is reached and
    a document would open a session.
    """
    conn.execute("DELETE FROM receipts WHERE received_at < ?", (now - RECEIPTS_KEPT_MS,))
    kept = conn.execute("SELECT digest, answer FROM receipts WHERE idempotency_key = ?", (parcel.key,)).fetchone()
    if kept is not None:
        return (str(kept[1]) if kept[0] == parcel.digest else None), False
    limit.check(conn, [line.owner for line in parcel.lines if isinstance(line, Document)])
    erasures = count_erasures(conn)
    results = iter(merge(conn, [line for line in parcel.lines if not isinstance(line, str)], now))
    counts = dict.fromkeys((Outcome.ACCEPTED, Outcome.DUPLICATE, Outcome.SUPERSEDED), 0)
    rejected: list[dict[str, Any]] = []
    for index, line in enumerate(parcel.lines):
        outcome, reason = LineResult(Outcome.REJECTED, line) if isinstance(line, str) else next(results)
        if outcome is Outcome.REJECTED:
            rejected.append({"index": index, "reason": (reason or "")[:REASON_MAX]})
        else:
            counts[outcome] += 1
    answer = _json({"success": True, **{str(name): count for name, count in counts.items()}, "rejected": rejected})
    conn.execute(
        "INSERT INTO receipts (idempotency_key, digest, answer, received_at) VALUES (?, ?, ?, ?)",
        (parcel.key, parcel.digest, answer, now),
    )
    return answer, count_erasures(conn) > erasures


def _read_line(text: bytes, sites: Sites) -> Line | str:
    try:
        line = read_line(text)
    except DocumentError as error:
        return str(error)
    if sites is not None and site_of(line) not in sites:
        return "site: not allowed to this token"
    return line


def _read_digest(header: str | None) -> bytes | None:
    """The SHA-256 of a Content-Digest header; None where it names none. Raises ReceiptError 408 where it is broken."""
    for member in (header or "").split(","):
        name, _, value = member.strip().partition("=")
        if name.strip().lower() == "sha-256":
            try:
                return base64.b64decode(value.strip().strip(":"), validate=True)
            except binascii.Error:
                raise ReceiptError(408, "the body is not of its Content-Digest") from None
    return None


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, separators=(",", ":"))


def _reply(status: int, content: str, headers: dict[str, str] | None = None) -> Response:
    return Response(content.encode(), status, headers, media_type="application/json")


def _error(status: int, text: str, headers: dict[str, str] | None = None) -> Response:
    return _reply(status, _json({"error": text}), headers)
