"""How long `sidecar verify` takes on a million facts, and what one more beacon costs a session that is large.

    python tests/benchmarks/verify.py [--sessions 100000] [--facts 10] [--large 5000] [--file FILE] [--no-bounds]

Makes a file of `--sessions` sessions with `--facts` facts each (of ten, six are vitals), beside one session of
`--large` facts and one that is full, through the same function that stores beacons. Then it measures

- `sidecar verify`, as a process of its own: wall time, and the highest resident memory (`ru_maxrss`)
- one more vital, COMMIT included (durability `full`): for the large session, and for one of ten facts
- what becomes of the 10,001st fact of a session, and of the other items of its beacon

Exit 0; 1 where a bound is missed (but with `--no-bounds`), or where the file does not verify. A file that
is there already (`--file`) is used as it is.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from itertools import repeat
from pathlib import Path
from statistics import median

from sidecar.attribution import campaign_of, click_ids_of
from sidecar.canonical import to_json
from sidecar.model import SESSION_FACTS_MAX, Client, EventFact, Fact, Page, VitalFact, rate
from sidecar.store.database import Connection, immediate, open_database
from sidecar.store.facts import Recording, record

VERIFY_MAX_S = 60.0
MEMORY_MAX_MIB = 200.0
LARGE_MAX_MS = 8.0
SMALL_MAX_MS = 1.0
START = 1_795_330_800_000  # 2026-11-22T07:00:00.000Z
GROUP = 2000  # facts a transaction while the file is made
ROUNDS = 100  # beacons measured; the median counts
VITALS = (("TTFB", 120.0), ("FCP", 900.0), ("LCP", 1800.0), ("CLS", 0.04), ("INP", 96.0), ("LCP", 2600.0))
CLIENTS = [Client("desktop", "Chrome", str(130 + n), "Windows", "10", 1920, 1080) for n in range(20)]


def make_vital(session_id: str, number: int, client: Client) -> VitalFact:
    """The `number`-th fact of a session, as a vital."""
    metric, value = VITALS[number % len(VITALS)]
    value += number / 8
    page = Page(f"https://shop.test/p/{number % 500}", f"/p/{number % 500}", "Shop")
    visitor = f"visitor-{session_id}" if number % 2 else None
    said = (value, rate(metric, value), value, "navigate", number, page, visitor, client, START + number * 1000, False)
    return VitalFact("shop", "default", session_id, metric, f"v5-{START}-{number:07d}", *said)


def make_event(session_id: str, number: int, client: Client) -> EventFact:
    """The `number`-th fact of a session, as an event: a page view of a campaign, or the end of a session."""
    url = f"https://shop.test/p/{number % 500}?utm_source=news&gclid=g{number % 100}"
    utm = {"source": "mail", "medium": "weekly"} if number % 3 == 0 else None
    context = to_json({"utm": utm, "user": {"userId": "u-1"}}) if utm else None
    name = "session_end" if number % 10 == 9 else "page_view"
    said = (Page(url, f"/p/{number % 500}", "Shop"), None, context, campaign_of(utm, url), click_ids_of(None, url))
    properties = to_json({"activeTime": number % 60})
    who = (f"visitor-{session_id}", client, START + number * 1000, False)
    return EventFact("shop", "default", session_id, f"event-{number:08d}", name, properties, *said, *who)


def facts_of(session_id: str, count: int, client: Client) -> Iterator[Fact]:
    """`count` facts of one session."""
    for number in range(count):
        yield (make_vital if number % 10 < 6 else make_event)(session_id, number, client)


def store(conn: Connection, facts: list[Fact]) -> list[str]:
    """One transaction; the outcome of each fact, `rejected` with its reason."""
    with immediate(conn):
        [recorded] = record(conn, [Recording([*enumerate(facts)], START)])
    return [f"{judged.outcome} {judged.reason or ''}".strip() for judged in recorded.judged]


def fill(conn: Connection, sessions: int, facts: int, large: int) -> None:
    """The sessions s-0, s-1 and so on, one called `large`, and one called `full`."""
    conn.execute("PRAGMA synchronous = OFF")
    sizes = [("large", large), ("full", SESSION_FACTS_MAX), *((f"s-{n}", facts) for n in range(sessions))]
    group: list[Fact] = []
    for number, (session_id, size) in enumerate(sizes):
        group += facts_of(session_id, size, CLIENTS[number % len(CLIENTS)])
        if len(group) >= GROUP:
            store(conn, group)
            group = []
    if group:
        store(conn, group)
    conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def time_beacons(conn: Connection, session_ids: Iterable[str]) -> float:
    """Milliseconds of one more vital, COMMIT included, each in the next of the sessions: the median."""
    taken = []
    for number, session_id in enumerate(session_ids):
        fact = make_vital(session_id, 0, CLIENTS[0])._replace(id=f"more-{time.time_ns()}-{number}")
        started = time.perf_counter()
        [outcome] = store(conn, [fact])
        taken.append((time.perf_counter() - started) * 1000)
        assert outcome == "accepted", outcome
    return median(taken)


def time_verify(database: Path) -> tuple[float, float, int]:
    """Seconds, MiB at most, exit code of `sidecar verify`."""
    started = time.monotonic()
    command = [sys.executable, "-m", "sidecar", "verify", "--database", str(database)]
    code = subprocess.run(command, cwd=Path(__file__).parents[2], check=False).returncode
    taken = time.monotonic() - started
    return taken, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024, code


def report(label: str, value: float, most: float, unit: str) -> bool:
    """One line; whether the bound is kept."""
    print(f"{label:<48}{value:10.2f} {unit} (at most {most:g})", flush=True)
    return value <= most


def main() -> int:
    """Make, measure, say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=100_000)
    parser.add_argument("--facts", type=int, default=10)
    parser.add_argument("--large", type=int, default=5000)
    parser.add_argument("--file", type=Path)
    parser.add_argument("--no-bounds", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        database = given.file or Path(folder) / "verify.db"
        is_new = not database.exists()
        conn = open_database(database)
        if is_new:
            started = time.monotonic()
            fill(conn, given.sessions, given.facts, given.large)
            print(f"made in {time.monotonic() - started:.0f} s")
        count = conn.execute("SELECT (SELECT count(*) FROM web_vitals) + (SELECT count(*) FROM events)").fetchone()[0]
        print(f"{count:,} facts, {database.stat().st_size / 1e6:.0f} MB", flush=True)
        conn.execute("PRAGMA synchronous = FULL")
        large = time_beacons(conn, repeat("large", ROUNDS))
        small = time_beacons(conn, (f"s-{number}" for number in range(min(ROUNDS, given.sessions))))
        kept = [
            report(f"one more vital, session of {given.large}", large, LARGE_MAX_MS, "ms"),
            report(f"one more vital, session of {given.facts}", small, SMALL_MAX_MS, "ms"),
        ]
        more = [make_vital("full", number, CLIENTS[1]) for number in (SESSION_FACTS_MAX, 0)]
        refused, repeated, other = store(conn, [*more, make_vital("new", 0, CLIENTS[0])])
        print(f"the {SESSION_FACTS_MAX + 1:,}st fact: {refused}; a held one: {repeated}; of another session: {other}")
        sound = refused == "rejected session is full" and repeated == "duplicate" and "rejected" not in other
        conn.close()
        seconds, mebibytes, code = time_verify(database)
        kept.append(report("verify", seconds, VERIFY_MAX_S, "s"))
        kept.append(report("verify, memory", mebibytes, MEMORY_MAX_MIB, "MiB"))
        return 0 if sound and code == 0 and (given.no_bounds or all(kept)) else 1


if __name__ == "__main__":
    sys.exit(main())
