"""The web vitals: p75 of each metric over its instances, its distribution and course; by device, navigation, page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sidecar.model import LIMITS
from sidecar.store.choices import list_choices
from sidecar.store.database import Connection
from sidecar.store.figures import (
    CORE,
    METRICS,
    NO_VITALS,
    SAMPLES_MIN,
    PageVitals,
    Sample,
    Vital,
    latest_start,
    passes,
)
from sidecar.web.charts import TOP, Band, Chart, Tick, Times, draw, read_times, scale
from sidecar.web.format import format_count, format_vital
from sidecar.web.frame import Frame, read_place, with_parameters
from sidecar.web.period import View

PAGES_A_PAGE = 50
DEVICES_MAX = 12
HEIGHT = 110  # px
NAMES = {
    "LCP": "Largest Contentful Paint",
    "INP": "Interaction to Next Paint",
    "CLS": "Cumulative Layout Shift",
    "FCP": "First Contentful Paint",
    "TTFB": "Time to First Byte",
}
# What the navigation types of the `web-vitals` library mean, in a word.
NAVIGATION_NAMES = {
    "navigate": "opened",
    "reload": "reloaded",
    "back-forward": "back or forward",
    "back-forward-cache": "back or forward, from the cache",
    "prerender": "prerendered",
    "restore": "restored",
    "soft-navigation": "within the page",
    "unknown": "not said",
}


class Course(NamedTuple):
    """One metric: its figures, and their course."""

    metric: str
    name: str
    vital: Vital
    chart: Chart


def draw_vital(metric: str, points: Sequence[Vital], times: Times) -> Chart:
    """p75 over time, over strips of what is good, needs improvement, and is poor; the axis names the two limits."""
    good, fair = LIMITS[metric]
    highest = 1.08 * max(fair, *(one.p75 or 0 for one in points))
    line = draw(metric, "p75", [one.p75 for one in points], highest, HEIGHT)
    at_good, at_fair = (scale(TOP, HEIGHT, highest, limit) for limit in (good, fair))
    bands = [
        Band("poor", 0, at_fair),
        Band("needs-improvement", at_fair, round(at_good - at_fair, 1)),
        Band("good", at_good, round(HEIGHT - at_good, 1)),
    ]
    ticks = [Tick(at, format_vital(metric, limit)) for at, limit in ((at_fair, fair), (at_good, good))]
    texts = [
        "no reports" if p75 is None else f"{format_vital(metric, p75)}, of {format_count(samples, 'sample')}"
        for p75, _, samples, *_ in points
    ]
    limits = f"good up to {format_vital(metric, good)}, poor above {format_vital(metric, fair)}"
    label = f"75th percentile of {metric} over time; {limits}"
    return Chart(label, HEIGHT, [line], [], bands, ticks, times.ticks(4), times.steps(texts))


class VitalsPage:
    """`GET /vitals`."""

    def __init__(self, frame: Frame) -> None:
        self._frame = frame

    def read(self, conn: Connection, request: Request) -> Response:
        """The page; `list` is which fifty of its table of pages."""
        view, now = self._frame.view(request), self._frame.context.clock()
        place = read_place(request.query_params.get("list"))
        sample = Sample(conn, view.scope)
        vitals = sample.split()[0]
        series = sample.series(view.zone)
        times = read_times([at for at, _ in series], view, now)
        devices = sample.by_device()
        pages = sample.by_page()
        first = (place - 1) * PAGES_A_PAGE
        return self._frame.render(
            request,
            "vitals.html",
            section="vitals",
            view=view,
            choices=list_choices(conn),
            latest=latest_start(conn),
            is_empty=not len(sample),
            core=CORE,
            verdicts=_verdicts(view, vitals, devices),
            courses=[
                Course(
                    metric, NAMES[metric], vitals[metric], draw_vital(metric, [one[metric] for _, one in series], times)
                )
                for metric in METRICS
            ],
            times=times,
            series=[one for _, one in series],
            devices=_most_seen(devices),
            navigations={NAVIGATION_NAMES.get(name, name): one for name, one in sample.by_navigation().items()},
            pages=pages[first : first + PAGES_A_PAGE],
            pages_count=len(pages),
            first=first,
            few=_few,
            samples_min=SAMPLES_MIN,
            before_url=with_parameters(request, list=str(place - 1) if place > 2 else None) if place > 1 else None,
            next_url=with_parameters(request, list=str(place + 1)) if first + PAGES_A_PAGE < len(pages) else None,
        )


class Verdict(NamedTuple):
    """Whether Core Web Vitals are passed by all, or on one kind of device."""

    name: str
    metrics: dict[str, Vital]
    passing: bool | None


def _verdicts(view: View, vitals: dict[str, Vital], devices: dict[str, dict[str, Vital]]) -> list[Verdict]:
    parts = {"All devices": vitals} if view.scope.device is None else {}
    for device, name in (("mobile", "Mobile"), ("desktop", "Desktop")):
        parts[name] = devices.get(device, NO_VITALS)
    return [Verdict(name, metrics, passes(metrics)) for name, metrics in parts.items()]


def _most_seen(devices: dict[str, dict[str, Vital]]) -> dict[str, dict[str, Vital]]:
    """As many kinds of device as a table has room for, in their order: a client may name any."""
    by_samples = sorted(devices, key=lambda name: -sum(one.samples for one in devices[name].values()))
    return {name: part for name, part in devices.items() if name in by_samples[:DEVICES_MAX]}


def _few(page: PageVitals) -> bool:
    """Whether a page has too few samples to say much."""
    return page.samples < SAMPLES_MIN


def routes(frame: Frame) -> list[Route]:
    """The routes of this page."""
    return [frame.page("/vitals", VitalsPage(frame).read)]
