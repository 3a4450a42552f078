"""Who may import whom: the rooms of the package stand on floors, and imports point down."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "sidecar"

# What a room may import of ours, beside itself.
GROUND = {"model", "errors", "canonical", "attribution", "signing"}
ROOMS: dict[str, set[str]] = {
    "model": set(),
    "errors": set(),
    "signing": set(),
    "canonical": {"model"},
    "attribution": {"model", "canonical"},
    "config": {"errors", "signing"},
    "ingest": GROUND,
    "store": GROUND,
    "ship": GROUND | {"store"},
    "web": GROUND | {"ingest", "store"},
    "burst": set(),
    "protocol": {"burst", "web"},
    "daily": GROUND | {"store"},
    "packing": GROUND | {"store"},
    "health": GROUND | {"config", "store", "ship", "web"},
    "status": GROUND | {"config", "store", "ship"},
    "app": GROUND | {"config", "daily", "health", "ingest", "packing", "protocol", "ship", "status", "store", "web"},
    "demo": GROUND | {"app", "config", "store"},
    "parquet": GROUND | {"store"},
    "__main__": GROUND | {"app", "config", "status", "store", "demo", "parquet"},
    "tracker": set(),
    "__init__": set(),
}
# Which rooms may use what of others.
ONLY_IN: dict[str, set[str]] = {
    "sqlite3": set(),
    "sqlite_utils": {"store"},
    "pydantic": {"config", "ingest"},
    "pydantic_core": {"ingest"},
    "starlette": {"web", "app", "health", "demo"},
    "uvicorn": {"app", "protocol", "demo"},
    "click": {"__main__"},
    "httpx2": {"ship", "demo"},
    "obstore": {"ship"},
    "arro3": {"parquet"},
}


def room_of(path: Path) -> str:
    """The room a file is in: its first folder, or its own name."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> Iterator[str]:
    """Full names of the modules that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            if node.module == "sidecar":
                yield from (f"sidecar.{alias.name}" for alias in node.names)
            else:
                yield node.module


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    """A room imports itself and what its row allows, nothing else of ours."""
    room = room_of(path)
    assert room in ROOMS, f"{room} has no floor: give it one here"
    for name in imports_of(path):
        top, *rest = name.split(".")
        if top == "sidecar" and rest and rest[0] != "__version__":
            assert rest[0] == room or rest[0] in ROOMS[room], f"{room} must not import {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_libraries_stay_in_their_rooms(path: Path) -> None:
    """SQL in the store, HTTP at the doors."""
    for name in imports_of(path):
        allowed = ONLY_IN.get(name.split(".")[0])
        assert allowed is None or room_of(path) in allowed, f"{path.name} imports {name}"


def test_sqlite_comes_from_one_place() -> None:
    """Two copies of SQLite in one process can corrupt the file, so one module chooses the copy."""
    users = [path for path in FILES if "sqlite_utils.utils" in set(imports_of(path))]
    assert [str(path.relative_to(PACKAGE)) for path in users] == ["store/database.py"]


def test_no_circles() -> None:
    """No module imports itself by way of others."""
    modules = {".".join(("sidecar", *path.relative_to(PACKAGE).with_suffix("").parts)): path for path in FILES}
    arrows = {name: {target for target in imports_of(path) if target in modules} for name, path in modules.items()}
    while leaves := {name for name, targets in arrows.items() if not targets & arrows.keys()}:
        arrows = {name: targets for name, targets in arrows.items() if name not in leaves}
    assert arrows == {}
