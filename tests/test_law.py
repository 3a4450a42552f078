"""The law of merging: the same items in any order, grouping and repetition give the same export, byte for byte."""

from __future__ import annotations

import itertools
import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DataObject

from sidecar.store.database import open_database
from tests import items
from tests.items import Beacon, Delivery
from tests.local import LocalSidecar, agent_of, dump
from tests.machine import Picture, derived_id, take_picture
from tests.reference import Reference

NOW = 1_795_330_800_000  # 2026-11-22T07:00:00.000Z
ORDERS = 3
_numbers = itertools.count()


@pytest.fixture(scope="module")
def folder() -> Any:
    """A folder for many small files."""
    with TemporaryDirectory() as name:
        yield Path(name)


@cache
def _empty(folder: Path) -> Picture:
    """A database without facts, to start from: migrating each would take longer than the test."""
    open_database(folder / "empty.db").close()
    return take_picture(folder / "empty.db")


def deliver(folder: Path, beacons: list[Beacon]) -> tuple[list[dict[str, Any]], list[list[str]]]:
    """Documents and answers after a fresh sidecar has had the beacons; it must verify clean."""
    path = folder / f"{next(_numbers)}.db"
    _empty(folder).put(path)
    with LocalSidecar(path, NOW) as sidecar:
        answers = []
        for beacon in beacons:
            sidecar.now += 1
            answers.append(sidecar.send(beacon.path, beacon.body, beacon.user_agent, beacon.address))
        sidecar.now = NOW
        assert sidecar.findings() == []
        documents = sidecar.export_documents()
    for left in folder.glob(f"{path.name}*"):
        left.unlink()
    return documents, answers


def refer(beacons: list[Beacon]) -> tuple[list[dict[str, Any]], list[list[str]]]:
    """What the reference makes of the same beacons."""
    reference = Reference(now_ms=lambda: NOW, derive_id=derived_id, read_user_agent=agent_of)
    answers = []
    for beacon in beacons:
        take = reference.web_vitals if beacon.path == "web-vitals" else reference.events
        address = beacon.address
        private = ":".join(address.split(":")[:3]) + "::" if ":" in address else address.rsplit(".", 1)[0] + ".0"
        body = json.loads(dump(beacon.body))
        answers.append(take(body, user_agent_client=agent_of(beacon.user_agent), address=private))
    return reference.export(), answers


def first_difference(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> str:
    """Where two exports differ; empty where they are the same bytes."""
    if len(ours) != len(theirs):
        return f"{len(ours)} documents, {len(theirs)} in the other"
    for one, other in zip(ours, theirs, strict=True):
        if list(one) != list(other):
            return f"keys: {list(one)} and {list(other)}"
        for key in one:
            if json.dumps(one[key]) != json.dumps(other[key]):
                return f"{one['sessionId']} {key}: {json.dumps(one[key])}\nand {json.dumps(other[key])}"
    return ""


@pytest.mark.timeout(600)
@settings(
    max_examples=60,
    deadline=None,
    report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)
@given(sent=items.deliveries(NOW), data=st.data())
def test_any_order_gives_the_same_export(folder: Path, sent: list[Delivery], data: DataObject) -> None:
    """Each set is delivered in several orders, groupings and repeats, and equals what the reference says."""
    exports = []
    for _ in range(ORDERS):
        beacons = items.groupings(data, sent)
        documents, answers = deliver(folder, beacons)
        expected, expected_answers = refer(beacons)
        assert first_difference(documents, expected) == ""
        assert answers == expected_answers
        exports.append(documents)
    assert all(first_difference(exports[0], other) == "" for other in exports[1:])
