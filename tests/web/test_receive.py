"""`POST /api/sessions` check by check: what is damaged is noted nowhere, what is whole is applied once."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest

from sidecar.signing import sign
from sidecar.web.receive import RECEIPTS_KEPT_MS, Receive
from tests.builders import event, vital
from tests.ship.house import NOW, House, serve_receiver

SECRETS = tuple(f"whsec_{base64.b64encode(bytes([n]) * 24).decode()}" for n in (1, 2, 3))
TLS = ssl.create_default_context()  # never used, but making one for each request takes longer than the request
OK = {"success": True, "accepted": 0, "duplicate": 0, "superseded": 0, "rejected": []}


@pytest.fixture
def lines(tmp_path: Path) -> list[str]:
    """Documents of three sessions."""
    with House(tmp_path / "sender.db") as sender:
        for number in range(3):
            name = f"s-{number}"
            sender.record(event(name, visitor="visitor-aaaaaa"), vital(name, "LCP", 1000 + number))
        return sender.export()


@pytest.fixture
def upstream(tmp_path: Path) -> Iterator[House]:
    with House(tmp_path / "upstream.db") as opened:
        yield opened


@pytest.fixture
def url(upstream: House) -> Iterator[str]:
    with serve_receiver(upstream) as running:
        yield running


def pack(lines: list[str]) -> bytes:
    return gzip.compress("".join(f"{line}\n" for line in lines).encode(), mtime=0)


def headers_of(body: bytes, records: int, *, key: str = "b1") -> dict[str, str]:
    digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
    return {
        "Authorization": "Bearer secret",
        "Content-Encoding": "gzip",
        "Content-Digest": f"sha-256=:{digest}:",
        "X-Records": str(records),
        "Idempotency-Key": f'"{key}"',
    }


def send(url: str, content: bytes | Iterator[bytes], headers: dict[str, str]) -> httpx2.Response:
    return httpx2.post(url, content=content, headers=headers, verify=TLS)


def post(
    url: str, body: bytes, records: int = 3, changed: dict[str, str] | None = None, *, without: str = "", **more: str
) -> httpx2.Response:
    """Send a body with right headers, but for the changed ones (`more`: _ for -) and the one left out."""
    headers = headers_of(body, records) | {name.replace("_", "-"): value for name, value in more.items()}
    headers.pop(without, None)
    return send(url, body, headers | (changed or {}))


def nothing_noted(upstream: House) -> bool:
    counts = "SELECT (SELECT count(*) FROM receipts) + (SELECT count(*) FROM sessions)"
    return bool(upstream.read(lambda conn: conn.execute(counts).fetchone()) == (0,))


# --- what is taken ---------------------------------------------------------------------------------------------------


def test_a_batch_is_merged_and_answered(url: str, upstream: House, lines: list[str]) -> None:
    response = post(url, pack(lines))
    assert (response.status_code, response.json()) == (200, OK | {"accepted": 3})
    assert response.headers["content-type"] == "application/json"
    assert upstream.export() == lines
    repeated = post(url, pack(lines), Idempotency_Key='"b2"')
    assert repeated.json() == OK | {"duplicate": 3}


def test_plain_lines_are_taken_too(url: str, lines: list[str]) -> None:
    body = ("\r\n".join(lines) + "\n\n").encode()
    assert post(url, body, without="Content-Encoding").json()["accepted"] == 3
    chunked = send(url, iter([body[:9], body[9:]]), _plain(body, "b3"))
    assert chunked.json()["duplicate"] == 3


def _plain(body: bytes, key: str) -> dict[str, str]:
    headers = headers_of(body, 3, key=key)
    del headers["Content-Encoding"]
    return headers


def test_a_gzip_of_countless_members_is_refused_at_once(url: str) -> None:
    """Each copied what is behind it: a million of them took minutes."""
    body = gzip.compress(b"") * 50_000
    began = time.monotonic()
    answer = post(url, body, 1)
    assert (answer.status_code, answer.json()) == (413, {"error": "over 10000 members of gzip"})
    assert time.monotonic() - began < 10


def test_a_gzip_of_several_members_is_one_body(url: str, lines: list[str]) -> None:
    assert post(url, pack(lines[:1]) + pack(lines[1:])).json()["accepted"] == 3


def test_an_older_document_is_superseded(url: str, upstream: House, lines: list[str]) -> None:
    older = json.loads(lines[0])
    upstream.record(vital("s-0", "LCP", 900, at=5), event("s-0", visitor="visitor-aaaaaa"))
    older["revision"] = 1
    assert post(url, pack([json.dumps(older)]), 1).json() == OK | {"superseded": 1}


def test_the_answer_is_kept_for_a_repeat(url: str, upstream: House, lines: list[str]) -> None:
    first = post(url, pack(lines))
    again = post(url, pack(lines))
    assert (again.status_code, again.content) == (200, first.content)
    assert again.json()["accepted"] == 3, "the stored answer, not a new judgement"
    bare = post(url, pack(lines), Idempotency_Key="b1")
    assert bare.content == first.content
    other = post(url, pack(lines[:1]), 1)
    assert (other.status_code, other.json()) == (422, {"error": "Idempotency-Key: was used for another body"})
    upstream.now += RECEIPTS_KEPT_MS + 1
    assert post(url, pack(lines[:1]), 1).json() == OK | {"duplicate": 1}, "receipts are kept for 30 days"


def test_bad_lines_do_not_take_the_good_ones_along(url: str, upstream: House, lines: list[str]) -> None:
    document = json.loads(lines[2])
    bad = [
        "{",
        "[]",
        json.dumps(document | {"type": "tombstone"}),
        json.dumps(document | {"type": "future"}),
        json.dumps(document | {"version": 2}),
        json.dumps(document | {"site": ".."}),
        json.dumps(document | {"revision": 2**53}),
        json.dumps(document | {"webVitals": [], "events": []}),
        '{"type":"session","version":1e999}',
        "[" * 5000,
    ]
    batch = [lines[0], *bad, json.dumps(document | {"unknown": [1]})]
    told = post(url, pack(batch), len(batch)).json()
    assert [entry["index"] for entry in told["rejected"]] == [*range(1, 11)]
    assert all(0 < len(entry["reason"]) <= 200 for entry in told["rejected"])
    assert (told["accepted"], len(upstream.export())) == (2, 2)
    reasons = [entry["reason"] for entry in told["rejected"]]
    assert reasons[4] == "version: must be 1"
    assert reasons[5].startswith("site: must be 1 to 64 of")


def test_a_batch_of_bad_lines_alone_is_answered_line_by_line(url: str) -> None:
    response = post(url, pack(["{}"]), 1)
    assert (response.status_code, response.json()["rejected"][0]["index"]) == (200, 0)


# --- who may ---------------------------------------------------------------------------------------------------------


def test_without_a_token_set_nobody_may(upstream: House, lines: list[str]) -> None:
    with serve_receiver(upstream, tokens=()) as url:
        response = post(url, pack(lines))
    assert response.status_code == 403
    assert "SIDECAR_RECEIVE_TOKEN" in response.json()["error"]


@pytest.mark.parametrize("authorization", ["Bearer wrong", "Bearer secretx", "Bearer", "Basic secret", "", "secret"])
def test_a_wrong_token(url: str, upstream: House, lines: list[str], authorization: str) -> None:
    response = post(url, pack(lines), Authorization=authorization)
    assert (response.status_code, response.json()) == (401, {"error": "wrong token"})
    assert response.headers["www-authenticate"] == "Bearer"
    assert post(url, pack(lines), without="Authorization").status_code == 401
    assert nothing_noted(upstream)


def test_a_token_writes_its_own_sites(upstream: House, lines: list[str]) -> None:
    foreign = json.dumps(json.loads(lines[1]) | {"site": "shop"})
    with serve_receiver(upstream, tokens=(("any", None), ("secret", ("default", "blog")))) as url:
        told = post(url, pack([lines[0], foreign]), 2).json()
        assert told == OK | {"accepted": 1, "rejected": [{"index": 1, "reason": "site: not allowed to this token"}]}
        assert post(url, pack([foreign]), 1, Authorization="bearer any", Idempotency_Key="b9").json()["accepted"] == 1


def test_only_post(url: str) -> None:
    response = httpx2.put(url, content=b"", verify=TLS)
    assert (response.status_code, response.headers["allow"]) == (405, "POST")


# --- signatures ------------------------------------------------------------------------------------------------------


def signed(body: bytes, secret: str, at_s: int = NOW // 1000) -> dict[str, str]:
    return {
        "webhook-id": "b1",
        "webhook-timestamp": str(at_s),
        "webhook-signature": sign(secret, "b1", at_s, gzip.decompress(body)),
    }


def test_signatures_of_either_secret(upstream: House, lines: list[str]) -> None:
    body = pack(lines)
    with serve_receiver(upstream, secrets=SECRETS[:2]) as url:
        for right in SECRETS[:2]:
            assert post(url, body, 3, signed(body, right)).status_code == 200


def test_wrong_missing_and_stale_signatures(upstream: House, lines: list[str]) -> None:
    body = pack(lines)
    good = signed(body, SECRETS[0])
    with serve_receiver(upstream, secrets=SECRETS[:2]) as url:
        wrong = [signed(body, SECRETS[2]), {}, good | {"webhook-timestamp": "x"}, good | {"webhook-id": "b2"}]
        wrong.append(signed(pack(lines[:2]), SECRETS[0]))
        assert [post(url, body, 3, headers).status_code for headers in wrong] == [401] * 5
        for off_s in (-301, 301):
            response = post(url, body, 3, signed(body, SECRETS[0], NOW // 1000 + off_s))
            assert (response.status_code, "five minutes" in response.json()["error"]) == (408, True)
        assert post(url, body, 3, signed(body, SECRETS[2], NOW // 1000 - 301)).status_code == 401
        assert nothing_noted(upstream)
        assert post(url, body, 3, signed(body, SECRETS[0], NOW // 1000 - 300)).status_code == 200


def test_a_secret_that_is_no_base64_stops_the_start(upstream: House) -> None:
    with pytest.raises(ValueError, match="secret must"):
        Receive(upstream.writer, (), ("whsec_A",), lambda: NOW)


def test_lines_that_no_store_can_hold_are_rejected_alone(url: str, upstream: House, lines: list[str]) -> None:
    """Each with its reason, in a batch that is taken: never a 500, and the store can be exported after it."""
    of_vital = json.loads(lines[0])["webVitals"][0]
    broken: list[dict[str, Any]] = [
        {"webVitals": [of_vital | {"timestamp": "9999-12-31T23:59:59-12:00"}]},
        {"webVitals": [of_vital | {"value": 10**400}]},
        {"webVitals": [of_vital | {"delta": 10**400}]},
        {"version": True},
        {"version": 1.0},
    ]
    sent = [json.dumps(json.loads(lines[0]) | {"events": []} | changed) for changed in broken]
    response = post(url, pack([*sent, *lines]), len(sent) + 3)
    reasons = [
        "timestamp: must be an ISO 8601 time",
        "value: must be within 2^53",
        "delta: must be within 2^53",
        "version: must be 1",
        "version: must be 1",
    ]
    rejected = [{"index": index, "reason": reason} for index, reason in enumerate(reasons)]
    assert (response.status_code, response.json()) == (200, OK | {"accepted": 3, "rejected": rejected})
    assert upstream.export() == lines


# --- damage ----------------------------------------------------------------------------------------------------------


def test_damaged_bodies_are_408_and_the_full_retry_succeeds(url: str, upstream: House, lines: list[str]) -> None:
    body = pack(lines)
    flipped = body[:40] + bytes([body[40] ^ 1]) + body[41:]
    whole = headers_of(body, 3)
    as_sent: list[tuple[bytes, dict[str, str]]] = [
        (body[:-20], whole),  # cut, with the digest of the whole
        (flipped, whole),
        (body[:-20], headers_of(body[:-20], 3)),  # cut before it was digested: the gzip tells
        (body[:-4], headers_of(body[:-4], 3)),
        (flipped, headers_of(flipped, 3)),
        (body + b"x", headers_of(body + b"x", 3)),
        (b"", headers_of(b"", 3)),
        (b"\x1f\x8b", headers_of(b"\x1f\x8b", 3)),
        ("\n".join(lines).encode(), headers_of("\n".join(lines).encode(), 3)),  # not packed at all
        (pack(lines[:2]), headers_of(pack(lines[:2]), 3)),  # a line short
        (body, headers_of(body, 2)),
        (body, whole | {"Content-Digest": "sha-256=:AAAA:"}),
        (body, whole | {"Content-Digest": "sha-256=:?:"}),
    ]
    for sent, headers in as_sent:
        response = send(url, sent, headers)
        assert (response.status_code, list(response.json())) == (408, ["error"]), headers
        assert nothing_noted(upstream)
    assert post(url, body).json()["accepted"] == 3


def test_a_body_of_another_length_than_it_says(url: str, upstream: House, lines: list[str]) -> None:
    body = pack(lines)
    parts = urlsplit(url)
    head = "".join(f"{name}: {value}\r\n" for name, value in headers_of(body, 3).items())
    with socket.create_connection((parts.hostname, parts.port)) as wire:
        start = f"POST {parts.path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n{head}\r\n"
        wire.sendall(start.encode() + body[:-30])
        wire.shutdown(socket.SHUT_WR)
        wire.recv(4096)  # the server's way to say so
    assert nothing_noted(upstream)
    assert post(url, body).json()["accepted"] == 3


def test_headers_that_are_missing_from_a_whole_body(url: str, upstream: House, lines: list[str]) -> None:
    body = pack(lines)
    told = {name: post(url, body, without=name) for name in ("Content-Digest", "X-Records", "Idempotency-Key")}
    assert {response.status_code for response in told.values()} == {400}
    assert all(response.json()["error"].startswith(name) for name, response in told.items())
    assert post(url, body, X_Records="three").status_code == 400
    assert post(url, body, Content_Digest="sha-512=:AAAA:").status_code == 400
    assert post(url, body, Idempotency_Key="x" * 256).status_code == 400
    assert post(url, body, Content_Encoding="br").status_code == 415
    assert post(url, pack([]), 0).status_code == 422
    assert nothing_noted(upstream)
    assert post(url, body, Content_Digest=f"unknown=:x:, {headers_of(body, 3)['Content-Digest']}").status_code == 200


def test_too_much(upstream: House) -> None:
    noise = os.urandom(300_000)
    bomb = gzip.compress(bytes(5_000_000))
    with serve_receiver(upstream, packed_max=100_000, unpacked_max=1_000_000) as url:
        packed = post(url, noise, 1)
        assert (packed.status_code, packed.json()) == (413, {"error": "over 100000 bytes packed"})
        chunked = send(url, iter([noise] * 3), headers_of(noise, 1))
        assert chunked.status_code == 413
        unpacked = post(url, bomb, 1)
        assert (unpacked.status_code, unpacked.json()) == (413, {"error": "over 1000000 bytes unpacked"})
        several = gzip.compress(bytes(600_000)) * 2
        assert post(url, several, 1).status_code == 413
    assert nothing_noted(upstream)


# --- trouble of our own ----------------------------------------------------------------------------------------------


def test_a_store_that_is_closing_is_503(url: str, upstream: House, lines: list[str]) -> None:
    upstream.writer.close()
    response = post(url, pack(lines))
    assert (response.status_code, response.json()) == (503, {"error": "shutting down"})
    assert int(response.headers["retry-after"]) > 0


def test_many_at_once_are_applied_once_each(url: str, upstream: House, lines: list[str]) -> None:
    answers: list[dict[str, Any]] = []

    def deliver(number: int) -> None:
        key = f'"k{number % 3}"'
        answers.append(post(url, pack([lines[number % 3]]), 1, Idempotency_Key=key).json())

    threads = [threading.Thread(target=deliver, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [OK | {"accepted": 1}] * 12
    assert upstream.export() == lines
