"""The demo's traffic: what forty sessions of made-up visitors send, in the order that used to break.

Everything follows from a seed and a time, and what the sidecar has to answer is worked out beforehand. A plan is a list
of steps; a step is a list of bursts, sent over a few connections in any order; a burst is beacons sent at one moment,
each on a connection of its own.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from sidecar.demo.journeys import Item, Journey, plan_journeys

ACCEPTED, DUPLICATE, SUPERSEDED = "accepted", "duplicate", "superseded"
JSON, TEXT = "application/json", "text/plain;charset=UTF-8"  # of fetch, of sendBeacon with a text
RACES = 4  # sessions whose first vital and first event come at one moment
TWINS = 8  # sessions whose first two vitals come at one moment


class Beacon(NamedTuple):
    """One request: `path` is `web-vitals` or `events`, `page_url` its Referer."""

    path: str
    body: bytes
    content_type: str
    user_agent: str
    page_url: str


Burst = tuple[Beacon, ...]


class Step(NamedTuple):
    """Beacons to send before the next step begins, and the sum of what the answers have to say."""

    title: str
    bursts: tuple[Burst, ...]
    expected: Counter[str]


class Plan(NamedTuple):
    """All of it. `opening` are the vitals before their sessions, `late` is for when everything is confirmed upstream.

    `provisional` are the sessions that must have vitals and no event after `opening`.
    """

    session_ids: tuple[str, ...]
    provisional: frozenset[str]
    opening: Step
    steps: tuple[Step, ...]
    late: Step


class Ledger:
    """What a sidecar holds after the beacons so far, to tell what it has to answer."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, ...], tuple[tuple[float, ...], str]] = {}

    def judge(self, item: Item) -> str:
        """`accepted`, `duplicate` or `superseded`; the newest report of a fact stays."""
        name: tuple[str, ...]
        age: tuple[float, ...]
        if "metric" in item:
            name = (item["sessionId"], item["metric"], item["id"])
            age = (item["timestamp"], item["seq"], item["value"])
        else:
            name = (item["context"]["session"]["sessionId"], item["eventId"])
            age = (item["timestamp"],)
        report = (age, json.dumps(item, sort_keys=True))
        held = self._held.get(name)
        if held is None or report > held:
            self._held[name] = report
            return ACCEPTED
        return DUPLICATE if report == held else SUPERSEDED

    def read(self, bursts: Iterable[Burst]) -> Counter[str]:
        """The outcomes of all items of the bursts, in their order."""
        return Counter(self.judge(item) for burst in bursts for beacon in burst for item in items_of(beacon))


def items_of(beacon: Beacon) -> list[Item]:
    """The items in a beacon's body, whatever its form."""
    body: Any = json.loads(beacon.body)
    if isinstance(body, list):
        return body
    events: list[Item] = body.get("events", [body])
    return events


class _Writer:
    """Makes beacons in all the forms that clients use."""

    def __init__(self, rng: random.Random, funnel: str) -> None:
        self._rng = rng
        self._funnel = funnel

    def beacon(self, journey: Journey, items: Sequence[Item]) -> Beacon:
        first = items[0]
        if "metric" in first:
            path, page_url = "web-vitals", first["pageUrl"]
            forms: list[Any] = [list(items)]
        else:
            path, page_url = "events", first["context"]["page"]["url"]
            forms = [list(items), {"funnelId": self._funnel, "events": list(items)}]
        if len(items) == 1:
            forms.append(first)
        body = json.dumps(self._rng.choice(forms), separators=(",", ":"), ensure_ascii=False).encode()
        return Beacon(path, body, self._rng.choice((JSON, TEXT)), journey.user_agent, page_url)

    def beacons(self, journey: Journey, items: Sequence[Item], most: int) -> list[Burst]:
        return [(self.beacon(journey, items[at : at + most]),) for at in range(0, len(items), most)]


def make_plan(seed: int, now: int, shop_url: str, funnel: str, *, sessions: int = 40) -> Plan:
    """The plan of a seed at a time (`now` in ms); the last session ends before `now`."""
    rng = random.Random(seed)  # noqa: S311 - made-up traffic, the same in every run
    journeys = plan_journeys(rng, now, shop_url, funnel, sessions)
    writer = _Writer(rng, funnel)
    ledger = Ledger()

    def step(title: str, bursts: Sequence[Burst]) -> Step:
        return Step(title, tuple(bursts), ledger.read(bursts))

    opening: list[Burst] = []
    for number, journey in enumerate(journeys):
        first = journey.opening
        if number < RACES:
            opening.append((writer.beacon(journey, first), writer.beacon(journey, journey.events[:1])))
        elif number < RACES + TWINS:
            opening.append((writer.beacon(journey, first[:1]), writer.beacon(journey, first[1:])))
        else:
            opening.append((writer.beacon(journey, first),))

    events: list[Burst] = []
    vitals: list[Burst] = []
    for number, journey in enumerate(journeys):
        events += writer.beacons(journey, journey.events[1 if number < RACES else 0 :], 3)
        vitals += writer.beacons(journey, journey.vitals, 5)
    rng.shuffle(events)
    rng.shuffle(vitals)
    fresh = opening + events + vitals

    again = [burst for journey in journeys for burst in writer.beacons(journey, journey.revised, 4)]
    late = [burst for journey in journeys for burst in writer.beacons(journey, journey.late, 2)]
    endings = [(writer.beacon(journey, [journey.ending]),) for journey in journeys]
    once_more = [burst + burst for burst in rng.sample(fresh, len(fresh) // 5)]

    return Plan(
        session_ids=tuple(journey.session_id for journey in journeys),
        provisional=frozenset(journey.session_id for journey in journeys[RACES:]),
        opening=step("web vitals, before their sessions exist", opening),
        steps=(
            step("the events of those sessions", events),
            step("more web vitals, page by page", vitals),
            step("CLS and INP again, INP also lower", again),
            step("beacons repeated byte for byte, in pairs", once_more),
            step("late: older page views and vitals", late),
            step("the ends of the sessions", endings),
        ),
        late=step("one more web vital, after all that", [(writer.beacon(journeys[-1], [journeys[-1].straggler]),)]),
    )
