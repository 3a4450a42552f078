"""How facts are written: one spelling for equal content, and sizes without writing."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from sidecar.canonical import client_bits, content, content_size, digest, page_bits, to_json
from sidecar.model import Client, EventFact, Page, VitalFact

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
maybe = st.none() | texts
pages = st.none() | st.builds(Page, maybe, maybe, maybe)
clients = st.none() | st.builds(
    Client, maybe, maybe, screen_width=st.none() | st.integers(-9999, 9999), ip_address=maybe
)
numbers = st.floats(0, 1e7) | st.integers(0, 10_000_000).map(float)
times = st.integers(0, 2**45)
objects = st.none() | st.dictionaries(texts, texts | numbers | st.booleans() | st.none()).map(to_json)
vitals = st.builds(
    VitalFact,
    site=texts,
    funnel_id=texts,
    session_id=texts,
    metric=st.sampled_from(["LCP", "TTFB"]),
    id=texts,
    value=numbers,
    rating=st.sampled_from(["good", "needs-improvement", "poor"]),
    delta=st.none() | st.floats(-1e15, 1e15),
    navigation_type=st.none() | st.sampled_from(["navigate", "back-forward-cache"]),
    seq=st.integers(0, 2**53),
    page=pages,
    anonymous_id=maybe,
    client=clients,
    timestamp=times,
    clock_skewed=st.booleans(),
)
events = st.builds(
    EventFact,
    site=texts,
    funnel_id=texts,
    session_id=texts,
    id=texts,
    name=texts,
    properties=objects,
    page=pages,
    referrer=maybe,
    context=objects,
    campaign=st.none(),
    click_ids=st.none(),
    anonymous_id=maybe,
    client=clients,
    timestamp=times,
    clock_skewed=st.booleans(),
)


@given(vitals | events)
def test_sizes_are_those_of_the_content(fact: VitalFact | EventFact) -> None:
    """What the bound of a session counts is the length of the canonical JSON."""
    assert content_size(fact) == len(content(fact))


@given(vitals | events)
def test_content_has_sorted_keys_and_no_spaces(fact: VitalFact | EventFact) -> None:
    """The form that ties are broken by."""
    written = json.loads(content(fact))
    assert list(written) == sorted(written)
    assert content(fact) == json.dumps(written, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def test_numbers_have_one_spelling() -> None:
    """116.0 is 116, -0.0 is 0; what is not whole keeps its shortest form; integers stay exact."""
    assert to_json([116.0, 116, -0.0, 9.599999999860302, 1e300, 2**60, 9007199254740992.0, True]) == (
        "[116,116,0,9.599999999860302,1e+300,1152921504606846976,9007199254740992,true]"
    )


def test_digests_tell_missing_from_empty() -> None:
    """Two pages are one only where all three texts are."""
    said = [Page("a", None, None), Page(None, "a", None), Page("a", "", None), Page("a", None, "")]
    assert len({digest(page) for page in said}) == 4


def test_low_bits_of_keys() -> None:
    """What the views ask of a key instead of joining."""
    assert [client_bits(Client(*row)) for row in ((), ("mobile",), (None, None, None, None, "17"))] == [0, 1, 1]
    assert client_bits(Client(country_code="DE")) == 2
    assert client_bits(Client(ip_address="10.0.0.0", city="Bonn", os_name="iOS")) == 7
    assert client_bits(Client(screen_width=1, bot="b")) == 0
    assert [page_bits(page) for page in (Page("u", None, None), Page(None, "/", "t"))] == [1, 0]
