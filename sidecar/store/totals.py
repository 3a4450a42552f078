"""What is counted over sessions: totals, their course, and lists of the most; each over one `Scope`.

Sessions count by `started_at`. A session whose first known client is a bot is in no figure. All is counted from
columns (store/samples.py), which are read once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import tzinfo
from json import dumps
from math import fsum
from typing import TYPE_CHECKING, Any, NamedTuple

from sidecar.canonical import number
from sidecar.store.columns import Columns, choose, fits, is_on_page, join, join_places, shift
from sidecar.store.database import Connection
from sidecar.store.samples import BOUNCED, CONVERTED, PAGES, PROVISIONAL, SESSIONS, count_rows, list_sessions
from sidecar.store.scope import Scope, cut

if TYPE_CHECKING:
    from numpy.typing import NDArray


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


_OF_PAGES = "SELECT page_key, path FROM pages WHERE page_key IN (SELECT value FROM json_each(:keys))"
_OF_CAMPAIGNS = """
SELECT campaign_key, nullif(coalesce(source, '') || iif(medium IS NULL, '', ' / ' || medium)
    || iif(campaign IS NULL, '', ' / ' || campaign), '')
FROM campaigns WHERE campaign_key IN (SELECT value FROM json_each(:keys))"""
_OF_KEYS = {"entry pages": ("first_page_key", _OF_PAGES), "exit pages": ("last_page_key", _OF_PAGES)}
_OF_KEYS["campaigns"] = ("campaign_key", _OF_CAMPAIGNS)
TOPS = (
    *("pages", "entry pages", "exit pages", "referrers", "campaigns", "countries", "devices", "browsers", "systems"),
)


class Sessions:
    """The sessions that started within a scope, and with `page`: that have a fact of that page. Read in a snapshot."""

    def __init__(self, conn: Connection, scope: Scope) -> None:
        import numpy as np

        self._conn = conn
        self._scope = scope
        chunks = list(list_sessions(conn, scope.since, scope.until))
        counts = [count_rows(SESSIONS, chunk.sessions) for chunk in chunks]
        pages_counts = [count_rows(PAGES, chunk.pages) for chunk in chunks]
        columns = join(SESSIONS, [chunk.sessions for chunk in chunks])
        pages = join(PAGES, [chunk.pages for chunk in chunks])
        pages["row"] = shift(pages["row"], pages_counts, counts)
        columns["referrer"], self._hosts = join_places(columns["referrer"], counts, [chunk.hosts for chunk in chunks])
        columns["client"], self._clients = join_places(columns["client"], counts, [chunk.clients for chunk in chunks])
        kept = fits(conn, scope, columns, self._clients, "started_at")
        if scope.page is not None:
            pages = choose(pages, is_on_page(conn, scope, pages["page_key"]))
            have_page = np.zeros(len(kept), np.bool_)
            have_page[pages["row"]] = True
            kept &= have_page
        self._columns: Columns = choose(columns, kept)
        self._pages: Columns = choose(pages, kept[pages["row"]])

    def __len__(self) -> int:
        return len(self._columns["started_at"])

    def totals(self) -> Totals:
        """All in one."""
        import numpy as np

        return self._totals(np.zeros(len(self), np.int64), 1)[0]

    def by_funnel(self) -> dict[tuple[str, str], Totals]:
        """Each funnel that has a session, by (site, funnel id)."""
        import numpy as np

        keys, codes = np.unique(self._columns["funnel_key"], return_inverse=True)
        found = dict(zip(keys.tolist(), self._totals(codes, len(keys)), strict=True))
        names = self._conn.execute("SELECT funnel_key, site, funnel_id FROM funnels ORDER BY site, funnel_id")
        return {(site, funnel_id): found[key] for key, site, funnel_id in names if key in found}

    def _totals(self, codes: NDArray[Any], count: int) -> list[Totals]:
        """Totals of the sessions of each code from 0 to `count`."""
        import numpy as np

        columns = self._columns
        sums = self._count(codes, count)
        bounces = np.bincount(codes, columns["flags"] & BOUNCED > 0, minlength=count)
        provisional = np.bincount(codes, columns["flags"] & PROVISIONAL > 0, minlength=count)
        events = np.bincount(codes, columns["events_count"], minlength=count)
        by_seconds = (
            np.sort(columns["seconds"]) if count == 1 else columns["seconds"][np.lexsort((columns["seconds"], codes))]
        )
        begins = np.cumsum(sums["sessions"]) - sums["sessions"]
        has_value = ~np.isnan(columns["conversion_value"])
        by_code = np.argsort(codes[has_value], kind="stable")
        values = columns["conversion_value"][has_value][by_code].tolist()
        values_end = np.cumsum(np.bincount(codes[has_value], minlength=count)).tolist()
        totals = []
        for code in range(count):
            sessions = int(sums["sessions"][code])
            mine = by_seconds[begins[code] : begins[code] + sessions]
            middle = mine[[(sessions - 1) // 2, sessions // 2]].tolist() if sessions else []
            worth = values[values_end[code - 1] if code else 0 : values_end[code]]
            totals.append(
                Totals(
                    visitors=int(sums["visitors"][code]),
                    sessions=sessions,
                    provisional=int(provisional[code]),
                    page_views=int(sums["page_views"][code]),
                    events=int(events[code]),
                    conversions=int(sums["conversions"][code]),
                    conversion_value=number(round(fsum(worth), 6)) if worth else None,
                    bounces=int(bounces[code]),
                    median_s=number(sum(middle) / 2) if middle else None,
                )
            )
        return totals

    def _count(self, codes: NDArray[Any], count: int) -> Mapping[str, NDArray[Any]]:
        """Of each code: sessions, the different visitors, page views, conversions."""
        import numpy as np

        columns = self._columns
        is_named = columns["visitor_key"] > 0
        pairs = np.sort(codes[is_named].astype(np.int64) << 32 | columns["visitor_key"][is_named])
        is_first = np.diff(pairs, prepend=-1) > 0
        return {
            "sessions": np.bincount(codes, minlength=count),
            "visitors": np.bincount(pairs[is_first] >> 32, minlength=count),
            "page_views": np.bincount(codes, columns["page_views"], minlength=count),
            "conversions": np.bincount(codes, columns["flags"] & CONVERTED > 0, minlength=count),
        }

    def series(self, zone: tzinfo) -> list[Point]:
        """Each step of the period, by the start of the session; no step is left out."""
        import numpy as np

        starts = cut(self._scope, zone)
        codes = np.searchsorted(np.array(starts[1:], np.int64), self._columns["started_at"], side="right")
        sums = self._count(codes, len(starts))
        counts = (
            sums[name].astype(np.int64).tolist() for name in ("visitors", "sessions", "page_views", "conversions")
        )
        return [Point(*row) for row in zip(starts, *counts, strict=True)]

    def tops(self, kind: str, limit: int) -> list[Top]:
        """The `limit` names of one of TOPS with the most sessions (pages: page views), the most first."""
        counted = self._count_names(kind)
        total = counted.total()
        ranked = sorted(
            ((name, amount) for name, amount in counted.items() if amount),
            key=lambda one: (-one[1], one[0] is not None, one[0] or ""),
        )
        return [Top(name, amount, amount / total) for name, amount in ranked[:limit]]

    def _count_names(self, kind: str) -> Counter[str | None]:
        import numpy as np

        columns = self._columns
        match kind:
            case "referrers":
                return _count(self._hosts, columns["referrer"])
            case "countries":
                return _count([name or code for _, code, name, *_ in self._clients], columns["client"])
            case "devices":
                return _count([client[0] for client in self._clients], columns["client"])
            case "browsers":
                return _count([client[3] for client in self._clients], columns["client"])
            case "systems":
                return _count([client[4] for client in self._clients], columns["client"])
        if kind == "pages":
            sql = _OF_PAGES
            amounts = np.bincount(self._pages["page_key"], self._pages["page_views"], minlength=1)
        else:
            column, sql = _OF_KEYS[kind]
            amounts = np.bincount(columns[column], minlength=1)
        used = np.flatnonzero(amounts)
        names = dict(self._conn.execute(sql, {"keys": dumps(used.tolist())}))
        counted: Counter[str | None] = Counter()
        for key, amount in zip(used.tolist(), amounts[used].tolist(), strict=True):
            counted[names.get(key)] += int(amount)
        return counted


def _count(names: Sequence[str | None], places: NDArray[Any]) -> Counter[str | None]:
    """How often a column points at each name."""
    import numpy as np

    counted: Counter[str | None] = Counter()
    for name, amount in zip(names, np.bincount(places, minlength=len(names)).tolist(), strict=True):
        counted[name] += amount
    return counted
