"""Figures of web vitals over one `Scope`: percentiles of all, by any part, and over time; and who is online.

Web vitals count by their own time. A session whose first known client is a bot is in no figure. Percentiles are nearest
rank over metric instances, exact whatever their number (contract 5.7): all instances of the period are sorted once, as
columns (store/samples.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import tzinfo
from json import dumps
from typing import TYPE_CHECKING, Any, NamedTuple

from sidecar.canonical import number
from sidecar.model import LIMITS, NAVIGATION_TYPES, rate
from sidecar.store.columns import Columns, choose, fits, is_on_page, join, join_places, list_used
from sidecar.store.database import Connection
from sidecar.store.samples import METRIC_CODES, VITALS, count_rows, list_vitals
from sidecar.store.scope import PAGES_OF, UNKNOWN, Scope, cut, session_conditions
from sidecar.store.totals import Sessions, Totals

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

METRICS = tuple(METRIC_CODES)  # FID is kept, but no longer a figure
CORE = ("LCP", "INP", "CLS")  # Core Web Vitals: https://web.dev/articles/vitals
SAMPLES_MIN = 10  # fewer say little: shown, and greyed
ONLINE_MS = 5 * 60_000  # a visitor with a fact this recent is online


class Vital(NamedTuple):
    """One metric over its instances. `p75` (ms; CLS no unit) and `rating` are None without one."""

    p75: float | None
    rating: str | None
    samples: int
    good: int
    fair: int
    poor: int


class PageVitals(NamedTuple):
    """One page: by metric its p75 and its number of instances. `worst` orders pages: how far over its limit."""

    path: str
    title: str | None
    metrics: dict[str, Vital]
    samples: int
    worst: float


class FunnelFigures(NamedTuple):
    """One funnel: the totals of its sessions, and the figures of its web vitals by metric."""

    site: str
    funnel_id: str
    totals: Totals
    vitals: dict[str, Vital]


def online_sql(scope: Scope) -> str:
    """Counts visitors with a fact within `:online` ms of `:now`. `last_seen` is the greatest `ended_at` of a visitor's
    sessions, so its index finds the few that can be.
    """
    on_page = "" if scope.page is None else f" AND ({' OR '.join(map(_has_page_in, ('events', 'web_vitals')))})"
    return f"""SELECT count(*) FROM visitors AS v INDEXED BY visitors_by_last_seen
    WHERE v.last_seen >= :now - :online AND EXISTS (
        SELECT 1 FROM sessions AS s WHERE s.visitor_key = v.visitor_key
        AND s.ended_at BETWEEN :now - :online AND :now + :online AND {session_conditions(scope)}{on_page})"""


def count_online(conn: Connection, scope: Scope, now: int) -> int:
    """Visitors with a fact in the last five minutes (`now` in ms), whatever the period; clocks may be ahead."""
    found: int = conn.execute(online_sql(scope), scope._asdict() | {"now": now, "online": ONLINE_MS}).fetchone()[0]
    return found


def _has_page_in(table: str) -> str:
    return f"EXISTS (SELECT 1 FROM {table} AS f WHERE f.session_key = s.session_key AND f.page_key IN ({PAGES_OF}))"


def latest_start(conn: Connection) -> int | None:
    """When the latest session began (ms); None where there is none at all."""
    found: int | None = conn.execute("SELECT max(started_at) FROM sessions").fetchone()[0]
    return found


# --- web vitals ------------------------------------------------------------------------------------------------------

NO_VITALS = {metric: Vital(None, None, 0, 0, 0, 0) for metric in METRICS}
DEVICES = (UNKNOWN, "desktop", "mobile", "tablet")
NAVIGATIONS = ("unknown", *NAVIGATION_TYPES)


class Sample:
    """Every instance of a scope's web vitals, as columns; `split` gives percentiles of any parts."""

    def __init__(self, conn: Connection, scope: Scope) -> None:
        import numpy as np

        self._conn = conn
        self._scope = scope
        chunks = list(list_vitals(conn, scope.since, scope.until))
        counts = [count_rows(VITALS, chunk.vitals) for chunk in chunks]
        columns = join(VITALS, [chunk.vitals for chunk in chunks])
        columns["client"], self._clients = join_places(columns["client"], counts, [chunk.clients for chunk in chunks])
        kept = fits(conn, scope, columns, self._clients, "timestamp")
        if scope.page is not None:
            kept &= is_on_page(conn, scope, columns["page_key"])
        self._columns: Columns = choose(columns, kept)
        self._of_metric = {}  # rows of each metric by value
        for metric, code in METRIC_CODES.items():
            rows = np.flatnonzero(self._columns["metric"] == code)
            self._of_metric[metric] = rows[np.argsort(self._columns["value"][rows])]

    def __len__(self) -> int:
        return len(self._columns["value"])

    def _look_up(self, column: str, read: Callable[[Sequence[int]], dict[int, int]]) -> NDArray[np.int64]:
        """A column of keys as a column of what `read` says they mean; 0 for what it does not know."""
        import numpy as np

        keys = self._columns[column]
        table = np.zeros(int(keys.max(initial=0)) + 1, np.int64)
        for key, code in read(list_used(keys)).items():
            table[key] = code
        codes: NDArray[np.int64] = table[keys]
        return codes

    def split(self, codes: NDArray[Any] | None = None) -> list[dict[str, Vital]]:
        """By code, from 0 on, each metric's figures; without codes of all in one."""
        import numpy as np

        values = self._columns["value"]
        count = 1 if codes is None else int(codes.max(initial=0)) + 1
        parts: list[dict[str, Vital]] = [{} for _ in range(count)]
        for metric, places in self._of_metric.items():
            mine = values[places]
            of = np.zeros(len(places), np.int64) if codes is None else codes[places]
            counts = np.bincount(of, minlength=count)
            good_to, fair_to = LIMITS[metric]
            good = np.bincount(of[mine <= good_to], minlength=count)
            fair = np.bincount(of[(mine > good_to) & (mine <= fair_to)], minlength=count)
            narrow = of.astype(np.uint16) if count < 65_536 else of  # sorted by radix: 10 times faster
            in_parts = mine[np.argsort(narrow, kind="stable")]  # by part, and by value within each
            begins = np.cumsum(counts) - counts
            at = np.minimum(begins + (3 * counts + 3) // 4 - 1, max(len(mine) - 1, 0))
            p75s = in_parts[np.maximum(at, 0)] if len(mine) else np.zeros(count)
            rows = zip(p75s.tolist(), counts.tolist(), good.tolist(), fair.tolist(), strict=True)
            for part, (p75, n, n_good, n_fair) in zip(parts, rows, strict=True):
                value, rating = (number(p75), rate(metric, p75)) if n else (None, None)
                part[metric] = Vital(value, rating, n, n_good, n_fair, n - n_good - n_fair)
        return parts

    def by_device(self) -> dict[str, dict[str, Vital]]:
        """Figures of each kind of device that has any; clients name kinds beyond DEVICES, too."""
        import numpy as np

        said = [device or UNKNOWN for device, _ in self._clients]
        names = [*DEVICES, *sorted(set(said) - set(DEVICES))]
        codes = {name: code for code, name in enumerate(names)}
        table = np.array([codes[name] for name in said] or [0])
        return _named(names, self.split(table[self._columns["client"]]))

    def by_funnel(self) -> dict[tuple[str, str], dict[str, Vital]]:
        """Figures of each funnel that has any, by (site, funnel id)."""
        names = {
            key: (site, name)
            for key, site, name in self._conn.execute("SELECT funnel_key, site, funnel_id FROM funnels")
        }
        codes = self._look_up("funnel_key", lambda keys: {key: place for place, key in enumerate(keys, 1)})
        used = sorted(set(self._columns["funnel_key"].tolist()))
        return {names[key]: part for key, part in zip(used, self.split(codes)[1:], strict=True)}

    def by_navigation(self) -> dict[str, dict[str, Vital]]:
        """Figures of each navigation type that has any."""
        return _named(NAVIGATIONS, self.split(self._columns["navigation"]))

    def series(self, zone: tzinfo) -> list[tuple[int, dict[str, Vital]]]:
        """(begin in ms, figures) of each step of the period."""
        import numpy as np

        starts = cut(self._scope, zone)
        edges = np.array(starts[1:], np.int64)
        places = np.searchsorted(edges, self._columns["timestamp"], side="right")
        parts = self.split(places)
        parts += [NO_VITALS] * (len(starts) - len(parts))
        return list(zip(starts, parts, strict=True))

    def by_page(self) -> list[PageVitals]:
        """Figures of each page (path), the worst first, those with few samples last."""
        paths: dict[str, int] = {}
        titles: dict[str, str] = {}

        def read(keys: Sequence[int]) -> dict[int, int]:
            sql = """SELECT page_key, path, title FROM pages
            WHERE path IS NOT NULL AND page_key IN (SELECT value FROM json_each(:keys)) ORDER BY page_key"""
            codes = {}
            for key, path, title in self._conn.execute(sql, {"keys": dumps(keys)}):
                codes[key] = paths.setdefault(path, len(paths) + 1)
                if title is not None:
                    titles[path] = title
            return codes

        parts = self.split(self._look_up("page_key", read))
        found = [_page_vitals(path, titles.get(path), parts[code]) for path, code in paths.items() if code < len(parts)]
        return sorted(found, key=lambda page: (page.samples < SAMPLES_MIN, -page.worst, -page.samples, page.path))


def _named(names: Sequence[str], parts: list[dict[str, Vital]]) -> dict[str, dict[str, Vital]]:
    """The parts that hold anything, by name."""
    return {name: part for name, part in zip(names, parts, strict=False) if any(one.samples for one in part.values())}


def _page_vitals(path: str, title: str | None, metrics: dict[str, Vital]) -> PageVitals:
    """How bad a page is: its worst p75 as a multiple of what is still good, over metrics with enough samples."""
    over = [
        one.p75 / LIMITS[metric][0]
        for metric, one in metrics.items()
        if one.p75 is not None and one.samples >= SAMPLES_MIN
    ]
    return PageVitals(path, title, metrics, max(one.samples for one in metrics.values()), max(over, default=0.0))


def passes(metrics: dict[str, Vital]) -> bool | None:
    """Whether the Core Web Vitals are passed: each good at its p75. None where one has too few samples."""
    core = [metrics[metric] for metric in CORE]
    if any(one.samples < SAMPLES_MIN for one in core):
        return None
    return all(one.rating == "good" for one in core)


# --- funnels ---------------------------------------------------------------------------------------------------------


def list_funnel_figures(conn: Connection, scope: Scope) -> list[FunnelFigures]:
    """The funnels with a session in the scope, by site and name."""
    sample = Sample(conn, scope)
    vitals = sample.by_funnel()
    return [
        FunnelFigures(site, funnel_id, totals, vitals.get((site, funnel_id), NO_VITALS))
        for (site, funnel_id), totals in Sessions(conn, scope).by_funnel().items()
    ]
