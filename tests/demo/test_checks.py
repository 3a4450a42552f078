"""The comparison of both exports, the counts behind the table, and how the table looks."""

from __future__ import annotations

import io
import re
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from sidecar.demo import checks
from sidecar.demo.report import Report, Row, count_noun
from sidecar.model import VitalFact
from sidecar.store.database import open_database
from sidecar.store.facts import Recording, record

NOW = 1_795_330_800_000
TIMEOUT_MS = 3000


def _vital(session_id: str, value: float) -> VitalFact:
    said = ("LCP", "v6-1", float(value), "good", None, None, 0, None, None, None, NOW - 1000, False)
    return VitalFact("shop", "demo", session_id, *said)


def _make(path: Path, values: dict[str, float], *, confirmed: tuple[str, ...] = ()) -> Path:
    """A database with one vital a session."""
    with closing(open_database(path)) as conn:
        conn.execute("BEGIN IMMEDIATE")
        record(conn, [Recording([(0, _vital(name, value)) for name, value in values.items()], NOW)])
        for name in confirmed:
            conn.execute("UPDATE sessions SET shipped_revision = revision WHERE session_id = ?", (name,))
        conn.execute("COMMIT")
    return path


def _compare(here: Path, there: Path, *driven: str) -> tuple[int, list[str]]:
    return checks.compare_exports(here, there, driven, NOW, TIMEOUT_MS)


def test_equal_exports_agree(tmp_path: Path) -> None:
    here = _make(tmp_path / "here.db", {"a": 1, "b": 2}, confirmed=("a", "b"))
    there = _make(tmp_path / "there.db", {"b": 2, "a": 1})
    assert _compare(here, there, "a", "b") == (2, [])


def test_a_differing_value_is_named(tmp_path: Path) -> None:
    here = _make(tmp_path / "here.db", {"a": 1, "b": 2}, confirmed=("a", "b"))
    there = _make(tmp_path / "there.db", {"a": 1, "b": 3})
    assert _compare(here, there, "a", "b") == (2, ["session b, avgLcp: 2 in the sidecar, upstream 3"])


def test_a_differing_revision_is_named(tmp_path: Path) -> None:
    here = _make(tmp_path / "here.db", {"a": 1}, confirmed=("a",))
    there = _make(tmp_path / "there.db", {"a": 1})
    with closing(open_database(there)) as conn:
        conn.execute("UPDATE sessions SET revision = revision + 1")
    differences = _compare(here, there, "a")[1]
    assert differences == [f"session a, revision: {NOW} in the sidecar, upstream {NOW + 1}"]


def test_missing_sessions_are_named(tmp_path: Path) -> None:
    here = _make(tmp_path / "here.db", {"a": 1, "b": 2}, confirmed=("a", "b"))
    there = _make(tmp_path / "there.db", {"a": 1, "c": 3})
    assert _compare(here, there, "a", "b", "d")[1] == [
        "session d is missing in the sidecar",
        "session b is only in the sidecar",
        "session c is only in the upstream",
    ]


def test_two_empty_databases_do_not_agree(tmp_path: Path) -> None:
    here, there = _make(tmp_path / "here.db", {}), _make(tmp_path / "there.db", {})
    assert _compare(here, there, "a") == (0, ["session a is missing in the sidecar"])


def test_a_session_under_way_is_nobody_elses_difference(tmp_path: Path) -> None:
    """A person may be on the site at that moment; once confirmed, his session counts like the others."""
    here = _make(tmp_path / "here.db", {"a": 1, "person": 5}, confirmed=("a",))
    there = _make(tmp_path / "there.db", {"a": 1, "person": 4})
    assert _compare(here, there, "a") == (1, [])
    with closing(open_database(here)) as conn:
        conn.execute("UPDATE sessions SET shipped_revision = revision")
    assert len(_compare(here, there, "a")[1]) == 1


def test_parked_sessions_are_not_confirmed(tmp_path: Path) -> None:
    path = _make(tmp_path / "here.db", {"a": 1, "b": 2, "c": 3}, confirmed=("a", "b"))
    with closing(open_database(path)) as conn:
        conn.execute("INSERT INTO parked SELECT session_key, revision, -1, 'no', 'x', 0, NULL FROM sessions LIMIT 1")
    with checks.reading(path) as conn:
        assert checks.count_confirmed(conn, ["a", "b", "c"]) == 1
        assert checks.read_sessions(conn, ["a", "z"]) == {"a": True}


def test_foreign_key_errors_are_of_the_file_and_of_the_log(tmp_path: Path) -> None:
    path = _make(tmp_path / "here.db", {"a": 1})
    with checks.reading(path) as conn:
        assert checks.count_foreign_key_errors(conn, "all is well") == 0
        assert checks.count_foreign_key_errors(conn, "IntegrityError: FOREIGN KEY constraint failed\n" * 2) == 2
    with closing(open_database(path)) as conn:
        conn.execute("PRAGMA foreign_keys = OFF")
        conn.execute("DELETE FROM sessions")
    with checks.reading(path) as conn:
        assert checks.count_foreign_key_errors(conn, "") == 1


ROWS = [Row("beacons sent", 1234, 1234), Row("batches shipped", 3), Row("foreign key errors", 1, 0)]


def test_the_table_as_plain_text() -> None:
    out = io.StringIO()
    Report(out).table(ROWS)
    assert out.getvalue().splitlines() == [
        "                                                   count    expected",
        "  beacons sent                                     1,234       1,234",
        "  batches shipped                                      3",
        "  foreign key errors                                   1           0",
    ]


def test_the_table_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", "200")
    out = Terminal()
    Report(out).table(ROWS)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue()).splitlines()
    assert max(map(len, lines)) <= 80
    assert any("beacons sent" in line and "1,234" in line for line in lines)


def test_steps_in_columns() -> None:
    out = io.StringIO()
    report = Report(out)
    report.step_header()
    report.step("beacons repeated byte for byte, in pairs", Counter(sent=1240, duplicate=390, superseded=64))
    report.note("nothing changed")
    assert out.getvalue().splitlines() == [
        "                                           beacons accepted duplicate superseded",
        "  beacons repeated byte for byte, in pairs   1,240                390         64",
        "  -> nothing changed",
    ]


def test_only_a_count_other_than_expected_is_wrong() -> None:
    assert [row.is_right for row in ROWS] == [True, True, False]


def test_nouns() -> None:
    assert [count_noun(1, "batch"), count_noun(2, "batch"), count_noun(1200, "beacon")] == [
        "1 batch",
        "2 batches",
        "1,200 beacons",
    ]
