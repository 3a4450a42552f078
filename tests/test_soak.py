"""The short form of the soak: sound as the program is, and not with any of the faults planted in it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.soak_ends import Planted, PlantedError, plant

SCRIPT = Path(__file__).with_name("soak.py")
RUNS_MAX = 6  # of 4 s: to find a planted fault
ROWS = (
    "acknowledged items lost",
    "upstream unequal",
    "answered 200 and not held",
    "applied twice",
    "erased sessions kept",
    "differences found by verify",
    "answers and ends that nothing explains",
)


def soak(*arguments: str) -> tuple[int, dict[str, str], str]:
    """Exit code, the counted column by row, and all that was said."""
    command = [sys.executable, str(SCRIPT), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=360, check=False)
    cells = [[cell.strip() for cell in line.split("|")] for line in done.stdout.splitlines() if line[:1] == "|"]
    return done.returncode, {row[1]: row[2] for row in cells[2:]}, done.stdout + done.stderr


@pytest.mark.timeout(420)
def test_nothing_is_lost_or_doubled() -> None:
    """Exit 0 says that it was sound and not void: each kind of fault came up at least once."""
    code, counted, said = soak("--seconds", "8")
    assert code == 0, said
    assert [counted[row] for row in ROWS] == ["0"] * len(ROWS)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("fault", "rows"),
    [
        ("confirm-present", ["upstream unequal"]),
        ("no-merge", ["upstream unequal"]),
        ("key-before-digest", ["answered 200 and not held", "upstream unequal"]),  # sessions, or an erasure
    ],
)
def test_a_planted_fault_fails(fault: str, rows: list[str]) -> None:
    """What it does is counted, and the exit status says so; on a busy machine chance may need more than one run."""
    said = ""
    for seed in range(1, RUNS_MAX + 1):
        code, counted, output = soak("--seconds", "4", "--seed", str(seed), "--fault", fault)
        said += output
        if code == 1 and {counted[row] for row in rows} != {"0"}:
            return
        assert code in (0, 2), said  # not found, or too little happened: nothing else
    pytest.fail(said)


def test_a_fault_that_cannot_be_planted_is_said(tmp_path: Path) -> None:
    """Where its text has gone, or occurs more than once."""
    with pytest.raises(PlantedError, match="0 times, not once"):
        plant(Planted("store/outbox.py", "a text that is nowhere", ""), tmp_path / "none")
    with pytest.raises(PlantedError, match="times, not once"):
        plant(Planted("store/outbox.py", "return", ""), tmp_path / "many")
