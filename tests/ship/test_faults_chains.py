"""Sidecars that receive and ship on, in a line or in a ring: they come to rest, and all hold the same.

What guards a ring is the revision (contract 5.9): whoever holds exactly what a document says takes the greater revision
of the two and makes no new one, so a document that went round changes nothing where it came from.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from sidecar.model import Fact
from sidecar.ship.sinks import Answer, Verdict
from sidecar.store import facts as facts_module
from sidecar.store.erasure import forget
from sidecar.store.facts import FULL
from sidecar.store.lines import merge_lines
from sidecar.store.outbox import Batch
from tests.builders import event, vital
from tests.forks import Forks, Serving
from tests.proxy import Proxy, wait_until
from tests.servers import event as event_item
from tests.servers import vital as vital_item
from tests.ship.bench import QUIET, TOKEN, export
from tests.ship.house import TIMEOUT_MS, House, ScriptedSink, documents

METRICS = ("LCP", "INP", "CLS", "FCP")


class Ring:
    """Sidecars of one process that ship to the next one, the last to the first; their clock stands where it is set."""

    def __init__(self, houses: list[House]) -> None:
        self.houses = houses
        self.lines_sent = 0
        nexts = [*houses[1:], houses[0]]
        self._shippers = [
            house.shipper(ScriptedSink(self._receiver(target), f"https://{number}.test/"), lines_max=3)
            for number, (house, target) in enumerate(zip(houses, nexts, strict=True))
        ]

    def _receiver(self, target: House):  # type: ignore[no-untyped-def]
        def take(batch: Batch) -> Answer:
            lines = [json.dumps(document).encode() for document in documents(batch.body)]
            self.lines_sent += len(lines)
            results = target.write(lambda conn: merge_lines(conn, lines, target.now))
            refused = {n: result.reason or "" for n, result in enumerate(results) if result.outcome == "rejected"}
            return Answer(Verdict.TAKEN, "200 OK", rejected=refused)

        return take

    def ship(self, number: int) -> None:
        """One pass of one sidecar over what is finished."""
        asyncio.run(self._shippers[number].ship_once())

    def round(self) -> int:
        """Everything finishes, and each ships once: how many lines were sent."""
        before = self.lines_sent
        for house in self.houses:
            house.now += TIMEOUT_MS + 1
        for number in range(len(self.houses)):
            self.ship(number)
        return self.lines_sent - before

    def rest(self, most: int) -> None:
        """Rounds until nobody has anything to say; then nobody ever has."""
        for _ in range(most):
            if not self.round():
                break
        else:
            raise AssertionError(f"no rest after {most} rounds")
        assert [self.round() for _ in range(3)] == [0, 0, 0]


@pytest.fixture
def ring(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Ring]:
    with ExitStack() as stack:
        houses = [stack.enter_context(House(tmp_path / f"{number}.db")) for number in range(request.param)]
        yield Ring(houses)


def _draw(dice: random.Random) -> Fact:
    """A fact of few sessions and ids, so that reports of the same fact meet."""
    session, at = f"s-{dice.randrange(3)}", dice.randrange(50)
    visitor = dice.choice([None, "visitor-aaaaaa", "visitor-bbbbbb"])
    if dice.random() < 0.4:
        return event(session, fact_id=f"e-{dice.randrange(4)}", at=at, visitor=visitor)
    return vital(session, dice.choice(METRICS), dice.randrange(1, 9), at=at, visitor=visitor)


@pytest.mark.parametrize("ring", [2, 3], indirect=True)
@pytest.mark.parametrize("seed", range(6))
def test_a_ring_comes_to_rest(ring: Ring, seed: int) -> None:
    """Facts come to all of them, before, between and after passes; a visitor is erased at one of them."""
    dice = random.Random(seed)
    for step in range(40):
        number = dice.randrange(len(ring.houses))
        house = ring.houses[number]
        if dice.random() < 0.6:
            house.record(*(_draw(dice) for _ in range(dice.randrange(1, 4))), ago_ms=dice.choice([0, 2 * TIMEOUT_MS]))
        else:
            ring.ship(number)
        house.now += dice.randrange(TIMEOUT_MS)  # clocks differ by hours
        if step == 20 and seed % 2:
            at = house.now
            house.write(lambda conn, at=at: forget(conn, "default", "visitor-bbbbbb", at))  # type: ignore[misc]
    latest = max(house.now for house in ring.houses)
    for house in ring.houses:
        house.now = latest  # a revision ahead of a clock finishes late, and would look like rest until then
    ring.rest(3 * len(ring.houses))
    first, *others = ([json.loads(line) | {"finished": None} for line in house.export()] for house in ring.houses)
    assert all(other == first for other in others), "revisions, too"
    assert sum(line["type"] == "tombstone" for line in first) == seed % 2


@pytest.mark.parametrize("ring", [2, 3], indirect=True)
def test_a_ring_of_full_sessions_comes_to_rest(ring: Ring, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hold one session, each full of other facts: neither can take the other's, and they do not ask for ever."""
    monkeypatch.setattr(facts_module, "SESSION_FACTS_MAX", 6)
    for number, house in enumerate(ring.houses):
        house.record(*(vital("full", "LCP", 5, fact_id=f"{number}-{each}", at=each) for each in range(6)))
        house.now += number
    ring.rest(3 * len(ring.houses))
    for house in ring.houses:
        assert (house.shipping()["parkedSessions"], house.shipping()["waitingSessions"]) == (1, 0)
        assert str(house.session("full")["parkedReason"]).startswith(FULL)


# --- real servers ----------------------------------------------------------------------------------------------------


TIMEOUT_S = 0.2  # of a session
SILENCE_S = 5 * TIMEOUT_S


@pytest.mark.parametrize("count", [2, 3])
def test_real_sidecars_in_a_ring_come_to_rest(forks: Forks, tmp_path: Path, count: int) -> None:
    """Beacons to all of them at once, of the same sessions; then silence, in which no request is made."""
    settings = QUIET | {"SESSION_TIMEOUT": str(TIMEOUT_S), "SHIP_INTERVAL": "0.05", "SITE": "ring"}
    settings |= {"RECEIVE_TOKEN": TOKEN, "UPSTREAM_TOKEN": TOKEN}
    with ExitStack() as stack:
        sidecars = [Serving(forks, tmp_path / f"{number}.db", **settings) for number in range(count)]
        proxies = [stack.enter_context(Proxy(sidecar.port)) for sidecar in sidecars]
        for sidecar, proxy in zip(sidecars, [*proxies[1:], proxies[0]], strict=True):
            sidecar.settings["UPSTREAM_URL"] = proxy.url
            stack.enter_context(sidecar)
        client = stack.enter_context(sidecars[0].client())
        for turn in range(8):
            sidecar = sidecars[turn % count]
            for path, item in (("web-vitals", vital_item), ("events", event_item)):
                body = [
                    item(f"s-{number}", id=f"{turn}") if path == "web-vitals" else item(f"s-{number}")
                    for number in range(4)
                ]
                assert client.post(f"{sidecar.url}/api/track/{path}", json=body).status_code == 200
            time.sleep(0.1)

        def requests() -> int:
            return sum(len(proxy.requests) for proxy in proxies)

        def are_equal() -> bool:
            first, *others = (export(sidecar.database) for sidecar in sidecars)
            return len(first) == 4 and all(other == first for other in others)

        wait_until(are_equal, "all hold the same")
        seen = -1
        deadline = time.monotonic() + 20
        while seen != requests():
            assert time.monotonic() < deadline, f"no rest: {seen} requests"
            seen = requests()
            time.sleep(SILENCE_S)
        assert are_equal()
        assert seen <= 8 * 4 * count * count, "each change goes round at most once or twice"
        assert [len(line["webVitals"]) for line in export(sidecars[0].database)] == [8] * 4
        health = [sidecar.get("/healthz").json()["shipping"] for sidecar in sidecars]
        assert [(said["state"], said["reason"]) for said in health] == [("ready", None)] * count
