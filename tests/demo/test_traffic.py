"""The plan: the same from the same seed, in the order that used to break, with answers that follow from it."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator

import pytest

from sidecar.demo.journeys import DEVICES, HOUR_MS, Item
from sidecar.demo.stage import SEED
from sidecar.demo.traffic import Beacon, Ledger, Plan, Step, items_of, make_plan
from sidecar.ingest.client import read_user_agent
from sidecar.ingest.wire import parse_events, parse_web_vitals

NOW = 1_795_330_800_000  # 2026-11-22T07:00:00Z
SHOP, FUNNEL = "http://127.0.0.1:8789", "demo-shop"


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan(SEED, NOW, SHOP, FUNNEL)


def _steps(plan: Plan) -> list[Step]:
    return [plan.opening, *plan.steps, plan.late]


def _beacons(plan: Plan) -> Iterator[Beacon]:
    return (beacon for step in _steps(plan) for burst in step.bursts for beacon in burst)


def _items(plan: Plan) -> list[Item]:
    return [item for beacon in _beacons(plan) for item in items_of(beacon)]


def _session(item: Item) -> str:
    return str(item["sessionId"] if "metric" in item else item["context"]["session"]["sessionId"])


def test_the_same_seed_and_time_give_the_same_plan(plan: Plan) -> None:
    assert make_plan(SEED, NOW, SHOP, FUNNEL) == plan


def test_another_time_changes_only_times(plan: Plan) -> None:
    later = make_plan(SEED, NOW + 86_400_000, SHOP, FUNNEL)
    assert later.session_ids == plan.session_ids
    assert [step.expected for step in _steps(later)] == [step.expected for step in _steps(plan)]
    assert later != plan


def test_another_seed_gives_other_sessions(plan: Plan) -> None:
    assert not set(make_plan(SEED + 1, NOW, SHOP, FUNNEL).session_ids) & set(plan.session_ids)


def test_the_first_item_of_nearly_every_session_is_a_web_vital(plan: Plan) -> None:
    first: dict[str, Item] = {}
    for item in _items(plan):
        first.setdefault(_session(item), item)
    assert set(first) == set(plan.session_ids)
    assert all("metric" in item for item in first.values())
    assert len(plan.session_ids) == 40
    assert len(plan.provisional) == 36


def test_twelve_sessions_begin_with_two_items_at_once(plan: Plan) -> None:
    twos = [burst for burst in plan.opening.bursts if len(burst) == 2]
    assert Counter(tuple(beacon.path for beacon in burst) for burst in twos) == {
        ("web-vitals", "events"): 4,
        ("web-vitals", "web-vitals"): 8,
    }
    for burst in twos:
        assert len({_session(item) for beacon in burst for item in items_of(beacon)}) == 1


@pytest.mark.parametrize("shuffle", range(5))
def test_the_expected_answers_do_not_depend_on_the_order_within_a_step(plan: Plan, shuffle: int) -> None:
    ledger, rng = Ledger(), random.Random(shuffle)
    for step in _steps(plan):
        bursts = [*step.bursts]
        rng.shuffle(bursts)
        assert ledger.read(bursts) == step.expected


def test_every_item_is_one_that_a_sidecar_takes(plan: Plan) -> None:
    for beacon in _beacons(plan):
        parse = parse_web_vitals if beacon.path == "web-vitals" else parse_events
        items, rejected = parse(beacon.body, None)
        assert rejected == []
        assert {item.funnel_id for item in items} == {FUNNEL}
        assert len(items) == len(items_of(beacon))


def test_times_are_inside_the_window_and_one_page_view_is_an_hour_late(plan: Plan) -> None:
    items = _items(plan)
    assert max(item["timestamp"] for item in items) < NOW
    assert min(item["timestamp"] for item in items) > NOW - 8 * HOUR_MS
    started = {name: min(item["timestamp"] for item in items if _session(item) == name) for name in plan.session_ids}
    late = [item for burst in plan.steps[4].bursts for beacon in burst for item in items_of(beacon)]
    (view,) = (item for item in late if item.get("eventName") == "page_view")
    assert started[_session(view)] == view["timestamp"]


def test_traffic_has_all_that_clients_send(plan: Plan) -> None:
    items, beacons = _items(plan), list(_beacons(plan))
    assert {item["metric"] for item in items if "metric" in item} == {"LCP", "INP", "CLS", "FCP", "TTFB"}
    names = {"page_view", "conversion", "user_identified", "session_end", "lamp_configured", "add_to_cart"}
    assert {item["eventName"] for item in items if "eventName" in item} == names
    assert {beacon.content_type for beacon in beacons} == {"application/json", "text/plain;charset=UTF-8"}
    assert {beacon.body[:10] for beacon in beacons} >= {b'{"funnelId', b'{"eventId"', b'[{"eventId', b'{"sessionI'}
    assert any("utm_source=" in beacon.page_url for beacon in beacons)
    assert any("referrer" in item["context"]["page"] for item in items if "context" in item)


def test_inp_goes_down_as_well_as_up(plan: Plan) -> None:
    deltas = [item["delta"] for burst in plan.steps[2].bursts for beacon in burst for item in items_of(beacon)]
    assert min(deltas) < 0 < max(deltas)


def test_user_agents_are_of_people() -> None:
    for device in DEVICES:
        said = read_user_agent(device.user_agent)
        assert said.bot is None
        assert said.browser_name
        assert said.device_type in ("desktop", "mobile")


def test_a_ledger_judges_as_the_contract_says() -> None:
    ledger = Ledger()
    report = {"metric": "INP", "sessionId": "s", "id": "v6-1", "timestamp": 2, "seq": 1, "value": 90}
    assert ledger.judge(report) == "accepted"
    assert ledger.judge(report) == "duplicate"
    assert ledger.judge(report | {"timestamp": 3, "value": 40}) == "accepted"
    assert ledger.judge(report) == "superseded"
    assert ledger.judge(report | {"sessionId": "t"}) == "accepted"
