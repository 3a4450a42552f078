"""The command line: one function a command; no logic."""

from __future__ import annotations

import csv
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sidecar import __version__
from sidecar.app import build, describe_status, now_ms, run_server, ship_now
from sidecar.config import Settings, load_settings, setting_names
from sidecar.demo import run as run_demo
from sidecar.errors import SidecarError
from sidecar.model import Outcome
from sidecar.store.database import immediate, open_database, open_read_only, snapshot
from sidecar.store.documents import (
    CSV_COLUMNS,
    csv_row,
    export_lines,
    from_iso,
    list_session_keys,
    merge_lines,
    read_summary,
)
from sidecar.store.upkeep import count_verify_steps
from sidecar.store.upkeep import verify as find_differences

IMPORT_LINES = 200  # lines a transaction: small enough to let beacons of a running server in between
FINDINGS_MAX = 100  # differences printed; the rest is counted


@contextmanager
def progress(label: str, total: int | None) -> Iterator[Callable[[], None]]:
    """A progress bar on stderr where that is a terminal; the callable advances it by one."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(label, total=total)
        yield lambda: bar.advance(task)


def _time_option(_: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    if value is None:
        return None
    try:
        return from_iso(value)
    except (ValueError, OverflowError):
        raise click.BadParameter(
            f"{value!r} is not an ISO 8601 time like 2026-11-22T07:00:00Z", param=parameter
        ) from None


database_option = click.option(
    "--database",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The SQLite file [SIDECAR_DATABASE, sidecar.db].",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="sidecar")
def cli() -> None:
    """Vitals Sidecar: Core Web Vitals, sessions and visitors of a site in one SQLite file."""


def _serve_options(command: Callable[..., None]) -> Callable[..., None]:
    """One flag a setting: --session-timeout for SIDECAR_SESSION_TIMEOUT."""
    for field, name in reversed(list(zip(Settings.model_fields, setting_names(), strict=True))):
        flag = "--" + name.removeprefix("SIDECAR_").lower().replace("_", "-")
        command = click.option(flag, field, metavar="VALUE", help=f"{name}")(command)
    return command


@cli.command()
@_serve_options
def serve(**given: Any) -> None:
    """Run the server. Every setting is an environment variable, or a flag."""
    settings = load_settings(**given)
    run_server(build(settings), settings)


@cli.command()
@click.option("--once", is_flag=True, help="End after the table, with exit 0.")
def demo(once: bool) -> None:
    """Show everything on this machine: a sidecar, a small site, a second sidecar as its upstream."""
    sys.exit(run_demo(once=once, out=sys.stdout))


@contextmanager
def _output(path: str) -> Iterator[IO[str]]:
    """stdout for `-`, else a file that appears whole or not at all."""
    if path == "-":
        sys.stdout.reconfigure(encoding="utf-8", newline="\n")  # type: ignore[union-attr]  # a real stdout
        yield sys.stdout
        sys.stdout.flush()
        return
    aside = Path(f"{path}.part")
    try:
        with aside.open("w", encoding="utf-8", newline="\n") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


@cli.command()
@click.option("--format", "form", type=click.Choice(["ndjson", "csv"]), default="ndjson", show_default=True)
@click.option("--since", callback=_time_option, help="Sessions that started at or after this ISO 8601 time.")
@click.option("--until", callback=_time_option, help="Sessions that started before this ISO 8601 time.")
@click.option("--funnel", help="Sessions of this funnel only.")
@click.option("--output", default="-", show_default=True, metavar="FILE|-")
@database_option
def export(form: str, since: int | None, until: int | None, funnel: str | None, output: str, **given: Any) -> None:
    """Write session documents: ndjson (whole sessions, can be imported) or csv (one row a session)."""
    settings = load_settings(**given)
    now, timeout_ms = now_ms(), settings.session_timeout_ms
    with closing(open_read_only(settings.database)) as conn, snapshot(conn):
        keys = list(list_session_keys(conn, since=since, until=until, funnel_id=funnel))
        with _output(output) as stream, progress("exporting", len(keys)) as advance:
            if form == "ndjson":
                for line in export_lines(conn, keys, now, timeout_ms):
                    stream.write(line + "\n")
                    advance()
                return
            table = csv.writer(stream, lineterminator="\n")
            table.writerow(CSV_COLUMNS)
            for key in keys:
                table.writerow(csv_row(read_summary(conn, key, now, timeout_ms)))
                advance()


def _batches(lines: Iterable[bytes], size: int) -> Iterator[list[bytes]]:
    rows = iter(lines)
    while batch := list(itertools.islice(rows, size)):
        yield batch


@cli.command("import")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, allow_dash=True))
@database_option
def import_documents(file: Path, **given: Any) -> None:
    """Read session documents back (FILE, or - for stdin). They merge like beacons: twice is once."""
    settings = load_settings(**given)
    counts = dict.fromkeys(Outcome, 0)
    source = nullcontext(sys.stdin.buffer) if str(file) == "-" else file.open("rb")
    with source as stream, closing(open_database(settings.database)) as conn, progress("importing", None) as advance:
        first = 1
        for batch in _batches(stream, IMPORT_LINES):
            numbered = [(number, line) for number, line in enumerate(batch, first) if line.strip()]
            first += len(batch)
            with immediate(conn):
                results = merge_lines(conn, [line for _, line in numbered], now_ms())
            for (number, _), result in zip(numbered, results, strict=True):
                counts[result.outcome] += 1
                if result.outcome is Outcome.REJECTED:
                    click.echo(f"line {number}: {result.reason}", err=True)
                advance()
    click.echo(", ".join(f"{count} {outcome}" for outcome, count in counts.items()))
    if counts[Outcome.REJECTED]:
        raise SidecarError(f"{counts[Outcome.REJECTED]} lines were rejected; the others are stored")


@cli.command()
@click.option("--all", "everything", is_flag=True, help="Unfinished sessions, too.")
@database_option
def ship(everything: bool, **given: Any) -> None:
    """Ship finished sessions now, one pass, and say what happened."""
    settings = load_settings(**given)
    with progress("shipping", None):
        said, delivered = ship_now(settings, everything=everything)
    click.echo(said)
    if not delivered:
        sys.exit(1)


@cli.command()
@database_option
def verify(**given: Any) -> None:
    """Check the file, its links, and every derived column against the facts; exit 1 names each difference."""
    settings = load_settings(**given)
    started = time.monotonic()
    found = 0
    with closing(open_read_only(settings.database)) as conn, snapshot(conn):
        with progress("verifying", count_verify_steps(conn)) as advance:
            for difference in find_differences(conn, advance):
                found += 1
                if found <= FINDINGS_MAX:
                    click.echo(str(difference))
        sessions = conn.execute("SELECT count(*) FROM sessions").fetchone()[0]
    if found > FINDINGS_MAX:
        click.echo(f"... and {found - FINDINGS_MAX} more")
    if found:
        raise SidecarError(f"{found} differences in {settings.database}")
    click.echo(f"{settings.database}: {sessions} sessions agree with their facts ({time.monotonic() - started:.1f} s)")


@cli.command()
@database_option
def status(**given: Any) -> None:
    """Counts, sizes, what waits to be shipped and why, the last delivery."""
    for label, text in describe_status(load_settings(**given)):
        click.echo(f"{label:<24}{text}")


def main() -> None:
    """Entry point. What the project raises on purpose is one line on stderr and exit 1."""
    try:
        cli()
    except SidecarError as error:
        sys.exit(f"sidecar: {error}")
    except BrokenPipeError:  # the reader of stdout left: `sidecar export | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


if __name__ == "__main__":
    main()
