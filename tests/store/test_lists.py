"""Lists of sessions and visitors: every order forth and back, searches, filters, and cursors that are not ours."""

from __future__ import annotations

import random
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sidecar.model import Client, Fact
from sidecar.store.database import Connection, open_read_only
from sidecar.store.lists import (
    SESSION_SORTS,
    VISITOR_SORTS,
    Belongings,
    Part,
    Wanted,
    count_belongings,
    list_sessions,
    list_visitors,
)
from sidecar.store.queries import FilterError, find_visitors
from sidecar.store.scope import Scope
from tests.builders import BOT, START, event, page_of, record_facts, vital

HOUR = 3_600_000
SCOPE = Scope(START - 24 * HOUR, START + 24 * HOUR)
PHONE = Client("mobile", "Safari", "17", "iOS", "17", None, None, None, "FR", "France")


def some_facts() -> list[Fact]:
    """40 sessions of 12 visitors, with few different values, so that orders have ties; some have no vitals."""
    chance = random.Random(7)
    facts: list[Fact] = []
    for n in range(40):
        sent: dict[str, Any] = {"visitor": f"visitor-{n % 12}", "client": PHONE if n % 3 else None}
        at = chance.randrange(6) * HOUR
        facts += [event(f"s-{n}", f"e{k}", at=at + k * 1000, **sent) for k in range(chance.randrange(1, 4))]
        for metric in ("LCP", "INP", "CLS", "FCP", "TTFB"):
            if chance.random() < 0.6:
                facts.append(vital(f"s-{n}", metric, chance.choice([0.05, 300, 2600.5, 5000]), at=at, **sent))
    return facts


@pytest.fixture(scope="module")
def conn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connection]:
    """A database of `some_facts`; nothing here writes."""
    found = open_read_only(record_facts(tmp_path_factory.mktemp("lists") / "sidecar.db", some_facts()))
    yield found
    found.close()


def ids(part: Part) -> list[str]:
    return [row["session_id"] for row in part.rows]


def walk(read: Callable[[Wanted], Part], sort: str, limit: int) -> list[Part]:
    """All pages of a list, forth."""
    parts = [read(Wanted(sort, limit=limit))]
    while parts[-1].after:
        parts.append(read(Wanted(sort, cursor=parts[-1].after, limit=limit)))
    return parts


# --- orders and pages ------------------------------------------------------------------------------------------------


def expected(rows: list[dict[str, Any]], sort: str) -> list[str]:
    """The order, by Python's own sorting of the rows."""
    column = {"score": "experience_score", "events": "events_count", "longest": "length"}.get(sort, f"avg_{sort}")
    rising = sort in ("oldest", "score")

    def place(row: dict[str, Any]) -> tuple[bool, float, int]:
        row = row | {"length": row["ended_at"] - row["started_at"]}
        value = row["started_at"] if sort in ("newest", "oldest") else row[column]
        sign = 1 if rising else -1
        return value is None, 0 if value is None else sign * value, sign * row["session_key"]

    return [row["session_id"] for row in sorted(rows, key=place)]


@pytest.mark.parametrize("sort", SESSION_SORTS)
@pytest.mark.parametrize("limit", [1, 7, 40, 100])
def test_every_order_forth_and_back(conn: Connection, sort: str, limit: int) -> None:
    """Pages forth are the whole list, each once; pages back are the same pages."""

    def read(wanted: Wanted) -> Part:
        return list_sessions(conn, SCOPE, wanted)

    rows = read(Wanted("newest", limit=1000)).rows
    forth = walk(read, sort, limit)
    assert [name for part in forth for name in ids(part)] == expected(rows, sort)
    assert forth[0].before is None
    back = [forth[-1]]
    while back[-1].before:
        back.append(read(Wanted(sort, cursor=back[-1].before, limit=limit)))
    assert [ids(part) for part in reversed(back)] == [ids(part) for part in forth]


@pytest.mark.parametrize("sort", VISITOR_SORTS)
def test_every_order_of_visitors(conn: Connection, sort: str) -> None:
    column = {"seen": "last_seen", "new": "first_seen", "sessions": "total_sessions", "events": "total_events"}[sort]

    def read(wanted: Wanted) -> Part:
        return list_visitors(conn, SCOPE, wanted)

    rows = read(Wanted("seen", limit=100)).rows
    assert len(rows) == 12
    forth = walk(read, sort, 5)
    said = [row["visitor_key"] for part in forth for row in part.rows]
    assert said == [r["visitor_key"] for r in sorted(rows, key=lambda r: (-r[column], -r["visitor_key"]))]
    assert read(Wanted(sort, cursor=forth[2].before, limit=5)).rows == forth[1].rows


def test_what_arrives_while_someone_pages_moves_nothing(tmp_path: Path) -> None:
    path = record_facts(tmp_path / "sidecar.db", [event(f"s-{n}", at=n) for n in range(6)])
    conn = open_read_only(path)
    first = list_sessions(conn, SCOPE, Wanted("newest", limit=2))
    record_facts(path, [event("later", at=100)])
    second = list_sessions(conn, SCOPE, Wanted("newest", cursor=first.after, limit=2))
    assert (ids(first), ids(second)) == (["s-5", "s-4"], ["s-3", "s-2"])
    assert ids(list_sessions(conn, SCOPE, Wanted("newest", cursor=second.before, limit=2))) == ["s-5", "s-4"]
    conn.close()


def test_an_empty_list_has_no_other_page(conn: Connection) -> None:
    assert list_sessions(conn, SCOPE._replace(since=0, until=1), Wanted("lcp")) == Part([], None, None)
    assert list_visitors(conn, SCOPE, Wanted("seen", "nobody like that")) == Part([], None, None)


def cursor_of(text: str) -> str:
    return urlsafe_b64encode(text.encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    "cursor",
    [
        *("x", "é", "!!!!", "=" * 9, cursor_of("null"), cursor_of("{}"), cursor_of("[" * 5000)),
        cursor_of('["s","lcp",1,2]'),
        cursor_of('["s","inp",1,2,false]'),
        cursor_of('["v","lcp",1,2,false]'),
        cursor_of('["s","lcp",true,2,false]'),
        cursor_of('["s","lcp",1,-2,false]'),
        cursor_of('["s","lcp",1,2.5,false]'),
        cursor_of('["s","lcp",NaN,2,false]'),
        cursor_of('["s","lcp",1e999,2,false]'),
        cursor_of('["s","lcp",1' + "0" * 4000 + ",2,false]"),
        cursor_of('["s","lcp",1,2,0]'),
    ],
)
def test_a_cursor_of_something_else_is_refused(conn: Connection, cursor: str) -> None:
    with pytest.raises(FilterError, match="cursor"):
        list_sessions(conn, SCOPE, Wanted("lcp", cursor=cursor))


def test_an_unknown_order_is_refused(conn: Connection) -> None:
    with pytest.raises(FilterError, match="sort: must be one of newest, oldest, longest"):
        list_sessions(conn, SCOPE, Wanted("id; DROP TABLE sessions"))
    with pytest.raises(FilterError, match="sort: must be one of seen"):
        list_visitors(conn, SCOPE, Wanted("newest"))


# --- searches --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connection]:
    """Five sessions to look for."""
    traits: dict[str, object] = {"userId": "u-77", "traits": {"name": "Zoë Lane"}}
    facts: list[Fact] = [
        event("by-name", "user_identified", properties=traits, visitor="v-zoe"),
        event("by-path", page=page_of("/docs/Start")),
        event("by-last", at=0),
        event("by-last", at=5, page=page_of("/thanks")),
        event("100%_sure\\"),
        event("robot", client=BOT),
    ]
    found = open_read_only(record_facts(tmp_path_factory.mktemp("named") / "sidecar.db", facts))
    yield found
    found.close()


@pytest.mark.parametrize(
    ("search", "names"),
    [
        ("by-", {"by-name", "by-path", "by-last"}),
        ("Y-NA", {"by-name"}),
        ("v-zoe", {"by-name"}),
        ("zoë", {"by-name"}),
        ("lane", {"by-name"}),
        ("u-77", {"by-name"}),
        ("/docs", {"by-path"}),
        ("start", {"by-path"}),
        (" /thanks ", {"by-last"}),
        ("%", {"100%_sure\\"}),
        ("_", {"100%_sure\\"}),
        ("\\", {"100%_sure\\"}),
        ("0%_S", {"100%_sure\\"}),
        ("'; --", set()),
        ("x" * 5000, set()),
        ("robot", {"robot"}),
    ],
)
def test_a_search_finds(named: Connection, search: str, names: set[str]) -> None:
    """In ids, names and paths; its signs stand for themselves."""
    assert set(ids(list_sessions(named, SCOPE, Wanted("newest", search)))) == names


@pytest.mark.parametrize(
    ("search", "count"), [("v-zoe", 1), ("zoë l", 1), ("U-77", 1), ("_", 0), ("by-name", 0), ("", 1)]
)
def test_a_search_finds_visitors(named: Connection, search: str, count: int) -> None:
    assert len(list_visitors(named, SCOPE, Wanted("seen", search)).rows) == count


# --- filters ---------------------------------------------------------------------------------------------------------


def test_filters_choose(tmp_path: Path) -> None:
    """Site, funnel, device, country, page and period; of visitors, by their sessions."""
    facts: list[Fact] = [
        event("phone", client=PHONE, visitor="p"),
        vital("ad", "LCP", 1, funnel_id="ads", page=page_of("/landing"), client=None, visitor="a"),
        event("other", site="shop", visitor="o"),
        event("middle", at=1, visitor="m"),
        event("middle", at=2, page=page_of("/landing"), visitor="m"),
        event("middle", at=3, visitor="m"),
        event("late", at=48 * HOUR, visitor="l"),
    ]
    conn = open_read_only(record_facts(tmp_path / "sidecar.db", facts))
    for changes, names in (
        ({}, "admiddleotherphone"),
        ({"site": "shop"}, "other"),
        ({"funnel_id": "ads"}, "ad"),
        ({"site": "shop", "funnel_id": "ads"}, ""),
        ({"device": "mobile"}, "phone"),
        ({"device": "unknown"}, "ad"),
        ({"country": "FR"}, "phone"),
        ({"country": "unknown", "device": "desktop"}, "middleother"),
        ({"page": "/landing"}, "admiddle"),
        ({"page": "/land"}, ""),
        ({"since": START + 40 * HOUR, "until": START + 50 * HOUR}, "late"),
    ):
        scope = SCOPE._replace(**changes)
        found = sorted(ids(list_sessions(conn, scope, Wanted("score"))))
        assert "".join(found) == names, changes
        visitors = [row["anonymous_id"] for row in list_visitors(conn, scope, Wanted("events")).rows]
        assert sorted(visitors) == [name[0] for name in found], changes
    conn.close()


def test_what_is_held_of_a_visitor(conn: Connection) -> None:
    (row,) = find_visitors(conn, "visitor-3")
    held = count_belongings(conn, row["visitor_key"])
    assert (held.sessions, held.events) == (row["total_sessions"], row["total_events"])
    listed = list_sessions(conn, SCOPE, Wanted("newest"), visitor_key=row["visitor_key"])
    assert held == Belongings(
        len(listed.rows), sum(s["vitals_count"] for s in listed.rows), sum(s["events_count"] for s in listed.rows)
    )
    assert count_belongings(conn, 999_999) == Belongings(0, 0, 0)
