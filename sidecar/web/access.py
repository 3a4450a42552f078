"""Who may read: the dashboard token as Bearer or by a signed cookie; without a token, only this machine itself.

Nothing here knows what is read: `Guard` stands in front of every reading route, page and form.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import re
from collections import OrderedDict
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE_LIFETIME_S = 7 * 86_400
ATTEMPTS_MAX = 10  # sign-ins a minute an address
ATTEMPTS_WINDOW_MS = 60_000
ADDRESSES_MAX = 10_000  # remembered by the limit; the one that tried longest ago is forgotten first

OPEN_TO_THIS_MACHINE = (
    "Reading is open only to this machine itself, without a proxy; set SIDECAR_DASHBOARD_TOKEN to read from elsewhere."
)
SIGN_IN_NEEDED = (
    "Reading needs the token in SIDECAR_DASHBOARD_TOKEN: send it as 'Authorization: Bearer TOKEN', "
    "or sign in at /sign-in."
)

# script-src is none by default: no page has one. `data:` is the icon.
SAFE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; img-src 'self' data:; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}

_LOOPBACK_HOST = re.compile(r"(?:localhost|(?P<v4>127(?:\.[0-9]{1,3}){3})|\[::1\])(?::[0-9]{1,5})?", re.IGNORECASE)
_COOKIE = re.compile(r"([0-9]{1,13})\.([0-9a-f]{64})")


def _parse(address: str) -> IPv4Address | IPv6Address | None:
    try:
        parsed = ip_address(address)
    except ValueError:
        return None
    # A socket that listens on both families shows IPv4 peers as ::ffff:127.0.0.1.
    mapped = parsed.ipv4_mapped if isinstance(parsed, IPv6Address) else None
    return mapped or parsed


def peer_address(scope: Scope) -> str | None:
    """The address at the other end of the connection; None where there is none (a Unix socket)."""
    return scope["client"][0] if scope.get("client") else None


def is_local(scope: Scope) -> bool:
    """Whether a request is of this machine itself: loopback peer, loopback Host, and no sign of a proxy."""
    peer = _parse(peer_address(scope) or "")
    if peer is None or not peer.is_loopback:
        return False
    headers = Headers(scope=scope)
    hosts = headers.getlist("host")
    match = _LOOPBACK_HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
    if match is None or (match["v4"] and _parse(match["v4"]) is None):
        return False
    return not any(
        name in ("forwarded", "x-real-ip", "via") or name.startswith("x-forwarded")
        for name in headers.keys()  # noqa: SIM118 - Headers, not a dict
    )


def is_same_origin(scope: Scope) -> bool:
    """Whether a form was sent from a page of this very host: its one `Origin` names the one `Host`."""
    headers = Headers(scope=scope)
    origins, hosts = headers.getlist("origin"), headers.getlist("host")
    if len(origins) != 1 or len(hosts) != 1 or not hosts[0]:
        return False
    host = hosts[0].lower()
    return origins[0].lower() in (f"http://{host}", f"https://{host}")


class Attempts:
    """How often an address tried to sign in. An IPv6 network of 64 bits counts as one address."""

    def __init__(self, *, addresses_max: int = ADDRESSES_MAX) -> None:
        self._addresses_max = addresses_max
        self._seen: OrderedDict[str, tuple[int, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._seen)

    def take(self, address: str | None, now: int) -> int:
        """Count an attempt at `now` (ms): 0, or the seconds to wait where there were too many."""
        parsed = _parse(address or "")
        bucket = str(ip_network((parsed, 64), strict=False)) if isinstance(parsed, IPv6Address) else address or ""
        count, since = self._seen.pop(bucket, (0, now))
        if not 0 <= now - since < ATTEMPTS_WINDOW_MS:
            count, since = 0, now
        self._seen[bucket] = (min(count + 1, ATTEMPTS_MAX), since)
        if len(self._seen) > self._addresses_max:
            self._seen.popitem(last=False)
        return 0 if count < ATTEMPTS_MAX else math.ceil((since + ATTEMPTS_WINDOW_MS - now) / 1000)


class Access:
    """The rule, for one token (None: not set). `clock` gives ms; `find_address` the address that sign-ins count for."""

    def __init__(
        self,
        token: str | None,
        clock: Callable[[], int],
        *,
        find_address: Callable[[Scope], str | None] = peer_address,
    ) -> None:
        self._token = (token or "").encode()
        self._clock = clock
        self._find_address = find_address
        self._attempts = Attempts()
        # Cookies are shared between ports of a host: the name keeps two sidecars on one machine apart.
        self.cookie_name = f"sidecar_{self._sign('cookie name')[:8]}"

    def __repr__(self) -> str:
        rule = "by token" if self.has_token else "this machine only"
        return f"<Access {rule}: {len(self._attempts)} addresses tried to sign in>"

    @property
    def has_token(self) -> bool:
        """Whether a token is configured."""
        return bool(self._token)

    def refusal(self, scope: Scope) -> str | None:
        """None where the request may read; else one line that says what it needs."""
        if not self.has_token:
            return None if is_local(scope) else OPEN_TO_THIS_MACHINE
        connection = HTTPConnection(scope)
        if self._is_bearer(connection.headers) or self._is_signed(connection.cookies.get(self.cookie_name, "")):
            return None
        return SIGN_IN_NEEDED

    def is_token(self, given: str) -> bool:
        """Whether this is the token, compared in constant time."""
        return self.has_token and hmac.compare_digest(given.encode("utf-8", "replace"), self._token)

    def wait_s(self, scope: Scope) -> int:
        """Count an attempt to sign in: 0, or the seconds to wait where there were too many."""
        return self._attempts.take(self._find_address(scope), self._clock())

    def make_cookie(self) -> str:
        """The value of the cookie of someone who has just signed in: until when, and its signature by the token."""
        until_s = self._clock() // 1000 + COOKIE_LIFETIME_S
        return f"{until_s}.{self._sign(f'signed in until {until_s}')}"

    def _sign(self, text: str) -> str:
        return hmac.new(self._token, f"vitals-sidecar dashboard\0{text}".encode(), hashlib.sha256).hexdigest()

    def _is_bearer(self, headers: Headers) -> bool:
        given = headers.getlist("authorization")
        if len(given) != 1:
            return False
        scheme, _, token = given[0].partition(" ")
        # Headers come decoded as Latin-1: back to the bytes that were sent.
        return scheme.lower() == "bearer" and hmac.compare_digest(token.strip().encode("latin-1"), self._token)

    def _is_signed(self, cookie: str) -> bool:
        match = _COOKIE.fullmatch(cookie)
        if match is None:
            return False
        known = hmac.compare_digest(match[2], self._sign(f"signed in until {match[1]}"))
        return known and int(match[1]) * 1000 > self._clock()


class Guard:
    """ASGI: lets through what `access` allows; else answers as `refuse(request, line)` says."""

    def __init__(self, app: ASGIApp, *, access: Access, refuse: Callable[[Request, str], Response]) -> None:
        self._app = app
        self._access = access
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        line = self._access.refusal(scope)
        app = self._app if line is None else self._refuse(Request(scope), line)
        await app(scope, receive, send)


class SafeHeaders:
    """ASGI: puts SAFE_HEADERS on every answer that does not say otherwise itself."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SAFE_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, send_safely)
