"""Rows of the fault matrix: ends that die, cannot write, say things twice, or have the wrong clock or an old file."""

from __future__ import annotations

import json
import signal
import time
from contextlib import closing
from pathlib import Path

from sidecar.store.database import open_database
from tests.builders import event, vital
from tests.proxy import Fault, http_answer, wait_until
from tests.ship.bench import SESSIONS, Bench, Row, export, lines_of, pack

SECRETS = ("whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIz", "whsec_YWJjZGVmZ2hpamFiY2RlZmdoaWphYmNk")
DAY_MS = 86_400_000
LATE = vital("s-001", "CLS", 0.2, at=5_000)
FULL_AT = 32 * 1024  # bytes that a file may have on a full disk: room for the log, none for a transaction

# --- ends that die, or cannot write ----------------------------------------------------------------------------------


def sender_killed_in_flight(bench: Bench) -> None:
    """SIGKILL between send and confirm."""
    bench.sender.record_sessions(SESSIONS)
    bench.proxy.faults = [Fault(after=lambda: ship.kill(), answer_cut=0)]
    ship = bench.start_ship()
    assert ship.wait().code == -signal.SIGKILL
    bench.expect("ready", None, waitingSessions=SESSIONS)
    assert bench.count_receipts() == 1
    assert bench.ship().code == 0
    assert [request.headers["x-records"] for request in bench.proxy.requests] == ["4", "4"]
    bench.same_bytes()
    bench.check()


def sender_full_disk(bench: Bench) -> None:
    """The batch is taken upstream, and the confirmation cannot be written."""
    bench.sender.record_sessions(SESSIONS)
    bench.proxy.faults = [Fault(after=lambda: ship.fill_disk(FULL_AT))]
    ship = bench.start_ship()
    ended = ship.wait()
    assert ended.code == 1
    assert "cannot store now" in ended.log
    assert "Traceback" not in ended.log
    bench.expect("ready", None, waitingSessions=SESSIONS)
    assert bench.ship().code == 0
    bench.same_bytes()
    bench.check()


def receiver_killed_before_commit(bench: Bench) -> None:
    """SIGKILL while the batch waits for the write lock."""
    bench.sender.record_sessions(SESSIONS)
    with bench.receiver_locked():
        ship = bench.start_ship()
        wait_until(lambda: len(bench.proxy.requests) == 1, "a request")
        time.sleep(0.1)
        bench.receiver.kill()
        ended = ship.wait()
    assert "4 still waiting; waiting: no answer" in ended.out
    assert (bench.count_receipts(), export(bench.receiver.database)) == (0, [])
    bench.receiver.start()
    assert bench.ship().code == 0
    bench.same_bytes()
    bench.check()


def receiver_killed_after_commit(bench: Bench) -> None:
    """SIGKILL after the COMMIT, before the sender has the answer."""
    bench.sender.record_sessions(SESSIONS)
    bench.proxy.faults = [Fault(after=bench.receiver.kill, answer_cut=0)]
    assert "4 still waiting; waiting: no answer" in bench.ship().out
    assert bench.count_receipts() == 1
    bench.receiver.start()
    assert bench.ship().code == 0
    bench.same_bytes()
    bench.check()


def receiver_stopped_while_it_applies(bench: Bench) -> None:
    """SIGTERM with a batch in its hands: it is answered first."""
    bench.sender.record_sessions(SESSIONS)
    with bench.receiver_locked():
        ship = bench.start_ship()
        wait_until(lambda: len(bench.proxy.requests) == 1, "a request")
        time.sleep(0.1)
        bench.receiver.fork.signal(signal.SIGTERM)
        time.sleep(0.1)
        assert bench.receiver.fork.code is None
    assert ship.wait().out == "4 sessions shipped in 1 batches (1 requests)\n"
    assert bench.receiver.fork.wait().code == -signal.SIGTERM, "uvicorn's way to end in order"
    bench.check()


def receiver_full_disk(bench: Bench) -> None:
    """The receiver's disk is full: 503, nothing half written, and both ends say so."""
    bench.sender.record_sessions(SESSIONS)
    bench.receiver.fork.fill_disk(FULL_AT)
    with bench.serving() as sender:
        bench.await_health(sender, "waiting", "503 Service Unavailable")
        health = bench.receiver.get("/healthz")
        assert (health.status_code, health.json()["status"]) == (503, "failing")
        assert (bench.count_receipts(), export(bench.receiver.database)) == (0, [])
        bench.receiver.fork.fill_disk(None)
        assert bench.ship().code == 1, "it asked for 10 s"
        assert bench.ship(clock_ms=11_000).code == 0
    assert bench.receiver.get("/healthz").status_code == 200
    bench.same_bytes()
    bench.check()


# --- what comes twice, late or changed -------------------------------------------------------------------------------


def old_batch_replayed(bench: Bench) -> None:
    """A batch comes again after a newer one, under its own key and under another: it changes nothing."""
    bench.sender.record_sessions(SESSIONS)
    assert bench.ship().code == 0
    bench.sender.record(LATE)
    assert bench.ship().code == 0
    old = bench.proxy.requests[0]
    before = export(bench.receiver.database)
    assert bench.replay(old).json()["accepted"] == SESSIONS, "the stored answer"
    told = bench.replay(old, key="replayed").json()
    assert (told["accepted"], told["duplicate"], told["superseded"]) == (0, 3, 1)
    assert export(bench.receiver.database) == before
    bench.check(accepted=SESSIONS + 1)


def same_key_other_bytes(bench: Bench) -> None:
    """A key that was used for another body: 422, nothing is applied."""
    bench.sender.record_sessions(SESSIONS)
    assert bench.ship().code == 0
    [first] = bench.proxy.requests
    changed = pack([b"".join(lines_of(first.body)[:1]).replace(b"s-000", b"s-999")])
    answer = bench.post(changed, 1, key=first.key.strip('"'))
    assert (answer.status_code, answer.json()) == (422, {"error": "Idempotency-Key: was used for another body"})
    bench.check()


def key_forgotten_after_30_days(bench: Bench) -> None:
    """A receipt is kept for 30 days. After that a replay is judged anew, and still changes nothing."""
    bench.sender.record_sessions(SESSIONS)
    assert bench.ship().code == 0
    [first] = bench.proxy.requests
    before = export(bench.receiver.database)
    bench.restart_receiver(clock_ms=29 * 86_400_000)
    assert bench.replay(first).json()["accepted"] == SESSIONS, "the stored answer"
    bench.restart_receiver(clock_ms=31 * 86_400_000)
    told = bench.replay(first).json()
    assert (told["accepted"], told["duplicate"]) == (0, SESSIONS)
    assert (bench.count_receipts(), export(bench.receiver.database)) == (1, before)
    bench.check(counted=False)


def late_fact_in_flight(bench: Bench) -> None:
    """A fact that comes between send and confirm is not confirmed with it: the session ships again, whole."""
    bench.sender.record_sessions(SESSIONS)
    bench.proxy.faults = [Fault(after=lambda: bench.sender.record(LATE))]
    assert bench.ship().code == 0
    first, second = bench.proxy.requests
    [again] = [json.loads(line) for line in lines_of(second.body)]
    [before] = [document for document in map(json.loads, lines_of(first.body)) if document["sessionId"] == "s-001"]
    assert again["revision"] > before["revision"]
    assert (len(before["webVitals"]), len(again["webVitals"])) == (1, 2)
    bench.check(accepted=SESSIONS + 1)


def erased_in_a_frozen_batch(bench: Bench) -> None:
    """A visitor is erased while its session waits in frozen bytes: a new batch, and upstream sees nothing of it."""
    bench.sender.record_sessions(SESSIONS)
    bench.proxy.faults = [Fault(answer=http_answer(503))]
    assert bench.ship().code == 1
    assert bench.forks.run("forget", "v-1", settings=bench.settings).code == 0
    assert bench.ship().code == 0
    frozen, *after = bench.proxy.requests
    assert b'"v-1"' in b"".join(lines_of(frozen.body))
    assert frozen.key not in {request.key for request in after}
    sent = b"".join(b"".join(lines_of(request.body)) for request in after)
    assert (b'"v-1"' in sent, b"s-001" in sent, b"tombstone" in sent) == (False, False, True)
    bench.check()
    assert len(export(bench.receiver.database)) == SESSIONS


def erased_in_flight(bench: Bench) -> None:
    """A visitor is erased after upstream has taken its session, before the sender knows: the tombstone follows it."""
    bench.sender.record_sessions(SESSIONS)

    def erase() -> None:
        assert bench.forks.run("forget", "v-1", settings=bench.settings).code == 0

    bench.proxy.faults = [Fault(after=erase)]
    bench.ship()
    assert bench.ship().code == 0
    kinds = [(line["type"], line.get("sessionId")) for line in export(bench.receiver.database)]
    assert kinds == [("session", "s-000"), ("session", "s-002"), ("session", "s-003"), ("tombstone", None)]
    bench.check(accepted=SESSIONS + 1)


def two_shippers(bench: Bench) -> None:
    """Two commands and a server on one file: one ships at a time, and each batch goes once."""
    bench.sender.record_sessions(SESSIONS)
    bench.settings["SHIP_BATCH_SIZE"] = "1"
    bench.proxy.rule = lambda _: Fault(delay_s=0.05)
    with bench.serving() as sender:
        ships = [bench.start_ship(), bench.start_ship()]
        assert [ship.wait().code for ship in ships] == [0, 0]
        bench.await_health(sender, "ready", None)
        wait_until(lambda: bench.sender.shipping()["waitingSessions"] == 0, "delivery")
    keys = [request.key for request in bench.proxy.requests]
    assert (len(keys), len(set(keys))) == (SESSIONS, SESSIONS)
    bench.check()


def secret_rotated(bench: Bench) -> None:
    """The secret is changed between two tries of a batch: refused until the receiver knows it, then the same bytes."""
    bench.sender.record_sessions(SESSIONS)
    bench.restart_receiver(RECEIVE_SECRET=SECRETS[0])
    bench.settings["UPSTREAM_SECRET"] = SECRETS[0]
    bench.proxy.faults = [Fault(answer=http_answer(503))]
    assert bench.ship().code == 1
    bench.settings["UPSTREAM_SECRET"] = f"{SECRETS[1]} {SECRETS[0]}"
    with bench.serving() as sender:
        bench.await_health(sender, "blocked", "401 Unauthorized")
    bench.restart_receiver(RECEIVE_SECRET=f"{SECRETS[1]} {SECRETS[0]}")
    assert bench.ship().code == 0
    signatures = [request.headers["webhook-signature"] for request in bench.proxy.requests]
    assert signatures[0] != signatures[-1]
    bench.same_bytes()
    bench.check()


# --- clocks ----------------------------------------------------------------------------------------------------------


def sender_clock(off_ms: int) -> Row:
    """The sender's clock is wrong: documents are not dated by it. A wait that it was asked for does not last a year."""

    def row(bench: Bench) -> None:
        bench.sender.record_sessions(SESSIONS)
        bench.proxy.faults = [Fault(answer=http_answer(503, b"", "Retry-After: 3600\r\n"))]
        assert bench.ship(clock_ms=off_ms).code == 1
        bench.expect("waiting", "503 Service Unavailable", waitingSessions=SESSIONS)
        with bench.serving() as sender:  # with the right clock
            bench.await_health(sender, "ready", None)
        bench.same_bytes()
        bench.check()

    return row


def sender_clock_signed(off_ms: int) -> Row:
    """Signatures are dated by a wrong clock: 408, kept, and delivered when the clock is right."""

    def row(bench: Bench) -> None:
        bench.sender.record_sessions(SESSIONS)
        bench.settings["UPSTREAM_SECRET"] = SECRETS[0]
        bench.restart_receiver(RECEIVE_SECRET=SECRETS[0])
        ended = bench.ship(clock_ms=off_ms)
        assert (ended.code, "waiting: 408 Request Timeout" in ended.out) == (1, True)
        answer = "SELECT answer FROM batches"
        told = bench.sender.read(lambda conn: conn.execute(answer).fetchone()[0])
        assert told == "408 Request Timeout: the signature is more than five minutes old or ahead"
        assert bench.count_receipts() == 0
        with bench.serving() as sender:
            bench.await_health(sender, "ready", None)
        bench.same_bytes()
        bench.check()

    return row


def receiver_clock(off_ms: int) -> Row:
    """The receiver's clock is wrong: what it takes is what was sent, also when the clock is right again."""

    def row(bench: Bench) -> None:
        bench.sender.record_sessions(SESSIONS)
        bench.restart_receiver(clock_ms=off_ms)
        assert bench.ship().code == 0
        bench.check()
        bench.restart_receiver()
        bench.sender.record(LATE)
        assert bench.ship().code == 0
        told = bench.replay(bench.proxy.requests[0]).json()
        # a receipt that was noted a year ago is forgotten: what was sent is judged anew, and changes nothing
        assert (told["accepted"], told["duplicate"], told["superseded"]) == ((4, 0, 0) if off_ms > 0 else (0, 3, 1))
        bench.check(counted=off_ms > 0, accepted=SESSIONS + 1)

    return row


def receiver_clock_signed(off_ms: int) -> Row:
    """As above, with signatures: nothing is taken while the clock is wrong."""

    def row(bench: Bench) -> None:
        bench.sender.record_sessions(SESSIONS)
        bench.settings["UPSTREAM_SECRET"] = SECRETS[0]
        bench.restart_receiver(clock_ms=off_ms, RECEIVE_SECRET=SECRETS[0])
        with bench.serving() as sender:
            bench.await_health(sender, "waiting", "408 Request Timeout")
            assert bench.count_receipts() == 0
            bench.restart_receiver()
            assert bench.ship().code == 0
        bench.same_bytes()
        bench.check()

    return row


# --- backups ---------------------------------------------------------------------------------------------------------


def copy_of(database: Path) -> Path:
    """A whole copy of a database beside it."""
    copy = database.with_suffix(".backup")
    with closing(open_database(database)) as conn:
        conn.execute("VACUUM INTO ?", (str(copy),))
    return copy


def put_back(copy: Path, database: Path) -> None:
    """Restore a database from its copy."""
    for suffix in ("-wal", "-shm"):
        Path(f"{database}{suffix}").unlink(missing_ok=True)
    copy.replace(database)


def sender_restored(bench: Bench) -> None:
    """The sender goes back to a backup, with a batch open in it: what upstream has since is not taken back."""
    bench.sender.record_sessions(SESSIONS)
    bench.proxy.faults = [Fault(answer=http_answer(503))]
    assert bench.ship().code == 1
    copy = copy_of(bench.sender.path)
    assert bench.ship().code == 0
    bench.sender.record(LATE)
    assert bench.ship().code == 0
    whole = export(bench.receiver.database)
    bench.sender.__exit__()
    put_back(copy, bench.sender.path)
    bench.reopen_sender()
    bench.expect("waiting", "503 Service Unavailable", waitingSessions=SESSIONS)
    assert bench.ship().code == 0
    assert export(bench.receiver.database) == whole
    assert bench.proxy.requests[0][2:] == bench.proxy.requests[-1][2:], "the open batch of the backup"
    bench.sender.record(vital("s-001", "INP", 90, at=6_000), event("s-900", at=7_000))
    assert bench.ship().code == 0
    held = {line["sessionId"]: line for line in export(bench.receiver.database)}
    assert [vital["metric"] for vital in held["s-001"]["webVitals"]] == ["LCP", "CLS", "INP"]
    bench.check(exact=False)


def receiver_restored(bench: Bench) -> None:
    """The receiver goes back to a backup: a late fact brings its session back whole, a new address brings all."""
    bench.sender.record_sessions(2)
    assert bench.ship().code == 0
    copy = copy_of(bench.receiver.database)
    bench.sender.record_sessions(2, first=2)
    assert bench.ship().code == 0
    bench.receiver.kill()
    put_back(copy, bench.receiver.database)
    bench.receiver.start()
    bench.sender.record(vital("s-002", "CLS", 0.1, at=5_000))
    assert bench.ship().code == 0
    held = {line["sessionId"]: line for line in export(bench.receiver.database)}
    assert (sorted(held), len(held["s-002"]["webVitals"])) == (["s-000", "s-001", "s-002"], 2)
    bench.settings["UPSTREAM_URL"] += "?again=1"  # another destination: everything held ships to it
    assert bench.ship().out.startswith("4 sessions shipped")
    bench.check(accepted=4)
