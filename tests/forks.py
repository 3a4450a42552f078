"""Commands of the sidecar as processes of their own, forked from one that has everything imported already.

`python -m sidecar serve` takes 0.9 s to start, a fork 0.1: the tests start hundreds. The child runs the real command
line, on a clean environment. What a test may ask of it beside that is what no test can do from outside: to end
without order (`os._exit`) at the n-th statement of its writing connection, to have another clock, or a full disk.

Run as a program (`Forks` does) this module takes one JSON object a line and answers with one.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, NamedTuple

import httpx2

ROOT = Path(__file__).parents[1]
CHROME = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.0.0 Safari/537.36"
CRASHED = 9  # exit code of a process that ended itself
START_MAX_S = 60  # a start on a busy machine
END_MAX_S = 120


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def clean_environment(**settings: str) -> dict[str, str]:
    """The environment without settings of ours, and then with these."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SIDECAR_")}
    return kept | {f"SIDECAR_{name}": value for name, value in settings.items()}


class Ended(NamedTuple):
    """How a process ended: its exit code (negative: the signal) and what it said."""

    code: int
    out: str
    log: str


class Fork:
    """One process; `out` and `err` hold what it says."""

    def __init__(self, forks: Forks, pid: int, out: Path, err: Path) -> None:
        self._forks = forks
        self._code: int | None = None
        self.pid = pid
        self.out = out
        self.err = err

    @property
    def code(self) -> int | None:
        """Its exit code; None while it runs."""
        if self._code is None:
            self._code = self._forks.ask(poll=self.pid)["code"]
        return self._code

    def wait(self) -> Ended:
        """Until it has ended, END_MAX_S at most."""
        code = self.wait_code()
        return Ended(code, self.out.read_text(), self.log())

    def wait_code(self) -> int:
        """Its exit code once it has ended, after END_MAX_S at most."""
        deadline = time.monotonic() + END_MAX_S
        while (code := self.code) is None:
            if time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"did not end: {self.log()}")
            time.sleep(0.02)
        return code

    def log(self) -> str:
        """What it wrote to stderr."""
        return self.err.read_text()

    def signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.code is None:
            os.kill(self.pid, number)  # nobody has waited for it yet, so the number is still its own

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self.signal(signal.SIGKILL)
        while self.code is None:
            time.sleep(0.02)

    def fill_disk(self, bytes_max: int | None) -> None:
        """Let no file of it grow over so many bytes (None: any); writes fail then as they do on a full disk."""
        most = resource.RLIM_INFINITY if bytes_max is None else bytes_max
        resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))


class Forks:
    """The process that forks. `folder` takes what its children say."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0
        self._lock = threading.Lock()
        command = [sys.executable, "-m", "tests.forks"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=clean_environment()
        )

    def __enter__(self) -> Forks:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End it, and its children with it."""
        self._process.communicate(timeout=30)  # the end of its input is its end

    def ask(self, **said: Any) -> dict[str, Any]:
        """One question and its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(json.dumps(said) + "\n")
            self._process.stdin.flush()
            answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def start(
        self,
        *arguments: str,
        settings: Mapping[str, str],
        crash_at: int = 0,
        crash_from: str = "",
        clock_ms: int = 0,
        variables: Mapping[str, str] | None = None,
        stdin: Path | None = None,
        log: Path | None = None,
    ) -> Fork:
        """Start a command. `settings` are without their prefix, `variables` other ones of the environment.

        It reads `stdin`; all that it says goes to the end of `log`, else to files of its own. `crash_at`: it ends
        itself before the n-th statement that its writing connection runs, counted from the first one that begins with
        `crash_from`. `clock_ms`: its clock is ahead by so much.
        """
        self._count += 1
        own = self._folder / f"{self._count:04d}-{arguments[0]}.out"
        out, err = (log, log) if log else (own, own.with_suffix(".err"))
        for path in (out, err):
            path.touch()
        asked: dict[str, Any] = {"start": [*map(os.fsdecode, arguments)], "folder": str(Path.cwd())}
        asked |= {"stdin": str(stdin or os.devnull), "out": str(out), "err": str(err)}
        asked |= {"environment": clean_environment(**settings) | dict(variables or {})}
        said = self.ask(**asked, crash_at=crash_at, crash_from=crash_from, clock_ms=clock_ms)
        return Fork(self, said["pid"], out, err)

    def run(self, *arguments: str, **options: Any) -> Ended:
        """Run a command to its end."""
        return self.start(*arguments, **options).wait()


@cache
def shared_forks() -> Forks:
    """The one of this test process, which ends with it."""
    folder = Path(mkdtemp(prefix="forks-"))
    forks = Forks(folder)
    atexit.register(shutil.rmtree, folder)
    atexit.register(forks.close)  # the last registered is the first to run
    return forks


class Serving:
    """`sidecar serve` on a free port, forked. Settings are given without their prefix."""

    def __init__(self, forks: Forks, database: Path, **settings: str) -> None:
        self.database = database
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.settings = {"DATABASE": str(database), "PORT": str(self.port), **settings}
        self._forks = forks
        self._fork: Fork | None = None

    def __enter__(self) -> Serving:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def fork(self) -> Fork:
        """The running process."""
        assert self._fork is not None, "not started"
        return self._fork

    def start(self, **options: Any) -> None:
        """Start, also after an end, and wait until it answers. `options` as for `Forks.start`."""
        self._fork = self._forks.start("serve", settings=self.settings, **options)
        deadline = time.monotonic() + START_MAX_S
        while True:
            try:
                if self.get("/healthz").status_code == 200:
                    return
            except httpx2.TransportError:
                time.sleep(0.03)
            if self._fork.code is not None or time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"the sidecar did not start: {self._fork.log()[-2000:]}")

    def get(self, path: str) -> httpx2.Response:
        """One request."""
        return httpx2.get(self.url + path, verify=False, timeout=10)

    def client(self) -> httpx2.Client:
        """An HTTP client that looks like a browser."""
        return httpx2.Client(headers={"User-Agent": CHROME}, verify=False, timeout=10)

    def kill(self) -> None:
        """SIGKILL, if it runs."""
        if self._fork is not None:
            self._fork.kill()

    def stop(self) -> None:
        """SIGTERM, and wait for the end."""
        self.fork.signal(signal.SIGTERM)
        self.fork.wait_code()


# --- the process that forks ------------------------------------------------------------------------------------------


def _become(said: dict[str, Any]) -> None:
    """What a child does; it never returns."""
    from sidecar.__main__ import main
    from sidecar.store.database import Connection

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: nobody outlives the process that forks
    for number, path in ((1, said["out"]), (2, said["err"])):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), number)
    os.dup2(os.open(said["stdin"], os.O_RDONLY), 0)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - the parent's has read on
    os.chdir(said["folder"])
    os.environ.clear()
    os.environ.update(said["environment"])
    sys.argv = ["sidecar", *said["start"]]
    left, begin = said["crash_at"], said["crash_from"]
    app: Any = importlib.import_module("sidecar.app")
    open_database, now_ms = app.open_database, app.now_ms

    def count(statement: str) -> None:
        nonlocal left, begin
        if statement.startswith("--") or not statement.lstrip().startswith(begin):
            return  # what a trigger runs is part of the statement that fired it
        begin = ""
        left -= 1
        if left == 0:
            os._exit(CRASHED)

    def open_counted(path: Path, *, durability: str) -> Connection:
        conn: Connection = open_database(path, durability=durability)
        conn.set_trace_callback(count)
        return conn

    if said["crash_at"]:
        app.open_database = open_counted
    if said["clock_ms"]:
        app.now_ms = lambda: now_ms() + int(said["clock_ms"])
    code = 1
    try:
        main()
    except SystemExit as end:
        if isinstance(end.code, str):
            sys.stderr.write(end.code + "\n")
        else:
            code = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _fork_on_demand() -> None:
    import uvicorn.protocols.http.httptools_impl  # noqa: F401 - what each child would import
    import uvloop  # noqa: F401 - as above

    import sidecar.__main__
    import sidecar.app
    import sidecar.ship.sinks.http  # noqa: F401 - as above
    from sidecar.ingest.client import read_user_agent

    read_user_agent(CHROME)  # the patterns it takes are made but once
    gc.freeze()  # so that no child looks through all that, and copies its pages by doing so
    children: dict[int, int | None] = {}  # with their exit codes: several threads of a test may ask for one
    for line in sys.stdin:
        said = json.loads(line)
        if "poll" in said:
            pid = said["poll"]
            if children[pid] is None:
                ended, status = os.waitpid(pid, os.WNOHANG)
                children[pid] = os.waitstatus_to_exitcode(status) if ended else None
            answer = {"code": children[pid]}
        else:
            pid = os.fork()
            if pid == 0:
                _become(said)
            children[pid] = None
            answer = {"pid": pid}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    for pid, code in children.items():
        if code is None:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


if __name__ == "__main__":
    _fork_on_demand()
