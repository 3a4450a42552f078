"""How facts are written: one spelling for equal content, and sizes without writing."""

from __future__ import annotations

import json
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.canonical import (
    TIME_MAX,
    TIME_MIN,
    client_bits,
    content,
    content_size,
    digest,
    from_any_iso,
    from_iso,
    page_bits,
    to_iso,
    to_iso_or_number,
    to_json,
)
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


@given(st.integers(TIME_MIN, TIME_MAX))
def test_each_time_is_written_and_read(at: int) -> None:
    """In 24 characters, so that texts sort as times do."""
    text = to_iso(at)
    assert text is not None
    assert (len(text), from_iso(text), to_iso_or_number(at)) == (24, at, text)


def test_times_at_the_ends() -> None:
    """Years have four digits; a zone may carry a time to the first and the last ms, and a fraction of one is cut."""
    assert to_iso(from_iso("0999-01-01T00:00:00Z")) == "0999-01-01T00:00:00.000Z"
    assert (to_iso(TIME_MIN), to_iso(TIME_MAX)) == ("0001-01-01T00:00:00.000Z", "9999-12-31T23:59:59.999Z")
    assert from_iso("0001-01-01T12:00+12:00") == TIME_MIN
    assert from_iso("9999-12-31T11:59:59.999999-12:00") == TIME_MAX


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("9999-12-31T23:59:59-12:00", TIME_MAX - 999 + 12 * 3_600_000),
        ("9999-12-31T12:00:00-12:00", TIME_MAX + 1),
        ("0001-01-01T00:00+12:00", TIME_MIN - 12 * 3_600_000),
        ("0001-01-01T00:00:59.999+00:01", TIME_MIN - 1),
    ],
)
def test_a_time_that_cannot_be_written_is_none(text: str, at: int) -> None:
    """Where a zone carries it out of the years 1 to 9999; only what is judged against a clock may be there."""
    with pytest.raises(ValueError, match="not within the years 1 to 9999"):
        from_iso(text)
    assert from_any_iso(text) == at


def test_a_revision_that_is_no_time_is_a_number() -> None:
    """For people; documents may say any revision."""
    assert to_iso_or_number(2**53 - 1) == "9007199254740991"
    assert to_iso_or_number(TIME_MAX + 1) == "253402300800000"
    assert to_iso_or_number(TIME_MIN - 1) == "-62135596800001"
    assert (to_iso_or_number(0), to_iso_or_number(None)) == ("1970-01-01T00:00:00.000Z", None)


# --- growth: what the bound of a session stands on, see FACT_BYTES_MAX ------------------------------------------------


def growth(sent: str) -> float:
    """How many times as long its canonical form is, each with the comma or bracket after it."""
    return (len(to_json(json.loads(sent)).encode()) + 1) / (len(sent.encode()) + 1)


def test_no_short_number_grows_more_than_1e15() -> None:
    """All numbers of up to six characters; a longer one would have to become longer than 19."""
    worst, worst_number = 0.0, ""
    for length in range(1, 7):
        for letters in product("0159.e-", repeat=length):
            text = "".join(letters)
            try:
                grown = growth(text)
            except ValueError:  # no number
                continue
            if grown > worst:
                worst, worst_number = grown, text
    assert (worst, worst_number) == (3.4, "1e15")


@given(st.floats(allow_nan=False, allow_infinity=False), st.sampled_from("eEfg"), st.integers(0, 17))
def test_no_spelling_of_a_number_grows_more(value: float, form: str, digits: int) -> None:
    """However a client writes it; no canonical number is longer than 24 characters."""
    text = f"{value:.{digits}{form}}".replace("E+0", "E").replace("e+0", "e").replace("e+", "e").replace("E+", "E")
    try:
        grown = growth(text)
    except ValueError:  # rounded up to infinity
        return
    assert grown <= 3.4


@given(
    st.recursive(
        st.sampled_from(["1e15", "9e15", "99e14", "-1e15", "1e-4", "true", "null"]) | texts.map(json.dumps),
        lambda inner: (
            st.lists(inner).map(lambda parts: f"[{','.join(parts)}]")
            | st.dictionaries(texts.map(json.dumps), inner).map(
                lambda parts: "{" + ",".join(f"{key}:{value}" for key, value in parts.items()) + "}"
            )
        ),
        max_leaves=40,
    )
)
def test_no_structure_grows_more(sent: str) -> None:
    """Lists, objects, texts and keys add nothing."""
    assert growth(sent) <= 3.4
