"""Destinations as the sidecar's settings name them, each the real thing, for the suite that runs over all of them.

Another one is a class with these members and its name in DESTINATIONS.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Protocol

from sidecar.store.tombstones import hash_of
from tests.servers import Server, sidecar
from tests.ship.clickhouse import ClickHouse, Engine
from tests.ship.seaweed import Seaweed


class Destination(Protocol):
    """A destination that can be stopped, and started again with what it holds; made with a folder of its own."""

    @property
    def name(self) -> str:
        """What the tests call it."""
        ...

    @property
    def url(self) -> str:
        """As UPSTREAM_URL."""
        ...

    @property
    def environment(self) -> dict[str, str]:
        """What a process that ships there needs beside it, by the whole names of the environment."""
        ...

    def start(self) -> None:
        """Begin to take, with what was held before. Skips the test where a program for it is missing."""
        ...

    def stop(self) -> None:
        """End it; what was taken stays."""
        ...

    def documents(self) -> list[dict[str, Any]]:
        """The current sessions, each in its latest revision and without erased ones, while it is started."""
        ...


def read_files(bodies: Iterable[bytes]) -> list[dict[str, Any]]:
    """The current sessions of a heap of batches, in any order: what the README tells readers of files to do."""
    sessions: dict[tuple[str, str, str], dict[str, Any]] = {}
    erased: set[tuple[str, str]] = set()
    for body in bodies:
        for line in gzip.decompress(body).splitlines():
            document = json.loads(line)
            site = document["site"]
            if document["type"] == "tombstone":
                erased |= {(site, one) for one in (document["visitorHash"], *document["sessionHashes"])}
                continue
            key = (site, document["funnelId"], document["sessionId"])
            if key not in sessions or sessions[key]["revision"] <= document["revision"]:
                sessions[key] = document
    return [document for key, document in sorted(sessions.items()) if not erased.intersection(_hashes(key, document))]


def _hashes(key: tuple[str, str, str], document: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield key[0], hash_of(*key)
    if document["visitor"]:
        yield key[0], hash_of(key[0], document["visitor"]["anonymousId"])


class OtherSidecar:
    """A second sidecar: `sidecar serve`."""

    name = "http"

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._database = folder / "upstream.db"
        self._server: Server | None = None
        self.environment = {"SIDECAR_UPSTREAM_TOKEN": "secret"}

    @property
    def url(self) -> str:
        """Its receiving end."""
        assert self._server is not None
        return f"{self._server.url}/api/sessions"

    def start(self) -> None:
        """Start, or start again on the same port."""
        if self._server is None:
            self._server = Server(self._database, RECEIVE_TOKEN="secret", SITE="upstream")
        else:
            self._server.restart()

    def stop(self) -> None:
        """SIGTERM."""
        if self._server is not None:
            self._server.stop()

    def documents(self) -> list[dict[str, Any]]:
        """Its export."""
        done = sidecar("export", DATABASE=str(self._database))
        assert done.returncode == 0, done.stderr
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        return [line for line in lines if line["type"] == "session"]


class Directory:
    """A directory. While it is stopped a file stands in its place, which not even root can write into."""

    name = "directory"
    environment: ClassVar[dict[str, str]] = {}

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "out"
        self._away = folder / "away"
        self.url = f"{self._path.as_uri()}/"

    def start(self) -> None:
        """Put it back."""
        if self._away.exists():
            self._path.unlink()
            self._away.rename(self._path)

    def stop(self) -> None:
        """Put a file in its place."""
        self._path.rename(self._away)
        self._path.touch()

    def documents(self) -> list[dict[str, Any]]:
        """What its files say."""
        return read_files(path.read_bytes() for path in self._path.glob("site=*/dt=*/*.ndjson.gz"))


class Bucket:
    """A prefix in a bucket of a real S3 server."""

    name = "s3"
    url = "s3://vitals/out"

    def __init__(self, folder: Path) -> None:
        self._server = Seaweed(folder)
        self.environment = self._server.environment()
        self.start, self.stop = self._server.start, self._server.stop

    def documents(self) -> list[dict[str, Any]]:
        """What its objects say."""
        return read_files(self._server.objects("vitals", "out").values())


class _Tables:
    """A ClickHouse with our tables."""

    environment: ClassVar[dict[str, str]] = {}

    def __init__(self, server: ClickHouse) -> None:
        self._server = server
        self._has_tables = False
        self.name, self.url = server.name, server.url
        self.stop, self.documents = server.stop, server.documents

    def start(self) -> None:
        """Start it; the first time, make the tables as a person does."""
        self._server.start()
        if not self._has_tables:
            done = sidecar("upstream", "init", UPSTREAM_URL=self.url)
            assert done.returncode == 0, done.stderr
            self._has_tables = True


DESTINATIONS: dict[str, Callable[[Path], Destination]] = {
    "http": OtherSidecar,
    "directory": Directory,
    "s3": Bucket,
    "clickhouse": lambda folder: _Tables(ClickHouse(folder)),
    "chdb": lambda folder: _Tables(Engine(folder)),
}
