"""A file of each earlier schema version, as its code left it, opened by this one: nothing is lost, and all goes on.

`schema_0001_with_data.sql` is a dump of the first: sessions of two sites, an identification, a parked session and an
open batch; 2 adds an erasure, 3 (and 4) what was repeated and superseded. `schema_0001_export.ndjson` and so on are
what those versions exported. All of them stay as they are: a new version adds a pair.
"""

from __future__ import annotations

import gzip
from contextlib import closing
from pathlib import Path

import pytest
from sqlite_utils import Database

from sidecar.store import outbox
from sidecar.store.database import Connection, immediate, migrations, open_database, read_schema, snapshot
from sidecar.store.erasure import Erased, forget
from sidecar.store.lines import export_all
from sidecar.store.verify import verify
from tests.builders import START
from tests.store.test_database import shape

HERE = Path(__file__).parent
VERSIONS = [f"{number:04}" for number in range(1, len(migrations._migrations))]
TIMEOUT_MS = 1_800_000
LATER = START + 2 * TIMEOUT_MS


def old_file(folder: Path, version: str) -> Path:
    """A file as a version left it."""
    old = folder / f"{version}.db"
    with closing(Database(str(old)).conn) as conn:
        conn.executescript((HERE / f"schema_{version}_with_data.sql").read_text(encoding="utf-8"))
    return old


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The file of the first version."""
    return old_file(tmp_path, "0001")


def findings(conn: Connection) -> list[str]:
    with snapshot(conn):
        return [str(difference) for difference in verify(conn, lambda: None)]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_export_is_the_same(tmp_path: Path, version: str) -> None:
    """Byte for byte, and `verify` finds nothing."""
    with closing(open_database(old_file(tmp_path, version))) as conn:
        names = [migration.name for migration in migrations.applied(Database(conn))]
        assert names == [migration.name for migration in migrations._migrations]
        with snapshot(conn):
            lines = list(export_all(conn, LATER, TIMEOUT_MS))
        assert findings(conn) == []
    assert lines == (HERE / f"schema_{version}_export.ndjson").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("version", VERSIONS)
def test_the_schema_is_the_documented_one(tmp_path: Path, version: str) -> None:
    """Whichever version a file was made by; and the file was of that version."""
    old = old_file(tmp_path, version)
    with closing(Database(str(old)).conn) as before:
        assert len(migrations.applied(Database(before))) == int(version)
    with closing(open_database(old)) as upgraded, closing(open_database(tmp_path / "new.db")) as new:
        assert shape(upgraded) == shape(new)
        assert "CREATE TABLE tombstones" in read_schema()


def test_shipping_goes_on(path: Path) -> None:
    """The batch that was open is confirmed line by line, what was parked stays so, the rest is claimed."""
    with closing(open_database(path)) as conn, immediate(conn):
        batch = outbox.next_open(conn)
        assert batch is not None
        assert (batch.batch_id, gzip.decompress(batch.body).count(b'"sessionId":"s-2"')) == ("b2", 1)
        assert outbox.confirm(conn, batch.batch_key, rejected={}, answer="200 OK", now=LATER)
        draft = outbox.draft_batch(conn, lines_max=9, now=LATER, timeout_ms=TIMEOUT_MS)
        assert draft is not None
        assert [line.session_key for line in draft.lines] == [3]
        assert conn.execute("SELECT session_key, reason FROM parked").fetchall() == [(1, "no room")]


def test_an_erasure_of_what_came_before(path: Path) -> None:
    """It takes the frozen batch and the parked session along."""
    with closing(open_database(path)) as conn:
        with immediate(conn):
            assert forget(conn, "default", "v-1", LATER) == Erased(2, 2, 4)
        assert conn.execute("SELECT count(*) FROM parked").fetchone() == (0,)
        assert conn.execute("SELECT state FROM batches WHERE batch_id = 'b2'").fetchone() == ("dropped",)
        assert findings(conn) == []


def test_notes_get_their_reason(tmp_path: Path) -> None:
    """What was noted before notes had one."""
    with closing(open_database(old_file(tmp_path, "0004"))) as conn:
        notes = conn.execute("SELECT metric, id, outcome, reason, times FROM arrivals ORDER BY metric").fetchall()
    assert notes == [
        ("CLS", "v6-CLS-s-1", "superseded", "", 1),
        ("LCP", "v6-LCP-s-1", "duplicate", "", 1),
    ]
