"""The soak: nothing is lost, nothing is doubled, while both ends are killed and the network between them fails.

    python tests/soak.py [--seconds 300] [--seed N] [--fault NAME] [--folder DIR]

Browsers send beacons (again, too, and late) to a sidecar that ships through a proxy to a second sidecar. The proxy
fails 5 % of the requests, loses 15 % of the answers, delays some, and old batches are sent again. Both sidecars are
killed by SIGKILL at random and started again. At the end the faults stop, everything is shipped, and both files are
compared, with each other and with what was acknowledged. `--fault` plants one in a copy of the program that both run:
then the soak must fail. `--folder` keeps files and logs. On a busy machine it goes on until enough has happened, for
three times as long or a minute and a half at most.

Exit 0: sound. 1: something was lost, doubled or unequal. 2: void, for too little happened, or wrong usage.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))  # it is run by its path, too

from tests.soak_browsers import Browsers, Identity, Report
from tests.soak_ends import FAULTS, End, Hand, Killer, Nursery, plant
from tests.soak_proxy import Replayer, Weather

TOKEN = "soak"
SECRET = "whsec_c29ha29ha29ha29ha29ha29ha29ha29h"
KILLS_A_SECOND = 0.1  # 30 in five minutes, of each end
LONGER, LONGER_S = 3, 90  # a busy machine may take so many times as long, or so many seconds, until enough has happened
SHORT_S = 60
LAST_REPLAYS = 60
FLUSH_MAX_S = 120.0
SHOWN_MAX = 5


def missing(activity: dict[str, tuple[int, int]]) -> list[str]:
    """Of what there was too little."""
    return [name for name, (count, least) in activity.items() if count < least]


class Verdict(NamedTuple):
    """What was counted. `findings` must all be 0; each of `activity` at least what stands beside it, or it is void."""

    findings: dict[str, int]
    activity: dict[str, tuple[int, int]]
    notes: dict[str, str]
    shown: list[str]

    @property
    def code(self) -> int:
        """The exit status."""
        if any(self.findings.values()):
            return 1
        return 2 if missing(self.activity) else 0

    def table(self) -> str:
        """All of it, as Markdown, and one line that says what it means."""
        rows = [(name, f"{count:,}", "0") for name, count in self.findings.items()]
        rows += [(name, f"{count:,}", f"at least {least}") for name, (count, least) in self.activity.items()]
        rows += [(name, text, "") for name, text in self.notes.items()]
        lines = ["| what | counted | must be |", "| --- | ---: | --- |"]
        lines += [f"| {' | '.join(row)} |" for row in rows]
        said = {
            0: "sound: nothing was lost, doubled or unequal",
            1: "FAILED: " + ", ".join(name for name, count in self.findings.items() if count),
            2: "VOID: too little of " + ", ".join(missing(self.activity)),
        }
        return "\n".join([*lines, *self.shown, said[self.code]])


class Soak:
    """Both ends, the weather between them, and the browsers."""

    def __init__(self, nursery: Nursery, seed: int, seconds: float) -> None:
        dice = [random.Random(f"{seed}-{number}") for number in range(6)]
        self.over = threading.Event()
        self.crashes: list[str] = []
        self.receiver = End("receiver", nursery, RECEIVE_TOKEN=TOKEN, RECEIVE_SECRET=SECRET)
        self.weather = Weather(self.receiver.port, dice[0], errors=4 if seconds < SHORT_S else 1)
        self.sender = End(
            *("sender", nursery),
            UPSTREAM_URL=self.weather.proxy.url,
            UPSTREAM_TOKEN=TOKEN,
            UPSTREAM_SECRET=SECRET,
            SHIP_INTERVAL="0.2",
            SHIP_BATCH_SIZE="5",
        )
        self.browsers = Browsers(self.sender.url, dice[1])
        self.hand = Hand(self.sender, dice[2], self.over)
        self.killers = [Killer(self.sender, dice[3], self.over), Killer(self.receiver, dice[4], self.over)]
        self.replayer = Replayer(self.weather, dice[5], self.over)
        self.began = time.monotonic()

    def run(self, seconds: float) -> Verdict:
        """All of it. Raises RuntimeError or TimeoutError where an end does not start or nothing goes on."""
        threading.excepthook = self._note_crash
        with self.weather.proxy:
            try:
                self.receiver.start()
                self.sender.start()
                self._storm(seconds)
                self.browsers.finish(FLUSH_MAX_S)
                self.weather.stop()
                self._flush()
                for _ in range(LAST_REPLAYS):
                    self.weather.replay()
            finally:
                self.over.set()
                self.sender.stop()
                self.receiver.stop()
                self.weather.close()
        return self._judge(seconds)

    def _note_crash(self, crash: threading.ExceptHookArgs) -> None:
        name = crash.thread.name if crash.thread else "a thread"
        self.crashes.append(f"{name}: {crash.exc_type.__name__}: {crash.exc_value}")

    def _storm(self, seconds: float) -> None:
        threads: Sequence[threading.Thread] = [*self.killers, self.hand, self.replayer]
        for thread in threads:
            thread.start()
        self.browsers.start()
        begun = time.monotonic()
        while (gone := time.monotonic() - begun) < max(seconds * LONGER, LONGER_S) and not self.crashes:
            if gone >= seconds and not missing(self._activity(seconds)):
                break
            time.sleep(0.2)
        self.over.set()
        for thread in threads:
            thread.join(120)

    def _flush(self) -> None:
        """Ship until nothing waits."""
        deadline = time.monotonic() + FLUSH_MAX_S
        while time.monotonic() < deadline:
            self.sender.command("ship", "--all")
            told = self.sender.shipping()
            waiting = told["waitingSessions"] + told["unfinishedSessions"] + told["waitingTombstones"]
            if not waiting and told["state"] == "ready":
                return
            time.sleep(0.5)
        raise TimeoutError(f"not shipped within {FLUSH_MAX_S:.0f} s: {told}")

    def _activity(self, seconds: float) -> dict[str, tuple[int, int]]:
        """What has happened so far, and how much of it there must be."""
        counts, outcomes = self.weather.counts, self.browsers.outcomes
        least = max(1, int(seconds * KILLS_A_SECOND))
        return {
            "kills of the sender": (self.sender.kills, least),
            "kills of the receiver": (self.receiver.kills, least),
            "retries": (counts["retries"], 1),
            "duplicates seen upstream": (counts["duplicates seen"], 1),
            "duplicates seen in beacons": (outcomes["duplicate"] + outcomes["superseded"], 1),
            "halves of a split": (counts["halves of a split"], 1),
            "reopened sessions": (self.weather.reopened, 1),
            "replays": (counts["replays"], 1),
            "replays under another id": (counts["replays under another id"], 1),
            "answers lost": (counts["answers lost"], 1),
            "damaged bodies refused": (counts["damaged bodies refused"], 1 if seconds < SHORT_S else 2),
            "sessions looked at upstream": (counts["sessions looked at upstream"], 1),
            "errors": (sum(self.weather.errors.values()), 1),
            "beacons without an answer": (outcomes["no answer"], 1),
            "`sidecar ship` by hand": (self.hand.passes, 1),
        }

    def _judge(self, seconds: float) -> Verdict:
        ours, theirs = self.sender.export(), self.receiver.export()
        counts, outcomes, erased = self.weather.counts, self.browsers.outcomes, self.browsers.erased
        held, doubled = reports_of(ours)
        lost = [one for one, report in self.browsers.acknowledged.items() if is_lost(one, report, held, erased)]
        apart = unequal(ours, theirs)
        found_here, found_there = self.sender.findings(), self.receiver.findings()
        invented = held.keys() - self.browsers.acknowledged.keys()
        kept = {one[0] for one in held} & erased
        odd = [*self.crashes, *self.hand.crashes, *self.weather.unexpected, *self.browsers.unexpected]
        not_held = [f"{session} {revision}" for session, revision in self.weather.not_held if session not in erased]
        findings = {
            "acknowledged items lost": len(lost),
            "upstream unequal": len(apart),
            "answered 200 and not held": len(not_held),
            "applied twice": counts["applied twice"] + doubled + reports_of(theirs)[1] + len(invented),
            "erased sessions kept": len(kept),
            "differences found by verify": len(found_here) + len(found_there),
            "answers and ends that nothing explains": len(odd),
        }
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(self.weather.errors.items()))
        notes = {
            "errors by kind": kinds,
            "requests upstream": f"{counts['requests']:,}",
            "items acknowledged": f"{sum(outcomes[name] for name in ('accepted', 'duplicate', 'superseded')):,}",
            "sessions, facts, erased visitors": f"{sum('sessionId' in one for one in ours):,}, {len(held):,}, "
            f"{outcomes['erasures']}",
            "`sidecar ship` killed": f"{self.hand.killed}",
            "exceptions in the logs of sender, receiver": f"{self.sender.tracebacks()}, {self.receiver.tracebacks()}",
            "seconds": f"{time.monotonic() - self.began:.0f}",
        }
        shown = [f"lost: {one}" for one in lost[:SHOWN_MAX]] + [f"unequal: {one}" for one in apart[:SHOWN_MAX]]
        shown += [f"not held: {one}" for one in not_held[:SHOWN_MAX]]
        shown += [f"verify: {one}" for one in (found_here + found_there)[:SHOWN_MAX]]
        shown += [f"not acknowledged: {one}" for one in sorted(invented)[:SHOWN_MAX]]
        return Verdict(
            findings, self._activity(seconds), notes, shown + [f"odd: {one[-600:]}" for one in odd[:SHOWN_MAX]]
        )


def reports_of(lines: Iterable[dict[str, Any]]) -> tuple[dict[Identity, tuple[str, int, float]], int]:
    """The facts of an export, by identity: time, seq, value; and how many facts stand in it more than once."""
    held: dict[Identity, tuple[str, int, float]] = {}
    doubled = 0
    for document in lines:
        found: list[tuple[Identity, tuple[str, int, float]]] = []
        for vital in document.get("webVitals", ()):
            identity = (document["sessionId"], vital["metric"], vital["id"])
            found.append((identity, (vital["timestamp"], vital["seq"], float(vital["value"]))))
        found += [
            ((document["sessionId"], "", event["eventId"]), (event["timestamp"], 0, 0.0))
            for event in document.get("events", ())
        ]
        doubled += sum(identity in held for identity, _ in found)
        held.update(found)
    return held, doubled


def is_lost(identity: Identity, report: Report, held: dict[Identity, tuple[str, int, float]], erased: set[str]) -> bool:
    """Whether the greatest acknowledged report of a fact is not what is held of it; nothing of an erased session is."""
    if identity[0] in erased:
        return False
    text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(report.timestamp // 1000)) + f".{report.timestamp % 1000:03}Z"
    return held.get(identity) != (text, report.seq, report.value)


def unequal(ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]]) -> list[str]:
    """Lines of two exports that are not the same on both sides: which, and in which of their fields."""

    def by_name(lines: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
        names = Counter(_name(line) for line in lines)
        assert set(names.values()) <= {1}, "two lines of one session"
        return {_name(line): line for line in lines}

    here, there = by_name(ours), by_name(theirs)
    found = []
    for name in sorted(here.keys() | there.keys()):
        mine, other = here.get(name), there.get(name)
        if mine is None or other is None:
            found.append(f"{name} is {'upstream' if mine is None else 'here'} only")
        elif mine != other:
            found.append(f"{name} in {', '.join(field for field in mine if mine[field] != other.get(field))}")
    return found


def _name(line: dict[str, Any]) -> str:
    if line["type"] == "tombstone":
        return f"the tombstone {line['visitorHash']}"
    return f"{line['site']} {line['funnelId']} {line['sessionId']}"


def main(given: Sequence[str] | None = None) -> int:
    """Run it and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--fault", choices=sorted(FAULTS))
    parser.add_argument("--folder", type=Path)
    said = parser.parse_args(given)
    with tempfile.TemporaryDirectory(prefix="soak-") as made:
        folder = Path(said.folder or made)
        folder.mkdir(parents=True, exist_ok=True)
        tree = plant(FAULTS[said.fault] if said.fault else None, folder / "tree")
        with closing(Nursery(tree, folder)) as nursery:
            verdict = Soak(nursery, said.seed, said.seconds).run(said.seconds)
    planted = f" with the fault `{said.fault}`" if said.fault else ""
    print(f"{said.seconds:g} s, seed {said.seed}{planted}\n{verdict.table()}")
    return verdict.code


if __name__ == "__main__":
    sys.exit(main())
