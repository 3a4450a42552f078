"""Sessions, web vitals and events as Parquet, a file each, for DuckDB, pandas, Spark and the like.

Columns are the fields of the session document in snake_case, typed: times as UTC milliseconds, JSON objects as texts
with sorted keys. A web vital or event brings its session's names and its client's fields along, so that no file needs
another to be read.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

from sidecar.canonical import CLIENT_FIELDS, from_iso, to_json
from sidecar.errors import ConfigError, SidecarError
from sidecar.store.database import Connection
from sidecar.store.documents import SCALARS, read_session, read_summary
from sidecar.store.explain_text import printable

try:
    from arro3.core import Array, DataType, Field, RecordBatch, RecordBatchReader, Schema
    from arro3.io import write_parquet
except ImportError as error:
    raise ConfigError(
        "--format parquet needs the packages arro3-core and arro3-io: pip install 'vitals-sidecar[parquet]'"
    ) from error

GROUP_ROWS_MAX = 10_000  # a row group is what is held in memory: 10,000 events of 16 KiB at the very most
_BATCH_ROWS_MAX = 2_000
_BATCH_CHARS_MAX = 8 * 1024 * 1024
_BUFFER_BYTES = 1024 * 1024
_COMPRESSION = "zstd(3)"


# --- columns ---------------------------------------------------------------------------------------------------------


class _Kind(NamedTuple):
    """A type, and how a value of a document (not null) becomes what an array of it is made of."""

    type: DataType
    read: Callable[[Any], Any]


def _same(value: Any) -> Any:
    return value


_TEXT = _Kind(DataType.string(), _same)
_JSON = _Kind(DataType.string(), to_json)
_FLAG = _Kind(DataType.bool(), _same)
_WHOLE = _Kind(DataType.int64(), _same)
_REAL = _Kind(DataType.float64(), float)
_TIME = _Kind(DataType.timestamp("ms", tz="UTC"), from_iso)

_KINDS: dict[str, _Kind] = {
    **dict.fromkeys(("revision", "totalSessions", "totalEvents", "durationSeconds"), _WHOLE),
    **dict.fromkeys(("pageViews", "eventsCount", "experienceScore", "seq", "screenWidth", "screenHeight"), _WHOLE),
    **dict.fromkeys(("finished", "provisional", "converted", "clockSkewed"), _FLAG),
    **dict.fromkeys(("conversionValue", "activeSeconds", "value", "delta"), _REAL),
    **dict.fromkeys(("avgLcp", "avgInp", "avgCls", "avgFcp", "avgTtfb"), _REAL),
    **dict.fromkeys(("startedAt", "endedAt", "firstSeen", "lastSeen", "timestamp"), _TIME),
    **dict.fromkeys(("traits", "properties", "context"), _JSON),
}  # all others are texts
_OWNER = ("site", "funnelId", "sessionId")
_PAGE = ("pageUrl", "pagePath", "pageTitle")
_FACT = ("anonymousId", *CLIENT_FIELDS, "timestamp", "clockSkewed")


class _Table(NamedTuple):
    """A file: the fields of its rows, how a session is read for it, and which rows that gives."""

    name: str
    fields: tuple[str, ...]
    read: Callable[[Connection, int, int, int], dict[str, Any]]
    rows: Callable[[dict[str, Any]], Iterable[dict[str, Any]]]

    @property
    def schema(self) -> Schema:
        """Its columns."""
        return Schema([Field(_snake(name), _KINDS.get(name, _TEXT).type) for name in self.fields])


def _snake(name: str) -> str:
    return re.sub(r"(?=[A-Z])", "_", name).lower()


def _session_rows(document: dict[str, Any]) -> Iterable[dict[str, Any]]:
    return ({**document, **(document["visitor"] or {})},)


def _fact_rows(field: str) -> Callable[[dict[str, Any]], Iterable[dict[str, Any]]]:
    def rows(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
        owner, clients = {name: document[name] for name in _OWNER}, document["clients"]
        for fact in document[field]:
            client = {} if fact["client"] is None else clients[fact["client"]]
            yield {**client, **fact, **owner}

    return rows


_VISITOR = ("anonymousId", "displayName", "firstSeen", "lastSeen", "totalSessions", "totalEvents", "userId", "traits")
_TABLES = (
    _Table(
        "sessions",
        (*_OWNER, "subaccountId", "revision", "finished", "provisional", *_VISITOR, *(name for name, _ in SCALARS)),
        read_summary,
        _session_rows,
    ),
    _Table(
        "web_vitals",
        (*_OWNER, "metric", "id", "value", "rating", "delta", "navigationType", "seq", *_PAGE, *_FACT),
        read_session,
        _fact_rows("webVitals"),
    ),
    _Table(
        "events",
        (*_OWNER, "eventId", "eventName", "properties", *_PAGE, "referrer", "context", *_FACT),
        read_session,
        _fact_rows("events"),
    ),
)
FILES = tuple(f"{table.name}.parquet" for table in _TABLES)


# --- out -------------------------------------------------------------------------------------------------------------


def export_parquet(
    conn: Connection,
    keys: Sequence[int],
    directory: Path,
    now: int,
    timeout_ms: int,
    *,
    advance: Callable[[], None],
    group_rows_max: int = GROUP_ROWS_MAX,
) -> None:
    """Write FILES of the sessions into a directory, made where it is missing; call it inside a snapshot.

    Each session is read once a file; `advance` is called for each. The files appear whole, and only when the last of
    them is written; older ones of the same names are replaced. Raises SidecarError where they cannot be written.
    """
    if directory.exists() and not directory.is_dir():
        raise SidecarError(f"{printable(str(directory))}: not a directory, and Parquet is {len(FILES)} files")
    with ExitStack() as cleanup:
        try:
            directory.mkdir(exist_ok=True)
            written: list[tuple[Path, Path]] = []
            for table, name in zip(_TABLES, FILES, strict=True):
                aside = directory / f"{name}.part"
                cleanup.callback(aside.unlink, missing_ok=True)
                with aside.open("wb", buffering=_BUFFER_BYTES) as file:
                    documents = _read(table, conn, keys, now, timeout_ms, advance)
                    _write(table, documents, file, group_rows_max)
                    file.flush()
                    os.fsync(file.fileno())
                written.append((aside, directory / name))
            for aside, path in written:
                aside.replace(path)
        except OSError as error:
            raise SidecarError(f"{printable(str(directory))}: {error.strerror}") from error


def _read(
    table: _Table, conn: Connection, keys: Iterable[int], now: int, timeout_ms: int, advance: Callable[[], None]
) -> Iterator[dict[str, Any]]:
    for key in keys:
        yield table.read(conn, key, now, timeout_ms)
        advance()


class _Guard(io.RawIOBase):
    """Between arro3 and us: it panics where a file fails, and wraps what a source raises, so it is told of neither.

    After a failure the source ends early and the file takes everything; `check` raises what it was.
    """

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self._file = file
        self._error: BaseException | None = None

    def write(self, piece: bytes, /) -> int:  # type: ignore[override]  # arro3 gives bytes
        """Write, unless something has failed."""
        if self._error is None:
            try:
                self._file.write(piece)
            except BaseException as error:
                self._error = error
        return len(piece)

    def watch(self, batches: Iterator[RecordBatch]) -> Iterator[RecordBatch]:
        """The same batches, up to a failure."""
        while self._error is None:
            try:
                batch = next(batches, None)
            except BaseException as error:
                self._error = error
                return
            if batch is None:
                return
            yield batch

    def check(self) -> None:
        """Raise what has failed."""
        if self._error is not None:
            raise self._error


def _write(table: _Table, documents: Iterator[dict[str, Any]], file: IO[bytes], group_rows_max: int) -> None:
    guard, schema = _Guard(file), table.schema
    batches = _make_batches(table, schema, documents, min(group_rows_max, _BATCH_ROWS_MAX))
    source = RecordBatchReader.from_batches(schema, guard.watch(batches))
    write_parquet(source, cast(IO[bytes], guard), compression=_COMPRESSION, max_row_group_size=group_rows_max)
    guard.check()


def _make_batches(
    table: _Table, schema: Schema, documents: Iterable[dict[str, Any]], rows_max: int
) -> Iterator[RecordBatch]:
    columns = [(name, _KINDS.get(name, _TEXT)) for name in table.fields]
    rows: list[list[Any]] = []
    chars = 0
    for document in documents:
        for said in table.rows(document):
            row = [None if said.get(name) is None else kind.read(said[name]) for name, kind in columns]
            rows.append(row)
            chars += sum(len(value) for value in row if isinstance(value, str))
            if len(rows) == rows_max or chars > _BATCH_CHARS_MAX:
                yield _make_batch(rows, columns, schema)
                rows, chars = [], 0
    if rows:
        yield _make_batch(rows, columns, schema)


def _make_batch(rows: list[list[Any]], columns: list[tuple[str, _Kind]], schema: Schema) -> RecordBatch:
    arrays = [_make_array(values, kind) for values, (_, kind) in zip(zip(*rows, strict=True), columns, strict=True)]
    return RecordBatch.from_arrays(arrays, schema=schema)


def _make_array(values: Sequence[Any], kind: _Kind) -> Array:
    if kind is _TIME:  # arro3 makes no times of Python's integers
        return Array(values, type=DataType.int64()).cast(kind.type)
    return Array(values, type=kind.type)
