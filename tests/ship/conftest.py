"""A sidecar's store with a clock that stands where it is set, for every test of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.forks import Forks, shared_forks
from tests.ship.bench import Bench
from tests.ship.house import House

for name in ("rows_directory", "rows_ends", "rows_lines", "rows_way"):
    pytest.register_assert_rewrite(f"tests.ship.{name}")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with House(tmp_path / "house.db") as opened:
        yield opened


@pytest.fixture(scope="session")
def forks() -> Forks:
    return shared_forks()


@pytest.fixture
def bench(forks: Forks, tmp_path: Path) -> Iterator[Bench]:
    """A sender, a proxy and a receiver of their own for each row."""
    with Bench(forks, tmp_path) as built:
        yield built
