"""What the machines of `test_machine.py` and `test_machine_kill.py` stand on: a reference that knows erasures and
documents, the real application in this process, and files as a kill would leave them.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from copy import copy
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from sidecar import app as application
from sidecar.config import ReceiveToken, Settings
from sidecar.store.database import Connection, immediate, open_database, open_read_only, snapshot
from sidecar.store.lines import export_all, merge_lines
from sidecar.store.verify import verify
from sidecar.store.writer import Task, Writer
from tests.items import Beacon
from tests.local import TIMEOUT_MS, agent_of, dump, read
from tests.reference import Fact, Object, Reference, canonical, iso

NOW = 1_795_330_800_000  # 2026-11-22T07:00:00.000Z
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TOKEN = "a token of the machine"
KEPT = ("accepted", "duplicate", "superseded")


# --- the reference ---------------------------------------------------------------------------------------------------


def hash_of(*texts: str) -> str:
    """Contract 6: SHA-256 in hex of texts with zero bytes between."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def derived_id(item: Object) -> str:
    """The id that the product derives: how it does that is its own, that it is stable is tested elsewhere."""
    [fact] = read("events" if "eventName" in item else "web-vitals", dump(item), NOW)
    return "refused" if isinstance(fact, str) else fact.id


def without_names(value: Any, visitors: set[str]) -> Any:
    """A JSON value in which no key and no whole text is one of the visitors."""
    if isinstance(value, dict):
        return {key: without_names(each, visitors) for key, each in value.items() if key not in visitors}
    if isinstance(value, list):
        return [without_names(each, visitors) for each in value]
    return "" if isinstance(value, str) and value in visitors else value


def facts_of(document: Object) -> list[Fact]:
    """The facts of a session document of contract 6."""
    facts = []
    for said in [*document["webVitals"], *document["events"]]:
        client = None if said["client"] is None else document["clients"][said["client"]]
        time = (datetime.fromisoformat(said["timestamp"]) - EPOCH) // timedelta(milliseconds=1)
        name = said["id"] if "metric" in said else said["eventId"]
        owner = (document["funnelId"], document["sessionId"])
        facts.append(
            Fact(*owner, said.get("metric"), name, time, said["clockSkewed"], {**said, "client": client}),
        )
    return facts


class WholeReference(Reference):
    """The reference of one site with erasures and documents, step by step: `now_ms` is the time of what comes next.

    Where the contract is silent, this class decides:

     1. An erased visitor that is erased again changes nothing: `erasedAt` stays. Tombstones that come in merge: the
        later time, all sessions.
     2. A session is a visitor's own where its first naming fact names it. Erasing takes these sessions whole.
     3. What names an erased visitor in a session that stays loses `anonymousId`, all of `context.user`, `userId` and
        `traits` of an identification, and the id wherever it is a whole text or a key (but for UTM and click ids).
        The same in a document that comes in; one whose session is erased, or that is an erased visitor's own, is
        rejected.
     4. Of two reports with wrong clocks the newest wins where one comes in a document.
    """

    def __init__(self, now_ms: Callable[[], int]) -> None:
        super().__init__(now_ms=now_ms, derive_id=derived_id, read_user_agent=agent_of)
        self.tombstones: dict[str, tuple[frozenset[str], int]] = {}  # visitor hash -> session hashes, erased at

    def fork(self) -> WholeReference:
        """A copy that goes its own way. Facts are never changed, so that they can be shared."""
        twin = copy(self)
        twin.facts, twin.tombstones = dict(self.facts), dict(self.tombstones)
        return twin

    def send(self, beacon: Beacon) -> list[str]:
        """Contract 2.1, 2.2: one of accepted, duplicate, superseded, rejected, erased an item."""
        address = beacon.address
        private = ":".join(address.split(":")[:3]) + "::" if ":" in address else address.rsplit(".", 1)[0] + ".0"
        take = self.web_vitals if beacon.path == "web-vitals" else self.events
        return take(json.loads(dump(beacon.body)), user_agent_client=agent_of(beacon.user_agent), address=private)

    def _merge(self, new: Fact) -> str:
        if self.is_erased(new.funnel, new.session) or self._is_erased_visitor(new.content["anonymousId"]):
            return "erased"
        return super()._merge(new)

    # ---- erasing

    def _is_erased_visitor(self, visitor: str | None) -> bool:
        return visitor is not None and hash_of(self.site, visitor) in self.tombstones

    def is_erased(self, funnel: str, session: str) -> bool:
        """Whether a session has a tombstone."""
        wanted = hash_of(self.site, funnel, session)
        return any(wanted in sessions for sessions, _ in self.tombstones.values())

    def _sessions(self) -> dict[tuple[str, str], list[Fact]]:
        sessions: dict[tuple[str, str], list[Fact]] = {}
        for fact in sorted(self.facts.values(), key=lambda fact: fact.place_in_session):
            sessions.setdefault((fact.funnel, fact.session), []).append(fact)
        return sessions

    def forget(self, visitor: str) -> Object:
        """Contract 2.4: `deleted` of the answer."""
        before = list(self.facts.values())
        known = any(fact.content["anonymousId"] == visitor for fact in before)
        own = self._erase({visitor}, set())
        if known or not self._is_erased_visitor(visitor):
            self._bury(hash_of(self.site, visitor), own.get(visitor, frozenset()), self.now_ms())
        gone = len(before) - len(self.facts)
        vitals = len([fact for fact in before if fact.metric is not None])
        vitals -= len([fact for fact in self.facts.values() if fact.metric is not None])
        return {"sessions": len(own.get(visitor, ())), "webVitals": vitals, "events": gone - vitals}

    def _erase(self, visitors: set[str], chosen: set[str]) -> dict[str | None, frozenset[str]]:
        """Erase visitors, and sessions by hash; hashes of the sessions that went, by visitor."""
        gone: dict[str | None, frozenset[str]] = {}
        kept: list[Fact] = []
        for owner, facts in self._sessions().items():
            visitor = next((fact.content["anonymousId"] for fact in facts if fact.content["anonymousId"]), None)
            name = hash_of(self.site, *owner)
            if visitor in visitors or name in chosen:
                gone[visitor] = gone.get(visitor, frozenset()) | {name}
            else:
                kept += [loosened(fact, visitors) for fact in facts]
        self.facts = {fact.identity: fact for fact in kept}
        return gone

    def _bury(self, visitor_hash: str, sessions: frozenset[str], erased_at: int) -> bool:
        held = self.tombstones.get(visitor_hash, (frozenset(), erased_at))
        merged = (held[0] | sessions, max(held[1], erased_at))
        changed = self.tombstones.get(visitor_hash) != merged
        self.tombstones[visitor_hash] = merged
        return changed

    # ---- lines

    def receive(self, lines: Sequence[str]) -> list[str]:
        """Import or receive lines of an export: one of accepted, duplicate, superseded, erased a line."""
        answers: list[str] = []
        tombstones: list[Object] = []
        for line in [*map(json.loads, lines), None]:
            if line is not None and line["type"] == "tombstone":
                tombstones.append(line)
                continue
            answers += self._receive_tombstones(tombstones)
            tombstones = []
            if line is not None:
                answers.append(self._receive_document(line))
        return answers

    def _receive_tombstones(self, lines: list[Object]) -> list[str]:
        """Tombstones that come one after the other erase together."""
        wanted = {line["visitorHash"] for line in lines}
        said = {fact.content["anonymousId"] for fact in self.facts.values()} - {None}
        names = {hash_of(self.site, visitor): visitor for visitor in said}
        chosen = {name for line in lines for name in line["sessionHashes"]}
        gone = self._erase({names[each] for each in wanted if each in names}, chosen)
        answers = []
        for line in lines:
            own = gone.get(names.get(line["visitorHash"], ""), frozenset())
            at = (datetime.fromisoformat(line["erasedAt"]) - EPOCH) // timedelta(milliseconds=1)
            changed = self._bury(line["visitorHash"], own | set(line["sessionHashes"]), at)
            answers.append("accepted" if changed else "duplicate")
        return answers

    def _receive_document(self, document: Object) -> str:
        owner = (document["funnelId"], document["sessionId"])
        facts = sorted(facts_of(document), key=lambda fact: fact.place_in_session)
        named = [fact.content["anonymousId"] for fact in facts if fact.content["anonymousId"]]
        if self.is_erased(*owner) or (named and self._is_erased_visitor(named[0])):
            return "erased"
        erased = {visitor for visitor in named if self._is_erased_visitor(visitor)}
        answers = [self._merge_of_document(loosened(fact, erased)) for fact in facts]
        if "accepted" in answers:
            return "accepted"
        held = [fact for fact in self.facts.values() if (fact.funnel, fact.session) == owner]
        return "duplicate" if set(answers) == {"duplicate"} and len(held) == len(facts) else "superseded"

    def _merge_of_document(self, new: Fact) -> str:
        held = self.facts.get(new.identity)
        if held is not None and canonical(held.content) == canonical(new.content):
            return "duplicate"
        if held is not None and new.rank < held.rank:
            return "superseded"
        self.facts[new.identity] = new
        return "accepted"

    def lines(self) -> list[str]:
        """The lines of a whole export, with `revision` 0 and `finished` false."""
        documents = self.export()
        for visitor_hash, (sessions, erased_at) in sorted(self.tombstones.items()):
            documents.append(
                {
                    "type": "tombstone",
                    "version": 1,
                    "site": self.site,
                    "visitorHash": visitor_hash,
                    "sessionHashes": sorted(sessions),
                    "erasedAt": iso(erased_at),
                }
            )
        return [to_line(document) for document in documents]


def loosened(fact: Fact, visitors: set[str]) -> Fact:
    """A fact without the names of erased visitors (reading 3 of `WholeReference`)."""
    if fact.content["anonymousId"] not in visitors:
        return fact
    content = {**fact.content, "anonymousId": None}
    if fact.metric is None:
        said = content["context"] or {}
        kept = {key: said[key] if key in ("utm", "clickIds") else without_names(said[key], visitors) for key in said}
        kept.pop("user", None)
        content["context"] = kept or None
        properties = content["properties"]
        if properties is not None and content["eventName"] == "user_identified":
            properties = {key: properties[key] for key in properties if key not in ("userId", "traits")}
        content["properties"] = without_names(properties, visitors)
    return Fact(fact.funnel, fact.session, fact.metric, fact.id, fact.time, fact.skewed, content)


def to_line(document: Object) -> str:
    """A document as the export writes it."""
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False)


def comparable(line: str) -> str:
    """A line of an export with `revision` 0 and `finished` false: what the law speaks of."""
    document = json.loads(line)
    return to_line(document | {"revision": 0, "finished": False} if document["type"] == "session" else document)


def first_difference(ours: Sequence[str], theirs: Sequence[str]) -> str:
    """Where two exports differ; empty where they are the same bytes."""
    if len(ours) != len(theirs):
        return f"{len(ours)} lines, {len(theirs)} in the other:\n" + "\n".join([*ours, "and", *theirs])
    for one, other in zip(ours, theirs, strict=True):
        said, expected = json.loads(one), json.loads(other)
        for key in said:
            if to_line(said[key]) != to_line(expected.get(key)):
                return f"{said.get('sessionId')} {key}: {to_line(said[key])}\nand {to_line(expected.get(key))}"
        if one != other:
            return f"{one}\nand {other}"
    return ""


def check_answer(status: int, body: bytes, outcomes: list[str]) -> None:
    """Contract 2.3: what a beacon is answered, by what became of its items."""
    answer = json.loads(body)
    refused = [(index, one == "erased") for index, one in enumerate(outcomes) if one not in KEPT]
    if len(refused) < len(outcomes):
        assert status == 200, (status, answer, outcomes)
        assert {name: answer[name] for name in KEPT} == {name: outcomes.count(name) for name in KEPT}
    elif set(outcomes) == {"erased"}:
        assert (status, answer) == (202, {"success": True, "stored": False, "reason": "erased"})
        return
    else:
        assert status == 422, (status, answer, outcomes)
    assert [(one["index"], one["reason"] == "erased") for one in answer["rejected"]] == refused


# --- the application -------------------------------------------------------------------------------------------------


class Picture(NamedTuple):
    """The bytes of a database file and of its WAL at one moment."""

    database: bytes
    wal: bytes

    def put(self, path: Path) -> None:
        """Make a database at `path` of it; without the -shm file, which is memory."""
        path.write_bytes(self.database)
        Path(f"{path}-wal").write_bytes(self.wal)


def take_picture(path: Path) -> Picture:
    """The bytes at `path` as they stand. In the writer's thread: nobody writes meanwhile."""
    wal = Path(f"{path}-wal")
    return Picture(path.read_bytes(), wal.read_bytes() if wal.exists() else b"")


def torn(before: Picture, after: Picture, share: float) -> Picture:
    """What a kill between two pictures could leave: SQLite appends to the WAL, or copies the WAL into the file."""
    if before.database == after.database:
        if not after.wal.startswith(before.wal):
            return before
        return after._replace(wal=after.wal[: len(before.wal) + int((len(after.wal) - len(before.wal)) * share)])
    copied = int(len(after.database) * share)
    return Picture(after.database[:copied] + before.database[copied:], before.wal)


class FilmedWriter(Writer):
    """A writer that can be filmed: a picture after each COMMIT, before it is answered, and after each chore."""

    def __init__(self, conn: Connection, path: Path) -> None:
        super().__init__(conn)
        self._path = path
        self.film: list[Picture] | None = None

    def _look(self) -> None:
        if self.film is not None:
            self.film.append(take_picture(self._path))

    def _transaction(self, group: list[Task]) -> list[Any]:
        results = super()._transaction(group)
        self._look()
        return results

    def maintain(self, function: Callable[[Connection], Any]) -> Any:
        """As it is, and then a picture."""

        def work(conn: Connection) -> Any:
            result = function(conn)
            self._look()
            return result

        return super().maintain(work)


class Answered(NamedTuple):
    """An HTTP answer."""

    status: int
    body: bytes


class App:
    """The real application on one file, its lifespan open. `clock` gives ms since the epoch."""

    def __init__(self, path: Path, clock: Callable[[], int]) -> None:
        self.path = path
        self._clock = clock
        self._said: asyncio.Queue[str] = asyncio.Queue()
        self._ended = asyncio.Event()

    async def start(self) -> None:
        """Build it, and open its lifespan."""

        def make_writer(conn: Connection) -> FilmedWriter:
            self.writer = FilmedWriter(conn, self.path)
            return self.writer

        settings = Settings(database=self.path, durability="normal", receive_token=(ReceiveToken(token=TOKEN),))
        with patch.multiple(application, now_ms=self._clock, Writer=make_writer):
            self._app = application.build(settings)
            ready = asyncio.Event()

            async def receive() -> Object:
                if not ready.is_set():
                    return {"type": "lifespan.startup"}
                await self._ended.wait()
                return {"type": "lifespan.shutdown"}

            async def send(message: Any) -> None:
                assert message["type"] in ("lifespan.startup.complete", "lifespan.shutdown.complete"), message
                ready.set()

            async def live() -> None:
                await self._app({"type": "lifespan"}, receive, send)

            self._lifespan = asyncio.create_task(live())
            await ready.wait()
        self.reader = open_read_only(self.path)

    async def stop(self, *, keep: bool = False) -> None:
        """Close it in order, and delete its files where they are not to be kept."""
        self.reader.close()
        self._ended.set()
        await self._lifespan
        for left in () if keep else self.path.parent.glob(f"{self.path.name}*"):
            left.unlink()

    async def post(self, path: str, body: bytes, address: str = "127.0.0.1", **headers: str) -> Answered:
        """One request; `_` stands for `-` in names of headers."""
        said = {name.replace("_", "-").lower(): value for name, value in headers.items()}
        said |= {"host": "127.0.0.1:8787", "content-length": str(len(body))}
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": [(name.encode(), value.encode()) for name, value in said.items()],
            "client": (address, 40_000),
            "server": ("127.0.0.1", 8787),
        }
        messages: list[Any] = []

        async def receive() -> Object:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            messages.append(message)

        await self._app(scope, receive, send)
        content = b"".join(message.get("body", b"") for message in messages[1:])
        return Answered(messages[0]["status"], content)

    async def send(self, beacon: Beacon) -> Answered:
        """One beacon, as `fetch` or as `sendBeacon` would send it."""
        form = "text/plain;charset=UTF-8" if beacon.path == "web-vitals" else "application/json"
        kind = {"Content_Type": form, "User_Agent": beacon.user_agent}
        return await self.post(f"/api/track/{beacon.path}", dump(beacon.body), beacon.address, **kind)

    async def forget(self, visitor: str) -> Answered:
        """Erase a visitor. What the server does after its answer (writing the file anew) is done, too."""
        answer = await self.post("/api/track/delete", dump({"anonymousId": visitor}), User_Agent="x")
        for _ in range(4):  # each turn comes after one more chore of the server
            await asyncio.wrap_future(self.writer.maintain(lambda _: None))
        return answer

    async def receive(self, lines: Sequence[str], key: str) -> Answered:
        """A batch of lines, as another sidecar ships it."""
        return await self.post("/api/sessions", pack(lines), **headers_of(lines, key))

    def merge(self, lines: Sequence[str]) -> list[str]:
        """What `sidecar import` does beside the server; an outcome a line, `erased` where that is the reason."""
        with closing(open_database(self.path, durability="normal")) as conn, immediate(conn):
            results = merge_lines(conn, [line.encode() for line in lines], self._clock())
        return [result.reason or str(result.outcome) for result in results]

    def findings(self) -> list[str]:
        """What `sidecar verify` finds."""
        with snapshot(self.reader):
            return [str(difference) for difference in verify(self.reader, lambda: None)]

    def export(self) -> list[str]:
        """The lines of `sidecar export`."""
        with snapshot(self.reader):
            return list(export_all(self.reader, self._clock(), TIMEOUT_MS))


def pack(lines: Sequence[str]) -> bytes:
    """The body of a batch."""
    return gzip.compress("".join(f"{line}\n" for line in lines).encode(), compresslevel=1, mtime=0)


def headers_of(lines: Sequence[str], key: str) -> dict[str, str]:
    """The headers of a batch, `_` for `-`."""
    digest = base64.b64encode(hashlib.sha256(pack(lines)).digest()).decode()
    return {
        "Authorization": f"Bearer {TOKEN}",
        "Content_Type": "application/x-ndjson",
        "Content_Encoding": "gzip",
        "Content_Digest": f"sha-256=:{digest}:",
        "X_Records": str(len(lines)),
        "Idempotency_Key": f'"{key}"',
    }


def check_batch(answer: Answered, outcomes: list[str]) -> None:
    """Contract 8: what a batch is answered, by what became of its lines."""
    said = json.loads(answer.body)
    assert answer.status == 200, said
    assert {name: said[name] for name in KEPT} == {name: outcomes.count(name) for name in KEPT}
    erased = [{"index": index, "reason": "erased"} for index, one in enumerate(outcomes) if one == "erased"]
    assert said["rejected"] == erased


@contextmanager
def event_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop for many short runs; what is left on it at the end is cancelled."""
    loop = asyncio.new_event_loop()
    try:
        yield loop
    finally:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.wait(left))
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
