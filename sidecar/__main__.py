"""The command line: one function a command; no logic.

What only one command needs, it imports itself: the server's packages are two thirds of the time a start takes.
"""

from __future__ import annotations

import csv
import gzip
import itertools
import os
import shlex
import signal
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any

import click

from sidecar import __version__
from sidecar.canonical import from_iso, now_ms, to_iso
from sidecar.config import Settings, load_settings, setting_names
from sidecar.errors import SidecarError, StoreError
from sidecar.model import Outcome
from sidecar.status import describe_status
from sidecar.store.arrivals import read_arrivals
from sidecar.store.backup import back_up
from sidecar.store.database import (
    Connection,
    Error,
    count_erasures,
    empty_wal,
    file_bytes,
    immediate,
    is_full,
    note_erasure,
    open_database,
    open_read_only,
    rewrite,
    snapshot,
)
from sidecar.store.documents import (
    CSV_COLUMNS,
    csv_row,
    export_lines,
    list_session_keys,
    read_facts,
    read_summary,
    to_line,
)
from sidecar.store.erasure import forget as erase_visitor
from sidecar.store.explain_text import explain_lines, printable, shorten
from sidecar.store.facts import FactOwner
from sidecar.store.limit import MEGABYTE, used_bytes
from sidecar.store.lines import export_tombstones, merge_lines
from sidecar.store.outbox import discard, requeue, requeue_all, requeue_tombstones
from sidecar.store.queries import find_sessions
from sidecar.store.shipping import list_parked, list_refused, read_parked, read_refused
from sidecar.store.shipping_text import parked_lines, parked_story
from sidecar.store.verify import Difference, Step, check, is_damage, plan
from sidecar.store.verify import repair as repair_steps

IMPORT_LINES = 200  # lines a transaction: small enough to let beacons of a running server in between
ID_MAX = 128  # characters of a visitor's id
EMPTY_WAL_S = 5.0  # how long `forget` waits for readers of a running server
PARKED_MAX = 1_000  # parked sessions and refused erasures listed
REQUEUED_MAX = 500  # a transaction: beacons of a running server get in between
FINDINGS_MAX = 100  # differences printed; the rest is counted


@contextmanager
def progress(label: str, total: int | None) -> Iterator[Callable[..., None]]:
    """A progress bar on stderr where that is a terminal; the callable advances it, by one where no count is given.

    A second argument says the total, where it was not known before.
    """
    if not sys.stderr.isatty():
        yield lambda *_: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(label, total=total)
        yield lambda count=1, known=total: bar.update(task, advance=count, total=known)


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
    from sidecar.app import build, run_server

    settings = load_settings(**given)
    run_server(build(settings), settings)


@cli.command()
@click.option("--once", is_flag=True, help="End after the table, with exit 0.")
def demo(once: bool) -> None:
    """Show everything on this machine: a sidecar, a small site, a second sidecar as its upstream."""
    from sidecar.demo import run

    sys.exit(run(once=once, out=sys.stdout))


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
@click.option("--format", "form", type=click.Choice(["ndjson", "csv", "parquet"]), default="ndjson", show_default=True)
@click.option("--since", callback=_time_option, help="Sessions that started at or after this ISO 8601 time.")
@click.option("--until", callback=_time_option, help="Sessions that started before this ISO 8601 time.")
@click.option("--funnel", callback=_text_option, help="Sessions of this funnel only.")
@click.option("--output", default="-", show_default=True, metavar="FILE|-", help="For parquet, a directory.")
@database_option
def export(form: str, since: int | None, until: int | None, funnel: str | None, output: str, **given: Any) -> None:
    """Write sessions: ndjson (whole documents, can be imported), csv (one row a session), or parquet.

    Parquet is three files in the directory --output: sessions, web_vitals and events.
    """
    settings = load_settings(**given)
    if form == "parquet":
        if output == "-":
            raise click.UsageError("parquet is three files: name a directory for them with --output")
        _export_parquet(settings, Path(output), since=since, until=until, funnel_id=funnel)
        return
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
            # As RFC 4180 has it. With "\n" a text with a lone "\r" is not quoted: the rest would be a row of its own.
            table = csv.writer(stream, lineterminator="\r\n")
            table.writerow(CSV_COLUMNS)
            for key in keys:
                table.writerow(csv_row(read_summary(conn, key, now, timeout_ms)))
                advance()


def _export_parquet(settings: Settings, directory: Path, **filters: Any) -> None:
    from sidecar.parquet import FILES, export_parquet  # when asked for: it needs packages that others do without

    with closing(open_read_only(settings.database)) as conn, snapshot(conn):
        keys = list(list_session_keys(conn, **filters))
        with progress("exporting", len(keys) * len(FILES)) as advance:
            export_parquet(conn, keys, directory, now_ms(), settings.session_timeout_ms, advance=advance)


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
    limit_bytes, full_at = settings.max_database_bytes, None
    source = nullcontext(sys.stdin.buffer) if str(file) == "-" else file.open("rb")
    with (
        source as opened,
        closing(open_database(settings.database)) as conn,
        _unpacking(opened) as stream,
        progress("importing", None) as advance,
    ):
        first = 1
        for batch in _batches(stream, IMPORT_LINES):
            if limit_bytes and used_bytes(conn) >= limit_bytes:
                full_at = first
                break
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
    if full_at is not None:
        full = f"{settings.database} is full (SIDECAR_MAX_DATABASE_MB={settings.max_database_mb})"
        raise SidecarError(f"{full}: line {full_at} and all after it were not read; import the file again later")
    if counts[Outcome.REJECTED]:
        raise SidecarError(f"{counts[Outcome.REJECTED]} lines were rejected; the others are stored")
    if not emptied:
        raise SidecarError(f"{settings.database}-wal is being read and holds what was erased: run this again later")


@contextmanager
def _unpacking(stream: Any) -> Iterator[Iterable[bytes]]:
    """What is in a stream of gzip, since directories and buckets hold batches that way; else the stream itself."""
    if stream.peek(2)[:2] != b"\x1f\x8b":
        yield stream
        return
    try:
        with gzip.open(stream) as unpacked:
            yield unpacked
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise SidecarError(f"the gzip is cut or damaged: {error}; what was read before is stored") from None


@cli.command()
@click.option("--all", "everything", is_flag=True, help="Unfinished sessions, too.")
@database_option
def ship(everything: bool, **given: Any) -> None:
    """Ship finished sessions now, one pass, and say what happened.

    Interrupted, it ends in order: what was confirmed stays confirmed, and the next pass goes on from there.
    """
    from sidecar.app import ship_now

    settings = load_settings(**given)
    settled = 0
    try:
        with progress("shipping", None) as advance:

            def show(done: int, total: int) -> None:
                nonlocal settled
                advance(done - settled, total)
                settled = done

            said, delivered = ship_now(settings, everything=everything, show=show)
    except KeyboardInterrupt:
        click.echo(f"interrupted: {settled} sessions shipped, the others stay for the next pass", err=True)
        sys.exit(128 + signal.SIGINT)
    click.echo(said)
    if not delivered:
        sys.exit(1)


@cli.group()
def parked() -> None:
    """What the destination refused for good: look at it, send it again, or give it up.

    A parked session waits for a person, and for a change of the session: that ships it again by itself.
    """


def _not_parked(parked_id: str) -> SidecarError:
    shown = shorten(printable(parked_id), 60)
    return SidecarError(f"nothing parked has the ID {shown}: `sidecar parked list` shows what is parked")


def _parked_id(_: click.Context, __: click.Parameter, value: str | None) -> tuple[str, int] | None:
    """("", key of a session) or ("t", key of a tombstone). Raises SidecarError where it can be neither."""
    if value is None:
        return None
    kind, digits = ("t", value[1:]) if value.startswith("t") else ("", value)
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 18):
        raise _not_parked(value)
    return kind, int(digits)


def _open_existing(database: Path) -> Connection:
    if not database.exists():
        raise SidecarError(f"{database}: no such database; `sidecar serve` makes one")
    return open_database(database)


@parked.command("list")
@database_option
def parked_list(**given: Any) -> None:
    """List what is parked, a line each, the longest parked first."""
    settings = load_settings(**given)
    with closing(open_read_only(settings.database)) as conn, snapshot(conn):
        found = [*list_parked(conn, most=PARKED_MAX + 1), *list_refused(conn, most=PARKED_MAX + 1)]
    for line in parked_lines(found[:PARKED_MAX]):
        click.echo(line)
    if len(found) > PARKED_MAX:
        click.echo(f"... and more; {PARKED_MAX} are shown", err=True)
    if found:
        click.echo("`sidecar parked show ID` tells all of one; `requeue ID` sends it again", err=True)


@parked.command("show")
@click.argument("parked_id", metavar="ID", callback=_parked_id)
@click.option("--line", is_flag=True, help="Only the line as it would be sent.")
@database_option
def parked_show(parked_id: tuple[str, int], line: bool, **given: Any) -> None:
    """Tell why one is parked, and show the document that would be sent now."""
    settings = load_settings(**given)
    kind, key = parked_id
    with closing(open_read_only(settings.database)) as conn, snapshot(conn):
        try:
            found, document = (
                read_refused(conn, key) if kind else read_parked(conn, key, now_ms(), settings.session_timeout_ms)
            )
        except LookupError:
            raise _not_parked(f"{kind}{key}") from None
    for text in [to_line(document)] if line else parked_story(found, document):
        click.echo(text)


@parked.command("requeue")
@click.argument("parked_id", metavar="[ID]", required=False, callback=_parked_id)
@click.option("--all", "everything", is_flag=True, help="All that is parked.")
@database_option
def parked_requeue(parked_id: tuple[str, int] | None, everything: bool, **given: Any) -> None:
    """Send a parked session, as it is now, with the next pass."""
    if everything == (parked_id is not None):
        raise click.UsageError("name one ID, or --all")
    settings = load_settings(**given)
    with closing(_open_existing(settings.database)) as conn:
        if parked_id is None:
            before, count, done_last = now_ms(), 0, 1
            while done_last:
                with immediate(conn):
                    done_last = requeue_all(conn, before=before, most=REQUEUED_MAX)
                count += done_last
            with immediate(conn):
                count += requeue_tombstones(conn)
            click.echo(f"{count} requeued: the next pass ships them (`sidecar ship` does one now)")
            return
        kind, key = parked_id
        with immediate(conn):
            done = bool(requeue_tombstones(conn, key)) if kind else requeue(conn, key)
    if not done:
        raise _not_parked(f"{kind}{key}")
    click.echo(f"{kind}{key} requeued: the next pass ships it (`sidecar ship` does one now)")


@parked.command("discard")
@click.argument("parked_id", metavar="ID", callback=_parked_id)
@database_option
def parked_discard(parked_id: tuple[str, int], **given: Any) -> None:
    """Give a parked session up at the refused revision. It stays here, and a change of it ships again."""
    settings = load_settings(**given)
    kind, key = parked_id
    if kind:
        raise SidecarError("an erasure cannot be given up: `sidecar parked requeue` sends it again")
    with closing(_open_existing(settings.database)) as conn, immediate(conn):
        done = discard(conn, key, now_ms())
    if not done:
        raise _not_parked(f"{kind}{key}")
    click.echo(
        f"{key} given up at the refused revision: the session stays here, a change of it ships again, "
        f"and `sidecar parked requeue {key}` takes this back"
    )


@cli.group()
def upstream() -> None:
    """What the destination of SIDECAR_UPSTREAM_URL needs."""


@upstream.command("init")
@click.option("--print", "only_print", is_flag=True, help="Print the SQL instead, without connecting.")
@database_option
def upstream_init(only_print: bool, **given: Any) -> None:
    """Make the tables and views that ClickHouse needs. Run again, it leaves tables alone and makes views anew."""
    from sidecar.app import prepare_upstream

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
    with closing(_open_existing(settings.database)) as conn:
        with immediate(conn):
            erased = erase_visitor(conn, site or settings.site, visitor_id, now_ms())
        click.echo(f"erased {erased.sessions} sessions, {erased.web_vitals} web vitals, {erased.events} events")
        rewrite(conn)
        emptied = empty_wal(conn, EMPTY_WAL_S)
    if not emptied:
        raise SidecarError(f"{settings.database}-wal is being read and holds them still: run this again later")


@cli.command()
@click.option("--dry-run", is_flag=True, help="Say what would go and what is kept for which reason; change nothing.")
@click.option("--vacuum", is_flag=True, help="Then write the file anew: it shrinks, and beacons wait meanwhile.")
@database_option
def prune(dry_run: bool, vacuum: bool, **given: Any) -> None:
    """Delete sessions older than SIDECAR_RETENTION_DAYS, step by step: beacons of a running server get in between.

    With an upstream only what the destination has confirmed goes. What is freed in the file is used again; the file
    itself shrinks with --vacuum.
    """
    from sidecar.app import prune_now

    settings = load_settings(**given)
    with progress("pruning", None) as advance:
        said = list(prune_now(settings, dry_run=dry_run, vacuum=vacuum and not dry_run, show=advance))
    for line in said:
        click.echo(line)


@cli.command()
@click.argument("dest", metavar="DEST", type=click.Path(path_type=Path))
@database_option
def backup(dest: Path, **given: Any) -> None:
    """Copy the database to the file DEST, beside a running server, and check the copy.

    DEST appears whole or not at all; a database that is there is replaced. To restore, stop the server and move the
    copy to where SIDECAR_DATABASE is, without the files that end in -wal and -shm beside it.
    """
    settings = load_settings(**given)
    started = time.monotonic()
    copied = 0
    with progress("copying", None) as advance:

        def show(size: int) -> None:
            nonlocal copied
            advance((size - copied) // 1024, file_bytes(settings.database) // 1024)
            copied = size

        size = back_up(settings.database, dest, show)
    took_s = time.monotonic() - started
    click.echo(f"{printable(str(dest))}: {size / MEGABYTE:.1f} MB, checked ({took_s:.1f} s)")


@cli.command()
@database_option
def status(**given: Any) -> None:
    """Counts, sizes, what waits to be shipped and why, the last delivery."""
    for label, text in describe_status(load_settings(**given), now_ms()):
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
    except Error as error:  # of SQLite
        busy = "; another process is writing: try again" if is_full(error) and "locked" in str(error) else ""
        sys.exit(f"sidecar: the database cannot be used: {error}{busy}")
    except UnicodeError as error:  # a damaged file: texts that are none
        sys.exit(f"sidecar: the database is damaged: {error}; `sidecar verify` says more")
    except BrokenPipeError:  # the reader of stdout left: `sidecar export | head`
        _leave_stdout()
        sys.exit(1)
    except OSError as error:
        _leave_stdout()
        named = f"{printable(os.fsdecode(error.filename))}: " if isinstance(error.filename, str | bytes) else ""
        sys.exit(f"sidecar: {named}{error.strerror or error}")


if __name__ == "__main__":
    main()
