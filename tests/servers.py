"""The real sidecar as a process of its own, for tests that need sockets, signals or a kill."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx2

CHROME = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.0.0 Safari/537.36"
START_MAX_S = 60  # a start on a busy machine


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def clean_environment(**settings: str) -> dict[str, str]:
    """The environment without settings of ours, and then with these."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SIDECAR_")}
    return kept | {f"SIDECAR_{name}": value for name, value in settings.items()}


def sidecar(*arguments: str, stdin: bytes | None = None, **settings: Any) -> subprocess.CompletedProcess[bytes]:
    """Run a command of the sidecar to its end."""
    return subprocess.run(
        [sys.executable, "-m", "sidecar", *arguments],
        input=stdin,
        capture_output=True,
        env=clean_environment(**settings),
        timeout=120,
        check=False,
    )


class Server:
    """`sidecar serve` on a free port. Settings are given without their prefix."""

    def __init__(self, database: Path, **settings: str) -> None:
        self.database = database
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = database.with_suffix(".log")
        self._environment = clean_environment(DATABASE=str(database), PORT=str(self.port), **settings)
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "sidecar", "serve"], stdout=log, stderr=log, env=self._environment
            )
        deadline = time.monotonic() + START_MAX_S
        while True:
            try:
                if httpx2.get(f"{self.url}/healthz").status_code == 200:
                    return process
            except httpx2.TransportError:
                time.sleep(0.05)
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                process.wait()
                raise AssertionError(f"the sidecar did not start: {self.log.read_text()[-2000:]}")

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self.process.kill()
        self.process.wait(timeout=30)

    def set(self, **settings: str) -> None:
        """Other settings, from the next start on."""
        self._environment |= {f"SIDECAR_{name}": value for name, value in settings.items()}

    def restart(self) -> None:
        """Start again on the same file and port."""
        self.process = self._start()

    def stop(self) -> None:
        """SIGTERM, and wait for the end."""
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(timeout=30)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.stop()

    def client(self) -> httpx2.Client:
        """An HTTP client that looks like a browser."""
        return httpx2.Client(base_url=self.url, headers={"User-Agent": CHROME}, timeout=30)


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
