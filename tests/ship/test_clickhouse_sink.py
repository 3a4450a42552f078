"""Into real ClickHouses, the old one that Debian has and today's engine: nothing lost, nothing twice, plain words."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import socket
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from math import ceil, log2
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from sidecar.app import prepare_upstream
from sidecar.attribution import campaign_of
from sidecar.config import load_settings
from sidecar.errors import ConfigError, SidecarError
from sidecar.model import nearest_rank
from sidecar.ship.sinks import Answer, Verdict
from sidecar.ship.sinks import clickhouse_tables as tables
from sidecar.ship.sinks.clickhouse import ClickHouseSink, read_answer
from sidecar.store.erasure import forget
from sidecar.store.outbox import Batch, Line, freeze
from sidecar.store.tombstones import hash_of
from tests.builders import BOT, event, open_dashboard, page_of, vital
from tests.servers import sidecar
from tests.ship.clickhouse import MEMORY_MAX, PASSWORD, ClickHouse, Engine
from tests.ship.house import NOW, TIMEOUT_MS, House, Reply, ScriptedSink, Upstream

pytestmark = pytest.mark.anyio

NEWS = "/?utm_source=news&utm_campaign=spring"
TAKEN = Answer(Verdict.TAKEN, "HTTP 200")
KINDS: list[type[ClickHouse]] = [ClickHouse, Engine]


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ClickHouse]:
    """A running server without tables."""
    server: ClickHouse = request.param(tmp_path / "clickhouse")
    server.start()
    try:
        yield server
    finally:
        server.kill()  # in order it takes a second


@pytest.fixture
async def server(empty: ClickHouse) -> ClickHouse:
    """A running server with our tables."""
    await ClickHouseSink(empty.url).prepare()
    return empty


@pytest.fixture
async def debian(tmp_path: Path) -> AsyncIterator[ClickHouse]:
    """The old one, running, with our tables."""
    server = ClickHouse(tmp_path / "clickhouse")
    server.start()
    try:
        await ClickHouseSink(server.url).prepare()
        yield server
    finally:
        server.kill()  # in order it takes a second


def prepare(url: str, *, only_print: bool = False) -> str:
    """What `sidecar upstream init` prints."""
    return "\n".join(prepare_upstream(load_settings({"SIDECAR_UPSTREAM_URL": url}), only_print=only_print))


async def send(server: ClickHouse, batch: Batch) -> Answer:
    """One attempt, on a connection of its own."""
    sink = ClickHouseSink(server.url)
    try:
        return await sink.send(batch, NOW)
    finally:
        await sink.close()


async def ship(house: House, server: ClickHouse, **options: Any) -> str:
    """One pass, in words."""
    return (await house.shipper(ClickHouseSink(server.url), **options).ship_once()).sentence


def to_batch(*lines: dict[str, Any]) -> Batch:
    """A batch of these documents."""
    texts = [Line(1, None, 1, json.dumps(line, separators=(",", ":")).encode()) for line in lines]
    draft = freeze("default", texts)
    return Batch(1, "b-1", "default", draft.body, draft.body_bytes, len(texts), 1, NOW)


def exported(house: House) -> list[dict[str, Any]]:
    return [json.loads(line) for line in house.export()]


def fill(house: House) -> None:
    """Sessions of every kind, with texts that want escaping."""
    traits: dict[str, object] = {"userId": "u-1", "traits": {"name": "Zoë\u0000\\n😀", "a": {"b": [1, None, 0.1]}}}
    house.record(
        vital("full", "LCP", 2500.5, at=10),
        vital("full", "CLS", 0.1, at=10, client=None),
        vital("full", "TTFB", 0, navigation_type="back-forward-cache", at=11),
        event("full", at=20, visitor="visitor-aaaaaa", page=page_of(NEWS), campaign=campaign_of(None, NEWS)),
        event("full", "user_identified", at=30, properties=traits),
        event("full", "purchase", at=40, properties={"revenue": 19.99, "currency": "EUR"}, page=page_of("/done?x=1")),
        event("second", at=50, visitor="visitor-aaaaaa", funnel_id="land'ing\\"),
        vital("provisional", "CLS", 1e-7, client=None, page=None),
        event("robot", client=BOT, clock_skewed=True),
    )
    house.record_sessions(40)


# --- tables ----------------------------------------------------------------------------------------------------------


def test_init_makes_the_tables_and_can_be_run_again(empty: ClickHouse) -> None:
    """The command says what it made; what is there already stays."""
    first, second = (sidecar("upstream", "init", UPSTREAM_URL=empty.url) for _ in range(2))
    assert first.stdout.decode().splitlines() == [
        "database fleet: made",
        "table sessions: made",
        "table tombstones: made",
        "view current_sessions: made",
        "view web_vitals: made",
        "view events: made",
    ], first.stderr
    assert second.stdout.decode().splitlines() == [
        "table sessions: there already",
        "table tombstones: there already",
        "view current_sessions: made anew",
        "view web_vitals: made anew",
        "view events: made anew",
    ], second.stderr
    assert empty.count("current_sessions") == 0


async def test_the_printed_sql_makes_the_same(empty: ClickHouse) -> None:
    """`--print` connects nowhere; its statements, run by hand, are what `init` finds there."""
    statements = prepare("clickhouse://nowhere.invalid/fleet", only_print=True).split(";\n")
    assert len(statements) == 7
    for statement in statements[:-1]:
        empty.query(statement)
    assert (await ClickHouseSink(empty.url).prepare())[0] == "table sessions: there already"
    order = f"WHERE database = '{empty.database}' AND table IN ('sessions', 'tombstones') ORDER BY table, name"
    kept = "name, type FROM system.columns"
    assert dict(line.split("\t") for line in empty.query(f"SELECT {kept} {order}").splitlines()) == {
        name: kind for columns in tables.TABLES.values() for name, kind in columns.items()
    }


@pytest.mark.parametrize("made", ["TABLE events (a String) ENGINE = Log", "VIEW web_vitals AS SELECT 1 AS a"])
async def test_tables_of_others_are_left_alone(empty: ClickHouse, made: str) -> None:
    """A name that is taken ends it, before anything is made."""
    empty.query(f"CREATE DATABASE {empty.database}")
    empty.query("CREATE " + made.replace(" ", f" {empty.database}.", 1))
    with pytest.raises(SidecarError, match="choose a database of its own"):
        await ClickHouseSink(empty.url).prepare()
    found = empty.query(f"SELECT name FROM system.tables WHERE database = '{empty.database}'").split()
    assert found == [made.split()[1]]


@pytest.mark.parametrize("url", ["https://up.test/", "file:///somewhere/", "s3://bucket/"])
def test_other_destinations_need_nothing(url: str) -> None:
    assert prepare(url) == f"a destination of {url.split(':')[0]}:// needs no tables: nothing to do"
    assert prepare(url, only_print=True).startswith("-- ")


def test_without_a_destination_there_is_nothing_to_prepare() -> None:
    done = sidecar("upstream", "init")
    assert (done.returncode, done.stderr) == (
        1,
        b"sidecar: SIDECAR_UPSTREAM_URL is not set: there is nothing to prepare\n",
    )


async def test_without_tables_it_is_blocked_until_they_are_made(house: House, empty: ClickHouse) -> None:
    """The database missing, then a table: the same words."""
    house.record_sessions(3)
    assert "blocked: ClickHouse code 81: the tables are missing: run `sidecar upstream init`" in await ship(
        house, empty
    )
    empty.query(f"CREATE DATABASE {empty.database}")
    assert "blocked: ClickHouse code 60: the tables are missing: run `sidecar upstream init`" in await ship(
        house, empty
    )
    assert house.shipping()["waitingSessions"] == 3
    await ClickHouseSink(empty.url).prepare()
    assert await ship(house, empty) == "3 sessions shipped in 1 batches (1 requests)"
    assert empty.documents() == exported(house)


async def test_tables_that_lack_a_column_block(house: House, server: ClickHouse) -> None:
    house.record_sessions(1)
    for view in reversed(tables.create_views(server.database)):  # today's ClickHouse drops no column that one reads
        server.query(f"DROP TABLE {server.database}.{view}")
    server.query(f"ALTER TABLE {server.database}.sessions DROP COLUMN traits")
    assert "the tables lack columns of this version" in await ship(house, server)


# --- rows ------------------------------------------------------------------------------------------------------------


async def test_every_document_can_be_read_back(house: House, server: ClickHouse) -> None:
    """Sessions of every kind: the rows hold all that the documents hold."""
    fill(house)
    assert await ship(house, server, lines_max=7) == "44 sessions shipped in 7 batches (7 requests)"
    assert server.documents() == exported(house)
    assert server.count("sessions") == 44


async def test_views_give_one_row_a_fact(house: House, server: ClickHouse) -> None:
    fill(house)
    await ship(house, server)
    where = f"FROM {server.database}.web_vitals WHERE session_id = 'full' ORDER BY metric"
    assert server.rows(f"SELECT metric, value, device_type, bot, toString(time) AS time, in_figures {where}") == [
        {"metric": metric, "value": value, "device_type": device, "bot": "", "in_figures": counted}
        | {"time": "2026-11-22 07:00:00"}
        for metric, value, device, counted in (
            ("CLS", 0.1, "", 1),
            ("LCP", 2500.5, "desktop", 1),
            ("TTFB", 0, "desktop", 0),
        )
    ]
    named = f"SELECT session_id, event_name, device_type, bot FROM {server.database}.events"
    assert server.rows(f"{named} WHERE session_id IN ('robot', 'second') ORDER BY session_id") == [
        {"session_id": "robot", "event_name": "page_view", "device_type": "", "bot": "Examplebot"},
        {"session_id": "second", "event_name": "page_view", "device_type": "desktop", "bot": ""},
    ]
    assert server.count("events") == sum(len(document["events"]) for document in exported(house))


async def test_the_p75_of_a_fleet_is_that_of_the_api(house: House, server: ClickHouse) -> None:
    """Nearest rank, also where 0.75 n is whole; placeholders and bots are in neither."""
    for number in range(31):
        facts = [
            vital(f"s-{number}", "LCP", 1000 + 37.5 * (number * 7 % 31), at=number),
            vital(f"s-{number}", "TTFB", 0, at=number, navigation_type="soft-navigation", fact_id="placeholder"),
            vital(f"s-{number}", "INP", 0, at=number, client=BOT, fact_id="robot"),  # but the session is a person's
        ]
        facts += [vital(f"s-{number}", "CLS", number / 3000, at=number)] if number < 20 else []
        facts += [vital(f"s-{number}", "TTFB", 300 + number, at=number)] if number < 4 else []
        facts += [vital(f"bot-{number}", "LCP", 9999, at=number, client=BOT)]
        house.record(*facts)
    await ship(house, server)
    rows = server.rows(tables.fleet_p75(server.database))
    figures = {row["metric"]: (pytest.approx(row["p75"], rel=1e-12), int(row["page_views"])) for row in rows}
    with open_dashboard(house.path, now=NOW) as client:
        metrics = client.get("/api/vitals").json()["metrics"]
    assert {name: (one["p75"], one["count"]) for name, one in metrics.items() if one["count"]} == figures
    assert {name: count for name, (_, count) in figures.items()} == {"LCP": 31, "INP": 31, "CLS": 20, "TTFB": 4}


async def test_the_quantile_is_nearest_rank_for_every_count(empty: ClickHouse) -> None:
    """quantileExact is not: of four values it gives the fourth."""
    for count in range(1, 42):
        numbers = f"(SELECT number + 1 AS value FROM system.numbers LIMIT {count})"
        found = float(empty.query(f"SELECT quantileExactWeighted(0.75)(value, 1) FROM {numbers}"))
        assert found == ceil(0.75 * count) == nearest_rank([float(one) for one in range(1, count + 1)], 0.75)


async def test_a_session_of_10_000_facts(house: House, server: ClickHouse) -> None:
    """The largest there are: 14 MiB of document in one row, and back."""
    title = "t" * 400
    house.record(
        *(
            vital(
                "large", "CLS", number / 7, fact_id=f"v-{number:05d}-{'x' * 110}", at=number, page=page_of("/", title)
            )
            for number in range(10_000)
        )
    )
    [line] = house.export()
    assert len(line) > 7_000_000
    assert await ship(house, server) == "1 sessions shipped in 1 batches (1 requests)"
    [document], [wanted] = server.documents(), exported(house)
    values = [[vital.pop("value") for vital in one["webVitals"]] for one in (document, wanted)]
    assert document == wanted
    assert values[0] == pytest.approx(values[1], rel=1e-15 * 4), "18.16 reads a number to its last bit but one"


def test_a_request_holds_at_most_5_000_rows() -> None:
    document = _document()
    batch = to_batch(*(document | {"sessionId": f"s-{number}"} for number in range(5001)))
    packed = list(tables.pack_rows(batch))
    assert [len(gzip.decompress(one).splitlines()) for one in packed] == [5000, 1]
    assert packed == list(tables.pack_rows(batch)), "the same batch gives the same bytes"
    grave = _tombstone("v-1", *(f"s-{number}" for number in range(5000)))
    assert [len(gzip.decompress(one).splitlines()) for one in tables.pack_rows(to_batch(grave))] == [5000, 1]
    sizes = [statement.count("', '") + 1 for statement in tables.erase("fleet", to_batch(grave))]
    assert sizes == [1000] * 5 + [1]


async def test_all_requests_of_a_batch_arrive(server: ClickHouse) -> None:
    document = _document()
    batch = to_batch(*(document | {"sessionId": f"s-{number}"} for number in range(5001)))
    assert await send(server, batch) == TAKEN
    assert server.count("current_sessions") == 5001


# --- exactly once ----------------------------------------------------------------------------------------------------


async def test_a_repeat_changes_nothing(house: House, server: ClickHouse) -> None:
    """The answer was lost: the same bytes again."""
    house.record_sessions(20)
    sink = ClickHouseSink(server.url)

    class LosesTheFirstAnswer(ScriptedSink):
        async def send(self, batch: Batch, now: int) -> Answer:
            answer = await sink.send(batch, now)
            self.sent.append(batch)
            return answer if len(self.sent) > 1 else Answer(Verdict.AGAIN, "no answer in time")

    losing = LosesTheFirstAnswer(address=sink.address)
    await house.shipper(losing).ship_once()
    assert server.documents() == exported(house), "it was applied"
    assert (await house.shipper(losing).ship_once()).confirmed == 20
    await sink.close()
    assert losing.sent[0].body == losing.sent[1].body
    assert server.documents() == exported(house)
    assert server.count("web_vitals") == 20


async def test_the_highest_revision_counts_whatever_comes_last(house: House, server: ClickHouse) -> None:
    """A late fact replaces its session; the old batch, replayed, does not bring the old one back."""
    house.record_sessions(5)
    old = ScriptedSink(address=ClickHouseSink(server.url).address)
    await house.shipper(old).ship_once()
    assert await send(server, old.sent[0]) == TAKEN
    house.record(vital("s-002", "INP", 80, at=-90 * 86_400_000))  # and the session starts in another quarter
    house.now += 2 * TIMEOUT_MS
    assert await ship(house, server) == "1 sessions shipped in 1 batches (1 requests)"
    wanted = exported(house)
    assert server.documents() == wanted
    assert await send(server, old.sent[0]) == TAKEN
    assert server.documents() == wanted
    server.query(f"OPTIMIZE TABLE {server.database}.sessions FINAL")
    assert server.documents() == wanted, "merged on disk, too"
    assert server.count("sessions") == 5


async def test_erasures(house: House, server: ClickHouse) -> None:
    """Hidden at once, deleted soon, and what comes late stays hidden; nobody else is touched."""
    house.record_sessions(5)
    house.record(event("s-9", site="other", visitor="v-1"))
    kept = ScriptedSink(address=ClickHouseSink(server.url).address)
    await house.shipper(kept).ship_once()
    for batch in kept.sent:
        assert await send(server, batch) == TAKEN
    assert server.count("current_sessions") == 6
    house.write(lambda conn: forget(conn, "default", "v-1", house.now))
    assert await ship(house, server) == "0 sessions shipped in 1 batches (1 requests), 1 erasures told"
    wanted = [document for document in exported(house) if document["type"] == "session"]
    assert len(wanted) == 5
    assert server.documents() == wanted
    assert _wait_for_count(server, "sessions", 5) == 5, "the bytes go, too"
    for batch in kept.sent:
        assert await send(server, batch) == TAKEN
    assert server.documents() == wanted
    assert server.count("events") == 5


async def test_tombstones_only_add_up(server: ClickHouse) -> None:
    """The first of a visitor, replayed after a later one that knows more sessions; one of another site's hashes."""
    named = _document() | {"visitor": {"anonymousId": "v-1"}}
    batch = to_batch(*(named | {"sessionId": f"s-{number}"} for number in range(4)))
    assert await send(server, batch) == TAKEN
    others = _document() | {"sessionId": "s-9"}
    assert await send(server, to_batch(_document(), others)) == TAKEN
    foreign = _tombstone("v-1", "s-9") | {"site": "el'se\\"}
    for grave in (_tombstone("v-2", "s-0"), _tombstone("v-2", "s-0", "s-1"), _tombstone("v-2", "s-0"), foreign):
        assert await send(server, to_batch(grave)) == TAKEN
    assert _wait_for_count(server, "sessions", 4) == 4
    server.query(f"OPTIMIZE TABLE {server.database}.tombstones FINAL")
    assert await send(server, batch) == TAKEN, "late, from elsewhere: there, and hidden"
    assert server.count("sessions") > 4
    assert [document["sessionId"] for document in server.documents()] == ["s-2", "s-3", "s-9", "session"]
    assert await send(server, to_batch(_tombstone("v-1"))) == TAKEN
    assert [document["sessionId"] for document in server.documents()] == ["s-9", "session"]


async def test_killed_while_it_takes_a_batch(house: House, server: ClickHouse) -> None:
    """kill -9 at five moments of an INSERT; after each restart the same batch goes again, and nothing is double."""
    title = "t" * 400
    for number in range(200):
        facts = [
            vital(f"s-{number:03d}", "LCP", one, fact_id=f"v-{one}", page=page_of("/", title)) for one in range(50)
        ]
        house.record(*facts)
    cut = 0
    for wait_s in (0.0, 0.02, 0.08, 0.2, 0.4):
        begun = asyncio.Event()
        task = asyncio.create_task(house.shipper(_Announces(server.url, begun)).ship_once())
        await begun.wait()
        await asyncio.sleep(wait_s)
        await asyncio.to_thread(server.kill)
        passed = await task
        cut += passed.state == "waiting"
        await asyncio.to_thread(server.start)
        if passed.state == "ready":
            house.record(vital("s-000", "INP", 100 * wait_s, fact_id=f"late-{wait_s}"))  # something to ship again
    assert cut >= 2, "the test means nothing where every INSERT was through"
    await ship(house, server)
    assert house.shipping()["waitingSessions"] == 0
    assert server.documents() == exported(house)
    assert server.count("web_vitals") == sum(len(document["webVitals"]) for document in exported(house))


async def test_a_body_that_breaks_off_leaves_nothing(house: House, debian: ClickHouse) -> None:
    """On the old server, which takes a plain body cut between two rows as the whole."""
    house.record_sessions(300)
    kept = ScriptedSink(address=debian.address)
    await house.shipper(kept).ship_once()
    [batch] = kept.sent
    [packed] = tables.pack_rows(batch)
    authorization = await _read_authorization(debian, batch)
    for share in (0.1, 0.5, 0.9, 1):
        sent = packed[: int(len(packed) * share) - 1]
        for length in (len(packed), len(sent)):  # the connection breaks; a proxy passes on what it has got as the whole
            with socket.create_connection(("127.0.0.1", debian.port)) as connection:
                head = [
                    f"POST /?query={tables.insert(debian.database, 'sessions').replace(' ', '%20')} HTTP/1.1",
                    "Host: localhost",
                    f"Authorization: {authorization}",
                    "Content-Encoding: gzip",
                    f"Content-Length: {length}",
                ]
                connection.sendall("\r\n".join([*head, "", ""]).encode() + sent)
                connection.shutdown(socket.SHUT_WR)
                connection.settimeout(10)
                said = b""
                while chunk := connection.recv(65_536):
                    said += chunk
                assert read_answer(500, "", said).verdict is Verdict.AGAIN, said
    assert debian.count("sessions") == 0
    assert await send(debian, batch) == TAKEN
    assert debian.count("sessions") == 300


async def _read_authorization(server: ClickHouse, batch: Batch) -> str:
    """The header that the sink sends."""
    with Upstream(Reply()) as upstream:
        sink = ClickHouseSink(server.url.replace(str(server.port), str(upstream.server.server_port)))
        await sink.send(batch, NOW)
        await sink.close()
    return upstream.requests[0].headers["authorization"]


# --- refusals --------------------------------------------------------------------------------------------------------


async def test_one_bad_row_is_found_and_parked(house: House, empty: ClickHouse) -> None:
    """The server refuses one row of 64 (a column that somebody made narrow): the others arrive."""
    empty.query(tables.create_database(empty.database))
    narrow = tables.create_tables(empty.database)["sessions"].replace("`city` String", "`city` FixedString(3)", 1)
    empty.query(narrow)
    await ClickHouseSink(empty.url).prepare()
    house.record_sessions(64)
    spoilt = vital("s-041", "FCP", 1, at=-5, client=_in_city("Freiburg"))
    house.record(spoilt, ago_ms=2 * TIMEOUT_MS - 41)
    passed = await house.shipper(ClickHouseSink(empty.url)).ship_once()
    assert (passed.confirmed, passed.parked, passed.state) == (63, 1, "ready")
    assert passed.requests <= 2 * ceil(log2(64)) + 1
    assert empty.count("current_sessions") == 63
    [parked] = house.read(lambda conn: conn.execute("SELECT reason FROM parked").fetchall())
    assert parked[0].startswith("ClickHouse code 131: a row was refused: Code: 131")


async def test_a_line_that_is_no_document_is_refused(server: ClickHouse) -> None:
    good, never = _document(), _document() | {"startedAt": "never"}
    assert await send(server, to_batch(good, never)) == Answer(Verdict.REFUSED, "line 1 makes no row: ValueError")
    assert (await send(server, to_batch(good | {"clients": ["x"]}))).verdict is Verdict.REFUSED
    grave = _tombstone("v-1") | {"sessionHashes": ["') OR 1=1 --"]}
    assert (await send(server, to_batch(grave))).verdict is Verdict.REFUSED
    assert server.count("sessions") == 0


async def test_a_wrong_password_blocks_and_is_told_nowhere(
    house: House, server: ClickHouse, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither the right nor the wrong one is in an address, a reason, a log or the database."""
    house.record_sessions(2)
    sink = ClickHouseSink(server.url.replace("s3cret", "wr0ng"))
    assert sink.address == server.address
    with caplog.at_level(logging.INFO), capture_logs() as logs:
        passed = await house.shipper(sink).ship_once()
        right = await ship(house, server)
    assert passed.state == "blocked"
    assert passed.reason in [f"ClickHouse code {code}: user or password refused" for code in (193, 516)]
    assert right == "2 sessions shipped in 1 batches (1 requests)"
    with pytest.raises(SidecarError, match="user or password refused") as refused:
        await ClickHouseSink(server.url.replace("s3cret", "wr0ng")).prepare()
    said = f"{sink!r} {house.shipping()} {logs} {caplog.text} {refused.value}".encode()
    files = b"".join(path.read_bytes() for path in house.path.parent.glob("house.db*"))
    for text in (PASSWORD, "s3cret", "wr0ng"):
        assert text.encode() not in said + files
    assert "user" not in sink.address
    assert "default" not in sink.address


async def test_a_profile_that_forgives_errors_does_not_lose_rows(tmp_path: Path) -> None:
    """With `input_format_allow_errors_num` a server says OK to rows that it throws away."""
    server = ClickHouse(tmp_path / "clickhouse")
    server.settings = "<input_format_allow_errors_num>10</input_format_allow_errors_num>"
    server.start()
    try:
        await ClickHouseSink(server.url).prepare()
        bad = _document() | {"revision": "seven"}
        assert (await send(server, to_batch(_document(), bad))).verdict is Verdict.REFUSED
        assert server.count("sessions") == 0
    finally:
        server.stop()


async def test_ok_means_stored_on_a_server_that_inserts_later(tmp_path: Path) -> None:
    """Where a profile says `wait_for_async_insert = 0`, we ask for the opposite; 18.16 does not know the setting."""
    server = Engine(tmp_path / "clickhouse")
    server.start()
    try:
        await ClickHouseSink(server.url).prepare()
        server.query("SET wait_for_async_insert = 0")
        value = "SELECT value FROM system.settings WHERE name = 'wait_for_async_insert'"
        assert server.query(value) == "0\n"
        assert await send(server, to_batch(_document())) == TAKEN
        assert server.query(value) == "1\n", "asked for with the INSERT"
        assert server.count("current_sessions") == 1
    finally:
        server.stop()


async def test_too_little_memory_is_waited_for(debian: ClickHouse) -> None:
    """A limit of the server, and not of the batch: the same bytes again."""
    debian.stop()
    debian.memory_max = 4_000_000
    debian.start()
    large = _document() | {"events": [{"properties": {"a": "x" * 1000}, "timestamp": _TIME}] * 8000}
    answer = await send(debian, to_batch(large))
    assert (answer.verdict, answer.reason) == (Verdict.AGAIN, "ClickHouse code 241: not enough memory")
    debian.stop()
    debian.memory_max = MEMORY_MAX
    debian.start()
    assert await send(debian, to_batch(large)) == TAKEN


async def test_nobody_there(tmp_path: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port = listener.getsockname()[1]
    sink = ClickHouseSink(f"clickhouse://127.0.0.1:{port}/fleet")
    assert await sink.send(to_batch(_document()), NOW) == Answer(Verdict.AGAIN, "no answer: connection refused")
    with pytest.raises(SidecarError, match="connection refused"):
        await sink.prepare()


async def test_a_server_that_is_no_clickhouse_confirms_nothing() -> None:
    """A web server says 200 to anything, with and without a body."""
    for reply in (Reply(), Reply(200, b""), Reply(200, b"<html>")):
        with Upstream(reply) as upstream:
            sink = ClickHouseSink(f"clickhouse://127.0.0.1:{upstream.server.server_port}")
            answer = await sink.send(to_batch(_document()), NOW)
            await sink.close()
        assert (answer.verdict, answer.reason) == (Verdict.BLOCKED, "the answer is not ClickHouse's")
        assert len(upstream.requests) == 1, "no row was sent"


async def test_answers_are_read_up_to_a_bound_and_a_slow_one_is_none() -> None:
    with Upstream(Reply(500, b"x" * 1_000_000), Reply(delay_s=0.5)) as upstream:
        sink = ClickHouseSink(f"clickhouse://127.0.0.1:{upstream.server.server_port}", timeout_s=0.2)
        answer = await sink.send(to_batch(_document()), NOW)
        assert (answer.verdict, len(answer.detail)) == (Verdict.AGAIN, 300)
        assert await sink.send(to_batch(_document()), NOW) == Answer(Verdict.AGAIN, "no answer in time")
        await sink.close()


async def test_tls(house: House, debian: ClickHouse, tmp_path: Path) -> None:
    """`clickhouses://` on the real server: its certificate is checked."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    make += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", str(key)]
    process = await asyncio.create_subprocess_exec(*make, "-out", str(certificate), stderr=subprocess.DEVNULL)
    assert await process.wait() == 0
    debian.stop()
    port = debian.listen_tls(key, certificate)
    debian.start()
    house.record_sessions(2)
    url = debian.url.replace("clickhouse:", "clickhouses:").replace(f"127.0.0.1:{debian.port}", f"localhost:{port}")
    passed = await house.shipper(ClickHouseSink(url)).ship_once()
    assert (passed.state, passed.reason) == ("blocked", "TLS refused: self-signed certificate")
    context = ssl.create_default_context(cafile=certificate)
    assert (await house.shipper(ClickHouseSink(url, tls=context)).ship_once()).confirmed == 2
    assert debian.documents() == exported(house)


OLD = "Code: %d, e.displayText() = DB::Exception: said, e.what() = DB::Exception"
NEW = "Code: %d. DB::Exception: said. (NAME) (version 26.9.2.1)"


@pytest.mark.parametrize(
    ("code", "verdict"),
    [
        (60, Verdict.BLOCKED),
        (81, Verdict.BLOCKED),
        (16, Verdict.BLOCKED),
        (193, Verdict.BLOCKED),
        (516, Verdict.BLOCKED),
        (497, Verdict.BLOCKED),
        (164, Verdict.BLOCKED),
        (36, Verdict.BLOCKED),
        (49, Verdict.AGAIN),
        (27, Verdict.REFUSED),
        (26, Verdict.REFUSED),
        (53, Verdict.REFUSED),
        (117, Verdict.REFUSED),
        (33, Verdict.AGAIN),
        (159, Verdict.AGAIN),
        (160, Verdict.AGAIN),
        (202, Verdict.AGAIN),
        (209, Verdict.AGAIN),
        (210, Verdict.AGAIN),
        (241, Verdict.AGAIN),
        (242, Verdict.AGAIN),
        (243, Verdict.AGAIN),
        (252, Verdict.AGAIN),
    ],
)
@pytest.mark.parametrize("status", [200, 400, 404, 500])
def test_errors_are_read_by_their_code(code: int, verdict: Verdict, status: int) -> None:
    """Whatever the status: a 200 may have been sent before anything failed."""
    for answer in (
        read_answer(status, "", (OLD % code).encode()),
        read_answer(status, str(code), (NEW % code).encode()),
        read_answer(status, str(code), b""),
        read_answer(status, "", b"\r\n__exception__\r\n" + (NEW % code).encode()),
    ):
        assert answer.verdict is verdict
        assert answer.reason.startswith(f"ClickHouse code {code}: ")
        assert "said" not in answer.reason


def test_unknown_codes_go_by_the_status() -> None:
    assert read_answer(500, "", (NEW % 7777).encode()).verdict is Verdict.AGAIN
    assert read_answer(400, "", (OLD % 7777).encode()).verdict is Verdict.REFUSED
    assert read_answer(200, "7777", b"").verdict is Verdict.AGAIN, "it failed, so it is not taken"
    assert read_answer(200, "", b"") == TAKEN
    assert read_answer(502, "", b"<h1>Bad gateway</h1>", retry_after="7") == Answer(
        Verdict.AGAIN, "HTTP 502", "<h1>Bad gateway</h1>", "7"
    )
    assert read_answer(413, "", b"").verdict is Verdict.TOO_LARGE
    assert read_answer(200, "", b"hello").verdict is Verdict.BLOCKED
    assert read_answer(403, "516", b"Code: 516. anna: wrong").detail == "", "it names the user"


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("clickhouse://Up.Test", "clickhouse://up.test:8123/default"),
        ("clickhouses://me:secret@up.test/fleet", "clickhouses://up.test:8443/fleet"),
        ("clickhouse://me@[::1]:9/fleet/", "clickhouse://[::1]:9/fleet"),
    ],
)
def test_the_address_holds_no_credentials(url: str, address: str) -> None:
    assert ClickHouseSink(url).address == address
    assert repr(ClickHouseSink(url)) == f"<ClickHouseSink {address}>"


@pytest.mark.parametrize("url", ["clickhouse://u:hidden@up.test/a%60b", "clickhouse://u:hidden@up.test/a?cluster=b"])
def test_an_address_that_is_none_stops_the_start(url: str) -> None:
    with pytest.raises(ConfigError, match="must be like clickhouse://user:password@host") as refused:
        prepare(url)
    assert "hidden" not in str(refused.value)


# --- what the tests above are made of --------------------------------------------------------------------------------

_TIME = "2026-11-22T07:00:00.000Z"


def _wait_for_count(server: ClickHouse, table: str, wanted: int) -> int:
    """What a table holds once it holds that, or after 20 s."""
    deadline = time.monotonic() + 20
    while (found := server.count(table)) != wanted and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


class _Announces(ClickHouseSink):
    """Says when an attempt begins."""

    def __init__(self, url: str, begun: asyncio.Event) -> None:
        super().__init__(url)
        self._begun = begun

    async def send(self, batch: Batch, now: int) -> Answer:
        self._begun.set()
        return await super().send(batch, now)


def _document() -> dict[str, Any]:
    """The least that makes a row."""
    named = {"type": "session", "site": "default", "funnelId": "default", "sessionId": "session", "revision": 7}
    return named | {"startedAt": _TIME, "endedAt": _TIME}


def _tombstone(visitor: str, *sessions: str) -> dict[str, Any]:
    hashes = [hash_of("default", "default", session) for session in sessions]
    said = {"visitorHash": hash_of("default", visitor), "sessionHashes": hashes, "erasedAt": _TIME}
    return {"type": "tombstone", "version": 1, "site": "default"} | said


def _in_city(city: str) -> Any:
    return BOT._replace(bot=None, country_code="DE", city=city)
