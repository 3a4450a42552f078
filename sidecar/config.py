"""Settings: from the environment (prefix SIDECAR_), frozen, checked at start, units in the names.

A wrong value, or an unknown SIDECAR_ name, stops the start with one line naming the setting, the value and what is
allowed.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Callable, Mapping
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import SplitResult, urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from sidecar.errors import ConfigError
from sidecar.signing import read_secret

PREFIX = "SIDECAR_"
SITE_PATTERN = r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$"
_PHRASE = r"^[^\x00-\x1f\x7f]+$"  # of a token: one line, and nothing that cannot be seen
_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"0", "false", "no", "off"}


class Funnel(BaseModel):
    """One entry of FUNNELS."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Annotated[str, Field(min_length=1, max_length=128)]
    subaccountId: str | None = None  # noqa: N815 - the setting's own spelling
    name: str | None = None
    apiKey: str | None = None  # noqa: N815 - as above
    allowedOrigins: tuple[str, ...] | None = None  # noqa: N815 - as above


class ReceiveToken(BaseModel):
    """One entry of RECEIVE_TOKEN: a token, and the sites it may write. None: any."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    token: Annotated[str, Field(pattern=_PHRASE)]
    sites: tuple[Annotated[str, Field(pattern=SITE_PATTERN)], ...] | None = None


def _has_host(parts: SplitResult) -> bool:
    try:
        return bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number
        return False


_UPSTREAMS: dict[str, Callable[[SplitResult], bool]] = {
    **dict.fromkeys(("http", "https", "clickhouse", "clickhouses", "s3"), _has_host),
    "file": lambda parts: parts.netloc in ("", "localhost") and parts.path.startswith("/") and parts.path != "/",
}


def _parts(address: str) -> SplitResult:
    """The parts of an address; of one that cannot be read none."""
    try:
        return urlsplit(address)
    except ValueError:
        return SplitResult("", "", "", "", "")


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


class Settings(BaseModel):
    """All settings, by the names of the environment without their prefix."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    database: Path = Path("sidecar.db")
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535)] = 8787
    site: Annotated[str, Field(pattern=SITE_PATTERN)] = "default"
    funnels: tuple[Funnel, ...] | None = None
    allowed_origins: tuple[str, ...] | None = None
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = ()
    session_timeout_s: Annotated[float, Field(alias="SIDECAR_SESSION_TIMEOUT", gt=0, le=86_400)] = 1800
    upstream_url: str | None = None
    upstream_token: str | None = None
    upstream_secret: tuple[str, ...] = ()
    ship_interval_s: Annotated[float, Field(alias="SIDECAR_SHIP_INTERVAL", gt=0, le=86_400)] = 60
    ship_batch_size: Annotated[int, Field(ge=1, le=10_000)] = 500
    receive_token: tuple[ReceiveToken, ...] = ()
    receive_secret: tuple[str, ...] = ()
    dashboard_token: str | None = None
    ip_privacy: Literal["truncate", "full", "none"] = "truncate"
    geoip_database: Path | None = None
    respect_dnt: bool = True
    require_consent: bool = False
    keep_bots: bool = False
    retention_days: Annotated[int, Field(ge=0, le=36_500)] = 90
    rate_limit: Annotated[float, Field(ge=0, le=1_000_000)] = 0
    max_database_mb: Annotated[int, Field(ge=0)] = 0
    durability: Literal["full", "normal"] = "full"
    log_format: Literal["text", "json"] = "text"

    @property
    def session_timeout_ms(self) -> int:
        """Idle time after which a session is finished."""
        return int(self.session_timeout_s * 1000)

    @property
    def max_database_bytes(self) -> int:
        """At which new sessions are refused; 0: never."""
        return self.max_database_mb * 1_000_000

    @field_validator("respect_dnt", "require_consent", "keep_bots", mode="before")
    @classmethod
    def _flag(cls, value: Any) -> Any:
        text = str(value).strip().lower()
        if text not in _TRUE | _FALSE:
            raise ValueError("true or false")
        return text in _TRUE

    @field_validator("funnels", mode="before")
    @classmethod
    def _funnels(cls, value: Any) -> Any:
        entries = _json(value, "a JSON list of {id, subaccountId, name, apiKey, allowedOrigins}")
        if not isinstance(entries, list | tuple):
            raise ValueError("a JSON list of {id, subaccountId, name, apiKey, allowedOrigins}")
        return entries

    @field_validator("allowed_origins", mode="before")
    @classmethod
    def _origins(cls, value: Any) -> Any:
        origins = _split(value) if isinstance(value, str) else value
        for origin in origins:
            parts = _parts(origin)
            if parts.scheme not in ("http", "https") or not parts.netloc or parts.path:
                raise ValueError("comma-separated origins like https://shop.example")
        return tuple(origins)

    @field_validator("trusted_proxies", mode="before")
    @classmethod
    def _proxies(cls, value: Any) -> Any:
        try:
            return tuple(ip_network(part) for part in (_split(value) if isinstance(value, str) else value))
        except ValueError:
            raise ValueError("comma-separated addresses or networks like 10.0.0.0/8") from None

    @field_validator("upstream_url", mode="after")
    @classmethod
    def _upstream(cls, value: str | None) -> str | None:
        if value is not None:
            parts = _parts(value)
            is_right = _UPSTREAMS.get(parts.scheme)
            if is_right is None or not is_right(parts):
                raise ValueError(
                    "an address like https://host/api/sessions, file:///dir/, "
                    "clickhouse://user:password@host:8123/database or s3://bucket/prefix"
                )
        return value

    @field_validator("upstream_secret", "receive_secret", mode="before")
    @classmethod
    def _secrets(cls, value: Any) -> Any:
        secrets = value.split() if isinstance(value, str) else value
        try:
            keys = [read_secret(secret) for secret in secrets]
        except ValueError:
            keys = []
        if not 1 <= len(keys) <= 2 or not all(secret.startswith("whsec_") for secret in secrets):
            raise ValueError("whsec_ and base64; one, or two separated by a space")
        return tuple(secrets)

    @field_validator("receive_token", mode="before")
    @classmethod
    def _tokens(cls, value: Any) -> Any:
        expected = "a token, or a JSON list of {token, sites}"
        if isinstance(value, str) and not value.lstrip().startswith("["):
            token = value.strip()  # a file of secrets ends with a line end
            if not re.fullmatch(_PHRASE, token) or token.startswith("{"):
                raise ValueError(expected)
            return ({"token": token},)
        return _json(value, expected)

    @field_validator("upstream_token", "dashboard_token", mode="before")
    @classmethod
    def _token(cls, value: Any) -> Any:
        token = value.strip() if isinstance(value, str) else value
        if isinstance(token, str) and not re.fullmatch(_PHRASE, token):
            raise ValueError("printable characters on one line")
        return token

    @field_validator("upstream_token", mode="after")
    @classmethod
    def _sendable(cls, value: str | None) -> str | None:
        if value is not None and not value.isascii():
            raise ValueError("ASCII: it is sent in a header")
        return value

    @field_validator("funnels", mode="after")
    @classmethod
    def _distinct(cls, value: tuple[Funnel, ...] | None) -> tuple[Funnel, ...] | None:
        ids = [funnel.id for funnel in value or ()]
        if len(set(ids)) < len(ids):
            raise ValueError("a list in which each id stands once")
        return value


def _json(value: Any, expected: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        raise ValueError(expected) from None


def _environment_name(field: str) -> str:
    alias = Settings.model_fields[field].alias
    return alias or PREFIX + field.upper()


def setting_names() -> list[str]:
    """Every name that the environment may hold, as SIDECAR_..."""
    return [_environment_name(field) for field in Settings.model_fields]


_SECRET_NAMES = {"SIDECAR_UPSTREAM_TOKEN", "SIDECAR_UPSTREAM_SECRET", "SIDECAR_RECEIVE_TOKEN", "SIDECAR_RECEIVE_SECRET"}
_SECRET_NAMES |= {"SIDECAR_DASHBOARD_TOKEN", "SIDECAR_FUNNELS", "SIDECAR_UPSTREAM_URL"}


def load_settings(environment: Mapping[str, str] | None = None, **given: Any) -> Settings:
    """Settings from the environment; `given` (by field name, None: not given) comes first, as flags do.

    Raises ConfigError with one line.
    """
    environment = os.environ if environment is None else environment
    known = setting_names()
    for name in environment:
        is_known = name in known or (name.islower() and name.upper() in known)
        if name.upper().startswith(PREFIX) and not is_known:
            near = difflib.get_close_matches(name.upper(), known, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; known are {', '.join(known)}"
            raise ConfigError(f"{name} is not a setting{hint}")
    values: dict[str, Any] = {}
    for field in Settings.model_fields:
        name = _environment_name(field)
        value = given.get(field)
        if value is None:
            value = environment.get(name) or environment.get(name.lower())
        if value not in (None, ""):
            values[Settings.model_fields[field].alias or field] = value
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        name = str(detail["loc"][0])
        name = name if name.startswith(PREFIX) else _environment_name(name)
        shown = (
            "(hidden)"
            if name in _SECRET_NAMES
            else repr(str(values.get(name.removeprefix(PREFIX).lower(), values.get(name))))
        )
        raise ConfigError(f"{name}={shown}: must be {_allowed(detail)}") from None


def _allowed(detail: Any) -> str:
    context = detail.get("ctx", {})
    match detail["type"]:
        case "value_error":
            return str(context["error"])
        case "literal_error":
            return str(context["expected"])
        case "greater_than_equal" | "greater_than" | "less_than_equal":
            sign = {"greater_than_equal": ">=", "greater_than": ">", "less_than_equal": "<="}[detail["type"]]
            return f"{sign} {next(iter(context.values()))}"
        case "string_pattern_mismatch" if context["pattern"] == _PHRASE:
            return "a list of {token, sites} with tokens of printable characters"
        case "string_pattern_mismatch":
            return "1 to 64 of A-Z a-z 0-9 . _ -, not starting with a dot"
        case "extra_forbidden" | "missing":
            with_or_not = "without" if detail["type"] == "extra_forbidden" else "with"
            return f"{with_or_not} {'.'.join(map(str, detail['loc'][1:]))}"
        case _:
            inner = ".".join(str(part) for part in detail["loc"][1:])
            return f"{inner + ': ' if inner else ''}{detail['msg'].removeprefix('Input should be ')}"
