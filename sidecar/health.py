"""What the parts of a running server say of themselves: `/healthz` and `/metrics`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from anyio import CapacityLimiter, to_thread
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from sidecar.config import Settings
from sidecar.errors import SidecarError
from sidecar.ship.shipper import OUTCOMES, Shipper
from sidecar.store.database import Error, file_bytes
from sidecar.store.limit import LEVELS, level_of, used_bytes
from sidecar.store.readers import Readers
from sidecar.store.shipping import STATES, read_health, read_shipping
from sidecar.store.writer import Writer
from sidecar.web.collect import Collect

HEALTH_READERS_MAX = 2


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
        clock: Callable[[], int],
    ) -> None:
        self._settings = settings
        self._writer = writer
        self._collect = collect
        self._readers = readers
        self._shipper = shipper
        self._clock = clock
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
                content["shipping"] = read_health(conn, self._clock(), self._settings.session_timeout_ms)
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
            shipping = read_shipping(conn, self._clock(), self._settings.session_timeout_ms)
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
        for outcome, count in count_attempts(self._shipper).items():
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


def count_attempts(shipper: Shipper | None) -> dict[str, int]:
    """Attempts at delivery by outcome, since this process began; those of `sidecar ship` are not among them."""
    return dict(shipper.attempts) if shipper else dict.fromkeys(OUTCOMES.values(), 0)
