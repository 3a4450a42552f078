"""What `sidecar status` says, and what a person should know of the settings."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

from sidecar.canonical import to_iso_or_number
from sidecar.config import Settings
from sidecar.errors import ConfigError
from sidecar.ship.sinks import Sink
from sidecar.ship.sinks.open import open_sink
from sidecar.store.database import SQLITE_VERSION, file_bytes, open_read_only
from sidecar.store.limit import MEGABYTE, used_bytes
from sidecar.store.queries import Filters, Provisional, count_provisional
from sidecar.store.shipping import read_shipping
from sidecar.store.upkeep import read_counts


def open_upstream(settings: Settings) -> Sink:
    """The destination of the settings, which name one. Raises ConfigError where it cannot be used."""
    assert settings.upstream_url is not None  # noqa: S101 - whoever asks has looked
    return open_sink(settings.upstream_url, token=settings.upstream_token, secrets=settings.upstream_secret)


def list_warnings(settings: Settings) -> list[str]:
    """What a person should know of these settings."""
    found = []
    if settings.upstream_url is not None and "site" not in settings.model_fields_set:
        found.append("SIDECAR_SITE is not set: sessions of several sidecars would be one site upstream")
    return found


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
            wanted = open_upstream(settings).address
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


def describe_status(settings: Settings, now: int) -> list[tuple[str, str]]:
    """Label and text of each line of `sidecar status` at `now` (ms). Raises StoreError."""
    with closing(open_read_only(settings.database)) as conn:
        used = used_bytes(conn)
        counts = read_counts(conn)
        began = count_provisional(conn, Filters(), now, settings.session_timeout_ms)
        shipping = read_shipping(conn, now, settings.session_timeout_ms)
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
    return lines + [("warning", warning) for warning in list_warnings(settings)]
