"""Who walks through the demo shop: forty made-up sessions, with the items that a tracker would send for them."""

from __future__ import annotations

import random
import uuid
from dataclasses import dataclass, field
from typing import Any, NamedTuple

Item = dict[str, Any]
SPREAD_MS = 6 * 3_600_000  # sessions begin within the last six hours
HOUR_MS = 3_600_000
LONGEST_MS = 330_000  # 6 pages of at most 53 s, and some
RETURNING = 0.25  # share of sessions by a visitor who has been here before


class Device(NamedTuple):
    """A browser: its User-Agent, its screen in CSS pixels, and how many times as long it takes to paint."""

    user_agent: str
    width: int
    height: int
    slowness: float = 1.0


_CHROME = "AppleWebKit/537.36 (KHTML, like Gecko) Chrome/{0}.0.0.0 {1}Safari/537.36"
DEVICES = (
    Device("Mozilla/5.0 (Windows NT 10.0; Win64; x64) " + _CHROME.format(142, ""), 1920, 1080),
    Device("Mozilla/5.0 (Windows NT 10.0; Win64; x64) " + _CHROME.format(141, "") + " Edg/141.0.0.0", 1536, 864),
    Device("Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) " + _CHROME.format(142, ""), 1728, 1117),
    Device(
        "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) "
        "Version/18.5 Safari/605.1.15",
        1440,
        900,
    ),
    Device("Mozilla/5.0 (X11; Linux x86_64; rv:144.0) Gecko/20100101 Firefox/144.0", 2560, 1440),
    Device("Mozilla/5.0 (Linux; Android 10; K) " + _CHROME.format(142, "Mobile "), 412, 915, 2.2),
    Device(
        "Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
        "Version/18.5 Mobile/15E148 Safari/604.1",
        393,
        852,
        1.4,
    ),
)


class Stop(NamedTuple):
    """A page of the shop and what is measured there: ranges in ms, CLS unitless."""

    path: str
    title: str
    ttfb: tuple[float, float] = (30, 180)
    paint: tuple[float, float] = (250, 900)  # from the first byte to FCP, and again to LCP
    cls: tuple[float, float] = (0, 0.04)
    inp: tuple[float, float] = (24, 120)
    soft: bool = False


LANDINGS = (
    Stop("/", "Lamps for long evenings"),
    Stop("/gallery", "Gallery", paint=(500, 1400), cls=(0.16, 0.42)),
    Stop("/catalogue", "Catalogue"),
)
STOPS = (
    *LANDINGS,
    Stop("/configurator", "Configurator", inp=(290, 420)),
    Stop("/stock", "In stock", ttfb=(905, 1400)),
    Stop("/catalogue/lund", "Lund", soft=True),
    Stop("/catalogue/malmo", "Malmö", soft=True),
    Stop("/catalogue/kiruna", "Kiruna", soft=True),
)
CHECKOUT = Stop("/checkout", "Checkout")

# (referrer, query of the landing page)
SOURCES = (
    (None, ""),
    ("https://www.google.com/", ""),
    ("https://www.google.com/", "?utm_source=google&utm_medium=cpc&utm_campaign=autumn&gclid=EAIaIQobChMI7v"),
    ("https://duckduckgo.com/", ""),
    (None, "?utm_source=letter&utm_medium=email&utm_campaign=november"),
    ("https://magazine.example/ten-lamps-we-like", "?utm_source=magazine&utm_medium=referral&utm_campaign=ten-lamps"),
)
NAMES = ("Ada Byron", "Émile Baudot", "Grace Murray", "Hedy Kiesler", "Karl Braun", "Mary Somer", "Ole Evinrude")


@dataclass
class Journey:
    """One session: its items by when they are sent. `opening` is never empty and always comes before `events`."""

    session_id: str
    user_agent: str
    opening: list[Item] = field(default_factory=list)
    events: list[Item] = field(default_factory=list)
    vitals: list[Item] = field(default_factory=list)
    revised: list[Item] = field(default_factory=list)
    late: list[Item] = field(default_factory=list)
    ending: Item = field(default_factory=dict)
    straggler: Item = field(default_factory=dict)


class Person(NamedTuple):
    """A visitor's id and browser."""

    visitor: str
    device: Device


class _Walk:
    """Writes one journey. Times are ms since the epoch by the visitor's clock, which goes on with each page."""

    def __init__(self, rng: random.Random, shop_url: str, funnel: str, person: Person, start: int) -> None:
        self._rng = rng
        self._shop_url = shop_url
        self._funnel = funnel
        self._visitor, self._device = person
        self._seq = 0
        self.start = self.clock = start
        self.journey = Journey(_uuid(rng), self._device.user_agent)

    def _page(self, stop: Stop, query: str = "") -> dict[str, Any]:
        return {"url": f"{self._shop_url}{stop.path}{query}", "path": stop.path, "title": f"{stop.title} · Lumen & Oak"}

    def event(self, name: str, stop: Stop, at: int, query: str = "", **more: Any) -> Item:
        """An event as the tracker writes it; `properties`, `referrer`, `utm`, `clickIds` by name."""
        context: dict[str, Any] = {
            "session": {"sessionId": self.journey.session_id},
            "user": {"anonymousId": self._visitor},
            "page": self._page(stop, query) | ({"referrer": more["referrer"]} if more.get("referrer") else {}),
            "device": {"screenWidth": self._device.width, "screenHeight": self._device.height, "language": "en-GB"},
        }
        return {
            "eventId": _uuid(self._rng),
            "eventName": name,
            "funnelId": self._funnel,
            **({"properties": more["properties"]} if "properties" in more else {}),
            "timestamp": at,
            "context": context,
        }

    def vital(self, metric: str, value: float, stop: Stop, at: int, query: str = "") -> Item:
        """A first report of a metric instance."""
        self._seq += 1
        value = round(value, 4 if metric == "CLS" else 1)
        return {
            "sessionId": self.journey.session_id,
            "anonymousId": self._visitor,
            "funnelId": self._funnel,
            "metric": metric,
            "value": value,
            "id": f"v6-{at}-{self._rng.randrange(10**12, 10**13)}",
            "delta": value,
            "navigationType": "soft-navigation" if stop.soft else "navigate",
            "pageUrl": self._page(stop, query)["url"],
            "pagePath": stop.path,
            "pageTitle": self._page(stop)["title"],
            "screenWidth": self._device.width,
            "screenHeight": self._device.height,
            "seq": self._seq,
            "timestamp": at,
        }

    def revise(self, vital: Item, value: float, after_ms: int) -> Item:
        """A later report of the same instance."""
        self._seq += 1
        value = round(value, 4 if vital["metric"] == "CLS" else 1)
        changed = {"value": value, "delta": round(value - vital["value"], 4), "seq": self._seq}
        return vital | changed | {"timestamp": vital["timestamp"] + after_ms}

    def look_at(self, stop: Stop, query: str = "", referrer: str | None = None) -> None:
        """One page: its view, its vitals, and the time spent on it."""
        rng, journey, began = self._rng, self.journey, self.clock
        first_byte = 0.0 if stop.soft else rng.uniform(*stop.ttfb)  # the library reports 0 for a soft navigation
        fcp = first_byte + rng.uniform(*stop.paint) * self._device.slowness
        lcp = fcp + rng.uniform(*stop.paint) * self._device.slowness
        painted = began + round(lcp) + 40
        self.clock += round(lcp) + rng.randrange(4_000, 45_000)
        landing = not journey.events
        journey.events.append(self.event("page_view", stop, began + 100, query, referrer=referrer))
        loaded = [
            self.vital("TTFB", first_byte, stop, began + round(first_byte) + 1, query),
            self.vital("FCP", fcp, stop, began + round(fcp) + 1, query),
            self.vital("LCP", lcp, stop, painted, query),
        ]
        left = [
            self.vital("CLS", rng.uniform(*stop.cls), stop, self.clock - 20, query),
            self.vital("INP", rng.uniform(*stop.inp) * self._device.slowness, stop, self.clock - 10, query),
        ]
        (journey.opening if landing else journey.vitals).extend(loaded)
        journey.vitals.extend(left)
        if stop.path == "/configurator":
            chosen = {"part": "shade", "choice": rng.choice(("Honey", "Brick", "Sea"))}
            journey.events.append(self.event("lamp_configured", stop, painted + 900, properties=chosen))
        elif stop.soft:
            cart = {"lamp": stop.path.rsplit("/", 1)[1]}
            journey.events.append(self.event("add_to_cart", stop, painted + 1500, properties=cart))


def _uuid(rng: random.Random) -> str:
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def _fill(rng: random.Random, walk: _Walk, number: int, name: str | None) -> Journey:
    """Fill one journey: pages, then what is reported again, late, and at the end."""
    journey = walk.journey
    referrer, query = rng.choice(SOURCES)
    walk.look_at(rng.choice(LANDINGS), query, referrer)
    for stop in rng.sample(STOPS, rng.randint(2, 4)):
        walk.look_at(stop)
    if number % 4 == 1:
        walk.look_at(CHECKOUT)
        price = rng.choice((89, 129, 149, 189.5, 219))
        order = {"conversionType": "purchase", "revenue": price, "currency": "EUR", "orderId": f"LO-{number:04d}"}
        journey.events.append(walk.event("conversion", CHECKOUT, walk.clock - 200, properties=order))
    if name:
        traits = {"name": name, "email": f"{name.split()[0].lower()}@shop.example"}
        known = {"userId": traits["email"], "traits": traits}
        journey.events.append(walk.event("user_identified", LANDINGS[0], walk.clock - 100, properties=known))

    for vital in [*journey.vitals]:
        if vital["metric"] == "CLS" and rng.random() < 0.4:
            journey.revised.append(walk.revise(vital, vital["value"] + rng.uniform(0.01, 0.12), 3_000))
        elif vital["metric"] == "INP" and rng.random() < 0.4:
            journey.revised.append(walk.revise(vital, vital["value"] * rng.choice((0.6, 1.4)), 3_000))

    # The landing page's CLS as it was before all of these reports: superseded. And a page view of an hour before.
    if number % 3 == 0:
        early = next(vital for vital in journey.vitals if vital["metric"] == "CLS")
        journey.late.append(early | {"value": 0, "delta": 0, "timestamp": early["timestamp"] - 2_000})
    if number % 5 == 0:
        journey.late.append(walk.vital("FCP", 640, LANDINGS[0], walk.start + 700))
    if number == 2:
        journey.late.append(walk.event("page_view", LANDINGS[1], walk.start - HOUR_MS))

    active = {"activeTime": round((walk.clock - walk.start) / 1400, 1)}
    journey.ending = walk.event("session_end", CHECKOUT, walk.clock + 50, properties=active)
    journey.straggler = walk.vital("INP", 180, CHECKOUT, walk.clock + 60)
    return journey


def plan_journeys(rng: random.Random, now: int, shop_url: str, funnel: str, count: int) -> list[Journey]:
    """`count` journeys that begin within the last six hours before `now` (ms) and are over by then."""
    journeys: list[Journey] = []
    strangers: list[Person] = []  # who has been here once
    names = list(NAMES)
    for number in range(count):
        if strangers and rng.random() < RETURNING:
            person = strangers.pop(rng.randrange(len(strangers)))
        else:
            person = Person(_uuid(rng), rng.choice(DEVICES))
            strangers.append(person)
        name = names.pop(0) if number % 5 == 3 and names else None
        ago = LONGEST_MS + round(SPREAD_MS * (count - number - rng.random()) / count)
        walk = _Walk(rng, shop_url, funnel, person, now - ago)
        journeys.append(_fill(rng, walk, number, name))
    return journeys
