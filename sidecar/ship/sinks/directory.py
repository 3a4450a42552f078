"""Batches as files: `file:///dir/` gets `site=<site>/dt=<UTC day of the claim>/<batch id>.ndjson.gz` (contract 8).

Each appears whole or not at all: written aside in its folder, fsynced, renamed. Every step is relative to an opened
folder and follows no link, so nothing is written outside, whatever stands in the directory.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

import anyio.to_thread

from sidecar.canonical import to_iso
from sidecar.ship.sinks import Answer, Verdict
from sidecar.store.documents import SITE_PATTERN
from sidecar.store.outbox import Batch

_BATCH_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

STORED = Answer(Verdict.TAKEN, "stored")
STORED_BEFORE = Answer(Verdict.TAKEN, "stored before")
HOLDS_OTHER = Answer(Verdict.BLOCKED, "what is stored under the name of this batch is not this batch: move it away")


def place_batch(batch: Batch) -> tuple[str, str, str]:
    """The two folders and the name of a batch's file; the same for every attempt.

    Raises ValueError where the site or the id is no plain name: both come from the database, which anybody may edit.
    """
    if not SITE_PATTERN.fullmatch(batch.site):
        raise ValueError("the site of the batch cannot be the name of a folder")
    if not _BATCH_ID.fullmatch(batch.batch_id):
        raise ValueError("the id of the batch cannot be the name of a file")
    day = (to_iso(batch.claimed_at) or "")[:10]
    return f"site={batch.site}", f"dt={day}", f"{batch.batch_id}.ndjson.gz"


def read_failure(error: OSError) -> Answer:
    """What it means that a file could not be written; the texts name no path."""
    why = os.strerror(error.errno).lower() if error.errno else "unknown error"
    match error.errno:
        case errno.ENOSPC:
            return Answer(Verdict.AGAIN, "disk full")
        case errno.EDQUOT:
            return Answer(Verdict.AGAIN, "disk full: the quota is used up")
        case errno.EFBIG:
            return Answer(Verdict.TOO_LARGE, "larger than a file may be there")
        case errno.ENOENT:
            return Answer(Verdict.BLOCKED, "the directory does not exist, nor does the one it would be made in")
        case errno.ENOTDIR | errno.ELOOP | errno.EISDIR:
            return Answer(Verdict.BLOCKED, "in place of the directory, or of something in it, is a file or a link")
        case errno.EACCES | errno.EPERM | errno.EROFS | errno.ENAMETOOLONG | errno.EXDEV:
            return Answer(Verdict.BLOCKED, f"the directory cannot be written: {why}")
    return Answer(Verdict.AGAIN, f"the directory did not take it: {why}")


class DirectorySink:
    """A directory. It is made where it is missing, but not the one above it: that may be a disk not mounted yet.

    Files get the rights that the umask leaves. Raises ValueError where the address is no path.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        path = unquote(parts.path)
        if parts.query or parts.fragment or "\0" in path:
            raise ValueError("an address like file:///dir/, with %3F for ? and %23 for #")
        self._path = Path(path)
        if not self._path.is_absolute():
            raise ValueError("an address like file:///dir/")
        self._address = self._path.as_uri() + "/"

    def __repr__(self) -> str:
        return f"<DirectorySink {self._address}>"

    @property
    def address(self) -> str:
        """The directory, in one spelling."""
        return self._address

    async def send(self, batch: Batch, now: int) -> Answer:  # noqa: ARG002 - nothing is signed
        """Write one file. Not given up half-way when cancelled: a write takes as long as it takes."""
        return await anyio.to_thread.run_sync(self._store, batch)

    async def close(self) -> None:
        """Nothing is held open."""

    def _store(self, batch: Batch) -> Answer:
        try:
            site, day, name = place_batch(batch)
        except ValueError as error:
            return Answer(Verdict.REFUSED, str(error))
        try:
            with _open_top(self._path) as top, _open_folder(site, top) as above, _open_folder(day, above) as folder:
                held = _compare(name, batch.body, folder)
                if held is False:
                    return HOLDS_OTHER
                if held is None:
                    _write(name, batch.body, folder)
                for each in (folder, above, top):  # also after a repeat: the attempt before may have been killed here
                    _sync_folder(each)
        except OSError as error:
            return read_failure(error)
        return STORED_BEFORE if held else STORED


@contextmanager
def _open_top(path: Path) -> Iterator[int]:
    try:
        folder = os.open(path, _FOLDER)
    except FileNotFoundError:
        path.mkdir()
        with _open_top(path.parent) as above:
            _sync_folder(above)
        folder = os.open(path, _FOLDER)
    try:
        yield folder
    finally:
        os.close(folder)


@contextmanager
def _open_folder(name: str, above: int) -> Iterator[int]:
    with suppress(FileExistsError):
        os.mkdir(name, dir_fd=above)
    folder = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=above)
    try:
        yield folder
    finally:
        os.close(folder)


def _compare(name: str, body: bytes, folder: int) -> bool | None:
    """Whether the file holds these bytes (then surely on disk); None where there is none."""
    try:
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except FileNotFoundError:
        return None
    try:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode) or found.st_size != len(body):
            return False
        with os.fdopen(file, "rb", closefd=False) as stream:
            if stream.read(len(body)) != body:
                return False
        os.fsync(file)
        return True
    finally:
        os.close(file)


def _write(name: str, body: bytes, folder: int) -> None:
    aside = f".{name}.part"
    with suppress(FileNotFoundError):
        os.unlink(aside, dir_fd=folder)  # of an attempt that was killed
    file = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666, dir_fd=folder)
    try:
        try:
            left = memoryview(body)
            while left:
                left = left[os.write(file, left) :]
            os.fsync(file)
        finally:
            os.close(file)
        os.rename(aside, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with suppress(OSError):  # the first error is the one to tell
            os.unlink(aside, dir_fd=folder)
        raise


def _sync_folder(folder: int) -> None:
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot sync a folder
            raise
