"""Numbers and ids at the edge of what SQLite can do with them: no client makes deriving fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.local import LocalSidecar
from tests.servers import event, vital

NOW = 1_795_330_800_000  # 2026-11-22T07:00:00.000Z


@pytest.mark.parametrize("amount", [-(2**63), 2**63 - 1, -(2**63) - 1, 10**30, -1e300, 1e12 + 1])
def test_an_amount_beyond_the_bound_does_not_count(tmp_path: Path, amount: float) -> None:
    """And takes nothing with it: the other items of its beacon are stored and counted."""
    with LocalSidecar(tmp_path / "n.db", NOW) as sidecar:
        bought = event("s", "purchase", eventId="p1", timestamp=NOW, properties={"revenue": amount})
        fine = event("s", "purchase", eventId="p2", timestamp=NOW, properties={"revenue": 1e12})
        ended = event("s", "session_end", eventId="e1", timestamp=NOW, properties={"activeTime": amount})
        assert sidecar.send("events", [bought, fine, ended]) == ["accepted"] * 3
        [document] = sidecar.export_documents()
        assert (document["conversionValue"], document["activeSeconds"]) == (10**12, None)
        assert sidecar.findings() == []


@pytest.mark.parametrize(
    ("anonymous_id", "shown"),
    [("ä€😀x", "ä€😀x"), ("0123456789", "456789"), ("0123456789😀", "56789😀")],
)
def test_a_visitor_is_shown_by_its_last_six_characters(tmp_path: Path, anonymous_id: str, shown: str) -> None:
    """Whatever they are."""
    with LocalSidecar(tmp_path / "n.db", NOW) as sidecar:
        assert sidecar.send("web-vitals", vital("s", anonymousId=anonymous_id, timestamp=NOW)) == ["accepted"]
        [document] = sidecar.export_documents()
        assert document["visitor"]["displayName"] == f"Visitor #{shown}"
        assert sidecar.findings() == []


def test_a_revision_stays_within_what_a_document_may_say(tmp_path: Path) -> None:
    """At 2**53 - 1 it grows no further: one more would be refused by every receiver."""
    with LocalSidecar(tmp_path / "n.db", NOW) as sidecar:
        sidecar.send("web-vitals", vital("s", timestamp=NOW))
        sidecar.conn.execute("UPDATE sessions SET revision = 9007199254740991")
        sidecar.send("web-vitals", vital("s", "CLS", 0.1, timestamp=NOW))
        assert sidecar.conn.execute("SELECT revision FROM sessions").fetchone() == (9007199254740991,)
