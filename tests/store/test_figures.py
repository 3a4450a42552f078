"""Every figure of the dashboard equals what an independent script makes of the export (tests/dashboard)."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

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
    max_examples=75,
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


@pytest.mark.parametrize(
    ("zone", "first", "last", "days"),
    [
        ("Europe/Berlin", "2027-03-27", "2027-03-29", 3),  # 23 hours, from 2 to 3
        ("Atlantic/Azores", "2027-03-27", "2027-03-29", 3),  # from 0 to 1: no midnight
        ("Africa/Cairo", "2027-04-29", "2027-05-01", 3),
        ("America/Santiago", "2027-09-04", "2027-09-06", 3),
        ("America/Havana", "2027-11-06", "2027-11-08", 3),  # two midnights
        ("Pacific/Apia", "2011-12-29", "2012-01-01", 3),  # Samoa had no 30th
        ("Australia/Lord_Howe", "2027-10-02", "2027-10-04", 3),
    ],
)
def test_each_day_of_a_zone_is_one_step(zone: str, first: str, last: str, days: int) -> None:
    """Begun in the middle of the first day or of the last, too; noon of a day is in its step."""
    clock = ZoneInfo(zone)
    noons = [
        datetime.fromisoformat(first).replace(hour=12, tzinfo=clock) + timedelta(days=n)
        for n in range((datetime.fromisoformat(last) - datetime.fromisoformat(first)).days + 1)
    ]
    ends = [round(noon.timestamp() * 1000) for noon in noons]
    for since in (ends[0], ends[0] + 5 * 3_600_000):
        steps = cut(Scope(since, ends[-1] + DAY_MS // 4 + 1), clock)
        names = [datetime.fromtimestamp(at / 1000, clock).date() for at in steps]
        assert len(set(names)) == len(names) == days
        for noon, at in zip(noons, ends, strict=True):
            place = bisect_right(steps, at) - 1
            if noon.date() in names:
                assert names[place] == noon.date()


@settings(max_examples=150, deadline=None)
@given(zone=st.sampled_from(sorted(available_timezones())), since=st.integers(0, 2**41), length=st.integers(1, 2**36))
def test_steps_cover_a_period_in_order(zone: str, since: int, length: int) -> None:
    """Of any zone and any period: each begins after the one before, the first not after the period's begin."""
    scope = Scope(since, since + length)
    steps = cut(scope, ZoneInfo(zone))
    assert steps[0] <= scope.since
    assert steps[-1] < scope.until
    assert all(one < other for one, other in itertools.pairwise(steps))
    assert len(steps) <= 402


def test_an_hour_that_is_left_out_is_no_step() -> None:
    """Berlin's 28 March 2027 has 23 hours, its 31 October 25; Lord Howe changes by half an hour."""
    for day, zone, hours in (("2027-03-28", "Europe/Berlin", 23), ("2027-10-31", "Europe/Berlin", 25)):
        begin = datetime.fromisoformat(day).replace(tzinfo=ZoneInfo(zone))
        since, until = (round(one.timestamp() * 1000) for one in (begin, begin + timedelta(days=1)))
        steps = cut(Scope(since, until), ZoneInfo(zone))
        assert [later - at for at, later in itertools.pairwise([*steps, until])] == [3_600_000] * hours
    howe = ZoneInfo("Australia/Lord_Howe")
    begin = datetime(2027, 10, 3, tzinfo=howe)
    steps = cut(Scope(round(begin.timestamp() * 1000), round(begin.timestamp() * 1000) + DAY_MS), howe)
    assert all(datetime.fromtimestamp(at / 1000, howe).minute == 0 for at in steps)


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
