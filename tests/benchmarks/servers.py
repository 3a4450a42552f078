"""The servers under load, each a process of its own that ends with its context manager."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlite3
else:
    from sqlite_utils.utils import sqlite3  # the module the sidecar uses: its version reads what that version wrote

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
START_MAX_S = 30.0
STOP_MAX_S = 20.0
SETTLE_MAX_S = 60.0


class BenchmarkError(Exception):
    """The measurement could not be made, or would not mean what the table says."""


@dataclass
class Server:
    """One running server; `database` is `None` for the one that keeps nothing."""

    name: str
    port: int
    process: "subprocess.Popen[bytes]"
    log: Path
    database: Path | None

    def failure(self, what: str) -> BenchmarkError:
        """An error that ends with the last lines the server wrote."""
        tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
        return BenchmarkError(f"{self.name}: {what}" + (f"\n{tail}" if tail else ""))

    def memory_kib(self) -> tuple[int, int]:
        """Resident memory now and at its highest, in KiB."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        return int(fields["VmRSS"].split()[0]), int(fields["VmHWM"].split()[0])

    def cpu_ns(self) -> int:
        """CPU time its threads have had so far, in ns (threads that ended are not counted)."""
        total = 0
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            try:
                total += int((task / "schedstat").read_text().split()[0])
            except OSError:  # the thread ended between the listing and the reading
                continue
        return total

    def settle(self) -> None:
        """Wait until it rests (under 1 % of a core for 0.3 s), so what one run leaves behind is not in the next."""
        deadline = time.monotonic() + SETTLE_MAX_S
        before = self.cpu_ns()
        while time.monotonic() < deadline:
            time.sleep(0.3)
            after = self.cpu_ns()
            if abs(after - before) < 3_000_000:
                return
            before = after
        raise self.failure(f"still busy {SETTLE_MAX_S:.0f} s after the load ended")

    def vitals_count(self) -> int:
        """How many vitals its file holds, read beside the running server."""
        if self.database is None:
            return 0
        with closing(sqlite3.connect(f"{self.database.as_uri()}?mode=ro", uri=True, timeout=30)) as conn:
            return int(conn.execute("SELECT count(*) FROM web_vitals").fetchone()[0])

    def stop(self) -> None:
        """End the process by its own id: politely, then not."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_MAX_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()

    def file_bytes(self) -> int:
        """Size of the stopped server's file after a checkpoint, and of what may be left of its WAL."""
        if self.database is None:
            return 0
        with closing(sqlite3.connect(self.database, timeout=30)) as conn:
            conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        wal = self.database.with_name(self.database.name + "-wal")
        return self.database.stat().st_size + (wal.stat().st_size if wal.exists() else 0)


def sqlite_version() -> str:
    """The version of the SQLite library that the servers run."""
    return str(sqlite3.sqlite_version)


def free_port() -> int:
    """A TCP port on the loopback address that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def uvicorn_command(module: str, port: int) -> list[str]:
    """The command of a baseline: the event loop and parser of the sidecar, nothing else between socket and route."""
    return [
        *(sys.executable, "-m", "uvicorn", "--app-dir", str(HERE), f"{module}:app"),
        *("--host", "127.0.0.1", "--port", str(port), "--workers", "1", "--loop", "uvloop", "--http", "httptools"),
        *("--no-access-log", "--no-proxy-headers", "--log-level", "warning"),
    ]


def answers(url: str) -> bool:
    """Whether the URL can be reached: 200, or for a baseline (which has only the one route) 404."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 (always http://127.0.0.1)
            return bool(answer.status == 200)
    except urllib.error.HTTPError as error:
        return error.code == 404 and not url.endswith("/healthz")
    except OSError:
        return False


@contextmanager
def running(kind: str, folder: Path, **settings: str) -> Iterator[Server]:
    """Start the server of a kind (`a`, `b`, `c`, `k`), log and file in `folder`; yield it once it answers; end it.

    `settings` are of the sidecar (`b`), without their prefix.
    """
    port = free_port()
    database = folder / f"{kind}.db"
    env = {name: value for name, value in os.environ.items() if not name.startswith("SIDECAR_")}
    if kind == "b":
        name, path = "sidecar", "/healthz"
        command = [sys.executable, "-m", "sidecar", "serve", "--port", str(port), "--database", str(database)]
        env |= {"SIDECAR_HOST": "127.0.0.1", "SIDECAR_DURABILITY": "full"}
        env |= {f"SIDECAR_{setting}": value for setting, value in settings.items()}
    else:
        name, path = {"a": "noop", "k": "noop", "c": "lookinsert"}[kind], "/"
        command = uvicorn_command(f"baseline_{name}", port)
        env |= {"LOOKINSERT_DATABASE": str(database)}
    log = folder / f"{kind}.log"
    with log.open("wb") as output:
        # a session of its own: Ctrl-C in the terminal reaches this script alone, which then ends the servers
        process = subprocess.Popen(
            command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    server = Server(name, port, process, log, database if kind in "bc" else None)
    try:
        deadline = time.monotonic() + START_MAX_S
        while not answers(f"http://127.0.0.1:{port}{path}"):
            if process.poll() is not None:
                raise server.failure(f"did not start (exit {process.returncode})")
            if time.monotonic() > deadline:
                raise server.failure(f"did not answer within {START_MAX_S:.0f} s")
            time.sleep(0.05)
        yield server
    finally:
        server.stop()
