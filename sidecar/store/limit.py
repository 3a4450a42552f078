"""The limit of the file's size (MAX_DATABASE_MB): at it new sessions are refused, and nothing is deleted for it.

What counts are the pages in use: those that pruning has freed are used again, so they count as free, without a VACUUM.
The WAL is not counted: it is 16 MB at most, but for as long as a reader holds it. Each group of beacons looks before it
is stored, so one group may go over the limit; looking once a second instead let 500 beacons of 12 kB do so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sidecar.errors import UnavailableError
from sidecar.store.database import Connection
from sidecar.store.facts import FactOwner, Recorded, Recording, record
from sidecar.store.tombstones import find_erased, find_sessions

MEGABYTE = 1_000_000
LEVELS = (80, 90, 100)  # percent that are warned of; at the last one new sessions are refused
RETRY_AFTER_S = 60
FULL = "the database is full (SIDECAR_MAX_DATABASE_MB): new sessions are not taken"

_KNOWN = """
SELECT 1 FROM funnels AS f CROSS JOIN sessions AS s ON s.funnel_key = f.funnel_key AND s.session_id = ?3
WHERE f.site = ?1 AND f.funnel_id = ?2"""


def used_bytes(conn: Connection) -> int:
    """Bytes of the pages that hold something, also with what the open transaction has written; 17 us."""
    names = ("page_count", "freelist_count", "page_size")
    pages, free, size = (conn.execute(f"PRAGMA {name}").fetchone()[0] for name in names)
    return int((pages - free) * size)


def level_of(used: int, limit_bytes: int) -> int:
    """The greatest of LEVELS that is reached; 0 below all, and where there is no limit."""
    if not limit_bytes:
        return 0
    return max((level for level in LEVELS if used * 100 >= level * limit_bytes), default=0)


class Limit:
    """The limit as the writer sees it. `limit_bytes` 0: none, and no look at the file."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.refused_count = 0

    def __repr__(self) -> str:
        return f"<Limit {self.limit_bytes} bytes, {self.refused_count} refused>"

    def is_reached(self, conn: Connection) -> bool:
        """Whether the file is full."""
        return self.limit_bytes > 0 and used_bytes(conn) >= self.limit_bytes

    def check(self, conn: Connection, owners: Iterable[FactOwner | tuple[str, str, str]]) -> None:
        """Raises UnavailableError where the file is full and one of these sessions would be a new one."""
        if self.is_reached(conn) and self._has_new(conn, set(owners)):
            self.refused_count += 1
            raise UnavailableError(FULL, retry_after_s=RETRY_AFTER_S)

    def record(self, conn: Connection, recordings: Sequence[Recording]) -> Sequence[Recorded | UnavailableError]:
        """`facts.record`; where the file is full, a beacon that needs a new session is refused as a whole.

        Whoever sent it sends all of it again, and what is held by then counts once.
        """
        if not self.is_reached(conn):
            return record(conn, recordings)
        results: list[Any] = [self._refuse(conn, recording) for recording in recordings]
        taken = [place for place, refused in enumerate(results) if refused is None]
        for place, recorded in zip(taken, record(conn, [recordings[place] for place in taken]), strict=True):
            results[place] = recorded
        self.refused_count += len(results) - len(taken)
        return results

    def _refuse(self, conn: Connection, recording: Recording) -> UnavailableError | None:
        facts = [fact for _, fact in recording.facts]
        erased = find_erased(conn, facts)  # what is refused for ever is not to be sent again
        owners = {fact[:3] for place, fact in enumerate(facts) if place not in erased}
        return UnavailableError(FULL, retry_after_s=RETRY_AFTER_S) if self._has_new(conn, owners) else None

    def _has_new(self, conn: Connection, owners: set[tuple[str, str, str]]) -> bool:
        erased = find_sessions(conn, owners)
        return any(conn.execute(_KNOWN, owner).fetchone() is None for owner in owners - erased)
