"""Formats for people."""

from __future__ import annotations

from datetime import UTC
from zoneinfo import ZoneInfo

import pytest

from sidecar.web.format import (
    describe,
    format_ago,
    format_count,
    format_duration,
    format_exact,
    format_money,
    format_ms,
    format_number,
    format_percent,
    format_vital,
    page_url,
    shorten,
)
from tests.builders import START


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((0, "0 ms"), (0.04, "0.0 ms"), (4.2, "4.2 ms"), (5, "5 ms"), (340.4, "340 ms"), (999.4, "999 ms")),
        *((999.6, "1.0 s"), (1234, "1.2 s"), (59_949, "59.9 s"), (59_950, "1 min 0 s"), (125_000, "2 min 5 s")),
        (10_000_000, "2 h 46 min"),
    ],
)
def test_milliseconds(value: float, text: str) -> None:
    assert format_ms(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0.00"), (0.02, "0.02"), (0.1, "0.10"), (0.004, "0.004"), (0.0001, "<0.001"), (12.345, "12.35")],
)
def test_layout_shift_has_no_unit(value: float, text: str) -> None:
    assert format_vital("CLS", value) == text


def test_durations() -> None:
    assert [format_duration(s) for s in (0, 59, 59.6, 61, 3599, 3600, 90_061)] == [
        *("0 s", "59 s", "1 min 0 s", "1 min 1 s", "59 min 59 s", "1 h 0 min", "25 h 1 min"),
    ]


@pytest.mark.parametrize(
    ("age_s", "text"),
    [
        *(
            (0, "just now"),
            (9, "just now"),
            (10, "10 s ago"),
            (59, "59 s ago"),
            (60, "1 min ago"),
            (3599, "59 min ago"),
        ),
        *((3600, "1 h ago"), (86_399, "23 h ago"), (86_400, "1 day ago"), (172_800, "2 days ago")),
        *((30 * 86_400, "2026-11-22"), (-59, "just now"), (-240, "in 4 min 0 s")),
    ],
)
def test_how_long_ago(age_s: int, text: str) -> None:
    assert format_ago(START, START + age_s * 1000) == text


def test_small_formats() -> None:
    assert shorten("x" * 61) == "x" * 59 + "…"
    assert shorten("x" * 60) == "x" * 60
    assert page_url("sessions", "a/b?c", "s", "f g") == "/sessions/a%2Fb%3Fc?site=s&funnelId=f+g"
    assert describe({"state": "ok", "shippedAt": "2026-11-22T07:00:00.000Z", "parked": False, "x": None, "y": [1]}) == [
        ("State", "ok", None),
        ("Shipped at", "2026-11-22T07:00:00.000Z", START),
        ("Parked", "no", None),
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((0, "0"), (9_999, "9,999"), (10_000, "10.0k"), (12_449, "12.4k"), (99_949, "99.9k"), (99_950, "100k")),
        *((999_499, "999k"), (999_500, "1.0M"), (3_140_000, "3.1M"), (2_000_000_000, "2.0B")),
    ],
)
def test_numbers(value: float, text: str) -> None:
    assert format_number(value) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [(0, "0 %"), (0.0004, "<0.1 %"), (0.001, "0.1 %"), (0.1234, "12.3 %"), (0.9994, "99.9 %"), (0.99951, "100 %")],
)
def test_shares(share: float, text: str) -> None:
    assert format_percent(share) == text


def test_money_and_counts() -> None:
    assert [format_money(value) for value in (0, 1234.5, 99_999.99, 123_456)] == [
        "0.00",
        "1,234.50",
        "99,999.99",
        "123k",
    ]
    assert [format_count(n, "session") for n in (0, 1, 1200)] == ["0 sessions", "1 session", "1,200 sessions"]


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        *(("LCP", 2500, "2.5 s"), ("LCP", 2504, "2.504 s"), ("LCP", 2510, "2.51 s"), ("LCP", 2600, "2.6 s")),
        *(("INP", 200, "200 ms"), ("INP", 200.4, "200.4 ms"), ("TTFB", 800.5, "800.5 ms")),
        *(("CLS", 0.1, "0.10"), ("CLS", 0.1001, "0.1001"), ("CLS", 0.254, "0.254"), ("CLS", 0.264, "0.26")),
    ],
)
def test_a_value_never_contradicts_its_rating(metric: str, value: float, text: str) -> None:
    """What is rounded to a limit and lies above it gets more digits."""
    assert format_vital(metric, value) == text


def test_exact_times_are_on_the_clock_of_a_zone() -> None:
    assert format_exact(START + 7, UTC) == "2026-11-22 07:00:00.007"
    assert format_exact(START, ZoneInfo("Asia/Kolkata")) == "2026-11-22 12:30:00.000"
