"""The overview: its figures against the period before, its chart, its lists, its vitals, and its refreshing."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any

import pytest

from sidecar.model import Campaign, Client, Fact
from tests.builders import BOT, CHROME, START, event, open_dashboard, page_of, record_facts, vital
from tests.web.reader import MINUTE, Reader, get

HOUR = 60 * MINUTE
DAY = 24 * HOUR
NOW = START + MINUTE
PHONE = Client("mobile", "Safari", "17", "iOS", "17", 390, 844, None, "FR", "France", None, None, None)


def some_weeks() -> list[Fact]:
    """Of this week a session that converts, one that bounces, a provisional one, a bot's; two of the week before."""
    sale = Campaign("news", "email", None, None, None)
    return [
        event("buyer", at=-2 * DAY, page=page_of("/"), visitor="ada", client=PHONE, campaign=sale),
        event("buyer", at=-2 * DAY + 30_000, page=page_of("/lamps"), visitor="ada", client=PHONE),
        event("buyer", "purchase", at=-2 * DAY + 60_000, properties={"revenue": 40}, visitor="ada", client=PHONE),
        event("bounced", at=-4 * MINUTE, page=page_of("/"), visitor="bo", referrer="https://news.test/a"),
        *(vital("bounced", "LCP", 2000 + place, fact_id=f"l{place}", at=-4 * MINUTE) for place in range(12)),
        *(vital("bounced", "INP", 100, fact_id=f"i{place}", at=-4 * MINUTE) for place in range(12)),
        *(vital("bounced", "CLS", 0.02, fact_id=f"c{place}", at=-4 * MINUTE) for place in range(12)),
        vital("early", "LCP", 4200, at=-3 * HOUR, visitor="cy"),
        event("robot", at=-HOUR, client=BOT),
        event("before", at=-8 * DAY, page=page_of("/"), visitor="ada"),
        event("before", "purchase", at=-8 * DAY + 10_000, properties={"revenue": 100}, visitor="ada"),
        event("older", at=-9 * DAY, page=page_of("/"), visitor="dee"),
    ]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of `some_weeks`; nothing here writes."""
    return record_facts(tmp_path_factory.mktemp("overview") / "sidecar.db", some_weeks(), now=NOW)


def section(text: str, begin: str, end: str) -> str:
    return text.split(begin, 1)[1].split(end, 1)[0].strip()


# --- figures ---------------------------------------------------------------------------------------------------------


def test_figures_stand_against_the_period_before(path: Path) -> None:
    """An arrow and a word, so never by colour alone."""
    text = get(path, "/", now=NOW).text
    assert section(text, "UTC Overview", "Over time") == (
        "Visitors 3 ▲ 50.0 % more than before, better "
        "Sessions 3 ▲ 50.0 % more than before, better "
        "Page views 3 ▲ 50.0 % more than before, better "
        "Events 4 ▲ 33.3 % more than before, better "
        "Bounce rate 66.7 % ▲ 33.3 % more than before, worse "
        "Conversions 1 as before "
        "Conversion rate 33.3 % ▼ 33.3 % less than before, worse "
        "Conversion value 40.00 ▼ 60.0 % less than before, worse "
        "Median duration 0 s ▼ 100 % less than before, worse "
        "Online now 1 in the last 5 minutes"
    )


def test_the_figure_before_is_told_on_hover(path: Path) -> None:
    titles = [a.get("title") for tag, a in get(path, "/", now=NOW).tags if tag == "small"]
    assert "100.00 in the period before" in titles
    assert "50.0 % in the period before" in titles


def test_nothing_before_is_said(path: Path) -> None:
    text = get(path, "/?period=30d", now=NOW).text
    assert "Visitors 4 none before" in text
    assert "Conversion rate 40.0 % no figure before" in text


@pytest.mark.parametrize(
    ("query", "figures"),
    [
        ("device=mobile", "Visitors 1 none before Sessions 1 none before Page views 2"),
        ("country=FR", "Visitors 1 none before Sessions 1 none before Page views 2"),
        ("country=unknown", "Visitors 2 as before Sessions 2 as before Page views 1"),
        ("page=/lamps", "Visitors 1 none before Sessions 1 none before Page views 2"),
        ("period=24h", "Visitors 2 none before Sessions 2 none before Page views 1"),
        ("since=2026-11-20&until=2026-11-20", "Visitors 1 none before Sessions 1 none before Page views 2"),
    ],
)
def test_filters_choose(path: Path, query: str, figures: str) -> None:
    assert figures in get(path, f"/?{query}", now=NOW).text


def test_online_are_visitors_of_what_is_chosen(path: Path) -> None:
    assert "Online now 1 in the last 5 minutes" in get(path, "/?period=24h", now=NOW).text
    assert "Online now 1 of what is chosen" in get(path, "/?device=desktop&page=/", now=NOW).text
    assert "Online now 0 of what is chosen" in get(path, "/?device=mobile", now=NOW).text
    assert "Online now 0 of what is chosen" in get(path, "/?page=/lamps", now=NOW).text
    assert "Online now 0 in the last 5 minutes" in get(path, "/", now=NOW + 5 * MINUTE).text


def test_provisional_sessions_are_told(path: Path) -> None:
    assert "1 session provisional: with web vitals and no event so far" in get(path, "/", now=NOW).text
    assert "provisional" not in get(path, "/?device=mobile", now=NOW).text


# --- the chart -------------------------------------------------------------------------------------------------------


def test_every_step_is_a_mark_with_its_numbers_and_a_row_of_a_table(path: Path) -> None:
    page = get(path, "/", now=NOW)
    bought = "Fri 20 Nov 2026: 1 visitor, 1 session, 2 page views, 1 conversion"
    assert page.texts.count(bought) == 2  # of the lines, and of the columns
    steps = [a for tag, a in page.tags if tag == "rect" and a.get("class") == "step"]
    titles = [texts for texts, around in page.placed if around[-1:] == ("title",) and "visitor" in texts]
    assert len(steps) == len(titles) == 2 * 8
    assert "Day Visitors Sessions" in page.text
    assert "Fri 20 Nov 2026 1 1 2 1 Sat 21 Nov 2026 0 0 0 0 Sun 22 Nov 2026 (in part) 2 2 1 0" in page.text


def test_a_chart_has_a_fixed_height_and_a_name(path: Path) -> None:
    """So nothing moves while it loads, and a screen reader knows what it is."""
    areas = [a for tag, a in get(path, "/", now=NOW).tags if tag == "svg" and a.get("class") == "area"]
    assert [(a["height"], a["role"], a["aria-label"]) for a in areas] == [
        ("194", "img", "Visitors, sessions and page views over time"),
        ("70", "img", "Conversions over time"),
    ]


# --- lists -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("title", "rows"),
    [
        ("Pages Pages Page views", "/ 2 66.7 % /lamps 1 33.3 %"),
        ("Entry pages Entry pages Sessions", "/ 3 100 %"),
        ("Exit pages Exit pages Sessions", "/ 3 100 %"),
        ("Referrers Referrers Sessions", "direct 2 66.7 % news.test 1 33.3 %"),
        ("Campaigns Campaigns Sessions", "none 2 66.7 % news / email 1 33.3 %"),
        ("Countries Countries Sessions", "unknown 2 66.7 % France 1 33.3 %"),
        ("Devices Devices Sessions", "desktop 2 66.7 % mobile 1 33.3 %"),
        ("Browsers Browsers Sessions", "Chrome 2 66.7 % Safari 1 33.3 %"),
        ("Systems Systems Sessions", "Windows 2 66.7 % iOS 1 33.3 %"),
    ],
)
def test_lists_of_the_most(path: Path, title: str, rows: str) -> None:
    assert f"{title} Share {rows}" in get(path, "/", now=NOW).text


def test_a_row_is_a_link_to_itself_as_a_filter(path: Path) -> None:
    links = get(path, "/?period=30d", now=NOW).links()
    for query in ("page=%2Flamps", "country=FR", "country=unknown", "device=mobile"):
        assert f"/?{query}&period=30d" in links
    assert not [link for link in links if "Chrome" in link or "news" in link]


def test_the_first_row_has_the_longest_bar(path: Path) -> None:
    page = get(path, "/", now=NOW)
    shares = [place for place, (tag, a) in enumerate(page.tags) if tag == "svg" and a.get("class") == "share"]
    widths = [page.tags[place + 1][1]["width"] for place in shares]
    assert widths[:2] == ["100.0", "50.0"]


# --- web vitals ------------------------------------------------------------------------------------------------------


def test_core_web_vitals_are_passed_or_not(path: Path) -> None:
    text = get(path, "/?device=desktop", now=NOW).text
    assert "Core Web Vitals 75th percentile ✓ Passed LCP 2.0 s good" in text
    assert "92.3 % good of 13" in text  # one of thirteen is poor
    assert "FCP no reports TTFB no reports" in text
    assert "Too few samples to say LCP no reports" in get(path, "/?device=mobile", now=NOW).text


def test_not_passed_is_said(tmp_path: Path) -> None:
    slow = [vital("s", m, v, fact_id=f"{m}{n}") for m, v in (("LCP", 1), ("INP", 900), ("CLS", 0)) for n in range(10)]
    text = get(record_facts(tmp_path / "s.db", slow), "/").text
    assert "75th percentile ✕ Not passed LCP 1 ms good" in text
    assert "0 good 0 need improvement 10 poor 0 % good of 10" in text


# --- what there is to say where there is nothing ---------------------------------------------------------------------


def test_a_filter_that_matches_nothing_offers_to_clear_it(path: Path) -> None:
    page = get(path, "/?device=tablet&period=24h", now=NOW)
    assert "Nothing to show No session began in this period with these filters. The latest of all began" in page.text
    assert {"/?period=24h", "/?device=tablet&period=90d"} <= set(page.links())
    assert "Bounce rate" not in page.text


def test_a_period_without_sessions_says_when_the_latest_was(path: Path) -> None:
    text = get(path, "/?period=24h", now=NOW + 12 * DAY).text
    assert "No session began in this period. The latest of all began 12 days ago" in text


def test_trouble_in_shipping_is_said(path: Path) -> None:
    def read(**state: Any) -> str:
        return get(path, "/", now=NOW, read_shipping=lambda *_: state).text

    blocked = read(state="blocked", reason="401 <Unauthorized>")
    assert (
        "Shipping is blocked. Everything is kept and tried again. The reason: 401 <Unauthorized> See shipping"
        in blocked
    )
    assert "Shipping waits for its destination." in read(state="waiting", reason="no answer")
    for state in ("ready", "off"):
        assert "kept and tried again" not in read(state=state, reason=None)


# --- live ------------------------------------------------------------------------------------------------------------


def test_an_open_page_is_given_the_piece_that_changes(path: Path) -> None:
    """With the same pieces under the same names, and nothing else."""
    with open_dashboard(path, now=NOW) as client:
        page = Reader(client.get("/").text)
        piece = Reader(client.get("/", headers={"Sidecar-Live": "1"}).text)
    names = [a["data-live"] for _, a in page.tags if "data-live" in a]
    assert [a["data-live"] for _, a in piece.tags if "data-live" in a] == names
    assert len(names) == len(set(names)) == 1 + 10 + 4 + 1 + 1 + 5 + 1 + 9
    assert "html" not in [tag for tag, _ in piece.tags]
    shown = page.text.split("Clear all" if "Clear all" in page.text else "Apply ", 1)[1].split(" Times in")[0]
    assert shown.replace(" Overview ", " ", 1) == piece.text


def test_an_open_page_without_anything_is_given_nothing(path: Path, tmp_path: Path) -> None:
    """Until there is something: then its script loads the page again."""
    empty = record_facts(tmp_path / "empty.db", [])
    for file, url in ((path, "/?page=/nowhere"), (empty, "/")):
        with open_dashboard(file, now=NOW) as client:
            assert "data-empty" in client.get(url).text
            answer = client.get(url, headers={"Sidecar-Live": "1"})
            assert (answer.status_code, answer.text.strip()) == (200, "")


def test_overviews_at_once_do_not_block_each_other(path: Path) -> None:
    """Each takes two connections of four, never one while it waits for the other."""
    answers: list[int] = []
    with open_dashboard(path, now=NOW) as client:
        threads = [threading.Thread(target=lambda: answers.append(client.get("/").status_code)) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert answers == [200] * 12


def test_names_of_clients_are_text(tmp_path: Path) -> None:
    nasty = '"><script>x</script>'
    facts = [event("s", page=page_of(f"/{nasty}"), referrer=f"https://h.test/{nasty}", client=CHROME)]
    page = get(record_facts(tmp_path / "s.db", facts), f"/?page=/{nasty}")
    assert not [a for tag, a in page.tags if tag == "script" and "src" not in a]
    assert re.search(r"/\"><script>x</script>", page.text)
