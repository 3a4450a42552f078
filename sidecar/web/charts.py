"""Geometry of the charts: what stands where, for templates/charts.html to draw.

A chart is as wide as its place: what has a size of its own (text, dots) is put by percent, lines are drawn in units of
WIDTH and stretched. Heights are pixels, so nothing moves when a page loads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise
from typing import NamedTuple

from sidecar.web.format import format_number
from sidecar.web.period import View

WIDTH = 1000
TOP = 8  # room above the highest value, px
_LABELS_MAX = 8
_HOUR_S = 3600


class Line(NamedTuple):
    """One series. `dots` are points without a neighbour, that a line alone would not show."""

    name: str
    look: str  # a class of the stylesheet
    path: str
    area: str  # the path closed along the bottom
    dots: list[tuple[float, float]]  # (percent, px)


class Step(NamedTuple):
    """One step of the time axis, with what it says; `partial`: it reaches out of the period."""

    x: float  # percent, as `width`
    width: float
    title: str
    partial: bool


class Tick(NamedTuple):
    """A label of an axis, at percent (of the time axis) or px (of the other). `minor`: left out where it is narrow."""

    at: float
    label: str
    minor: bool = False


class Bar(NamedTuple):
    """One column: x and width in percent, y and height in px."""

    x: float
    width: float
    y: float
    height: float


class Band(NamedTuple):
    """A strip across the plot, in px."""

    look: str
    y: float
    height: float


class Chart(NamedTuple):
    """All of one plot; `height` is without the labels of the time axis."""

    label: str
    height: int
    lines: list[Line]
    bars: list[Bar]
    bands: list[Band]
    y_ticks: list[Tick]
    x_ticks: list[Tick]
    steps: list[Step]


class Times(NamedTuple):
    """A time axis: where its steps begin, on the viewer's clock, and which of them are not whole."""

    starts: list[datetime]
    length_s: float
    partial: list[bool]

    @property
    def names(self) -> list[str]:
        """Each step in full, with a word on those that are not whole."""
        names = [time_name(start, self.length_s) for start in self.starts]
        return [f"{name} (in part)" if part else name for name, part in zip(names, self.partial, strict=True)]

    def ticks(self, most: int = _LABELS_MAX) -> list[Tick]:
        """Labels of the axis, at most so many."""
        return time_ticks(self.starts, self.length_s, most)

    def steps(self, texts: Sequence[str]) -> list[Step]:
        """The steps, each with its name and a text."""
        titles = [f"{name}: {text}" for name, text in zip(self.names, texts, strict=True)]
        return time_steps(titles, self.partial)


def read_times(starts: Sequence[int], view: View, now: int) -> Times:
    """The axis of a view whose steps begin at these times (ms)."""
    scope = view.scope
    day_s = 24 * _HOUR_S
    if len(starts) > 1:
        gaps = sorted(after - before for before, after in pairwise(starts))
        length_s = gaps[len(gaps) // 2] / 1000  # where clocks change, one is longer or shorter
    else:
        length_s = _HOUR_S if scope.until - scope.since <= 2 * day_s * 1000 else day_s
    end = min(scope.until, now)
    least_s = length_s if length_s <= _HOUR_S else length_s - _HOUR_S  # a day may have 23 hours
    partial = [at < scope.since or at + least_s * 1000 > end for at in starts]
    return Times([view.local(at) for at in starts], length_s, partial)


def round_up(value: float) -> float:
    """The least of 1, 2, 4, 5, 10, 20, .. that is not below a value: the top of an axis, or a step of one."""
    if value <= 1:
        return 1
    size: int = 10 ** math.floor(math.log10(value))
    return next(size * factor for factor in (1, 2, 4, 5, 10) if size * factor >= value * (1 - 1e-12))


def scale(top: float, bottom: float, highest: float, value: float) -> float:
    """Where a value stands, in px from above, on an axis from 0 at `bottom` to `highest` at `top`."""
    return round(bottom - (bottom - top) * min(value / highest, 1), 1)


def draw(name: str, look: str, values: Sequence[float | None], highest: float, height: float) -> Line:
    """A line through the middles of its steps, broken where there is no value."""
    path, area, dots = [], [], []
    run: list[tuple[float, float]] = []
    for place, value in enumerate([*values, None]):
        if value is not None:
            run.append(((place + 0.5) / len(values), scale(TOP, height, highest, value)))
            continue
        if len(run) == 1:
            dots.append((round(100 * run[0][0], 2), run[0][1]))
        elif run:
            line = "L".join(f"{x * WIDTH:.1f} {y:g}" for x, y in run)
            path.append(f"M{line}")
            area.append(f"M{run[0][0] * WIDTH:.1f} {height:g}L{line}L{run[-1][0] * WIDTH:.1f} {height:g}Z")
        run = []
    return Line(name, look, "".join(path), "".join(area), dots)


def columns(values: Sequence[float], highest: float, height: float) -> list[Bar]:
    """A column for each value above 0."""
    width = 100 / max(len(values), 1)
    room = 0.7 * width
    bars = []
    for place, value in enumerate(values):
        if value > 0:
            y = min(scale(TOP, height, highest, value), height - 1.5)  # the least is still seen
            bars.append(Bar(round(place * width + (width - room) / 2, 3), round(room, 3), y, round(height - y, 1)))
    return bars


def count_ticks(highest: float, height: float) -> list[Tick]:
    """Labels of an axis of counts, from 0 to `highest` (of `round_up`)."""
    parts = 2 if highest in (1, 2) or str(highest)[0] in "12" else 4 if str(highest)[0] == "4" else 5
    parts = 1 if highest == 1 else parts
    values = [highest * part / parts for part in range(parts + 1)]
    return [Tick(scale(TOP, height, highest, value), format_number(value).replace(".0", "")) for value in values]


def time_label(local: datetime, length_s: float) -> str:
    """A step in a few characters: an hour, a day, or for steps over years a month."""
    if length_s <= _HOUR_S:
        return f"{local.day} {local:%b}" if local.hour == 0 else f"{local:%H:%M}"
    return f"{local:%b %Y}" if length_s > 14 * 24 * _HOUR_S else f"{local.day} {local:%b}"


def time_name(local: datetime, length_s: float) -> str:
    """A step in full: `Sat 21 Nov 2026`, and its hour where steps are hours."""
    day = f"{local:%a} {local.day} {local:%b %Y}"
    if length_s <= _HOUR_S:
        return f"{day}, {local:%H:%M}"
    return day if length_s <= 26 * _HOUR_S else f"from {day}"


def time_ticks(starts: Sequence[datetime], length_s: float, most: int) -> list[Tick]:
    """Labels of the time axis, at the middle of their steps: `most` at most, every second of them minor."""
    count = len(starts)
    every = max(math.ceil(count / most), 1)
    every = next((n for n in (1, 2, 3, 4, 6, 7, 12, 14, 28) if n >= every), every)
    chosen = range((count - 1) % every, count, every)
    return [
        Tick(round(100 * (place + 0.5) / count, 2), time_label(starts[place], length_s), (len(chosen) - 1 - i) % 2 == 1)
        for i, place in enumerate(chosen)
    ]


def time_steps(titles: Sequence[str], partial: Sequence[bool]) -> list[Step]:
    """A step for each title, side by side."""
    width = 100 / max(len(titles), 1)
    return [
        Step(round(place * width, 3), round(width, 3), title, is_partial)
        for place, (title, is_partial) in enumerate(zip(titles, partial, strict=True))
    ]
