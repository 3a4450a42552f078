"""Wires everything once: opens the file, starts writer, shipper and upkeep, stops them in reverse."""

from __future__ import annotations

import asyncio
import gc
import gzip
import hashlib
import logging
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, closing, suppress
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import structlog
import uvicorn
from anyio import CapacityLimiter, to_thread
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Scope

from sidecar.canonical import to_iso, to_iso_or_number
from sidecar.config import Settings
from sidecar.daily import Daily
from sidecar.errors import ConfigError, SidecarError
from sidecar.ingest.enrich import Rules
from sidecar.ingest.place import open_places
from sidecar.packing import Packer
from sidecar.ship.shipper import OUTCOMES, Shipper
from sidecar.ship.sinks import Sink
from sidecar.ship.sinks.open import open_sink
from sidecar.store.database import (
    SQLITE_VERSION,
    Connection,
    Error,
    empty_wal,
    file_bytes,
    open_database,
    open_read_only,
    rewrite,
    snapshot,
)
from sidecar.store.limit import LEVELS, MEGABYTE, Limit, level_of, used_bytes
from sidecar.store.outbox import set_destination
from sidecar.store.queries import Filters, Provisional, count_provisional
from sidecar.store.readers import Readers
from sidecar.store.retention import Survey, make_rule, prune, run_pass, survey
from sidecar.store.shipping import STATES, read_health, read_session_shipping, read_shipping
from sidecar.store.upkeep import put_subaccounts, read_counts
from sidecar.store.writer import Writer
from sidecar.web import pages, read
from sidecar.web.access import Access, Guard, SafeHeaders, peer_address
from sidecar.web.collect import Collect
from sidecar.web.gate import Gate, KnownFunnel
from sidecar.web.receive import Receive
from sidecar.web.tidy import Tidy

HEALTH_READERS_MAX = 2
SHUTDOWN_S = 10  # what open requests get before the server ends
SCRIPT_MAX_AGE_S = 3600
EMPTY_WAL_S = 5.0  # how long `prune --vacuum` waits for readers of a running server

log = structlog.get_logger("sidecar")


def now_ms() -> int:
    """The clock: milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def _rules(settings: Settings) -> Rules:
    return Rules(
        site=settings.site,
        ip_privacy=settings.ip_privacy,
        respect_dnt=settings.respect_dnt,
        require_consent=settings.require_consent,
        keep_bots=settings.keep_bots,
        places=open_places(settings.geoip_database),
    )


def _gate(settings: Settings) -> Gate:
    known = None
    if settings.funnels is not None:
        known = {funnel.id: KnownFunnel(funnel.apiKey, funnel.allowedOrigins) for funnel in settings.funnels}
    return Gate(
        funnels=known,
        allowed_origins=settings.allowed_origins,
        trusted_proxies=settings.trusted_proxies,
        rate_limit=settings.rate_limit,
    )


def _sink(settings: Settings) -> Sink:
    assert settings.upstream_url is not None  # noqa: S101 - whoever asks has looked
    return open_sink(settings.upstream_url, token=settings.upstream_token, secrets=settings.upstream_secret)


def _shipper(settings: Settings, writer: Writer) -> Shipper | None:
    if settings.upstream_url is None:
        return None
    return Shipper(
        writer,
        settings.database,
        _sink(settings),
        timeout_ms=settings.session_timeout_ms,
        interval_s=settings.ship_interval_s,
        lines_max=settings.ship_batch_size,
        clock=now_ms,
    )


class Script:
    """`GET /sidecar.js`: the tracker as it was built into the package. Raises ConfigError where it was not."""

    def __init__(self) -> None:
        bundle = resources.files("sidecar.tracker").joinpath("bundle/sidecar.js")
        if not bundle.is_file():
            raise ConfigError("the tracker is not built; `pip install .` or `pip install -e .` builds it")
        self._plain = bundle.read_bytes()
        self._packed = gzip.compress(self._plain, mtime=0)
        self._etag = f'"{hashlib.sha256(self._plain).hexdigest()[:20]}"'

    async def read(self, request: Request) -> Response:
        """The script, packed where the browser takes gzip; 304 where it has it already."""
        headers = {
            "ETag": self._etag,
            "Cache-Control": f"public, max-age={SCRIPT_MAX_AGE_S}",
            "Vary": "Accept-Encoding",
            "X-Content-Type-Options": "nosniff",
            "Cross-Origin-Resource-Policy": "cross-origin",  # the site's pages have another origin
        }
        if self._etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        packed = "gzip" in request.headers.get("accept-encoding", "")
        if packed:
            headers["Content-Encoding"] = "gzip"
        return Response(
            self._packed if packed else self._plain, media_type="text/javascript; charset=utf-8", headers=headers
        )


class Health:
    """`GET /healthz` and `GET /metrics`: what the parts say of themselves.

    With threads and connections of their own: who watches the process does not wait behind the dashboard's readings.
    """

    def __init__(
        self,
        settings: Settings,
        writer: Writer,
        collect: Callable[[], Collect],
        readers: Readers,
        shipper: Shipper | None,
    ) -> None:
        self._settings = settings
        self._writer = writer
        self._collect = collect
        self._readers = readers
        self._shipper = shipper
        self._threads: CapacityLimiter | None = None  # made in the loop that it belongs to
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(self)

    async def _in_thread(self, function: Callable[[], Response]) -> Response:
        if self._threads is None:
            self._threads = CapacityLimiter(HEALTH_READERS_MAX)
        return await to_thread.run_sync(function, limiter=self._threads)

    async def healthz(self, request: Request) -> Response:  # noqa: ARG002 - an endpoint
        """503 only where beacons cannot be stored."""
        return await self._in_thread(self._read_health)

    async def metrics(self, request: Request) -> Response:  # noqa: ARG002 - an endpoint
        """Prometheus text."""
        return await self._in_thread(self._read_metrics)

    def _read_health(self) -> Response:
        failure = self._writer.failure
        content: dict[str, Any] = {"status": "failing" if failure else "ok"}
        if failure:
            content["reason"] = failure
        content["queue"] = self._writer.waiting_count
        try:
            with self._readers.snapshot() as conn:
                content["database"] = _describe_size(used_bytes(conn), self._settings)
                content["shipping"] = read_health(conn, now_ms(), self._settings.session_timeout_ms)
            if self._shipper and self._shipper.failures_count:
                content["shipping"]["sentence"] += "; the last pass of shipping failed, the log says why"
        except (SidecarError, Error) as error:
            content["shipping"] = {"state": "unknown", "reason": str(error), "sentence": f"unknown: {error}"}
        return JSONResponse(content, status_code=503 if failure else 200, headers={"Cache-Control": "no-store"})

    def _read_metrics(self) -> Response:
        return Response(generate_latest(self.registry), media_type="text/plain; version=0.0.4; charset=utf-8")

    def collect(self) -> Iterable[Metric]:
        """The metrics. No label holds a path, an id or a user agent."""
        collect = self._collect()
        beacons = CounterMetricFamily("sidecar_beacons", "Beacons by HTTP status.", labels=["status"])
        for status, count in collect.beacons.items():
            beacons.add_metric([str(status)], count)
        items = CounterMetricFamily("sidecar_items", "Items by outcome.", labels=["outcome"])
        for outcome, count in collect.items.items():
            items.add_metric([str(outcome)], count)
        yield beacons
        yield items
        yield CounterMetricFamily("sidecar_groups", "Committed groups.", value=self._writer.groups_count)
        yield GaugeMetricFamily("sidecar_queue_tasks", "Tasks waiting to be written.", value=self._writer.waiting_count)
        size = file_bytes(self._settings.database)
        yield GaugeMetricFamily("sidecar_database_bytes", "Size of the file and its WAL.", value=size)
        limit = self._settings.max_database_bytes
        yield GaugeMetricFamily("sidecar_database_limit_bytes", "MAX_DATABASE_MB in bytes; 0: none.", value=limit)
        with self._readers.snapshot() as conn:
            used = used_bytes(conn)
            yield GaugeMetricFamily("sidecar_database_used_bytes", "Pages that hold something, in bytes.", value=used)
            shipping = read_shipping(conn, now_ms(), self._settings.session_timeout_ms)
        for name, key, text in (
            ("sidecar_sessions_waiting", "waitingSessions", "Finished sessions that are not confirmed."),
            ("sidecar_sessions_confirmed", "confirmedSessions", "Sessions that the destination has confirmed."),
            ("sidecar_sessions_parked", "parkedSessions", "Sessions that the destination refused."),
            ("sidecar_tombstones_waiting", "waitingTombstones", "Erasures that the destination was not told yet."),
            ("sidecar_tombstones_refused", "refusedTombstones", "Erasures that the destination refused."),
            (
                "sidecar_oldest_unshipped_age_seconds",
                "oldestWaitingSeconds",
                "Time since the last change of the session that waits longest; 0 where none waits.",
            ),
        ):
            yield GaugeMetricFamily(name, text, value=shipping[key])
        states = GaugeMetricFamily("sidecar_destination_state", "1 for the destination's state.", labels=["state"])
        for state in STATES:
            states.add_metric([state], int(state == shipping["state"]))
        yield states
        attempts = CounterMetricFamily(
            "sidecar_ship_attempts", "Attempts at delivery by what came of them, in this process.", labels=["outcome"]
        )
        for outcome, count in _attempts(self._shipper).items():
            attempts.add_metric([outcome], count)
        yield attempts
        shipped = CounterMetricFamily(
            "sidecar_ship_sessions", "Sessions by what the destination said, in this process.", labels=["outcome"]
        )
        shipped.add_metric(["confirmed"], self._shipper.confirmed_count if self._shipper else 0)
        shipped.add_metric(["parked"], self._shipper.parked_count if self._shipper else 0)
        yield shipped


def _describe_size(used: int, settings: Settings) -> dict[str, Any]:
    """What /healthz says of the file. `state`: `ok`, `nearly full` from the first level on, or `full`."""
    level = level_of(used, settings.max_database_bytes)
    state = "full" if level == LEVELS[-1] else "nearly full" if level else "ok"
    return {"state": state, "usedBytes": used, "limitBytes": settings.max_database_bytes or None}


def _attempts(shipper: Shipper | None) -> dict[str, int]:
    """Attempts at delivery by outcome, since this process began; those of `sidecar ship` are not among them."""
    return dict(shipper.attempts) if shipper else dict.fromkeys(OUTCOMES.values(), 0)


def _error_handler(dashboard: pages.Pages, routes: Callable[[], list[Route]]) -> Callable[..., Any]:
    """What Starlette refuses (no such path, wrong method, a large form): JSON under /api, else a page."""

    async def answer(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101 - what it is registered for
        headers = dict(error.headers or {})
        if error.status_code == 405:
            fitting = [route for route in routes() if route.matches(request.scope)[0] is not Match.NONE]
            headers["Allow"] = ", ".join(sorted({method for route in fitting for method in route.methods or ()}))
        if request.url.path.startswith("/api/"):
            return read.answer({"error": error.detail}, error.status_code, headers)
        return dashboard.error(error.status_code, error.detail, headers)

    return answer


def build(settings: Settings) -> ASGIApp:
    """The ASGI application. Raises StoreError or ConfigError where the file or a setting cannot be used."""
    rules, gate, script = _rules(settings), _gate(settings), Script()
    writer = Writer(open_database(settings.database, durability=settings.durability))
    readers = Readers(settings.database)
    health_readers = Readers(settings.database, readers_max=HEALTH_READERS_MAX)

    def find_address(scope: Scope) -> str | None:
        return gate.find_address(peer_address(scope), Headers(scope=scope).get("x-forwarded-for"))

    access = Access(settings.dashboard_token, now_ms, find_address=find_address)
    shipper = _shipper(settings, writer)
    tidy = Tidy(writer)
    limit = Limit(settings.max_database_bytes)
    daily = Daily(
        writer,
        readers,
        days=settings.retention_days,
        upstream=_sink(settings).address if settings.upstream_url is not None else None,
        timeout_ms=settings.session_timeout_ms,
        limit=limit,
        clock=now_ms,
    )

    async def write(function: Callable[[Connection], Any]) -> Any:
        return await asyncio.shield(asyncio.wrap_future(writer.call(function)))

    tokens = [(entry.token, entry.sites) for entry in settings.receive_token]
    receive = Receive(writer, tokens, settings.receive_secret, now_ms, tidy=tidy, limit=limit)
    context = read.Context(
        readers=readers,
        access=access,
        clock=now_ms,
        session_timeout_ms=settings.session_timeout_ms,
        read_shipping=lambda *asked: read_shipping(*asked) | {"attempts": _attempts(shipper)},
        read_session_shipping=read_session_shipping,
        write=write,
        tidy=tidy.start,
        tag_funnel=settings.funnels[0].id if settings.funnels else "default",
        tag_key=settings.funnels[0].apiKey if settings.funnels else None,
    )
    subaccounts = {funnel.id: funnel.subaccountId for funnel in settings.funnels or () if funnel.subaccountId}

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:  # noqa: ARG001 - Starlette's signature
        writer.start()
        await tidy.start()  # an end without order may have left what was erased
        if subaccounts:
            writer.call(lambda conn: put_subaccounts(conn, settings.site, subaccounts)).result()
        if shipper is None:
            writer.call(lambda conn: set_destination(conn, None, now_ms())).result()
        packer = Packer(writer, readers, rest_ms=settings.session_timeout_ms, clock=now_ms)
        running = [asyncio.create_task(daily.run(), name="daily"), asyncio.create_task(packer.run(), name="packer")]
        if shipper:
            running.append(asyncio.create_task(shipper.run(), name="shipper"))
        yield
        for task in running:
            task.cancel()
        for task in running:
            with suppress(asyncio.CancelledError):
                await task
        readers.close()
        health_readers.close()
        await tidy.finish()
        await asyncio.to_thread(writer.close)

    dashboard = pages.Pages(context)
    health = Health(settings, writer, lambda: collect, health_readers, shipper)
    behind = [Middleware(SafeHeaders), Middleware(Guard, access=access, refuse=read.refuse)]
    routes = [
        Route("/sidecar.js", script.read, methods=["GET"]),
        Route("/healthz", health.healthz, methods=["GET"]),
        Route("/metrics", health.metrics, methods=["GET"], middleware=behind),
        Route("/api/sessions", receive, methods=["POST"]),
        *read.routes(context),
        *dashboard.routes(),
    ]
    handlers = {HTTPException: _error_handler(dashboard, lambda: routes)}
    starlette = Starlette(routes=routes, lifespan=lifespan, exception_handlers=handlers)
    collect = Collect(starlette, writer=writer, rules=rules, gate=gate, clock=now_ms, tidy=tidy, limit=limit)
    return collect


def _greet(settings: Settings) -> None:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    log.info("listening", address=f"http://{host}:{settings.port}", database=str(settings.database))
    for warning in _warnings(settings):
        log.warning(warning)


def _warnings(settings: Settings) -> list[str]:
    """What a person should know of these settings."""
    found = []
    if settings.upstream_url is not None and "site" not in settings.model_fields_set:
        found.append("SIDECAR_SITE is not set: sessions of several sidecars would be one site upstream")
    return found


def configure_logs(form: str) -> None:
    """Logs to stderr, as text for people or as JSON lines."""
    renderer: Any = structlog.processors.JSONRenderer()
    if form == "text":
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")


class _Server(uvicorn.Server):
    """Says where it listens once it does."""

    def __init__(self, config: uvicorn.Config, settings: Settings) -> None:
        super().__init__(config)
        self._settings = settings

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            _greet(self._settings)


def run_server(app: ASGIApp, settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT. Raises SidecarError where it cannot start."""
    configure_logs(settings.log_format)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        access_log=False,
        log_config=None,
        proxy_headers=False,  # the gate reads X-Forwarded-For, and only from TRUSTED_PROXIES
        server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_S,
        lifespan="on",
    )
    server = _Server(config, settings)
    # What start-up made stays, and a beacon makes no cycles: the default settings spent 5 % of the time on looking.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)

    try:
        server.run()
    except SystemExit:  # what uvicorn does after it has logged why it cannot bind
        raise SidecarError(f"could not listen on {settings.host}:{settings.port}") from None
    if not server.started:
        raise SidecarError("could not start")


def ship_now(
    settings: Settings, *, everything: bool, show: Callable[[int, int], None] | None = None
) -> tuple[str, bool]:
    """One pass of shipping by hand: a line for a person, and whether nothing was left waiting.

    `show` is told after each batch how many sessions are settled, and of how many. Cancelled, it ends in order: what
    was confirmed until then stays confirmed.

    Raises ConfigError where there is no upstream, DestinationBusyError where a server is shipping at the moment.
    """
    if settings.upstream_url is None:
        raise ConfigError("SIDECAR_UPSTREAM_URL is not set: there is nowhere to ship to")

    async def work() -> tuple[str, bool]:
        writer = Writer(open_database(settings.database, durability=settings.durability))
        writer.start()
        shipper = _shipper(settings, writer)
        assert shipper is not None  # noqa: S101 - UPSTREAM_URL is set
        try:
            passed = await shipper.ship_once(include_unfinished=everything, show=show)
            return passed.sentence, passed.reason is None
        finally:
            await asyncio.to_thread(writer.close)

    configure_logs(settings.log_format)
    return asyncio.run(work())


def prepare_upstream(settings: Settings, *, only_print: bool) -> list[str]:
    """Make the tables that the destination needs: a line of each. `only_print`: their SQL instead, unconnected.

    Raises ConfigError where there is no upstream, SidecarError where it does not let them be made.
    """
    if settings.upstream_url is None:
        raise ConfigError("SIDECAR_UPSTREAM_URL is not set: there is nothing to prepare")
    scheme = urlsplit(settings.upstream_url).scheme
    if scheme not in ("clickhouse", "clickhouses"):
        return [f"{'-- ' if only_print else ''}a destination of {scheme}:// needs no tables: nothing to do"]
    from sidecar.ship.sinks.clickhouse import ClickHouseSink  # as `open_sink`: when it is asked for

    try:
        sink = ClickHouseSink(settings.upstream_url)
    except ValueError as error:
        raise ConfigError(f"SIDECAR_UPSTREAM_URL: {error}") from error
    if only_print:
        return sink.statements()
    return asyncio.run(sink.prepare())


def prune_now(settings: Settings, *, dry_run: bool, vacuum: bool, show: Callable[[int, int], None]) -> Iterator[str]:
    """Prune by hand, beside a running server or without one: lines for a person, as it goes.

    `show` is told after each step how many sessions have gone in it, and how many there are to go. Raises StoreError.
    """
    now, days = now_ms(), settings.retention_days
    if not days:
        yield "SIDECAR_RETENTION_DAYS=0: sessions are kept for ever"
        return
    upstream = _sink(settings).address if settings.upstream_url is not None else None
    with closing(open_read_only(settings.database)) as conn, snapshot(conn):
        rule = make_rule(conn, days=days, upstream=upstream, now=now, timeout_ms=settings.session_timeout_ms)
        found = survey(conn, rule)
        used = used_bytes(conn)
    confirmed = f" and confirmed by {rule.address}" if rule.address else ""
    yield f"older than {days} days (they ended before {to_iso(rule.before)}){confirmed}: {_describe_going(found)}"
    for reason, count in found.kept:
        yield f"kept although as old, {reason}: {count} sessions"
    if dry_run:
        yield "nothing was changed"
        return
    with closing(open_database(settings.database, durability=settings.durability)) as conn:
        work = prune(rule, now, run=time.time_ns(), advance=lambda count: show(count, found.sessions))
        pruned = run_pass(conn, settings.database, work)
        freed = used - used_bytes(conn)
        others = f"others waited {pruned.longest_step_s * 1000:.0f} ms at most"
        yield f"deleted {pruned}; {max(0, freed) / MEGABYTE:.1f} MB are free for what comes; {others}"
        if vacuum:
            before = file_bytes(settings.database)
            rewrite(conn)
            emptied = empty_wal(conn, EMPTY_WAL_S)
            waits = "" if emptied else " once nobody reads the WAL any more"
            smaller = (before - file_bytes(settings.database)) / MEGABYTE
            yield f"the file was written anew{waits}: {smaller:.1f} MB smaller"


def _describe_going(found: Survey) -> str:
    if found.oldest is None or found.newest is None:
        return "no session"
    size = f"some {found.file_bytes / MEGABYTE:.1f} MB"
    when = f"ended {to_iso(found.oldest)} to {to_iso(found.newest)}"
    return f"{found.sessions} sessions with {found.facts} facts, {size}, {when}"


def _describe_wait(began: Provisional) -> str:
    if began.median_s is None:
        return "no session began with a web vital and got an event"
    return f"{began.median_s:g} s (median), {began.p95_s:g} s (p95) of {began.enriched} that began with a web vital"


def _describe_destination(settings: Settings, shipping: dict[str, Any], sessions: int) -> list[tuple[str, str]]:
    """Where to, and what a change of it means: what is confirmed belongs to one destination."""
    named = shipping["destination"]
    lines = [("shipping to", named or "nowhere (SIDECAR_UPSTREAM_URL is not set)")]
    if settings.upstream_url is not None:
        try:
            wanted = _sink(settings).address
        except ConfigError as error:  # a command that says what is wrong does not end on it
            return [*lines, ("warning", str(error))]
        if wanted != named and named is not None:
            coming = f"with the next pass, to {wanted}: all {sessions} sessions ship to it"
            return [*lines, ("destination changes", coming)]
        if wanted != named:
            lines = [("shipping to", f"{wanted} (with the next pass)")]
    if named is not None and shipping["formerDestination"] is not None:
        confirmed = f"{shipping['confirmedSessions']} are confirmed"
        told = f"all {sessions} sessions ship to the new one, {confirmed}"
        lines.append(("destination changed", f"{shipping['changedAt']}, from {shipping['formerDestination']}: {told}"))
    return lines


def _describe_parked(shipping: dict[str, Any]) -> str:
    parked, refused = shipping["parkedSessions"], shipping["refusedTombstones"]
    erasures = f", {refused} erasure{'' if refused == 1 else 's'} refused" if refused else ""
    return f"{parked}{erasures}{' (see sidecar parked list)' if parked or refused else ''}"


def _describe_use(used: int, limit_bytes: int) -> str:
    if not limit_bytes:
        return f"{used / MEGABYTE:.1f} MB, no limit (SIDECAR_MAX_DATABASE_MB is not set)"
    refused = ", new sessions are refused" if used >= limit_bytes else ""
    return f"{used / MEGABYTE:.1f} of {limit_bytes / MEGABYTE:.0f} MB ({used * 100 // limit_bytes} %){refused}"


def describe_status(settings: Settings) -> list[tuple[str, str]]:
    """Label and text of each line of `sidecar status`. Raises StoreError."""
    with closing(open_read_only(settings.database)) as conn:
        used = used_bytes(conn)
        counts = read_counts(conn)
        began = count_provisional(conn, Filters(), now_ms(), settings.session_timeout_ms)
        shipping = read_shipping(conn, now_ms(), settings.session_timeout_ms)
    size = file_bytes(settings.database)
    lines = [
        ("database", f"{Path(settings.database).resolve()} ({size / 1e6:.1f} MB with its WAL)"),
        ("database in use", _describe_use(used, settings.max_database_bytes)),
        ("sqlite", SQLITE_VERSION),
        ("sessions", f"{counts['sessions']}, {counts['provisional']} provisional"),
        ("provisional sessions", f"{began.sessions}, {began.never_enriched} finished without an event"),
        ("first event after", _describe_wait(began)),
        ("visitors", str(counts["visitors"])),
        ("web vitals", str(counts["web_vitals"])),
        ("events", str(counts["events"])),
        ("erased visitors", f"{shipping['tombstones']}, {shipping['waitingTombstones']} not told upstream yet"),
        ("last change", to_iso_or_number(counts["last_change"]) or "never"),
    ]
    lines += [
        ("shipping", shipping["sentence"]),
        *_describe_destination(settings, shipping, counts["sessions"]),
        ("sessions waiting", f"{shipping['waitingSessions']}, {shipping['unfinishedSessions']} unfinished"),
        ("oldest waiting", shipping["oldestWaiting"] or "none"),
        ("sessions confirmed", str(shipping["confirmedSessions"])),
        ("sessions parked", _describe_parked(shipping)),
        ("last delivery", shipping["confirmedAt"] or "never"),
    ]
    return lines + [("warning", warning) for warning in _warnings(settings)]
