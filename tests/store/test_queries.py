"""Reading by statements: lists by keyset, ids across sites and funnels, and figures with literal expected values."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sidecar.errors import StoreError, UnavailableError
from sidecar.model import Fact, nearest_rank
from sidecar.store import figures, queries, samples
from sidecar.store.database import Connection, OperationalError, open_read_only
from sidecar.store.figures import latest_start
from sidecar.store.queries import (
    FilterError,
    Filters,
    count_overview,
    count_provisional,
    find_sessions,
    find_visitors,
    list_funnels,
    list_sessions,
    list_visitors,
    percentile_vitals,
)
from sidecar.store.readers import Readers
from sidecar.store.scope import Scope
from tests.builders import BOT, START, event, record_facts, vital

MINUTE = 60_000
TIMEOUT_MS = 30 * MINUTE


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """An empty database."""
    return record_facts(tmp_path / "sidecar.db", [])


@pytest.fixture
def conn(path: Path) -> Iterator[Connection]:
    """A reading connection to it."""
    conn = open_read_only(path)
    yield conn
    conn.close()


def ids(rows: list[dict[str, Any]], name: str = "session_id") -> list[str]:
    return [row[name] for row in rows]


# --- lists -----------------------------------------------------------------------------------------------------------


def test_sessions_are_newest_first_and_of_equal_start_the_later_stored_first(path: Path, conn: Connection) -> None:
    record_facts(path, [event("a", at=0), event("b", at=5), event("c", at=5), event("d", at=2)])
    assert ids(list_sessions(conn, Filters()).rows) == ["c", "b", "d", "a"]


def test_pages_of_a_list_hold_every_session_once_while_others_arrive(path: Path, conn: Connection) -> None:
    record_facts(path, [event(f"s{n}", at=n // 2) for n in range(6)])
    first = list_sessions(conn, Filters(limit=2))
    record_facts(path, [event("newer", at=99), event("older", at=-99)])
    second = list_sessions(conn, Filters(limit=2, cursor=first.next_cursor))
    third = list_sessions(conn, Filters(limit=2, cursor=second.next_cursor))
    last = list_sessions(conn, Filters(limit=2, cursor=third.next_cursor))
    assert [ids(page.rows) for page in (first, second, third, last)] == [
        ["s5", "s4"],
        ["s3", "s2"],
        ["s1", "s0"],
        ["older"],
    ]
    assert last.next_cursor is None


def test_a_full_last_page_has_no_next_one(path: Path, conn: Connection) -> None:
    record_facts(path, [event("a"), event("b")])
    assert list_sessions(conn, Filters(limit=2)).next_cursor is None


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (Filters(site="shop"), ["shop-default"]),
        (Filters(funnel_id="ads"), ["default-ads"]),
        (Filters(site="shop", funnel_id="ads"), []),
        (Filters(since=START + 10), ["shop-default", "default-ads"]),
        (Filters(until=START + 10), ["default-default"]),
        (Filters(since=START + 10, until=START + 20), ["default-ads"]),
    ],
)
def test_filters_of_a_list(path: Path, conn: Connection, filters: Filters, expected: list[str]) -> None:
    record_facts(
        path,
        [
            event("default-default", at=0),
            event("default-ads", at=10, funnel_id="ads"),
            event("shop-default", at=20, site="shop"),
        ],
    )
    assert ids(list_sessions(conn, filters).rows) == expected


@pytest.mark.parametrize("cursor", ["x", "!", "czE.", "é", "czEuMQ==x", "c" * 4000])
def test_a_cursor_that_no_list_gave_is_refused(conn: Connection, cursor: str) -> None:
    with pytest.raises(FilterError, match=r"^cursor: must be the nextCursor of the same list$"):
        list_sessions(conn, Filters(cursor=cursor))


def test_a_cursor_of_sessions_is_none_of_visitors(path: Path, conn: Connection) -> None:
    record_facts(path, [event("a", visitor="v"), event("b", visitor="w")])
    cursor = list_sessions(conn, Filters(limit=1)).next_cursor
    assert cursor is not None
    with pytest.raises(FilterError, match=r"^cursor: "):
        list_visitors(conn, Filters(cursor=cursor))


def test_visitors_are_last_seen_first_and_have_a_session_that_fits(path: Path, conn: Connection) -> None:
    record_facts(
        path,
        [
            event("a", at=0, visitor="early"),
            event("b", at=10, visitor="late", funnel_id="ads"),
            event("c", at=20, visitor="late"),
            event("d", at=5, visitor="middle", site="shop"),
            event("e", at=30),
        ],
    )
    assert ids(list_visitors(conn, Filters()).rows, "anonymous_id") == ["late", "middle", "early"]
    assert ids(list_visitors(conn, Filters(funnel_id="ads")).rows, "anonymous_id") == ["late"]
    assert ids(list_visitors(conn, Filters(funnel_id="ads", since=START + 20)).rows, "anonymous_id") == []
    assert ids(list_visitors(conn, Filters(site="shop")).rows, "anonymous_id") == ["middle"]
    first = list_visitors(conn, Filters(limit=2))
    assert ids(list_visitors(conn, Filters(limit=2, cursor=first.next_cursor)).rows, "anonymous_id") == ["early"]


def test_sessions_of_one_visitor(path: Path, conn: Connection) -> None:
    record_facts(
        path,
        [event("a", at=0, visitor="v"), event("b", at=10, visitor="v", funnel_id="ads"), event("c", visitor="w")],
    )
    (visitor,) = find_visitors(conn, "v")
    first = list_sessions(conn, Filters(limit=1), visitor_key=visitor["visitor_key"])
    rest = list_sessions(conn, Filters(limit=1, cursor=first.next_cursor), visitor_key=visitor["visitor_key"])
    assert (ids(first.rows), ids(rest.rows), rest.next_cursor) == (["b"], ["a"], None)


# --- one by its id ---------------------------------------------------------------------------------------------------


def test_an_id_is_found_in_every_site_and_funnel_that_has_it(path: Path, conn: Connection) -> None:
    record_facts(
        path,
        [
            event("same", visitor="v"),
            event("same", funnel_id="ads", visitor="v"),
            event("same", site="shop", visitor="v"),
            event("other", funnel_id="b"),
        ],
    )
    found = [(row["site"], row["funnel_id"]) for row in find_sessions(conn, "same")]
    assert found == [("default", "ads"), ("default", "default"), ("shop", "default")]
    assert len(find_sessions(conn, "same", most=2)) == 2
    assert len(find_sessions(conn, "same", "default")) == 2
    assert len(find_sessions(conn, "same", "default", "ads")) == 1
    assert find_sessions(conn, "none") == []
    assert [row["site"] for row in find_visitors(conn, "v")] == ["default", "shop"]
    assert [row["site"] for row in find_visitors(conn, "v", None, "ads")] == ["default"]
    assert [row["site"] for row in find_visitors(conn, "v", "shop")] == ["shop"]
    assert find_visitors(conn, "none") == []
    assert list_funnels(conn, most=9) == [
        ("default", "ads"),
        ("default", "b"),
        ("default", "default"),
        ("shop", "default"),
    ]


# --- figures ---------------------------------------------------------------------------------------------------------


def test_figures_of_nothing(conn: Connection) -> None:
    assert latest_start(conn) is None
    assert count_overview(conn, Filters(), START, TIMEOUT_MS) == {
        "visitors": 0,
        "sessions": 0,
        "provisionalSessions": 0,
        "pageViews": 0,
        "events": 0,
        "conversions": 0,
        "conversionRate": None,
        "conversionValue": None,
        "bounceRate": None,
        "medianDurationSeconds": None,
        "onlineVisitors": 0,
        "timeToFirstEventMedianSeconds": None,
        "timeToFirstEventP95Seconds": None,
        "neverEnrichedSessions": 0,
    }
    nothing = {"p75": None, "rating": None, "count": 0, "good": 0, "needsImprovement": 0, "poor": 0}
    assert percentile_vitals(conn, Filters()) == dict.fromkeys(("LCP", "INP", "CLS", "FCP", "TTFB"), nothing)


def shop() -> list[Fact]:
    """Six sessions of three visitors; the last is a bot's, the one before names no visitor and has a vital only."""
    return [
        event("one", at=0, visitor="ada"),
        event("one", "session_end", at=7_000, visitor="ada", properties={"activeTime": 5}),
        event("two", at=0, visitor="ada"),
        event("two", "cta click", at=20_900, visitor="ada"),
        event("three", at=0, visitor="bob"),
        event("three", at=30_000, visitor="bob"),
        event("three", "purchase", at=40_000, visitor="bob", properties={"revenue": 0.1, "currency": "EUR"}),
        event("three", "purchase", at=41_000, visitor="bob", properties={"revenue": 0.2}),
        event("four", at=1_000, visitor="eve", funnel_id="ads"),
        event("four", "conversion", at=3_000, visitor="eve", funnel_id="ads"),
        vital("five", "LCP", 100, at=2_000),
        event("bot", visitor="crawler", client=BOT),
        event("bot", "purchase", at=1, visitor="crawler", client=BOT, properties={"revenue": 1000}),
    ]


def test_the_overview_counts_people_and_no_bots(path: Path, conn: Connection) -> None:
    record_facts(path, shop())
    assert count_overview(conn, Filters(), START + 5 * MINUTE + 4_000, TIMEOUT_MS) == {
        "visitors": 3,
        "sessions": 5,
        "provisionalSessions": 1,
        "pageViews": 5,
        "events": 10,
        "conversions": 2,
        "conversionRate": 0.4,
        "conversionValue": 0.3,
        "bounceRate": 0.4,  # one: a page view and its end; five: a vital only. Four converted on its only page
        "medianDurationSeconds": 7,  # of 0 2 7 20 41
        "onlineVisitors": 2,  # eve's last fact is 5 min and 1 s old
        "timeToFirstEventMedianSeconds": None,
        "timeToFirstEventP95Seconds": None,
        "neverEnrichedSessions": 0,
    }
    ads = count_overview(conn, Filters(funnel_id="ads"), START, TIMEOUT_MS)
    assert (ads["sessions"], ads["conversionRate"], ads["conversionValue"], ads["onlineVisitors"]) == (1, 1, None, 1)
    later = count_overview(conn, Filters(since=START + 1_000, until=START + 2_001), START, TIMEOUT_MS)
    assert (later["sessions"], later["medianDurationSeconds"]) == (2, 1)  # the middle between 0 and 2
    assert latest_start(conn) is not None


def early(session_id: str, wait_ms: int, **said: Any) -> list[Fact]:
    """A session whose first vital came so long before its first event."""
    return [
        vital(session_id, "LCP", 1, **said),
        vital(session_id, "FCP", 1, at=1, **said),
        event(session_id, at=wait_ms, **said),
        event(session_id, at=wait_ms + 5_000, **said),
    ]


@pytest.mark.parametrize(
    ("waits_ms", "median_s", "p95_s"),
    [
        ([200], 0.2, 0.2),
        ([3_000, 1_000], 2, 3),
        ([5_000, 1_000, 2_500], 2.5, 5),
        ([1_000, 4_000, 2_000, 3_001], 2.5005, 4),
        ([n * 1_000 for n in range(20, 0, -1)], 10.5, 19),
        ([n * 1_000 for n in range(21, 0, -1)], 11, 20),
    ],
)
def test_how_long_the_first_event_took(
    path: Path, conn: Connection, waits_ms: list[int], median_s: float, p95_s: float
) -> None:
    """Of sessions that began with a vital: not of others, not of bots, not where both have one time."""
    for number, wait_ms in enumerate(waits_ms):
        record_facts(path, early(f"s{number}", wait_ms))
    record_facts(path, [event("event first"), vital("event first", "LCP", 1, at=90_000)])
    record_facts(
        path, [event("at once"), vital("at once", "LCP", 1), event("events only"), vital("vital only", "LCP", 1)]
    )
    record_facts(path, early("robot", 99_000, client=BOT))
    assert count_provisional(conn, Filters(), START, TIMEOUT_MS) == (1, 0, len(waits_ms), median_s, p95_s)
    figures = count_overview(conn, Filters(), START, TIMEOUT_MS)
    assert (figures["timeToFirstEventMedianSeconds"], figures["timeToFirstEventP95Seconds"]) == (median_s, p95_s)


def test_sessions_that_were_never_enriched_are_finished(path: Path, conn: Connection) -> None:
    """Provisional, and unchanged for the timeout; a revision that far ahead of the clock counts as finished, too."""
    record_facts(path, [vital("old", "LCP", 1), event("enriched"), vital("ad", "LCP", 1, at=9, funnel_id="ads")])
    record_facts(path, [vital("fresh", "LCP", 1, at=10)], now=START + 10)
    record_facts(path, [vital("ahead", "LCP", 1, at=11)], now=START + 3 * TIMEOUT_MS)
    now = START + TIMEOUT_MS
    assert count_provisional(conn, Filters(), now, TIMEOUT_MS)[:2] == (4, 1)
    assert count_provisional(conn, Filters(), now + 1, TIMEOUT_MS)[:2] == (4, 3)
    assert count_provisional(conn, Filters(funnel_id="ads"), now + 1, TIMEOUT_MS)[:2] == (1, 1)
    assert count_provisional(conn, Filters(since=START + 10), now + 1, TIMEOUT_MS)[:2] == (2, 1)
    assert count_overview(conn, Filters(), now + 1, TIMEOUT_MS)["neverEnrichedSessions"] == 3


def test_rates_have_six_decimals(path: Path, conn: Connection) -> None:
    record_facts(path, [event("a"), event("b"), event("c"), event("c", "purchase", at=1)])
    figures = count_overview(conn, Filters(), START, TIMEOUT_MS)
    assert (figures["conversionRate"], figures["bounceRate"]) == (0.333333, 0.666667)


@pytest.mark.parametrize(("age_ms", "online"), [(0, 1), (300_000, 1), (300_001, 0), (-300_000, 1), (-300_001, 0)])
def test_online_is_a_fact_in_the_last_five_minutes(path: Path, conn: Connection, age_ms: int, online: int) -> None:
    record_facts(path, [event("a", at=-MINUTE * 60, visitor="v"), vital("a", "LCP", 1, visitor="v")])
    assert count_overview(conn, Filters(until=START - 1), START + age_ms, TIMEOUT_MS)["onlineVisitors"] == online


def test_vitals_are_rated_over_instances(path: Path, conn: Connection) -> None:
    values: dict[str, list[float]] = {
        "LCP": [2500, 2501, 4000, 4001],
        "INP": [200, 500.5],
        "CLS": [0.1, 0.1, 0.25],
        "FCP": [1800],
    }
    facts: list[Fact] = [
        vital("a", metric, value, fact_id=f"{metric}{n}") for metric in values for n, value in enumerate(values[metric])
    ]
    facts += [
        vital("a", "TTFB", 0, fact_id="back", navigation_type="back-forward-cache"),
        vital("b", "TTFB", 900, fact_id="soft", navigation_type="soft-navigation"),
        vital("b", "TTFB", 801, fact_id="real", navigation_type=None),
        vital("b", "FID", 5),
        vital("bot", "LCP", 9_000, client=BOT),
    ]
    record_facts(path, facts)
    assert percentile_vitals(conn, Filters()) == {
        "LCP": {"p75": 4000, "rating": "needs-improvement", "count": 4, "good": 1, "needsImprovement": 2, "poor": 1},
        "INP": {"p75": 500.5, "rating": "poor", "count": 2, "good": 1, "needsImprovement": 0, "poor": 1},
        "CLS": {"p75": 0.25, "rating": "needs-improvement", "count": 3, "good": 2, "needsImprovement": 1, "poor": 0},
        "FCP": {"p75": 1800, "rating": "good", "count": 1, "good": 1, "needsImprovement": 0, "poor": 0},
        "TTFB": {"p75": 801, "rating": "needs-improvement", "count": 1, "good": 0, "needsImprovement": 1, "poor": 0},
    }


def test_vitals_are_chosen_by_their_own_time(path: Path, conn: Connection) -> None:
    record_facts(path, [vital("a", "LCP", n, fact_id=str(n), at=n * 1000) for n in range(10)])
    within = percentile_vitals(conn, Filters(since=START + 2_000, until=START + 6_000))["LCP"]
    assert (within["count"], within["p75"]) == (4, 4)  # of 2 3 4 5


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 9, 100])
def test_the_percentile_is_the_nearest_rank(path: Path, conn: Connection, count: int) -> None:
    record_facts(path, [vital("a", "LCP", 7 * n % 101, fact_id=str(n)) for n in range(count)])
    expected = nearest_rank(sorted(float(7 * n % 101) for n in range(count)), 0.75)
    assert percentile_vitals(conn, Filters())["LCP"]["p75"] == expected


BOUND = Filters(funnel_id="f").bind() | {"at": 0, "key": 0, "visitor_key": 1, "most": 1, "now": 0, "online": 1}
BOUND |= {"session_id": "s", "anonymous_id": "v", "metric": "LCP", "good": 1, "fair": 2, "position": 0, "count": 1}
BOUND |= {"timeout": 1, "first": 0, "end": 1}


@pytest.mark.parametrize(
    ("sql", "step"),
    [
        (queries._LIST_SESSIONS, "SEARCH sessions USING INDEX sessions_by_start (started_at>? AND started_at<?)"),
        (
            queries._LIST_SESSIONS_OF_VISITOR,
            "SEARCH sessions USING INDEX sessions_by_visitor (visitor_key=? AND started_at>? AND started_at<?)",
        ),
        (
            queries._FIND_SESSIONS,
            "SEARCH s USING COVERING INDEX sqlite_autoindex_sessions_1 (funnel_key=? AND session_id=?)",
        ),
        (queries._LIST_VISITORS, "SEARCH v USING INDEX visitors_by_last_seen (last_seen<?)"),
        (
            queries._FIND_VISITORS,
            "SEARCH a USING COVERING INDEX sqlite_autoindex_anonymous_ids_1 (site=? AND anonymous_id=?)",
        ),
        (
            figures.online_sql(Scope(0, 1, "s", "f")),
            "SEARCH v USING COVERING INDEX visitors_by_last_seen (last_seen>?)",
        ),
        (queries._COUNT_PROVISIONAL, "SEARCH s USING INDEX sessions_by_start (started_at>? AND started_at<?)"),
        (queries._COUNT_PROVISIONAL, "SEARCH events USING PRIMARY KEY (session_key=?)"),
        (samples._VITAL_ROWS, "SEARCH web_vitals USING PRIMARY KEY (session_key>? AND session_key<?)"),
        (samples._CLIENT_ROWS, "SEARCH s USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)"),
        (samples._SESSION_ROWS, "SEARCH s USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)"),
        (samples._PAGE_ROWS, "SEARCH events USING PRIMARY KEY (session_key>? AND session_key<?)"),
        (samples._PAGE_ROWS, "SEARCH web_vitals USING PRIMARY KEY (session_key>? AND session_key<?)"),
    ],
)
def test_readings_seek(conn: Connection, sql: str, step: str) -> None:
    """No reading of one page passes over all sessions, no figure over facts that are not its own."""
    plan = [row[3] for row in conn.execute("EXPLAIN QUERY PLAN " + sql, BOUND)]
    assert step in plan
    assert not [step for step in plan if "AUTOMATIC" in step or step.startswith(("SCAN v", "SCAN e", "SCAN sessions"))]


# --- connections -----------------------------------------------------------------------------------------------------


def test_readers_lend_a_bounded_number_of_connections(path: Path) -> None:
    readers = Readers(path, readers_max=2, wait_s=0.01)
    with readers.snapshot() as one, readers.snapshot() as two:
        assert one is not two
        with pytest.raises(UnavailableError, match="too many readings"), readers.snapshot():
            pass
        assert repr(readers) == "<Readers open: 2 of 2 lent, 0 idle>"
    with readers.snapshot() as again:
        assert again in (one, two)
    readers.close()
    with pytest.raises(UnavailableError, match="shutting down"), readers.snapshot():
        pass
    assert repr(readers) == "<Readers closed: 0 of 2 lent, 0 idle>"


def test_a_reader_waits_for_one_that_is_lent(path: Path) -> None:
    readers = Readers(path, readers_max=1, wait_s=30)
    lent, let_go = threading.Event(), threading.Event()

    def hold() -> None:
        with readers.snapshot():
            lent.set()
            let_go.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    lent.wait(30)
    threading.Timer(0.05, let_go.set).start()
    with readers.snapshot() as conn:
        assert latest_start(conn) is None
    holder.join()
    readers.close()


def test_a_snapshot_stays_as_it_was(path: Path) -> None:
    readers = Readers(path)
    with readers.snapshot() as conn:
        assert latest_start(conn) is None
        record_facts(path, [event("a")])
        assert latest_start(conn) is None
    with readers.snapshot() as conn:
        assert latest_start(conn) is not None
    readers.close()


def test_a_reader_cannot_write_and_one_that_failed_is_not_lent_again(path: Path) -> None:
    readers = Readers(path)
    with pytest.raises(OperationalError, match="readonly"), readers.snapshot() as conn:
        conn.execute("DELETE FROM sessions")
    assert repr(readers) == "<Readers open: 0 of 4 lent, 0 idle>"
    readers.close()


def test_a_connection_lent_at_the_end_is_closed_when_it_comes_back(path: Path) -> None:
    readers = Readers(path)
    with readers.snapshot() as conn:
        readers.close()
    assert repr(readers) == "<Readers closed: 0 of 4 lent, 0 idle>"
    with pytest.raises(Exception, match="closed database"):
        conn.execute("SELECT 1")


def test_a_missing_file_is_said_and_leaves_room_for_the_next_try(tmp_path: Path) -> None:
    readers = Readers(tmp_path / "none.db", readers_max=1, wait_s=0.01)
    for _ in range(2):
        with pytest.raises(StoreError, match="no such database"), readers.snapshot():
            pass
    readers.close()
