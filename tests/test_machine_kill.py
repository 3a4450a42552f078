"""Random programs on a real server that is killed while requests are in flight, beside the reference.

Each round several browsers send, repeat and import at the same time, until SIGKILL comes at a random moment. What was
acknowledged by then is in the file; what was not is sent again, in another order. Then visitors have themselves erased,
now and then through a kill, too. At the end `verify` is clean, and the export is what `tests/machine.py` says.

10 rounds by default; the long run: `MACHINE_ROUNDS=200 MACHINE_SEED=1 pytest -n 0 tests/test_machine_kill.py`
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import pytest

from sidecar.store.database import Connection, open_read_only
from tests.items import USER_AGENTS, Beacon, Object
from tests.local import LocalSidecar, dump
from tests.machine import (
    TOKEN,
    WholeReference,
    comparable,
    first_difference,
    headers_of,
    pack,
)
from tests.servers import Server, sidecar

ROUNDS = int(os.environ.get("MACHINE_ROUNDS", "10"))
SEED = int(os.environ.get("MACHINE_SEED", "7"))
SENDERS = 4
KILL_FORGET = 0.4  # share of the erasures that are killed while they are in flight
METRICS = ("LCP", "INP", "CLS", "FCP", "TTFB")


def now_ms() -> int:
    """The clock, in ms."""
    return time.time_ns() // 1_000_000


class Batch(NamedTuple):
    """Lines of another sidecar, and the key under which they are sent."""

    lines: list[str]
    key: str


Parcel = Beacon | Batch


class Program:
    """Draws what the browsers of one round send. Ids are of few, so that they collide, also with the round before.

    All times are within two minutes, so that no clock is wrong and the order of arrival decides nothing.
    """

    def __init__(self, dice: random.Random, number: int, folder: Path) -> None:
        self._dice = dice
        self._number = number
        self._folder = folder
        self._base = now_ms()
        self.visitors = [f"visitor-{number}-{each}" for each in "abc"]

    def _session(self) -> str:
        """Mostly one of this round's, else one of the round before."""
        number = self._number - (self._dice.random() < 0.1)
        return f"s-{number}-{self._dice.randrange(6)}"

    def _visitor(self) -> str | None:
        return self._dice.choice([None, *self.visitors])

    def _time(self) -> int:
        return self._base + self._dice.choice(
            [-120_000, -60_000, -1000, -999, 0, self._dice.randrange(-90_000, 90_000)]
        )

    def _vital(self) -> Object:
        dice = self._dice
        return {
            "sessionId": self._session(),
            "anonymousId": self._visitor(),
            "metric": dice.choice(METRICS),
            "value": dice.choice([0, 0.02, 0.15, 116, 1234.5678915, dice.randrange(5000)]),
            "id": f"v6-{dice.randrange(8)}",
            "seq": dice.randrange(3),
            "timestamp": self._time(),
            "pageUrl": f"https://shop.test/{dice.randrange(4)}",
        }

    def _event(self) -> Object:
        dice = self._dice
        name = dice.choice(["page_view", "page_view", "conversion", "session_end", "user_identified", "cta"])
        properties = {
            "page_view": None,
            "conversion": {"revenue": dice.choice([49.9, 0.1, 0.2]), "currency": "EUR"},
            "session_end": {"activeTime": dice.randrange(600)},
            "user_identified": {"userId": f"u-{dice.randrange(3)}", "traits": {"name": dice.choice(["Ada", "Bea"])}},
            "cta": {"n": dice.random()},
        }
        visitor = self._visitor()
        page = {"url": f"https://shop.test/?utm_source={dice.choice(['mail', 'ads'])}", "path": "/"}
        user = {} if visitor is None else {"user": {"anonymousId": visitor}}
        return {
            "eventId": f"e-{dice.randrange(12)}",
            "eventName": name,
            "timestamp": self._time(),
            "properties": properties[name],
            "context": {"session": {"sessionId": self._session()}, "page": page, **user},
        }

    def beacon(self) -> Beacon:
        """A beacon of 1 to 4 items."""
        dice = self._dice
        count = dice.choice([1, 1, 1, 2, 4])
        agent = dice.choice(USER_AGENTS)
        if dice.random() < 0.6:
            vitals = [self._vital() for _ in range(count)]
            return Beacon("web-vitals", vitals, tuple(vitals), agent, "127.0.0.1")
        events = [self._event() for _ in range(count)]
        return Beacon("events", {"events": events}, tuple(events), agent, "127.0.0.1")

    def batch(self, part: int, beacons: Sequence[Beacon]) -> Batch:
        """What another sidecar exports that had some of the same beacons and some of its own."""
        with LocalSidecar(self._folder / f"other-{self._number}-{part}.db", now_ms()) as other:
            for beacon in [*beacons, *[self.beacon() for _ in range(4)]]:
                other.send(beacon.path, beacon.body, beacon.user_agent, beacon.address)
            return Batch(other.export(), f"batch-{self._number}-{part}")


class Browsers:
    """Threads that send parcels, each its own ones in their order, until all are sent or the server is gone."""

    def __init__(self, url: str, parcels: Sequence[Parcel]) -> None:
        self._url = url
        self._lock = threading.Lock()
        self.acknowledged: list[Parcel] = []
        self.lost: list[Parcel] = []
        self._threads = [
            threading.Thread(target=self._send, args=(list(parcels[number::SENDERS]),)) for number in range(SENDERS)
        ]
        for thread in self._threads:
            thread.start()

    def _send(self, parcels: list[Parcel]) -> None:
        with httpx2.Client(base_url=self._url, timeout=30, verify=False) as client:
            for place, parcel in enumerate(parcels):
                try:
                    answer = deliver(client, parcel)
                except httpx2.TransportError:
                    with self._lock:
                        self.lost += parcels[place:]
                    return
                assert answer.status_code in (200, 202), answer.text  # 202: of an erased session
                with self._lock:
                    self.acknowledged.append(parcel)

    def wait_for(self, count: int) -> None:
        """Until so many parcels are acknowledged."""
        deadline = time.monotonic() + 60
        while len(self.acknowledged) < count:
            assert time.monotonic() < deadline, f"{len(self.acknowledged)} of {count} in a minute"
            time.sleep(0.001)

    def join(self) -> None:
        """Until all threads are done."""
        for thread in self._threads:
            thread.join(timeout=60)
            assert not thread.is_alive()


def deliver(client: httpx2.Client, parcel: Parcel) -> httpx2.Response:
    """One request."""
    if isinstance(parcel, Beacon):
        headers = {"Content-Type": "text/plain;charset=UTF-8", "User-Agent": parcel.user_agent}
        return client.post(f"/api/track/{parcel.path}", content=dump(parcel.body), headers=headers)
    said = {name.replace("_", "-"): value for name, value in headers_of(parcel.lines, parcel.key).items()}
    return client.post("/api/sessions", content=pack(parcel.lines), headers=said)


def missing(database: Path, parcels: Sequence[Parcel], reference: WholeReference) -> list[tuple[str, ...]]:
    """(session, metric or '', id) of the items of parcels that the file does not hold, but for erased sessions."""
    with closing(open_read_only(database)) as conn:
        held = _identities(conn)
    wanted: set[tuple[str, ...]] = set()
    for parcel in parcels:
        if isinstance(parcel, Beacon) and parcel.path == "web-vitals":
            wanted |= {(item["sessionId"], item["metric"], item["id"]) for item in parcel.items}
        elif isinstance(parcel, Beacon):
            wanted |= {(item["context"]["session"]["sessionId"], "", item["eventId"]) for item in parcel.items}
        else:
            for document in map(json.loads, parcel.lines):
                wanted |= {(document["sessionId"], fact["metric"], fact["id"]) for fact in document["webVitals"]}
                wanted |= {(document["sessionId"], "", fact["eventId"]) for fact in document["events"]}
    return sorted(one for one in wanted - held if not reference.is_erased("default", one[0]))


def _identities(conn: Connection) -> set[tuple[str, ...]]:
    found = conn.execute(
        """SELECT s.session_id, v.metric, v.id FROM web_vitals AS v JOIN sessions AS s USING (session_key)
        UNION ALL SELECT s.session_id, '', e.event_id FROM events AS e JOIN sessions AS s USING (session_key)"""
    )
    return {tuple(row) for row in found}


def forget_through_kill(server: Server, dice: random.Random, visitor: str, kill: bool) -> Object | None:
    """Erase a visitor; `deleted` of the answer, None where it was killed and nobody knows what it deleted."""
    deleted: list[Object] = []

    def ask() -> None:
        try:
            with httpx2.Client(base_url=server.url, timeout=30, verify=False) as client:
                answer = client.post("/api/track/delete", json={"anonymousId": visitor})
        except httpx2.TransportError:
            return
        assert answer.status_code == 200, answer.text
        deleted.append(answer.json()["deleted"])

    if not kill:
        ask()
        return deleted[0]
    asking = threading.Thread(target=ask)
    asking.start()
    time.sleep(dice.uniform(0, 0.02))
    server.kill()
    asking.join(timeout=60)
    server.restart()
    if not deleted:
        ask()
    return None


def without_time(line: str) -> str:
    """A line with `erasedAt` empty: when the server erased is its own clock's."""
    document: dict[str, Any] = json.loads(line)
    return json.dumps(document | {"erasedAt": ""}) if document["type"] == "tombstone" else line


@pytest.mark.timeout(max(300, 10 * ROUNDS))
def test_kills_change_nothing(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    """Round after round on one file; then the file holds what the reference says of everything that was sent."""
    dice = random.Random(SEED)
    reference = WholeReference(now_ms)
    lost_count = batches_lost = 0
    with Server(tmp_path / "sidecar.db", RECEIVE_TOKEN=TOKEN) as server:
        for number in range(ROUNDS):
            program = Program(dice, number, tmp_path)
            beacons = [program.beacon() for _ in range(120)]
            parcels: list[Parcel] = [*beacons, *dice.sample(beacons, 20)]
            parcels += [program.batch(part, dice.sample(beacons, 6)) for part in range(4)]
            dice.shuffle(parcels)

            browsers = Browsers(server.url, parcels)
            browsers.wait_for(dice.randrange(1, 100))
            time.sleep(dice.uniform(0, 0.01))
            server.kill()
            browsers.join()
            server.restart()
            lost_count += len(browsers.lost)
            batches_lost += sum(isinstance(parcel, Batch) for parcel in browsers.lost)
            assert missing(server.database, browsers.acknowledged, reference) == []

            # The queues of the browsers, and some whose answer did not reach them.
            late = browsers.lost + dice.sample(browsers.acknowledged, min(10, len(browsers.acknowledged)))
            dice.shuffle(late)
            again = Browsers(server.url, late)
            again.join()
            assert again.lost == []
            for parcel in parcels:
                if isinstance(parcel, Beacon):
                    assert set(reference.send(parcel)) <= {"accepted", "duplicate", "superseded", "erased"}
                else:
                    reference.receive(parcel.lines)

            # At a moment when nothing is in flight: which sessions are a visitor's own is what is known by then.
            for visitor in dice.sample(program.visitors, dice.randrange(3)):
                deleted = forget_through_kill(server, dice, visitor, dice.random() < KILL_FORGET)
                assert deleted in (None, reference.forget(visitor))
    record_property("lost", lost_count)
    assert lost_count > ROUNDS
    assert batches_lost > 0

    path = str(server.database)
    checked = sidecar("verify", DATABASE=path)
    assert (checked.returncode, checked.stderr) == (0, b"")
    exported = sidecar("export", DATABASE=path).stdout.decode().splitlines()
    found = [without_time(comparable(line)) for line in exported]
    assert first_difference(found, [without_time(line) for line in reference.lines()]) == ""
    assert "FOREIGN KEY" not in server.log.read_text()
