"""Address to place, and how much of an address is kept."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any, Protocol

import maxminddb

from sidecar.errors import ConfigError
from sidecar.model import Place

NOWHERE = Place()


def parse_address(text: str | None) -> IPv4Address | IPv6Address | None:
    """An address of a header or socket; an IPv4 address inside IPv6 is given as IPv4. None for anything else."""
    if not text:
        return None
    try:
        address = ip_address(text.strip().strip("[]").split("%")[0])
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


@lru_cache(maxsize=8192)
def private_address(text: str | None, privacy: str) -> str | None:
    """The address as it is stored: `truncate` keeps the /24 of IPv4 and the /48 of IPv6, `full` all, `none` nothing."""
    address = parse_address(text)
    if address is None or privacy == "none":
        return None
    if privacy == "full":
        return str(address)
    kept = 24 if isinstance(address, IPv4Address) else 48
    bits = int(address) >> (address.max_prefixlen - kept) << (address.max_prefixlen - kept)
    return str(type(address)(bits))


class Places(Protocol):
    """Looks an address up."""

    def find(self, address: str | None) -> Place:
        """The place of an address; an empty Place where nothing is known."""


class NoPlaces:
    """Where no MMDB file is set."""

    def find(self, address: str | None) -> Place:  # noqa: ARG002 - the protocol's argument
        """Nothing is known."""
        return NOWHERE


def _text(value: Any) -> str | None:
    if isinstance(value, dict):
        names = value.get("names")
        value = names.get("en") if isinstance(names, dict) else value.get("name")
    return value[:128] if isinstance(value, str) and value else None


class MmdbPlaces:
    """Places by an MMDB file in the layouts of the field: GeoLite2/DB-IP (`country.iso_code`) and flat ones
    (`country_code`, or `country` as text).

    Raises ConfigError where the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._reader = maxminddb.open_database(path)
        except (OSError, maxminddb.InvalidDatabaseError) as error:
            raise ConfigError(f"SIDECAR_GEOIP_DATABASE={path}: cannot be read as an MMDB file: {error}") from None
        self.find = lru_cache(maxsize=8192)(self._find)  # type: ignore[method-assign]

    def find(self, address: str | None) -> Place:
        """The place of an address; an empty Place where the file has none."""
        return self._find(address)

    def _find(self, address: str | None) -> Place:
        parsed = parse_address(address)
        if parsed is None or (parsed.version == 6 and self._reader.metadata().ip_version == 4):
            return NOWHERE
        record = self._reader.get(parsed)
        if not isinstance(record, dict):
            return NOWHERE
        country: Any = record.get("country")
        code = country.get("iso_code") if isinstance(country, dict) else record.get("country_code") or country
        regions: Any = record.get("subdivisions")
        region = regions[0] if isinstance(regions, list) and regions else record.get("region") or record.get("state1")
        name = _text(country) if isinstance(country, dict) else record.get("country_name")
        return Place(_text(code), _text(name), _text(region), _text(record.get("city")))


def open_places(path: Path | None) -> Places:
    """Places by the file, or none. Raises ConfigError where the file cannot be read."""
    return NoPlaces() if path is None else MmdbPlaces(path)
