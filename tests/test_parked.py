"""`sidecar parked`: what an upstream refused, looked at, sent again and given up, beside a running server."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import httpx2
import pytest
from click.testing import CliRunner

from sidecar.__main__ import cli
from sidecar.errors import SidecarError
from sidecar.store import outbox
from sidecar.store.erasure import forget
from sidecar.store.shipping import list_parked, list_refused
from sidecar.store.shipping_text import parked_lines
from tests.builders import vital
from tests.servers import Server, sidecar
from tests.ship.house import ADDRESS, House

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
REASON = "site: not allowed to this token"
NOTHING = "nothing is parked\n"


def fill(path: Path) -> None:
    """Three finished sessions by the real clock; the visitor of one more was erased."""
    with House(path) as house:
        house.now = time.time_ns() // 1_000_000
        house.record_sessions(4)
        house.write(lambda conn: forget(conn, "default", "v-3", house.now))


def run(path: Path, *arguments: str) -> str:
    """A command that succeeds; what it prints. Called here: a program takes a second to start."""
    done = CliRunner().invoke(cli, ["parked", *arguments, "--database", str(path)], catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    return done.stdout


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with House(tmp_path / "house.db") as opened:
        opened.write(lambda conn: outbox.set_destination(conn, ADDRESS, opened.now))
        yield opened


def park(house: House, reason: str = "bad") -> None:
    """What waits is refused, line by line."""
    while batch := house.claim():
        refused = dict.fromkeys(range(batch.lines_count), reason)
        key = batch.batch_key
        house.write(lambda conn: outbox.confirm(conn, key, rejected=refused, answer="200 OK", now=house.now))  # noqa: B023


def test_a_refused_site_from_the_first_look_to_delivery(tmp_path: Path) -> None:
    """A token that may not write the site: all is parked. One is given up; another destination gets everything."""
    path = tmp_path / "filled.db"
    fill(path)
    assert run(path, "list") == NOTHING
    closed = json.dumps([{"token": "t", "sites": ["other"]}])
    with Server(tmp_path / "upstream.db", RECEIVE_TOKEN=closed) as upstream:
        to: dict[str, Any] = {"SITE": "default", "UPSTREAM_URL": f"{upstream.url}/api/sessions", "UPSTREAM_TOKEN": "t"}
        shipped = sidecar("ship", DATABASE=str(path), **to).stdout.decode()
        assert shipped.startswith("0 sessions shipped in ")
        assert "4 parked" in shipped
        status = sidecar("status", DATABASE=str(path)).stdout.decode()
        assert "sessions parked         3, 1 erasure refused (see sidecar parked list)" in status
        assert "ready: nothing waiting, 4 refused and parked" in status

    head, *table = run(path, "list").splitlines()
    assert head.split() == ["ID", "PARKED", "AT", "SITE", "FUNNEL", "SESSION", "BATCH", "REASON"]
    assert len(table) == 4
    ids = [line.split()[0] for line in table]
    for number, line in enumerate(table[:3]):
        assert re.fullmatch(
            rf"{ids[number]} +{TIME}  default  default  s-00{number} +[0-9a-f-]{{36}}  .*{REASON}.*", line
        )
    assert re.fullmatch(rf"t1 +- +default  - +\(an erasure: visitor hash [0-9a-f]{{12}}\)  - +.*{REASON}.*", table[3])

    shown = run(path, "show", ids[0])
    said, _, document = shown.partition("\n\n")
    for label, value in (("id", ids[0]), ("state", "parked"), ("session", "s-000"), ("refused revision", TIME)):
        assert re.search(rf"^{label} +{value}$", said, re.MULTILINE), said
    heading, _, document = document.partition("\n")
    assert re.fullmatch(rf"What would be sent now, at revision {TIME}:", heading)
    [line] = run(path, "show", ids[0], "--line").splitlines()
    exported = sidecar("export", DATABASE=str(path)).stdout.decode().splitlines()
    assert line == exported[0]
    assert json.loads(document) == json.loads(line)
    grave = run(path, "show", "t1")
    assert json.loads(grave.partition("now:\n")[2]) == json.loads(exported[3]) == json.loads(run_line(path, "t1"))

    assert run(path, "discard", ids[2]) == (
        f"{ids[2]} given up at the refused revision: the session stays here, a change of it ships again, "
        f"and `sidecar parked requeue {ids[2]}` takes this back\n"
    )
    assert ids[2] not in [line.split()[0] for line in run(path, "list").splitlines()]
    assert "discarded at" in run(path, "show", ids[2])

    with Server(tmp_path / "upstream.db", RECEIVE_TOKEN="t") as upstream:
        to["UPSTREAM_URL"] = f"{upstream.url}/api/sessions"
        # the port is another one, so it is another destination, and what the old one refused is forgotten
        with Server(path, SHIP_INTERVAL="0.05", **to) as server:
            await_shipping(server, "waitingSessions", 0)
        theirs = sidecar("export", DATABASE=str(upstream.database)).stdout
    assert theirs == sidecar("export", DATABASE=str(path)).stdout
    done = sidecar("parked", "list", DATABASE=str(path))
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, NOTHING, b"")


def run_line(path: Path, parked_id: str) -> str:
    return run(path, "show", parked_id, "--line")


def await_shipping(server: Server, name: str, wanted: int) -> dict[str, Any]:
    """Until /api/shipping says so, and that something was confirmed."""
    deadline = time.monotonic() + 20
    while True:
        said: dict[str, Any] = httpx2.get(f"{server.url}/api/shipping", verify=False).json()
        if said[name] == wanted and said["confirmedAt"] is not None:
            return said
        assert time.monotonic() < deadline, said
        time.sleep(0.02)


def test_requeue_beside_a_running_server(tmp_path: Path) -> None:
    """The same destination, mended: nothing goes by itself, one goes when it is named, the rest with --all."""
    path = tmp_path / "filled.db"
    fill(path)
    closed = json.dumps([{"token": "t", "sites": ["other"]}])
    upstream = Server(tmp_path / "upstream.db", RECEIVE_TOKEN=closed)
    to: dict[str, Any] = {"SITE": "default", "UPSTREAM_URL": f"{upstream.url}/api/sessions", "UPSTREAM_TOKEN": "t"}
    done = sidecar("ship", DATABASE=str(path), **to)
    assert (done.returncode, b"4 parked" in done.stdout) == (0, True), done.stdout
    assert b"the destination refused for good" in done.stderr
    upstream.stop()
    upstream.set(RECEIVE_TOKEN="t")
    upstream.restart()
    with upstream, Server(path, SHIP_INTERVAL="0.05", **to) as server:
        time.sleep(0.3)  # six intervals
        said = httpx2.get(f"{server.url}/api/shipping", verify=False).json()
        assert (said["parkedSessions"], said["refusedTombstones"], said["attempts"]["confirmed"]) == (3, 1, 0)
        first = run(path, "list").splitlines()[1].split()[0]
        assert run(path, "requeue", first) == (
            f"{first} requeued: the next pass ships it (`sidecar ship` does one now)\n"
        )
        assert await_shipping(server, "confirmedSessions", 1)["parkedSessions"] == 2
        assert run(path, "requeue", "t1").startswith("t1 requeued: ")
        await_shipping(server, "refusedTombstones", 0)
        assert run(path, "requeue", "--all") == ("2 requeued: the next pass ships them (`sidecar ship` does one now)\n")
        await_shipping(server, "confirmedSessions", 3)
        assert run(path, "requeue", "--all").startswith("0 requeued")
    theirs = sidecar("export", DATABASE=str(upstream.database)).stdout
    assert theirs == sidecar("export", DATABASE=str(path)).stdout
    assert sidecar("verify", DATABASE=str(path)).returncode == 0


@pytest.mark.parametrize("parked_id", ["99", "t99", "abc", "9" * 400, "\udcff", "-1x", "³", ""])
def test_an_unknown_id_is_one_line(house: House, parked_id: str) -> None:
    """Where to look; also for what can be no id at all."""
    house.record_sessions(1)
    shown = {"9" * 400: "9" * 59 + "…", "\udcff": "\\udcff"}.get(parked_id, parked_id)
    wanted = f"nothing parked has the ID {shown}: `sidecar parked list` shows what is parked"
    for command in ("show", "requeue") if parked_id == "t99" else ("show", "requeue", "discard"):
        arguments = ["parked", command, "--database", str(house.path), "--", parked_id]
        with pytest.raises(SidecarError, match=f"^{re.escape(wanted)}$"):
            cli.main(arguments, standalone_mode=False)


def test_an_unknown_id_exits_1(house: House) -> None:
    """On stderr, and no traceback."""
    done = sidecar("parked", "show", "7", DATABASE=str(house.path))
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr == b"sidecar: nothing parked has the ID 7: `sidecar parked list` shows what is parked\n"


def test_what_is_not_parked_any_more_is_unknown(house: House) -> None:
    """A session that waits, one that was given up already, a tombstone that was not refused."""
    house.record_sessions(2)
    key = house.key("s-001")

    def call(command: str, parked_id: str) -> None:
        cli.main(["parked", command, "--database", str(house.path), parked_id], standalone_mode=False)

    for command in ("show", "requeue", "discard"):
        with pytest.raises(SidecarError, match="nothing parked"):
            call(command, str(key))
    park(house)
    call("discard", str(key))
    with pytest.raises(SidecarError, match="nothing parked"):
        call("discard", str(key))
    call("requeue", str(key))
    house.write(lambda conn: forget(conn, "default", "v-0", house.now))
    for command in ("show", "requeue"):
        with pytest.raises(SidecarError, match="nothing parked"):
            call(command, "t1")
    assert house.session("s-001")["shipping"] == "waiting"


def test_wrong_usage_and_what_cannot_be(house: House, tmp_path: Path) -> None:
    """Neither or both of ID and --all: exit 2. No database: one line, and none is made. An erasure cannot go."""
    for arguments in (["requeue"], ["requeue", "1", "--all"], ["show"], ["explode"]):
        with pytest.raises(click.UsageError):  # exit 2, as test_cli shows
            cli.main(["parked", *arguments], standalone_mode=False)
    none = tmp_path / "none" / "x.db"
    none.parent.mkdir()
    for arguments in (["list"], ["show", "1"], ["requeue", "1"], ["requeue", "--all"], ["discard", "1"]):
        with pytest.raises(
            SidecarError, match=f"^{re.escape(str(none))}: no such database; `sidecar serve` makes one$"
        ):
            cli.main(["parked", *arguments, "--database", str(none)], standalone_mode=False)
    assert list(none.parent.iterdir()) == []
    with pytest.raises(SidecarError, match=r"^an erasure cannot be given up: `sidecar parked requeue` sends it again$"):
        cli.main(["parked", "discard", "t1", "--database", str(house.path)], standalone_mode=False)


def test_nothing_of_a_client_steers_the_terminal(house: House) -> None:
    """Ids and reasons with escapes, line ends and no end: the table keeps a line each, and narrow."""
    name = "a\x1b]0;x\x07\n" + "y" * 80
    house.record(vital(name, "LCP", 1200.0, site="default"))
    park(house, "no\x1b[2J\n" + "n" * 500)
    found = house.read(list_parked)
    head, line = parked_lines(found)
    assert line.isprintable()
    assert len(line) < 300
    assert line.index("a\\x1b]0;x\\x07\\nyyy") == head.index("SESSION")
    shown = sidecar("parked", "show", str(found[0]["id"]), DATABASE=str(house.path)).stdout.decode()
    assert all(text.isprintable() for text in shown.split("\n"))
    assert "n" * 500 in shown


def test_the_list_is_bounded_and_requeue_takes_all(house: House) -> None:
    """1,203 parked: 1,000 are listed, and all go again, 500 a transaction."""
    house.record_sessions(1_203)
    park(house)
    done = sidecar("parked", "list", DATABASE=str(house.path))
    assert len(done.stdout.splitlines()) == 1_001
    assert b"... and more; 1000 are shown" in done.stderr
    assert run(house.path, "requeue", "--all").startswith("1203 requeued")
    assert (house.shipping()["waitingSessions"], house.shipping()["parkedSessions"]) == (1_203, 0)


def test_what_is_parked_anew_meanwhile_is_left_alone(house: House) -> None:
    """`--all` is what was parked when it was said, so that it ends though a server parks again what it sends."""
    house.record_sessions(3)
    park(house)
    before = house.now
    house.now += 1
    house.record_sessions(2, first=3)
    park(house)
    assert house.write(lambda conn: outbox.requeue_all(conn, before=before, most=2)) == 2
    assert house.write(lambda conn: outbox.requeue_all(conn, before=before, most=2)) == 1
    assert house.write(lambda conn: outbox.requeue_all(conn, before=before, most=2)) == 0
    assert [row["sessionId"] for row in house.read(list_parked)] == ["s-003", "s-004"]
    assert house.read(list_refused) == []


def test_all_leaves_what_was_given_up(house: House) -> None:
    """A person has decided that one."""
    house.record_sessions(2)
    park(house)
    key = house.key("s-000")
    assert house.write(lambda conn: outbox.discard(conn, key, house.now))
    assert run(house.path, "requeue", "--all").startswith("1 requeued")
    assert house.session("s-000")["shipping"] == "discarded"
