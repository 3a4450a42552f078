"""Signatures of batches: Standard Webhooks, version 1, by HMAC-SHA256.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
What is signed is `id.timestamp.body`; a secret is `whsec_` and base64; a header may hold several signatures.
"""

from __future__ import annotations

import base64
import hmac
from collections.abc import Sequence

TOLERANCE_S = 300  # how far the timestamp may be from the receiver's clock
PREFIX = "whsec_"


def read_secret(secret: str) -> bytes:
    """The key in a secret, its padding optional. Raises ValueError where it is no base64, or empty."""
    text = secret.removeprefix(PREFIX).rstrip("=")
    try:
        key = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError:
        raise ValueError("a secret must be whsec_ and base64") from None
    if not key:
        raise ValueError("a secret must not be empty")
    return key


def sign(secret: str, message_id: str, timestamp_s: int, body: bytes) -> str:
    """The value of `webhook-signature`: `v1,` and base64. `body` is the uncompressed one."""
    mac = hmac.new(read_secret(secret), f"{message_id}.{timestamp_s}.".encode(), "sha256")
    mac.update(body)
    return "v1," + base64.b64encode(mac.digest()).decode()


def verify(secrets: Sequence[str], message_id: str, timestamp: str, signatures: str, body: bytes) -> bool:
    """Whether any of the signatures (separated by spaces) is by any of the secrets; in constant time for each.

    Says nothing about age: see `is_fresh`. A timestamp that is no whole number was signed by nobody.
    """
    if not (timestamp.isascii() and timestamp.isdigit() and len(timestamp) <= 15):
        return False
    good = False
    for secret in secrets:
        expected = sign(secret, message_id, int(timestamp), body).encode()
        for given in signatures.split(" "):
            good |= hmac.compare_digest(given.encode(errors="replace"), expected)
    return good


def is_fresh(timestamp: str, now: int) -> bool:
    """Whether a timestamp (s, as text) is within five minutes of `now` (ms), before or after."""
    return abs(int(timestamp) - now // 1000) <= TOLERANCE_S
