"""An erasure goes upstream: before all sessions, until it is confirmed, and what was on its way goes no further."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sidecar.model import EventFact
from sidecar.ship.sinks import Answer, Verdict
from sidecar.ship.sinks.http import HttpSink
from sidecar.store import outbox
from sidecar.store.erasure import Erased, forget
from sidecar.store.lines import merge_lines
from sidecar.store.outbox import Batch
from sidecar.store.tombstones import hash_of
from tests.builders import event, vital
from tests.ship.house import ADDRESS, TAKEN, TIMEOUT_MS, House, ScriptedSink, documents, serve_receiver

pytestmark = pytest.mark.anyio

DOWN = Answer(Verdict.AGAIN, "503 Service Unavailable", "try later")


@pytest.fixture
def upstream(tmp_path: Path) -> Iterator[House]:
    with House(tmp_path / "upstream.db") as opened:
        yield opened


def erase(house: House, visitor: str = "v-1") -> Erased:
    return house.write(lambda conn: forget(conn, "default", visitor, house.now))


def kinds(batch: Batch) -> list[str]:
    """What the lines of a batch are: a session's id, or `grave`."""
    return [one["sessionId"] if one["type"] == "session" else "grave" for one in documents(batch.body)]


def without_revisions(house: House) -> list[dict[str, Any]]:
    return [json.loads(line) | {"revision": 0, "finished": True} for line in house.export()]


async def test_upstream_erases_and_refuses(house: House, upstream: House) -> None:
    """Both ends hold the same before and after; what the upstream knows of the visitor from elsewhere goes, too."""
    house.record_sessions(3)
    named = event("s-002", at=5, visitor="v-1", properties={"friend": "v-1"})
    assert isinstance(named, EventFact)
    house.record(named._replace(context='{"user":{"anonymousId":"v-1"}}'))
    upstream.record(vital("elsewhere", "LCP", 1, visitor="v-1", funnel_id="other"))
    with serve_receiver(upstream) as url:
        await house.shipper(HttpSink(url, token="secret")).ship_once()
        assert len(upstream.export()) == 4
        old = [line.encode() for line in house.export()]
        assert erase(house) == Erased(1, 1, 1)
        passed = await house.shipper(HttpSink(url, token="secret")).ship_once()
        assert passed.sentence == "0 sessions shipped in 1 batches (1 requests), 1 erasures told"
        house.now = upstream.now = house.now + 2 * TIMEOUT_MS
        assert (await house.shipper(HttpSink(url, token="secret")).ship_once()).confirmed == 1
    *sessions, grave = without_revisions(upstream)
    assert [*sessions, grave | {"sessionHashes": [hash_of("default", "default", "s-001")]}] == without_revisions(house)
    assert hash_of("default", "other", "elsewhere") in grave["sessionHashes"]
    assert not [line for line in upstream.export() if "v-1" in line]
    with House(house.path.with_name("old.db")) as restored:
        restored.write(lambda conn: outbox.set_destination(conn, None, restored.now))
        restored.write(lambda conn: merge_lines(conn, old, restored.now))
        with serve_receiver(upstream) as url:
            passed = await restored.shipper(HttpSink(url, token="secret")).ship_once(include_unfinished=True)
        assert (passed.confirmed, passed.parked) == (3, 0), "`erased` counts as confirmed"
    assert without_revisions(upstream) == [*sessions, grave]


async def test_tombstones_go_first_and_once(house: House) -> None:
    """In batches of their own, without waiting for anything to finish; a second erasure of the same is nothing new."""
    house.record_sessions(3)
    house.record(event("running", visitor="v-9"), ago_ms=1000)
    erase(house)
    erase(house, "v-9")
    erase(house, "v-9")
    sink = ScriptedSink()
    shipper = house.shipper(sink)
    passed = await shipper.ship_once()
    assert [kinds(batch) for batch in sink.sent] == [["grave", "grave"], ["s-000", "s-002"]]
    assert (passed.confirmed, passed.erasures) == (2, 2)
    assert (house.shipping()["tombstones"], house.shipping()["waitingTombstones"]) == (2, 0)
    assert (await shipper.ship_once()).requests == 0


async def test_an_erasure_replaces_what_was_to_be_sent_again(house: House) -> None:
    """The frozen batch holds the visitor: it is sent no more, the others go under a new id."""
    house.record_sessions(3)
    sink = ScriptedSink(lambda batch: DOWN if "s-001" in kinds(batch) else TAKEN)
    assert (await house.shipper(sink).ship_once()).confirmed == 0
    erase(house)
    house.now += TIMEOUT_MS
    assert (await house.shipper(sink).ship_once()).confirmed == 2
    assert [(batch.batch_id, kinds(batch)) for batch in sink.sent] == [
        ("b1", ["s-000", "s-001", "s-002"]),
        ("b2", ["grave"]),
        ("b3", ["s-000", "s-002"]),
    ]


async def test_erased_while_its_batch_is_under_way(house: House) -> None:
    """The answer to it says nothing any more; the tombstone follows at once."""
    house.record_sessions(2)

    def script(batch: Batch) -> Answer:
        if "s-001" in kinds(batch):
            erase(house)
        return TAKEN

    sink = ScriptedSink(script)
    await house.shipper(sink).ship_once()
    assert [kinds(batch) for batch in sink.sent] == [["s-000", "s-001"], ["grave"], ["s-000"]]


async def test_another_destination_is_told_again(house: House) -> None:
    """What was confirmed belongs to the old one."""
    erase(house)
    assert (await house.shipper(ScriptedSink()).ship_once()).erasures == 1
    other = ScriptedSink(address="https://other.test/")
    assert (await house.shipper(other).ship_once()).erasures == 1
    assert [kinds(batch) for batch in other.sent] == [["grave"]]


@pytest.mark.parametrize("verdict", [Verdict.TAKEN, Verdict.REFUSED])
async def test_a_refused_tombstone_is_kept_with_the_reason(house: House, verdict: Verdict) -> None:
    """By line or as a whole batch, which is halved; it is sent again when it is requeued, and never given up."""
    for visitor in ("v-1", "v-2", "v-3"):
        house.now += 1
        erase(house, visitor)
    bad = hash_of("default", "v-2")

    def script(batch: Batch) -> Answer:
        found = [number for number, one in enumerate(documents(batch.body)) if one["visitorHash"] == bad]
        if verdict is Verdict.REFUSED:
            return Answer(verdict, "400 Bad Request", "no tombstones") if found else TAKEN
        return TAKEN._replace(rejected=dict.fromkeys(found, "no tombstones"))

    passed = await house.shipper(ScriptedSink(script)).ship_once()
    assert (passed.erasures, passed.parked) == (2, 1)
    told = house.shipping()
    assert (told["waitingTombstones"], told["refusedTombstones"]) == (0, 1)
    assert house.write(outbox.requeue_tombstones) == 1
    assert house.shipping()["waitingTombstones"] == 1
    assert (await house.shipper(ScriptedSink()).ship_once()).erasures == 1
    assert house.shipping()["refusedTombstones"] == 0


async def test_a_tombstone_that_grew_while_it_was_sent_goes_again(house: House) -> None:
    """Confirmed is what was in the batch."""
    erase(house)

    def script(batch: Batch) -> Answer:
        if batch.batch_id == "b1":
            house.now += 5
            line = {"type": "tombstone", "version": 1, "site": "default", "visitorHash": hash_of("default", "v-1")}
            more = json.dumps(line | {"sessionHashes": ["a" * 64], "erasedAt": "2026-11-22T07:00:00Z"}).encode()
            house.write(lambda conn: merge_lines(conn, [more], house.now))
        return TAKEN

    sink = ScriptedSink(script)
    await house.shipper(sink).ship_once()
    assert [len(documents(batch.body)[0]["sessionHashes"]) for batch in sink.sent] == [0, 1]


async def test_batches_of_tombstones_hold_one_site(house: House) -> None:
    """As all batches."""
    house.write(lambda conn: outbox.set_destination(conn, ADDRESS, house.now))
    for site in ("a", "b", "a"):
        house.write(lambda conn, site=site: forget(conn, site, f"v-{house.make_id()}", house.now))  # type: ignore[misc]
    sink = ScriptedSink()
    await house.shipper(sink).ship_once()
    assert [(batch.site, batch.lines_count) for batch in sink.sent] == [("a", 2), ("b", 1)]
