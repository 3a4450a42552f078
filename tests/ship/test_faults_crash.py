"""Rows of the fault matrix: each end dies before each statement it runs, from the first to the last."""

from __future__ import annotations

import pytest

from sidecar.store import outbox
from tests.builders import event, vital
from tests.forks import CRASHED
from tests.proxy import Fault, Passed, http_answer
from tests.ship.bench import Bench, export, facts_of, lines_of

STATEMENTS_MAX = 400  # of one pass, or of one batch: a loop that gets there does not end


def fill(bench: Bench, number: int) -> None:
    """Two sessions of their own for each crash, one of them poison."""
    for name in ("good", "poison"):
        bench.sender.record(event(f"{number}-{name}"), vital(f"{number}-{name}", "LCP", 1200))


def _answer(request: Passed) -> Fault:
    return Fault(answer=http_answer(422)) if b"poison" in b"".join(lines_of(request.body)) else Fault()


def test_a_sender_that_dies_at_every_statement(bench: Bench) -> None:
    """Claim, count, send, split, park, confirm: what the pass before left behind is taken up, and goes once."""
    bench.proxy.rule = _answer
    for number in range(1, STATEMENTS_MAX):
        fill(bench, number)
        code = bench.ship(crash_at=number).code
        assert code in (0, CRASHED)
        assert bench.ship().code == 0
        bench.expect("ready", None, waitingSessions=0, confirmedSessions=number, parkedSessions=number)
        if code == 0:
            break
    assert code == 0
    assert number > 40, "claim, split, confirm, park"
    taken = {request.key for request in bench.proxy.requests if b"poison" not in b"".join(lines_of(request.body))}
    assert bench.count_receipts() == len(taken)
    sent = [line for key in taken for line in _lines_under(bench, key)]
    assert len(sent) == len(set(sent)) == number, "no line went under two ids"
    bench.proxy.rule = None
    parked = "SELECT session_key FROM parked"
    for (key,) in bench.sender.read(lambda conn: conn.execute(parked).fetchall()):
        bench.sender.write(lambda conn, key=key: outbox.requeue(conn, key))  # type: ignore[misc]
    assert bench.ship().code == 0
    bench.check()


def _lines_under(bench: Bench, key: str) -> list[bytes]:
    [body] = {request.body for request in bench.proxy.requests if request.key == key}
    return lines_of(body)


@pytest.mark.parametrize("status", [503, 401])
def test_a_sender_that_dies_while_it_notes_a_wait(bench: Bench, status: int) -> None:
    """What it could not note costs an earlier try, nothing else."""
    bench.sender.record_sessions(2)
    bench.proxy.rule = lambda _: Fault(answer=http_answer(status))
    for number in range(1, STATEMENTS_MAX):
        code = bench.ship(crash_at=number).code
        bench.expect(*_state(bench), waitingSessions=2, confirmedSessions=0, parkedSessions=0)
        if code == 1:
            break
        assert code == CRASHED
    assert (code, number > 8) == (1, True)
    assert _state(bench)[1] is not None
    bench.proxy.rule = None
    assert bench.ship().code == 0
    bench.same_bytes()
    bench.check()


def _state(bench: Bench) -> tuple[str, str | None]:
    told = bench.sender.shipping()
    assert (told["state"], told["reason"]) in {
        ("off", None),
        ("ready", None),
        ("waiting", "503 Service Unavailable"),
        ("blocked", "401 Unauthorized"),
    }
    return told["state"], told["reason"]


@pytest.mark.parametrize("kind", ["sessions", "tombstones"])
def test_a_receiver_that_dies_at_every_statement(bench: Bench, kind: str) -> None:
    """One batch, again and again, to a receiver that dies one statement later each time: all of it or nothing."""
    bench.sender.record_sessions(2)
    if kind == "tombstones":
        assert bench.ship().code == 0
        assert bench.forks.run("forget", "v-1", settings=bench.settings).code == 0
        bench.proxy.requests.clear()
    before, noted = facts_of(export(bench.receiver.database)), bench.count_receipts()
    for number in range(1, STATEMENTS_MAX):
        bench.receiver.kill()
        bench.receiver.start(crash_at=number, crash_from="DELETE FROM receipts")
        passed = bench.ship_here()
        if passed.reason is None:
            break
        assert passed.reason.startswith("no answer: ")
        assert bench.receiver.fork.wait().code == CRASHED
        if bench.count_receipts() == noted:
            assert facts_of(export(bench.receiver.database)) == before, "half a batch"
    assert (passed.reason, number > 8) == (None, True)
    bench.same_bytes()
    bench.check(accepted=2 if kind == "sessions" else 3)
