"""The producer of the soak: browsers that send beacons, repeat them, come back late, and have themselves erased.

Each keeps what was not acknowledged and sends it again, as the tracker does. What was acknowledged is written down.
"""

from __future__ import annotations

import heapq
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx2

BROWSERS = 4
SESSIONS_A_SECOND = 6.0
AGAIN_S = 0.2
REPEATED = 0.1  # share of the acknowledged beacons that are sent once more
LATE = 0.6  # share of the sessions that something comes late for
ERASED_EVERY = 40  # sessions
CHROME = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/141.0.0.0 Safari/537.36"

Identity = tuple[str, str, str]  # session, metric ('' of an event), id


class Report(NamedTuple):
    """What the greatest of several reports of one fact is greatest by."""

    timestamp: int
    seq: int
    value: float


class Beacon(NamedTuple):
    """One request. `erases`: the session whose visitor it erases, else ''."""

    path: str
    items: list[dict[str, Any]]
    erases: str = ""


def now_ms() -> int:
    """The clock, in ms."""
    return time.time_ns() // 1_000_000


def identity_of(item: dict[str, Any]) -> Identity:
    """Which fact an item is a report of."""
    if "metric" in item:
        return item["sessionId"], item["metric"], item["id"]
    return item["context"]["session"]["sessionId"], "", item["eventId"]


class Session:
    """What one session sends, and when (seconds from its begin); items get their time when they are sent first."""

    def __init__(self, number: int, dice: random.Random) -> None:
        self.id = f"s-{number:05d}"
        self.is_erased = number % ERASED_EVERY == ERASED_EVERY - 1
        self._visitor = f"gone-{number}" if self.is_erased else f"v-{number // 2}"
        self._page = f"https://shop.test/p/{number % 50}"
        self._dice = dice

    def _vital(self, metric: str, value: float, seq: int = 0) -> dict[str, Any]:
        said = {"sessionId": self.id, "anonymousId": self._visitor, "metric": metric, "id": f"v6-{metric}-{self.id}"}
        return said | {"value": value, "seq": seq, "pageUrl": self._page}

    def _event(self, name: str, number: int = 0, **properties: Any) -> dict[str, Any]:
        context = {"session": {"sessionId": self.id}, "user": {"anonymousId": self._visitor}}
        return {
            "eventId": f"{name}-{number}-{self.id}",
            "eventName": name,
            "properties": properties,
            "context": context | {"page": {"url": self._page, "path": "/p"}},
        }

    def plan(self) -> Iterator[tuple[float, Beacon]]:
        """Vitals first, which is the order that used to break; then a page view, and the rest."""
        dice = self._dice
        yield 0.0, Beacon("web-vitals", [self._vital("TTFB", dice.uniform(50, 900)), self._vital("FCP", 1100)])
        yield dice.uniform(0, 0.2), Beacon("events", [self._event("page_view")])
        yield dice.uniform(0, 0.4), Beacon("web-vitals", [self._vital("LCP", dice.randrange(900, 5000))])
        yield dice.uniform(0, 0.6), Beacon("web-vitals", [self._vital("CLS", 0.02), self._vital("INP", 96, 1)])
        if dice.random() < 0.3:
            yield 0.5, Beacon("events", [self._event("purchase", revenue=49.9, currency="EUR", orderId=self.id)])
        if dice.random() < LATE:
            for number in range(1, dice.randrange(2, 5)):
                inp = self._vital("INP", dice.choice([64, 128, 480]), number + 1)
                yield dice.uniform(1.2, 9), Beacon("web-vitals", [inp])
                yield dice.uniform(1.2, 9), Beacon("events", [self._event("session_end", number, activeTime=number)])
        if self.is_erased:
            yield dice.uniform(2, 6), Beacon("delete", [{"anonymousId": self._visitor}], self.id)


class Browsers:
    """All browsers. They send to `url` until `finish` is called and all that was begun is acknowledged."""

    def __init__(self, url: str, dice: random.Random) -> None:
        self._url = url
        self._dice = dice
        self._lock = threading.Lock()
        self._queue: list[tuple[float, int, Beacon]] = []
        self._count = 0
        self._in_flight = 0
        self._ending = threading.Event()
        self._giving_up = threading.Event()
        self._begun = time.monotonic()
        self.sessions = 0
        self.acknowledged: dict[Identity, Report] = {}
        self.erased: set[str] = set()
        self.outcomes: Counter[str] = Counter()
        self.unexpected: list[str] = []
        self._threads = [threading.Thread(target=self._run, name=f"browser {number}") for number in range(BROWSERS)]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def finish(self, most_s: float) -> None:
        """No new sessions; wait until everything is acknowledged. Raises TimeoutError where that takes longer."""
        self._ending.set()
        deadline = time.monotonic() + most_s
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._giving_up.set()
        for thread in self._threads:
            thread.join(60)
        if self._queue:
            raise TimeoutError(f"{len(self._queue)} beacons are not acknowledged {most_s:.0f} s after the kills")

    def _put(self, due: float, beacon: Beacon) -> None:
        self._count += 1
        heapq.heappush(self._queue, (due, self._count, beacon))

    def _next(self) -> Beacon | None:
        """What is due, or where none is, None. New sessions begin here, at their rate."""
        with self._lock:
            now = time.monotonic()
            while not self._ending.is_set() and self.sessions < (now - self._begun) * SESSIONS_A_SECOND:
                session = Session(self.sessions, self._dice)
                self.sessions += 1
                for after_s, beacon in session.plan():
                    self._put(now + after_s, beacon)
            if self._queue and (self._queue[0][0] <= now or self._ending.is_set()):
                self._in_flight += 1
                return heapq.heappop(self._queue)[2]
            return None

    def _is_done(self) -> bool:
        with self._lock:
            return self._ending.is_set() and not self._queue and not self._in_flight

    def _run(self) -> None:
        with httpx2.Client(base_url=self._url, headers={"User-Agent": CHROME}, timeout=30, verify=False) as client:
            while not self._is_done() and not self._giving_up.is_set():
                beacon = self._next()
                if beacon is None:
                    time.sleep(0.02)
                    continue
                later = self._send(client, beacon)
                with self._lock:
                    self._in_flight -= 1
                    if later is not None:
                        self._put(time.monotonic() + later, beacon)
                if later == AGAIN_S:
                    time.sleep(0.05)  # the sender is down

    def _send(self, client: httpx2.Client, beacon: Beacon) -> float | None:
        """Send it; after how many seconds once more, None: never."""
        if beacon.erases:
            with self._lock:
                self.erased.add(beacon.erases)
        for item in beacon.items:
            if not beacon.erases:
                item.setdefault("timestamp", now_ms())
        body: object = beacon.items[0] if beacon.erases else beacon.items
        try:
            answer = client.post(f"/api/track/{beacon.path}", json=body)
        except httpx2.TransportError:
            with self._lock:
                self.outcomes["no answer"] += 1
            return AGAIN_S
        if answer.status_code == 503:
            return AGAIN_S
        with self._lock:
            self._note(beacon, answer)
            repeated = not self._ending.is_set() and self._dice.random() < REPEATED
            return self._dice.uniform(0.3, 8) if repeated else None

    def _note(self, beacon: Beacon, answer: httpx2.Response) -> None:
        said = answer.json()
        if beacon.erases:
            if answer.status_code == 200:
                self.outcomes["erasures"] += 1
            else:
                self.unexpected.append(f"{answer.status_code} {answer.text} to an erasure")
            return
        sessions = {identity_of(item)[0] for item in beacon.items}
        rejected = said.get("rejected", [])
        if answer.status_code == 202 or rejected:
            reasons = {entry["reason"] for entry in rejected} or {said.get("reason")}
            if reasons != {"erased"} or not sessions <= self.erased:
                self.unexpected.append(f"{answer.status_code} {answer.text} to {beacon}")
            return
        if answer.status_code != 200:
            self.unexpected.append(f"{answer.status_code} {answer.text} to {beacon}")
            return
        for outcome in ("accepted", "duplicate", "superseded"):
            self.outcomes[outcome] += said[outcome]
        for item in beacon.items:
            report = Report(item["timestamp"], item.get("seq", 0), float(item.get("value", 0)))
            identity = identity_of(item)
            self.acknowledged[identity] = max(report, self.acknowledged.get(identity, report))
