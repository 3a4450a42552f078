"""How fast beacons become durable: the sidecar beside a route that does nothing and beside look-then-insert.

    python tests/benchmarks/ingest.py [--pairs 11] [--seconds 2] [--connections 64] [--total 500000]

Three servers run at the same time, and in every round each is loaded once by wrk for some seconds while the others
rest. The order rotates from round to round, and ratios are taken within a round, because machines have fast and slow
phases. Every beacon carries one vital.

(a) `baseline_noop.py`: a Starlette route that reads the body, on the same uvicorn
(b) `python -m sidecar serve`, durability `full`
(c) `baseline_lookinsert.py`: look, create, insert, re-average, COMMIT, in the thread pool
(k) as (a) with one constant body, only where asked for: what making up the bodies costs the measurement

After every run of (b) and (c) the vitals in the file are counted: what was answered 200 must be there, and no more
than what the end of the run cut off. Memory and file are measured after `--total` vitals. Exit 0; 1 where a bound is
missed or a run was not sound; 2 where wrk is missing or the usage is wrong.
"""

import argparse
import os
import platform
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[2]))  # it is run by its path, too

from tests.benchmarks.servers import BenchmarkError, Server, running, sqlite_version
from tests.benchmarks.wrk_load import Load, Run

RATIO_MIN = 0.40
MEMORY_MAX_MIB = 120.0
FILE_MAX_BYTES = 170.0
TOTAL_MAX_S = 420.0
TITLES = {
    "a": "(a) no-op route",
    "b": "(b) sidecar, FULL",
    "c": "(c) look-then-insert",
    "k": "(k) no-op, one constant body",
}


@dataclass
class Contender:
    """One server and what it did: a `Run` a round, and in the end memory in KiB and file size in bytes."""

    kind: str
    server: Server
    runs: list[Run] = field(default_factory=list)
    failed: int = 0
    stored: int = 0
    memory_kib: tuple[int, int] = (0, 0)
    file_bytes: int = 0

    def load(self, load: Load, seconds: int) -> Run:
        """Load it once, let it come to rest, and hold it to what it answered."""
        run = load.run(self.server, seconds, constant=self.kind == "k")
        self.server.settle()
        self.failed += run.failed
        if run.socket_errors:
            raise self.server.failure(f"{run.socket_errors} socket errors")
        if run.failed and self.kind != "c":  # (c) loses beacons by its nature; the table says how many
            raise self.server.failure(f"{run.failed} of {run.requests} beacons were refused")
        if self.server.database is not None:
            before, self.stored = self.stored, self.server.vitals_count()
            answered, stored = run.requests - run.failed, self.stored - before
            if not answered <= stored <= answered + load.connections:
                raise self.server.failure(f"answered 200 to {answered} beacons and stored {stored}")
        return run


@dataclass(frozen=True)
class Bound:
    """One figure of the sidecar and what it must keep to; `least` says on which side."""

    name: str
    figure: float
    limit: float
    least: bool = False

    @property
    def kept(self) -> bool:
        """Whether the figure is within the limit, which is itself allowed."""
        return self.figure >= self.limit if self.least else self.figure <= self.limit

    def __str__(self) -> str:
        sign = "at least" if self.least else "at most"
        return f"{self.name}: {self.figure:.2f} ({sign} {self.limit:g})"


def spread(figures: Iterable[float], form: str) -> str:
    """`median (least-greatest)`, each in the given format."""
    figures = list(figures)
    return f"{median(figures):{form}} ({min(figures):{form}}-{max(figures):{form}})"


def ratios(one: Contender, other: Contender) -> list[float]:
    """Requests a second of one to those of the other, round by round."""
    return [mine.rate / theirs.rate for mine, theirs in zip(one.runs, other.runs, strict=True)]


def measure(contenders: list[Contender], load: Load, args: argparse.Namespace) -> None:
    """Run the rounds, then load the sidecar up to the total, then stop everything and weigh it."""
    if not args.quick:
        for contender in contenders:
            contender.load(load, 1)  # not counted: first requests pay for caches and the first pages of the file
    for number in range(args.pairs):
        turn = number % len(contenders)
        for contender in contenders[turn:] + contenders[:turn]:
            contender.runs.append(contender.load(load, args.seconds))
        rates = ", ".join(f"{contender.kind} {contender.runs[-1].rate:,.0f}/s" for contender in contenders)
        print(f"round {number + 1} of {args.pairs}: {rates}", file=sys.stderr, flush=True)
    for contender in contenders:
        if contender.kind == "b":
            deadline = time.monotonic() + TOTAL_MAX_S
            while contender.stored < args.total and time.monotonic() < deadline:
                contender.load(load, 5)
                print(f"{contender.stored:,} of {args.total:,} vitals", file=sys.stderr, flush=True)
        contender.memory_kib = contender.server.memory_kib()
        contender.server.stop()
        contender.file_bytes = contender.server.file_bytes()


def table(contenders: list[Contender]) -> str:
    """The figures as a Markdown table, a column a server."""
    by_kind = {contender.kind: contender for contender in contenders}

    def ratio_to(kind: str) -> Callable[[Contender], str]:
        def cell(contender: Contender) -> str:
            other = by_kind[kind]
            return "1" if contender is other else spread(ratios(contender, other), ".2f")

        return cell

    def bytes_a_vital(contender: Contender) -> str:
        return f"{contender.file_bytes / contender.stored:.0f}" if contender.stored else "-"

    rows: list[tuple[str, Callable[[Contender], str]]] = [
        ("beacons a second", lambda one: spread((run.rate for run in one.runs), ",.0f")),
        *((f"ratio to ({kind})", ratio_to(kind)) for kind in ("a", "c") if kind in by_kind and len(by_kind) > 1),
        ("p50, ms", lambda one: f"{median(run.p50_us for run in one.runs) / 1000:.1f}"),
        ("p99, ms", lambda one: f"{median(run.p99_us for run in one.runs) / 1000:.1f}"),
        ("beacons lost (5xx)", lambda one: f"{one.failed:,}"),
        ("vitals stored", lambda one: f"{one.stored:,}" if one.stored else "-"),
        ("memory, MiB (highest)", lambda one: f"{one.memory_kib[0] / 1024:.0f} ({one.memory_kib[1] / 1024:.0f})"),
        ("file, bytes a vital", bytes_a_vital),
    ]
    lines = ["| | " + " | ".join(TITLES[contender.kind] for contender in contenders) + " |"]
    lines.append("| --- |" + " ---: |" * len(contenders))
    lines += [f"| {name} | " + " | ".join(cell(one) for one in contenders) + " |" for name, cell in rows]
    return "\n".join(lines)


def bounds(contenders: list[Contender]) -> list[Bound]:
    """What the sidecar must keep to, with what it came to; nothing where it did not run."""
    by_kind = {contender.kind: contender for contender in contenders}
    sidecar, noop = by_kind.get("b"), by_kind.get("a")
    if sidecar is None:
        return []
    held = [
        Bound("memory, MiB", sidecar.memory_kib[0] / 1024, MEMORY_MAX_MIB),
        Bound("file, bytes a vital", sidecar.file_bytes / max(sidecar.stored, 1), FILE_MAX_BYTES),
    ]
    if noop is not None:
        held.insert(0, Bound("ratio of (b) to (a)", median(ratios(sidecar, noop)), RATIO_MIN, least=True))
    return held


def file_system(folder: Path) -> str:
    """The type of the file system that holds the folder, as the kernel names it (`ext4`)."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    above = {fields[1]: fields[2] for fields in mounts if folder.is_relative_to(fields[1])}
    return above[max(above, key=len)]


def surroundings(folder: Path, args: argparse.Namespace) -> str:
    """The command, and the machine it ran on."""
    cores = len(os.sched_getaffinity(0))
    return (
        f"`{shlex.join(['python', 'tests/benchmarks/ingest.py', *sys.argv[1:]])}`: {args.pairs} rounds of "
        f"{args.seconds} s, {args.connections} connections, wrk with {args.threads} thread(s); {cores} cores, "
        f"files on {file_system(folder)}, Python {platform.python_version()}, SQLite {sqlite_version()}"
    )


def parse_arguments() -> argparse.Namespace:
    """The options; `--quick` overrides the sizes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pairs", type=int, default=11, help="rounds, in each of which every server has a turn")
    parser.add_argument("--seconds", type=int, default=2, help="length of a turn, whole seconds")
    parser.add_argument("--connections", type=int, default=64, help="open connections, a request at a time on each")
    parser.add_argument("--threads", type=int, default=1, help="threads of wrk")
    parser.add_argument("--total", type=int, default=500_000, help="vitals stored before memory and file are measured")
    parser.add_argument("--only", default="a,b,c", help="which servers, e.g. a,c (k: no-op with one constant body)")
    parser.add_argument("--directory", type=Path, help="where to put the files (default: the system's temporary one)")
    parser.add_argument("--no-bounds", action="store_true", help="print the table and hold nothing to it")
    parser.add_argument("--quick", action="store_true", help="one round of 1 s and no total: does it run at all?")
    args = parser.parse_args()
    args.only = args.only.split(",")
    if not args.only or len(set(args.only)) < len(args.only) or set(args.only) - set(TITLES):
        parser.error("--only: a comma-separated choice of a, b, c, k")
    if args.quick:
        args.pairs, args.seconds, args.total = 1, 1, 0
    if min(args.pairs, args.seconds, args.threads) < 1 or args.connections < args.threads or args.total < 0:
        parser.error("sizes are at least 1, and there are at least as many connections as threads")
    return args


def main() -> int:
    """Measure, print, judge; the exit status."""
    args = parse_arguments()
    if shutil.which("wrk") is None:
        print("wrk is not installed: on Debian, apt-get install wrk", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds, so that the servers end with this script
    try:
        with ExitStack() as stack:
            folder = Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix="sidecar-ingest-", dir=args.directory))
            )
            load = Load(folder, args.connections, args.threads)
            contenders = [Contender(kind, stack.enter_context(running(kind, folder))) for kind in args.only]
            measure(contenders, load, args)
            where = surroundings(folder.resolve(), args)
    except BenchmarkError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(f"{table(contenders)}\n\n{where}")
    reached = [contender.stored for contender in contenders if contender.kind == "b"]
    if reached and reached[0] < args.total:
        print(f"\nonly {reached[0]:,} of {args.total:,} vitals were stored within {TOTAL_MAX_S:.0f} s of loading")
    if "on tmpfs" in where:
        print("\ntmpfs has no disk to wait for: durability costs nothing here; choose another --directory")
    missed = [] if args.no_bounds else [bound for bound in bounds(contenders) if not bound.kept]
    for bound in missed:
        print(f"missed: {bound}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
