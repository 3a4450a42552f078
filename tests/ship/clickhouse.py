"""Real ClickHouses for tests: Debian's server (18.16), and today's engine (chdb-core) behind the same HTTP."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest

from sidecar.canonical import to_iso
from tests.servers import free_port

START_MAX_S = 60
PASSWORD = "s3cret/@:"
_QUOTED_PASSWORD = "s3cret%2F%40%3A"
_CONFIG = """<yandex>
<logger><level>warning</level><log>{folder}/server.log</log><errorlog>{folder}/errors.log</errorlog></logger>
<http_port>{port}</http_port><tcp_port>{tcp_port}</tcp_port><listen_host>127.0.0.1</listen_host>
<path>{folder}/store/</path><tmp_path>{folder}/store/tmp/</tmp_path><users_config>{folder}/users.xml</users_config>
<default_profile>default</default_profile><default_database>default</default_database>
<mark_cache_size>67108864</mark_cache_size>{tls}
</yandex>"""
_USERS = """<yandex><profiles><default><max_memory_usage>{memory_max}</max_memory_usage>{settings}</default></profiles>
<users><default><password>{password}</password><networks><ip>127.0.0.1</ip></networks><profile>default</profile>
<quota>default</quota></default></users><quotas><default/></quotas></yandex>"""
MEMORY_MAX = 1_000_000_000


def _missing(what: str, install: str) -> None:
    """Fail under CI, skip elsewhere."""
    said = f"{what} is not installed: {install}"
    if os.environ.get("CI"):
        pytest.fail(said)
    pytest.skip(said)


class ClickHouse:
    """A server of its own in `folder`, started by `start`. `database` is not made yet: that is `upstream init`'s."""

    name = "clickhouse"

    def __init__(self, folder: Path, database: str = "fleet") -> None:
        self.folder = folder
        self.database = database
        self.port = free_port()
        self.memory_max = MEMORY_MAX
        self.settings = ""  # of the default profile, as XML
        self._tls = ""
        self.process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def url(self) -> str:
        """For SIDECAR_UPSTREAM_URL."""
        return f"clickhouse://default:{_QUOTED_PASSWORD}@127.0.0.1:{self.port}/{self.database}"

    @property
    def address(self) -> str:
        """The same without credentials."""
        return f"clickhouse://127.0.0.1:{self.port}/{self.database}"

    def listen_tls(self, key: Path, certificate: Path) -> int:
        """Listen for HTTPS, too, from the next start on; gives the port."""
        port = free_port()
        files = f"<certificateFile>{certificate}</certificateFile><privateKeyFile>{key}</privateKeyFile>"
        checks = "<verificationMode>none</verificationMode><loadDefaultCAFile>false</loadDefaultCAFile>"
        self._tls = f"<https_port>{port}</https_port><openSSL><server>{files}{checks}</server></openSSL>"
        return port

    def command(self) -> list[str]:
        """What starts it."""
        if shutil.which("clickhouse-server") is None:
            _missing("clickhouse-server", "apt-get install clickhouse-server")
        folder, port = self.folder, self.port
        (folder / "store" / "tmp").mkdir(parents=True, exist_ok=True)
        (folder / "config.xml").write_text(
            _CONFIG.format(folder=folder, port=port, tcp_port=free_port(), tls=self._tls)
        )
        users = _USERS.format(memory_max=self.memory_max, settings=self.settings, password=PASSWORD)
        (folder / "users.xml").write_text(users)
        return ["clickhouse-server", f"--config-file={folder}/config.xml"]

    def start(self) -> None:
        """Start it on what the folder holds, and wait until it answers."""
        command = self.command()
        with (self.folder / "out.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder)
        deadline = time.monotonic() + START_MAX_S
        while True:
            try:
                if self.query("SELECT 1") == "1\n":
                    return
            except httpx2.TransportError:
                time.sleep(0.05)
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"it did not start: {(self.folder / 'out.log').read_text()[-2000:]}")

    def stop(self) -> None:
        """SIGTERM, and SIGKILL where that takes long."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(timeout=30)

    def query(self, sql: str) -> str:
        """The answer as text. Raises AssertionError where the server refuses."""
        response = httpx2.post(
            f"http://127.0.0.1:{self.port}/", content=sql.encode(), auth=("default", PASSWORD), timeout=60, verify=False
        )
        assert response.status_code == 200, response.text
        return response.text

    def rows(self, sql: str) -> list[dict[str, Any]]:
        """The rows of an answer, by column."""
        return [json.loads(line) for line in self.query(f"{sql} FORMAT JSONEachRow").splitlines()]

    def count(self, table: str) -> int:
        """Rows of a table or view."""
        return int(self.query(f"SELECT count() FROM {self.database}.{table}"))

    def documents(self) -> list[dict[str, Any]]:
        """The current sessions as documents, in the order of `export`."""
        order = "ORDER BY site, funnel_id, session_id"
        return [to_document(row) for row in self.rows(f"SELECT * FROM {self.database}.current_sessions {order}")]


class Engine(ClickHouse):
    """The engine of chdb-core. It has no HTTP of its own; `chdb_server` puts one before it."""

    name = "chdb"

    def command(self) -> list[str]:
        """What starts it."""
        if importlib.util.find_spec("chdb") is None:
            _missing("chdb-core", "pip install -e '.[test-clickhouse]'")
        script = Path(__file__).with_name("chdb_server.py")
        settings = json.dumps({"max_memory_usage": str(self.memory_max)})
        return [sys.executable, str(script), str(self.port), str(self.folder / "store"), PASSWORD, settings]


# --- back to documents, by the names alone ---------------------------------------------------------------------------

_TIMES = {"startedAt", "endedAt", "firstSeen", "lastSeen", "timestamp"}
_FLAGS = {"finished", "provisional", "converted", "clockSkewed"}
_JSON = {"traits", "properties", "context"}
_INTEGERS = {"revision", "durationSeconds", "pageViews", "eventsCount", "totalSessions", "totalEvents", "seq"}
_INTEGERS |= {"screenWidth", "screenHeight"}
_VISITOR = ("anonymousId", "displayName", "firstSeen", "lastSeen", "totalSessions", "totalEvents", "userId", "traits")
_OURS = {"session_hash", "visitor_hash", "bot", "started"}  # of no document


def _camel(name: str) -> str:
    return re.sub(r"_([a-z])", lambda found: found[1].upper(), name)


def _value(name: str, value: Any) -> Any:
    if name in _FLAGS:
        return bool(value)
    if value is None or value == "":
        return None
    if name == "client":
        return int(value) - 1 if int(value) else None
    if name in _TIMES:
        return to_iso(int(value))
    if name in _JSON:
        return json.loads(value)
    return int(value) if name in _INTEGERS else value  # integers of 64 bits may come as texts


def to_document(row: dict[str, Any]) -> dict[str, Any]:
    """The session document that a row of current_sessions was made of; key order aside."""
    document: dict[str, Any] = {"type": "session", "version": 1}
    nested: dict[str, dict[str, list[Any]]] = {"clients": {}, "webVitals": {}, "events": {}}
    for column, value in row.items():
        prefix, _, name = column.rpartition(".")
        if prefix:
            nested[_camel(prefix)][_camel(name)] = value
        elif column not in _OURS:
            document[_camel(column)] = _value(_camel(column), value)
    visitor = {name: document.pop(name) for name in _VISITOR}
    document["visitor"] = visitor if visitor["anonymousId"] else None
    for name, columns in nested.items():
        entries = zip(*columns.values(), strict=True)
        document[name] = [
            {field: _value(field, value) for field, value in zip(columns, entry, strict=True)} for entry in entries
        ]
    return document
