"""What is said of shipping, to people and to Prometheus: states in words, progress, metrics, a new destination."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from sidecar.ship.sinks import Answer, Verdict
from sidecar.store import outbox, shipping
from sidecar.store.database import Connection
from sidecar.store.outbox import Batch
from sidecar.store.tombstones import Tombstone, hash_of, put
from tests.builders import event
from tests.servers import Server, clean_environment, sidecar
from tests.ship.house import ADDRESS, NOW, TAKEN, TIMEOUT_MS, House, Reply, ScriptedSink, Upstream

MINUTE = 60_000
SESSIONS_SHOWN = 3
DENIED = Reply(401, b'{"error":"wrong token"}')


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    """Three finished sessions by the real clock, for programs."""
    with House(tmp_path / "filled.db") as house:
        house.now = time.time_ns() // 1_000_000
        house.record_sessions(SESSIONS_SHOWN)
    return house.path


def settings_of(upstream: Upstream, database: Path, **settings: str) -> dict[str, Any]:
    return {"DATABASE": str(database), "SITE": "default", "UPSTREAM_URL": upstream.url, **settings}


def status_of(**settings: Any) -> dict[str, str]:
    """The lines of `sidecar status` by their label."""
    done = sidecar("status", **settings)
    assert (done.returncode, done.stderr) == (0, b"")
    return {line[:24].strip(): line[24:] for line in done.stdout.decode().splitlines()}


def await_sentence(url: str, wanted: str) -> dict[str, Any]:
    """Until /healthz has a sentence that `wanted` matches; what it says of shipping."""
    deadline = time.monotonic() + 20
    while True:
        answer = httpx2.get(f"{url}/healthz", verify=False)
        assert (answer.status_code, answer.json()["status"]) == (200, "ok"), "trouble upstream is no trouble here"
        said: dict[str, Any] = answer.json()["shipping"]
        if re.fullmatch(wanted, said["sentence"]):
            return said
        assert time.monotonic() < deadline, said
        time.sleep(0.02)


# --- sentences -------------------------------------------------------------------------------------------------------


def named(conn: Connection) -> None:
    outbox.set_destination(conn, ADDRESS, NOW - 90 * MINUTE)


def blocked(conn: Connection) -> None:
    named(conn)
    outbox.block(
        conn, ADDRESS, reason="401 Unauthorized", until=NOW + 4 * MINUTE - 1, failures=1, now=NOW - 10 * MINUTE
    )


def blocked_yesterday(conn: Connection) -> None:
    named(conn)
    reason = "TLS refused: certificate has expired"
    outbox.block(conn, ADDRESS, reason=reason, until=NOW, failures=9, now=NOW - 1440 * MINUTE)


def waiting(conn: Connection) -> None:
    named(conn)
    outbox.postpone(conn, ADDRESS, reason="no answer in time", until=NOW + 39_001, failures=1, now=NOW - MINUTE)


def asked_to_wait(conn: Connection) -> None:
    named(conn)
    reason = "503 Service Unavailable"
    outbox.postpone(conn, ADDRESS, reason=reason, until=NOW + 60 * MINUTE, failures=1, now=NOW, asked=True)


def clock_set_back(conn: Connection) -> None:
    named(conn)
    outbox.postpone(conn, ADDRESS, reason="no answer in time", until=NOW + 61 * MINUTE, failures=1, now=NOW)


def erased(conn: Connection) -> None:
    named(conn)
    put(conn, Tombstone("default", hash_of("default", "v"), frozenset(), NOW), NOW)


def turned_off(conn: Connection) -> None:
    named(conn)
    outbox.set_destination(conn, None, NOW)


@pytest.mark.parametrize(
    ("put_state", "sessions", "sentence"),
    [
        (lambda _: None, 3, "off: no destination was named yet (SIDECAR_UPSTREAM_URL)"),
        (turned_off, 3, "off: SIDECAR_UPSTREAM_URL is not set any more, and everything is kept"),
        (named, 0, "ready: nothing waiting, nothing delivered yet"),
        (named, 3, "ready: 3 sessions waiting, the oldest since 06:00 UTC"),
        (named, 1, "ready: 1 session waiting, the oldest since 06:00 UTC"),
        (named, 11, "ready: more than 10 sessions waiting, the oldest since 06:00 UTC"),
        (erased, 0, "ready: no session waiting, 1 erasure waiting, nothing delivered yet"),
        (
            blocked,
            3,
            "blocked: 401 Unauthorized from upstream since 06:50 UTC, 3 sessions waiting, next attempt in 4 min",
        ),
        (
            blocked_yesterday,
            0,
            "blocked: TLS refused: certificate has expired since 2026-11-21 07:00 UTC, nothing waiting, "
            "next attempt is due",
        ),
        (waiting, 3, "waiting: no answer in time since 06:59 UTC, 3 sessions waiting, next attempt in 40 s"),
        (
            asked_to_wait,
            3,
            "waiting: 503 Service Unavailable from upstream since 07:00 UTC, 3 sessions waiting, "
            "next attempt in 60 min, as it asked",
        ),
        (clock_set_back, 1, "waiting: no answer in time since 07:00 UTC, 1 session waiting, next attempt is due"),
    ],
)
def test_every_state_has_a_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    put_state: Callable[[Connection], None],
    sessions: int,
    sentence: str,
) -> None:
    """/healthz and /api/shipping say the same; only that the latter counts all."""
    monkeypatch.setattr(shipping, "COUNTED_MAX", 10)
    with House(tmp_path / "house.db") as house:
        house.record_sessions(sessions)
        house.write(put_state)
        health = house.read(lambda conn: shipping.read_health(conn, NOW, TIMEOUT_MS))
        told = house.shipping()
    assert health["sentence"] == sentence
    assert told["sentence"] == sentence.replace("more than 10", "11")
    assert health["state"] == told["state"] == sentence.partition(":")[0]
    assert health["nextAttemptAt"] == told["nextAttemptAt"]


@pytest.mark.anyio
async def test_what_was_delivered_and_refused_is_said(house: House) -> None:
    house.record_sessions(2)
    house.write(named)
    script = ScriptedSink(lambda _: TAKEN._replace(rejected={1: "no"}))
    await house.shipper(script).ship_once()
    sentence = "ready: nothing waiting, 1 refused and parked, last delivery 07:00 UTC"
    assert house.shipping()["sentence"] == sentence
    assert house.read(lambda conn: shipping.read_health(conn, NOW, TIMEOUT_MS))["sentence"] == sentence


def test_health_costs_the_same_however_much_waits(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in steps of SQLite's machine, which no load of the computer changes."""
    monkeypatch.setattr(shipping, "COUNTED_MAX", 20)
    house.write(named)

    def count_steps(conn: Connection) -> int:
        steps = 0

        def step() -> int:
            nonlocal steps
            steps += 1
            return 0

        conn.set_progress_handler(step, 1)
        shipping.read_health(conn, house.now, TIMEOUT_MS)
        conn.set_progress_handler(None, 1)
        return steps

    seen = []
    for first, more in ((0, 10), (10, 90), (100, 400)):
        house.record_sessions(more, first=first)
        seen.append(house.read(count_steps))
    assert seen[0] < seen[1] == seen[2]


@pytest.mark.anyio
async def test_attempts_are_counted_by_what_came_of_them(house: House) -> None:
    """Five verdicts, one of each."""
    house.record_sessions(3)
    answers = [
        Answer(Verdict.AGAIN, "503 Service Unavailable"),
        Answer(Verdict.BLOCKED, "401 Unauthorized"),
        Answer(Verdict.REFUSED, "400 Bad Request"),  # halved: one line, two lines
        Answer(Verdict.REFUSED, "400 Bad Request"),  # the one is parked
    ]

    def script(_: Batch) -> Answer:
        return answers.pop(0) if answers else TAKEN

    shipper = house.shipper(ScriptedSink(script))
    assert set(shipper.attempts.values()) == {0}
    for _ in range(3):
        await shipper.ship_once()
    assert shipper.attempts == {"confirmed": 1, "again": 1, "split": 1, "parked": 1, "blocked": 1}
    assert sum(shipper.attempts.values()) == shipper.requests_count


@pytest.mark.anyio
async def test_a_pass_tells_how_far_it_is(house: House) -> None:
    """Sessions confirmed or parked, of those that wait; unfinished ones are among them where they are shipped."""
    house.record_sessions(5)
    house.record(event("running"), ago_ms=1000)
    told: list[tuple[int, int]] = []
    shipper = house.shipper(ScriptedSink(lambda _: TAKEN._replace(rejected={0: "no"})), lines_max=2)
    await shipper.ship_once(show=lambda *said: told.append(said))
    assert told == [(0, 5), (2, 5), (4, 5), (5, 5)]
    told.clear()
    await shipper.ship_once(include_unfinished=True, show=lambda *said: told.append(said))
    assert told == [(0, 1), (1, 1)]


# --- a server --------------------------------------------------------------------------------------------------------


def test_a_blocked_destination_is_said_everywhere(filled: Path) -> None:
    """The same sentence in /healthz, /api/shipping and `status`; /healthz names no address and no id."""
    sentence = (
        r"blocked: 401 Unauthorized from upstream since (\d{4}-\d\d-\d\d )?\d\d:\d\d UTC, 3 sessions waiting, "
        r"next attempt in [45] min"
    )
    with Upstream(*[DENIED] * 9) as upstream:
        url = upstream.url.replace("//", "//name:pass-word@")
        given = settings_of(upstream, filled, UPSTREAM_URL=url, DASHBOARD_TOKEN="t0ken")
        given.pop("DATABASE")
        with Server(filled, **given) as server:
            said = await_sentence(server.url, sentence)
            assert set(said) == {"state", "reason", "since", "nextAttemptAt", "sentence"}
            assert (said["state"], said["reason"]) == ("blocked", "401 Unauthorized")
            text = httpx2.get(f"{server.url}/healthz", verify=False).text
            port = upstream.url.rpartition(":")[2].partition("/")[0]
            assert not any(hidden in text for hidden in ("127.0.0.1", port, "pass-word", "s-00", "wrong token"))

            bearer = {"Authorization": "Bearer t0ken"}
            told = httpx2.get(f"{server.url}/api/shipping", headers=bearer, verify=False).json()
            assert re.fullmatch(sentence, told["sentence"])
            assert told["attempts"] == {"confirmed": 0, "again": 0, "split": 0, "parked": 0, "blocked": 1}
            assert told["oldestWaitingSeconds"] >= TIMEOUT_MS // 1000
            assert httpx2.get(f"{server.url}/metrics", verify=False).status_code == 403
            families = read_metrics(httpx2.get(f"{server.url}/metrics", headers=bearer, verify=False).text)
            status = status_of(DATABASE=str(filled), SITE="default", UPSTREAM_URL=url)
    assert re.fullmatch(sentence, status["shipping"])
    assert (status["shipping to"], status["sessions waiting"]) == (upstream.url, "3, 0 unfinished")
    assert families["sidecar_destination_state"] == {"ready": 0, "waiting": 0, "blocked": 1, "off": 0}
    assert families["sidecar_ship_attempts"] == told["attempts"]
    assert families["sidecar_ship_sessions"] == {"confirmed": 0, "parked": 0}
    assert families["sidecar_sessions_waiting"] == {"": 3}
    assert families["sidecar_oldest_unshipped_age_seconds"][""] >= TIMEOUT_MS / 1000
    for name in ("sessions_confirmed", "sessions_parked", "tombstones_waiting", "tombstones_refused"):
        assert families[f"sidecar_{name}"] == {"": 0}


def read_metrics(text: str) -> dict[str, dict[str, float]]:
    """The families of ours by name: values by the only label ('' where there is none). Each has a help text."""
    found: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation.endswith("."), family.name
        assert all(len(sample.labels) <= 1 for sample in family.samples)
        found[family.name] = {"".join(sample.labels.values()): sample.value for sample in family.samples}
    return found


def test_without_a_destination(filled: Path) -> None:
    """Nothing is counted as an attempt, and the state is off."""
    with Server(filled, DASHBOARD_TOKEN="t0ken") as server:
        said = await_sentence(server.url, r"off: no destination was named yet \(SIDECAR_UPSTREAM_URL\)")
        families = read_metrics(
            httpx2.get(f"{server.url}/metrics", headers={"Authorization": "Bearer t0ken"}, verify=False).text
        )
    assert (said["state"], said["reason"]) == ("off", None)
    assert families["sidecar_destination_state"] == {"ready": 0, "waiting": 0, "blocked": 0, "off": 1}
    assert set(families["sidecar_ship_attempts"].values()) == {0}


def test_delivered_and_a_pass_that_fails_by_itself(filled: Path) -> None:
    """A lock file that is a directory: no destination is to blame, and the sentence says where to look."""
    with Upstream() as upstream:
        given = settings_of(upstream, filled)
        given.pop("DATABASE")
        with Server(filled, **given) as server:
            await_sentence(server.url, r"ready: nothing waiting, last delivery .*UTC")
        lock = Path(f"{filled}.ship.lock")
        lock.unlink()
        lock.mkdir()
        with Server(filled, **given) as server:
            await_sentence(server.url, r"ready: .*UTC; the last pass of shipping failed, the log says why")
            assert "a shipping pass failed" in server.log.read_text()


# --- the commands ----------------------------------------------------------------------------------------------------


def test_progress_of_ship_is_shown_on_a_terminal(filled: Path) -> None:
    """A bar on stderr where that is a terminal, nothing where it is not; the sentence on stdout either way."""
    parent, child = pty.openpty()
    with Upstream() as upstream:
        given = settings_of(upstream, filled, SHIP_BATCH_SIZE="1")
        environment = clean_environment(**given) | {"TERM": "xterm"}
        command = [sys.executable, "-m", "sidecar", "ship"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=child, env=environment)
        os.close(child)
        shown = b""
        while True:
            try:
                part = os.read(parent, 4096)
            except OSError:  # the other end is closed
                break
            shown += part
        os.close(parent)
        said, _ = process.communicate(timeout=60)
        assert (process.returncode, said) == (0, b"3 sessions shipped in 3 batches (3 requests)\n"), shown
        assert b"shipping" in shown
        assert b"3/3" in shown
        done = sidecar("ship", **given)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"0 sessions shipped in 0 batches (0 requests)\n", b"")


def test_ctrl_c_ends_ship_in_order(filled: Path) -> None:
    """In the middle of the second batch: the first stays confirmed, the second goes again under its id."""
    with Upstream(Reply(), Reply(delay_s=10)) as upstream:
        given = settings_of(upstream, filled, SHIP_BATCH_SIZE="1")
        command = [sys.executable, "-m", "sidecar", "ship"]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdout=pipe, stderr=pipe, env=clean_environment(**given))
        deadline = time.monotonic() + 30
        while len(upstream.requests) < 2:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        said, complaint = process.communicate(timeout=30)
        assert time.monotonic() - began < 5, "it did not wait for the answer"
        assert (process.returncode, said) == (130, b"")
        assert complaint == b"interrupted: 1 sessions shipped, the others stay for the next pass\n"
        done = sidecar("ship", **given)
        assert done.stdout == b"2 sessions shipped in 2 batches (2 requests)\n"
        keys = [request.headers["idempotency-key"] for request in upstream.requests]
    assert len(keys) == 4
    assert keys[1] == keys[2]
    assert len({*keys}) == 3
    assert sidecar("verify", DATABASE=str(filled)).returncode == 0


def test_a_change_of_the_destination_is_said(filled: Path) -> None:
    """Before it happens, and after: everything held ships to the new one."""
    with Upstream() as first, Upstream() as second:
        fresh = status_of(**settings_of(first, filled))
        assert fresh["shipping to"] == f"{first.url} (with the next pass)"
        assert "destination changed" not in fresh
        assert sidecar("ship", **settings_of(first, filled)).returncode == 0
        settled = status_of(**settings_of(first, filled))
        assert (settled["shipping to"], settled["sessions confirmed"]) == (first.url, "3")
        assert not {"destination changes", "destination changed"} & {*settled}

        coming = status_of(**settings_of(second, filled))
        assert coming["shipping to"] == first.url
        assert coming["destination changes"] == f"with the next pass, to {second.url}: all 3 sessions ship to it"

        second.replies = [DENIED]
        assert sidecar("ship", **settings_of(second, filled)).returncode == 1
        changed = status_of(**settings_of(second, filled))
        assert changed["shipping to"] == second.url
        told = re.escape(f", from {first.url}: all 3 sessions ship to the new one, 0 are confirmed")
        assert re.fullmatch(rf"\d{{4}}-\d\d-\d\dT[\d:.]+Z{told}", changed["destination changed"])
        assert "3 sessions waiting" in changed["shipping"]

        done = sidecar("ship", **settings_of(second, filled))
        assert done.stdout == b"3 sessions shipped in 1 batches (1 requests)\n"
        there = status_of(**settings_of(second, filled))
        assert there["destination changed"].endswith("all 3 sessions ship to the new one, 3 are confirmed")
        assert there["shipping"].startswith("ready: nothing waiting, last delivery ")


def test_status_survives_a_destination_that_cannot_be(filled: Path) -> None:
    """A command that says what is wrong does not end on it."""
    status = status_of(DATABASE=str(filled), SITE="default", UPSTREAM_URL="clickhouse://h/a?b=c")
    assert status["warning"].startswith("SIDECAR_UPSTREAM_URL: must be like clickhouse://")
