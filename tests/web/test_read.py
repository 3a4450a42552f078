"""The JSON API: shapes and literal values, filters and cursors, ids of any characters, and what goes wrong."""

from __future__ import annotations

import json
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from sidecar.errors import UnavailableError
from sidecar.store.database import open_read_only
from sidecar.store.documents import SCALARS, read_session
from sidecar.store.queries import Filters
from sidecar.web.read import explain_failure, read_filters
from tests.builders import START, event, open_dashboard, record_facts, serve_dashboard, vital

HOUR = 3_600_000


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sessions: two of ada, an hour apart; one of a visitor in another site under the same ids."""
    return record_facts(
        tmp_path_factory.mktemp("read") / "sidecar.db",
        [
            vital("first", "LCP", 1200.5, visitor="ada"),
            vital("first", "CLS", 0.05, at=10, visitor="ada"),
            event("first", at=20, visitor="ada"),
            event("second", at=HOUR, visitor="ada"),
            event(
                "second", "purchase", at=HOUR + 5_000, visitor="ada", properties={"revenue": 12.5, "currency": "EUR"}
            ),
            event("second", site="shop", at=2 * HOUR, visitor="ada"),
        ],
    )


def get(path: Path, url: str, *, status: int = 200, **given: Any) -> Any:
    """The JSON of one request, with its status."""
    with open_dashboard(path, **given) as client:
        answer = client.get(url)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/json"), answer.text
    return answer.json()


# --- shapes ----------------------------------------------------------------------------------------------------------


def test_overview(path: Path) -> None:
    assert get(path, "/api/overview?site=default", now=START + HOUR) == {
        "visitors": 1,
        "sessions": 2,
        "provisionalSessions": 0,
        "pageViews": 2,
        "events": 3,
        "conversions": 1,
        "conversionRate": 0.5,
        "conversionValue": 12.5,
        "bounceRate": 0.5,
        "medianDurationSeconds": 2.5,
        "onlineVisitors": 1,
        "timeToFirstEventMedianSeconds": 0.02,
        "timeToFirstEventP95Seconds": 0.02,
        "neverEnrichedSessions": 0,
    }


def test_vitals(path: Path) -> None:
    metrics = get(path, "/api/vitals")["metrics"]
    assert list(metrics) == ["LCP", "INP", "CLS", "FCP", "TTFB"]
    assert metrics["LCP"] == {
        "p75": 1200.5,
        "rating": "good",
        "count": 1,
        "good": 1,
        "needsImprovement": 0,
        "poor": 0,
    }
    assert metrics["INP"]["p75"] is None
    assert metrics["INP"]["rating"] is None


def test_a_session_in_a_list_is_its_document_without_its_facts(path: Path) -> None:
    listed = get(path, "/api/sessions?site=default", now=START + 1)
    assert listed["nextCursor"] is None
    assert [item["sessionId"] for item in listed["items"]] == ["second", "first"]
    with open_dashboard(path, now=START + 1) as client:
        document = client.get("/api/sessions/first").json()
    assert list(document) == [
        *("type", "version", "site", "funnelId", "subaccountId", "sessionId", "revision", "finished", "provisional"),
        "visitor",
        *(name for name, _ in SCALARS),
        *("clients", "webVitals", "events"),
    ]
    without_facts = {name: document[name] for name in document if name not in ("clients", "webVitals", "events")}
    assert listed["items"][1] == without_facts
    assert (document["startedAt"], document["avgLcp"], document["avgCls"]) == ("2026-11-22T07:00:00.000Z", 1200.5, 0.05)
    assert document["visitor"]["totalSessions"] == 2
    assert [fact["metric"] for fact in document["webVitals"]] == ["LCP", "CLS"]


def test_one_session_is_its_document(path: Path) -> None:
    conn = open_read_only(path)
    expected = read_session(conn, 1, START + HOUR, 1_800_000)
    conn.close()
    assert get(path, "/api/sessions/first", now=START + HOUR) == expected
    assert expected["finished"] is True


def test_visitors(path: Path) -> None:
    ada = {
        "anonymousId": "ada",
        "displayName": "Visitor #ada",
        "firstSeen": "2026-11-22T07:00:00.000Z",
        "lastSeen": "2026-11-22T08:00:05.000Z",
        "totalSessions": 2,
        "totalEvents": 3,
        "userId": None,
        "traits": None,
    }
    assert get(path, "/api/visitors?site=default") == {"items": [ada], "nextCursor": None}
    one = get(path, "/api/visitors/ada?site=default&limit=1")
    assert {name: one[name] for name in ada} == ada
    assert list(one) == [*ada, "sessions", "nextCursor"]
    assert [session["sessionId"] for session in one["sessions"]] == ["second"]
    rest = get(path, f"/api/visitors/ada?site=default&limit=1&cursor={one['nextCursor']}")
    assert ([session["sessionId"] for session in rest["sessions"]], rest["nextCursor"]) == (["first"], None)


def test_shipping_is_what_it_is_given(path: Path) -> None:
    seen: list[tuple[int, int]] = []

    def read_shipping(conn: object, now: int, timeout_ms: int) -> dict[str, Any]:
        seen.append((now, timeout_ms))
        return {"state": "blocked", "reason": "401"}

    assert get(path, "/api/shipping", read_shipping=read_shipping) == {"state": "blocked", "reason": "401"}
    assert seen == [(START, 1_800_000)]


# --- lists in pages --------------------------------------------------------------------------------------------------


def test_a_cursor_is_safe_in_an_address_and_stable_while_sessions_arrive(tmp_path: Path) -> None:
    path = record_facts(tmp_path / "sidecar.db", [event("a", at=1), event("b", at=2), event("c", at=2, site="shop")])
    with open_dashboard(path) as client:
        first = client.get("/api/sessions?limit=1").json()
        assert first["nextCursor"] == quote(first["nextCursor"], safe="")
        record_facts(path, [event("newest", at=5 * HOUR)])
        second = client.get(f"/api/sessions?limit=1&cursor={first['nextCursor']}").json()
        third = client.get(f"/api/sessions?limit=1&cursor={second['nextCursor']}").json()
    assert [page["items"][0]["sessionId"] for page in (first, second, third)] == ["c", "b", "a"]
    assert third["nextCursor"] is None


# --- parameters ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, Filters()),
        ({"site": "", "funnelId": "", "since": "", "until": "", "limit": "", "cursor": "", "other": "x"}, Filters()),
        ({"site": "s", "funnelId": "f", "limit": "500", "cursor": "c"}, Filters("s", "f", limit=500, cursor="c")),
        ({"since": "2026-11-22T07:00:00Z"}, Filters(since=START)),
        ({"since": "2026-11-22T07:00:00.0015"}, Filters(since=START + 1)),
        ({"since": "2026-11-22"}, Filters(since=START - 7 * HOUR)),
        ({"until": "2026-11-22T09:00:00+02:00"}, Filters(until=START)),
        ({"until": "2026-11-22T09:00:00.000 02:00"}, Filters(until=START)),
        ({"since": "0001-01-01T00:00:00Z"}, Filters(since=-62_135_596_800_000)),
    ],
)
def test_filters_are_read(parameters: dict[str, str], expected: Filters) -> None:
    assert read_filters(parameters) == expected


@pytest.mark.parametrize(
    ("query", "error"),
    [
        ("since=yesterday", "since: must be an ISO 8601 time like 2026-11-22T07:00:00Z"),
        ("until=1795330800000", "until: must be an ISO 8601 time like 2026-11-22T07:00:00Z"),
        ("until=2026-13-01", "until: must be an ISO 8601 time like 2026-11-22T07:00:00Z"),
        ("limit=0", "limit: must be an integer from 1 to 500"),
        ("limit=501", "limit: must be an integer from 1 to 500"),
        ("limit=1.0", "limit: must be an integer from 1 to 500"),
        ("limit=-1", "limit: must be an integer from 1 to 500"),
        ("limit=%D9%A3", "limit: must be an integer from 1 to 500"),
    ],
)
def test_a_wrong_parameter_is_named(path: Path, query: str, error: str) -> None:
    with open_dashboard(path) as client:
        for endpoint in ("overview", "vitals", "sessions", "sessions/first", "visitors", "visitors/ada"):
            answer = client.get(f"/api/{endpoint}?{query}")
            assert (answer.status_code, answer.json()) == (400, {"error": error})


@pytest.mark.parametrize("endpoint", ["sessions", "visitors", "visitors/ada"])
def test_a_wrong_cursor_is_named(path: Path, endpoint: str) -> None:
    answer = get(path, f"/api/{endpoint}?site=shop&cursor=%00", status=400)
    assert answer == {"error": "cursor: must be the nextCursor of the same list"}


# --- ids -------------------------------------------------------------------------------------------------------------


IDS = [
    *("a/b", "/a", "a//b/", "a%2Fb", "a%252Fb", "a b+c", "?x=1#y", "é…\u202e", "a\nb", "\n", "<script>", "a\\b", "'\""),
    *(".", "..", "a/../b", "\0", "%"),
]


def test_ids_of_any_characters(tmp_path: Path) -> None:
    """Over a real connection: Starlette's test client decodes a path twice."""
    path = record_facts(tmp_path / "sidecar.db", [event(identity, visitor=identity) for identity in IDS])
    found = []
    with serve_dashboard(path) as port:
        connection = HTTPConnection("127.0.0.1", port)
        for kind, name in (("sessions", "sessionId"), ("visitors", "anonymousId")):
            for identity in IDS:
                connection.request("GET", f"/api/{kind}/{quote(identity, safe='')}")
                found.append(json.loads(connection.getresponse().read()).get(name))
        connection.close()
    assert found == IDS + IDS


def test_an_unknown_id_is_404(path: Path) -> None:
    assert get(path, "/api/sessions/none", status=404) == {"error": "no such session"}
    assert get(path, "/api/sessions/first?site=shop", status=404) == {"error": "no such session"}
    assert get(path, "/api/visitors/none", status=404) == {"error": "no such visitor"}
    assert get(path, "/api/visitors/ada?funnelId=none", status=404) == {"error": "no such visitor"}


def test_an_ambiguous_id_is_300_with_the_list(path: Path) -> None:
    several = get(path, "/api/sessions/second", status=300)
    assert several["error"] == "several sessions have this id: choose one with ?site=&funnelId="
    assert [(item["site"], item["funnelId"]) for item in several["items"]] == [
        ("default", "default"),
        ("shop", "default"),
    ]
    assert several["items"][1]["startedAt"] == "2026-11-22T09:00:00.000Z"
    assert get(path, "/api/sessions/second?site=shop")["site"] == "shop"
    visitors = get(path, "/api/visitors/ada", status=300)
    assert [(item["site"], item["totalSessions"]) for item in visitors["items"]] == [("default", 2), ("shop", 1)]
    assert get(path, "/api/visitors/ada?site=shop")["totalSessions"] == 1


def test_an_id_in_two_funnels_is_chosen_by_the_funnel(tmp_path: Path) -> None:
    path = record_facts(tmp_path / "sidecar.db", [event("s"), event("s", funnel_id="ads")])
    assert len(get(path, "/api/sessions/s?site=default", status=300)["items"]) == 2
    assert get(path, "/api/sessions/s?funnelId=ads")["funnelId"] == "ads"


# --- trouble ---------------------------------------------------------------------------------------------------------


def test_a_database_that_is_gone_is_503_and_names_no_path(tmp_path: Path) -> None:
    with open_dashboard(tmp_path / "secret-name.db") as client:
        answer = client.get("/api/overview")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert answer.json() == {"error": "the database cannot be read at the moment"}


def test_a_reading_that_must_wait_is_told_how_long() -> None:
    status, line, headers = explain_failure(UnavailableError("too many readings at once", retry_after_s=1))
    assert (status, line, headers) == (503, "too many readings at once", {"Retry-After": "1"})
    with pytest.raises(KeyError):
        explain_failure(KeyError("a bug stays one"))


def test_reading_changes_nothing(path: Path) -> None:
    with open_dashboard(path) as client:
        for method in ("POST", "PUT", "DELETE", "PATCH"):
            assert client.request(method, "/api/sessions/first").status_code == 405
        head = client.head("/api/sessions/first")
    assert (head.status_code, head.text) == (200, "")
