"""The geometry of charts: what stands where."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from sidecar.store.scope import Scope, cut
from sidecar.web.charts import (
    TOP,
    columns,
    count_ticks,
    draw,
    read_times,
    round_up,
    scale,
    time_steps,
    time_ticks,
)
from sidecar.web.period import read_view
from tests.builders import START

HOUR = 3_600_000


@pytest.mark.parametrize(
    ("value", "top"),
    [(0, 1), (1, 1), (1.5, 2), (3, 4), (5, 5), (6, 10), (10, 10), (11, 20), (401, 500), (8_900, 10_000)],
)
def test_an_axis_ends_at_a_round_number(value: float, top: float) -> None:
    assert round_up(value) == top


@pytest.mark.parametrize(
    ("top", "labels"),
    [
        *((1, "0 1"), (2, "0 1 2"), (4, "0 1 2 3 4"), (5, "0 1 2 3 4 5"), (10, "0 5 10"), (40, "0 10 20 30 40")),
        *((500, "0 100 200 300 400 500"), (10_000, "0 5,000 10k"), (2_000_000, "0 1M 2M")),
    ],
)
def test_labels_of_counts_are_whole_numbers(top: int, labels: str) -> None:
    ticks = count_ticks(top, 100)
    assert [tick.label for tick in ticks] == labels.split()
    assert (ticks[0].at, ticks[-1].at) == (100, TOP)


def test_values_stand_between_top_and_bottom() -> None:
    assert [scale(10, 110, 4, value) for value in (0, 1, 4, 9)] == [110, 85, 10, 10]


def test_a_line_goes_through_the_middle_of_its_steps() -> None:
    line = draw("n", "first", [0, 4, 2], 4, 108)
    assert line.path == "M166.7 108L500.0 8L833.3 58"
    assert line.area == "M166.7 108L166.7 108L500.0 8L833.3 58L833.3 108Z"
    assert line.dots == []


def test_a_line_is_broken_where_nothing_is_known() -> None:
    """And a point without a neighbour is a dot."""
    line = draw("n", "first", [1, 1, None, 2, None, None, 4, 4], 4, 108)
    assert line.path == "M62.5 83L187.5 83M812.5 8L937.5 8"
    assert line.dots == [(43.75, 58)]
    assert draw("n", "first", [None, None], 4, 108).path == ""


def test_the_least_column_is_still_seen() -> None:
    bars = columns([0, 1, 1000], 1000, 48)
    assert [(bar.y, bar.height) for bar in bars] == [(46.5, 1.5), (TOP, 40)]
    assert bars[0].x > 100 / 3
    assert bars[-1].x + bars[-1].width < 100


def test_steps_lie_side_by_side() -> None:
    steps = time_steps(["a", "b", "c"], [True, False, False])
    assert [(step.x, step.width, step.title, step.partial) for step in steps] == [
        *((0, 33.333, "a", True), (33.333, 33.333, "b", False), (66.667, 33.333, "c", False)),
    ]


@pytest.mark.parametrize("count", [1, 2, 7, 8, 24, 31, 48, 90, 91, 400])
def test_labels_of_times_are_few_and_even(count: int) -> None:
    starts = [datetime(2026, 1, 1, tzinfo=UTC) + timedelta(days=day) for day in range(count)]
    ticks = time_ticks(starts, 86_400, 8)
    assert 1 <= len(ticks) <= 8
    assert not ticks[-1].minor
    gaps = [round(after.at - before.at, 1) for before, after in pairwise(ticks)]
    assert max(gaps, default=0) - min(gaps, default=0) <= 0.11
    assert [one.minor for one in ticks[::-1]] == [place % 2 == 1 for place in range(len(ticks))]


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ({"period": "24h"}, ("Sat 21 Nov 2026, 08:00", "Sun 22 Nov 2026, 07:00 (in part)")),
        ({}, ("Sun 15 Nov 2026 (in part)", "Sun 22 Nov 2026 (in part)")),
        ({"since": "2026-11-01", "until": "2026-11-21"}, ("Sun 1 Nov 2026", "Sat 21 Nov 2026")),
        ({"since": "2026-11-21", "until": "2026-11-21"}, ("Sat 21 Nov 2026, 00:00", "Sat 21 Nov 2026, 23:00")),
        (
            {"since": "2022-01-01", "until": "2026-11-21"},
            ("from Thu 30 Dec 2021 (in part)", "from Thu 19 Nov 2026 (in part)"),
        ),
    ],
)
def test_steps_are_named_and_those_in_part_marked(query: dict[str, str], names: tuple[str, str]) -> None:
    """A step that reaches out of the period, or is not over yet."""
    view = read_view(query, START + 5 * 60_000, None)
    times = read_times(cut(view.scope, view.zone), view, START + 5 * 60_000)
    assert (times.names[0], times.names[-1]) == names
    assert not any(times.partial[1:-1])


@pytest.mark.parametrize(
    ("since", "until", "last"),
    [
        ("2026-10-20", "2026-10-25", "Sun 25 Oct 2026"),
        ("2026-10-20", "2026-10-26", "Mon 26 Oct 2026"),
        ("2026-03-20", "2026-03-29", "Sun 29 Mar 2026"),
        ("2026-03-20", "2026-03-30", "Mon 30 Mar 2026"),
    ],
)
def test_a_day_of_25_or_23_hours_is_a_day(since: str, until: str, last: str) -> None:
    view = read_view({"since": since, "until": until}, START, "Europe/Paris")
    times = read_times(cut(view.scope, view.zone), view, START)
    assert times.names[-1] == last
    assert not any(times.partial)


def test_one_step_has_the_length_of_its_kind() -> None:
    view = read_view({}, START, None)._replace(scope=Scope(START, START + HOUR))
    assert read_times([START], view, START + HOUR).names == ["Sun 22 Nov 2026, 07:00"]
