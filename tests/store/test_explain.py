"""Explaining: the second telling of what a session is agrees with the first one, and names the right facts."""

from __future__ import annotations

import itertools
import json
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DataObject

from sidecar.model import Campaign, Client, Fact, Page
from sidecar.store.database import open_read_only, snapshot
from sidecar.store.documents import SCALARS, list_session_keys, read_facts, read_session
from sidecar.store.explain import Explained, count_facts, explain, group_left_out
from sidecar.store.explain_text import explain_lines
from sidecar.store.facts import FactOwner
from tests import items
from tests.builders import START, event, record_facts, vital
from tests.local import LocalSidecar

TIMEOUT_MS = 1_800_000
_numbers = itertools.count()


@pytest.fixture(scope="module")
def folder() -> Any:
    """A folder for many small files."""
    with TemporaryDirectory() as name:
        yield Path(name)


def read_all(path: Path) -> list[tuple[list[Fact], dict[str, Any]]]:
    """Facts and document of every session of a file."""
    conn = open_read_only(path)
    with snapshot(conn):
        found = []
        for key in list_session_keys(conn):
            document = read_session(conn, key, START, TIMEOUT_MS)
            owner = FactOwner(document["site"], document["funnelId"], document["sessionId"])
            found.append((read_facts(conn, key, owner), document))
    conn.close()
    return found


def explain_one(path: Path) -> dict[str, Explained]:
    """What is explained of the only session of a file, by name."""
    [(facts, document)] = read_all(path)
    return {one.name: one for one in explain(facts, document)}


def stored_clicks(path: Path, document: dict[str, Any]) -> dict[str, Any]:
    """First and last click ids of a session, as its row has them."""
    with closing(open_read_only(path)) as conn:
        row = conn.execute(
            """SELECT first_click_ids, last_click_ids FROM sessions JOIN funnels USING (funnel_key)
            WHERE funnel_id = ? AND session_id = ?""",
            (document["funnelId"], document["sessionId"]),
        ).fetchone()
    first, last = (None if said is None else json.loads(said) for said in row)
    return {"firstClickIds": first, "lastClickIds": last}


@settings(
    max_examples=75,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)
@given(sent=items.deliveries(START), data=st.data())
def test_every_value_is_the_stored_one(folder: Path, sent: list[items.Delivery], data: DataObject) -> None:
    """Values recomputed from generated facts equal those of the document, in its order; facts are the session's own."""
    path = folder / f"{next(_numbers)}.db"
    with LocalSidecar(path, START) as sidecar:
        for beacon in items.groupings(data, sent):
            sidecar.send(beacon.path, beacon.body, beacon.user_agent, beacon.address)
    for facts, document in read_all(path):
        explained = explain(facts[::-1], document)
        names = [one.name for one in explained if not one.name.startswith("visitor.")]
        clicks = ("firstClickIds", "lastClickIds")  # derived, and in no document
        expected = ["subaccountId", "finished", "provisional", *(name for name, _ in SCALARS)]
        assert [name for name in names if name not in clicks] == expected
        assert {one.name: one.value for one in explained if one.name in clicks} == stored_clicks(path, document)
        for one in explained:
            if one.name in clicks:
                continue
            where, _, name = one.name.rpartition(".")
            said = (document[where] or {"anonymousId": None})[name] if where else document[name]
            assert (one.value, type(one.value)) == (said, type(said)), one
            assert set(one.facts) | {left.fact for left in one.left_out} <= set(facts)
            assert not set(one.facts) & {left.fact for left in one.left_out}
        assert all(len(line) <= 100 for line in explain_lines(facts, document, []))
    for left in folder.glob(f"{path.name}*"):
        left.unlink()


def test_what_is_left_out_says_why(tmp_path: Path) -> None:
    """Placeholders, FID, revenue that is no number or beyond all measure, a second visitor, a second conversion."""
    path = record_facts(
        tmp_path / "s.db",
        [
            vital("s", "TTFB", 120, visitor="ada"),
            vital("s", "TTFB", 0, fact_id="back", at=1, navigation_type="back-forward-cache"),
            vital("s", "TTFB", 0, fact_id="soft", at=2, navigation_type="soft-navigation"),
            vital("s", "FID", 12, at=3),
            event("s", "purchase", at=4, visitor="bob", properties={"revenue": "12", "currency": "EUR"}),
            event("s", "purchase", at=5, properties={"revenue": 12.5, "currency": "USD"}),
            event("s", "conversion", at=6, properties={"revenue": 1e13}),
            event("s", "conversion", at=7),
            event("s", "session_end", at=8, properties={"activeTime": True}),
        ],
    )
    [(facts, document)] = read_all(path)
    numbers = {fact: place for place, fact in enumerate(facts, 1)}
    told = {one.name: (one.value, group_left_out(one.left_out, numbers)) for one in explain(facts, document)}
    assert told["avgTtfb"] == (
        120,
        [
            ("#2", "a placeholder: no time is measured for back-forward-cache"),
            ("#3", "a placeholder: no time is measured for soft-navigation"),
        ],
    )
    assert told["avgInp"] == (None, [("#4", "FID is in no average")])
    assert told["visitor.anonymousId"] == ("ada", [("#5", "it names bob; the first fact that names one counts")])
    assert told["conversionValue"] == (
        12.5,
        [("#5", "its revenue is no number"), ("#7", "its revenue is beyond 1e+12"), ("#8", "it has no revenue")],
    )
    assert told["currency"] == ("EUR", [("#6-#8", "a later conversion; the first one counts")])
    assert told["activeSeconds"] == (None, [("#9", "its activeTime is no number")])


def test_facts_of_first_and_last(tmp_path: Path) -> None:
    """The fact named is the one in order of time that has what is asked for, not the first of all."""
    place = Client(country_code="FR")
    explained = explain_one(
        record_facts(
            tmp_path / "s.db",
            [
                vital("s", "LCP", 5000, page=None, client=None),
                event("s", at=10, page=Page(None, "/p", None), client=place),
                event("s", "late", at=20, campaign=Campaign("news", None, None, None, None)),
                vital("s", "LCP", 3000, fact_id="l-2", at=30),
            ],
        )
    )
    used = {name: [(fact.timestamp - START) for fact in one.facts] for name, one in explained.items()}
    assert (used["startedAt"], used["endedAt"], used["durationSeconds"]) == ([0], [30], [0, 30])
    assert (used["firstPageUrl"], used["lastPageUrl"]) == ([20], [30])
    assert (used["deviceType"], used["countryCode"], used["ipAddress"]) == ([20], [10], [])
    assert (used["firstSource"], used["lastCampaign"], used["provisional"]) == ([20], [20], [10])
    assert (used["avgLcp"], used["experienceScore"], used["pageViews"]) == ([0, 30], [0, 30], [10])
    assert explained["experienceScore"].value == 85
    assert explained["experienceScore"].rule.endswith("Here: LCP needs-improvement -15.")


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ([], ""),
        ([3], "#3"),
        ([1, 2, 3, 7, 9, 10], "#1-#3 #7 #9-#10"),
        (range(1, 60, 2), "#1 #3 #5 #7 #9 #11 #13 #15 #17 #19 #21 #23 and 18 more"),
    ],
)
def test_numbers_of_facts_are_short(numbers: list[int], said: str) -> None:
    """Ranges, and at most twelve of them."""
    assert count_facts(numbers) == said


def test_the_text_cannot_steer_a_terminal(tmp_path: Path) -> None:
    """Escapes, line breaks and directions in what a client said are written out; a value that differs is said."""
    path = record_facts(
        tmp_path / "s.db", [event("s\x1b[31m", "red\x1b[0m\n", page=Page("https://shop.test/\u202e", None, None))]
    )
    [(facts, document)] = read_all(path)
    arrival = {
        "metric": "",
        "id": "x\x07",
        "outcome": "duplicate",
        "reason": "",
        "times": 2,
        "first_at": START,
        "last_at": START,
    }
    lines = [*explain_lines(facts, document | {"pageViews": 7}, [arrival])]
    assert all(line.isprintable() and len(line) <= 100 for line in lines)
    assert lines[0] == "Session s\\x1b[31m"
    assert "  pageViews             0 (stored: 7; see sidecar verify)" in lines
    assert any("event x\\x07: duplicate (was there already) 2 times" in line for line in lines)
