"""The dashboard's pages: what they show, hostile text as text, and that they ask for nothing else."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from sidecar.model import Campaign, Client, Fact, Page
from sidecar.store.shipping import read_session_shipping, read_shipping
from sidecar.web import pages
from sidecar.web.pages import describe, format_ago, format_duration, format_ms, format_vital, page_url, shorten
from tests.builders import BOT, START, event, open_dashboard, page_of, record_facts, vital

MINUTE = 60_000
VOID = {"meta", "link", "input", "br", "path", "rect"}


class Reader(HTMLParser):
    """Tags with their attributes, the text in order, and that every element is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append(" ".join(data.split()))

    @property
    def text(self) -> str:
        return " ".join(self.texts)

    def links(self) -> list[str]:
        return [attributes["href"] or "" for tag, attributes in self.tags if tag == "a"]


def get(path: Path, url: str, *, status: int = 200, headers: dict[str, str] | None = None, **given: Any) -> Reader:
    """One page, as a reader of it."""
    with open_dashboard(path, **given) as client:
        answer = client.get(url, headers=headers)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "text/html; charset=utf-8"), answer.text
    return Reader(answer.text)


def some_facts() -> list[Fact]:
    """A session with all kinds of facts, a provisional one, and a bot's."""
    client = Client("mobile", "Safari", "17.5", "iOS", "17", 390, 844, None, "FR", "France", None, "Lyon", "192.0.2.0")
    sale = Campaign("news", "email", "autumn", None, None)
    sent: dict[str, Any] = {"visitor": "ada", "client": client}
    return [
        vital("all", "LCP", 2600, at=900, page=page_of("/start?a=1"), **sent),
        vital("all", "INP", 90, at=5_000, **sent),
        vital("all", "CLS", 0.3, at=5_001, **sent),
        vital("all", "TTFB", 0, at=6_000, navigation_type="back-forward-cache", **sent),
        event("all", campaign=sale, referrer="https://www.news.test/x", page=page_of("/start?a=1"), **sent),
        event("all", "purchase", at=65_000, properties={"revenue": 1234.5, "currency": "EUR"}, **sent),
        event(
            "all",
            "user_identified",
            at=1_000,
            properties={"userId": "u-1", "traits": {"name": "Ada L.", "seats": [1, "é"]}},
            clock_skewed=True,
            visitor="ada",
        ),
        vital("early", "LCP", 900, at=-MINUTE),
        event("robot", at=-2 * MINUTE, client=BOT),
    ]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of `some_facts`; nothing here writes."""
    return record_facts(tmp_path_factory.mktemp("pages") / "sidecar.db", some_facts())


# --- formats ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((0, "0 ms"), (0.04, "0.0 ms"), (4.2, "4.2 ms"), (5, "5 ms"), (340.4, "340 ms"), (999.4, "999 ms")),
        *((999.6, "1.0 s"), (1234, "1.2 s"), (59_949, "59.9 s"), (59_950, "1 min 0 s"), (125_000, "2 min 5 s")),
        (10_000_000, "2 h 46 min"),
    ],
)
def test_milliseconds(value: float, text: str) -> None:
    assert format_ms(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0.00"), (0.02, "0.02"), (0.1, "0.10"), (0.004, "0.004"), (0.0001, "<0.001"), (12.345, "12.35")],
)
def test_layout_shift_has_no_unit(value: float, text: str) -> None:
    assert format_vital("CLS", value) == text


def test_durations() -> None:
    assert [format_duration(s) for s in (0, 59, 59.6, 61, 3599, 3600, 90_061)] == [
        *("0 s", "59 s", "1 min 0 s", "1 min 1 s", "59 min 59 s", "1 h 0 min", "25 h 1 min"),
    ]


@pytest.mark.parametrize(
    ("age_s", "text"),
    [
        *(
            (0, "just now"),
            (9, "just now"),
            (10, "10 s ago"),
            (59, "59 s ago"),
            (60, "1 min ago"),
            (3599, "59 min ago"),
        ),
        *((3600, "1 h ago"), (86_399, "23 h ago"), (86_400, "1 day ago"), (172_800, "2 days ago")),
        *((30 * 86_400, "2026-11-22"), (-59, "just now"), (-240, "in 4 min 0 s")),
    ],
)
def test_how_long_ago(age_s: int, text: str) -> None:
    assert format_ago(START, START + age_s * 1000) == text


def test_small_formats() -> None:
    assert shorten("x" * 61) == "x" * 59 + "…"
    assert shorten("x" * 60) == "x" * 60
    assert page_url("sessions", "a/b?c", "s", "f g") == "/sessions/a%2Fb%3Fc?site=s&funnelId=f+g"
    assert describe({"state": "ok", "shippedAt": "2026-11-22T07:00:00.000Z", "parked": False, "x": None, "y": [1]}) == [
        ("State", "ok", None),
        ("Shipped at", "2026-11-22T07:00:00.000Z", START),
        ("Parked", "no", None),
    ]


# --- the list --------------------------------------------------------------------------------------------------------


def test_the_list_shows_sessions_and_figures(path: Path) -> None:
    page = get(path, "/", now=START + 3 * MINUTE)
    assert "Sessions 2 1 provisional Visitors 1 1 online now" in page.text
    assert "LCP p75 2.6 s needs improvement 50 % good of 2" in page.text
    assert "TTFB p75 no reports" in page.text
    rows = page.text.split("Events Duration ")[1]
    assert rows == (
        "3 min ago converted Ada L. 2.6 s needs improvement 90 ms good 0.30 poor – – 65 "
        "/start?a=1 news / email / autumn Safari, iOS 1 3 1 min 5 s "
        "4 min ago provisional unknown 900 ms good – – – – 100 / direct Chrome, Windows 0 0 0 s "
        "5 min ago bot unknown – – – – – – / direct – 1 1 0 s"
    )
    times = [attributes for tag, attributes in page.tags if tag == "time"]
    assert times[0] == {"datetime": "2026-11-22T07:00:00.000Z", "title": "2026-11-22 07:00:00.000 UTC"}
    assert "/sessions/all?site=default&funnelId=default" in page.links()
    assert "/visitors/ada?site=default" in page.links()


def test_the_list_says_how_long_the_first_event_took(tmp_path: Path) -> None:
    """And how many sessions never had one, where there are any."""
    facts: list[Fact] = [vital("s", "LCP", 900), event("s", at=1_500), vital("lonely", "LCP", 900)]
    path = record_facts(tmp_path / "sidecar.db", facts)
    page = get(path, "/", now=START + 60 * MINUTE)
    said = "Vital before event 1.5 s median wait, p95 1.5 s Never enriched 1 finished without an event Visitors"
    assert said in page.text


def test_tables_have_a_caption_and_scopes_and_scroll_by_themselves(path: Path) -> None:
    for url, tables in (("/", 1), ("/sessions/all", 2), ("/visitors/ada", 1)):
        page = get(path, url)
        tags = [tag for tag, _ in page.tags]
        assert tags.count("table") == tags.count("caption") == tables
        assert all(attributes.get("scope") in ("col", "row") for tag, attributes in page.tags if tag == "th")
        for place in (place for place, tag in enumerate(tags) if tag == "table"):
            before = page.tags[place - 1]
            assert before[1]["class"] == "scroll"
            assert before[1]["tabindex"] == "0"


def test_paging_keeps_the_filters(path: Path) -> None:
    with open_dashboard(path) as client:
        first = Reader(client.get("/?limit=1&funnelId=default&since=2026-11-22").text)
        (older,) = [link for link in first.links() if "cursor=" in link]
        assert older.startswith("/?limit=1&funnelId=default&since=2026-11-22&cursor=")
        second = Reader(client.get(older).text)
    assert "/sessions/all?site=default&funnelId=default" in first.links()
    assert "/sessions/early?site=default&funnelId=default" in second.links()
    assert "/?limit=1&funnelId=default&since=2026-11-22" in second.links()  # to the newest
    fields = {a["name"]: a.get("value") for tag, a in second.tags if tag == "input"}
    assert fields == {"since": "2026-11-22", "until": ""}
    assert ("option", {"value": "default", "selected": None}) in second.tags


def test_filters_offer_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = record_facts(tmp_path / "sidecar.db", [event("a", funnel_id="ads"), event("b", site="shop")])
    page = get(path, "/?funnelId=gone&since=2026-11-22T07:00:00Z")
    options = [attributes["value"] for tag, attributes in page.tags if tag == "option"]
    assert options == ["", "default", "shop", "", "ads", "default", "gone"]
    assert ("input", {"type": "text", "name": "since", "value": "2026-11-22T07:00:00Z"}) in page.tags
    assert "No session fits." in page.text
    monkeypatch.setattr(pages, "FUNNELS_MAX", 1)
    page = get(path, "/?funnelId=ads")
    assert ("input", {"name": "funnelId", "value": "ads", "maxlength": "128"}) in page.tags


def test_how_shipping_goes_is_said(path: Path) -> None:
    blocked = get(path, "/", read_shipping=lambda *_: {"state": "blocked", "reason": "401 <Unauthorized>"})
    assert "Shipping is blocked. Everything is kept and tried again. The reason: 401 <Unauthorized>" in blocked.text
    counts = {"confirmedSessions": 1200, "waitingSessions": 3, "unfinishedSessions": 1, "parkedSessions": 2}
    ready = {"state": "ready", "reason": None, "destination": "https://up.test/api/sessions", **counts}
    assert (
        "1,200 sessions shipped to https://up.test/api/sessions , 3 waiting, 1 not finished, 2 refused and parked ."
        in get(path, "/", read_shipping=lambda *_: ready).text
    )
    waiting = get(path, "/", read_shipping=lambda *_: ready | {"state": "waiting", "reason": "no answer"})
    assert (
        "Shipping waits for its destination. Everything is kept and tried again. The reason: no answer" in waiting.text
    )
    off = get(path, "/", read_shipping=lambda *_: {"state": "off", "reason": None, "destination": None})
    assert "hipp" not in off.text


def test_the_real_readings_of_shipping_fit(path: Path) -> None:
    real: dict[str, Any] = {"read_shipping": read_shipping, "read_session_shipping": read_session_shipping}
    assert "Sessions" in get(path, "/", **real).text
    assert "Shipping waiting Vitals" in get(path, "/sessions/all", **real).text


@pytest.mark.parametrize(
    ("headers", "given", "tag"),
    [
        ({}, {}, '<script defer src="http://127.0.0.1:8787/sidecar.js" data-funnel="default"></script>'),
        (
            {"Host": "[::1]:80"},
            {"tag_funnel": 'a"b', "tag_key": "k"},
            '<script defer src="http://[::1]:80/sidecar.js" data-funnel="a&quot;b" data-key="k"></script>',
        ),
        (
            {"Host": "vitals.test", "X-Forwarded-Proto": "https", "Authorization": "Bearer s3cret"},
            {"token": "s3cret"},
            '<script defer src="https://vitals.test/sidecar.js" data-funnel="default"></script>',
        ),
        (
            {"Host": 'evil"><b>', "X-Forwarded-Proto": "javascript", "Authorization": "Bearer s3cret"},
            {"token": "s3cret"},
            '<script defer src="http://127.0.0.1:8787/sidecar.js" data-funnel="default"></script>',
        ),
    ],
)
def test_an_empty_dashboard_shows_the_tag(tmp_path: Path, headers: dict[str, str], given: Any, tag: str) -> None:
    path = record_facts(tmp_path / "sidecar.db", [])
    page = get(path, "/", headers=headers, **given)
    assert tag in page.texts
    assert "script" not in [name for name, _ in page.tags]


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
    assert page.text.endswith("Last First Times What became of it Fact 1 min ago 2 min ago 2 duplicate LCP v-LCP")


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
    monkeypatch.setattr(pages, "FACTS_MAX", 2)
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
    page = get(path, "/visitors/ada", now=START + 3 * MINUTE)
    assert (
        "Ada L. Identity Visitor id ada User id u-1 Site default First seen 3 min ago Last seen 1 min ago" in page.text
    )
    assert 'Traits name Ada L. seats [1,"é"]' in page.text
    assert "/sessions/all?site=default&funnelId=default" in page.links()
    assert "No session fits." in get(path, "/visitors/ada?until=2000-01-01").text


# --- errors ----------------------------------------------------------------------------------------------------------


def test_errors_are_pages(path: Path, tmp_path: Path) -> None:
    assert "Not found no such session 404" in get(path, "/sessions/none", status=404).text
    assert "no such visitor" in get(path, "/visitors/none", status=404).text
    assert "limit: must be an integer from 1 to 500" in get(path, "/?limit=x", status=400).text
    assert "cannot be read at the moment" in get(tmp_path / "none.db", "/", status=503).text


def test_an_ambiguous_id_is_a_page_with_the_choice(tmp_path: Path) -> None:
    facts = [event("s", visitor="v"), event("s", funnel_id="ads"), event("s", site="shop", visitor="v")]
    path = record_facts(tmp_path / "sidecar.db", facts)
    assert get(path, "/sessions/s", status=300).links()[2:] == [
        "/sessions/s?site=default&funnelId=ads",
        "/sessions/s?site=default&funnelId=default",
        "/sessions/s?site=shop&funnelId=default",
    ]
    assert get(path, "/visitors/v", status=300).links()[2:] == ["/visitors/v?site=default", "/visitors/v?site=shop"]


# --- what others wrote -----------------------------------------------------------------------------------------------

HOSTILE = "</title></script><script>alert(1)</script><img src=x onerror=alert(2)>\"'`&amp;{{ 7*7 }}{% x %}\u202e\x07"


def hostile_facts() -> list[Fact]:
    """One session in which every text of a client is an attack, or 2,000 characters long."""
    long = "W" * 2_000
    texts: Any = [HOSTILE] * 5
    client = Client(*texts, *[None] * 3, *texts)
    page = Page("https://shop.test/" + HOSTILE + long, "/" + HOSTILE + long, HOSTILE)
    campaign = Campaign(*[HOSTILE + long] * 5)
    traits = {"name": HOSTILE + long, HOSTILE: {HOSTILE: HOSTILE}, "long": long}
    sent: dict[str, Any] = {"visitor": HOSTILE, "client": client, "page": page}
    return [
        event(HOSTILE, HOSTILE, properties={HOSTILE: HOSTILE + long}, referrer=HOSTILE, campaign=campaign, **sent),
        event(HOSTILE, "user_identified", at=1, properties={"userId": HOSTILE + long, "traits": traits}, **sent),
        event(
            HOSTILE, "purchase", at=2, properties={"conversionType": HOSTILE, "currency": HOSTILE, "revenue": 1}, **sent
        ),
        vital(HOSTILE, "LCP", 1, fact_id=HOSTILE, **sent),
        event(HOSTILE, funnel_id=HOSTILE),
    ]


def test_hostile_text_is_text(tmp_path: Path) -> None:
    path = record_facts(tmp_path / "sidecar.db", hostile_facts())
    session = page_url("sessions", HOSTILE, "default", "default")
    urls = {"/": 200, "/?" + urlencode({"funnelId": HOSTILE}): 200, session: 200, session.partition("?")[0]: 300}
    urls |= {page_url("visitors", HOSTILE, "default"): 200}
    for url, status in urls.items():
        page = get(path, url, status=status)
        tags = {tag for tag, _ in page.tags}
        assert tags.isdisjoint({"script", "img", "iframe", "object", "style", "b"})
        assert HOSTILE[:39] in page.text
        assert "49" not in page.texts
        for tag, attributes in page.tags:
            assert not [name for name in attributes if name.startswith("on") or name == "style"], tag
            assert (attributes.get("href") or "/").startswith(("/", "data:image/svg+xml,"))
        assert max(map(len, page.texts)) <= 2_000


def test_the_session_of_a_hostile_list_can_be_opened(tmp_path: Path) -> None:
    path = record_facts(tmp_path / "sidecar.db", hostile_facts())
    with open_dashboard(path) as client:
        links = [link for link in Reader(client.get("/").text).links() if link != "/"]
        assert len(links) == 3
        assert [client.get(link).status_code for link in links] == [200, 200, 200]


# --- what a page may ask for -----------------------------------------------------------------------------------------


def test_pages_ask_only_for_their_stylesheet(path: Path) -> None:
    with open_dashboard(path) as client:
        for url in ("/", "/sessions/all", "/visitors/ada", "/sessions/none"):
            page = Reader(client.get(url).text)
            assert "script" not in [tag for tag, _ in page.tags]
            asked = [a.get("src") or a.get("href") for tag, a in page.tags if tag in ("link", "img", "iframe")]
            (style,) = [link for link in asked if link and not link.startswith("data:image/svg+xml,")]
        assert re.fullmatch(r"/static/dashboard\.[0-9a-f]{12}\.css", style)
        sheet = client.get(style)
    assert sheet.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert sheet.headers["content-type"] == "text/css; charset=utf-8"
    assert "light-dark(" in sheet.text
    assert "overflow-wrap" in sheet.text
    assert not re.search(r"url\(|@import|//", sheet.text.replace("/*", ""))


def test_the_stylesheet_needs_no_token(path: Path) -> None:
    with open_dashboard(path, token="s3cret", peer="192.0.2.1") as client:
        page = Reader(client.get("/").text)
        (style,) = [a["href"] for tag, a in page.tags if tag == "link" and a["rel"] == "stylesheet"]
        assert client.get(style or "").status_code == 200


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("name", ["text", "quiet", "link", "good", "fair", "poor"])
@pytest.mark.parametrize("ground", ["page", "card", "soft"])
def test_colours_have_contrast(scheme: int, name: str, ground: str) -> None:
    """4.5:1, as WCAG 2.2 asks of text at level AA."""
    sheet = (Path(pages.__file__).parent / "static" / "dashboard.css").read_text(encoding="utf-8")
    colours = {key: (light, dark) for key, light, dark in re.findall(r"--(\w+): light-dark\((#\w+), (#\w+)\)", sheet)}
    lights = sorted([_luminance(colours[name][scheme]), _luminance(colours[ground][scheme])])
    assert (lights[1] + 0.05) / (lights[0] + 0.05) >= 4.5
