"""The address that a request came to, to show to people."""

from __future__ import annotations

import re

from starlette.requests import Request

_HOST = re.compile(r"[A-Za-z0-9._-]+(?::[0-9]{1,5})?|\[[0-9A-Fa-f:.]+\](?::[0-9]{1,5})?")


def server_address(request: Request) -> str:
    """`https://stats.example` of a request: of its Host, where that is one."""
    host = request.headers.get("host", "")
    if not _HOST.fullmatch(host):
        name, port = request.scope.get("server") or ("127.0.0.1", 8787)
        host = f"[{name}]:{port}" if ":" in name else f"{name}:{port}"
    said = request.headers.get("x-forwarded-proto", "")  # shown to who is signed in, trusted for nothing
    scheme = said if said in ("http", "https") else request.url.scheme
    return f"{scheme}://{host}"
