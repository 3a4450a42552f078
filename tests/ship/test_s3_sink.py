"""Batches as objects, on a real S3 server: put once, told apart, blocked in words, and never more than one request."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import anyio
import pytest

from sidecar.errors import ConfigError
from sidecar.ship.sinks import Answer, Verdict
from sidecar.ship.sinks.open import open_sink
from sidecar.ship.sinks.s3 import CLOSE_WAIT_S, S3Sink
from sidecar.store.outbox import Batch
from tests.servers import clean_environment
from tests.ship.house import House, documents
from tests.ship.seaweed import KEY, SECRET, Seaweed

DAY = 1_795_330_800_000  # 2026-11-22T07:00:00.000Z
STORED = Answer(Verdict.TAKEN, "stored")


@pytest.fixture(autouse=True)
def _no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the machine's own; and nobody asks the network for a role."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1")


@pytest.fixture(scope="module")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    server = Seaweed(tmp_path_factory.mktemp("s3"))
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def _credentials(seaweed: Seaweed, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in seaweed.environment().items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    """One for each test: all are on one server."""
    name: str = request.function.__name__
    return name


def make_batch(text: str = "a line", *, site: str = "shop", batch_id: str = "b-1") -> Batch:
    body = gzip.compress(f"{text}\n".encode(), mtime=0)
    return Batch(1, batch_id, site, body, len(text) + 1, 1, 0, DAY)


def send(sink: S3Sink, batch: Batch | None = None) -> Answer:
    return anyio.run(sink.send, batch or make_batch(), 0)


# --- the real server -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_credentials")
def test_the_frozen_bytes_by_site_and_day_and_once(seaweed: Seaweed, prefix: str) -> None:
    sink = S3Sink(f"s3://vitals/{prefix}/")
    batch = make_batch()
    assert send(sink, batch) == STORED
    assert send(sink, batch) == Answer(Verdict.TAKEN, "stored before")
    assert seaweed.objects("vitals", prefix) == {"site=shop/dt=2026-11-22/b-1.ndjson.gz": batch.body}


@pytest.mark.usefixtures("_credentials")
@pytest.mark.parametrize("other", ["A line", "a longer line"])
def test_other_bytes_under_its_name_stay_and_are_told(seaweed: Seaweed, prefix: str, other: str) -> None:
    sink = S3Sink(f"s3://vitals/{prefix}/{len(other)}")
    assert send(sink, make_batch(other)) == STORED
    told = "what is stored under the name of this batch is not this batch: move it away"
    assert send(sink, make_batch()) == Answer(Verdict.BLOCKED, told)
    (held,) = seaweed.objects("vitals", f"{prefix}/{len(other)}").values()
    assert held == make_batch(other).body


@pytest.mark.usefixtures("_credentials")
def test_a_server_without_conditional_puts(seaweed: Seaweed, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is looked first, and then put."""
    monkeypatch.setenv("AWS_CONDITIONAL_PUT", "disabled")
    sink = S3Sink(f"s3://vitals/{prefix}")
    assert send(sink) == STORED
    assert send(sink) == Answer(Verdict.TAKEN, "stored before")
    assert send(sink, make_batch("other")).verdict is Verdict.BLOCKED
    assert [*seaweed.objects("vitals", prefix).values()] == [make_batch().body]


@pytest.mark.usefixtures("_credentials")
@pytest.mark.anyio
async def test_documents_can_be_read_back(seaweed: Seaweed, prefix: str, house: House) -> None:
    house.record_sessions(7)
    passed = await house.shipper(open_sink(f"s3://vitals/{prefix}"), lines_max=3).ship_once()
    assert (passed.confirmed, passed.batches, passed.state) == (7, 3, "ready")
    read = [document for body in seaweed.objects("vitals", prefix).values() for document in documents(body)]
    assert sorted(read, key=lambda one: str(one["sessionId"])) == [json.loads(line) for line in house.export()]


@pytest.mark.usefixtures("_credentials")
def test_a_batch_of_many_megabytes_is_one_object(seaweed: Seaweed, prefix: str) -> None:
    body = os.urandom(12 * 1024 * 1024)
    sink = S3Sink(f"s3://vitals/{prefix}")
    batch = make_batch()._replace(body=body)
    assert send(sink, batch) == STORED
    assert send(sink, batch) == Answer(Verdict.TAKEN, "stored before")
    assert [*seaweed.objects("vitals", prefix).values()] == [body]


@pytest.mark.usefixtures("_credentials")
@pytest.mark.anyio
async def test_wrong_secret_then_the_right_one(prefix: str, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.record_sessions(1)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    passed = await house.shipper(open_sink(f"s3://vitals/{prefix}")).ship_once()
    assert (passed.state, passed.reason, passed.waiting) == ("blocked", "403 SignatureDoesNotMatch", 1)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    assert (await house.shipper(open_sink(f"s3://vitals/{prefix}")).ship_once()).confirmed == 1


@pytest.mark.usefixtures("_credentials")
def test_who_may_not_and_where_nothing_is(seaweed: Seaweed, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = send(S3Sink("s3://another/x"))  # the key has rights in one bucket only
    assert (answer.verdict, answer.reason) == (Verdict.BLOCKED, "403 AccessDenied")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    answer = send(S3Sink("s3://vitals/x"))
    assert (answer.verdict, answer.reason) == (Verdict.BLOCKED, "403 InvalidAccessKeyId")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(ConfigError, match="Missing AccessKeyId"):
        S3Sink("s3://vitals/x")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    answer = send(S3Sink("s3://vitals/x"))
    told = "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    assert (answer.verdict, answer.reason) == (Verdict.BLOCKED, told)
    assert "another" not in seaweed.objects("vitals")


def test_credentials_in_the_address_are_used_and_never_shown(
    seaweed: Seaweed, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", seaweed.endpoint)
    sink = S3Sink(f"s3://{KEY}:{quote(SECRET, safe='')}@vitals/{prefix}")
    assert send(sink) == STORED
    wrong = S3Sink(f"s3://{KEY}:wrong-secret@vitals/{prefix}")
    answer = send(wrong)
    assert answer.reason == "403 SignatureDoesNotMatch"
    said = f"{sink!r} {sink.address} {wrong!r} {wrong.address} {answer}"
    assert not any(secret in said for secret in (SECRET, quote(SECRET, safe=""), "wrong-secret", KEY + ":"))


@pytest.mark.usefixtures("_credentials")
@pytest.mark.anyio
async def test_stopped_and_back(seaweed: Seaweed, prefix: str, house: House) -> None:
    house.record_sessions(2)
    seaweed.stop()
    try:
        passed = await house.shipper(open_sink(f"s3://vitals/{prefix}")).ship_once()
        assert (passed.state, passed.reason) == ("waiting", "no answer: connection refused")
    finally:
        seaweed.start()
    passed = await house.shipper(open_sink(f"s3://vitals/{prefix}")).ship_once()
    assert (passed.confirmed, passed.state) == (2, "ready")
    (body,) = seaweed.objects("vitals", prefix).values()
    assert documents(body) == [json.loads(line) for line in house.export()]


_SHIPPER = """
import anyio, sys
from sidecar.ship.sinks.s3 import S3Sink
from sidecar.store.outbox import Batch

async def main():
    sink = S3Sink(sys.argv[1])
    answer = await sink.send(Batch(1, sys.argv[2], "shop", b"body", 0, 1, 0, 0), 0)
    await sink.close()
    print(answer.verdict)

anyio.run(main)
"""


def test_a_process_that_has_sent_ends_in_order(seaweed: Seaweed, prefix: str) -> None:
    """With obstore's coroutines 8 of 31 aborted (SIGABRT) at the end of the interpreter."""
    environment = clean_environment() | seaweed.environment()
    ended = []
    for number in range(6):
        command = [sys.executable, "-c", _SHIPPER, f"s3://vitals/{prefix}", f"b-{number}"]
        done = subprocess.run(command, capture_output=True, env=environment, timeout=60, check=False)
        ended.append((done.returncode, done.stdout, done.stderr))
    assert ended == 6 * [(0, b"taken\n", b"")]


# --- addresses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "endpoint", "address"),
    [
        ("s3://vitals/a/b/", None, "s3://vitals/a/b"),
        ("s3://vitals", None, "s3://vitals/"),
        ("s3://me:secret@vitals/a%20b/%C3%BC", None, "s3://vitals/a%20b/%C3%BC"),
        ("s3://vitals/a", "https://eu.store.test/", "s3://vitals/a?endpoint=https://eu.store.test"),
        ("s3://vitals/a", "http://me:secret@10.0.0.1:9000", "s3://vitals/a?endpoint=http://10.0.0.1:9000"),
    ],
)
def test_another_endpoint_is_another_destination(
    url: str, endpoint: str | None, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    sink = S3Sink(url)
    assert (sink.address, repr(sink)) == (address, f"<S3Sink {address}>")


@pytest.mark.parametrize(
    "url", ["s3:///prefix", "s3://b", "s3://bucket:9000/", "s3://bu cket/", "s3://bücket/", "s3://vitals/?region=x"]
)
def test_what_is_no_bucket_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="must be an address like s3://bucket/prefix; the endpoint is AWS_ENDPOINT"):
        open_sink(url)


@pytest.mark.parametrize("endpoint", ["minio:9000", "ftp://host", "http://", "http://host:port", "http://ho st"])
def test_what_is_no_endpoint_is_refused(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(ConfigError, match=r"^AWS_ENDPOINT_URL: must be an address like"):
        open_sink("s3://vitals")


def test_what_obstore_refuses_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"^SIDECAR_UPSTREAM_URL: Could not parse path: .*$"):
        open_sink("s3://vitals/../x")
    monkeypatch.setenv("AWS_CHECKSUM_ALGORITHM", "none such")
    with pytest.raises(ConfigError, match=r"^SIDECAR_UPSTREAM_URL: .*not a valid checksum algorithm$"):
        open_sink("s3://vitals/x")


def test_without_obstore_the_start_says_what_to_install() -> None:
    script = "import sys; sys.modules['obstore'] = None; import sidecar.__main__ as main; main.main()"
    done = subprocess.run(
        [sys.executable, "-c", script, "ship", "--database", "none.db"],
        capture_output=True,
        env=clean_environment(UPSTREAM_URL="s3://vitals/x"),
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        b"sidecar: SIDECAR_UPSTREAM_URL: s3:// needs the package obstore: pip install 'vitals-sidecar[s3]'"
    )


@pytest.mark.parametrize(("site", "batch_id"), [("../evil", "b-1"), ("shop", "../../evil")])
def test_a_hostile_name_is_refused_unsent(site: str, batch_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Answering() as server:
        server.set(monkeypatch)
        answer = send(S3Sink("s3://vitals/x"), make_batch(site=site, batch_id=batch_id))
    assert (answer.verdict, server.requests) == (Verdict.REFUSED, [])


# --- answers that a real server does not give when asked -------------------------------------------------------------


class Answering:
    """A server of scripted answers: each (status, body), then the end of the connection; None: no answer at all."""

    def __init__(self, *replies: tuple[int, str] | None, headers: str = "", tls: ssl.SSLContext | None = None) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._replies = list(replies)
        self._headers = headers
        self._tls = tls
        self.requests: list[str] = []
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)

    def set(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Make it the endpoint."""
        names = {"AWS_ENDPOINT_URL": self.url, "AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "secret"}
        for name, value in names.items():
            monkeypatch.setenv(name, value)

    def __enter__(self) -> Answering:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return  # shut down
            with connection:
                connection.settimeout(10)
                self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        if self._tls:
            try:
                connection = self._tls.wrap_socket(connection, server_side=True)
            except (ssl.SSLError, OSError):
                return  # the other side does not trust us
        request = b""
        while b"\r\n\r\n" not in request:
            request += connection.recv(65536)
        self.requests.append(request.partition(b" HTTP/1.1")[0].decode())
        reply = self._replies.pop(0) if self._replies else (500, "not expected")
        if reply is not None:
            status, body = reply
            head = f"HTTP/1.1 {status} x\r\nContent-Length: {len(body)}\r\nConnection: close\r\n{self._headers}\r\n"
            connection.sendall((head + body).encode())


def code(name: str) -> str:
    return f"<Error><Code>{name}</Code><Message>why so</Message></Error>"


@pytest.mark.parametrize(
    ("status", "body", "verdict", "reason"),
    [
        (200, "", Verdict.AGAIN, "no answer: the connection was lost"),  # without an ETag it is no answer of S3
        (301, code("PermanentRedirect"), Verdict.BLOCKED, "a redirect: is AWS_REGION the region of the bucket?"),
        (400, code("AuthorizationHeaderMalformed"), Verdict.BLOCKED, "400 AuthorizationHeaderMalformed"),
        (400, code("RequestTimeout"), Verdict.AGAIN, "400 RequestTimeout"),
        (400, code("EntityTooLarge"), Verdict.TOO_LARGE, "400 EntityTooLarge"),
        (400, "", Verdict.BLOCKED, "400 Bad Request"),
        (401, "", Verdict.BLOCKED, "401 Unauthorized"),
        (403, code("RequestTimeTooSkewed"), Verdict.BLOCKED, "403 RequestTimeTooSkewed"),
        (404, code("NoSuchBucket"), Verdict.BLOCKED, "404 NoSuchBucket"),
        (405, "", Verdict.BLOCKED, "405 Method Not Allowed"),
        (413, "", Verdict.TOO_LARGE, "413 Request Entity Too Large"),
        (422, "", Verdict.BLOCKED, "422"),
        (429, "", Verdict.AGAIN, "429 Too Many Requests"),
        (500, code("InternalError"), Verdict.AGAIN, "500 InternalError"),
        (503, code("SlowDown"), Verdict.AGAIN, "503 SlowDown"),
        (507, "", Verdict.AGAIN, "507 Insufficient Storage"),
    ],
)
def test_one_request_and_its_verdict(
    status: int, body: str, verdict: Verdict, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Answering((status, body), (status, body)) as server:
        server.set(monkeypatch)
        answer = send(S3Sink("s3://vitals/x"))
    assert answer.verdict is verdict, answer
    assert answer.reason.startswith(reason), answer
    assert "127.0.0.1" not in answer.text
    assert answer.detail in ("", "why so")
    assert server.requests == ["PUT /vitals/x/site%3Dshop/dt%3D2026-11-22/b-1.ndjson.gz"]


def test_a_redirect_is_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    with Answering((200, "")) as target, Answering((307, ""), headers=f"Location: {target.url}/x\r\n") as server:
        server.set(monkeypatch)
        assert send(S3Sink("s3://vitals/x")).verdict is Verdict.BLOCKED
    assert target.requests == []


def test_not_implemented_means_look_and_then_put(monkeypatch: pytest.MonkeyPatch) -> None:
    with Answering((501, code("NotImplemented")), (404, ""), (200, ""), headers='ETag: "x"\r\n') as server:
        server.set(monkeypatch)
        assert send(S3Sink("s3://vitals/x")) == STORED
    assert [request.split()[0] for request in server.requests] == ["PUT", "GET", "PUT"]


def test_of_two_puts_at_a_time_none_may_have_been_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    with Answering((409, code("ConditionalRequestConflict")), (404, code("NoSuchKey"))) as server:
        server.set(monkeypatch)
        assert send(S3Sink("s3://vitals/x")) == Answer(Verdict.AGAIN, "409 Conflict")


def test_what_is_there_but_may_not_be_read_is_not_confirmed(monkeypatch: pytest.MonkeyPatch) -> None:
    with Answering((412, ""), (403, code("AccessDenied"))) as server:
        server.set(monkeypatch)
        answer = send(S3Sink("s3://vitals/x"))
    assert (answer.verdict, answer.reason) == (Verdict.BLOCKED, "403 AccessDenied")


def test_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with Answering(None) as server:
        server.set(monkeypatch)
        answer = send(S3Sink("s3://vitals/x"))
    assert (answer.verdict, answer.reason) == (Verdict.AGAIN, "no answer: the connection was lost")
    assert len(server.requests) == 1
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://upstream.invalid")
    answer = send(S3Sink("s3://vitals/x"))
    assert (answer.verdict, answer.reason) == (Verdict.AGAIN, "no answer: the host name was not found")


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A server that takes connections and never says anything."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "me")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{listener.getsockname()[1]}")
        yield


@pytest.mark.usefixtures("silent")
def test_no_answer_in_time() -> None:
    began = time.monotonic()
    answer = send(S3Sink("s3://vitals/x", timeout_s=0.5))
    assert (answer.verdict, answer.reason) == (Verdict.AGAIN, "no answer in time")
    assert 0.4 < time.monotonic() - began < 5


@pytest.mark.usefixtures("silent")
def test_cancelled_it_ends_at_once_and_closing_has_a_bound() -> None:
    async def work() -> tuple[float, float]:
        sink = S3Sink("s3://vitals/x", timeout_s=CLOSE_WAIT_S + 2)
        began = time.monotonic()
        with anyio.move_on_after(0.2):
            await sink.send(make_batch(), 0)
        cancelled = time.monotonic()
        await sink.close()
        return cancelled - began, time.monotonic() - cancelled

    cancelled_s, closed_s = anyio.run(work)
    assert 0.2 <= cancelled_s < 1
    assert CLOSE_WAIT_S <= closed_s < CLOSE_WAIT_S + 1


def test_a_certificate_that_nobody_vouches_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Answering((200, ""), tls=_certify(tmp_path)) as server:
        server.set(monkeypatch)
        answer = send(S3Sink("s3://vitals/x"))
    assert answer.verdict is Verdict.BLOCKED
    assert answer.reason.startswith("TLS refused: ")
    assert server.requests == []


def _certify(folder: Path) -> ssl.SSLContext:
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    if shutil.which("openssl") is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("openssl is missing: apt-get install openssl")
    command: list[Any] = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=localhost", "-keyout", key, "-out", certificate]
    subprocess.run(command, capture_output=True, check=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    return context


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN", "AWS_REGION"])
def test_a_line_end_in_a_variable_is_told_and_ends_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """object_store panics, which no `except Exception` takes."""
    with Answering() as server:
        server.set(monkeypatch)
        monkeypatch.setenv(name, "two\nlines")
        answer = send(S3Sink("s3://vitals/x"))
    told = "the request cannot be made: are the AWS_ variables well-formed?"
    assert (answer.verdict, answer.reason) == (Verdict.BLOCKED, told)
