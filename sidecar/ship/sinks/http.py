"""Batches by HTTP: `POST` of gzipped lines to `http://` or `https://` (contract 8)."""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import json
import os
import socket
import ssl
import zlib
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

import anyio.to_thread
import httpx2

from sidecar import __version__
from sidecar.ship.sinks import Answer, Verdict
from sidecar.ship.sinks.tls import load_tls
from sidecar.signing import read_secret, sign
from sidecar.store.outbox import Batch

CONNECT_TIMEOUT_S = 10.0
TIMEOUT_S = 60.0
UPLOAD_BYTES_A_SECOND = 128 * 1024  # what a slow line (1 Mbit/s) takes comes on top of the timeout
ANSWER_BYTES_MAX = 64 * 1024
ANSWER_BYTES_A_LINE = 512  # on top of it where a batch was taken: each of its lines may be rejected with a reason
DETAIL_MAX = 300
_KEEPALIVE_S = 2.0  # servers drop idle connections after 5 s (uvicorn): a race that would count as "no answer"
_DEFAULT_PORTS = {"http": 80, "https": 443}


def public_address(url: str) -> str:
    """The address of a destination without credentials; a query may hold one, so eight hex digits stand for it."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    host = f"[{host}]" if ":" in host else host
    port = f":{parts.port}" if parts.port not in (None, _DEFAULT_PORTS.get(parts.scheme)) else ""
    query = hashlib.sha256(parts.query.encode()).hexdigest()[:8] if parts.query else ""
    return urlunsplit((parts.scheme, host + port, parts.path or "/", query, ""))


def judge_status(status: int) -> Verdict:
    """What a status means for the batch: the table of contract 8."""
    if 200 <= status <= 299:
        return Verdict.TAKEN
    if status in (408, 409, 425, 429) or (500 <= status <= 599 and status != 501):
        return Verdict.AGAIN
    if status in (400, 422):
        return Verdict.REFUSED
    if status == 413:
        return Verdict.TOO_LARGE
    if 300 <= status <= 499 or status == 501:
        return Verdict.BLOCKED
    return Verdict.AGAIN  # a broken answer: no such status exists


def _name(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def _clean(text: str) -> str:
    shown = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return shown if len(shown) <= DETAIL_MAX else shown[: DETAIL_MAX - 1] + "…"


def _unpacked(headers: httpx2.Headers, body: bytes, most: int) -> bytes:
    """A body that was packed although `identity` was asked for, as far as `most` bytes."""
    if headers.get("content-encoding", "").strip().lower() not in ("gzip", "x-gzip"):
        return body
    try:
        return zlib.decompressobj(wbits=31).decompress(body, most)
    except zlib.error:
        return body


def read_answer(status: int, headers: httpx2.Headers, body: bytes, *, most: int = ANSWER_BYTES_MAX) -> Answer:
    """An HTTP answer, its body as far as it was read. Packed, it is unpacked as far as `most` bytes."""
    verdict = judge_status(status)
    body = _unpacked(headers, body, most)
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        said = None
    if verdict is Verdict.TAKEN:
        if said is None and b'"rejected"' in body:
            # Which lines it refuses cannot be known: to take it for none would be to lose them.
            return Answer(Verdict.AGAIN, "broken answer", f"{_name(status)} with a list of rejected lines that is cut")
        rejected = _read_rejected(said)
        refused = f"{len(rejected)} lines rejected" if rejected else ""
        return Answer(verdict, _name(status), refused, rejected=rejected)
    error = said.get("error") if isinstance(said, dict) else None
    detail = error if isinstance(error, str) else headers.get("location") or body.decode(errors="replace")
    return Answer(verdict, _name(status), _clean(detail[:4096]), headers.get("retry-after"))


def _read_rejected(said: Any) -> dict[int, str]:
    entries = said.get("rejected") if isinstance(said, dict) else None
    rejected: dict[int, str] = {}
    for entry in entries if isinstance(entries, list) else ():
        index, reason = (entry.get("index"), entry.get("reason")) if isinstance(entry, dict) else (None, None)
        if isinstance(index, int) and not isinstance(index, bool) and index >= 0:
            rejected.setdefault(index, _clean(str(reason or "no reason given")))
    return rejected


def _causes(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        found += error.exceptions if isinstance(error, ExceptionGroup) else ()
        error = error.__cause__ or error.__context__
    return found


def read_failure(error: BaseException) -> Answer:
    """What an attempt without a whole answer means; the texts name no host and no address."""
    causes = _causes(error)
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            # the rest of the message names the host
            why = (cause.verify_message or "certificate verify failed").split(",")[0].lower()
            return Answer(Verdict.BLOCKED, f"TLS refused: {why}")
        if isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError):
            return Answer(Verdict.BLOCKED, f"TLS refused: {(cause.reason or 'handshake').replace('_', ' ').lower()}")
    if isinstance(error, httpx2.ConnectTimeout):
        return Answer(Verdict.AGAIN, "no answer: no connection in time")
    if isinstance(error, TimeoutError | httpx2.TimeoutException):
        return Answer(Verdict.AGAIN, "no answer in time")
    if isinstance(error, httpx2.LocalProtocolError | httpx2.UnsupportedProtocol):
        return Answer(Verdict.BLOCKED, "the request cannot be made: is UPSTREAM_URL or UPSTREAM_TOKEN well-formed?")
    if isinstance(error, httpx2.ProxyError):
        return Answer(Verdict.AGAIN, "no answer: the proxy would not connect")
    if isinstance(error, httpx2.ProtocolError):
        return Answer(Verdict.AGAIN, "broken answer")
    for cause in causes:
        if isinstance(cause, socket.gaierror):
            return Answer(Verdict.AGAIN, "no answer: the host name was not found")
        if isinstance(cause, OSError) and cause.errno:
            return Answer(Verdict.AGAIN, f"no answer: {os.strerror(cause.errno).lower()}")
    return Answer(Verdict.AGAIN, "no answer: the connection was lost")


class HttpSink:
    """An upstream that takes batches by HTTP; another sidecar, or anything that reads the session document.

    Raises ValueError where a secret is no base64.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        secrets: Sequence[str] = (),
        timeout_s: float = TIMEOUT_S,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        parts = urlsplit(url)
        self._url = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, parts.query, ""))
        self._address = public_address(url)
        for secret in secrets:
            read_secret(secret)
        self._secret = secrets[0] if secrets else None  # the first signs
        self._timeout_s = timeout_s
        self._tls = tls
        self._client: httpx2.AsyncClient | None = None
        self._authorization: str | None = None
        if token:
            self._authorization = f"Bearer {token}"
        elif parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            self._authorization = f"Basic {base64.b64encode(pair.encode()).decode()}"

    def __repr__(self) -> str:
        return f"<HttpSink {self._address}, {'signing' if self._secret else 'not signing'}>"

    @property
    def address(self) -> str:
        """Where it sends to, without credentials."""
        return self._address

    async def send(self, batch: Batch, now: int) -> Answer:
        """One request. `now` (ms) is the time of the signature."""
        try:
            headers = await anyio.to_thread.run_sync(self._make_headers, batch, now)
            async with asyncio.timeout(self._timeout_s + len(batch.body) / UPLOAD_BYTES_A_SECOND):
                return await self._post(batch, headers)
        except (httpx2.TransportError, TimeoutError, OSError) as error:
            return read_failure(error)

    async def close(self) -> None:
        """Close the connections."""
        client, self._client = self._client, None
        if client:
            await client.aclose()

    def _make_headers(self, batch: Batch, now: int) -> dict[str, str]:
        headers = {
            "Content-Type": "application/x-ndjson",
            "Content-Encoding": "gzip",
            "Content-Length": str(len(batch.body)),
            "Content-Digest": f"sha-256=:{base64.b64encode(hashlib.sha256(batch.body).digest()).decode()}:",
            "X-Records": str(batch.lines_count),
            "Idempotency-Key": f'"{batch.batch_id}"',
            "Accept": "application/json",
            "Accept-Encoding": "identity",  # an answer is read up to a bound: packed, it could unpack to anything
            "User-Agent": f"vitals-sidecar/{__version__}",
        }
        if self._authorization:
            headers["Authorization"] = self._authorization
        if self._secret:
            timestamp_s = now // 1000
            headers["webhook-id"] = batch.batch_id
            headers["webhook-timestamp"] = str(timestamp_s)
            headers["webhook-signature"] = sign(self._secret, batch.batch_id, timestamp_s, gzip.decompress(batch.body))
        return headers

    async def _post(self, batch: Batch, headers: dict[str, str]) -> Answer:
        if self._client is None:
            if self._tls is None:
                self._tls = await load_tls(self._url)
            self._client = httpx2.AsyncClient(
                verify=self._tls,
                # a body is written in one go, which may take long on a slow line: `send` bounds the whole
                timeout=httpx2.Timeout(None, connect=min(CONNECT_TIMEOUT_S, self._timeout_s)),
                limits=httpx2.Limits(max_connections=1, keepalive_expiry=_KEEPALIVE_S),
                follow_redirects=False,
            )
        async with self._client.stream("POST", self._url, content=batch.body, headers=headers) as response:
            most = ANSWER_BYTES_MAX
            if response.is_success:
                most += ANSWER_BYTES_A_LINE * batch.lines_count
            body = bytearray()
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > most:
                    break
            return read_answer(response.status_code, response.headers, bytes(body[:most]), most=most)
