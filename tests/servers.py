"""The real sidecar as a process of its own, for tests that need sockets, signals or a kill."""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import httpx2

from tests.forks import CHROME as CHROME
from tests.forks import Serving, shared_forks
from tests.forks import clean_environment as clean_environment
from tests.forks import free_port as free_port


class Done(NamedTuple):
    """How a command ended: its exit code and what it said."""

    returncode: int
    stdout: bytes
    stderr: bytes


def sidecar(*arguments: str, stdin: bytes | None = None, **settings: str) -> Done:
    """Run a command of the sidecar to its end."""
    with TemporaryDirectory(prefix="stdin-") as folder:
        given = None
        if stdin is not None:
            given = Path(folder) / "stdin"
            given.write_bytes(stdin)
        fork = shared_forks().start(*arguments, settings=settings, stdin=given)
        return Done(fork.wait_code(), fork.out.read_bytes(), fork.err.read_bytes())


class Server(Serving):
    """`sidecar serve`, started at once, with one log; its end is in order. Settings are given without their prefix."""

    def __init__(self, database: Path, **settings: str) -> None:
        super().__init__(shared_forks(), database, **settings)
        self.log = database.with_suffix(".log")
        self.restart()

    def set(self, **settings: str) -> None:
        """Other settings, from the next start on."""
        self.settings |= settings

    def restart(self) -> None:
        """Start again on the same file and port."""
        self.start(log=self.log)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def client(self) -> httpx2.Client:
        """An HTTP client that looks like a browser."""
        return httpx2.Client(base_url=self.url, headers={"User-Agent": CHROME}, timeout=30, verify=False)


def vital(session: str, metric: str = "LCP", value: float = 1200, /, **fields: Any) -> dict[str, object]:
    """A web vital as a browser sends it."""
    return {
        "sessionId": session,
        "metric": metric,
        "value": value,
        "id": f"v6-{metric}-{session}",
        "timestamp": int(time.time() * 1000),
        "pageUrl": "https://shop.example/a",
        **fields,
    }


def event(session: str, name: str = "page_view", /, **fields: Any) -> dict[str, object]:
    """An event as a browser sends it."""
    return {
        "eventId": f"{name}-{session}",
        "eventName": name,
        "timestamp": int(time.time() * 1000),
        "context": {"session": {"sessionId": session}, "page": {"url": "https://shop.example/a", "path": "/a"}},
        **fields,
    }
