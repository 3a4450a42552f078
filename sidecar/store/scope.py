"""What figures and lists are of: a period and filters, as SQL over sessions; and the steps that cut a period."""

from __future__ import annotations

from datetime import UTC, datetime, tzinfo
from typing import NamedTuple

UNKNOWN = "unknown"  # a device or country that nothing is known of, as a filter
POINTS_MAX = 400  # of a series
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


# --- conditions ------------------------------------------------------------------------------------------------------


FUNNELS_OF = """SELECT funnel_key FROM funnels
    WHERE site = coalesce(:site, site) AND funnel_id = coalesce(:funnel_id, funnel_id)"""
_NO_BOT = (
    "s.first_client_key IS NULL OR s.first_client_key NOT IN (SELECT client_key FROM clients WHERE bot IS NOT NULL)"
)
PAGES_OF = "SELECT page_key FROM pages WHERE path = :page"


def session_conditions(scope: Scope, *, bots: bool = False) -> str:
    """What a session `s` has to be, but for the time and the page; a bot only where `bots` are wanted."""
    found = ["true" if bots else _NO_BOT]
    if scope.site is not None or scope.funnel_id is not None:
        found.append(f"s.funnel_key IN ({FUNNELS_OF})")
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


# Facts have no index on pages. Those of a period lie close together, for sessions are numbered as they arrive: reading
# them in a row takes 0.3 s where 400,000 sessions are looked up in 1.7 s.
_SESSIONS_ON = f"""
WITH span AS MATERIALIZED (
    SELECT min(session_key) AS low, max(session_key) AS high FROM sessions
    WHERE started_at >= :since AND started_at < :until)
SELECT e.session_key FROM span CROSS JOIN events AS e ON e.session_key BETWEEN span.low AND span.high
WHERE e.page_key IN ({PAGES_OF})
UNION ALL
SELECT w.session_key FROM span CROSS JOIN web_vitals AS w ON w.session_key BETWEEN span.low AND span.high
WHERE w.page_key IN ({PAGES_OF})"""
HAS_PAGE = f"s.session_key IN ({_SESSIONS_ON})"


# --- steps of a series -----------------------------------------------------------------------------------------------


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


def cut(scope: Scope, zone: tzinfo) -> list[int]:
    """Where each step of a period begins, in ms: of an hour up to two days, else of days of a time zone, or of 7, 49
    days where there would be too many.
    """
    size = _DAY_MS // 24 if scope.until - scope.since <= 2 * _DAY_MS else _DAY_MS
    while (scope.until - scope.since) / size > POINTS_MAX:
        size *= 7
    offsets = _offsets(scope, zone)

    def local(at: int) -> int:
        return at + next((offset for begins, offset in reversed(offsets) if at >= begins), offsets[0][1])

    first, last = local(scope.since) // size, local(scope.until - 1) // size
    starts = []
    for place in range(first, last + 1):
        fitting = [place * size - offset for _, offset in offsets if local(place * size - offset) == place * size]
        starts.append(min(fitting, default=place * size - offsets[-1][1]))
    return starts
