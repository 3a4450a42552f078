"""Every figure of the dashboard equals what an independent script makes of the export (tests/dashboard)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DataObject

from sidecar.store.database import snapshot
from sidecar.store.figures import Sample, passes
from sidecar.store.scope import Scope, cut
from sidecar.store.totals import TOPS, Sessions
from tests import items
from tests.dashboard import independent
from tests.dashboard.independent import Slice
from tests.items import Delivery
from tests.local import LocalSidecar
from tests.servers import vital

NOW = 1_795_330_800_000  # 2026-11-22T07:00:00.000Z
DAY_MS = 86_400_000
BERLIN = ZoneInfo("Europe/Berlin")
_numbers = itertools.count()


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder for many small files."""
    with TemporaryDirectory() as name:
        yield Path(name)


def vital_figures(part: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Figures as the independent script says them."""
    return {metric: one._asdict() for metric, one in part.items()}


def draw_scope(data: DataObject, documents: list[dict[str, Any]]) -> Slice:
    """A period, and filters that something may pass."""
    sessions = [one for one in documents if one["type"] == "session"]
    facts = [fact for one in sessions for fact in one["events"] + one["webVitals"]]
    since = data.draw(st.sampled_from([0, NOW - 8 * DAY_MS, NOW - DAY_MS, NOW - 3_600_000]), "since")
    until = data.draw(st.sampled_from([NOW + DAY_MS, NOW, NOW - 60_000]), "until")
    choices = {
        "site": ["default"],
        "funnel_id": [one["funnelId"] for one in sessions],
        "device": [one["deviceType"] or "unknown" for one in sessions],
        "country": [one["countryCode"] or "unknown" for one in sessions],
        "page": [fact["pagePath"] for fact in facts if fact["pagePath"]],
    }
    chosen = {
        name: data.draw(st.sampled_from([None, None, *sorted(set(values))]), name) for name, values in choices.items()
    }
    return Slice(since, max(until, since + 1), **chosen)


@pytest.mark.timeout(600)
@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)
@given(sent=items.deliveries(NOW), data=st.data())
def test_figures_equal_those_of_the_export(folder: Path, sent: list[Delivery], data: DataObject) -> None:
    """Totals, lists of the most, percentiles of all, by device, navigation, page and day; for drawn filters."""
    path = folder / f"{next(_numbers)}.db"
    with LocalSidecar(path, NOW) as sidecar:
        for beacon in items.groupings(data, sent):
            sidecar.send(beacon.path, beacon.body, beacon.user_agent, beacon.address)
        documents = sidecar.export_documents()
        asked = draw_scope(data, documents)
        scope = Scope(*asked)
        with snapshot(sidecar.conn):
            sessions, sample = Sessions(sidecar.conn, scope), Sample(sidecar.conn, scope)
            expected = independent.totals(documents, asked)
            value = expected.pop("conversion_value")
            said = sessions.totals()._asdict()
            assert said.pop("conversion_value") == (None if value is None else pytest.approx(value, rel=1e-9, abs=1e-6))
            assert said == expected
            for kind in TOPS:
                found = {top.name: top.amount for top in sessions.tops(kind, 1000)}
                assert found == independent.tops(documents, asked, kind), kind
            instances = independent.samples(documents, asked)
            assert vital_figures(sample.split()[0]) == independent.vitals(instances)
            check_parts(sample, instances)
            series = sessions.series(BERLIN)
            assert sum(point.sessions for point in series) == expected["sessions"]
            assert sum(point.page_views for point in series) == expected["page_views"]
    for left in folder.glob(f"{path.name}*"):
        left.unlink()


def check_parts(sample: Sample, instances: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
    """The same by device, navigation type, page and day."""
    for name, part in sample.by_device().items():
        mine = [(one, each) for one, each in instances if (one["deviceType"] or "unknown") == name]
        assert vital_figures(part) == independent.vitals(mine), name
    for name, part in sample.by_navigation().items():
        mine = [(one, each) for one, each in instances if (each["navigationType"] or "unknown") == name]
        assert vital_figures(part) == independent.vitals(mine), name
    pages = sample.by_page()
    assert {page.path for page in pages} == {each["pagePath"] for _, each in instances if each["pagePath"]}
    for page in pages:
        mine = [(one, each) for one, each in instances if each["pagePath"] == page.path]
        assert vital_figures(page.metrics) == independent.vitals(mine), page.path
    for at, part in sample.series(BERLIN):
        day = datetime.fromtimestamp(at / 1000, BERLIN).date()
        if sample._scope.until - sample._scope.since <= 2 * DAY_MS or sample._scope.since == 0:
            continue  # steps of hours, or of many days
        mine = [
            (one, each)
            for one, each in instances
            if datetime.fromtimestamp(independent.ms(each["timestamp"]) / 1000, BERLIN).date() == day
        ]
        assert vital_figures(part) == independent.vitals(mine), day


def test_days_follow_the_clock_of_the_zone() -> None:
    """Berlin has a day of 25 hours on 2026-10-25, and one of 23 on 2026-03-29."""
    for first, hours in (("2026-10-24", [24, 25, 24]), ("2026-03-28", [24, 23, 24])):
        begin = datetime.fromisoformat(first).replace(tzinfo=BERLIN)
        since = round(begin.timestamp() * 1000)
        steps = cut(Scope(since, since + sum(hours) * 3_600_000), BERLIN)
        assert [(later - at) // 3_600_000 for at, later in itertools.pairwise(steps)] == hours[:-1]
        assert steps[0] == since


def test_there_are_never_too_many_steps() -> None:
    """Hours for two days, days for a year, weeks for more."""
    for days, expected in ((1, 24), (2, 48), (90, 90), (400, 400), (2000, 286)):
        steps = cut(Scope(NOW // DAY_MS * DAY_MS - days * DAY_MS, NOW // DAY_MS * DAY_MS), UTC)
        assert expected <= len(steps) <= expected + 1


def test_passing_needs_enough_samples(tmp_path: Path) -> None:
    """LCP, INP and CLS good at p75, each of at least ten."""
    with LocalSidecar(tmp_path / "p.db", NOW) as sidecar:
        said = []
        for number in range(10):
            for metric, value in (("LCP", 2500), ("INP", 200), ("CLS", 0.1)):
                sidecar.send("web-vitals", vital(f"s-{number}", metric, value, timestamp=NOW))
            with snapshot(sidecar.conn):
                said.append(passes(Sample(sidecar.conn, Scope(0, 2 * NOW)).split()[0]))
        for number in range(4):
            sidecar.send("web-vitals", vital(f"t-{number}", "CLS", 0.2, timestamp=NOW))
        with snapshot(sidecar.conn):
            assert passes(Sample(sidecar.conn, Scope(0, 2 * NOW)).split()[0]) is False
    assert said == [None] * 9 + [True]
