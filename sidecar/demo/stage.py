"""The demo from its first line to its last: starts the parts, drives the traffic, waits for the upstream, compares."""

from __future__ import annotations

import base64
import secrets
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import NamedTuple, TextIO

from sidecar.demo import checks
from sidecar.demo.children import HOST, USUAL_PORTS, Child, ended, listen, url_of
from sidecar.demo.drive import drive
from sidecar.demo.errors import DemoError
from sidecar.demo.report import OUTCOMES, Report, Row, count_noun
from sidecar.demo.shop import FUNNEL, build_shop, serve_shop
from sidecar.demo.traffic import Plan, Step, make_plan
from sidecar.errors import SidecarError

SEED = 20_261_122
SITE = "lumen-and-oak"
SESSION_TIMEOUT_S = 3  # short, so that a viewer's own session goes upstream while he watches
SHIP_INTERVAL_S = 1
CONFIRM_TIMEOUT_S = 60.0
LOOK_S = 0.2
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stage(NamedTuple):
    """The running parts. The shop is at `shop_url`, without a final slash."""

    sidecar: Child
    upstream: Child
    shop_url: str


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


# --- parts -----------------------------------------------------------------------------------------------------------


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    for each in _STOPPING:
        signal.signal(each, signal.SIG_IGN)  # what ends the children is not to be stopped by an impatient second Ctrl-C
    raise KeyboardInterrupt


@contextmanager
def _stoppable() -> Iterator[None]:
    """Every polite way to stop becomes a KeyboardInterrupt, so that the children end, too."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread gets signals
        return
    before = {number: signal.signal(number, _interrupt) for number in _STOPPING}
    try:
        yield
    finally:
        for number, action in before.items():
            signal.signal(number, action)


@contextmanager
def _set_stage() -> Iterator[Stage]:
    """Both sidecars and the shop, running; all gone at the end of the block, with their files."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sidecar-demo-")))
        listeners = [listen(port) for port in USUAL_PORTS]  # all at first, so that no two get the same
        sidecar_port, upstream_port, shop_port = (listener.getsockname()[1] for listener in listeners)
        for listener in listeners[:2]:
            listener.close()
        shop_socket = stack.enter_context(listeners[2])
        token, secret = secrets.token_urlsafe(24), "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
        both = {"SESSION_TIMEOUT": str(SESSION_TIMEOUT_S), "SHIP_INTERVAL": str(SHIP_INTERVAL_S)}
        children = stack.enter_context(ended())
        received = {"SITE": "upstream", "RECEIVE_TOKEN": token, "RECEIVE_SECRET": secret}
        upstream = Child("upstream", folder, upstream_port, both | received)
        children.append(upstream)
        shipped = {"SITE": SITE, "UPSTREAM_URL": f"{upstream.url}/api/sessions", "UPSTREAM_TOKEN": token}
        sidecar = Child("sidecar", folder, sidecar_port, both | shipped | {"UPSTREAM_SECRET": secret})
        children.append(sidecar)
        for child in children:
            child.wait_ready()
        stack.enter_context(serve_shop(build_shop(sidecar.url, upstream.url), shop_socket))
        yield Stage(sidecar, upstream, url_of(shop_port))


# --- the play --------------------------------------------------------------------------------------------------------


def _play_step(stage: Stage, report: Report, step: Step, total: Counter[str]) -> None:
    try:
        with report.working(step.title):
            counts = drive(stage.sidecar.url, step)
    except DemoError as error:
        time.sleep(LOOK_S)  # one that dies breaks its connections first
        stage.sidecar.check()
        raise DemoError(str(error), f"{error.detail}\n{stage.sidecar.tail()}") from error
    total.update(counts)
    report.step(step.title, counts)


def _wait_confirmed(stage: Stage, report: Report, plan: Plan) -> int:
    """Sessions confirmed upstream, once all are. Raises DemoError where a sidecar ends, or they are not in time."""
    everything = len(plan.session_ids)
    end = time.monotonic() + CONFIRM_TIMEOUT_S
    with report.working("waiting for the upstream") as status:
        while True:
            stage.sidecar.check()
            stage.upstream.check()
            with checks.reading(stage.sidecar.database) as conn:
                confirmed = checks.count_confirmed(conn, plan.session_ids)
            if confirmed == everything:
                return confirmed
            if time.monotonic() > end:
                reason = f"only {confirmed} of {everything} sessions were confirmed within {CONFIRM_TIMEOUT_S:.0f} s"
                raise DemoError(reason, f"{stage.sidecar.tail()}\n{stage.upstream.tail()}")
            status.update(f"waiting for the upstream: {confirmed} of {everything} sessions confirmed")
            time.sleep(LOOK_S)


def _play(stage: Stage, report: Report) -> tuple[list[Row], Plan]:
    """Everything that happens; the rows that say so."""
    plan = make_plan(SEED, _now_ms(), stage.shop_url, FUNNEL)
    report.step_header()
    counts: Counter[str] = Counter()
    _play_step(stage, report, plan.opening, counts)
    with checks.reading(stage.sidecar.database) as conn:
        provisional = {name for name, is_so in checks.read_sessions(conn, plan.session_ids).items() if is_so}
    report.note(f"{count_noun(len(provisional), 'session')} provisional: vitals, and no event so far")
    for step in plan.steps:
        _play_step(stage, report, step, counts)
    with checks.reading(stage.sidecar.database) as conn:
        held = checks.read_sessions(conn, plan.session_ids)
    enriched = {name for name in provisional if not held.get(name, True)}
    report.note(f"{count_noun(len(enriched), 'session')} enriched, {sum(held.values())} still provisional")

    confirmed = _wait_confirmed(stage, report, plan)
    report.note(f"{count_noun(confirmed, 'session')} finished, shipped, and confirmed by the upstream")
    straggler = plan.session_ids[-1]
    with checks.reading(stage.sidecar.database) as conn:
        before = checks.read_revision(conn, straggler)
    _play_step(stage, report, plan.late, counts)
    confirmed = _wait_confirmed(stage, report, plan)
    with checks.reading(stage.sidecar.database) as conn:
        again = int(checks.read_revision(conn, straggler) > before)
        batches = checks.count_batches(conn)
    report.note(f"{count_noun(again, 'session')} shipped again, whole, with a higher revision")

    broken = 0
    for child in (stage.sidecar, stage.upstream):
        with checks.reading(child.database) as conn:
            broken += checks.count_foreign_key_errors(conn, child.read_log())
    steps = (plan.opening, *plan.steps, plan.late)
    expected = sum((step.expected for step in steps), Counter[str]())
    sent = sum(len(burst) for step in steps for burst in step.bursts)
    rows = [
        Row("beacons sent", counts["sent"], sent),
        Row("beacons acknowledged", counts["acknowledged"], sent),
        *(Row(f"items {name}", counts[name], expected[name]) for name in OUTCOMES),
        Row("foreign key errors", broken, 0),
        Row("sessions", len(held), len(plan.session_ids)),
        Row("sessions provisional: vitals came first", len(provisional & plan.provisional), len(plan.provisional)),
        Row("sessions enriched by their events", len(enriched), len(plan.provisional)),
        Row("batches shipped", batches),
        Row("sessions confirmed upstream", confirmed, len(plan.session_ids)),
        Row("sessions shipped again for a late vital", again, 1),
    ]
    return rows, plan


def _say_addresses(stage: Stage, report: Report) -> None:
    report.say("Open in a browser:")
    report.say(f"  {stage.shop_url}/   the shop: walk around, your own session appears in")
    report.say(f"  {stage.sidecar.url}/   the sidecar's dashboard, and some seconds later in")
    report.say(f"  {stage.upstream.url}/   the upstream's dashboard")
    report.say("Ctrl-C ends all of it and removes its files.")
    report.say()


def _perform(stage: Stage, report: Report, once: bool) -> int:
    report.say(f"Two sidecars and a shop run at {HOST}; forty sessions come in by HTTP:")
    report.say()
    rows, plan = _play(stage, report)
    compared, differences = checks.compare_exports(
        stage.sidecar.database, stage.upstream.database, plan.session_ids, _now_ms(), SESSION_TIMEOUT_S * 1000
    )
    report.note(f"both exports compared: {count_noun(compared, 'session')}, {len(differences)} of them different")
    report.say()
    if not once:
        _say_addresses(stage, report)
    report.table(rows)
    report.say()
    for line in differences[: checks.DIFFERENCES_MAX]:
        report.say(f"  {line}")
    wrong = [row for row in rows if not row.is_right]
    if wrong:
        report.say(f"  not as expected: {', '.join(row.what for row in wrong)}")
    report.say(f"sidecar and upstream agree: {'no' if differences else 'yes'}")
    return 1 if differences or wrong else 0


def _stay(stage: Stage) -> None:
    """Until somebody stops it. Raises DemoError where a sidecar ends by itself."""
    while True:
        stage.sidecar.check()
        stage.upstream.check()
        time.sleep(0.5)


def run(*, once: bool, out: TextIO) -> int:
    """Run the demo, writing to `out`; with `once` to its end, else until Ctrl-C. Returns the exit code.

    0: all as it should be; 1: a finding or failure, explained on stderr; 130: stopped before it was through.
    """
    report = Report(out)
    is_through = False
    try:
        with _stoppable(), _set_stage() as stage:
            code = _perform(stage, report, once)
            is_through = True
            if not once and code == 0:
                _stay(stage)
            return code
    except KeyboardInterrupt:
        return 0 if is_through else 130
    except DemoError as error:
        print(f"sidecar demo: {error}", file=sys.stderr)
        if error.detail:
            print(error.detail, file=sys.stderr)
    except SidecarError as error:
        print(f"sidecar demo: {error}", file=sys.stderr)
    return 1
