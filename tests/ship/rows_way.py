"""Rows of the fault matrix: what goes wrong on the way to the receiver and back, and what it answers."""

from __future__ import annotations

import os
import re
import shutil
import signal
import ssl
import subprocess
import time
from email.utils import formatdate
from pathlib import Path

import pytest

from sidecar.store import outbox
from sidecar.store.outbox import Destination
from tests.proxy import Fault, Proxy, http_answer, wait_until
from tests.ship.bench import PATH, SESSIONS, TOKEN, Bench, Row, lines_of, named, pack

# --- rows that only differ in what happens ---------------------------------------------------------------------------


def trouble(fault: Fault, state: str, reason: str, *, committed: bool = False) -> Row:
    """Every request meets the fault until it is gone. `committed`: the receiver has the batch all the same."""

    def row(bench: Bench) -> None:
        bench.sender.record_sessions(SESSIONS)
        bench.proxy.rule = lambda _: fault
        with bench.serving() as sender:
            bench.await_health(sender, state, reason)
            bench.expect(state, reason, waitingSessions=SESSIONS, confirmedSessions=0, parkedSessions=0)
            assert bench.count_receipts() == int(committed)
            bench.proxy.rule = None
            ended = bench.ship()
            assert (ended.code, ended.out.count("still waiting")) == (0, 0), ended
            bench.await_health(sender, "ready", None)
        bench.same_bytes()
        bench.check()

    return row


def delivered(*faults: Fault, requests: int = 1) -> Row:
    """One pass delivers everything, whatever happens on the way, with so many requests."""

    def row(bench: Bench) -> None:
        bench.sender.record_sessions(SESSIONS)
        bench.proxy.faults = list(faults)
        ended = bench.ship()
        assert (ended.code, len(bench.proxy.requests)) == (0, requests), ended
        bench.check()

    return row


def waits(status: int) -> Row:
    """The same bytes again, later."""
    return trouble(Fault(answer=http_answer(status, b'{"error":"busy"}')), "waiting", named(status))


def blocks(status: int) -> Row:
    """Somebody has to do something."""
    answer = http_answer(status, b"no", "Location: /elsewhere\r\n")
    return trouble(Fault(answer=answer), "blocked", named(status))


def takes(status: int) -> Row:
    """Any 2xx confirms."""

    def relabel(answer: bytes) -> bytes:
        _, _, rest = answer.partition(b"\r\n")
        if status == 204:
            return b"HTTP/1.1 204 Said\r\nConnection: close\r\n\r\n"
        return f"HTTP/1.1 {status} Said\r\n".encode() + rest

    return delivered(Fault(edit_answer=relabel))


def cut_at_a_line(body: bytes) -> bytes:
    """A batch cut at the end of a line by somebody who packs it again, so that no gzip tells."""
    return pack(lines_of(body)[: SESSIONS // 2])


def without_end(answer: bytes) -> bytes:
    """The answer's first lines, and no word of a length."""
    return answer.partition(b"\r\n")[0] + b"\r\nConnection: close\r\n\r\n"


# --- Retry-After: with a clock that is set ---------------------------------------------------------------------------


def asked(header: str, least_ms: int, most_ms: int, *, binds: bool = True) -> Row:
    """The wait lies within these bounds; `binds`: also a person's pass waits for its end."""

    def row(bench: Bench) -> None:
        sender = bench.sender
        sender.record_sessions(SESSIONS)
        value = header or formatdate((sender.now + 30_000) // 1000, usegmt=True)
        bench.proxy.faults = [Fault(answer=http_answer(503, b"", f"Retry-After: {value}\r\n"))]
        assert bench.ship_here().state == "waiting"
        bench.expect("waiting", "503 Service Unavailable", waitingSessions=SESSIONS)
        found = sender.read(outbox.read_destination)
        assert isinstance(found, Destination)
        assert least_ms <= found.next_attempt_at - sender.now <= most_ms
        if binds:
            sender.now = found.next_attempt_at - 1
            assert (bench.ship_here().requests, len(bench.proxy.requests)) == (0, 1), "one ms early"
            sender.now += 1
        assert bench.ship_here().confirmed == SESSIONS
        bench.same_bytes()
        bench.check()

    return row


# --- the way there ---------------------------------------------------------------------------------------------------


def nobody_listens(bench: Bench) -> None:
    """The destination is down."""
    bench.sender.record_sessions(SESSIONS)
    bench.proxy.close()
    with bench.serving() as sender:
        bench.await_health(sender, "waiting", "no answer: connection refused")
        bench.expect("waiting", "no answer: connection refused", waitingSessions=SESSIONS)
        bench.proxy.open()
        assert bench.ship().code == 0
        bench.await_health(sender, "ready", None)
    bench.check()


def unknown_host(bench: Bench) -> None:
    """DNS does not know the host; the address is mended, which makes it another destination."""
    bench.sender.record_sessions(SESSIONS)
    right = bench.settings["UPSTREAM_URL"]
    bench.settings["UPSTREAM_URL"] = "http://upstream.invalid/api/sessions"
    ended = bench.ship()
    said = (
        "0 sessions shipped in 0 batches (1 requests), 4 still waiting; waiting: no answer: the host name was not found"
    )
    assert (ended.code, ended.out.strip()) == (1, said)
    bench.settings["UPSTREAM_URL"] = right
    assert bench.ship().code == 0
    bench.check()


def tls_not_trusted(bench: Bench) -> None:
    """A certificate that nobody vouches for; then somebody does."""
    key, certificate = make_certificate(bench.folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    bench.sender.record_sessions(SESSIONS)
    with Proxy(bench.receiver.port, tls=context) as proxy:
        bench.settings["UPSTREAM_URL"] = proxy.url
        with bench.serving() as sender:
            bench.await_health(sender, "blocked", "TLS refused: self-signed certificate")
        assert proxy.refused_handshakes >= 1
        assert proxy.requests == [], "nothing was said to a stranger"
        assert bench.ship(variables={"SSL_CERT_FILE": str(certificate)}).code == 0
        assert len(proxy.requests) == 1
    bench.check()


def tls_where_there_is_none(bench: Bench) -> None:
    """`https://` to a server that speaks plain HTTP."""
    bench.sender.record_sessions(SESSIONS)
    bench.settings["UPSTREAM_URL"] = bench.receiver.url.replace("http:", "https:") + PATH
    with bench.serving() as sender:
        bench.await_health(sender, "blocked", "TLS refused: wrong version number")
    bench.settings["UPSTREAM_URL"] = bench.proxy.url
    assert bench.ship().code == 0
    bench.check()


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A key and a self-signed certificate for 127.0.0.1."""
    if shutil.which("openssl") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("openssl is missing: apt-get install openssl")
        pytest.skip("openssl is missing: apt-get install openssl")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    name = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", *kind, *name, "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    return key, certificate


# --- the way back ----------------------------------------------------------------------------------------------------


def silence(bench: Bench) -> None:
    """Half open: the request is taken and nobody answers."""
    bench.sender.record_sessions(SESSIONS)
    bench.proxy.faults = [Fault(hold=True)]
    assert bench.ship_here(timeout_s=0.3).state == "waiting"
    bench.expect("waiting", "no answer in time", waitingSessions=SESSIONS)
    assert bench.ship().code == 0
    bench.same_bytes()
    bench.check()


def too_slow(bench: Bench) -> None:
    """The answer begins in time and does not end in time; the receiver has the batch."""
    bench.sender.record_sessions(SESSIONS)
    bench.proxy.faults = [Fault(bytes_a_second=50)]
    began = time.monotonic()
    assert bench.ship_here(timeout_s=0.4).state == "waiting"
    assert time.monotonic() - began < 5, "the whole answer is bounded, not each byte"
    bench.expect("waiting", "no answer in time", waitingSessions=SESSIONS)
    assert bench.count_receipts() == 1
    assert bench.ship().code == 0
    bench.same_bytes()
    bench.check()


def stopped_in_silence(bench: Bench) -> None:
    """SIGTERM while the destination is silent: the server ends all the same, and the next one sends again."""
    bench.sender.record_sessions(SESSIONS)
    bench.proxy.faults = [Fault(hold=True)]
    with bench.serving() as sender:
        wait_until(lambda: len(bench.proxy.requests) == 1, "a request")
        began = time.monotonic()
        sender.stop()
        assert time.monotonic() - began < 5
        assert sender.fork.code == -signal.SIGTERM, "uvicorn's way to end in order"
        assert "Traceback" not in sender.fork.log()
    bench.expect("ready", None, waitingSessions=SESSIONS)
    assert bench.ship().code == 0
    bench.same_bytes()
    bench.check()


# --- what somebody has to mend ---------------------------------------------------------------------------------------


def redirect(bench: Bench) -> None:
    """A redirect is not followed: documents go where the settings say and nowhere else."""
    bench.sender.record_sessions(SESSIONS)
    with Proxy(bench.receiver.port) as elsewhere:
        answer = http_answer(307, b"", f"Location: {elsewhere.url}\r\n")
        bench.proxy.rule = lambda _: Fault(answer=answer)
        with bench.serving() as sender:
            bench.await_health(sender, "blocked", "307 Temporary Redirect")
            assert "127.0.0.1" not in sender.get("/healthz").text
        assert elsewhere.requests == []
    bench.proxy.rule = None
    assert bench.ship().code == 0
    bench.check()


def wrong_token(bench: Bench) -> None:
    """A real receiver's 401; then the token is mended and the server restarted."""
    bench.sender.record_sessions(SESSIONS)
    with bench.serving(variables={"SIDECAR_UPSTREAM_TOKEN": "wrong"}) as sender:
        bench.await_health(sender, "blocked", "401 Unauthorized")
    status = bench.forks.run("status", settings=bench.settings).out
    assert re.search(r"blocked: 401 Unauthorized from upstream since \d\d:\d\d UTC, 4 sessions waiting", status)
    with bench.serving() as sender:
        bench.await_health(sender, "ready", None)
    bench.same_bytes()
    bench.check()


def no_receiving(bench: Bench) -> None:
    """A receiver that has no RECEIVE_TOKEN says 403, until it has one."""
    bench.sender.record_sessions(SESSIONS)
    bench.restart_receiver(RECEIVE_TOKEN="")
    with bench.serving() as sender:
        bench.await_health(sender, "blocked", "403 Forbidden")
    bench.restart_receiver(RECEIVE_TOKEN=TOKEN)
    assert bench.ship().code == 0
    bench.check()


def no_such_path(bench: Bench) -> None:
    """A real receiver's 404 for a mistyped address."""
    bench.sender.record_sessions(SESSIONS)
    right = bench.settings["UPSTREAM_URL"]
    bench.settings["UPSTREAM_URL"] = right + "s"
    with bench.serving() as sender:
        bench.await_health(sender, "blocked", "404 Not Found")
    bench.settings["UPSTREAM_URL"] = right
    assert bench.ship().code == 0
    bench.check()
