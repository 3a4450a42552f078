"""One suite over all destinations, each the real thing, through the real shipper.

Whatever happens on the way, in the end each holds the sessions that the sidecar holds: none lost, none twice, each in
its latest revision. Every test writes a site of its own, so that one server serves them all.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sidecar.attribution import campaign_of
from sidecar.ship.sinks import Answer, Sink, Verdict
from sidecar.ship.sinks.open import open_sink
from sidecar.store.erasure import forget
from sidecar.store.outbox import Batch
from tests.builders import event, page_of, vital
from tests.servers import sidecar
from tests.ship.destinations import DESTINATIONS, Destination
from tests.ship.house import TIMEOUT_MS, House

pytestmark = pytest.mark.anyio

NEWS = "/?utm_source=news&utm_campaign=spring"


@pytest.fixture(scope="module", params=DESTINATIONS)
def destination(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Destination]:
    opened = DESTINATIONS[request.param](tmp_path_factory.mktemp(request.param))
    try:
        opened.start()
        with pytest.MonkeyPatch.context() as patch:
            for name in [name for name in os.environ if name.startswith("AWS_")]:
                patch.delenv(name)
            for name, value in opened.environment.items():
                patch.setenv(name, value)
            yield opened
    finally:
        opened.stop()


@pytest.fixture
def sink(destination: Destination) -> Sink:
    return open_sink(destination.url, token=os.environ.get("SIDECAR_UPSTREAM_TOKEN"))


@pytest.fixture
def site(request: pytest.FixtureRequest) -> str:
    name: str = request.function.__name__
    return name.removeprefix("test_")


class SiteHouse(House):
    """A house whose batches have ids of their own: a receiver knows those of the tests before."""

    def __init__(self, path: Path, site: str) -> None:
        super().__init__(path)
        self._site = site

    def make_id(self) -> str:
        """The site's name, and a number."""
        return f"{self._site}-{super().make_id()}"


@pytest.fixture
def house(tmp_path: Path, site: str) -> Iterator[House]:
    with SiteHouse(tmp_path / "house.db", site) as opened:
        yield opened


def held(destination: Destination, site: str) -> list[dict[str, Any]]:
    """The sessions of a site there. When a session counts as finished is the clock's word, and each has its own."""
    found = [one for one in destination.documents() if one["site"] == site]
    return [{**one, "finished": None} for one in sorted(found, key=lambda one: (one["funnelId"], one["sessionId"]))]


def own(house: House) -> list[dict[str, Any]]:
    """The sessions of the sidecar, in the order of `export`."""
    documents = [json.loads(line) for line in house.export()]
    return [{**one, "finished": None} for one in documents if one["type"] == "session"]


async def test_sessions_of_every_kind(destination: Destination, sink: Sink, house: House, site: str) -> None:
    traits: dict[str, object] = {
        "userId": "u-1",
        "traits": {"name": "Zoë 🚀", "a\\b": ['"', "\u2028", 1e300, -0.5, None]},
    }
    house.record(
        vital("full", "LCP", 2500.5, site=site, at=10),
        vital("full", "TTFB", 0, site=site, navigation_type="back-forward-cache", at=11),
        event("full", site=site, at=20, visitor="visitor-a", page=page_of(NEWS), campaign=campaign_of(None, NEWS)),
        event("full", "user_identified", site=site, at=30, properties=traits),
        event("full", "purchase", site=site, at=40, properties={"revenue": 19.99, "currency": "EUR"}),
        event("second", site=site, at=50, visitor="visitor-a", funnel_id="landing"),
        vital("provisional", "CLS", 0.02, site=site, client=None, page=None),
        event("skewed\n\t", site=site, clock_skewed=True),
    )
    passed = await house.shipper(sink, lines_max=3).ship_once()
    assert (passed.confirmed, passed.parked, passed.state) == (4, 0, "ready")
    assert held(destination, site) == own(house)


async def test_the_same_bytes_again(destination: Destination, sink: Sink, house: House, site: str) -> None:
    house.record_sessions(5, site=site)
    shipper = house.shipper(Unheard(sink))
    assert (await shipper.ship_once()).confirmed == 0
    assert held(destination, site) == own(house), "it was taken, but nobody heard it"
    passed = await house.shipper(open_like(destination)).ship_once()
    assert (passed.requests, passed.confirmed, passed.batches) == (1, 5, 1)
    assert held(destination, site) == own(house)


async def test_a_split(destination: Destination, sink: Sink, house: House, site: str) -> None:
    house.record_sessions(9, site=site)
    passed = await house.shipper(Narrow(sink, lines_max=2)).ship_once()
    assert (passed.confirmed, passed.parked, passed.batches) == (9, 0, 5)
    assert held(destination, site) == own(house)


async def test_stopped_and_started(destination: Destination, sink: Sink, house: House, site: str) -> None:
    house.record_sessions(3, site=site)
    await house.shipper(sink).ship_once()
    house.record_sessions(4, site=site, first=3)
    destination.stop()
    passed = await house.shipper(open_like(destination)).ship_once()
    assert (passed.confirmed, passed.parked, passed.waiting) == (0, 0, 4)
    assert passed.state in ("waiting", "blocked")
    assert passed.reason
    destination.start()
    house.now += 1000
    passed = await house.shipper(open_like(destination)).ship_once()
    assert (passed.confirmed, passed.parked, passed.state) == (4, 0, "ready")
    assert held(destination, site) == own(house)


async def test_an_old_batch_after_a_newer_one(destination: Destination, sink: Sink, house: House, site: str) -> None:
    house.record_sessions(3, site=site)
    keeping = Keeping(sink)
    await house.shipper(keeping).ship_once()
    house.record(vital("s-001", "INP", 80, site=site, at=2000), ago_ms=TIMEOUT_MS + 1)
    passed = await house.shipper(keeping).ship_once()
    assert passed.confirmed == 1
    assert held(destination, site) == own(house)
    again = open_like(destination)
    answer = await again.send(keeping.sent[0], house.now)
    await again.close()
    assert answer.verdict is Verdict.TAKEN
    assert held(destination, site) == own(house), "what came late did not win"


async def test_an_erased_visitor(destination: Destination, sink: Sink, house: House, site: str) -> None:
    house.record_sessions(3, site=site)
    await house.shipper(sink).ship_once()
    house.write(lambda conn: forget(conn, site, "v-1", house.now))
    passed = await house.shipper(open_like(destination)).ship_once()
    assert (passed.erasures, passed.state) == (1, "ready")
    assert [one["sessionId"] for one in held(destination, site)] == ["s-000", "s-002"]
    assert held(destination, site) == own(house)


async def test_the_command(destination: Destination, house: House, site: str) -> None:
    house.record_sessions(2, site=site)
    settings: dict[str, Any] = {"DATABASE": str(house.path), "UPSTREAM_URL": destination.url}
    settings |= {
        name.removeprefix("SIDECAR_"): value
        for name, value in destination.environment.items()
        if name.startswith("SIDECAR_")
    }
    done = sidecar("ship", **settings)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == b"2 sessions shipped in 1 batches (1 requests)\n"
    assert held(destination, site) == own(house)


def open_like(destination: Destination) -> Sink:
    """A shipper closes its sink: the next one needs another."""
    return open_sink(destination.url, token=os.environ.get("SIDECAR_UPSTREAM_TOKEN"))


class Keeping:
    """The real sink; remembers what went through it."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self.address = sink.address
        self.sent: list[Batch] = []

    async def send(self, batch: Batch, now: int) -> Answer:
        """Pass it on."""
        self.sent.append(batch)
        return await self._sink.send(batch, now)

    async def close(self) -> None:
        """As the sink."""
        await self._sink.close()


class Unheard(Keeping):
    """The real sink, but its answers get lost."""

    async def send(self, batch: Batch, now: int) -> Answer:
        """Pass it on, and say that nothing came back."""
        answer = await super().send(batch, now)
        assert answer.verdict is Verdict.TAKEN, answer
        return Answer(Verdict.AGAIN, "no answer")


class Narrow(Keeping):
    """The real sink, but a batch of more than `lines_max` lines does not get through."""

    def __init__(self, sink: Sink, lines_max: int) -> None:
        super().__init__(sink)
        self._lines_max = lines_max

    async def send(self, batch: Batch, now: int) -> Answer:
        """Pass it on where it is small enough."""
        if batch.lines_count > self._lines_max:
            return Answer(Verdict.TOO_LARGE, "too large")
        return await super().send(batch, now)
