"""Documents at the edges of what may be said: refused with a reason, and never beyond the bound of a session."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from sidecar.canonical import content_size
from sidecar.ingest.wire import ITEM_BYTES_MAX
from sidecar.model import REVISION_MAX, SESSION_BYTES_MAX, Outcome
from sidecar.store import documents as documents_module
from sidecar.store.database import Connection, immediate, open_database
from sidecar.store.documents import LineResult, next_revision, read_session
from sidecar.store.explain_text import explain_lines
from sidecar.store.facts import _BYTES_CHECK_FROM, FACT_BYTES_MAX, FactOwner, Recording, record
from sidecar.store.lines import merge_lines
from sidecar.store.shipping import read_shipping
from tests.builders import START
from tests.local import LocalSidecar, dump, read
from tests.servers import event, vital

TIMEOUT_MS = 1_800_000
MIB = 1024 * 1024
ACCEPTED = LineResult(Outcome.ACCEPTED)


def full(count: int) -> LineResult:
    """What is said of a document of which not all facts had room."""
    return LineResult(Outcome.REJECTED, f"session is full: {count} facts were not taken")


@pytest.fixture
def conn(tmp_path: Path) -> Iterator[Connection]:
    """An empty database."""
    with closing(open_database(tmp_path / "b.db", durability="normal")) as opened:
        yield opened


def document_event(number: int, text: str = "", **changed: Any) -> dict[str, Any]:
    """An event of a document."""
    said: dict[str, Any] = {"eventId": f"e-{number:04d}", "eventName": "cta", "timestamp": "2026-11-22T07:00:00.000Z"}
    return said | ({"properties": {"text": text}} if text else {}) | changed


def document_vital(**changed: Any) -> dict[str, Any]:
    """A web vital of a document."""
    said = {"metric": "LCP", "id": "v", "value": 1, "rating": "good", "timestamp": "2026-11-22T07:00:00.000Z"}
    return said | changed


def document(
    events: list[dict[str, Any]] | None = None, vitals: list[dict[str, Any]] | None = None, /, **changed: Any
) -> bytes:
    """A line."""
    head = {"type": "session", "version": 1, "site": "default", "funnelId": "default", "sessionId": "s", "revision": 1}
    return json.dumps(head | {"events": events or [], "webVitals": vitals or []} | changed).encode()


def take(conn: Connection, *lines: bytes) -> list[LineResult]:
    """Merge lines in one transaction."""
    with immediate(conn):
        return merge_lines(conn, lines, START)


def held_bytes(conn: Connection) -> int:
    """What all facts hold."""
    sql = "SELECT (SELECT total(content_bytes) FROM events) + (SELECT total(content_bytes) FROM web_vitals)"
    return int(conn.execute(sql).fetchone()[0])


# --- what is refused -------------------------------------------------------------------------------------------------

TOMBSTONE = {"type": "tombstone", "version": 1, "site": "default", "visitorHash": "0" * 64, "erasedAt": "2026-11-22"}
ENDLESS = 10**400


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (document([document_event(1, timestamp="9999-12-31T23:59:59-12:00")]), "timestamp: must be an ISO 8601 time"),
        (document([], [document_vital(timestamp="0001-01-01T00:00+12:00")]), "timestamp: must be an ISO 8601 time"),
        (
            json.dumps(TOMBSTONE | {"erasedAt": "9999-12-31T23:59:59-12:00"}).encode(),
            "erasedAt: must be an ISO 8601 time",
        ),
        (
            json.dumps(TOMBSTONE | {"erasedAt": "0001-01-01T00:00+12:00"}).encode(),
            "erasedAt: must be an ISO 8601 time",
        ),
        (document([], [document_vital(value=ENDLESS)]), "value: must be within 2^53"),
        (document([], [document_vital(delta=-ENDLESS)]), "delta: must be within 2^53"),
        (document([], [document_vital(delta=2**53 + 1)]), "delta: must be within 2^53"),
        (document([], [document_vital(seq=ENDLESS)]), "seq: must be an integer from 0 to 2^53"),
        (document([document_event(1)], version=True), "version: must be 1"),
        (document([document_event(1)], version=1.0), "version: must be 1"),
        (json.dumps(TOMBSTONE | {"version": True}).encode(), "version: must be 1"),
        (document([document_event(1)], revision=2**53), "revision: must be an integer from 0 to 2^53-1"),
    ],
)
def test_what_cannot_be_held_is_refused(conn: Connection, line: bytes, reason: str) -> None:
    """With its reason, and the line beside it is taken."""
    fine = document([document_event(1)], sessionId="t")
    assert take(conn, line, fine) == [LineResult(Outcome.REJECTED, reason), ACCEPTED]


@pytest.mark.parametrize("error", [OverflowError("too large"), RecursionError("too deep")])
def test_no_line_stops_the_lines_beside_it(conn: Connection, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Whatever it is that reading one stumbles over."""
    with monkeypatch.context() as patch:

        def stumble(*_: object) -> None:
            raise error

        patch.setattr(documents_module, "_read_vital", stumble)
        results = take(conn, document([], [document_vital()]), document([document_event(1)]))
    assert [result.outcome for result in results] == ["rejected", "accepted"]
    assert results[0].reason == f"cannot be read: {error}"


def test_the_ends_of_numbers_are_taken(conn: Connection) -> None:
    """2^53 is exact, and a float may be longer than any integer."""
    vitals = [document_vital(id=str(place), delta=delta) for place, delta in enumerate((2**53, -(2**53), 1e300))]
    assert take(conn, document([], vitals)) == [ACCEPTED]
    written = read_session(conn, 1, START, TIMEOUT_MS)["webVitals"]
    assert [one["delta"] for one in written] == [2**53, -(2**53), 1e300]


@pytest.mark.parametrize("timestamp", [2**53, -(2**53), 253_402_300_800_000, "9999-12-31T23:59:59-12:00"])
def test_a_clock_far_off_is_wrong_and_no_reason_to_refuse(tmp_path: Path, timestamp: Any) -> None:
    """A beacon with a time that no document can hold is dated by its arrival."""
    with LocalSidecar(tmp_path / "n.db", START) as sidecar:
        assert sidecar.send("web-vitals", vital("s", timestamp=timestamp)) == ["accepted"]
        [said] = sidecar.export_documents()
        assert (said["startedAt"], said["webVitals"][0]["clockSkewed"]) == ("2026-11-22T07:00:00.000Z", True)


# --- revisions -------------------------------------------------------------------------------------------------------


def test_the_greatest_revision_is_shown_and_does_not_grow(conn: Connection) -> None:
    """It is legal, no time, and one more would be refused by every receiver."""
    assert take(conn, document([document_event(1)], revision=REVISION_MAX)) == [ACCEPTED]
    held = read_session(conn, 1, START, TIMEOUT_MS)
    assert "revision 9007199254740991" in " ".join(_explained(conn, held))
    shipping = read_shipping(conn, START, TIMEOUT_MS)
    assert (shipping["waitingSessions"], shipping["oldestWaiting"]) == (1, None)  # it is far ahead, so it is no time
    later = document([document_event(1), document_event(2)], revision=REVISION_MAX - 1)
    fewer = document([document_event(3)], revision=REVISION_MAX)
    for line in (later, fewer):
        assert take(conn, line) == [ACCEPTED]
        assert read_session(conn, 1, START, TIMEOUT_MS)["revision"] == REVISION_MAX
    again = json.dumps(read_session(conn, 1, START, TIMEOUT_MS)).encode()
    assert take(conn, again) == [LineResult(Outcome.DUPLICATE)]


def _explained(conn: Connection, held: dict[str, Any]) -> list[str]:
    facts = documents_module.read_facts(conn, 1, FactOwner("default", "default", "s"))
    return [*explain_lines(facts, held, [])]


def test_revisions_stop_before_2_53() -> None:
    """Whichever of the three would carry them over it."""
    assert next_revision(REVISION_MAX, 5, same=False, changed=True, now=7) == REVISION_MAX
    assert next_revision(5, REVISION_MAX, same=False, changed=False, now=7) == REVISION_MAX
    assert next_revision(REVISION_MAX - 1, 5, same=False, changed=True, now=7) == REVISION_MAX
    assert next_revision(5, 6, same=False, changed=True, now=4) == 7
    assert next_revision(5, 6, same=False, changed=True, now=9) == 9


# --- the bound of a session ------------------------------------------------------------------------------------------


def test_an_item_of_a_beacon_is_never_larger_than_the_bound_counts_with() -> None:
    """The worst that can be sent: numbers that grow, and a client whose header grows, too."""
    agent = 'Mozilla/5.0 (X11; Linux) "' + "ÿ" * 450 + "/" + "9" * 500
    frame = len(dump(event("s", timestamp=START, properties={"x": []})))
    numbers = (ITEM_BYTES_MAX - frame + 1) // len("1e15,")
    body = dump(event("s", timestamp=START, properties={"x": []})).replace(
        b"[]", b"[" + b",".join([b"1e15"] * numbers) + b"]"
    )
    assert ITEM_BYTES_MAX - 5 <= len(body) <= ITEM_BYTES_MAX
    [fact] = read("events", body, START, agent)
    assert not isinstance(fact, str)
    assert 3.2 * ITEM_BYTES_MAX < content_size(fact) < FACT_BYTES_MAX
    assert 3.4 * ITEM_BYTES_MAX < FACT_BYTES_MAX - 9 * 1024
    assert _BYTES_CHECK_FROM * FACT_BYTES_MAX <= SESSION_BYTES_MAX


@pytest.mark.parametrize("group", [40, 480])
def test_beacons_full_of_numbers_that_grow_obey_the_bound(tmp_path: Path, group: int) -> None:
    """480 events of 15 kB became 24 MB."""
    numbers = b"[" + b",".join([b"1e15"] * 3_000) + b"]"
    outcomes: list[str] = []
    with LocalSidecar(tmp_path / "n.db", START) as sidecar:
        for start in range(0, 480, group):
            items = [event("s", "cta", eventId=str(n), timestamp=START) for n in range(start, start + group)]
            bodies = [dump(item | {"properties": {"x": []}}).replace(b"[]", numbers) for item in items]
            outcomes += _send(sidecar, bodies)
        held = held_bytes(sidecar.conn)
        assert SESSION_BYTES_MAX - 52_000 < held <= SESSION_BYTES_MAX
        assert outcomes == ["accepted"] * outcomes.count("accepted") + ["rejected"] * outcomes.count("rejected")
        assert sidecar.send("events", event("s", timestamp=START)) == ["accepted"]  # what is small still fits
        assert sidecar.findings() == []


def _send(sidecar: LocalSidecar, bodies: list[bytes]) -> list[str]:
    """Deliver beacons in one transaction, as the writer does under load; the outcome of each item."""
    said = [read("events", body, sidecar.now) for body in bodies]
    facts = [[fact for fact in one if not isinstance(fact, str)] for one in said]
    with immediate(sidecar.conn):
        recorded = record(sidecar.conn, [Recording([*enumerate(one)], sidecar.now) for one in facts])
    return [str(judged.outcome) for one in recorded for judged in one.judged]


def test_a_document_of_few_large_facts_obeys_the_bound(conn: Connection) -> None:
    """40 facts of 1 MB: what fits is taken, and the rest is refused, also when it comes again."""
    line = document([document_event(number, "x" * 1_000_000) for number in range(40)])
    refused = full(24)
    assert take(conn, line) == [refused]
    assert 16_000_000 < held_bytes(conn) <= SESSION_BYTES_MAX
    assert take(conn, line) == [refused]
    assert take(conn, document([document_event(99)])) == [ACCEPTED]


def test_reports_that_are_replaced_count_with_their_new_size(conn: Connection) -> None:
    """A newer report of a held fact is always taken; what comes after it finds that much less room."""
    take(conn, document([document_event(1, "x")]))
    newer = document_event(1, "y" * (15 * MIB), timestamp="2026-11-22T07:00:01.000Z")
    results = take(conn, document([newer, document_event(2, "x" * (2 * MIB)), document_event(3, "x")]))
    assert results == [full(1)]
    small = document_event(1, "z", timestamp="2026-11-22T07:00:02.000Z")
    assert take(conn, document([small, document_event(2, "x" * (2 * MIB))])) == [ACCEPTED]
    assert 2 * MIB < held_bytes(conn) < 3 * MIB


def test_a_fact_over_the_bound_by_itself_leaves_no_session(tmp_path: Path) -> None:
    """A session without facts would be no session."""
    with LocalSidecar(tmp_path / "n.db", START) as sidecar:
        refused = full(1)
        assert take(sidecar.conn, document([document_event(1, "x" * SESSION_BYTES_MAX)])) == [refused]
        assert sidecar.conn.execute("SELECT count(*) FROM sessions").fetchone() == (0,)
        assert (sidecar.export(), sidecar.findings()) == ([], [])


def test_beacons_for_a_session_of_few_large_facts_obey_the_bound(tmp_path: Path) -> None:
    """A document filled it but for half a MB: beacons get that much, though the session has few facts."""
    with LocalSidecar(tmp_path / "n.db", START) as sidecar:
        filled = [document_event(number, "x" * (MIB - 1024)) for number in range(15)] + [
            document_event(15, "x" * (MIB // 2))
        ]
        assert take(sidecar.conn, document(filled)) == [ACCEPTED]
        large = {"text": "y" * 15_000}
        outcomes: list[str] = []
        for start in range(100, 150, 10):
            items = [event("s", eventId=str(n), timestamp=START, properties=large) for n in range(start, start + 10)]
            outcomes += _send(sidecar, [dump(item) for item in items])
        taken = outcomes.count("accepted")
        assert 30 < taken < 40
        assert outcomes == ["accepted"] * taken + ["rejected"] * (50 - taken)
        assert SESSION_BYTES_MAX - 16_000 < held_bytes(sidecar.conn) <= SESSION_BYTES_MAX
        assert sidecar.findings() == []


def test_ordinary_sessions_are_not_summed(tmp_path: Path) -> None:
    """The bytes of a session of few facts of beacons are not asked for: that is the way of nearly all beacons."""
    said: list[str] = []
    with LocalSidecar(tmp_path / "n.db", START) as sidecar:
        sidecar.send("events", [event("s", eventId=str(number), timestamp=START) for number in range(100)])
        sidecar.conn.set_trace_callback(said.append)
        sidecar.send("events", [event("s", eventId=str(number), timestamp=START) for number in range(100, 200)])
        assert not any("sum(content_bytes)" in statement for statement in said)
        assert any("INSERT INTO events" in statement for statement in said)
