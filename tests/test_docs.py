"""The README says what there is: every setting, route, command, table, and nothing of this machine."""

from __future__ import annotations

import re
from contextlib import closing
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.routing import Route

from sidecar.__main__ import cli
from sidecar.app import build
from sidecar.config import load_settings, setting_names
from sidecar.store.database import open_database
from sidecar.web.collect import Collect

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", setting_names())
def test_every_setting_is_described(name: str) -> None:
    """As a row of the table of settings."""
    assert re.search(rf"^\|.*`{name}`", README, re.MULTILINE)


def test_every_default_is_the_real_one() -> None:
    """The defaults in the table are those of the code."""
    settings = load_settings({}).model_dump()
    fields = dict(zip(setting_names(), settings, strict=True))
    checked = 0
    for row in re.findall(r"^\| (`SIDECAR_[^|]*) \| ([^|]*) \|", README, re.MULTILINE):
        names = re.findall(r"SIDECAR_\w+", row[0])
        defaults = re.findall(r"`([^`]+)`", row[1])
        for name, default in zip(names, defaults, strict=False):
            value = settings[fields[name]]
            assert str(value).lower() == default, name
            checked += 1
    assert checked >= 14


@pytest.mark.parametrize("command", sorted(cli.commands))
def test_every_command_is_described(command: str) -> None:
    """As a row of the table of commands."""
    assert f"| `sidecar {command}" in README


def test_every_route_is_described(tmp_path: Path) -> None:
    """Every path that the server answers, but for the stylesheet."""
    app = build(load_settings({"SIDECAR_DATABASE": str(tmp_path / "docs.db")}))
    assert isinstance(app, Collect)
    assert isinstance(app._app, Starlette)
    routes = [route for route in app._app.routes if isinstance(route, Route)]
    assert len(routes) > 10
    for route in routes:
        path = re.sub(r"session_id:id", "sessionId", re.sub(r"anonymous_id:id", "anonymousId", route.path))
        if not path.startswith("/static/"):
            assert f"`{path}`" in README or f" {path}`" in README, path


def test_every_table_is_named(tmp_path: Path) -> None:
    """The file is for people who open it, too."""
    with closing(open_database(tmp_path / "t.db")) as conn:
        tables = [row[0] for row in conn.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    for table in tables:
        if not table.startswith(("sqlite_", "_sqlite_")):
            assert f"`{table}`" in README, table


def test_links_and_pictures_exist() -> None:
    """Everything the README points at inside the project is there."""
    for target in re.findall(r"\]\(([^)#]+)\)", README) + re.findall(r"`(tests/[\w/]+\.py)`", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target
