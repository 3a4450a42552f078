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
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, suppress
from importlib import resources
from typing import Any
from urllib.parse import urlsplit

import structlog
import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Scope

from sidecar.canonical import now_ms, to_iso
from sidecar.config import Settings
from sidecar.daily import Daily
from sidecar.errors import OWN_ERROR, ConfigError, SidecarError, StoreError
from sidecar.health import HEALTH_READERS_MAX, Health, count_attempts
from sidecar.ingest.enrich import Rules
from sidecar.ingest.place import open_places
from sidecar.packing import Packer
from sidecar.protocol import make_protocol
from sidecar.ship.shipper import Shipper
from sidecar.status import list_warnings, open_upstream
from sidecar.store.database import (
    Connection,
    empty_wal,
    file_bytes,
    open_database,
    open_read_only,
    rewrite,
    snapshot,
)
from sidecar.store.limit import MEGABYTE, Limit, used_bytes
from sidecar.store.outbox import set_destination
from sidecar.store.readers import Readers
from sidecar.store.retention import Survey, make_rule, prune, run_pass, survey
from sidecar.store.shipping import read_session_shipping, read_shipping
from sidecar.store.upkeep import put_subaccounts
from sidecar.store.writer import Writer
from sidecar.web import pages, read
from sidecar.web.access import SAFE_HEADERS, Access, Guard, SafeHeaders, peer_address
from sidecar.web.collect import Collect
from sidecar.web.gate import Gate, KnownFunnel
from sidecar.web.receive import Receive
from sidecar.web.tidy import Tidy

# How long a thread may keep the GIL while another waits. Who records beacons waits for it after each statement: of
# Python's 5 ms the beacons a second were a tenth fewer while two threads had work.
SWITCH_S = 0.0001
SHUTDOWN_S = 10  # what open requests get before the server ends
SCRIPT_MAX_AGE_S = 3600
EMPTY_WAL_S = 5.0  # how long `prune --vacuum` waits for readers of a running server

log = structlog.get_logger("sidecar")


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


def _shipper(settings: Settings, writer: Writer) -> Shipper | None:
    if settings.upstream_url is None:
        return None
    return Shipper(
        writer,
        settings.database,
        open_upstream(settings),
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


def _error_handler(dashboard: pages.Pages, routes: Callable[[], list[Route]]) -> Callable[..., Any]:
    """What Starlette refuses (no such path, wrong method, a large form): JSON under /api, else a page."""

    async def answer(request: Request, error: Exception) -> Response:
        if not isinstance(error, HTTPException):  # Starlette raises it again, and uvicorn logs it
            if request.url.path.startswith("/api/"):
                return read.answer({"error": OWN_ERROR}, 500, SAFE_HEADERS)
            return dashboard.error(500, OWN_ERROR, SAFE_HEADERS)
        headers = {**SAFE_HEADERS, **(error.headers or {})}
        if error.status_code == 405:
            fitting = [route for route in routes() if route.matches(request.scope)[0] is not Match.NONE]
            headers["Allow"] = ", ".join(sorted({method for route in fitting for method in route.methods or ()}))
        if request.url.path.startswith("/api/"):
            return read.answer({"error": error.detail}, error.status_code, headers)
        return dashboard.error(error.status_code, error.detail, headers)

    return answer


def build(settings: Settings) -> Collect:
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
        upstream=open_upstream(settings).address if settings.upstream_url is not None else None,
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
        read_shipping=lambda *asked: read_shipping(*asked) | {"attempts": count_attempts(shipper)},
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
    health = Health(settings, writer, lambda: collect, health_readers, shipper, now_ms)
    behind = [Middleware(SafeHeaders), Middleware(Guard, access=access, refuse=read.refuse)]
    routes = [
        Route("/sidecar.js", script.read, methods=["GET"]),
        Route("/healthz", health.healthz, methods=["GET"]),
        Route("/metrics", health.metrics, methods=["GET"], middleware=behind),
        Route("/api/sessions", receive, methods=["POST"]),
        *read.routes(context),
        *dashboard.routes(),
    ]
    handler = _error_handler(dashboard, lambda: routes)
    starlette = Starlette(
        routes=routes, lifespan=lifespan, exception_handlers={HTTPException: handler, Exception: handler}
    )
    starlette.router.redirect_slashes = False  # it redirects before anybody has asked who may read
    collect = Collect(starlette, writer=writer, rules=rules, gate=gate, clock=now_ms, tidy=tidy, limit=limit)
    return collect


def _greet(settings: Settings) -> None:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    log.info("listening", address=f"http://{host}:{settings.port}", database=str(settings.database))
    for warning in list_warnings(settings):
        log.warning(warning)


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


def run_server(app: Collect, settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT. Raises SidecarError where it cannot start."""
    configure_logs(settings.log_format)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=make_protocol(app),
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
    sys.setswitchinterval(SWITCH_S)

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
    open_upstream(settings)  # what is wrong with it is said first
    if not settings.database.exists():
        raise StoreError(f"{settings.database}: no such database; `sidecar serve` makes one")

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
    upstream = open_upstream(settings).address if settings.upstream_url is not None else None
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
