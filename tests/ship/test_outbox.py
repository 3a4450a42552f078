"""Batches as rows: what is claimed, what a confirmation means, what a destination owns."""

from __future__ import annotations

import gzip
import json

import pytest

from sidecar.store import outbox, shipping
from sidecar.store.database import Connection
from sidecar.store.erasure import forget
from sidecar.store.outbox import Batch
from tests.builders import event, vital
from tests.ship.house import ADDRESS, NOW, TIMEOUT_MS, House, documents, session_ids


@pytest.fixture(autouse=True)
def destination(house: House) -> None:
    house.write(lambda conn: outbox.set_destination(conn, ADDRESS, NOW))


def claimed(house: House, **options: int) -> Batch:
    batch = house.claim(**options)
    assert batch is not None
    return batch


def confirm(house: House, batch: Batch, rejected: dict[int, str] | None = None) -> bool:
    return house.write(
        lambda conn: outbox.confirm(conn, batch.batch_key, rejected=rejected or {}, answer="200 OK", now=house.now)
    )


def table(house: House, sql: str) -> str:
    """Rows as lines of text."""
    found = house.read(lambda conn: conn.execute(sql).fetchall())
    return "\n".join(" ".join(str(cell) for cell in row) for row in found)


BATCHES = (
    "SELECT batch_id, state, body IS NULL, lines_count, settled_at IS NULL, answer FROM batches ORDER BY batch_key"
)


# --- claiming --------------------------------------------------------------------------------------------------------


def test_finished_sessions_are_claimed_oldest_first_as_they_are_exported(house: House) -> None:
    house.record(event("young"), ago_ms=TIMEOUT_MS)  # not older than the timeout
    house.record(event("late"), ago_ms=TIMEOUT_MS + 1)
    house.record(event("early"), vital("early", "LCP", 1200), ago_ms=TIMEOUT_MS + 2)
    house.record(event("ahead"), ago_ms=-TIMEOUT_MS - 1)
    house.record(event("soon"), ago_ms=-TIMEOUT_MS)
    batch = claimed(house)
    assert session_ids(batch.body) == ["early", "late", "ahead"]
    wanted = {"early", "late", "ahead"}
    exported = [line for line in house.export() if json.loads(line)["sessionId"] in wanted]
    assert sorted(gzip.decompress(batch.body).decode().splitlines()) == sorted(exported)
    assert house.claim() is None, "a session is in one open batch at most"


def test_unfinished_sessions_come_along_where_a_person_wants_all(house: House) -> None:
    house.record(event("running"), ago_ms=5)
    house.record(event("future"), ago_ms=-5)
    house.record(event("ahead"), ago_ms=-TIMEOUT_MS - 1)
    ceiling = house.read(lambda conn: outbox.find_ceiling(conn, house.now, TIMEOUT_MS))
    assert ceiling == NOW + 5
    house.record(event("running", at=1), ago_ms=-6)  # changed since: for the next pass
    batch = claimed(house, ceiling=ceiling)
    assert session_ids(batch.body) == ["future", "ahead"]


def test_a_batch_holds_one_site_and_so_many_lines(house: House) -> None:
    for number in range(3):
        house.record(event(f"a{number}", site="a"), ago_ms=3 * TIMEOUT_MS - 2 * number)
        house.record(event(f"b{number}", site="b"), ago_ms=3 * TIMEOUT_MS - 2 * number - 1)
    batches = [claimed(house, lines_max=2) for _ in range(4)]
    assert [(batch.site, session_ids(batch.body)) for batch in batches] == [
        ("a", ["a0", "a1"]),
        ("b", ["b0", "b1"]),
        ("a", ["a2"]),
        ("b", ["b2"]),
    ]
    assert house.claim() is None


def test_a_batch_closes_before_it_is_too_large(house: House) -> None:
    house.record_sessions(3)
    size = len(house.export()[0].encode()) + 1
    assert claimed(house, bytes_max=2 * size).body_bytes == 2 * size
    alone = claimed(house, bytes_max=10)
    assert (alone.lines_count, alone.body_bytes) == (1, size), "one larger session is a batch of its own"


def test_the_bytes_are_frozen(house: House) -> None:
    house.record_sessions(2)
    batch = claimed(house)
    house.record(vital("s-000", "CLS", 0.2))
    again = house.read(outbox.next_open)
    assert again == batch
    assert outbox.freeze("default", []).body == outbox.freeze("default", []).body
    assert batch.body[4:8] == bytes(4), "gzip's own time would differ"


def test_what_changed_or_went_after_the_draft_is_left_out(house: House) -> None:
    house.record_sessions(3)
    draft = house.read(lambda conn: outbox.draft_batch(conn, lines_max=9, now=house.now, timeout_ms=TIMEOUT_MS))
    assert draft is not None
    house.record(vital("s-001", "CLS", 0.2))

    def claim(conn: Connection) -> Batch | None:
        return outbox.claim(conn, draft, address=ADDRESS, batch_id=house.make_id(), now=house.now)

    batch = house.write(claim)
    assert batch is not None
    assert session_ids(batch.body) == ["s-000", "s-002"]
    assert (
        table(house, "SELECT line, session_key FROM batch_lines") == f"0 {house.key('s-000')}\n1 {house.key('s-002')}"
    )
    assert house.write(claim) is None, "nothing is left of it"


def test_drafting_rests_after_each_document(house: House) -> None:
    """So that beacons go first: once a line, also of erasures, but not when the batch is full."""
    house.record_sessions(3)
    house.write(lambda conn: forget(conn, "default", "v-9", house.now))
    rests: list[int] = []

    def draft(lines_max: int) -> int:
        rests.clear()
        drafted = house.read(
            lambda conn: outbox.draft_batch(
                conn, lines_max=lines_max, now=house.now, timeout_ms=TIMEOUT_MS, rest=lambda: rests.append(1)
            )
        )
        assert drafted is not None
        return len(drafted.lines)

    assert (draft(9), len(rests)) == (1, 1)
    claimed(house)
    house.write(lambda conn: conn.execute("UPDATE tombstones SET shipped_revision = revision"))
    assert (draft(9), len(rests)) == (3, 3)
    assert (draft(2), len(rests)) == (2, 1)


def test_claiming_and_counting_seek(house: House) -> None:
    statements: list[str] = []

    def watched(conn: Connection) -> list[str]:
        conn.set_trace_callback(statements.append)
        outbox.draft_batch(conn, lines_max=9, now=house.now, timeout_ms=TIMEOUT_MS)
        outbox.find_ceiling(conn, house.now, TIMEOUT_MS)
        outbox.next_open(conn)
        shipping.read_shipping(conn, house.now, TIMEOUT_MS)
        shipping.read_state(conn)
        shipping.read_health(conn, house.now, TIMEOUT_MS)
        conn.set_trace_callback(None)
        plans = [conn.execute(f"EXPLAIN QUERY PLAN {sql}").fetchall() for sql in statements if "SELECT" in sql]
        return [row[3] for plan in plans for row in plan]

    house.record_sessions(1)
    plan = house.read(watched)
    assert any("USING INDEX sessions_to_ship" in step for step in plan)
    scans = {step for step in plan if step.startswith("SCAN") and "sessions" in step}
    assert all("COVERING INDEX" in step for step in scans), f"only the count of all sessions reads an index: {scans}"
    assert not any("TEMP B-TREE" in step or "AUTOMATIC" in step for step in plan)


# --- confirming ------------------------------------------------------------------------------------------------------


def test_a_confirmation_is_of_the_revision_in_the_batch(house: House) -> None:
    house.record_sessions(2)
    batch = claimed(house)
    sent = {document["sessionId"]: document["revision"] for document in documents(batch.body)}
    house.record(vital("s-000", "CLS", 0.2))  # late, while the batch is on its way
    house.now += 5
    assert confirm(house, batch)
    assert house.session("s-000") | {"batchId": None} == {
        "shipping": "waiting",
        "shippedRevision": sent["s-000"],
        "shippedAt": "2026-11-22T07:00:00.005Z",
        "batchId": None,
        "openBatchId": None,
        "parkedRevision": None,
        "parkedReason": None,
        "parkedAt": None,
        "parkedBatchId": None,
    }
    assert (house.session("s-001")["shipping"], house.session("s-001")["batchId"]) == ("shipped", "b1")
    house.now += TIMEOUT_MS + 1
    again = claimed(house)
    [document] = documents(again.body)
    assert document["revision"] > sent["s-000"]
    assert len(document["webVitals"]) == 2, "whole, not the difference"


def test_a_confirmed_batch_drops_its_body_and_counts_once(house: House) -> None:
    house.record_sessions(2)
    batch = claimed(house)
    assert house.session("s-000")["openBatchId"] == "b1"
    assert confirm(house, batch)
    assert not confirm(house, batch)
    assert table(house, BATCHES) == "b1 confirmed 1 2 0 200 OK"
    assert table(house, "SELECT * FROM batch_lines") == ""
    assert house.claim() is None


def test_old_batches_go(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox, "BATCHES_KEPT", 2)
    house.record_sessions(5)
    first = claimed(house, lines_max=1)
    for _ in range(4):
        assert confirm(house, claimed(house, lines_max=1))
    assert table(house, "SELECT batch_id, state FROM batches") == "b1 open\nb4 confirmed\nb5 confirmed"
    assert confirm(house, first)


def test_rejected_lines_are_parked_and_erased_ones_confirmed(house: House) -> None:
    house.record_sessions(3)
    assert confirm(house, claimed(house), {0: "erased", 2: "site: not allowed to this token", 9: "no such line"})
    assert [house.session(f"s-00{n}")["shipping"] for n in range(3)] == ["shipped", "shipped", "parked"]
    [parked] = house.read(shipping.list_parked)
    assert parked == {
        "id": house.key("s-002"),
        "site": "default",
        "funnelId": "default",
        "sessionId": "s-002",
        "revision": NOW - 2 * TIMEOUT_MS + 2,
        "reason": "site: not allowed to this token",
        "batchId": "b1",
        "parkedAt": "2026-11-22T07:00:00.000Z",
    }
    assert house.claim() is None, "not again at that revision"
    told = house.shipping()
    assert (told["confirmedSessions"], told["parkedSessions"], told["waitingSessions"]) == (2, 1, 0)


def test_a_parked_session_goes_again_when_it_changes(house: House) -> None:
    house.record_sessions(1)
    confirm(house, claimed(house), {0: "bad"})
    house.record(vital("s-000", "CLS", 0.2))
    assert house.session("s-000")["shipping"] == "waiting"
    house.now += TIMEOUT_MS + 1
    assert confirm(house, claimed(house))
    assert house.session("s-000")["shipping"] == "shipped"
    assert house.read(shipping.list_parked) == []


def test_requeue_goes_on_from_what_was_confirmed(house: House) -> None:
    house.record_sessions(1)
    confirm(house, claimed(house))
    confirmed = house.session("s-000")["shippedRevision"]
    for value in (0.2, 0.3):  # refused at two revisions
        house.record(vital("s-000", "CLS", value, at=int(value * 100)))
        house.now += TIMEOUT_MS + 1
        confirm(house, claimed(house), {0: "bad"})
    assert house.session("s-000")["shippedRevision"] == confirmed
    assert house.claim() is None
    key = house.key("s-000")
    assert house.write(lambda conn: outbox.requeue(conn, key))
    assert not house.write(lambda conn: outbox.requeue(conn, key))
    assert claimed(house).lines_count == 1


def test_discard_gives_one_revision_up(house: House) -> None:
    house.record_sessions(1)
    key = house.key("s-000")
    confirm(house, claimed(house), {0: "bad"})
    assert house.write(lambda conn: outbox.discard(conn, key, house.now))
    assert not house.write(lambda conn: outbox.discard(conn, key, house.now))
    assert house.session("s-000")["shipping"] == "discarded"
    assert house.read(shipping.list_parked) == []
    assert (house.claim(), house.shipping()["parkedSessions"], house.shipping()["confirmedSessions"]) == (None, 0, 0)
    house.record(vital("s-000", "CLS", 0.2))
    house.now += TIMEOUT_MS + 1
    assert claimed(house).lines_count == 1


# --- splitting, releasing --------------------------------------------------------------------------------------------


def test_halves_are_cut_from_the_frozen_lines(house: House) -> None:
    house.record_sessions(3)
    batch = claimed(house)
    house.record(vital("s-000", "CLS", 0.2))

    def split(conn: Connection) -> bool:
        return outbox.split(conn, batch.batch_key, make_id=house.make_id, answer="400 Bad Request", now=house.now)

    assert house.write(split)
    assert not house.write(split)
    assert table(house, BATCHES) == "b1 split 1 3 0 400 Bad Request\nb2 open 0 1 1 None\nb3 open 0 2 1 None"
    sql = "SELECT body FROM batches WHERE body NOTNULL ORDER BY batch_key"
    bodies = [row[0] for row in house.read(lambda conn: conn.execute(sql).fetchall())]
    assert b"".join(map(gzip.decompress, bodies)) == gzip.decompress(batch.body)
    first = house.read(outbox.next_open)
    assert first is not None
    assert confirm(house, first)
    assert house.session("s-000")["shippedRevision"] == documents(batch.body)[0]["revision"]
    second = house.read(outbox.next_open)
    assert second is not None
    assert house.write(lambda conn: outbox.park(conn, second.batch_key, reason="422: no", now=house.now))
    assert [house.session(f"s-00{n}")["shipping"] for n in (1, 2)] == ["parked", "parked"]


def test_a_released_session_takes_its_batch_along(house: House) -> None:
    house.record_sessions(3)
    batch = claimed(house)
    erased = house.key("s-001")
    assert house.write(lambda conn: outbox.release(conn, [erased], house.now)) == 1
    assert not confirm(house, batch), "its answer, if it still comes, says nothing"
    assert not house.write(lambda conn: outbox.count_attempt(conn, batch.batch_key))
    assert table(house, BATCHES) == "b1 dropped 1 3 0 a session in it was erased"
    again = claimed(house)
    assert (again.batch_id, again.lines_count) == ("b2", 3)
    assert house.write(lambda conn: outbox.release(conn, [], house.now)) == 0


# --- the destination -------------------------------------------------------------------------------------------------


def test_another_destination_gets_everything(house: House) -> None:
    house.record_sessions(4)
    confirm(house, claimed(house, lines_max=2), {0: "bad"})
    open_batch = claimed(house, lines_max=1)
    assert not house.write(lambda conn: outbox.set_destination(conn, ADDRESS, house.now))
    assert house.write(lambda conn: outbox.set_destination(conn, "https://other.test/", house.now))
    assert not confirm(house, open_batch), "the old one's answer counts no more"
    told = house.shipping()
    assert told["destination"] == "https://other.test/"
    assert (told["formerDestination"], told["changedAt"]) == (ADDRESS, "2026-11-22T07:00:00.000Z")
    assert (told["waitingSessions"], told["parkedSessions"], told["confirmedSessions"]) == (4, 0, 0)
    assert house.session("s-001")["shippedAt"] is None
    assert house.claim() is None, "a claim for the old one"
    assert house.write(lambda conn: outbox.set_destination(conn, ADDRESS, house.now))
    assert claimed(house).lines_count == 4


def test_no_upstream_for_a_while_forgets_nothing(house: House) -> None:
    house.record_sessions(1)
    confirm(house, claimed(house))
    assert not house.write(lambda conn: outbox.set_destination(conn, None, house.now))
    assert house.read(shipping.read_state) == {"state": "off", "reason": None, "since": None}
    assert (house.shipping()["state"], house.shipping()["destination"]) == ("off", None)
    assert not house.write(lambda conn: outbox.set_destination(conn, ADDRESS, house.now))
    assert (house.shipping()["state"], house.shipping()["confirmedSessions"]) == ("ready", 1)


def test_states_and_since(house: House) -> None:
    def put(state: str, minutes: int) -> None:
        at = NOW + minutes * 60_000
        if state == "waiting":
            house.write(lambda conn: outbox.postpone(conn, ADDRESS, reason="503", until=at + 2000, failures=1, now=at))
        elif state == "blocked":
            house.write(lambda conn: outbox.block(conn, ADDRESS, reason="401", until=at, failures=1, now=at))
        else:
            house.write(lambda conn: outbox.make_ready(conn, ADDRESS, at))

    seen = []
    for minute, state in enumerate(["waiting", "waiting", "blocked", "ready"]):
        put(state, minute)
        told = house.shipping()
        seen.append((told["state"], told["reason"], told["since"][14:16], (told["nextAttemptAt"] or "")[14:19]))
    assert seen == [
        ("waiting", "503", "00", "00:02"),
        ("waiting", "503", "00", "01:02"),
        ("blocked", "401", "02", "02:00"),
        ("ready", None, "03", ""),
    ]


def test_the_size_is_remembered_for_a_day(house: House) -> None:
    for refused in (1000, 600, 5000):
        house.write(lambda conn, refused=refused: outbox.remember_size(conn, ADDRESS, refused, NOW))  # type: ignore[misc]
    found = house.read(outbox.read_destination)
    assert found is not None
    assert (found.bytes_max, found.bytes_max_until) == (300, NOW + 86_400_000)
    house.write(lambda conn: outbox.remember_size(conn, ADDRESS, 5000, NOW + 86_400_001))
    found = house.read(outbox.read_destination)
    assert found is not None
    assert found.bytes_max == 2500


def test_what_is_said_about_shipping(house: House) -> None:
    house.record_sessions(3)
    house.record(event("running"), ago_ms=1000)
    confirm(house, claimed(house, lines_max=1))
    claimed(house, lines_max=1)
    told = house.shipping()
    sizes = [batch.pop("bytes") for batch in told["batches"]]
    assert all(size > 500 for size in sizes)
    at = "2026-11-22T07:00:00.000Z"
    assert told == {
        "destination": ADDRESS,
        "formerDestination": None,
        "changedAt": None,
        "state": "ready",
        "reason": None,
        "since": at,
        "sentence": "ready: 2 sessions waiting, the oldest since 06:00 UTC",
        "nextAttemptAt": None,
        "confirmedAt": at,
        "waitingSessions": 2,
        "oldestWaiting": "2026-11-22T06:00:00.001Z",
        "oldestWaitingSeconds": 3599,
        "unfinishedSessions": 1,
        "confirmedSessions": 1,
        "parkedSessions": 0,
        "tombstones": 0,
        "waitingTombstones": 0,
        "refusedTombstones": 0,
        "batches": [
            {"batchId": "b2", "site": "default", "lines": 1, "attempts": 0, "state": "open"}
            | {"claimedAt": at, "settledAt": None, "answer": None},
            {"batchId": "b1", "site": "default", "lines": 1, "attempts": 0, "state": "confirmed"}
            | {"claimedAt": at, "settledAt": at, "answer": "200 OK"},
        ],
    }


def test_an_unknown_session_is_no_session(house: House) -> None:
    with pytest.raises(LookupError, match="no session with the key 7"):
        house.read(lambda conn: shipping.read_session_shipping(conn, 7))
