"""Formats for people: numbers, times, names and addresses as a page shows them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, tzinfo
from typing import Any
from urllib.parse import quote, urlencode

from sidecar.attribution import host_of
from sidecar.canonical import from_iso, to_iso
from sidecar.model import rate
from sidecar.store.queries import Row

_ISO = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]{8,12}Z")

# --- numbers and times -----------------------------------------------------------------------------------------------


def format_number(value: float) -> str:
    """`9,876`, `12.4k`, `3.1M` of a count."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= 10_000 and value >= 0.9995 * size:
            scaled = value / size
            return f"{scaled:.1f}{unit}" if scaled < 99.95 else f"{scaled:,.0f}{unit}"
    return f"{value:,.0f}"


def format_count(amount: int, noun: str) -> str:
    """`1 session`, `1,234 sessions`."""
    return f"{amount:,} {noun}" if amount == 1 else f"{amount:,} {noun}s"


def format_money(value: float) -> str:
    """`1,234.50`, `12.4k`."""
    return format_number(value) if abs(value) >= 100_000 else f"{value:,.2f}"


def format_percent(share: float) -> str:
    """`12.3 %` of a share from 0 to 1; all and nothing without a fraction."""
    percent = 100 * share
    if 0 < percent < 0.05:
        return "<0.1 %"
    return f"{percent:.1f} %" if 0 < percent < 99.95 or percent > 100 else f"{percent:.0f} %"


def format_bytes(size: int) -> str:
    """`640 B`, `12.4 kB`, `3.1 MB`."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} B"


def format_ms(value: float) -> str:
    """`340 ms`, `1.2 s`, `2 min 5 s` of milliseconds."""
    if round(value) < 1000:
        return f"{value:.1f} ms" if 0 < value < 10 and value != round(value) else f"{round(value)} ms"
    return f"{value / 1000:.1f} s" if value < 59_950 else format_duration(value / 1000)


def format_duration(seconds: float) -> str:
    """`45 s`, `3 min 20 s`, `1 h 5 min` of seconds."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, hours = whole // 60, whole // 3600
    return f"{minutes} min {whole % 60} s" if hours == 0 else f"{hours} h {minutes % 60} min"


def format_vital(metric: str, value: float) -> str:
    """A value with its unit (CLS has none), with as many digits as its rating needs: 2,504 ms of LCP are not 2.5 s."""
    if metric == "CLS":
        text = f"{value:.2f}" if value == 0 or value >= 0.005 else f"{value:.3f}" if value >= 0.0005 else "<0.001"
        size, unit, digits = 1.0, "", 2
    else:
        text = format_ms(value)
        size, unit, digits = (1.0, " ms", 0) if round(value) < 1000 else (1000.0, " s", 1)
    while digits < 5 and rate(metric, round(value / size, digits) * size) != rate(metric, value):
        digits += 1
        text = f"{value / size:.{digits}f}{unit}"
    return text


def format_ago(at: int, now: int) -> str:
    """`3 min ago` of ms; a date from 30 days on. A client's clock may be ahead of `now`."""
    seconds = (now - at) // 1000
    if seconds < 0:
        return "just now" if seconds > -60 else f"in {format_duration(-seconds)}"
    for limit, size, unit in ((10, 0, ""), (60, 1, "s"), (3600, 60, "min"), (86_400, 3600, "h")):
        if seconds < limit:
            return f"{seconds // size} {unit} ago" if size else "just now"
    days = seconds // 86_400
    return f"{days} day{'s' if days > 1 else ''} ago" if days < 30 else (to_iso(at) or "")[:10]


def format_exact(at: int, zone: tzinfo = UTC) -> str:
    """`2026-11-22 07:00:00.000` of ms, on the clock of a zone."""
    local = datetime.fromtimestamp(at / 1000, UTC).astimezone(zone)
    return f"{local:%Y-%m-%d %H:%M:%S}.{at % 1000:03}"


def format_moment(local: datetime) -> str:
    """`22 Nov 2026, 07:00` of a time on someone's clock."""
    return f"{local.day} {local:%b %Y}, {local:%H:%M}"


# --- names and addresses ---------------------------------------------------------------------------------------------


def shorten(text: str, most: int = 60) -> str:
    """A text cut to its first characters; a table has no room for 2,048."""
    return text if len(text) <= most else text[: most - 1] + "…"


def without_host(url: str) -> str:
    """What stands after the host of an address."""
    return re.sub(r"^[a-z][a-z0-9+.-]*://[^/?#]*", "", url, count=1, flags=re.IGNORECASE) or "/"


def session_source(row: Row) -> str:
    """Where a session came from: its first campaign, else the referrer's host, else `direct`."""
    campaign = [row[name] for name in ("first_source", "first_medium", "first_campaign") if row[name]]
    if campaign:
        return " / ".join(campaign)
    return host_of(row["first_referrer"]) or "direct"


def session_device(row: Row) -> str:
    """`Chrome 131, Windows 10, desktop`, as far as it is known."""
    browser = " ".join(row[name] for name in ("browser_name", "browser_version") if row[name])
    system = " ".join(row[name] for name in ("os_name", "os_version") if row[name])
    return ", ".join(part for part in (browser, system, row["device_type"]) if part)


def session_short_device(row: Row) -> str:
    """`Chrome, Windows`: what a list has room for."""
    return ", ".join(row[name] for name in ("browser_name", "os_name") if row[name]) or row["device_type"] or ""


def session_place(row: Row) -> str:
    """`Lyon, Auvergne, France`, as far as it is known."""
    return ", ".join(part for part in (row["city"], row["region"], row["country_name"] or row["country_code"]) if part)


def describe(mapping: Mapping[str, Any]) -> list[tuple[str, str, int | None]]:
    """(label, text, time in ms or None) of what a mapping says; nothing of what is null or no scalar."""
    described = []
    for name, value in mapping.items():
        if value is None or isinstance(value, dict | list):
            continue
        label = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|_", " ", name).capitalize()
        at = from_iso(value) if isinstance(value, str) and _ISO.fullmatch(value) else None
        described.append((label, {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value), at))
    return described


def page_url(kind: str, identity: str, site: str, funnel_id: str | None = None, origin: str | None = None) -> str:
    """The address of the page of one session or visitor; always with its site, so that it means one.

    `origin` is the address that it is reached from, for the way back.
    """
    query = {"site": site} | ({"funnelId": funnel_id} if funnel_id is not None else {})
    query |= {"from": origin} if origin else {}
    return f"/{kind}/{quote(identity, safe='')}?{urlencode(query)}"
