"""What the demo says: one line a step, one table at the end. At most 80 columns."""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TextIO

from rich.console import Console
from rich.status import Status
from rich.table import Table

WIDTH_MAX = 80
OUTCOMES = ("accepted", "duplicate", "superseded")


class Row(NamedTuple):
    """One line of the table. `expected` None: any count will do."""

    what: str
    found: int
    expected: int | None = None

    @property
    def is_right(self) -> bool:
        """Whether the count is as expected."""
        return self.expected is None or self.found == self.expected


class Report:
    """Writes to `out`: with colours where it is a terminal, else as plain text."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._is_terminal = out.isatty()

    def say(self, line: str = "") -> None:
        """One line, at once."""
        print(line, file=self._out, flush=True)

    def step_header(self) -> None:
        """The names of what `step` writes."""
        self._step("", ("beacons", *OUTCOMES))

    def step(self, title: str, counts: Counter[str]) -> None:
        """What was sent, and what the answers said: `sent` and the outcomes; nothing for 0."""
        self._step(title, tuple(f"{counts[name]:,}" if counts[name] else "" for name in ("sent", *OUTCOMES)))

    def _step(self, title: str, texts: Sequence[str]) -> None:
        beacons, accepted, duplicate, superseded = texts
        self.say(f"  {title:<40}{beacons:>8}{accepted:>9}{duplicate:>10}{superseded:>11}".rstrip())

    def note(self, text: str) -> None:
        """What came of a step."""
        self.say(f"  -> {text}")

    @contextmanager
    def working(self, on: str) -> Iterator[Status]:
        """A line on stderr while something goes on, gone afterwards; nothing where stderr is no terminal."""
        console = Console(stderr=True, quiet=not sys.stderr.isatty())
        with console.status(on) as status:
            yield status

    def table(self, rows: Sequence[Row]) -> None:
        """The rows, with what was expected where something was."""
        if self._is_terminal:
            self._rich_table(rows)
            return
        for what, count, expected in [("", "count", "expected"), *(_texts(row) for row in rows)]:
            self.say(f"  {what:<44}{count:>10}{expected:>12}".rstrip())

    def _rich_table(self, rows: Sequence[Row]) -> None:
        table = Table("", title="What happened", title_justify="left")
        table.add_column("count", justify="right")
        table.add_column("expected", justify="right", style="dim")
        for row in rows:
            table.add_row(*_texts(row), style="" if row.is_right else "bold red")
        width = min(WIDTH_MAX, shutil.get_terminal_size().columns)
        Console(file=self._out, width=width, highlight=False).print(table)


def _texts(row: Row) -> tuple[str, str, str]:
    return row.what, f"{row.found:,}", "" if row.expected is None else f"{row.expected:,}"


def count_noun(count: int, noun: str) -> str:
    """`1 beacon`, `40 beacons`, `2 batches`."""
    plural = f"{noun}es" if noun.endswith("ch") else f"{noun}s"
    return f"{count:,} {noun if count == 1 else plural}"
