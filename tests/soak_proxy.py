"""The weather between the two ends of the soak: errors, lost answers and delays, and old batches that come again."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import threading
import time
import uuid
from collections import Counter
from typing import Any

import httpx2

from tests.proxy import PASS, Fault, Passed, Proxy, http_answer

# Of 20 requests 1 error (in a short run 4, so that each kind comes up) and 3 lost answers, from a shuffled deck;
# a split that had to wait for a batch of enough lines is one more.
FATES = (*["lost"] * 3, *["passed"] * 16)
SLOW = 0.3
PAST_MAX = 300  # batches kept for replays
KINDS = ("damaged", "damaged", "422", "413", "reset", "503", "cut", "500")
SPLIT = {"422": 2, "413": 4}  # the least lines of a batch that gets such an answer


def lines_of(body: bytes) -> list[bytes]:
    """The lines of a batch."""
    return gzip.decompress(body).splitlines()


class Weather:
    """Decides what happens to each request, and writes down what both ends said. `stop` ends the faults."""

    def __init__(self, port: int, dice: random.Random, errors: int) -> None:
        self.proxy = Proxy(port)
        self.proxy.rule = self._rule
        self.counts: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.unexpected: list[str] = []
        self._dice = dice
        self._lock = threading.Lock()
        self._quiet = False
        self._all_fates = (*FATES, *["error"] * errors)
        self._fates: list[str] = []
        self._deck: list[str] = []
        self._splits: list[str] = []  # errors that wait for a batch of enough lines
        self._sent: dict[str, bytes] = {}  # batch id -> digest of its bytes, as it was sent first
        self._answered: dict[str, dict[str, Any]] = {}  # batch id -> what the receiver answered
        self._committed: set[bytes] = set()  # digests of lines that the receiver has taken
        self._revisions: dict[str, set[int]] = {}  # session -> revisions that the receiver has taken
        self._halves: set[bytes] = set()  # digests of the halves of what was refused
        self.not_held: list[tuple[str, int]] = []  # session and revision, answered 200 and not there then
        self._past: list[Passed] = []
        self._damaged: set[str] = set()  # batch ids
        self._replays, self._readings = (
            httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, verify=False) for _ in range(2)
        )

    def close(self) -> None:
        """Give up connections."""
        self._replays.close()
        self._readings.close()

    def stop(self) -> None:
        """No faults any more."""
        self._quiet = True

    @property
    def reopened(self) -> int:
        """Sessions that were taken in more than one revision."""
        return sum(len(revisions) > 1 for revisions in self._revisions.values())

    # --- on the way to the receiver ---

    def _rule(self, request: Passed) -> Fault:
        with self._lock:
            self.proxy.requests.clear()  # bounded there for tests, and kept here as far as needed
            self.counts["requests"] += 1
            lines = lines_of(request.body)
            digest = hashlib.sha256(request.body).digest()
            if request.key in self._sent:
                self.counts["retries"] += 1
                if self._sent[request.key] != digest:
                    self.unexpected.append(f"batch {request.key} was sent with other bytes")
            elif _digest_of(lines) in self._halves:
                self.counts["halves of a split"] += 1
            self._sent[request.key] = digest
            return self._choose(request, lines)

    def _choose(self, request: Passed, lines: list[bytes]) -> Fault:
        def note(answer: bytes) -> bytes:
            self._note_answer(request, lines, answer)
            return answer

        dice = self._dice
        passed = PASS._replace(edit_answer=note)
        if self._quiet:
            return passed
        if dice.random() < SLOW:
            pause_s = dice.uniform(0.05, 0.5)
            passed = passed._replace(delay_s=dice.uniform(0, 0.3), after=lambda: time.sleep(pause_s))
        split = next((kind for kind in self._splits if len(lines) >= SPLIT[kind]), None)
        if split is not None:
            self._splits.remove(split)
            return self._refuse(split, lines)
        if not self._fates:
            self._fates = dice.sample(self._all_fates, len(self._all_fates))
        fate = self._fates.pop()
        if fate == "error":
            return self._fail(passed, request.key, lines)
        if fate == "lost":

            def lose(answer: bytes) -> bytes:
                if self._note_answer(request, lines, answer) == 200:
                    self.counts["answers lost"] += 1
                return answer

            # nothing of the answer, its head only, or all but the end of its body
            return passed._replace(edit_answer=lose, answer_cut=dice.choice([0, 40, -5]))
        return passed

    def _fail(self, passed: Fault, key: str, lines: list[bytes]) -> Fault:
        """The next kind of error from a shuffled deck, so that each comes up."""
        if not self._deck:
            self._deck = list(KINDS) if not self.errors else self._dice.sample(KINDS, len(KINDS))
        kind = self._deck.pop(0)
        if len(lines) < SPLIT.get(kind, 0):
            self._splits.append(kind)  # a batch of one line would be parked, as it should: nobody would see it again
            kind = "503"
        if kind in SPLIT:
            return self._refuse(kind, lines)
        self.errors[kind] += 1
        match kind:
            case "503":
                return Fault(answer=http_answer(503, b"", "Retry-After: 1\r\n"))
            case "500":
                return Fault(answer=http_answer(500, b"<html>oops</html>"))
            case "damaged":
                self._damaged.add(key)
                place = self._dice.random()
                return passed._replace(edit_body=lambda body: _damage(body, place))
            case "cut":
                return Fault(body_cut=self._dice.randrange(1, 200))
            case _:
                return Fault(reset=True)

    def _refuse(self, kind: str, lines: list[bytes]) -> Fault:
        """A status that makes the sender halve its batch."""
        self.errors[kind] += 1
        middle = len(lines) // 2
        self._halves |= {_digest_of(lines[:middle]), _digest_of(lines[middle:])}
        return Fault(answer=http_answer(int(kind), b'{"error":"of the proxy"}'))

    # --- on the way back ---

    def _note_answer(self, request: Passed, lines: list[bytes], answer: bytes) -> int:
        """Judge what the receiver answered; its status, 0 where there was none."""
        if not answer:
            return 0
        head, _, body = answer.partition(b"\r\n\r\n")
        status = int(head.split(b" ", 2)[1])
        with self._lock:
            if status == 200:
                said = json.loads(body)
                rejected = {entry["index"] for entry in said.get("rejected", ())}
                self._note_taken(request.key, lines, said)
                self._keep(request)
            elif status == 408:
                self.counts["damaged bodies refused"] += 1
            elif status != 503:
                self.unexpected.append(f"the receiver answered {status} {body[:200].decode()}")
        if status == 200:
            self._look([line for index, line in enumerate(lines) if index not in rejected])
        return status

    def _look(self, lines: list[bytes]) -> None:
        """Whether the receiver holds what it has just taken: later a session may ship again, which heals a loss."""
        for document in map(json.loads, lines):
            if document["type"] != "session" or self._quiet:
                continue
            names = {"site": document["site"], "funnelId": document["funnelId"]}
            try:
                answer = self._readings.get(f"/api/sessions/{document['sessionId']}", params=names)
            except httpx2.TransportError:
                return  # killed meanwhile
            with self._lock:
                self.counts["sessions looked at upstream"] += 1
                if answer.status_code != 200 or answer.json()["revision"] < document["revision"]:
                    self.not_held.append((document["sessionId"], document["revision"]))

    def _note_taken(self, key: str, lines: list[bytes], said: dict[str, Any]) -> None:
        known = self._answered.setdefault(key, said)
        if known is not said:  # asked again: the stored answer
            self.counts["duplicates seen"] += 1
            self.counts["applied twice"] += said != known
            return
        digests = [hashlib.sha256(line).digest() for line in lines]
        # more than that: what was taken once is taken again, or it was answered then and not taken
        fresh = sum(digest not in self._committed for digest in digests)
        self.counts["applied twice"] += max(0, said.get("accepted", 0) - fresh)
        self.counts["duplicates seen"] += said.get("duplicate", 0) + said.get("superseded", 0)
        others = [entry for entry in said.get("rejected", ()) if entry["reason"] != "erased"]
        if others:
            self.unexpected.append(f"the receiver rejected {others}")
        self._committed.update(digests)
        for line in lines:
            document = json.loads(line)
            if document["type"] == "session":
                self._revisions.setdefault(document["sessionId"], set()).add(document["revision"])

    def _keep(self, request: Passed) -> None:
        if len(self._past) < PAST_MAX:
            self._past.append(request)
        else:
            self._past[self._dice.randrange(PAST_MAX)] = request

    # --- once more ---

    def replay(self) -> None:
        """Send an old batch to the receiver again, as it was, or under another id, as after its receipt ran out.

        Under another id a batch that was answered and never applied is applied after all, so half of them, and those
        that were damaged on their way, come again as they were only.
        """
        with self._lock:
            if not self._past:
                return
            request = self._dice.choice(self._past)
            as_new = request.key not in self._damaged and request.body[-8] % 2 == 0  # of the CRC
        headers = {name: value for name, value in request.headers.items() if name not in ("host", "connection")}
        if as_new:
            headers["idempotency-key"] = f'"{uuid.uuid4()}"'
        request = request._replace(headers=headers)
        try:
            answer = self._replays.post("/api/sessions", content=request.body, headers=headers)
        except httpx2.TransportError:
            return  # the receiver is down
        with self._lock:
            if answer.status_code == 200:
                self.counts["replays"] += 1
                self.counts["replays under another id"] += as_new
                self._note_taken(request.key, lines_of(request.body), answer.json())
            elif answer.status_code not in (408, 503):  # 408: its signature has aged
                self.unexpected.append(f"the receiver answered {answer.status_code} {answer.text[:200]} to a replay")


def _damage(body: bytes, place: float) -> bytes:
    at = int(place * len(body))
    return body[:at] + bytes([body[at] ^ 0x20]) + body[at + 1 :]


def _digest_of(lines: list[bytes]) -> bytes:
    return hashlib.sha256(b"\n".join(lines)).digest()


class Replayer(threading.Thread):
    """Sends old batches again, now and then."""

    def __init__(self, weather: Weather, dice: random.Random, over: threading.Event) -> None:
        super().__init__(name="replayer")
        self._weather = weather
        self._dice = dice
        self._over = over

    def run(self) -> None:
        """Until it is over."""
        while not self._over.wait(self._dice.uniform(0.2, 0.8)):
            self._weather.replay()
