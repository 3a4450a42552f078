"""Proves `tests/reference.py` right: cases worked out by hand from the contract, and contract 5.1 for random sets."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DataObject

from tests import items
from tests.reference import Object, Reference, UserAgentClient, rounded

NOW = 1_795_330_800_000  # 2026-11-22T07:00:00.000Z
T = NOW - 3_600_000  # 2026-11-22T06:00:00.000Z
DAY = 86_400_000

CHROME: UserAgentClient = {
    "deviceType": "desktop",
    "browserName": "Chrome",
    "browserVersion": "131",
    "osName": "Linux",
    "osVersion": None,
}
NO_DEVICE = dict.fromkeys(("deviceType", "browserName", "browserVersion", "osName", "osVersion"))
NO_PLACE = dict.fromkeys(("countryCode", "countryName", "region", "city"))


class Site:
    """A `Reference` with a clock that can be set, and short calls for single items."""

    def __init__(self) -> None:
        self.now = NOW
        self.reference = Reference(now_ms=lambda: self.now, read_user_agent=lambda text: {"browserName": text})

    def vital(
        self, address: str | None = None, agent: UserAgentClient | None = None, funnel: str | None = None, **fields: Any
    ) -> str:
        """An LCP of session s at T with the id a, but for `fields`."""
        item = {
            "sessionId": "s",
            "metric": "LCP",
            "value": 100,
            "id": "a",
            "timestamp": T,
            "pageUrl": "https://x.test/",
        } | fields
        [answer] = self.reference.web_vitals(item, user_agent_client=agent, address=address, header_funnel=funnel)
        return answer

    def event(
        self,
        name: str = "page_view",
        at: Any = T,
        *,
        session: str = "s",
        visitor: str | None = None,
        properties: Any = None,
        agent: UserAgentClient | None = None,
        context: Object | None = None,
        **fields: Any,
    ) -> str:
        """An event of session s at T, but for what is given; its id is name@at unless `eventId` is given."""
        user = {} if visitor is None else {"user": {"anonymousId": visitor}}
        item: Object = {
            "eventId": f"{name}@{at}",
            "eventName": name,
            "timestamp": at,
            "properties": properties,
            "context": {"session": {"sessionId": session}, **user, **(context or {})},
        } | fields
        [answer] = self.reference.events(item, user_agent_client=agent, address=None)
        return answer

    def document(self) -> Object:
        """The only session."""
        [document] = self.reference.export()
        return document


@pytest.fixture
def site() -> Site:
    return Site()


def test_document_of_one_vital(site: Site) -> None:
    """Contract 6, every field in its order."""
    assert site.reference.export() == []
    site.vital(
        anonymousId="visitor-abcdef",
        value=2600.0,
        address="192.0.2.0",
        agent=CHROME,
        seq=2,
        delta=-1.5,
        navigationType="navigate",
        screenWidth=1920,
        pageUrl="https://x.test/a?b=1",
        pageTitle="A",
    )
    chrome = {
        "deviceType": "desktop",
        "browserName": "Chrome",
        "browserVersion": "131",
        "osName": "Linux",
        "osVersion": None,
    }
    expected = {
        "type": "session",
        "version": 1,
        "site": "default",
        "funnelId": "default",
        "subaccountId": None,
        "sessionId": "s",
        "revision": 0,
        "finished": False,
        "provisional": True,
        "visitor": {
            "anonymousId": "visitor-abcdef",
            "displayName": "Visitor #abcdef",
            "firstSeen": "2026-11-22T06:00:00.000Z",
            "lastSeen": "2026-11-22T06:00:00.000Z",
            "totalSessions": 1,
            "totalEvents": 0,
            "userId": None,
            "traits": None,
        },
        "startedAt": "2026-11-22T06:00:00.000Z",
        "endedAt": "2026-11-22T06:00:00.000Z",
        "durationSeconds": 0,
        "pageViews": 0,
        "eventsCount": 0,
        "converted": False,
        "conversionType": None,
        "conversionValue": None,
        "currency": None,
        "firstPageUrl": "https://x.test/a?b=1",
        "lastPageUrl": "https://x.test/a?b=1",
        "firstReferrer": None,
        "firstSource": None,
        "firstMedium": None,
        "firstCampaign": None,
        "lastSource": None,
        "lastMedium": None,
        "lastCampaign": None,
        **chrome,
        **NO_PLACE,
        "ipAddress": "192.0.2.0",
        "avgLcp": 2600,
        "avgInp": None,
        "avgCls": None,
        "avgFcp": None,
        "avgTtfb": None,
        "experienceScore": 85,
        "activeSeconds": None,
        "clients": [
            {
                **chrome,
                "screenWidth": 1920,
                "screenHeight": None,
                "bot": None,
                **NO_PLACE,
                "ipAddress": "192.0.2.0",
            }
        ],
        "webVitals": [
            {
                "metric": "LCP",
                "id": "a",
                "value": 2600,
                "rating": "needs-improvement",
                "delta": -1.5,
                "navigationType": "navigate",
                "seq": 2,
                "pageUrl": "https://x.test/a?b=1",
                "pagePath": "/a",
                "pageTitle": "A",
                "anonymousId": "visitor-abcdef",
                "client": 0,
                "timestamp": "2026-11-22T06:00:00.000Z",
                "clockSkewed": False,
            }
        ],
        "events": [],
    }
    assert json.dumps(site.document()) == json.dumps(expected)


def test_document_of_one_event(site: Site) -> None:
    site.event(
        "cta",
        T + 5,
        properties={"b": 116.0, "a": {"d": -0.0, "c": None}},
        visitor="v",
        context={
            "page": {"url": "https://x.test/p", "title": "P", "referrer": "https://r.test/"},
            "gdpr": {"consentVersion": "1", "consentGiven": True},
        },
    )
    document = site.document()
    expected = {
        "eventId": "cta@1795327200005",
        "eventName": "cta",
        "properties": {"a": {"c": None, "d": 0}, "b": 116},
        "pageUrl": "https://x.test/p",
        "pagePath": "/p",
        "pageTitle": "P",
        "referrer": "https://r.test/",
        "context": {"gdpr": {"consentGiven": True, "consentVersion": "1"}, "user": {"anonymousId": "v"}},
        "anonymousId": "v",
        "client": None,
        "timestamp": "2026-11-22T06:00:00.005Z",
        "clockSkewed": False,
    }
    assert json.dumps(document["events"]) == json.dumps([expected])
    assert (document["clients"], document["provisional"], document["eventsCount"]) == ([], False, 1)
    assert (document["firstReferrer"], document["experienceScore"]) == ("https://r.test/", None)
    assert document["visitor"]["displayName"] == "Visitor #v"


def test_context_and_properties_where_nothing_is_left(site: Site) -> None:
    site.event(at=T, properties={})
    site.event(at=T + 1, properties="text", context={"device": {"language": "de"}, "page": {"url": 5}})
    assert [each["properties"] for each in site.document()["events"]] == [{}, None]
    assert [each["context"] for each in site.document()["events"]] == [None, None]


def test_a_vital_first_then_the_event(site: Site) -> None:
    """Contract 1 and 5.6."""
    site.vital()
    assert (site.document()["provisional"], site.document()["visitor"]) == (True, None)
    site.event("page_view", T - 1500, visitor="visitor-1")
    document = site.document()
    assert (document["provisional"], document["pageViews"], document["durationSeconds"]) == (False, 1, 1)
    assert document["startedAt"] == "2026-11-22T05:59:58.500Z"
    assert document["visitor"]["firstSeen"] == "2026-11-22T05:59:58.500Z"
    assert document["visitor"]["lastSeen"] == "2026-11-22T06:00:00.000Z"


def test_newest_report_wins(site: Site) -> None:
    """Contract 5.2: INP may go down, and each order of reports ends the same."""
    assert site.vital(metric="INP", value=300, timestamp=T) == "accepted"
    assert site.vital(metric="inp", value=90, timestamp=T + 1) == "accepted"
    assert site.vital(metric="INP", value=300, timestamp=T) == "superseded"
    assert site.vital(metric="INP", value=90, timestamp=T + 1) == "duplicate"
    assert site.document()["avgInp"] == 90
    assert len(site.document()["webVitals"]) == 1


def test_ties_go_to_seq_then_value_then_content(site: Site) -> None:
    assert site.vital(value=500, seq=1) == "accepted"
    assert site.vital(value=900, seq=0) == "superseded"
    assert site.vital(value=400, seq=2) == "accepted"
    assert site.vital(value=300, seq=2) == "superseded"
    assert site.vital(value=410, seq=2) == "accepted"
    # "pageTitle":"B" against "pageTitle":null: the quote 0x22 is less than n.
    assert site.vital(value=410, seq=2, pageTitle="B") == "superseded"
    assert site.document()["webVitals"][0]["pageTitle"] is None
    assert site.document()["avgLcp"] == 410


def test_equal_events_go_to_the_greatest_content(site: Site) -> None:
    """As bytes {"n":2} > {"n":10} > {"n":"9"}; `eventName` stands before `properties`, and é is greater than z."""
    assert site.event(properties={"n": 10}, eventId="e") == "accepted"
    assert site.event(properties={"n": 2}, eventId="e") == "accepted"
    assert site.event(properties={"n": "9"}, eventId="e") == "superseded"
    assert site.event("é", properties={"n": 0}, eventId="e") == "accepted"
    assert site.event("z", properties={"n": 9}, eventId="e") == "superseded"
    assert site.event("a", T + 1, eventId="e") == "accepted"
    assert site.event("é", T, eventId="e") == "superseded"
    assert [each["eventName"] for each in site.document()["events"]] == ["a"]


def test_another_sender_is_another_content(site: Site) -> None:
    """The client is part of the canonical content: `"client":{` is greater than `"client":null` ({ 0x7b, n 0x6e)."""
    assert site.vital() == "accepted"
    assert site.vital(address="10.0.0.0") == "accepted"
    assert site.vital() == "superseded"
    assert site.vital(address="10.0.0.0") == "duplicate"


def test_the_window(site: Site) -> None:
    """Contract 5.8."""
    times = [NOW - 7 * DAY, NOW + 300_000, NOW - 7 * DAY - 1, NOW + 300_001]
    for number, time in enumerate(times):
        assert site.vital(id=str(number), timestamp=time) == "accepted"
    facts = {each["id"]: (each["timestamp"], each["clockSkewed"]) for each in site.document()["webVitals"]}
    assert facts == {
        "0": ("2026-11-15T07:00:00.000Z", False),
        "1": ("2026-11-22T07:05:00.000Z", False),
        "2": ("2026-11-22T07:00:00.000Z", True),
        "3": ("2026-11-22T07:00:00.000Z", True),
    }


def test_repeats_of_wrong_clocks(site: Site) -> None:
    """Contract 5.8: equal but for the time is a duplicate, and the held time stays."""
    assert site.vital(timestamp=0) == "accepted"
    site.now += 1000
    assert site.vital(timestamp=0) == "duplicate"
    assert site.vital(timestamp=NOW + DAY) == "duplicate"
    assert site.document()["webVitals"][0]["timestamp"] == "2026-11-22T07:00:00.000Z"
    assert site.vital(timestamp=0, value=101) == "accepted"
    assert site.document()["webVitals"][0]["timestamp"] == "2026-11-22T07:00:01.000Z"
    assert site.vital(timestamp=T, value=102) == "superseded"
    assert site.vital(id="b", timestamp=T) == "accepted"
    assert site.vital(id="b", timestamp=0) == "duplicate"
    assert site.document()["webVitals"][0]["clockSkewed"] is False


@pytest.mark.parametrize(
    "written",
    [
        1795327200005.999,
        "2026-11-22T06:00:00.005Z",
        "2026-11-22T06:00:00.005999",
        "2026-11-22T08:00:00.005+02:00",
        "2026-11-22 06:00:00.005Z",
    ],
)
def test_notations_of_one_time(site: Site, written: Any) -> None:
    site.vital(timestamp=1795327200005)
    assert site.vital(timestamp=written) == "duplicate"


def test_first_and_last_of_facts_at_one_time(site: Site) -> None:
    """Contract 5.3: events before vitals, vitals by metric, then id; the lists go by id, then metric (contract 6)."""
    site.vital(metric="FCP", id="a", pageUrl="/fcp", address="10.0.0.4")
    site.vital(metric="CLS", id="b", value=0, pageUrl="/cls", address="10.0.0.3")
    site.vital(metric="CLS", id="a", value=0, pageUrl="/cls", address="10.0.0.2")
    site.event(eventId="z", context={"page": {"url": "/z"}})
    site.event(eventId="y", agent=CHROME)
    document = site.document()
    assert (document["firstPageUrl"], document["lastPageUrl"]) == ("/z", "/fcp")
    assert [(each["metric"], each["id"], each["client"]) for each in document["webVitals"]] == [
        ("CLS", "a", 1),
        ("FCP", "a", 3),
        ("CLS", "b", 2),
    ]
    assert [(each["eventId"], each["client"]) for each in document["events"]] == [("y", 0), ("z", None)]
    assert [each["ipAddress"] for each in document["clients"]] == [None, "10.0.0.2", "10.0.0.3", "10.0.0.4"]
    assert (document["browserName"], document["ipAddress"]) == ("Chrome", "10.0.0.2")


def test_averages(site: Site) -> None:
    """Contract 5.4: each instance once, placeholders in none, 6 decimals."""
    for number, value in enumerate([0.02, 0.15, 0]):
        site.vital(metric="CLS", id=str(number), value=value)
    site.vital(metric="TTFB", id="a", value=0, navigationType="back-forward-cache")
    site.vital(metric="TTFB", id="b", value=0, navigationType="soft-navigation")
    document = site.document()
    assert (document["avgCls"], document["avgTtfb"], document["avgLcp"]) == (0.056667, None, None)
    assert document["experienceScore"] == 100
    site.vital(metric="TTFB", id="c", value=120.5, navigationType="navigate")
    assert site.document()["avgTtfb"] == 120.5
    site.vital(metric="LCP", value=0, navigationType="soft-navigation")
    assert site.document()["avgLcp"] == 0


def test_no_average_no_score(site: Site) -> None:
    site.vital(metric="TTFB", value=0, navigationType="soft-navigation")
    site.vital(metric="FID", value=999)
    assert site.document()["experienceScore"] is None
    assert [each["rating"] for each in site.document()["webVitals"]] == ["poor", "good"]


def test_rounding() -> None:
    """0.0000025 is below its decimal in binary, times 1e6 it is 2.5 exactly: half away from zero."""
    assert [rounded(each) for each in (0.0000025, -0.0000025, 1 / 3, 2.0, -0.0)] == [3e-06, -3e-06, 0.333333, 2, 0]
    assert isinstance(rounded(2.0), int)
    assert rounded(2e12 + 49.9) == 2e12 + 49.9  # times 1e6, a double has no place for its decimals


def test_score(site: Site) -> None:
    """100 - 15 (LCP 2501) - 0 (INP 200) - 20 (CLS .2501) - 15 (FCP 3001) - 5 (TTFB 1800) = 45."""
    values = {"LCP": 2501, "INP": 200, "CLS": 0.2501, "FCP": 3001, "TTFB": 1800}
    for metric, value in values.items():
        site.vital(metric=metric, value=value)
    assert site.document()["experienceScore"] == 45
    for metric in values:
        site.vital(metric=metric, value=9999, seq=1)
    assert site.document()["experienceScore"] == 0


def test_ratings(site: Site) -> None:
    for number, (value, said) in enumerate(
        [(0.1, None), (0.11, "bad"), (0.26, ""), (0, "POOR"), (0, "Needs_Improvement")]
    ):
        site.vital(metric="CLS", id=str(number), value=value, rating=said)
    ratings = [each["rating"] for each in site.document()["webVitals"]]
    assert ratings == ["good", "needs-improvement", "poor", "poor", "needs-improvement"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"sessionId": None},
        {"sessionId": "x" * 129},
        {"sessionId": 5},
        {"metric": "XYZ"},
        {"metric": None},
        {"value": None},
        {"value": "5"},
        {"value": True},
        {"value": -0.1},
        {"value": 10_000_001},
        {"timestamp": None},
        {"timestamp": "1795327200000"},
        {"timestamp": 2**53 + 2},
        {"pageUrl": ""},
        {"pageUrl": 5},
        {"other": float("inf")},
        {"other": ["\ud800"]},
        {"other": [[[[[[[[[[[[[[[[0]]]]]]]]]]]]]]]]},
        {"other": "x" * 16_385},
    ],
)
def test_rejected_vitals(site: Site, wrong: Object) -> None:
    assert site.vital(**wrong) == "rejected"
    assert site.reference.export() == []


@pytest.mark.parametrize(
    "wrong", [{"eventName": ""}, {"eventName": "x" * 129}, {"timestamp": True}, {"context": None}, {"session": ""}]
)
def test_rejected_events(site: Site, wrong: Object) -> None:
    if wrong == {"context": None}:
        assert site.reference.events({"eventName": "x", "timestamp": T}, user_agent_client=None, address=None) == [
            "rejected"
        ]
    else:
        assert site.event(**wrong) == "rejected"


def test_wrong_optional_fields_are_left_out(site: Site) -> None:
    answer = site.vital(
        anonymousId=5,
        funnelId="x" * 129,
        delta="1",
        navigationType="other",
        seq=-1,
        pagePath=[],
        pageTitle=5,
        deviceType={},
        screenWidth="1",
        screenHeight=1.5,
        pageUrl="https://x.test",
    )
    assert answer == "accepted"
    [vital] = site.document()["webVitals"]
    kept = {
        key: vital[key] for key in ("anonymousId", "delta", "navigationType", "seq", "pagePath", "pageTitle", "client")
    }
    assert kept == dict.fromkeys(kept) | {"seq": 0, "pagePath": "/"}
    assert site.document()["funnelId"] == "default"


def test_cuts(site: Site) -> None:
    site.vital(pageUrl="/" + "p" * 3000, pageTitle="t" * 600, deviceType="d" * 200)
    [vital] = site.document()["webVitals"]
    assert [len(vital[key]) for key in ("pageUrl", "pagePath", "pageTitle")] == [2048, 2048, 512]
    assert len(site.document()["deviceType"]) == 128


def test_aliases(site: Site) -> None:
    item = {
        "name": "cls",
        "value": -0.0,
        "id_metric": "m",
        "navigationURL": "/n",
        "metric": "",
        "id": None,
        "sessionId": "s",
        "timestamp": T,
    }
    assert site.reference.web_vitals([item, 5], user_agent_client=None, address=None) == ["accepted", "rejected"]
    [vital] = site.document()["webVitals"]
    assert (vital["metric"], vital["id"], vital["pageUrl"]) == ("CLS", "m", "/n")
    assert json.dumps(vital["value"]) == "0"


def test_ids_derived_from_content(site: Site) -> None:
    assert site.vital(id=None) == "accepted"
    assert site.vital(id=None) == "duplicate"
    assert site.vital(id=None, value=101) == "accepted"
    assert site.event(eventId="") == "accepted"
    assert site.event(eventId="") == "duplicate"
    assert site.document()["avgLcp"] == 100.5


def test_device_is_one_set(site: Site) -> None:
    """What the item says, else the User-Agent; never mixed; from the first fact that has one."""
    site.vital(timestamp=T, deviceType="Unknown", screenWidth=5)
    assert site.document()["clients"] == [
        {**NO_DEVICE, "screenWidth": 5, "screenHeight": None, "bot": None, **NO_PLACE, "ipAddress": None}
    ]
    site.vital(id="b", timestamp=T + 1, deviceType="Unknown", osName="BeOS", agent=CHROME)
    site.vital(id="c", timestamp=T + 2, deviceType="Unknown", agent=CHROME)
    document = site.document()
    assert {key: document[key] for key in NO_DEVICE} == {**NO_DEVICE, "osName": "BeOS"}
    assert [client["browserName"] for client in document["clients"]] == [None, None, "Chrome"]


def test_an_events_own_user_agent_counts_first(site: Site) -> None:
    site.event(at=T, agent=CHROME, context={"device": {"userAgent": "Own/1", "screenHeight": 7.0}})
    assert (site.document()["browserName"], site.document()["osName"]) == ("Own/1", None)
    assert site.document()["clients"][0]["screenHeight"] == 7


def test_utm(site: Site) -> None:
    """As sets, from events only; the object before the page URL."""
    site.vital(timestamp=T - 1, pageUrl="/?utm_source=vital")
    site.event(at=T, context={"page": {"url": "/?utm_source=a+b&utm_medium=%C3%A9"}, "utm": {"source": ""}})
    site.event(at=T + 1, context={"page": {"url": "/?utm_source=url"}, "utm": {"campaign": "c", "medium": 5}})
    site.event(at=T + 2, context={"utm": {"source": None}})
    document = site.document()
    assert [document[key] for key in ("firstSource", "firstMedium", "firstCampaign")] == ["a b", "é", None]
    assert [document[key] for key in ("lastSource", "lastMedium", "lastCampaign")] == [None, None, "c"]


def test_conversions(site: Site) -> None:
    """0.1 + 0.2 - 5.25 = -4.95; text, boolean and 1e13 do not count."""
    first = {"currency": "EUR", "revenue": 0.1, "conversionType": 5}
    more: list[Object] = [{"revenue": 0.2, "currency": "USD"}, {"revenue": -5.25, "conversionType": "signup"}]
    site.event("checkout_completed", T, properties=first)
    for number, properties in enumerate([*more, {"revenue": "9"}, {"revenue": True}, {"revenue": 1e13}, None]):
        site.event("purchase", T + 1 + number, properties=properties)
    site.event("cta", T, properties={"revenue": 50, "activeTime": 5})
    document = site.document()
    assert (document["converted"], document["conversionValue"], document["currency"]) == (True, -4.95, "EUR")
    assert (document["conversionType"], document["eventsCount"], document["activeSeconds"]) == (None, 8, None)


def test_no_revenue_is_null(site: Site) -> None:
    site.event("conversion", properties={"conversionType": "signup"})
    assert (site.document()["conversionValue"], site.document()["conversionType"]) == (None, "signup")


def test_active_seconds(site: Site) -> None:
    site.event("session_end", T, properties={"activeTime": 12.5, "idleTime": 3})
    site.event("session_end", T + 1, properties={"activeTime": 7.5})
    site.event("session_end", T + 2, properties={"activeTime": "7"})
    assert json.dumps(site.document()["activeSeconds"]) == "20"


def test_visitor_of_the_first_fact_that_names_one(site: Site) -> None:
    site.event(at=T + 5, visitor="visitor-late")
    assert site.document()["visitor"]["anonymousId"] == "visitor-late"
    site.vital(timestamp=T + 1, anonymousId="visitor-early")
    site.event(at=T)
    assert site.document()["visitor"]["anonymousId"] == "visitor-early"
    assert site.document()["visitor"]["totalEvents"] == 2
    assert [each["anonymousId"] for each in site.document()["events"]] == [None, "visitor-late"]


def test_visitor_across_funnels_and_identifications(site: Site) -> None:
    """Contract 5.5. The identification names the visitor of its session, for the other session too."""
    site.vital(timestamp=T - 7, anonymousId="v", sessionId="other", funnelId="shop")
    site.event("user_identified", T + 1, visitor="v", properties={"userId": "u-1", "traits": {"email": "a@x.test"}})
    names = [document["visitor"]["displayName"] for document in site.reference.export()]
    assert names == ["a@x.test", "a@x.test"]
    site.event("user_identified", T + 2, properties={"userId": "u-2", "traits": {}})
    first, second = site.reference.export()
    assert (first["funnelId"], second["funnelId"]) == ("default", "shop")
    assert first["visitor"] == second["visitor"]
    assert first["visitor"] == {
        "anonymousId": "v",
        "displayName": "a@x.test",
        "firstSeen": "2026-11-22T05:59:59.993Z",
        "lastSeen": "2026-11-22T06:00:00.002Z",
        "totalSessions": 2,
        "totalEvents": 2,
        "userId": "u-2",
        "traits": {"email": "a@x.test"},
    }


def test_display_names(site: Site) -> None:
    def name() -> Any:
        return site.document()["visitor"]["displayName"]

    site.event("user_identified", T, visitor="1234567890", properties={"userId": "u-1"})
    assert name() == "u-1"
    site.event("user_identified", T + 1, properties={"traits": {"name": "", "email": "e@x.test"}})
    assert (name(), site.document()["visitor"]["userId"]) == ("e@x.test", None)
    site.event("user_identified", T + 2, properties={"traits": {"name": "Ada", "email": "e@x.test"}})
    assert name() == "Ada"
    site.event("user_identified", T + 3, properties={"traits": {"name": 5}})
    assert name() == "Visitor #567890"


def test_identifications_at_one_time_go_by_funnel_session_event(site: Site) -> None:
    for funnel, session, event_id in [("b", "a", "a"), ("a", "z", "z"), ("a", "b", "z")]:
        site.event(
            "user_identified",
            session=session,
            visitor="v",
            funnelId=funnel,
            eventId=event_id,
            properties={"userId": funnel + session},
        )
    assert {document["visitor"]["userId"] for document in site.reference.export()} == {"ba"}


def test_a_vital_sent_as_an_event(site: Site) -> None:
    """Contract 2.2: the same instance as one sent to 2.1; without an id the eventId is its id."""
    properties = {"metric": "INP", "value": 300, "id": "i", "seq": 1, "rating": "good", "navigationType": "reload"}
    page = {"page": {"url": "https://x.test/w"}}
    assert site.event("web_vital", properties=properties, visitor="v", context=page) == "accepted"
    assert site.vital(metric="INP", value=80, id="i", seq=2) == "accepted"
    assert site.event("web_vital", properties=properties, visitor="v", context=page) == "superseded"
    assert site.event("web_vital", properties={"metric": "LCP", "value": 1}, eventId="e", context=page) == "accepted"
    assert site.event("web_vital", properties={"metric": "LCP"}, context=page) == "rejected"
    document = site.document()
    assert (document["provisional"], document["eventsCount"], document["events"]) == (True, 0, [])
    assert [(each["metric"], each["id"], each["value"]) for each in document["webVitals"]] == [
        ("LCP", "e", 1),
        ("INP", "i", 80),
    ]


def test_funnels(site: Site) -> None:
    """The item's, else the body's, else the header's, else `default` (contract 2.1, 2.2)."""
    site.vital(sessionId="1", funnelId="own", funnel="header")
    site.vital(sessionId="2", funnelId="", funnel="header")
    site.vital(sessionId="3")
    named = {"eventName": "x", "timestamp": T, "context": {"session": {"sessionId": "4"}}}
    body = {"funnelId": "body", "events": [named, {**named, "funnelId": "own"}]}
    answers = site.reference.events(body, user_agent_client=None, address=None, header_funnel="header")
    answers += site.reference.events([named], user_agent_client=None, address=None, header_funnel="header")
    assert answers == ["accepted"] * 3
    assert [(document["funnelId"], document["sessionId"]) for document in site.reference.export()] == [
        ("body", "4"),
        ("default", "3"),
        ("header", "2"),
        ("header", "4"),
        ("own", "1"),
        ("own", "4"),
    ]


def test_more_than_a_hundred_items(site: Site) -> None:
    body: list[Object] = [{}] * 101
    assert site.reference.web_vitals(body, user_agent_client=None, address=None) == ["rejected"] * 101
    assert site.reference.events("text", user_agent_client=None, address=None) == []


def deliver(reference: Reference, beacons: list[items.Beacon]) -> list[str]:
    """The answers, item by item."""
    answers = []
    for beacon in beacons:
        take = reference.web_vitals if beacon.path == "web-vitals" else reference.events
        body = json.loads(json.dumps(beacon.body))
        got = take(body, user_agent_client=items.client_of(beacon.user_agent), address=beacon.address)
        assert len(got) == len(beacon.items)
        answers += got
    return answers


def reference_at(now: int) -> Reference:
    return Reference(now_ms=lambda: now, read_user_agent=items.client_of)


# Only a failure takes long: it is made small for up to five minutes.
@pytest.mark.timeout(400)
@settings(max_examples=60, deadline=None, report_multiple_bugs=False, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), sent=items.deliveries(NOW))
def test_order_free(data: DataObject, sent: list[items.Delivery]) -> None:
    """Contract 5.1: order, repeats and grouping make no difference, to the byte."""
    plain = reference_at(NOW)
    deliver(plain, [items.Beacon(one.path, one.item, (one.item,), one.user_agent, one.address) for one in sent])
    other = reference_at(NOW + 60_000)
    beacons = items.groupings(data, sent)
    deliver(other, beacons)
    assert json.dumps(other.export()) == json.dumps(plain.export())
    assert "accepted" not in deliver(other, beacons)
    assert json.dumps(other.export()) == json.dumps(plain.export())


@pytest.mark.timeout(400)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(sent=items.skewed_deliveries(NOW))
def test_wrong_clocks_lose_nothing(sent: list[items.Delivery]) -> None:
    """Contract 5.8: every item that is understood is held, with the receive time."""
    reference = reference_at(NOW)
    answers = deliver(
        reference, [items.Beacon(one.path, [one.item], (one.item,), one.user_agent, one.address) for one in sent]
    )
    facts = [fact for document in reference.export() for fact in (*document["webVitals"], *document["events"])]
    assert bool(facts) == ("accepted" in answers)
    assert all(fact["clockSkewed"] and fact["timestamp"] == "2026-11-22T07:00:00.000Z" for fact in facts)
