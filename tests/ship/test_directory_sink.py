"""Batches as files: whole or not at all, never over another, never outside of the directory."""

from __future__ import annotations

import errno
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from sidecar.ship.sinks import Answer, Verdict
from sidecar.ship.sinks.directory import DirectorySink, read_failure
from sidecar.store.outbox import Batch
from tests.ship.house import House, documents

LAST_MS_OF_A_DAY = 1_795_391_999_999  # 2026-11-22T23:59:59.999Z
BLOCKED_BY_LINK = "in place of the directory, or of something in it, is a file or a link"


def make_batch(
    text: str = "a line", *, site: str = "shop", batch_id: str = "b-1", claimed_at: int = LAST_MS_OF_A_DAY
) -> Batch:
    body = gzip.compress(f"{text}\n".encode(), mtime=0)
    return Batch(1, batch_id, site, body, len(text) + 1, 1, 0, claimed_at)


def send(top: Path, batch: Batch) -> Answer:
    return anyio.run(DirectorySink(f"{top.as_uri()}/").send, batch, 0)


def files(top: Path) -> list[str]:
    """Every file below, hidden ones too."""
    return sorted(str(path.relative_to(top)) for path in top.rglob("*") if not path.is_dir())


# --- where it goes ---------------------------------------------------------------------------------------------------


def test_the_frozen_bytes_by_site_and_utc_day(tmp_path: Path) -> None:
    top = tmp_path / "out"
    before, after = make_batch(), make_batch("another", batch_id="b-2", claimed_at=LAST_MS_OF_A_DAY + 1)
    assert send(top, before) == Answer(Verdict.TAKEN, "stored")
    assert send(top, after) == Answer(Verdict.TAKEN, "stored")
    assert files(top) == ["site=shop/dt=2026-11-22/b-1.ndjson.gz", "site=shop/dt=2026-11-23/b-2.ndjson.gz"]
    assert (top / "site=shop/dt=2026-11-22/b-1.ndjson.gz").read_bytes() == before.body
    assert (top / "site=shop/dt=2026-11-23/b-2.ndjson.gz").read_bytes() == after.body


@pytest.mark.anyio
async def test_documents_and_tombstones_can_be_read_back(house: House, tmp_path: Path) -> None:
    house.record_sessions(3)
    passed = await house.shipper(DirectorySink(f"{tmp_path.as_uri()}/out/")).ship_once()
    assert (passed.confirmed, passed.state) == (3, "ready")
    (name,) = files(tmp_path / "out")
    assert documents((tmp_path / "out" / name).read_bytes()) == [json.loads(line) for line in house.export()]


def test_a_link_to_the_directory_itself_is_the_person_s_wish(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    assert send(tmp_path / "out", make_batch()).verdict is Verdict.TAKEN
    assert files(tmp_path / "disk") == ["site=shop/dt=2026-11-22/b-1.ndjson.gz"]


def test_the_directory_is_made_but_not_the_one_above(tmp_path: Path) -> None:
    assert send(tmp_path / "out", make_batch()).verdict is Verdict.TAKEN
    answer = send(tmp_path / "not mounted" / "out", make_batch())
    assert answer == Answer(Verdict.BLOCKED, "the directory does not exist, nor does the one it would be made in")
    assert not (tmp_path / "not mounted").exists()


def test_files_have_the_rights_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        send(tmp_path / "out", make_batch())
    finally:
        os.umask(before)
    file = tmp_path / "out/site=shop/dt=2026-11-22/b-1.ndjson.gz"
    assert [oct(path.stat().st_mode & 0o777) for path in (file, *file.parents[:3])] == ["0o640"] + 3 * ["0o750"]


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("file:///var/lib/out/", "file:///var/lib/out/"),
        ("file:///var/lib/out", "file:///var/lib/out/"),
        ("file://localhost/var//lib/./out/", "file:///var/lib/out/"),
        ("file:///var/my%20files/%C3%BC", "file:///var/my%20files/%C3%BC/"),
        ("file:///var/%23%3F/", "file:///var/%23%3F/"),
        ("file://me:secret@/var/lib/", "file:///var/lib/"),
    ],
)
def test_one_spelling_and_no_credentials(url: str, address: str) -> None:
    sink = DirectorySink(url)
    assert (sink.address, repr(sink)) == (address, f"<DirectorySink {address}>")


@pytest.mark.parametrize("url", ["file:out/", "file:///out?x=1", "file:///out#x", "file:///o%00ut"])
def test_what_is_no_path_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="an address like file:///dir/"):
        DirectorySink(url)


# --- repeats ---------------------------------------------------------------------------------------------------------


def test_a_repeat_finds_its_file_and_leaves_it(tmp_path: Path) -> None:
    send(tmp_path, make_batch())
    file = tmp_path / "site=shop/dt=2026-11-22/b-1.ndjson.gz"
    before = file.stat()
    assert send(tmp_path, make_batch()) == Answer(Verdict.TAKEN, "stored before")
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize("other", [b"", b"short", b"x" * 1000, make_batch("A line").body])
def test_other_bytes_under_its_name_stay_and_are_told(tmp_path: Path, other: bytes) -> None:
    file = tmp_path / "site=shop/dt=2026-11-22/b-1.ndjson.gz"
    file.parent.mkdir(parents=True)
    file.write_bytes(other)
    answer = send(tmp_path, make_batch())
    assert answer == Answer(
        Verdict.BLOCKED, "what is stored under the name of this batch is not this batch: move it away"
    )
    assert file.read_bytes() == other
    file.rename(tmp_path / "away")
    assert send(tmp_path, make_batch()).verdict is Verdict.TAKEN


def test_what_a_killed_attempt_left_is_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "site=shop/dt=2026-11-22"
    folder.mkdir(parents=True)
    (tmp_path / "precious").write_text("precious")
    (folder / ".b-1.ndjson.gz.part").symlink_to(tmp_path / "precious")
    assert send(tmp_path, make_batch()).verdict is Verdict.TAKEN
    assert files(tmp_path) == ["precious", "site=shop/dt=2026-11-22/b-1.ndjson.gz"]
    assert (tmp_path / "precious").read_text() == "precious"


_CRASHES = """
import anyio, itertools, os, pathlib, sys, threading
from sidecar.ship.sinks.directory import DirectorySink
from sidecar.store.outbox import Batch

CALLS = {os.open, os.mkdir, os.write, os.fsync, os.rename, os.unlink, os.close}
BODY = bytes(range(256)) * 100

def send(top):
    return anyio.run(DirectorySink(top.as_uri()).send, Batch(1, "b-1", "shop", BODY, 0, 1, 0, 0), 0)

def crash(top, number):
    left = number
    def count(frame, event, function):
        nonlocal left
        if event == "c_call" and function in CALLS:
            left -= 1
            if not left:
                os._exit(9)
    threading.setprofile(count)
    send(top)
    os._exit(0)

for number in itertools.count(1):
    top = pathlib.Path(sys.argv[1]) / str(number)
    child = os.fork() or crash(top, number)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    found = [*top.rglob("*.gz")]
    whole = all(path.read_bytes() == BODY for path in found)
    again = send(top)
    files = [path.name for path in top.rglob("*") if path.is_file()]
    print(ended, len(found), whole, again.verdict, again.reason, *files, sep=", ")
    if ended == 0:
        break
"""


def test_killed_before_any_call_it_is_whole_or_not_there_and_a_repeat_mends_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _CRASHES, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    lines = done.stdout.splitlines()
    unborn = "9, 0, True, taken, stored, b-1.ndjson.gz"
    born = "9, 1, True, taken, stored before, b-1.ndjson.gz"
    assert set(lines[:-1]) == {unborn, born}
    assert lines[:-1] == sorted(lines[:-1]), "first it was not there, then it was"
    assert lines[-1] == "0, 1, True, taken, stored before, b-1.ndjson.gz"
    assert lines.count(unborn) >= 8
    assert lines.count(born) >= 3


# --- never outside ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "site", ["", ".", "..", "../..", "../evil", "a/b", "/etc", ".hidden", "a\0b", "shop\n", "ü", "a" * 65]
)
def test_a_hostile_site_is_refused(tmp_path: Path, site: str) -> None:
    top = tmp_path / "in" / "out"
    top.parent.mkdir()
    answer = send(top, make_batch(site=site))
    assert answer == Answer(Verdict.REFUSED, "the site of the batch cannot be the name of a folder")
    assert [*tmp_path.rglob("*")] == [top.parent]


@pytest.mark.parametrize("batch_id", ["", "..", "../../evil", "a/b", ".b", "a\0b", "b\n", "-rf", "a" * 129])
def test_a_hostile_id_is_refused(tmp_path: Path, batch_id: str) -> None:
    answer = send(tmp_path, make_batch(batch_id=batch_id))
    assert answer == Answer(Verdict.REFUSED, "the id of the batch cannot be the name of a file")
    assert [*tmp_path.rglob("*")] == []


@pytest.mark.parametrize("place", ["site=shop", "site=shop/dt=2026-11-22", "site=shop/dt=2026-11-22/b-1.ndjson.gz"])
def test_a_link_that_leads_outside_is_not_followed(tmp_path: Path, place: str) -> None:
    top, outside = tmp_path / "out", tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(make_batch().body)
    link = top / place
    link.parent.mkdir(parents=True)
    link.symlink_to(outside / "file" if place.endswith("gz") else outside)
    assert send(top, make_batch()) == Answer(Verdict.BLOCKED, BLOCKED_BY_LINK)
    assert files(outside) == ["file"]
    assert link.is_symlink()


def test_a_pipe_of_its_name_does_not_hang_it(tmp_path: Path) -> None:
    folder = tmp_path / "site=shop/dt=2026-11-22"
    folder.mkdir(parents=True)
    os.mkfifo(folder / "b-1.ndjson.gz")
    assert send(tmp_path, make_batch()).verdict is Verdict.BLOCKED
    (folder / "b-1.ndjson.gz").unlink()
    (folder / "b-1.ndjson.gz").mkdir()
    assert send(tmp_path, make_batch()).verdict is Verdict.BLOCKED


# --- what goes wrong -------------------------------------------------------------------------------------------------


def test_a_file_in_place_of_the_directory(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    assert send(tmp_path / "out", make_batch()) == Answer(Verdict.BLOCKED, BLOCKED_BY_LINK)
    assert (tmp_path / "out").read_text() == "a file"


_LIMITED = """
import anyio, os, resource, sys
from sidecar.ship.sinks.directory import DirectorySink
from sidecar.store.outbox import Batch
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
batches = [Batch(1, f"b-{size}", "shop", os.urandom(size), 0, 1, 0, 0) for size in (10_001, 10_000)]
for batch in batches:
    answer = anyio.run(DirectorySink(sys.argv[1]).send, batch, 0)
    print(answer.verdict, answer.reason, sep=": ")
"""


def test_a_write_that_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    """The same way as with a full disk (tests/ship/test_faults.py has one), but without being root."""
    top = tmp_path / "out"
    command = [sys.executable, "-c", _LIMITED, f"{top.as_uri()}/"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "too large: larger than a file may be there\ntaken: stored\n"
    assert files(top) == ["site=shop/dt=1970-01-01/b-10000.ndjson.gz"]


@pytest.mark.parametrize(
    ("number", "answer"),
    [
        (errno.ENOSPC, Answer(Verdict.AGAIN, "disk full")),
        (errno.EDQUOT, Answer(Verdict.AGAIN, "disk full: the quota is used up")),
        (errno.EIO, Answer(Verdict.AGAIN, "the directory did not take it: input/output error")),
        (errno.ESTALE, Answer(Verdict.AGAIN, "the directory did not take it: stale file handle")),
        (errno.EMFILE, Answer(Verdict.AGAIN, "the directory did not take it: too many open files")),
        (None, Answer(Verdict.AGAIN, "the directory did not take it: unknown error")),
        (errno.EACCES, Answer(Verdict.BLOCKED, "the directory cannot be written: permission denied")),
        (errno.EROFS, Answer(Verdict.BLOCKED, "the directory cannot be written: read-only file system")),
        (errno.EPERM, Answer(Verdict.BLOCKED, "the directory cannot be written: operation not permitted")),
    ],
)
def test_errors_in_words_that_name_no_path(number: int | None, answer: Answer) -> None:
    error = OSError("no number") if number is None else OSError(number, os.strerror(number), "/secret/place")
    assert read_failure(error) == answer


def test_a_directory_without_write_permission(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir(mode=0o500)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65_534)  # nobody: permissions do not bind root
    try:
        answer = send(tmp_path / "out", make_batch())
    finally:
        os.seteuid(user)
    assert answer == Answer(Verdict.BLOCKED, "the directory cannot be written: permission denied")
