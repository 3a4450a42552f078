"""The order of the files: those that take longest first, so that no worker is left alone with one at the end."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent
# As measured with `pytest --durations=0`, seconds on two cores.
LONGEST_FIRST = (
    "test_machine.py",
    "test_soak.py",
    "ship/test_faults.py",
    "test_machine_kill.py",
    "store/test_figures.py",
    "test_law.py",
    "ship/test_destinations.py",
    "test_kill.py",
    "test_story.py",
    "demo/test_demo.py",
    "test_cli.py",
    "dashboard/test_accessible.py",
    "dashboard/test_way.py",
    "ship/test_faults_crash.py",
)
_PLACES = {HERE / name: place for place, name in enumerate(LONGEST_FIRST)}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Stable: within a file, and among the others, the order stays."""
    items.sort(key=lambda item: _PLACES.get(item.path, len(_PLACES)))
