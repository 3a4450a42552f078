"""The time line of a session: its facts as marks, to scale, in a lane a kind. Only geometry: session.html draws it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sidecar.model import EventFact, Fact, VitalFact
from sidecar.web.format import format_ms, format_vital, shorten

WIDTH, GUTTER, EDGE, LANE, AXIS = 1000, 64, 14, 30, 26  # of the drawing
MARKS_MAX = 500
TICKS_MAX = 8
_LETTER = 6.6  # width of one at the size of a page's name
_STEPS_S = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14_400, 43_200, 86_400)
_METRICS = ("LCP", "INP", "CLS", "FCP", "TTFB", "FID")
_CONVERSIONS = ("conversion", "purchase", "checkout_completed")
_RATINGS = {"good": "good", "needs-improvement": "needs improvement", "poor": "poor"}
# A form for each rating: nobody has to tell colours apart.
_FORMS = {
    "good": "m-6 0a6 6 0 1 0 12 0a6 6 0 1 0-12 0z",
    "needs-improvement": "m0-7l7.5 13h-15z",
    "poor": "m-5.5-5.5h11v11h-11z",
}
_EVENT = "m0-7l7 7l-7 7l-7-7z"


class Mark(NamedTuple):
    """A fact: what it looks like, where it is, and what is said of it. `path` None: a bar of `width`."""

    kind: str  # a class of the stylesheet
    x: float
    y: float
    width: float
    path: str | None
    title: str
    label: str


class Lane(NamedTuple):
    """One kind of facts; `y` is its middle."""

    name: str
    y: float


class Tick(NamedTuple):
    """A time on the axis."""

    x: float
    label: str


class TimeLine(NamedTuple):
    """The drawing. `shown` of all facts are in it."""

    width: int
    height: int
    lanes: list[Lane]
    ticks: list[Tick]
    marks: list[Mark]
    shown: int


def _isolate(text: str) -> str:
    """Text of a client among ours: a title has no <bdi>, so Unicode's own signs keep its direction within."""
    return f"\u2068{text}\u2069"


def _page_of(fact: Fact) -> str:
    return "" if fact.page is None else fact.page.path or fact.page.url or fact.page.title or ""


def draw(facts: Sequence[Fact], started_at: int) -> TimeLine:
    """The first MARKS_MAX facts of a session, which are given in their order."""
    shown = facts[:MARKS_MAX]
    span = max((fact.timestamp for fact in shown), default=started_at) - started_at
    span = max(span, 1000)

    def x_of(at: int) -> float:
        return round(GUTTER + EDGE + (at - started_at) / span * (WIDTH - GUTTER - 2 * EDGE), 1)

    used = {fact.metric for fact in shown if isinstance(fact, VitalFact)}
    names = ["Pages", "Events", *(metric for metric in _METRICS if metric in used)]
    lanes = {name: Lane(name, LANE * (place + 0.5)) for place, name in enumerate(names)}
    views = [fact for fact in shown if isinstance(fact, EventFact) and fact.name == "page_view"]
    marks = []
    ends = [later.timestamp for later in views[1:]] + [started_at + span]
    for view, until in zip(views, ends, strict=False):
        x = x_of(view.timestamp)
        width = max(round(x_of(until) - x - 2, 1), 3)
        path = _page_of(view)
        room = int((width - 12) / _LETTER)
        title = f"Page view +{format_ms(view.timestamp - started_at)}: {_isolate(shorten(path, 300))}"
        marks.append(Mark("page", x, lanes["Pages"].y, width, None, title, shorten(path, room) if room >= 4 else ""))
    for fact in shown:
        when = f"+{format_ms(fact.timestamp - started_at)}"
        where = f" on {_isolate(shorten(_page_of(fact), 300))}" if _page_of(fact) else ""
        x = x_of(fact.timestamp)
        if isinstance(fact, VitalFact):
            said = f"{fact.metric} {format_vital(fact.metric, fact.value)}, {_RATINGS[fact.rating]}, {when}{where}"
            marks.append(Mark(fact.rating, x, lanes[fact.metric].y, 0, _FORMS[fact.rating], said, ""))
        elif fact.name != "page_view":
            kind = "gain" if fact.name in _CONVERSIONS else "event"
            said = f"Event {_isolate(shorten(fact.name, 100))} {when}{where}"
            marks.append(Mark(kind, x, lanes["Events"].y, 0, _EVENT, said, ""))
    marks.sort(key=lambda mark: mark.kind == "gain")  # drawn last, so that the end of the session does not hide it
    step = next((s for s in _STEPS_S if span / 1000 / s <= TICKS_MAX), 0.0) * 1000 or -(-span // TICKS_MAX)
    count = int(span / step) + 1
    ticks = [Tick(x_of(round(started_at + n * step)), _say_tick(n * step, span)) for n in range(count)]
    return TimeLine(WIDTH, LANE * len(lanes) + AXIS, list(lanes.values()), ticks, marks, len(shown))


def _say_tick(ms: float, span: int) -> str:
    if ms == 0:
        return "0"
    if span < 10_000:
        return f"{ms / 1000:.1f} s"
    seconds = round(ms / 1000)
    if span < 120_000:
        return f"{seconds} s"
    minutes = f"{seconds // 60 % 60}:{seconds % 60:02}"
    return minutes if span < 3_600_000 else f"{seconds // 3600}:{minutes.zfill(5)}"
