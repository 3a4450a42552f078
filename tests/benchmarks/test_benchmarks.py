"""The benchmark still runs against the servers as they are; what it measures is for a quiet machine, not for here."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("ingest.py")
MISSING = "needs wrk: on Debian, apt-get install wrk"
ROWS = (
    "beacons a second",
    "ratio to (a)",
    "ratio to (c)",
    "p50, ms",
    "p99, ms",
    "beacons lost (5xx)",
    "vitals stored",
    "memory, MiB (highest)",
    "file, bytes a vital",
)


def test_quick_round_fills_the_table() -> None:
    """One short round of all three servers exits 0, which says that every beacon answered 200 was stored."""
    if shutil.which("wrk") is None:
        if os.environ.get("CI") == "true":
            pytest.fail(MISSING)
        pytest.skip(MISSING)
    command = [sys.executable, str(SCRIPT), "--quick", "--no-bounds"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines() if line[:1] == "|"]
    assert cells[0] == ["", "(a) no-op route", "(b) sidecar, FULL", "(c) look-then-insert"]
    assert tuple(row[0] for row in cells[2:]) == ROWS
    assert all(len(row) == 4 and all(row) for row in cells[2:])


def test_a_small_file_is_verified() -> None:
    """The benchmark of `sidecar verify` on few sessions: a full session refuses, and the file verifies."""
    command = [sys.executable, str(SCRIPT.with_name("verify.py")), "--sessions", "20", "--large", "50", "--no-bounds"]
    here = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[2])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False, env=here)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the 10,001st fact: rejected session is full; a held one: duplicate" in done.stdout
    assert "23 sessions agree with their facts" in done.stdout


def test_a_small_dashboard_is_measured() -> None:
    """The benchmark of the dashboard on few sessions: every page answers, and the table has a row for each."""
    command = [sys.executable, str(SCRIPT.with_name("dashboard.py")), "--sessions", "400", "--rounds", "1"]
    here = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[2])}
    done = subprocess.run([*command, "--no-bounds"], capture_output=True, text=True, timeout=110, check=False, env=here)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "400 sessions, 2,000 web vitals, 1,200 events" in done.stdout
    rows = [line.split("|")[1:-1] for line in done.stdout.splitlines() if line.startswith("| /")]
    assert {row[0].partition("?")[0].strip() for row in rows} >= {"/", "/vitals", "/sessions", "/visitors", "/funnels"}
    assert all(float(row[2]) > 0 for row in rows)


def test_few_sessions_are_shipped() -> None:
    """The benchmark of shipping: one pair of windows, and all that was made is upstream."""
    if shutil.which("wrk") is None:
        if os.environ.get("CI") == "true":
            pytest.fail(MISSING)
        pytest.skip(MISSING)
    arguments = ["--sessions", "1500", "--pairs", "1", "--seconds", "1", "--no-bounds"]
    command = [sys.executable, str(SCRIPT.with_name("shipping.py")), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "upstream: 1,500 of 1,500 sessions, 7,500 of 7,500 facts" in done.stdout
