"""Packed sessions and web vitals say what the facts say, and go with the change of any session of theirs."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DataObject

from sidecar.attribution import host_of
from sidecar.store import figures, samples
from sidecar.store.database import Connection, immediate, snapshot
from sidecar.store.erasure import forget
from sidecar.store.figures import Sample
from sidecar.store.lines import merge_lines
from sidecar.store.scope import Scope
from sidecar.store.totals import TOPS, Sessions
from tests import items
from tests.items import Delivery
from tests.local import LocalSidecar
from tests.servers import event, vital

NOW = 1_795_330_800_000  # 2026-11-22T07:00:00.000Z
EVER = Scope(0, 2 * NOW)
ZONE = ZoneInfo("Europe/Berlin")
_numbers = itertools.count()


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder for many small files."""
    with TemporaryDirectory() as name:
        yield Path(name)


@pytest.fixture
def sidecar(tmp_path: Path) -> Iterator[LocalSidecar]:
    """Two sessions of one chunk, packed."""
    with LocalSidecar(tmp_path / "s.db", NOW) as opened:
        for name, value in (("s-1", 1000), ("s-2", 3000)):
            opened.send("web-vitals", vital(name, "LCP", value, anonymousId=f"v-{name}", timestamp=NOW))
        put(opened.conn)
        yield opened


def put(conn: Connection) -> None:
    """Make every missing row."""
    with immediate(conn):
        samples.put_chunks(conn, samples.list_missing(conn))


def held(conn: Connection) -> int:
    """Rows there are."""
    return int(conn.execute("SELECT count(*) FROM samples").fetchone()[0])


def lcp(conn: Connection) -> tuple[float | None, int]:
    """(p75, instances) of LCP."""
    with snapshot(conn):
        found = Sample(conn, EVER).split()[0]["LCP"]
    return found.p75, found.samples


def test_a_change_drops_the_row(sidecar: LocalSidecar) -> None:
    """And figures are right at once, before the row is made again and after it; a repeat changes nothing."""
    assert (held(sidecar.conn), lcp(sidecar.conn)) == (1, (3000, 2))
    sidecar.send("web-vitals", vital("s-2", "LCP", 3000, anonymousId="v-s-2", timestamp=NOW))
    assert held(sidecar.conn) == 1
    sidecar.send("web-vitals", vital("s-2", "LCP", 2000, anonymousId="v-s-2", timestamp=NOW + 1))
    assert (held(sidecar.conn), lcp(sidecar.conn)) == (0, (2000, 2))
    put(sidecar.conn)
    assert (held(sidecar.conn), lcp(sidecar.conn)) == (1, (2000, 2))
    assert sidecar.findings() == []


def test_an_erasure_and_an_import_drop_the_row(sidecar: LocalSidecar) -> None:
    """Sessions that go take it along; what comes in documents, too."""
    lines = [line.encode() for line in sidecar.export()]
    with immediate(sidecar.conn):
        forget(sidecar.conn, "default", "v-s-2", NOW)
    assert (held(sidecar.conn), lcp(sidecar.conn)) == (0, (1000, 1))
    put(sidecar.conn)
    with immediate(sidecar.conn):
        merge_lines(sidecar.conn, [lines[0].replace(b'"value":1000', b'"value":1100').replace(b"v6-LCP", b"v7")], NOW)
    assert (held(sidecar.conn), lcp(sidecar.conn)) == (0, (1100, 2))
    assert sidecar.findings() == []


def test_verify_compares_and_repair_drops(sidecar: LocalSidecar) -> None:
    """A row that says something else is found by its chunk."""
    sidecar.conn.execute("UPDATE samples SET last_at = last_at + 1")
    assert sidecar.findings() == ["samples 0: is not what its sessions and their facts make"]
    sidecar.conn.execute("UPDATE samples SET last_at = last_at - 1")
    assert sidecar.findings() == []
    for column in ("vitals", "sessions"):
        put(sidecar.conn)
        sidecar.conn.execute(f"UPDATE samples SET {column} = zeroblob(9)")
        [said] = sidecar.findings()
        assert said.startswith("samples 0: ")
        sidecar.conn.execute("DELETE FROM samples")


def test_another_zlib_makes_other_bytes_of_the_same(sidecar: LocalSidecar) -> None:
    """A file that another machine packed is sound; figures are read from it."""
    for column in ("vitals", "sessions"):
        body = sidecar.conn.execute(f"SELECT {column} FROM samples").fetchone()[0]
        sidecar.conn.execute(f"UPDATE samples SET {column} = ?", (zlib.compress(zlib.decompress(body), 0),))
    assert sidecar.findings() == []
    assert lcp(sidecar.conn) == (3000, 2)


@pytest.mark.parametrize("column", ["vitals", "sessions"])
@pytest.mark.parametrize(
    "body", [b"", b"no zlib", zlib.compress(b""), zlib.compress(b"\x09\0\0\0"), zlib.compress(b"\0" * 99)]
)
def test_a_row_that_cannot_be_read_is_read_from_the_facts(sidecar: LocalSidecar, column: str, body: bytes) -> None:
    """The pages stay up; `verify` names the row."""
    sidecar.conn.execute(f"UPDATE samples SET {column} = ?", (body,))
    assert lcp(sidecar.conn) == (3000, 2)
    with snapshot(sidecar.conn):
        assert Sessions(sidecar.conn, EVER).totals().sessions == 2
    assert sidecar.findings() == ["samples 0: is not what its sessions and their facts make"]


def test_only_sessions_at_rest_are_packed(tmp_path: Path) -> None:
    """A session that may change in a moment would only have its row made for nothing."""
    with LocalSidecar(tmp_path / "s.db", NOW) as sidecar:
        sidecar.send("web-vitals", vital("s-1", timestamp=NOW))
        assert samples.list_resting(sidecar.conn, NOW + 999, 1000) == []
        assert samples.list_resting(sidecar.conn, NOW + 1000, 1000) == [0]
        put(sidecar.conn)
        assert samples.list_resting(sidecar.conn, NOW + 5000, 1000) == []


def test_bots_and_placeholders_are_left_out(tmp_path: Path) -> None:
    """What is in no figure is in no row."""
    with LocalSidecar(tmp_path / "s.db", NOW) as sidecar:
        sidecar.send("web-vitals", vital("s-1", "TTFB", 0, navigationType="back-forward-cache", timestamp=NOW))
        sidecar.send("web-vitals", vital("s-1", "FID", 8, timestamp=NOW))
        put(sidecar.conn)
        spans = sidecar.conn.execute("SELECT first_at, last_at, first_started_at, last_started_at FROM samples")
        assert spans.fetchall() == [(None, None, NOW, NOW)]
        with snapshot(sidecar.conn):
            assert len(Sample(sidecar.conn, EVER)) == 0


def test_chunks_are_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hosts and pages of one chunk are not taken for those of another: 30 sessions, chunks of 4, some packed."""
    monkeypatch.setattr(samples, "_span", lambda chunk: {"first": chunk * 4, "end": chunk * 4 + 4})
    with LocalSidecar(tmp_path / "s.db", NOW) as sidecar:
        for number in range(30):
            page = {"url": f"https://a.test/{number % 3}", "referrer": f"https://from-{number % 5}.test/x"}
            context = {
                "session": {"sessionId": f"s-{number}"},
                "user": {"anonymousId": f"v-{number % 7}"},
                "page": page,
            }
            sidecar.send("events", event(f"s-{number}", timestamp=NOW, context=context))
        monkeypatch.setattr(samples, "_CHUNKS", "SELECT max(session_key) / 4 FROM sessions")
        with immediate(sidecar.conn):
            samples.put_chunks(sidecar.conn, [0, 3, 4])
        with snapshot(sidecar.conn):
            sessions = Sessions(sidecar.conn, EVER)
            assert {top.name: top.amount for top in sessions.tops("referrers", 9)} == {
                f"from-{number}.test": 6 for number in range(5)
            }
            assert {top.name: top.amount for top in sessions.tops("pages", 9)} == {"/0": 10, "/1": 10, "/2": 10}
            on_page = Sessions(sidecar.conn, EVER._replace(page="/1"))
            assert (len(on_page), on_page.totals().visitors, on_page.totals().page_views) == (10, 7, 10)
            assert {top.name: top.amount for top in on_page.tops("referrers", 9)} == {
                f"from-{number}.test": 2 for number in range(5)
            }


@pytest.mark.parametrize(
    ("referrer", "host"),
    [
        ("https://News.Example/a?b#c", "news.example"),
        ("https://www.news.example?b", "news.example"),
        ("https://user:password@news.example:81#c", "news.example:81"),
        ("android-app://com.example.app/x", "com.example.app"),
        ("https://", None),
        ("file:///x", None),
        ("/sign-in?next=https://x.example/y", "/sign-in?next=https://x.example/y"),
        ("somewhere", "somewhere"),
        (None, None),
    ],
)
def test_referrers_are_counted_by_host(referrer: str | None, host: str | None) -> None:
    """What is no address is counted as it stands."""
    assert host_of(referrer) == host


@pytest.mark.timeout(300)
@settings(
    max_examples=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
)
@given(sent=items.deliveries(NOW), data=st.data())
def test_figures_are_the_same_with_and_without_rows(folder: Path, sent: list[Delivery], data: DataObject) -> None:
    """Whatever was delivered, in whatever order."""
    path = folder / f"{next(_numbers)}.db"
    with LocalSidecar(path, NOW) as sidecar:
        for beacon in items.groupings(data, sent):
            sidecar.send(beacon.path, beacon.body, beacon.user_agent, beacon.address)
        page = data.draw(st.sampled_from([None, None, "/a"]))
        device = data.draw(st.sampled_from([None, "desktop"]))
        scope = Scope(NOW - 10 * 86_400_000, NOW + 86_400_000, device=device, page=page)
        said: list[tuple[object, ...]] = []
        for _ in range(2):
            with snapshot(sidecar.conn):
                sample = Sample(sidecar.conn, scope)
                parts = (sample.split(), sample.by_device(), sample.by_navigation(), sample.by_page())
                funnels = figures.list_funnel_figures(sidecar.conn, scope)
                sessions = Sessions(sidecar.conn, scope)
                tops = [sessions.tops(kind, 1000) for kind in TOPS]
                said.append((*parts, sample.series(ZONE), sample.by_funnel(), funnels))
                said.append((sessions.totals(), sessions.series(ZONE), tops))
            put(sidecar.conn)
        assert said[:2] == said[2:]
        assert sidecar.findings() == []
    for left in folder.glob(f"{path.name}*"):
        left.unlink()
