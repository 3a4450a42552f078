"""Figures of the dashboard: totals, series, lists of the most, percentiles; each over one `Scope`.

Sessions count by `started_at`, web vitals by their own time. A session whose first known client is a bot is in no
figure. Percentiles are nearest rank over metric instances, exact whatever their number (contract 5.7): all instances of
the period are sorted once, as columns (store/samples.py).

The functions make temporary tables in their connection, which a read-only one may (they are in memory); they go with
the snapshot.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, tzinfo
from json import dumps
from typing import TYPE_CHECKING, Any, NamedTuple

from sidecar.canonical import number
from sidecar.model import LIMITS, NAVIGATION_TYPES, rate
from sidecar.store.database import Connection
from sidecar.store.samples import COLUMNS, METRIC_CODES, read_bodies

if TYPE_CHECKING:
    import numpy as np  # 25 MiB of memory: imported when the first percentile is asked for
    from numpy.typing import NDArray

METRICS = tuple(METRIC_CODES)  # FID is kept, but no longer a figure
CORE = ("LCP", "INP", "CLS")  # Core Web Vitals: https://web.dev/articles/vitals
SAMPLES_MIN = 10  # fewer say little: shown, and greyed
UNKNOWN = "unknown"  # a device or country that nothing is known of, as a filter
POINTS_MAX = 400  # of a series
ONLINE_MS = 5 * 60_000  # a visitor with a fact this recent is online
_DAY_MS = 86_400_000


class Scope(NamedTuple):
    """What figures are of: `since <= t < until` in ms; the others None for all. `page` is a path."""

    since: int
    until: int
    site: str | None = None
    funnel_id: str | None = None
    device: str | None = None
    country: str | None = None
    page: str | None = None

    @property
    def before(self) -> Scope:
        """The period before, of the same length."""
        return self._replace(since=2 * self.since - self.until, until=self.since)


class Totals(NamedTuple):
    """Over the sessions of a scope. `conversion_value` None: no session has one; `median_s` None: no session."""

    visitors: int
    sessions: int
    provisional: int
    page_views: int
    events: int
    conversions: int
    conversion_value: float | None
    bounces: int
    median_s: float | None

    @property
    def conversion_rate(self) -> float | None:
        """Share of sessions, 0 to 1."""
        return self.conversions / self.sessions if self.sessions else None

    @property
    def bounce_rate(self) -> float | None:
        """Share of sessions, 0 to 1."""
        return self.bounces / self.sessions if self.sessions else None


class Point(NamedTuple):
    """One step of a series: `at` (ms) is where it begins."""

    at: int
    visitors: int
    sessions: int
    page_views: int
    conversions: int


class Top(NamedTuple):
    """One row of a list of the most; `name` None: not known."""

    name: str | None
    amount: int  # of sessions; of pages: of page views
    share: float  # of all, 0 to 1


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


# --- conditions ------------------------------------------------------------------------------------------------------


_NO_BOT = (
    "s.first_client_key IS NULL OR s.first_client_key NOT IN (SELECT client_key FROM clients WHERE bot IS NOT NULL)"
)


def session_conditions(scope: Scope, *, bots: bool = False) -> str:
    """What a session `s` has to be, but for the time and the page; a bot only where `bots` are wanted."""
    found = ["true" if bots else _NO_BOT]
    if scope.site is not None or scope.funnel_id is not None:
        found.append(
            """s.funnel_key IN (SELECT funnel_key FROM funnels
            WHERE site = coalesce(:site, site) AND funnel_id = coalesce(:funnel_id, funnel_id))"""
        )
    for name, key, column in (
        ("device", "device_client_key", "device_type"),
        ("country", "place_client_key", "country_code"),
    ):
        said = getattr(scope, name)
        if said == UNKNOWN:
            found.append(f"s.{key} IS NULL OR s.{key} IN (SELECT client_key FROM clients WHERE {column} IS NULL)")
        elif said is not None:
            found.append(f"s.{key} IN (SELECT client_key FROM clients WHERE {column} = :{name})")
    return " AND ".join(f"({one})" for one in found)


_ON_PAGE = "{alias}.page_key IN (SELECT page_key FROM pages WHERE path = :page)"
# Facts have no index on pages. Those of a period lie close together, for sessions are numbered as they arrive: reading
# them in a row takes 0.3 s where 400,000 sessions are looked up in 1.7 s.
_SESSIONS_ON = """
WITH span AS MATERIALIZED (
    SELECT min(session_key) AS low, max(session_key) AS high FROM sessions
    WHERE started_at >= :since AND started_at < :until)
SELECT e.session_key FROM span CROSS JOIN events AS e ON e.session_key BETWEEN span.low AND span.high
WHERE e.page_key IN (SELECT page_key FROM pages WHERE path = :page)
UNION ALL
SELECT w.session_key FROM span CROSS JOIN web_vitals AS w ON w.session_key BETWEEN span.low AND span.high
WHERE w.page_key IN (SELECT page_key FROM pages WHERE path = :page)"""
HAS_PAGE = f"s.session_key IN ({_SESSIONS_ON})"

# A bounce: at most one page view, and no other event but session_end.
_BOUNCE = """(s.page_views <= 1 AND (s.events_count = s.page_views OR NOT EXISTS (
    SELECT 1 FROM events AS e
    WHERE e.session_key = s.session_key AND e.event_name NOT IN ('page_view', 'session_end'))))"""

TOPS = (
    *("pages", "entry pages", "exit pages", "referrers", "campaigns", "countries", "devices", "browsers", "systems"),
)
_CLIENT_TOPS = {
    "countries": ("place", "coalesce(c.country_name, c.country_code)"),
    "devices": ("device", "c.device_type"),
    "browsers": ("device", "c.browser_name"),
    "systems": ("device", "c.os_name"),
}
_HOST = "lower(substr(rest, 1, min(instr(rest || '/', '/'), instr(rest || '?', '?'), instr(rest || '#', '#')) - 1))"
_PATHS = "SELECT p.path, n FROM temp.counted AS t LEFT JOIN pages AS p ON p.page_key = t.k"
_CAMPAIGNS = """
SELECT nullif(coalesce(c.source, '') || iif(c.medium IS NULL, '', ' / ' || c.medium)
    || iif(c.campaign IS NULL, '', ' / ' || c.campaign), ''), n
FROM temp.counted AS t LEFT JOIN campaigns AS c ON c.campaign_key = t.k"""


class Sessions:
    """The sessions that started within a scope, and with `page`: that have a fact of that page.

    Two in use at once on one connection need different names in `kept_as`: what has the page is kept under it.
    """

    def __init__(self, conn: Connection, scope: Scope, kept_as: str = "on_page") -> None:
        self._conn = conn
        self._scope = scope
        where = f"s.started_at >= :since AND s.started_at < :until AND {session_conditions(scope)}"
        self._chosen = f"FROM sessions AS s WHERE {where}"
        if scope.page is not None:  # looked for once
            self._run(f"DROP TABLE IF EXISTS temp.{kept_as}")
            self._run(f"CREATE TEMP TABLE {kept_as} (session_key INTEGER PRIMARY KEY)")
            self._run(f"INSERT INTO temp.{kept_as} SELECT s.session_key {self._chosen} AND {HAS_PAGE}")
            self._chosen = f"FROM temp.{kept_as} AS o CROSS JOIN sessions AS s ON s.session_key = o.session_key"
        self._counted_clients = False

    def _run(self, sql: str, **more: Any) -> Any:
        return self._conn.execute(sql, self._scope._asdict() | more)

    def totals(self) -> Totals:
        """All in one."""
        return next(iter(self._totals("1").values()), Totals(0, 0, 0, 0, 0, 0, None, 0, None))

    def by_funnel(self) -> dict[tuple[str, str], Totals]:
        """Each funnel that has a session, by (site, funnel id)."""
        found = self._totals("s.funnel_key")
        names = self._run("SELECT funnel_key, site, funnel_id FROM funnels ORDER BY site, funnel_id")
        return {(site, funnel_id): found[key] for key, site, funnel_id in names if key in found}

    def _totals(self, key: str) -> dict[int, Totals]:
        """Totals by a key of sessions."""
        found = self._run(
            f"""SELECT {key}, count(DISTINCT s.visitor_key), count(*), total(s.events_count = 0), total(s.page_views),
            total(s.events_count), total(s.converted), total({_BOUNCE}), sum(s.conversion_value) {self._chosen}
            GROUP BY 1"""
        ).fetchall()
        seconds = "min(max((s.ended_at - s.started_at) / 1000, 0), 4294967295)"
        self._count(f"({key}) << 32 | {seconds}", self._chosen)
        durations: dict[int, list[tuple[int, int]]] = {}
        for both, amount in self._run("SELECT k, n FROM temp.counted ORDER BY k"):
            durations.setdefault(both >> 32, []).append((both & 0xFFFFFFFF, amount))
        totals = {}
        for part, *counts, value in found:
            visitors, sessions, provisional, page_views, events, conversions, bounces = map(int, counts)
            worth = None if value is None else number(round(value, 6))
            median = _median(durations[part], sessions)
            totals[part] = Totals(
                visitors, sessions, provisional, page_views, events, conversions, worth, bounces, median
            )
        return totals

    def series(self, zone: tzinfo) -> list[Point]:
        """Each step of the period, by the start of the session; no step is left out."""
        steps = cut(self._scope, zone)
        found = self._run(
            f"""SELECT {steps.sql.format(t="s.started_at")}, count(DISTINCT s.visitor_key), count(*),
            total(s.page_views), total(s.converted) {self._chosen} GROUP BY 1"""
        )
        said = {row[0]: row[1:] for row in found}
        return [Point(at, *map(int, said.get(place, (0, 0, 0, 0)))) for place, at in enumerate(steps.starts)]

    def tops(self, kind: str, limit: int) -> list[Top]:
        """The `limit` names of one of TOPS with the most sessions (pages: page views), the most first."""
        ranked = self._run(
            f"""SELECT name, sum(n), sum(sum(n)) OVER () FROM (SELECT NULL AS name, 0 AS n WHERE false
            UNION ALL {self._count_names(kind)}) GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT {limit:d}"""
        )
        return [Top(name, amount, amount / total) for name, amount, total in ranked if amount]

    def _count_names(self, kind: str) -> str:
        """Counts what a list is of, and gives SQL of (name, n), a name maybe more than once."""
        match kind:
            case "pages":
                self._count("e.page_key", f"FROM ({self._keys()}) AS chosen {self._page_views()}")
                return _PATHS
            case "entry pages":
                self._count("s.first_page_key", self._chosen)
                return _PATHS
            case "exit pages":
                self._count("s.last_page_key", self._chosen)
                return _PATHS
            case "campaigns":
                self._count("s.first_campaign_key", self._chosen)
                return _CAMPAIGNS
            case "referrers":
                return f"""SELECT iif(at > 0, {_HOST}, r), n FROM (
                    SELECT r, n, instr(r, '://') AS at, substr(r, instr(r, '://') + 3) AS rest FROM (
                        SELECT s.first_referrer AS r, count(*) AS n {self._chosen} GROUP BY 1))"""
            case _:
                which, column = _CLIENT_TOPS[kind]
                self._count_clients()
                return f"""SELECT {column}, n FROM temp.counted_{which} AS t
                LEFT JOIN clients AS c ON c.client_key = t.k"""

    def _keys(self) -> str:
        return f"SELECT s.session_key {self._chosen}"

    def _page_views(self) -> str:
        on_page = f" AND {_ON_PAGE.format(alias='e')}" if self._scope.page is not None else ""
        return f"""CROSS JOIN events AS e ON e.session_key = chosen.session_key
        WHERE e.event_name = 'page_view'{on_page}"""

    def _count(self, key: str, chosen: str, table: str = "counted", how: str = "") -> None:
        """Count keys (0 for none) in a temporary table: by upsert, for sorting all rows takes three times as long."""
        self._run(f"DROP TABLE IF EXISTS temp.{table}")
        self._run(f"CREATE TEMP TABLE {table} (k INTEGER PRIMARY KEY, n INTEGER)")
        self._run(
            f"INSERT INTO temp.{table} SELECT coalesce({key}, 0), 1 {chosen}{how} "
            "ON CONFLICT (k) DO UPDATE SET n = n + excluded.n"
        )

    def _count_clients(self) -> None:
        """Sessions by the client that their device is from, and by that of their place: for nearly all it is one."""
        if self._counted_clients:
            return
        self._counted_clients = True
        joint = " AND " if " WHERE " in self._chosen else " WHERE "
        self._count("s.first_client_key", self._chosen, "counted_same", f"{joint}s.other_clients IS NULL")
        for which in ("device", "place"):
            apart = f"{joint}s.other_clients IS NOT NULL"
            self._count(f"s.{which}_client_key", self._chosen, f"counted_{which}", apart)
            self._run(
                f"""INSERT INTO temp.counted_{which} SELECT k, n FROM temp.counted_same WHERE true
                ON CONFLICT (k) DO UPDATE SET n = n + excluded.n"""
            )


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
    return f"EXISTS (SELECT 1 FROM {table} AS f WHERE f.session_key = s.session_key AND {_ON_PAGE.format(alias='f')})"


def latest_start(conn: Connection) -> int | None:
    """When the latest session began (ms); None where there is none at all."""
    found: int | None = conn.execute("SELECT max(started_at) FROM sessions").fetchone()[0]
    return found


def _median(counted: list[tuple[int, int]], total: int) -> float:
    """The median of `total` values, given as (value, how often) in ascending order."""
    wanted = ((total - 1) // 2, total // 2)
    found, passed = [], 0
    for value, amount in counted:
        found += [value for place in wanted if passed <= place < passed + amount]
        passed += amount
    return number(sum(found[:2]) / 2)


# --- steps of a series -----------------------------------------------------------------------------------------------


class Steps(NamedTuple):
    """How a period is cut: where each step begins (ms), and SQL that gives the place of a time `{t}` among them."""

    starts: list[int]
    sql: str


def _offset_at(at: int, zone: tzinfo) -> int:
    """What a zone's clock is ahead of UTC, in ms."""
    ahead = datetime.fromtimestamp(at / 1000, UTC).astimezone(zone).utcoffset()
    return 0 if ahead is None else round(ahead.total_seconds() * 1000)


def _offsets(scope: Scope, zone: tzinfo) -> list[tuple[int, int]]:
    """(from when on in ms, offset in ms) of a zone over a period."""
    found = [(scope.since, _offset_at(scope.since, zone))]
    for day_end in (*range(scope.since + _DAY_MS, scope.until, _DAY_MS), scope.until):
        offset = _offset_at(day_end, zone)
        if offset == found[-1][1]:
            continue
        low, high = max(day_end - _DAY_MS, scope.since), day_end  # the clocks change between the two
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if _offset_at(middle, zone) == found[-1][1] else (low, middle)
        found.append((high, offset))
    return found


def cut(scope: Scope, zone: tzinfo) -> Steps:
    """Steps of an hour up to two days, else of days of a time zone, or of 7, 49 days where there would be too many."""
    size = _DAY_MS // 24 if scope.until - scope.since <= 2 * _DAY_MS else _DAY_MS
    while (scope.until - scope.since) / size > POINTS_MAX:
        size *= 7
    offsets = _offsets(scope, zone)
    ahead = str(offsets[0][1])
    for begins, offset in offsets[1:]:
        ahead = f"iif({{t}} >= {begins}, {offset}, {ahead})"

    def local(at: int) -> int:
        return at + next((offset for begins, offset in reversed(offsets) if at >= begins), offsets[0][1])

    first, last = local(scope.since) // size, local(scope.until - 1) // size
    starts = []
    for place in range(first, last + 1):
        fitting = [place * size - offset for _, offset in offsets if local(place * size - offset) == place * size]
        starts.append(min(fitting, default=place * size - offsets[-1][1]))
    return Steps(starts, f"(({{t}} + {ahead}) / {size} - {first})")


# --- web vitals ------------------------------------------------------------------------------------------------------

NO_VITALS = {metric: Vital(None, None, 0, 0, 0, 0) for metric in METRICS}
DEVICES = ("unknown", "desktop", "mobile", "tablet")
NAVIGATIONS = ("unknown", *NAVIGATION_TYPES)


class Sample:
    """Every instance of a scope's web vitals, as columns sorted by value; `split` gives percentiles of any parts."""

    def __init__(self, conn: Connection, scope: Scope) -> None:
        import numpy as np

        self._conn = conn
        self._scope = scope
        columns = [[np.empty(0, np.dtype(code))] for _, code in COLUMNS]
        for packed in read_bodies(conn, scope.since, scope.until):
            for column, body, (_, code) in zip(columns, packed, COLUMNS, strict=True):
                column.append(np.frombuffer(body, np.dtype(code)))
        joined = {name: np.concatenate(column) for (name, _), column in zip(COLUMNS, columns, strict=True)}
        kept = self._choose(joined)
        order = np.flatnonzero(kept)
        order = order[np.argsort(joined["value"][order], kind="stable")]
        self._columns = {name: column[order] for name, column in joined.items()}
        self._of_metric = {
            metric: np.flatnonzero(self._columns["metric"] == code) for metric, code in METRIC_CODES.items()
        }

    def __len__(self) -> int:
        return len(self._columns["value"])

    def _choose(self, columns: dict[str, NDArray[Any]]) -> NDArray[np.bool_]:
        scope, times = self._scope, columns["timestamp"]
        kept = (times >= scope.since) & (times < scope.until)
        if scope.site is not None or scope.funnel_id is not None:
            sql = """SELECT funnel_key FROM funnels
            WHERE site = coalesce(:site, site) AND funnel_id = coalesce(:funnel_id, funnel_id)"""
            kept &= self._is_among(columns["funnel_key"], sql, unknown=False)
        if scope.device is not None:
            sql = "SELECT client_key FROM clients WHERE device_type IS nullif(:device, 'unknown')"
            kept &= self._is_among(columns["device_key"], sql, unknown=scope.device == UNKNOWN)
        if scope.country is not None:
            sql = "SELECT client_key FROM clients WHERE country_code IS nullif(:country, 'unknown')"
            kept &= self._is_among(columns["place_key"], sql, unknown=scope.country == UNKNOWN)
        if scope.page is not None:
            kept &= self._is_among(columns["page_key"], "SELECT page_key FROM pages WHERE path = :page", unknown=False)
        return kept

    def _is_among(self, column: NDArray[Any], sql: str, *, unknown: bool) -> NDArray[np.bool_]:
        """Which keys of a column a statement gives; `unknown`: whether 0, for no key, is one of them."""
        import numpy as np

        keys = np.fromiter((key for (key,) in self._conn.execute(sql, self._scope._asdict())), np.int64)
        table = np.zeros(int(column.max(initial=0)) + 1, np.bool_)
        table[keys[keys < len(table)]] = True
        table[0] = unknown
        among: NDArray[np.bool_] = table[column]
        return among

    def _look_up(self, column: str, read: Callable[[Sequence[int]], dict[int, int]]) -> NDArray[np.int64]:
        """A column of keys as a column of what `read` says they mean; 0 for what it does not know."""
        import numpy as np

        keys = self._columns[column]
        table = np.zeros(int(keys.max(initial=0)) + 1, np.int64)
        used = np.flatnonzero(np.bincount(keys, minlength=1)).tolist() if len(keys) else []
        for key, code in read(used).items():
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
        """Figures of each of DEVICES that has any."""
        codes = {name: code for code, name in enumerate(DEVICES)}

        def read(keys: Sequence[int]) -> dict[int, int]:
            sql = "SELECT client_key, device_type FROM clients WHERE client_key IN (SELECT value FROM json_each(?))"
            return {key: codes.get(said, 0) for key, said in self._conn.execute(sql, (dumps(keys),))}

        return _named(DEVICES, self.split(self._look_up("device_key", read)))

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

        starts = cut(self._scope, zone).starts
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
            WHERE path IS NOT NULL AND page_key IN (SELECT value FROM json_each(?)) ORDER BY page_key"""
            codes = {}
            for key, path, title in self._conn.execute(sql, (dumps(keys),)):
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
