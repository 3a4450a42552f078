"""Who may come in: origins, funnels and their keys, addresses behind proxies, how many items an address may send."""

from __future__ import annotations

import hmac
import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Network, IPv6Network
from typing import NamedTuple

from sidecar.ingest.enrich import DEFAULT_FUNNEL
from sidecar.ingest.place import parse_address
from sidecar.ingest.wire import Item
from sidecar.model import Rejection

BUCKETS_MAX = 10_000  # addresses remembered by the rate limit; the longest unseen is forgotten first


class KnownFunnel(NamedTuple):
    """A configured funnel. None: no key needed, any origin allowed."""

    api_key: str | None
    allowed_origins: tuple[str, ...] | None


class Refused(NamedTuple):
    """Items refused at the gate, and the HTTP status where nothing else is left."""

    rejected: list[Rejection]
    status: int


class Gate:
    """What the settings allow. `funnels` None: any funnel id is taken."""

    def __init__(
        self,
        *,
        funnels: Mapping[str, KnownFunnel] | None = None,
        allowed_origins: Sequence[str] | None = None,
        trusted_proxies: Sequence[IPv4Network | IPv6Network] = (),
        rate_limit: float = 0,
    ) -> None:
        self._funnels = funnels
        self._origins = None if allowed_origins is None else frozenset(allowed_origins)
        self._proxies = tuple(trusted_proxies)
        self._rate = rate_limit
        self._burst = max(100.0, 10 * rate_limit)  # one full beacon, or ten seconds' worth
        self._buckets: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def allows_origin(self, origin: str | None) -> bool:
        """Whether a request with this `Origin` (None: without one) may come in."""
        return origin is None or self._origins is None or origin in self._origins

    def find_address(self, peer: str | None, forwarded_for: str | None) -> str | None:
        """The client's address: the peer's, or behind trusted proxies the last one that is none of them."""
        if not forwarded_for or not self._is_proxy(peer):
            return peer
        for hop in reversed(forwarded_for.split(",")):
            address = hop.strip()
            if parse_address(address) is None:
                return peer
            peer = address
            if not self._is_proxy(address):
                break
        return peer

    def _is_proxy(self, address: str | None) -> bool:
        parsed = parse_address(address)
        return parsed is not None and any(
            parsed in network for network in self._proxies if network.version == parsed.version
        )

    def admit(
        self, items: Sequence[Item], key: str | None, origin: str | None
    ) -> tuple[list[Item], list[Item], Refused]:
        """Items by trust: (with a right key, with none needed), and the refused ones."""
        if self._funnels is None:
            return [], list(items), Refused([], 401)
        trusted: list[Item] = []
        plain: list[Item] = []
        refused: list[Rejection] = []
        status = 401
        for item in items:
            funnel = self._funnels.get(item.funnel_id or DEFAULT_FUNNEL)
            if funnel is None:
                refused.append(Rejection(item.position, "unknown funnel"))
            elif funnel.api_key is not None and not _same(key, funnel.api_key):
                refused.append(Rejection(item.position, "wrong key"))
            elif origin is not None and funnel.allowed_origins is not None and origin not in funnel.allowed_origins:
                refused.append(Rejection(item.position, "origin not allowed"))
                status = 403
            else:
                (trusted if funnel.api_key is not None else plain).append(item)
        return trusted, plain, Refused(refused, status)

    def take(self, address: str | None, items_count: int, now: int) -> int:
        """Count items against the address's limit: 0, or the seconds to wait where there were too many."""
        if not self._rate:
            return 0
        bucket = address or ""
        left, at = self._buckets.pop(bucket, (self._burst, now))
        left = min(self._burst, left + self._rate * max(0, now - at) / 1000)
        taken = left >= items_count
        self._buckets[bucket] = (left - items_count if taken else left, now)
        if len(self._buckets) > BUCKETS_MAX:
            self._buckets.popitem(last=False)
        return 0 if taken else math.ceil((items_count - left) / self._rate)


def _same(given: str | None, key: str) -> bool:
    return hmac.compare_digest((given or "").encode(), key.encode())
