"""What the application itself answers: no such path, a wrong method, an error of its own; safe headers on all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from sidecar import app as application
from sidecar.config import Settings
from sidecar.web.access import SAFE_HEADERS


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    """The whole application, asked from this machine."""
    app = application.build(Settings(database=tmp_path / "e.db"))
    address: Any = ("127.0.0.1", 50_000)
    with TestClient(app, base_url="http://127.0.0.1:8787", client=address, raise_server_exceptions=False) as opened:
        yield opened


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", "/api/nowhere", 404),
        ("GET", "/sessions/", 404),
        ("GET", "/api/sessions/", 404),
        ("PUT", "/", 405),
        ("DELETE", "/api/overview", 405),
    ],
)
def test_refusals_have_safe_headers(client: TestClient, method: str, path: str, status: int) -> None:
    """No redirect by a slash, which would name a host before anybody has asked who may read."""
    answer = client.request(method, path, follow_redirects=False)
    assert answer.status_code == status
    assert {name: answer.headers.get(name) for name in SAFE_HEADERS} == SAFE_HEADERS
    assert ("allow" in answer.headers) == (status == 405)
    assert answer.headers["content-type"].startswith("application/json" if path.startswith("/api/") else "text/html")


@pytest.mark.parametrize("path", ["/sessions", "/api/sessions"])
def test_an_error_of_our_own_is_said(client: TestClient, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """As a page or as JSON, without what it was."""

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("a secret of the code")

    monkeypatch.setattr("sidecar.web.people.list_sessions", fail)
    monkeypatch.setattr("sidecar.web.read.list_sessions", fail)
    answer = client.get(path)
    assert answer.status_code == 500
    assert "an error of its own; its log says which" in answer.text
    assert "secret" not in answer.text
    assert {name: answer.headers.get(name) for name in SAFE_HEADERS} == SAFE_HEADERS
