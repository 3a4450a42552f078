"""`sidecar explain`: a session's facts, its derived values and what was not taken, as lines for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

from sidecar.canonical import number, to_iso, to_iso_or_number
from sidecar.model import Fact, VitalFact
from sidecar.store.documents import fact_order
from sidecar.store.explain import Explained, count_facts, explain, group_left_out, value_text

WIDTH = 100
_NAME_WIDTH = 24
_VALUE_MAX = 300


def printable(text: str) -> str:
    """Text of a client as a terminal may have it: what could steer one is written as an escape."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def shorten(text: str, most: int) -> str:
    """At most `most` characters."""
    return text if len(text) <= most else text[: most - 1] + "…"


def explain_lines(
    facts: Sequence[Fact], document: dict[str, Any], arrivals: Iterable[dict[str, Any]], *, width: int = WIDTH
) -> Iterator[str]:
    """What there is to say of one session, in lines of at most `width` characters."""
    ordered = sorted(facts, key=fact_order)
    numbers = {fact: place for place, fact in enumerate(ordered, 1)}
    where = f"site {document['site']}, funnel {document['funnelId']}, revision {to_iso_or_number(document['revision'])}"
    yield shorten(printable(f"Session {document['sessionId']}"), width)
    yield from textwrap.wrap(printable(where), width)
    yield ""
    yield f"Facts: {len(ordered)}, in their order"
    for fact in ordered:
        yield shorten(printable(_fact_line(fact, numbers[fact], ordered[0].timestamp)), width)
    yield ""
    yield "Values: each with its rule, and the facts that it came from"
    for _, same in groupby(explain(facts, document), key=lambda one: (one.rule, one.facts, one.left_out)):
        yield from _value_lines([*same], document, numbers, width)
    noted = [*arrivals]
    yield ""
    yield f"Not taken: {len(noted) or 'nothing'}" + (", the last first" if noted else "")
    for arrival in noted:
        yield from textwrap.wrap(
            printable(_arrival_line(arrival)), width, initial_indent="  ", subsequent_indent="    "
        )


def _fact_line(fact: Fact, place: int, started_at: int) -> str:
    kind, said = ("event", fact.name) if not isinstance(fact, VitalFact) else (fact.metric, _vital(fact))
    page = (fact.page and (fact.page.path or fact.page.url)) or ""
    if fact.clock_skewed:
        page = f"(clock skewed) {page}"
    offset = f"+{(fact.timestamp - started_at) / 1000:.3f} s"
    head = f"  {f'#{place}':<7}{offset:>14}  {kind:<6}"
    return f"{head}{shorten(said, 26):<27}{shorten(fact.id, 16):<17}{page}".rstrip()


def _vital(fact: VitalFact) -> str:
    navigation = f", {fact.navigation_type}" if fact.navigation_type else ""
    return f"{number(fact.value)}{navigation}"


def _value_lines(
    same: list[Explained], document: dict[str, Any], numbers: dict[Fact, int], width: int
) -> Iterator[str]:
    indent = " " * _NAME_WIDTH
    for one in same:
        text = shorten(printable(value_text(one.value)), _VALUE_MAX)
        if one.name in document and document[one.name] != one.value:
            text += f" (stored: {printable(value_text(document[one.name]))}; see sidecar verify)"
        head = f"  {one.name:<{_NAME_WIDTH - 2}}"
        yield from textwrap.wrap(text, width, initial_indent=head, subsequent_indent=indent) or [head.rstrip()]
    rule, facts, left_out = same[0].rule, same[0].facts, same[0].left_out
    source = f" From {count_facts(numbers[fact] for fact in facts)}." if facts else ""
    yield from textwrap.wrap(rule + source, width, initial_indent=indent, subsequent_indent=indent)
    for found, reason in group_left_out(left_out, numbers):
        text = f"Left out: {found}, {printable(reason)}."
        yield from textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent)


def _arrival_line(arrival: dict[str, Any]) -> str:
    words = {"duplicate": "was there already", "superseded": "there is a newer report", "rejected": ""}
    times = "once" if arrival["times"] == 1 else f"{arrival['times']} times, first {to_iso(arrival['first_at'])}"
    fact = f"{arrival['metric'] or 'event'} {shorten(arrival['id'], 40) or '(no id)'}"
    why = ": ".join(filter(None, (arrival["reason"], words[arrival["outcome"]])))
    return f"{fact}: {arrival['outcome']} ({why}) {times}, last {to_iso(arrival['last_at'])}"
