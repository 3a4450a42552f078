"""Whom a destination's HTTP client trusts."""

from __future__ import annotations

import ssl

import anyio.to_thread
import httpx2


async def load_tls(url: str) -> ssl.SSLContext:
    """What the system trusts; for plain HTTP a context that trusts nobody, for reading the system's takes 50 ms."""
    if url.startswith("https:"):
        return await anyio.to_thread.run_sync(httpx2.create_ssl_context)
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
