"""`sidecar forget`, as a person uses it, beside a running server and without one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.servers import Server, event, sidecar, vital

READER = """
import pathlib, sys
from sidecar.store.database import open_read_only
conn = open_read_only(pathlib.Path(sys.argv[1]))
conn.execute("BEGIN")
conn.execute("SELECT count(*) FROM sessions").fetchone()
print("reading", flush=True)
sys.stdin.read()
"""


def held(database: Path) -> bytes:
    """Every byte of the database's files."""
    names = [str(name) for name in database.parent.glob(f"{database.name}*")]
    return subprocess.run(["cat", *names], capture_output=True, check=True).stdout


def test_beside_a_running_server(tmp_path: Path) -> None:
    """It says what went, the bytes are gone while the server runs on, and the server refuses what comes later."""
    with Server(tmp_path / "live.db", SITE="shop") as server, server.client() as client:
        item = vital("session-of-alice", anonymousId="visitor-alice")
        assert client.post("/api/track/web-vitals", json=item).status_code == 200
        assert client.post("/api/track/events", json=event("session-of-alice")).status_code == 200
        path = str(server.database)
        done = sidecar("forget", "visitor-alice", DATABASE=path, SITE="shop")
        assert (done.returncode, done.stdout) == (0, b"erased 1 sessions, 1 web vitals, 1 events\n"), done.stderr
        assert b"alice" not in held(server.database)
        assert client.post("/api/track/web-vitals", json=item).json()["reason"] == "erased"
        assert client.post("/api/track/web-vitals", json=vital("other")).status_code == 200
        done = sidecar("forget", "visitor-alice", DATABASE=path, SITE="shop")
        assert (done.returncode, done.stdout) == (0, b"erased 0 sessions, 0 web vitals, 0 events\n")
        said = sidecar("status", DATABASE=path, SITE="shop").stdout
        assert b"erased visitors         1, 1 not told upstream yet" in said
        assert sidecar("verify", DATABASE=path, SITE="shop").returncode == 0


def test_export_and_import_carry_it_on(tmp_path: Path) -> None:
    """Tombstones are the last lines of an export; imported into a backup of before, they erase there."""
    before, after = str(tmp_path / "before.db"), str(tmp_path / "after.db")
    with Server(tmp_path / "first.db") as server, server.client() as client:
        client.post("/api/track/web-vitals", json=[vital("s-1", anonymousId="visitor-1"), vital("s-2")])
        whole = sidecar("export", DATABASE=str(server.database)).stdout
        assert sidecar("forget", "visitor-1", "--site", "elsewhere", DATABASE=str(server.database)).returncode == 0
        assert sidecar("export", DATABASE=str(server.database)).stdout.startswith(whole), "another site's visitor"
        assert sidecar("forget", "visitor-1", DATABASE=str(server.database)).returncode == 0
        exported = sidecar("export", DATABASE=str(server.database)).stdout
    lines = [json.loads(line) for line in exported.splitlines()]
    assert [(line["type"], line["site"]) for line in lines] == [
        ("session", "default"),
        ("tombstone", "default"),
        ("tombstone", "elsewhere"),
    ]
    assert sidecar("import", "-", stdin=whole, DATABASE=before).returncode == 0
    done = sidecar("import", "-", stdin=exported, DATABASE=before)
    assert (done.returncode, done.stdout) == (0, b"2 accepted, 1 duplicate, 0 superseded, 0 rejected\n")
    assert sidecar("import", "-", stdin=exported, DATABASE=after).returncode == 0
    assert sidecar("export", DATABASE=before).stdout == sidecar("export", DATABASE=after).stdout == exported
    done = sidecar("import", "-", stdin=whole, DATABASE=after)
    assert (done.returncode, done.stderr.splitlines()[0]) == (1, b"line 1: erased")
    assert len(sidecar("export", "--since", "2020-01-01", DATABASE=after).stdout.splitlines()) == 3
    assert sidecar("export", "--until", "2020-01-01", DATABASE=after).stdout == b""
    table = sidecar("export", "--format", "csv", DATABASE=after).stdout
    assert len(table.splitlines()) == 2, "a tombstone is no session"


def test_a_reader_in_the_way_is_said(tmp_path: Path) -> None:
    """Erased is erased, but the WAL holds it still: exit 1 and what to do."""
    with Server(tmp_path / "read.db") as server, server.client() as client:
        client.post("/api/track/web-vitals", json=vital("s", anonymousId="visitor-1"))
        reader = subprocess.Popen(
            [sys.executable, "-c", READER, str(server.database)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert reader.stdout is not None
        assert reader.stdout.readline() == b"reading\n"
        done = sidecar("forget", "visitor-1", DATABASE=str(server.database))
        assert (done.returncode, done.stdout) == (1, b"erased 1 sessions, 1 web vitals, 0 events\n")
        assert b"is being read and holds them still: run this again later" in done.stderr
        reader.communicate(b"", timeout=30)
        assert sidecar("forget", "visitor-1", DATABASE=str(server.database)).returncode == 0
        assert b"visitor-1" not in held(server.database)


def test_wrong_usage(tmp_path: Path) -> None:
    """No file is made by a slip of the pen."""
    missing = tmp_path / "none.db"
    done = sidecar("forget", "v", DATABASE=str(missing))
    assert (done.returncode, b"no such database" in done.stderr, missing.exists()) == (1, True, False)
    assert sidecar("forget", "x" * 129, DATABASE=str(missing)).returncode == 2
    assert sidecar("forget", DATABASE=str(missing)).returncode == 2
