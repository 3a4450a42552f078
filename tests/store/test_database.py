"""Opening the file: schema, migrations, pragmas, and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from sqlite_utils import Database

from sidecar.errors import StoreError
from sidecar.store.database import (
    Connection,
    immediate,
    migrations,
    open_database,
    open_read_only,
    read_schema,
)


def shape(conn: Connection) -> dict[str, str]:
    """Name and text of everything in the schema, white space folded; the bookkeeping of migrations left out."""
    found = conn.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE '%sqlite_migr%'")
    return {name: " ".join(sql.split()) for name, sql in found}


def test_all_migrations_make_schema_sql(tmp_path: Path) -> None:
    """A database that went through every migration has the schema that is documented."""
    with closing(open_database(tmp_path / "a.db")) as migrated, closing(open_database(tmp_path / "b.db")) as documented:
        for kind, name in documented.execute(
            "SELECT type, name FROM sqlite_master WHERE name NOT LIKE 'sqlite_%' AND name NOT LIKE '%sqlite_migr%' "
            "AND type IN ('view', 'table') ORDER BY type = 'table'"
        ).fetchall():
            documented.execute("PRAGMA foreign_keys = OFF")
            documented.execute(f"DROP {kind} {name}")
        documented.executescript(read_schema())
        assert shape(migrated) == shape(documented)
        assert len(shape(migrated)) > 20


def test_pragmas(tmp_path: Path) -> None:
    """WAL, foreign keys, FULL by default and NORMAL on request."""
    for durability, expected in (("full", 2), ("normal", 1)):
        with closing(open_database(tmp_path / "p.db", durability=durability)) as conn:
            assert conn.execute("PRAGMA journal_mode").fetchone() == ("wal",)
            assert conn.execute("PRAGMA foreign_keys").fetchone() == (1,)
            assert conn.execute("PRAGMA synchronous").fetchone() == (expected,)


def test_tables_are_strict_and_linked(tmp_path: Path) -> None:
    """The five tables of the contract, STRICT, with its four declared foreign keys."""
    with closing(open_database(tmp_path / "s.db")) as conn:
        strict = {name: bool(is_strict) for _, name, _, _, _, is_strict in conn.execute("PRAGMA table_list")}
        links = {
            (table, parent)
            for table in ("sessions", "web_vitals", "events")
            for _, _, parent, *_ in conn.execute(f"PRAGMA foreign_key_list({table})")
        }
    assert all(strict[table] for table in ("funnels", "visitors", "sessions", "web_vitals", "events"))
    wanted = {("sessions", "funnels"), ("sessions", "visitors"), ("web_vitals", "sessions"), ("events", "sessions")}
    assert wanted <= links


def test_foreign_databases_are_refused(tmp_path: Path) -> None:
    """Text, somebody else's database, a newer version, and none at all: one clear line each, and nothing is changed."""
    text = tmp_path / "text.db"
    text.write_text("this is no database, it is a letter to a friend" * 100)
    with pytest.raises(StoreError, match="not a database"):
        open_database(text)
    foreign = tmp_path / "foreign.db"
    with closing(Database(str(foreign)).conn) as conn:
        conn.execute("CREATE TABLE recipes (name)")
    with pytest.raises(StoreError, match="not one of the sidecar"):
        open_database(foreign)
    with pytest.raises(StoreError, match="not a database of the sidecar"):
        open_read_only(foreign)
    newer = tmp_path / "newer.db"
    with closing(open_database(newer)) as conn, immediate(conn):
        conn.execute("INSERT INTO _sqlite_migrations (migration_set, name, applied_at) VALUES ('sidecar', 'm9', '')")
    with pytest.raises(StoreError, match="made by a newer version"):
        open_database(newer)
    with pytest.raises(StoreError, match="no such database"):
        open_read_only(tmp_path / "none.db")


def test_many_starts_at_once_make_one_schema(tmp_path: Path) -> None:
    """Processes that open the same new file at the same time all succeed."""
    code = "import pathlib, sidecar.store.database as d; d.open_database(pathlib.Path('one.db')).close()"
    here = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    starts = [subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=here) for _ in range(8)]
    assert [start.wait(timeout=60) for start in starts] == [0] * 8
    with closing(open_database(tmp_path / "one.db")) as conn:
        names = [migration.name for migration in migrations.applied(Database(conn))]
    assert names == [migration.name for migration in migrations._migrations]
