"""What documents that come in obey, case by case: clocks, revisions, subaccounts, erasures.

These are the faults of `tests/mutations.py` that nothing else finds as quickly.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sidecar.canonical import to_iso
from sidecar.model import Outcome
from sidecar.store.database import immediate
from sidecar.store.documents import read_document
from sidecar.store.erasure import forget
from sidecar.store.lines import merge
from tests.local import LocalSidecar

NOW = 1_795_330_800_000  # 2026-11-22T07:00:00.000Z
DAY_MS = 86_400_000


@pytest.fixture
def sidecar(tmp_path: Path) -> Iterator[LocalSidecar]:
    """A fresh one whose clock stands."""
    with LocalSidecar(tmp_path / "f.db", NOW) as fresh:
        yield fresh


def vital(vital_id: str, at: int = NOW, *, skewed: bool = False, visitor: str | None = None) -> dict[str, Any]:
    """A web vital as it stands in a document, at `at` ms since the epoch."""
    said = {"metric": "LCP", "id": vital_id, "value": 5, "rating": "good", "anonymousId": visitor}
    return said | {"timestamp": to_iso(at), "clockSkewed": skewed}


def bring(
    sidecar: LocalSidecar, vitals: list[dict[str, Any]], *, revision: int = NOW, subaccount: str | None = None
) -> Outcome:
    """Import one document of the session s."""
    owner = {"version": 1, "site": "default", "funnelId": "default", "sessionId": "s"}
    document = read_document(owner | {"subaccountId": subaccount, "revision": revision, "webVitals": vitals})
    with immediate(sidecar.conn):
        [result] = merge(sidecar.conn, [document], sidecar.now)
    assert sidecar.findings() == []
    return result.outcome


def held(sidecar: LocalSidecar) -> list[tuple[int, bool]]:
    """Time and whether the clock was wrong, of each vital."""
    rows = sidecar.conn.execute("SELECT timestamp, clock_skewed FROM web_vitals ORDER BY id")
    return [(timestamp, bool(skewed)) for timestamp, skewed in rows]


@pytest.mark.parametrize("at", [NOW - 400 * DAY_MS, NOW + 400 * DAY_MS])
@pytest.mark.parametrize("skewed", [False, True])
def test_documents_bring_their_times(sidecar: LocalSidecar, at: int, skewed: bool) -> None:
    """Import never applies the window: a time is taken as it stands, and so is what is said of the clock."""
    assert bring(sidecar, [vital("a", at, skewed=skewed)]) == "accepted"
    assert held(sidecar) == [(at, skewed)]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_of_skewed_facts_in_documents_the_newest_wins(sidecar: LocalSidecar, order: tuple[int, int]) -> None:
    """Two sidecars dated the same report by its arrival: whichever document comes first, the later time is held."""
    for place in order:
        bring(sidecar, [vital("a", NOW + place, skewed=True)])
    assert held(sidecar) == [(NOW + 1, True)]


HOUR = 3_600_000
REVISIONS = {
    "the same, older": ("a", NOW - HOUR, "a", NOW - 2 * HOUR, NOW - HOUR),
    "the same, newer": ("a", NOW - HOUR, "a", NOW - 5, NOW - 5),
    "more, older": ("a", NOW - HOUR, "ab", NOW - 2 * HOUR, NOW - HOUR),
    "more, newer": ("a", NOW - HOUR, "ab", NOW + HOUR, NOW + HOUR),
    "another, older": ("a", NOW - HOUR, "b", NOW - 2 * HOUR, NOW),
    "another, from ahead": ("a", NOW - HOUR, "b", NOW + HOUR, NOW + HOUR + 1),
    "another, held ahead": ("a", NOW + HOUR, "b", NOW - HOUR, NOW + HOUR + 1),
    "less, older": ("ab", NOW - HOUR, "a", NOW - 2 * HOUR, NOW - HOUR),
    "less, of the same revision": ("ab", NOW - HOUR, "a", NOW - HOUR, NOW),
    "less, newer": ("ab", NOW - HOUR, "a", NOW - 5, NOW),
    "less, from ahead": ("ab", NOW - HOUR, "a", NOW + HOUR, NOW + HOUR + 1),
}


@pytest.mark.parametrize("case", REVISIONS)
def test_revision_of_a_merged_session(sidecar: LocalSidecar, case: str) -> None:
    """The greater one where it holds just the document's facts, past both where either side lacked any."""
    before, before_revision, said, said_revision, expected = REVISIONS[case]
    bring(sidecar, [vital(name) for name in before], revision=before_revision)
    bring(sidecar, [vital(name) for name in said], revision=said_revision)
    assert sidecar.conn.execute("SELECT revision FROM sessions").fetchone() == (expected,)


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0), (2, 1, 0)])
def test_the_highest_revision_names_the_subaccount(sidecar: LocalSidecar, order: tuple[int, ...]) -> None:
    """Whichever document comes last."""
    for place in order:
        bring(sidecar, [vital("a")], revision=NOW + place, subaccount=f"shop-{place}")
    assert sidecar.conn.execute("SELECT subaccount_id FROM funnels").fetchone() == ("shop-2",)


def test_an_erased_session_stays_erased_whoever_it_names(sidecar: LocalSidecar) -> None:
    """A document of it is refused though its facts name nobody: they were the erased visitor's."""
    bring(sidecar, [vital("a", visitor="ada"), vital("b", NOW + 1)])
    with immediate(sidecar.conn):
        forget(sidecar.conn, "default", "ada", NOW)
    assert bring(sidecar, [vital("b", NOW + 1)]) == "rejected"
    assert held(sidecar) == []
