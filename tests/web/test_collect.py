"""Beacons in, over real HTTP: what each good and each bad one is answered, and that the server goes on."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import pytest
from sqlite_utils import Database
from structlog.testing import capture_logs

from sidecar.store.database import IntegrityError, open_database
from sidecar.web.collect import SessionLog
from tests.servers import CHROME, Server, event, vital

VITALS = "/api/track/web-vitals"
EVENTS = "/api/track/events"
ACCEPTED_ONE = {"success": True, "accepted": 1, "duplicate": 0, "superseded": 0, "rejected": []}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One sidecar for all tests of this file; they keep apart by their session ids."""
    with Server(tmp_path_factory.mktemp("collect") / "sidecar.db") as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[httpx2.Client]:
    """A browser."""
    with server.client() as http:
        yield http


@pytest.fixture
def session(request: pytest.FixtureRequest) -> str:
    """A session id of the test's own."""
    return f"{request.node.name[:60]}-{uuid4()}"


def stored(server: Server, session: str) -> dict[str, Any]:
    """The session's document."""
    answer = httpx2.get(f"{server.url}/api/sessions/{session}", verify=False)
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


# --- the bug that this product exists for --------------------------------------------------------------------------


def test_old_bug_a_vital_without_its_session_breaks_the_foreign_key(tmp_path: Path) -> None:
    """Look, create and insert in the wrong order: what browsers got a 500 for, on the very schema we use."""
    conn = open_database(tmp_path / "old.db")
    with pytest.raises(IntegrityError, match="FOREIGN KEY constraint failed"):
        conn.execute(
            "INSERT INTO web_vitals (session_key, metric, id, value, rating_code, seq, timestamp, clock_skewed, "
            "content_bytes) VALUES (1, 'LCP', 'v6-1', 1200, 0, 0, 1795330800000, 0, 400)"
        )
    conn.close()


def test_vital_before_its_session_is_stored_linked_and_seen(
    server: Server, client: httpx2.Client, session: str
) -> None:
    """The same vital through HTTP: 200, linked to a provisional session, which the first event completes."""
    answer = client.post(VITALS, json=vital(session, anonymousId="visitor-1"))
    assert (answer.status_code, answer.json()) == (200, ACCEPTED_ONE)
    document = stored(server, session)
    assert document["provisional"] is True
    assert document["visitor"]["anonymousId"] == "visitor-1"
    assert [fact["value"] for fact in document["webVitals"]] == [1200]
    page = client.get(f"/sessions/{session}")
    assert page.status_code == 200
    assert "LCP" in page.text
    assert "1.2 s" in page.text
    assert "provisional" in page.text.lower()
    assert client.post(EVENTS, json=event(session)).json() == ACCEPTED_ONE
    document = stored(server, session)
    assert document["provisional"] is False
    assert document["pageViews"] == 1
    assert document["avgLcp"] == 1200


def test_64_vitals_at_once_for_one_new_session(server: Server, session: str) -> None:
    """64 connections, one new session, one new visitor: nothing lost, nothing doubled, no 5xx."""
    metrics = ("LCP", "INP", "CLS", "FCP")

    def send(number: int) -> int:
        item = vital(session, metrics[number % 4], number, id=f"v6-{number}", anonymousId=f"v-{session}")
        with httpx2.Client(headers={"User-Agent": CHROME}, timeout=30, verify=False) as one:
            return one.post(server.url + VITALS, content=json.dumps(item)).status_code

    with ThreadPoolExecutor(64) as pool:
        statuses = list(pool.map(send, range(64)))
    assert statuses == [200] * 64
    document = stored(server, session)
    assert len(document["webVitals"]) == 64
    assert (document["avgLcp"], document["avgInp"], document["avgCls"], document["avgFcp"]) == (30, 31, 32, 33)
    visitor = httpx2.get(f"{server.url}/api/visitors/v-{session}", verify=False).json()
    assert visitor["totalSessions"] == 1
    assert [one["sessionId"] for one in visitor["sessions"]] == [session]


# --- answers -------------------------------------------------------------------------------------------------------


def test_text_plain_is_read_as_json(client: httpx2.Client, session: str) -> None:
    """What sendBeacon(url, string) sends."""
    headers = {"Content-Type": "text/plain;charset=UTF-8"}
    answer = client.post(VITALS, content=json.dumps([vital(session)]), headers=headers)
    assert (answer.status_code, answer.json()) == (200, ACCEPTED_ONE)


def test_each_item_gets_its_own_truth(server: Server, client: httpx2.Client, session: str) -> None:
    """Accepted, duplicate, superseded and rejected in one beacon, judged in order, also against each other."""
    first = vital(session, "CLS", 0.15, id="a", timestamp=vital(session)["timestamp"])
    older = {**first, "value": 0.02, "timestamp": int(str(first["timestamp"])) - 1000}
    answer = client.post(VITALS, json=[first, first, older, {**first, "id": "b", "value": -1}])
    assert answer.status_code == 200
    assert answer.json() == {
        "success": True,
        "accepted": 1,
        "duplicate": 1,
        "superseded": 1,
        "rejected": [{"index": 3, "reason": "value: must be >= 0"}],
    }
    assert stored(server, session)["avgCls"] == 0.15


def test_event_forms(server: Server, client: httpx2.Client, session: str) -> None:
    """An event alone, in an array, and in a body with a funnel."""
    one = event(session, "a")
    assert client.post(EVENTS, json=one).json()["accepted"] == 1
    assert client.post(EVENTS, json=[one, event(session, "b")]).json()["duplicate"] == 1
    answer = client.post(EVENTS, json={"funnelId": f"f-{session}", "sentAt": 1, "events": [event(session, "c")]})
    assert answer.json()["accepted"] == 1
    assert len(httpx2.get(f"{server.url}/api/sessions?funnelId=f-{session}", verify=False).json()["items"]) == 1


def test_funnel_comes_from_item_then_header(server: Server, client: httpx2.Client, session: str) -> None:
    """The header counts where the item says nothing; the older SDK's header is an alias."""
    client.post(VITALS, json=vital(session, funnelId="own"), headers={"X-Funnel-ID": "header"})
    client.post(VITALS, json=vital(session, id="x"), headers={"X-Funnel-ID": "header"})
    client.post(VITALS, json=vital(session, id="x"), headers={"X-Aurea-Funnel-ID": "alias"})
    answer = httpx2.get(f"{server.url}/api/sessions/{session}", verify=False)
    assert answer.status_code == 300
    assert sorted(one["funnelId"] for one in answer.json()["items"]) == ["alias", "header", "own"]


def test_cors_reflects_origin_and_headers(client: httpx2.Client, session: str) -> None:
    """A preflight, an answer and an error all carry the headers."""
    origin = {"Origin": "https://shop.example"}
    asked = origin | {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-any, content-type"}
    preflight = client.options(VITALS, headers=asked)
    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-headers"] == "x-any, content-type"
    assert "POST" in preflight.headers["access-control-allow-methods"]
    good = client.post(VITALS, json=vital(session), headers=origin)
    bad = client.post(VITALS, content="no", headers=origin)
    for answer in (preflight, good, bad):
        assert answer.headers["access-control-allow-origin"] == "https://shop.example"
        assert "Origin" in answer.headers["vary"]
    assert good.headers["access-control-expose-headers"] == "Retry-After"
    assert "access-control-allow-origin" not in client.get("/api/sessions", headers=origin).headers


def test_first_line_of_the_log(server: Server, client: httpx2.Client, session: str) -> None:
    """A session that a web vital creates is said once, with its funnel and a shortened id."""
    client.post(VITALS, json=vital(session, funnelId="log-funnel"))
    client.post(VITALS, json=vital(session, "CLS", 0, funnelId="log-funnel"))
    lines = [line for line in server.log.read_text().splitlines() if "log-funnel" in line]
    assert len(lines) == 1
    assert "creating session for web vital" in lines[0]
    assert f"session={session[:8]}..." in lines[0]
    assert session not in lines[0]


def test_many_new_sessions_are_ten_lines_and_a_count() -> None:
    """The log of a flood stays short, and nothing goes uncounted."""
    waiting: list[tuple[float, Callable[[], None]]] = []
    session_log = SessionLog(lambda delay_s, call: waiting.append((delay_s, call)))
    with capture_logs() as lines:
        session_log.say([("f", f"session-{number:03d}") for number in range(25)])
        [(delay_s, begin_second)] = waiting
        begin_second()
        session_log.say([("f", "session-100")])
    assert delay_s == 1.0
    assert [line["event"] for line in lines].count("creating session for web vital") == 11
    assert lines[10] == {"event": "creating sessions for web vitals", "count": 15, "log_level": "info"}
    assert lines[11]["session"] == "session-..."


def test_library_objects_without_a_session(server: Server, client: httpx2.Client) -> None:
    """What `onLCP(report)` of the library or Next.js sends: session and visitor of the day, the page by Referer."""
    report = {"name": "LCP", "value": 900, "delta": 900, "id": "v6-lib", "rating": "good", "entries": [{"deep": [1]}]}
    headers = {"Referer": "https://shop.example/lib"}
    assert client.post(VITALS, json=report, headers=headers).json() == ACCEPTED_ONE
    assert client.post(VITALS, json=report, headers=headers).json()["duplicate"] == 1
    database = Database(str(server.database))
    [(session, url, skewed)] = database.execute(
        "SELECT session_id, url, clock_skewed FROM web_vitals JOIN sessions USING (session_key) "
        "JOIN pages USING (page_key) WHERE id = 'v6-lib'"
    ).fetchall()
    database.close()
    assert session.startswith("daily-")
    assert (url, skewed) == ("https://shop.example/lib", 1)


# --- bad input: one test each --------------------------------------------------------------------------------------

DEEP = b'{"a":' * 10_000 + b"1" + b"}" * 10_000


def body_of(*items: object) -> bytes:
    return json.dumps(list(items)).encode()


BAD: dict[str, tuple[str, bytes, int, str]] = {
    "not JSON": (VITALS, b"not json", 400, "not JSON"),
    "a number": (VITALS, b"5", 400, "neither an object nor an array"),
    "nothing": (VITALS, b"", 400, "the body is empty"),
    "invalid UTF-8": (VITALS, b'{"sessionId": "\xff"}', 400, "not UTF-8"),
    "65 KiB": (VITALS, b" " * 65 * 1024, 413, "over 65536 bytes"),
    "no item": (VITALS, b"[]", 422, "no item"),
    "no event": (EVENTS, b'{"events": []}', 422, "no item"),
    "101 items": (VITALS, body_of(*[{}] * 101), 422, "at most 100"),
    "a text as value": (VITALS, body_of(vital("x", value="12")), 422, "value: must be a number"),
    "a boolean as value": (VITALS, body_of(vital("x", value=True)), 422, "value: must be a number"),
    "NaN": (VITALS, body_of(vital("x", value=float("nan"))), 422, "not finite"),
    "1e400": (VITALS, body_of(vital("x")).replace(b"1200", b"1e400"), 422, "not finite"),
    "negative": (VITALS, body_of(vital("x", value=-0.5)), 422, "value: must be >= 0"),
    "too much": (VITALS, body_of(vital("x", value=10_000_001)), 422, "value: must be <= 10000000"),
    "unknown metric": (VITALS, body_of(vital("x", "FPS")), 422, "metric: must be one of LCP"),
    "no session": (VITALS, body_of({**vital("x"), "sessionId": ""}), 422, "sessionId: is required"),
    "a long session": (VITALS, body_of(vital("x" * 129)), 422, "sessionId: must be at most 128"),
    "no page": (VITALS, body_of({**vital("x"), "pageUrl": None}), 422, "pageUrl: is required"),
    "a bad time": (VITALS, body_of(vital("x", timestamp="yesterday")), 422, "timestamp: must be epoch"),
    "an endless time": (VITALS, body_of(vital("x", timestamp=2**60)), 422, "timestamp: must be within"),
    "10,000 deep": (VITALS, b"[" + DEEP + b"]", 422, "nested over 16 levels"),
    "a lone surrogate": (VITALS, body_of(vital("x", pageTitle="\ud800")), 422, "lone surrogate"),
    "a large item": (VITALS, body_of(vital("x", junk="j" * 17_000)), 422, "larger than 16384 bytes"),
    "an item that is a list": (EVENTS, b"[[]]", 422, "must be an object"),
    "no event name": (EVENTS, body_of({**event("x"), "eventName": 5}), 422, "eventName: must be a string"),
    "no context": (EVENTS, body_of({**event("x"), "context": []}), 422, "context: must be an object"),
    "an event without session": (EVENTS, body_of({**event("x"), "context": {}}), 422, "context.session.sessionId"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_a_clear_error(client: httpx2.Client, case: str, session: str) -> None:
    """The status and words of the contract; and the next good beacon is stored."""
    path, body, status, words = BAD[case]
    answer = client.post(path, content=body, headers={"Origin": "https://shop.example"})
    assert answer.status_code == status, answer.text
    assert words in answer.json()["error"]
    assert answer.headers["access-control-allow-origin"] == "https://shop.example"
    assert client.post(VITALS, json=vital(session)).json() == ACCEPTED_ONE


ITEMS = [case for case, bad in BAD.items() if bad[2] == 422 and bad[1].startswith(b"[{") and case != "101 items"]


@pytest.mark.parametrize("case", ITEMS)
def test_a_bad_item_never_takes_a_good_one_with_it(client: httpx2.Client, case: str, session: str) -> None:
    """The same bad items beside a good one."""
    path, body, _, words = BAD[case]
    good = vital(session) if path == VITALS else event(session)
    answer = client.post(path, content=body[:-1] + b"," + json.dumps(good).encode() + b"]")
    assert answer.status_code == 200, answer.text
    said = answer.json()
    assert said["accepted"] == 1
    assert [refusal["index"] for refusal in said["rejected"]] == [0]
    assert words in said["rejected"][0]["reason"]


def test_wrong_method_and_path(client: httpx2.Client) -> None:
    """405 with Allow, 404; both as JSON."""
    answer = client.get(VITALS)
    assert answer.status_code == 405
    assert "POST" in answer.headers["allow"]
    assert answer.json() == {"error": "use POST"}
    assert client.post("/api/track/unknown", json={}).status_code == 404
    assert client.post("/api/track/unknown", json={}).json() == {"error": "Not Found"}


@pytest.mark.parametrize("path", [VITALS, "/healthz"])
def test_a_header_of_1_mb(server: Server, client: httpx2.Client, session: str, path: str) -> None:
    """431, or the bare 400 of the HTTP parser; the server goes on."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as raw:
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nX-Long: "
        try:
            raw.sendall(head.encode() + b"x" * 1_000_000 + b"\r\n\r\n")
            status = raw.recv(65536).split(b"\r\n")[0]
        except (ConnectionResetError, BrokenPipeError):
            status = b"reset by the parser before the end"
    assert b"431" in status or b"400" in status or b"reset" in status
    assert client.post(VITALS, json=vital(session)).json() == ACCEPTED_ONE


def test_a_body_that_grows_beyond_the_limit(server: Server, client: httpx2.Client, session: str) -> None:
    """Chunked, without a Content-Length: refused as soon as it is too large."""

    def chunks() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * 1024

    assert client.post(VITALS, content=chunks()).status_code == 413
    assert client.post(VITALS, json=vital(session)).json() == ACCEPTED_ONE


def test_optional_fields_that_are_wrong_are_left_out(server: Server, client: httpx2.Client, session: str) -> None:
    """A good vital is not lost for a bad title."""
    wrong = {"pageTitle": 5, "seq": -1, "rating": "great", "delta": "x", "screenWidth": "wide", "anonymousId": ["a"]}
    assert client.post(VITALS, json=vital(session, **wrong)).json() == ACCEPTED_ONE
    [fact] = stored(server, session)["webVitals"]
    assert (fact["pageTitle"], fact["seq"], fact["rating"], fact["delta"]) == (None, 0, "good", None)
    assert fact["anonymousId"] is None


# --- left out on purpose -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"DNT": "1"}, "do-not-track"),
        ({"Sec-GPC": "1"}, "do-not-track"),
        ({"User-Agent": "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)"}, "bot"),
        ({"User-Agent": ""}, "bot"),
    ],
)
def test_what_is_not_kept_on_purpose_is_202(
    client: httpx2.Client, session: str, headers: dict[str, str], reason: str
) -> None:
    """Understood, not stored, and said so."""
    answer = client.post(VITALS, json=vital(session), headers=headers)
    assert (answer.status_code, answer.json()) == (202, {"success": True, "stored": False, "reason": reason})


def test_settings_of_the_gate(tmp_path: Path, session: str) -> None:
    """Consent, funnels with keys and origins, allowed origins and the rate limit: 202, 401, 403, 429."""
    funnels = json.dumps(
        [{"id": "open"}, {"id": "keyed", "apiKey": "k-1", "allowedOrigins": ["https://a.example"], "subaccountId": "s"}]
    )
    settings = {"FUNNELS": funnels, "REQUIRE_CONSENT": "true", "ALLOWED_ORIGINS": "https://a.example,https://b.example"}
    with Server(tmp_path / "gate.db", RATE_LIMIT="5", **settings) as running, running.client() as client:
        consent = {"gdpr": {"consentGiven": True}}
        answer = client.post(VITALS, json=vital(session, funnelId="open"))
        assert (answer.status_code, answer.json()["reason"]) == (202, "consent")
        assert client.post(VITALS, json=vital(session, funnelId="open", **consent)).status_code == 200
        assert client.post(VITALS, json=vital(session, funnelId="none", **consent)).status_code == 401
        keyed = vital(session, funnelId="keyed", **consent)
        assert client.post(VITALS, json=keyed).status_code == 401
        assert client.post(VITALS, json=keyed, headers={"X-API-Key": "k-2"}).status_code == 401
        assert client.post(VITALS, json=keyed, headers={"X-API-Key": "k-1"}).status_code == 200
        assert client.post(VITALS + "?apiKey=k-1", json=keyed).json()["duplicate"] == 1
        other = {"X-API-Key": "k-1", "Origin": "https://b.example"}
        assert client.post(VITALS, json=keyed, headers=other).status_code == 403
        foreign = client.post(VITALS, json=keyed, headers={"Origin": "https://evil.example"})
        assert foreign.status_code == 403
        assert "access-control-allow-origin" not in foreign.headers
        mixed = client.post(VITALS, json=[keyed, vital(session, funnelId="open", id="2", **consent)])
        assert mixed.json()["rejected"] == [{"index": 0, "reason": "wrong key"}]
        assert (
            httpx2.get(f"{running.url}/api/sessions?funnelId=keyed", verify=False).json()["items"][0]["subaccountId"]
            == "s"
        )
        many = [vital(session, funnelId="open", id=str(number), **consent) for number in range(99)]
        answer = client.post(VITALS, json=many)
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) >= 1
