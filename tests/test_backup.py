"""`sidecar backup`: a sound copy beside a busy server, whole or not at all, and never in the wrong place."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from sidecar.errors import StoreError
from sidecar.model import Fact
from sidecar.store.backup import back_up
from sidecar.store.database import Connection, immediate, open_database
from sidecar.store.facts import Recording, record
from tests.builders import START, record_facts, vital
from tests.servers import Server, sidecar
from tests.servers import vital as vital_item


def facts() -> list[Fact]:
    return [vital(f"s-{number}", "LCP", 900, visitor=f"v-{number}") for number in range(300)]


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A file with 300 sessions."""
    return record_facts(tmp_path / "live.db", facts())


def names(folder: Path) -> list[str]:
    return sorted(one.name for one in folder.iterdir())


def test_a_copy_restores(database: Path, tmp_path: Path) -> None:
    """It verifies, exports the same bytes, serves as a database, and says its size."""
    copy = tmp_path / "copies" / "b.db"
    copy.parent.mkdir()
    done = sidecar("backup", str(copy), DATABASE=str(database))
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode().startswith(f"{copy}: {copy.stat().st_size / 1e6:.1f} MB, checked (")
    assert names(copy.parent) == ["b.db"]
    assert copy.stat().st_mode & 0o077 == 0  # it holds what the database holds
    assert sidecar("verify", DATABASE=str(copy)).returncode == 0
    assert sidecar("export", DATABASE=str(copy)).stdout == sidecar("export", DATABASE=str(database)).stdout
    with Server(copy, RETENTION_DAYS="0") as server, server.client() as client:
        assert client.post("/api/track/web-vitals", json=vital_item("s-new")).json()["accepted"] == 1


def test_beside_a_busy_server(tmp_path: Path) -> None:
    """Every copy made under load is one state: it verifies, and holds all that was answered before it began."""
    with Server(tmp_path / "live.db") as server, server.client() as client:
        answered: list[str] = []
        stop = threading.Event()

        def send() -> None:
            while not stop.is_set():
                name = f"s-{len(answered)}"
                assert client.post("/api/track/web-vitals", json=vital_item(name)).status_code == 200
                answered.append(name)

        sender = threading.Thread(target=send)
        sender.start()
        try:
            while not answered:
                assert sender.is_alive()
                time.sleep(0.01)
            for number in range(2):
                before = set(answered)
                copy = tmp_path / "copies.db"
                assert sidecar("backup", str(copy), DATABASE=str(server.database)).returncode == 0
                checked = sidecar("verify", DATABASE=str(copy))
                assert (checked.returncode, checked.stderr) == (0, b"")
                exported = sidecar("export", DATABASE=str(copy)).stdout.splitlines()
                assert before <= {json.loads(line)["sessionId"] for line in exported}
                assert len(before) > number
        finally:
            stop.set()
            sender.join()


def test_what_is_written_meanwhile_is_not_in_it(
    database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sessions that come while it is copied wait for nothing, and the copy is the state before them."""
    monkeypatch.setattr("sidecar.store.database.COPY_STEPS", 500)
    added: list[str] = []
    with closing(open_database(database)) as conn:

        def add(_: int) -> None:
            if len(added) < 5:
                added.append(f"late-{len(added)}")
                with immediate(conn):
                    record(conn, [Recording([(0, vital(added[-1], "LCP", 900))], START)])

        back_up(database, tmp_path / "b.db", add)
        assert len(added) == 5
        assert count(conn) == 305
    with closing(open_database(tmp_path / "b.db")) as copy:
        assert count(copy) == 300


def count(conn: Connection) -> int:
    return int(conn.execute("SELECT count(*) FROM sessions").fetchone()[0])


def test_an_older_copy_is_replaced_in_one_step(database: Path, tmp_path: Path) -> None:
    """Whoever has the older one open reads on in it."""
    copy = record_facts(tmp_path / "b.db", [vital("older", "LCP", 900)])
    with copy.open("rb") as older:
        first = older.read(4096)
        assert sidecar("backup", str(copy), DATABASE=str(database)).returncode == 0
        assert os.fstat(older.fileno()).st_nlink == 0
        older.seek(0)
        assert older.read(4096) == first
    with closing(open_database(copy)) as conn:
        assert count(conn) == 300


@pytest.fixture
def refusals(database: Path, tmp_path: Path) -> Iterator[list[tuple[str, str]]]:
    """Places that a copy must not take, and what is said of each."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "notes.txt").write_text("not a database")
    (tmp_path / "linked.db").symlink_to(database)
    (tmp_path / "hard.db").hardlink_to(database)
    with closing(open_database(tmp_path / "open.db")):
        yield [
            ("live.db", "is the database itself"),
            ("live.db-wal", "belongs to it"),
            ("linked.db", "is the database itself"),
            ("hard.db", "is the database itself"),
            ("open.db", "in use, or was not closed"),
            ("folder", "not a regular file"),
            ("notes.txt", "is no database"),
            ("none/b.db", "No such file"),
        ]


def test_wrong_places(database: Path, tmp_path: Path, refusals: list[tuple[str, str]]) -> None:
    """One line and exit 1; nothing is changed, and no part of a copy stays."""
    before = sidecar("export", DATABASE=str(database)).stdout
    held = names(tmp_path)
    for place, said in refusals:
        with pytest.raises(StoreError, match=said):
            back_up(database, tmp_path / place, lambda _: None)
    done = sidecar("backup", str(database), DATABASE=str(database))
    assert done.returncode == 1
    [line] = done.stderr.decode().splitlines()
    assert line.endswith("is the database itself, or belongs to it")
    assert names(tmp_path) == held
    assert (tmp_path / "notes.txt").read_text() == "not a database"
    assert sidecar("export", DATABASE=str(database)).stdout == before


def test_no_database_and_no_destination(tmp_path: Path) -> None:
    """Exit 1 where there is nothing to copy, 2 where it is not said to where."""
    done = sidecar("backup", str(tmp_path / "b.db"), DATABASE=str(tmp_path / "none.db"))
    assert (done.returncode, b"no such database" in done.stderr) == (1, True)
    assert names(tmp_path) == []
    assert sidecar("backup", DATABASE=str(tmp_path / "none.db")).returncode == 2


def test_a_damaged_database_makes_no_copy(database: Path, tmp_path: Path) -> None:
    """The older copy stays: it may be the only one that is sound."""
    copy = tmp_path / "b.db"
    assert sidecar("backup", str(copy), DATABASE=str(database)).returncode == 0
    kept = copy.read_bytes()
    damaged = tmp_path / "damaged.db"
    shutil.copy(database, damaged)
    with damaged.open("r+b") as stream:
        for page in range(10, damaged.stat().st_size // 4096, 2):
            stream.seek(page * 4096)
            stream.write(b"\xff" * 4096)
    with pytest.raises(StoreError, match=r"malformed|not sound"):
        back_up(damaged, copy, lambda _: None)
    assert copy.read_bytes() == kept
    assert not [name for name in names(tmp_path) if ".part" in name]
