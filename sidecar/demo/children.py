"""Two sidecars as programs of their own, as in life; they end with the demo, by their own ids."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx2

from sidecar.demo.errors import DemoError

HOST = "127.0.0.1"
USUAL_PORTS = (8787, 8788, 8789)  # sidecar, upstream, shop: the same addresses in every run where they are free
START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 5.0
TAIL_LINES = 15
_PACKAGE_PARENT = Path(__file__).parents[2]
_PROXY_NAMES = {"http_proxy", "https_proxy", "all_proxy"}


def listen(usual: int) -> socket.socket:
    """A listening socket at the usual port, or at any free one."""
    for port in (usual, 0):
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
            listener.listen(128)
        except OSError:
            listener.close()
        else:
            return listener
    raise DemoError(f"no free port at {HOST}")


def url_of(port: int) -> str:
    """The address of what listens there, without a final slash."""
    return f"http://{HOST}:{port}"


def _environment(settings: Mapping[str, str]) -> dict[str, str]:
    """The demo needs no configuration and takes none: settings of a real sidecar must not reach it, nor a proxy."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.upper().startswith("SIDECAR_") and name.lower() not in _PROXY_NAMES
    }
    path = os.pathsep.join(filter(None, [str(_PACKAGE_PARENT), kept.get("PYTHONPATH")]))
    return kept | {"PYTHONPATH": path} | {f"SIDECAR_{name}": value for name, value in settings.items()}


class Child:
    """A running `sidecar serve`. `url` has no final slash; `database` and `log` are files in the demo's folder."""

    def __init__(self, name: str, folder: Path, port: int, settings: Mapping[str, str]) -> None:
        self.name = name
        self.url = url_of(port)
        self.database = folder / f"{name}.db"
        self.log = folder / f"{name}.log"
        own = {"DATABASE": str(self.database), "HOST": HOST, "PORT": str(port)}
        with self.log.open("wb") as log:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", "sidecar", "serve"],
                env=_environment({**settings, **own}),
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the demo, which then ends this one in good order
            )

    def __repr__(self) -> str:
        code = self._popen.poll()
        phase = "running" if code is None else f"ended with {code}"
        return f"<Child {self.name} {self._popen.pid}: {phase}>"

    def check(self) -> None:
        """Raises DemoError where it has ended."""
        code = self._popen.poll()
        if code is not None:
            raise DemoError(f"the {self.name} ended with exit code {code}", self.tail())

    def wait_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Returns when it answers. Raises DemoError where it ends, or is not in time."""
        end = time.monotonic() + timeout_s
        with httpx2.Client(trust_env=False, timeout=2, verify=False) as client:  # plain HTTP
            while True:
                self.check()
                try:
                    status = client.get(f"{self.url}/healthz").status_code
                except httpx2.TransportError as error:
                    last = str(error)
                else:
                    if status == 200:
                        return
                    last = f"its /healthz says {status}"
                if time.monotonic() > end:
                    raise DemoError(f"the {self.name} was not ready within {timeout_s:.0f} s: {last}", self.tail())
                time.sleep(0.05)

    def read_log(self) -> str:
        """What it has written so far, on stdout and stderr."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def tail(self) -> str:
        """The last lines of its log."""
        lines = self.read_log().splitlines()[-TAIL_LINES:]
        return "\n".join([f"the last lines of the {self.name}'s log:", *(f"  {line}" for line in lines or ["(empty)"])])

    def terminate(self) -> None:
        """Ask it to end."""
        if self._popen.poll() is None:
            self._popen.send_signal(signal.SIGTERM)

    def wait_end(self) -> None:
        """Wait until it has ended; by force where asking was not enough."""
        try:
            self._popen.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()


@contextmanager
def ended() -> Iterator[list[Child]]:
    """A list for children: the ones in it are gone when the block ends, however it ends."""
    children: list[Child] = []
    try:
        yield children
    finally:
        for child in children:
            child.terminate()
        for child in children:
            child.wait_end()
