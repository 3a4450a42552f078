"""Plants faults in a copy of the store and of the way to it, one at a time, and shows which test finds each.

    python tests/mutations.py [--only NAME] [--list] [--workers N]

A fault is one line of the code, written as somebody might write it by mistake. One in SQL is planted in `schema.sql`
and in the newest migration that holds the text; a rule of derivation that stands in the view and in the trigger is
changed in both, so that it is the rule that is missed and not their agreement. Tests that compare texts are not run.
Exit status 0: every fault was found.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
COPIED = ("sidecar", "tests", "schema.sql", "pyproject.toml", "README.md")
LEFT_OUT = ("__pycache__", "node_modules", "*.db", "*.db-shm", "*.db-wal")
TESTS = (
    "tests/store/test_faults.py",
    "tests/test_merging.py",
    "tests/test_published.py",
    "tests/store/test_writer.py",
    "tests/ingest/test_wire.py",
    "tests/store/test_erasure.py",
    "tests/store/test_verify.py",
    "tests/test_law.py",
)  # the fast ones first: the first failure ends a run
RUN_MAX_S = 300

SCHEMA = "schema.sql"
MIGRATIONS = "sidecar/store/migrations"
FACTS = "sidecar/store/facts.py"
DOCUMENTS = "sidecar/store/documents.py"
ERASURE = "sidecar/store/erasure.py"
TOMBSTONES = "sidecar/store/tombstones.py"
WRITER = "sidecar/store/writer.py"
WIRE = "sidecar/ingest/wire.py"
ENRICH = "sidecar/ingest/enrich.py"


class FaultError(Exception):
    """A fault that cannot be planted as it is written down, or tests that fail without one."""


class Change(NamedTuple):
    """A text of one file and what takes its place; it must occur exactly `times` times."""

    file: str
    old: str
    new: str
    times: int = 1


class Fault(NamedTuple):
    """What is wrong, in words, and the changes that make it so."""

    name: str
    changes: tuple[Change, ...]

    @property
    def file(self) -> str:
        """Where a reader would look for it."""
        return self.changes[0].file


class Result(NamedTuple):
    """What became of a fault: `killed` by the test named, `survived`, or `broken` (no test could be run) and why."""

    fault: Fault
    state: str
    by: str
    seconds: float


# --- the faults ------------------------------------------------------------------------------------------------------


def _code(name: str, file: str, old: str, new: str, times: int = 1) -> Fault:
    return Fault(name, (Change(file, old, new, times),))


def _sql(name: str, *changes: tuple[str, str], times: int = 1) -> Fault:
    """A fault in SQL, by its texts in `schema.sql`: of a rule that stands in the view and in the trigger, in both."""
    return Fault(name, tuple(Change(SCHEMA, old, new, times) for old, new in changes))


_REPORTS = [
    _code(
        "the greatest value wins, not the newest",
        FACTS,
        "return fact.timestamp > held.timestamp",
        "return fact.value > held.value if isinstance(fact, VitalFact) and isinstance(held, VitalFact) else "
        "fact.timestamp > held.timestamp",
    ),
    _code(
        "the last report to arrive wins",
        FACTS,
        "return fact.timestamp > held.timestamp",
        "return True",
    ),
    _code(
        "an older report of an equal time wins",
        FACTS,
        "return content(fact) > content(held)",
        "return content(fact) < content(held)",
    ),
    _code(
        "a duplicate counts as newer",
        FACTS,
        "    if fact == held:\n        return Outcome.DUPLICATE",
        "    if fact == held:\n        return Outcome.ACCEPTED",
    ),
    _code(
        "a duplicate is answered as superseded",
        FACTS,
        "    if fact == held:\n        return Outcome.DUPLICATE",
        "    if fact == held:\n        return Outcome.SUPERSEDED",
    ),
    _code(
        "ties go by value without seq",
        FACTS,
        "return (fact.seq, fact.value) > (held.seq, held.value)",
        "return fact.value > held.value",
    ),
    _code(
        "ties go by seq without value",
        FACTS,
        "return (fact.seq, fact.value) > (held.seq, held.value)",
        "return fact.seq > held.seq",
    ),
    _code(
        "ties go to the first to arrive, not by content",
        FACTS,
        "return content(fact) > content(held)",
        "return False",
    ),
    _code(
        "ties go by a text that is not canonical",
        FACTS,
        "return content(fact) > content(held)",
        "return repr(fact) > repr(held)",
    ),
    _code(
        "facts of one group are not judged against each other",
        FACTS,
        "            held[identity] = fact\n",
        "            held.setdefault(identity, None)\n",
    ),
    _code(
        "a repeat from a client with a wrong clock is no duplicate",
        FACTS,
        "if dated_by_arrival and (fact.clock_skewed or held.clock_skewed):",
        "if dated_by_arrival and fact.clock_skewed and held.clock_skewed and fact.timestamp == held.timestamp:",
    ),
    _code(
        "a skewed fact that repeats a sound one is no duplicate",
        FACTS,
        "if dated_by_arrival and (fact.clock_skewed or held.clock_skewed):",
        "if dated_by_arrival and held.clock_skewed:",
    ),
    _code(
        "a session holds one fact more than it may",
        FACTS,
        "if session.facts_count >= SESSION_FACTS_MAX:",
        "if session.facts_count > SESSION_FACTS_MAX:",
    ),
    _code(
        "bytes of a group are not counted against the bound",
        FACTS,
        "return session.bytes_held + session.bytes_added + size <= SESSION_BYTES_MAX",
        "return session.bytes_held + size <= SESSION_BYTES_MAX",
    ),
    _code(
        "the window ends before its first millisecond",
        ENRICH,
        "if timestamp is None or not now - PAST_MAX_MS <= timestamp <= now + FUTURE_MAX_MS:",
        "if timestamp is None or not now - PAST_MAX_MS < timestamp <= now + FUTURE_MAX_MS:",
    ),
    _code(
        "the window ends before its last millisecond",
        ENRICH,
        "if timestamp is None or not now - PAST_MAX_MS <= timestamp <= now + FUTURE_MAX_MS:",
        "if timestamp is None or not now - PAST_MAX_MS <= timestamp < now + FUTURE_MAX_MS:",
    ),
]

_SESSIONS = [
    _sql(
        "events are counted up, not counted",
        ("= (SELECT page_views, events_count,", "= (SELECT page_views, sessions.events_count + 1,"),
    ),
    _sql(
        "a revision is the time, even where that is not later",
        ("max(revision + 1, NEW.now)", "NEW.now"),
    ),
    _code(
        "an earlier fact does not move the start",
        FACTS,
        "if self.started_at is None or fact.timestamp < self.started_at:",
        "if self.started_at is None:",
    ),
    _code(
        "a fact that moved later does not move the start",
        FACTS,
        "        self.may_move = True\n        if before.anonymous_id is not None:",
        "        self.may_move = self.is_new\n        if before.anonymous_id is not None:",
    ),
    _sql(
        "placeholder zeros of TTFB are averaged",
        ("coalesce(navigation_code, 0) NOT IN (3, 6)) AS avg_ttfb", "true) AS avg_ttfb"),
        ("coalesce(navigation_code, 0) NOT IN (3, 6) THEN value", "true THEN value"),
    ),
    _sql(
        "TTFB of a soft navigation is averaged",
        (
            "coalesce(navigation_code, 0) NOT IN (3, 6)) AS avg_ttfb",
            "coalesce(navigation_code, 0) <> 3) AS avg_ttfb",
        ),
        (
            "coalesce(navigation_code, 0) NOT IN (3, 6) THEN value",
            "coalesce(navigation_code, 0) <> 3 THEN value",
        ),
    ),
    _sql(
        "TTFB without a navigation type is not averaged",
        ("coalesce(navigation_code, 0) NOT IN (3, 6)) AS avg_ttfb", "navigation_code NOT IN (3, 6)) AS avg_ttfb"),
        ("coalesce(navigation_code, 0) NOT IN (3, 6) THEN value", "navigation_code NOT IN (3, 6) THEN value"),
    ),
    _sql(
        "a CLS of 0 is no measurement",
        ("metric = 'CLS') AS avg_cls", "metric = 'CLS' AND value > 0) AS avg_cls"),
        ("metric = 'CLS' THEN value END", "metric = 'CLS' AND value > 0 THEN value END"),
    ),
    _sql(
        "the last page is the one that arrived last",
        (
            "ORDER BY t DESC, place DESC, id DESC LIMIT 1) AS last_page_key",
            "ORDER BY k DESC LIMIT 1) AS last_page_key",
        ),
        (
            "ORDER BY place, id LIMIT 1) END,\n           CASE WHEN low_page IS high_page THEN low_page ELSE",
            "ORDER BY place, id LIMIT 1) END,\n           CASE WHEN true THEN high_page ELSE",
        ),
    ),
    _sql(
        "the last page of an equal time is any",
        (
            "ORDER BY t DESC, place DESC, id DESC LIMIT 1) AS last_page_key",
            "ORDER BY t DESC LIMIT 1) AS last_page_key",
        ),
        ("ORDER BY place DESC, id DESC LIMIT 1) END,", "LIMIT 1) END,"),
    ),
    _sql(
        "the first page of an equal time is a vital's",
        (
            "ORDER BY t, place, id LIMIT 1) AS first_page_key",
            "ORDER BY t, place = 0, place, id LIMIT 1) AS first_page_key",
        ),
        ("ORDER BY place, id LIMIT 1) END,", "ORDER BY place = 0, place, id LIMIT 1) END,"),
    ),
    _sql(
        "vitals of an equal time are ordered by id alone",
        (
            "ORDER BY t, place, id LIMIT 1) AS first_page_key",
            "ORDER BY t, place > 0, id LIMIT 1) AS first_page_key",
        ),
        ("ORDER BY place, id LIMIT 1) END,", "ORDER BY place > 0, id LIMIT 1) END,"),
    ),
    _sql(
        "the visitor is of the last fact that names one",
        (
            "ORDER BY t, place, id LIMIT 1) END\n     FROM (SELECT min(visitor_key)",
            "ORDER BY t DESC, place DESC, id DESC LIMIT 1) END\n     FROM (SELECT min(visitor_key)",
        ),
    ),
    _sql(
        "the first referrer is the last",
        (
            "ORDER BY timestamp, event_id LIMIT 1) AS first_referrer",
            "ORDER BY timestamp DESC, event_id DESC LIMIT 1) AS first_referrer",
        ),
    ),
    _sql(
        "the last campaign is the first",
        (
            "ORDER BY timestamp DESC, event_id DESC LIMIT 1) AS last_campaign_key",
            "ORDER BY timestamp, event_id LIMIT 1) AS last_campaign_key",
        ),
    ),
    _sql(
        "the conversion's type is of the last one",
        (
            "ORDER BY timestamp, event_id LIMIT 1) AS conversion_type",
            "ORDER BY timestamp DESC, event_id DESC LIMIT 1) AS conversion_type",
        ),
    ),
    _sql(
        "the currency is of the first conversion that has one",
        (
            "event_name IN ('conversion', 'purchase', 'checkout_completed')\n"
            "     ORDER BY timestamp, event_id LIMIT 1) AS currency",
            "event_name IN ('conversion', 'purchase', 'checkout_completed')\n"
            "     ORDER BY properties ->> '$.currency' IS NULL, timestamp, event_id LIMIT 1) AS currency",
        ),
    ),
    _sql(
        "revenue that is true counts as 1",
        (
            "json_type(properties, '$.revenue') IN ('integer', 'real')",
            "json_type(properties, '$.revenue') IN ('integer', 'real', 'true')",
        ),
    ),
    _sql(
        "revenue counts however large it is",
        ("json_extract(properties, '$.revenue') BETWEEN -1e12 AND 1e12", "true"),
    ),
    _sql(
        "revenue counts of events that are no conversions",
        (
            "event_name IN ('conversion', 'purchase', 'checkout_completed') AND json_type(properties, '$.revenue')",
            "event_name <> '' AND json_type(properties, '$.revenue')",
        ),
    ),
    _sql(
        "engaged time counts of any event",
        ("event_name = 'session_end' AND json_type", "event_name <> '' AND json_type"),
    ),
    _sql(
        "a session without page views is provisional",
        ("GENERATED ALWAYS AS (events_count = 0)", "GENERATED ALWAYS AS (page_views = 0)"),
    ),
    _sql(
        "a duration is rounded up",
        ("((ended_at - started_at) / 1000)", "((ended_at - started_at + 999) / 1000)"),
    ),
    _sql(
        "an average at the limit is not good any more",
        ("avg_lcp > 2500", "avg_lcp >= 2500"),
    ),
]

_VISITORS = [
    _sql(
        "a visitor is derived once and never again",
        (
            "UNION SELECT value FROM json_each(NEW.visitors))",
            "UNION SELECT value FROM json_each(NEW.visitors)) "
            "AND NOT EXISTS (SELECT 1 FROM visitors AS v WHERE v.visitor_key = a.visitor_key)",
        ),
    ),
    _sql(
        "a visitor that lost a session is not derived",
        ("UNION SELECT value FROM json_each(NEW.visitors))", ")"),
    ),
    _sql(
        "a visitor without sessions stays",
        (
            "AND NOT EXISTS (SELECT 1 FROM sessions WHERE sessions.visitor_key = visitors.visitor_key)",
            "AND false",
        ),
    ),
    _code(
        "a name that a newer report lacks is kept by its visitor",
        FACTS,
        "if before.anonymous_id is not None:",
        "if before.anonymous_id is not None and self.visitor_key is None:",
    ),
    _sql(
        "identifications of an equal time go by event id",
        (
            "ORDER BY e.timestamp DESC, e.funnel_id DESC, e.session_id DESC, e.event_id DESC LIMIT 1",
            "ORDER BY e.timestamp DESC, e.event_id DESC LIMIT 1",
        ),
        times=4,
    ),
    _sql(
        "the user id is of the first identification",
        (
            "ORDER BY e.timestamp DESC, e.funnel_id DESC, e.session_id DESC, e.event_id DESC LIMIT 1) AS user_id",
            "ORDER BY e.timestamp, e.funnel_id, e.session_id, e.event_id LIMIT 1) AS user_id",
        ),
    ),
    _sql(
        "traits are of the latest identification, even of one without",
        ("AND json_extract(e.properties, '$.traits') <> '{}'", "AND true"),
        times=2,
    ),
]

_DOCUMENTS = [
    _code(
        "import applies the window of clocks",
        DOCUMENTS,
        "store_facts(conn, document.facts, dated_by_arrival=False)",
        "store_facts(conn, [f if abs(now - f.timestamp) < 7 * 86_400_000 else f._replace(timestamp=now, "
        "clock_skewed=True) for f in document.facts], dated_by_arrival=False)",
    ),
    _code(
        "import judges as if facts were dated by arrival",
        DOCUMENTS,
        "store_facts(conn, document.facts, dated_by_arrival=False)",
        "store_facts(conn, document.facts)",
    ),
    _code(
        "an equal revision of a document with less changes nothing",
        DOCUMENTS,
        "if changed or said >= held:",
        "if changed or said > held:",
    ),
    _code(
        "a document sets the revision back",
        DOCUMENTS,
        "        return max(held, said)\n",
        "        return said\n",
    ),
    _code(
        "a merged session's revision is not past both",
        DOCUMENTS,
        "max(held + 1, said + 1, now)",
        "max(held + 1, now)",
    ),
    _code(
        "the last document names the subaccount, whatever its revision",
        DOCUMENTS,
        "AND (subaccount_revision, coalesce(subaccount_id, '')) < (?4, coalesce(?3, ''))",
        "AND subaccount_revision < 9007199254740992",
    ),
    _code(
        "a session ahead of the clock is never finished",
        DOCUMENTS,
        "return revision < now - timeout_ms or revision > now + timeout_ms",
        "return revision < now - timeout_ms",
    ),
]

_ERASURE = [
    _code(
        "facts of an erased session are taken",
        TOMBSTONES,
        "sessions = find_sessions(conn, {fact[:3] for fact in facts})",
        "sessions = find_sessions(conn, ())",
    ),
    _code(
        "facts of an erased visitor are taken in other sessions",
        TOMBSTONES,
        "visitors = find_visitors(conn, ((f.site, f.anonymous_id) for f in facts if f.anonymous_id is not None))",
        "visitors = find_visitors(conn, ())",
    ),
    _code(
        "documents of an erased session are taken",
        ERASURE,
        "if find_sessions(conn, [document.owner]):",
        "if find_sessions(conn, []):",
    ),
    _code(
        "the tombstone keeps no sessions",
        ERASURE,
        "own = frozenset(hashes.get(found[0], ())) if known else frozenset()",
        "own: frozenset[str] = frozenset()",
    ),
    _code(
        "an erased name stays in other visitors' contexts",
        ERASURE,
        'context.pop("user", None)',
        'context.get("user", None)',
    ),
]

_WRITER = [
    _code(
        "one bad task fails its whole group",
        WRITER,
        "if len(group) == 1 or is_full(error):",
        "if len(group) >= 1 or is_full(error):",
    ),
    _code(
        "who writes at once waits for another process",
        WRITER,
        "with immediate(self._conn, wait=False):",
        "with immediate(self._conn):",
    ),
    _code(
        "what failed at once counts as done",
        WRITER,
        "        except Exception:  # the thread tries again, each task alone, and tells each its own cause\n"
        "            return None\n",
        "        except Exception:  # the thread tries again, each task alone, and tells each its own cause\n"
        "            results = payloads\n",
    ),
    _code(
        "who writes at once overtakes what waits",
        WRITER,
        "if self._queue or self._chores or self._closing or",
        "if self._closing or",
    ),
    _code(
        "a long group holds up the loop to its end",
        WRITER,
        "began + NOW_MAX_S, PROGRESS_STEPS",
        "began + 1000 * NOW_MAX_S, PROGRESS_STEPS",
    ),
    _code(
        "the funnel of the header wins over the item's",
        WIRE,
        "            funnel or funnel_id,\n",
        "            funnel_id or funnel,\n",
    ),
    _code(
        "a plain vital may have any value",
        WIRE,
        "(value.__class__ in _NUMBERS and 0 <= value <= VALUE_MAX)",
        "(value.__class__ in _NUMBERS and 0 <= value)",
    ),
]

FAULTS = (*_REPORTS, *_SESSIONS, *_VISITORS, *_DOCUMENTS, *_ERASURE, *_WRITER)

# --- planting and running --------------------------------------------------------------------------------------------

# Of a failure the first example says enough, and shrinking it takes longer than all else; the same examples each time.
_CONFTEST = """
from pathlib import Path
from hypothesis import Phase, settings
import sidecar

assert Path(sidecar.__file__).parents[1] == Path(__file__).parent, f"not the copy: {sidecar.__file__}"
settings.register_profile("faults", phases=[Phase.explicit, Phase.generate], derandomize=True, database=None)
settings.load_profile("faults")
"""
# A fault that breaks a statement, or is not in the schema that counts, would be found by any test or by none.
_PROBE = """
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
import sidecar
from tests.local import LocalSidecar
from tests.store.test_database import test_all_migrations_make_schema_sql

assert Path(sidecar.__file__).parents[1] == Path.cwd(), f"not the copy: {sidecar.__file__}"
with TemporaryDirectory() as folder:
    test_all_migrations_make_schema_sql(Path(folder))
    with LocalSidecar(Path(folder) / "probe.db", 1_795_330_800_000) as local:
        page = {"sessionId": "s", "timestamp": local.now, "pageUrl": "https://shop.test/"}
        said = local.send("web-vitals", [{**page, "metric": "LCP", "id": "v", "value": 5}])
        assert said == ["accepted"], said
        assert len(local.export()) == 1
"""


def plant(text: str, change: Change) -> str:
    """A file's text with the change. Raises FaultError where the text occurs another number of times."""
    found = text.count(change.old)
    if found != change.times:
        raise FaultError(f"{change.file}: {change.old!r} occurs {found} times, not {change.times}")
    return text.replace(change.old, change.new)


def _newest_migration(root: Path, change: Change) -> str:
    """The migration whose text of a statement counts: a later one may have made it again."""
    for path in sorted((root / MIGRATIONS).glob("*.sql"), reverse=True):
        if change.old in path.read_text(encoding="utf-8"):
            return f"{MIGRATIONS}/{path.name}"
    raise FaultError(f"no migration holds {change.old!r}")


def planted(root: Path, fault: Fault) -> dict[str, str]:
    """The texts of the files that a fault changes, with it, by file. Raises FaultError."""
    texts: dict[str, str] = {}
    for change in fault.changes:
        files = [SCHEMA, _newest_migration(root, change)] if change.file == SCHEMA else [change.file]
        for file in files:
            text = texts.get(file) or (root / file).read_text(encoding="utf-8")
            texts[file] = plant(text, change._replace(file=file))
    return texts


def make_copy(folder: Path) -> Path:
    """A tree of its own, with what the tests need and the built tracker."""
    for name in COPIED:
        source, target = ROOT / name, folder / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns(*LEFT_OUT))
        else:
            shutil.copy2(source, target)
    (folder / "conftest.py").write_text(_CONFTEST, encoding="utf-8")
    return folder


def _environment(copy: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    # Without bytecode: a change of the same length within the same second would not be seen.
    return kept | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}


def _run(copy: Path, tests: Sequence[str]) -> tuple[str, str]:
    """State and first failing test (or what is the matter) of a run of the tests in a copy."""

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=copy,
            env=_environment(copy),
            capture_output=True,
            text=True,
            timeout=RUN_MAX_S,
            check=False,
        )

    probe = call("-c", _PROBE)
    if probe.returncode:
        return "broken", (probe.stderr.strip().splitlines() or ["the probe failed"])[-1]
    options = (
        "-x",
        "-q",
        "-n",
        "0",
        "-p",
        "no:cacheprovider",
        f"--basetemp={copy / '.tmp'}",
    )  # others clear the shared one
    try:
        done = call("-m", "pytest", *options, *tests)
    except subprocess.TimeoutExpired:
        return "killed", f"no end within {RUN_MAX_S} s"
    if done.returncode == 0:
        return "survived", ""
    failed = re.search(r"^(?:FAILED|ERROR) (?:\S*/)?(\S+::.*?)(?: - .*)?$", done.stdout, re.MULTILINE)
    if done.returncode != 1 or failed is None:
        return "broken", " / ".join((done.stdout + done.stderr).strip().splitlines()[-3:])
    return "killed", failed[1]


def try_fault(copy: Path, fault: Fault, tests: Sequence[str]) -> Result:
    """Plant one fault in a copy, run the tests there, and put the texts back."""
    start = time.monotonic()
    texts = planted(copy, fault)
    before = {file: (copy / file).read_text(encoding="utf-8") for file in texts}
    try:
        for file, text in texts.items():
            (copy / file).write_text(text, encoding="utf-8")
        state, by = _run(copy, tests)
    finally:
        for file, text in before.items():
            (copy / file).write_text(text, encoding="utf-8")
    return Result(fault, state, by, time.monotonic() - start)


def run_faults(faults: Sequence[Fault], tests: Sequence[str] = TESTS, workers: int = 1) -> int:
    """Try all faults and print a table; 0 where every one was killed, else 1. Raises FaultError."""
    for fault in faults:
        planted(ROOT, fault)
    present = [name for name in tests if (ROOT / name).exists()]
    workers = min(workers, len(faults))
    with TemporaryDirectory(prefix="sidecar-faults-") as folder, ThreadPoolExecutor(workers) as pool:
        copies: SimpleQueue[Path] = SimpleQueue()
        for number in range(workers):
            copies.put(make_copy(Path(folder) / str(number)))

        def attempt(fault: Fault | None) -> Result | tuple[str, str]:
            copy = copies.get()
            try:
                return _run(copy, present) if fault is None else try_fault(copy, fault, present)
            finally:
                copies.put(copy)

        baseline = attempt(None)
        if baseline[0] != "survived":
            raise FaultError(f"the tests fail without any fault: {baseline}")
        widths = [max(len(fault.name) for fault in faults), max(len(fault.file) for fault in faults)]
        print(f"{'fault':{widths[0]}} | {'file':{widths[1]}} | killed by | seconds")
        results: list[Result] = []
        for result in pool.map(attempt, faults):
            assert isinstance(result, Result)
            results.append(result)
            by = result.by if result.state == "killed" else f"{result.state.upper()} {result.by}".rstrip()
            print(
                f"{result.fault.name:{widths[0]}} | {result.fault.file:{widths[1]}} | {by} | {result.seconds:.1f}",
                flush=True,
            )
    killed = sum(result.state == "killed" for result in results)
    print(f"{killed} of {len(results)} faults killed")
    return 0 if killed == len(results) else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Plants faults in a copy of the store and runs the tests against each."
    )
    parser.add_argument("--only", metavar="NAME", help="faults whose name or file contains this text")
    parser.add_argument("--list", action="store_true", help="names and files of the faults; nothing is run")
    parser.add_argument("--workers", type=int, default=2, help="copies that are tested at the same time (2)")
    said = parser.parse_args(arguments)
    faults = [fault for fault in FAULTS if said.only is None or said.only in fault.name or said.only in fault.file]
    if said.list:
        for fault in faults:
            print(f"{fault.name} | {fault.file}")
        return 0
    if not faults:
        parser.error(f"no fault is called {said.only}")
    try:
        return run_faults(faults, workers=max(1, said.workers))
    except FaultError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
