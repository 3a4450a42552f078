"""/healthz and /metrics answer whoever watches the process, whatever the dashboard is busy with."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from sidecar import app as application
from sidecar.config import Settings
from sidecar.store.readers import READERS_MAX, WAIT_S, Readers


@pytest.mark.parametrize("path", ["/healthz", "/metrics"])
def test_nobody_waits_behind_the_dashboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """Every connection of the dashboard is lent out for as long as the test wants."""
    built: list[Readers] = []

    def build_readers(*given: Any, **options: Any) -> Readers:
        built.append(Readers(*given, **options))
        return built[-1]

    monkeypatch.setattr(application, "Readers", build_readers)
    app = application.build(Settings(database=tmp_path / "h.db"))
    with TestClient(app, base_url="http://127.0.0.1:8787", client=("127.0.0.1", 50_000)) as client, ExitStack() as lent:
        for _ in range(READERS_MAX):
            lent.enter_context(built[0].snapshot())
        began = time.monotonic()
        answer = client.get(path)
        assert time.monotonic() - began < WAIT_S / 2
        assert answer.status_code == 200
        assert "unknown" not in answer.text
        assert ('"state":"off"' in answer.text) == (path == "/healthz")
