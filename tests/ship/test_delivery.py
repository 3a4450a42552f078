"""From one sidecar to another, on a real server: both hold the same afterwards, whatever happens on the way."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.attribution import campaign_of
from sidecar.ship.sinks import Answer
from sidecar.ship.sinks.http import HttpSink
from sidecar.store.outbox import Batch
from tests.builders import BOT, event, page_of, vital
from tests.ship.house import TIMEOUT_MS, House, ScriptedSink, serve_receiver

pytestmark = pytest.mark.anyio

SECRETS = tuple(f"whsec_{base64.b64encode(bytes([n]) * 24).decode()}" for n in (1, 2))

NEWS = "/?utm_source=news&utm_campaign=spring"


@pytest.fixture
def upstream(tmp_path: Path) -> Iterator[House]:
    with House(tmp_path / "upstream.db") as opened:
        yield opened


def fill(house: House) -> None:
    """Sessions of every kind."""
    traits: dict[str, object] = {"userId": "u-1", "traits": {"name": "Zoë"}}
    house.record(
        vital("full", "LCP", 2500.5, at=10),
        vital("full", "TTFB", 0, navigation_type="back-forward-cache", at=11),
        event("full", at=20, visitor="visitor-aaaaaa", page=page_of(NEWS), campaign=campaign_of(None, NEWS)),
        event("full", "user_identified", at=30, properties=traits),
        event("full", "purchase", at=40, properties={"revenue": 19.99, "currency": "EUR"}, page=page_of("/done?x=1")),
        event("second", at=50, visitor="visitor-aaaaaa", funnel_id="landing"),
        vital("provisional", "CLS", 0.02, client=None, page=None),
        event("robot", client=BOT, clock_skewed=True),
    )
    house.record_sessions(40)


async def test_both_exports_are_the_same_bytes(house: House, upstream: House) -> None:
    fill(house)
    with serve_receiver(upstream, secrets=SECRETS) as url:
        sink = HttpSink(url, token="secret", secrets=SECRETS[1:])
        passed = await house.shipper(sink, lines_max=7).ship_once()
    assert (passed.confirmed, passed.state) == (44, "ready")
    assert upstream.export() == house.export(), "revisions, too"


async def test_late_facts_and_what_the_upstream_holds_itself_are_merged(house: House, upstream: House) -> None:
    fill(house)
    upstream.record(vital("full", "INP", 80, at=15))
    with serve_receiver(upstream) as url:
        await house.shipper(HttpSink(url, token="secret")).ship_once()
        house.record(vital("full", "INP", 80, at=15), vital("second", "FCP", 900, at=60))
        await house.shipper(HttpSink(url, token="secret")).ship_once()
    facts = {"revision", "finished"}
    ours, theirs = (
        [{k: v for k, v in json.loads(line).items() if k not in facts} for line in one.export()]
        for one in (house, upstream)
    )
    assert ours == theirs


async def test_a_batch_whose_answer_was_lost_is_applied_once(house: House, upstream: House) -> None:
    fill(house)
    with serve_receiver(upstream) as url:
        http = HttpSink(url, token="secret")
        delivered = asyncio.Event()

        class LosesTheAnswer(ScriptedSink):
            async def send(self, batch: Batch, now: int) -> Answer:
                await http.send(batch, now)
                delivered.set()
                await asyncio.sleep(60)
                raise AssertionError("cancelled before")

        task = asyncio.create_task(house.shipper(LosesTheAnswer(address=http.address)).run())
        await delivered.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await http.close()
        before = upstream.export()
        revisions = upstream.read(lambda conn: conn.execute("SELECT sum(revision) FROM sessions").fetchone())
        passed = await house.shipper(HttpSink(url, token="secret")).ship_once()
    assert (passed.requests, passed.confirmed) == (1, 44)
    assert upstream.export() == before == house.export()
    assert upstream.read(lambda conn: conn.execute("SELECT sum(revision) FROM sessions").fetchone()) == revisions
    assert upstream.read(lambda conn: conn.execute("SELECT count(*) FROM receipts").fetchone()) == (1,)


async def test_lines_of_a_site_that_is_not_allowed_are_parked(house: House, upstream: House) -> None:
    house.record_sessions(2, site="a")
    house.record_sessions(2, site="b")
    with serve_receiver(upstream, tokens=(("other", None), ("secret", ("a",)))) as url:
        passed = await house.shipper(HttpSink(url, token="secret")).ship_once()
    assert (passed.confirmed, passed.parked, passed.state) == (2, 2, "ready")
    assert len(upstream.export()) == 2


async def test_wrong_token_then_the_right_one(house: House, upstream: House) -> None:
    house.record_sessions(1)
    with serve_receiver(upstream) as url:
        passed = await house.shipper(HttpSink(url, token="wrong")).ship_once()
        assert passed.sentence == (
            "0 sessions shipped in 0 batches (1 requests), 1 still waiting; blocked: 401 Unauthorized"
        )
        assert (await house.shipper(HttpSink(url, token="secret")).ship_once()).confirmed == 1


async def test_a_receiver_with_a_small_limit_gets_small_batches(house: House, upstream: House) -> None:
    house.record_sessions(40)
    with serve_receiver(upstream, unpacked_max=20_000) as url:
        passed = await house.shipper(HttpSink(url, token="secret")).ship_once()
    assert (passed.confirmed, passed.parked) == (40, 0)
    assert upstream.export() == house.export()


async def test_a_chain_of_sidecars(house: House, upstream: House, tmp_path: Path) -> None:
    fill(house)
    with House(tmp_path / "far.db") as far:
        with serve_receiver(upstream) as url:
            await house.shipper(HttpSink(url, token="secret")).ship_once()
        upstream.now = far.now = house.now = house.now + TIMEOUT_MS
        with serve_receiver(far) as url:
            await upstream.shipper(HttpSink(url, token="secret")).ship_once()
        assert far.export() == upstream.export() == house.export()
