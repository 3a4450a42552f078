"""Query plans of the write path: everything seeks, on the SQLite of the wheel and on the 3.40 of Debian 12.

The statements are those that a run over the write path executes, as SQLite's own trace tells them, and those inside the
trigger that derives, at which neither a trace nor EXPLAIN looks.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from sidecar.store import outbox, verify
from sidecar.store.database import immediate, open_database, read_schema, snapshot
from sidecar.store.lines import merge_lines
from tests.local import LocalSidecar
from tests.servers import event, vital

NOW = 1_795_330_800_000  # 2026-11-22T07:00:00.000Z
TIMEOUT_MS = 1_800_000
TABLES = (
    "web_vitals",
    "events",
    "sessions",
    "visitors",
    "anonymous_ids",
    "pages",
    "clients",
    "campaigns",
    "batch_lines",
)
ALIASES = ("s", "v", "e", "a", "d", "l", "p", "c", "n", "u", "f")
EXPLAIN = """
import json, sqlite3, sys
conn = sqlite3.connect(":memory:")
schema, statements = json.load(sys.stdin)
conn.executescript(schema)
plans = []
for sql in statements:
    conn.execute("PRAGMA foreign_keys = " + ("OFF" if sql.lstrip().startswith("INSERT") else "ON"))
    plans.append([row[3] for row in conn.execute(f"EXPLAIN QUERY PLAN {sql}")])
print(json.dumps([sqlite3.sqlite_version, plans]))
"""


def _trace(folder: Path) -> list[str]:
    """What runs between the first beacon and a confirmed batch: beacons, documents received, claim, split, confirm."""
    statements: dict[str, None] = {}
    with LocalSidecar(folder / "traced.db", NOW) as sidecar:
        # Untraced: a change of the destination writes every session once, and is meant to.
        outbox.set_destination(sidecar.conn, "https://up.example/", NOW)

        def note(sql: str) -> None:
            if re.match(r"\s*(SELECT|WITH|INSERT|UPDATE|DELETE)", sql):
                statements[sql] = None

        conn = sidecar.conn
        conn.set_trace_callback(note)
        at = {"timestamp": NOW - 60_000}
        page = {"url": "https://shop.example/a?utm_source=x&gclid=y"}
        context = {"session": {"sessionId": "s-1"}, "user": {"anonymousId": "v-1"}, "page": page}
        for _ in range(2):  # the second time all of it is held already
            for name in ("s-1", "s-2"):
                sidecar.send("web-vitals", [vital(name, anonymousId="v-1", **at), vital(name, "CLS", 0.1, **at)])
            sidecar.send("events", [event("s-1", context=context, **at), event("s-1", "user_identified", **at)])
        sidecar.send("web-vitals", vital("s-1", anonymousId="v-2", timestamp=NOW - 90_000))
        conn.set_trace_callback(None)
        lines = [line.encode() for line in sidecar.export()]
        conn.set_trace_callback(note)
        with immediate(conn):
            merge_lines(conn, lines, NOW + 5)
        later = NOW + 2 * TIMEOUT_MS
        for batch_id in ("b-1", "b-2"):
            with snapshot(conn):
                draft = outbox.draft_batch(conn, lines_max=9, now=later, timeout_ms=TIMEOUT_MS)
            if draft is None:
                break
            with immediate(conn):
                batch = outbox.claim(conn, draft, address="https://up.example/", batch_id=batch_id, now=later)
                assert batch is not None
                outbox.count_attempt(conn, batch.batch_key)
                outbox.split(conn, batch.batch_key, make_id=iter(("h-1", "h-2")).__next__, answer="422", now=later)
            with immediate(conn):
                half = outbox.next_open(conn)
                assert half is not None
                outbox.confirm(conn, half.batch_key, rejected={}, answer="200 OK", now=later)
            with immediate(conn):
                half = outbox.next_open(conn)
                assert half is not None
                outbox.confirm(conn, half.batch_key, rejected={0: "no"}, answer="200 OK", now=later)
    return list(statements)


def _statements_of_trigger() -> list[str]:
    """The statements inside the trigger that derives, its parameters as NULL."""
    body = read_schema().split("INSTEAD OF INSERT ON derivations\nBEGIN\n")[1].split("\nEND;")[0]
    statements = [part.strip() for part in body.split(";\n") if part.strip()]
    assert [statement.split()[0] for statement in statements] == [
        "UPDATE",
        "UPDATE",
        "UPDATE",
        "INSERT",
        "DELETE",
        "DELETE",
    ]
    return [re.sub(r"NEW\.\w+", "NULL", text) for text in statements]


@pytest.fixture(scope="module")
def statements(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Every statement of the write path, and the questions of `verify`."""
    traced = _trace(tmp_path_factory.mktemp("plans"))
    assert len(traced) > 40
    assert {sql.split()[0] for sql in traced} == {"SELECT", "INSERT", "UPDATE", "DELETE"}
    for table in ("web_vitals", "events", "sessions", "batches", "batch_lines", "derivations", "parked", "arrivals"):
        assert any(table in sql for sql in traced), table
    verifying = [re.sub(r"\?\d?", "1", sql) for sql in (verify._SESSIONS, verify._VISITORS)]
    return [*traced, *_statements_of_trigger(), *verifying]


def offences(plan: list[str]) -> list[str]:
    """Steps that read a whole table of facts, or build an index to avoid it."""
    names = "|".join(TABLES + ALIASES)
    return [step for step in plan if "AUTOMATIC" in step or re.match(rf"SCAN (TABLE )?({names})( |$)", step)]


def explain_here(statements: list[str], folder: Path) -> list[list[str]]:
    """Plans of the SQLite that the sidecar uses. Of an empty file: from the schema alone, as there is no ANALYZE."""
    with closing(open_database(folder / "empty.db")) as conn:
        plans = []
        for sql in statements:
            # To a plain INSERT of a parent, SQLite adds a scan for children that were there before it; it runs only
            # where deferred violations are open, and here none is deferred.
            conn.execute("PRAGMA foreign_keys = " + ("OFF" if sql.lstrip().startswith("INSERT") else "ON"))
            plans.append([row[3] for row in conn.execute(f"EXPLAIN QUERY PLAN {sql}")])
        return plans


def explain_on_debian(statements: list[str], folder: Path) -> list[list[str]]:
    """Plans of the SQLite that Python's own module is linked with: 3.40.1 on Debian 12, and whatever people have."""
    asked = json.dumps([read_schema(), statements])
    done = subprocess.run([sys.executable, "-c", EXPLAIN], input=asked, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    version, plans = json.loads(done.stdout)
    if "Debian GNU/Linux 12" in Path("/etc/os-release").read_text(encoding="utf-8"):
        assert version.startswith("3.40.")
    found: list[list[str]] = plans
    return found


Explain = Callable[[list[str], Path], list[list[str]]]


@pytest.mark.parametrize("explain", [explain_here, explain_on_debian])
def test_every_statement_seeks(statements: list[str], explain: Explain, tmp_path: Path) -> None:
    """No scan of a table of facts, no automatic index."""
    plans = explain(statements, tmp_path)
    assert len(plans) == len(statements)
    assert sum(map(bool, plans)) > 30  # a plain INSERT .. VALUES has none
    found = {sql: offences(plan) for sql, plan in zip(statements, plans, strict=True) if offences(plan)}
    assert found == {}


@pytest.mark.parametrize("explain", [explain_here, explain_on_debian])
def test_a_long_session_is_not_read_for_each_fact(statements: list[str], explain: Explain, tmp_path: Path) -> None:
    """Whether a session holds a large event is asked of the few large ones, not of all its events."""
    asking = [sql for sql in statements if "65536" in sql]
    assert asking
    steps = [step for plan in explain(asking, tmp_path) for step in plan if re.match(r"SEARCH e\b", step)]
    assert len(steps) == len(asking)
    assert all("events_large" in step for step in steps)


@pytest.mark.parametrize("explain", [explain_here, explain_on_debian])
def test_a_scan_would_be_seen(explain: Explain, tmp_path: Path) -> None:
    """The check itself: a question without an index is an offence."""
    plans = explain(["SELECT * FROM web_vitals WHERE value > 5", "SELECT * FROM sessions AS s"], tmp_path)
    assert [offences(plan) for plan in plans] == [["SCAN web_vitals"], ["SCAN s"]]


def test_the_views_read_on_the_sqlite_of_debian(tmp_path: Path) -> None:
    """People open the file with the SQLite of their system: schema and views there."""
    views = ("derived_sessions", "derived_visitors", "session_list", "identifications")
    assert all(explain_on_debian([f"SELECT * FROM {view}" for view in views], tmp_path))
