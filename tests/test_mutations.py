"""The faults that `tests/mutations.py` plants: each still fits the store, and what it says of a run is true."""

from __future__ import annotations

import re
from contextlib import closing

import pytest

from sidecar.store.database import Connection
from tests.mutations import (
    FACTS,
    FAULTS,
    MIGRATIONS,
    ROOT,
    SCHEMA,
    Change,
    Fault,
    FaultError,
    main,
    planted,
    run_faults,
)
from tests.store.test_database import shape


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_each_fault_can_be_planted(fault: Fault) -> None:
    """Its texts occur as often as it says, and something is another text afterwards."""
    for file, text in planted(ROOT, fault).items():
        assert text != (ROOT / file).read_text(encoding="utf-8")


def test_faults_are_many_and_each_is_one() -> None:
    """As many as the README says, none twice."""
    assert len(FAULTS) == len({fault.name for fault in FAULTS}) == len({fault.changes for fault in FAULTS})
    said = re.search(r"mutations\.py` plants (\d+) faults", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert said is not None
    assert int(said[1]) == len(FAULTS) >= 20


def made(texts: dict[str, str], *files: str) -> dict[str, str]:
    """What a new database holds after the statements of some files: names and texts."""
    with closing(Connection(":memory:")) as conn:
        for file in files:
            conn.executescript(texts.get(file) or (ROOT / file).read_text(encoding="utf-8"))
        return shape(conn)


@pytest.mark.parametrize("fault", [one for one in FAULTS if one.file == SCHEMA], ids=lambda fault: fault.name)
def test_a_fault_in_sql_is_where_it_counts(fault: Fault) -> None:
    """Migrations still make the schema, both with the fault: no later one makes the statement again without it."""
    texts = planted(ROOT, fault)
    migrations = [f"{MIGRATIONS}/{path.name}" for path in sorted((ROOT / MIGRATIONS).glob("*.sql"))]
    assert made(texts, *migrations) == made(texts, SCHEMA) != made({}, SCHEMA)


def test_a_text_that_has_gone_is_said() -> None:
    """Also where it occurs more often than it should."""
    with pytest.raises(FaultError, match="occurs 0 times, not 1"):
        planted(ROOT, Fault("gone", (Change(FACTS, "a text that is nowhere", ""),)))
    with pytest.raises(FaultError, match="times, not 1"):
        planted(ROOT, Fault("common", (Change(FACTS, "return", ""),)))


def test_faults_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    """All, or those that are named."""
    assert main(["--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(FAULTS)
    assert main(["--list", "--only", "duplicate"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert 0 < len(listed) < len(FAULTS)
    assert all("duplicate" in line for line in listed)


def test_a_fault_is_killed_and_a_comment_survives(capsys: pytest.CaptureFixture[str]) -> None:
    """With the test that found it, and exit status 1 for what none found or what no test could run with."""
    fault = next(fault for fault in FAULTS if fault.name == "a document sets the revision back")
    harmless = Fault("a comment", (Change(FACTS, "# --- judging", "# --- judged"),))
    broken = Fault("no code", (Change(FACTS, "def judge(", "def judge("[:-1]),))
    tests = ["tests/store/test_faults.py"]
    assert run_faults([fault, harmless, broken], tests, workers=2) == 1
    _, *lines, total = capsys.readouterr().out.splitlines()
    said = [[cell.strip() for cell in line.split("|")][:3] for line in lines]
    assert said[0][2].startswith("test_faults.py::test_revision_of_a_merged_session[")
    assert said[1] == ["a comment", FACTS, "SURVIVED"]
    assert said[2][2].startswith("BROKEN SyntaxError")
    assert total == "1 of 3 faults killed"
