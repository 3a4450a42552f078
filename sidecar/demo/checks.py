"""What the two databases hold, read beside the running sidecars, and whether they agree."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sidecar.store.database import Connection, open_read_only, snapshot
from sidecar.store.documents import export_lines, list_session_keys

DIFFERENCES_MAX = 5
_FOREIGN_KEY = re.compile("foreign key", re.IGNORECASE)
_Documents = dict[tuple[str, str, str], dict[str, Any]]

_AMONG = "session_id IN (SELECT value FROM json_each(?))"
_HELD = f"SELECT session_id, provisional FROM sessions WHERE {_AMONG}"
_CONFIRMED = f"""
SELECT count(*) FROM sessions WHERE {_AMONG} AND revision <= shipped_revision
AND session_key NOT IN (SELECT session_key FROM parked)"""
_REVISION = "SELECT max(revision) FROM sessions WHERE session_id = ?"
_UNCONFIRMED = """
SELECT f.site, f.funnel_id, s.session_id FROM sessions AS s JOIN funnels AS f ON f.funnel_key = s.funnel_key
WHERE s.revision > s.shipped_revision"""


@contextmanager
def reading(database: Path) -> Iterator[Connection]:
    """A connection in one state of the file. Raises StoreError where it is no database of the sidecar."""
    conn = open_read_only(database)
    try:
        with snapshot(conn):
            yield conn
    finally:
        conn.close()


def read_sessions(conn: Connection, session_ids: Collection[str]) -> dict[str, bool]:
    """Which of the sessions are held, and whether each is provisional."""
    found = conn.execute(_HELD, (json.dumps(list(session_ids)),))
    return {session_id: bool(provisional) for session_id, provisional in found}


def count_confirmed(conn: Connection, session_ids: Collection[str]) -> int:
    """How many of the sessions the upstream has confirmed in their present state."""
    count: int = conn.execute(_CONFIRMED, (json.dumps(list(session_ids)),)).fetchone()[0]
    return count


def count_batches(conn: Connection) -> int:
    """Batches that the upstream has confirmed."""
    count: int = conn.execute("SELECT count(*) FROM batches WHERE state = 'confirmed'").fetchone()[0]
    return count


def read_revision(conn: Connection, session_id: str) -> int:
    """The revision of a session that is held."""
    revision: int = conn.execute(_REVISION, (session_id,)).fetchone()[0]
    return revision


def count_foreign_key_errors(conn: Connection, log: str) -> int:
    """Broken links in the file, and the times the log complains of one."""
    return len(conn.execute("PRAGMA foreign_key_check").fetchall()) + len(_FOREIGN_KEY.findall(log))


def _export(conn: Connection, now: int, timeout_ms: int) -> _Documents:
    documents: _Documents = {}
    for line in export_lines(conn, list_session_keys(conn), now, timeout_ms):
        document = json.loads(line)
        del document["finished"]  # says when the export was made, not what is in it
        documents[document["site"], document["funnelId"], document["sessionId"]] = document
    return documents


def compare_exports(
    sidecar: Path, upstream: Path, session_ids: Collection[str], now: int, timeout_ms: int
) -> tuple[int, list[str]]:
    """(sessions compared, what differs: nothing where both agree), from whole exports of both, revisions included.

    All of `session_ids` have to be in both. Other sessions are a person's who is on the site at this moment: those that
    are not confirmed yet are left out, and the upstream is read last, so that it cannot be behind.
    """
    with reading(sidecar) as conn:
        here = _export(conn, now, timeout_ms)
        under_way = {tuple(row) for row in conn.execute(_UNCONFIRMED)}
    with reading(upstream) as conn:
        there = _export(conn, now, timeout_ms)
    differences = [
        f"session {session_id} is missing in the sidecar"
        for session_id in sorted(set(session_ids) - {name[2] for name in here})
    ]
    names = [name for name in sorted(here | there) if name[2] in session_ids or name not in under_way]
    for name in names:
        if name not in there or name not in here:
            differences.append(f"session {name[2]} is only in the {'upstream' if name in there else 'sidecar'}")
        elif here[name] != there[name]:
            field = next(field for field in here[name] if here[name][field] != there[name].get(field))
            shown = (json.dumps(side[name].get(field), ensure_ascii=False)[:200] for side in (here, there))
            differences.append(f"session {name[2]}, {field}: " + " in the sidecar, upstream ".join(shown))
    return len(names), differences
