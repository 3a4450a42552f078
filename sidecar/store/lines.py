"""Lines of an export or of a batch: session documents, then tombstones; in through one door, whoever sends them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from sidecar.canonical import from_iso
from sidecar.errors import DocumentError
from sidecar.model import Outcome
from sidecar.store.database import Connection
from sidecar.store.documents import (
    Document,
    LineResult,
    export_lines,
    list_session_keys,
    merge_documents,
    read_document,
    read_object,
    read_site,
    to_line,
    tombstone_object,
)
from sidecar.store.erasure import bury, screen
from sidecar.store.tombstones import ERASED, Tombstone, list_tombstones

SESSION_HASHES_MAX = 1_000_000  # in one tombstone: 64 MiB of them is what a batch can hold
_HASH = re.compile("[0-9a-f]{64}")

Line = Document | Tombstone


# --- out -------------------------------------------------------------------------------------------------------------


def export_tombstones(conn: Connection, since: int | None = None, until: int | None = None) -> Iterator[str]:
    """Tombstones erased within [since, until) (ms) as lines; they come after all documents of an export."""
    for tombstone in list_tombstones(conn, since, until):
        yield to_line(tombstone_object(tombstone))


def export_all(conn: Connection, now: int, timeout_ms: int) -> Iterator[str]:
    """Every line of a whole export; call it inside a snapshot."""
    yield from export_lines(conn, list_session_keys(conn), now, timeout_ms)
    yield from export_tombstones(conn)


# --- in --------------------------------------------------------------------------------------------------------------


def read_line(line: str | bytes) -> Line:
    """A document or tombstone from one line of JSON. Raises DocumentError with the reason."""
    raw = read_object(line)
    kind = raw.get("type")
    try:
        if kind == "session":
            return read_document(raw)
        if kind == "tombstone":
            return _read_tombstone(raw)
    except (OverflowError, RecursionError) as error:  # a net: no line may stop the lines beside it
        raise DocumentError(f"cannot be read: {error}") from None
    raise DocumentError("type: must be session or tombstone")


def _read_tombstone(raw: dict[str, Any]) -> Tombstone:
    site = read_site(raw)
    visitor, sessions = raw.get("visitorHash"), raw.get("sessionHashes", [])
    if not isinstance(visitor, str) or not _is_hash(visitor):
        raise DocumentError("visitorHash: must be a SHA-256 in lower-case hex")
    if not isinstance(sessions, list) or len(sessions) > SESSION_HASHES_MAX or not all(map(_is_hash, sessions)):
        raise DocumentError("sessionHashes: must be a list of SHA-256 in lower-case hex")
    try:
        erased_at = from_iso(raw.get("erasedAt"))
    except ValueError:
        raise DocumentError("erasedAt: must be an ISO 8601 time") from None
    return Tombstone(site, visitor, frozenset(sessions), erased_at)


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and _HASH.fullmatch(value) is not None


def site_of(line: Line) -> str:
    """The site that a line writes to."""
    return line.site if isinstance(line, Tombstone) else line.owner.site


def merge(conn: Connection, lines: Sequence[Line], now: int) -> list[LineResult]:
    """Merge documents and obey tombstones, in their order. One result a line."""
    results: list[LineResult] = []
    for _, run in groupby(lines, lambda line: isinstance(line, Tombstone)):
        part = list(run)
        results += bury(conn, [line for line in part if isinstance(line, Tombstone)], now)
        results += _merge_documents(conn, [line for line in part if isinstance(line, Document)], now)
    return results


def _merge_documents(conn: Connection, documents: Sequence[Document], now: int) -> list[LineResult]:
    screened = screen(conn, documents)
    merged = iter(merge_documents(conn, [document for document in screened if document is not None], now))
    refused = LineResult(Outcome.REJECTED, ERASED)
    return [refused if document is None else next(merged) for document in screened]


def merge_lines(conn: Connection, lines: Sequence[bytes], now: int) -> list[LineResult]:
    """Merge lines of JSON; one that cannot be read is rejected with its reason. One result a line."""
    read: list[Line | LineResult] = []
    for text in lines:
        try:
            read.append(read_line(text))
        except DocumentError as error:
            read.append(LineResult(Outcome.REJECTED, str(error)))
    merged = iter(merge(conn, [line for line in read if not isinstance(line, LineResult)], now))
    return [line if isinstance(line, LineResult) else next(merged) for line in read]
