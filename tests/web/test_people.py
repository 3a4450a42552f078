"""The pages of sessions and visitors: lists, one of each with its time line, and erasing."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import quote, urlencode

import pytest

from sidecar.model import Fact
from sidecar.store.database import open_read_only
from sidecar.web import people
from sidecar.web.timeline import MARKS_MAX, WIDTH, draw
from tests.builders import START, event, open_dashboard, page_of, record_facts, vital
from tests.web.reader import MINUTE, Reader, get, some_facts

ORIGIN = {"Origin": "http://127.0.0.1:8787"}
NOW = START + 3 * MINUTE


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of `some_facts`; nothing here writes into it."""
    return record_facts(tmp_path_factory.mktemp("people") / "sidecar.db", some_facts())


# --- lists -----------------------------------------------------------------------------------------------------------


def test_the_list_shows_sessions(path: Path) -> None:
    """What each is, its averages with their rating in words, and where it came from."""
    page = get(path, "/sessions", now=NOW)
    assert page.text.split("Events Duration ")[1].split(" Times in ")[0] == (
        "3 min ago converted Ada L. Safari, iOS /start?a=1 news / email / autumn "
        "2.6 s needs improvement 90 ms good 0.30 poor – – 65 3 1 min 5 s "
        "4 min ago provisional unknown Chrome, Windows / direct 900 ms good – – – – 100 0 0 s "
        "5 min ago bot unknown unknown device / direct – – – – – – 1 0 s"
    )
    times = [attributes for tag, attributes in page.tags if tag == "time" and "title" in attributes]
    assert times[0] == {"datetime": "2026-11-22T07:00:00.000Z", "title": "2026-11-22 07:00:00.000 UTC"}
    assert "/sessions/all?site=default&funnelId=default" in page.links()
    assert "/visitors/ada?site=default" in page.links()


def test_the_list_of_visitors(path: Path) -> None:
    page = get(path, "/visitors", now=NOW)
    assert page.text.split("Sessions Events ")[1].split(" Times in ")[0] == "Ada L. ada u-1 1 min ago 3 min ago 1 3"
    assert "/visitors/ada?site=default" in page.links()


def test_headings_sort_and_say_so(path: Path) -> None:
    """By a link that keeps filter and search; `aria-sort` tells which, and a second press turns the start around."""
    page = get(path, "/sessions?period=30d&device=mobile&q=a&sort=lcp", now=NOW)
    headings = {a["aria-sort"]: a for tag, a in page.tags if tag == "th" and "aria-sort" in a}
    assert list(headings) == ["descending"]
    assert "/sessions?device=mobile&period=30d&q=a&sort=score" in page.links()
    assert "/sessions?q=a&sort=oldest" in get(path, "/sessions?q=a", now=NOW).links()
    assert "/sessions?q=a&sort=newest" in get(path, "/sessions?q=a&sort=oldest", now=NOW).links()
    slowest = get(path, "/sessions?sort=slowest", now=NOW)
    assert ("option", {"value": "lcp", "selected": None}) in slowest.tags


def test_the_search_keeps_the_filters(path: Path) -> None:
    page = get(path, "/sessions?period=30d&funnelId=default&q=+all+&sort=score", now=NOW)
    fields = [(a["name"], a.get("value")) for tag, a in page.tags if tag == "input" and a.get("type") == "search"]
    assert fields == [("q", "all")]
    form = page.tags.index(("form", {"class": "search", "method": "get", "action": "/sessions", "role": "search"}))
    kept = [(a["name"], a["value"]) for tag, a in page.tags[form:] if tag == "input" and a.get("type") == "hidden"]
    assert ("period", "30d") in kept
    assert ("funnelId", "default") in kept
    assert page.text.count("3 min ago") == 1


@pytest.mark.parametrize(
    ("url", "said", "link"),
    [
        ("/sessions?q=zzz", "No session fits the search in this period.", "/sessions"),
        ("/sessions?device=tablet", "No session fits in this period.", "/sessions"),
        ("/sessions?since=2000-01-01&until=2000-01-02", "No session fits in this period.", "/sessions?period=90d"),
        ("/visitors?q=zzz&period=24h", "No visitor fits the search in this period.", "/visitors?period=24h"),
        ("/visitors?page=/none", "No visitor fits in this period.", "/visitors"),
        ("/visitors?since=2000-01-01&until=2000-01-02", "No visitor fits in this period.", "/visitors?period=90d"),
    ],
)
def test_an_empty_list_says_what_to_do(path: Path, url: str, said: str, link: str) -> None:
    page = get(path, url, now=NOW)
    assert said in page.text
    assert link in page.links()


def test_pages_of_the_list_go_forth_and_back(tmp_path: Path) -> None:
    path = record_facts(tmp_path / "sidecar.db", [event(f"s-{n:03}", at=n, visitor=f"v-{n:03}") for n in range(120)])
    for kind in ("sessions", "visitors"):
        with open_dashboard(path, now=NOW) as client:

            def names(page: Reader, kind: str = kind) -> list[str]:
                return re.findall(rf"/{kind}/(?:s|v)-(\d+)", " ".join(page.links()))

            def follow(page: Reader, rel: str) -> Reader:
                (link,) = [a["href"] or "" for tag, a in page.tags if tag == "a" and a.get("rel") == rel]
                assert "period=30d" in link
                return Reader(client.get(link).text)

            first = Reader(client.get(f"/{kind}?period=30d").text)
            second = follow(first, "next")
            last = follow(second, "next")
            assert [len(names(page)) for page in (first, second, last)] == [50, 50, 20]
            assert names(first) + names(second) + names(last) == [f"{n:03}" for n in reversed(range(120))]
            assert names(follow(last, "prev")) == names(second)
            assert "next" not in [a.get("rel") for _, a in last.tags]
            assert "prev" not in [a.get("rel") for _, a in first.tags]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("/sessions?sort=x", "sort: must be one of newest, oldest"),
        ("/sessions?cursor=x", "cursor: must be one of the same list in the same order"),
        ("/visitors?sort=lcp", "sort: must be one of seen, new"),
        ("/visitors?cursor=x", "cursor: must be"),
    ],
)
def test_a_wrong_parameter_is_named(path: Path, url: str, said: str) -> None:
    assert said in get(path, url, status=400).text


# --- one session, one visitor ----------------------------------------------------------------------------------------


def test_a_session_shows_its_facts_in_order(path: Path) -> None:
    page = get(path, "/sessions/all", now=START + 3 * MINUTE)
    facts = page.text.split("Navigation Marks ")[1].split(" Why it is so ")[0]
    assert facts == (
        "1 2026-11-22 07:00:00.000 +0 ms event page_view /start "
        "2 2026-11-22 07:00:00.900 +900 ms web vital LCP 2.6 s needs improvement /start navigate "
        "3 2026-11-22 07:00:01.000 +1.0 s event user_identified "
        '{"traits":{"name":"Ada L.","seats":[1,"é"]},"userId":"u-1"}'
        " / client 2 clock skewed "
        "4 2026-11-22 07:00:05.000 +5.0 s web vital INP 90 ms good / navigate "
        "5 2026-11-22 07:00:05.001 +5.0 s web vital CLS 0.30 poor / navigate "
        "6 2026-11-22 07:00:06.000 +6.0 s web vital TTFB 0 ms good / back-forward-cache placeholder, in no average "
        '7 2026-11-22 07:01:05.000 +1 min 5 s event purchase {"currency":"EUR","revenue":1234.5} /'
    )
    for said in (
        "Visitor Ada L. Device Safari 17.5, iOS 17, mobile Place Lyon, France Address 192.0.2.0",
        "Source news / email / autumn Referrer https://www.news.test/x First page https://shop.test/start?a=1",
        "Duration 1 min 5 s Page views 1 Events 3 Web vitals 4 Conversion yes , 1,234.50 EUR Shipped not yet",
        "LCP 2.6 s needs improvement 1 reported",
        "TTFB – 1 reported Experience score 65 of 100",
    ):
        assert said in page.text


def test_a_session_says_why_it_is_so(path: Path) -> None:
    """Each value with its rule and its facts; those left out and why; open and shut without a script."""
    page = get(path, "/sessions/all", now=START + 3 * MINUTE)
    assert [tag for tag, _ in page.tags].count("details") >= 2
    assert "script" not in [tag for tag, _ in page.tags]
    why = page.text.split(" Why it is so ")[1]
    for said in (
        "startedAt 2026-11-22T07:00:00.000Z The time of the earliest fact. #1 endedAt",
        "avgTtfb null The mean of its TTFB reports, each instance once with its newest report. "
        "#6: a placeholder: no time is measured for back-forward-cache",
        "deviceType mobile browserName Safari browserVersion 17.5 osName iOS osVersion 17 Of the first fact",
        "Here: LCP needs-improvement -15, INP good, CLS poor -20. #2 #4-#5",
        "What was not taken: nothing Nothing came twice, too old, or too late.",
    ):
        assert said in why, why


def test_a_session_says_what_was_not_taken(tmp_path: Path) -> None:
    """Repeats are counted, with when."""
    path = tmp_path / "sidecar.db"
    for minute in range(3):
        record_facts(path, [vital("s", "LCP", 900)], now=START + minute * MINUTE)
    page = get(path, "/sessions/s", now=START + 3 * MINUTE)
    assert "What was not taken: 1" in page.text
    assert "Last First Times What became of it Fact 1 min ago 2 min ago 2 duplicate LCP v-LCP" in page.text


def test_a_bot_is_named(path: Path) -> None:
    assert "bot: Examplebot" in get(path, "/sessions/robot").texts


def test_a_source_is_a_campaign_else_a_referrer(tmp_path: Path) -> None:
    path = record_facts(tmp_path / "sidecar.db", [event("s", referrer="https://www.news.test:8080/x?y#z")])
    assert "Source news.test:8080 Referrer https://www.news.test:8080/x?y#z" in get(path, "/sessions/s").text


def test_a_session_says_where_it_is_on_its_way(path: Path) -> None:
    shipped = {"shipping": "shipped", "shippedRevision": 7, "shippedAt": "2026-11-22T07:00:00.000Z", "batchId": None}
    page = get(path, "/sessions/all", now=START + 60 * MINUTE, read_session_shipping=lambda *_: shipped)
    assert "Shipping shipped Shipped at 1 h ago" in page.text
    assert "Shipped not yet" not in page.text


def test_a_long_session_comes_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(people, "FACTS_MAX", 2)
    path = record_facts(tmp_path / "sidecar.db", [event("s", f"e{n}", at=n) for n in range(5)])
    with open_dashboard(path) as client:
        first = Reader(client.get("/sessions/s?site=default").text)
        assert "1 to 2 of 5 facts in their order" in first.text
        assert "/sessions/s?site=default&facts=2" in first.links()
        last = Reader(client.get("/sessions/s?site=default&facts=4").text)
    assert "5 to 5 of 5 facts in their order" in last.text
    assert [name for name in ("e3", "e4") if name in last.texts] == ["e4"]
    assert "/sessions/s?site=default" in last.links()
    assert "facts: must be the number of facts to skip" in get(path, "/sessions/s?facts=x", status=400).text


def test_a_visitor_shows_identity_traits_and_sessions(path: Path) -> None:
    page = get(path, "/visitors/ada", now=NOW)
    assert (
        "Ada L. Erase this visitor… Sessions 1 Events 3 First seen 3 min ago Last seen 1 min ago "
        "Identity Visitor id ada User id u-1 Site default Traits name Ada L. seats [1,"
    ) in page.text
    assert "/sessions/all?site=default&funnelId=default" in page.links()


def test_a_visitor_shows_all_of_its_sessions(tmp_path: Path) -> None:
    """Whatever period the lists show."""
    old = [event(f"s-{n}", at=-n * 86_400_000, visitor="v") for n in range(0, 600, 10)]
    with open_dashboard(record_facts(tmp_path / "sidecar.db", old), now=NOW) as client:
        first = Reader(client.get("/visitors/v?site=default").text)
        (link,) = [a["href"] or "" for tag, a in first.tags if tag == "a" and a.get("rel") == "next"]
        second = Reader(client.get(link).text)
    found = [set(re.findall(r"/sessions/(s-\d+)", " ".join(page.links()))) for page in (first, second)]
    assert [len(names) for names in found] == [50, 10]
    assert found[0] | found[1] == {fact.session_id for fact in old}


# --- the time line ---------------------------------------------------------------------------------------------------


def test_the_time_line_is_to_scale() -> None:
    """Half of the time is half of the way; a page lasts until the next; lanes are those that are needed."""
    facts: list[Fact] = [
        event("s", page=page_of("/first")),
        vital("s", "LCP", 2600, at=25_000),
        event("s", at=50_000, page=page_of("/second")),
        event("s", "purchase", at=100_000),
    ]
    line = draw(facts, START)
    assert [lane.name for lane in line.lanes] == ["Pages", "Events", "LCP"]
    first, second = [mark for mark in line.marks if mark.kind == "page"]
    lcp, sale = [mark for mark in line.marks if mark.kind != "page"]
    whole = sale.x - first.x
    assert (lcp.x - first.x, second.x - first.x) == pytest.approx((whole / 4, whole / 2), abs=0.2)
    assert first.width == pytest.approx(whole / 2 - 2, abs=0.2)
    assert (first.label, second.label) == ("/first", "/second")
    assert sale.x <= WIDTH
    assert (lcp.kind, sale.kind) == ("needs-improvement", "gain")
    assert lcp.title == "LCP 2.6 s, needs improvement, +25.0 s on \u2068/\u2069"
    assert [tick.label for tick in line.ticks] == ["0", "15 s", "30 s", "45 s", "60 s", "75 s", "90 s"]
    assert line.ticks[2].x - line.ticks[0].x == pytest.approx(whole * 0.3, abs=0.2)


def test_a_conversion_is_drawn_over_the_end_of_its_session() -> None:
    """Both in one place of the line: the conversion is the one to see."""
    sold = event("s", "purchase", fact_id="p", at=START + 60_000)
    line = draw([event("s", at=START), sold, event("s", "session_end", fact_id="z", at=START + 60_000)], START)
    assert [(mark.kind, mark.x) for mark in line.marks[-2:]] == [
        ("event", line.marks[-1].x),
        ("gain", line.marks[-1].x),
    ]


@pytest.mark.parametrize("last", [0, 1, 999, 59_000, 3_600_000, 86_400_000, 400 * 86_400_000])
def test_a_time_line_of_any_length(last: int) -> None:
    line = draw([event("s"), event("s", "e", at=last)], START)
    assert 2 <= len(line.ticks) <= 9
    places = [tick.x for tick in line.ticks] + [mark.x + mark.width for mark in line.marks]
    assert min(places) >= 0
    assert max(places) <= WIDTH
    assert len({tick.label for tick in line.ticks}) == len(line.ticks)


def test_the_time_line_of_a_long_session_is_bounded() -> None:
    line = draw([vital("s", "INP", 90, fact_id=f"v{n}", at=n) for n in range(10_000)], START)
    assert (line.shown, len(line.marks)) == (MARKS_MAX, MARKS_MAX)


def test_every_mark_has_a_title(path: Path) -> None:
    page = get(path, "/sessions/all", now=NOW)
    titles = [text for text, around in page.placed if around[-1:] == ("title",) and "svg" in around]
    assert [title.replace("\u2068", "").replace("\u2069", "") for title in titles] == [
        "Page view +0 ms: /start",
        "LCP 2.6 s, needs improvement, +900 ms on /start",
        "Event user_identified +1.0 s on /",
        "INP 90 ms, good, +5.0 s on /",
        "CLS 0.30, poor, +5.0 s on /",
        "TTFB 0 ms, good, +6.0 s on /",
        "Event purchase +1 min 5 s on /",
    ]


# --- erasing ---------------------------------------------------------------------------------------------------------


def erase_url(identity: str, site: str = "default") -> str:
    return f"/visitors/{quote(identity, safe='')}/erase?{urlencode({'site': site})}"


def count(path: Path, table: str) -> int:
    conn = open_read_only(path)
    found: int = conn.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
    conn.close()
    return found


def test_erasing_asks_first_and_says_what_went(tmp_path: Path) -> None:
    """From the page of the visitor, without a script; looking erases nothing."""
    path = record_facts(tmp_path / "sidecar.db", some_facts())
    tidied: list[str] = []

    async def tidy() -> None:
        tidied.append("done")

    with open_dashboard(path, now=NOW, tidy=tidy) as client:
        visitor = Reader(client.get("/visitors/ada?site=default").text)
        assert erase_url("ada") in visitor.links()
        asked = Reader(client.get(erase_url("ada")).text)
        assert "Erase Ada L. ?" in asked.text
        assert "1 session 4 web vitals 3 events" in asked.text
        assert ("form", {"class": "choice", "method": "post", "action": erase_url("ada")}) in asked.tags
        assert "/visitors/ada?site=default" in asked.links()
        assert (count(path, "sessions"), count(path, "tombstones"), tidied) == (3, 0, [])
        answer = client.post(erase_url("ada"), headers=ORIGIN)
        assert answer.status_code == 200
        assert "Erased The visitor is gone, and with it: 1 session 4 web vitals 3 events" in Reader(answer.text).text
        assert (count(path, "sessions"), count(path, "tombstones"), tidied) == (2, 1, ["done"])
        assert client.post(erase_url("ada"), headers=ORIGIN).status_code == 404  # the page loaded again
        assert client.get("/visitors/ada").status_code == 404
    assert count(path, "tombstones") == 1


@pytest.mark.parametrize("origin", [None, "null", "http://evil.test", "http://127.0.0.1:8788"])
def test_erasing_needs_its_own_origin(tmp_path: Path, origin: str | None) -> None:
    path = record_facts(tmp_path / "sidecar.db", some_facts())
    with open_dashboard(path, now=NOW) as client:
        answer = client.post(erase_url("ada"), headers={} if origin is None else {"Origin": origin})
    assert answer.status_code == 403
    assert count(path, "sessions") == 3


def test_erasing_needs_the_token(tmp_path: Path) -> None:
    path = record_facts(tmp_path / "sidecar.db", some_facts())
    with open_dashboard(path, now=NOW, token="s3cret", peer="192.0.2.1") as client:
        assert client.get(erase_url("ada")).status_code == 403
        assert client.post(erase_url("ada"), headers=ORIGIN).status_code == 403
        assert count(path, "sessions") == 3
        bearer = ORIGIN | {"Authorization": "Bearer s3cret"}
        assert client.post(erase_url("ada"), headers=bearer).status_code == 200
    assert count(path, "sessions") == 2


def test_erasing_an_id_of_two_sites_chooses(tmp_path: Path) -> None:
    path = record_facts(tmp_path / "sidecar.db", [event("a", visitor="v"), event("b", site="shop", visitor="v")])
    with open_dashboard(path, now=NOW) as client:
        assert client.post("/visitors/v/erase", headers=ORIGIN).status_code == 300
        assert count(path, "sessions") == 2
        assert client.post(erase_url("v", "shop"), headers=ORIGIN).status_code == 200
    assert count(path, "sessions") == 1


def test_a_visitor_whose_id_ends_like_the_form(tmp_path: Path) -> None:
    """`v/erase` has a page and a form of its own, and none of it touches `v`."""
    path = record_facts(tmp_path / "sidecar.db", [event("a", visitor="v"), event("b", visitor="v/erase")])
    with open_dashboard(path, now=NOW) as client:
        page = Reader(client.get("/visitors/v%2Ferase?site=default").text)
        assert "Visitor id v/erase" in page.text
        assert erase_url("v/erase") in page.links()
        assert client.post("/visitors/v%2Ferase", headers=ORIGIN).status_code == 404
        assert "1 session" in Reader(client.post(erase_url("v/erase"), headers=ORIGIN).text).text
        assert client.get("/visitors/v?site=default").status_code == 200
    assert count(path, "sessions") == 1


def test_what_looks_like_an_id_of_others_stays(tmp_path: Path) -> None:
    """Whoever calls itself `USD` does not take the currency with it."""
    facts = [
        event("mine", visitor="USD"),
        event("other", "purchase", properties={"revenue": 1, "currency": "USD"}, visitor="other-visitor"),
    ]
    path = record_facts(tmp_path / "sidecar.db", facts)
    with open_dashboard(path, now=NOW) as client:
        assert client.post(erase_url("USD"), headers=ORIGIN).status_code == 200
        assert client.get("/api/sessions/other").json()["currency"] == "USD"
