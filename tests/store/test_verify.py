"""Verify names what differs from what it should be, and mends what can be computed."""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from sidecar.__main__ import main
from sidecar.canonical import to_json
from sidecar.model import Campaign, Client, EventFact, Fact, Page
from sidecar.store import verify as verify_module
from sidecar.store.database import Connection, immediate, open_database, snapshot
from sidecar.store.documents import export_lines, list_session_keys
from sidecar.store.verify import Difference, Step, check, is_damage, plan, repair, verify
from tests.builders import START, event, record_facts, vital

NOW = START + 60_000
URL = "https://shop.test/?utm_source=news&gclid=g1"


def facts() -> list[Fact]:
    """Two sessions: three vitals and three events of two visitors, with campaigns, click ids, two clients."""
    landing: EventFact = event("a", page=Page(URL, "/", None), visitor="ada")
    mail = event("a", "cta", at=5, visitor="ada")
    mobile = Client("mobile", "Safari", "18", "iOS", "18", 390, 844, None, "FR", "France", None, None, "192.0.2.0")
    return [
        landing._replace(campaign=Campaign("news", None, None, None, None), click_ids='{"gclid":"g1"}'),
        mail._replace(context=to_json({"utm": {"source": "mail"}}), campaign=Campaign("mail", None, None, None, None)),
        vital("a", "LCP", 1200, at=9, visitor="ada"),
        vital("b", "LCP", 1400, client=mobile, visitor="bob"),
        vital("b", "TTFB", 90, page=None, client=None),
        event("b", at=7, page=Page("https://shop.test/b", "/b", None), client=mobile),
    ]


@pytest.fixture
def conn(tmp_path: Path) -> Iterator[Connection]:
    """A file with `facts`, and a connection that may damage it."""
    with closing(open_database(record_facts(tmp_path / "v.db", facts()), durability="normal")) as opened:
        opened.execute("PRAGMA foreign_keys = OFF")
        opened.execute("PRAGMA ignore_check_constraints = ON")
        yield opened


def find(conn: Connection) -> list[str]:
    """What verify says."""
    with snapshot(conn):
        return [str(difference) for difference in verify(conn, lambda: None)]


def mend(conn: Connection) -> list[str]:
    """What --repair does and says."""
    conn.execute("PRAGMA foreign_keys = ON")
    with snapshot(conn):
        differing = [step for step in plan(conn) if any(check(conn, step))]
    with immediate(conn):
        return [str(difference) for difference in repair(conn, differing, NOW)]


def export(conn: Connection) -> list[str]:
    """The whole export."""
    with snapshot(conn):
        return [*export_lines(conn, list_session_keys(conn), NOW, 0)]


def test_a_sound_file_has_no_findings(conn: Connection) -> None:
    """And each step is counted."""
    advanced: list[None] = []
    with snapshot(conn):
        assert [*verify(conn, lambda: advanced.append(None))] == []
        assert len(advanced) == len(plan(conn)) == 8


DAMAGE = {
    "a derived value": (
        "UPDATE sessions SET avg_lcp = 7, page_views = 9 WHERE session_id = 'a'",
        ["sessions 1 avg_lcp: stored 7.0, should be 1200.0", "sessions 1 page_views: stored 9, should be 1"],
    ),
    "a visitor": (
        "UPDATE visitors SET display_name = 'Eve' WHERE anonymous_id = 'bob'",
        ["visitors 2 display_name: stored 'Eve', should be 'Visitor #bob'"],
    ),
    "a visitor that has gone": ("DELETE FROM visitors WHERE anonymous_id = 'ada'", ["visitors 1: is missing"]),
    "the size of a vital": (
        "UPDATE web_vitals SET content_bytes = 1 WHERE session_key = 1",
        ["web_vitals 1 LCP v-LCP content_bytes: stored 1, should be 483"],
    ),
    "the size of an event": (
        "UPDATE events SET content_bytes = content_bytes + 1 WHERE event_name = 'cta'",
        ["events 1 e-cta-5 content_bytes: stored 486, should be 485"],
    ),
    "a rating beyond the three": (
        "UPDATE web_vitals SET rating_code = 7 WHERE session_key = 1",
        ["web_vitals 1 LCP v-LCP rating_code: stored 7, should be 0"],
    ),
    "click ids": (
        "UPDATE events SET click_ids = NULL WHERE session_key = 1",
        ["""events 1 e-page_view-0 click_ids: stored None, should be '{"gclid":"g1"}'"""],
    ),
    "a campaign": (
        "UPDATE events SET campaign_key = NULL WHERE event_name = 'cta'",
        ["""events 1 e-cta-5 campaign_key: stored None, should be '["mail",null,null,null,null]'"""],
    ),
    "a campaign of somebody else": (
        "UPDATE events SET campaign_key = 1 WHERE event_name = 'page_view' AND session_key = 2",
        ["""events 2 e-page_view-7 campaign_key: stored '["news",null,null,null,null]', should be None"""],
    ),
    "digests": (
        "UPDATE campaigns SET digest = x'00' WHERE source = 'news'",
        ["campaigns 1 digest: stored '00', should be '{digest}'"],
    ),
    "the low bit of a page": (
        "UPDATE pages SET page_key = 100 WHERE path = '/b'; UPDATE events SET page_key = 100 WHERE session_key = 2;"
        "UPDATE sessions SET last_page_key = first_page_key WHERE session_key = 2",
        ["pages 100 page_key & 1: stored 0, should be 1"],
    ),
    "the low bits of a client": (
        "UPDATE clients SET client_key = 808 WHERE device_type = 'mobile';"
        "UPDATE events SET client_key = 808 WHERE session_key = 2;"
        "UPDATE web_vitals SET client_key = 808 WHERE client_key IS NOT NULL AND session_key = 2;"
        "UPDATE sessions SET first_client_key = 808 WHERE session_key = 2",
        ["clients 808 client_key & 7: stored 0, should be 7"],
    ),
    "a session without facts": (
        "INSERT INTO sessions (funnel_key, session_id) VALUES (1, 'empty')",
        ["sessions 3: has no facts"],
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_each_difference_is_named_and_mended(conn: Connection, name: str) -> None:
    """Table, key, column, what is stored and what should be; after --repair the file is as it was."""
    sql, expected = DAMAGE[name]
    before = export(conn)
    for statement in sql.split(";"):
        conn.execute(statement)
    found = find(conn)
    said = [line for line in found if not line.startswith("file ")]
    assert [line for line in expected if not any(line.split("{")[0] in one for one in said)] == [], said
    assert all(line.startswith("file integrity: CHECK constraint failed") for line in found if line not in said)
    mended = mend(conn)
    for line in expected:
        was = line.split("{")[0].replace("stored", "was").replace("should be", "is")
        assert any(was in one for one in mended), mended
    assert find(conn) == []
    after = export(conn)
    strip = [[line.split('"provisional"')[1] for line in lines] for lines in (before, after)]
    assert strip[0] == strip[1]


def test_what_is_derived_again_ships_again(conn: Connection) -> None:
    """The session that differed gets a new revision, others keep theirs; what only a visitor says is no news of it."""
    conn.execute("UPDATE sessions SET avg_lcp = 7 WHERE session_id = 'a'")
    conn.execute("UPDATE visitors SET display_name = 'Eve' WHERE anonymous_id = 'bob'")
    assert len(mend(conn)) == 2
    assert conn.execute("SELECT revision FROM sessions ORDER BY session_id").fetchall() == [(NOW,), (START,)]


def test_a_session_that_names_another_visitor(conn: Connection) -> None:
    """The visitor that it had by mistake goes, the right one comes back, and both are said."""
    conn.execute("DELETE FROM visitors WHERE anonymous_id = 'ada'")
    conn.execute("UPDATE sessions SET visitor_key = 2 WHERE session_id = 'a'")
    mended = mend(conn)
    assert "sessions 1 visitor_key: was 2, is 1" in mended
    assert "visitors 1: is missing, repaired" in mended
    assert find(conn) == []


def test_a_row_that_came_twice_becomes_one(conn: Connection) -> None:
    """A page with a wrong digest was not found any more, so that its texts were stored again: the two are joined."""
    conn.execute("UPDATE pages SET digest = x'01' WHERE path = '/b'")
    path = Path(conn.execute("PRAGMA database_list").fetchone()[2])
    record_facts(path, [event("b", at=8, page=Page("https://shop.test/b", "/b", None))])
    assert conn.execute("SELECT count(*) FROM pages WHERE path = '/b'").fetchone() == (2,)
    assert len(mend(conn)) == 1
    assert conn.execute("SELECT count(*) FROM pages WHERE path = '/b'").fetchone() == (1,)
    assert find(conn) == []


def test_what_cannot_be_computed_is_left(conn: Connection) -> None:
    """A session without facts that a batch speaks of, and JSON that is none: named, and the others are mended."""
    conn.execute("INSERT INTO sessions (funnel_key, session_id) VALUES (1, 'empty')")
    conn.execute("INSERT INTO parked VALUES (3, 0, -1, 'r', 'b', 0, NULL)")
    conn.execute("UPDATE events SET context = '{', content_bytes = content_bytes - 26 WHERE event_name = 'cta'")
    conn.execute("UPDATE sessions SET avg_lcp = 7 WHERE session_id = 'b'")
    found = find(conn)
    assert any(line.startswith("events 1 e-cta-5: context is no JSON") for line in found), found
    assert "sessions 3: has no facts" in found
    mended = mend(conn)
    assert "sessions 2 avg_lcp: was 7.0, is 1400.0" in mended
    assert "sessions 3: has no facts" in mended


def test_a_session_that_cannot_be_derived_is_named_alone(conn: Connection) -> None:
    """Properties that are no JSON: the statement fails for its session only, and the next one is still compared."""
    conn.execute("UPDATE events SET properties = '{', event_name = 'purchase' WHERE event_name = 'cta'")
    conn.execute("UPDATE sessions SET avg_lcp = 7 WHERE session_id = 'b'")
    found = find(conn)
    assert "sessions 1: cannot be read: malformed JSON" in found
    assert "sessions 2 avg_lcp: stored 7.0, should be 1400.0" in found


def test_broken_links_are_damage(conn: Connection) -> None:
    """So that nothing is derived from them."""
    conn.execute("UPDATE events SET visitor_key = 99 WHERE session_key = 2")
    with snapshot(conn):
        found = [*verify(conn, lambda: None)]
    assert "points at no row of anonymous_ids" in str(found[0])
    assert is_damage(found[0])
    assert not is_damage(Difference("file", "integrity", "", "CHECK constraint failed in web_vitals", None))
    assert is_damage(Difference("file", "integrity", "", "row 1 missing from index", None))


def test_a_broken_link_of_a_fact_names_its_row_and_column(conn: Connection) -> None:
    """Though SQLite tells no row of these tables; the session, which would be derived from it, is left uncertain."""
    conn.execute("UPDATE events SET visitor_key = 99 WHERE event_name = 'cta'")
    conn.execute("UPDATE web_vitals SET page_key = 98 WHERE session_key = 2 AND metric = 'LCP'")
    conn.execute("UPDATE web_vitals SET session_key = 97 WHERE session_key = 1")
    found = find(conn)
    assert "events 1 e-cta-5: visitor_key 99 points at no row of anonymous_ids" in found
    assert "web_vitals 2 LCP v-LCP: page_key 98 points at no row of pages" in found
    assert "web_vitals 97 LCP v-LCP: session_key 97 points at no row of sessions" in found
    assert not [line for line in found if "should be 99" in line]


DERIVED_LINKS = {
    "a visitor that has gone": "DELETE FROM visitors WHERE anonymous_id = 'ada'",
    "a visitor that never was": "UPDATE sessions SET visitor_key = 777 WHERE session_id = 'a'",
    "all visitors": "DELETE FROM visitors",
}


@pytest.mark.parametrize("name", DERIVED_LINKS)
def test_the_visitor_of_a_session_is_derived(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """So a link to none is no damage: the command names it, and mends it; the file is as it was then."""
    path = record_facts(tmp_path / "v.db", facts())
    with closing(open_database(path)) as opened:
        before = export(opened)
        opened.execute("PRAGMA foreign_keys = OFF")
        opened.execute(DERIVED_LINKS[name])
    assert run_verify(path) == 1
    said = capsys.readouterr().out
    assert re.search(r"^sessions 1: visitor_key (1|777) points at no row of visitors$", said, re.MULTILINE), said
    assert run_verify(path, "--repair") == 0
    assert "repaired" in capsys.readouterr().out
    assert run_verify(path) == 0
    with closing(open_database(path)) as opened:
        strip = [[line.split('"provisional"')[1] for line in lines] for lines in (before, export(opened))]
    assert strip[0] == strip[1]


def run_verify(path: Path, *options: str) -> int:
    """`sidecar verify` in this process: its exit code. Anything but an orderly end is raised."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", ["sidecar", "verify", "--database", str(path), *options])
        with pytest.raises(SystemExit) as ended:
            main()
    code = ended.value.code
    if isinstance(code, str):  # as Python does with it at the end of a process
        print(code, file=sys.stderr)
        return 1
    return int(code or 0)


def test_a_damaged_file_is_said_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Wherever bytes are damaged: exit 0 or 1, and no traceback; a damaged page is always found."""
    many = [event(f"s{n}", at=n, visitor=f"v{n % 7}", properties={"n": n, "t": "x" * 90}) for n in range(120)]
    sound = record_facts(tmp_path / "sound.db", [*facts(), *many]).read_bytes()
    rng = random.Random(11)
    pages = len(sound) // 4096
    codes: list[int] = []
    for number in range(40):
        damaged = bytearray(sound)
        start = 100 if number % 8 == 0 else rng.randrange(pages) * 4096
        length = rng.choice((1, 8, 64, 2000))
        offset = rng.choice((0, rng.randrange(4096)))
        at = min(start + offset, len(sound) - length)
        damaged[at : at + length] = rng.randbytes(length)
        path = tmp_path / f"{number}.db"
        path.write_bytes(damaged)
        codes.append(run_verify(path, *(["--repair"] if number % 3 == 0 else [])))
        said = capsys.readouterr()
        assert re.fullmatch("" if codes[-1] == 0 else r"sidecar: .*\n", said.err), said.err
        assert "Traceback" not in said.out + said.err
    assert set(codes) == {0, 1}
    for number in range(1, pages):
        damaged = bytearray(sound)
        damaged[number * 4096 : (number + 1) * 4096] = b"\xff" * 4096
        path = tmp_path / "page.db"
        path.write_bytes(damaged)
        assert run_verify(path) == 1, number
    path.write_bytes(b"\xff" * 8192)
    assert run_verify(path) == 1
    path.write_bytes(sound[:-4096])
    assert run_verify(path, "--repair") == 1


def test_what_it_should_be_is_never_wrong(conn: Connection) -> None:
    """A visitor is not compared with a session that differs, nor a session with a fact that does; both are said."""
    right = {name: conn.execute(f"SELECT * FROM {name} ORDER BY 1").fetchall() for name in ("sessions", "visitors")}
    conn.execute("UPDATE sessions SET started_at = 9000000000000000 WHERE session_id = 'a'")
    conn.execute("UPDATE events SET campaign_key = 1 WHERE session_key = 2")
    found = [line for line in find(conn) if not line.startswith("file ")]
    follows = "differs; what it should be follows from {}, of which something differs, too"
    assert found == [
        """events 2 e-page_view-7 campaign_key: stored '["news",null,null,null,null]', should be None""",
        f"sessions 1 started_at: stored 9000000000000000, should be {START}",
        f"sessions 2: {follows.format('its facts')}",
        f"visitors 1: {follows.format('its sessions')}",
    ]
    mended = mend(conn)
    assert f"sessions 1 started_at: was 9000000000000000, is {START}" in mended
    assert not [line for line in mended if "visitors" in line], "it was right, and stayed so"
    assert find(conn) == []
    del right["sessions"]  # these have a new revision
    assert {name: conn.execute(f"SELECT * FROM {name} ORDER BY 1").fetchall() for name in right} == right


def test_a_damaged_key_makes_no_endless_plan(conn: Connection) -> None:
    """Steps go from row to row, however far apart these are."""
    conn.execute("INSERT INTO anonymous_ids VALUES (?, 'default', 'far')", (2**63 - 1,))
    conn.execute("INSERT INTO anonymous_ids VALUES (?, 'default', 'near')", (-(2**63),))
    assert len([step for step in plan(conn) if step.kind == "visitors"]) == 3
    assert find(conn) == []


def test_ids_of_clients_cannot_steer_a_terminal() -> None:
    """A key with an escape is written out."""
    assert str(Difference("events", "1 \x1b[31m", "click_ids", None, "x")).startswith("events '1 \\x1b[31m' click_ids")


def test_chunks_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Differences at the edges of steps are found once."""
    monkeypatch.setattr(verify_module, "_CHUNK", 2)
    path = record_facts(tmp_path / "c.db", [event(f"s{n}", at=n) for n in range(7)])
    with closing(open_database(path)) as conn:
        conn.execute("UPDATE sessions SET page_views = 5")
        assert [step for step in plan(conn) if step.kind == "sessions"] == [
            Step("sessions", first, first + 1) for first in (1, 3, 5, 7)
        ]
        assert len(find(conn)) == 7
        assert len(mend(conn)) == 7
        assert find(conn) == []
