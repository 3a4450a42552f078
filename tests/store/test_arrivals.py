"""What was not taken is noted, in few rows, and nothing is written where everything was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from sidecar.model import Fact, Outcome
from sidecar.store import facts as facts_module
from sidecar.store.arrivals import ARRIVALS_MAX, Refused, read_arrivals
from sidecar.store.database import Connection, immediate, open_database
from sidecar.store.documents import read_session, to_line
from sidecar.store.facts import Recording, record
from sidecar.store.lines import merge_lines
from tests.builders import START, event, vital


@pytest.fixture
def conn(tmp_path: Path) -> Iterator[Connection]:
    """A new file."""
    with closing(open_database(tmp_path / "a.db", durability="normal")) as opened:
        yield opened


def send(conn: Connection, facts: list[Fact], now: int) -> list[Outcome]:
    """One beacon; the outcome of each item."""
    with immediate(conn):
        [recorded] = record(conn, [Recording([*enumerate(facts)], now)])
    return [judged.outcome for judged in recorded.judged]


def test_repeats_and_older_reports_are_noted_once_each(conn: Connection) -> None:
    """A row a fact and outcome, with how often, and when first and last."""
    assert send(conn, [vital("s", "LCP", 5, at=9), event("s")], START) == ["accepted", "accepted"]
    assert conn.execute("SELECT count(*) FROM arrivals").fetchone() == (0,)
    send(conn, [vital("s", "LCP", 5, at=9), vital("s", "LCP", 4, at=8)], START + 1)
    send(conn, [event("s"), vital("t", "LCP", 5), vital("s", "LCP", 5, at=9)], START + 2)
    [key] = conn.execute("SELECT session_key FROM sessions WHERE session_id = 's'").fetchone()
    noted = [tuple(row.values()) for row in read_arrivals(conn, key)]
    assert noted == [
        ("", "e-page_view-0", "duplicate", "", 1, START + 2, START + 2),
        ("LCP", "v-LCP", "duplicate", "", 2, START + 1, START + 2),
        ("LCP", "v-LCP", "superseded", "4 of 2026-11-22T07:00:00.008Z", 1, START + 1, START + 1),
    ]


def test_a_full_session_is_noted_and_the_notes_are_few(conn: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refusals count, too, and of a session only the last ones stay."""
    monkeypatch.setattr(facts_module, "SESSION_FACTS_MAX", 2)
    send(conn, [event("s", at=at) for at in range(2)], START)
    refused = [event("s", at=at) for at in range(100, 100 + 3 * ARRIVALS_MAX)]
    for number, fact in enumerate(refused):
        assert send(conn, [fact], START + number) == ["rejected"]
    noted = read_arrivals(conn, 1)
    assert [row["id"] for row in noted] == [fact.id for fact in refused[: -ARRIVALS_MAX - 1 : -1]]
    assert {row["outcome"] for row in noted} == {"rejected"}


def test_notes_go_with_their_session(conn: Connection) -> None:
    """Whoever deletes a session need not know of them."""
    send(conn, [event("s")], START)
    send(conn, [event("s")], START)
    with immediate(conn):
        conn.execute("DELETE FROM events")
        conn.execute("DELETE FROM sessions")
    assert conn.execute("SELECT count(*) FROM arrivals").fetchone() == (0,)


def test_documents_that_repeat_are_not_noted(conn: Connection) -> None:
    """A session that ships again is whole again: that is no news."""
    send(conn, [event("s")], START)
    line = to_line(read_session(conn, 1, START, 0)).encode()
    with immediate(conn):
        assert [result.outcome for result in merge_lines(conn, [line], START)] == ["duplicate"]
    assert conn.execute("SELECT count(*) FROM arrivals").fetchone() == (0,)


def test_refused_items_are_noted_where_their_session_is_held(conn: Connection) -> None:
    """With the reason and what the item said it was; a refusal alone makes no session."""
    refused = (
        Refused("default", "default", "s", "CLS", "c-1", "value: must be >= 0"),
        Refused("default", "default", "s", "", "", "eventName: is required"),
        Refused("default", "default", "nobody", "LCP", "l-1", "value: must be a number"),
    )
    with immediate(conn):
        record(conn, [Recording([(1, vital("s", "LCP", 5))], START, refused)])
    with immediate(conn):
        assert record(conn, [Recording([], START + 5, refused[:1])])[0].judged == []
    assert conn.execute("SELECT count(*) FROM sessions").fetchone() == (1,)
    assert [tuple(row.values()) for row in read_arrivals(conn, 1)] == [
        ("CLS", "c-1", "rejected", "value: must be >= 0", 2, START, START + 5),
        ("", "", "rejected", "eventName: is required", 1, START, START),
    ]
