"""The overview: totals against the period before, their course, what there is most of, and Core Web Vitals.

It is read by two threads, each from a connection of its own: SQLite lets the other one run. An open page asks again
for its figures (`Sidecar-Live: 1`) and is given that piece of HTML alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from html import escape
from typing import Any, NamedTuple

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sidecar.store.choices import Choices, list_choices
from sidecar.store.database import Connection
from sidecar.store.figures import Sample, Vital, count_online, latest_start, passes
from sidecar.store.scope import UNKNOWN
from sidecar.store.totals import TOPS, Point, Sessions, Top, Totals
from sidecar.web.address import server_address
from sidecar.web.charts import Chart, Times, columns, count_ticks, draw, read_times, round_up
from sidecar.web.format import format_count, format_duration, format_money, format_number, format_percent
from sidecar.web.frame import LIVE_POLICY, Frame
from sidecar.web.period import View
from sidecar.web.read import Context

ROWS = 8  # of each list
TALL = 190  # px
LOW = 48
# Of each list: its title, what its numbers count, the filter that a row sets, and what stands for a name not known.
LISTS = {
    "pages": ("Pages", "Page views", "page", "unknown"),
    "entry pages": ("Entry pages", "Sessions", "page", "unknown"),
    "exit pages": ("Exit pages", "Sessions", "page", "unknown"),
    "referrers": ("Referrers", "Sessions", None, "direct"),
    "campaigns": ("Campaigns", "Sessions", None, "none"),
    "countries": ("Countries", "Sessions", "country", "unknown"),
    "devices": ("Devices", "Sessions", "device", "unknown"),
    "browsers": ("Browsers", "Sessions", None, "unknown"),
    "systems": ("Systems", "Sessions", None, "unknown"),
}


class Figure(NamedTuple):
    """A tile: `text` for people, `value` and `before` to compare; `better` as in the macro `delta`."""

    key: str
    label: str
    text: str
    exact: str
    value: float | None
    before: float | None
    before_text: str
    better: str | None


class TopRow(NamedTuple):
    """A row of a list; `query` sets it as a filter, None where there is none. `bar`: percent of the first row."""

    name: str
    is_known: bool
    amount: int
    share: float
    bar: float
    query: str | None


class Listing(NamedTuple):
    """One of the lists of the most."""

    key: str
    title: str
    counted: str
    rows: list[TopRow]


class Counted(NamedTuple):
    """What is counted over the sessions of a scope."""

    totals: Totals
    points: list[Point]
    tops: dict[str, list[Top]]  # by kind


def count_sessions(conn: Connection, view: View) -> Counted:
    """Totals, course, and the lists of the most."""
    sessions = Sessions(conn, view.scope)
    tops = {kind: sessions.tops(kind, ROWS) for kind in TOPS}
    return Counted(sessions.totals(), sessions.series(view.zone), tops)


def read_together(context: Context, jobs: Mapping[str, Callable[[Connection], Any]]) -> dict[str, Any]:
    """What each job gives, by its name: two connections take one job after the other, so put the longest first.

    No thread waits for a connection while it holds one, so requests cannot block each other.
    """
    waiting = deque(jobs.items())
    found: dict[str, Any] = {}

    def work() -> None:
        with context.readers.snapshot() as conn:
            while waiting:
                try:
                    name, job = waiting.popleft()
                except IndexError:  # the other has just taken the last one
                    return
                found[name] = job(conn)

    with ThreadPoolExecutor(1) as beside:
        other = beside.submit(work)
        work()
        other.result()
    return found


# --- figures ---------------------------------------------------------------------------------------------------------


def make_figures(totals: Totals, before: Totals, online: int) -> list[Figure]:
    """The tiles, in their order."""

    def figure(
        label: str,
        read: Callable[[Totals], float | None],
        shown: Callable[[float], str],
        better: str | None = "up",
    ) -> Figure:
        value, was = read(totals), read(before)
        exact = "" if value is None else f"{value:,}" if isinstance(value, int) else shown(value)
        texts = ["–" if one is None else shown(one) for one in (value, was)]
        return Figure(label.lower().replace(" ", "-"), label, texts[0], exact, value, was, texts[1], better)

    return [
        figure("Visitors", lambda t: t.visitors, format_number),
        figure("Sessions", lambda t: t.sessions, format_number),
        figure("Page views", lambda t: t.page_views, format_number),
        figure("Events", lambda t: t.events, format_number),
        figure("Bounce rate", lambda t: t.bounce_rate, format_percent, "down"),
        figure("Conversions", lambda t: t.conversions, format_number),
        figure("Conversion rate", lambda t: t.conversion_rate, format_percent),
        figure("Conversion value", lambda t: t.conversion_value, format_money),
        figure("Median duration", lambda t: t.median_s, format_duration),
        Figure("online", "Online now", format_number(online), f"{online:,}", online, None, "", None),
    ]


def draw_course(points: list[Point], times: Times) -> tuple[Chart, Chart]:
    """Visitors, sessions and page views as lines; below them conversions as columns, on the same steps."""
    nouns = ("visitor", "session", "page view", "conversion")
    titles = times.steps([", ".join(map(format_count, point[1:], nouns)) for point in points])
    series = {
        "page views": ("third", [p.page_views for p in points]),
        "sessions": ("second", [p.sessions for p in points]),
        "visitors": ("first", [p.visitors for p in points]),
    }
    highest = round_up(max((max(values, default=0) for _, values in series.values()), default=1))
    lines = [draw(name, look, values, highest, TALL) for name, (look, values) in series.items()]
    above = Chart(
        "Visitors, sessions and page views over time", TALL, lines, [], [], count_ticks(highest, TALL), [], titles
    )
    conversions = [p.conversions for p in points]
    most = round_up(max(conversions, default=0))
    below = Chart(
        "Conversions over time",
        LOW,
        [],
        columns(conversions, most, LOW),
        [],
        [count_ticks(most, LOW)[0], count_ticks(most, LOW)[-1]],
        times.ticks(),
        titles,
    )
    return above, below


def make_listing(kind: str, tops: list[Top], view: View, countries: Mapping[str, str]) -> Listing:
    """A list with a filter in each row that has one. `countries` are names by code."""
    title, counted, parameter, missing = LISTS[kind]
    codes = {name: code for code, name in reversed([*countries.items()])}
    rows = []
    for top in tops:
        asked = top.name
        if parameter == "country" and asked is not None:
            asked = codes.get(asked)
        elif asked is None and parameter != "page":
            asked = UNKNOWN
        query = view.query(**{parameter: asked}) if parameter and asked else None
        bar = 100 * top.amount / tops[0].amount
        rows.append(TopRow(top.name or missing, bool(top.name), top.amount, top.share, bar, query))
    return Listing(kind.replace(" ", "-"), title, counted, rows)


# --- the page --------------------------------------------------------------------------------------------------------


class Overview:
    """`GET /`."""

    def __init__(self, frame: Frame) -> None:
        self._frame = frame

    def _read(self, view: View, now: int) -> dict[str, Any]:
        """Everything that is counted."""
        jobs: dict[str, Callable[[Connection], Any]] = {
            "vitals": lambda conn: Sample(conn, view.scope).split()[0],
            "counted": lambda conn: count_sessions(conn, view),
            "before": lambda conn: Sessions(conn, view.scope.before).totals(),
            "online": lambda conn: count_online(conn, view.scope, now),
        }
        return read_together(self._frame.context, jobs)

    def _shown(self, view: View, found: Mapping[str, Any], choices: Choices, now: int) -> dict[str, Any]:
        """What both the page and the piece of it show."""
        counted: Counted = found["counted"]
        vitals: dict[str, Vital] = found["vitals"]
        times = read_times([point.at for point in counted.points], view, now)
        above, below = draw_course(counted.points, times)
        return {
            "is_empty": counted.totals.sessions == 0 and not any(one.samples for one in vitals.values()),
            "figures": make_figures(counted.totals, found["before"], found["online"]),
            "above": above,
            "below": below,
            "times": times,
            "points": counted.points,
            "vitals": vitals,
            "passing": passes(vitals),
            "provisional": counted.totals.provisional,
            "listings": [make_listing(kind, counted.tops[kind], view, choices.countries) for kind in TOPS],
        }

    def read(self, request: Request) -> Response:
        """The page, or the piece of it that an open one asks for."""
        context = self._frame.context
        view, now = self._frame.view(request), context.clock()
        is_live = request.headers.get("sidecar-live") == "1"
        with context.readers.snapshot() as conn:
            shipping = context.read_shipping(conn, now, context.session_timeout_ms)
            latest = latest_start(conn)
            choices = list_choices(conn)
        if latest is None and not is_live:
            tag = self._script_tag(request)
            policy = {"Content-Security-Policy": LIVE_POLICY}
            return self._frame.render(
                request, "empty.html", headers=policy, section="overview", tag=tag, shipping=shipping
            )
        shown = self._shown(view, self._read(view, now), choices, now)
        if is_live:
            return self._frame.render(request, "overview_live.html", view=view, **shown)
        return self._frame.render(
            request,
            "overview.html",
            headers={"Content-Security-Policy": LIVE_POLICY},
            section="overview",
            view=view,
            choices=choices,
            shipping=shipping,
            latest=latest,
            **shown,
        )

    def _script_tag(self, request: Request) -> str:
        """What a site has to put into its pages, with the address that this request came to."""
        attributes = {"data-funnel": self._frame.context.tag_funnel}
        if self._frame.context.tag_key is not None:
            attributes["data-key"] = self._frame.context.tag_key
        said = " ".join(f'{name}="{escape(value)}"' for name, value in attributes.items())
        return f'<script defer src="{server_address(request)}/sidecar.js" {said}></script>'


def routes(frame: Frame) -> list[Route]:
    """The routes of this page."""
    return [frame.route("/", Overview(frame).read)]
