"""The period, the filters and the time zone of a view: read from the address, and written into every link."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qs, urlencode

import pytest

from sidecar.store.queries import FilterError
from sidecar.store.scope import Scope
from sidecar.web.frame import ZONE_COOKIE, ZONES
from sidecar.web.period import read_view, read_zone
from sidecar.web.preferences import list_zones
from tests.builders import START, open_dashboard, record_facts
from tests.web.reader import Reader, get, some_facts

HOUR = 3_600_000
DAY = 24 * HOUR
NOW = START + 5 * 60_000  # 07:05
ORIGIN = {"Origin": "http://127.0.0.1:8787"}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of `some_facts`; nothing here writes."""
    return record_facts(tmp_path_factory.mktemp("period") / "sidecar.db", some_facts())


@pytest.mark.parametrize(("period", "hours"), [("", 168), ("24h", 24), ("7d", 168), ("30d", 720), ("90d", 2160)])
def test_a_period_ends_with_the_running_hour(period: str, hours: int) -> None:
    view = read_view({"period": period}, NOW, None)
    assert view.scope == Scope(START + HOUR - hours * HOUR, START + HOUR)
    assert view.period == (period or "7d")
    assert view.query() == (f"?period={period}" if period else "")


@pytest.mark.parametrize(
    ("zone", "ahead"),
    [("UTC", 0), ("Europe/Paris", HOUR), ("America/New_York", -5 * HOUR), ("Asia/Kolkata", 5.5 * HOUR)],
)
def test_dates_are_days_of_the_viewer(zone: str, ahead: float) -> None:
    """Both ends are whole days: `until` is the last day shown."""
    view = read_view({"since": "2026-11-20", "until": "2026-11-21"}, NOW, zone)
    midnight = START - 7 * HOUR - ahead
    assert view.scope == Scope(round(midnight - 2 * DAY), round(midnight))
    assert view.period == "custom"
    assert view.query() == "?period=custom&since=2026-11-20&until=2026-11-21"


def test_a_day_of_changing_clocks_is_whole() -> None:
    scope = read_view({"since": "2026-10-25", "until": "2026-10-25"}, NOW, "Europe/Paris").scope
    assert scope.until - scope.since == 25 * HOUR


def test_times_are_exact() -> None:
    given = {"since": "2026-11-22T06:30:00Z", "until": "2026-11-22T08:00:00 01:00"}  # `+` came as a blank
    assert read_view(given, NOW, "Asia/Tokyo").scope == Scope(START - HOUR // 2, START)


def test_an_open_end_is_now_and_an_open_begin_a_week_before() -> None:
    assert read_view({"since": "2026-11-22"}, NOW, None).scope == Scope(START - 7 * HOUR, NOW)
    assert read_view({"until": "2026-11-21"}, NOW, None).scope == Scope(START - 7 * HOUR - 7 * DAY, START - 7 * HOUR)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"period": "1y"}, "period: must be one of 24h, 7d, 30d, 90d, custom"),
        ({"since": "yesterday"}, "since: must be a date like 2026-11-22 or an ISO 8601 time"),
        ({"until": "2026-13-01"}, "until: must be a date like 2026-11-22 or an ISO 8601 time"),
        ({"until": "9999-12-31"}, "until: must be a date like 2026-11-22 or an ISO 8601 time"),
        ({"since": "2026-11-23"}, "since: must be before until, from 1970 on, and at most 20 years"),
        (
            {"since": "2026-11-22", "until": "2026-11-20"},
            "since: must be before until, from 1970 on, and at most 20 years",
        ),
        (
            {"since": "0001-01-02", "until": "0001-01-05"},
            "since: must be before until, from 1970 on, and at most 20 years",
        ),
        ({"since": "1990-01-01"}, "since: must be before until, from 1970 on, and at most 20 years"),
    ],
)
def test_what_is_wrong_is_named(given: dict[str, str], line: str) -> None:
    with pytest.raises(FilterError) as raised:
        read_view(given, NOW, None)
    assert str(raised.value) == line


def test_filters_are_kept_and_changed() -> None:
    given = {"site": "shop", "funnelId": "a&b", "device": "mobile", "country": "FR", "page": "/é?", "sort": "x"}
    view = read_view(given, NOW, None)
    assert view.scope[2:] == ("shop", "a&b", "mobile", "FR", "/é?")
    kept = {name: value for name, value in given.items() if name != "sort"}  # a page's own, for the page to keep
    assert view.filters == kept
    assert parse_qs(view.query()[1:]) == {name: [value] for name, value in kept.items()}
    changed = parse_qs(view.query(page=None, device="tablet", period="30d")[1:])
    expected = {name: [value] for name, value in (kept | {"device": "tablet"}).items() if name != "page"}
    assert changed == expected | {"period": ["30d"]}
    assert read_view(dict.fromkeys(given, ""), NOW, None).query() == ""


@pytest.mark.parametrize(
    "name", [None, "", "UTC", "Nowhere/Land", "Europe", "../etc/passwd", "a" * 65, "Europe/Paris\0"]
)
def test_an_unknown_zone_is_utc(name: str | None) -> None:
    """A cookie may be of another day."""
    assert read_zone(name)[1] == "UTC"


# --- in pages --------------------------------------------------------------------------------------------------------


def test_days_and_times_are_on_the_viewers_clock(path: Path) -> None:
    page = get(path, "/?period=24h&tz=Asia/Kolkata", now=NOW)
    assert "21 Nov 2026, 13:30 – 22 Nov 2026, 13:30 Asia/Kolkata" in page.text
    titles = [text for text in page.texts if "visitor" in text and "2026" in text]
    assert any(title.startswith("Sun 22 Nov 2026, 12:00 (in part): 1 visitor, ") for title in titles)
    assert {"datetime": "2026-11-22T06:59:00.000Z", "title": "2026-11-22 12:29:00.000 Asia/Kolkata"} in [
        attributes for tag, attributes in get(path, "/sessions?tz=Asia/Kolkata", now=NOW).tags if tag == "time"
    ]


def test_a_zone_of_the_address_is_kept(path: Path) -> None:
    with open_dashboard(path, now=NOW) as client:
        assert client.get("/?tz=Asia/Kolkata").status_code == 200
        assert "Asia/Kolkata" in Reader(client.get("/vitals").text).text
        answer = client.get("/?tz=Nowhere")
        assert answer.status_code == 400
        assert "tz: must be the name of a time zone like Europe/Paris" in answer.text
        assert client.cookies[ZONE_COOKIE].strip('"') == "Asia/Kolkata"


def test_a_zone_is_chosen_by_a_form(path: Path) -> None:
    """Which leads back to where it was, without a zone in the address."""
    with open_dashboard(path, now=NOW) as client:
        page = Reader(client.get("/vitals?period=30d&tz=UTC").text)
        fields = {a["name"]: a.get("value") for tag, a in page.tags if tag == "input" and a.get("type") == "hidden"}
        assert fields["next"] == "/vitals?period=30d"
        form = urlencode({"tz": "Europe/Paris", "next": fields["next"]})
        answer = client.post("/preferences", headers=ORIGIN, content=form)
        assert (answer.status_code, answer.headers["location"]) == (303, "/vitals?period=30d")
        cookie = answer.headers["set-cookie"]
        assert all(part in cookie for part in ("HttpOnly", "SameSite=lax", "Max-Age=31536000", "Path=/"))
        assert ("option", {"selected": None}) in Reader(client.get("/preferences").text).tags
        assert "09:00 Europe/Paris" in Reader(client.get("/").text).text


@pytest.mark.parametrize(
    ("headers", "form", "status"),
    [
        ({}, {"tz": "UTC"}, 403),
        ({"Origin": "http://evil.test"}, {"tz": "UTC"}, 403),
        (ORIGIN, {"tz": "Nowhere"}, 400),
        (ORIGIN, {}, 400),
        (ORIGIN, {"tz": "UTC", "next": "//evil.test"}, 303),
    ],
)
def test_a_foreign_or_wrong_form_is_refused(
    path: Path, headers: dict[str, str], form: dict[str, str], status: int
) -> None:
    with open_dashboard(path) as client:
        answer = client.post("/preferences", headers=headers, content=urlencode(form))
    assert answer.status_code == status
    assert answer.headers.get("location", "/") == "/"
    assert ("set-cookie" in answer.headers) == (status == 303)


def test_every_zone_that_is_offered_is_known() -> None:
    offered = [name for names in list_zones().values() for name in names]
    assert len(offered) == len(set(offered)) > 300
    assert [name for name in [*offered, *ZONES] if read_zone(name)[1] != name] == []
