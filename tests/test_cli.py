"""The command line, as a person uses it: real processes, what they print and their exit codes."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx2
import pytest

from sidecar.__main__ import main
from sidecar.config import load_settings
from sidecar.errors import ConfigError
from sidecar.store.database import immediate, open_database
from tests.servers import Server, clean_environment, event, sidecar, vital

COMMANDS = ["serve", "demo", "export", "forget", "import", "ship", "verify", "explain", "status"]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A database with three sessions in two funnels, one of them provisional, made through HTTP."""
    with Server(tmp_path_factory.mktemp("cli") / "filled.db") as server, server.client() as client:
        page = {"url": "https://shop.example/?utm_source=news", "title": "=1+1"}
        context = {"session": {"sessionId": "s-1"}, "user": {"anonymousId": "v-1"}, "page": page}
        named = event("s-1", "user_identified", context=context, properties={"traits": {"name": "=cmd()"}})
        assert client.post("/api/track/events", json=[event("s-1", context=context), named]).status_code == 200
        assert client.post("/api/track/web-vitals", json=[vital("s-1"), vital("s-2")]).status_code == 200
        assert client.post("/api/track/events", json=event("s-3", funnelId="other")).status_code == 200
        yield server.database


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    """--help says what a command does and exits 0."""
    done = sidecar(command, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(b"Usage: ")
    assert len(done.stdout.splitlines()) >= 5


def test_wrong_usage_exits_2() -> None:
    """An unknown command, an unknown option, a time that is none."""
    for arguments in (["explode"], ["status", "--colour"], ["export", "--since", "yesterday"]):
        done = sidecar(*arguments)
        assert done.returncode == 2
        assert b"Usage: " in done.stderr


@pytest.mark.parametrize("command", ["status", "verify", "export", "ship"])
def test_a_missing_database_is_one_line(command: str, tmp_path: Path) -> None:
    """Exit 1 and what to do, no traceback; and none is made by reading."""
    upstream: dict[str, Any] = {"UPSTREAM_URL": "http://127.0.0.1:1/"} if command == "ship" else {}
    done = sidecar(command, "--database", str(tmp_path / "none.db"), **upstream)
    assert done.returncode == 1
    assert done.stderr.decode().splitlines() == [
        f"sidecar: {tmp_path / 'none.db'}: no such database; `sidecar serve` makes one"
    ]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"PROT": "1"}, "SIDECAR_PROT is not a setting; did you mean SIDECAR_PORT?"),
        ({"PORT": "80000"}, "SIDECAR_PORT='80000': must be <= 65535"),
        ({"IP_PRIVACY": "some"}, "SIDECAR_IP_PRIVACY='some': must be 'truncate', 'full' or 'none'"),
        ({"UPSTREAM_SECRET": "secret"}, "SIDECAR_UPSTREAM_SECRET=(hidden): must be whsec_ and base64"),
        ({"UPSTREAM_TOKEN": "t\u00f6k\u00e9n"}, "SIDECAR_UPSTREAM_TOKEN=(hidden): must be ASCII"),
        ({"UPSTREAM_TOKEN": "a\nX: 1"}, "SIDECAR_UPSTREAM_TOKEN=(hidden): must be printable characters on one line"),
        ({"UPSTREAM_URL": "http://["}, "SIDECAR_UPSTREAM_URL=(hidden): must be an address like https://host"),
        ({"ALLOWED_ORIGINS": "http://["}, "SIDECAR_ALLOWED_ORIGINS='http://[': must be comma-separated origins"),
        ({"RECEIVE_TOKEN": '{"token":"x"}'}, "SIDECAR_RECEIVE_TOKEN=(hidden): must be a token, or a JSON list"),
        ({"RECEIVE_TOKEN": '[{"token":"x","site":["a"]}]'}, "SIDECAR_RECEIVE_TOKEN=(hidden): must be without 0.site"),
        ({"RECEIVE_TOKEN": '[{"token":"x","sites":["../a"]}]'}, "SIDECAR_RECEIVE_TOKEN=(hidden): must be 1 to 64 of"),
        (
            {"FUNNELS": '[{"id":"a"},{"id":"a"}]'},
            "SIDECAR_FUNNELS=(hidden): must be a list in which each id stands once",
        ),
    ],
)
def test_a_wrong_setting_stops_the_start(settings: dict[str, Any], line: str) -> None:
    """One line with the setting, the value and what is allowed; secrets are not shown."""
    done = sidecar("serve", **settings)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert line in done.stderr.decode()


def test_a_name_in_mixed_case_is_not_ignored(tmp_path: Path) -> None:
    """In small letters it counts, as it always did; a line end after a token is not part of it."""
    with pytest.raises(ConfigError, match="Sidecar_Port is not a setting; did you mean SIDECAR_PORT"):
        load_settings({"Sidecar_Port": "1"})
    assert load_settings({"sidecar_port": "1", "SIDECAR_RECEIVE_TOKEN": " t o\n"}).receive_token[0].token == "t o"


def test_flags_come_before_the_environment(tmp_path: Path) -> None:
    """Each setting is a flag of serve, too."""
    done = sidecar("serve", "--port", "99999", PORT="8787", DATABASE=str(tmp_path / "x.db"))
    assert b"SIDECAR_PORT='99999'" in done.stderr
    assert b"--session-timeout" in sidecar("serve", "--help").stdout


def test_export_and_import_are_inverse(filled: Path, tmp_path: Path) -> None:
    """A whole export, imported twice into an empty database and exported again: the same bytes, `finished` aside."""
    exported = sidecar("export", DATABASE=str(filled))
    assert exported.returncode == 0
    assert exported.stderr == b""
    documents = [json.loads(line) for line in exported.stdout.splitlines()]
    assert [(one["funnelId"], one["sessionId"]) for one in documents] == [
        ("default", "s-1"),
        ("default", "s-2"),
        ("other", "s-3"),
    ]
    copy = str(tmp_path / "copy.db")
    first = sidecar("import", "-", stdin=exported.stdout, DATABASE=copy)
    assert (first.returncode, first.stdout) == (0, b"3 accepted, 0 duplicate, 0 superseded, 0 rejected\n")
    (tmp_path / "export.ndjson").write_bytes(exported.stdout)
    again = sidecar("import", str(tmp_path / "export.ndjson"), DATABASE=copy)
    assert (again.returncode, again.stdout) == (0, b"0 accepted, 3 duplicate, 0 superseded, 0 rejected\n")
    assert sidecar("export", DATABASE=copy).stdout == exported.stdout
    assert sidecar("verify", DATABASE=copy).returncode == 0


def test_export_to_a_file_and_filters(filled: Path, tmp_path: Path) -> None:
    """--output writes the whole file or none; --funnel and times choose."""
    out = tmp_path / "other.ndjson"
    done = sidecar("export", "--funnel", "other", "--output", str(out), DATABASE=str(filled))
    assert (done.returncode, done.stdout) == (0, b"")
    assert [json.loads(line)["sessionId"] for line in out.read_text().splitlines()] == ["s-3"]
    assert list(tmp_path.iterdir()) == [out]
    assert sidecar("export", "--until", "2020-01-01", DATABASE=str(filled)).stdout == b""
    assert len(sidecar("export", "--since", "2020-01-01", DATABASE=str(filled)).stdout.splitlines()) == 3


def test_csv_is_safe_to_open(filled: Path) -> None:
    """One row a session; what a spreadsheet would run gets a quote before it."""
    done = sidecar("export", "--format", "csv", DATABASE=str(filled))
    table = list(csv.DictReader(io.StringIO(done.stdout.decode())))
    assert [row["sessionId"] for row in table] == ["s-1", "s-2", "s-3"]
    assert table[0]["displayName"] == "'=cmd()"
    assert (table[0]["anonymousId"], table[0]["firstSource"], table[0]["pageViews"]) == ("v-1", "news", "1")
    assert (table[0]["provisional"], table[1]["provisional"], table[1]["avgLcp"]) == ("false", "true", "1200")
    assert table[1]["anonymousId"] == ""


def test_bad_lines_do_not_take_good_ones_with_them(filled: Path, tmp_path: Path) -> None:
    """Each bad line is named, exit 1; the good ones are stored, empty lines are nothing."""
    lines = sidecar("export", DATABASE=str(filled)).stdout.splitlines()
    broken = b"\n".join([lines[0], b"", b"{not json", b'{"type": "session", "version": 2}', lines[1]])
    done = sidecar("import", "-", stdin=broken, DATABASE=str(tmp_path / "some.db"))
    assert done.returncode == 1
    assert done.stdout == b"2 accepted, 0 duplicate, 0 superseded, 2 rejected\n"
    errors = done.stderr.decode().splitlines()
    assert errors[0].startswith("line 3: not JSON")
    assert errors[1] == "line 4: version: must be 1"
    assert errors[2] == "sidecar: 2 lines were rejected; the others are stored"


def test_verify_names_each_difference(filled: Path, tmp_path: Path) -> None:
    """A derived column, a visitor, a missing row and a broken link are found and named."""
    exported = sidecar("export", DATABASE=str(filled)).stdout
    damaged = tmp_path / "damaged.db"
    sidecar("import", "-", stdin=exported, DATABASE=str(damaged))
    with closing(open_database(damaged)) as conn:
        conn.execute("PRAGMA foreign_keys = OFF")
        with immediate(conn):
            conn.execute("UPDATE sessions SET avg_lcp = 7 WHERE session_id = 's-2'")
            conn.execute("UPDATE visitors SET display_name = 'Eve'")
            conn.execute("UPDATE events SET visitor_key = 99 WHERE event_name = 'page_view' AND visitor_key IS NULL")
    done = sidecar("verify", DATABASE=str(damaged))
    assert done.returncode == 1
    said = done.stdout.decode()
    assert "avg_lcp: stored 7.0, should be 1200.0" in said
    assert "display_name: stored 'Eve', should be '=cmd()'" in said
    assert "points at no row of anonymous_ids" in said
    assert b"differences in" in done.stderr


def test_verify_repairs_what_it_can(filled: Path, tmp_path: Path) -> None:
    """It says what changed and exits 0; the file is as it should be; a damaged one is left alone."""
    copy = tmp_path / "copy.db"
    exported = sidecar("export", DATABASE=str(filled)).stdout
    sidecar("import", "-", stdin=exported, DATABASE=str(copy))
    with closing(open_database(copy)) as conn:
        conn.execute("UPDATE sessions SET avg_lcp = 7 WHERE session_id = 's-2'")
        conn.execute("UPDATE web_vitals SET content_bytes = 1")
    done = sidecar("verify", "--repair", DATABASE=str(copy))
    assert (done.returncode, done.stderr) == (0, b"")
    assert "avg_lcp: was 7.0, is 1200.0" in done.stdout.decode()
    assert "3 differences repaired, 3 sessions agree with their facts" in done.stdout.decode()
    again = sidecar("verify", "--repair", DATABASE=str(copy))
    assert b"0 differences repaired, 3 sessions agree" in again.stdout
    without_revision = [
        [{**json.loads(line), "revision": 0} for line in text.splitlines()]
        for text in (exported, sidecar("export", DATABASE=str(copy)).stdout)
    ]
    assert without_revision[0] == without_revision[1]
    with closing(open_database(copy)) as conn:
        conn.execute("PRAGMA foreign_keys = OFF")
        conn.execute("UPDATE events SET visitor_key = 99 WHERE session_key = 1")
    done = sidecar("verify", "--repair", DATABASE=str(copy))
    assert done.returncode == 1
    assert b"points at no row of anonymous_ids" in done.stdout
    assert b"is damaged, so nothing was derived from it: restore a backup" in done.stderr
    assert sidecar("verify", "--repair", DATABASE=str(tmp_path / "none.db")).returncode == 1
    assert not (tmp_path / "none.db").exists()


def test_explain_says_what_was_refused(tmp_path: Path) -> None:
    """Also what was refused at the door; of an unknown session nothing is kept."""
    with Server(tmp_path / "sidecar.db") as server, server.client() as client:
        client.post("/api/track/web-vitals", content=json.dumps([vital("s-1"), vital("s-1", "CLS", -1)]))
        answer = client.post("/api/track/web-vitals", content=json.dumps(vital("s-1", "CLS", -1)))
        assert (answer.status_code, answer.json()["error"]) == (422, "value: must be >= 0")
        assert client.post("/api/track/events", content=json.dumps(event("s-1", timestamp="soon"))).status_code == 422
        assert client.post("/api/track/web-vitals", content=json.dumps(vital("s-2", "CLS", -1))).status_code == 422
        dropped = client.post(
            "/api/track/web-vitals", content=json.dumps(vital("s-1", "INP", -1)), headers={"Sec-GPC": "1"}
        )
        assert dropped.status_code == 422
        assert "value: must be &gt;= 0" in client.get("/sessions/s-1").text
        assert client.get("/api/sessions/s-2").status_code == 404
        said = sidecar("explain", "s-1", DATABASE=str(server.database)).stdout.decode()
    assert "CLS v6-CLS-s-1: rejected (value: must be >= 0) 2 times" in " ".join(said.split())
    assert "event page_view-s-1: rejected (timestamp: must be epoch milliseconds or ISO 8601) once" in " ".join(
        said.split()
    )
    assert "INP v6" not in said  # of who asks not to be tracked, nothing is noted


def test_explain_is_for_people(filled: Path, tmp_path: Path) -> None:
    """Facts, values with rules, and what was not taken, in 100 columns; candidates where an id is not one session."""
    said = sidecar("explain", "s-1", DATABASE=str(filled))
    assert (said.returncode, said.stderr) == (0, b"")
    lines = said.stdout.decode().splitlines()
    assert lines[0] == "Session s-1"
    assert all(len(line) <= 100 for line in lines)
    assert "  avgLcp                1200" in lines
    assert "  firstSource           news" in lines
    done = sidecar("explain", "none", DATABASE=str(filled))
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode().splitlines() == ["sidecar: no session has the id 'none'"]
    copy = tmp_path / "copy.db"
    exported = sidecar("export", DATABASE=str(filled)).stdout
    sidecar("import", "-", stdin=exported.replace(b'"s-3"', b'"s-1"'), DATABASE=str(copy))
    done = sidecar("explain", "s-1", DATABASE=str(copy))
    assert done.returncode == 1
    candidates = done.stdout.decode().splitlines()
    assert [line.split("  (")[0] for line in candidates] == [
        "--site default --funnel default",
        "--site default --funnel other",
    ]
    assert b"2 sessions have the id 's-1': choose one of the above" in done.stderr
    assert sidecar("explain", "s-1", "--funnel", "other", DATABASE=str(copy)).returncode == 0


def test_status_is_for_people(filled: Path) -> None:
    """Counts, the file, and what shipping says."""
    said = sidecar("status", DATABASE=str(filled)).stdout.decode()
    assert "sessions                3, 1 provisional" in said
    assert "provisional sessions    1, 0 finished without an event" in said
    assert "first event after       " in said
    assert "visitors                1" in said
    assert "nowhere (SIDECAR_UPSTREAM_URL is not set)" in said
    warned = sidecar("status", DATABASE=str(filled), UPSTREAM_URL="http://127.0.0.1:1/").stdout.decode()
    assert "SIDECAR_SITE is not set" in warned


def test_a_batch_file_is_imported_as_it_is(filled: Path, tmp_path: Path) -> None:
    """Directories and buckets hold gzip; one that is cut is one line, and what came before it is stored."""
    exported = sidecar("export", DATABASE=str(filled)).stdout
    packed = tmp_path / "b.ndjson.gz"
    packed.write_bytes(gzip.compress(exported))
    copy = str(tmp_path / "copy.db")
    assert sidecar("import", str(packed), DATABASE=copy).returncode == 0
    assert sidecar("export", DATABASE=copy).stdout == exported
    done = sidecar("import", "-", stdin=gzip.compress(exported)[:-30], DATABASE=str(tmp_path / "cut.db"))
    assert done.returncode == 1
    [line] = done.stderr.decode().splitlines()
    assert line.startswith("sidecar: the gzip is cut or damaged: ")


@pytest.mark.parametrize("arguments", [["import", "-"], ["forget", "v-1"], ["prune"], ["parked", "requeue", "--all"]])
def test_a_file_that_another_process_holds_is_one_line(
    filled: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
) -> None:
    """For longer than anybody wants to wait."""
    copy = tmp_path / "copy.db"
    copy.write_bytes(filled.read_bytes())
    monkeypatch.setattr("sidecar.store.database.BUSY_TIMEOUT_S", 0.05)
    monkeypatch.setattr("sys.argv", ["sidecar", *arguments, "--database", str(copy)])
    line = b'{"type":"session","version":1}\n'
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(line))))
    with closing(open_database(copy)) as conn, immediate(conn), pytest.raises(SystemExit) as ended:
        main()
    assert str(ended.value) == (
        "sidecar: the database cannot be used: database is locked; another process is writing: try again"
    )
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("command", ["status", "export", "parked list", "explain s-1"])
def test_a_damaged_file_is_one_line(filled: Path, tmp_path: Path, command: str) -> None:
    """Its head is whole, what follows is not."""
    copy = tmp_path / "copy.db"
    whole = filled.read_bytes()
    copy.write_bytes(whole[: 2 * 4096] + b"\xa5" * (len(whole) - 2 * 4096))
    done = sidecar(*command.split(), DATABASE=str(copy))
    assert done.returncode == 1
    [line] = done.stderr.decode().splitlines()
    assert line.startswith("sidecar: ")


def test_ship_says_what_happened(filled: Path, tmp_path: Path) -> None:
    """Nowhere to ship to, nobody there, a wrong token, and a delivery; each in words, with an exit code."""
    copy = tmp_path / "copy.db"
    sidecar("import", "-", stdin=sidecar("export", DATABASE=str(filled)).stdout, DATABASE=str(copy))
    done = sidecar("ship", DATABASE=str(copy))
    assert (done.returncode, b"SIDECAR_UPSTREAM_URL is not set" in done.stderr) == (1, True)
    with Server(tmp_path / "upstream.db", RECEIVE_TOKEN="t") as upstream:
        to: dict[str, Any] = {"DATABASE": str(copy), "SITE": "default", "UPSTREAM_URL": f"{upstream.url}/api/sessions"}
        done = sidecar("ship", "--all", UPSTREAM_TOKEN="wrong", **to)
        assert (done.returncode, b"401" in done.stdout) == (1, True)
        done = sidecar("ship", "--all", UPSTREAM_TOKEN="t", **to)
        assert (done.returncode, done.stdout) == (0, b"3 sessions shipped in 1 batches (1 requests)\n")
        theirs = sidecar("export", DATABASE=str(upstream.database)).stdout
    assert theirs == sidecar("export", DATABASE=str(copy)).stdout
    done = sidecar("ship", "--all", UPSTREAM_TOKEN="t", **to)
    assert (done.returncode, done.stdout) == (0, b"0 sessions shipped in 0 batches (0 requests)\n")


def test_a_reader_that_leaves_is_no_traceback(filled: Path) -> None:
    """`sidecar export | head -0`."""
    environment = clean_environment(DATABASE=str(filled))
    command = [sys.executable, "-m", "sidecar", "export"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(timeout=60) in (0, 1)


def test_progress_is_shown_on_a_terminal(filled: Path) -> None:
    """A bar on stderr where that is a terminal, none where it is not."""
    parent, child = pty.openpty()
    environment = clean_environment(DATABASE=str(filled)) | {"TERM": "xterm"}
    command = [sys.executable, "-m", "sidecar", "verify"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=child, env=environment)
    os.close(child)
    shown = b""
    while True:
        try:
            part = os.read(parent, 4096)
        except OSError:  # the other end is closed
            break
        shown += part
    os.close(parent)
    said, _ = process.communicate(timeout=60)
    assert (process.returncode, b"agree with their facts" in said) == (0, True), said + shown
    assert b"verifying" in shown
    assert sidecar("verify", DATABASE=str(filled)).stderr == b""


def test_sigterm_ends_the_server_in_order(tmp_path: Path) -> None:
    """What was acknowledged is stored, the port is free again, and nothing is left beside the file."""
    server = Server(tmp_path / "term.db")
    with server.client() as client:
        assert client.post("/api/track/web-vitals", json=vital("s")).status_code == 200
    server.stop()
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(f"{server.url}/healthz", verify=False)
    assert "Traceback" not in server.log.read_text()
    assert not Path(f"{server.database}-wal").exists()
    assert sidecar("verify", DATABASE=str(server.database)).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["import", "{tmp}/none"], "{tmp}/none: No such file or directory"),
        (["export", "--output", "{tmp}/none/x"], "{tmp}/none/x: No such file or directory"),
        (
            ["export", "--output", "{tmp}"],
            "{tmp}: not a regular file, and one would take its place; use - for stdout",
        ),
        (
            ["export", "--output", "{tmp}/pipe"],
            "{tmp}/pipe: not a regular file, and one would take its place; use - for stdout",
        ),
        (["import", "{tmp}/loop"], "{tmp}/loop: Too many levels of symbolic links"),
    ],
)
def test_what_the_system_refuses_is_one_line(filled: Path, tmp_path: Path, arguments: list[str], line: str) -> None:
    """Exit 1, no traceback, and what was there stays as it was."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    before = sorted(tmp_path.iterdir())
    done = sidecar(*(text.format(tmp=tmp_path) for text in arguments), DATABASE=str(filled))
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode().splitlines() == [f"sidecar: {line.format(tmp=tmp_path)}"]
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
def test_what_is_not_permitted_is_one_line(filled: Path, tmp_path: Path) -> None:
    """A file that may not be read, a folder that may not be written."""
    (tmp_path / "x.ndjson").touch(mode=0o000)
    done = sidecar("import", str(tmp_path / "x.ndjson"), DATABASE=str(filled))
    assert done.stderr.decode() == f"sidecar: {tmp_path / 'x.ndjson'}: Permission denied\n"
    tmp_path.chmod(0o500)
    done = sidecar("export", "--output", str(tmp_path / "y"), DATABASE=str(filled))
    assert (done.returncode, done.stderr.decode()) == (1, f"sidecar: {tmp_path / 'y'}: Permission denied\n")


@pytest.mark.parametrize("command", [["export"], ["status"], ["explain", "s-1"], ["--help"]])
def test_a_full_disk_below_stdout_is_one_line(filled: Path, command: list[str]) -> None:
    """Said once, and not again when the process ends."""
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "sidecar", *command],
            stdout=full,
            stderr=subprocess.PIPE,
            env=clean_environment(DATABASE=str(filled)),
            timeout=60,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, b"sidecar: No space left on device\n")


def test_a_file_that_does_not_fit_is_one_line_and_no_file(filled: Path, tmp_path: Path) -> None:
    """The same error as of a full disk comes of a limit of the process."""
    out = tmp_path / "x.ndjson"
    program = (
        "import resource, signal, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100));"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); from sidecar.__main__ import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "export", "--output", str(out)],
        capture_output=True,
        env=clean_environment(DATABASE=str(filled)),
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr.decode()) == (1, f"sidecar: {out}: File too large\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["forget", b"\xff\xfe"], "'VISITOR_ID': '\\udcff\\udcfe' is not UTF-8"),
        (["explain", b"\xff"], "'SESSION_ID': '\\udcff' is not UTF-8"),
        (["explain", "s-1", "--site", b"\xff"], "'--site': '\\udcff' is not UTF-8"),
        (["forget", "v", "--site", b"\xff"], "'--site': '\\udcff' is not UTF-8"),
        (["export", "--funnel", b"\xff"], "'--funnel': '\\udcff' is not UTF-8"),
    ],
)
def test_an_id_that_is_no_text_is_wrong_usage(filled: Path, arguments: list[Any], said: str) -> None:
    """Exit 2 and a clear line."""
    done = sidecar(*arguments, DATABASE=str(filled))
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.decode().splitlines()[-1] == f"Error: Invalid value for {said}"


def test_ctrl_c_is_no_traceback(tmp_path: Path) -> None:
    """Exit 130, as of any command that a person stops; what was not merged yet is not there."""
    process = subprocess.Popen(
        [sys.executable, "-m", "sidecar", "import", "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=clean_environment(DATABASE=str(tmp_path / "x.db")),
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "x.db").exists():  # from here on it waits for lines
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=60)
    assert (process.returncode, said, errors.strip()) == (130, b"", b"")


def test_a_revision_that_is_no_time_is_shown(filled: Path, tmp_path: Path) -> None:
    """2^53 - 1 is legal in a document."""
    lines = sidecar("export", DATABASE=str(filled)).stdout.splitlines()
    line = json.dumps(json.loads(lines[0]) | {"revision": 2**53 - 1}).encode()
    copy = str(tmp_path / "copy.db")
    assert sidecar("import", "-", stdin=line, DATABASE=copy).returncode == 0
    for command in (["status"], ["explain", "s-1"]):
        done = sidecar(*command, DATABASE=copy)
        assert (done.returncode, done.stderr) == (0, b"")
        assert b"9007199254740991" in done.stdout
