"""Items as they come: aliases, leniency, times, derived ids."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.errors import SidecarError
from sidecar.ingest import wire
from sidecar.ingest.wire import EventItem, ItemError, VitalItem, parse_events, parse_web_vitals, path_of, read_timestamp

GOOD: dict[str, Any] = {
    "sessionId": "s",
    "metric": "LCP",
    "value": 1200,
    "id": "v6-1",
    "timestamp": 1_795_330_800_000,
    "pageUrl": "https://shop.example/a/b?c=d#e",
}


def parse(**fields: object) -> VitalItem:
    """The one item of a beacon of GOOD with changes."""
    items, rejected = parse_web_vitals(json.dumps(GOOD | fields).encode(), None)
    assert rejected == []
    [item] = items
    assert isinstance(item, VitalItem)
    return item


def test_aliases_and_case() -> None:
    """`name`, `id_metric`, `navigationURL`; any case of metric and rating."""
    raw = {"sessionId": "s", "name": "inp", "value": 8, "id_metric": "x", "timestamp": 1, "navigationURL": "/p"}
    [item] = parse_web_vitals(json.dumps(raw | {"rating": "Needs_Improvement"}).encode(), None)[0]
    assert isinstance(item, VitalItem)
    assert (item.metric, item.id, item.rating) == ("INP", "x", "needs-improvement")
    assert item.page is not None
    assert item.page[:2] == ("/p", "/p")


def test_texts_are_cut() -> None:
    """URL and path at 2,048, title at 512, device texts at 128 characters."""
    item = parse(pageUrl="https://a.example/" + "x" * 3000, pageTitle="t" * 600, browserName="b" * 200)
    assert item.page is not None
    assert item.page.url is not None
    assert [len(text or "") for text in item.page] == [2048, 2048 - len("https://a.example"), 512]
    assert len(item.device.browser_name or "") == 128


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("https://a.example/x/y?q#f", "/x/y"),
        ("https://a.example", "/"),
        ("/relative?x", "/relative"),
        ("about:blank", None),
        ("", None),
    ],
)
def test_path_of_a_url(url: str, path: str | None) -> None:
    """The path is derived where it is missing."""
    assert path_of(url) == path


@pytest.mark.parametrize(
    ("said", "ms"),
    [
        (1_795_330_800_000, 1_795_330_800_000),
        (1_795_330_800_000.9, 1_795_330_800_000),
        ("2026-11-22T07:00:00Z", 1_795_330_800_000),
        ("2026-11-22T07:00:00.0019", 1_795_330_800_001),
        ("2026-11-22T08:00:00+01:00", 1_795_330_800_000),
        ("1969-12-31T23:59:59.999Z", -1),
    ],
)
def test_times(said: object, ms: int) -> None:
    """Epoch ms or ISO 8601; without a zone UTC; fractions of a ms are cut."""
    assert read_timestamp(said) == ms


@pytest.mark.parametrize("said", [True, None, [], "", "now", 2**53 + 2, float("nan"), "0001-01-01T00:00:00+14:00x"])
def test_wrong_times(said: object) -> None:
    """Anything else is refused."""
    with pytest.raises(ItemError, match="timestamp"):
        read_timestamp(said)


def test_integers_may_be_written_with_a_point() -> None:
    """1920.0 is an integer in JSON; 1920.5 is none, and is left out."""
    assert parse(screenWidth=1920.0, seq=3.0).device.screen_width == 1920
    assert parse(screenWidth=1920.5, seq=2.5).seq == 0
    assert parse(screenWidth=2**53 + 1, delta=2**53 + 1).device.screen_width is None


def test_derived_ids_are_of_the_content() -> None:
    """The same item without an id, sent again, has the same one; another has another."""
    first, again, other = parse(id=None), parse(id="", screenWidth=5), parse(id=None, value=1201)
    assert first.id == again.id
    assert first.id != other.id
    assert first.id.startswith("c-")


def test_web_vital_events_are_vitals() -> None:
    """`web_vital`: its properties are the vital, its context the session, visitor and page."""
    said = {
        "eventId": "e-1",
        "eventName": "web_vital",
        "timestamp": 5,
        "properties": {"metric": "cls", "value": 0, "seq": 4},
        "context": {"session": {"sessionId": "s"}, "user": {"anonymousId": "v"}, "page": {"url": "/x", "title": "X"}},
    }
    [item] = parse_events(json.dumps(said).encode(), "f")[0]
    assert isinstance(item, VitalItem)
    assert (item.metric, item.value, item.id, item.seq) == ("CLS", 0, "e-1", 4)
    assert (item.session_id, item.anonymous_id, item.funnel_id) == ("s", "v", "f")


def test_what_an_event_keeps() -> None:
    """Everything of the context but session, page and device; keys sorted."""
    context = {
        "session": {"sessionId": "s"},
        "utm": {"b": 1, "a": 2.0},
        "page": {},
        "device": {"userAgent": "u"},
        "x": 1,
    }
    said = {"eventId": "e", "eventName": "n", "timestamp": 5, "context": context, "properties": {"z": 1, "a": None}}
    [item] = parse_events(json.dumps(said).encode(), None)[0]
    assert isinstance(item, EventItem)
    assert item.context == '{"utm":{"a":2,"b":1},"x":1}'
    assert item.properties == '{"a":null,"z":1}'
    assert item.user_agent == "u"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.binary(max_size=300) | json_values.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_answered(body: bytes) -> None:
    """Whatever comes: items, refusals, or an error of ours."""
    for parse_body in (parse_web_vitals, parse_events):
        try:
            items, rejected = parse_body(body, None)
        except SidecarError:
            continue
        assert len(items) + len(rejected) >= 1


@given(st.fixed_dictionaries({key: json_values | st.just(value) for key, value in GOOD.items()}))
def test_any_values_of_fields_are_answered(raw: dict[str, Any]) -> None:
    """Wrong types of every field: the item is read or refused, never more than that."""
    items, rejected = parse_web_vitals(json.dumps([raw, GOOD]).encode(), None)
    assert len(items) + len(rejected) == 2
    assert items[-1].position == 1


EDGES = st.sampled_from(
    [
        *(
            None,
            "",
            "x",
            "é" * 128,
            "x" * 129,
            "unknown",
            "LCP",
            "lcp",
            "poor",
            "POOR",
            "reload",
            "https://a.example/b?c",
        ),
        *(0, -1, 5, 2**53 - 1, 2**53, 10_000_000, 10**400, -0.0, 0.5, 1e7, 10_000_000.5, True, [], {}, ["x"], {"a": 1}),
    ]
)
DEVICE_TEXTS = {"deviceType": "desktop", "osName": "Unknown", "browserName": "Chrome", "browserVersion": "1" * 200}


FIELDS = [*GOOD, *DEVICE_TEXTS, "anonymousId", "funnelId", "delta", "rating", "seq", "navigationType", "pagePath"]
FIELDS += ["pageTitle", "screenWidth", "screenHeight", "osVersion", "gdpr", "name", "anything"]


@given(st.dictionaries(st.sampled_from(FIELDS), EDGES, max_size=3), st.none() | st.just("header"))
def test_plain_vitals_are_read_as_all_others(changes: dict[str, Any], funnel: str | None) -> None:
    """The quick way makes of an item what the other one does, or leaves it to that."""
    raw = GOOD | DEVICE_TEXTS | changes
    quick = wire._read_plain_vital(3, raw, funnel)
    if quick is not None:
        assert repr(quick) == repr(
            wire._read_vital(3, wire._check_item(dict(raw), surrogates=False, large=False), funnel)
        )


def test_what_the_tracker_sends_is_plain() -> None:
    """Else the quick way would be nobody's."""
    assert wire._read_plain_vital(0, dict(GOOD), None) is not None
    assert wire._read_plain_vital(0, GOOD | DEVICE_TEXTS, None) is not None


def test_only_cut_texts_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages and devices are remembered by what is stored of them: a long title is not held in memory."""
    lengths: list[int] = []

    def noted(*texts: Any) -> None:
        lengths.extend(len(text) for text in texts if isinstance(text, str))

    monkeypatch.setattr(wire, "_kept_page", noted)
    monkeypatch.setattr(wire, "_kept_device", noted)
    long = {"pageUrl": "https://a.example/" + "x" * 9000, "pageTitle": "x" * 2000, "osName": "x" * 2000}
    for more in ({}, {"gdpr": None}):
        assert len(parse_web_vitals(json.dumps(GOOD | long | more).encode(), None)[0]) == 1
    path = 2048 - len("https://a.example")
    assert sorted(lengths) == [128, 128, 512, 512, path, path, 2048, 2048]
