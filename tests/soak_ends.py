"""The two ends of the soak: real sidecars that are killed and started again, from this tree or from a faulty copy."""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, NamedTuple

import sidecar
from tests.servers import clean_environment, free_port

PACKAGE = Path(sidecar.__file__).parent
START_MAX_S = 60
COMMAND_MAX_S = 120


class PlantedError(Exception):
    """A fault cannot be planted as it is written down here."""


class Planted(NamedTuple):
    """A text of one file, which must occur once, and what takes its place."""

    file: str
    old: str
    new: str


FAULTS: Mapping[str, Planted] = {
    "confirm-present": Planted(
        "store/outbox.py",
        "UPDATE sessions SET shipped_revision = max(shipped_revision, l.revision), shipped_at = ?3\n",
        "UPDATE sessions SET shipped_revision = sessions.revision, shipped_at = ?3\n",
    ),
    "no-merge": Planted(
        "store/documents.py",
        "        stored = store_facts(conn, document.facts, dated_by_arrival=False)\n",
        "        for table in ('web_vitals', 'events'):\n"
        "            conn.execute(\n"
        '                f"DELETE FROM {table} WHERE session_key IN (SELECT session_key FROM sessions AS s "\n'
        '                "NATURAL JOIN funnels AS f WHERE (f.site, f.funnel_id, s.session_id) = (?, ?, ?))",\n'
        "                document.owner,\n"
        "            )\n"
        "        stored = store_facts(conn, document.facts, dated_by_arrival=False)\n",
    ),
    "key-before-digest": Planted(
        "web/receive.py",
        "        if said is not None and not hmac.compare_digest(said, digest):\n",
        "        if said is not None and not hmac.compare_digest(said, digest):\n"
        "            noted = (headers['idempotency-key'].strip('\"'), said, '{\"success\":true}', now)\n"
        "            self._writer.call(lambda conn: conn.execute(\n"
        "                'INSERT OR IGNORE INTO receipts (idempotency_key, digest, answer, received_at) '\n"
        "                'VALUES (?, ?, ?, ?)', noted).rowcount).result()\n",
    ),
}


def plant(fault: Planted | None, folder: Path) -> Path:
    """A copy of the package, with the fault in it, in `folder`; what goes on the Python path. Raises PlantedError.

    Without a fault it is a copy, too: whoever edits the tree in the meantime changes nothing.
    """
    shutil.copytree(PACKAGE, folder / "sidecar", ignore=shutil.ignore_patterns("__pycache__", "node_modules"))
    beside = PACKAGE.parent / "schema.sql"
    if beside.exists():
        shutil.copy(beside, folder)
    if fault is None:
        return folder
    path = folder / "sidecar" / fault.file
    text = path.read_text(encoding="utf-8")
    if text.count(fault.old) != 1:
        raise PlantedError(f"{fault.file} holds this {text.count(fault.old)} times, not once:\n{fault.old}")
    path.write_text(text.replace(fault.old, fault.new), encoding="utf-8")
    return folder


class Ended(NamedTuple):
    """How a command ended: its exit code (negative: the signal), stdout, stderr."""

    code: int
    out: str
    said: str


class Nursery:
    """Starts sidecars from the package in `tree`. Raises PlantedError where another one is imported."""

    def __init__(self, tree: Path, folder: Path) -> None:
        self.folder = folder
        self._count = itertools.count(1)
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).with_name("soak_nursery.py"))],  # -P: not from beside the script
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env=clean_environment() | {"PYTHONPATH": str(tree)},
        )
        found = self._read()["package"]
        if Path(found) != tree / "sidecar" / "__init__.py":
            raise PlantedError(f"{found} is imported, not the package in {tree}")

    def close(self) -> None:
        """End it, and what it started."""
        self._process.communicate(timeout=30)

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def _ask(self, **said: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        with self._lock:
            self._process.stdin.write(json.dumps(said) + "\n")
            self._process.stdin.flush()
            return self._read()

    def start(self, arguments: Sequence[str], environment: Mapping[str, str], out: Path, log: Path) -> int:
        """Start a command; its process id, which stays its own until `poll` has given its end."""
        said = {"start": list(arguments), "environment": dict(environment), "folder": str(self.folder)}
        return int(self._ask(**said, out=str(out), log=str(log))["pid"])

    def poll(self, pid: int) -> int | None:
        """The exit code; None while it runs."""
        code: int | None = self._ask(poll=pid)["code"]
        return code

    def wait(self, pid: int, most_s: float) -> int:
        """Until the end; SIGKILL where that takes longer."""
        deadline = time.monotonic() + most_s
        while (code := self.poll(pid)) is None:
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
                deadline = math.inf
            time.sleep(0.01)
        return code

    def run(self, arguments: Sequence[str], environment: Mapping[str, str], alive_s: float) -> Ended:
        """Run a command to its end, or kill it after `alive_s`."""
        out = self.folder / f"{arguments[0]}-{next(self._count):04d}.out"
        log = out.with_suffix(".err")
        code = self.wait(self.start(arguments, environment, out, log), alive_s)
        ended = Ended(code, out.read_text(), log.read_text(errors="replace"))
        out.unlink()
        log.unlink()
        return ended


class End:
    """One sidecar on a file of its own and on one port. Settings are given without their prefix."""

    def __init__(self, name: str, nursery: Nursery, **settings: str) -> None:
        self.name = name
        self.database = nursery.folder / f"{name}.db"
        self.log = nursery.folder / f"{name}.log"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.kills = 0
        self._nursery = nursery
        self._environment = clean_environment(
            DATABASE=str(self.database), PORT=str(self.port), SITE="soak", SESSION_TIMEOUT="1", **settings
        )
        self._pid = 0

    def start(self) -> None:
        """Start the server and wait until it answers. Raises RuntimeError where it does not."""
        self.start_unready()
        deadline = time.monotonic() + START_MAX_S
        while not self._answers():
            if self._nursery.poll(self._pid) is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the {self.name} did not start: {self.log.read_text()[-2000:]}")
            time.sleep(0.02)

    def start_unready(self) -> None:
        """Start the server and wait for nothing."""
        self._pid = self._nursery.start(["serve"], self._environment, self.log, self.log)

    def _answers(self) -> bool:
        with closing(HTTPConnection("127.0.0.1", self.port, timeout=10)) as connection:
            try:
                connection.request("GET", "/healthz")
                return connection.getresponse().status == 200
            except OSError:
                return False

    def kill(self) -> None:
        """SIGKILL, and wait for the end. Raises RuntimeError where it ended by itself before."""
        if self._nursery.poll(self._pid) is not None:
            raise RuntimeError(f"the {self.name} ended by itself: {self.log.read_text()[-2000:]}")
        os.kill(self._pid, signal.SIGKILL)
        self._nursery.wait(self._pid, START_MAX_S)
        self._pid = 0
        self.kills += 1

    def stop(self) -> None:
        """SIGTERM, and wait for the end."""
        if self._pid and self._nursery.poll(self._pid) is None:
            os.kill(self._pid, signal.SIGTERM)
            self._nursery.wait(self._pid, START_MAX_S)

    def command(self, *arguments: str, alive_s: float = COMMAND_MAX_S) -> Ended:
        """Run a command beside the server; it is killed after `alive_s`."""
        return self._nursery.run(arguments, self._environment, alive_s)

    def shipping(self) -> dict[str, Any]:
        """What /api/shipping says."""
        with closing(HTTPConnection("127.0.0.1", self.port, timeout=30)) as connection:
            connection.request("GET", "/api/shipping")
            answer: dict[str, Any] = json.loads(connection.getresponse().read())
        return answer

    def export(self) -> list[dict[str, Any]]:
        """The lines of `export`, but for whether they are finished: that depends on the clock."""
        done = self.command("export")
        assert done.code == 0, done.said
        lines = [json.loads(line) for line in done.out.split("\n") if line]
        return [{name: value for name, value in line.items() if name != "finished"} for line in lines]

    def findings(self) -> list[str]:
        """What `verify` finds."""
        done = self.command("verify")
        return [] if done.code == 0 else [*done.out.splitlines(), done.said[-500:]]

    def tracebacks(self) -> int:
        """How many exceptions stand in its log."""
        return self.log.read_text(errors="replace").count("Traceback (most recent call last)")


class Killer(threading.Thread):
    """Kills an end again and again, 1 to 4 seconds after it answers, and starts it; now and then twice in a row."""

    def __init__(self, end: End, dice: random.Random, over: threading.Event) -> None:
        super().__init__(name=f"killer of the {end.name}")
        self._end = end
        self._dice = dice
        self._over = over

    def run(self) -> None:
        """Until it is over; the end is running then."""
        while not self._over.wait(self._dice.uniform(1, 4)):
            self._end.kill()
            self._over.wait(self._dice.uniform(0, 0.4))
            if self._dice.random() < 0.15:  # while it starts: recovery of the WAL
                self._end.start_unready()
                time.sleep(self._dice.uniform(0.05, 0.4))
                self._end.kill()
            self._end.start()


class Hand(threading.Thread):
    """Somebody who types `sidecar ship` beside the server, which does not heed the waits, and breaks off some.

    Without that the soak would rest half its time: the first wait after a failure is 2 s, and each is kept in the file.
    """

    def __init__(self, sender: End, dice: random.Random, over: threading.Event) -> None:
        super().__init__(name="hand")
        self._sender = sender
        self._dice = dice
        self._over = over
        self.passes = 0
        self.killed = 0
        self.crashes: list[str] = []

    def run(self) -> None:
        """Until it is over."""
        while not self._over.wait(self._dice.uniform(0.3, 1.5)):
            alive_s = self._dice.uniform(0.1, 1.5) if self._dice.random() < 0.2 else COMMAND_MAX_S
            done = self._sender.command("ship", alive_s=alive_s)
            self.passes += 1
            if done.code == -signal.SIGKILL:
                self.killed += 1
            elif done.code not in (0, 1) or "Traceback" in done.said:
                self.crashes.append(f"`sidecar ship` ended with {done.code}: {done.said[-1000:]}")
