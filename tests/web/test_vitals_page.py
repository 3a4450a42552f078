"""The page of web vitals: percentiles, ratings, distributions, their course, and the pages that are slow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sidecar.model import NAVIGATION_TYPES, Client, Fact
from sidecar.web.charts import TOP
from sidecar.web.vitals_page import HEIGHT, NAVIGATION_NAMES
from tests.builders import START, page_of, record_facts, vital
from tests.web.reader import MINUTE, Reader, get

DAY = 24 * 60 * MINUTE
NOW = START + MINUTE
PHONE = Client("mobile", "Safari", "17", "iOS", "17", 390, 844, None, "FR", "France", None, None, None)


def some_vitals() -> list[Fact]:
    """Twenty good reports of each core metric on a desktop, twelve with a poor LCP on a phone; one page with few."""
    facts: list[Fact] = []
    for place in range(20):
        told: dict[str, Any] = {"fact_id": f"d{place}", "page": page_of("/fast", "Fast & good"), "visitor": "ada"}
        facts += [
            vital("desk", "LCP", 1000 + place, at=-DAY, **told),
            vital("desk", "INP", 100, at=-DAY, **told),
            vital("desk", "CLS", 0.05, at=-DAY, **told),
        ]
    for place in range(12):
        told = {"fact_id": f"p{place}", "page": page_of("/slow"), "client": PHONE, "navigation_type": "reload"}
        lcp = (2000, 3000, 5000)[place % 3]
        facts += [
            vital("phone", "LCP", lcp, at=-MINUTE, **told),
            vital("phone", "INP", 150, at=-MINUTE, **told),
            vital("phone", "CLS", 0.01, at=-MINUTE, **told),
        ]
    facts.append(vital("few", "LCP", 9000, page=page_of("/rare"), at=-MINUTE))
    facts.append(vital("few", "TTFB", 0, fact_id="t0", navigation_type="back-forward-cache", at=-MINUTE))
    return facts


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of `some_vitals`; nothing here writes."""
    return record_facts(tmp_path_factory.mktemp("vitals") / "sidecar.db", some_vitals(), now=NOW)


@pytest.fixture(scope="module")
def page(path: Path) -> Reader:
    """The page without a filter."""
    return get(path, "/vitals", now=NOW)


def test_mobile_and_desktop_are_judged_apart(page: Reader) -> None:
    """33 values of LCP: the 25th is 3 s; all 21 on desktops but one are good; on phones the 9th of 12 is 5 s."""
    assert (
        "All devices ✕ Not passed LCP 3.0 s needs improvement 33 samples INP 150 ms good 32 samples "
        "CLS 0.05 good 32 samples Mobile ✕ Not passed LCP 5.0 s poor 12 samples INP 150 ms good 12 samples "
        "CLS 0.01 good 12 samples Desktop ✓ Passed LCP 1.0 s good 21 samples INP 100 ms good 20 samples"
    ) in page.text


def test_a_filter_on_a_device_leaves_no_verdict_over_all(path: Path) -> None:
    text = get(path, "/vitals?device=mobile", now=NOW).text
    assert "All devices" not in text
    assert "Mobile ✕ Not passed LCP 5.0 s poor 12 samples" in text
    assert "Desktop Too few samples to say LCP – 0 samples" in text


def test_a_metric_has_its_percentile_samples_rating_and_distribution(page: Reader) -> None:
    assert (
        "LCP Largest Contentful Paint 33 samples 3.0 s needs improvement 24 good 4 need improvement 5 poor "
        "72.7 % good 12.1 % needs improvement 15.2 % poor"
    ) in page.text
    assert "FCP First Contentful Paint 0 samples No reports in this view" in page.text
    assert "TTFB Time to First Byte 0 samples No reports in this view" in page.text  # 0 is a placeholder
    spreads = [a for tag, a in page.tags if tag == "svg" and a.get("class") == "spread"]
    assert spreads[0]["aria-label"] == "73 % good, 12 % needs improvement, 15 % poor"


def test_the_course_of_a_metric_stands_over_its_limits(page: Reader) -> None:
    """Every step has its value or says that there is none; the axis names the limits; a table says the same."""
    assert "Sat 21 Nov 2026: 1.0 s, of 20 samples" in page.texts
    assert "Sun 22 Nov 2026 (in part): 5.0 s, of 13 samples" in page.texts
    assert page.texts.count("Fri 20 Nov 2026: no reports") == 3
    assert "Sat 21 Nov 2026 1.0 s 20 100 ms 20 0.05 20 – 0 – 0" in page.text
    charts = [a for tag, a in page.tags if tag == "svg" and a.get("class") == "area"]
    assert charts[0]["aria-label"] == ("75th percentile of LCP over time; good up to 2.5 s, poor above 4.0 s")
    bands = [a for tag, a in page.tags if tag == "rect" and (a.get("class") or "").startswith("band ")][:3]
    assert [band["class"] for band in bands] == ["band poor", "band needs-improvement", "band good"]
    edges = [float(band["y"] or 0) for band in bands]
    assert edges[0] == 0
    highest = 5000 * 1.08
    assert edges[1:] == [round(HEIGHT - (HEIGHT - TOP) * limit / highest, 1) for limit in (4000, 2500)]


def test_pages_stand_worst_first_and_those_with_few_samples_last(page: Reader) -> None:
    rows = page.text.split("Page Samples LCP INP CLS FCP TTFB ")[1].split(" Devices ")[0]
    assert rows == (
        "/slow 12 5.0 s poor 150 ms good 0.01 good – – "
        "/fast Fast & good 20 1.0 s good 100 ms good 0.05 good – – "
        "/rare 1 too few 9.0 s poor – – – –"
    )
    assert "All 3 pages, worst first; those with fewer than 10 samples come last, in grey." in page.text
    assert [a.get("class") for tag, a in page.tags if tag == "tr"].count("few") == 1


def test_a_page_leads_to_its_sessions_slowest_first(path: Path) -> None:
    links = get(path, "/vitals?period=30d&country=FR", now=NOW).links()
    assert "/sessions?country=FR&page=%2Fslow&period=30d&sort=slowest" in links
    assert "/slow" in get(path, "/sessions?page=%2Fslow&sort=slowest", now=NOW).text


def test_navigation_types_are_told_apart(page: Reader) -> None:
    assert "Opened 1.0 s good 21 100 ms good 20 0.05 good 20" in page.text
    assert "Reloaded 5.0 s poor 12 150 ms good 12 0.01 good 12" in page.text
    assert set(NAVIGATION_NAMES) == {*NAVIGATION_TYPES, "unknown"}


def test_pages_are_fifty_at_a_time(tmp_path: Path) -> None:
    facts = [
        vital(f"s{place}", "LCP", 1000 + place, fact_id=str(report), page=page_of(f"/p{place:03}"))
        for place in range(120)
        for report in range(10)
    ]
    path = record_facts(tmp_path / "sidecar.db", facts)
    found: list[str] = []
    url = "/vitals?period=24h"
    words = iter(("1 to 50 of 120", "51 to 100 of 120", "101 to 120 of 120"))
    while url:
        page = get(path, url)
        assert f"{next(words)} pages, worst first" in page.text
        found += [text for text in page.texts if text.startswith("/p")]
        steps = {a["rel"]: a["href"] for tag, a in page.tags if tag == "a" and a.get("rel")}
        url = (steps.get("next") or "").removesuffix("#pages")
    assert found == [f"/p{place:03}" for place in reversed(range(120))]
    assert steps == {"prev": "/vitals?period=24h&list=2#pages"}
    assert next(words, None) is None
    second = get(path, "/vitals?period=24h&list=2")
    assert "/vitals?period=24h#pages" in second.links()
    assert "/vitals?list=2&period=24h" not in second.links()  # another period begins at its worst


@pytest.mark.parametrize("place", ["0", "-1", "x", "1e3", "9999999"])
def test_a_wrong_place_is_refused(path: Path, place: str) -> None:
    text = get(path, f"/vitals?list={place}", now=NOW, status=400).text
    assert "list: must be an integer from 1 on" in text


def test_behind_the_end_it_says_so(path: Path) -> None:
    page = get(path, "/vitals?list=7", now=NOW)
    assert "or the list ends before here" in page.text
    assert "/vitals?list=6#pages" in page.links()


def test_a_view_without_reports_offers_a_way_out(path: Path) -> None:
    page = get(path, "/vitals?country=DE&period=24h", now=NOW)
    assert "Nothing to show" in page.text
    assert {"/vitals?period=24h", "/vitals?country=DE&period=90d"} <= set(page.links())
    assert "Largest Contentful Paint" not in page.text
