"""How long the pages of the dashboard take on a large file.

    python tests/benchmarks/dashboard.py [--sessions 400000] [--rounds 7] [--file FILE] [--no-bounds]

Makes a file of `--sessions` sessions over 90 days, each with 5 vitals and 3 events, through the same function that
stores beacons: 4 funnels, 500 pages, 12 countries, phones and desktops. Then each page is asked of the application, in
process, one after the other: with its default filter (bound: 300 ms at the median) and with combinations of filters
(bound: 1.5 s at the median). Exit 1 where a bound is missed (but with `--no-bounds`). A file that is there already
(`--file`) is used as it is.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from starlette.testclient import TestClient

from sidecar.attribution import campaign_of, click_ids_of
from sidecar.canonical import to_iso, to_json
from sidecar.model import Client, EventFact, Fact, Page, VitalFact, rate
from sidecar.store.database import Connection, immediate, open_database
from sidecar.store.facts import Recording, record

DEFAULT_MAX_MS = 300.0
FILTERED_MAX_MS = 1500.0
DAY_MS = 86_400_000
DAYS = 90
GROUP = 400  # sessions a transaction while the file is made
PAGES = 500
COUNTRIES = (
    *(("DE", "Germany"), ("FR", "France"), ("US", "United States"), ("PL", "Poland"), ("NL", "Netherlands")),
    *(("GB", "United Kingdom"), ("ES", "Spain"), ("IT", "Italy"), ("AT", "Austria"), ("CH", "Switzerland")),
    *(("SE", "Sweden"), ("JP", "Japan")),
)
BROWSERS = (
    *(("desktop", "Chrome", "Windows"), ("mobile", "Mobile Safari", "iOS"), ("mobile", "Chrome Mobile", "Android")),
    *(("desktop", "Firefox", "Linux"), ("desktop", "Safari", "macOS"), ("tablet", "Safari", "iPadOS")),
)
REFERRERS = (
    None,
    None,
    "https://www.google.com/",
    "https://news.example/",
    "https://duckduckgo.com/",
    "https://t.example/x",
)
FUNNELS = ("default", "landing", "checkout", "blog")
TYPICAL = {"LCP": 1800.0, "INP": 120.0, "CLS": 0.06, "FCP": 1100.0, "TTFB": 350.0}


def pages() -> list[Page]:
    """The pages of the site."""
    return [Page(f"https://shop.test/p/{number}", f"/p/{number}", f"Page {number}") for number in range(PAGES)]


def make_session(number: int, count: int, now: int, rng: random.Random, site_pages: list[Page]) -> Iterator[Fact]:
    """The facts of one session: 3 events, 5 vitals. Sessions are spread over the days before `now`, oldest first."""
    started = now - DAYS * DAY_MS + number * (DAYS * DAY_MS - 3_600_000) // count
    device, browser, system = BROWSERS[min(int(rng.expovariate(0.6)), len(BROWSERS) - 1)]
    code, name = COUNTRIES[min(int(rng.expovariate(0.3)), len(COUNTRIES) - 1)]
    client = Client(
        *(device, browser, str(120 + number % 12), system, "10", 1920, 1080),
        *(None, code, name, None, None, f"203.0.113.{number % 200}"),
    )
    owner = ("default", rng.choice(FUNNELS), f"session-{number}")
    visitor = f"visitor-{number * 2 // 3}"
    seen = [site_pages[min(int(rng.expovariate(0.02)), PAGES - 1)] for _ in range(2)]
    referrer = rng.choice(REFERRERS)
    for place, page in enumerate(seen):
        url = f"{page.url}?utm_source=mail&utm_campaign=c{number % 7}" if place == 0 and number % 9 == 0 else page.url
        said = Page(url, page.path, page.title)
        yield EventFact(
            *(*owner, f"e{place}", "page_view", None, said, referrer if place == 0 else None, None),
            *(campaign_of(None, url), click_ids_of(None, url), visitor, client, started + place * 20_000, False),
        )
    is_buying = number % 25 == 0
    properties = to_json({"revenue": 10 + number % 90, "currency": "EUR"}) if is_buying else None
    yield EventFact(
        *(*owner, "e9", "purchase" if is_buying else "click", properties, seen[1], None, None),
        *(None, None, visitor, client, started + 30_000, False),
    )
    for metric, typical in TYPICAL.items():
        value = round(typical * rng.lognormvariate(0, 0.5), 4 if metric == "CLS" else 1)
        page = seen[number % 2]
        yield VitalFact(
            *(*owner, metric, f"v6-{started}-{rng.randrange(10**13)}", value, rate(metric, value), value, "navigate"),
            *(0, page, visitor, client, started + 25_000, False),
        )


def fill(conn: Connection, sessions: int, now: int) -> None:
    """The sessions, through the function that stores beacons."""
    rng = random.Random(5)
    site_pages = pages()
    conn.execute("PRAGMA synchronous = OFF")
    for first in range(0, sessions, GROUP):
        numbers = range(first, min(first + GROUP, sessions))
        facts = [fact for number in numbers for fact in make_session(number, sessions, now, rng, site_pages)]
        with immediate(conn):
            record(conn, [Recording([*enumerate(facts)], now)])
    conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
