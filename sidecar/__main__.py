"""The command line: one function a command; no logic."""

from __future__ import annotations

import csv
import itertools
import os
import shlex
import signal
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
from sidecar.app import build, describe_status, now_ms, prepare_upstream, run_server, ship_now
from sidecar.canonical import from_iso, to_iso
from sidecar.config import Settings, load_settings, setting_names
from sidecar.demo import run as run_demo
from sidecar.errors import SidecarError, StoreError
from sidecar.model import Outcome
from sidecar.store.arrivals import read_arrivals
from sidecar.store.database import (
    Error,
    count_erasures,
    empty_wal,
    immediate,
    note_erasure,
    open_database,
    open_read_only,
    rewrite,
    snapshot,
)
from sidecar.store.documents import CSV_COLUMNS, csv_row, export_lines, list_session_keys, read_facts, read_summary
from sidecar.store.erasure import forget as erase_visitor
from sidecar.store.explain_text import explain_lines, printable
from sidecar.store.facts import FactOwner
from sidecar.store.lines import export_tombstones, merge_lines
from sidecar.store.queries import find_sessions
from sidecar.store.verify import Difference, Step, check, is_damage, plan
from sidecar.store.verify import repair as repair_steps

IMPORT_LINES = 200  # lines a transaction: small enough to let beacons of a running server in between
ID_MAX = 128  # characters of a visitor's id
EMPTY_WAL_S = 5.0  # how long `forget` waits for readers of a running server
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


def _text_option(_: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """A text that can be stored: Python gives bytes of an argument that are no UTF-8 as lone surrogates."""
    if value is not None and any("\ud800" <= char <= "\udfff" for char in value):
        raise click.BadParameter(f"'{printable(value)}' is not UTF-8", param=parameter)
    return value


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
    """stdout for `-`, else a file that appears whole or not at all. Raises SidecarError where it cannot be written."""
    if path == "-":
        sys.stdout.reconfigure(encoding="utf-8", newline="\n")  # type: ignore[union-attr]  # a real stdout
        yield sys.stdout
        sys.stdout.flush()
        return
    aside = Path(f"{path}.part")
    try:
        if Path(path).exists() and not Path(path).is_file():
            raise SidecarError(f"{printable(path)}: not a regular file, and one would take its place; use - for stdout")
        with aside.open("w", encoding="utf-8", newline="\n") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        aside.replace(path)
    except OSError as error:
        raise SidecarError(f"{printable(path)}: {error.strerror}") from None
    finally:
        aside.unlink(missing_ok=True)


@cli.command()
@click.option("--format", "form", type=click.Choice(["ndjson", "csv"]), default="ndjson", show_default=True)
@click.option("--since", callback=_time_option, help="Sessions that started at or after this ISO 8601 time.")
@click.option("--until", callback=_time_option, help="Sessions that started before this ISO 8601 time.")
@click.option("--funnel", callback=_text_option, help="Sessions of this funnel only.")
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
                stream.writelines(line + "\n" for line in export_tombstones(conn, since, until))
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
    """Read session documents back (FILE, or - for stdin). They merge like beacons: twice is once.

    Where tombstones in it erase anything, the file is written anew at the end: as much free disk is needed.
    """
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
        emptied = True
        if count_erasures(conn):
            rewrite(conn)
            emptied = empty_wal(conn, EMPTY_WAL_S)
            if not emptied:
                with immediate(conn):
                    note_erasure(conn)  # so that this command, run again, or the server at its next start goes on here
    click.echo(", ".join(f"{count} {outcome}" for outcome, count in counts.items()))
    if counts[Outcome.REJECTED]:
        raise SidecarError(f"{counts[Outcome.REJECTED]} lines were rejected; the others are stored")
    if not emptied:
        raise SidecarError(f"{settings.database}-wal is being read and holds what was erased: run this again later")


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


@cli.group()
def upstream() -> None:
    """What the destination of SIDECAR_UPSTREAM_URL needs."""


@upstream.command("init")
@click.option("--print", "only_print", is_flag=True, help="Print the SQL instead, without connecting.")
@database_option
def upstream_init(only_print: bool, **given: Any) -> None:
    """Make the tables and views that ClickHouse needs. Run again, it leaves tables alone and makes views anew."""
    for line in prepare_upstream(load_settings(**given), only_print=only_print):
        click.echo(line)


class _Findings:
    """Prints differences, the first FINDINGS_MAX of them, and counts all."""

    def __init__(self) -> None:
        self.count = 0
        self.repaired_count = 0

    def say(self, difference: Difference) -> None:
        self.count += 1
        self.repaired_count += difference.repaired
        if self.count <= FINDINGS_MAX:
            click.echo(str(difference))

    def end(self) -> None:
        if self.count > FINDINGS_MAX:
            click.echo(f"... and {self.count - FINDINGS_MAX} more")


@cli.command()
@click.option("--repair", is_flag=True, help="Derive again what differs, in one transaction, and say what changed.")
@database_option
def verify(repair: bool, **given: Any) -> None:
    """Check the file, its links, and all that is computed from facts; exit 1 names each difference."""
    settings = load_settings(**given)
    try:
        _verify(settings.database, repair=repair)
    except (Error, UnicodeError) as error:  # a damaged file may fail anywhere, also in the texts of SQLite's errors
        raise StoreError(f"{settings.database}: {error}") from error


def _verify(database: Path, *, repair: bool) -> None:
    started = time.monotonic()
    findings = _Findings()
    differing: list[Step] = []
    damaged = False
    unsure: set[tuple[str, int]] = set()
    with closing(open_read_only(database)) as conn, snapshot(conn):
        steps = plan(conn)
        with progress("verifying", len(steps)) as advance:
            for step in steps:
                for difference in check(conn, step, unsure):
                    if differing[-1:] != [step]:
                        differing.append(step)
                    damaged = damaged or is_damage(difference)
                    if not repair or is_damage(difference):
                        findings.say(difference)
                advance()
        sessions = 0 if damaged else conn.execute("SELECT count(*) FROM sessions").fetchone()[0]
    if repair and damaged:
        findings.end()
        raise SidecarError(f"{database} is damaged, so nothing was derived from it: restore a backup")
    if repair and differing:
        with (
            closing(open_database(database)) as conn,
            immediate(conn),
            progress("repairing", None) as advance,
        ):
            for difference in repair_steps(conn, differing, now_ms()):
                findings.say(difference)
                advance()
    findings.end()
    left = findings.count - findings.repaired_count
    if left:
        raise SidecarError(f"{left} differences in {database}{' cannot be repaired' if repair else ''}")
    said = f"{findings.repaired_count} differences repaired, " if repair else ""
    took = time.monotonic() - started
    click.echo(f"{database}: {said}{sessions} sessions agree with their facts ({took:.1f} s)")


@cli.command("explain")
@click.argument("session_id", callback=_text_option)
@click.option("--site", callback=_text_option, help="The session of this site, where several have the id.")
@click.option("--funnel", callback=_text_option, help="The session of this funnel, where several have the id.")
@database_option
def explain_session(session_id: str, site: str | None, funnel: str | None, **given: Any) -> None:
    """Say of one session how each of its values came from its facts, and what was not taken."""
    settings = load_settings(**given)
    with closing(open_read_only(settings.database)) as conn, snapshot(conn):
        found = find_sessions(conn, session_id, site, funnel)
        if not found:
            raise SidecarError(f"no session has the id {printable(session_id)!r}")
        if len(found) > 1:
            for row in found:
                named = f"--site {shlex.quote(row['site'])} --funnel {shlex.quote(row['funnel_id'])}"
                click.echo(f"{printable(named)}  ({to_iso(row['started_at'])})")
            raise SidecarError(f"{len(found)} sessions have the id {printable(session_id)!r}: choose one of the above")
        key = found[0]["session_key"]
        document = read_summary(conn, key, now_ms(), settings.session_timeout_ms)
        facts = read_facts(conn, key, FactOwner(document["site"], document["funnelId"], session_id))
        for line in explain_lines(facts, document, read_arrivals(conn, key)):
            click.echo(line)


@cli.command()
@click.argument("visitor_id", callback=_text_option)
@click.option("--site", callback=_text_option, help="The visitor of this site [SIDECAR_SITE, default].")
@database_option
def forget(visitor_id: str, site: str | None, **given: Any) -> None:
    """Erase a visitor: its sessions, web vitals and events. A tombstone refuses what comes later, and ships.

    Writes the file anew, so that no copy is left in it: as much free disk is needed.
    """
    settings = load_settings(**given)
    if not 1 <= len(visitor_id) <= ID_MAX:
        raise click.BadParameter(f"must be 1 to {ID_MAX} characters", param_hint="VISITOR_ID")
    if not settings.database.exists():
        raise SidecarError(f"{settings.database}: no such database; `sidecar serve` makes one")
    with closing(open_database(settings.database)) as conn:
        with immediate(conn):
            erased = erase_visitor(conn, site or settings.site, visitor_id, now_ms())
        click.echo(f"erased {erased.sessions} sessions, {erased.web_vitals} web vitals, {erased.events} events")
        rewrite(conn)
        emptied = empty_wal(conn, EMPTY_WAL_S)
    if not emptied:
        raise SidecarError(f"{settings.database}-wal is being read and holds them still: run this again later")


@cli.command()
@database_option
def status(**given: Any) -> None:
    """Counts, sizes, what waits to be shipped and why, the last delivery."""
    for label, text in describe_status(load_settings(**given)):
        click.echo(f"{label:<24}{text}")


def _leave_stdout() -> None:
    """What could not be written to stdout would be tried, and complained of, once more at the end of the process."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main() -> None:
    """Entry point. What the project raises on purpose or the system refuses is one line on stderr and exit 1."""
    try:
        sys.exit(cli.main(standalone_mode=False) or 0)  # what click gives back is the exit code of --help
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:  # Ctrl-C
        sys.exit(128 + signal.SIGINT)
    except SidecarError as error:
        sys.exit(f"sidecar: {error}")
    except BrokenPipeError:  # the reader of stdout left: `sidecar export | head`
        _leave_stdout()
        sys.exit(1)
    except OSError as error:
        _leave_stdout()
        named = f"{printable(os.fsdecode(error.filename))}: " if isinstance(error.filename, str | bytes) else ""
        sys.exit(f"sidecar: {named}{error.strerror or error}")


if __name__ == "__main__":
    main()
