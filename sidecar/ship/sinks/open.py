"""Which destination an address means, by its scheme (contract 8)."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

from sidecar.errors import ConfigError
from sidecar.ship.sinks import Sink


def open_sink(url: str, *, token: str | None = None, secrets: Sequence[str] = ()) -> Sink:
    """The destination at `url`, not connected yet. `token` and `secrets` (the first signs) are of HTTP alone.

    Each kind is imported when it is asked for: S3 needs a package that others do without. Raises ConfigError where the
    address or a package does not allow for one.
    """
    scheme = urlsplit(url).scheme
    try:
        match scheme:
            case "http" | "https":
                from sidecar.ship.sinks.http import HttpSink

                return HttpSink(url, token=token, secrets=secrets)
            case "file":
                from sidecar.ship.sinks.directory import DirectorySink

                return DirectorySink(url)
            case "clickhouse" | "clickhouses":
                from sidecar.ship.sinks.clickhouse import ClickHouseSink

                return ClickHouseSink(url)
            case "s3":
                from sidecar.ship.sinks.s3 import S3Sink

                return S3Sink(url)
    except ValueError as error:
        raise ConfigError(f"SIDECAR_UPSTREAM_URL: {error}") from error
    raise ConfigError(f"SIDECAR_UPSTREAM_URL: no destination has the scheme {scheme}")
