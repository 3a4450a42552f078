"""How long a million old facts take to prune, and how long beacons wait meanwhile.

    python tests/benchmarks/prune.py [--sessions 100000] [--facts 10] [--keep 0] [--rate 100] [--file FILE]

Makes a file of `--sessions` sessions with `--facts` facts each that ended 200 days ago, beside `--keep` sessions of
today, or copies FILE, made by an earlier run. Then, on a copy of it each, with beacons of new sessions at `--rate` a
second:

- nothing is pruned: what beacons take on this file and machine
- the server prunes by itself, as it does after its start
- `sidecar prune` does, as a process beside a server that keeps sessions for ever

Prints for each what the pass took and beacons' times from sending to the answer. Exit 1 where a beacon was not
answered 200 or the pruned file does not verify.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
import threading
import time
from contextlib import closing
from pathlib import Path

import httpx2

from sidecar.store.database import open_database, open_read_only
from tests.benchmarks import verify
from tests.servers import Server, sidecar, vital

DAY_MS = 86_400_000
OLD_DAYS = 200
WAIT_MAX_S = 300.0
QUIET_S = 8.0


class Load:
    """Beacons at a rate, each of a session of its own; times in ms."""

    def __init__(self, server: Server, rate: float) -> None:
        self._server = server
        self._rate = rate
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._send)
        self.times: list[float] = []
        self.refused = 0

    def _send(self) -> None:
        with self._server.client() as client:
            due = time.perf_counter()
            while not self._stop.is_set():
                body = json.dumps(vital(f"live-{len(self.times)}", anonymousId=f"visitor-{len(self.times)}"))
                try:
                    status = client.post("/api/track/web-vitals", content=body).status_code
                except httpx2.TransportError:
                    status = 0
                # From when it was due: what waits behind a slow one waits, too.
                self.times.append((time.perf_counter() - due) * 1000)
                self.refused += status != 200
                due += 1 / self._rate
                time.sleep(max(0.0, due - time.perf_counter()))

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def make(path: Path, sessions: int, facts: int, keep: int) -> None:
    """The file."""
    with closing(open_database(path)) as conn:
        now = int(time.time() * 1000)
        verify.START = now - OLD_DAYS * DAY_MS
        verify.fill(conn, sessions, facts, facts)
        if keep:
            verify.START = now - facts * 1000
            conn.execute("PRAGMA synchronous = OFF")
            for first in range(0, keep, 200):
                numbers = range(first, min(first + 200, keep))
                client = verify.CLIENTS[0]
                verify.store(conn, [fact for n in numbers for fact in verify.facts_of(f"kept-{n}", facts, client)])


def count_old(path: Path) -> int:
    """Sessions that should go."""
    with closing(open_read_only(path)) as conn:
        sql = "SELECT count(*) FROM sessions WHERE session_id NOT LIKE 'kept-%' AND session_id NOT LIKE 'live-%'"
        return int(conn.execute(sql).fetchone()[0])


def say(label: str, took_s: float | None, load: Load) -> bool:
    """One row."""
    times = sorted(load.times)
    took = "" if took_s is None else f"{took_s:.1f}"
    shares = [times[min(len(times) - 1, int(len(times) * share))] for share in (0.5, 0.99)]
    cells = [label, took, str(len(times)), *(f"{one:.1f}" for one in (*shares, times[-1])), str(load.refused)]
    print("| " + " | ".join(cells) + " |", flush=True)
    return not load.refused


def measure(file: Path, folder: Path, case: str, rate: float) -> bool:
    """One case on a copy of the file."""
    database = folder / f"{case}.db"
    shutil.copy(file, database)
    days = "90" if case == "server" else "0"
    with Server(database, RETENTION_DAYS=days) as server, Load(server, rate) as load:
        took: float | None = None
        if case == "nothing":
            time.sleep(QUIET_S)
        elif case == "command":
            started = time.monotonic()
            done = sidecar("prune", DATABASE=str(database), RETENTION_DAYS="90")
            took = time.monotonic() - started
            if done.returncode:
                raise SystemExit(done.stderr.decode())
            print(done.stdout.decode().splitlines()[-1])
        else:
            deadline = time.monotonic() + WAIT_MAX_S
            while not (found := re.search(r"took_s\D*=\D*?([0-9.]+)", server.log.read_text())):
                if time.monotonic() > deadline:
                    raise SystemExit("the server did not prune")
                time.sleep(0.2)
            took = float(found.group(1))
            print(next(line for line in server.log.read_text().splitlines() if "longest_step_s" in line))
    sound = say(case, took, load)
    if case != "nothing":
        left = count_old(database)
        checked = sidecar("verify", DATABASE=str(database))
        if left or checked.returncode:
            print(f"{left} old sessions are left; {checked.stdout.decode()}{checked.stderr.decode()}")
            sound = False
    database.unlink()
    return sound


def main() -> int:
    """Make, measure, say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=100_000)
    parser.add_argument("--facts", type=int, default=10)
    parser.add_argument("--keep", type=int, default=0)
    parser.add_argument("--rate", type=float, default=100)
    parser.add_argument("--file", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = given.file or Path(folder) / "made.db"
        if not file.exists():
            make(file, given.sessions, given.facts, given.keep)
        print(f"{file.stat().st_size / 1e6:.0f} MB, {count_old(file):,} old sessions, {given.rate:g} beacons a second")
        print("| | pass, s | beacons | p50, ms | p99, ms | longest, ms | not answered 200 |")
        print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
        sound = [measure(file, Path(folder), case, given.rate) for case in ("nothing", "server", "command")]
        return 0 if all(sound) else 1


if __name__ == "__main__":
    sys.exit(main())
