"""Opening the file: pragmas, schema, migrations, read-only connections. The only place that imports sqlite3.

Two copies of SQLite on one file in one process can corrupt it (https://sqlite.org/howtocorrupt.html, 2.2.1), so the
module that sqlite-utils uses is the one that everything uses: `pysqlite3` where its wheel is installed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

from sidecar.errors import StoreError

_UNUSED = ("numpy", "pandas")


@contextmanager
def _without(names: Sequence[str]) -> Iterator[None]:
    """sqlite-utils imports these where they are installed: 0.5 s of every start and 65 MiB, for nothing used here."""
    hidden = [name for name in names if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]  # so that its import fails
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


with _without(_UNUSED):
    from sqlite_utils import Database, Migrations
    from sqlite_utils.utils import sqlite3  # type: ignore[attr-defined]  # it re-exports the module it chose

Connection = sqlite3.Connection
Error = sqlite3.Error
IntegrityError = sqlite3.IntegrityError
OperationalError = sqlite3.OperationalError
SQLITE_VERSION: str = sqlite3.sqlite_version

BUSY_TIMEOUT_S = 30  # the command line may hold the write lock while the server wants it
READ_TIMEOUT_S = 5
COPY_STEPS = 200_000  # of SQLite's own, between two looks at how far a copy is: some 10 ms
CHECKPOINT_TIMEOUT_S = 0.25  # nothing is written while a checkpoint waits for readers

migrations = Migrations("sidecar")


@migrations()
def m0001_first(database: Database) -> None:
    """Facts, derived sessions and visitors, the outbox."""
    _run_script(database.conn, _resource("store/migrations/0001_first.sql"))


@migrations()
def m0002_erasure(database: Database) -> None:
    """Tombstones, also as lines of batches."""
    _run_script(database.conn, _resource("store/migrations/0002_erasure.sql"))


@migrations()
def m0003_arrivals(database: Database) -> None:
    """What was not taken of a session, and how often."""
    _run_script(database.conn, _resource("store/migrations/0003_arrivals.sql"))


@migrations()
def m0004_pages_by_time(database: Database) -> None:
    """Deriving a large session costs a third less."""
    _run_script(database.conn, _resource("store/migrations/0004_pages_by_time.sql"))


@migrations()
def m0005_reasons(database: Database) -> None:
    """A note of what was not taken says why."""
    _run_script(database.conn, _resource("store/migrations/0005_reasons.sql"))


@migrations()
def m0006_numbers(database: Database) -> None:
    """No number of a client is an error while deriving."""
    _run_script(database.conn, _resource("store/migrations/0006_numbers.sql"))


@migrations()
def m0007_samples(database: Database) -> None:
    """Web vitals are packed for reading."""
    _run_script(database.conn, _resource("store/migrations/0007_samples.sql"))


@migrations()
def m0008_sessions_packed(database: Database) -> None:
    """Sessions are packed for reading, too; sessions with a large fact are found by an index."""
    _run_script(database.conn, _resource("store/migrations/0008_sessions_packed.sql"))


def _resource(name: str) -> str:
    return resources.files("sidecar").joinpath(name).read_text(encoding="utf-8")


def read_schema() -> str:
    """The text of `schema.sql`: inside the package where it is installed, beside it in a source tree."""
    packaged = resources.files("sidecar").joinpath("schema.sql")
    if packaged.is_file():
        return packaged.read_text(encoding="utf-8")
    return (Path(__file__).parents[2] / "schema.sql").read_text(encoding="utf-8")


def _run_script(conn: Connection, script: str) -> None:
    """Run statements one by one: `executescript` would commit the transaction that a migration runs in."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if line.rstrip().endswith(";") and sqlite3.complete_statement(statement):
            conn.execute(statement)
            statement = ""


def _prepare(conn: Connection) -> None:
    conn.execute("PRAGMA foreign_keys = ON")
    if conn.execute("PRAGMA foreign_keys").fetchone() != (1,):
        raise StoreError("SQLite would not switch foreign keys on")


def open_database(path: Path, *, durability: str = "full") -> Connection:
    """A writable connection to the file, made and brought up to date where needed. Transactions are explicit.

    Raises StoreError where the file is no database, of a newer version, or cannot be opened.
    """
    try:
        conn = sqlite3.connect(
            path, isolation_level=None, timeout=BUSY_TIMEOUT_S, check_same_thread=False, cached_statements=512
        )
        _prepare(conn)
        if conn.execute("PRAGMA journal_mode = WAL").fetchone() != ("wal",):
            raise StoreError(f"{path}: the file system allows no WAL")
        conn.execute(f"PRAGMA synchronous = {'FULL' if durability == 'full' else 'NORMAL'}")
        conn.execute("PRAGMA cache_size = -8000")  # KiB; the default of 2,000 cost a tenth of the beacons a second
        conn.execute("PRAGMA wal_autocheckpoint = 4000")  # pages; by 1000 the same pages are written back four times
        conn.execute("PRAGMA secure_delete = FAST")  # ON costs 7 % of the beacons a second; an erasure switches it on
        _migrate(conn, path)
    except sqlite3.Error as error:
        raise StoreError(f"{path}: {error}") from error
    return conn


def _migrate(conn: Connection, path: Path) -> None:
    database = Database(conn)
    applied = {migration.name for migration in migrations.applied(database)}
    known = {migration.name for migration in migrations._migrations}
    if applied - known:
        raise StoreError(f"{path}: made by a newer version of the sidecar ({', '.join(sorted(applied - known))})")
    if applied == known:
        return
    if not applied and conn.execute("SELECT EXISTS (SELECT 1 FROM sqlite_master)").fetchone() != (0,):
        raise StoreError(f"{path}: a database, but not one of the sidecar")
    # atomic() of sqlite-utils is a deferred BEGIN: 1 of 40 simultaneous starts failed without the lock taken first.
    with immediate(conn):
        migrations.apply(database)


def open_read_only(path: Path) -> Connection:
    """A connection that cannot write (`mode=ro`), in one snapshot for each statement. Raises StoreError."""
    if not path.exists():
        raise StoreError(f"{path}: no such database; `sidecar serve` makes one")
    try:
        conn = sqlite3.connect(
            f"{path.resolve().as_uri()}?mode=ro",
            uri=True,
            isolation_level=None,
            timeout=READ_TIMEOUT_S,
            check_same_thread=False,
            cached_statements=256,
        )
        _prepare(conn)
        if not conn.execute("SELECT count(*) FROM sqlite_master WHERE name = 'web_vitals'").fetchone()[0]:
            raise StoreError(f"{path}: not a database of the sidecar")
    except sqlite3.Error as error:
        raise StoreError(f"{path}: {error}") from error
    return conn


def checkpoint(conn: Connection) -> None:
    """Move from the WAL into the file what no reader still needs there. Outside of a transaction.

    Raises OperationalError where the disk is full or fails: nothing is lost, it stays in the WAL, and COMMIT says so.
    """
    conn.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()


def empty_wal(conn: Connection, timeout_s: float = CHECKPOINT_TIMEOUT_S) -> bool:
    """Move all of the WAL into the file and cut it to nothing: until then it holds what was erased.

    Outside of a transaction. False where a reader of an older state was in the way for longer than the timeout, or the
    disk is full: what was committed is safe all the same, so it can be tried again.
    """
    conn.execute(f"PRAGMA busy_timeout = {round(timeout_s * 1000)}")
    try:
        busy = conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
    except sqlite3.OperationalError:
        return False
    finally:
        conn.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_S * 1000}")
    return not busy


# How many erasures the file still holds traces of, in a field of its header that SQLite leaves to the application (the
# schema's version is in a table of sqlite-utils). It counts in the transaction that erases, so no kill can lose it.
_ERASURES = "PRAGMA user_version"


def note_erasure(conn: Connection) -> None:
    """Say that something was erased, in the transaction that does it: the file has to be written anew."""
    conn.execute(f"{_ERASURES} = {count_erasures(conn) + 1}")


def count_erasures(conn: Connection) -> int:
    """Erasures since the file was last written anew."""
    return int(conn.execute(_ERASURES).fetchone()[0])


def rewrite(conn: Connection) -> None:
    """Write the whole file anew, outside of a transaction: 8 s a gigabyte, and as much disk for as long.

    When SQLite splits a page, copies of the rows that moved stay behind in bytes that no SQL reaches and secure_delete
    does not clear: of 100 visitors erased from a file that had grown in random order, one could still be found in it.
    Raises StoreError where there is no room for it, or another process is writing.
    """
    try:
        erasures = count_erasures(conn)
        conn.execute("VACUUM")
        if erasures:
            with immediate(conn):
                if count_erasures(conn) == erasures:  # else another process has erased since
                    conn.execute(f"{_ERASURES} = 0")
    except sqlite3.Error as error:
        raise StoreError(f"the file could not be written anew: {error}") from error


def copy_into(conn: Connection, path: Path, advance: Callable[[], object]) -> None:
    """Copy the file of a connection that is in no transaction to `path`, an empty file, and check the copy.

    `advance` is called every so often. Raises sqlite3.Error, or StoreError where the copy is not sound.
    """

    def go_on() -> int:
        advance()
        return 0

    conn.set_progress_handler(go_on, COPY_STEPS)
    try:
        conn.execute("VACUUM INTO ?", (str(path),))
    finally:
        conn.set_progress_handler(None, 0)
    with closing(sqlite3.connect(path, isolation_level=None)) as copy:
        copy.set_progress_handler(go_on, COPY_STEPS)
        [(said,)] = copy.execute("PRAGMA integrity_check(1)").fetchall()
    if said != "ok":
        raise StoreError(f"the copy is not sound: {said}")


def probe_write(conn: Connection) -> None:
    """Write something that changes nothing, in a transaction: it fails where nothing can be stored."""
    conn.execute(f"{_ERASURES} = {count_erasures(conn)}")


@contextmanager
def immediate(conn: Connection, *, wait: bool = True) -> Iterator[None]:
    """One write transaction. Rolls back what is left to roll back: a full disk has ended the transaction already.

    `wait` False: where another process writes it raises at once, and not after BUSY_TIMEOUT_S.
    """
    if not wait:
        conn.execute("PRAGMA busy_timeout = 0")
    try:
        conn.execute("BEGIN IMMEDIATE")
    finally:
        if not wait:
            conn.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_S * 1000}")
    try:
        yield
        conn.execute("COMMIT")
    except BaseException:
        if conn.in_transaction:
            conn.execute("ROLLBACK")
        raise


@contextmanager
def snapshot(conn: Connection) -> Iterator[None]:
    """Several reads of one state of the file."""
    conn.execute("BEGIN")
    try:
        yield
    finally:
        if conn.in_transaction:  # what SQLite cannot read may have ended it
            conn.execute("ROLLBACK")


def is_full(error: BaseException) -> bool:
    """Whether nothing can be stored at the moment: disk full, read-only file system, or the lock was not to be had."""
    code = getattr(error, "sqlite_errorcode", None)
    return isinstance(error, sqlite3.OperationalError) and (
        code is None
        or (code & 0xFF)
        in {
            sqlite3.SQLITE_FULL,
            sqlite3.SQLITE_IOERR,
            sqlite3.SQLITE_READONLY,
            sqlite3.SQLITE_BUSY,
            sqlite3.SQLITE_CANTOPEN,
            sqlite3.SQLITE_NOMEM,
        }
    )


def file_bytes(path: Path) -> int:
    """Size of the database file and its WAL, in bytes."""
    return sum(name.stat().st_size for name in (path, Path(f"{path}-wal")) if name.exists())


def rows(conn: Connection, sql: str, parameters: Any = ()) -> Iterator[dict[str, Any]]:
    """Rows as dicts, streamed."""
    cursor = conn.execute(sql, parameters)
    names = [column[0] for column in cursor.description]
    for row in cursor:
        yield dict(zip(names, row, strict=True))
