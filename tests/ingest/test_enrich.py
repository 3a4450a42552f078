"""Enrichment: clients, places, address privacy, campaigns, cookieless ids, the time window."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mmdb_writer import MMDBWriter
from netaddr import IPSet

from sidecar.attribution import campaign_of, click_ids_of
from sidecar.errors import ConfigError
from sidecar.ingest.client import read_user_agent
from sidecar.ingest.enrich import FUTURE_MAX_MS, PAST_MAX_MS, put_cookieless, put_time
from sidecar.ingest.place import open_places, private_address
from sidecar.model import Campaign, Place, VitalFact
from tests.local import RULES, dump, read

NOW = 1_795_330_800_000
IPAD_DESKTOP = (
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) "
    "Version/17.5 Safari/605.1.15"
)
AGENTS = {
    "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/156.0.0.0 Safari/537.36": (
        ("desktop", "Chrome", "156", "Linux", None)
    ),
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5_1 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.5 "
    "Mobile/15E148 Safari/604.1": ("mobile", "Mobile Safari", "17.5", "iOS", "17.5.1"),
    "Mozilla/5.0 (Linux; Android 14; Pixel 8) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.6778.81 Mobile "
    "Safari/537.36": ("mobile", "Chrome Mobile", "131.0.6778", "Android", "14"),
    "Mozilla/5.0 (Linux; Android 13; SM-X700) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.0.0 Safari/537.36": (
        ("tablet", "Chrome", "131", "Android", "13")
    ),
    IPAD_DESKTOP: ("desktop", "Safari", "17.5", "macOS", "10.15.7"),
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:133.0) Gecko/20100101 Firefox/133.0": (
        ("desktop", "Firefox", "133", "Windows", "10")
    ),
}


@pytest.mark.parametrize("user_agent", AGENTS)
def test_user_agents(user_agent: str) -> None:
    """Device, browser and system of real browsers, none of them a bot."""
    agent = read_user_agent(user_agent)
    assert agent[:5] == AGENTS[user_agent]
    assert agent.bot is None


@pytest.mark.parametrize(
    ("user_agent", "name"),
    [
        ("Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)", "Googlebot"),
        ("Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 HeadlessChrome/156.0.0.0 Safari/537.36", "HeadlessChrome"),
        ("curl/8.5.0", "curl"),
        ("", "no user agent"),
    ],
)
def test_bots(user_agent: str, name: str) -> None:
    """Crawlers, tools, and a missing user agent."""
    assert name in (read_user_agent(user_agent).bot or "")


def test_what_the_item_says_counts_before_the_user_agent() -> None:
    """The five device fields are one set; "Unknown" is missing."""
    said = {"sessionId": "s", "metric": "LCP", "value": 1, "id": "a", "timestamp": NOW, "pageUrl": "/"}
    [plain] = read("web-vitals", dump(said | {"browserName": "Unknown", "screenWidth": 800}), NOW)
    [own] = read("web-vitals", dump(said | {"browserName": "Kiosk"}), NOW)
    assert isinstance(plain, VitalFact)
    assert isinstance(own, VitalFact)
    assert plain.client is not None
    assert own.client is not None
    assert plain.client[:7] == ("desktop", "Chrome", "131", "Linux", None, 800, None)
    assert own.client[:7] == (None, "Kiosk", None, None, None, None, None)


@pytest.mark.parametrize(
    ("address", "truncated"),
    [
        ("203.0.113.77", "203.0.113.0"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1::"),
        ("::ffff:203.0.113.77", "203.0.113.0"),
        ("not an address", None),
        (None, None),
    ],
)
def test_address_privacy(address: str | None, truncated: str | None) -> None:
    """`truncate` keeps /24 and /48; `none` nothing."""
    assert private_address(address, "truncate") == truncated
    assert private_address(address, "none") is None
    assert private_address("203.0.113.77", "full") == "203.0.113.77"


def make_mmdb(path: Path, record: dict[str, Any]) -> Path:
    """A small file of our own with one network."""
    writer = MMDBWriter(ip_version=4, database_type="Test", languages=["en"])
    writer.insert_network(IPSet(["203.0.113.0/24"]), record)
    writer.to_db_file(str(path))
    return path


RECORDS: list[tuple[dict[str, Any], Place]] = [
    (
        {
            "country": {"iso_code": "DE", "names": {"en": "Germany"}},
            "subdivisions": [{"names": {"en": "Bavaria"}}],
            "city": {"names": {"en": "Munich"}},
        },
        Place("DE", "Germany", "Bavaria", "Munich"),
    ),
    ({"country_code": "FR", "country_name": "France", "city": "Lyon"}, Place("FR", "France", None, "Lyon")),
    ({"country": "IT"}, Place("IT", None, None, None)),
]


@pytest.mark.parametrize("record", range(len(RECORDS)))
def test_places(tmp_path: Path, record: int) -> None:
    """The layouts of the field's files: nested, flat, and a country alone."""
    said, place = RECORDS[record]
    places = open_places(make_mmdb(tmp_path / "places.mmdb", said))
    assert places.find("203.0.113.77") == place
    assert places.find("198.51.100.1") == Place()
    assert places.find("2001:db8::1") == Place()
    assert places.find(None) == Place()


def test_a_file_that_is_no_mmdb_stops_the_start(tmp_path: Path) -> None:
    """One line that names the setting."""
    (tmp_path / "bad.mmdb").write_text("no")
    with pytest.raises(ConfigError, match="SIDECAR_GEOIP_DATABASE"):
        open_places(tmp_path / "bad.mmdb")


def test_place_is_looked_up_before_the_address_is_cut(tmp_path: Path) -> None:
    """The place is of the full address, what is stored of the address is not."""
    rules = RULES._replace(places=open_places(make_mmdb(tmp_path / "p.mmdb", {"country_code": "FR"})))
    said = {"sessionId": "s", "metric": "LCP", "value": 1, "id": "a", "timestamp": NOW, "pageUrl": "/"}
    [fact] = read("web-vitals", dump(said), NOW, address="203.0.113.77", rules=rules)
    assert isinstance(fact, VitalFact)
    assert fact.client is not None
    assert (fact.client.country_code, fact.client.ip_address) == ("FR", "203.0.113.0")


def test_campaigns() -> None:
    """An event's own as a set, else those of its page address; the first of several counts."""
    url = "https://a.example/?utm_source=news&utm_source=other&UTM_Medium=mail&utm_term=&x=1#utm_campaign=no"
    assert campaign_of(None, url) == Campaign("news", "mail", None, None, None)
    assert campaign_of({"campaign": "own", "source": ""}, url) == Campaign(None, None, "own", None, None)
    assert campaign_of({"source": 5}, "/") is None


def test_click_ids() -> None:
    """Known ids of a page address; any text in the event's own set."""
    assert click_ids_of(None, "/?gclid=g1&other=1&fbclid=f1") == '{"fbclid":"f1","gclid":"g1"}'
    assert click_ids_of({"custom": "c", "empty": "", "no": 1}, "/?gclid=g1") == '{"custom":"c"}'
    assert click_ids_of({}, "/") is None


def test_the_time_window() -> None:
    """Both ends are inside; outside the receive time counts."""
    assert put_time(NOW - PAST_MAX_MS, NOW) == (NOW - PAST_MAX_MS, False)
    assert put_time(NOW - PAST_MAX_MS - 1, NOW) == (NOW, True)
    assert put_time(NOW + FUTURE_MAX_MS, NOW) == (NOW + FUTURE_MAX_MS, False)
    assert put_time(NOW + FUTURE_MAX_MS + 1, NOW) == (NOW, True)
    assert put_time(None, NOW) == (NOW, True)


def test_cookieless_ids_change_with_everything_they_are_made_of() -> None:
    """Another day's salt, browser, address, site: another visitor. Another funnel: another session of the same one."""
    base = put_cookieless((b"salt", "agent", "203.0.113.77"), "site", "funnel")
    assert put_cookieless((b"salt", "agent", "203.0.113.77"), "site", "funnel") == base
    others = [
        put_cookieless((b"other", "agent", "203.0.113.77"), "site", "funnel"),
        put_cookieless((b"salt", "other", "203.0.113.77"), "site", "funnel"),
        put_cookieless((b"salt", "agent", "203.0.113.78"), "site", "funnel"),
        put_cookieless((b"salt", "agent", "203.0.113.77"), "other", "funnel"),
    ]
    assert len({base, *others}) == 5
    assert len({visitor for _, visitor in [base, *others]}) == 5
    session, visitor = put_cookieless((b"salt", "agent", "203.0.113.77"), "site", "other")
    assert (session != base[0], visitor) == (True, base[1])
