"""Query plans of the write path: everything seeks, whatever SQLite runs it."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from sidecar.store import facts, verify
from sidecar.store.database import Connection, open_database, read_schema

FACT_TABLES = ("web_vitals", "events", "sessions", "visitors", "anonymous_ids", "pages", "clients")

_VALUES = {
    name: sql.replace("{values}", f"(VALUES ({','.join('?' * width)}),({','.join('?' * width)}))")
    for name, sql, width in (
        ("find sessions", facts._FIND_SESSIONS, 3),
        ("find funnels", facts._FIND_FUNNELS, 3),
        ("find names", facts._FIND_NAMES, 3),
        ("find pages", facts._FIND_PAGES, 2),
        ("find clients", facts._FIND_CLIENTS, 2),
        ("held vitals", facts._HELD_VITALS, 3),
        ("held events", facts._HELD_EVENTS, 2),
    )
}


def _statements_of_trigger() -> dict[str, str]:
    """The statements inside the trigger that derives, its parameters as parameters: EXPLAIN does not look inside."""
    schema = read_schema()
    body = schema.split("INSTEAD OF INSERT ON derivations\nBEGIN\n")[1].split("\nEND;")[0]
    statements = [part.strip() for part in body.split(";\n") if part.strip()]
    assert [statement.split()[0] for statement in statements] == ["UPDATE", "UPDATE", "UPDATE", "INSERT", "DELETE"]
    return {f"derive {number}": re.sub(r"NEW\.\w+", "?", text) for number, text in enumerate(statements, 1)}


STATEMENTS = {
    **_VALUES,
    **_statements_of_trigger(),
    "bytes of a session": facts._SESSION_BYTES,
    "verify sessions": verify._SESSIONS,
    "verify visitors": verify._VISITORS,
}


@pytest.fixture(scope="module")
def conn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connection]:
    """An empty database: plans are made from the schema alone (no ANALYZE)."""
    with closing(open_database(tmp_path_factory.mktemp("plans") / "p.db")) as opened:
        yield opened


def offences(plan: list[str]) -> list[str]:
    """Steps that read a whole table of facts, or build an index to avoid it."""
    scans = {f"SCAN {table}" for table in FACT_TABLES}
    scans |= {f"SCAN {alias}" for alias in ("s", "v", "e", "a", "t", "d")}
    return [
        step for step in plan if "AUTOMATIC" in step or step in scans or any(step.startswith(f"{s} ") for s in scans)
    ]


@pytest.mark.parametrize("name", STATEMENTS)
def test_every_statement_seeks(conn: Connection, name: str) -> None:
    """No scan of a table of facts, no automatic index."""
    sql = STATEMENTS[name]
    plan = [row[3] for row in conn.execute(f"EXPLAIN QUERY PLAN {sql}", [None] * len(_parameters(sql)))]
    assert plan
    assert offences(plan) == []


def _parameters(sql: str) -> range:
    numbered = {word for word in ("?1", "?2", "?3") if word in sql}
    return range(len(numbered) or sql.count("?"))


def test_a_scan_would_be_seen(conn: Connection) -> None:
    """The check itself: a question without an index is an offence."""
    plan = [row[3] for row in conn.execute("EXPLAIN QUERY PLAN SELECT * FROM web_vitals WHERE value > 5")]
    assert offences(plan) == ["SCAN web_vitals"]


def test_the_schema_loads_on_the_sqlite_of_debian(tmp_path: Path) -> None:
    """People open the file with the SQLite 3.40 of their system: schema, views and a foreign key there."""
    code = """
import sqlite3, sys
conn = sqlite3.connect(sys.argv[2])
conn.execute("PRAGMA foreign_keys = ON")
conn.executescript(open(sys.argv[1]).read())
for view in ("derived_sessions", "derived_visitors", "session_list", "identifications"):
    conn.execute(f"SELECT * FROM {view}").fetchall()
print(sqlite3.sqlite_version)
"""
    schema = tmp_path / "schema.sql"
    schema.write_text(read_schema())
    python = shutil.which("python3")
    assert python is not None
    done = subprocess.run(
        [python, "-c", code, str(schema), str(tmp_path / "plain.db")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("3.")
