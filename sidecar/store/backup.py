"""An online copy of the file, beside whoever writes to it.

By `VACUUM INTO`: one committed state, and nobody waits for it, since a reader holds up no writer, only the end of the
WAL, which grows by what is written meanwhile. Page by page (SQLite's backup API) takes as long, and copies what pruning
and erasures have left in free pages, too.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from sidecar.errors import StoreError
from sidecar.store.database import Error, copy_into, open_read_only

_BESIDE = ("-wal", "-shm", "-journal", ".ship.lock")  # files that belong to a database
_MAGIC = b"SQLite format 3\0"


def back_up(path: Path, destination: Path, advance: Callable[[int], object]) -> int:
    """Copy the database at `path` to `destination`, checked and durable before it gets its name; its size in bytes.

    A database that is there already is replaced at the end, in one step. `advance` is called with the bytes that are
    copied so far. Raises StoreError where the copy cannot be made or is not sound; then nothing is left of it.
    """
    with closing(open_read_only(path)) as conn:
        _check_destination(path, destination)
        try:
            handle, name = tempfile.mkstemp(".part", f"{destination.name}.", destination.parent)
        except OSError as error:
            raise StoreError(f"{destination}: {error.strerror}") from None
        os.close(handle)
        aside = Path(name)
        try:
            copy_into(conn, aside, lambda: advance(aside.stat().st_size))
            size = aside.stat().st_size
            _sync(aside)
            _check_destination(path, destination)  # once more, for what came while it was copied
            aside.replace(destination)
            _sync(destination.parent)
        except Error as error:
            raise StoreError(f"{destination}: {error}") from error
        except OSError as error:
            raise StoreError(f"{destination}: {error.strerror}") from None
        finally:
            aside.unlink(missing_ok=True)
            for beside in _BESIDE:
                Path(f"{aside}{beside}").unlink(missing_ok=True)
    return size


def _check_destination(path: Path, destination: Path) -> None:
    """Raises StoreError where the copy must not take the place of what is there."""
    taken = [path, *(Path(f"{path}{beside}") for beside in _BESIDE)]
    is_linked = destination.exists() and destination.samefile(path)
    if is_linked or destination.resolve() in [name.resolve() for name in taken]:
        raise StoreError(f"{destination}: is the database itself, or belongs to it")
    for beside in _BESIDE[:3]:
        other = Path(f"{destination}{beside}")
        if other.exists():  # SQLite would take its pages for the copy's
            raise StoreError(f"{destination}: a database that is in use, or was not closed ({other.name} is there)")
    try:
        kind = destination.stat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise StoreError(f"{destination}: {error.strerror}") from None
    if not stat.S_ISREG(kind):
        raise StoreError(f"{destination}: not a regular file")
    with destination.open("rb") as stream:
        if stream.read(len(_MAGIC)) != _MAGIC:
            raise StoreError(f"{destination}: is there, and is no database; a backup would take its place")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
