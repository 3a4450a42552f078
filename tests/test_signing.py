"""Signatures as others read and write them: checked against the `standardwebhooks` package."""

from __future__ import annotations

import base64
import time
from datetime import UTC, datetime

import pytest
from standardwebhooks import Webhook

from sidecar.signing import is_fresh, read_secret, sign, verify

OLD, NEW = (f"whsec_{base64.b64encode(bytes([n]) * 24).decode()}" for n in (1, 2))
BODY = '{"sessionId":"ü"}\n'.encode()


def test_others_verify_what_we_sign() -> None:
    timestamp_s = int(time.time())
    headers = {"webhook-id": "b1", "webhook-timestamp": str(timestamp_s)}
    headers["webhook-signature"] = sign(NEW, "b1", timestamp_s, BODY)
    assert Webhook(NEW).verify(BODY, headers) == {"sessionId": "ü"}


def test_we_verify_what_others_sign() -> None:
    moment = datetime(2026, 11, 22, 7, tzinfo=UTC)
    signature = Webhook(OLD).sign("b1", moment, BODY.decode())
    timestamp = str(int(moment.timestamp()))
    assert verify([OLD], "b1", timestamp, signature, BODY)
    assert verify([NEW, OLD], "b1", timestamp, f"v2,abc {signature}", BODY), "any secret, any signature of the list"


@pytest.mark.parametrize(
    ("message_id", "timestamp", "signature", "body"),
    [
        ("b2", "1795330800", None, BODY),
        ("b1", "1795330801", None, BODY),
        ("b1", "1795330800", None, BODY + b" "),
        ("b1", "1795330800", "", BODY),
        ("b1", "1795330800", "v1,ü", BODY),
        ("b1", "", None, BODY),
        ("b1", "-1", None, BODY),
        ("b1", "٣", None, BODY),
        ("b1", "9" * 400, None, BODY),
    ],
)
def test_anything_else_is_no_signature(message_id: str, timestamp: str, signature: str | None, body: bytes) -> None:
    good = sign(OLD, "b1", 1_795_330_800, BODY)
    assert verify([OLD], "b1", "1795330800", good, BODY)
    assert not verify([OLD], message_id, timestamp, good if signature is None else signature, body)
    assert not verify([NEW], "b1", "1795330800", good, BODY)
    assert not verify([], "b1", "1795330800", good, BODY)


def test_freshness_is_five_minutes_either_way() -> None:
    now = 1_795_330_800_000
    assert [is_fresh(str(now // 1000 + off), now) for off in (-301, -300, 0, 300, 301)] == [
        False,
        True,
        True,
        True,
        False,
    ]


def test_secrets_with_and_without_padding() -> None:
    assert read_secret("whsec_YWJjZA") == read_secret("whsec_YWJjZA==") == b"abcd"
    for wrong in ("whsec_A", "whsec_", "whsec_ä"):
        with pytest.raises(ValueError, match="secret must"):
            read_secret(wrong)
