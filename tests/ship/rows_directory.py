"""Rows of the fault matrix: a directory as the destination."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.builders import event
from tests.proxy import wait_until
from tests.ship.bench import SESSIONS, Bench, export, lines_of


def directory_documents(folder: Path) -> list[dict[str, Any]]:
    """What a reader of the directory has: of each session its newest revision."""
    newest: dict[tuple[str, str, str], dict[str, Any]] = {}
    for path in folder.rglob("*.ndjson.gz"):
        for document in map(json.loads, lines_of(path.read_bytes())):
            document.pop("finished")
            owner = (document["site"], document["funnelId"], document["sessionId"])
            if owner not in newest or newest[owner]["revision"] <= document["revision"]:
                newest[owner] = document
    return [newest[owner] for owner in sorted(newest)]


def check_directory(bench: Bench, folder: Path) -> None:
    """All is there, as it is here, and nothing half written beside it."""
    assert bench.ship().code == 0
    assert directory_documents(folder) == export(bench.sender.path)
    assert [path.name for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".ndjson.gz")] == []
    bench.expect("ready", None, waitingSessions=0, parkedSessions=0, confirmedSessions=SESSIONS)


def mounted(bench: Bench, *options: str) -> Path:
    """A small file system of its own, in memory."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a file system that is full or read-only")
    folder = bench.folder / "mounted"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", folder], check=True)
    bench.settings["UPSTREAM_URL"] = f"{folder.as_uri()}/"
    return folder


def full(bench: Bench) -> None:
    """No room is left in the directory: it waits, and leaves nothing half written."""
    bench.sender.record_sessions(SESSIONS)
    folder = mounted(bench, "-o", "size=64k")
    try:
        filler = folder / "filler"
        with pytest.raises(OSError, match="No space"):
            filler.write_bytes(bytes(1_000_000))
        with bench.serving() as sender:
            wait_until(lambda: sender.get("/healthz").json()["shipping"]["state"] == "waiting", "waiting")
            assert "full" in sender.get("/healthz").json()["shipping"]["reason"]
        filler.unlink()
        check_directory(bench, folder)
    finally:
        subprocess.run(["umount", folder], check=True)


def read_only(bench: Bench) -> None:
    """The directory cannot be written: blocked, until it can."""
    bench.sender.record_sessions(SESSIONS)
    folder = mounted(bench, "-o", "ro")
    try:
        with bench.serving() as sender:
            wait_until(lambda: sender.get("/healthz").json()["shipping"]["state"] == "blocked", "blocked")
            assert "read-only" in sender.get("/healthz").json()["shipping"]["reason"]
        subprocess.run(["mount", "-o", "remount,rw", folder], check=True)
        check_directory(bench, folder)
    finally:
        subprocess.run(["umount", folder], check=True)


def is_a_file(bench: Bench) -> None:
    """A file stands where the directory should be."""
    bench.sender.record_sessions(SESSIONS)
    folder = bench.folder / "upstream"
    folder.write_text("a file")
    bench.settings["UPSTREAM_URL"] = f"{folder.as_uri()}/"
    with bench.serving() as sender:
        wait_until(lambda: sender.get("/healthz").json()["shipping"]["state"] == "blocked", "blocked")
        assert "is a file" in sender.get("/healthz").json()["shipping"]["reason"]
    assert folder.read_text() == "a file"
    folder.unlink()
    check_directory(bench, folder)


def and_a_hostile_site(bench: Bench) -> None:
    """A `site` that is a path leads nowhere outside of the directory, and holds nothing else up."""
    bench.sender.record(event("evil", site="../../evil"))
    bench.sender.now += 1
    bench.sender.record_sessions(SESSIONS)
    folder = bench.folder / "deep" / "upstream"
    folder.mkdir(parents=True)
    bench.settings["UPSTREAM_URL"] = f"{folder.as_uri()}/"
    bench.ship()
    written = [*bench.folder.rglob("*.ndjson.gz")]
    assert written
    assert all(path.is_relative_to(folder / "site=default") for path in written)
    assert [document["site"] for document in directory_documents(folder)] == ["default"] * SESSIONS
    bench.expect("ready", None, waitingSessions=0, parkedSessions=1, confirmedSessions=SESSIONS)
