"""Bugs published of other products of the field: what was sent there, as data, and what must come of it here.

Each file of `data/published` names its thread, says what went wrong, and holds the beacons in the order of the report
with what they must lead to. Facts are order-free, so every case is also sent backwards and shuffled.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import socket
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import pytest
import uvicorn
from starlette.applications import Starlette

from sidecar.canonical import from_iso
from sidecar.model import Fact
from sidecar.ship.sinks import Answer
from sidecar.ship.sinks.http import HttpSink
from sidecar.store.database import Connection, snapshot
from sidecar.store.facts import Recording, record
from sidecar.store.outbox import Batch
from sidecar.store.queries import Filters, percentile_vitals
from sidecar.web.collect import Collect
from sidecar.web.gate import Gate
from tests.builders import page_of, vital
from tests.local import CHROME, RULES, LocalSidecar, dump, read
from tests.ship.house import NOW, TIMEOUT_MS, House, documents, serve_receiver

DATA = Path(__file__).parent / "data" / "published"
Object = dict[str, Any]


class Sent(NamedTuple):
    """One beacon of a report."""

    path: str
    body: Any
    user_agent: str
    address: str


class Case(NamedTuple):
    """A published bug. `moments` (ms): when beacons were received, in order; `answers`: outcomes by beacon and item."""

    beacons: list[Sent]
    moments: list[int]
    answers: list[list[str]]
    expect: Object

    @property
    def outcomes(self) -> Counter[str]:
        """How many items of each outcome."""
        return Counter(itertools.chain.from_iterable(self.answers))


def load(name: str) -> Case:
    """A case from its file."""
    said = json.loads((DATA / f"{name}.json").read_text())
    beacons = [
        Sent(one["path"], one["body"], one.get("userAgent", CHROME), one.get("address", "127.0.0.1"))
        for one in said["beacons"]
    ]
    moments = sorted(from_iso(one["receivedAt"]) for one in said["beacons"])
    return Case(beacons, moments, said["expect"]["answers"], said["expect"])


def difference(said: Any, expected: Any, where: str = "") -> str:
    """Where `said` is not as expected; '' where it is. Of objects only the expected keys count."""
    if isinstance(expected, dict) and isinstance(said, dict):
        parts = [(f"{where}.{key}", said.get(key, "(missing)"), value) for key, value in expected.items()]
    elif isinstance(expected, list) and isinstance(said, list) and len(said) == len(expected):
        parts = [(f"{where}[{place}]", *pair) for place, pair in enumerate(zip(said, expected, strict=True))]
    else:
        same = type(said) is type(expected) or {type(said), type(expected)} == {int, float}
        return "" if same and said == expected else f"{where}: {said!r} and not {expected!r}"
    return next((found for part, one, other in parts if (found := difference(one, other, part))), "")


def orders(beacons: Sequence[Sent]) -> list[list[Sent]]:
    """As reported, backwards, and shuffled four times, the same way each time."""
    rng = random.Random(7)
    return [[*beacons], [*beacons[::-1]], *(rng.sample(beacons, len(beacons)) for _ in range(4))]


def check(name: str, tmp_path: Path) -> Case:
    """Deliver a case in every order; each time the figures are the expected ones, and a second time changes nothing."""
    case = load(name)
    for number, order in enumerate(orders(case.beacons)):
        with LocalSidecar(tmp_path / f"{number}.db", NOW) as sidecar:
            answers = []
            # In another order all come once the last one was made: none from more than five minutes ahead.
            moments = case.moments if number == 0 else case.moments[-1:] * len(order)
            for sidecar.now, one in zip(moments, order, strict=True):
                answers.append(sidecar.send(one.path, one.body, one.user_agent, one.address))
            if number == 0:
                assert answers == case.answers
            assert Counter(itertools.chain.from_iterable(answers))["rejected"] == case.outcomes["rejected"]
            sidecar.now = NOW
            exported = sidecar.export()
            assert difference(sidecar.export_documents(), case.expect["sessions"]) == ""
            with snapshot(sidecar.conn):
                figures = percentile_vitals(sidecar.conn, Filters())
            assert difference(figures, case.expect.get("vitals", {})) == ""
            for one in order:
                assert "accepted" not in sidecar.send(one.path, one.body, one.user_agent, one.address)
            assert sidecar.export() == exported, "repeats change nothing, not even a revision"
            assert sidecar.findings() == []
    return case


# --- over HTTP -------------------------------------------------------------------------------------------------------


@contextmanager
def open_door(house: House) -> Iterator[httpx2.Client]:
    """The collecting end of a sidecar on a real server, with the clock of the house; gives a client of it."""
    app = Collect(Starlette(), writer=house.writer, rules=RULES, gate=Gate(), clock=lambda: house.now)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off", loop="asyncio", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/api/track/"
    try:
        with httpx2.Client(base_url=url, timeout=30, verify=False) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def post(client: httpx2.Client, one: Sent) -> httpx2.Response:
    """One beacon."""
    return client.post(one.path, content=dump(one.body), headers={"User-Agent": one.user_agent})


def counted(answer: httpx2.Response) -> Counter[str]:
    """What an answer says became of the items."""
    said = answer.json()
    counts = Counter({name: said.get(name, 0) for name in ("accepted", "duplicate", "superseded")})
    counts["rejected"] = len(said["rejected"])
    return +counts


def held(house: House) -> list[Object]:
    """The documents of an export."""
    return [json.loads(line) for line in house.export()]


def check_answers(name: str, tmp_path: Path) -> list[httpx2.Response]:
    """Deliver a case over HTTP as reported; what each answer says is what was stored. The answers."""
    case = load(name)
    with House(tmp_path / "http.db") as house, open_door(house) as client:
        answers = [post(client, one) for one in case.beacons]
        for answer, outcomes in zip(answers, case.answers, strict=True):
            assert answer.status_code == (422 if {*outcomes} == {"rejected"} else 200), answer.text
            assert counted(answer) == Counter(outcomes)
            assert answer.json().get("success", False) is (answer.status_code == 200)
        assert difference(held(house), case.expect["sessions"]) == ""
        facts = sum(len(one["events"]) + len(one["webVitals"]) for one in held(house))
        accepted = sum(answer.json().get("accepted", 0) for answer in answers)
        assert facts == accepted, "these cases replace no fact: every accepted item is one"
    return answers


def check_at_once(name: str, tmp_path: Path) -> None:
    """All beacons of a case at the same moment, each on its own connection, for a session that is new each time."""
    case = load(name)
    for number in range(4):
        together = threading.Barrier(len(case.beacons))

        def knock(one: Sent, client: httpx2.Client, together: threading.Barrier = together) -> httpx2.Response:
            together.wait(30)
            return post(client, one)

        with House(tmp_path / f"at-once-{number}.db") as house, open_door(house) as client:
            with ThreadPoolExecutor(len(case.beacons)) as pool:
                answers = [*pool.map(knock, case.beacons, itertools.repeat(client))]
            assert [answer.status_code for answer in answers] == [200] * len(answers)
            assert sum(map(counted, answers), Counter()) == case.outcomes
            assert difference(held(house), case.expect["sessions"]) == ""


# --- what others reported --------------------------------------------------------------------------------------------


def test_umami_3188_first_message_is_an_identify(tmp_path: Path) -> None:
    """It makes the session like any other item, and everything after it is taken."""
    check("umami-3188", tmp_path)
    check_answers("umami-3188", tmp_path)


def test_umami_149_a_new_session_at_the_same_moment_many_times(tmp_path: Path) -> None:
    """One session, no 500, nothing lost, whichever request came to it first."""
    check("umami-149", tmp_path)
    check_at_once("umami-149", tmp_path)


def test_umami_4183_identifies_at_the_same_moment(tmp_path: Path) -> None:
    """All are kept, and the latest by its own time names the visitor."""
    check("umami-4183", tmp_path)
    check_at_once("umami-4183", tmp_path)


def test_openpanel_374_the_same_batch_twice(tmp_path: Path) -> None:
    """Events without ids get stable ones, so the second copy is all duplicates, and the answer says so."""
    check("openpanel-374", tmp_path)
    check_answers("openpanel-374", tmp_path)


def test_openpanel_373_an_event_six_hours_late(tmp_path: Path) -> None:
    """It belongs to the session it names, at its own time; the session that is going on does not change."""
    check("openpanel-373", tmp_path)


def test_web_vitals_272_inp_falls(tmp_path: Path) -> None:
    """The newest report counts, not the greatest; a negative value is refused, and the good item beside it is not."""
    check("web-vitals-272", tmp_path)


def test_web_vitals_785_a_cls_of_0_after_a_bfcache_restore(tmp_path: Path) -> None:
    """An instance of its own with 0 as its value until a newer report says otherwise."""
    check("web-vitals-785", tmp_path)


def test_web_vitals_11_a_cls_that_grows_is_one(tmp_path: Path) -> None:
    """0.02 and then 0.15 is one vital of 0.15, and the average is 0.15."""
    check("web-vitals-11", tmp_path)


def test_rybbit_617_success_for_what_was_never_stored(tmp_path: Path) -> None:
    """Custom events are there, without properties that are no object; what cannot be read is no success."""
    check("rybbit-617", tmp_path)
    *_, foreign, mixed = check_answers("rybbit-617", tmp_path)
    assert [one["index"] for one in foreign.json()["rejected"]] == [0]
    assert foreign.json()["rejected"][0]["reason"]
    assert foreign.json()["error"]
    assert [one["index"] for one in mixed.json()["rejected"]] == [0]


def test_goatcounter_526_accepted_and_never_recorded(tmp_path: Path) -> None:
    """While the store cannot write, the answer is a 503 that says when to come again; 200 is what is in the file."""

    def limit(conn: Connection) -> None:
        pages = conn.execute("PRAGMA page_count").fetchone()[0]
        conn.execute(f"PRAGMA max_page_count = {pages}")

    def lift(conn: Connection) -> None:
        conn.execute("PRAGMA max_page_count = 1000000").fetchone()

    def crowd(one: Sent, number: int) -> Sent:
        """A hundred visits at once, so that the file soon has to grow."""
        events = [one.body | {"eventId": f"{number}-{place}", "properties": {"x": "x" * 250}} for place in range(100)]
        return one._replace(body={"events": events})

    case = check("goatcounter-526", tmp_path)
    with House(tmp_path / "full.db") as house, open_door(house) as client:
        assert [post(client, one).status_code for one in case.beacons] == [200] * 6
        house.write(limit)
        crowds = [crowd(one, number) for number, one in enumerate(case.beacons)]
        answers = [post(client, one) for one in crowds]
        assert {answer.status_code for answer in answers} <= {200, 503}
        refused = [place for place, answer in enumerate(answers) if answer.status_code == 503]
        assert refused, "the file was full"
        for place in refused:
            assert int(answers[place].headers["Retry-After"]) >= 1
            assert "success" not in answers[place].json()
        stored = sum(one["eventsCount"] for one in held(house))
        assert stored == 6 + sum(answer.json().get("accepted", 0) for answer in answers)
        house.write(lift)
        again = [post(client, crowds[place]) for place in refused]
        assert [(answer.status_code, counted(answer)) for answer in again] == [(200, {"accepted": 100})] * len(again)
        assert sum(one["eventsCount"] for one in held(house)) == 606
    check_answers("goatcounter-526", tmp_path)


# --- late, and the upstream ------------------------------------------------------------------------------------------


class Watched:
    """Another sidecar as the upstream; `sent` are the batches on their way, `late` comes in while the first is."""

    def __init__(self, url: str, late: Iterator[None]) -> None:
        self._http = HttpSink(url, token="secret")
        self.address = self._http.address
        self.sent: list[Batch] = []
        self._late = late

    async def send(self, batch: Batch, now: int) -> Answer:
        """Send, and then let happen what happens before the answer is here."""
        self.sent.append(batch)
        answer = await self._http.send(batch, now)
        next(self._late, None)
        return answer

    async def close(self) -> None:
        """Give the connection up."""
        await self._http.close()


def take(house: House, one: Sent) -> None:
    """A beacon comes in, at the time of the house."""
    said = read(one.path, dump(one.body), house.now, one.user_agent, one.address)
    facts: list[tuple[int, Fact]] = [(place, fact) for place, fact in enumerate(said) if not isinstance(fact, str)]
    house.write(lambda conn: record(conn, [Recording(facts, house.now)]))


@pytest.mark.parametrize("under_way", [False, True], ids=["after", "while"])
@pytest.mark.parametrize("late", range(4))
def test_posthog_78919_an_event_later_than_the_export(tmp_path: Path, late: int, under_way: bool) -> None:
    """Whichever beacon comes after the session was shipped, or while it was: it ships again, whole, once, as newer."""
    case = load("posthog-78919")
    in_time = [one for place, one in enumerate(case.beacons) if place != late]
    with House(tmp_path / "house.db") as house, House(tmp_path / "upstream.db") as upstream:
        for house.now, one in zip(case.moments, in_time, strict=False):
            take(house, one)
        house.now = NOW
        house.record(vital("bystander", "LCP", 900, page=page_of("/")))
        before = {one["sessionId"]: one for one in held(house)}

        def comes() -> Iterator[None]:
            take(house, case.beacons[late])
            yield

        with serve_receiver(upstream) as url:
            sink = Watched(url, comes() if under_way else iter(()))

            def ship() -> int:
                upstream.now = house.now
                return asyncio.run(house.shipper(sink).ship_once()).confirmed

            assert ship() == 2
            if not under_way:
                assert [json.loads(line) for line in upstream.export()] == held(house)
                take(house, case.beacons[late])
            assert ship() == 0, "it is going on again"
            house.now += TIMEOUT_MS + 1
            assert ship() == 1
            assert ship() == 0
            asyncio.run(sink.close())
        first, second = (documents(batch.body) for batch in sink.sent)
        first.sort(key=lambda one: str(one["sessionId"]))
        assert [one["sessionId"] for one in first] == ["bystander", "s-78919"]
        assert difference(second, case.expect["sessions"]) == ""
        assert second[0]["revision"] == NOW > first[1]["revision"] == before["s-78919"]["revision"]
        assert held(upstream) == held(house)
        assert difference(held(house)[1], case.expect["sessions"][0]) == ""


def test_every_case_is_used_and_says_where_it_comes_from() -> None:
    """A file that no test reads would be no test."""
    source = Path(__file__).read_text()
    for path in sorted(DATA.iterdir()):
        said = json.loads(path.read_text())
        assert f'"{path.stem}"' in source, f"no test uses {path.name}"
        assert sorted(said) == ["beacons", "expect", "thread", "what"]
        assert path.stem.rpartition("-")[2] == said["thread"].rpartition("#")[2]
        assert said["what"]
