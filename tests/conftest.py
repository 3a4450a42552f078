"""The order of the files: those that take longest first, so that no worker is left alone with one at the end."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent
# By `pytest --durations=0`.
LONGEST_FIRST = (
    "test_soak.py",
    "ship/test_faults.py",
    "demo/test_demo.py",
    "ship/test_clickhouse_sink.py",
    "tracker/test_delivery.py",
    "tracker/test_identity.py",
    "dashboard/test_accessible.py",
    "test_machine.py",
    "tracker/test_pages.py",
    "test_story.py",
    "dashboard/test_way.py",
    "ship/test_faults_crash.py",
    "test_merging.py",
    "test_prune.py",
    "benchmarks/test_benchmarks.py",
    "ship/test_destinations.py",
    "ship/test_s3_sink.py",
    "tracker/test_vitals.py",
    "demo/test_shop.py",
    "dashboard/test_parked.py",
    "dashboard/test_own_vitals.py",
    "ship/test_faults_chains.py",
    "test_published.py",
    "web/test_hostile.py",
)
_PLACES = {HERE / name: place for place, name in enumerate(LONGEST_FIRST)}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Stable: within a file, and among the others, the order stays."""
    items.sort(key=lambda item: _PLACES.get(item.path, len(_PLACES)))
