"""Packed web vitals say what the facts say, and go with the change of any session of theirs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DataObject

from sidecar.store import figures, samples
from sidecar.store.database import Connection, immediate, snapshot
from sidecar.store.erasure import forget
from sidecar.store.figures import Sample, Scope
from sidecar.store.lines import merge_lines
from tests import items
from tests.items import Delivery
from tests.local import LocalSidecar
from tests.servers import vital

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
    assert sidecar.findings() == ["samples 0: is not what its sessions' web vitals make"]
    sidecar.conn.execute("UPDATE samples SET last_at = last_at - 1, body = zeroblob(9)")
    [said] = sidecar.findings()
    assert said.startswith("samples 0: ")


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
        assert sidecar.conn.execute("SELECT first_at, last_at FROM samples").fetchall() == [(None, None)]
        with snapshot(sidecar.conn):
            assert len(Sample(sidecar.conn, EVER)) == 0


@pytest.mark.timeout(300)
@settings(
    max_examples=100,
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
        scope = Scope(NOW - 10 * 86_400_000, NOW + 86_400_000, device=data.draw(st.sampled_from([None, "desktop"])))
        said: list[tuple[object, ...]] = []
        for _ in range(2):
            with snapshot(sidecar.conn):
                sample = Sample(sidecar.conn, scope)
                parts = (sample.split(), sample.by_device(), sample.by_navigation(), sample.by_page())
                funnels = figures.list_funnel_figures(sidecar.conn, scope)
                said.append((*parts, sample.series(ZONE), sample.by_funnel(), funnels))
            put(sidecar.conn)
        assert said[0] == said[1]
        assert sidecar.findings() == []
    for left in folder.glob(f"{path.name}*"):
        left.unlink()
