"""Erasing a visitor: what goes, what stays in others' sessions, what is refused afterwards, and the file itself."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
from collections.abc import Iterator
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from sidecar.canonical import to_json
from sidecar.model import Client, EventFact, Fact, Outcome, Page
from sidecar.store import erasure, outbox, tombstones
from sidecar.store.database import (
    Connection,
    count_erasures,
    empty_wal,
    immediate,
    open_database,
    rewrite,
    snapshot,
)
from sidecar.store.erasure import Erased, forget
from sidecar.store.facts import Recording, record
from sidecar.store.lines import export_all, merge_lines
from sidecar.store.verify import verify
from tests.builders import START, event, page_of, vital

ALICE = "alice-6f1c2d3e"
BOB = "bob-77aa88bb"
NOW = START + 3_600_000
TIMEOUT_MS = 1_800_000
HOME = Client("mobile", "Safari", "18", "iOS", "18", 390, 844, ip_address="203.0.113.0")


@pytest.fixture
def conn(tmp_path: Path) -> Iterator[Connection]:
    with closing(open_database(tmp_path / "e.db", durability="normal")) as opened:
        yield opened


def store(conn: Connection, *facts: Fact, now: int = START) -> list[tuple[str, str | None]]:
    """Record facts as one beacon; outcome and reason of each."""
    with immediate(conn):
        [recorded] = record(conn, [Recording([*enumerate(facts)], now)])
    return [(str(judged.outcome), judged.reason) for judged in sorted(recorded.judged)]


def erase(conn: Connection, visitor: str = ALICE, now: int = NOW, site: str = "default") -> Erased:
    with immediate(conn):
        erased = forget(conn, site, visitor, now)
    assert empty_wal(conn)
    return erased


def export(conn: Connection) -> list[str]:
    with snapshot(conn):
        return list(export_all(conn, NOW, TIMEOUT_MS))


def read_in(conn: Connection, lines: list[str], now: int = NOW) -> list[str]:
    """Import lines; the outcome of each, or its reason."""
    with immediate(conn):
        results = merge_lines(conn, [line.encode() for line in lines], now)
    return [result.reason or str(result.outcome) for result in results]


def check(conn: Connection) -> None:
    """Everything derived is what the facts say, and the file is sound."""
    with snapshot(conn):
        assert [str(difference) for difference in verify(conn, lambda: None)] == []


def file_bytes(path: Path) -> bytes:
    """All of the database's files, read by another process: closing one here would give SQLite's locks away."""
    names = sorted(str(name) for name in path.parent.glob(f"{path.name}*"))
    return subprocess.run(["cat", *names], capture_output=True, check=True).stdout


def naming(fact: Fact, **user: str) -> Fact:
    """An event with the `user` of its context, as beacons bring it."""
    assert isinstance(fact, EventFact)
    return fact._replace(context=to_json({"user": user, "library": "x"}))


def fill(conn: Connection) -> None:
    """Alice with two sessions, Bob with one in which Alice is named, and somebody without a name."""
    store(
        conn,
        naming(event("s-alice-1", visitor=ALICE, page=page_of(f"/me?id={ALICE}"), client=HOME), anonymousId=ALICE),
        event("s-alice-1", "user_identified", at=5, properties={"userId": "u-1", "traits": {"name": "Alice"}}),
        vital("s-alice-1", "LCP", 1200, at=10, visitor=ALICE, client=HOME),
        vital("s-alice-2", "CLS", 0.1, at=20, visitor=ALICE, funnel_id="landing"),
        naming(event("s-bob", at=30, visitor=BOB), anonymousId=BOB, userId="u-2"),
        naming(event("s-bob", at=31, visitor=ALICE, properties={"by": ALICE}), anonymousId=ALICE, userId="u-1"),
        naming(
            event("s-bob", "user_identified", at=32, visitor=ALICE, properties={"userId": "u-1", "traits": {"a": 1}}),
            anonymousId=ALICE,
        ),
        vital("s-bob", "LCP", 900, at=33, visitor=ALICE),
        vital("s-nobody", "LCP", 800, at=40),
    )


def table(conn: Connection, sql: str) -> str:
    return "\n".join(" ".join(str(cell) for cell in row) for row in conn.execute(sql))


# --- what goes -------------------------------------------------------------------------------------------------------


def test_a_visitor_goes_with_all_that_is_its_own(conn: Connection, tmp_path: Path) -> None:
    """Sessions, facts, names, addresses and clients that nobody else has; and the bytes of the files."""
    fill(conn)
    held = file_bytes(tmp_path / "e.db")
    assert all(text in held for text in (b"alice", b"203.0.113.0", b"u-1"))
    assert erase(conn) == Erased(2, 2, 2)
    assert table(conn, "SELECT session_id FROM sessions ORDER BY 1") == "s-bob\ns-nobody"
    assert table(conn, "SELECT anonymous_id FROM visitors") == BOB
    assert table(conn, "SELECT anonymous_id FROM anonymous_ids") == BOB
    assert table(conn, "SELECT path FROM pages") == "/"
    assert table(conn, "SELECT browser_name FROM clients") == "Chrome"
    check(conn)
    left = file_bytes(tmp_path / "e.db")
    assert not [text for text in (b"alice", b"203.0.113.0", b"u-1", b"Alice") if text in left]
    assert b"s-bob" in left


def test_others_keep_their_facts_without_the_name(conn: Connection) -> None:
    """In Bob's session Alice's facts stay, and say nothing of her; it has a new revision, and Bob is as he was."""
    fill(conn)
    before = next(one for one in map(json.loads, export(conn)) if one["sessionId"] == "s-bob")
    erase(conn)
    after = json.loads(export(conn)[0])
    assert (after["sessionId"], after["revision"]) == ("s-bob", NOW)
    assert after["visitor"] == before["visitor"] | {"userId": None, "traits": None, "displayName": "Visitor #aa88bb"}
    told = [(one["eventName"], one["anonymousId"], one["context"], one["properties"]) for one in after["events"]]
    assert told == [
        ("page_view", BOB, {"library": "x", "user": {"anonymousId": BOB, "userId": "u-2"}}, None),
        ("page_view", None, {"library": "x"}, {"by": ""}),
        ("user_identified", None, {"library": "x"}, {}),
    ]
    assert [(one["metric"], one["anonymousId"]) for one in after["webVitals"]] == [("LCP", None)]
    facts = ("timestamp", "pageUrl", "client")
    assert [[one[key] for key in facts] for one in after["events"]] == [
        [one[key] for key in facts] for one in before["events"]
    ]


def test_a_context_may_name_whom_the_fact_does_not(conn: Connection) -> None:
    """As documents of others can: the name goes from there, too."""
    store(conn, naming(event("s", visitor=BOB), anonymousId=ALICE), event("own", visitor=ALICE))
    erase(conn)
    assert [one["context"] for one in json.loads(export(conn)[0])["events"]] == [{"library": "x"}]
    check(conn)


@pytest.mark.parametrize("sessions", [1, 9])
def test_others_may_hold_the_id_in_what_they_say(conn: Connection, tmp_path: Path, sessions: int) -> None:
    """As a whole text, value or key, anywhere in properties and context of facts that name somebody else or nobody.

    So do ids of the sessions that go; of many they are looked for in another way.
    """
    visitor, own = 'm\u00e4x "1"-5ae13c90b7d2', "session-77d0c4e1a9f3"
    said: dict[str, object] = {"invitedBy": visitor, "l": [visitor, {visitor: 1, "of": own}], "n": 1.5}
    store(conn, *(event(f"{own}{number or ''}", at=number, visitor=visitor) for number in range(sessions)))
    kept = event("s-bob", at=1, visitor=BOB, properties={"of": "session-somebody-else-1"})
    bought = event("s-bob", "purchase", at=2, visitor=BOB, properties=said | {"currency": visitor, "revenue": 2})
    known = event("s-carl", "user_identified", visitor="carl", properties={"userId": visitor, "traits": {"a": "b"}})
    assert isinstance(kept, EventFact)
    store(conn, kept._replace(context="{}"), bought, known)
    store(conn, event("s-nobody")._replace(context=to_json({"user": {"userId": "u"}, "by": {"x": visitor}})))
    with immediate(conn):
        outbox.set_destination(conn, "https://upstream.test/", NOW)
        draft = outbox.draft_batch(conn, lines_max=99, now=NOW, timeout_ms=TIMEOUT_MS)
        assert draft is not None
        assert outbox.claim(conn, draft, address="https://upstream.test/", batch_id="b", now=NOW)
    assert erase(conn, visitor) == Erased(sessions, 0, sessions)
    check(conn)
    bob, carl, nobody = (json.loads(line) for line in export(conn)[:3])
    assert bob["events"][0]["properties"] == {"of": "session-somebody-else-1"}
    assert bob["events"][0]["context"] == {}, "as it was"
    assert bob["events"][1]["properties"] == {
        "invitedBy": "", "l": ["", {"of": ""}], "n": 1.5, "currency": "", "revenue": 2
    }  # fmt: skip
    assert (bob["currency"], bob["conversionValue"], bob["revision"]) == (None, 2, NOW)
    assert (carl["visitor"]["userId"], carl["visitor"]["traits"]) == (None, {"a": "b"})
    assert nobody["events"][0]["context"] == {"user": {"userId": "u"}, "by": {"x": ""}}
    assert table(conn, "SELECT state FROM batches") == "dropped"
    rewrite(conn)
    assert empty_wal(conn)
    left = file_bytes(tmp_path / "e.db")
    assert not [text for text in ("5ae13c90b7d2", "77d0c4e1a9f3") if text.encode() in left]


def test_an_id_that_only_others_say(conn: Connection) -> None:
    """The visitor has no session and no fact of its own: it is blanked all the same."""
    store(conn, event("s-bob", visitor=BOB, properties={"by": ALICE}))
    assert erase(conn) == Erased(0, 0, 0)
    assert json.loads(export(conn)[0])["events"][0]["properties"] == {"by": ""}
    assert count_erasures(conn) == 1


@pytest.mark.parametrize(
    "word", ["EUR", "revenue", "purchase-of-something-large", "SKU-0001234", "https://shop.test/1"]
)
def test_nobody_takes_words_out_of_the_facts_of_all(conn: Connection, word: str) -> None:
    """Anybody may be the visitor `EUR` for one beacon and have it erased: only a person at the machine means it so."""
    said: dict[str, object] = {"currency": "EUR", "revenue": 9, "of": word}
    store(conn, event("s-bob", "purchase", visitor=BOB, properties=said), event("s", visitor=word))
    before = export(conn)[1]
    with immediate(conn):
        assert forget(conn, "default", word, NOW, anybody=True) == Erased(1, 0, 1)
    assert export(conn)[0] == before
    erase(conn, word)
    assert word not in export(conn)[0].replace('"EUR"', "") or word == "EUR"
    assert json.loads(export(conn)[0])["events"][0]["properties"].get("of") == ""


def test_documents_lose_the_ids_that_held_facts_lost(conn: Connection, tmp_path: Path) -> None:
    """Whether the document comes before the tombstone or after it."""
    visitor, own = "visitor-5ae13c90b7d2", "session-77d0c4e1a9f3"
    store(conn, event(own, visitor=visitor))
    store(conn, event("s-bob", visitor=BOB, properties={"by": visitor, "l": [own]}))
    before = export(conn)
    assert [json.loads(line)["sessionId"] for line in before] == ["s-bob", own]
    with immediate(conn):
        forget(conn, "default", visitor, NOW, anybody=True)
    bob, grave = export(conn)
    assert json.loads(bob)["events"][0]["properties"] == {"by": "", "l": [""]}
    forgotten = {"revision": 0, "finished": True}
    for number, lines in enumerate(([*before, grave], [grave, *before])):
        with closing(open_database(tmp_path / f"{number}.db", durability="normal")) as copy:
            read_in(copy, lines)
            assert [json.loads(line) | forgotten for line in export(copy)] == [
                json.loads(line) | forgotten for line in (bob, grave)
            ]
            check(copy)


def test_what_others_still_use_stays(conn: Connection) -> None:
    """Many rows are dropped by way of an index, few without; rows that a fact is left for are not."""
    pages = [page_of(f"/{number}") for number in range(30)]
    store(conn, *(event("s-a", at=number, visitor=ALICE, page=page) for number, page in enumerate(pages)))
    store(conn, event("s-b", visitor=BOB, page=pages[7]), vital("s-b", "LCP", 1, page=pages[8], visitor="carol"))
    assert erase(conn) == Erased(1, 0, 30)
    assert table(conn, "SELECT path FROM pages ORDER BY 1") == "/7\n/8"
    assert "erasing" not in table(conn, "SELECT name FROM sqlite_master")
    check(conn)


def test_names_in_a_session_that_goes(conn: Connection) -> None:
    """Whoever is named in Alice's session only goes with it, whoever has a session stays."""
    store(
        conn,
        event("s-a", visitor=ALICE),
        event("s-a", at=1, visitor="guest"),
        event("s-a", at=2, visitor=BOB),
        event("s-b", at=3, visitor=BOB),
    )
    erase(conn)
    assert table(conn, "SELECT anonymous_id FROM anonymous_ids") == BOB
    assert store(conn, event("s-c", visitor="guest")) == [("accepted", None)]
    check(conn)


def test_an_unknown_visitor(conn: Connection) -> None:
    """Zeros, and a tombstone; a second time changes nothing."""
    fill(conn)
    before = export(conn)
    assert erase(conn, "nobody-knows") == Erased(0, 0, 0)
    assert erase(conn, "nobody-knows", NOW + 5) == Erased(0, 0, 0)
    *documents, grave = export(conn)
    assert documents == before
    assert json.loads(grave) == {
        "type": "tombstone",
        "version": 1,
        "site": "default",
        "visitorHash": sha256(b"default\0nobody-knows").hexdigest(),
        "sessionHashes": [],
        "erasedAt": "2026-11-22T08:00:00.000Z",
    }


def test_a_visitor_of_another_site_stays(conn: Connection) -> None:
    """Sites are apart: the same id there is somebody else."""
    store(conn, event("s", visitor=ALICE), event("s", visitor=ALICE, site="other"))
    assert erase(conn, site="other") == Erased(1, 0, 1)
    assert store(conn, event("s", at=1, visitor=ALICE)) == [("accepted", None)]
    assert store(conn, event("s", at=1, visitor=ALICE, site="other")) == [("rejected", "erased")]


def test_no_copy_is_left_in_a_file_that_has_grown(tmp_path: Path) -> None:
    """Rows in random order split pages, which leaves copies in bytes that no SQL reaches: the file is written anew."""
    rng = random.Random(5)
    visitors = [f"{rng.getrandbits(64):016x}-visitor" for _ in range(600)]
    sessions = {visitor: [f"{rng.getrandbits(64):016x}-session" for _ in range(3)] for visitor in visitors}
    facts: list[Fact] = []
    for visitor in visitors:
        for session in sessions[visitor]:
            page = Page(f"https://shop.test/?visitor={visitor}", "/", None)
            facts.append(naming(event(session, visitor=visitor, page=page), anonymousId=visitor))
            facts += [vital(session, metric, 1, visitor=visitor) for metric in ("LCP", "CLS")]
    rng.shuffle(facts)
    path = tmp_path / "grown.db"
    with closing(open_database(path, durability="normal")) as conn:
        for start in range(0, len(facts), 60):
            store(conn, *facts[start : start + 60])
        gone = rng.sample(visitors, 25)
        for visitor in gone:
            assert erase(conn, visitor) == Erased(3, 6, 3)
        rewrite(conn)
        assert empty_wal(conn)
        held = file_bytes(path)
        check(conn)
    texts = [text for visitor in gone for text in (visitor, *sessions[visitor])]
    assert [text for text in texts if text.encode() in held] == []
    assert all(visitor.encode() in held for visitor in visitors if visitor not in gone)


# --- what is refused -------------------------------------------------------------------------------------------------


def test_what_comes_later_is_refused(conn: Connection) -> None:
    """Of the visitor, in any session, and of its sessions, by whomever; among others in one group, each on its own."""
    fill(conn)
    erase(conn)
    before = export(conn)
    refused: list[Fact] = [
        event("s-alice-1", at=50),
        event("s-new", at=50, visitor=ALICE),
        vital("s-alice-2", "LCP", 1, funnel_id="landing", visitor=BOB),
        vital("s-bob", "INP", 1, visitor=ALICE),
    ]
    assert store(conn, *refused) == [("rejected", "erased")] * 4
    assert export(conn) == before
    assert table(conn, "SELECT count(*) FROM sessions") == "2", "none is made for what is refused"
    mixed: list[Fact] = [
        refused[0],
        event("s-bob", at=60, visitor=BOB),
        refused[1],
        event("s-alice-1", funnel_id="landing"),
    ]
    with immediate(conn):
        recorded = record(
            conn, [Recording([(4, mixed[0]), (2, mixed[1])], NOW), Recording([*enumerate(mixed[2:])], NOW)]
        )
    assert [sorted((j.position, str(j.outcome), j.reason) for j in one.judged) for one in recorded] == [
        [(2, "accepted", None), (4, "rejected", "erased")],
        [(0, "rejected", "erased"), (1, "accepted", None)],
    ]
    check(conn)


def test_the_check_reads_little(conn: Connection) -> None:
    """One row where nothing was erased; with tombstones it seeks, also in their sessions."""
    said: list[str] = []
    conn.set_trace_callback(said.append)
    assert tombstones.find_erased(conn, [event("s", visitor=ALICE)]) == set()
    conn.set_trace_callback(None)
    assert len(said) == 1
    for sql in (tombstones._FIND_VISITORS, tombstones._FIND_SESSIONS):
        plan = [row[3] for row in conn.execute(f"EXPLAIN QUERY PLAN {sql}", ("default", "[]"))]
        assert not [step for step in plan if step.startswith("SCAN") and "json_each" not in step], plan


# --- documents and tombstones that come in ---------------------------------------------------------------------------


def test_export_and_import_are_inverse_with_tombstones(conn: Connection, tmp_path: Path) -> None:
    """A whole export into an empty file, exported again: the same bytes; twice is once."""
    fill(conn)
    erase(conn)
    erase(conn, "nobody-knows", NOW + 1)
    lines = export(conn)
    assert [json.loads(line)["type"] for line in lines] == ["session", "session", "tombstone", "tombstone"]
    with closing(open_database(tmp_path / "copy.db", durability="normal")) as copy:
        assert read_in(copy, lines) == ["accepted"] * 4
        assert export(copy) == lines
        assert read_in(copy, lines) == ["duplicate"] * 4
        assert store(copy, event("s-alice-1")) == [("rejected", "erased")]
        check(copy)


def test_documents_of_before_and_tombstones_in_any_order(conn: Connection, tmp_path: Path) -> None:
    """What was exported before the erasure comes before, after or between: the same file in the end."""
    fill(conn)
    lines = export(conn)
    erase(conn)
    forgotten = {"revision": 0, "finished": True}
    wanted = [json.loads(line) | forgotten for line in export(conn)]
    lines.append(export(conn)[-1])
    for number, order in enumerate(itertools.permutations(lines)):
        if number % 5:
            continue  # 24 of the 120 orders
        with closing(open_database(tmp_path / f"{number}.db", durability="normal")) as copy:
            results = dict(zip(order, read_in(copy, list(order)), strict=True))
            assert [json.loads(line) | forgotten for line in export(copy)] == wanted
            assert set(results.values()) <= {"accepted", "erased"}
            check(copy)


def test_a_tombstone_matches_sessions_that_name_nobody(conn: Connection) -> None:
    """Where only the session's hash is known here: it goes, and its visitor is derived again."""
    store(conn, event("s", visitor=BOB), event("s-other", at=9, visitor=BOB))
    grave = {
        "type": "tombstone",
        "version": 1,
        "site": "default",
        "visitorHash": "0" * 64,
        "sessionHashes": [sha256(b"default\0default\0s").hexdigest()],
        "erasedAt": "2026-11-22T08:00:00.000Z",
    }
    assert read_in(conn, [json.dumps(grave | {"site": "elsewhere"})]) == ["accepted"], "counts for its site alone"
    assert len(export(conn)) == 3
    assert read_in(conn, [json.dumps(grave)]) == ["accepted"]
    assert table(conn, "SELECT anonymous_id, total_sessions FROM visitors") == f"{BOB} 1"
    later = grave | {"sessionHashes": ["f" * 64], "erasedAt": "2026-11-22T09:00:00.000Z"}
    assert read_in(conn, [json.dumps(later), json.dumps(later), json.dumps(grave)]) == [
        "accepted",
        "duplicate",
        "duplicate",
    ]
    merged = json.loads(export(conn)[1])
    assert (len(merged["sessionHashes"]), merged["erasedAt"]) == (2, later["erasedAt"])
    check(conn)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"visitorHash": "A" * 64}, "visitorHash: must be a SHA-256 in lower-case hex"),
        ({"visitorHash": None}, "visitorHash: must be a SHA-256 in lower-case hex"),
        ({"sessionHashes": "x"}, "sessionHashes: must be a list of SHA-256 in lower-case hex"),
        ({"sessionHashes": [1]}, "sessionHashes: must be a list of SHA-256 in lower-case hex"),
        ({"erasedAt": 5}, "erasedAt: must be an ISO 8601 time"),
        ({"version": 2}, "version: must be 1"),
        ({"site": ".x"}, "site: must be 1 to 64 of A-Z a-z 0-9 . _ -, not starting with a dot"),
        ({"type": "grave"}, "type: must be session or tombstone"),
    ],
)
def test_a_wrong_tombstone_is_rejected(conn: Connection, wrong: dict[str, Any], reason: str) -> None:
    """With its reason; the lines beside it are taken."""
    grave = {"type": "tombstone", "version": 1, "site": "a", "visitorHash": "0" * 64, "erasedAt": "2026-11-22"}
    assert read_in(conn, [json.dumps(grave | wrong), json.dumps(grave)]) == [reason, "accepted"]


def test_loosening_twice_is_once() -> None:
    """A fact without the name is as it was; parts of the context that stand in columns are left alone."""
    context = {"user": {"anonymousId": ALICE}, "utm": {"source": ALICE}, "tags": [ALICE, "x", {ALICE: 1}]}
    fact = event("s", visitor=ALICE)._replace(context=to_json(context))
    loose = erasure.loosen(fact, {ALICE})
    assert isinstance(loose, EventFact)
    assert loose.context == to_json({"utm": {"source": ALICE}, "tags": ["", "x", {}]})
    assert not erasure.names_any(loose, {ALICE})
    assert erasure.loosen(loose, {ALICE}) == loose


# --- batches ---------------------------------------------------------------------------------------------------------


def test_frozen_batches_that_hold_the_visitor_are_dropped(conn: Connection) -> None:
    """By its sessions, and by its name in the bytes, also where the store has forgotten it since; others stay."""
    fill(conn)
    with immediate(conn):
        outbox.set_destination(conn, "https://upstream.test/", NOW)
        for name, lines in (("b1", 2), ("b2", 1), ("b3", 1)):
            draft = outbox.draft_batch(conn, lines_max=lines, now=NOW, timeout_ms=TIMEOUT_MS)
            assert draft is not None
            assert outbox.claim(conn, draft, address="https://upstream.test/", batch_id=name, now=NOW)
    assert outbox.release_naming(conn, "default", ["not there"], NOW) == 0
    erase(conn)
    assert table(conn, "SELECT batch_id, state, body IS NULL FROM batches ORDER BY 1") == (
        "b1 dropped 1\nb2 dropped 1\nb3 open 0"
    )
    draft = outbox.draft_batch(conn, lines_max=9, now=NOW + TIMEOUT_MS + 1, timeout_ms=TIMEOUT_MS)
    assert draft is not None
    assert [line.tombstone_key for line in draft.lines] == [1]


def test_a_batch_frozen_with_a_name_that_was_replaced_since(conn: Connection) -> None:
    """Bob's session named Alice when it was frozen, and names her no more."""
    store(conn, event("s-bob", visitor=BOB), vital("s-bob", "LCP", 1, at=5, visitor=ALICE))
    with immediate(conn):
        outbox.set_destination(conn, "https://upstream.test/", NOW)
        draft = outbox.draft_batch(conn, lines_max=9, now=NOW, timeout_ms=TIMEOUT_MS)
        assert draft is not None
        outbox.claim(conn, draft, address="https://upstream.test/", batch_id="b1", now=NOW)
        outbox.note_answer(conn, 1, f"no such visitor: {ALICE}")
    store(conn, vital("s-bob", "LCP", 2, at=6, visitor=BOB))
    erase(conn)
    assert table(conn, "SELECT state, answer FROM batches") == "dropped a session in it was erased"


def test_outcomes_of_lines(conn: Connection) -> None:
    """A document of an erased visitor is `erased`, which a sender counts as confirmed."""
    fill(conn)
    lines = {json.loads(line)["sessionId"]: line for line in export(conn)}
    erase(conn)
    before = export(conn)
    with immediate(conn):
        results = merge_lines(conn, [line.encode() for line in lines.values()], NOW)
    assert {name: (result.outcome, result.reason) for name, result in zip(lines, results, strict=True)} == {
        "s-alice-1": (Outcome.REJECTED, "erased"),
        "s-alice-2": (Outcome.REJECTED, "erased"),
        "s-bob": (Outcome.DUPLICATE, None),
        "s-nobody": (Outcome.DUPLICATE, None),
    }
    assert export(conn) == before
