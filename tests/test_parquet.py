"""Parquet holds what ndjson holds, as an independent reader (pyarrow) reads it."""

from __future__ import annotations

import json
import random
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa  # type: ignore[import-untyped]  # comes without types
import pytest
from pyarrow import parquet

from sidecar.attribution import campaign_of
from sidecar.errors import SidecarError
from sidecar.model import Client, Fact
from sidecar.parquet import FILES, export_parquet
from sidecar.store.database import open_read_only, snapshot
from sidecar.store.documents import list_session_keys
from tests.builders import BOT, CHROME, START, event, page_of, record_facts, vital
from tests.servers import Done, clean_environment, sidecar

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NEWS = "/?utm_source=news&utm_campaign=spring"
TIMES = {"startedAt", "endedAt", "firstSeen", "lastSeen", "timestamp"}
OBJECTS = {"traits", "properties", "context"}
LARGEST = 2**53


def facts() -> list[Fact]:
    """Sessions of every kind, with what makes types and texts go wrong."""
    phone = Client("mobile", "Safari", "18.1", "iOS", "18", LARGEST, 1, None, "DE", "Germany", "Bavaria", "Fürth", "::")
    traits = {"name": "Zoë 🚀", "b": {"z": 1, "a": [None, True, 1e300]}, "a\\": '"\u2028\u0000\n'}
    properties = {"revenue": 1e12, "currency": "EUR", "type": "subscription", "n": LARGEST, "tiny": 5e-324}
    later: list[Fact] = [
        vital("later", "INP", 80, at=86_400_000),
        event("later", at=86_400_001, visitor="visitor-b", funnel_id="landing"),
    ]
    return [
        vital("full", "LCP", 10_000_000, at=10, visitor="visitor-aaaaaa"),
        vital("full", "CLS", 0.1 + 0.2, at=11, client=phone),
        vital("full", "TTFB", 0, navigation_type="back-forward-cache", at=12, client=None, page=None),
        event("full", at=20, visitor="visitor-aaaaaa", page=page_of(NEWS, "Tïtle"), campaign=campaign_of(None, NEWS)),
        event("full", "user_identified", at=30, properties={"userId": "u-1", "traits": traits}, client=phone),
        event("full", "purchase", at=40, properties=properties, referrer="https://news.test/?q=ä"),
        event("full", "session_end", at=50, properties={"activeTime": 12.345678}),
        event("second", at=60, visitor="visitor-aaaaaa", funnel_id="landing"),
        event("empty", at=70, properties={}, page=None, client=None),
        vital("provisional", "FCP", 1800.5, client=None, page=None),
        event("robot", client=BOT, clock_skewed=True),
        *later,
    ]


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = record_facts(tmp_path_factory.mktemp("parquet") / "sidecar.db", facts())
    return record_facts(path, [event("elsewhere", site="other", client=CHROME)])


def export(database: Path, output: Path, *options: str) -> Done:
    return sidecar("export", "--format", "parquet", "--output", str(output), *options, DATABASE=str(database))


def documents(database: Path, *options: str) -> list[dict[str, Any]]:
    """The sessions of the ndjson export."""
    done = sidecar("export", *options, DATABASE=str(database))
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def snake(name: str) -> str:
    return re.sub("([A-Z])", r"_\1", name).lower()


def as_read(said: dict[str, Any]) -> dict[str, Any]:
    """A row as it should be read."""
    row: dict[str, Any] = {}
    for name, value in said.items():
        if value is not None and name in TIMES:
            value = (datetime.fromisoformat(value) - EPOCH) // timedelta(milliseconds=1)
        elif value is not None and name in OBJECTS:
            value = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        row[snake(name)] = value
    return row


NO_CLIENT = {
    **dict.fromkeys(("deviceType", "browserName", "browserVersion", "osName", "osVersion", "screenWidth")),
    **dict.fromkeys(("screenHeight", "bot", "countryCode", "countryName", "region", "city", "ipAddress")),
}
NO_VISITOR = dict.fromkeys(
    ("anonymousId", "displayName", "firstSeen", "lastSeen", "totalSessions", "totalEvents", "userId", "traits")
)


def expected(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file, row) of what a document becomes."""
    nested = {name: document.pop(name) for name in ("visitor", "clients", "webVitals", "events")}
    owner = {name: document[name] for name in ("site", "funnelId", "sessionId")}
    for name in ("type", "version"):
        document.pop(name)
    yield "sessions.parquet", as_read({**document, **(nested["visitor"] or NO_VISITOR)})
    for name, file in (("webVitals", "web_vitals.parquet"), ("events", "events.parquet")):
        for fact in nested[name]:
            number = fact.pop("client")
            yield file, as_read({**owner, **(NO_CLIENT if number is None else nested["clients"][number]), **fact})


def all_expected(found: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in FILES}
    for document in found:
        for file, row in expected(document):
            rows[file].append(row)
    return rows


def read(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The rows of each file, times as ms."""
    found = {}
    for name in FILES:
        table = parquet.read_table(folder / name)
        for place, column in enumerate(table.schema):
            if pa.types.is_timestamp(column.type):
                table = table.set_column(place, column.name, table.column(place).cast(pa.int64()))
        found[name] = table.to_pylist()
    return found


# --- what it holds ---------------------------------------------------------------------------------------------------


def test_the_same_as_ndjson(database: Path, tmp_path: Path) -> None:
    done = export(database, tmp_path / "out")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(FILES)
    found, wanted = read(tmp_path / "out"), all_expected(documents(database))
    for name in FILES:
        assert len(found[name]) == len(wanted[name]) > 4
        for got, want in zip(found[name], wanted[name], strict=True):
            assert got == want
            assert {key: type(value) for key, value in got.items() if not isinstance(value, float)} == {
                key: type(value) for key, value in want.items() if not isinstance(got[key], float)
            }, "1 is not True; 116 stands for 116.0 in JSON"


def test_types(database: Path, tmp_path: Path) -> None:
    export(database, tmp_path)
    types: dict[str, set[str]] = {}
    for name in FILES:
        for column in parquet.read_schema(tmp_path / name):
            types.setdefault(str(column.type), set()).add(column.name)
    texts = types.pop("string")
    assert {"site", "funnel_id", "session_id", "metric", "event_name", "properties", "traits", "page_url"} < texts
    assert types == {
        "timestamp[ms, tz=UTC]": {snake(name) for name in TIMES},
        "bool": {"finished", "provisional", "converted", "clock_skewed"},
        "double": {"conversion_value", "active_seconds", "value", "delta"}
        | {"avg_lcp", "avg_inp", "avg_cls", "avg_fcp", "avg_ttfb"},
        "int64": {"revision", "duration_seconds", "page_views", "events_count", "experience_score", "seq"}
        | {"total_sessions", "total_events", "screen_width", "screen_height"},
    }


@pytest.mark.parametrize(
    ("options", "count"),
    [
        (("--funnel", "landing"), 2),
        (("--until", "2026-11-23T00:00:00Z"), 6),
        (("--since", "2026-11-23T00:00:00Z", "--funnel", "landing"), 1),
        (("--since", "2027-01-01"), 0),
    ],
)
def test_filters(database: Path, tmp_path: Path, options: tuple[str, ...], count: int) -> None:
    assert export(database, tmp_path, *options).returncode == 0
    found = read(tmp_path)
    assert found == all_expected(documents(database, *options))
    assert len(found["sessions.parquet"]) == count


def test_an_empty_file_has_its_columns(tmp_path: Path) -> None:
    database = record_facts(tmp_path / "empty.db", [])
    assert export(database, tmp_path / "out").returncode == 0
    for name, columns in (("sessions", 50), ("web_vitals", 29), ("events", 27)):
        table = parquet.read_table(tmp_path / "out" / f"{name}.parquet")
        assert (table.num_rows, table.num_columns) == (0, columns)


def in_process(database: Path, folder: Path, **options: Any) -> int:
    """Export here; gives how often it advanced."""
    advanced = []
    with closing(open_read_only(database)) as conn, snapshot(conn):
        keys = [*list_session_keys(conn)]
        given = {"advance": lambda: advanced.append(1), **options}
        export_parquet(conn, keys, folder, START, 1_800_000, **given)
    return len(advanced)


@pytest.mark.parametrize("group_rows_max", [1, 7, 1000])
def test_row_groups_are_bounded(tmp_path: Path, group_rows_max: int) -> None:
    """They are what is held in memory."""
    many = [event(f"s-{number // 40}", at=number) for number in range(200)]
    database = record_facts(tmp_path / "many.db", many)
    assert in_process(database, tmp_path, group_rows_max=group_rows_max) == 5 * len(FILES)
    held = parquet.ParquetFile(tmp_path / "events.parquet").metadata
    groups = [held.row_group(number).num_rows for number in range(held.num_row_groups)]
    assert sum(groups) == 200
    assert max(groups) == min(group_rows_max, 200)
    read_back = parquet.read_table(tmp_path / "events.parquet").column("event_id").to_pylist()
    assert sorted(read_back) == sorted(f"e-page_view-{number}" for number in range(200))


# --- whole or not at all ---------------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_older_files_are_replaced(database: Path, tmp_path: Path) -> None:
    for name in FILES:
        (tmp_path / name).write_text("old")
    assert export(database, tmp_path).returncode == 0
    assert sorted(contents(tmp_path)) == sorted(FILES)
    assert len(read(tmp_path)["sessions.parquet"]) == 8


@pytest.mark.parametrize("advances", [1, 9, 20])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("a bug"), SidecarError("some line")])
def test_interrupted_it_leaves_the_older_files(
    database: Path, tmp_path: Path, advances: int, error: BaseException
) -> None:
    """And says what it was: arro3 wraps what comes through it."""
    for name in FILES:
        (tmp_path / name).write_text("old")
    left = [None] * advances

    def advance() -> None:
        left.pop()
        if not left:
            raise error

    with pytest.raises(type(error)) as raised:
        in_process(database, tmp_path, advance=advance)
    assert raised.value is error
    assert contents(tmp_path) == dict.fromkeys(FILES, b"old")


def test_a_file_that_cannot_grow_is_one_line(database: Path, tmp_path: Path) -> None:
    """As with a full disk; arro3 panics where its file fails."""
    texts = [random.Random(number).randbytes(3000).hex() for number in range(50)]
    large = [event(f"s-{number}", at=number, properties={"text": text}) for number, text in enumerate(texts)]
    path = record_facts(tmp_path / "large.db", large)
    out = tmp_path / "out"
    out.mkdir()
    (out / FILES[0]).write_text("old")
    done = subprocess.run(
        [sys.executable, "-m", "sidecar", "export", "--format", "parquet", "--output", out, "--database", path],
        capture_output=True,
        env=clean_environment(),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, 65_536)),
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr == f"sidecar: {out}: File too large\n".encode()
    assert contents(out) == {FILES[0]: b"old"}


# --- wrong usage -----------------------------------------------------------------------------------------------------


def test_it_needs_a_directory(database: Path, tmp_path: Path) -> None:
    done = sidecar("export", "--format", "parquet", DATABASE=str(database))
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.splitlines()[-1] == (b"Error: parquet is three files: name a directory for them with --output")
    (tmp_path / "file").write_text("a file")
    done = export(database, tmp_path / "file")
    assert done.returncode == 1
    assert done.stderr == f"sidecar: {tmp_path}/file: not a directory, and Parquet is 3 files\n".encode()
    assert (tmp_path / "file").read_text() == "a file"
    done = export(database, tmp_path / "none" / "such")
    assert (done.returncode, done.stderr) == (1, f"sidecar: {tmp_path}/none/such: No such file or directory\n".encode())


def test_without_arro3_it_says_what_to_install(database: Path, tmp_path: Path) -> None:
    script = "import sys; sys.modules['arro3'] = None; import sidecar.__main__ as main; main.main()"
    command = [sys.executable, "-c", script, "export", "--database", str(database), "--output", str(tmp_path / "out")]

    def run(form: str) -> subprocess.CompletedProcess[bytes]:
        environment = clean_environment()
        return subprocess.run(
            [*command, "--format", form], capture_output=True, env=environment, timeout=60, check=False
        )

    done = run("parquet")
    assert (done.returncode, done.stderr) == (
        1,
        b"sidecar: --format parquet needs the packages arro3-core and arro3-io: "
        b"pip install 'vitals-sidecar[parquet]'\n",
    )
    assert run("csv").returncode == 0, "what does not need it does without"
