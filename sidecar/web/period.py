"""What the pages show: a period, filters, and the viewer's time zone, all of them in the address."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta, tzinfo
from typing import NamedTuple
from urllib.parse import urlencode
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from sidecar.canonical import from_iso
from sidecar.store.queries import FilterError
from sidecar.store.scope import Scope

PERIODS = {"24h": "24 hours", "7d": "7 days", "30d": "30 days", "90d": "90 days"}
PERIOD_DEFAULT = "7d"
FILTERS = ("site", "funnelId", "device", "country", "page")
TEXT_MAX = 2048
_ORDER = (*FILTERS, "period", "since", "until")  # in addresses: one view has one
_HOURS = {"24h": 24, "7d": 7 * 24, "30d": 30 * 24, "90d": 90 * 24}
_HOUR_MS = 3_600_000
_CUSTOM_MAX_MS = 20 * 366 * 24 * _HOUR_MS
_LATEST_MS = 253_370_764_800_000  # 9999-01-01, where clocks of all zones still have a date


class View(NamedTuple):
    """One view of the figures. `period` is one of PERIODS or `custom`; `given` are the parameters that ask for it."""

    scope: Scope
    period: str
    zone: tzinfo
    zone_name: str
    given: dict[str, str]

    def query(self, **changes: str | None) -> str:
        """`?device=mobile&period=30d`: this view's parameters with changes, None to leave one out; '' for none."""
        asked = self.given | changes
        names = [*_ORDER, *(name for name in changes if name not in _ORDER)]
        said = {name: asked[name] for name in names if asked.get(name)}
        return f"?{urlencode(said)}" if said else ""

    @property
    def filters(self) -> dict[str, str]:
        """The filters beside the period that are set, by the name of their parameter."""
        return {name: self.given[name] for name in FILTERS if name in self.given}

    def local(self, at: int) -> datetime:
        """A time (ms) on the viewer's clock."""
        return datetime.fromtimestamp(at / 1000, UTC).astimezone(self.zone)


def read_zone(name: str | None) -> tuple[tzinfo, str]:
    """A time zone and its name; UTC for none or one that is not known here."""
    if not name or name == "UTC" or len(name) > 64:
        return UTC, "UTC"
    try:
        return ZoneInfo(name), name
    except (ZoneInfoNotFoundError, ValueError, OSError):  # OSError: the name of a folder
        return UTC, "UTC"


def _read_time(text: str, zone: tzinfo, name: str, *, is_end: bool) -> int:
    """A time in ms, of an ISO 8601 time, or of a date on the viewer's clock: its begin, or its end."""
    try:
        if len(text) == 10:
            day = datetime.fromisoformat(text).replace(tzinfo=zone) + timedelta(days=1 if is_end else 0)
            return round(day.timestamp() * 1000)
        return from_iso(text.replace(" ", "+"))
    except (ValueError, OverflowError):
        raise FilterError(name, "a date like 2026-11-22 or an ISO 8601 time") from None


def read_view(parameters: Mapping[str, str], now: int, zone_name: str | None) -> View:
    """The view that a query string asks for at `now` (ms). Raises FilterError naming a wrong parameter.

    Without `period` it is PERIOD_DEFAULT, or `custom` where `since` or `until` is given. Periods end with the hour
    that `now` is in, so that the steps of a chart do not move from second to second.
    """
    zone, known_name = read_zone(zone_name)
    given = {name: parameters[name][:TEXT_MAX] for name in FILTERS if parameters.get(name)}
    since_text, until_text = parameters.get("since", ""), parameters.get("until", "")
    period = parameters.get("period") or ("custom" if since_text or until_text else PERIOD_DEFAULT)
    if period == "custom":
        until = _read_time(until_text, zone, "until", is_end=True) if until_text else now
        since = _read_time(since_text, zone, "since", is_end=False) if since_text else until - 7 * 24 * _HOUR_MS
        if not 0 < until - since <= _CUSTOM_MAX_MS or since < 0 or until > _LATEST_MS:
            raise FilterError("since", "before until, from 1970 on, and at most 20 years")
        given |= {"period": "custom"} | ({"since": since_text} if since_text else {})
        given |= {"until": until_text} if until_text else {}
    elif period in _HOURS:
        until = (now // _HOUR_MS + 1) * _HOUR_MS
        since = until - _HOURS[period] * _HOUR_MS
        given |= {"period": period} if parameters.get("period") else {}
    else:
        raise FilterError("period", f"one of {', '.join(PERIODS)}, custom")
    names = {"site": "site", "funnelId": "funnel_id", "device": "device", "country": "country", "page": "page"}
    chosen = {field: given[name] for name, field in names.items() if name in given}
    return View(Scope(since, until, **chosen), period, zone, known_name, given)
