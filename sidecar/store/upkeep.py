"""Looking after the file: counts for status, the daily salt, subaccounts."""

from __future__ import annotations

from typing import Any

from sidecar.store.database import Connection, rows

_COUNTS = """
SELECT (SELECT count(*) FROM sessions) AS sessions,
       (SELECT count(*) FROM sessions WHERE provisional) AS provisional,
       (SELECT count(*) FROM visitors) AS visitors,
       (SELECT count(*) FROM web_vitals) AS web_vitals,
       (SELECT count(*) FROM events) AS events,
       (SELECT max(revision) FROM sessions) AS last_change"""


def read_counts(conn: Connection) -> dict[str, Any]:
    """Rows by kind: sessions, provisional, visitors, web_vitals, events; last_change in ms or None."""
    return next(rows(conn, _COUNTS))


def put_salt(conn: Connection, day: int, fresh: bytes) -> bytes:
    """The day's salt; `fresh` becomes it where the day has none. Salts of earlier days are deleted."""
    conn.execute("DELETE FROM salts WHERE day < ?", (day,))
    conn.execute("INSERT INTO salts (day, salt) VALUES (?, ?) ON CONFLICT (day) DO NOTHING", (day, fresh))
    salt: bytes = conn.execute("SELECT salt FROM salts WHERE day = ?", (day,)).fetchone()[0]
    return salt


_SUBACCOUNT = """
INSERT INTO funnels (site, funnel_id, subaccount_id, subaccount_revision) VALUES (?, ?, ?, 9007199254740992)
ON CONFLICT (site, funnel_id) DO UPDATE SET subaccount_id = excluded.subaccount_id,
subaccount_revision = excluded.subaccount_revision"""


def put_subaccounts(conn: Connection, site: str, subaccounts: dict[str, str]) -> None:
    """Subaccounts of funnels by the settings: they come before what any document says."""
    for funnel_id, subaccount_id in subaccounts.items():
        conn.execute(_SUBACCOUNT, (site, funnel_id, subaccount_id))
