"""Contract 8's table, every status of it, and the waits."""

from __future__ import annotations

import random

import httpx2
import pytest

from sidecar.ship.decide import Act, Settlement, decide, read_retry_after
from sidecar.ship.sinks import Answer, Verdict
from sidecar.ship.sinks.http import read_answer
from sidecar.store.outbox import Batch, Destination
from tests.ship.house import NOW

ALL = {*range(200, 600)}
AGAIN = {408, 409, 425, 429, *range(500, 600)} - {501}
TABLE = {
    Act.CONFIRM: {*range(200, 300)},
    Act.WAIT: AGAIN,
    Act.SPLIT: {400, 413, 422},
    Act.BLOCK: ({*range(300, 500)} | {501}) - AGAIN - {400, 413, 422},
}


def batch(lines: int = 500) -> Batch:
    return Batch(1, "b1", "default", b"", 1000, lines, 1, NOW)


def destination(failures: int = 0) -> Destination:
    return Destination("https://upstream.test/", "ready", None, NOW, failures, 0, 0, None, 0, None)


def settled(status: int, *, lines: int = 500, failures: int = 0, **headers: str) -> Settlement:
    named = httpx2.Headers({name.replace("_", "-"): value for name, value in headers.items()})
    return decide(read_answer(status, named, b""), batch(lines), destination(failures), NOW, random.Random(1))


def test_every_status() -> None:
    assert set.union(*TABLE.values()) == ALL
    assert {act: {status for status in ALL if settled(status).act is act} for act in TABLE} == TABLE
    assert settled(999).act is Act.WAIT, "no such status: a broken answer"


def test_a_line_alone_is_parked() -> None:
    assert [settled(status, lines=1).act for status in (400, 413, 422)] == [Act.PARK] * 3
    assert [settled(status, lines=2).too_large for status in (400, 413, 422)] == [False, True, False]


def test_the_wait_doubles_from_two_seconds_to_five_minutes() -> None:
    rng = random.Random(3)
    answer = Answer(Verdict.AGAIN, "503 Service Unavailable")
    for failures, most_ms in enumerate([2000, 4000, 8000, 16000, 32000, 64000, 128_000, 256_000, *[300_000] * 40]):
        waits = [decide(answer, batch(), destination(failures), NOW, rng).until - NOW for _ in range(200)]
        assert most_ms // 2 <= min(waits) < most_ms * 0.53
        assert most_ms * 0.97 < max(waits) <= most_ms
    assert decide(answer, batch(), destination(4), NOW, rng).failures == 5


@pytest.mark.parametrize(
    ("text", "wait_ms"),
    [
        ("120", 120_000),
        (" 7 ", 7_000),
        ("0", 1_000),
        ("3600", 3_600_000),
        ("86400", 3_600_000),
        ("9" * 50, 3_600_000),
        ("Sun, 22 Nov 2026 07:02:00 GMT", 120_000),
        ("Sunday, 22-Nov-26 07:02:00 GMT", 120_000),
        ("Sun, 22 Nov 2026 09:02:00 +0200", 120_000),
        ("Sun, 22 Nov 2026 06:59:00 GMT", 1_000),
        ("Sun, 22 Nov 2037 07:00:00 GMT", 3_600_000),
        ("soon", None),
        ("-5", None),
        ("1.5", None),
        ("", None),
        (None, None),
    ],
)
def test_retry_after(text: str | None, wait_ms: int | None) -> None:
    assert read_retry_after(text, NOW) == wait_ms
    if text and wait_ms:
        found = settled(429, failures=6, Retry_After=text)
        assert (found.until - NOW, found.asked) == (wait_ms, True)


def test_blocked_is_tried_every_five_minutes() -> None:
    found = settled(401, failures=30, Retry_After="7")
    assert (found.act, found.until - NOW, found.asked) == (Act.BLOCK, 300_000, False)


@pytest.mark.parametrize(
    ("body", "rejected"),
    [
        (b'{"rejected":[{"index":1,"reason":"bad"},{"index":1,"reason":"twice"},{"index":3}]}', {1: "bad", 3: None}),
        (b'{"rejected":[{"index":true,"reason":"x"},{"index":-1},{"index":"2"},7,null]}', {}),
        (b'{"rejected":7}', {}),
        (b"[]", {}),
        (b"taken, thanks", {}),
        (b'{"rejected":[{"index":0,"reason":"two\\nlines"}', {}),
        (b'{"rejected":[{"index":0,"reason":"two\\nlines"}]}', {0: "two lines"}),
        (b"[" * 100_000, {}),
    ],
)
def test_lines_rejected_by_a_taken_batch(body: bytes, rejected: dict[int, str | None]) -> None:
    found = read_answer(200, httpx2.Headers(), body)
    assert {
        index: None if reason == "no reason given" else reason for index, reason in found.rejected.items()
    } == rejected


def test_what_is_said_for_people() -> None:
    plain = httpx2.Headers()
    assert read_answer(503, plain, b"").text == "503 Service Unavailable"
    assert read_answer(422, plain, b'{"error":"metric: must be one of"}').text.endswith(
        "Entity: metric: must be one of"
    ) or (
        read_answer(422, plain, b'{"error":"metric: must be one of"}').text.endswith("Content: metric: must be one of")
    )
    assert read_answer(301, httpx2.Headers({"Location": "https://other.test/"}), b"").detail == "https://other.test/"
    long = read_answer(500, plain, b"<html>\x00\xff\n" + b"x" * 5000)
    assert len(long.detail) == 300
    assert long.reason == "500 Internal Server Error"
    assert read_answer(799, plain, b"").reason == "799"
