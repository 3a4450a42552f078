"""The order of the files: those that take longest first, so that no worker is left alone with one at the end."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent
# By `pytest --durations=0`.
LONGEST_FIRST = (
    "test_machine.py",
    "test_soak.py",
    "ship/test_faults.py",
    "test_cli.py",
    "test_law.py",
    "ship/test_faults_crash.py",
    "test_prune.py",
    "test_kill.py",
    "test_forget.py",
    "test_parked.py",
    "store/test_figures.py",
    "test_machine_kill.py",
    "test_backup.py",
    "ship/test_operating.py",
    "demo/test_demo.py",
    "test_story.py",
    "dashboard/test_parked.py",
    "test_recording.py",
)
_PLACES = {HERE / name: place for place, name in enumerate(LONGEST_FIRST)}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Stable: within a file, and among the others, the order stays."""
    items.sort(key=lambda item: _PLACES.get(item.path, len(_PLACES)))
