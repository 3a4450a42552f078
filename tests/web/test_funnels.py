"""The page of funnels, and the three clicks from it to a session."""

from __future__ import annotations

from pathlib import Path

import pytest

from sidecar.model import Fact
from tests.builders import BOT, START, event, open_dashboard, record_facts, vital
from tests.web.reader import MINUTE, Reader, get

NOW = START + MINUTE


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two funnels with sessions, one that holds only a bot's."""
    facts: list[Fact] = [
        event("a", funnel_id="ads", visitor="ada"),
        event("a", "purchase", at=30_000, funnel_id="ads", visitor="ada", properties={"revenue": 1200.5}),
        event("b", funnel_id="ads", visitor="bo"),
        *(
            vital("b", metric, value, funnel_id="ads", fact_id=f"{metric}{place}", visitor="bo")
            for metric, value in (("LCP", 1500), ("INP", 90), ("CLS", 0.3))
            for place in range(10)
        ),
        event("c", funnel_id="shop & co", visitor="ada"),
        event("d", funnel_id="robots", client=BOT),
    ]
    return record_facts(tmp_path_factory.mktemp("funnels") / "sidecar.db", facts, now=NOW)


def test_a_funnel_is_a_row_with_its_numbers(path: Path) -> None:
    page = get(path, "/funnels", now=NOW)
    rows = page.text.split("Core Web Vitals ", 1)[1].split(" Times in")[0]
    assert rows == (
        "ads Sessions · Vitals 2 2 2 1 50.0 % 1,200.50 50.0 % 15 s 1.5 s good 90 ms good 0.30 poor ✕ Not passed "
        "shop & co Sessions · Vitals 1 1 1 0 0 % – 100 % 0 s – – – Too few samples to say"
    )


def test_three_clicks_lead_to_a_session(path: Path) -> None:
    """Funnels -> a funnel's overview -> its sessions -> one of them, each link taken from the page before."""
    with open_dashboard(path, now=NOW) as client:

        def follow(url: str, begin: str) -> str:
            return next(link for link in Reader(client.get(url).text).links() if link.startswith(begin))

        overview = follow("/funnels?period=24h", "/?funnelId=shop")
        assert "Sessions 1 none before" in Reader(client.get(overview).text).text
        sessions = follow(overview, "/sessions?funnelId=shop+%26+co&period=24h")
        session = follow(sessions, "/sessions/")
        back = "&from=%2Fsessions%3FfunnelId%3Dshop%2B%2526%2Bco%26period%3D24h"
        assert session == f"/sessions/c?site=default&funnelId=shop+%26+co{back}"
        page = Reader(client.get(session).text)
        assert sessions in page.links()
        assert "/vitals?funnelId=shop+%26+co&period=24h" in page.links()


def test_many_funnels_are_paged(tmp_path: Path) -> None:
    """Anybody may send any funnel id: fifty rows a page."""
    path = record_facts(tmp_path / "f.db", [event("s", funnel_id=f"f-{n:03}") for n in range(120)])
    with open_dashboard(path, now=NOW) as client:
        page = Reader(client.get("/funnels?period=24h").text)
        assert "1 to 50 of 120 funnels" in page.text
        assert page.text.count("Sessions · Vitals") == 50
        last = Reader(client.get("/funnels?period=24h&list=3").text)
        assert "101 to 120 of 120 funnels" in last.text
        assert "f-119" in last.text
        assert client.get("/funnels?list=0").status_code == 400


def test_sites_are_told_apart_where_there_are_several(path: Path, tmp_path: Path) -> None:
    assert " Site " not in get(path, "/funnels", now=NOW).text
    two = record_facts(tmp_path / "s.db", [event("s"), event("s", site="shop")])
    page = get(two, "/funnels")
    assert "Funnel Site Visitors" in page.text
    assert {"/?site=default&funnelId=default", "/?site=shop&funnelId=default"} <= set(page.links())


def test_filters_choose(path: Path) -> None:
    page = get(path, "/funnels?funnelId=ads", now=NOW)
    assert "shop & co Sessions" not in page.text
    assert "Nothing to show" in get(path, "/funnels?device=tablet", now=NOW).text
