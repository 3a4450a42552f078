"""How long the pages of the dashboard take on a large file.

    python tests/benchmarks/dashboard.py [--sessions 400000] [--rounds 7] [--file FILE] [--no-bounds]

Makes a file of `--sessions` sessions over 90 days, each with 5 vitals and 3 events, through the same function that
stores beacons: 4 funnels, 500 pages, 12 countries, phones and desktops. Then each page is asked of the application, in
process, one after the other: with its default filter (bound: 300 ms at the median) and with combinations of filters
(bound: 1.5 s at the median); first from the facts alone (the column `facts alone`, without a bound), then with the
rows of `samples`. Exit 1 where a bound is missed (but with `--no-bounds`). `--file` keeps the file: made where there
is none, else read (what is measured is a copy).
"""

from __future__ import annotations

import argparse
import random
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import NamedTuple
from unittest.mock import patch

from starlette.testclient import TestClient

from sidecar import app as application
from sidecar.attribution import campaign_of, click_ids_of
from sidecar.canonical import to_json
from sidecar.config import Settings
from sidecar.model import Client, EventFact, Fact, Page, VitalFact, rate
from sidecar.store.database import Connection, immediate, open_database
from sidecar.store.facts import Recording, record
from sidecar.store.samples import list_missing, put_chunks

DEFAULT_MAX_MS = 300.0
FILTERED_MAX_MS = 1500.0
DAY_MS = 86_400_000
DAYS = 90
HOUR_MS = 3_600_000
FACTS_ROUNDS = 3  # at most, of the slow column
CHUNKS = 10  # a transaction
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
TABLES = ("sessions", "web_vitals", "events")
TYPICAL = {"LCP": 1800.0, "INP": 120.0, "CLS": 0.06, "FCP": 1100.0, "TTFB": 350.0}


def pages() -> list[Page]:
    """The pages of the site."""
    return [Page(f"https://shop.test/p/{number}", f"/p/{number}", f"Page {number}") for number in range(PAGES)]


def make_session(number: int, count: int, now: int, rng: random.Random, site_pages: list[Page]) -> Iterator[Fact]:
    """The facts of one session: 3 events, 5 vitals. Sessions are spread over the days before `now`, oldest first."""
    started = now - DAYS * DAY_MS + number * (DAYS * DAY_MS - HOUR_MS) // count
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


class View(NamedTuple):
    """A page to ask for, and its bound in ms."""

    path: str
    max_ms: float


def views(conn: Connection) -> list[View]:
    """Every page with its default filter, and combinations of filters. One session and one visitor stand for all."""
    session, visitor = conn.execute(
        "SELECT s.session_id, v.anonymous_id FROM sessions AS s JOIN visitors AS v USING (visitor_key) "
        "ORDER BY s.session_key DESC LIMIT 1"
    ).fetchone()
    plain = ["/", "/vitals", "/sessions", f"/sessions/{session}", "/visitors", f"/visitors/{visitor}"]
    plain += ["/funnels", "/shipping"]
    narrow = "funnelId=landing&device=mobile&country=DE"
    filtered = [
        *("/?period=90d", "/?period=24h", f"/?period=90d&{narrow}", "/?period=90d&page=/p/1"),
        *(f"/?period=30d&{narrow}&page=/p/3", "/?since=2026-09-15&until=2026-10-15&device=desktop"),
        *("/vitals?period=90d", f"/vitals?period=90d&{narrow}", "/vitals?period=90d&page=/p/1"),
        *(f"/vitals?period=30d&{narrow}&page=/p/3", "/vitals?period=90d&device=tablet"),
        *("/sessions?period=90d&sort=lcp", f"/sessions?period=90d&sort=score&{narrow}"),
        *("/sessions?period=90d&page=/p/1&sort=lcp", "/sessions?period=90d&q=/p/499", "/sessions?period=90d&q=nothing"),
        *(f"/sessions?period=90d&sort=longest&{narrow}&q=visitor-77", "/visitors?period=90d&sort=events"),
        *(f"/visitors?period=90d&sort=sessions&{narrow}", "/visitors?period=90d&q=visitor-777"),
        *("/funnels?period=90d", "/funnels?period=90d&device=mobile&country=DE&page=/p/1"),
    ]
    return [View(path, DEFAULT_MAX_MS) for path in plain] + [View(path, FILTERED_MAX_MS) for path in filtered]


def median_ms(client: TestClient, path: str, rounds: int) -> float:
    """The median of how long a page takes, after one that warms up."""
    took = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        answer = client.get(path)
        took.append((time.perf_counter() - began) * 1000)
        if answer.status_code != 200:
            raise SystemExit(f"{path}: HTTP {answer.status_code}: {answer.text[:300]}")
    return median(took[1:])


def pack_all(conn: Connection) -> float:
    """Make all rows of `samples`, as the server does in the background: ms for each."""
    missing = list_missing(conn)
    began = time.perf_counter()
    for first in range(0, len(missing), CHUNKS):
        with immediate(conn):
            put_chunks(conn, missing[first : first + CHUNKS])
    return (time.perf_counter() - began) * 1000 / max(1, len(missing))


def print_table(rows: list[tuple[View, float, float]]) -> None:
    """A row a view."""
    print("| view | facts alone, ms | with samples, ms | bound, ms |")
    print("|---|---:|---:|---:|")
    for view, before, after in rows:
        print(f"| {view.path} | {before:.0f} | {after:.0f}{'' if after < view.max_ms else ' !'} | {view.max_ms:.0f} |")


def measure(path: Path, now: int, rounds: int) -> list[tuple[View, float, float]]:
    """(view, ms from the facts alone, ms with samples) of every view."""
    with closing(open_database(path, durability="normal")) as conn:
        with immediate(conn):
            conn.execute("DELETE FROM samples")
        asked = views(conn)
        with patch.object(application, "now_ms", lambda: now):
            app = application.build(Settings(database=path))
        # Without its lifespan: nothing of the background runs beside what is measured.
        client = TestClient(app, base_url="http://127.0.0.1:8787", client=("127.0.0.1", 50_000))
        before = [median_ms(client, view.path, min(rounds, FACTS_ROUNDS)) for view in asked]
        print(f"a row of samples took {pack_all(conn):.1f} ms to make")
        after = [median_ms(client, view.path, rounds) for view in asked]
    return list(zip(asked, before, after, strict=True))


def main() -> int:
    """Make or copy the file, measure, print, judge."""
    parser = argparse.ArgumentParser(description="How long the pages of the dashboard take on a large file.")
    parser.add_argument("--sessions", type=int, default=400_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--file", type=Path)
    parser.add_argument("--no-bounds", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "measured.db"
        source = options.file or path
        if not source.exists():
            with closing(open_database(source, durability="normal")) as conn:
                fill(conn, options.sessions, int(time.time()) * 1000)
        if source != path:
            with closing(sqlite3.connect(source)) as held, closing(sqlite3.connect(path)) as copied:
                held.backup(copied)
        with closing(open_database(path, durability="normal")) as conn:
            latest = conn.execute("SELECT max(started_at) FROM sessions").fetchone()[0]
            counts = [conn.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in TABLES]
        print("{:,} sessions, {:,} web vitals, {:,} events".format(*counts))
        rows = measure(path, latest + HOUR_MS, options.rounds)
    print_table(rows)
    missed = [view.path for view, _, after in rows if after >= view.max_ms]
    if missed and not options.no_bounds:
        print(f"above its bound: {', '.join(missed)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
