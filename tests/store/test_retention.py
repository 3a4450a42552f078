"""Retention: what goes and what stays, that the rest is untouched, and that a pass can be killed anywhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from sidecar.model import Fact
from sidecar.store import outbox, retention, sweep
from sidecar.store.database import Connection, immediate, open_database, snapshot
from sidecar.store.erasure import forget
from sidecar.store.facts import Recording, record
from sidecar.store.lines import export_all, merge_lines
from sidecar.store.retention import BEGIN, DAY_MS, Pace, Piece, Pruned, Rule, Where, make_rule, prune, prune_step
from sidecar.store.verify import verify
from tests.builders import START, event, page_of, vital

TIMEOUT_MS = 1_800_000
NOW = START + 100 * DAY_MS
RECENT = 99 * DAY_MS  # ms after START of what is a day old
ADDRESS = "https://up.example/"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "r.db"


@pytest.fixture
def conn(path: Path) -> Iterator[Connection]:
    with closing(open_database(path, durability="normal")) as opened:
        yield opened


def store(conn: Connection, *facts: Fact, now: int = START) -> None:
    with immediate(conn):
        record(conn, [Recording([*enumerate(facts)], now)])


def fill(conn: Connection) -> None:
    """Ada with an old session and one of yesterday; Bob with an old one; one that is old and has no name."""
    store(conn, event("ada-old", visitor="ada", page=page_of("/old")), vital("ada-old", "LCP", 900, at=5))
    store(conn, event("bob-old", visitor="bob", page=page_of("/both")), event("bob-old", "buy", at=9, visitor="ada"))
    store(conn, vital("nobody-old", "CLS", 0.1, page=page_of("/nobody")))
    store(
        conn,
        event("ada-new", at=RECENT, visitor="ada", page=page_of("/both")),
        vital("ada-new", "LCP", 1200, at=RECENT, page=page_of("/new")),
        now=START + RECENT,
    )


def rule(conn: Connection, *, days: int = 90, upstream: str | None = None, now: int = NOW) -> Rule:
    with snapshot(conn):
        return make_rule(conn, days=days, upstream=upstream, now=now, timeout_ms=TIMEOUT_MS)


def do(conn: Connection, path: Path, *, run: int = 1, now: int = NOW, **options: Any) -> Pruned:
    """A whole pass."""
    return retention.run_pass(conn, path, prune(rule(conn, now=now, **options), now, run=run))


def sessions(conn: Connection) -> list[str]:
    return [name for (name,) in conn.execute("SELECT session_id FROM sessions ORDER BY 1")]


def table(conn: Connection, sql: str) -> str:
    return "\n".join(" ".join(str(cell) for cell in row) for row in conn.execute(sql))


def export(conn: Connection) -> list[dict[str, Any]]:
    with snapshot(conn):
        return [json.loads(line) for line in export_all(conn, NOW, TIMEOUT_MS)]


def check(conn: Connection) -> None:
    """Everything derived is what the facts say, the links hold, and no trace of a sweep is left."""
    with snapshot(conn):
        assert [str(difference) for difference in verify(conn, lambda: None)] == []
    assert conn.execute("PRAGMA foreign_keys").fetchone() == (1,)
    assert table(conn, "SELECT name FROM sqlite_master WHERE name LIKE 'sweeping%'") == ""


def ship(conn: Connection, *, rejected: dict[int, str] | None = None, confirmed: bool = True) -> None:
    """Everything finished goes into one batch for ADDRESS, and is answered for."""
    with immediate(conn):
        outbox.set_destination(conn, ADDRESS, NOW)
    with snapshot(conn):
        draft = outbox.draft_batch(conn, lines_max=100, now=NOW, timeout_ms=TIMEOUT_MS)
    assert draft is not None
    with immediate(conn):
        batch = outbox.claim(conn, draft, address=ADDRESS, batch_id=f"b-{len(draft.lines)}", now=NOW)
        assert batch is not None
        if confirmed:
            outbox.confirm(conn, batch.batch_key, rejected=rejected or {}, answer="200 OK", now=NOW)


# --- what goes -------------------------------------------------------------------------------------------------------


def test_by_age_alone_without_an_upstream(conn: Connection, path: Path) -> None:
    """Old sessions go with their facts and all that only they had; the rest stays."""
    fill(conn)
    assert do(conn, path)[:5] == (3, 2, 3, 4, 0)
    assert sessions(conn) == ["ada-new"]
    assert table(conn, "SELECT anonymous_id, total_sessions, total_events FROM visitors") == "ada 1 1"
    assert table(conn, "SELECT anonymous_id FROM anonymous_ids") == "ada"
    assert table(conn, "SELECT path FROM pages ORDER BY 1") == "/both\n/new"
    assert table(conn, "SELECT count(*) FROM clients") == "1"
    check(conn)
    assert do(conn, path)[:5] == (0, 0, 0, 0, 0)


def test_the_rest_is_exported_as_before(conn: Connection, path: Path) -> None:
    """Revision and all but the figures of the visitor, whose older session is gone."""
    fill(conn)
    [before] = [one for one in export(conn) if one["sessionId"] == "ada-new"]
    do(conn, path)
    [after] = export(conn)
    assert before["visitor"].pop("totalSessions") == 2
    assert after["visitor"].pop("totalSessions") == 1
    for document in (before, after):
        for figure in ("firstSeen", "totalEvents"):
            document["visitor"].pop(figure)
    assert after == before


def test_age_is_that_of_the_latest_fact(conn: Connection, path: Path) -> None:
    """A session that began long ago and went on stays; so does one to the millisecond at the limit."""
    limit = 10 * DAY_MS  # 90 days before NOW
    store(conn, vital("long", "LCP", 900), vital("long", "INP", 90, at=RECENT))
    store(conn, vital("at-limit", "LCP", 900, at=limit), now=START + limit)
    store(conn, vital("before", "LCP", 900, at=limit - 1), now=START + limit)
    do(conn, path)
    assert sessions(conn) == ["at-limit", "long"]


def test_what_is_not_finished_stays(conn: Connection, path: Path) -> None:
    """Old facts that came just now: the session may still be told more, or merged by an import."""
    store(conn, vital("late", "LCP", 900), now=NOW - 1000)
    assert do(conn, path).sessions == 0
    assert do(conn, path, now=NOW + TIMEOUT_MS).sessions == 1


def test_more_sessions_than_a_step_looks_at(conn: Connection, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps go on where the one before ended, also among sessions of one start and past ones that stay."""
    monkeypatch.setattr(retention, "LOOKED_AT_MAX", 7)
    store(conn, *(vital(f"s-{number:02}", "LCP", 900, at=number // 10) for number in range(40)))
    for name in ("s-03", "s-04", "s-05", "s-06", "s-07", "s-08", "s-09", "s-10", "s-30"):
        store(conn, vital(name, "INP", 90, at=RECENT))
    assert do(conn, path).sessions == 31
    assert len(sessions(conn)) == 9
    check(conn)


def test_a_step_is_bounded(conn: Connection) -> None:
    """By facts; one session goes even if it has more, so that a large one is no end."""
    store(conn, *(vital(f"s-{number}", "LCP", 900, at=number) for number in range(6)))
    store(conn, *(vital("large", "LCP", 900, fact_id=f"v-{number}", at=10) for number in range(9)))
    found, after, counts = rule(conn), BEGIN, []
    while True:
        with immediate(conn):
            step = prune_step(conn, found, after, 4)
        counts.append(step.erased.web_vitals)
        if step.after is None:
            break
        after = step.after
    assert counts == [4, 2, 9]


def test_the_pace_follows_what_steps_take() -> None:
    """Slow steps become smaller, quick ones larger, within bounds; the pause is as long as the step."""
    pace = Pace()
    assert pace.note(0.3) == 0.3
    assert pace.facts_max == retention.FACTS_FIRST // 2
    for _ in range(20):
        pace.note(5.0)
    assert pace.facts_max == retention.FACTS_LEAST
    assert pace.note(5.0) == 1.0
    for _ in range(20):
        pace.note(0.0001)
    assert pace.facts_max == retention.FACTS_MOST
    assert pace.longest_s == 5.0


# --- with an upstream ------------------------------------------------------------------------------------------------


def test_what_is_not_confirmed_stays(conn: Connection, path: Path) -> None:
    """Nothing goes before the destination has it, in its present revision."""
    fill(conn)
    with immediate(conn):
        outbox.set_destination(conn, ADDRESS, NOW)
    assert do(conn, path, upstream=ADDRESS).sessions == 0
    ship(conn)
    store(conn, vital("bob-old", "LCP", 901, at=7), now=NOW - 2 * TIMEOUT_MS)
    assert do(conn, path, upstream=ADDRESS).sessions == 2
    assert sessions(conn) == ["ada-new", "bob-old"]
    ship(conn)
    assert do(conn, path, upstream=ADDRESS).sessions == 1
    check(conn)


def test_what_is_in_an_open_batch_stays(conn: Connection, path: Path) -> None:
    """Its bytes are still to be answered for, and the batch is not touched."""
    fill(conn)
    ship(conn, confirmed=False)
    assert do(conn, path, upstream=ADDRESS).sessions == 0
    assert table(conn, "SELECT state, body IS NULL FROM batches") == "open 0"


def test_what_is_parked_stays_until_a_person_discards_it(conn: Connection, path: Path) -> None:
    """A refused session is known upstream to nobody."""
    fill(conn)
    ship(conn, rejected={0: "no"})
    assert do(conn, path, upstream=ADDRESS).sessions == 2
    (key,) = conn.execute("SELECT session_key FROM parked").fetchone()
    with immediate(conn):
        assert outbox.discard(conn, key, NOW)
    assert do(conn, path, upstream=ADDRESS).sessions == 1
    assert table(conn, "SELECT count(*) FROM parked") == "0"
    check(conn)


def test_what_another_destination_has_confirmed_stays(conn: Connection, path: Path) -> None:
    """The settings name a new one: it has nothing yet, and the server has not begun to ship to it."""
    fill(conn)
    ship(conn)
    assert do(conn, path, upstream="https://new.example/").sessions == 0
    assert do(conn, path, upstream=ADDRESS).sessions == 3


def test_a_command_without_the_servers_settings(conn: Connection, path: Path) -> None:
    """A server ships from this file: that nobody has named the destination again deletes nothing unshipped."""
    fill(conn)
    with immediate(conn):
        outbox.set_destination(conn, ADDRESS, NOW)
    assert rule(conn).address == ADDRESS
    assert do(conn, path).sessions == 0
    with immediate(conn):
        outbox.set_destination(conn, None, NOW)  # the server was started without one
    assert do(conn, path).sessions == 3


def test_a_destination_that_is_named_in_the_middle(conn: Connection) -> None:
    """The rule was made without one, and a server with one starts: the next step deletes nothing."""
    fill(conn)
    found = rule(conn)
    with immediate(conn):
        outbox.set_destination(conn, ADDRESS, NOW)
        assert prune_step(conn, found, BEGIN, 100).erased.sessions == 0


def test_an_open_batch_without_an_upstream(conn: Connection, path: Path) -> None:
    """The upstream was taken out of the settings: age alone counts, and the rest of the batch is free again."""
    fill(conn)
    ship(conn, confirmed=False)
    with immediate(conn):
        outbox.set_destination(conn, None, NOW)
    assert do(conn, path).sessions == 3
    assert table(conn, "SELECT state, body FROM batches") == "dropped None"
    check(conn)


# --- afterwards ------------------------------------------------------------------------------------------------------


def test_a_late_beacon_makes_a_new_session(conn: Connection, path: Path) -> None:
    """With a greater revision than the one before, so that it is the newer one upstream."""
    fill(conn)
    [before] = [one["revision"] for one in export(conn) if one["sessionId"] == "ada-old"]
    do(conn, path)
    store(conn, vital("ada-old", "INP", 90, at=RECENT, visitor="ada"), now=NOW)
    [after] = [one for one in export(conn) if one["sessionId"] == "ada-old"]
    assert after["revision"] > before
    assert (after["eventsCount"], len(after["webVitals"])) == (0, 1)
    check(conn)


def test_what_is_read_in_again_is_as_it_was(conn: Connection, path: Path) -> None:
    """An export of before brings the sessions back, whole, once; the next pass prunes them again."""
    fill(conn)
    with snapshot(conn):
        lines = [line.encode() for line in export_all(conn, NOW, TIMEOUT_MS)]
    before = export(conn)
    do(conn, path)
    with immediate(conn):
        assert [str(one.outcome) for one in merge_lines(conn, lines, NOW)] == ["duplicate"] + ["accepted"] * 3
    assert export(conn) == before
    assert do(conn, path).sessions == 3
    check(conn)


def test_tombstones_and_funnels_stay(conn: Connection, path: Path) -> None:
    """What was erased is refused for ever, however long ago."""
    fill(conn)
    with immediate(conn):
        forget(conn, "default", "bob", START)
    do(conn, path, now=NOW + 40_000 * DAY_MS)
    assert sessions(conn) == []
    assert table(conn, "SELECT count(*) FROM tombstones") == "1"
    assert table(conn, "SELECT funnel_id FROM funnels") == "default"
    with immediate(conn):
        [recorded] = record(conn, [Recording([(0, event("bob-again", visitor="bob"))], NOW)])
    assert recorded.judged[0].reason == "erased"


def test_old_batches_and_receipts(conn: Connection, path: Path) -> None:
    """Settled batches of 30 days and more go but for the last 100, receipts of as long all; open batches never."""
    old, fresh = NOW - 31 * DAY_MS, NOW - 29 * DAY_MS
    with immediate(conn):
        outbox.set_destination(conn, ADDRESS, old)
        batch = "INSERT INTO batches (batch_id, address, site, state, body_bytes, lines_count, claimed_at, settled_at)"
        for number in range(150):
            state, at = ("open", None) if number == 0 else ("confirmed", old if number < 120 else fresh)
            conn.execute(f"{batch} VALUES (?, ?, 's', ?, 1, 1, 1, ?)", (f"b-{number}", ADDRESS, state, at))
        for name, at in (("old", old), ("fresh", fresh)):
            conn.execute("INSERT INTO receipts VALUES (?, x'00', '{}', ?)", (name, at))
    assert do(conn, path).notes == 49 + 1
    assert table(conn, "SELECT count(*), min(batch_key) FROM batches WHERE state <> 'open'") == "100 51"
    assert table(conn, "SELECT count(*) FROM batches WHERE state = 'open'") == "1"
    assert table(conn, "SELECT idempotency_key FROM receipts") == "fresh"


def test_notes_go_though_sessions_are_kept_for_ever(conn: Connection, path: Path) -> None:
    """RETENTION_DAYS=0: no session goes."""
    fill(conn)
    with immediate(conn):
        conn.execute("INSERT INTO receipts VALUES ('old', x'00', '{}', ?)", (START,))
    assert retention.run_pass(conn, path, prune(None, NOW, run=1))[:5] == (0, 0, 0, 0, 1)
    assert len(sessions(conn)) == 4


def test_the_survey_says_what_a_pass_does(conn: Connection, path: Path) -> None:
    """Count, times, reasons to stay; and it changes nothing."""
    fill(conn)
    ship(conn, rejected={1: "no"})
    store(conn, vital("nobody-old", "LCP", 901, at=7), now=NOW - 2 * TIMEOUT_MS)
    store(conn, vital("late", "LCP", 900), now=NOW - 1000)
    asked = rule(conn, upstream=ADDRESS)
    with snapshot(conn):
        found = retention.survey(conn, asked)
    assert (found.sessions, found.facts, found.oldest, found.newest) == (1, 2, START + 5, START + 5)
    assert found.kept == [("not confirmed by the destination", 1), ("not finished", 1), ("parked", 1)]
    assert 0 < found.file_bytes < path.stat().st_size + 500_000
    assert len(sessions(conn)) == 5
    assert do(conn, path, upstream=ADDRESS).sessions == 1


# --- sweeping beside writers -----------------------------------------------------------------------------------------


def test_what_is_linked_to_again_in_the_middle_stays(conn: Connection, path: Path) -> None:
    """Between the reading of all facts and the deletion a beacon uses the pages, the client and the name again."""
    fill(conn)
    work, result = prune(rule(conn), NOW, run=1), None
    beacon = event("again", at=RECENT, visitor="bob", page=page_of("/old"))
    while True:
        try:
            piece: Piece = work.send(result)
        except StopIteration as end:
            pruned: Pruned = end.value
            break
        if piece.where is Where.TRANSACTION:
            with immediate(conn):
                result = piece.function(conn)
        else:
            result = piece.function(conn)
        if piece.function is sweep.find_unused:
            assert [len(unused.keys) for unused in result] == [3, 0, 1, 0]
            store(conn, beacon, now=NOW)
    assert pruned.unused == 2
    assert table(conn, "SELECT path FROM pages ORDER BY 1") == "/both\n/new\n/old"
    assert table(conn, "SELECT anonymous_id FROM anonymous_ids ORDER BY 1") == "ada\nbob"
    check(conn)


def test_a_sweep_that_another_one_has_ended(conn: Connection, path: Path) -> None:
    """It deletes nothing more and leaves the other's notes alone; the other one goes on."""
    fill(conn)
    store(conn, vital("ada-new", "LCP", 1201, at=RECENT + 1, page=page_of("/later")), now=START + RECENT)
    with immediate(conn):
        sweep.begin(conn, 1)
    with snapshot(conn):
        first = sweep.find_unused(conn)
    key = first[0].keys.tolist()
    assert conn.execute("SELECT path FROM pages WHERE page_key = ?", key).fetchall() == [("/new",)]
    with immediate(conn):
        sweep.begin(conn, 2)
    assert sweep.drop(conn, 1, first[0]) is None
    with immediate(conn):
        sweep.finish(conn, 1)
    assert sweep.is_left(conn)
    assert sweep.drop(conn, 2, first[0]) == 1
    with immediate(conn):
        sweep.finish(conn, 2)
    check(conn)


def test_a_pass_that_ends_anywhere(tmp_path: Path) -> None:
    """Left after each of its pieces in turn: the file verifies, and the next pass leaves it as one whole pass does."""
    stopped_after = 0
    while True:
        path = tmp_path / f"{stopped_after}.db"
        with closing(open_database(path, durability="normal")) as conn:
            fill(conn)
            work, result = prune(rule(conn), NOW, run=1), None
            for _ in range(stopped_after):
                try:
                    piece = work.send(result)
                except StopIteration:
                    assert stopped_after > 6
                    return
                if piece.where is Where.TRANSACTION:
                    with immediate(conn):
                        result = piece.function(conn)
                else:
                    result = piece.function(conn)
            with snapshot(conn):
                assert [str(one) for one in verify(conn, lambda: None)] == []
            store(conn, event("between", at=RECENT, page=page_of("/nobody")), now=NOW)
            do(conn, path, run=2)
            assert sessions(conn) == ["ada-new", "between"]
            assert table(conn, "SELECT path FROM pages ORDER BY 1") == "/both\n/new\n/nobody"
            assert table(conn, "SELECT anonymous_id FROM anonymous_ids") == "ada"
            check(conn)
        stopped_after += 1


def test_a_sweep_inside_a_transaction_is_refused(conn: Connection) -> None:
    """There SQLite would go on checking links, without a word, and read all facts for each row."""
    with immediate(conn):
        sweep.begin(conn, 1)
    unused = sweep.Unused("pages", sweep.find_unused(conn)[0].keys)
    with pytest.raises(Exception, match="inside a transaction"), immediate(conn):
        sweep.drop(conn, 1, unused)
    assert conn.execute("PRAGMA foreign_keys").fetchone() == (1,)


def test_steps_seek(conn: Connection) -> None:
    """The walk over old sessions goes by the index, and no step reads a table of facts."""
    found = retention._parameters(conn, rule(conn)) | {"started_at": 0, "session_key": 0, "most": 1}
    plan = [row[3] for row in conn.execute(f"EXPLAIN QUERY PLAN {retention._WALK}", found)]
    assert plan[0].startswith("SEARCH s USING INDEX sessions_by_start")
    assert not [step for step in plan if step.startswith("SCAN") or "TEMP B-TREE" in step]
