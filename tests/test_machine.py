"""A machine that uses the real application in random order, step by step beside the reference.

Beacons are sent, repeated, held back, reordered, split, joined and sent at once; the server is killed, restarted, sent
back and forth in time; documents come in, visitors are erased. After each step every answer and the whole export are
what `tests/machine.py` says, and `verify` is clean.

300 programs of up to 8 steps by default. The long run, with up to 20 steps: `MACHINE_EXAMPLES=10000 pytest -n 0
tests/test_machine.py`, or several processes with a share and a seed each: `MACHINE_EXAMPLES=5000 pytest -n 0 -s
tests/test_machine.py --hypothesis-seed=1`.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
from collections import Counter
from collections.abc import Coroutine, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import pytest
import structlog
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from sidecar.store.database import immediate, open_database
from sidecar.store.erasure import forget
from tests import items
from tests.items import Beacon, Delivery, Object
from tests.local import LocalSidecar, dump
from tests.machine import (
    NOW,
    Answered,
    App,
    WholeReference,
    check_answer,
    check_batch,
    comparable,
    event_loop,
    first_difference,
    take_picture,
    torn,
)

EXAMPLES = int(os.environ.get("MACHINE_EXAMPLES", "300"))
STEPS = 20 if EXAMPLES > 300 else 8
BODY_MAX = 60_000  # bytes; a beacon is at most 64 KiB
HOUR = 3_600_000
MEMORY = Path("/dev/shm")  # noqa: S108 - a file system without a disk, where there is one
SEEN: Counter[str] = Counter()
EXPECTED = (
    *("accepted", "duplicate", "superseded", "rejected", "erased", "skewed", "received", "refused document"),
    *("send", "hold back", "deliver held", "repeat", "split", "join", "at once", "jump", "forget", "forget held"),
    *("kill", "kill in flight", "kill took all", "kill took none", "kill torn", "restart"),
    *("import own", "import other", "import tombstone", "import command", "loosened"),
)
Result = TypeVar("Result")
_numbers = itertools.count()

INSIDE = items.deliveries(NOW, most=3)
OUTSIDE = items.skewed_deliveries(NOW, most=2)
SETS = st.integers(0, 3).flatmap(lambda number: OUTSIDE if number == 3 else INSIDE)
INDEX = st.integers(0, 2**16)
MASK = st.integers(1, 2**10 - 1)
VISITORS = st.sampled_from(["visitor-aaaaaa", "visitor-aaaaaa", "visitor-bbbbbb", "v", "nobody"])
JUMPS = st.sampled_from([1, 999, 60_000, HOUR, 30 * HOUR, 96 * HOUR, 200 * HOUR])

SHARED = [
    Delivery(
        "web-vitals",
        {
            "sessionId": "s-2",
            "anonymousId": visitor,
            "metric": "LCP",
            "value": 900,
            "id": visitor,
            "timestamp": NOW - after,
            "pageUrl": "https://shop.test/",
        },
        items.CHROME_LINUX,
        "127.0.0.1",
    )
    for visitor, after in (("visitor-bbbbbb", 2 * HOUR), ("visitor-aaaaaa", HOUR))
]


def arrange(sent: Sequence[Delivery], form: int) -> list[Beacon]:
    """Items as beacons, one for each path and sender, in the order of their first items."""
    groups: dict[tuple[str, str, str], list[Delivery]] = {}
    for one in sent:
        groups.setdefault((one.path, one.user_agent, one.address), []).append(one)
    return [make_beacon(group[0], [one.item for one in group], form) for group in groups.values()]


def make_beacon(like: Delivery | Beacon, said: Sequence[Object], form: int) -> Beacon:
    """A beacon of the sender of `like`: an array, or with an odd `form` what else the path takes."""
    body: object = list(said)
    if form % 2 and like.path == "events":
        body = {"events": list(said), "sentAt": "ignored"}
    elif form % 2 and len(said) == 1:
        body = said[0]
    return Beacon(like.path, body, tuple(said), like.user_agent, like.address)


class Surroundings:
    """What all programs share: the loop, the folder, an empty database to start from."""

    def __init__(self, loop: asyncio.AbstractEventLoop, folder: Path) -> None:
        self.loop = loop
        self.folder = folder
        open_database(folder / "empty.db").close()
        self.empty = take_picture(folder / "empty.db")

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run to its end."""
        return self.loop.run_until_complete(work)

    def new_path(self) -> Path:
        """A path that nothing was at before."""
        return self.folder / f"{next(_numbers)}.db"


around: Surroundings


class SidecarMachine(RuleBasedStateMachine):
    """One program."""

    def __init__(self) -> None:
        super().__init__()
        self.now = NOW
        self.reference = WholeReference(lambda: self.now)
        self.sent: list[Beacon] = []
        self.held: list[Beacon] = []
        self.copies: list[list[str]] = []  # exports of this sidecar, taken earlier
        self.forgotten: list[str] = []
        self.neighbour: LocalSidecar | None = None
        self.touched = False
        path = around.new_path()
        around.empty.put(path)
        self.app = App(path, lambda: self.now)
        around.run(self.app.start())

    @initialize(sent=SETS, form=INDEX, shared=st.booleans())
    def begin(self, sent: list[Delivery], form: int, shared: bool) -> None:
        """No program is about an empty file; in half of them two visitors use one session, which is rare by chance."""
        self.post(arrange([*sent, *SHARED] if shared else sent, form))

    # ---- beacons

    def post(self, *groups: list[Beacon]) -> None:
        """Send beacons, those of a group at once, and check the answers."""
        for group in groups:
            answers = around.run(_post(self.app, group))
            for beacon, answer in zip(group, answers, strict=True):
                outcomes = self.reference.send(beacon)
                check_answer(*answer, outcomes)
                SEEN.update(outcomes)
            self.sent += group
        self.touched = True

    @rule(sent=SETS, form=INDEX)
    def send(self, sent: list[Delivery], form: int) -> None:
        """Beacons come one after the other."""
        SEEN["send"] += 1
        self.post(*[[beacon] for beacon in arrange(sent, form)])

    @rule(sent=SETS, form=INDEX)
    def hold_back(self, sent: list[Delivery], form: int) -> None:
        """A browser that is offline."""
        SEEN["hold back"] += 1
        self.held += arrange(sent, form)

    @precondition(lambda self: self.held)
    @rule(order=st.lists(INDEX, min_size=1, max_size=4))
    def deliver_held(self, order: list[int]) -> None:
        """It is online again: what it held back comes in any order."""
        SEEN["deliver held"] += 1
        taken = [self.held.pop(index % len(self.held)) for index in order if self.held]
        self.post(*[[beacon] for beacon in taken])

    @rule(index=INDEX)
    def repeat(self, index: int) -> None:
        """A beacon whose answer was lost."""
        SEEN["repeat"] += 1
        self.post([self.sent[index % len(self.sent)]])

    @rule(index=INDEX, order=st.randoms(use_true_random=False), form=INDEX)
    def split(self, index: int, order: Any, form: int) -> None:
        """The items of one beacon, held back or sent before, each in a beacon of its own."""
        SEEN["split"] += 1
        beacon = self.take(index)
        parts = [make_beacon(beacon, [item], form) for item in beacon.items]
        order.shuffle(parts)
        self.post(*[[part] for part in parts])

    @rule(index=INDEX, form=INDEX)
    def join(self, index: int, form: int) -> None:
        """Beacons of one sender, held back or sent before, as one."""
        first = self.take(index)
        joined = list(first.items)
        sender = (first.path, first.user_agent, first.address)
        alike = [one for one in self.held + self.sent if (one.path, one.user_agent, one.address) == sender]
        for other in alike:
            more = [*joined, *other.items]
            if len(more) <= 100 and len(dump(more)) < BODY_MAX:
                joined = more
                if other in self.held:
                    self.held.remove(other)
        SEEN["join"] += len(joined) > len(first.items)
        self.post([make_beacon(first, joined, form)])

    def take(self, index: int) -> Beacon:
        """A beacon that is held back, and then no longer, or one that was sent."""
        place = index % (len(self.held) + len(self.sent))
        return self.held.pop(place) if place < len(self.held) else self.sent[place - len(self.held)]

    @rule(first=SETS, second=SETS, form=INDEX, again=INDEX)
    def at_once(self, first: list[Delivery], second: list[Delivery], form: int, again: int) -> None:
        """Several clients at the same time, one of them with something that was sent before."""
        SEEN["at once"] += 1
        self.post([*arrange(first, form), self.sent[again % len(self.sent)], *arrange(second, form // 2)])

    # ---- time

    @rule(by=JUMPS, back=st.booleans())
    def jump(self, by: int, back: bool) -> None:
        """The server's clock goes on, or is set back."""
        SEEN["jump"] += 1
        self.now += -by if back else by

    # ---- erasures

    @rule(index=INDEX)
    def forget(self, index: int) -> None:
        """A visitor has itself erased: one that facts name, nobody, or the last one again."""
        SEEN["forget"] += 1
        named = {fact.content["anonymousId"] for fact in self.reference.facts.values()} - {None}
        known = [*sorted(named), "nobody", *self.forgotten[-1:]]
        visitor = known[index % len(known)]
        self.forgotten.append(visitor)
        held = self.reference.facts.items()
        naming = {identity for identity, fact in held if fact.content["anonymousId"] == visitor}
        deleted = self.reference.forget(visitor)
        SEEN["forget held"] += deleted["sessions"] > 0
        SEEN["loosened"] += not naming.isdisjoint(self.reference.facts)
        self.check_forgotten(around.run(self.app.forget(visitor)), deleted)

    def check_forgotten(self, answer: Answered, deleted: Object) -> None:
        """The answer says what went."""
        assert (answer.status, json.loads(answer.body)) == (200, {"success": True, "deleted": deleted})
        self.touched = True

    # ---- documents

    @rule()
    def export(self) -> None:
        """A copy is kept, to be imported later."""
        self.copies.append(self.app.export())

    @precondition(lambda self: self.copies)
    @rule(index=INDEX, mask=MASK, command=st.booleans(), backwards=st.booleans())
    def import_own(self, index: int, mask: int, command: bool, backwards: bool) -> None:
        """Some lines of an earlier export of this sidecar come back."""
        SEEN["import own"] += 1
        self.take_lines(self.copies[index % len(self.copies)], mask, command, backwards)

    @rule(
        sent=SETS,
        form=INDEX,
        erased=st.one_of(st.none(), VISITORS),
        mask=MASK,
        command=st.booleans(),
        backwards=st.booleans(),
        ahead=st.sampled_from([0, 1, -1, HOUR, -HOUR]),
    )
    def import_other(
        self, sent: list[Delivery], form: int, erased: str | None, mask: int, command: bool, backwards: bool, ahead: int
    ) -> None:
        """Some lines of another sidecar of the same site come in; it had some of the same beacons, by its own clock."""
        SEEN["import other"] += 1
        if self.neighbour is None:
            path = around.new_path()
            around.empty.put(path)
            self.neighbour = LocalSidecar(path, self.now)
        self.neighbour.now = self.now + ahead
        for beacon in [*arrange(sent, form), *self.sent[form % len(self.sent) :][:3]]:
            self.neighbour.send(beacon.path, beacon.body, beacon.user_agent, beacon.address)
        if erased is not None:
            with immediate(self.neighbour.conn):
                forget(self.neighbour.conn, "default", erased, self.neighbour.now)
        self.take_lines(self.neighbour.export(), mask, command, backwards)

    def take_lines(self, whole: list[str], mask: int, command: bool, backwards: bool) -> None:
        """Import the lines that the bits of `mask` choose, or receive them."""
        lines = [line for place, line in enumerate(whole) if mask >> place % 10 & 1]
        lines = lines[::-1] if backwards else lines
        if not lines:
            return
        expected = self.reference.receive(lines)
        if command:
            assert self.app.merge(lines) == expected
            SEEN["import command"] += 1
        else:
            check_batch(around.run(self.app.receive(lines, f"key-{next(_numbers)}")), expected)
            SEEN["received"] += 1
        SEEN["import tombstone"] += any('"type":"tombstone"' in line for line in lines)
        SEEN["refused document"] += expected.count("erased")
        self.touched = True

    # ---- ends

    @rule()
    def restart(self) -> None:
        """Ended in order, and started again."""
        SEEN["restart"] += 1
        around.run(self.app.stop(keep=True))
        self.reopen(self.app.path)

    @rule(
        sets=st.lists(SETS, max_size=2),
        form=INDEX,
        visitor=st.one_of(st.none(), VISITORS),
        moment=INDEX,
        share=st.sampled_from([0.0, 0.3, 0.9, 0.999, 1.0]),
    )
    def kill(self, sets: list[list[Delivery]], form: int, visitor: str | None, moment: int, share: float) -> None:
        """Killed at any moment while requests are in flight: all that was answered before is there.

        Each of the requests in flight (beacons at once, then an erasure) is there as a whole or not at all, in their
        order. Their answers are lost, so their browsers send them again.
        """
        groups = [arrange(sent, form) for sent in sets]
        films = [take_picture(self.app.path)]
        self.app.writer.film = films
        possible = [self.reference]
        for group in groups:
            around.run(_post(self.app, group))
            possible.append(possible[-1].fork())
            for beacon in group:
                possible[-1].send(beacon)
        if visitor is not None:
            around.run(self.app.forget(visitor))
            possible.append(possible[-1].fork())
            possible[-1].forget(visitor)
        self.app.writer.film = None
        place = moment % len(films)
        left = torn(films[place - 1], films[place], share) if place else films[0]
        path = around.new_path()
        left.put(path)
        around.run(self.app.stop())
        self.reopen(path)

        found = [comparable(line) for line in self.app.export()]
        match = [one for one in possible if one.lines() == found]
        assert match, first_difference(found, possible[0].lines())
        SEEN["kill"] += 1
        SEEN["kill torn"] += place > 0 and left not in films
        if len(possible) > 1 and possible[0].lines() != possible[-1].lines():
            SEEN["kill in flight"] += 1
            SEEN["kill took none"] += match[-1] is possible[0]
            SEEN["kill took all"] += match[-1] is possible[-1]
        self.reference = match[-1]
        self.post(*groups)
        if visitor is not None:
            deleted = self.reference.forget(visitor)
            self.check_forgotten(around.run(self.app.forget(visitor)), deleted)
        self.touched = True

    def reopen(self, path: Path) -> None:
        """The application on the file at `path`."""
        self.app = App(path, lambda: self.now)
        around.run(self.app.start())

    # ---- what always holds

    @invariant()
    def check(self) -> None:
        """`verify` is clean, and the export is the reference's."""
        if not self.touched:
            return
        self.touched = False
        assert self.app.findings() == []
        expected = self.reference.lines()
        found = [comparable(line) for line in self.app.export()]
        assert first_difference(found, expected) == ""
        SEEN["skewed"] += any('"clockSkewed":true' in line for line in found)

    def teardown(self) -> None:
        """All that was held back comes in, and the export is the reference's."""
        try:
            self.post(*[[beacon] for beacon in self.held])
            self.check()
        finally:
            around.run(self.app.stop())
            if self.neighbour is not None:
                self.neighbour.conn.close()


async def _post(app: App, group: list[Beacon]) -> list[Answered]:
    return await asyncio.gather(*[app.send(beacon) for beacon in group])


@pytest.fixture
def quiet() -> Iterator[None]:
    """No log line for each session and erasure."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.configure(**before)


@pytest.mark.timeout(max(600, 3 * EXAMPLES))
@pytest.mark.usefixtures("quiet")
def test_the_application_is_the_reference() -> None:
    """Any program of uses, kills, clocks, imports and erasures, step by step; and each of them did happen."""
    global around  # hypothesis makes the machines itself
    SEEN.clear()
    folder = str(MEMORY) if MEMORY.is_dir() else None
    with TemporaryDirectory(dir=folder) as name, event_loop() as loop:
        around = Surroundings(loop, Path(name))
        run_state_machine_as_test(
            SidecarMachine,
            settings=settings(
                max_examples=EXAMPLES,
                stateful_step_count=STEPS,
                deadline=None,
                report_multiple_bugs=False,
                suppress_health_check=list(HealthCheck),
            ),
        )
    print(dict(SEEN))  # with -s, what a long run was made of
    if EXAMPLES >= 300:
        assert [name for name in EXPECTED if not SEEN[name]] == []
