"""What goes over the wire, and what comes back on real sockets."""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx2
import pytest
from standardwebhooks import Webhook

from sidecar.ship.sinks import Answer, Verdict
from sidecar.ship.sinks.http import HttpSink, public_address, read_failure
from sidecar.store.outbox import Batch
from tests.ship.house import NOW, Reply, Upstream

pytestmark = pytest.mark.anyio

LINES = b'{"type":"session"}\n' * 3
BATCH = Batch(1, "01-b", "default", gzip.compress(LINES, mtime=0), len(LINES), 3, 1, NOW)
SECRETS = tuple(f"whsec_{base64.b64encode(bytes([n]) * 24).decode()}" for n in (1, 2))


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    with Upstream() as running:
        yield running


async def send(sink: HttpSink, batch: Batch = BATCH, now: int = NOW) -> Answer:
    try:
        return await sink.send(batch, now)
    finally:
        await sink.close()


async def test_the_request_is_as_the_contract_says(upstream: Upstream) -> None:
    assert await send(HttpSink(upstream.url, token="t0ken")) == Answer(Verdict.TAKEN, "200 OK")
    [request] = upstream.requests
    assert (request.path, request.body) == ("/api/sessions", BATCH.body)
    digest = base64.b64encode(hashlib.sha256(BATCH.body).digest()).decode()
    wanted = {
        "content-type": "application/x-ndjson",
        "content-encoding": "gzip",
        "content-length": str(len(BATCH.body)),
        "content-digest": f"sha-256=:{digest}:",
        "x-records": "3",
        "idempotency-key": '"01-b"',
        "authorization": "Bearer t0ken",
    }
    assert wanted.items() <= request.headers.items()
    assert not {"webhook-id", "transfer-encoding"} & request.headers.keys()


async def test_the_first_secret_signs_the_uncompressed_body(upstream: Upstream) -> None:
    now = time.time_ns() // 1_000_000
    sink = HttpSink(upstream.url, secrets=SECRETS)
    await sink.send(BATCH, now)
    await send(sink, now=now + 2000)
    first, second = (request.headers for request in upstream.requests)
    Webhook(SECRETS[0]).verify(LINES, first, json_parse=False)
    Webhook(SECRETS[0]).verify(LINES, second, json_parse=False)
    assert first["webhook-id"] == second["webhook-id"] == "01-b"
    assert int(second["webhook-timestamp"]) - int(first["webhook-timestamp"]) == 2, "fresh at every attempt"
    assert "authorization" not in first


def test_a_secret_that_is_no_base64_stops_the_start() -> None:
    with pytest.raises(ValueError, match="secret must"):
        HttpSink("https://up.test/", secrets=("whsec_A",))


async def test_credentials_in_the_address_become_a_header(upstream: Upstream) -> None:
    url = upstream.url.replace("http://", "http://me:p%40ss@")
    await send(HttpSink(url))
    await send(HttpSink(url, token="t0ken"))
    basic = base64.b64encode(b"me:p@ss").decode()
    assert [request.headers["authorization"] for request in upstream.requests] == [f"Basic {basic}", "Bearer t0ken"]


async def test_redirects_are_not_followed(upstream: Upstream) -> None:
    upstream.replies.append(Reply(307, b"", [("Location", "/elsewhere")]))
    answer = await send(HttpSink(upstream.url))
    assert answer == Answer(Verdict.BLOCKED, "307 Temporary Redirect", "/elsewhere")
    assert len(upstream.requests) == 1


async def test_answers_are_read_up_to_a_bound(upstream: Upstream) -> None:
    upstream.replies += [Reply(500, b"x" * 1_000_000), Reply(200, b"x" * 1_000_000)]
    assert (await send(HttpSink(upstream.url))).verdict is Verdict.AGAIN
    assert await send(HttpSink(upstream.url)) == Answer(Verdict.TAKEN, "200 OK")


REASON = b'{"rejected":[{"index":0,"reason":"' + b"why " * 30_000 + b'"}]}'


@pytest.mark.parametrize(
    "body", [REASON, b'{"rejected":[' + b" " * 1_000_000 + b"]}", b'{"rejected":[{"index":' + b"9" * 5000 + b"}]}"]
)
async def test_a_list_of_rejected_lines_that_cannot_be_read_confirms_nothing(upstream: Upstream, body: bytes) -> None:
    """What it would refuse would be lost here."""
    upstream.replies.append(Reply(200, body))
    answer = await send(HttpSink(upstream.url))
    assert (answer.verdict, answer.reason) == (Verdict.AGAIN, "broken answer")
    assert "rejected lines" in answer.text


async def test_an_answer_that_was_packed_all_the_same_is_read(upstream: Upstream) -> None:
    """A proxy may not heed `Accept-Encoding: identity`; unpacked, the bound holds, too."""
    packed = (("Content-Encoding", "gzip"),)
    said = gzip.compress(b'{"rejected":[{"index":0,"reason":"no"}]}')
    upstream.replies += [Reply(200, said, packed), Reply(200, gzip.compress(b" " * 10_000_000), packed)]
    assert (await send(HttpSink(upstream.url))).rejected == {0: "no"}
    assert await send(HttpSink(upstream.url)) == Answer(Verdict.TAKEN, "200 OK")
    upstream.replies.append(Reply(200, b"no gzip", packed))
    assert await send(HttpSink(upstream.url)) == Answer(Verdict.TAKEN, "200 OK")


async def test_an_answer_that_breaks_off_is_no_answer(upstream: Upstream) -> None:
    upstream.replies.append(Reply(200, b'{"success":', cut=True))
    assert await send(HttpSink(upstream.url)) == Answer(Verdict.AGAIN, "broken answer")


async def test_a_slow_answer_is_no_answer(upstream: Upstream) -> None:
    upstream.replies.append(Reply(delay_s=0.5))
    assert await send(HttpSink(upstream.url, timeout_s=0.1)) == Answer(Verdict.AGAIN, "no answer in time")


async def test_nobody_there() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port = listener.getsockname()[1]
    answer = await send(HttpSink(f"http://127.0.0.1:{port}/"))
    assert answer == Answer(Verdict.AGAIN, "no answer: connection refused")
    answer = await send(HttpSink("http://nowhere.invalid/"))
    assert answer == Answer(Verdict.AGAIN, "no answer: the host name was not found")


async def test_a_token_that_no_header_can_hold_is_blocked(upstream: Upstream) -> None:
    answer = await send(HttpSink(upstream.url, token="two\nlines"))
    assert answer.verdict is Verdict.BLOCKED
    assert "UPSTREAM_TOKEN" in answer.reason


async def test_tls_to_a_server_without_it_is_refused(upstream: Upstream) -> None:
    answer = await send(HttpSink(upstream.url.replace("http:", "https:")))
    assert answer.verdict is Verdict.BLOCKED
    assert answer.reason.startswith("TLS refused: ")


async def test_certificates_are_checked(tmp_path: Path, upstream: Upstream) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    make += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", str(key)]
    make += ["-out", str(certificate)]
    process = await asyncio.create_subprocess_exec(*make, stderr=subprocess.DEVNULL)
    assert await process.wait() == 0
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    upstream.server.socket = context.wrap_socket(upstream.server.socket, server_side=True)
    url = upstream.url.replace("http:", "https:")
    named = url.replace("127.0.0.1", "localhost")
    trusting = ssl.create_default_context(cafile=str(certificate))
    assert await send(HttpSink(named)) == Answer(Verdict.BLOCKED, "TLS refused: self-signed certificate")
    assert await send(HttpSink(url, tls=trusting)) == Answer(Verdict.BLOCKED, "TLS refused: ip address mismatch")
    assert (await send(HttpSink(named, tls=trusting))).verdict is Verdict.TAKEN


def test_no_text_of_a_failure_names_a_host() -> None:
    names = httpx2.ConnectError("to 10.0.0.7:443 failed")
    assert read_failure(names).text == "no answer: the connection was lost"
    names.__cause__ = ExceptionGroup("both", [OSError(113, "No route to host 10.0.0.7")])
    assert read_failure(names).text == "no answer: no route to host"
    assert read_failure(httpx2.ConnectTimeout("10.0.0.7")).text == "no answer: no connection in time"
    assert read_failure(httpx2.ProxyError("10.0.0.7")).text == "no answer: the proxy would not connect"
    names.__cause__ = ssl.SSLEOFError(8, "EOF occurred")
    assert read_failure(names).verdict is Verdict.AGAIN, "a connection that was lost, not one that was refused"


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("https://Up.Test", "https://up.test/"),
        ("https://up.test:443/a", "https://up.test/a"),
        ("http://me:secret@up.test:8080/a", "http://up.test:8080/a"),
        ("http://[::1]:80/a#part", "http://[::1]/a"),
    ],
)
def test_the_address_of_a_destination_holds_no_credentials(url: str, address: str) -> None:
    assert HttpSink(url).address == address
    assert repr(HttpSink(url)) == f"<HttpSink {address}, not signing>"


def test_a_query_is_told_apart_without_being_told() -> None:
    first, second = (public_address(f"https://up.test/a?key={key}") for key in ("secret", "other"))
    assert first != second
    assert first.startswith("https://up.test/a?")
    assert "secret" not in first
