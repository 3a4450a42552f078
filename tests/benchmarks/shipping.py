"""How fast finished sessions ship to a second sidecar, and what beacons feel of it meanwhile.

    python tests/benchmarks/shipping.py [--sessions 50000] [--pairs 7] [--seconds 3] [--pause 20] [--no-bounds]

A file of finished sessions (1 event, 4 vitals each) is made, and a sidecar is started on it that ships to a second one
on the same machine, at the default batch size. In every pair of windows wrk sends beacons once while the receiver is
stopped (SIGSTOP: the sender waits for its answer and does nothing), and once while it takes batches; which comes first
alternates. 16 connections each wait `--pause` ms after an answer, so that the load is moderate: at full load a p99 says
only how many share the cores. Then the rest ships without beacons, and both files are counted.

Exit 0; 1 where the p99 of beacons during shipping is more than twice the one without (median over the pairs), but with
`--no-bounds`, or where a count is wrong; 2 where wrk is missing or the usage is wrong.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from statistics import median
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[2]))  # it is run by its path, too

from sidecar.model import Client, EventFact, Fact, Page, VitalFact, rate
from sidecar.store.database import immediate, open_database, open_read_only
from sidecar.store.facts import Recording, record
from tests.benchmarks.servers import BenchmarkError, Server, running
from tests.benchmarks.wrk_load import SCRIPT, Load, Run

RATIO_MAX = 2.0
CONNECTIONS = 16
AGE_MS = 2 * 3_600_000  # of the sessions: longer than SESSION_TIMEOUT
GROUP = 400  # sessions a transaction while the file is made
REST_MAX_S = 1800.0
TOKEN = "benchmark"
VITALS = (("TTFB", 120.0), ("FCP", 900.0), ("LCP", 1800.0), ("CLS", 0.04))
CLIENTS = [Client("desktop", "Chrome", str(130 + n), "Windows", "10", 1920, 1080) for n in range(20)]


class Pair(NamedTuple):
    """Two windows beside each other, and the sessions that were confirmed in a second of the second one."""

    without: Run
    during: Run
    shipped_a_second: float

    @property
    def ratio(self) -> float:
        """Of the p99 during shipping to the one without."""
        return self.during.p99_us / self.without.p99_us


def facts_of(number: int, at: int) -> Iterator[Fact]:
    """One session of five facts."""
    owner = ("shop", "landing", f"0000{number:08x}-0000-4000-8000-{number:012x}")
    visitor = f"{number // 2:08x}-0000-4000-8000-000000000000"
    page = Page(f"https://shop.example/products/{number % 500}", f"/products/{number % 500}", "Product")
    client = CLIENTS[number % len(CLIENTS)]
    yield EventFact(
        *(*owner, f"e-{number:030d}", "page_view", None, page, "https://search.example/", None, None, None),
        *(visitor, client, at, False),
    )
    for place, (metric, typical) in enumerate(VITALS):
        value = typical * (1 + number % 97 / 50)
        rated, told = rate(metric, value), at + 1000 * place
        yield VitalFact(
            *(*owner, metric, f"v6-{at}-{number:013d}", value, rated, value, "navigate", place, page),
            *(visitor, client, told, False),
        )


def make(database: Path, sessions: int) -> None:
    """The file, through the function that stores beacons."""
    at = time.time_ns() // 1_000_000 - AGE_MS
    with closing(open_database(database)) as conn:
        conn.execute("PRAGMA synchronous = OFF")
        for first in range(0, sessions, GROUP):
            numbers = range(first, min(first + GROUP, sessions))
            facts = [fact for number in numbers for fact in facts_of(number, at + number)]
            with immediate(conn):
                record(conn, [Recording([*enumerate(facts)], at)])
        conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def count(server: Server, sql: str) -> int:
    """One number from a server's file, read beside it."""
    assert server.database is not None
    with closing(open_read_only(server.database)) as conn:
        return int(conn.execute(sql).fetchone()[0])


def confirmed(sender: Server) -> int:
    """Sessions that the receiver has confirmed so far."""
    return count(sender, "SELECT count(*) FROM sessions WHERE shipped_revision >= 0")


@contextmanager
def stopped(receiver: Server) -> Iterator[None]:
    """Nothing is received meanwhile."""
    os.kill(receiver.process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(receiver.process.pid, signal.SIGCONT)


def measure(sender: Server, receiver: Server, load: Load, args: argparse.Namespace) -> list[Pair]:
    """All pairs. Raises BenchmarkError where a beacon was refused or a window was not what it should be."""
    pairs: list[Pair] = []

    def without() -> Run:
        with stopped(receiver):
            sender.settle()
            before = confirmed(sender)
            run = load.run(sender, args.seconds)
            if confirmed(sender) != before:
                raise sender.failure("sessions were confirmed while the receiver was stopped")
        return run

    def during() -> tuple[Run, float]:
        time.sleep(0.5)  # the batch that waited is answered, and the next is made
        before, began = confirmed(sender), time.monotonic()
        run = load.run(sender, args.seconds)
        more = confirmed(sender) - before
        if not more and not args.no_bounds:
            raise sender.failure("nothing was shipped in a window: too few sessions, or too short a window")
        return run, more / (time.monotonic() - began)

    load.run(sender, 1)  # not counted: first requests pay for caches
    for number in range(args.pairs):
        if number % 2:
            shipping, shipped = during()
            pairs.append(Pair(without(), shipping, shipped))
        else:
            alone = without()
            pairs.append(Pair(alone, *during()))
        runs = (pairs[-1].without, pairs[-1].during)
        if any(run.failed or run.socket_errors for run in runs):
            raise sender.failure("beacons were refused")
        told = ", ".join(f"p99 {run.p99_us / 1000:.1f} ms at {run.rate:,.0f}/s" for run in runs)
        shipped = pairs[-1].shipped_a_second
        print(f"pair {number + 1} of {args.pairs}: {told}, {shipped:,.0f} sessions/s", file=sys.stderr, flush=True)
    return pairs


def ship_rest(sender: Server, sessions: int) -> float:
    """Sessions a second, without beacons, until all are confirmed; 0 where none was left."""
    before, began = confirmed(sender), time.monotonic()
    done = before
    while done < sessions:
        if time.monotonic() - began > REST_MAX_S:
            raise sender.failure(f"{sessions - done} sessions are not shipped after {REST_MAX_S:.0f} s")
        time.sleep(0.2)
        done = confirmed(sender)
    return (done - before) / (time.monotonic() - began)


def report(pairs: list[Pair], alone: float) -> str:
    """The figures as a Markdown table."""

    def spread(figures: list[float], form: str) -> str:
        return f"{median(figures):{form}} ({min(figures):{form}}-{max(figures):{form}})"

    def row(name: str, runs: list[Run], shipped: str) -> str:
        p50, p99 = ([getattr(run, field) / 1000 for run in runs] for field in ("p50_us", "p99_us"))
        rates = spread([run.rate for run in runs], ",.0f")
        return f"| {name} | {rates} | {spread(p50, '.1f')} | {spread(p99, '.1f')} | {shipped} |"

    rates = spread([pair.shipped_a_second for pair in pairs], ",.0f")
    rest = f"{alone:,.0f}" if alone else "-"
    return "\n".join(
        [
            "| | beacons a second | p50, ms | p99, ms | sessions shipped a second |",
            "| --- | ---: | ---: | ---: | ---: |",
            row("beacons alone", [pair.without for pair in pairs], "-"),
            row("beacons while shipping", [pair.during for pair in pairs], rates),
            f"| shipping alone | - | - | - | {rest} |",
            "",
            f"p99 during shipping to without: {spread([pair.ratio for pair in pairs], '.2f')} (at most {RATIO_MAX:g})",
        ]
    )


def main() -> int:
    """Make, measure, say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=50_000)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--pause", type=int, default=20, help="ms that a connection waits after an answer")
    parser.add_argument("--no-bounds", action="store_true")
    args = parser.parse_args()
    if shutil.which("wrk") is None:
        print("needs wrk: on Debian, apt-get install wrk", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="shipping-") as made:
        folder = Path(made)
        (folder / "upstream").mkdir()
        (folder / "beacons.lua").write_text(f"{SCRIPT}\nfunction delay()\n  return {args.pause}\nend\n")
        make(folder / "b.db", args.sessions)
        print(f"{args.sessions:,} sessions made", file=sys.stderr, flush=True)
        load = Load(folder, CONNECTIONS, 1)
        try:
            with running("b", folder / "upstream", RECEIVE_TOKEN=TOKEN) as receiver:
                upstream = f"http://127.0.0.1:{receiver.port}/api/sessions"
                settings = {"UPSTREAM_URL": upstream, "UPSTREAM_TOKEN": TOKEN, "SITE": "shop"}
                with running("b", folder, **settings) as sender:
                    pairs = measure(sender, receiver, load, args)
                    alone = ship_rest(sender, args.sessions)
                    arrived = count(receiver, "SELECT count(*) FROM sessions")
                    facts = count(receiver, "SELECT (SELECT count(*) FROM web_vitals) + (SELECT count(*) FROM events)")
        except BenchmarkError as error:
            print(error, file=sys.stderr)
            return 1
    print(report(pairs, alone))
    print(f"upstream: {arrived:,} of {args.sessions:,} sessions, {facts:,} of {5 * args.sessions:,} facts")
    whole = arrived == args.sessions and facts == 5 * args.sessions
    return 0 if whole and (args.no_bounds or median(pair.ratio for pair in pairs) <= RATIO_MAX) else 1


if __name__ == "__main__":
    sys.exit(main())
