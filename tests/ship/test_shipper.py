"""Claim, send, settle, against a scripted destination: what is sent, what is kept, what a crash costs."""

from __future__ import annotations

import asyncio
import random
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sidecar.errors import DestinationBusyError
from sidecar.ship import shipper as shipper_module
from sidecar.ship.lock import ShipLock
from sidecar.ship.sinks import Answer, Verdict
from sidecar.store import outbox, shipping
from sidecar.store.outbox import Batch
from tests.builders import event, vital
from tests.ship.house import TAKEN, TIMEOUT_MS, House, ScriptedSink, documents, session_ids

pytestmark = pytest.mark.anyio

DOWN = Answer(Verdict.AGAIN, "503 Service Unavailable", "try later")
REFUSED = Answer(Verdict.REFUSED, "400 Bad Request", "bad line")
TOO_LARGE = Answer(Verdict.TOO_LARGE, "413 Content Too Large")
HOLD = """
import fcntl, sys
lock = open(sys.argv[1], "w")
fcntl.flock(lock, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""
DENIED = Answer(Verdict.BLOCKED, "401 Unauthorized", "wrong token")


def in_turn(*answers: Answer) -> Callable[[Batch], Answer]:
    """The answers in order, then TAKEN."""
    left = list(answers)
    return lambda _: left.pop(0) if left else TAKEN


async def until(happened: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not happened():  # noqa: ASYNC110 - rows of a database set no event
            await asyncio.sleep(0.005)


async def test_one_pass_ships_all_that_is_finished(house: House) -> None:
    house.record_sessions(5)
    house.record(event("running"), ago_ms=1000)
    sink = ScriptedSink()
    shipper = house.shipper(sink, lines_max=2)
    passed = await shipper.ship_once()
    assert [session_ids(batch.body) for batch in sink.sent] == [["s-000", "s-001"], ["s-002", "s-003"], ["s-004"]]
    assert passed.sentence == "5 sessions shipped in 3 batches (3 requests)"
    assert repr(shipper) == "<Shipper idle: 3 requests, 5 sessions confirmed, 0 parked>"
    assert (await shipper.ship_once()).requests == 0
    everything = await shipper.ship_once(include_unfinished=True)
    assert (everything.confirmed, house.shipping()["unfinishedSessions"]) == (1, 0)
    assert documents(sink.sent[-1].body)[0]["finished"] is False


async def test_only_the_background_rests_between_documents(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """A person who ships waits for nothing."""
    rests: list[int] = []
    monkeypatch.setattr(shipper_module, "_rest", lambda: rests.append(1))
    house.record_sessions(2)
    shipper = house.shipper(ScriptedSink())
    assert (await shipper.ship_once()).confirmed == 2
    assert rests == []
    house.record_sessions(3, first=10)
    running = asyncio.create_task(shipper.run())
    await until(lambda: house.shipping()["confirmedSessions"] == 5)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert len(rests) == 3


async def test_a_pass_ends_though_sessions_go_on(house: House) -> None:
    house.record(event("running"), ago_ms=1000)

    def script(batch: Batch) -> Answer:
        house.now += 10
        house.record(event("running", at=house.now), ago_ms=0)
        return TAKEN

    sink = ScriptedSink(script)
    assert (await house.shipper(sink).ship_once(include_unfinished=True)).requests == 1
    assert house.session("running")["shipping"] == "waiting"


async def test_a_retry_is_the_same_bytes_under_the_same_id(house: House) -> None:
    house.record_sessions(2)
    sink = ScriptedSink(in_turn(DOWN, DOWN))
    shipper = house.shipper(sink)
    for _ in range(3):
        await shipper.ship_once()
        house.record(vital("s-000", "CLS", 0.1, at=house.now), ago_ms=0)
        house.now += 1
    first, second, third = sink.sent
    assert first[:-2] == second[:-2] == third[:-2]
    assert [batch.attempts for batch in sink.sent] == [0, 1, 2]
    assert house.shipping()["batches"][0]["attempts"] == 3


async def test_late_facts_ship_again_with_a_higher_revision(house: House) -> None:
    house.record_sessions(1)

    def script(batch: Batch) -> Answer:
        if len(sink.sent) == 1:
            house.record(vital("s-000", "CLS", 0.1))
        return TAKEN

    sink = ScriptedSink(script)
    shipper = house.shipper(sink)
    await shipper.ship_once()
    house.now += TIMEOUT_MS
    await shipper.ship_once()
    [before], [after] = (documents(batch.body) for batch in sink.sent)
    assert after["revision"] > before["revision"]
    assert (len(before["webVitals"]), len(after["webVitals"])) == (1, 2)
    assert house.session("s-000")["shippedRevision"] == after["revision"]


async def test_a_shipper_that_dies_between_send_and_confirm_sends_again(house: House) -> None:
    house.record_sessions(2)
    arrived = asyncio.Event()

    class Dying(ScriptedSink):
        async def send(self, batch: Batch, now: int) -> Answer:  # noqa: ARG002 - nothing is signed
            self.sent.append(batch)
            arrived.set()
            await asyncio.sleep(60)
            raise AssertionError("cancelled before")

    dying, living = Dying(), ScriptedSink()
    task = asyncio.create_task(house.shipper(dying).run())
    await arrived.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    passed = await house.shipper(living).ship_once()
    assert (passed.confirmed, passed.batches) == (2, 1)
    assert living.sent[0][:-2] == dying.sent[0][:-2]


async def test_the_wait_is_kept_and_doubles(house: House) -> None:
    house.record_sessions(1)
    sink = ScriptedSink(lambda _: DOWN)
    waits = []
    for _ in range(10):
        shipper = house.shipper(sink, rng=random.Random(1))  # a new one each time: nothing is in memory
        task = asyncio.create_task(shipper.run())
        sent = len(sink.sent)
        await until(lambda sent=sent: len(sink.sent) > sent and house.shipping()["state"] == "waiting")  # type: ignore[misc]
        await until(lambda shipper=shipper: "idle" in repr(shipper))  # type: ignore[misc]
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        found = house.read(outbox.read_destination)
        assert found is not None
        waits.append((found.next_attempt_at - house.now) / 1000)
        house.now = found.next_attempt_at - 1
        sent = len(sink.sent)
        early = asyncio.create_task(house.shipper(sink, interval_s=0.005).run())
        await asyncio.sleep(0.02)
        early.cancel()
        await asyncio.gather(early, return_exceptions=True)
        assert len(sink.sent) == sent, "one ms early"
        house.now += 1
    assert [1 <= waits[0] <= 2, 2 <= waits[1] <= 4, 4 <= waits[2] <= 8, 150 <= waits[9] <= 300] == [True] * 4
    assert house.read(shipping.read_state)["reason"] == "503 Service Unavailable"
    assert house.shipping()["batches"][0]["answer"] == "503 Service Unavailable: try later"


async def test_a_person_does_not_wait_for_us_but_for_the_destination(house: House) -> None:
    house.record_sessions(1)
    asked = DOWN._replace(retry_after="30")
    sink = ScriptedSink(in_turn(DOWN, DENIED, asked))
    shipper = house.shipper(sink)
    states = [(await shipper.ship_once()).state for _ in range(5)]
    assert (states, len(sink.sent)) == (["waiting", "blocked", "waiting", "waiting", "waiting"], 3)
    house.now += 30_000
    passed = await shipper.ship_once()
    assert (passed.confirmed, passed.state, passed.reason) == (1, "ready", None)


async def test_a_clock_set_back_is_no_wait_for_ever(house: House) -> None:
    house.record_sessions(1)
    sink = ScriptedSink(in_turn(DOWN._replace(retry_after="30")))
    house.now += 10 * 86_400_000
    await house.shipper(sink).ship_once()
    house.now -= 10 * 86_400_000
    assert (await house.shipper(sink).ship_once()).confirmed == 1


async def test_halving_finds_the_poison_line(house: House) -> None:
    house.record_sessions(500)
    sink = ScriptedSink(lambda batch: REFUSED if "s-137" in session_ids(batch.body) else TAKEN)
    passed = await house.shipper(sink).ship_once()
    assert (passed.confirmed, passed.parked, passed.waiting) == (499, 1, 0)
    assert len(sink.sent) <= 19, "2 log2(500) + 2"
    assert len({batch.batch_id for batch in sink.sent}) == len(sink.sent), "new bytes, new ids"
    assert house.session("s-137")["parkedReason"] == "400 Bad Request: bad line"
    assert passed.sentence == f"499 sessions shipped in 9 batches ({len(sink.sent)} requests), 1 parked"


async def test_too_large_is_halved_and_remembered(house: House) -> None:
    house.record_sessions(8, first=100)
    sink = ScriptedSink(lambda batch: TOO_LARGE if batch.lines_count > 2 else TAKEN)
    shipper = house.shipper(sink)
    await shipper.ship_once()
    assert [batch.lines_count for batch in sink.sent] == [8, 4, 4, 2, 2, 2, 2]
    house.record_sessions(4, first=200)
    sink.sent.clear()
    await shipper.ship_once()
    assert [batch.lines_count for batch in sink.sent] == [2, 2]
    assert house.shipping()["state"] == "ready"


async def test_a_line_alone_that_is_too_large_is_parked(house: House) -> None:
    house.record_sessions(1)
    passed = await house.shipper(ScriptedSink(lambda _: TOO_LARGE)).ship_once()
    assert (passed.confirmed, passed.parked, passed.state) == (0, 1, "ready")


async def test_blocked_keeps_everything_and_a_restart_tries_at_once(house: House) -> None:
    house.record_sessions(2)
    sink = ScriptedSink(in_turn(DENIED))
    first = asyncio.create_task(house.shipper(sink, interval_s=0.01).run())
    await until(lambda: house.shipping()["state"] == "blocked")
    await asyncio.sleep(0.1)
    assert len(sink.sent) == 1
    assert house.read(shipping.read_state)["reason"] == "401 Unauthorized"
    house.now += 299_000
    await asyncio.sleep(0.1)
    assert len(sink.sent) == 1
    first.cancel()
    second = asyncio.create_task(house.shipper(sink, interval_s=0.01).run())
    await until(lambda: house.shipping()["confirmedSessions"] == 2)
    second.cancel()
    await asyncio.gather(first, second, return_exceptions=True)
    assert house.shipping()["state"] == "ready"


async def test_blocked_is_tried_again_after_five_minutes(house: House) -> None:
    house.record_sessions(1)
    sink = ScriptedSink(in_turn(DENIED))
    task = asyncio.create_task(house.shipper(sink, interval_s=0.01).run())
    await until(lambda: house.shipping()["state"] == "blocked")
    house.now += 300_000
    await until(lambda: house.shipping()["confirmedSessions"] == 1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_what_finishes_later_ships_by_itself(house: House) -> None:
    sink = ScriptedSink()
    shipper = house.shipper(sink, interval_s=0.01)
    task = asyncio.create_task(shipper.run())
    house.record(event("one"), ago_ms=0)
    await asyncio.sleep(0.05)
    assert sink.sent == []
    house.now += TIMEOUT_MS + 1
    await until(lambda: len(sink.sent) == 1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert repr(shipper).startswith("<Shipper stopped: 1 requests")


async def test_a_destination_that_raises_is_one_that_did_not_answer(house: House) -> None:
    house.record_sessions(1)

    def script(batch: Batch) -> Answer:
        raise RuntimeError("a bug")

    passed = await house.shipper(ScriptedSink(script)).ship_once()
    assert (passed.state, passed.reason, passed.waiting) == ("waiting", "no answer: RuntimeError", 1)


async def test_run_survives_a_database_that_cannot_be_read(house: House) -> None:
    house.record_sessions(1)
    sink = ScriptedSink()
    shipper = house.shipper(sink, interval_s=0.01)
    hidden = house.path.with_suffix(".hidden")
    house.path.rename(hidden)
    task = asyncio.create_task(shipper.run())
    await until(lambda: "failing" in repr(shipper))
    hidden.rename(house.path)
    await until(lambda: len(sink.sent) == 1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_another_destination_gets_everything_again(house: House) -> None:
    house.record_sessions(3)
    await house.shipper(ScriptedSink()).ship_once()
    other = ScriptedSink(address="https://other.test/")
    passed = await house.shipper(other).ship_once()
    assert (passed.confirmed, house.shipping()["destination"]) == (3, "https://other.test/")


async def test_sites_do_not_share_a_batch(house: House) -> None:
    house.record_sessions(3, site="a")
    house.record_sessions(3, site="b")
    sink = ScriptedSink()
    assert (await house.shipper(sink).ship_once()).confirmed == 6
    assert sorted(batch.site for batch in sink.sent) == ["a", "b"]


async def test_one_process_ships_at_a_time(house: House) -> None:
    house.record_sessions(1)
    held = f"{house.path}.ship.lock"
    sink = ScriptedSink()
    pipe = asyncio.subprocess.PIPE
    other = await asyncio.create_subprocess_exec(sys.executable, "-c", HOLD, held, stdin=pipe, stdout=pipe)
    assert other.stdout is not None
    assert await other.stdout.readline() == b"held\n"
    with pytest.raises(DestinationBusyError, match=r"another process is shipping .*house\.db\.ship\.lock"):
        await house.shipper(sink).ship_once()
    waiting = asyncio.create_task(house.shipper(sink, lock_wait_s=5).ship_once())
    await asyncio.sleep(0.1)
    assert sink.sent == []
    other.kill()  # the lock dies with the process
    assert (await waiting).confirmed == 1
    await other.communicate()


async def test_the_command_ships_beside_a_running_server(house: House) -> None:
    server = asyncio.create_task(house.shipper(ScriptedSink(), interval_s=60).run())
    await asyncio.sleep(0.1)
    house.record_sessions(1)
    assert (await house.shipper(ScriptedSink()).ship_once()).confirmed == 1
    server.cancel()
    await asyncio.gather(server, return_exceptions=True)


async def test_trying_the_lock_does_not_hold_the_loop(tmp_path: Path) -> None:
    async with ShipLock(tmp_path / "x.db").held(0):
        began = time.perf_counter()
        for _ in range(100):
            with pytest.raises(DestinationBusyError):
                async with ShipLock(tmp_path / "x.db").held(0):
                    raise AssertionError("held twice")
        assert (time.perf_counter() - began) / 100 < 0.002
    assert threading.active_count() < 10
